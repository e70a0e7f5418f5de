// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "backends/cpu/neuron.hpp"
#include "backends/cpu/winograd.hpp"
#include "core/parallel.hpp"

namespace mpsnn::cpu {
namespace {

/// Floats of transformed tiles and sums that a thread holds at once, in its second-level cache: 1 MiB with AVX-512, half of it
/// with AVX2. Few tiles are held at once all the same, up to 1.25 MiB: sums that leave the second-level cache cost less than weights
/// that are read or transformed once more.
constexpr int kLaneFloats = 16 << 10, kLargeBlockFloats = 320 << 10;
/// Source channels whose weights are transformed at a time.
constexpr int kWeightChannels = 32;
/// Channels that a task reads, and writes, at a time; tiles of its products are chosen for as many rows.
constexpr int kRange = 64, kTileRows = 64;

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
        shape_(isa_, depth_, result_channels / groups, 1, best_vectors(isa_, kTileRows, std::min(kRange, result_channels / groups), std::min(kRange, depth_))),
        rows_(isa_.piece_rows[shape_.tile_columns() / isa_.lanes - 1]) {}

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
                        std::ptrdiff_t(panel) * shape_.tile_columns() * weights_.result + first * weights_.source;
    for (int y = 0; y < transforms_.taps; ++y)
      for (int x = 0; x < transforms_.taps; ++x)
        pack_rows(from + y * weights_.y + x * weights_.x, weights_.source, weights_.result, last - first, columns,
                  taps + (y * transforms_.taps + x) * count, stride, stride - columns);
    transforms_.weights(taps, count, count, u, step);
  }
  std::size_t taps_floats() const {
    return std::size_t(transforms_.taps) * transforms_.taps * kWeightChannels * shape_.tile_columns();
  }

  const Isa& isa_;
  const WinogradTransforms& transforms_;
  Tiles tiles_;
  WinogradWeights weights_;
  NNNeuronDescriptor neuron_;
  bool has_neuron_;
  int source_channels_, result_channels_, groups_, depth_;
  PackedShape shape_;  ///< panels of the result channels of a group
  int rows_;           ///< of a tile of the product
};

/// A task owns some tiles and some result channels, and adds up the source channels a few at a time: transformed tiles, sums and
/// weights stay in the second-level cache. With more source channels than one chunk, tiles are transformed again for each range of
/// result channels, a tenth of the products' time. Weights are transformed on the way when at most two tasks need the same, so that
/// 36 floats for each pair of channels are never stored; else once for each version of the parameters.
class WinogradConvolution final : public WinogradKernel {
 public:
  template <class... Arguments>
  explicit WinogradConvolution(const Arguments&... arguments) : WinogradKernel(arguments...) {
    const int panels_wanted = std::max(1, kRange / shape_.tile_columns());
    ranges_ = ceil_divide(shape_.panels(), panels_wanted);
    const int most_columns = ceil_divide(shape_.panels(), ranges_) * shape_.tile_columns();
    chunks_ = ceil_divide(depth_, kRange);
    chunk_ = round_up(ceil_divide(depth_, chunks_), isa_.lanes);
    const int tile_floats = positions() * (chunk_ + most_columns);
    blocks_ = blocks_of(kLargeBlockFloats / tile_floats);
    // Fewer tasks than this would leave threads without work.
    const std::size_t few = ceil_divide(kTasks, groups_ * ranges_);
    blocks_ = std::max(blocks_, std::min(few, tiles_.count() / rows_));
    is_stored_ = blocks_ > 2;
    if (is_stored_) blocks_ = std::max(blocks_, blocks_of(isa_.lanes * kLaneFloats / tile_floats));
    block_ = blocks_ == 0 ? 1 : static_cast<int>((tiles_.count() + blocks_ - 1) / blocks_);
    shares_tiles_ = chunks_ == 1 && blocks_ >= kBlocks;
    v_step_ = winograd_step(std::size_t(block_) * chunk_);
    m_stride_ = most_columns;
    m_step_ = winograd_step(std::size_t(block_) * m_stride_);
    u_step_ = winograd_step(std::size_t(chunk_) * most_columns);
    if (is_stored_) transformed_ = AlignedFloats(groups_ * ranges_ * chunks_ * positions() * u_step_);
    v_offset_ = scratch_.add(positions() * v_step_);
    m_offset_ = scratch_.add(positions() * m_step_);
    u_offset_ = scratch_.add(is_stored_ ? 0 : positions() * u_step_);
    taps_offset_ = scratch_.add(taps_floats());
  }

  std::size_t scratch_bytes() const override { return scratch_.floats() * max_thread_count() * sizeof(float); }

  std::string algorithm() const override {
    return name() + ", blocks of " + std::to_string(block_) + " tiles x " + std::to_string(m_stride_) + " channels";
  }

  void run(const KernelCall& call) override {
    float *result = call.output<float>(0), *scratch = static_cast<float*>(call.scratch);
    if (!result) return;
    if (is_stored_ && version_.is_stale(call)) {
      parallel_for(std::size_t(groups_) * ranges_ * chunks_, [&](std::size_t task, int thread) {
        transform_chunk_weights(call.input<float>(1), task, stored(task), scratch + thread * scratch_.floats());
      });
    }
    const int ranges = groups_ * ranges_;
    parallel_for(shares_tiles_ ? blocks_ : blocks_ * ranges, [&](std::size_t task, int thread) {
      float* own = scratch + thread * scratch_.floats();
      if (!shares_tiles_) return run_block(static_cast<int>(task % ranges), task / ranges, true, call, own);
      for (int range = 0; range < ranges; ++range) run_block(range, task, range % ranges_ == 0, call, own);
    });
    if (!has_neuron_ || fuses_neuron()) return;
    parallel_for((tiles_.count() + kTaskTiles - 1) / kTaskTiles, [&](std::size_t task, int) {
      const std::size_t begin = task * kTaskTiles;
      tiles_.for_each_run(begin, static_cast<int>(std::min(kTaskTiles, tiles_.count() - begin)), [&](std::size_t pixel, int pixels) {
        apply_neuron(neuron_, result + pixel * result_channels_, pixels, result_channels_);
      });
    });
  }

 private:
  static constexpr int kTasks = 4;
  static constexpr std::size_t kTaskTiles = 4, kBlocks = 8;

  /// While the block's pixels are in the cache; PReLU's slopes are those of whole pixels.
  bool fuses_neuron() const { return has_neuron_ && neuron_.neuron_type != CNNNeuronType::PReLU; }

  /// Blocks of at most `most` tiles, which should be whole rows of the micro-kernel.
  std::size_t blocks_of(int most) const {
    const std::size_t whole = std::max(1, most / rows_) * rows_;
    return (tiles_.count() + whole - 1) / whole;
  }

  float* stored(std::size_t chunk) const { return transformed_.data() + chunk * positions() * u_step_; }
  Range panels_of(int range) const {
    return {static_cast<int>(part_begin(shape_.panels(), range, ranges_)), static_cast<int>(part_begin(shape_.panels(), range + 1, ranges_))};
  }
  int chunk_begin(int chunk) const { return std::min(depth_, chunk * chunk_); }

  /// Weights number `index` = (group * ranges + range) * chunks + chunk.
  void transform_chunk_weights(const float* weights, std::size_t index, float* u, float* scratch) const {
    const int chunk = static_cast<int>(index % chunks_), range = static_cast<int>(index / chunks_ % ranges_);
    const int group = static_cast<int>(index / chunks_ / ranges_), begin = chunk_begin(chunk), end = chunk_begin(chunk + 1);
    for (int panel = panels_of(range).begin; panel < panels_of(range).end; ++panel) {
      for (int c = begin; c < end; c += kWeightChannels)
        transform_weights(weights, group, panel, c, std::min(end, c + kWeightChannels), u + std::ptrdiff_t(c - begin) * panel_stride(panel),
                          u_step_, scratch + taps_offset_);
      u += std::ptrdiff_t(end - begin) * panel_stride(panel);
    }
  }

  /// `transforms`: the tiles are not in the scratch memory yet.
  void run_block(int group_range, std::size_t block, bool transforms, const KernelCall& call, float* scratch) const {
    const int group = group_range / ranges_;
    const Range panels = panels_of(group_range % ranges_);
    const std::size_t first = part_begin(tiles_.count(), block, blocks_);
    const int tiles = static_cast<int>(part_begin(tiles_.count(), block + 1, blocks_) - first);
    float *v = scratch + v_offset_, *m = scratch + m_offset_;
    for (int chunk = 0; chunk < chunks_; ++chunk) {
      const int begin = chunk_begin(chunk), depth = chunk_begin(chunk + 1) - begin;
      const std::size_t weights = std::size_t(group_range) * chunks_ + chunk;
      const float* u = is_stored_ ? stored(weights) : scratch + u_offset_;
      if (!is_stored_) transform_chunk_weights(call.input<float>(1), weights, scratch + u_offset_, scratch);
      if (transforms)
        tiles_.transform_inputs(transforms_, call.input<float>(0) + std::ptrdiff_t(group) * depth_ + begin, source_channels_, depth,
                                first, tiles, v, chunk_, v_step_, isa_.tile_columns());
      for (int p = 0; p < positions(); ++p) {
        const float* panel_u = u + p * u_step_;
        for (int panel = panels.begin; panel < panels.end; ++panel) {
          const float* next = panel_u + std::ptrdiff_t(depth) * panel_stride(panel);
          const bool is_last = panel + 1 == panels.end;
          multiply_panel(isa_, {.rows = tiles,
                                .depth = depth,
                                .a = v + p * v_step_,
                                .a_stride = std::size_t(chunk_),
                                .b = panel_u,
                                .columns = panel_stride(panel),
                                .c = m + p * m_step_ + (panel - panels.begin) * shape_.tile_columns(),
                                .c_stride = std::size_t(m_stride_),
                                .overwrites = chunk == 0,
                                .next_a = v + (is_last ? p + 1 : p) * v_step_,
                                .next_b = is_last ? u + (p + 1) * u_step_ : next});
          panel_u = next;
        }
      }
    }
    const int channel = panels.begin * shape_.tile_columns(), end = std::min(shape_.columns(), panels.end * shape_.tile_columns());
    const float* bias = call.input<float>(2);
    const int offset = group * shape_.columns() + channel;
    tiles_.transform_outputs(transforms_, m, m_stride_, m_step_, bias ? bias + offset : nullptr, end - channel, first, tiles,
                             call.output<float>(0) + offset, result_channels_);
    if (!fuses_neuron()) return;
    tiles_.for_each_run(first, tiles, [&](std::size_t pixel, int pixels) {
      float* values = call.output<float>(0) + pixel * result_channels_ + offset;
      if (end - channel == result_channels_) return apply_neuron(neuron_, values, pixels, result_channels_);
      for (int i = 0; i < pixels; ++i) apply_neuron(neuron_, values + std::ptrdiff_t(i) * result_channels_, 1, end - channel);
    });
  }

  int ranges_ = 1, chunks_ = 1, chunk_ = 1, block_ = 1, m_stride_ = 1;
  std::size_t blocks_ = 0;
  bool is_stored_ = false, shares_tiles_ = false;
  std::size_t v_step_ = 0, m_step_ = 0, u_step_ = 0, v_offset_ = 0, m_offset_ = 0, u_offset_ = 0, taps_offset_ = 0;
  AlignedFloats transformed_;
  PackedVersion version_;
  ScratchLayout scratch_;
};

std::unique_ptr<Kernel> make_winograd(const Window& window, int images, int sources, int results, int groups,
                                      const WinogradWeights& weights, const Epilogue& epilogue, Precision precision) {
  const WinogradTransforms& transforms = *winograd_transforms(window.y.kernel, precision);
  return std::make_unique<WinogradConvolution>(transforms, window, images, sources, results, groups, weights, epilogue);
}

}  // namespace

std::unique_ptr<Kernel> make_winograd_forward(const ConvolutionGeometry& geometry, const WeightLayout& layout, int images,
                                              const Epilogue& epilogue, Precision precision) {
  return make_winograd(geometry.window, images, geometry.input_channels, geometry.output_channels, geometry.groups,
                       {layout.offset, layout.group, layout.output, layout.y, layout.x, layout.input}, epilogue, precision);
}

std::unique_ptr<Kernel> make_winograd_data_gradient(const ConvolutionGeometry& geometry, const WeightLayout& layout, int images,
                                                    const Epilogue& epilogue, Precision precision) {
  const Axis &y = geometry.window.y, &x = geometry.window.x;
  const WinogradWeights mirrored{layout.offset + (y.kernel - 1) * layout.y + (x.kernel - 1) * layout.x,
                                 layout.group, layout.input, -layout.y, -layout.x, layout.output};
  return make_winograd({y.mirrored(), x.mirrored()}, images, geometry.output_channels, geometry.input_channels, geometry.groups,
                       mirrored, epilogue, precision);
}

}  // namespace mpsnn::cpu
