// SPDX-License-Identifier: Apache-2.0
#include "backends/reference/softmax.hpp"

#include "backends/reference/kernels.hpp"

namespace mpsnn::reference {

std::unique_ptr<Kernel> make_kernel(const SoftMaxOp& op, const OperandShapes& shapes) {
  return kernel([op, shape = shapes.outputs[0]](const KernelCall& call) {
    for (std::size_t pixel = 0; pixel < shape.pixels(); ++pixel) {
      const double* x = call.input<double>(0) + pixel * shape.channels;
      double* y = call.output<double>(0) + pixel * shape.channels;
      const LogSoftMax log_softmax(x, shape.channels);
      for (int c = 0; c < shape.channels; ++c) y[c] = op.is_log ? log_softmax(x[c]) : std::exp(log_softmax(x[c]));
    }
  });
}

std::unique_ptr<Kernel> make_kernel(const SoftMaxGradientOp& op, const OperandShapes& shapes) {
  return kernel([op, shape = shapes.outputs[0]](const KernelCall& call) {
    for (std::size_t pixel = 0; pixel < shape.pixels(); ++pixel) {
      const double* incoming = call.input<double>(0) + pixel * shape.channels;
      const double* y = call.input<double>(1) + pixel * shape.channels;
      double* gradient = call.output<double>(0) + pixel * shape.channels;
      double sum = 0;
      for (int c = 0; c < shape.channels; ++c) sum += op.is_log ? incoming[c] : incoming[c] * y[c];
      for (int c = 0; c < shape.channels; ++c)
        gradient[c] = op.is_log ? incoming[c] - std::exp(y[c]) * sum : y[c] * (incoming[c] - sum);
    }
  });
}

}  // namespace mpsnn::reference
