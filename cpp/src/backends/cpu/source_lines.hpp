// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <vector>

#include "mpsnn/geometry.hpp"

namespace mpsnn::cpu {

/// How tiles read the patches under a window: as pieces at fixed offsets from the patch's first tap, where neighbouring patches of a
/// line are a fixed stride apart. That holds in the image itself where no window hangs over its border; else in copies of the lines
/// that a task needs, with the border around them.
class SourceLines {
 public:
  SourceLines(const Window& window, int channels, int groups, ImageEdgeMode edge_mode);

  int depth() const { return static_cast<int>(pieces_.size()) * piece_depth_; }
  const std::vector<std::ptrdiff_t>& pieces() const { return pieces_; }
  int piece_depth() const { return piece_depth_; }
  /// Floats between neighbouring patches.
  std::size_t stride() const;
  /// Channels of a group.
  int group_channels() const { return group_channels_; }
  bool copies() const { return copies_; }

  /// Floats of the copies for `lines` neighbouring lines of windows, `columns` windows wide, wherever they begin.
  std::size_t copied_floats(int lines, int columns) const;
  /// Makes the patches of windows `columns` in `lines` lines readable, lines numbered through all images, and sets patches[i] to
  /// the first one's first tap in each line.
  void prepare(const float* source, std::size_t first_line, int lines, Range columns, float* copies, const float** patches) const;

 private:
  std::ptrdiff_t line_floats(int columns) const;
  void copy_line(const float* line, Range columns, float* to) const;

  Window window_;
  int channels_, group_channels_;
  bool clamps_, copies_;
  int piece_depth_;
  std::vector<std::ptrdiff_t> pieces_;  ///< for lines as wide as the image, or as all windows
};

}  // namespace mpsnn::cpu
