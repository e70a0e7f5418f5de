// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "backends/reference/kernels.hpp"

namespace mpsnn::reference {
namespace {

/// Calls f(element, channel) for every element of a group of an image.
template <class F>
void for_each_in_group(const Shape& shape, int groups, int n, int group, F f) {
  const int channels = shape.channels / groups;
  for (int i = 0; i < shape.height; ++i)
    for (int j = 0; j < shape.width; ++j)
      for (int c = group * channels; c < (group + 1) * channels; ++c) f(at(shape, n, i, j, c), c);
}

/// Numbers of a group.
struct Statistics {
  double count, mean = 0, deviation = 0;  ///< deviation: the root of variance + epsilon
};

Statistics statistics(const Shape& shape, int groups, float epsilon, const double* x, int n, int group) {
  Statistics s{static_cast<double>(shape.image_count()) / groups};
  double sum = 0, squares = 0;
  for_each_in_group(shape, groups, n, group, [&](std::size_t e, int) { sum += x[e]; });
  s.mean = sum / s.count;
  for_each_in_group(shape, groups, n, group, [&](std::size_t e, int) { squares += (x[e] - s.mean) * (x[e] - s.mean); });
  s.deviation = std::sqrt(squares / s.count + epsilon);
  return s;
}

}  // namespace

std::unique_ptr<Kernel> make_kernel(const GroupNormalizationOp& op, const OperandShapes& shapes) {
  return kernel([op, shape = shapes.outputs[0]](const KernelCall& call) {
    const double* x = call.input<double>(0);
    const double* gamma = call.input<double>(1);
    const double* beta = call.input<double>(2);
    double* y = call.output<double>(0);
    for (int n = 0; n < shape.images; ++n)
      for (int group = 0; group < op.groups; ++group) {
        const Statistics s = statistics(shape, op.groups, op.epsilon, x, n, group);
        for_each_in_group(shape, op.groups, n, group, [&](std::size_t e, int c) {
          y[e] = (x[e] - s.mean) / s.deviation * (gamma ? gamma[c] : 1) + (beta ? beta[c] : 0);
        });
      }
  });
}

std::unique_ptr<Kernel> make_kernel(const GroupNormalizationGradientOp& op, const OperandShapes& shapes) {
  return kernel([op, shape = shapes.inputs[0]](const KernelCall& call) {
    const double* incoming = call.input<double>(0);
    const double* x = call.input<double>(1);
    const double* gamma = call.input<double>(2);
    double* gradient = call.output<double>(0);
    double* gamma_gradient = call.output<double>(1);
    double* beta_gradient = call.output<double>(2);
    if (gamma_gradient) std::fill_n(gamma_gradient, shape.channels, 0.0);
    if (beta_gradient) std::fill_n(beta_gradient, shape.channels, 0.0);
    for (int n = 0; n < shape.images; ++n)
      for (int group = 0; group < op.groups; ++group) {
        const Statistics s = statistics(shape, op.groups, op.epsilon, x, n, group);
        double sum = 0, products = 0;
        for_each_in_group(shape, op.groups, n, group, [&](std::size_t e, int c) {
          const double normalized = (x[e] - s.mean) / s.deviation, p = incoming[e] * (gamma ? gamma[c] : 1);
          sum += p;
          products += p * normalized;
          if (gamma_gradient) gamma_gradient[c] += incoming[e] * normalized;
          if (beta_gradient) beta_gradient[c] += incoming[e];
        });
        if (!gradient) continue;
        for_each_in_group(shape, op.groups, n, group, [&](std::size_t e, int c) {
          const double normalized = (x[e] - s.mean) / s.deviation, p = incoming[e] * (gamma ? gamma[c] : 1);
          gradient[e] = (p - (sum + normalized * products) / s.count) / s.deviation;
        });
      }
  });
}

}  // namespace mpsnn::reference
