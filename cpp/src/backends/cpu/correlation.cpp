// SPDX-License-Identifier: Apache-2.0
#include "backends/cpu/correlation.hpp"

#include <algorithm>

#include "backends/cpu/split_correlation.hpp"
#include "backends/cpu/vector_correlation.hpp"

namespace mpsnn::cpu {
namespace {

bool is_pointwise(const Axis& axis) {
  return axis.kernel == 1 && axis.stride == 1 && axis.before == 0 && axis.input == axis.output;
}

/// Two vector multiply-adds a cycle at best, of which the tiles reach 85 %; copying moves a vector a cycle.
double vector_cycles(const CorrelationShape& shape) {
  const Axis &y = shape.window.y, &x = shape.window.x;
  const double pixels = double(std::max(0, shape.images)) * std::max(0, y.output) * std::max(0, x.output);
  const double depth = double(y.kernel) * x.kernel * shape.source_channels;
  return pixels * depth * (ceil_divide(shape.result_channels / shape.groups, isa().lanes) / (2 * 0.85) + 1.0 / isa().lanes);
}

}  // namespace

CorrelationShape in_one_line(CorrelationShape shape) {
  const bool is_dense = shape.step_y == 1 && shape.step_x == 1 && shape.sub_pixel_scale == 1;
  if (!is_dense || !is_pointwise(shape.window.y) || !is_pointwise(shape.window.x)) return shape;
  const int pixels = std::max(0, shape.images) * shape.window.y.input * shape.window.x.input;
  shape.images = 1;
  shape.window.y = {};
  shape.window.x = {pixels, pixels};
  shape.result_height = 1;
  shape.result_width = pixels;
  return shape;
}

std::vector<std::unique_ptr<Correlation>> make_correlations(std::vector<CorrelationPart> parts) {
  std::vector<std::unique_ptr<Correlation>> result;
  double cycles = 0;
  for (const CorrelationPart& part : parts) cycles += vector_cycles(part.shape);
  if (can_split(parts) && split_cycles(parts) < cycles) {
    result.push_back(std::make_unique<SplitCorrelation>(std::move(parts)));
    return result;
  }
  for (CorrelationPart& part : parts) result.push_back(std::make_unique<VectorCorrelation>(part.shape, std::move(part.weights)));
  return result;
}

}  // namespace mpsnn::cpu
