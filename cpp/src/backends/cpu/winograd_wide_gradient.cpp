// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "backends/cpu/winograd.hpp"
#include "core/parallel.hpp"

namespace mpsnn::cpu {
namespace {

/// The weight gradient on the matrix unit for many channels, where SplitWinogradWeightGradient would transform tiles too often: those of
/// both images go once, or once for 128 output channels, to memory that all threads share. Then each position is a product of its own,
/// whose sums stay in the second-level cache for all of the tiles.
class WideWinogradWeightGradient final : public Kernel {
 public:
  WideWinogradWeightGradient(const WinogradTransforms& transforms, const ConvolutionGeometry& geometry, const WeightLayout& layout,
                             int images, bool is_transposed)
      : isa_(isa()),
        unit_(*isa_.matrix_unit),
        transforms_(transforms),
        split_(transforms.taps == 5 ? *unit_.winograd_five_taps : *unit_.winograd_four),
        geometry_(geometry),
        layout_(layout),
        is_transposed_(is_transposed),
        bias_(geometry, images, is_transposed),
        tiles_(geometry.window, images, transforms),
        inputs_(round_up(geometry.input_channels, kChannelTile)),
        outputs_(round_up(geometry.output_channels, kChannelTile)) {
    chunk_outputs_ = round_up(ceil_divide(outputs_, ceil_divide(outputs_, kRange)), kChannelTile);
    const std::size_t step_bytes = std::size_t(positions()) * split::kDepth * split::kParts * sizeof(std::uint16_t) * (inputs_ + chunk_outputs_);
    const std::size_t steps = std::max<std::size_t>(1, steps_of(tiles_.count())), most = std::max<std::size_t>(1, kOperandBytes / step_bytes);
    const std::size_t blocks = (steps + most - 1) / most;
    steps_ = static_cast<int>((steps + blocks - 1) / blocks);
    z_part_ = std::size_t(chunk_outputs_) * split::kDepth;
    z_step_ = split::kParts * z_part_ * steps_ + kPadding;
    v_part_ = kStep * steps_;
    v_step_ = v_part_ * (inputs_ / kChannelTile) + kPadding;
    u_step_ = winograd_step(std::size_t(chunk_outputs_) * inputs_);
    bias_offset_ = scratch_.add(bias_.scratch_floats());
    z_offset_ = scratch_.add(positions() * z_step_ / 2);
    v_offset_ = scratch_.add(positions() * v_step_ / 2);
    u_offset_ = scratch_.add(positions() * u_step_);
    taps_offset_ = scratch_.add(thread_floats() * max_thread_count());
  }

  std::size_t scratch_bytes() const override { return scratch_.floats() * sizeof(float); }

  std::string algorithm() const override {
    const std::string m = std::to_string(transforms_.outputs), r = std::to_string(transforms_.taps);
    return "winograd F(" + m + "x" + m + ", " + r + "x" + r + ") " + isa_.name + ", 3 x bfloat16, " + std::to_string(steps_ * split::kDepth) +
           " tiles, " + std::to_string(chunk_outputs_) + " output channels at a time";
  }

  void run(const KernelCall& call) override {
    float* scratch = static_cast<float*>(call.scratch);
    bias_.run(call, scratch + bias_offset_);
    float* weights = call.output<float>(0);
    if (!weights) return;
    const std::size_t block = std::size_t(steps_) * split::kDepth;
    for (int output = 0; output < geometry_.output_channels; output += chunk_outputs_) {
      const Range outputs{output, std::min(geometry_.output_channels, output + chunk_outputs_)};
      for (std::size_t first = 0; first < tiles_.count(); first += block) {
        const std::size_t tiles = std::min(block, tiles_.count() - first);
        transform(call, outputs, first, tiles, output > 0 && block >= tiles_.count(), scratch);
        multiply(outputs, static_cast<int>(steps_of(tiles)), first == 0, scratch);
      }
      parallel_for(outputs.size(), [&](std::size_t i, int thread) {
        gather_filter(transforms_, scratch + u_offset_ + i * inputs_, u_step_, geometry_.input_channels,
                      scratch + taps_offset_ + thread * thread_floats(), layout_, layout_.at(weights, 0) + (output + std::ptrdiff_t(i)) * layout_.output);
      });
    }
  }

 private:
  static constexpr int kChannelTile = 16;
  /// Channels that a task transforms, and output channels whose sums are held at once; a product's rows and steps, whose left operand
  /// stays in the first-level cache.
  static constexpr int kRange = 128, kRows = 64, kSteps = 4;
  static constexpr std::size_t kOperandBytes = 24'000'000;  ///< transformed tiles that are held at once
  static constexpr std::size_t kStep = std::size_t(split::kParts) * split::kTile;  ///< of a right operand
  static constexpr std::size_t kPadding = 32;  ///< a line of the cache: positions are no multiple of 4 KiB apart

  static std::size_t steps_of(std::size_t tiles) { return (tiles + split::kDepth - 1) / split::kDepth; }
  int positions() const { return transforms_.positions(); }
  std::size_t thread_floats() const { return std::size_t(transforms_.taps) * transforms_.taps * inputs_; }

  /// Both operands of the tiles [first, first + tiles); `keeps_inputs` where those of the source image are there already.
  void transform(const KernelCall& call, const Range& outputs, std::size_t first, std::size_t tiles, bool keeps_inputs, float* scratch) const {
    const float* incoming = call.input<float>(is_transposed_ ? 1 : 0);
    const float* source = call.input<float>(is_transposed_ ? 0 : 1);
    const int ranges = 1 + (keeps_inputs ? 0 : ceil_divide(geometry_.input_channels, kRange));
    parallel_for(steps_of(tiles) * ranges, [&](std::size_t task, int) {
      const std::size_t step = task / ranges, done = step * split::kDepth;
      const int range = static_cast<int>(task % ranges), count = static_cast<int>(std::min<std::size_t>(split::kDepth, tiles - done));
      SplitTransform t;
      if (range == 0) {
        tiles_.place_results(incoming + outputs.begin, geometry_.output_channels, first + done, count, t);
        t.channels = outputs.size();
        t.to = left(scratch) + step * split::kParts * z_part_;
        t.step = z_step_;
        t.part = z_part_;
        split_.spread[0][0](t);
      } else {
        const int channel = (range - 1) * kRange;
        tiles_.place_inputs(source + channel, geometry_.input_channels, first + done, count, t);
        t.channels = std::min(kRange, geometry_.input_channels - channel);
        t.to = right(scratch) + step * kStep + channel / kChannelTile * v_part_;
        t.step = v_step_;
        t.part = v_part_;
        split_.input[0][0](t);
      }
    });
  }

  void multiply(const Range& outputs, int steps, bool overwrites, float* scratch) const {
    const int blocks = ceil_divide(steps, kSteps);
    parallel_for(positions(), [&](std::size_t p, int) {
      const OpenMatrixUnit open(&unit_);
      std::ptrdiff_t offsets[kSteps];
      for (int step = 0; step < kSteps; ++step) offsets[step] = std::ptrdiff_t(step) * split::kParts * z_part_;
      for (int row = 0; row < outputs.size(); row += kRows)
        for (int block = 0; block < blocks; ++block) {
          const int step = static_cast<int>(part_begin(steps, block, blocks)), end = static_cast<int>(part_begin(steps, block + 1, blocks));
          unit_.multiply({.rows = round_up(std::min(kRows, outputs.size() - row), kChannelTile),
                          .columns = inputs_,
                          .steps = std::size_t(end - step),
                          .a = left(scratch) + p * z_step_ + step * split::kParts * z_part_ + std::size_t(row) * split::kDepth,
                          .a_stride = split::kDepth,
                          .a_part = z_part_,
                          .offsets = offsets,
                          .b = right(scratch) + p * v_step_ + step * kStep,
                          .b_columns = v_part_,
                          .c = scratch + u_offset_ + p * u_step_ + std::size_t(row) * inputs_,
                          .c_stride = std::size_t(inputs_),
                          .c_rows = nullptr,
                          .start = nullptr,
                          .overwrites = overwrites && block == 0,
                          .chains = !overwrites || block > 0});
        }
    });
  }
  std::uint16_t* left(float* scratch) const { return reinterpret_cast<std::uint16_t*>(scratch + z_offset_); }
  std::uint16_t* right(float* scratch) const { return reinterpret_cast<std::uint16_t*>(scratch + v_offset_); }

  const Isa& isa_;
  const MatrixUnit& unit_;
  const WinogradTransforms& transforms_;
  const SplitTransforms& split_;
  ConvolutionGeometry geometry_;
  WeightLayout layout_;
  bool is_transposed_;
  BiasGradient bias_;
  Tiles tiles_;
  int inputs_, outputs_;  ///< whole tiles of channels
  int chunk_outputs_ = 0, steps_ = 1;
  std::size_t z_part_ = 0, z_step_ = 0, v_part_ = 0, v_step_ = 0, u_step_ = 0;
  std::size_t bias_offset_ = 0, z_offset_ = 0, v_offset_ = 0, u_offset_ = 0, taps_offset_ = 0;
  ScratchLayout scratch_;
};

}  // namespace

std::unique_ptr<Kernel> make_wide_winograd_weight_gradient(const WinogradTransforms& transforms, const ConvolutionGeometry& geometry,
                                                           const WeightLayout& layout, int images, bool is_transposed) {
  return std::make_unique<WideWinogradWeightGradient>(transforms, geometry, layout, images, is_transposed);
}

}  // namespace mpsnn::cpu
