// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <vector>

#include "core/operations.hpp"

namespace mpsnn::cpu {

/// Where the weight of (group, output channel in it, tap y, tap x, input channel in it) of a convolution lies.
struct WeightLayout {
  std::ptrdiff_t offset, group, output, y, x, input;

  const float* at(const float* weights, int g) const { return weights + offset + g * group; }
  float* at(float* weights, int g) const { return weights + offset + g * group; }
};

/// True when the one window along an axis covers the whole image and nothing else.
bool covers_image(const Axis& axis);
/// The same convolution with fewer pixels: a fully connected layer has one pixel with all values of the image as channels.
ConvolutionGeometry simplified(const ConvolutionGeometry& geometry);

/// Weights O, kH, kW, I/groups of the convolution itself.
WeightLayout natural_layout(const ConvolutionGeometry& geometry);
/// Weights of the transposed convolution that undoes `undone`, seen as those of `undone`: taps mirrored, channels changed places.
WeightLayout transposed_layout(const ConvolutionGeometry& undone);

/// The pixels first, first + step, ... of an image's axis that are met by the same taps of strided windows. To them, the data
/// gradient is a convolution of stride 1 over the incoming gradient, so no multiplication meets an inserted zero.
struct Phase {
  Axis axis;              ///< from the incoming gradient to the pixels of this phase; kernel 0 when no tap meets them
  std::vector<int> taps;  ///< the tap of the forward window under each tap of `axis`
  int first = 0, step = 1;
};
std::vector<Phase> phases(const Axis& forward);

/// With edge mode Clamp a window reads what it would read without edges in an image enlarged by repetition. That axis, `shift`
/// pixels in front of the original one: pixel j of it repeats pixel clamp_index(j - shift) of the image.
struct EnlargedAxis {
  Axis axis;
  int shift = 0;
};
EnlargedAxis enlarge(const Axis& axis);

}  // namespace mpsnn::cpu
