// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "backends/cpu/winograd_kernel.hpp"

namespace mpsnn::cpu {
namespace {

/// Products in the matrix unit for many channels, whose transformed weights, 216 bytes for a pair of channels, would come from far away for
/// each task. All tiles of a pass are transformed and split once, to memory that the threads share. A task owns some result channels of a
/// block of tiles: it transforms and splits the weights of 32 source channels at a time, multiplies them at each position, and adds to sums
/// in the second-level cache. What it reads from farther away, split tiles and plain weights, is as much as the products take time for.
class DeepWinograd final : public WinogradKernel {
 public:
  DeepWinograd(const WinogradTransforms& transforms, const Window& window, int images, int sources, int results, int groups,
               const WinogradWeights& weights, const Epilogue& epilogue)
      : WinogradKernel(transforms, window, images, sources, results, groups, weights, epilogue),
        unit_(*isa_.matrix_unit),
        split_(transforms.taps == 5 ? *unit_.winograd_five_taps : *unit_.winograd_four),
        steps_(ceil_divide(depth_, split::kDepth)) {
    choose_blocks();
    a_part_ = std::size_t(block_) * split::kDepth;
    a_step_ = split::kParts * a_part_ + kPadding;
    u_step_ = columns_ / split::kColumns * kStep + kPadding;
    m_stride_ = columns_;
    m_step_ = winograd_step(std::size_t(block_) * m_stride_);
    m_offset_ = thread_.add(positions() * m_step_);
    u_offset_ = thread_.add(positions() * u_step_ / 2);
    a_offset_ = scratch_.add(pass_ * groups_ * steps_ * positions() * a_step_ / 2);
    threads_offset_ = scratch_.add(thread_.floats() * max_thread_count());
  }

 private:
  static constexpr std::size_t kStep = std::size_t(split::kParts) * split::kTile;  ///< of a right operand
  static constexpr std::size_t kPadding = 32;  ///< a line of the cache: positions are no multiple of 4 KiB apart
  static constexpr int kWide = 2 * split::kColumns;  ///< ranges are made of pairs of tiles, which are multiplied together
  /// What a task works on in the second-level cache, and split tiles that are held at once.
  static constexpr double kTaskBytes = 1.6e6, kPassBytes = 24e6;
  static constexpr std::size_t kFewTasks = 16;

  std::string numbers() const override { return ", 3 x bfloat16, weights on the way"; }

  std::size_t way_floats() const override { return scratch_.floats(); }

  void choose_blocks() {
    blocks_ = (tiles_.count() + kDeepTiles - 1) / kDeepTiles;
    if (blocks_ > 0) block_ = static_cast<int>((tiles_.count() + blocks_ - 1) / blocks_);
    block_ = round_up(block_, split::kRows);
    const double number = split::kParts * sizeof(std::uint16_t), step = positions() * split::kDepth * number;
    const double most = (kTaskBytes - step * block_) / (step + positions() * sizeof(float) * double(block_));
    const int units = ceil_divide(results_, kWide);
    ranges_ = std::clamp(static_cast<int>(std::ceil(results_ / std::max<double>(most, kWide))), 1, units);
    // An odd number of long tasks leaves one of two threads waiting at the end.
    if (blocks_ * groups_ * ranges_ < kFewTasks && blocks_ * groups_ % 2 != 0) ranges_ = std::min(units, round_up(ranges_, 2));
    columns_ = ceil_divide(units, ranges_) * kWide;
    const double block_bytes = double(groups_) * steps_ * step * block_;
    pass_ = std::clamp<std::size_t>(static_cast<std::size_t>(kPassBytes / block_bytes), 1, std::max<std::size_t>(1, blocks_));
  }
  Range channels_of(int range) const {
    const int units = ceil_divide(results_, kWide);
    const auto begin = [&](int i) { return std::min(results_, static_cast<int>(part_begin(units, i, ranges_)) * kWide); };
    return {begin(range), begin(range + 1)};
  }
  std::size_t first_tile(std::size_t block) const { return std::min(tiles_.count(), block * block_); }
  int tiles_of(std::size_t block) const { return static_cast<int>(first_tile(block + 1) - first_tile(block)); }

  void compute(const KernelCall& call, float* scratch) override {
    std::uint16_t* a = reinterpret_cast<std::uint16_t*>(scratch + a_offset_);
    const std::size_t steps = std::size_t(groups_) * steps_, ranges = std::size_t(groups_) * ranges_;
    for (std::size_t first = 0; first < blocks_; first += pass_) {
      const std::size_t blocks = std::min(pass_, blocks_ - first);
      parallel_for(blocks * steps, [&](std::size_t task, int) {
        transform_tiles(call, first + task / steps, static_cast<int>(task % steps), a + task * positions() * a_step_);
      });
      parallel_for(blocks * ranges, [&](std::size_t task, int thread) {
        run_range(call, first + task / ranges, static_cast<int>(task % ranges), a + task / ranges * steps * positions() * a_step_,
                  scratch + threads_offset_ + thread * thread_.floats());
      });
    }
  }

  /// The tiles of a block for 32 source channels; those of all groups are counted through.
  void transform_tiles(const KernelCall& call, std::size_t block, int group_step, std::uint16_t* to) const {
    const int step = group_step % steps_, channel = step * split::kDepth, tiles = tiles_of(block);
    const float* source = call.input<float>(0) + std::ptrdiff_t(group_step / steps_) * depth_ + channel;
    for (int t = 0; t < tiles; t += split::kDepth) {
      SplitTransform transform;
      tiles_.place_inputs(source, source_channels_, first_tile(block) + t, std::min(split::kDepth, tiles - t), transform);
      transform.channels = std::min(split::kDepth, depth_ - channel);
      transform.to = to + t * split::kDepth;
      transform.step = a_step_;
      transform.part = a_part_;
      split_.rows(transform);
    }
  }

  void run_range(const KernelCall& call, std::size_t block, int group_range, const std::uint16_t* a, float* scratch) const {
    const int group = group_range / ranges_, tiles = tiles_of(block);
    const Range channels = channels_of(group_range % ranges_);
    const float* weights = call.input<float>(1) + weights_.offset + group * weights_.group + channels.begin * weights_.result;
    float* m = scratch + m_offset_;
    std::uint16_t* u = reinterpret_cast<std::uint16_t*>(scratch + u_offset_);
    const OpenMatrixUnit open(&unit_);
    a += std::size_t(group) * steps_ * positions() * a_step_;
    for (int step = 0; step < steps_; ++step) {
      const int first = step * split::kDepth;
      const auto place = [&](int column, int k) { return weights + column * weights_.result + k * weights_.source; };
      for (int column = 0; column < channels.size(); column += split::kColumns) {
        const int next = column + split::kColumns;
        split_.weights({.from = place(column, first),
                        .y = weights_.y,
                        .x = weights_.x,
                        .source = weights_.source,
                        .result = weights_.result,
                        .sources = std::min(split::kDepth, depth_ - first),
                        .results = std::min(split::kColumns, channels.size() - column),
                        .to = u + column / split::kColumns * kStep,
                        .step = u_step_,
                        .next = next < channels.size() ? place(next, first) : place(0, step + 1 < steps_ ? first + split::kDepth : first)});
      }
      for (int p = 0; p < positions(); ++p, a += a_step_)
        unit_.multiply({.rows = round_up(tiles, split::kRows),
                        .columns = round_up(channels.size(), split::kColumns),
                        .steps = 1,
                        .a = a,
                        .a_stride = split::kDepth,
                        .a_part = a_part_,
                        .offsets = nullptr,
                        .b = u + p * u_step_,
                        .b_columns = kStep,
                        .c = m + p * m_step_,
                        .c_stride = std::size_t(m_stride_),
                        .c_rows = nullptr,
                        .start = nullptr,
                        .overwrites = step == 0,
                        .chains = step > 0,
                        .next_a = a + a_step_,
                        .next_a_count = a_step_,
                        .next_c = m + (p + 1) % positions() * m_step_});
    }
    store_result(call, group, channels, block, first_tile(block), tiles, m);
  }

  const MatrixUnit& unit_;
  const SplitTransforms& split_;
  int steps_;
  std::size_t pass_ = 1;  ///< blocks at a time
  std::size_t a_part_ = 0, a_step_ = 0, u_step_ = 0, a_offset_ = 0, m_offset_ = 0, u_offset_ = 0, threads_offset_ = 0;
  ScratchLayout thread_, scratch_;
};

}  // namespace

std::unique_ptr<Kernel> make_deep_winograd(const WinogradTransforms& transforms, const Window& window, int images, int sources, int results,
                                           int groups, const WinogradWeights& weights, const Epilogue& epilogue) {
  return std::make_unique<DeepWinograd>(transforms, window, images, sources, results, groups, weights, epilogue);
}

}  // namespace mpsnn::cpu
