// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <numbers>

#include "backends/reference/kernels.hpp"

namespace mpsnn::reference {
namespace {

/// Calls f(source pixel, weight) for what pixel `o` of an enlarged axis reads.
template <class F>
void for_each_upsampling_tap(const UpsamplingOp& op, int scale, int size, int o, F f) {
  if (!op.is_bilinear) return f(o / scale, 1.0);
  const LinearSample sample = linear_sample(upsampling_position(o, size, scale, op.align_corners), size);
  f(sample.low, 1 - sample.fraction);
  f(sample.high, sample.fraction);
}

/// Calls f(source y, source x, weight) for what pixel (i, j) of the enlarged image reads.
template <class F>
void for_each_upsampling_tap(const UpsamplingOp& op, const Shape& source, int i, int j, F f) {
  for_each_upsampling_tap(op, op.scale_y, source.height, i, [&](int y, double weight_y) {
    for_each_upsampling_tap(op, op.scale_x, source.width, j, [&](int x, double weight_x) { f(y, x, weight_y * weight_x); });
  });
}

double sinc(double x) { return x == 0 ? 1 : std::sin(std::numbers::pi * x) / (std::numbers::pi * x); }

/// Calls f(source pixel, weight) for what pixel `o` of a scaled axis reads; the weights' sum is 1.
template <class F>
void for_each_scale_tap(const ScaleOp& op, double scale, double translate, int size, int o, F f) {
  const double position = scale_position(o, scale, translate);
  if (!op.is_lanczos) {
    const LinearSample sample = linear_sample(position, size);
    f(sample.low, 1 - sample.fraction);
    f(sample.high, sample.fraction);
    return;
  }
  const double stretch = std::max(1.0, 1 / std::abs(scale));
  const LanczosTaps lanczos = lanczos_taps(position, stretch, size);
  const auto weight = [&](int tap) {
    const double distance = (tap - lanczos.position) / stretch;
    return sinc(distance) * sinc(distance / 3);
  };
  double sum = 0;
  for (int tap = lanczos.taps.begin; tap < lanczos.taps.end; ++tap) sum += weight(tap);
  for (int tap = lanczos.taps.begin; tap < lanczos.taps.end; ++tap) f(clamp_index(tap, size), weight(tap) / sum);
}

}  // namespace

std::unique_ptr<Kernel> make_kernel(const UpsamplingOp& op, const OperandShapes& shapes) {
  return kernel([op, source = shapes.inputs[0], result = shapes.outputs[0]](const KernelCall& call) {
    const double* x = call.input<double>(0);
    double* y = call.output<double>(0);
    for_each_element(result, [&](int n, int i, int j, int c) {
      double sum = 0;
      for_each_upsampling_tap(op, source, i, j, [&](int yy, int xx, double weight) { sum += weight * x[at(source, n, yy, xx, c)]; });
      y[at(result, n, i, j, c)] = sum;
    });
  });
}

std::unique_ptr<Kernel> make_kernel(const UpsamplingGradientOp& op, const OperandShapes& shapes) {
  return kernel([op = op.forward, result = shapes.inputs[0], source = shapes.outputs[0]](const KernelCall& call) {
    const double* incoming = call.input<double>(0);
    double* gradient = call.output<double>(0);
    std::fill_n(gradient, source.count(), 0.0);
    for_each_element(result, [&](int n, int i, int j, int c) {
      const double e = incoming[at(result, n, i, j, c)];
      for_each_upsampling_tap(op, source, i, j, [&](int y, int x, double weight) { gradient[at(source, n, y, x, c)] += weight * e; });
    });
  });
}

std::unique_ptr<Kernel> make_kernel(const ScaleOp& op, const OperandShapes& shapes) {
  return kernel([op, source = shapes.inputs[0], result = shapes.outputs[0]](const KernelCall& call) {
    const double* x = call.input<double>(0);
    double* y = call.output<double>(0);
    for_each_element(result, [&](int n, int i, int j, int c) {
      double sum = 0;
      for_each_scale_tap(op, op.scale_y, op.translate_y, source.height, i, [&](int yy, double weight_y) {
        for_each_scale_tap(op, op.scale_x, op.translate_x, source.width, j,
                           [&](int xx, double weight_x) { sum += weight_y * weight_x * x[at(source, n, yy, xx, c)]; });
      });
      y[at(result, n, i, j, c)] = sum;
    });
  });
}

}  // namespace mpsnn::reference
