// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstring>

#include "backends/cpu/convolution_kernels.hpp"
#include "backends/cpu/matrix_unit_plan.hpp"
#include "core/parallel.hpp"

namespace mpsnn::cpu {
namespace {

using namespace split;

/// sum[k][o] = sum over pixels of patch[p][k] * E[p][o] in the matrix unit, cut as WeightGradientPlan says.
class MatrixUnitWeightGradient final : public Kernel {
 public:
  MatrixUnitWeightGradient(const ConvolutionGeometry& geometry, const WeightLayout& layout, int images, bool is_transposed)
      : unit_(*isa().matrix_unit),
        plan_(geometry, layout, images),
        incoming_(is_transposed != plan_.is_exchanged ? 1 : 0),
        bias_(geometry, images, is_transposed) {
    place();
  }

  std::size_t scratch_bytes() const override { return scratch_.floats() * sizeof(float); }

  std::string algorithm() const override {
    std::string text = std::string("implicit GEMM ") + isa().name + ", 3 x bfloat16" + (plan_.rows.is_stacked ? ", taps in rows" : "");
    return plan_.parts > 1 ? text + ", sum in " + std::to_string(plan_.parts) + " parts" : text;
  }

  void run(const KernelCall& call) override {
    float* scratch = static_cast<float*>(call.scratch);
    bias_.run(call, scratch + bias_offset_);
    float* weights = call.output<float>(0);
    if (!weights) return;
    const float *incoming = call.input<float>(incoming_), *source = call.input<float>(1 - incoming_);
    float* sums = writes_in_place_ ? weights : scratch + sums_offset_;
    parallel_for(std::size_t(plan_.parts) * plan_.row_parts * plan_.column_parts, [&](std::size_t task, int thread) {
      run_task(task, incoming, source, sums, scratch + threads_offset_ + thread * round_up<std::size_t>(thread_.floats(), 16));
    });
    if (writes_in_place_) return;
    if (plan_.parts > 1)
      parallel_for((part_floats() + kStretch - 1) / kStretch, [&](std::size_t task, int) {
        float* to = sums + task * kStretch;
        const std::size_t count = std::min<std::size_t>(kStretch, part_floats() - task * kStretch);
        isa().sum_rows(count, plan_.parts - 1, to + part_floats(), part_floats(), to);
      });
    const std::size_t strips = ceil_divide(plan_.real_outputs, kStrip), blocks = ceil_divide(plan_.depth(), kStripRows);
    parallel_for(plan_.geometry.groups * strips * blocks, [&](std::size_t task, int) {
      store_strip(static_cast<int>(task / blocks / strips), static_cast<int>(task / blocks % strips) * kStrip,
                  static_cast<int>(task % blocks) * kStripRows, sums, weights);
    });
  }

 private:
  static constexpr std::size_t kStretch = 4096;
  static constexpr std::size_t kFetchedFloats = 1 << 20;  ///< more wait for memory all the same
  static constexpr int kStrip = 16, kStripRows = 128, kCopiedPixels = 64, kTransposedStride = kGatheredElements | kDepth;
  static constexpr std::size_t kNearSteps = 4;

  /// Some lines of windows of an image, or several whole images; and of them some columns.
  struct Block {
    int image, images, line, lines;
    Range columns;
    int image_lines;  ///< lines from one image to the next, all phases' longest
    int width() const { return columns.size(); }
  };
  /// What a task computes: input channels or groups, and output channels of each group.
  struct Share {
    Range groups, inputs, outputs;
  };
  /// The product of a tap, or of all: where its rows of the sums and of the left operand begin.
  struct Piece {
    int row;
    std::ptrdiff_t offset;
    int variant;  ///< of the right operand
  };

  void place() {
    const Axis &y = plan_.geometry.window.y, &x = plan_.geometry.window.x;
    const auto widest = [](int count, int unit, int parts) { return std::min(count, ceil_divide(ceil_divide(count, unit), parts) * unit); };
    const bool has_groups = plan_.groups > 1;
    const int groups = has_groups ? ceil_divide(plan_.groups, plan_.row_parts) : 1;
    const int outputs = has_groups ? plan_.outputs : widest(plan_.padded, 2 * kColumns, plan_.column_parts);
    const int inputs = plan_.rows.is_stacked || has_groups ? plan_.inputs * groups : widest(plan_.inputs, 2 * kRows, plan_.row_parts);
    const int image_lines = plan_.lines + plan_.shift_lines();
    const int block_lines = plan_.rows.is_stacked ? plan_.lines : plan_.block_images * image_lines;
    const std::size_t steps = ceil_divide(block_lines * plan_.pitch + kDepth, kDepth);
    b_columns_ = steps * (kParts * kTile);
    std::size_t rows;
    if (plan_.rows.is_stacked) {
      a_stride_ = plan_.pitch | kDepth;
      line_rows_ = x.kernel * plan_.inputs;
      rows = std::size_t((plan_.lines - 1) * y.stride + y.kernel) * line_rows_;
      pieces_ = {{{0, 0, 0}}};
      for (int line = 0; line < plan_.lines; ++line)
        for (int k = 0; k < plan_.pitch; k += kDepth)
          offsets_.push_back(std::ptrdiff_t(line) * y.stride * line_rows_ * a_stride_ + k);
    } else {
      a_stride_ = round_up(block_lines * plan_.pitch + kDepth, kDepth) | kDepth;
      rows = inputs;
      pieces_.resize(plan_.rows.slabs());
      for (int ky = 0; ky < y.kernel; ++ky)
        for (int kx = 0; kx < x.kernel; ++kx) {
          const TapPhases::Tap &line = plan_.rows.y.taps[ky], &column = plan_.rows.x.taps[kx];
          const int shift = WeightGradientPlan::Rows::shift(line, column, plan_.pitch), variant = plan_.rows.variant(shift);
          const auto place = std::find(plan_.shifts.begin(), plan_.shifts.end(), variant) - plan_.shifts.begin();
          std::vector<Piece>& slab = pieces_[line.phase * plan_.rows.x.phases.size() + column.phase];
          slab.push_back({(ky * x.kernel + kx) * plan_.inputs, shift - variant, static_cast<int>(place)});
        }
    }
    a_part_ = (rows + kRows) * a_stride_;
    source_offset_ = thread_.add(a_part_ * kParts / 2);
    b_variant_ = std::size_t(groups) * round_up(outputs, kColumns) / kColumns * b_columns_;
    packed_offset_ = thread_.add(plan_.shifts.size() * b_variant_ / 2);
    batch_ = ceil_divide(kCopiedPixels, plan_.pitch);
    const int copied_pixels = plan_.is_direct ? 0 : plan_.rows.is_stacked ? plan_.abreast * plan_.line_pixels() : batch_ * plan_.pitch;
    line_offset_ = thread_.add(std::size_t(copied_pixels) * inputs);
    if (gathers()) {
      transposed_offset_ = thread_.add(std::size_t(kParts) * inputs * kTransposedStride / 2);
      for (int tap = 0; tap < x.kernel; ++tap)
        for (int k = 0; k < kDepth; ++k) {
          const bool is_window = k < plan_.chunk * plan_.abreast;  // others are multiplied with zero
          places_.push_back((is_window ? k / plan_.chunk * plan_.line_pixels() + k % plan_.chunk * x.stride : 0) + tap);
        }
    }
    step_offset_ = thread_.add(std::size_t(kDepth) * groups * outputs);
    threads_offset_ = scratch_.add(round_up<std::size_t>(thread_.floats(), 16) * max_thread_count());
    bias_offset_ = scratch_.add(bias_.scratch_floats());
    writes_in_place_ = plan_.parts == 1 && plan_.geometry.groups == 1 && plan_.taps() == 1 && plan_.layout.output == 1;
    fetches_ = writes_in_place_ && part_floats() <= kFetchedFloats;
    if (!writes_in_place_) sums_offset_ = scratch_.add(part_floats() * plan_.parts);
  }

  bool gathers() const { return plan_.rows.is_stacked && plan_.gathers; }
  /// Stacked rows are whole tiles.
  std::size_t part_floats() const {
    const std::size_t more = plan_.rows.is_stacked ? kRows * plan_.padded : kStrip;
    return std::size_t(plan_.groups) * plan_.taps() * plan_.inputs * plan_.padded + more;
  }
  float* sum(float* sums, int group, int row) const {
    if (writes_in_place_) return plan_.layout.at(sums, group) + row * plan_.layout.input;
    return sums + (std::size_t(group) * plan_.taps() * plan_.inputs + row) * plan_.padded;
  }
  std::size_t sum_stride() const { return writes_in_place_ ? plan_.layout.input : plan_.padded; }

  Block block(std::size_t index) const {
    const Axis &y = plan_.geometry.window.y, &x = plan_.geometry.window.x;
    const std::size_t line_blocks = ceil_divide(y.output, plan_.lines), chunks = ceil_divide(x.output, plan_.chunk);
    const int line = static_cast<int>(index % line_blocks) * plan_.lines, lines = std::min(plan_.lines, y.output - line);
    const int chunk = static_cast<int>(index / line_blocks % chunks) * plan_.chunk;
    const int image = static_cast<int>(index / line_blocks / chunks) * plan_.block_images;
    return {image, std::min(plan_.block_images, plan_.images - image), line, lines, {chunk, std::min(chunk + plan_.chunk, x.output)},
            lines + plan_.shift_lines()};
  }

  Share share(int row_part, int column_part) const {
    const auto cut = [](int count, int unit, int part, int parts) {
      const int units = ceil_divide(count, unit);
      return Range{std::min(count, static_cast<int>(part_begin(units, part, parts)) * unit),
                   std::min(count, static_cast<int>(part_begin(units, part + 1, parts)) * unit)};
    };
    if (plan_.groups > 1) return {cut(plan_.groups, 1, row_part, plan_.row_parts), {0, plan_.inputs}, {0, plan_.outputs}};
    const Range inputs = plan_.rows.is_stacked ? Range{0, plan_.inputs} : cut(plan_.inputs, 2 * kRows, row_part, plan_.row_parts);
    return {{0, 1}, inputs, cut(plan_.outputs, 2 * kColumns, column_part, plan_.column_parts)};
  }

  void run_task(std::size_t task, const float* incoming, const float* source, float* sums, float* scratch) const {
    const int row_part = static_cast<int>(task % plan_.row_parts), column_part = static_cast<int>(task / plan_.row_parts % plan_.column_parts);
    const Share share = this->share(row_part, column_part);
    const std::size_t part = task / plan_.row_parts / plan_.column_parts;
    if (!writes_in_place_) sums += part * part_floats();
    const std::size_t begin = part_begin(plan_.blocks, part, plan_.parts), end = part_begin(plan_.blocks, part + 1, plan_.parts);
    const OpenMatrixUnit open(&unit_);
    for (std::size_t index = begin; index < end; ++index) {
      const Block block = this->block(index);
      for (std::size_t variant = 0; variant < plan_.shifts.size(); ++variant)
        split_incoming(block, share, static_cast<int>(variant), incoming, scratch);
      for (std::size_t slab = 0; slab < pieces_.size(); ++slab) {
        split_source(block, share, slab, source, scratch);
        multiply(block, share, pieces_[slab], index == begin, sums, scratch);
      }
    }
  }

  // --- the left operand

  void split_source(const Block& block, const Share& share, std::size_t slab, const float* source, float* scratch) const {
    const Axis& y = plan_.geometry.window.y;
    auto* to = reinterpret_cast<std::uint16_t*>(scratch + source_offset_);
    const Range channels{share.groups.begin * plan_.inputs + share.inputs.begin,
                         (share.groups.end - 1) * plan_.inputs + share.inputs.end};
    float* copy = scratch + line_offset_;
    const TapPhases &phases_y = plan_.rows.y, &phases_x = plan_.rows.x;
    if (!plan_.rows.is_stacked) {
      const std::size_t count = phases_x.phases.size();
      return split_phase(source, block, phases_y.phases[slab / count], phases_x.phases[slab % count], channels, to, copy);
    }
    for (int line = 0; line < (block.lines - 1) * y.stride + y.kernel; ++line) {
      for (int image = 0; image < plan_.abreast; ++image) {
        float* of_image = copy + std::size_t(image) * plan_.line_pixels() * plan_.inputs;
        if (image < block.images)
          copy_line(source, block, block.image + image, y.origin(block.line) + line, {0, 1, plan_.line_pixels()}, channels, of_image);
        else std::fill_n(of_image, plan_.line_pixels() * plan_.inputs, 0.0f);
      }
      if (gathers()) {
        gather_line(copy, to + std::ptrdiff_t(line) * line_rows_ * a_stride_, scratch);
        continue;
      }
      unit_.split_columns(copy, plan_.geometry.window.x.stride * std::size_t(plan_.inputs), line_rows_, block.width(),
                          to + std::ptrdiff_t(line) * line_rows_ * a_stride_, a_stride_, a_part_);
    }
  }

  /// The rows under all taps of a line, from its pixels, which are transposed together.
  void gather_line(const float* pixels, std::uint16_t* to, float* scratch) const {
    auto* transposed = reinterpret_cast<std::uint16_t*>(scratch + transposed_offset_);
    const std::size_t inputs = plan_.inputs, part = inputs * kTransposedStride;
    unit_.split_columns(pixels, inputs, inputs, plan_.line_pixels() * plan_.abreast, transposed, kTransposedStride, part);
    for (int p = 0; p < kParts; ++p)
      for (int tap = 0; tap < plan_.geometry.window.x.kernel; ++tap)
        unit_.gather_steps(transposed + p * part, kTransposedStride, inputs, places_.data() + tap * kDepth,
                           to + p * a_part_ + tap * inputs * a_stride_, a_stride_);
  }

  void split_phase(const float* source, const Block& block, const TapPhases::Phase& phase_y, const TapPhases::Phase& phase_x,
                   Range channels, std::uint16_t* to, float* copy) const {
    const Axis &y = plan_.geometry.window.y, &x = plan_.geometry.window.x;
    const int lines = block.images > 1 ? block.images * block.image_lines : block.lines + phase_y.most_shift;
    const std::size_t inputs = plan_.geometry.input_channels;
    for (int first = 0; first < lines; first += plan_.is_direct ? 1 : batch_) {
      const auto image_of = [&](int line) { return block.image + line / block.image_lines * (block.images > 1); };
      const auto y_of = [&](int line) {
        return y.origin(block.line + (block.images > 1 ? line % block.image_lines : line)) + phase_y.first;
      };
      if (plan_.is_direct) {
        const std::size_t line = std::size_t(image_of(first)) * y.input + y_of(first);
        const std::size_t begin = line * x.input + x.origin(block.columns.begin) + phase_x.first;
        for (int pixel = 0; pixel < block.width(); pixel += kDepth)
          unit_.split_columns(source + (begin + pixel * x.stride) * inputs + channels.begin, x.stride * inputs, channels.size(),
                              std::min(kDepth, block.width() - pixel), to + first * plan_.pitch + pixel, a_stride_, a_part_);
        continue;
      }
      const int count = std::min(batch_, lines - first);
      for (int i = 0; i < count; ++i)
        copy_line(source, block, image_of(first + i), y_of(first + i), {phase_x.first, x.stride, plan_.pitch}, channels,
                  copy + std::size_t(i) * plan_.pitch * channels.size());
      unit_.split_columns(copy, channels.size(), channels.size(), count * plan_.pitch, to + first * plan_.pitch, a_stride_, a_part_);
    }
    // The last steps read a little more.
    for (int part = 0; part < kParts; ++part)
      for (int row = 0; row < channels.size(); ++row)
        std::memset(to + part * a_part_ + row * a_stride_ + lines * plan_.pitch, 0, kDepth * sizeof(std::uint16_t));
  }

  /// Source pixels behind the first window's origin.
  struct Pixels {
    int first, step, count;
  };

  void copy_line(const float* source, const Block& block, int image, int y, Pixels pixels, Range channels, float* to) const {
    const Axis &lines = plan_.geometry.window.y, &x = plan_.geometry.window.x;
    const bool clamps = plan_.geometry.edge_mode == ImageEdgeMode::Clamp;
    const int count = pixels.count, step = pixels.step, first = x.origin(block.columns.begin) + pixels.first;
    const std::size_t pixel = channels.size(), inputs = plan_.geometry.input_channels;
    if (!clamps && (y < 0 || y >= lines.input)) return std::fill_n(to, count * pixel, 0.0f), void();
    const float* line = source + (std::size_t(image) * lines.input + clamp_index(y, lines.input)) * x.input * inputs + channels.begin;
    const auto pixels_before = [&](int at) { return std::clamp(ceil_divide(std::max(0, at - first), step), 0, count); };
    const Range inside{pixels_before(0), pixels_before(x.input)};
    const bool is_whole = pixel == inputs && step == 1 && inside.size() > 0;
    if (is_whole) std::memcpy(to + inside.begin * pixel, line + (first + inside.begin) * inputs, inside.size() * pixel * sizeof(float));
    for (int i = 0; i < count; ++i) {
      const bool is_inside = i >= inside.begin && i < inside.end;
      if (is_inside && is_whole) i = inside.end - 1;
      else if (is_inside || clamps) std::memcpy(to + i * pixel, line + clamp_index(first + i * step, x.input) * inputs, pixel * sizeof(float));
      else std::fill_n(to + i * pixel, pixel, 0.0f);
    }
  }

  // --- the right operand

  int incoming_lines(const Block& block) const {
    return plan_.rows.is_stacked ? block.lines : (block.images - 1) * block.image_lines + block.lines;
  }
  std::size_t step_count(const Block& block, int variant) const {
    return ceil_divide((incoming_lines(block) - 1) * plan_.pitch + block.width() + plan_.shifts[variant], kDepth);
  }

  void split_incoming(const Block& block, const Share& share, int variant, const float* incoming, float* scratch) const {
    const Axis &y = plan_.geometry.window.y, &x = plan_.geometry.window.x;
    const std::size_t outputs = plan_.geometry.output_channels;
    const int lines = incoming_lines(block), depth = (lines - 1) * plan_.pitch + block.width(), shift = plan_.shifts[variant];
    const bool is_one_line = lines == 1 || (plan_.pitch == x.output && block.image_lines == block.lines);
    const int pitch = is_one_line ? depth + kDepth : plan_.pitch, width = is_one_line ? depth : block.width();
    const float* from = incoming + share.groups.begin * plan_.outputs + share.outputs.begin;
    const auto line_at = [&](int line) -> const float* {
      if (line >= lines || line % block.image_lines >= block.lines) return nullptr;
      const std::size_t image = block.image + line / block.image_lines;
      return from + ((image * y.output + block.line + line % block.image_lines) * x.output + block.columns.begin) * outputs;
    };
    auto* to = reinterpret_cast<std::uint16_t*>(scratch + packed_offset_) + variant * b_variant_;
    if (plan_.abreast > 1 && plan_.rows.is_stacked) return split_abreast(block, share, from, scratch + step_offset_, to);
    if (is_one_line && shift == 0) return split_pairs(line_at(0), outputs, depth, share, to);
    for (int k = -shift; k < depth; k += kDepth, to += kParts * kTile) {
      const int column = k % pitch;
      const float* whole = k < 0 ? nullptr : line_at(k / pitch);
      if (whole && column < width && (column + kDepth <= pitch || k / pitch + 1 == lines)) {
        split_pairs(whole + column * outputs, outputs, std::min(kDepth, width - column), share, to);
        continue;
      }
      float* step = scratch + step_offset_;
      const int count = share.groups.size() * share.outputs.size();
      for (int at = k; at < k + kDepth; ++at, step += count) {
        const float* values = at < 0 ? nullptr : line_at(at / pitch);
        if (values && at % pitch < width) std::memcpy(step, values + at % pitch * outputs, count * sizeof(float));
        else std::fill_n(step, count, 0.0f);
      }
      split_pairs(scratch + step_offset_, count, kDepth, share, to);
    }
  }

  /// A step for each line, with that of each image.
  void split_abreast(const Block& block, const Share& share, const float* from, float* step, std::uint16_t* to) const {
    const Axis &y = plan_.geometry.window.y, &x = plan_.geometry.window.x;
    const std::size_t outputs = plan_.geometry.output_channels, count = share.outputs.size();
    for (int line = 0; line < block.lines; ++line, to += kParts * kTile) {
      float* values = step;
      for (int image = block.image; image < block.image + block.images; ++image) {
        const float* pixels = from + (std::size_t(image) * y.output + block.line + line) * x.output * outputs;
        if (count == outputs) values = std::copy_n(pixels, x.output * count, values);
        else for (int i = 0; i < x.output; ++i) values = std::copy_n(pixels + i * outputs, count, values);
      }
      split_pairs(step, count, block.images * x.output, share, to);
    }
  }

  /// Step by step, so that what lies together is read together.
  void split_pairs(const float* from, std::size_t stride, int depth, const Share& share, std::uint16_t* to) const {
    const bool is_whole = plan_.outputs % kColumns == 0 || share.groups.size() == 1;
    for (; depth > 0; depth -= kDepth, from += kDepth * stride, to += kParts * kTile) {
      const int count = std::min(depth, kDepth);
      if (is_whole) unit_.split_pairs(from, stride, count, share.groups.size() * share.outputs.size(), to, b_columns_);
      for (int group = 0; group < share.groups.size() && !is_whole; ++group)
        unit_.split_pairs(from + group * plan_.outputs, stride, count, plan_.outputs,
                          to + group * (plan_.padded / kColumns) * b_columns_, b_columns_);
    }
  }

  // --- products and sums

  void multiply(const Block& block, const Share& share, const std::vector<Piece>& pieces, bool is_first, float* sums,
                float* scratch) const {
    SplitProduct product{};
    product.rows = plan_.rows.is_stacked ? round_up(plan_.depth(), kRows) : share.inputs.size();
    product.columns = plan_.rows.is_stacked ? round_up(share.outputs.size(), kColumns) : share.outputs.size();
    product.chains = plan_.rows.is_stacked && !is_first;
    product.a_stride = a_stride_;
    product.a_part = a_part_;
    product.offsets = plan_.rows.is_stacked ? offsets_.data() : nullptr;
    product.b_columns = b_columns_;
    product.c_stride = sum_stride();
    product.overwrites = is_first;
    const auto* a = reinterpret_cast<const std::uint16_t*>(scratch + source_offset_);
    const auto* b = reinterpret_cast<const std::uint16_t*>(scratch + packed_offset_);
    for (int group = share.groups.begin; group < share.groups.end; ++group) {
      for (const Piece& piece : pieces) {
        product.steps = step_count(block, piece.variant);
        product.b = b + piece.variant * b_variant_;
        product.a = a + piece.offset + std::ptrdiff_t(group - share.groups.begin) * plan_.inputs * a_stride_;
        product.c = sum(sums, group, piece.row + share.inputs.begin) + share.outputs.begin;
        if (fetches_) product.next_c = product.c;
        if (plan_.rows.is_stacked) multiply_stacked(product);
        else unit_.multiply(product);
      }
      b += plan_.padded / kColumns * b_columns_;
    }
  }

  /// A few steps at a time, whose operands stay in the first-level cache.
  void multiply_stacked(SplitProduct product) const {
    for (std::size_t steps = product.steps; steps > 0; steps -= product.steps) {
      product.steps = std::min(steps, kNearSteps);
      unit_.multiply(product);
      product.offsets += product.steps;
      product.b += product.steps * (kParts * kTile);
      product.overwrites = false;
      product.chains = true;
    }
  }

  /// Stores some rows and columns where the weights' layout wants them.
  void store_strip(int group, int first_output, int first_row, float* sums, float* weights) const {
    alignas(64) float strip[kStripRows * kStrip];
    const int rows = std::min(kStripRows, plan_.depth() - first_row), count = std::min(kStrip, plan_.real_outputs - first_output);
    const int inputs = plan_.real_inputs, merged = group % plan_.merged, taps_x = plan_.geometry.window.x.kernel;
    for (int row = 0; row < rows; ++row) {
      const int k = first_row + row;
      const float* from = sum(sums, group / plan_.merged, k / inputs * plan_.inputs + merged * inputs + k % inputs);
      std::copy_n(from + merged * plan_.real_outputs + first_output, count, strip + row * kStrip);
    }
    float* to = plan_.layout.at(weights, group) + first_output * plan_.layout.output;
    if (plan_.layout.input == 1 && plan_.layout.x == inputs && plan_.layout.y == std::ptrdiff_t(taps_x) * inputs)
      return pack_rows(strip, 1, kStrip, count, rows, to + first_row, static_cast<int>(plan_.layout.output), 0);
    for (int row = 0; row < rows; ++row) {
      const int k = first_row + row, tap = k / inputs;
      float* weight = to + tap / taps_x * plan_.layout.y + tap % taps_x * plan_.layout.x + k % inputs * plan_.layout.input;
      for (int o = 0; o < count; ++o) weight[o * plan_.layout.output] = strip[row * kStrip + o];
    }
  }

  const MatrixUnit& unit_;
  WeightGradientPlan plan_;
  int incoming_;  ///< the operand whose channels are the columns of the sums
  BiasGradient bias_;
  bool writes_in_place_ = false;
  bool fetches_ = false;  ///< each tile of the result during the product before: it was last seen a step ago
  int line_rows_ = 1;  ///< rows of the left operand for a line under all taps
  int batch_ = 1;  ///< lines that are copied at a time
  std::size_t a_stride_ = 0, a_part_ = 0, b_columns_ = 0, b_variant_ = 0;
  std::vector<std::vector<Piece>> pieces_;  ///< of each slab
  std::vector<std::ptrdiff_t> offsets_;
  std::vector<std::uint16_t> places_;  ///< of each tap along a line, in a transposed row
  std::size_t source_offset_ = 0, packed_offset_ = 0, line_offset_ = 0, transposed_offset_ = 0, step_offset_ = 0;  // of a thread
  std::size_t threads_offset_ = 0, bias_offset_ = 0, sums_offset_ = 0;
  ScratchLayout scratch_, thread_;
};

}  // namespace

std::unique_ptr<Kernel> make_matrix_unit_weight_gradient(const ConvolutionGeometry& geometry, const WeightLayout& layout, int images,
                                                         bool is_transposed) {
  return std::make_unique<MatrixUnitWeightGradient>(geometry, layout, images, is_transposed);
}

}  // namespace mpsnn::cpu
