// SPDX-License-Identifier: Apache-2.0
#include "backends/reference/kernels.hpp"
#include "backends/reference/neuron.hpp"

namespace mpsnn::reference {
namespace {

/// Calls f(product) for every multiplication of one image that lands inside the result: the formula at
/// ConvolutionTransposeOp. Walked by the forward operation and by both gradients.
template <class F>
void for_each_transposed_product(const ConvolutionGeometry& undone, F f) {
  const Window& w = undone.window;
  const int inputs_per_group = undone.output_channels / undone.groups;
  const int outputs_per_group = undone.input_channels / undone.groups;
  const Shape weights{undone.input_channels, w.y.kernel, w.x.kernel, inputs_per_group};
  for (int i = 0; i < w.y.output; ++i)
    for (int j = 0; j < w.x.output; ++j)
      for (int q = 0; q < undone.input_channels; ++q)
        for (int ky = 0; ky < w.y.kernel; ++ky)
          for (int kx = 0; kx < w.x.kernel; ++kx) {
            const int y = w.y.tap(i, w.y.kernel - 1 - ky);
            const int x = w.x.tap(j, w.x.kernel - 1 - kx);
            if (y < 0 || y >= w.y.input || x < 0 || x >= w.x.input) continue;
            const int first_channel = q / outputs_per_group * inputs_per_group;
            for (int c = 0; c < inputs_per_group; ++c)
              f(Product{y, x, q, at(weights, q, ky, kx, c), i, j, first_channel + c});
          }
}

}  // namespace

std::unique_ptr<Kernel> make_kernel(const ConvolutionTransposeOp& op, const OperandShapes& shapes) {
  return kernel([op, source = shapes.inputs[0], result = shapes.outputs[0]](const KernelCall& call) {
    const double* x = call.input<double>(0);
    const double* weights = call.input<double>(1);
    const double* bias = call.input<double>(2);
    double* y = call.output<double>(0);
    for_each_element(result, [&](int n, int i, int j, int q) { y[at(result, n, i, j, q)] = bias ? bias[q] : 0; });
    for (int n = 0; n < source.images; ++n)
      for_each_transposed_product(op.undone, [&](const Product& p) {
        y[at(result, n, p.y, p.x, p.q)] += weights[p.weight] * x[at(source, n, p.source_y, p.source_x, p.source_channel)];
      });
    for_each_element(result, [&](int n, int i, int j, int q) {
      double& value = y[at(result, n, i, j, q)];
      value = neuron_value(op.neuron, value, q);
    });
  });
}

std::unique_ptr<Kernel> make_kernel(const ConvolutionTransposeDataGradientOp& op, const OperandShapes& shapes) {
  return kernel([op, result = shapes.inputs[0], source = shapes.outputs[0]](const KernelCall& call) {
    const double* incoming = call.input<double>(0);
    const double* weights = call.input<double>(1);
    double* gradient = call.output<double>(0);
    std::fill_n(gradient, source.count(), 0.0);
    for (int n = 0; n < source.images; ++n)
      for_each_transposed_product(op.undone, [&](const Product& p) {
        gradient[at(source, n, p.source_y, p.source_x, p.source_channel)] +=
            incoming[at(result, n, p.y, p.x, p.q)] * weights[p.weight];
      });
  });
}

std::unique_ptr<Kernel> make_kernel(const ConvolutionTransposeWeightGradientOp& op, const OperandShapes& shapes) {
  return kernel([op, result = shapes.inputs[0], source = shapes.inputs[1]](const KernelCall& call) {
    const double* incoming = call.input<double>(0);
    const double* x = call.input<double>(1);
    const ConvolutionGeometry& g = op.undone;
    if (double* gradient = call.output<double>(0)) {
      const Shape weights{g.input_channels, g.window.y.kernel, g.window.x.kernel, g.output_channels / g.groups};
      std::fill_n(gradient, weights.count(), 0.0);
      for (int n = 0; n < source.images; ++n)
        for_each_transposed_product(g, [&](const Product& p) {
          gradient[p.weight] +=
              incoming[at(result, n, p.y, p.x, p.q)] * x[at(source, n, p.source_y, p.source_x, p.source_channel)];
        });
    }
    if (double* gradient = call.output<double>(1)) {
      std::fill_n(gradient, g.input_channels, 0.0);
      for_each_element(result, [&](int n, int i, int j, int q) { gradient[q] += incoming[at(result, n, i, j, q)]; });
    }
  });
}

}  // namespace mpsnn::reference
