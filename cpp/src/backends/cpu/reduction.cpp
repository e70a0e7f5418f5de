// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "backends/cpu/channel_sums.hpp"
#include "backends/cpu/kernels.hpp"
#include "backends/cpu/loops.hpp"
#include "backends/cpu/vector_math.hpp"

namespace mpsnn::cpu {
namespace {

/// The larger of two, or with kSmallest the smaller. A NaN wins. Numbers instead of conditions become vectors.
template <bool kSmallest>
float extreme(float value, float best) {
  const int is_beyond = kSmallest ? value < best : value > best, is_nan = value != value;
  return (is_beyond | is_nan) != 0 ? value : best;
}

template <bool kSmallest>
float extreme_of_row(const float* __restrict values, int count) {
  float best = values[0];
  int i = 0;
  if (count >= kReductionLanes) {
    float lane[kReductionLanes];
    for (int j = 0; j < kReductionLanes; ++j) lane[j] = values[j];
    for (i = kReductionLanes; i + kReductionLanes <= count; i += kReductionLanes)
      for (int j = 0; j < kReductionLanes; ++j) lane[j] = extreme<kSmallest>(values[i + j], lane[j]);
    for (int j = 0; j < kReductionLanes; ++j) best = extreme<kSmallest>(lane[j], best);
  }
  for (; i < count; ++i) best = extreme<kSmallest>(values[i], best);
  return best;
}

/// The first place of `value`, which may be a NaN.
float place_of(float value, const float* values, int count) {
  int i = 0;
  while (i + 1 < count && values[i] != value && (value == value || values[i] == values[i])) ++i;
  return static_cast<float>(i);
}

float reduce_channels(const ReductionOp& op, const float* values, int count) {
  switch (op.kind) {
    case ReductionKind::minimum: return extreme_of_row<true>(values, count);
    case ReductionKind::maximum: return extreme_of_row<false>(values, count);
    case ReductionKind::argument_minimum: return place_of(extreme_of_row<true>(values, count), values, count);
    case ReductionKind::argument_maximum: return place_of(extreme_of_row<false>(values, count), values, count);
    default: break;
  }
  // Long rows in stretches, so that float sums stay short.
  constexpr int kStretch = 4096;
  double sum = 0;
  for (int first = 0; first < count; first += kStretch)
    sum += row_sum(std::min(kStretch, count - first), [=](int c) { return values[first + c]; });
  return static_cast<float>(op.kind == ReductionKind::mean ? sum / count : sum * op.weight);
}

template <bool kSmallest>
void extreme_of_lines(const float* __restrict x, std::size_t stride, int lines, float* __restrict result, int width) {
  std::copy_n(x, width, result);
  for (int line = 1; line < lines; ++line)
    for (int i = 0; i < width; ++i) result[i] = extreme<kSmallest>(x[line * stride + i], result[i]);
}

/// sums[i] += the sum of x[line * stride + i] over the lines; `width` is at most kChannelBlock.
void add_lines(const float* x, std::size_t stride, int lines, double* sums, int width) {
  constexpr int kRun = 256;  // lines of one float sum
  float run_sums[kChannelBlock];
  for (int first = 0; first < lines; first += kRun) {
    sum_pixels(x + first * stride, stride, std::min(kRun, lines - first), run_sums, width);
    for (int i = 0; i < width; ++i) sums[i] += run_sums[i];
  }
}

/// result[i] := what becomes of x[line * stride + i] over the lines.
void reduce_lines(const ReductionOp& op, const float* x, std::size_t stride, int lines, float* result, int width) {
  if (lines == 0) return static_cast<void>(std::fill_n(result, width, 0.0f));
  if (op.kind == ReductionKind::minimum) return extreme_of_lines<true>(x, stride, lines, result, width);
  if (op.kind == ReductionKind::maximum) return extreme_of_lines<false>(x, stride, lines, result, width);
  for (int first = 0; first < width; first += kChannelBlock) {
    const int block = std::min(kChannelBlock, width - first);
    double sums[kChannelBlock] = {};
    add_lines(x + first, stride, lines, sums, block);
    const double factor = op.kind == ReductionKind::mean ? 1.0 / lines : op.weight;
    for (int i = 0; i < block; ++i) result[first + i] = static_cast<float>(sums[i] * factor);
  }
}

/// The region's parts of an image: where a row of it begins and how long it is.
struct Region {
  Shape shape;
  Range columns, rows;

  Region(const Shape& shape_, const Range& columns_, const Range& rows_) : shape(shape_), columns(columns_), rows(rows_) {}
  std::size_t line() const { return static_cast<std::size_t>(shape.width) * shape.channels; }
  std::size_t row_begin(std::size_t n, std::size_t row) const {
    return (n * shape.height + rows.begin + row) * line() + static_cast<std::size_t>(columns.begin) * shape.channels;
  }
  int row_elements() const { return columns.size() * shape.channels; }
};

std::unique_ptr<Kernel> over_channels(const ReductionOp& op, const Region& region) {
  return function_kernel([op, region](const KernelCall& call) {
    const std::size_t rows = region.rows.size(), columns = region.columns.size();
    parallel_ranges(region.shape.images * rows, region.row_elements(), [&](std::size_t begin, std::size_t end, int) {
      for (std::size_t row = begin; row < end; ++row) {
        const float* x = call.input<float>(0) + region.row_begin(row / rows, row % rows);
        for (std::size_t j = 0; j < columns; ++j, x += region.shape.channels)
          call.output<float>(0)[row * columns + j] = reduce_channels(op, x, region.shape.channels);
      }
    });
  });
}

std::unique_ptr<Kernel> over_rows(const ReductionOp& op, const Region& region) {
  return function_kernel([op, region](const KernelCall& call) {
    const std::size_t rows = region.rows.size(), channels = region.shape.channels;
    parallel_ranges(region.shape.images * rows, region.row_elements(), [&](std::size_t begin, std::size_t end, int) {
      for (std::size_t row = begin; row < end; ++row)
        reduce_lines(op, call.input<float>(0) + region.row_begin(row / rows, row % rows), channels, region.columns.size(),
                     call.output<float>(0) + row * channels, region.shape.channels);
    });
  });
}

/// Elements of the rows of a task over columns: 4 KiB at a time.
constexpr int kColumnBlock = 1024;

std::unique_ptr<Kernel> over_columns(const ReductionOp& op, const Region& region) {
  return function_kernel([op, region](const KernelCall& call) {
    const int width = region.row_elements(), blocks = ceil_divide(width, kColumnBlock);
    parallel_for(static_cast<std::size_t>(region.shape.images) * blocks, [&](std::size_t task, int) {
      const std::size_t n = task / blocks;
      const int first = static_cast<int>(task % blocks) * kColumnBlock;
      reduce_lines(op, call.input<float>(0) + region.row_begin(n, 0) + first, region.line(), region.rows.size(),
                   call.output<float>(0) + n * width + first, std::min(kColumnBlock, width - first));
    });
  });
}

/// The mean, and for completeness the sum and the extremes, of whole images: parts of rows first, then the parts of an image.
class OverPixels final : public Kernel {
 public:
  OverPixels(const ReductionOp& op, const Region& region) : op_(op), region_(region) {
    // A function of the sizes alone, for the same bits always; at most 64 parts of an image.
    const std::size_t elements = static_cast<std::size_t>(region.row_elements()) * region.rows.size();
    rows_per_part_ = ceil_divide(std::max(1, region.rows.size()), static_cast<int>(std::clamp<std::size_t>(elements / 32768, 1, 64)));
    parts_ = ceil_divide(region.rows.size(), rows_per_part_);
  }

  std::size_t scratch_bytes() const override {
    return sizeof(double) * region_.shape.images * (parts_ + 1) * static_cast<std::size_t>(region_.shape.channels);
  }

  void run(const KernelCall& call) override {
    const std::size_t channels = region_.shape.channels, parts = parts_;
    const std::size_t part_elements = static_cast<std::size_t>(rows_per_part_) * region_.row_elements();
    double* totals = static_cast<double*>(call.scratch);
    parallel_ranges(region_.shape.images * parts, part_elements, [&](std::size_t begin, std::size_t end, int) {
      for (std::size_t task = begin; task < end; ++task) part(call.input<float>(0), task / parts, task % parts, totals + task * channels);
    });
    const double factor = op_.kind == ReductionKind::mean
                              ? 1.0 / (static_cast<double>(region_.columns.size()) * region_.rows.size())
                              : (op_.kind == ReductionKind::sum ? op_.weight : 1.0);
    for (std::size_t n = 0; n < static_cast<std::size_t>(region_.shape.images); ++n)
      for (std::size_t c = 0; c < channels; ++c) {
        double total = parts == 0 || region_.columns.size() == 0 ? 0 : totals[n * parts * channels + c];
        for (std::size_t p = 1; p < parts; ++p) total = joined(total, totals[(n * parts + p) * channels + c]);
        call.output<float>(0)[n * channels + c] = total == 0 ? 0.0f : static_cast<float>(total * factor);
      }
  }

 private:
  bool is_extreme() const { return op_.kind == ReductionKind::minimum || op_.kind == ReductionKind::maximum; }
  double joined(double a, double b) const {
    if (!is_extreme()) return a + b;
    return op_.kind == ReductionKind::minimum ? extreme<true>(static_cast<float>(b), static_cast<float>(a))
                                              : extreme<false>(static_cast<float>(b), static_cast<float>(a));
  }

  void part(const float* x, std::size_t n, std::size_t part, double* totals) const {
    const int channels = region_.shape.channels, first = static_cast<int>(part) * rows_per_part_;
    const int last = std::min(region_.rows.size(), first + rows_per_part_);
    for (int c = 0; c < channels; c += kChannelBlock) {
      const int block = std::min(kChannelBlock, channels - c);
      std::fill_n(totals + c, block, 0.0);
      if (region_.columns.size() == 0) continue;
      for (int row = first; row < last; ++row) {
        const float* line = x + region_.row_begin(n, row) + c;
        if (!is_extreme()) {
          add_lines(line, channels, region_.columns.size(), totals + c, block);
          continue;
        }
        float values[kChannelBlock];
        reduce_lines(op_, line, channels, region_.columns.size(), values, block);
        for (int i = 0; i < block; ++i) totals[c + i] = row == first ? values[i] : joined(totals[c + i], values[i]);
      }
    }
  }

  ReductionOp op_;
  Region region_;
  int rows_per_part_, parts_;
};

}  // namespace

std::unique_ptr<Kernel> make_kernel(const ReductionOp& op, const OperandShapes& shapes) {
  const Region region(shapes.inputs[0], op.columns, op.rows);
  switch (op.axis) {
    case ReductionAxis::row: return over_rows(op, region);
    case ReductionAxis::column: return over_columns(op, region);
    case ReductionAxis::feature_channels: return over_channels(op, region);
    case ReductionAxis::spatial: break;
  }
  return std::make_unique<OverPixels>(op, region);
}

std::unique_ptr<Kernel> make_kernel(const SpatialMeanGradientOp& op, const OperandShapes& shapes) {
  const Shape shape = shapes.outputs[0];
  return function_kernel([op, shape](const KernelCall& call) {
    const std::size_t height = shape.height, channels = shape.channels, line = shape.width * channels;
    const float share = static_cast<float>(1.0 / (static_cast<double>(op.columns.size()) * op.rows.size()));
    parallel_ranges(shape.images * height, line, [&](std::size_t begin, std::size_t end, int) {
      for (std::size_t row = begin; row < end; ++row) {
        const int y = static_cast<int>(row % height);
        const float* incoming = call.input<float>(0) + row / height * channels;
        float* gradient = call.output<float>(0) + row * line;
        std::fill_n(gradient, line, 0.0f);
        if (y < op.rows.begin || y >= op.rows.end) continue;
        for (int x = op.columns.begin; x < op.columns.end; ++x)
          for (std::size_t c = 0; c < channels; ++c) gradient[x * channels + c] = incoming[c] * share;
      }
    });
  });
}

}  // namespace mpsnn::cpu
