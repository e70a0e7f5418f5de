// SPDX-License-Identifier: Apache-2.0
#include <limits>
#include <vector>

#include "backends/cpu/epilogue.hpp"
#include "backends/cpu/isa/isa.hpp"
#include "backends/cpu/kernels.hpp"
#include "backends/cpu/loops.hpp"
#include "backends/cpu/pooling.hpp"
#include "backends/cpu/pooling_taps.hpp"

namespace mpsnn::cpu {
namespace {

/// Where rows are fewer than this (global pooling), they are split into stretches of kSliceChannels channels.
constexpr int kFewRows = 32, kSliceChannels = 256;

/// Elements that a task reads and writes. Neighbouring rows read the same pixels, so they should meet in one cache.
constexpr std::size_t kPoolingTask = 4 * kTaskElements;

/// Bytes of a saved winner: the number of its tap, or all ones where no pixel won.
std::size_t winner_bytes(const Window& window) { return static_cast<long long>(window.y.kernel) * window.x.kernel <= 0xff ? 1 : 4; }

bool is_clamped(const PoolingOp& op) {
  // Averages shrink at the edge or count zeros there; only maxima and L2 repeat the edge (OQ-22).
  return op.kind != PoolingKind::average && op.edge_mode == ImageEdgeMode::Clamp;
}

/// What meets along one axis, in the form that the kernels of isa/ read: taps of pixel i are [first[i], first[i + 1]).
struct AxisTaps {
  std::vector<PoolingTap> taps;
  std::vector<int> first{0};
  std::vector<float> divisors;     ///< of averages, by output pixel
  std::vector<bool> reads_zeros;   ///< by pixel of a forward pass

  int count(int pixel) const { return first[pixel + 1] - first[pixel]; }
};

/// `step`: elements between neighbouring pixels of the other end; `code_step` between the numbers of neighbouring taps.
AxisTaps axis_taps(const PoolingOp& op, const Axis& axis, int zero_pad, bool is_gradient, std::size_t step, int code_step) {
  const MeetingTable table = is_gradient ? MeetingTable::gradient(axis, is_clamped(op)) : MeetingTable::forward(axis, is_clamped(op));
  AxisTaps result;
  for (int o = 0; o < axis.output; ++o) {
    result.divisors.push_back(static_cast<float>(average_taps(axis, o, op.edge_mode, zero_pad)));
    result.reads_zeros.push_back(op.edge_mode == ImageEdgeMode::Zero && axis.taps_inside(o).size() < axis.kernel);
  }
  for (int i = 0; i < (is_gradient ? axis.input : axis.output); ++i) {
    for (const Meeting& m : table[i]) {
      const float factor = op.kind == PoolingKind::average ? (is_gradient ? 1.0f / result.divisors[m.pixel] : 1.0f) : static_cast<float>(m.count);
      result.taps.push_back({static_cast<std::ptrdiff_t>(m.pixel * step), m.tap * code_step, factor});
    }
    result.first.push_back(static_cast<int>(result.taps.size()));
  }
  return result;
}

/// One pass of a pooling over all rows of its result.
class PoolingRows {
 public:
  PoolingRows(const PoolingOp& op, PoolingPass pass, const Shape& from, const Shape& to, bool is_gradient, const Epilogue& epilogue)
      : pass_(pass), from_(from), to_(to), stage_(epilogue, to.pixels(), to.channels),
        y_(axis_taps(op, op.window.y, op.zero_pad_y, is_gradient, static_cast<std::size_t>(from.width) * from.channels, op.window.x.kernel)),
        x_(axis_taps(op, op.window.x, op.zero_pad_x, is_gradient, from.channels, 1)), is_gradient_(is_gradient) {
    if (to.images * to.height < kFewRows && to.channels > kSliceChannels) slices_ = ceil_divide(to.channels, kSliceChannels);
    for (int j = 0; j < to.width; ++j) add_stretch(j);
    const std::size_t row = static_cast<std::size_t>(to.width) * to.channels / slices_;
    const std::size_t reads = y_.taps.size() * x_.taps.size() / std::max<std::size_t>(1, static_cast<std::size_t>(to.height) * to.width);
    task_elements_ = row * (1 + reads) * kTaskElements / kPoolingTask;
    line_floats_ = line_floats();
  }

  /// Floats of the most lines that a row reads, with those between them.
  std::size_t line_floats() const {
    std::size_t most = 0;
    for (int i = 0; i < to_.height; ++i) most = std::max(most, lines_of(i).second);
    return most * line_elements();
  }
  bool has_slices() const { return slices_ > 1; }

  /// `row` names the operands; its other members are filled in here. `saved_bytes`: of a winner. The values come from `source` if there is
  /// one, by way of line_floats() floats of `lines` for each thread.
  void run(const KernelCall& call, PoolingRow row, std::size_t saved_bytes, const LineSource* source = nullptr, float* lines = nullptr) const {
    float* result = row.result;
    char* saved = static_cast<char*>(row.saved);
    const PoolingRow operands = row;
    parallel_ranges(static_cast<std::size_t>(to_.images) * to_.height * slices_, task_elements_, [&](std::size_t begin, std::size_t end, int thread) {
      for (std::size_t task = begin; task < end; ++task) {
        PoolingRow own = operands;
        const std::size_t at = task / slices_ * to_.width * to_.channels;
        own.result = result ? result + at : nullptr;
        own.saved = saved ? saved + at * saved_bytes : nullptr;
        if (own.x) own.x += at;
        if (source) own.values = made_lines(*source, task / slices_, lines + thread * line_floats_);
        run_row(own, task / slices_, task % slices_, saved_bytes);
        if (slices_ == 1 && !stage_.is_empty()) stage_.apply(call, 0, own.result, to_.width, {0, to_.channels}, nullptr);
      }
    });
    if (slices_ > 1 && !stage_.is_empty()) stage_.behind(call, nullptr);
  }

 private:
  std::size_t line_elements() const { return static_cast<std::size_t>(from_.width) * from_.channels; }
  /// The first line that a row reads, and how many there are up to the last.
  std::pair<std::size_t, std::size_t> lines_of(int row) const {
    if (y_.count(row) == 0) return {0, 0};
    const std::size_t first = y_.taps[y_.first[row]].offset / line_elements(), last = y_.taps[y_.first[row + 1] - 1].offset / line_elements();
    return {first, last + 1 - first};
  }
  /// Where the first image would begin that the lines of row `number` belong to.
  const float* made_lines(const LineSource& source, std::size_t number, float* to) const {
    const auto [first, count] = lines_of(static_cast<int>(number % to_.height));
    const std::size_t image = number / to_.height;
    source.make(image * from_.height + first, count, to);
    return to - (image * from_.image_count() + first * line_elements());
  }

  void add_stretch(int j) {
    const std::size_t channels = to_.channels;
    PoolingStretch next{j * channels, channels, x_.first[j], x_.count(j), !is_gradient_ && x_.reads_zeros[j], is_gradient_ ? 1.0f : x_.divisors[j]};
    if (slices_ == 1 && j > 0 && continues(stretches_.back(), next)) {
      stretches_.back().count += channels;
      return;
    }
    stretches_.push_back(next);
  }

  /// True when pixel j meets what the stretch would meet if it went on.
  bool continues(const PoolingStretch& stretch, const PoolingStretch& next) const {
    if (stretch.tap_count != next.tap_count || stretch.reads_zeros != next.reads_zeros || stretch.divisor != next.divisor) return false;
    const PoolingTap *before = x_.taps.data() + stretch.first_tap, *after = x_.taps.data() + next.first_tap;
    for (int t = 0; t < next.tap_count; ++t)
      if (after[t].offset - before[t].offset != static_cast<std::ptrdiff_t>(next.at - stretch.at) || after[t].code != before[t].code ||
          after[t].factor != before[t].factor)
        return false;
    return true;
  }

  void run_row(PoolingRow row, std::size_t number, std::size_t slice, std::size_t saved_bytes) const {
    const std::size_t image = number / to_.height * from_.image_count();
    const int i = static_cast<int>(number % to_.height);
    row.values += image;
    if (row.norms) row.norms += image;
    if (row.winners) row.winners = static_cast<const char*>(row.winners) + image * saved_bytes;
    row.lines = y_.taps.data() + y_.first[i];
    row.line_count = y_.count(i);
    row.taps = x_.taps.data();
    row.stretches = stretches_.data();
    row.stretch_count = static_cast<int>(stretches_.size());
    row.first = slices_ == 1 ? 0 : slice * kSliceChannels;
    row.last = slices_ == 1 ? std::numeric_limits<std::size_t>::max() : row.first + kSliceChannels;
    row.reads_zeros = !is_gradient_ && y_.reads_zeros[i];
    row.divisor = is_gradient_ ? 1.0f : y_.divisors[i];
    isa().pooling[static_cast<int>(pass_)](row);
  }

  PoolingPass pass_;
  Shape from_, to_;
  EpilogueStage stage_;
  AxisTaps y_, x_;
  bool is_gradient_;
  int slices_ = 1;
  std::vector<PoolingStretch> stretches_;
  std::size_t task_elements_, line_floats_ = 0;
};

/// Max pooling, which leaves the winners' taps for its gradient if there is one.
class MaximumPooling final : public Kernel {
 public:
  MaximumPooling(const PoolingOp& op, const Shape& source, const Shape& result)
      : bytes_(winner_bytes(op.window)), plain_(op, PoolingPass::maximum, source, result, false, {}),
        saving_(op, bytes_ == 1 ? PoolingPass::maximum_in_bytes : PoolingPass::maximum_in_words, source, result, false, {}) {}

  std::string algorithm() const override { return std::string("direct, ") + isa().name; }
  void run(const KernelCall& call) override { run(call, call.input<float>(0), call.output<float>(0), call.saved); }
  void run(const KernelCall& call, const float* source, float* result, void* saved) const {
    PoolingRow row{};
    row.values = source, row.result = result, row.saved = saved;
    (saved ? saving_ : plain_).run(call, row, bytes_);
  }

 private:
  std::size_t bytes_;
  PoolingRows plain_, saving_;
};

/// The gradient of max pooling: each source pixel asks the windows that read it whether it won, and is written once.
class MaximumPoolingGradient final : public Kernel {
 public:
  MaximumPoolingGradient(const PoolingOp& op, const Shape& result, const Shape& source, bool has_source, const Epilogue& epilogue)
      : bytes_(winner_bytes(op.window)), winners_bytes_(has_source ? result.count() * bytes_ : 0), forward_(op, source, result),
        gradient_(op, bytes_ == 1 ? PoolingPass::maximum_gradient_in_bytes : PoolingPass::maximum_gradient_in_words, result, source, true, epilogue) {}

  std::string algorithm() const override { return std::string("direct, ") + isa().name; }
  /// Winners are worked out again where the forward pass left none.
  std::size_t scratch_bytes() const override { return winners_bytes_; }
  void run(const KernelCall& call) override {
    if (!call.saved) forward_.run(call, call.input<float>(1), nullptr, call.scratch);
    PoolingRow row{};
    row.values = call.input<float>(0), row.result = call.output<float>(0);
    row.winners = call.saved ? call.saved : call.scratch;
    gradient_.run(call, row, bytes_);
  }

 private:
  std::size_t bytes_, winners_bytes_;
  MaximumPooling forward_;
  PoolingRows gradient_;
};

/// Average and L2 pooling and their gradients.
class SumPooling final : public Kernel {
 public:
  SumPooling(const PoolingOp& op, PoolingPass pass, const Shape& from, const Shape& to, bool is_gradient, const Epilogue& epilogue)
      : rows_(op, pass, from, to, is_gradient, epilogue), needs_norms_(pass == PoolingPass::l2_norm_gradient) {}

  std::string algorithm() const override { return std::string("direct, ") + isa().name; }
  void run(const KernelCall& call) override {
    PoolingRow row{};
    row.values = call.input<float>(0), row.result = call.output<float>(0);
    if (needs_norms_) row.x = call.input<float>(1), row.norms = call.input<float>(2);
    rows_.run(call, row, 0);
  }

 private:
  PoolingRows rows_;
  bool needs_norms_;
};

}  // namespace

namespace {

class MaximumOfLines final : public LinePooling {
 public:
  MaximumOfLines(const PoolingOp& op, const Shape& source)
      : bytes_(winner_bytes(op.window)), plain_(op, PoolingPass::maximum, source, result_of(op, source), false, {}),
        saving_(op, bytes_ == 1 ? PoolingPass::maximum_in_bytes : PoolingPass::maximum_in_words, source, result_of(op, source), false, {}) {}

  bool pays() const { return !plain_.has_slices() && plain_.line_floats() <= kMostFloats; }
  std::size_t scratch_floats() const override { return plain_.line_floats() * max_thread_count(); }
  void run(const KernelCall& call, const LineSource& source, float* scratch) const override {
    PoolingRow row{};
    row.result = call.output<float>(0), row.saved = call.saved;
    (call.saved ? saving_ : plain_).run(call, row, bytes_, &source, scratch);
  }

 private:
  static constexpr std::size_t kMostFloats = 64 << 10;
  static Shape result_of(const PoolingOp& op, const Shape& source) { return {source.images, op.window.y.output, op.window.x.output, source.channels}; }

  std::size_t bytes_;
  PoolingRows plain_, saving_;
};

}  // namespace

std::unique_ptr<LinePooling> make_line_pooling(const PoolingOp& op, const Shape& source) {
  auto pooling = std::make_unique<MaximumOfLines>(op, source);
  if (!pooling->pays()) return nullptr;
  return pooling;
}

std::size_t saved_bytes(const PoolingOp& op, const OperandShapes& shapes) {
  return op.kind == PoolingKind::max ? shapes.outputs[0].count() * winner_bytes(op.window) : 0;
}

std::unique_ptr<Kernel> make_kernel(const PoolingOp& op, const OperandShapes& shapes) {
  const Shape &source = shapes.inputs[0], &result = shapes.outputs[0];
  if (op.kind == PoolingKind::max) return std::make_unique<MaximumPooling>(op, source, result);
  const auto pass = op.kind == PoolingKind::average ? PoolingPass::average : PoolingPass::l2_norm;
  return std::make_unique<SumPooling>(op, pass, source, result, false, Epilogue{});
}

std::unique_ptr<Kernel> make_kernel(const PoolingGradientOp& op, const OperandShapes& shapes) {
  const Shape &result = shapes.inputs[0], &source = shapes.outputs[0];
  const Epilogue epilogue{.neuron = op.neuron, .is_gradient = true};
  if (op.forward.kind == PoolingKind::max) {
    const bool has_source = shapes.inputs.size() > 1 && shapes.inputs[1].channels > 0;
    return std::make_unique<MaximumPoolingGradient>(op.forward, result, source, has_source, epilogue);
  }
  const auto pass = op.forward.kind == PoolingKind::average ? PoolingPass::average_gradient : PoolingPass::l2_norm_gradient;
  return std::make_unique<SumPooling>(op.forward, pass, result, source, true, epilogue);
}

}  // namespace mpsnn::cpu
