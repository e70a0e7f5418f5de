// SPDX-License-Identifier: Apache-2.0
#include "backends/cpu/split_lines.hpp"

#include <algorithm>
#include <cstring>

#include "backends/cpu/gemm.hpp"

namespace mpsnn::cpu {
namespace {

std::vector<Axis> axes(const std::vector<Window>& windows, Axis Window::* axis) {
  std::vector<Axis> result;
  for (const Window& window : windows) result.push_back(window.*axis);
  return result;
}

/// Channels of a copied pixel. Rows of tiles that lie a multiple of a large power of two apart would share few sets of the first-level cache.
int padded_channels(int channels) { return channels % split::kDepth == 0 && channels >= 128 ? channels | split::kDepth : channels; }

template <int kCount>
void copy_pixels(const float* from, std::ptrdiff_t from_step, float* to, std::ptrdiff_t to_step, int pixels) {
  for (int i = 0; i < pixels; ++i, from += from_step, to += to_step)
    for (int c = 0; c < kCount; ++c) to[c] = from[c];
}

void copy_pixels(const float* from, std::ptrdiff_t from_step, float* to, std::ptrdiff_t to_step, int pixels, int channels) {
  if (channels == 1) return copy_pixels<1>(from, from_step, to, to_step, pixels);
  if (channels == 3) return copy_pixels<3>(from, from_step, to, to_step, pixels);
  for (int i = 0; i < pixels; ++i, from += from_step, to += to_step) std::copy_n(from, channels, to);
}

}  // namespace

SplitAxis::SplitAxis(const std::vector<Axis>& windows) : input(windows[0].input), window_stride(windows[0].stride) {
  bool reads = false;
  int tail = 0;
  for (const Axis& axis : windows) {
    if (axis.kernel < 1) continue;
    lead = reads ? std::max(lead, axis.before) : axis.before;
    tail = reads ? std::max(tail, axis.extent() - axis.before) : axis.extent() - axis.before;
    reads = true;
  }
  span = reads ? lead + tail : 0;
  if (windows.size() == 1 && windows[0].kernel == 1) step = window_stride;
}

SplitLines::SplitLines(const std::vector<Window>& windows, int source_channels, ImageEdgeMode edge_mode, bool weaves, const Limits& limits)
    : window_(windows[0]), y_(axes(windows, &Window::y)), x_(axes(windows, &Window::x)), channels_(source_channels),
      woven_(weaves ? windows[0].y.kernel : 0), clamps_(edge_mode == ImageEdgeMode::Clamp) {
  const int taps = std::max(1, y_.span) * std::max(1, x_.span);
  pitch_ = weaves ? woven_ * limits.channels : taps > 1 && limits.channels % split::kDepth != 0 ? limits.channels : padded_channels(limits.channels);
  line_ = round_up<std::size_t>(x_.count(limits.columns), x_.stride()) * pitch_;
  const int planes = weaves ? 1 : y_.stride();
  plane_lines_ = weaves ? limits.lines : ceil_divide(y_.count(limits.lines), planes);
  // Behind the last pixel of a line, what fills up a step is read, and multiplied with zero.
  plane_ = round_up<std::size_t>(limits.images * plane_lines_ * line_ + split::kDepth, split::kDepth);
  part_ = (planes * plane_) | split::kDepth;
  parts_floats_ = round_up<std::size_t>((split::kParts * part_ + split::kRows * stride() + split::kDepth) / 2 + 1, 16);
  woven_floats_ = weaves ? round_up<std::size_t>(x_.count(limits.columns) * pitch_, 16) : 0;
}

std::vector<SplitPiece> SplitLines::pieces(const Window& window, int channels) const {
  std::vector<SplitPiece> result;
  if (window.y.kernel < 1 || window.x.kernel < 1) return result;
  if (weaves()) return {{0, 0, window.y.kernel * window.x.kernel, 0}};
  const bool joins = std::size_t(channels) == pitch_ && window.x.dilation == 1;
  for (int ky = 0; ky < window.y.kernel; ++ky)
    for (int kx = 0; kx < (joins ? 1 : window.x.kernel); ++kx) {
      const int y = y_.tap(window.y, ky), planes = y_.stride();
      const std::size_t line = y % planes * plane_ + y / planes * line_;
      result.push_back({ky, kx, joins ? window.x.kernel : 1, static_cast<std::ptrdiff_t>(line + x_.tap(window.x, kx) * pitch_)});
    }
  return result;
}

void SplitLines::copy(const float* source, const Stretch& stretch, Range channels, float* scratch) const {
  auto* parts = reinterpret_cast<std::uint16_t*>(scratch);
  const int lines = weaves() ? stretch.lines.size() : y_.count(stretch.lines.size()), columns = x_.count(stretch.columns.size());
  const int planes = weaves() ? 1 : y_.stride(), first_column = x_.first(stretch.columns.begin);
  const std::size_t source_line = std::size_t(x_.input) * channels_;
  for (int n = stretch.images.begin; n < stretch.images.end; ++n) {
    const float* image = source + std::size_t(n) * y_.input * source_line;
    for (int l = 0; l < lines; ++l) {
      std::uint16_t* to = parts + l % planes * plane_ + (n - stretch.images.begin) * SplitLines::image() + l / planes * line_;
      if (weaves()) {
        weave_lines(image, stretch.lines.begin + l, first_column, columns, scratch + parts_floats_, to);
        continue;
      }
      const int from = y_.first(stretch.lines.begin) + l * y_.step;
      const bool is_inside = from >= 0 && from < y_.input;
      split_line(is_inside || clamps_ ? image + clamp_index(from, y_.input) * source_line : nullptr, first_column, columns, channels, to);
    }
  }
}

/// Copied pixels of a line, left to right: each write may fill up the last step behind its end with zeros.
void SplitLines::split_line(const float* line, int first, int count, Range channels, std::uint16_t* to) const {
  const MatrixUnit& unit = *isa().matrix_unit;
  const auto clear = [&](std::size_t begin, std::size_t elements) {
    for (int p = 0; p < split::kParts; ++p) std::memset(to + p * part_ + begin, 0, elements * sizeof(std::uint16_t));
  };
  if (!line) return clear(0, count * pitch_ + split::kDepth);
  const Range inside{std::clamp((-first + x_.step - 1) / x_.step, 0, count), std::clamp((x_.input - first + x_.step - 1) / x_.step, 0, count)};
  const auto border = [&](int begin, int end, int pixel) {
    if (end <= begin) return;
    if (!clamps_) return clear(begin * pitch_, (end - begin) * pitch_);
    unit.split_rows(line + std::ptrdiff_t(pixel) * channels_ + channels.begin, 0, end - begin, channels.size(), to + begin * pitch_, pitch_, part_);
  };
  border(0, inside.begin, 0);
  if (inside.size() > 0) {
    const float* from = line + std::ptrdiff_t(first + inside.begin * x_.step) * channels_ + channels.begin;
    const bool is_one_run = x_.step == 1 && channels.size() == channels_ && pitch_ == std::size_t(channels_);
    if (is_one_run) unit.split_rows(from, 0, 1, std::size_t(inside.size()) * channels_, to + inside.begin * pitch_, 0, part_);
    else unit.split_rows(from, std::size_t(x_.step) * channels_, inside.size(), channels.size(), to + inside.begin * pitch_, pitch_, part_);
  }
  border(std::max(inside.begin, inside.end), count, x_.input - 1);
  clear(count * pitch_, split::kDepth);
}

/// The lines under the windows of line `window`, by turns.
void SplitLines::weave_lines(const float* image, int window, int first, int count, float* woven, std::uint16_t* to) const {
  const Range inside{std::clamp(-first, 0, count), std::clamp(x_.input - first, 0, count)};
  for (int ky = 0; ky < woven_; ++ky) {
    const int from = window_.y.tap(window, ky);
    const float* line = image + std::size_t(clamp_index(from, y_.input)) * x_.input * channels_;
    float* place = woven + ky * channels_;
    const bool is_inside = from >= 0 && from < y_.input;
    const auto border = [&](int begin, int end, int pixel) {
      const bool repeats = clamps_ && end > begin;
      for (int i = begin; i < end; ++i)
        for (int c = 0; c < channels_; ++c) place[i * pitch_ + c] = repeats ? line[std::ptrdiff_t(pixel) * channels_ + c] : 0.0f;
    };
    if (!is_inside && !clamps_) {
      border(0, count, 0);
      continue;
    }
    border(0, inside.begin, 0);
    copy_pixels(line + std::ptrdiff_t(first + inside.begin) * channels_, channels_, place + inside.begin * pitch_, pitch_, inside.size(), channels_);
    border(std::max(inside.begin, inside.end), count, x_.input - 1);
  }
  isa().matrix_unit->split_rows(woven, 0, 1, count * pitch_, to, 0, part_);
  for (int p = 0; p < split::kParts; ++p) std::memset(to + p * part_ + count * pitch_, 0, split::kDepth * sizeof(std::uint16_t));
}

}  // namespace mpsnn::cpu
