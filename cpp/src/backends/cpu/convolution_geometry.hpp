// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <vector>

#include "core/operations.hpp"

namespace mpsnn::cpu {

/// Where the weight of (group, output channel in it, tap y, tap x, input channel in it) of a convolution lies.
struct WeightLayout {
  std::ptrdiff_t offset, group, output, y, x, input;
  bool operator==(const WeightLayout&) const = default;

  const float* at(const float* weights, int g) const { return weights + offset + g * group; }
  float* at(float* weights, int g) const { return weights + offset + g * group; }
};

/// The same convolution with fewer pixels: a fully connected layer has one pixel with all values of the image as channels.
ConvolutionGeometry simplified(const ConvolutionGeometry& geometry);

/// Weights O, kH, kW, I/groups of the convolution itself.
WeightLayout natural_layout(const ConvolutionGeometry& geometry);
/// Weights of the transposed convolution that undoes `undone`, seen as those of `undone`: taps mirrored, channels changed places.
WeightLayout transposed_layout(const ConvolutionGeometry& undone);

/// 0, 1, ... to the last tap of the kernel.
std::vector<int> all_taps(const Axis& axis);

}  // namespace mpsnn::cpu
