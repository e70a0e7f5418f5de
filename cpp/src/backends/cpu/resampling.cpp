// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <map>
#include <numbers>
#include <span>
#include <vector>

#include "backends/cpu/kernels.hpp"
#include "backends/cpu/loops.hpp"

/// Every resampling is a sum over weighted pixels, each way on its own: the tables of both axes are made once, and a gradient runs
/// with the transposed tables.
namespace mpsnn::cpu {
namespace {

struct WeightedPixel {
  int pixel;
  float weight;
};

/// What each pixel of one axis reads.
class WeightTable {
 public:
  explicit WeightTable(std::vector<std::vector<WeightedPixel>> rows) : rows_(std::move(rows)) {}
  std::span<const WeightedPixel> operator[](int o) const { return rows_[o]; }

  /// Who reads each of `size` pixels.
  WeightTable transposed(int size) const {
    std::vector<std::vector<WeightedPixel>> readers(size);
    for (int o = 0; o < static_cast<int>(rows_.size()); ++o)
      for (const WeightedPixel& p : rows_[o]) readers[p.pixel].push_back({o, p.weight});
    return WeightTable(std::move(readers));
  }

 private:
  std::vector<std::vector<WeightedPixel>> rows_;
};

/// One entry for each pixel whose weight is not 0.
std::vector<WeightedPixel> without_zeros(const std::map<int, double>& weights) {
  std::vector<WeightedPixel> row;
  for (const auto& [pixel, weight] : weights)
    if (weight != 0) row.push_back({pixel, static_cast<float>(weight)});
  return row;
}

std::vector<WeightedPixel> linear_row(double position, int size) {
  const LinearSample sample = linear_sample(position, size);
  std::map<int, double> weights{{sample.low, 1 - sample.fraction}};
  weights[sample.high] += sample.fraction;
  return without_zeros(weights);
}

/// Windowed sinc, 3 lobes.
double lanczos(double x) {
  if (x == 0) return 1;
  const double angle = std::numbers::pi * x;
  return 3 * std::sin(angle) * std::sin(angle / 3) / (angle * angle);
}

std::vector<WeightedPixel> lanczos_row(double position, double scale, int size) {
  const double stretch = std::max(1.0, 1 / std::abs(scale));
  const LanczosTaps taps = lanczos_taps(position, stretch, size);
  std::map<int, double> weights;
  double sum = 0;
  for (int tap = taps.taps.begin; tap < taps.taps.end; ++tap) {
    const double weight = lanczos((tap - taps.position) / stretch);
    weights[clamp_index(tap, size)] += weight;
    sum += weight;
  }
  for (auto& [pixel, weight] : weights) weight /= sum;
  return without_zeros(weights);
}

WeightTable upsampling_table(const UpsamplingOp& op, int factor, int size) {
  std::vector<std::vector<WeightedPixel>> rows;
  for (int o = 0; o < size * factor; ++o) {
    if (op.is_bilinear) rows.push_back(linear_row(upsampling_position(o, size, factor, op.align_corners), size));
    else rows.push_back({{o / factor, 1.0f}});
  }
  return WeightTable(std::move(rows));
}

WeightTable scale_table(const ScaleOp& op, double scale, double translate, int from, int to) {
  std::vector<std::vector<WeightedPixel>> rows;
  for (int o = 0; o < to; ++o) {
    const double position = scale_position(o, scale, translate);
    rows.push_back(op.is_lanczos ? lanczos_row(position, scale, from) : linear_row(position, from));
  }
  return WeightTable(std::move(rows));
}

/// sums := or += weight * values
void add_weighted(const float* __restrict values, float weight, bool is_first, float* __restrict sums, std::size_t count) {
  if (is_first) for (std::size_t i = 0; i < count; ++i) sums[i] = weight * values[i];
  else for (std::size_t i = 0; i < count; ++i) sums[i] += weight * values[i];
}

/// Rows of the result: down the columns into a row of scratch, then along it. A row whose columns read one pixel of weight 1 is
/// taken where it lies.
std::unique_ptr<Kernel> resampling_kernel(WeightTable y, WeightTable x, const Shape& from, const Shape& to) {
  const std::size_t from_line = static_cast<std::size_t>(from.width) * from.channels, to_line = static_cast<std::size_t>(to.width) * to.channels;
  const auto run = [y = std::move(y), x = std::move(x), from, to, from_line, to_line](const KernelCall& call) {
    const std::size_t height = to.height, channels = to.channels;
    parallel_ranges(to.images * height, 2 * (from_line + to_line), [&](std::size_t begin, std::size_t end, int thread) {
      float* scratch = static_cast<float*>(call.scratch) + thread * from_line;
      for (std::size_t row = begin; row < end; ++row) {
        const float* image = call.input<float>(0) + row / height * from.image_count();
        const auto rows = y[static_cast<int>(row % height)];
        const float* columns = scratch;
        if (rows.size() == 1 && rows[0].weight == 1) columns = image + rows[0].pixel * from_line;
        else if (rows.empty()) std::fill_n(scratch, from_line, 0.0f);
        else
          for (const WeightedPixel& p : rows) add_weighted(image + p.pixel * from_line, p.weight, &p == rows.data(), scratch, from_line);
        float* result = call.output<float>(0) + row * to_line;
        for (int j = 0; j < to.width; ++j, result += channels) {
          const auto pixels = x[j];
          if (pixels.empty()) std::fill_n(result, channels, 0.0f);
          for (const WeightedPixel& p : pixels)
            add_weighted(columns + p.pixel * channels, p.weight, &p == pixels.data(), result, channels);
        }
      }
    });
  };
  return function_kernel(run, sizeof(float) * from_line * max_thread_count());
}

}  // namespace

std::unique_ptr<Kernel> make_kernel(const UpsamplingOp& op, const OperandShapes& shapes) {
  const Shape &source = shapes.inputs[0], &result = shapes.outputs[0];
  return resampling_kernel(upsampling_table(op, op.scale_y, source.height), upsampling_table(op, op.scale_x, source.width), source, result);
}

std::unique_ptr<Kernel> make_kernel(const UpsamplingGradientOp& op, const OperandShapes& shapes) {
  const Shape &result = shapes.inputs[0], &source = shapes.outputs[0];
  return resampling_kernel(upsampling_table(op.forward, op.forward.scale_y, source.height).transposed(source.height),
                           upsampling_table(op.forward, op.forward.scale_x, source.width).transposed(source.width), result, source);
}

std::unique_ptr<Kernel> make_kernel(const ScaleOp& op, const OperandShapes& shapes) {
  const Shape &source = shapes.inputs[0], &result = shapes.outputs[0];
  return resampling_kernel(scale_table(op, op.scale_y, op.translate_y, source.height, result.height),
                           scale_table(op, op.scale_x, op.translate_x, source.width, result.width), source, result);
}

}  // namespace mpsnn::cpu
