// SPDX-License-Identifier: Apache-2.0
#include "backends/reference/kernels.hpp"

namespace mpsnn::reference {
namespace {

/// Both directions are the same: what the mask keeps grows by 1 / keep_probability.
std::unique_ptr<Kernel> masked_scaling(const DropoutOp& op, const Shape& shape) {
  return kernel([op, shape](const KernelCall& call) {
    const double* from = call.input<double>(0);
    double* to = call.output<double>(0);
    for_each_element(shape, [&](int n, int y, int x, int c) {
      const std::size_t i = at(shape, n, y, x, c);
      to[i] = dropout_keeps(op, call.encode_count, n, y, x, c) ? from[i] / op.keep_probability : 0;
    });
  });
}

}  // namespace

std::unique_ptr<Kernel> make_kernel(const DropoutOp& op, const OperandShapes& shapes) {
  return masked_scaling(op, shapes.outputs[0]);
}

std::unique_ptr<Kernel> make_kernel(const DropoutGradientOp& op, const OperandShapes& shapes) {
  return masked_scaling(op.forward, shapes.outputs[0]);
}

}  // namespace mpsnn::reference
