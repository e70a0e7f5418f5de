// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "backends/cpu/winograd.hpp"
#include "core/parallel.hpp"

namespace mpsnn::cpu {
namespace {

constexpr int kChannelTile = 16;
constexpr std::size_t kStep = std::size_t(split::kParts) * split::kTile;  ///< elements of a right operand
/// Steps of a product, and rows of one of a single step, whose left operand stays in the first-level cache.
constexpr int kMostSteps = 4, kRows = 128;
constexpr double kCacheBytes = 1.65e6;  ///< sums and operands that a task holds at once
/// Position by position: output channels whose sums are held at once, channels that a task transforms, and transformed tiles that are held.
constexpr int kHeldOutputs = 256, kTransformed = 128;
constexpr double kHeldBytes = 24e6;

/// How channels, positions and tiles are cut for the second-level cache.
struct GradientCut {
  int input_ranges = 1, output_ranges = 1, row_groups = 1;
  int steps = 1;       ///< of tiles at a time
  bool keeps = false;  ///< those are all
  double cycles = 0;
  bool by_position = false;
};

/// Where a task is a position. A vector of a tile's channels takes 930 to be transformed, once, stored far away and read again, products of
/// two vectors 155; to store and to load the sums of a pair of channels takes 40 for each time that tiles are held. In a step the caches hold
/// none of that memory at first, 0.1 a byte: a layer of 256 channels at 8 x 8 takes less time alone, and more in a step.
GradientCut cut_by_position(const WinogradTransforms& transforms, int inputs, int outputs, int all_steps) {
  const int ranges = ceil_divide(outputs * kChannelTile, kHeldOutputs), height = ceil_divide(outputs, ranges);
  const double step_bytes = transforms.positions() * sizeof(std::uint16_t) * kStep * (inputs + height);
  const int blocks = ceil_divide(all_steps, std::max(1, static_cast<int>(kHeldBytes / step_bytes)));
  const double vectors = (blocks > 1 ? ranges : 1) * inputs + outputs, pairs = double(round_up(inputs, 2)) * ranges * round_up(height, 2);
  const int steps = ceil_divide(all_steps, blocks);
  const double sums = 40.0 * kChannelTile * kChannelTile * inputs * outputs * blocks;
  const double bytes = steps * step_bytes + transforms.positions() * sizeof(float) * kChannelTile * kChannelTile * inputs * height;
  return {1, ranges, 1, steps, false, 930 * vectors + 155 * pairs + (sums + 0.1 * bytes) / (all_steps * split::kDepth), true};
}

/// The cut of least cycles. A vector of a tile's channels takes 310 in the source image and 460 in the other, where it is transposed, and more
/// in two groups of positions; 200 to come from farther away; products of two vectors, in blocks of two each way, 146, and 51 to load and
/// store sums for all steps; a filter of two channels 20.
GradientCut best_cut(const WinogradTransforms& transforms, const ConvolutionGeometry& geometry, std::size_t tiles) {
  const int inputs = ceil_divide(geometry.input_channels / geometry.groups, kChannelTile);
  const int outputs = ceil_divide(geometry.output_channels / geometry.groups, kChannelTile);
  const int all_steps = std::max(1, static_cast<int>((tiles + split::kDepth - 1) / split::kDepth));
  const auto even = [](int count) { return round_up(count, 2); };
  GradientCut best;
  for (int groups = 1; groups <= SplitTransforms::kMaxGroups; ++groups)
    for (int steps = 1; steps <= std::min(all_steps, kMostSteps); ++steps)
      for (int input_ranges = 1; input_ranges <= inputs; ++input_ranges)
        for (int output_ranges = 1; output_ranges <= outputs; ++output_ranges) {
          const int width = ceil_divide(inputs, input_ranges), height = ceil_divide(outputs, output_ranges);
          const double bytes = transforms.positions() / groups *
                               (sizeof(float) * kChannelTile * kChannelTile * width * height + steps * kStep * sizeof(std::uint16_t) * (width + height));
          if (bytes > kCacheBytes && (width > 1 || height > 1)) continue;
          const bool keeps = groups == 1 && steps == all_steps;
          const double source = (keeps ? 310 + 200 * output_ranges : (250 + 60 * groups) * output_ranges) * inputs;
          const double incoming = (260 + 200 * groups) * (keeps ? 1 : input_ranges) * outputs;
          const double products = (146 + 51.0 / steps) * input_ranges * even(width) * output_ranges * even(height);
          const double cycles = source + incoming + products;
          if (best.cycles == 0 || cycles < best.cycles) best = {input_ranges, output_ranges, groups, steps, keeps, cycles, false};
        }
  if (const GradientCut other = cut_by_position(transforms, inputs, outputs, all_steps); geometry.groups == 1 && tiles > 0 && other.cycles < best.cycles)
    best = other;
  best.cycles = geometry.groups * (best.cycles * all_steps * split::kDepth + 20.0 * kChannelTile * kChannelTile * inputs * outputs);
  return best;
}

/// The weight gradient of WinogradWeightGradient with products in the matrix unit. Splitting costs as much as transforming, both more
/// than the products of few channels: ranges of channels are wide, so that little is transformed twice. All of that stays in the
/// second-level cache: reading a transformed tile from farther away takes longer than transforming it again. To that end a task holds a
/// few steps of tiles, and the positions of all or of some rows of them, and reads the images again for others. Only where it holds all
/// tiles, those of the incoming gradient stay for one range of input channels after another, and those of the source image are transformed
/// once for all tasks: each reads them in one stretch, which is fetched ahead.
class SplitWinogradWeightGradient final : public Kernel {
 public:
  SplitWinogradWeightGradient(const WinogradTransforms& transforms, const ConvolutionGeometry& geometry, const WeightLayout& layout,
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
        inputs_(geometry.input_channels / geometry.groups),
        outputs_(geometry.output_channels / geometry.groups),
        input_tiles_(ceil_divide(inputs_, kChannelTile)),
        output_tiles_(ceil_divide(outputs_, kChannelTile)),
        cut_(best_cut(transforms, geometry, tiles_.count())) {
    range_inputs_ = ceil_divide(input_tiles_, cut_.input_ranges) * kChannelTile;
    range_outputs_ = ceil_divide(output_tiles_, cut_.output_ranges) * kChannelTile;
    const std::size_t output_ranges = std::size_t(geometry.groups) * cut_.output_ranges;
    strips_ = cut_.keeps ? std::clamp<std::size_t>(kGradientTasks / output_ranges, 1, cut_.input_ranges) : cut_.input_ranges;
    const std::size_t ranges = this->ranges(), tasks = ranges * cut_.row_groups;
    parts_ = std::clamp<std::size_t>(blocks() / kPartBlocks, std::max<std::size_t>(1, kFewTasks / tasks),
                                     std::max<std::size_t>(1, kGradientTasks / tasks));
    parts_ = cut_.by_position ? 1 : std::clamp<std::size_t>(parts_, 1, std::max<std::size_t>(1, blocks() / kLeastBlocks));
    shares_sums_ = cut_.by_position || parts_ > 1 || ranges < kFewRanges;
    streams_ = double(geometry.output_channels) * inputs_ * transforms.taps * transforms.taps * sizeof(float) > kStreamedBytes;
    z_part_ = std::size_t(range_outputs_) * split::kDepth;
    z_step_ = split::kParts * z_part_ * cut_.steps + kPadding;
    v_part_ = kStep * cut_.steps;
    v_step_ = v_part_ * (range_inputs_ / kChannelTile) + kPadding;
    u_step_ = winograd_step(std::size_t(range_outputs_) * range_inputs_);
    z_offset_ = (cut_.by_position ? scratch_ : thread_).add(group_positions() * z_step_ / 2);
    v_offset_ = (cut_.by_position || cut_.keeps ? scratch_ : thread_)
                    .add((cut_.keeps ? std::size_t(geometry.groups) * cut_.input_ranges : 1) * group_positions() * v_step_ / 2);
    taps_offset_ = thread_.add(std::size_t(transforms.taps) * transforms.taps * range_inputs_);
    row_offset_ = thread_.add(parts_ == 1 ? 0 : std::size_t(positions()) * range_inputs_);
    u_offset_ = thread_.add(shares_sums_ ? 0 : positions() * u_step_);
    bias_offset_ = scratch_.add(bias_.scratch_floats());
    sums_offset_ = scratch_.add(shares_sums_ ? parts_ * (cut_.by_position ? 1 : ranges) * positions() * u_step_ : 0);
    threads_offset_ = scratch_.add(thread_.floats() * max_thread_count());
  }

  std::size_t scratch_bytes() const override { return scratch_.floats() * sizeof(float); }

  std::string algorithm() const override {
    const std::string m = std::to_string(transforms_.outputs), r = std::to_string(transforms_.taps);
    std::string text = "winograd F(" + m + "x" + m + ", " + r + "x" + r + ") " + isa_.name + ", 3 x bfloat16, " +
                       std::to_string(range_inputs_) + " x " + std::to_string(range_outputs_) + " channels";
    if (cut_.keeps) text += ", all tiles at a time";
    else if (cut_.by_position || cut_.steps > 1) text += ", " + std::to_string(cut_.steps * split::kDepth) + " tiles at a time";
    if (cut_.row_groups > 1) text += ", positions in " + std::to_string(cut_.row_groups) + " groups";
    if (cut_.by_position) text += ", position by position";
    return parts_ > 1 ? text + ", sum in " + std::to_string(parts_) + " parts" : text;
  }

  void run(const KernelCall& call) override {
    float* scratch = static_cast<float*>(call.scratch);
    bias_.run(call, scratch + bias_offset_);
    float* weights = call.output<float>(0);
    if (!weights) return;
    const float* incoming = call.input<float>(is_transposed_ ? 1 : 0);
    const float* source = call.input<float>(is_transposed_ ? 0 : 1);
    if (cut_.by_position) return run_by_position(incoming, source, scratch, weights);
    if (cut_.keeps) transform_inputs(source, scratch);
    if (!shares_sums_) {
      return parallel_for(ranges() / cut_.input_ranges * strips_, [&](std::size_t task, int thread) {
        float *own = scratch + threads_offset_ + thread * thread_.floats(), *u = own + u_offset_;
        const std::size_t strip = task % strips_, first = part_begin(cut_.input_ranges, strip, strips_);
        const std::size_t end = part_begin(cut_.input_ranges, strip + 1, strips_);
        for (std::size_t range = first; range < end; ++range) {
          const Block block = block_of(task / strips_ * cut_.input_ranges + range);
          for (int group = 0; group < cut_.row_groups; ++group)
            add_tiles(block, group, 0, tiles_.count(), incoming, source, range > first, u + group * group_positions() * u_step_, own, scratch);
          for (int output = 0; output < block.outputs.size(); ++output)
            store(block, output, u + std::size_t(output) * range_inputs_, u_step_, own, weights);
        }
      });
    }
    // Part by part, and in a part range by range: threads read the same images.
    parallel_for(parts_ * ranges() * cut_.row_groups, [&](std::size_t task, int thread) {
      const int group = static_cast<int>(task % cut_.row_groups);
      const std::size_t part = task / cut_.row_groups / ranges(), range = task / cut_.row_groups % ranges();
      float* u = scratch + sums_offset_ + ((part * ranges() + range) * positions() + group * group_positions()) * u_step_;
      add_tiles(block_of(range), group, first_tile(part), first_tile(part + 1), incoming, source, false, u,
                scratch + threads_offset_ + thread * thread_.floats(), scratch);
    });
    add_parts(0, ranges(), scratch, weights);
  }

 private:
  static constexpr double kStreamedBytes = 2 << 20;  ///< weights from which on they are stored past the caches
  /// Tasks wanted, and at least wanted: with fewer ranges than that, tiles are cut into parts, whose sums are added up at the end.
  static constexpr std::size_t kGradientTasks = 16, kFewTasks = 4, kPartBlocks = 32, kLeastBlocks = 2, kFewRanges = 8;
  static constexpr std::size_t kPadding = 32;  ///< a line of the cache: positions are no multiple of 4 KiB apart

  /// Channels of a group that a task owns.
  struct Block {
    int group;
    std::size_t input_range;  ///< of all groups
    Range inputs, outputs;
  };
  Block block_of(std::size_t index) const {
    const std::size_t input = index % cut_.input_ranges, output = index / cut_.input_ranges % cut_.output_ranges;
    const auto part = [](int tiles, std::size_t i, int parts, int channels) {
      return Range{std::min(channels, static_cast<int>(part_begin(tiles, i, parts)) * kChannelTile),
                   std::min(channels, static_cast<int>(part_begin(tiles, i + 1, parts)) * kChannelTile)};
    };
    const std::size_t group = index / cut_.input_ranges / cut_.output_ranges;
    return {static_cast<int>(group), group * cut_.input_ranges + input, part(input_tiles_, input, cut_.input_ranges, inputs_),
            part(output_tiles_, output, cut_.output_ranges, outputs_)};
  }
  std::size_t ranges() const { return std::size_t(geometry_.groups) * cut_.input_ranges * cut_.output_ranges; }
  int positions() const { return transforms_.positions(); }
  /// Of a part: parts are whole blocks but for the last.
  std::size_t first_tile(std::size_t part) const { return std::min(tiles_.count(), part_begin(blocks(), part, parts_) * split::kDepth); }
  std::size_t blocks() const { return (tiles_.count() + split::kDepth - 1) / split::kDepth; }
  int group_positions() const { return positions() / cut_.row_groups; }

  /// u := the sums of the tiles [begin, end) at the positions of a group of rows; `keeps` where those of the incoming gradient may be there
  /// already.
  void add_tiles(const Block& block, int group, std::size_t begin, std::size_t end, const float* incoming, const float* source, bool keeps,
                 float* u, float* own, float* shared) const {
    const float* x = source + std::ptrdiff_t(block.group) * inputs_ + block.inputs.begin;
    const float* e = incoming + std::ptrdiff_t(block.group) * outputs_ + block.outputs.begin;
    std::uint16_t* z = reinterpret_cast<std::uint16_t*>(own + z_offset_);
    std::uint16_t* v = reinterpret_cast<std::uint16_t*>((cut_.keeps ? shared : own) + v_offset_);
    if (cut_.keeps) v += block.input_range * positions() * v_step_ + begin / split::kDepth * kStep;
    if (begin == end) std::fill_n(u, group_positions() * u_step_, 0.0f);
    const OpenMatrixUnit open(&unit_);
    for (std::size_t first = begin; first < end;) {
      const bool is_first = first == begin;
      std::size_t steps = 0;
      for (; steps < std::size_t(cut_.steps) && first < end; ++steps, first += split::kDepth) {
        const int tiles = static_cast<int>(std::min<std::size_t>(split::kDepth, end - first));
        SplitTransform transform;
        if (!cut_.keeps) {
          tiles_.place_inputs(x, geometry_.input_channels, first, tiles, transform);
          transform.channels = block.inputs.size();
          transform.to = v + steps * kStep;
          transform.step = v_step_;
          transform.part = v_part_;
          split_.input[cut_.row_groups - 1][group](transform);
        }
        if (keeps) continue;
        tiles_.place_results(e, geometry_.output_channels, first, tiles, transform);
        transform.channels = block.outputs.size();
        transform.to = z + steps * split::kParts * z_part_;
        transform.step = z_step_;
        transform.part = z_part_;
        split_.spread[cut_.row_groups - 1][group](transform);
      }
      for (int p = 0; p < group_positions(); ++p) multiply(block, steps, is_first, z + p * z_step_, v + p * v_step_, u + p * u_step_);
    }
  }

  /// Those of the source image, for all tasks.
  void transform_inputs(const float* source, float* scratch) const {
    const std::size_t ranges = std::size_t(geometry_.groups) * cut_.input_ranges;
    parallel_for(blocks() * ranges, [&](std::size_t task, int) {
      const std::size_t range = task % ranges, step = task / ranges, first = step * split::kDepth;
      const Block block = block_of(range / cut_.input_ranges * cut_.input_ranges * cut_.output_ranges + range % cut_.input_ranges);
      SplitTransform transform;
      tiles_.place_inputs(source + block.group * inputs_ + block.inputs.begin, geometry_.input_channels, first,
                          static_cast<int>(std::min<std::size_t>(split::kDepth, tiles_.count() - first)), transform);
      transform.channels = block.inputs.size();
      transform.to = reinterpret_cast<std::uint16_t*>(scratch + v_offset_) + range * positions() * v_step_ + step * kStep;
      transform.step = v_step_;
      transform.part = v_part_;
      split_.input[0][0](transform);
    });
  }

  /// The tiles of both images go to memory that all tasks share; then each position is a product of its own, for all of the tiles that are
  /// held. Nothing is transformed twice, and sums are loaded and stored once.
  void run_by_position(const float* incoming, const float* source, float* scratch, float* weights) const {
    std::uint16_t *z = reinterpret_cast<std::uint16_t*>(scratch + z_offset_), *v = reinterpret_cast<std::uint16_t*>(scratch + v_offset_);
    for (std::size_t range = 0; range < ranges(); ++range) {
      const Block block = block_of(range);
      for (std::size_t first = 0, steps; first < blocks(); first += steps) {
        steps = std::min<std::size_t>(cut_.steps, blocks() - first);
        const bool has_inputs = range > 0 && steps == blocks();
        const int input_tasks = has_inputs ? 0 : ceil_divide(inputs_, kTransformed);
        const int tasks = input_tasks + ceil_divide(block.outputs.size(), kTransformed);
        parallel_for(steps * tasks, [&](std::size_t index, int) {
          const std::size_t step = index / tasks, tile = (first + step) * split::kDepth;
          const int task = static_cast<int>(index % tasks), count = static_cast<int>(std::min<std::size_t>(split::kDepth, tiles_.count() - tile));
          SplitTransform transform;
          if (task < input_tasks) {
            const int channel = task * kTransformed;
            tiles_.place_inputs(source + channel, geometry_.input_channels, tile, count, transform);
            transform.channels = std::min(kTransformed, inputs_ - channel);
            transform.to = v + channel / kChannelTile * v_part_ + step * kStep;
            transform.step = v_step_;
            transform.part = v_part_;
            split_.input[0][0](transform);
          } else {
            const int channel = (task - input_tasks) * kTransformed;
            tiles_.place_results(incoming + block.outputs.begin + channel, geometry_.output_channels, tile, count, transform);
            transform.channels = std::min(kTransformed, block.outputs.size() - channel);
            transform.to = z + (step * split::kParts * range_outputs_ + channel) * split::kDepth;
            transform.step = z_step_;
            transform.part = z_part_;
            split_.spread[0][0](transform);
          }
        });
        parallel_for(positions(), [&](std::size_t p, int) {
          const OpenMatrixUnit open(&unit_);
          multiply(block, steps, first == 0, z + p * z_step_, v + p * v_step_, scratch + sums_offset_ + p * u_step_);
        });
      }
      add_parts(range, 1, scratch, weights);
    }
  }

  void multiply(const Block& block, std::size_t steps, bool overwrites, const std::uint16_t* z, const std::uint16_t* v, float* u) const {
    std::ptrdiff_t offsets[kMostSteps];
    for (int step = 0; step < kMostSteps; ++step) offsets[step] = std::ptrdiff_t(step) * split::kParts * z_part_;
    const std::size_t products = (steps + kMostSteps - 1) / kMostSteps;
    const int most_rows = kRows / std::min(cut_.steps, kMostSteps) / (2 * split::kRows) * (2 * split::kRows);
    for (int row = 0; row < block.outputs.size(); row += most_rows)
      for (std::size_t product = 0; product < products; ++product) {
        const std::size_t first = part_begin(steps, product, products);
        unit_.multiply({.rows = round_up(std::min(most_rows, block.outputs.size() - row), kChannelTile),
                        .columns = round_up(block.inputs.size(), kChannelTile),
                        .steps = part_begin(steps, product + 1, products) - first,
                        .a = z + first * split::kParts * z_part_ + std::ptrdiff_t(row) * split::kDepth,
                        .a_stride = split::kDepth,
                        .a_part = z_part_,
                        .offsets = offsets,
                        .b = v + first * kStep,
                        .b_columns = v_part_,
                        .c = u + std::ptrdiff_t(row) * range_inputs_,
                        .c_stride = std::size_t(range_inputs_),
                        .c_rows = nullptr,
                        .start = nullptr,
                        .overwrites = overwrites && product == 0,
                        .chains = !overwrites || product > 0});
      }
  }

  /// Adds the parts up in their order, and gathers the filters.
  void add_parts(std::size_t first_range, std::size_t ranges, float* scratch, float* weights) const {
    parallel_for(ranges * range_outputs_, [&](std::size_t task, int thread) {
      const std::size_t range = task / range_outputs_;
      const int output = static_cast<int>(task % range_outputs_);
      const Block block = block_of(first_range + range);
      if (output >= block.outputs.size()) return;
      float *own = scratch + threads_offset_ + thread * thread_.floats(), *row = own + row_offset_;
      const float* sums = scratch + sums_offset_ + range * positions() * u_step_ + std::size_t(output) * range_inputs_;
      if (parts_ == 1) return store(block, output, sums, u_step_, own, weights);
      for (int p = 0; p < positions(); ++p, sums += u_step_) {
        float* total = row + std::ptrdiff_t(p) * range_inputs_;
        std::copy_n(sums, range_inputs_, total);
        for (std::size_t part = 1; part < parts_; ++part) {
          const float* more = sums + part * ranges * positions() * u_step_;
          for (int i = 0; i < range_inputs_; ++i) total[i] += more[i];
        }
      }
      store(block, output, row, range_inputs_, own, weights);
    });
  }

  void store(const Block& block, int output, const float* u, std::size_t step, float* own, float* weights) const {
    gather_filter(transforms_, u, step, block.inputs.size(), own + taps_offset_, layout_,
                  layout_.at(weights, block.group) + std::ptrdiff_t(block.outputs.begin + output) * layout_.output +
                      block.inputs.begin * layout_.input,
                  streams_);
  }

  const Isa& isa_;
  const MatrixUnit& unit_;
  const WinogradTransforms& transforms_;
  const SplitTransforms& split_;
  ConvolutionGeometry geometry_;
  WeightLayout layout_;
  bool is_transposed_, shares_sums_ = false, streams_ = false;
  BiasGradient bias_;
  Tiles tiles_;
  int inputs_, outputs_;
  int input_tiles_, output_tiles_, range_inputs_ = 0, range_outputs_ = 0;
  GradientCut cut_;
  std::size_t strips_ = 1;  ///< that the input channels' ranges are cut into, each a task
  std::size_t parts_ = 1, z_part_ = 0, z_step_ = 0, v_part_ = 0, v_step_ = 0, u_step_ = 0;
  std::size_t v_offset_ = 0, z_offset_ = 0, taps_offset_ = 0, u_offset_ = 0, row_offset_ = 0, bias_offset_ = 0, sums_offset_ = 0,
              threads_offset_ = 0;
  ScratchLayout thread_, scratch_;
};

}  // namespace

std::unique_ptr<Kernel> make_split_winograd_weight_gradient(const WinogradTransforms& transforms, const ConvolutionGeometry& geometry,
                                                            const WeightLayout& layout, int images, bool is_transposed) {
  return std::make_unique<SplitWinogradWeightGradient>(transforms, geometry, layout, images, is_transposed);
}

double split_winograd_weight_gradient_cycles(const WinogradTransforms& transforms, const ConvolutionGeometry& geometry, int images) {
  return best_cut(transforms, geometry, Tiles(geometry.window, images, transforms).count()).cycles;
}

}  // namespace mpsnn::cpu
