// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "backends/cpu/winograd.hpp"
#include "core/parallel.hpp"

namespace mpsnn::cpu {
namespace {

/// Tiles in one chain of additions: a panel of 128 x 32 floats stays in the first-level cache, and short chains round less.
constexpr int kChain = 128;
/// Transformed tiles of both images that are held: 4 MiB, two second-level caches; between one chain and eight.
constexpr std::size_t kBlockFloats = std::size_t(1) << 20;
constexpr int kMostChains = 8;
/// Tiles that a task transforms, and output channels that a task multiplies.
constexpr int kTaskTiles = 4, kTaskOutputs = 256;

/// The exact adjoint of the Winograd forward pass: dU = (A E A^T) x (B^T d B) summed over the tiles, at each position, then
/// dW = G^T dU G. Blocks of tiles are transformed by all threads, then positions are multiplied by all threads, each into sums of
/// its own: one set of sums, added up in the same order for any number of threads.
class WinogradWeightGradient final : public Kernel {
 public:
  WinogradWeightGradient(const WinogradTransforms& transforms, const ConvolutionGeometry& geometry, const WeightLayout& layout,
                         int images, bool is_transposed)
      : isa_(isa()),
        transforms_(transforms),
        geometry_(geometry),
        layout_(layout),
        is_transposed_(is_transposed),
        tiles_(geometry.window, images, transforms),
        inputs_(geometry.input_channels / geometry.groups),
        outputs_(geometry.output_channels / geometry.groups),
        shape_(isa_, kChain, inputs_) {
    const std::size_t image_count = std::max(0, images);
    const Axis &y = geometry.window.y, &x = geometry.window.x;
    bias_pixels_ = image_count * (is_transposed ? std::size_t(y.input) * x.input : std::size_t(std::max(0, y.output)) * std::max(0, x.output));
    bias_channels_ = is_transposed ? geometry.input_channels : geometry.output_channels;
    const std::size_t floats = std::size_t(positions()) * (inputs_ + outputs_) * kChain;
    block_ = kChain * static_cast<int>(std::clamp<std::size_t>(kBlockFloats / floats, 1, kMostChains));
    block_ = static_cast<int>(std::clamp<std::size_t>(tiles_.count(), 1, block_));
    z_stride_ = round_up(outputs_, 16) | 16;
    v_step_ = winograd_step(std::size_t(block_) * shape_.panels() * isa_.tile_columns());
    z_step_ = winograd_step(std::size_t(block_) * z_stride_);
    u_step_ = winograd_step(std::size_t(outputs_) * shape_.padded_columns());
    v_offset_ = scratch_.add(positions() * v_step_);
    z_offset_ = scratch_.add(positions() * z_step_);
    u_offset_ = scratch_.add(positions() * u_step_);
    bias_offset_ = scratch_.add(pixel_sum_parts(bias_pixels_) * bias_channels_);
    taps_offset_ = scratch_.add(taps_floats() * max_thread_count());
  }

  std::size_t scratch_bytes() const override { return scratch_.floats() * sizeof(float); }

  std::string algorithm() const override {
    const std::string m = std::to_string(transforms_.outputs), r = std::to_string(transforms_.taps);
    return "winograd F(" + m + "x" + m + ", " + r + "x" + r + ") " + isa_.name + ", " + std::to_string(block_) + " tiles at a time";
  }

  void run(const KernelCall& call) override {
    float* scratch = static_cast<float*>(call.scratch);
    if (float* bias = call.output<float>(1))
      sum_pixels(call.input<float>(0), bias_pixels_, bias_channels_, scratch + bias_offset_, bias);
    float* weights = call.output<float>(0);
    if (!weights) return;
    const float* incoming = call.input<float>(is_transposed_ ? 1 : 0);
    const float* source = call.input<float>(is_transposed_ ? 0 : 1);
    for (int group = 0; group < geometry_.groups; ++group) {
      if (tiles_.count() == 0) std::fill_n(scratch + u_offset_, positions() * u_step_, 0.0f);
      for (std::size_t first = 0; first < tiles_.count(); first += block_) {
        const int tiles = static_cast<int>(std::min<std::size_t>(block_, tiles_.count() - first));
        transform(incoming + std::ptrdiff_t(group) * outputs_, source + std::ptrdiff_t(group) * inputs_, first, tiles, scratch);
        multiply(tiles, first == 0, scratch);
      }
      store(scratch, group, weights);
    }
  }

 private:
  int positions() const { return transforms_.positions(); }
  std::size_t taps_floats() const {
    return round_up<std::size_t>(std::size_t(transforms_.taps) * transforms_.taps * shape_.padded_columns(), 16);
  }

  void transform(const float* incoming, const float* source, std::size_t first, int tiles, float* scratch) const {
    parallel_for(ceil_divide(tiles, kTaskTiles), [&](std::size_t task, int) {
      const int begin = static_cast<int>(task) * kTaskTiles, count = std::min(kTaskTiles, tiles - begin);
      tiles_.transform_inputs(transforms_, source, geometry_.input_channels, inputs_, first + begin, count,
                              scratch + v_offset_ + std::ptrdiff_t(begin) * isa_.tile_columns(), isa_.tile_columns(), v_step_,
                              std::size_t(block_) * isa_.tile_columns());
      tiles_.spread(transforms_, incoming, geometry_.output_channels, outputs_, first + begin, count,
                    scratch + z_offset_ + std::ptrdiff_t(begin) * z_stride_, z_stride_, z_step_, isa_.tile_columns());
    });
  }

  void multiply(int tiles, bool is_first, float* scratch) const {
    const int parts = ceil_divide(outputs_, kTaskOutputs);
    parallel_for(std::size_t(positions()) * parts, [&](std::size_t task, int) {
      const std::size_t p = task / parts, part = task % parts;
      const int output = static_cast<int>(part_begin(outputs_, part, parts));
      const int outputs = static_cast<int>(part_begin(outputs_, part + 1, parts)) - output;
      const float *v = scratch + v_offset_ + p * v_step_, *z = scratch + z_offset_ + p * z_step_ + output;
      float* u = scratch + u_offset_ + p * u_step_ + std::size_t(output) * shape_.padded_columns();
      for (int panel = 0; panel < shape_.panels(); ++panel) {
        const float* b = v + std::size_t(panel) * block_ * isa_.tile_columns();
        for (int t = 0; t < tiles; t += kChain)
          multiply_transposed(isa_, outputs, shape_.panel_stride(panel), std::min(kChain, tiles - t), z + std::ptrdiff_t(t) * z_stride_,
                              z_stride_, b + std::ptrdiff_t(t) * isa_.tile_columns(), isa_.tile_columns(),
                              u + panel * isa_.tile_columns(), shape_.padded_columns(), is_first && t == 0);
      }
    });
  }

  void store(float* scratch, int group, float* weights) const {
    const int taps = transforms_.taps, padded = shape_.padded_columns();
    parallel_for(outputs_, [&](std::size_t output, int thread) {
      float* w = scratch + taps_offset_ + thread * taps_floats();
      transforms_.gather(scratch + u_offset_ + output * padded, u_step_, padded, w, padded);
      float* filter = layout_.at(weights, group) + static_cast<std::ptrdiff_t>(output) * layout_.output;
      for (int y = 0; y < taps; ++y)
        for (int x = 0; x < taps; ++x, w += padded) {
          float* to = filter + y * layout_.y + x * layout_.x;
          for (int i = 0; i < inputs_; ++i) to[i * layout_.input] = w[i];
        }
    });
  }

  const Isa& isa_;
  const WinogradTransforms& transforms_;
  ConvolutionGeometry geometry_;
  WeightLayout layout_;
  bool is_transposed_;
  Tiles tiles_;
  int inputs_, outputs_, block_ = 1, z_stride_ = 0, bias_channels_ = 0;
  PackedShape shape_;  ///< panels of the input channels of a group
  std::size_t bias_pixels_ = 0, v_step_ = 0, z_step_ = 0, u_step_ = 0;
  std::size_t v_offset_ = 0, z_offset_ = 0, u_offset_ = 0, bias_offset_ = 0, taps_offset_ = 0;
  ScratchLayout scratch_;
};

}  // namespace

std::unique_ptr<Kernel> make_winograd_weight_gradient(const ConvolutionGeometry& geometry, const WeightLayout& layout, int images,
                                                      bool is_transposed, Precision precision) {
  return std::make_unique<WinogradWeightGradient>(*winograd_transforms(geometry.window.y.kernel, precision), geometry, layout,
                                                  images, is_transposed);
}

}  // namespace mpsnn::cpu
