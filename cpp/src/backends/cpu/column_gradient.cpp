// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "backends/cpu/convolution_kernels.hpp"
#include "core/parallel.hpp"

namespace mpsnn::cpu {
namespace {

/// Tasks wanted, and the least height of a band in windows: windows across the border of two bands are computed for both.
constexpr int kColumnTasks = 16, kBandWindows = 4;
/// Products that a thread holds before it adds them up: 256 KiB.
constexpr int kProductFloats = 65536;

int column_count(const ConvolutionGeometry& geometry) {
  return geometry.window.y.kernel * geometry.window.x.kernel * geometry.input_channels;
}

/// Data gradient by columns: each pixel of the incoming gradient times the weights of all taps (one row of kH x kW x I products),
/// added where the taps lie. Multiplies nothing that falls outside of the image's border and fills whole vectors when the image
/// has few channels; costs an addition for each product. A task owns a band of lines of one image.
class ColumnGradientKernel final : public Kernel {
 public:
  ColumnGradientKernel(const ConvolutionGeometry& geometry, const WeightLayout& layout, int images)
      : isa_(isa()),
        geometry_(geometry),
        layout_(layout),
        images_(std::max(0, images)),
        packed_(isa_, geometry.output_channels, column_count(geometry)),
        zeros_(packed_.padded_columns()),
        unit_(packed_.blocks() == 1 && geometry.output_channels >= split::kDepth ? isa_.matrix_unit : nullptr) {
    std::fill_n(zeros_.data(), packed_.padded_columns(), 0.0f);
    const Axis& y = geometry.window.y;
    bands_ = std::clamp(y.input / (kBandWindows * y.extent()), 1, ceil_divide(kColumnTasks, std::max(1, images_)));
    block_ = std::clamp(kProductFloats / packed_.padded_columns(), isa_.rows, 8 * isa_.rows);
    // An odd number of cache lines, so that rows do not fall on each other.
    stride_ = round_up(packed_.columns(), 16) | 16;
    products_offset_ = thread_.add(std::size_t(block_) * stride_);
    panels_offset_ = packed_layout_.add(packed_.count());
    if (unit_) {
      const int steps = ceil_divide(packed_.depth(), split::kDepth);
      a_stride_ = steps * split::kDepth | split::kDepth;
      b_columns_ = std::size_t(steps) * split::kParts * split::kTile;
      a_offset_ = thread_.add(split::kParts * a_part() / 2);  // two elements in a float
      tiles_offset_ = packed_layout_.add(ceil_divide(packed_.columns(), split::kColumns) * b_columns_ / 2);
    }
    for (int o = 0; o < geometry.window.x.output; ++o) taps_x_.push_back(geometry.window.x.taps_inside(o));
  }

  std::size_t scratch_bytes() const override { return thread_.floats() * max_thread_count() * sizeof(float); }

  std::size_t packed_bytes() const override { return packed_layout_.floats() * sizeof(float); }

  std::string algorithm() const override {
    const std::string tile = unit_ ? "" : std::to_string(isa_.rows) + "x" + std::to_string(isa_.tile_columns()) + " ";
    return "GEMM " + tile + isa_.name + (unit_ ? ", 3 x bfloat16" : "") + " + col2im";
  }

  void run(const KernelCall& call) override {
    float* result = call.output<float>(0);
    if (!result) return;
    weights_ = static_cast<float*>(call.packed) + panels_offset_;
    split_weights_ = reinterpret_cast<std::uint16_t*>(static_cast<float*>(call.packed) + tiles_offset_);
    if (version_.is_stale(call)) pack(call.input<float>(1));
    const Axis &y = geometry_.window.y, &x = geometry_.window.x;
    parallel_for(std::size_t(images_) * bands_, [&](std::size_t task, int thread) {
      const std::size_t image = task / bands_, band = task % bands_;
      const Range lines{static_cast<int>(part_begin(y.input, band, bands_)),
                        static_cast<int>(part_begin(y.input, band + 1, bands_))};
      float* to = result + (image * y.input + lines.begin) * x.input * geometry_.input_channels;
      const float* incoming =
          call.input<float>(0) + image * std::max(0, y.output) * std::max(0, x.output) * geometry_.output_channels;
      run_band(incoming, lines, call.input<float>(2), to, static_cast<float*>(call.scratch) + thread * thread_.floats());
    });
  }

 private:
  /// Elements of a part of a block's incoming gradient, in whole tiles.
  std::size_t a_part() const { return std::size_t(round_up(block_, split::kRows)) * a_stride_; }

  void pack(const float* weights) {
    const int panels = packed_.panels(), channels = geometry_.input_channels, taps_x = geometry_.window.x.kernel;
    parallel_for(std::size_t(panels) * packed_.blocks(), [&](std::size_t task, int) {
      const int panel = static_cast<int>(task % panels), block = static_cast<int>(task / panels);
      const int first = panel * isa_.tile_columns(), last = first + packed_.panel_columns(panel),
                stride = packed_.panel_stride(panel);
      const float* from = weights + layout_.offset + packed_.block_begin(block) * layout_.output;
      float* to = weights_ + packed_.offset(block, panel);
      for (int k = first; k < last;) {
        const int tap = k / channels, channel = k % channels, count = std::min(channels - channel, last - k);
        pack_rows(from + tap / taps_x * layout_.y + tap % taps_x * layout_.x + channel * layout_.input, layout_.output,
                  layout_.input, packed_.block_depth(block), count, to + (k - first), stride,
                  k + count == last ? stride - (last - first) : 0);
        k += count;
      }
      if (!unit_) return;
      unit_->split_pairs(to, stride, packed_.depth(), last - first, split_weights_ + first / split::kColumns * b_columns_, b_columns_);
    });
  }

  /// `result` is the first of the band's lines.
  void run_band(const float* incoming, Range lines, const float* bias, float* result, float* scratch) const {
    const OpenMatrixUnit open(unit_);
    float* products = scratch + products_offset_;
    const Axis& x = geometry_.window.x;
    const int channels = geometry_.input_channels, pixels = lines.size() * x.input;
    for (int pixel = 0; pixel < pixels; ++pixel)
      for (int c = 0; c < channels; ++c) result[std::ptrdiff_t(pixel) * channels + c] = bias ? bias[c] : 0.0f;

    Axis band = geometry_.window.y;  // its pixel 0 is the band's first line
    band.input = lines.size();
    band.before += lines.begin;
    int first = 0, last = band.output;  // windows that meet the band
    while (first < last && band.taps_inside(first).size() == 0) ++first;
    while (last > first && band.taps_inside(last - 1).size() == 0) --last;
    for (int pixel = first * x.output; pixel < last * x.output; pixel += block_) {
      const int count = std::min(block_, last * x.output - pixel);
      multiply(incoming + std::ptrdiff_t(pixel) * geometry_.output_channels, count, scratch);
      for (int i = 0; i < count; ++i)
        add_patch(band, (pixel + i) / x.output, (pixel + i) % x.output, products + std::ptrdiff_t(i) * stride_, result);
    }
  }

  void multiply(const float* incoming, int pixels, float* scratch) const {
    float* products = scratch + products_offset_;
    if (unit_) {
      auto* a = reinterpret_cast<std::uint16_t*>(scratch + a_offset_);
      unit_->split_rows(incoming, geometry_.output_channels, pixels, packed_.depth(), a, a_stride_, a_part());
      return unit_->multiply({.rows = pixels, .columns = packed_.columns(), .steps = b_columns_ / (split::kParts * split::kTile), .a = a,
                              .a_stride = a_stride_, .a_part = a_part(), .b = split_weights_,
                              .b_columns = b_columns_, .c = products, .c_stride = std::size_t(stride_), .overwrites = true});
    }
    for (int block = 0; block < packed_.blocks(); ++block)
      multiply_rows(isa_, pixels, incoming + packed_.block_begin(block), geometry_.output_channels, packed_, weights_,
                    block, {0, packed_.panels()}, products, stride_, block == 0 ? zeros_.data() : nullptr);
  }

  void add_patch(const Axis& band, int line, int column, const float* products, float* result) const {
    const Axis& x = geometry_.window.x;
    const int channels = geometry_.input_channels;
    const Range taps_y = band.taps_inside(line), taps_x = taps_x_[column];
    if (taps_x.size() == 0) return;
    const int runs = x.dilation == 1 ? 1 : taps_x.size();  // neighbouring taps are one run
    for (int t = 0; t < runs; ++t) {
      const int tap = taps_x.begin + t;
      isa_.add_block(taps_y.size(), taps_x.size() / runs * channels, products + std::ptrdiff_t(taps_y.begin * x.kernel + tap) * channels,
                     std::size_t(x.kernel) * channels, result + (std::ptrdiff_t(band.tap(line, taps_y.begin)) * x.input + x.tap(column, tap)) * channels,
                     std::size_t(band.dilation) * x.input * channels);
    }
  }

  const Isa& isa_;
  ConvolutionGeometry geometry_;
  WeightLayout layout_;
  int images_;
  PackedShape packed_;
  AlignedFloats zeros_;
  ScratchLayout packed_layout_;
  float* weights_ = nullptr;
  std::uint16_t* split_weights_ = nullptr;  ///< the same for the unit
  PackedVersion version_;
  std::vector<Range> taps_x_;
  int bands_ = 1, block_ = 1, stride_ = 0;
  const MatrixUnit* unit_;  ///< null where products are done in vectors
  std::size_t a_stride_ = 0, b_columns_ = 0, products_offset_ = 0, a_offset_ = 0, panels_offset_ = 0, tiles_offset_ = 0;
  ScratchLayout thread_;
};

}  // namespace

std::unique_ptr<Kernel> make_column_gradient(const ConvolutionGeometry& geometry, const WeightLayout& layout, int images) {
  return std::make_unique<ColumnGradientKernel>(geometry, layout, images);
}

}  // namespace mpsnn::cpu
