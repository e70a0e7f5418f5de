// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <bit>

#include "backends/cpu/winograd.hpp"
#include "core/parallel.hpp"

namespace mpsnn::cpu {
namespace {

/// Channels of either image and tiles that a task holds at once: transformed tiles and sums take 590 KiB each.
constexpr int kChannels = 64, kTiles = 64;
/// Tasks wanted. When the channels give fewer, the tiles are cut into parts of at least four blocks; where that leaves less than
/// kFewTasks, of at least half a block: a sum of their own for each costs less than threads without work.
constexpr std::size_t kGradientTasks = 16, kPartTiles = 4 * kTiles, kFewTasks = 4, kLeastTiles = kTiles / 2;

/// The exact adjoint of the Winograd forward pass: dU = (A E A^T) x (B^T d B) summed over the tiles, at each position, then
/// dW = G^T dU G. A task owns some input and output channels of some tiles: its sums and a block of transformed tiles stay in the
/// second-level cache. Transforms are repeated for each of the ranges that the other channels are cut into, a fifth of the products'
/// time; nothing but the images is read from farther away.
class WinogradWeightGradient final : public Kernel {
 public:
  WinogradWeightGradient(const WinogradTransforms& transforms, const ConvolutionGeometry& geometry, const WeightLayout& layout,
                         int images, bool is_transposed)
      : isa_(isa()),
        transforms_(transforms),
        geometry_(geometry),
        layout_(layout),
        is_transposed_(is_transposed),
        bias_(geometry, images, is_transposed),
        tiles_(geometry.window, images, transforms),
        inputs_(geometry.input_channels / geometry.groups),
        outputs_(geometry.output_channels / geometry.groups),
        panel_(isa_.lanes * best_vectors(isa_, std::min(kChannels, outputs_), std::min(kChannels, inputs_), kTiles)),
        panels_(ceil_divide(inputs_, panel_)) {
    input_ranges_ = ceil_divide(panels_, std::max(1, kChannels / panel_));
    output_ranges_ = ceil_divide(outputs_, kChannels);
    const std::size_t ranges = std::size_t(geometry.groups) * input_ranges_ * output_ranges_;
    const std::size_t few = std::min((kFewTasks + ranges - 1) / ranges, tiles_.count() / kLeastTiles);
    parts_ = std::min((kGradientTasks + ranges - 1) / ranges, std::max(few, tiles_.count() / kPartTiles));
    parts_ = std::bit_floor(std::max<std::size_t>(1, parts_));  // two, four or eight threads end together
    block_ = static_cast<int>(std::clamp<std::size_t>(tiles_.count() / parts_ + 1, 1, kTiles));
    range_columns_ = ceil_divide(panels_, input_ranges_) * panel_;
    const int range_outputs = ceil_divide(outputs_, output_ranges_);
    z_stride_ = round_up(range_outputs, 16) | 16;
    v_step_ = winograd_step(std::size_t(block_) * range_columns_);
    z_step_ = winograd_step(std::size_t(block_) * z_stride_);
    u_step_ = winograd_step(std::size_t(range_outputs) * range_columns_);
    v_offset_ = thread_.add(positions() * v_step_);
    z_offset_ = thread_.add(positions() * z_step_);
    taps_offset_ = thread_.add(std::size_t(transforms.taps) * transforms.taps * range_columns_);
    if (parts_ == 1) u_offset_ = thread_.add(positions() * u_step_);
    row_offset_ = thread_.add(parts_ == 1 ? 0 : positions() * range_columns_);
    bias_offset_ = scratch_.add(bias_.scratch_floats());
    sums_offset_ = scratch_.add(parts_ == 1 ? 0 : parts_ * ranges * positions() * u_step_);
    threads_offset_ = scratch_.add(thread_.floats() * max_thread_count());
  }

  std::size_t scratch_bytes() const override { return scratch_.floats() * sizeof(float); }

  std::string algorithm() const override {
    const std::string m = std::to_string(transforms_.outputs), r = std::to_string(transforms_.taps);
    std::string text = "winograd F(" + m + "x" + m + ", " + r + "x" + r + ") " + isa_.name + ", blocks of " +
                       std::to_string(block_) + " tiles";
    return parts_ > 1 ? text + ", sum in " + std::to_string(parts_) + " parts" : text;
  }

  void run(const KernelCall& call) override {
    float* scratch = static_cast<float*>(call.scratch);
    bias_.run(call, scratch + bias_offset_);
    float* weights = call.output<float>(0);
    if (!weights) return;
    const float* incoming = call.input<float>(is_transposed_ ? 1 : 0);
    const float* source = call.input<float>(is_transposed_ ? 0 : 1);
    const std::size_t ranges = std::size_t(geometry_.groups) * input_ranges_ * output_ranges_;
    parallel_for(parts_ * ranges, [&](std::size_t task, int thread) {
      float* own = scratch + threads_offset_ + thread * thread_.floats();
      const Block block = block_of(task % ranges);
      float* u = parts_ == 1 ? own + u_offset_ : scratch + sums_offset_ + task * positions() * u_step_;
      add_tiles(block, part_begin(tiles_.count(), task / ranges, parts_), part_begin(tiles_.count(), task / ranges + 1, parts_),
                incoming, source, u, own);
      if (parts_ > 1) return;
      for (int output = 0; output < block.outputs.size(); ++output)
        store(block, output, u + std::size_t(output) * range_columns_, u_step_, own + taps_offset_, weights);
    });
    if (parts_ > 1) add_parts(ranges, scratch, weights);
  }

 private:
  /// Channels of a group that a task owns.
  struct Block {
    int group;
    Range panels, outputs;
  };
  Block block_of(std::size_t index) const {
    const std::size_t input = index % input_ranges_, output = index / input_ranges_ % output_ranges_;
    const auto part = [](int count, std::size_t i, int parts) {
      return Range{static_cast<int>(part_begin(count, i, parts)), static_cast<int>(part_begin(count, i + 1, parts))};
    };
    return {static_cast<int>(index / input_ranges_ / output_ranges_), part(panels_, input, input_ranges_),
            part(outputs_, output, output_ranges_)};
  }
  int positions() const { return transforms_.positions(); }
  int first_input(const Block& block) const { return block.panels.begin * panel_; }
  /// Those of a panel, and with what fills up the last vector.
  int input_count(const Block& block, int panel) const { return std::min(panel_, input_count(block) - panel * panel_); }
  int padded(const Block& block, int panel) const { return round_up(input_count(block, panel), isa_.lanes); }
  int input_count(const Block& block) const { return std::min(inputs_, block.panels.end * panel_) - first_input(block); }

  void add_tiles(const Block& block, std::size_t begin, std::size_t end, const float* incoming, const float* source, float* u,
                 float* own) const {
    const float* x = source + std::ptrdiff_t(block.group) * inputs_ + first_input(block);
    const float* e = incoming + std::ptrdiff_t(block.group) * outputs_ + block.outputs.begin;
    if (begin == end) std::fill_n(u, positions() * u_step_, 0.0f);
    for (std::size_t first = begin; first < end; first += block_) {
      const int tiles = static_cast<int>(std::min<std::size_t>(block_, end - first));
      for (int panel = 0; panel < block.panels.size(); ++panel)
        tiles_.transform_inputs(transforms_, x + std::ptrdiff_t(panel) * panel_, geometry_.input_channels, input_count(block, panel), first, tiles,
                                own + v_offset_ + std::ptrdiff_t(panel) * panel_ * block_, padded(block, panel), v_step_, isa_.tile_columns());
      tiles_.spread(transforms_, e, geometry_.output_channels, block.outputs.size(), first, tiles, own + z_offset_, z_stride_, z_step_,
                    isa_.tile_columns());
      for (int p = 0; p < positions(); ++p) {
        const float *z = own + z_offset_ + p * z_step_, *v = own + v_offset_ + p * v_step_;
        for (int panel = 0; panel < block.panels.size(); ++panel) {
          const bool is_last = panel + 1 == block.panels.size();
          multiply_panel_transposed(isa_, {.rows = block.outputs.size(),
                                           .depth = tiles,
                                           .a = z,
                                           .a_stride = std::size_t(z_stride_),
                                           .b = v + std::ptrdiff_t(panel) * panel_ * block_,
                                           .columns = padded(block, panel),
                                           .c = u + p * u_step_ + std::ptrdiff_t(panel) * panel_,
                                           .c_stride = std::size_t(range_columns_),
                                           .overwrites = first == begin,
                                           .next_a = is_last ? z + z_step_ : z,
                                           .next_b = is_last ? v + v_step_ : v + std::ptrdiff_t(panel + 1) * panel_ * block_});
        }
      }
    }
  }

  /// Adds the parts up in their order.
  void add_parts(std::size_t ranges, float* scratch, float* weights) const {
    const int most_outputs = ceil_divide(outputs_, output_ranges_);
    parallel_for(ranges * most_outputs, [&](std::size_t task, int thread) {
      const std::size_t range = task / most_outputs;
      const int output = static_cast<int>(task % most_outputs);
      const Block block = block_of(range);
      if (output >= block.outputs.size()) return;
      float *own = scratch + threads_offset_ + thread * thread_.floats(), *row = own + row_offset_;
      const float* sums = scratch + sums_offset_ + std::size_t(output) * range_columns_;
      for (int p = 0; p < positions(); ++p) {
        float* total = row + std::ptrdiff_t(p) * range_columns_;
        std::copy_n(sums + (range * positions() + p) * u_step_, range_columns_, total);
        for (std::size_t part = 1; part < parts_; ++part) {
          const float* more = sums + ((part * ranges + range) * positions() + p) * u_step_;
          for (int i = 0; i < range_columns_; ++i) total[i] += more[i];
        }
      }
      store(block, output, row, range_columns_, own + taps_offset_, weights);
    });
  }

  /// The filter of one output channel, from its sums.
  void store(const Block& block, int output, const float* u, std::size_t step, float* w, float* weights) const {
    gather_filter(transforms_, u, step, input_count(block), w, layout_,
                  layout_.at(weights, block.group) + std::ptrdiff_t(block.outputs.begin + output) * layout_.output +
                      first_input(block) * layout_.input);
  }

  const Isa& isa_;
  const WinogradTransforms& transforms_;
  ConvolutionGeometry geometry_;
  WeightLayout layout_;
  bool is_transposed_;
  BiasGradient bias_;
  Tiles tiles_;
  int inputs_, outputs_;
  int panel_;  ///< columns of a panel of input channels
  int panels_, input_ranges_ = 1, output_ranges_ = 1, block_ = 1, range_columns_ = 0, z_stride_ = 0;
  std::size_t parts_ = 1, v_step_ = 0, z_step_ = 0, u_step_ = 0;
  std::size_t v_offset_ = 0, z_offset_ = 0, taps_offset_ = 0, u_offset_ = 0, row_offset_ = 0, bias_offset_ = 0, sums_offset_ = 0,
              threads_offset_ = 0;
  ScratchLayout thread_, scratch_;
};

}  // namespace

bool splits_winograd_weight_gradient(const ConvolutionGeometry& geometry) {
  const int channels = geometry.window.y.kernel == 5 ? 24 : 32;
  return isa().matrix_unit && std::min(geometry.input_channels, geometry.output_channels) / geometry.groups >= channels;
}

std::unique_ptr<Kernel> make_winograd_weight_gradient(const ConvolutionGeometry& geometry, const WeightLayout& layout, int images,
                                                      bool is_transposed, Precision precision) {
  const WinogradTransforms& transforms = *winograd_transforms(geometry.window.y.kernel, precision);
  if (splits_winograd_weight_gradient(geometry) && precision == Precision::fast)
    return make_split_winograd_weight_gradient(transforms, geometry, layout, images, is_transposed);
  return std::make_unique<WinogradWeightGradient>(transforms, geometry, layout, images, is_transposed);
}

}  // namespace mpsnn::cpu
