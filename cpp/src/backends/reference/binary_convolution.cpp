// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "backends/reference/kernels.hpp"
#include "backends/reference/neuron.hpp"

namespace mpsnn::reference {
namespace {

double value_or(const std::vector<float>& values, int i, double neutral) { return values.empty() ? neutral : values[i]; }

/// u of 7.9.
double scaled_input(const BinaryConvolutionValues& values, double x, int c) {
  return (x + value_or(values.input_bias, c, 0)) * value_or(values.input_scale, c, 1);
}

double product(CNNBinaryConvolutionType type, double u, bool bit) {
  switch (type) {
    case CNNBinaryConvolutionType::XNOR: return (u < 0) == bit ? -1 : 1;
    case CNNBinaryConvolutionType::AND: return u >= 0 && bit ? 1 : 0;
    default: return bit ? u : -u;
  }
}

}  // namespace

std::unique_ptr<Kernel> make_kernel(const BinaryConvolutionOp& op, const OperandShapes& shapes) {
  return kernel([op, source = shapes.inputs[0], result = shapes.outputs[0]](const KernelCall& call) {
    const double* x = call.input<double>(0);
    double* y = call.output<double>(0);
    const BinaryConvolutionValues& values = *op.values;
    const Window& w = op.geometry.window;
    const int words = ceil_divide(source.channels, 32);
    for_each_element(result, [&](int n, int i, int j, int q) {
      double sum = 0, magnitudes = 0;
      for (int ky = 0; ky < w.y.kernel; ++ky)
        for (int kx = 0; kx < w.x.kernel; ++kx) {
          const int yy = source_pixel(w.y, i, ky, op.geometry.edge_mode);
          const int xx = source_pixel(w.x, j, kx, op.geometry.edge_mode);
          if (yy < 0 || xx < 0) continue;
          const std::uint32_t* bits = values.bits.data() + ((static_cast<std::size_t>(q) * w.y.kernel + ky) * w.x.kernel + kx) * words;
          for (int c = 0; c < source.channels; ++c) {
            const double u = scaled_input(values, x[at(source, n, yy, xx, c)], c);
            sum += product(op.type, u, bits[c / 32] >> (c % 32) & 1);
            magnitudes += std::abs(u);
          }
        }
      const double beta =
          op.uses_beta_scaling ? magnitudes / source.channels / (static_cast<double>(w.x.kernel) * w.y.kernel) : 1;
      const double scaled = sum * value_or(values.output_scale, q, 1) * beta + value_or(values.output_bias, q, 0);
      y[at(result, n, i, j, q)] = neuron_value(op.neuron, scaled, q);
    });
  });
}

}  // namespace mpsnn::reference
