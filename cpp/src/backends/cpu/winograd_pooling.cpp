// SPDX-License-Identifier: Apache-2.0
#include "backends/cpu/winograd_pooling.hpp"

#include <algorithm>
#include <limits>

#include "backends/cpu/isa/isa.hpp"
#include "backends/cpu/neuron.hpp"

namespace mpsnn::cpu {
namespace {

bool lies_in_tiles(const Axis& window, const Axis& convolution, int tile) {
  return convolution.dilation == 1 && window.stride == window.kernel && (window.dilation == 1 || window.kernel == 1) && window.before == 0 &&
         tile % window.kernel == 0 && window.output >= 1 && window.origin(window.output - 1) < window.input;
}

}  // namespace

bool pools_tiles(const WinogradTransforms& transforms, const ConvolutionOp& op) {
  const Window& window = op.pooling->window;
  return op.pooling->kind == PoolingKind::max && op.neuron.neuron_type != CNNNeuronType::PReLU &&
         lies_in_tiles(window.y, op.geometry.window.y, transforms.outputs) && lies_in_tiles(window.x, op.geometry.window.x, transforms.outputs);
}

int TilePooling::count_of(const Axis& axis, const TileAxis::Tile& tile) {
  return std::min(ceil_divide(tile.count, axis.kernel), axis.output - tile.first / axis.kernel);
}

std::size_t TilePooling::target(const Tiles::Place& place, int line) const {
  const Axis &y = pooling_.window.y, &x = pooling_.window.x;
  return ((place.image * y.output + place.y->first / y.kernel + line) * x.output + place.x->first / x.kernel) * result_channels_;
}

void TilePooling::run(const KernelCall& call, const Tiles& tiles, std::size_t first, int count, const TileSums& sums, Range channels) const {
  alignas(64) float values[kMostOutputs * kMostOutputs * kChannels];
  const int side = transforms_.outputs;
  for (int t = 0; t < count; ++t) {
    const Tiles::Place place = tiles.place_of(first + t);
    if (t + 1 < count) fetch(call, tiles.place_of(first + t + 1), channels);
    for (int c = 0; c < channels.size(); c += kChannels) {
      const int part = std::min(kChannels, channels.size() - c);
      transforms_.output(sums.m + t * sums.tile_step + c, sums.step, sums.bias ? sums.bias + c : nullptr, part, values, std::ptrdiff_t(side) * part, part,
                         place.y->count, place.x->count);
      if (place.x->count == side) apply_neuron(neuron_, values, std::size_t(place.y->count) * side, part);
      else
        for (int i = 0; i < place.y->count; ++i) apply_neuron(neuron_, values + i * side * part, place.x->count, part);
      pool(call, place, values, {channels.begin + c, channels.begin + c + part});
    }
  }
}

void TilePooling::fetch(const KernelCall& call, const Tiles::Place& place, Range channels) const {
  for (int i = 0; i < count_of(pooling_.window.y, *place.y); ++i)
    for (int j = 0; j < count_of(pooling_.window.x, *place.x); ++j)
      prefetch_for_writing(call.output<float>(0) + target(place, i) + j * result_channels_ + channels.begin, channels.size());
}

void TilePooling::pool(const KernelCall& call, const Tiles::Place& place, const float* values, Range channels) const {
  const int height = pooling_.window.y.kernel, width = pooling_.window.x.kernel, side = transforms_.outputs;
  const bool has_zeros = pooling_.edge_mode == ImageEdgeMode::Zero;
  PoolingTap lines[kMostOutputs], taps[kMostOutputs];
  for (int i = 0; i < side; ++i) {
    lines[i] = {std::ptrdiff_t(i) * side * channels.size(), i % height * width, 1.0f};
    taps[i] = {std::ptrdiff_t(i) * channels.size(), i % width, 1.0f};
  }
  PoolingStretch stretches[kMostOutputs];
  const int columns = count_of(pooling_.window.x, *place.x);
  for (int j = 0; j < columns; ++j) {
    const int inside = std::min(width, place.x->count - j * width);
    stretches[j] = {std::size_t(j) * result_channels_, std::size_t(channels.size()), j * width, inside, has_zeros && inside < width, 1.0f};
  }
  PoolingRow row{};
  row.values = values;
  row.taps = taps;
  row.stretches = stretches;
  row.stretch_count = columns;
  row.last = std::numeric_limits<std::size_t>::max();
  for (int i = 0; i < count_of(pooling_.window.y, *place.y); ++i) {
    const std::size_t at = target(place, i) + channels.begin;
    row.lines = lines + i * height;
    row.line_count = std::min(height, place.y->count - i * height);
    row.reads_zeros = has_zeros && row.line_count < height;
    row.result = call.output<float>(0) + at;
    row.saved = call.saved ? static_cast<std::uint8_t*>(call.saved) + at : nullptr;
    isa().pooling[static_cast<int>(call.saved ? PoolingPass::maximum_in_bytes : PoolingPass::maximum)](row);
  }
}

}  // namespace mpsnn::cpu
