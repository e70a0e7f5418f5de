// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "backends/cpu/kernels.hpp"
#include "backends/cpu/loops.hpp"

namespace mpsnn::cpu {
namespace {

/// Channels whose sums one inner loop keeps: three arrays of this length stay in the first-level cache.
constexpr int kChannelBlock = 64;

/// How the pixels of a batch are shared out when they are summed: into parts, whose sums are added in order at the end, and
/// parts into runs short enough for float sums and for the second look at a run to find it in the cache.
struct PixelParts {
  std::size_t pixels, run;
  int channels, parts;
  std::size_t pixels_per_part;

  explicit PixelParts(const Shape& shape) : pixels(shape.pixels()), channels(shape.channels) {
    // A run of at most 8 Ki floats is 32 KiB; at least 32 pixels, so that folding a run into doubles costs little.
    run = std::clamp<std::size_t>(8192 / std::max(1, channels), 32, 512);
    // 64 parts at most: their sums are 64 * 2 * channels doubles. A function of the shape alone, for the same bits always.
    const std::size_t wanted = std::clamp<std::size_t>(shape.count() / 32768, 1, 64);
    pixels_per_part = (((pixels + wanted - 1) / wanted) + run - 1) / run * run;
    parts = pixels == 0 ? 0 : static_cast<int>((pixels + pixels_per_part - 1) / pixels_per_part);
  }

  std::size_t sums_bytes() const { return static_cast<std::size_t>(parts) * 2 * channels * sizeof(double); }

  /// Calls body(first pixel, last pixel + 1, sums) for every part; `sums` are 2 * channels doubles of its own.
  template <class Body>
  void for_each_part(void* scratch, Body&& body) const {
    parallel_for(parts, [&](std::size_t part, int) {
      const std::size_t begin = part * pixels_per_part;
      body(begin, std::min(pixels, begin + pixels_per_part), static_cast<double*>(scratch) + part * 2 * channels);
    });
  }
  /// Calls body(first pixel, last pixel + 1) for every run of [begin, end).
  template <class Body>
  void for_each_run(std::size_t begin, std::size_t end, Body&& body) const {
    for (std::size_t first = begin; first < end; first += run) body(first, std::min(end, first + run));
  }
};

/// sums[c] := the sum of x[c] over `pixels` pixels that lie `stride` floats apart. Four pixels at a time: a quarter of the
/// loads and stores of the sums.
void sum_pixels(const float* __restrict x, std::size_t stride, std::size_t pixels, float* __restrict sums, int channels) {
  std::fill_n(sums, channels, 0.0f);
  std::size_t p = 0;
  for (; p + 4 <= pixels; p += 4, x += 4 * stride)
    for (int c = 0; c < channels; ++c) sums[c] += (x[c] + x[stride + c]) + (x[2 * stride + c] + x[3 * stride + c]);
  for (; p < pixels; ++p, x += stride)
    for (int c = 0; c < channels; ++c) sums[c] += x[c];
}

/// deviations[c] := the sum of x[c] - center[c]; squares[c] := the sum of its square
void sum_deviations(const float* __restrict x, std::size_t stride, std::size_t pixels, const float* __restrict center,
                    float* __restrict deviations, float* __restrict squares, int channels) {
  std::fill_n(deviations, channels, 0.0f);
  std::fill_n(squares, channels, 0.0f);
  std::size_t p = 0;
  for (; p + 2 <= pixels; p += 2, x += 2 * stride)
    for (int c = 0; c < channels; ++c) {
      const float d = x[c] - center[c], e = x[stride + c] - center[c];
      deviations[c] += d + e;
      squares[c] += d * d + e * e;
    }
  for (; p < pixels; ++p, x += stride)
    for (int c = 0; c < channels; ++c) {
      const float d = x[c] - center[c];
      deviations[c] += d;
      squares[c] += d * d;
    }
}

/// sums[c] := the sum of e[c]; products[c] := the sum of e[c] * (x[c] - mean[c])
void sum_products(const float* __restrict e, const float* __restrict x, std::size_t stride, std::size_t pixels,
                  const float* __restrict mean, float* __restrict sums, float* __restrict products, int channels) {
  std::fill_n(sums, channels, 0.0f);
  std::fill_n(products, channels, 0.0f);
  std::size_t p = 0;
  for (; p + 2 <= pixels; p += 2, e += 2 * stride, x += 2 * stride)
    for (int c = 0; c < channels; ++c) {
      sums[c] += e[c] + e[stride + c];
      products[c] += e[c] * (x[c] - mean[c]) + e[stride + c] * (x[stride + c] - mean[c]);
    }
  for (; p < pixels; ++p, e += stride, x += stride)
    for (int c = 0; c < channels; ++c) {
      sums[c] += e[c];
      products[c] += e[c] * (x[c] - mean[c]);
    }
}

/// Adds a set of values to another, both given by count, mean and sum of squared deviations from the mean (Chan et al.): no
/// difference of large numbers, whatever the mean.
void merge(double& count, double* mean, double* squares, double other_count, const double* other_mean, const double* other_squares,
           int channels) {
  const double total = count + other_count, share = other_count / total, cross = count * share;
  for (int c = 0; c < channels; ++c) {
    const double distance = other_mean[c] - mean[c];
    mean[c] += distance * share;
    squares[c] += other_squares[c] + distance * distance * cross;
  }
  count = total;
}

/// mean, squares := those of the pixels [begin, end), a block of channels at a time.
void part_statistics(const PixelParts& parts, const float* x, std::size_t begin, std::size_t end, double* mean, double* squares) {
  const std::size_t stride = parts.channels;
  std::fill_n(mean, 2 * stride, 0.0);
  for (int first = 0; first < parts.channels; first += kChannelBlock) {
    const int channels = std::min(kChannelBlock, parts.channels - first);
    double count = 0;
    parts.for_each_run(begin, end, [&](std::size_t from, std::size_t to) {
      const std::size_t pixels = to - from;
      float center[kChannelBlock], deviations[kChannelBlock], squared[kChannelBlock];
      double run_mean[kChannelBlock], run_squares[kChannelBlock];
      const float* data = x + from * stride + first;
      sum_pixels(data, stride, pixels, center, channels);
      for (int c = 0; c < channels; ++c) center[c] /= static_cast<float>(pixels);
      sum_deviations(data, stride, pixels, center, deviations, squared, channels);
      for (int c = 0; c < channels; ++c) {  // the center is rounded: the deviations put it right
        const double rest = static_cast<double>(deviations[c]) / static_cast<double>(pixels);
        run_mean[c] = center[c] + rest;
        run_squares[c] = squared[c] - rest * deviations[c];
      }
      merge(count, mean + first, squares + first, static_cast<double>(pixels), run_mean, run_squares, channels);
    });
  }
}

/// Parameters of one channel stretched over pixels: y := (x - mean) * scale + beta.
void normalize(const float* __restrict x, float* __restrict y, std::size_t pixels, int channels, const float* __restrict mean,
               const float* __restrict scale, const float* __restrict beta) {
  for (std::size_t p = 0; p < pixels; ++p, x += channels, y += channels)
    for (int c = 0; c < channels; ++c) y[c] = (x[c] - mean[c]) * scale[c] + beta[c];
}

/// gradient := scale * (e - constant - (x - mean) * slope)
void source_gradient(const float* __restrict e, const float* __restrict x, float* __restrict gradient, std::size_t pixels, int channels,
                     const float* __restrict mean, const float* __restrict scale, const float* __restrict constant,
                     const float* __restrict slope) {
  for (std::size_t p = 0; p < pixels; ++p, e += channels, x += channels, gradient += channels)
    for (int c = 0; c < channels; ++c) gradient[c] = scale[c] * ((e[c] - constant[c]) - (x[c] - mean[c]) * slope[c]);
}

class Gradient final : public Kernel {
 public:
  Gradient(const BatchNormalizationGradientOp& op, const Shape& shape) : op_(op), parts_(shape) {}

  std::size_t scratch_bytes() const override { return parts_.sums_bytes() + sizeof(float) * 3 * parts_.channels; }

  void run(const KernelCall& call) override {
    const int channels = parts_.channels;
    float* scale = reinterpret_cast<float*>(static_cast<char*>(call.scratch) + parts_.sums_bytes());
    float *constant = scale + channels, *slope = constant + channels;
    const bool needs_sums = call.output<float>(1) || call.output<float>(2) || (op_.uses_batch_statistics && call.output<float>(0));
    if (needs_sums) sum(call);
    for (int c = 0; c < channels; ++c) finish_channel(call, c, needs_sums, scale[c], constant[c], slope[c]);
    float* gradient = call.output<float>(0);
    if (!gradient) return;
    parallel_ranges(parts_.pixels, channels, [&](std::size_t begin, std::size_t end, int) {
      const std::size_t first = begin * channels;
      source_gradient(call.input<float>(0) + first, call.input<float>(1) + first, gradient + first, end - begin, channels,
                      call.input<float>(2), scale, constant, slope);
    });
  }

 private:
  /// Sums of E and of E * (x - mean), one pair per part and channel.
  void sum(const KernelCall& call) const {
    const std::size_t stride = parts_.channels;
    const float *e = call.input<float>(0), *x = call.input<float>(1), *mean = call.input<float>(2);
    parts_.for_each_part(call.scratch, [&](std::size_t begin, std::size_t end, double* totals) {
      std::fill_n(totals, 2 * stride, 0.0);
      for (int first = 0; first < parts_.channels; first += kChannelBlock) {
        const int channels = std::min(kChannelBlock, parts_.channels - first);
        parts_.for_each_run(begin, end, [&](std::size_t from, std::size_t to) {
          float sums[kChannelBlock], products[kChannelBlock];
          const std::size_t at = from * stride + first;
          sum_products(e + at, x + at, stride, to - from, mean + first, sums, products, channels);
          for (int c = 0; c < channels; ++c) totals[first + c] += sums[c];
          for (int c = 0; c < channels; ++c) totals[stride + first + c] += products[c];
        });
      }
    });
  }

  void finish_channel(const KernelCall& call, int c, bool has_sums, float& scale, float& constant, float& slope) const {
    const double inverse = 1.0 / std::sqrt(static_cast<double>(call.input<float>(3)[c]) + op_.epsilon);
    double beta_gradient = 0, gamma_gradient = 0;
    const double* totals = static_cast<const double*>(call.scratch);
    for (int part = 0; has_sums && part < parts_.parts; ++part, totals += 2 * parts_.channels) {
      beta_gradient += totals[c];
      gamma_gradient += totals[parts_.channels + c];
    }
    gamma_gradient *= inverse;
    if (float* out = call.output<float>(1)) out[c] = static_cast<float>(gamma_gradient);
    if (float* out = call.output<float>(2)) out[c] = static_cast<float>(beta_gradient);
    const float* gamma = call.input<float>(4);
    scale = static_cast<float>((gamma ? gamma[c] : 1.0) * inverse);
    const double part_of_mean = op_.uses_batch_statistics && parts_.pixels > 0 ? 1.0 / static_cast<double>(parts_.pixels) : 0;
    constant = static_cast<float>(beta_gradient * part_of_mean);
    slope = static_cast<float>(inverse * gamma_gradient * part_of_mean);
  }

  BatchNormalizationGradientOp op_;
  PixelParts parts_;
};

}  // namespace

std::unique_ptr<Kernel> make_kernel(const BatchNormalizationStatisticsOp&, const OperandShapes& shapes) {
  const PixelParts parts(shapes.inputs[0]);
  const auto run = [parts](const KernelCall& call) {
    const std::size_t channels = parts.channels;
    parts.for_each_part(call.scratch, [&](std::size_t begin, std::size_t end, double* sums) {
      part_statistics(parts, call.input<float>(0), begin, end, sums, sums + channels);
    });
    double* mean = static_cast<double*>(call.scratch);
    double count = static_cast<double>(std::min(parts.pixels, parts.pixels_per_part));
    for (int part = 1; part < parts.parts; ++part) {
      const double* other = mean + part * 2 * channels;
      const std::size_t begin = part * parts.pixels_per_part, end = std::min(parts.pixels, begin + parts.pixels_per_part);
      merge(count, mean, mean + channels, static_cast<double>(end - begin), other, other + channels, parts.channels);
    }
    for (std::size_t c = 0; c < channels; ++c) {
      if (float* out = call.output<float>(0)) out[c] = parts.parts == 0 ? 0.0f : static_cast<float>(mean[c]);
      if (float* out = call.output<float>(1))
        out[c] = parts.parts == 0 ? 0.0f : static_cast<float>(std::max(0.0, mean[channels + c]) / static_cast<double>(parts.pixels));
    }
  };
  return function_kernel(run, parts.sums_bytes());
}

std::unique_ptr<Kernel> make_kernel(const BatchNormalizationOp& op, const OperandShapes& shapes) {
  const Shape shape = shapes.inputs[0];
  const auto run = [op, shape](const KernelCall& call) {
    const int channels = shape.channels;
    const float *variance = call.input<float>(2), *gamma = call.input<float>(3), *beta = call.input<float>(4);
    float* scale = static_cast<float*>(call.scratch);
    float* zeros = scale + channels;
    for (int c = 0; c < channels; ++c)
      scale[c] = static_cast<float>((gamma ? gamma[c] : 1.0) / std::sqrt(static_cast<double>(variance[c]) + op.epsilon));
    if (!beta) std::fill_n(zeros, channels, 0.0f);
    parallel_ranges(shape.pixels(), channels, [&](std::size_t begin, std::size_t end, int) {
      const std::size_t first = begin * channels;
      normalize(call.input<float>(0) + first, call.output<float>(0) + first, end - begin, channels, call.input<float>(1), scale,
                beta ? beta : zeros);
    });
  };
  return function_kernel(run, 2 * sizeof(float) * shape.channels);
}

std::unique_ptr<Kernel> make_kernel(const BatchNormalizationGradientOp& op, const OperandShapes& shapes) {
  return std::make_unique<Gradient>(op, shapes.inputs[0]);
}

}  // namespace mpsnn::cpu
