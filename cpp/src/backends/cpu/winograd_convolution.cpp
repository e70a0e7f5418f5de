// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "backends/cpu/neuron.hpp"
#include "backends/cpu/winograd.hpp"
#include "core/parallel.hpp"

namespace mpsnn::cpu {
namespace {

/// Transformed tiles that a thread holds: 512 KiB stay in the second-level cache.
constexpr std::size_t kBlockFloats = std::size_t(128) << 10;
/// Tiles in a block at most, in tiles of rows of the micro-kernel: weights are read again for each block.
constexpr int kMostRowTiles = 8;
/// Source channels in one chain of additions, and whose weights are transformed at a time.
constexpr int kChain = 128, kWeightChannels = 32;

/// What both drivers share: geometry, weights and products.
class WinogradKernel : public Kernel {
 public:
  WinogradKernel(const WinogradTransforms& transforms, const Window& window, int images, int source_channels, int result_channels,
                 int groups, const WinogradWeights& weights, const Epilogue& epilogue)
      : isa_(isa()),
        transforms_(transforms),
        tiles_(window, images, transforms),
        weights_(weights),
        neuron_(epilogue.neuron),
        has_neuron_(epilogue.has_neuron()),
        source_channels_(source_channels),
        result_channels_(result_channels),
        groups_(groups),
        depth_(source_channels / groups),
        shape_(isa_, depth_, result_channels / groups),
        v_stride_(round_up(depth_, isa_.lanes)) {}

 protected:
  int positions() const { return transforms_.positions(); }
  int panel_stride(int panel) const { return shape_.panel_stride(panel); }
  std::string name() const {
    const std::string m = std::to_string(transforms_.outputs), r = std::to_string(transforms_.taps);
    return "winograd F(" + m + "x" + m + ", " + r + "x" + r + ") " + isa_.name;
  }

  /// u := the transformed weights of a panel for the source channels [first, last): per position a matrix of last - first rows as
  /// wide as the panel, `step` floats apart. `taps` holds taps * taps * (last - first) * panel width floats.
  void transform_weights(const float* weights, int group, int panel, int first, int last, float* u, std::size_t step,
                         float* taps) const {
    const int stride = panel_stride(panel), columns = shape_.panel_columns(panel);
    const std::size_t count = std::size_t(last - first) * stride;
    const float* from = weights + weights_.offset + group * weights_.group +
                        std::ptrdiff_t(panel) * isa_.tile_columns() * weights_.result + first * weights_.source;
    for (int y = 0; y < transforms_.taps; ++y)
      for (int x = 0; x < transforms_.taps; ++x)
        pack_rows(from + y * weights_.y + x * weights_.x, weights_.source, weights_.result, last - first, columns,
                  taps + (y * transforms_.taps + x) * count, stride, stride - columns);
    transforms_.weights(taps, count, count, u, step);
  }
  std::size_t taps_floats() const {
    return std::size_t(transforms_.taps) * transforms_.taps * kWeightChannels * isa_.tile_columns();
  }

  /// m (+)= v * u for one position: `rows` tiles, `depth` source channels, one panel of result channels.
  void multiply(int rows, int depth, const float* v, std::size_t v_stride, const float* u, int columns, float* m,
                std::size_t m_stride, bool overwrites) const {
    const int vectors = columns / isa_.lanes, tiles = ceil_divide(rows, isa_.rows);
    for (int first = 0; first < depth; first += kChain) {
      const int chain = std::min(kChain, depth - first);
      for (int tile = 0; tile < tiles; ++tile) {
        const int row = static_cast<int>(part_begin(rows, tile, tiles));
        const int count = static_cast<int>(part_begin(rows, tile + 1, tiles)) - row;
        isa_.row_tiles[(count - 1) * isa_.vectors + vectors - 1](chain, v + row * v_stride + first, v_stride,
                                                                 u + std::ptrdiff_t(first) * columns, columns, m + row * m_stride,
                                                                 m_stride, overwrites && first == 0 ? kZeros : nullptr, columns);
      }
    }
  }

  const Isa& isa_;
  const WinogradTransforms& transforms_;
  Tiles tiles_;
  WinogradWeights weights_;
  NNNeuronDescriptor neuron_;
  bool has_neuron_;
  int source_channels_, result_channels_, groups_, depth_;
  PackedShape shape_;  ///< panels of the result channels of a group
  int v_stride_;
};

/// Blocks of tiles: transform, multiply, transform back, all in the second-level cache. The weights are transformed once for each
/// version of the parameters, and read once for each block.
class WinogradByTiles final : public WinogradKernel {
 public:
  template <class... Arguments>
  explicit WinogradByTiles(const Arguments&... arguments) : WinogradKernel(arguments...) {
    const int fitting = static_cast<int>(kBlockFloats / (std::size_t(positions()) * v_stride_)) / isa_.rows;
    // At least 16 blocks, where there are enough tiles, so that threads end together.
    const int sharing = static_cast<int>(std::min<std::size_t>(tiles_.count() / 16, 1 << 20)) / isa_.rows;
    block_ = isa_.rows * std::clamp(std::min(fitting, sharing), 1, kMostRowTiles);
    v_step_ = winograd_step(std::size_t(block_) * v_stride_);
    m_step_ = winograd_step(std::size_t(block_) * isa_.tile_columns());
    u_step_ = winograd_step(std::size_t(depth_) * shape_.padded_columns());
    transformed_ = AlignedFloats(groups_ * positions() * u_step_);
    v_offset_ = scratch_.add(positions() * v_step_);
    m_offset_ = scratch_.add(std::max(positions() * m_step_, taps_floats()));
  }

  std::size_t scratch_bytes() const override { return scratch_.floats() * max_thread_count() * sizeof(float); }

  std::string algorithm() const override { return name() + ", blocks of " + std::to_string(block_) + " tiles"; }

  void run(const KernelCall& call) override {
    float *result = call.output<float>(0), *scratch = static_cast<float*>(call.scratch);
    if (!result) return;
    if (version_.is_stale(call)) transform_all_weights(call.input<float>(1), scratch);
    parallel_for((tiles_.count() + block_ - 1) / block_, [&](std::size_t block, int thread) {
      float* own = scratch + thread * scratch_.floats();
      const std::size_t first = block * block_;
      const int tiles = static_cast<int>(std::min<std::size_t>(block_, tiles_.count() - first));
      for (int group = 0; group < groups_; ++group) run_block(group, first, tiles, call, own);
      if (!has_neuron_) return;
      tiles_.for_each_run(first, tiles, [&](std::size_t pixel, int pixels) {
        apply_neuron(neuron_, result + pixel * result_channels_, pixels, result_channels_);
      });
    });
  }

 private:
  void transform_all_weights(const float* weights, float* scratch) {
    const int chunks = ceil_divide(depth_, kWeightChannels), panels = shape_.panels();
    parallel_for(std::size_t(groups_) * panels * chunks, [&](std::size_t task, int thread) {
      const int chunk = static_cast<int>(task % chunks), panel = static_cast<int>(task / chunks % panels);
      const int group = static_cast<int>(task / chunks / panels), first = chunk * kWeightChannels;
      transform_weights(weights, group, panel, first, std::min(depth_, first + kWeightChannels),
                        panel_weights(group, panel) + std::ptrdiff_t(first) * panel_stride(panel), u_step_,
                        scratch + thread * scratch_.floats() + m_offset_);
    });
  }

  float* panel_weights(int group, int panel) const {
    return transformed_.data() + group * positions() * u_step_ + std::size_t(panel) * isa_.tile_columns() * depth_;
  }

  void run_block(int group, std::size_t first, int tiles, const KernelCall& call, float* scratch) const {
    float *v = scratch + v_offset_, *m = scratch + m_offset_;
    tiles_.transform_inputs(transforms_, call.input<float>(0) + std::ptrdiff_t(group) * depth_, source_channels_, depth_, first, tiles,
                            v, v_stride_, v_step_, isa_.tile_columns());
    for (int panel = 0; panel < shape_.panels(); ++panel) {
      const float* u = panel_weights(group, panel);
      for (int p = 0; p < positions(); ++p)
        multiply(tiles, depth_, v + p * v_step_, v_stride_, u + p * u_step_, panel_stride(panel), m + p * m_step_,
                 isa_.tile_columns(), true);
      const int channel = group * shape_.columns() + panel * isa_.tile_columns();
      const float* bias = call.input<float>(2);
      tiles_.transform_outputs(transforms_, m, isa_.tile_columns(), m_step_, bias ? bias + channel : nullptr,
                               shape_.panel_columns(panel), first, tiles, call.output<float>(0) + channel, result_channels_);
    }
  }

  int block_ = 1;
  std::size_t v_step_ = 0, m_step_ = 0, u_step_ = 0, v_offset_ = 0, m_offset_ = 0;
  AlignedFloats transformed_;
  PackedVersion version_;
  ScratchLayout scratch_;
};

/// For many channels on few tiles, where transformed weights (36 floats for each pair of channels) would be the largest thing to
/// move: all tiles are transformed first; then a task transforms the weights of some result channels a few source channels at a
/// time, multiplies all tiles with them, and transforms back. Transformed weights never leave the second-level cache.
class WinogradByChannels final : public WinogradKernel {
 public:
  template <class... Arguments>
  explicit WinogradByChannels(const Arguments&... arguments) : WinogradKernel(arguments...) {
    const std::size_t limit = std::size_t(kMostTiles);
    chunk_ = static_cast<int>(std::clamp<std::size_t>(tiles_.count(), 1, limit));
    if (tiles_.count() > limit) chunk_ = static_cast<int>((tiles_.count() + (tiles_.count() + limit - 1) / limit - 1) / ((tiles_.count() + limit - 1) / limit));
    v_step_ = winograd_step(std::size_t(chunk_) * v_stride_);
    m_step_ = winograd_step(std::size_t(chunk_) * isa_.tile_columns());
    u_step_ = winograd_step(std::size_t(kChain) * isa_.tile_columns());
    m_offset_ = scratch_.add(positions() * m_step_);
    u_offset_ = scratch_.add(positions() * u_step_);
    taps_offset_ = scratch_.add(taps_floats());
    v_floats_ = round_up<std::size_t>(groups_ * positions() * v_step_, 16);
  }

  std::size_t scratch_bytes() const override { return (v_floats_ + scratch_.floats() * max_thread_count()) * sizeof(float); }

  std::string algorithm() const override { return name() + ", by channels, " + std::to_string(chunk_) + " tiles at a time"; }

  void run(const KernelCall& call) override {
    float *result = call.output<float>(0), *scratch = static_cast<float*>(call.scratch);
    if (!result) return;
    for (std::size_t first = 0; first < tiles_.count(); first += chunk_) {
      const int tiles = static_cast<int>(std::min<std::size_t>(chunk_, tiles_.count() - first));
      transform_chunk(call.input<float>(0), first, tiles, scratch);
      parallel_for(std::size_t(groups_) * shape_.panels(), [&](std::size_t task, int thread) {
        run_panel(static_cast<int>(task / shape_.panels()), static_cast<int>(task % shape_.panels()), first, tiles, call, scratch,
                  scratch + v_floats_ + thread * scratch_.floats());
      });
      if (!has_neuron_) continue;
      parallel_for((tiles + kTaskTiles - 1) / kTaskTiles, [&](std::size_t task, int) {
        const int begin = static_cast<int>(task) * kTaskTiles;
        tiles_.for_each_run(first + begin, std::min(kTaskTiles, tiles - begin), [&](std::size_t pixel, int pixels) {
          apply_neuron(neuron_, result + pixel * result_channels_, pixels, result_channels_);
        });
      });
    }
  }

 private:
  static constexpr int kMostTiles = 256, kTaskTiles = 4;

  void transform_chunk(const float* source, std::size_t first, int tiles, float* v) const {
    const int tasks = ceil_divide(tiles, kTaskTiles);
    parallel_for(std::size_t(groups_) * tasks, [&](std::size_t task, int) {
      const int group = static_cast<int>(task / tasks), begin = static_cast<int>(task % tasks) * kTaskTiles;
      tiles_.transform_inputs(transforms_, source + std::ptrdiff_t(group) * depth_, source_channels_, depth_, first + begin,
                              std::min(kTaskTiles, tiles - begin),
                              v + group * positions() * v_step_ + std::ptrdiff_t(begin) * v_stride_, v_stride_, v_step_,
                              isa_.tile_columns());
    });
  }

  void run_panel(int group, int panel, std::size_t first, int tiles, const KernelCall& call, const float* transformed,
                 float* scratch) const {
    const float* v = transformed + group * positions() * v_step_;
    float *m = scratch + m_offset_, *u = scratch + u_offset_;
    const int columns = panel_stride(panel);
    for (int begin = 0; begin < depth_; begin += kChain) {
      const int end = std::min(depth_, begin + kChain);
      for (int c = begin; c < end; c += kWeightChannels)
        transform_weights(call.input<float>(1), group, panel, c, std::min(end, c + kWeightChannels),
                          u + std::ptrdiff_t(c - begin) * columns, u_step_, scratch + taps_offset_);
      for (int p = 0; p < positions(); ++p)
        multiply(tiles, end - begin, v + p * v_step_ + begin, v_stride_, u + p * u_step_, columns, m + p * m_step_,
                 isa_.tile_columns(), begin == 0);
    }
    const int channel = group * shape_.columns() + panel * isa_.tile_columns();
    const float* bias = call.input<float>(2);
    tiles_.transform_outputs(transforms_, m, isa_.tile_columns(), m_step_, bias ? bias + channel : nullptr,
                             shape_.panel_columns(panel), first, tiles, call.output<float>(0) + channel, result_channels_);
  }

  int chunk_ = 1;
  std::size_t v_step_ = 0, m_step_ = 0, u_step_ = 0, m_offset_ = 0, u_offset_ = 0, taps_offset_ = 0, v_floats_ = 0;
  ScratchLayout scratch_;
};

std::unique_ptr<Kernel> make_winograd(const Window& window, int images, int sources, int results, int groups,
                                      const WinogradWeights& weights, const Epilogue& epilogue, Precision precision, bool by_channels) {
  const WinogradTransforms& transforms = *winograd_transforms(window.y.kernel, precision);
  if (by_channels)
    return std::make_unique<WinogradByChannels>(transforms, window, images, sources, results, groups, weights, epilogue);
  return std::make_unique<WinogradByTiles>(transforms, window, images, sources, results, groups, weights, epilogue);
}

}  // namespace

std::unique_ptr<Kernel> make_winograd_forward(const ConvolutionGeometry& geometry, const WeightLayout& layout, int images,
                                              const Epilogue& epilogue, Precision precision, bool by_channels) {
  return make_winograd(geometry.window, images, geometry.input_channels, geometry.output_channels, geometry.groups,
                       {layout.offset, layout.group, layout.output, layout.y, layout.x, layout.input}, epilogue, precision, by_channels);
}

std::unique_ptr<Kernel> make_winograd_data_gradient(const ConvolutionGeometry& geometry, const WeightLayout& layout, int images,
                                                    const Epilogue& epilogue, Precision precision, bool by_channels) {
  const Axis &y = geometry.window.y, &x = geometry.window.x;
  const WinogradWeights mirrored{layout.offset + (y.kernel - 1) * layout.y + (x.kernel - 1) * layout.x,
                                 layout.group, layout.input, -layout.y, -layout.x, layout.output};
  return make_winograd({y.mirrored(), x.mirrored()}, images, geometry.output_channels, geometry.input_channels, geometry.groups,
                       mirrored, epilogue, precision, by_channels);
}

}  // namespace mpsnn::cpu
