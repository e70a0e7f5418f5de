// SPDX-License-Identifier: Apache-2.0
#include "backends/reference/kernels.hpp"
#include "backends/reference/neuron.hpp"

namespace mpsnn::reference {
namespace {

/// Calls f(product) for every multiplication of one image, in the order of the sums of 7.3. The forward operation and
/// both gradients walk the same products, which makes them each other's adjoints.
template <class F>
void for_each_product(const ConvolutionGeometry& g, F f) {
  const Window& w = g.window;
  const int inputs_per_group = g.input_channels / g.groups;
  const int outputs_per_group = g.output_channels / g.groups;
  const Shape weights{g.output_channels, w.y.kernel, w.x.kernel, inputs_per_group};
  for (int y = 0; y < w.y.output; ++y)
    for (int x = 0; x < w.x.output; ++x)
      for (int q = 0; q < g.output_channels; ++q)
        for (int ky = 0; ky < w.y.kernel; ++ky)
          for (int kx = 0; kx < w.x.kernel; ++kx) {
            const int source_y = source_pixel(w.y, y, ky, g.edge_mode);
            const int source_x = source_pixel(w.x, x, kx, g.edge_mode);
            if (source_y < 0 || source_x < 0) continue;
            const int first_channel = q / outputs_per_group * inputs_per_group;
            for (int i = 0; i < inputs_per_group; ++i)
              f(Product{y, x, q, at(weights, q, ky, kx, i), source_y, source_x, first_channel + i});
          }
}

/// Where channel q of pixel (y, x) of the convolution lands in the result. Sub-pixel convolutions deal their channels out
/// as scale x scale blocks, block-major (7.3); with scale 1 this is the position itself.
std::size_t result_position(const Shape& result, int scale, int n, int y, int x, int q) {
  const int block = q / result.channels;
  return at(result, n, y * scale + block / scale, x * scale + block % scale, q % result.channels);
}

}  // namespace

std::unique_ptr<Kernel> make_kernel(const ConvolutionOp& op, const OperandShapes& shapes) {
  return kernel([op, source = shapes.inputs[0], result = shapes.outputs[0]](const KernelCall& call) {
    const double* x = call.input<double>(0);
    const double* weights = call.input<double>(1);
    const double* bias = call.input<double>(2);
    double* y = call.output<double>(0);
    const int scale = op.sub_pixel_scale;
    const Shape convolved{source.images, op.geometry.window.y.output, op.geometry.window.x.output, op.geometry.output_channels};
    for_each_element(convolved, [&](int n, int i, int j, int q) {
      y[result_position(result, scale, n, i, j, q)] = bias ? bias[q] : 0;
    });
    for (int n = 0; n < source.images; ++n)
      for_each_product(op.geometry, [&](const Product& p) {
        y[result_position(result, scale, n, p.y, p.x, p.q)] +=
            weights[p.weight] * x[at(source, n, p.source_y, p.source_x, p.source_channel)];
      });
    for_each_element(convolved, [&](int n, int i, int j, int q) {
      double& value = y[result_position(result, scale, n, i, j, q)];
      value = neuron_value(op.neuron, value, q);
    });
  });
}

std::unique_ptr<Kernel> make_kernel(const ConvolutionDataGradientOp& op, const OperandShapes& shapes) {
  return kernel([op, result = shapes.inputs[0], source = shapes.outputs[0]](const KernelCall& call) {
    const double* incoming = call.input<double>(0);
    const double* weights = call.input<double>(1);
    double* gradient = call.output<double>(0);
    std::fill_n(gradient, source.count(), 0.0);
    for (int n = 0; n < source.images; ++n)
      for_each_product(op.geometry, [&](const Product& p) {
        gradient[at(source, n, p.source_y, p.source_x, p.source_channel)] +=
            incoming[at(result, n, p.y, p.x, p.q)] * weights[p.weight];
      });
  });
}

std::unique_ptr<Kernel> make_kernel(const ConvolutionWeightGradientOp& op, const OperandShapes& shapes) {
  return kernel([op, result = shapes.inputs[0], source = shapes.inputs[1]](const KernelCall& call) {
    const double* incoming = call.input<double>(0);
    const double* x = call.input<double>(1);
    const ConvolutionGeometry& g = op.geometry;
    if (double* gradient = call.output<double>(0)) {
      const Shape weights{g.output_channels, g.window.y.kernel, g.window.x.kernel, g.input_channels / g.groups};
      std::fill_n(gradient, weights.count(), 0.0);
      for (int n = 0; n < source.images; ++n)
        for_each_product(g, [&](const Product& p) {
          gradient[p.weight] +=
              incoming[at(result, n, p.y, p.x, p.q)] * x[at(source, n, p.source_y, p.source_x, p.source_channel)];
        });
    }
    if (double* gradient = call.output<double>(1)) {
      std::fill_n(gradient, g.output_channels, 0.0);
      for_each_element(result, [&](int n, int i, int j, int q) { gradient[q] += incoming[at(result, n, i, j, q)]; });
    }
  });
}

}  // namespace mpsnn::reference
