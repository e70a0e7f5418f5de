// SPDX-License-Identifier: Apache-2.0
#include "backends/reference/kernels.hpp"

namespace mpsnn::reference {

std::unique_ptr<Kernel> make_kernel(const FillOp& op, const OperandShapes& shapes) {
  return kernel([op, shape = shapes.outputs[0]](const KernelCall& call) {
    std::fill_n(call.output<double>(0), shape.count(), static_cast<double>(op.value));
  });
}

std::unique_ptr<Kernel> make_kernel(const ConcatenationOp&, const OperandShapes& shapes) {
  return kernel([sources = shapes.inputs, result = shapes.outputs[0]](const KernelCall& call) {
    double* y = call.output<double>(0);
    int first_channel = 0;
    for (std::size_t s = 0; s < sources.size(); ++s) {
      const double* x = call.input<double>(s);
      for_each_element(sources[s], [&](int n, int i, int j, int c) {
        y[at(result, n, i, j, first_channel + c)] = x[at(sources[s], n, i, j, c)];
      });
      first_channel += sources[s].channels;
    }
  });
}

std::unique_ptr<Kernel> make_kernel(const ConcatenationGradientOp& op, const OperandShapes& shapes) {
  return kernel([op, result = shapes.inputs[0], source = shapes.outputs[0]](const KernelCall& call) {
    const double* incoming = call.input<double>(0);
    double* gradient = call.output<double>(0);
    for_each_element(source, [&](int n, int i, int j, int c) {
      gradient[at(source, n, i, j, c)] = incoming[at(result, n, i, j, op.first_channel + c)];
    });
  });
}

}  // namespace mpsnn::reference
