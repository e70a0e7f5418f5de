// SPDX-License-Identifier: Apache-2.0
#include "backends/reference/kernels.hpp"

namespace mpsnn::reference {

std::unique_ptr<Kernel> make_kernel(const GramMatrixOp& op, const OperandShapes& shapes) {
  return kernel([op, source = shapes.inputs[0], result = shapes.outputs[0]](const KernelCall& call) {
    const double* x = call.input<double>(0);
    double* y = call.output<double>(0);
    std::fill_n(y, result.count(), 0.0);
    for_each_element(source, [&](int n, int i, int j, int f) {
      for (int c = 0; c < source.channels; ++c)
        y[at(result, n, 0, f, c)] += op.alpha * x[at(source, n, i, j, f)] * x[at(source, n, i, j, c)];
    });
  });
}

std::unique_ptr<Kernel> make_kernel(const GramMatrixGradientOp& op, const OperandShapes& shapes) {
  return kernel([op, result = shapes.inputs[0], source = shapes.outputs[0]](const KernelCall& call) {
    const double* incoming = call.input<double>(0);
    const double* x = call.input<double>(1);
    double* gradient = call.output<double>(0);
    for_each_element(source, [&](int n, int i, int j, int k) {
      double sum = 0;
      for (int c = 0; c < source.channels; ++c)
        sum += (incoming[at(result, n, 0, k, c)] + incoming[at(result, n, 0, c, k)]) * x[at(source, n, i, j, c)];
      gradient[at(source, n, i, j, k)] = op.alpha * sum;
    });
  });
}

}  // namespace mpsnn::reference
