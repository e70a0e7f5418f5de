// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "backends/cpu/isa/isa.hpp"
#include "mpsnn/geometry.hpp"

namespace mpsnn::cpu {

/// What the windows of a task need of one axis of the source.
struct SplitAxis {
  /// Windows over one source: one window of any stride, or several of stride 1.
  explicit SplitAxis(const std::vector<Axis>& windows);
  int input = 1, lead = 0, span = 0;
  int window_stride = 1;  ///< source pixels between windows
  int step = 1;           ///< source pixels between those copied: one tap needs its own pixels only, without those between
  int stride() const { return window_stride / step; }  ///< copied pixels between windows
  /// Copied pixels for neighbouring windows.
  int count(int windows) const { return span < 1 || windows < 1 ? 0 : (windows - 1) * stride() + span; }
  /// Source pixel of the first one copied.
  int first(int window) const { return window * window_stride - lead; }
  /// Copied pixel under a tap of window 0.
  int tap(const Axis& window, int t) const { return step > 1 ? 0 : lead - window.before + t * window.dilation; }
};

/// Neighbouring numbers of a patch: the channels of taps that lie behind one another.
struct SplitPiece {
  int tap_y, tap_x, taps;
  std::ptrdiff_t offset;  ///< from the first pixel copied for a window
};

/// Copies of the source lines that a task needs, with the border around them, in the parts that the matrix unit multiplies. Patches of
/// neighbouring windows lie a fixed stride apart, those of the next line of windows too: the lines of a copy are sorted by their number
/// modulo the stride. With few channels, copies are woven: the lines under a line of windows by turns, pixel by pixel, so that a
/// patch is one piece.
class SplitLines {
 public:
  /// The most images, lines and columns of windows in a task, and channels that are copied together.
  struct Limits {
    int images, lines, columns, channels;
  };
  SplitLines(const std::vector<Window>& windows, int source_channels, ImageEdgeMode edge_mode, bool weaves, const Limits& limits);

  bool weaves() const { return woven_ > 0; }
  std::vector<SplitPiece> pieces(const Window& window, int channels) const;
  /// Elements between the patches of neighbouring windows, lines of windows, images, and the parts of a copy.
  std::size_t stride() const { return std::size_t(x_.stride()) * pitch_; }
  std::size_t line() const { return line_; }
  std::size_t image() const { return plane_lines_ * line_; }
  std::size_t part() const { return part_; }
  std::size_t floats() const { return parts_floats_ + woven_floats_; }

  struct Stretch {
    Range images, lines, columns;  ///< of windows
  };
  void copy(const float* source, const Stretch& stretch, Range channels, float* scratch) const;

 private:
  void split_line(const float* line, int first, int count, Range channels, std::uint16_t* to) const;
  void weave_lines(const float* image, int window, int first, int count, float* woven, std::uint16_t* to) const;

  Window window_;  ///< of what is woven
  SplitAxis y_, x_;
  int channels_, woven_ = 0;  ///< lines woven together
  bool clamps_;
  std::size_t pitch_, line_ = 0, plane_lines_ = 0, plane_ = 0, part_ = 0, parts_floats_ = 0, woven_floats_ = 0;
};

}  // namespace mpsnn::cpu
