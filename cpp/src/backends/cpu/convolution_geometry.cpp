// SPDX-License-Identifier: Apache-2.0
#include "backends/cpu/convolution_geometry.hpp"

#include <numeric>

namespace mpsnn::cpu {

bool covers_image(const Axis& axis) {
  return axis.output == 1 && axis.kernel == axis.input && axis.before == 0 && (axis.dilation == 1 || axis.kernel == 1);
}

ConvolutionGeometry simplified(const ConvolutionGeometry& geometry) {
  const Window& window = geometry.window;
  if (geometry.groups != 1 || !covers_image(window.y) || !covers_image(window.x)) return geometry;
  ConvolutionGeometry result = geometry;
  result.window = {};
  result.input_channels = window.y.input * window.x.input * geometry.input_channels;
  return result;
}

WeightLayout natural_layout(const ConvolutionGeometry& geometry) {
  const std::ptrdiff_t inputs = geometry.input_channels / geometry.groups, outputs = geometry.output_channels / geometry.groups;
  const std::ptrdiff_t line = geometry.window.x.kernel * inputs, filter = geometry.window.y.kernel * line;
  return {.offset = 0, .group = outputs * filter, .output = filter, .y = line, .x = inputs, .input = 1};
}

WeightLayout transposed_layout(const ConvolutionGeometry& undone) {
  const std::ptrdiff_t results = undone.input_channels / undone.groups, sources = undone.output_channels / undone.groups;
  const std::ptrdiff_t line = undone.window.x.kernel * sources, filter = undone.window.y.kernel * line;
  return {.offset = filter - sources, .group = results * filter, .output = 1, .y = -line, .x = -sources, .input = filter};
}

std::vector<Phase> phases(const Axis& forward) {
  std::vector<Phase> result;
  const int common = std::gcd(forward.stride, forward.dilation);
  for (int first = 0; first < std::min(forward.stride, forward.input); ++first) {
    Phase phase;
    phase.first = first;
    phase.step = forward.stride;
    phase.axis = {forward.output, ceil_divide(forward.input - first, forward.stride), 0, 1, forward.dilation / common, 0};
    // Later taps meet a pixel from earlier windows: backwards, so that the axis counts upwards.
    for (int tap = forward.kernel - 1; tap >= 0; --tap) {
      const int distance = first - forward.tap(0, tap);  // from window 0's tap to the pixel
      if (distance % forward.stride != 0) continue;
      if (phase.taps.empty()) phase.axis.before = -(distance / forward.stride);
      phase.taps.push_back(tap);
    }
    phase.axis.kernel = static_cast<int>(phase.taps.size());
    result.push_back(std::move(phase));
  }
  return result;
}

EnlargedAxis enlarge(const Axis& axis) {
  if (axis.output < 1) return {axis, 0};
  const int begin = std::min(0, axis.origin(0)), end = std::max(axis.input, axis.origin(axis.output - 1) + axis.extent());
  Axis enlarged = axis;
  enlarged.input = end - begin;
  enlarged.before = axis.before + begin;
  return {enlarged, -begin};
}

}  // namespace mpsnn::cpu
