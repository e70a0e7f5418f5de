// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <cstring>

#include "backends/cpu/kernels.hpp"
#include "backends/cpu/loops.hpp"
#include "backends/cpu/pooling_rows.hpp"
#include "backends/cpu/pooling_taps.hpp"

namespace mpsnn::cpu {
namespace {

/// Channels that one call of an inner loop takes: its private values stay in the first-level cache.
constexpr int kChannelBlock = 256;

/// Bytes of a saved winner: the number of its tap, or all ones where no pixel won. One byte up to 255 taps.
std::size_t winner_bytes(const Window& window) {
  const long long taps = static_cast<long long>(window.y.kernel) * window.x.kernel;
  return taps <= 0xff ? 1 : taps <= 0xffff ? 2 : 4;
}

/// Work is split into rows, and where rows are few (global pooling) into rows of some channels.
struct RowSplit {
  int rows, slices, slice_channels, channels;
  std::size_t elements_per_task;

  RowSplit(int images, int height, int width, int channels_, int taps)
      : rows(images * height), slices(1), slice_channels(channels_), channels(channels_) {
    if (rows < 32 && channels > kChannelBlock) {
      slice_channels = kChannelBlock;
      slices = ceil_divide(channels, kChannelBlock);
    }
    elements_per_task = static_cast<std::size_t>(width) * slice_channels * std::max(1, taps);
  }

  /// Calls body(row, first channel, last channel + 1, thread).
  template <class Body>
  void run(Body&& body) const {
    parallel_ranges(static_cast<std::size_t>(rows) * slices, elements_per_task, [&](std::size_t begin, std::size_t end, int thread) {
      for (std::size_t task = begin; task < end; ++task) {
        const int slice = static_cast<int>(task % slices);
        body(static_cast<int>(task / slices), slice * slice_channels, std::min(channels, (slice + 1) * slice_channels), thread);
      }
    });
  }
};

/// Calls flush(chunk, is_first) with all pairs of `ys` and `xs`, kChunk at a time, after add(chunk, slot, y, x) for each.
/// False when there is no pair.
template <class Add, class Flush>
bool for_each_chunk(std::span<const Meeting> ys, std::span<const Meeting> xs, TapChunk& chunk, Add add, Flush flush) {
  bool is_first = true;
  chunk.count = 0;
  for (const Meeting& y : ys)
    for (const Meeting& x : xs) {
      add(chunk.count++, y, x);
      if (chunk.count < kChunk) continue;
      flush(is_first);
      is_first = false;
      chunk.count = 0;
    }
  if (chunk.count > 0) {
    flush(is_first);
    is_first = false;
  }
  return !is_first;
}

template <class Code>
void store_winners(const int* winners, Code* saved, int channels) {
  for (int c = 0; c < channels; ++c) saved[c] = static_cast<Code>(winners[c]);
}

/// One row of max pooling.
class MaxRows {
 public:
  MaxRows(const PoolingOp& op, const Shape& source)
      : window_(op.window), source_(source), is_zero_(op.edge_mode == ImageEdgeMode::Zero),
        y_(MeetingTable::forward(op.window.y, !is_zero_)), x_(MeetingTable::forward(op.window.x, !is_zero_)) {}

  /// Output row `o` of image `n`, channels [first, last): values into `result` and tap numbers into `saved`, either of which
  /// may be null. Both point to channel 0 of the row's pixel 0.
  template <class Code>
  void run(const float* source, int n, int o, int first, int last, float* result, Code* saved) const {
    const bool leaves_y = is_zero_ && window_.y.taps_inside(o).size() < window_.y.kernel;
    for (int j = 0; j < window_.x.output; ++j) {
      const bool reads_zeros = is_zero_ && (leaves_y || window_.x.taps_inside(j).size() < window_.x.kernel);
      for (int c = first; c < last; c += kChannelBlock) {
        const std::size_t at = static_cast<std::size_t>(j) * source_.channels + c;
        pixel(source + c, n, o, j, std::min(kChannelBlock, last - c), reads_zeros, result ? result + at : nullptr,
              saved ? saved + at : nullptr);
      }
    }
  }

 private:
  template <class Code>
  void pixel(const float* source, int n, int o, int j, int channels, bool reads_zeros, float* result, Code* saved) const {
    float private_best[kChannelBlock];
    int winners[kChannelBlock];
    float* best = result ? result : private_best;
    TapChunk chunk;
    const bool reads_pixels = for_each_chunk(
        y_[o], x_[j], chunk,
        [&](int slot, const Meeting& y, const Meeting& x) {
          const std::size_t pixel = (static_cast<std::size_t>(n) * source_.height + y.pixel) * source_.width + x.pixel;
          chunk.values[slot] = source + pixel * source_.channels;
          chunk.codes[slot] = y.tap * window_.x.kernel + x.tap;
        },
        [&](bool is_first) {
          with_tap_count(chunk.count, [&](auto count) {
            constexpr int K = count;
            if (saved) is_first ? maximum_of_taps<K, true, true>(chunk, best, winners, channels)
                                : maximum_of_taps<K, false, true>(chunk, best, winners, channels);
            else is_first ? maximum_of_taps<K, true, false>(chunk, best, winners, channels)
                          : maximum_of_taps<K, false, false>(chunk, best, winners, channels);
          });
        });
    if (!reads_pixels) std::fill_n(best, channels, -1.0f);
    if (!reads_pixels || reads_zeros) zeros_take_part(best, winners, channels, saved != nullptr);
    if (saved) store_winners(winners, saved, channels);
  }

  /// The zeros around the image win over negative pixels, and then nobody gets the gradient (8.5).
  static void zeros_take_part(float* best, int* winners, int channels, bool wants_winners) {
    if (wants_winners)
      for (int c = 0; c < channels; ++c) winners[c] = best[c] < 0 ? -1 : winners[c];
    for (int c = 0; c < channels; ++c) best[c] = best[c] < 0 ? 0.0f : best[c];
  }

  Window window_;
  Shape source_;
  bool is_zero_;
  MeetingTable y_, x_;
};

/// Max pooling, which leaves the winners' taps for its gradient.
template <class Code>
std::unique_ptr<Kernel> max_kernel(const PoolingOp& op, const Shape& source, const Shape& result) {
  const int taps = std::min(op.window.y.kernel * op.window.x.kernel, 64);
  return function_kernel([rows = MaxRows(op, source), split = RowSplit(result.images, result.height, result.width, result.channels, taps),
                          result](const KernelCall& call) {
    const std::size_t row_elements = static_cast<std::size_t>(result.width) * result.channels;
    split.run([&](int row, int first, int last, int) {
      Code* saved = call.saved ? static_cast<Code*>(call.saved) + row * row_elements : nullptr;
      float* pooled = call.output<float>(0) + row * row_elements;
      rows.run(call.input<float>(0), row / result.height, row % result.height, first, last, pooled, saved);
    });
  });
}

/// The gradient of max pooling: each source pixel asks the windows that read it whether it won, and is written once.
template <class Code>
class MaxGradient final : public Kernel {
 public:
  MaxGradient(const PoolingOp& op, const Shape& result, const Shape& source, bool has_source)
      : window_(op.window), result_(result), source_(source), split_(source.images, source.height, source.width, source.channels, 1),
        forward_(op, source), y_(MeetingTable::gradient(op.window.y, op.edge_mode == ImageEdgeMode::Clamp)),
        x_(MeetingTable::gradient(op.window.x, op.edge_mode == ImageEdgeMode::Clamp)),
        row_elements_(static_cast<std::size_t>(result.width) * result.channels),
        winners_per_thread_(has_source ? y_.longest() * row_elements_ : 0) {}

  /// Winners are worked out again where the forward pass left none: the windows of one source row at a time.
  std::size_t scratch_bytes() const override { return winners_per_thread_ * sizeof(Code) * max_thread_count(); }

  void run(const KernelCall& call) override {
    split_.run([&](int row, int first, int last, int thread) {
      const int n = row / source_.height, y = row % source_.height;
      const Code* winners[2] = {static_cast<const Code*>(call.saved), nullptr};
      if (!call.saved) {
        Code* own = static_cast<Code*>(call.scratch) + thread * winners_per_thread_;
        winners[1] = own;
        for (const Meeting& m : y_[y]) {
          forward_.run(call.input<float>(1), n, m.pixel, first, last, static_cast<float*>(nullptr), own);
          own += row_elements_;
        }
      }
      source_row(call.input<float>(0), winners, n, y, first, last,
                 call.output<float>(0) + static_cast<std::size_t>(row) * source_.width * source_.channels);
    });
  }

 private:
  /// winners[0]: those of all windows, or null; winners[1]: those of this row's windows, one row after another.
  void source_row(const float* incoming, const Code* const* winners, int n, int y, int first, int last, float* gradient) const {
    for (int x = 0; x < source_.width; ++x)
      for (int c = first; c < last; c += kChannelBlock) {
        const int channels = std::min(kChannelBlock, last - c);
        float* out = gradient + static_cast<std::size_t>(x) * source_.channels + c;
        TapChunk chunk;
        const bool is_read = for_each_chunk(
            y_[y], x_[x], chunk,
            [&](int slot, const Meeting& my, const Meeting& mx) {
              const std::size_t at = static_cast<std::size_t>(mx.pixel) * result_.channels + c;
              const std::size_t row = (static_cast<std::size_t>(n) * result_.height + my.pixel) * row_elements_;
              chunk.values[slot] = incoming + row + at;
              chunk.winners[slot] = winners[0] ? winners[0] + row + at : winners[1] + (&my - y_[y].data()) * row_elements_ + at;
              chunk.codes[slot] = my.tap * window_.x.kernel + mx.tap;
            },
            [&](bool is_first) {
              with_tap_count(chunk.count, [&](auto count) {
                constexpr int K = count;
                is_first ? sum_of_won_taps<K, true, Code>(chunk, out, channels) : sum_of_won_taps<K, false, Code>(chunk, out, channels);
              });
            });
        if (!is_read) std::fill_n(out, channels, 0.0f);
      }
  }

  Window window_;
  Shape result_, source_;
  RowSplit split_;
  MaxRows forward_;
  MeetingTable y_, x_;
  std::size_t row_elements_, winners_per_thread_;
};

/// Average and L2 pooling and their gradients: sums over windows, or over the windows that read a pixel.
class SumPooling {
 public:
  SumPooling(const PoolingOp& op, const Shape& from, const Shape& to, bool is_gradient)
      : is_average_(op.kind == PoolingKind::average), is_gradient_(is_gradient), from_(from), to_(to),
        // Averages shrink at the edge or count zeros there; only L2 repeats the edge (OQ-22).
        y_(table(op.window.y, op, is_gradient)), x_(table(op.window.x, op, is_gradient)),
        split_(to.images, to.height, to.width, to.channels, is_gradient ? 1 : std::min(op.window.y.kernel * op.window.x.kernel, 64)) {
    for (int o = 0; o < op.window.y.output; ++o) divisor_y_.push_back(average_taps(op.window.y, o, op.edge_mode, op.zero_pad_y));
    for (int o = 0; o < op.window.x.output; ++o) divisor_x_.push_back(average_taps(op.window.x, o, op.edge_mode, op.zero_pad_x));
  }

  void run(const KernelCall& call) const {
    split_.run([&](int row, int first, int last, int) {
      for (int j = 0; j < to_.width; ++j)
        for (int c = first; c < last; c += kChannelBlock) pixel(call, row, j, c, std::min(kChannelBlock, last - c));
    });
  }

 private:
  static MeetingTable table(const Axis& axis, const PoolingOp& op, bool is_gradient) {
    const bool clamps = op.kind != PoolingKind::average && op.edge_mode == ImageEdgeMode::Clamp;
    return is_gradient ? MeetingTable::gradient(axis, clamps) : MeetingTable::forward(axis, clamps);
  }

  void pixel(const KernelCall& call, int row, int j, int c, int channels) const {
    const int n = row / to_.height, i = row % to_.height;
    const std::size_t own = (static_cast<std::size_t>(row) * to_.width + j) * to_.channels + c;
    float* out = call.output<float>(0) + own;
    TapChunk chunk;
    const bool has_terms = for_each_chunk(
        y_[i], x_[j], chunk,
        [&](int slot, const Meeting& y, const Meeting& x) {
          const std::size_t at = ((static_cast<std::size_t>(n) * from_.height + y.pixel) * from_.width + x.pixel) * from_.channels + c;
          chunk.values[slot] = call.input<float>(0) + at;
          if (is_average_) {
            chunk.factors[slot] = is_gradient_ ? 1.0f / (static_cast<float>(divisor_y_[y.pixel]) * divisor_x_[x.pixel]) : 1.0f;
          } else {
            chunk.factors[slot] = static_cast<float>(y.count) * x.count;
            if (is_gradient_) chunk.others[slot] = call.input<float>(2) + at;
          }
        },
        [&](bool is_first) {
          if (!is_average_)
            return is_gradient_ ? sum_of_shares(chunk, is_first, call.input<float>(1) + own, out, channels)
                                : sum_of_squares(chunk, is_first, out, channels);
          with_tap_count(chunk.count, [&](auto count) {
            constexpr int K = count;
            is_first ? sum_of_taps<K, true>(chunk, out, channels) : sum_of_taps<K, false>(chunk, out, channels);
          });
        });
    if (!has_terms) return static_cast<void>(std::fill_n(out, channels, 0.0f));
    if (!is_gradient_) finish(out, static_cast<float>(divisor_y_[i]) * divisor_x_[j], channels);
  }

  void finish(float* out, float divisor, int channels) const {
    if (is_average_)
      for (int c = 0; c < channels; ++c) out[c] /= divisor;
    else
      for (int c = 0; c < channels; ++c) out[c] = std::sqrt(out[c]);
  }

  bool is_average_, is_gradient_;
  Shape from_, to_;
  MeetingTable y_, x_;
  std::vector<int> divisor_y_, divisor_x_;
  RowSplit split_;
};

}  // namespace

std::size_t saved_bytes(const PoolingOp& op, const OperandShapes& shapes) {
  return op.kind == PoolingKind::max ? shapes.outputs[0].count() * winner_bytes(op.window) : 0;
}

std::unique_ptr<Kernel> make_kernel(const PoolingOp& op, const OperandShapes& shapes) {
  const Shape &source = shapes.inputs[0], &result = shapes.outputs[0];
  if (op.kind != PoolingKind::max)
    return function_kernel([pooling = SumPooling(op, source, result, false)](const KernelCall& call) { pooling.run(call); });
  switch (winner_bytes(op.window)) {
    case 1: return max_kernel<std::uint8_t>(op, source, result);
    case 2: return max_kernel<std::uint16_t>(op, source, result);
    default: return max_kernel<std::uint32_t>(op, source, result);
  }
}

std::unique_ptr<Kernel> make_kernel(const PoolingGradientOp& op, const OperandShapes& shapes) {
  const Shape &result = shapes.inputs[0], &source = shapes.outputs[0];
  if (op.forward.kind != PoolingKind::max)
    return function_kernel([pooling = SumPooling(op.forward, result, source, true)](const KernelCall& call) { pooling.run(call); });
  const bool has_source = shapes.inputs.size() > 1 && shapes.inputs[1].channels > 0;
  switch (winner_bytes(op.forward.window)) {
    case 1: return std::make_unique<MaxGradient<std::uint8_t>>(op.forward, result, source, has_source);
    case 2: return std::make_unique<MaxGradient<std::uint16_t>>(op.forward, result, source, has_source);
    default: return std::make_unique<MaxGradient<std::uint32_t>>(op.forward, result, source, has_source);
  }
}

}  // namespace mpsnn::cpu
