// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "backends/cpu/convolution_kernels.hpp"
#include "backends/cpu/im2col.hpp"
#include "core/parallel.hpp"

namespace mpsnn::cpu {
namespace {

/// Pixels in one chain of additions; a panel of patches (128 x 32 floats) and a strip of the incoming gradient share the
/// first-level cache.
constexpr int kPixels = 128;
/// Panels of patches in a task: 128 x 128 floats with AVX-512.
constexpr int kPanels = 4;
/// Output channels in a task: the strip of the incoming gradient takes 128 KiB.
constexpr int kOutputs = 256;
/// Tasks wanted. When the weights have too few tiles, the sum over pixels is cut into parts of at least kPartPixels, while their
/// private sums stay below kPartFloats (8 MiB).
constexpr std::size_t kTasks = 32, kPartPixels = 1024, kPartFloats = std::size_t(2) << 20;

/// dW[o][k] = sum over pixels of E[p][o] * patch[p][k]. Tasks own disjoint tiles of dW, or of a part's private sums.
class WeightGradientKernel final : public Kernel {
 public:
  WeightGradientKernel(const ConvolutionGeometry& geometry, const WeightLayout& layout, int images, bool is_transposed)
      : isa_(isa()),
        geometry_(geometry),
        layout_(layout),
        is_transposed_(is_transposed),
        patches_(geometry.window, geometry.input_channels, geometry.groups, geometry.edge_mode),
        outputs_(geometry.output_channels / geometry.groups),
        depth_(patches_.depth()) {
    const Axis &y = geometry.window.y, &x = geometry.window.x;
    const std::size_t image_count = std::max(0, images);
    pixels_ = image_count * std::max(0, y.output) * std::max(0, x.output);
    bias_pixels_ = is_transposed ? image_count * y.input * x.input : pixels_;
    bias_channels_ = is_transposed ? geometry.input_channels : geometry.output_channels;
    choose_parts();
  }

  std::size_t scratch_bytes() const override { return scratch_.floats() * sizeof(float); }

  std::string algorithm() const override {
    std::string text = "im2col GEMM " + std::to_string(isa_.rows) + "x" + std::to_string(isa_.tile_columns()) + " " + isa_.name;
    return pixel_parts_ > 1 ? text + ", sum in " + std::to_string(pixel_parts_) + " parts" : text;
  }

  void run(const KernelCall& call) override {
    float* scratch = static_cast<float*>(call.scratch);
    if (float* bias = call.output<float>(1))
      sum_pixels(call.input<float>(0), bias_pixels_, bias_channels_, scratch + bias_offset_, bias);
    float* weights = call.output<float>(0);
    if (!weights) return;
    const float* incoming = call.input<float>(is_transposed_ ? 1 : 0);
    const float* source = call.input<float>(is_transposed_ ? 0 : 1);
    float* sums = sums_in_place() ? weights : scratch + sums_offset_;
    parallel_for(pixel_parts_ * geometry_.groups * output_parts_ * depth_parts_, [&](std::size_t task, int thread) {
      run_task(task, incoming, source, sums, scratch + patches_offset_ + thread * thread_floats_);
    });
    if (!sums_in_place()) {
      parallel_for(geometry_.output_channels,
                   [&](std::size_t output, int) { add_parts(static_cast<int>(output), sums, weights); });
    }
  }

 private:
  void choose_parts() {
    panels_ = ceil_divide(depth_, isa_.tile_columns());
    depth_parts_ = ceil_divide(panels_, kPanels);
    output_parts_ = ceil_divide(outputs_, kOutputs);
    const std::size_t tiles = std::size_t(geometry_.groups) * depth_parts_ * output_parts_;
    const std::size_t count = std::size_t(geometry_.output_channels) * depth_;
    pixel_parts_ = std::max<std::size_t>(1, std::min({(kTasks + tiles - 1) / tiles, pixels_ / kPartPixels, kPartFloats / count}));
    patch_stride_ = round_up(std::min(panels_, kPanels) * isa_.tile_columns(), 16) | 16;
    thread_floats_ = round_up<std::size_t>(std::size_t(kPixels) * patch_stride_, 16);
    patches_offset_ = scratch_.add(thread_floats_ * max_thread_count());
    bias_offset_ = scratch_.add(pixel_sum_parts(bias_pixels_) * bias_channels_);
    if (!sums_in_place()) sums_offset_ = scratch_.add(pixel_parts_ * count);
  }

  bool sums_in_place() const { return pixel_parts_ == 1 && !is_transposed_; }

  void run_task(std::size_t task, const float* incoming, const float* source, float* sums, float* patches) const {
    const std::size_t depth_part = task % depth_parts_, output_part = task / depth_parts_ % output_parts_;
    const int group = static_cast<int>(task / depth_parts_ / output_parts_ % geometry_.groups);
    const std::size_t part = task / depth_parts_ / output_parts_ / geometry_.groups;
    const int first = static_cast<int>(part_begin(panels_, depth_part, depth_parts_)) * isa_.tile_columns();
    const int last = std::min(depth_, static_cast<int>(part_begin(panels_, depth_part + 1, depth_parts_)) * isa_.tile_columns());
    const int first_output = static_cast<int>(part_begin(outputs_, output_part, output_parts_));
    const int outputs = static_cast<int>(part_begin(outputs_, output_part + 1, output_parts_)) - first_output;
    const int channel = group * outputs_ + first_output;
    float* tile = sums + (part * geometry_.output_channels + channel) * depth_ + first;

    const int padded = round_up(last - first, isa_.lanes);
    for (int row = 0; row < kPixels; ++row)
      std::fill(patches + row * patch_stride_ + (last - first), patches + row * patch_stride_ + padded, 0.0f);
    const std::size_t begin = part_begin(pixels_, part, pixel_parts_), end = part_begin(pixels_, part + 1, pixel_parts_);
    if (begin == end) {
      for (int o = 0; o < outputs; ++o) std::fill_n(tile + std::size_t(o) * depth_, last - first, 0.0f);
      return;
    }
    for (std::size_t pixel = begin; pixel < end; pixel += kPixels) {
      const int count = static_cast<int>(std::min<std::size_t>(kPixels, end - pixel));
      patches_.gather(source, group, pixel, count, first, last, patches, patch_stride_);
      multiply_transposed(isa_, outputs, last - first, count, incoming + pixel * geometry_.output_channels + channel,
                          geometry_.output_channels, patches, patch_stride_, tile, depth_, pixel == begin);
    }
  }

  /// Adds the parts up in their order and stores the filter of one output channel.
  void add_parts(int output, float* sums, float* weights) const {
    float* total = sums + std::size_t(output) * depth_;
    for (std::size_t part = 1; part < pixel_parts_; ++part) {
      const float* more = total + part * geometry_.output_channels * depth_;
      for (int k = 0; k < depth_; ++k) total[k] += more[k];
    }
    const int inputs = geometry_.input_channels / geometry_.groups;
    float* filter = layout_.at(weights, output / outputs_) + output % outputs_ * layout_.output;
    for (int y = 0; y < geometry_.window.y.kernel; ++y)
      for (int x = 0; x < geometry_.window.x.kernel; ++x)
        for (int i = 0; i < inputs; ++i) filter[y * layout_.y + x * layout_.x + i * layout_.input] = *total++;
  }

  const Isa& isa_;
  ConvolutionGeometry geometry_;
  WeightLayout layout_;
  bool is_transposed_;
  Patches patches_;
  int outputs_, depth_, panels_ = 0, depth_parts_ = 0, output_parts_ = 0, patch_stride_ = 0, bias_channels_ = 0;
  std::size_t pixels_ = 0, bias_pixels_ = 0, pixel_parts_ = 1, thread_floats_ = 0;
  std::size_t patches_offset_ = 0, bias_offset_ = 0, sums_offset_ = 0;
  ScratchLayout scratch_;
};

}  // namespace

std::unique_ptr<Kernel> make_weight_gradient(const ConvolutionGeometry& geometry, const WeightLayout& layout, int images,
                                             bool is_transposed, Precision precision) {
  const ConvolutionChoice choice = choose({ConvolutionPass::weight_gradient, geometry, images, precision});
  if (choice.algorithm == ConvolutionAlgorithm::direct)
    return explain(make_depthwise_weight_gradient(geometry, layout, images, is_transposed), choice);
  return explain(std::make_unique<WeightGradientKernel>(geometry, layout, images, is_transposed), choice);
}

std::size_t pixel_sum_parts(std::size_t pixels) { return std::clamp<std::size_t>(pixels / 2048, 1, 64); }

void sum_pixels(const float* values, std::size_t pixels, int channels, float* partial, float* result) {
  constexpr std::size_t kChain = 256;
  const std::size_t parts = pixel_sum_parts(pixels);
  parallel_for(parts, [&](std::size_t part, int) {
    float* sum = partial + part * channels;
    std::fill_n(sum, channels, 0.0f);
    const std::size_t end = part_begin(pixels, part + 1, parts);
    for (std::size_t pixel = part_begin(pixels, part, parts); pixel < end; pixel += kChain)
      isa().sum_rows(channels, std::min(kChain, end - pixel), values + pixel * channels, channels, sum);
  });
  std::copy_n(partial, channels, result);
  for (std::size_t part = 1; part < parts; ++part)
    for (int c = 0; c < channels; ++c) result[c] += partial[part * channels + c];
}

}  // namespace mpsnn::cpu
