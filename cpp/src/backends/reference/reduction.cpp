// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "backends/reference/kernels.hpp"

namespace mpsnn::reference {
namespace {

/// What was seen so far of the elements that become one value.
struct Accumulator {
  double sum = 0, smallest = 0, largest = 0;
  int count = 0, smallest_at = 0, largest_at = 0;

  /// A NaN wins over everything, the first of equals over the others.
  void add(double value) {
    sum += value;
    if (count == 0 || value < smallest || (std::isnan(value) && !std::isnan(smallest))) smallest = value, smallest_at = count;
    if (count == 0 || value > largest || (std::isnan(value) && !std::isnan(largest))) largest = value, largest_at = count;
    ++count;
  }
  double result(const ReductionOp& op) const {
    switch (op.kind) {
      case ReductionKind::minimum: return smallest;
      case ReductionKind::maximum: return largest;
      case ReductionKind::mean: return count == 0 ? 0 : sum / count;
      case ReductionKind::sum: return op.weight * sum;
      case ReductionKind::argument_minimum: return smallest_at;
      case ReductionKind::argument_maximum: return largest_at;
    }
    return 0;
  }
};

}  // namespace

std::unique_ptr<Kernel> make_kernel(const ReductionOp& op, const OperandShapes& shapes) {
  return kernel([op, source = shapes.inputs[0], result = shapes.outputs[0]](const KernelCall& call) {
    const double* x = call.input<double>(0);
    double* y = call.output<double>(0);
    const bool over_x = op.axis == ReductionAxis::row || op.axis == ReductionAxis::spatial;
    const bool over_y = op.axis == ReductionAxis::column || op.axis == ReductionAxis::spatial;
    const bool over_channels = op.axis == ReductionAxis::feature_channels;
    for_each_element(result, [&](int n, int i, int j, int c) {
      Accumulator seen;
      const int first_y = op.rows.begin + i, last_y = over_y ? op.rows.end : first_y + 1;
      const int first_x = op.columns.begin + j, last_x = over_x ? op.columns.end : first_x + 1;
      const int last_channel = over_channels ? source.channels : c + 1;
      for (int yy = first_y; yy < last_y; ++yy)
        for (int xx = first_x; xx < last_x; ++xx)
          for (int cc = c; cc < last_channel; ++cc) seen.add(x[at(source, n, yy, xx, cc)]);
      y[at(result, n, i, j, c)] = seen.result(op);
    });
  });
}

std::unique_ptr<Kernel> make_kernel(const SpatialMeanGradientOp& op, const OperandShapes& shapes) {
  return kernel([op, result = shapes.inputs[0], source = shapes.outputs[0]](const KernelCall& call) {
    const double* incoming = call.input<double>(0);
    double* gradient = call.output<double>(0);
    const double count = static_cast<double>(op.columns.size()) * op.rows.size();
    for_each_element(source, [&](int n, int i, int j, int c) {
      const bool is_inside = i >= op.rows.begin && i < op.rows.end && j >= op.columns.begin && j < op.columns.end;
      gradient[at(source, n, i, j, c)] = is_inside ? incoming[at(result, n, 0, 0, c)] / count : 0;
    });
  });
}

}  // namespace mpsnn::reference
