// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>

#include "backends/backend.hpp"

namespace mpsnn::cpu {

/// An image that is made while it is pooled, a few lines at a time.
class LineSource {
 public:
  virtual ~LineSource() = default;
  /// Makes lines first, first + 1, ..., counted through all images.
  virtual void make(std::size_t first, std::size_t lines, float* to) const = 0;
};

/// Max pooling of such an image, with the winners in call.saved if there is a place for them.
class LinePooling {
 public:
  virtual ~LinePooling() = default;
  virtual std::size_t scratch_floats() const = 0;
  virtual void run(const KernelCall& call, const LineSource& source, float* scratch) const = 0;
};
/// `source`: the image's shape. Null where the lines of a window take more than their share of the second-level cache, or few rows are pooled.
std::unique_ptr<LinePooling> make_line_pooling(const PoolingOp& op, const Shape& source);

}  // namespace mpsnn::cpu
