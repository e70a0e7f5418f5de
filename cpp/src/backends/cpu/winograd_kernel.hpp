// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>

#include "backends/cpu/epilogue.hpp"
#include "backends/cpu/winograd.hpp"
#include "backends/cpu/winograd_pooling.hpp"
#include "core/parallel.hpp"

namespace mpsnn::cpu {

/// What the ways of computing a forward pass or data gradient by Winograd have in common: from the sums at the positions of the tiles to
/// the result.
class WinogradKernel : public Kernel {
 public:
  WinogradKernel(const WinogradTransforms& transforms, const Window& window, int images, int source_channels, int result_channels,
                 int groups, const WinogradWeights& weights, const Epilogue& epilogue)
      : isa_(isa()),
        transforms_(transforms),
        tiles_(window, images, transforms),
        weights_(weights),
        stage_(epilogue, tiles_.pixels(), result_channels),
        pooling_(epilogue.pooling ? std::make_optional<TilePooling>(epilogue, transforms, result_channels) : std::nullopt),
        source_channels_(source_channels),
        result_channels_(result_channels),
        groups_(groups),
        depth_(source_channels / groups),
        results_(result_channels / groups) {}

  std::string algorithm() const override {
    const std::string m = std::to_string(transforms_.outputs), r = std::to_string(transforms_.taps);
    return "winograd F(" + m + "x" + m + ", " + r + "x" + r + ") " + isa_.name + numbers() + ", blocks of " + std::to_string(block_) +
           " tiles x " + std::to_string(columns_) + " channels" + (pooling_ ? ", pooled" : "");
  }

  std::size_t scratch_bytes() const override { return (way_floats() + stage_.sums_floats(blocks_)) * sizeof(float); }

  void run(const KernelCall& call) override {
    if (!call.output<float>(0)) return;
    float *scratch = static_cast<float*>(call.scratch), *sums = scratch + way_floats();
    stage_.begin(blocks_, sums);
    compute(call, scratch);
    if (stage_.works_on_some_channels()) stage_.end(call, blocks_, sums);
    else stage_.behind(call, sums);
  }

 protected:
  /// What the products are made of, for algorithm().
  virtual std::string numbers() const { return ""; }
  /// Scratch memory without that of the epilogue, for which a block of tiles is a part.
  virtual std::size_t way_floats() const = 0;
  virtual void compute(const KernelCall& call, float* scratch) = 0;

  int positions() const { return transforms_.positions(); }

  /// The result's pixels of the tiles of a block, for some channels of a group, from the sums `m`.
  void store_result(const KernelCall& call, int group, Range of_group, std::size_t block, std::size_t first, int tiles, const float* m) const {
    const float* bias = call.input<float>(2);
    const Range channels{group * results_ + of_group.begin, group * results_ + of_group.end};
    const TileSums sums_of{m, std::size_t(m_stride_), m_step_, bias ? bias + channels.begin : nullptr};
    if (pooling_) return pooling_->run(call, tiles_, first, tiles, sums_of, channels);
    float* result = call.output<float>(0) + channels.begin;
    tiles_.transform_outputs(transforms_, m, m_stride_, m_step_, bias ? bias + channels.begin : nullptr, channels.size(), first, tiles, result,
                             result_channels_);
    if (stage_.is_empty() || !stage_.works_on_some_channels()) return;
    float* sums = static_cast<float*>(call.scratch) + way_floats();
    bool has_begun = false;
    tiles_.for_each_run(first, tiles, [&](std::size_t pixel, int pixels) {
      float* values = result + pixel * result_channels_;
      if (!has_begun) stage_.begin_part(block, values, channels, sums);
      has_begun = true;
      stage_.apply(call, block, values, pixels, channels, sums);
    });
  }

  const Isa& isa_;
  const WinogradTransforms& transforms_;
  Tiles tiles_;
  WinogradWeights weights_;
  EpilogueStage stage_;
  std::optional<TilePooling> pooling_;
  int source_channels_, result_channels_, groups_, depth_, results_;  ///< the last two: of a group
  int ranges_ = 1, block_ = 1, columns_ = 1;                          ///< tiles and result channels that a task owns
  int m_stride_ = 1;                                                  ///< sums: floats from tile to tile ...
  std::size_t m_step_ = 0;                                            ///< ... and from position to position
  std::size_t blocks_ = 0;                                            ///< of all tiles
};

/// On the matrix unit, with weights that are transformed on the way (winograd_deep_convolution.cpp).
std::unique_ptr<Kernel> make_deep_winograd(const WinogradTransforms& transforms, const Window& window, int images, int sources, int results,
                                           int groups, const WinogradWeights& weights, const Epilogue& epilogue);

}  // namespace mpsnn::cpu
