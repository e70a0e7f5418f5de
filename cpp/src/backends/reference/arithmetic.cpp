// SPDX-License-Identifier: Apache-2.0
#include "backends/reference/kernels.hpp"
#include "mpsnn/error.hpp"

namespace mpsnn::reference {
namespace {

/// Element of an operand that result element (n, y, x, c) meets: index 0 along the dimensions that it is broadcast over.
std::size_t operand_at(const Shape& shape, const ArithmeticOp::Source& source, int n, int y, int x, int c) {
  return at(shape, n, source.stride_y == 0 ? 0 : y, source.stride_x == 0 ? 0 : x, source.stride_channels == 0 ? 0 : c);
}

bool holds(NNComparisonType relation, double x, double y) {
  switch (relation) {
    case NNComparisonType::Equal: return x == y;
    case NNComparisonType::NotEqual: return x != y;
    case NNComparisonType::Less: return x < y;
    case NNComparisonType::LessOrEqual: return x <= y;
    case NNComparisonType::Greater: return x > y;
    case NNComparisonType::GreaterOrEqual: return x >= y;
  }
  return false;
}

double unclamped_result(const ArithmeticOp& op, double x, double y) {
  const double scaled_x = op.primary.scale * x;
  const double scaled_y = op.secondary.scale * y;
  switch (op.kind) {
    case ArithmeticKind::add: return scaled_x + scaled_y + op.bias;
    case ArithmeticKind::subtract: return scaled_x - scaled_y + op.bias;
    case ArithmeticKind::multiply: return scaled_x * scaled_y + op.bias;
    case ArithmeticKind::divide: return scaled_x / scaled_y + op.bias;
    case ArithmeticKind::compare: return holds(op.comparison_type, x, y) ? 1 : 0;
  }
  return 0;
}

double clamp_to_limits(double value, double minimum, double maximum) {
  if (value < minimum) return minimum;
  return value > maximum ? maximum : value;
}

}  // namespace

std::unique_ptr<Kernel> make_kernel(const ArithmeticOp& op, const OperandShapes& shapes) {
  return kernel([op, primary = shapes.inputs[0], secondary = shapes.inputs[1],
                 result = shapes.outputs[0]](const KernelCall& call) {
    const double* x = call.input<double>(0);
    const double* y = call.input<double>(1);
    double* r = call.output<double>(0);
    for_each_element(result, [&](int n, int i, int j, int c) {
      const double value = unclamped_result(op, x[operand_at(primary, op.primary, n, i, j, c)],
                                            y[operand_at(secondary, op.secondary, n, i, j, c)]);
      r[at(result, n, i, j, c)] = op.clamps() ? clamp_to_limits(value, op.minimum_value, op.maximum_value) : value;
    });
  });
}

std::unique_ptr<Kernel> make_kernel(const ArithmeticGradientOp& op, const OperandShapes& shapes) {
  if (op.forward.kind == ArithmeticKind::divide || op.forward.kind == ArithmeticKind::compare)
    throw GraphError("division and comparison have no gradient.",
                     {.hint = "multiply by a reciprocal, or stop the gradient here"});
  const bool is_product = op.forward.kind == ArithmeticKind::multiply;
  return kernel([=, result = shapes.inputs[0], primary = shape_of(shapes.inputs, 1), secondary = shape_of(shapes.inputs, 2),
                 own = shapes.outputs[0]](const KernelCall& call) {
    const ArithmeticOp& forward = op.forward;
    const double* incoming = call.input<double>(0);
    const double* x = call.input<double>(1);
    const double* y = call.input<double>(2);
    double* gradient = call.output<double>(0);
    std::fill_n(gradient, own.count(), 0.0);
    for_each_element(result, [&](int n, int i, int j, int c) {
      double e = op.primary_scale * incoming[at(result, n, i, j, c)];
      if (forward.clamps()) {
        const double value = unclamped_result(forward, x[operand_at(primary, forward.primary, n, i, j, c)],
                                              y[operand_at(secondary, forward.secondary, n, i, j, c)]);
        if (!(forward.minimum_value < value && value < forward.maximum_value)) e = 0;
      }
      if (is_product)
        e *= op.secondary_scale * (op.is_secondary_source_filter ? x[operand_at(primary, forward.primary, n, i, j, c)]
                                                                 : y[operand_at(secondary, forward.secondary, n, i, j, c)]);
      const ArithmeticOp::Source& own_source = op.is_secondary_source_filter ? forward.secondary : forward.primary;
      gradient[operand_at(own, own_source, n, i, j, c)] += e;
    });
    const ArithmeticOp defaults;
    const bool clamps = op.minimum_value != defaults.minimum_value || op.maximum_value != defaults.maximum_value;
    for (std::size_t i = 0; i < own.count(); ++i) {
      gradient[i] += op.bias;
      if (clamps) gradient[i] = clamp_to_limits(gradient[i], op.minimum_value, op.maximum_value);
    }
  });
}

}  // namespace mpsnn::reference
