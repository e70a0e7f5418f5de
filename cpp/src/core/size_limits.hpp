// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>

#include "mpsnn/error.hpp"

/// Bounds that keep geometry within int: four sizes of 2^28 pixels can be added and still fit.
namespace mpsnn {

constexpr std::int64_t kMostPixels = std::int64_t(1) << 28;

/// `size` as int. Throws ShapeError, for the graph to name the node, when no image could have it.
inline int checked_size(std::int64_t size, const char* what) {
  if (size >= -kMostPixels && size <= kMostPixels) return static_cast<int>(size);
  throw ShapeError(std::string(what) + " is out of range.",
                   {.expected = "at most " + std::to_string(kMostPixels), .actual = std::to_string(size), .hint = "check kernel sizes, strides, dilations, paddings and factors"});
}

}  // namespace mpsnn
