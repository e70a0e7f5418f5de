// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "backends/cpu/winograd_kernel.hpp"

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

/// A convolution in tasks that own some tiles and some result channels, and add up the source channels a chunk at a time: transformed tiles
/// and sums stay in the second-level cache.
class BlockedWinograd : public WinogradKernel {
 public:
  BlockedWinograd(const WinogradTransforms& transforms, const Window& window, int images, int sources, int results, int groups,
                  const WinogradWeights& weights, const Epilogue& epilogue, int vectors)
      : WinogradKernel(transforms, window, images, sources, results, groups, weights, epilogue),
        shape_(isa_, depth_, results_, 1, vectors) {}

 protected:
  static constexpr int kTasks = 4;
  static constexpr std::size_t kBlocks = 8;

  /// Transformed weights that serve several tasks, in so many tasks.
  virtual std::size_t weight_tasks() const = 0;
  virtual std::size_t stored_floats() const = 0;
  virtual void store_weights(const float* weights, std::size_t task, float* scratch) const = 0;
  /// `transforms`: the tiles are not in the scratch memory yet.
  virtual void run_block(int group_range, std::size_t block, bool transforms, const KernelCall& call, float* scratch) const = 0;

  std::size_t packed_bytes() const override { return is_stored_ ? stored_floats() * sizeof(float) : 0; }
  std::size_t way_floats() const override { return scratch_.floats() * max_thread_count(); }
  void compute(const KernelCall& call, float* scratch) override {
    transformed_ = static_cast<float*>(call.packed);
    if (is_stored_ && version_.is_stale(call)) {
      parallel_for(weight_tasks(), [&](std::size_t task, int thread) {
        store_weights(call.input<float>(1), task, scratch + thread * scratch_.floats());
      });
    }
    const int ranges = groups_ * ranges_;
    parallel_for(shares_tiles_ ? blocks_ : blocks_ * ranges, [&](std::size_t task, int thread) {
      float* own = scratch + thread * scratch_.floats();
      if (!shares_tiles_) return run_block(static_cast<int>(task % ranges), task / ranges, true, call, own);
      for (int range = 0; range < ranges; ++range) run_block(range, task, range % ranges_ == 0, call, own);
    });
  }

  /// The result's pixels of the tiles of a block, for the channels of some panels, from the sums `m`.
  void store_panels(const KernelCall& call, int group, Range panels, std::size_t block, std::size_t first, int tiles, const float* m) const {
    const int end = std::min(results_, panels.end * shape_.tile_columns());
    store_result(call, group, {panels.begin * shape_.tile_columns(), end}, block, first, tiles, m);
  }

  PackedShape shape_;  ///< panels of the result channels of a group
  float* transformed_ = nullptr;  ///< the weights, in memory of packed_bytes()
  int chunk_ = 1;  ///< source channels whose tiles lie side by side
  bool is_stored_ = false, shares_tiles_ = false;
  std::size_t m_offset_ = 0;
  ScratchLayout scratch_;

 private:
  PackedVersion version_;
};

/// Products in vectors. With more source channels than one chunk, tiles are transformed again for each range of result channels, a tenth of
/// the products' time. Weights are transformed on the way when at most two tasks need the same, so that 36 floats for each pair of channels
/// are never stored; else once for each version of the parameters.
class VectorWinograd final : public BlockedWinograd {
 public:
  VectorWinograd(const WinogradTransforms& transforms, const Window& window, int images, int sources, int results, int groups,
                 const WinogradWeights& weights, const Epilogue& epilogue)
      : BlockedWinograd(transforms, window, images, sources, results, groups, weights, epilogue,
                       best_vectors(isa(), kTileRows, std::min(kRange, results / groups), std::min(kRange, sources / groups))),
        rows_(isa_.piece_rows[shape_.tile_columns() / isa_.lanes - 1]) {
    const int panels_wanted = std::max(1, kRange / shape_.tile_columns());
    ranges_ = ceil_divide(shape_.panels(), panels_wanted);
    columns_ = m_stride_ = ceil_divide(shape_.panels(), ranges_) * shape_.tile_columns();
    chunks_ = ceil_divide(depth_, kRange);
    chunk_ = round_up(ceil_divide(depth_, chunks_), isa_.lanes);
    const int tile_floats = positions() * (chunk_ + m_stride_);
    blocks_ = blocks_of(kLargeBlockFloats / tile_floats);
    // Fewer tasks than this would leave threads without work.
    const std::size_t few = ceil_divide(kTasks, groups_ * ranges_);
    blocks_ = std::max(blocks_, std::min(few, tiles_.count() / rows_));
    is_stored_ = blocks_ > 2;
    if (is_stored_) blocks_ = std::max(blocks_, blocks_of(isa_.lanes * kLaneFloats / tile_floats));
    if (blocks_ > kBlocks) blocks_ = round_up<std::size_t>(blocks_, 2);  // two threads end together
    block_ = blocks_ == 0 ? 1 : static_cast<int>((tiles_.count() + blocks_ - 1) / blocks_);
    shares_tiles_ = chunks_ == 1 && blocks_ >= kBlocks;
    v_step_ = winograd_step(std::size_t(block_) * chunk_);
    m_step_ = winograd_step(std::size_t(block_) * m_stride_);
    u_step_ = winograd_step(std::size_t(chunk_) * m_stride_);
    v_offset_ = scratch_.add(positions() * v_step_);
    m_offset_ = scratch_.add(positions() * m_step_);
    u_offset_ = scratch_.add(is_stored_ ? 0 : positions() * u_step_);
    taps_offset_ = scratch_.add(taps_floats());
  }

 private:
  /// Blocks of at most `most` tiles, which should be whole rows of the micro-kernel.
  std::size_t blocks_of(int most) const {
    const std::size_t whole = std::max(1, most / rows_) * rows_;
    return (tiles_.count() + whole - 1) / whole;
  }

  int panel_stride(int panel) const { return shape_.panel_stride(panel); }
  Range panels_of(int range) const {
    return {static_cast<int>(part_begin(shape_.panels(), range, ranges_)), static_cast<int>(part_begin(shape_.panels(), range + 1, ranges_))};
  }
  int chunk_begin(int chunk) const { return std::min(depth_, chunk * chunk_); }

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

  std::size_t stored_floats() const override { return groups_ * ranges_ * chunks_ * positions() * u_step_; }
  float* stored(std::size_t chunk) const { return transformed_ + chunk * positions() * u_step_; }
  std::size_t weight_tasks() const override { return std::size_t(groups_) * ranges_ * chunks_; }
  void store_weights(const float* weights, std::size_t task, float* scratch) const override {
    transform_chunk_weights(weights, task, stored(task), scratch);
  }

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

  void run_block(int group_range, std::size_t block, bool transforms, const KernelCall& call, float* scratch) const override {
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
    store_panels(call, group, panels, block, first, tiles, m);
  }

  int rows_, chunks_ = 1;  ///< of a tile of the product; of the source channels
  std::size_t v_step_ = 0, u_step_ = 0, v_offset_ = 0, u_offset_ = 0, taps_offset_ = 0;
};

/// Products in the matrix unit: three times as fast, so that what the caches deliver sets the pace. A task owns some tiles with all channels:
/// tiles are transformed once, and sums take their places. Weights come from the third-level cache for each task, 6 bytes for each number.
class MatrixUnitWinograd final : public BlockedWinograd {
 public:
  MatrixUnitWinograd(const WinogradTransforms& transforms, const Window& window, int images, int sources, int results, int groups,
                     const WinogradWeights& weights, const Epilogue& epilogue)
      : BlockedWinograd(transforms, window, images, sources, results, groups, weights, epilogue, 0), unit_(*isa_.matrix_unit),
        split_(transforms.taps == 5 ? *unit_.winograd_five_taps : transforms.outputs == 4 ? *unit_.winograd_four : *unit_.winograd_two) {
    columns_ = shape_.padded_columns();
    chunk_ = round_up(depth_, isa_.lanes);
    m_stride_ = std::max(chunk_, columns_);
    tile_step_ = std::size_t(ceil_divide(depth_, split::kDepth)) * (split::kParts * split::kTile);
    u_step_ = columns_ / split::kColumns * tile_step_;
    a_stride_ = std::min(kChunkSteps * split::kDepth, round_up(depth_, split::kDepth)) | split::kDepth;
    choose_blocks();
    is_stored_ = true;
    m_step_ = winograd_step(std::size_t(round_up(block_, split::kRows)) * m_stride_);
    m_offset_ = scratch_.add((positions() + 1) * m_step_);
    a_offset_ = scratch_.add((split::kParts * a_part() + 1) / 2);
  }

 private:
  /// Tiles and steps of source channels that are split and multiplied at a time: these, two columns of the weights' tiles and the sums lie in
  /// the first-level cache.
  static constexpr int kSplitRows = 2 * split::kRows, kChunkSteps = 2;
  static constexpr double kStreamedBytes = 2 << 20;  ///< transformed weights from which on they are stored past the caches

  std::string numbers() const override { return ", 3 x bfloat16"; }

  void choose_blocks() {
    const std::size_t most = stored_tiles(positions(), depth_, results_) / split::kRows;
    blocks_ = std::max((units() + most - 1) / most, std::min<std::size_t>(ceil_divide(kTasks, groups_), std::max<std::size_t>(1, units() / most)));
    // An odd number of long tasks leaves one of two threads waiting at the end.
    if (blocks_ < 2 * kBlocks) blocks_ = round_up<std::size_t>(blocks_, 2);
    blocks_ = std::min(blocks_, units());
    for (std::size_t block = 0; block < blocks_; ++block) block_ = std::max(block_, static_cast<int>(block_begin(block + 1) - block_begin(block)));
  }
  /// Blocks begin at whole tiles of the unit.
  std::size_t units() const { return (tiles_.count() + split::kRows - 1) / split::kRows; }
  std::size_t block_begin(std::size_t block) const { return std::min(tiles_.count(), part_begin(units(), block, blocks_) * split::kRows); }

  std::size_t a_part() const { return kSplitRows * a_stride_; }
  std::size_t stored_floats() const override { return groups_ * positions() * u_step_ / 2; }  ///< pairs of bfloat16 numbers
  std::uint16_t* stored(int group) const { return reinterpret_cast<std::uint16_t*>(transformed_) + group * positions() * u_step_; }

  int steps() const { return ceil_divide(depth_, split::kDepth); }
  int strips() const { return columns_ / split::kColumns; }
  std::size_t weight_tasks() const override { return std::size_t(groups_) * strips(); }
  /// The weights of kColumns result channels, transformed and split.
  void store_weights(const float* weights, std::size_t task, float*) const override {
    const int column = static_cast<int>(task % strips()) * split::kColumns, group = static_cast<int>(task / strips());
    const float* from = weights + weights_.offset + group * weights_.group + column * weights_.result;
    std::uint16_t* to = stored(group) + column / split::kColumns * tile_step_;
    const auto transform = double(groups_ * positions()) * u_step_ * sizeof *to > kStreamedBytes ? split_.streamed_weights : split_.weights;
    for (int step = 0; step < steps(); ++step, from += split::kDepth * weights_.source, to += split::kParts * split::kTile)
      transform({.from = from,
                 .y = weights_.y,
                 .x = weights_.x,
                 .source = weights_.source,
                 .result = weights_.result,
                 .sources = std::min(split::kDepth, depth_ - step * split::kDepth),
                 .results = std::clamp(results_ - column, 0, split::kColumns),
                 .to = to,
                 .step = u_step_,
                 .next = step + 1 < steps() ? from + split::kDepth * weights_.source : from,
                 .in_order = true});
  }

  void run_block(int group, std::size_t block, bool, const KernelCall& call, float* scratch) const override {
    const std::size_t first = block_begin(block);
    const int tiles = static_cast<int>(block_begin(block + 1) - first);
    float* m = scratch + m_offset_;
    tiles_.transform_inputs(transforms_, call.input<float>(0) + std::ptrdiff_t(group) * depth_, source_channels_, depth_, first, tiles,
                            m + m_step_, m_stride_, m_step_, isa_.tile_columns());
    multiply_positions(tiles, stored(group), m, reinterpret_cast<std::uint16_t*>(scratch + a_offset_));
    store_panels(call, group, {0, shape_.panels()}, block, first, tiles, m);
  }

  /// The sums of each position, in the place of the position before, whose tiles nobody needs any more; some rows and source channels at
  /// a time, which are split into the first-level cache. Each product fetches a share of the next position's weights.
  void multiply_positions(int tiles, const std::uint16_t* u, float* m, std::uint16_t* a) const {
    const OpenMatrixUnit open(&unit_);
    const int rows = ceil_divide(tiles, kSplitRows), all_steps = steps(), chunks = ceil_divide(all_steps, kChunkSteps);
    for (int p = 0; p < positions(); ++p, u += u_step_, m += m_step_) {
      const std::uint16_t* next_u = p + 1 < positions() ? u + u_step_ : u;
      for (int index = 0; index < rows * chunks; ++index) {
        const int row = index / chunks * kSplitRows, chunk = index % chunks, row_count = std::min(kSplitRows, tiles - row);
        const int step = static_cast<int>(part_begin(all_steps, chunk, chunks)), end = static_cast<int>(part_begin(all_steps, chunk + 1, chunks));
        const int first = step * split::kDepth;
        unit_.split_rows(m + m_step_ + std::ptrdiff_t(row) * m_stride_ + first, m_stride_, row_count, std::min(depth_, end * split::kDepth) - first, a,
                         a_stride_, a_part());
        const std::size_t fetched = part_begin(u_step_, index, rows * chunks);
        unit_.multiply({.rows = round_up(row_count, split::kRows),
                        .columns = columns_,
                        .steps = std::size_t(end - step),
                        .a = a,
                        .a_stride = a_stride_,
                        .a_part = a_part(),
                        .offsets = nullptr,
                        .b = u + step * (split::kParts * split::kTile),
                        .b_columns = tile_step_,
                        .c = m + std::ptrdiff_t(row) * m_stride_,
                        .c_stride = std::size_t(m_stride_),
                        .c_rows = nullptr,
                        .start = nullptr,
                        .overwrites = chunk == 0,
                        .chains = chunk > 0,
                        .next_a = next_u + fetched,
                        .next_a_count = part_begin(u_step_, index + 1, rows * chunks) - fetched});
      }
    }
  }

  const MatrixUnit& unit_;
  const SplitTransforms& split_;
  std::size_t a_stride_ = 0, tile_step_ = 0, u_step_ = 0, a_offset_ = 0;
};

std::unique_ptr<Kernel> make_winograd(const Window& window, int images, int sources, int results, int groups,
                                      const WinogradWeights& weights, const Epilogue& epilogue, Precision precision) {
  const WinogradTransforms& transforms = *winograd_transforms(window.y.kernel, precision);
  switch (plan_winograd(transforms, sources / groups, results / groups, Tiles(window, images, transforms).count()).way) {
    case WinogradWay::stored:
      return std::make_unique<MatrixUnitWinograd>(transforms, window, images, sources, results, groups, weights, epilogue);
    case WinogradWay::deep: return make_deep_winograd(transforms, window, images, sources, results, groups, weights, epilogue);
    case WinogradWay::vectors: break;
  }
  return std::make_unique<VectorWinograd>(transforms, window, images, sources, results, groups, weights, epilogue);
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
