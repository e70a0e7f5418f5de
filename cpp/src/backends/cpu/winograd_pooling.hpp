// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "backends/cpu/epilogue.hpp"
#include "backends/cpu/winograd.hpp"

namespace mpsnn::cpu {

/// Sums at the positions of some tiles, and what is added to their transforms.
struct TileSums {
  const float* m;
  std::size_t tile_step, step;
  const float* bias;
};

/// Max pooling of a convolution's result, tile by tile while it is in the first-level cache: the image itself is never written.
class TilePooling {
 public:
  TilePooling(const Epilogue& epilogue, const WinogradTransforms& transforms, int result_channels)
      : pooling_(*epilogue.pooling), neuron_(epilogue.neuron), transforms_(transforms), result_channels_(result_channels) {}

  /// Of some tiles and channels; leaves the winners in call.saved if there is a place for them.
  void run(const KernelCall& call, const Tiles& tiles, std::size_t first, int count, const TileSums& sums, Range channels) const;

 private:
  /// Channels of a tile at a time.
  static constexpr int kChannels = 64, kMostOutputs = 4;

  /// Where the result of a tile goes: elements.
  std::size_t target(const Tiles::Place& place, int line) const;
  /// Lines or columns of the result that a tile has.
  static int count_of(const Axis& axis, const TileAxis::Tile& tile);
  void fetch(const KernelCall& call, const Tiles::Place& place, Range channels) const;
  /// `values`: the pixels of a tile, `channels` channels each.
  void pool(const KernelCall& call, const Tiles::Place& place, const float* values, Range channels) const;

  PoolingOp pooling_;
  NNNeuronDescriptor neuron_;
  const WinogradTransforms& transforms_;
  int result_channels_;
};

/// True for a pooling whose windows lie side by side, each in one tile.
bool pools_tiles(const WinogradTransforms& transforms, const ConvolutionOp& op);

}  // namespace mpsnn::cpu
