// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <vector>

#include "mpsnn/geometry.hpp"

namespace mpsnn::cpu {

/// What the windows of a convolution see: for each output pixel a row (patch) of kH x kW x channels/groups source values.
/// Pixels are numbered through all images; with NHWC a row is made of contiguous runs.
class Patches {
 public:
  Patches(const Window& window, int channels, int groups, ImageEdgeMode edge_mode);

  /// Length of a row.
  int depth() const { return depth_; }
  /// Where a row is best cut: at multiples of this many elements (at most `limit`), which divides depth().
  int unit(int limit) const;
  /// Floats between the rows where they lie one after another in the source, each in one piece; 0 where they must be gathered.
  std::size_t source_stride() const { return source_stride_; }
  /// Elements [first, last) of the rows of pixels first_pixel, ... go to `rows`, `stride` floats apart.
  void gather(const float* source, int group, std::size_t first_pixel, int pixels, int first, int last, float* rows,
              std::size_t stride) const;

 private:
  void gather_patch(const float* image, int line, int column, int first, int last, float* row) const;
  void gather_line(const float* line, int column, int first, int last, float* row) const;

  Window window_;
  int channels_, group_channels_, depth_;
  bool clamps_, has_long_runs_;
  std::size_t source_stride_ = 0;
  std::vector<Range> taps_inside_;  ///< along x, for each output column
};

}  // namespace mpsnn::cpu
