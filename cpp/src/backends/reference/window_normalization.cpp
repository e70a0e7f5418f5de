// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "backends/reference/kernels.hpp"

/// Normalizations by the surroundings of an element (docs/semantics.md, 11). The gradients add up every element's derivative by
/// every element that its window reads.
namespace mpsnn::reference {
namespace {

/// Calls f(y, x) for every pixel inside the image that the window of output pixel (i, j) reads.
template <class F>
void for_each_pixel(const Window& w, int i, int j, F f) {
  const Range taps_y = w.y.taps_inside(i), taps_x = w.x.taps_inside(j);
  for (int ky = taps_y.begin; ky < taps_y.end; ++ky)
    for (int kx = taps_x.begin; kx < taps_x.end; ++kx) f(w.y.tap(i, ky), w.x.tap(j, kx));
}

double taps(const Window& w) { return static_cast<double>(w.y.kernel) * w.x.kernel; }

/// T of 11.1.
double spatial_denominator(const SpatialNormalizationOp& op, const Shape& shape, const double* x, int n, int i, int j, int c) {
  double squares = 0;
  for_each_pixel(op.window, i, j, [&](int y, int z) { squares += x[at(shape, n, y, z, c)] * x[at(shape, n, y, z, c)]; });
  return op.delta + op.alpha / taps(op.window) * squares;
}

/// M and V of 11.2.
struct Contrast {
  double mean, denominator;
};
Contrast local_contrast(const LocalContrastNormalizationOp& op, const Shape& shape, const double* x, int n, int i, int j, int c) {
  double sum = 0, squares = 0;
  for_each_pixel(op.window, i, j, [&](int y, int z) {
    sum += x[at(shape, n, y, z, c)];
    squares += x[at(shape, n, y, z, c)] * x[at(shape, n, y, z, c)];
  });
  const double mean = sum / taps(op.window);
  return {mean, op.delta + op.alpha * (squares / taps(op.window) - mean * mean)};
}

/// L of 11.3.
double channel_denominator(const CrossChannelNormalizationOp& op, const Shape& shape, const double* x, int n, int i, int j, int c) {
  double squares = 0;
  const Range taps = op.channels.taps_inside(c);
  for (int t = taps.begin; t < taps.end; ++t) {
    const int q = op.channels.tap(c, t);
    squares += x[at(shape, n, i, j, q)] * x[at(shape, n, i, j, q)];
  }
  return op.delta + static_cast<double>(op.alpha) / op.channels.kernel * squares;
}

}  // namespace

std::unique_ptr<Kernel> make_kernel(const SpatialNormalizationOp& op, const OperandShapes& shapes) {
  return kernel([op, shape = shapes.outputs[0]](const KernelCall& call) {
    const double* x = call.input<double>(0);
    double* result = call.output<double>(0);
    for_each_element(shape, [&](int n, int i, int j, int c) {
      const std::size_t e = at(shape, n, i, j, c);
      result[e] = x[e] * std::pow(spatial_denominator(op, shape, x, n, i, j, c), -op.beta);
    });
  });
}

std::unique_ptr<Kernel> make_kernel(const SpatialNormalizationGradientOp& gradient_op, const OperandShapes& shapes) {
  return kernel([op = gradient_op.forward, shape = shapes.outputs[0]](const KernelCall& call) {
    const double* incoming = call.input<double>(0);
    const double* x = call.input<double>(1);
    double* gradient = call.output<double>(0);
    std::fill_n(gradient, shape.count(), 0.0);
    for_each_element(shape, [&](int n, int i, int j, int c) {
      const std::size_t e = at(shape, n, i, j, c);
      const double denominator = spatial_denominator(op, shape, x, n, i, j, c);
      gradient[e] += incoming[e] * std::pow(denominator, -op.beta);
      const double share = -2.0 * op.alpha * op.beta / taps(op.window) * incoming[e] * x[e] * std::pow(denominator, -op.beta - 1.0);
      for_each_pixel(op.window, i, j, [&](int y, int z) { gradient[at(shape, n, y, z, c)] += share * x[at(shape, n, y, z, c)]; });
    });
  });
}

std::unique_ptr<Kernel> make_kernel(const LocalContrastNormalizationOp& op, const OperandShapes& shapes) {
  return kernel([op, shape = shapes.outputs[0]](const KernelCall& call) {
    const double* x = call.input<double>(0);
    double* result = call.output<double>(0);
    for_each_element(shape, [&](int n, int i, int j, int c) {
      const std::size_t e = at(shape, n, i, j, c);
      const Contrast contrast = local_contrast(op, shape, x, n, i, j, c);
      result[e] = op.pm + op.ps * (x[e] - op.p0 * contrast.mean) * std::pow(contrast.denominator, -op.beta);
    });
  });
}

std::unique_ptr<Kernel> make_kernel(const LocalContrastNormalizationGradientOp& gradient_op, const OperandShapes& shapes) {
  return kernel([op = gradient_op.forward, shape = shapes.outputs[0]](const KernelCall& call) {
    const double* incoming = call.input<double>(0);
    const double* x = call.input<double>(1);
    double* gradient = call.output<double>(0);
    std::fill_n(gradient, shape.count(), 0.0);
    for_each_element(shape, [&](int n, int i, int j, int c) {
      const std::size_t e = at(shape, n, i, j, c);
      const Contrast contrast = local_contrast(op, shape, x, n, i, j, c);
      const double mean = contrast.mean, denominator = contrast.denominator;
      const double count = taps(op.window), power = std::pow(denominator, -op.beta);
      const double by_value = op.ps * incoming[e] * power;
      const double by_mean = -op.p0 * by_value;
      const double by_variance =
          -op.ps * op.alpha * op.beta * incoming[e] * (x[e] - op.p0 * mean) * std::pow(denominator, -op.beta - 1.0);
      gradient[e] += by_value;
      for_each_pixel(op.window, i, j, [&](int y, int z) {
        gradient[at(shape, n, y, z, c)] += (by_mean + by_variance * 2 * (x[at(shape, n, y, z, c)] - mean)) / count;
      });
    });
  });
}

std::unique_ptr<Kernel> make_kernel(const CrossChannelNormalizationOp& op, const OperandShapes& shapes) {
  return kernel([op, shape = shapes.outputs[0]](const KernelCall& call) {
    const double* x = call.input<double>(0);
    double* result = call.output<double>(0);
    for_each_element(shape, [&](int n, int i, int j, int c) {
      const std::size_t e = at(shape, n, i, j, c);
      result[e] = x[e] * std::pow(channel_denominator(op, shape, x, n, i, j, c), -op.beta);
    });
  });
}

std::unique_ptr<Kernel> make_kernel(const CrossChannelNormalizationGradientOp& gradient_op, const OperandShapes& shapes) {
  return kernel([op = gradient_op.forward, shape = shapes.outputs[0]](const KernelCall& call) {
    const double* incoming = call.input<double>(0);
    const double* x = call.input<double>(1);
    double* gradient = call.output<double>(0);
    std::fill_n(gradient, shape.count(), 0.0);
    for_each_element(shape, [&](int n, int i, int j, int c) {
      const std::size_t e = at(shape, n, i, j, c);
      const double denominator = channel_denominator(op, shape, x, n, i, j, c);
      gradient[e] += incoming[e] * std::pow(denominator, -op.beta);
      const double share =
          -2.0 * op.alpha * op.beta / op.channels.kernel * incoming[e] * x[e] * std::pow(denominator, -op.beta - 1.0);
      const Range taps = op.channels.taps_inside(c);
      for (int t = taps.begin; t < taps.end; ++t) {
        const std::size_t q = at(shape, n, i, j, op.channels.tap(c, t));
        gradient[q] += share * x[q];
      }
    });
  });
}

}  // namespace mpsnn::reference
