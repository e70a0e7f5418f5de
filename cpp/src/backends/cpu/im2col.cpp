// SPDX-License-Identifier: Apache-2.0
#include "backends/cpu/im2col.hpp"

#include <algorithm>
#include <cstring>

#include "backends/cpu/convolution_geometry.hpp"

namespace mpsnn::cpu {
namespace {

bool is_pointwise(const Axis& axis) {
  return axis.kernel == 1 && axis.stride == 1 && axis.before == 0 && axis.input == axis.output;
}

template <int Count>
inline void copy_ends(float* to, const float* from, int count) {
  float head[Count], tail[Count];
  std::memcpy(head, from, sizeof head);
  std::memcpy(tail, from + count - Count, sizeof tail);
  std::memcpy(to, head, sizeof head);
  std::memcpy(to + count - Count, tail, sizeof tail);
}

/// Runs of few channels are too short for a call of memcpy.
inline void copy_run(float* to, const float* from, int count) {
  if (count > 16) {
    std::memcpy(to, from, count * sizeof(float));
  } else if (count >= 8) {
    copy_ends<8>(to, from, count);
  } else if (count >= 4) {
    copy_ends<4>(to, from, count);
  } else {
    for (int i = 0; i < count; ++i) to[i] = from[i];
  }
}

/// Lines of a patch that lies inside of the source.
inline void copy_lines(float* to, const float* from, std::size_t from_stride, int lines, int count) {
  if (count >= 8 && count <= 16) {
    for (int line = 0; line < lines; ++line, to += count, from += from_stride) copy_ends<8>(to, from, count);
  } else if (count >= 4 && count < 8) {
    for (int line = 0; line < lines; ++line, to += count, from += from_stride) copy_ends<4>(to, from, count);
  } else {
    for (int line = 0; line < lines; ++line, to += count, from += from_stride) copy_run(to, from, count);
  }
}

inline void fill_zeros(float* to, int count) {
  if (count > 0) std::memset(to, 0, count * sizeof(float));
}

}  // namespace

Patches::Patches(const Window& window, int channels, int groups, ImageEdgeMode edge_mode)
    : window_(window),
      channels_(channels),
      group_channels_(channels / groups),
      depth_(window.y.kernel * window.x.kernel * group_channels_),
      clamps_(edge_mode == ImageEdgeMode::Clamp),
      has_long_runs_(groups == 1 && (window.x.dilation == 1 || window.x.kernel == 1)) {
  if (is_pointwise(window.y) && is_pointwise(window.x)) source_stride_ = channels;
  if (groups == 1 && window.y.covers_image() && window.x.covers_image()) source_stride_ = depth_;
  for (int o = 0; o < window.x.output; ++o) taps_inside_.push_back(window.x.taps_inside(o));
}

int Patches::unit(int limit) const {
  const int line_depth = window_.x.kernel * group_channels_;
  if (line_depth >= 1 && line_depth <= limit) return line_depth;
  return group_channels_ <= limit ? group_channels_ : 1;
}

/// Elements [first, last) of the part of a row that lies in one line of the source; `line` is its pixel 0 or null outside.
void Patches::gather_line(const float* line, int column, int first, int last, float* row) const {
  if (!line) return fill_zeros(row + first, last - first);
  const Range inside = taps_inside_[column];
  if (has_long_runs_ && (!clamps_ || inside.size() == window_.x.kernel)) {
    const int begin = std::clamp(inside.begin * channels_, first, last), end = std::clamp(inside.end * channels_, begin, last);
    fill_zeros(row + first, begin - first);
    if (end > begin) copy_run(row + begin, line + std::ptrdiff_t(window_.x.origin(column)) * channels_ + begin, end - begin);
    return fill_zeros(row + end, last - end);
  }
  for (int tap = first / group_channels_; tap * group_channels_ < last; ++tap) {
    const int begin = std::max(first, tap * group_channels_), end = std::min(last, (tap + 1) * group_channels_);
    const bool is_inside = tap >= inside.begin && tap < inside.end;
    if (!is_inside && !clamps_) {
      fill_zeros(row + begin, end - begin);
      continue;
    }
    const int pixel = clamp_index(window_.x.tap(column, tap), window_.x.input);
    copy_run(row + begin, line + std::ptrdiff_t(pixel) * channels_ + (begin - tap * group_channels_), end - begin);
  }
}

/// Elements [first, last) of one patch; `image` is pixel 0, channel 0 of the group.
void Patches::gather_patch(const float* image, int line, int column, int first, int last, float* row) const {
  const Axis &y = window_.y, &x = window_.x;
  const int line_depth = x.kernel * group_channels_;
  const std::size_t line_floats = std::size_t(x.input) * channels_;
  const int first_tap = first / line_depth, last_tap = (last - 1) / line_depth + 1;
  const bool is_whole_lines = has_long_runs_ && first == first_tap * line_depth && last == last_tap * line_depth;
  if (is_whole_lines && y.tap(line, first_tap) >= 0 && y.tap(line, last_tap - 1) < y.input &&
      taps_inside_[column].size() == x.kernel) {
    const float* from = image + y.tap(line, first_tap) * line_floats + std::size_t(x.origin(column)) * channels_;
    return copy_lines(row, from, y.dilation * line_floats, last_tap - first_tap, line_depth);
  }
  for (int tap = first_tap; tap < last_tap; ++tap) {
    const int virtual_line = y.tap(line, tap), offset = tap * line_depth;
    const bool is_inside = virtual_line >= 0 && virtual_line < y.input;
    const float* from = is_inside || clamps_ ? image + clamp_index(virtual_line, y.input) * line_floats : nullptr;
    gather_line(from, column, std::max(0, first - offset), std::min(line_depth, last - offset), row + (offset - first));
  }
}

void Patches::gather(const float* source, int group, std::size_t first_pixel, int pixels, int first, int last, float* rows,
                     std::size_t stride) const {
  if (first >= last) return;
  const Axis &y = window_.y, &x = window_.x;
  const std::size_t image_floats = std::size_t(y.input) * x.input * channels_;
  int column = static_cast<int>(first_pixel % x.output), line = static_cast<int>(first_pixel / x.output % y.output);
  const float* image = source + first_pixel / x.output / y.output * image_floats + std::size_t(group) * group_channels_;
  for (int i = 0; i < pixels; ++i, rows += stride) {
    gather_patch(image, line, column, first, last, rows);
    if (++column < x.output) continue;
    column = 0;
    if (++line < y.output) continue;
    line = 0;
    image += image_floats;
  }
}

}  // namespace mpsnn::cpu
