// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "backends/reference/kernels.hpp"

namespace mpsnn::reference {

std::unique_ptr<Kernel> make_kernel(const BatchNormalizationStatisticsOp&, const OperandShapes& shapes) {
  return kernel([shape = shapes.inputs[0]](const KernelCall& call) {
    const double* x = call.input<double>(0);
    double* mean = call.output<double>(0);
    double* variance = call.output<double>(1);
    const std::size_t channels = shape.channels, pixels = shape.pixels();
    const double pixel_count = static_cast<double>(pixels);
    for (std::size_t c = 0; c < channels; ++c) {
      double sum = 0, squares = 0;
      for (std::size_t p = 0; p < pixels; ++p) sum += x[p * channels + c];
      const double average = pixels == 0 ? 0 : sum / pixel_count;
      for (std::size_t p = 0; p < pixels; ++p) squares += (x[p * channels + c] - average) * (x[p * channels + c] - average);
      if (mean) mean[c] = average;
      if (variance) variance[c] = pixels == 0 ? 0 : squares / pixel_count;
    }
  });
}

std::unique_ptr<Kernel> make_kernel(const BatchNormalizationOp& op, const OperandShapes& shapes) {
  return kernel([op, shape = shapes.outputs[0]](const KernelCall& call) {
    const double* x = call.input<double>(0);
    const double* mean = call.input<double>(1);
    const double* variance = call.input<double>(2);
    const double* gamma = call.input<double>(3);
    const double* beta = call.input<double>(4);
    double* y = call.output<double>(0);
    for (std::size_t i = 0; i < shape.count(); ++i) {
      const std::size_t c = i % shape.channels;
      y[i] = (x[i] - mean[c]) * (gamma ? gamma[c] : 1) / std::sqrt(variance[c] + op.epsilon) + (beta ? beta[c] : 0);
    }
  });
}

std::unique_ptr<Kernel> make_kernel(const BatchNormalizationGradientOp& op, const OperandShapes& shapes) {
  return kernel([op, shape = shapes.inputs[0]](const KernelCall& call) {
    const double* incoming = call.input<double>(0);
    const double* x = call.input<double>(1);
    const double* mean = call.input<double>(2);
    const double* variance = call.input<double>(3);
    const double* gamma = call.input<double>(4);
    double* gradient = call.output<double>(0);
    const std::size_t channels = shape.channels, pixels = shape.pixels();
    const double pixel_count = static_cast<double>(pixels);
    for (std::size_t c = 0; c < channels; ++c) {
      const double deviation = std::sqrt(variance[c] + op.epsilon);
      double gamma_gradient = 0, beta_gradient = 0;
      for (std::size_t i = c; i < pixels * channels; i += channels) {
        gamma_gradient += incoming[i] * (x[i] - mean[c]) / deviation;
        beta_gradient += incoming[i];
      }
      if (double* out = call.output<double>(1)) out[c] = gamma_gradient;
      if (double* out = call.output<double>(2)) out[c] = beta_gradient;
      if (!gradient) continue;
      for (std::size_t i = c; i < pixels * channels; i += channels) {
        const double normalized = (x[i] - mean[c]) / deviation;
        const double statistics = op.uses_batch_statistics ? (beta_gradient + normalized * gamma_gradient) / pixel_count : 0;
        gradient[i] = (gamma ? gamma[c] : 1) / deviation * (incoming[i] - statistics);
      }
    }
  });
}

}  // namespace mpsnn::reference
