// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "backends/reference/kernels.hpp"

namespace mpsnn::reference {
namespace {

/// Calls f(result element, source element) for every element of the padded image; the source element is -1 where it is filled.
template <class F>
void for_each_copy(const PadOp& op, const Shape& source, const Shape& result, F f) {
  for_each_element(result, [&](int n, int i, int j, int c) {
    const int y = padded_index(i - op.before_y, source.height, op.edge_mode);
    const int x = padded_index(j - op.before_x, source.width, op.edge_mode);
    const int channel = padded_index(c - op.before_channels, source.channels, op.edge_mode);
    const bool is_filled = y < 0 || x < 0 || channel < 0;
    f(at(result, n, i, j, c), is_filled ? -1 : static_cast<std::ptrdiff_t>(at(source, n, y, x, channel)));
  });
}

/// The nearest half; ties go to the even one.
double rounded_to_half(double x) {
  if (x == 0 || !std::isfinite(x)) return x;
  const double quantum = std::ldexp(1.0, std::max(std::ilogb(x), -14) - 10);
  const double rounded = std::nearbyint(x / quantum) * quantum;
  return std::abs(rounded) > 65504 ? std::copysign(HUGE_VAL, x) : rounded;
}

/// The nearest of `steps` + 1 values from 0 to 1; a NaN becomes 0.
double rounded_to_steps(double x, double steps) {
  if (!(x > 0)) return 0;
  return std::nearbyint(std::min(x, 1.0) * steps) / steps;
}

}  // namespace

std::unique_ptr<Kernel> make_kernel(const ReshapeOp&, const OperandShapes& shapes) {
  return kernel([count = shapes.outputs[0].count()](const KernelCall& call) {
    std::copy_n(call.input<double>(0), count, call.output<double>(0));
  });
}

std::unique_ptr<Kernel> make_kernel(const PadOp& op, const OperandShapes& shapes) {
  const double fill = op.edge_mode == ImageEdgeMode::Constant ? op.fill_value : 0;
  return kernel([op, fill, source = shapes.inputs[0], result = shapes.outputs[0]](const KernelCall& call) {
    const double* x = call.input<double>(0);
    double* y = call.output<double>(0);
    for_each_copy(op, source, result, [&](std::size_t to, std::ptrdiff_t from) { y[to] = from < 0 ? fill : x[from]; });
  });
}

std::unique_ptr<Kernel> make_kernel(const PadGradientOp& op, const OperandShapes& shapes) {
  return kernel([op = op.forward, result = shapes.inputs[0], source = shapes.outputs[0]](const KernelCall& call) {
    const double* incoming = call.input<double>(0);
    double* gradient = call.output<double>(0);
    std::fill_n(gradient, source.count(), 0.0);
    for_each_copy(op, source, result, [&](std::size_t to, std::ptrdiff_t from) {
      if (from >= 0) gradient[from] += incoming[to];
    });
  });
}

std::unique_ptr<Kernel> make_kernel(const RoundOp& op, const OperandShapes& shapes) {
  return kernel([op, count = shapes.outputs[0].count()](const KernelCall& call) {
    const double* x = call.input<double>(0);
    double* y = call.output<double>(0);
    for (std::size_t e = 0; e < count; ++e) {
      switch (op.format) {
        case ImageFeatureChannelFormat::Float16: y[e] = rounded_to_half(x[e]); break;
        case ImageFeatureChannelFormat::Unorm8: y[e] = rounded_to_steps(x[e], 255); break;
        case ImageFeatureChannelFormat::Unorm16: y[e] = rounded_to_steps(x[e], 65535); break;
        default: y[e] = x[e];
      }
    }
  });
}

}  // namespace mpsnn::reference
