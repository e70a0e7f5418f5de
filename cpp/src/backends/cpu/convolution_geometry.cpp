// SPDX-License-Identifier: Apache-2.0
#include "backends/cpu/convolution_geometry.hpp"

#include <numeric>

namespace mpsnn::cpu {

ConvolutionGeometry simplified(const ConvolutionGeometry& geometry) {
  const Window& window = geometry.window;
  if (geometry.groups != 1 || !window.y.covers_image() || !window.x.covers_image()) return geometry;
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

std::vector<int> all_taps(const Axis& axis) {
  std::vector<int> taps(axis.kernel);
  std::iota(taps.begin(), taps.end(), 0);
  return taps;
}

}  // namespace mpsnn::cpu
