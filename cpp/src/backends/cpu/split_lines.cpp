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

/// Lines woven a few floats at a time, in whole vectors of four.
constexpr int kWovenLines = 16, kQuad = 4;

/// Pixels of several lines by turns, in their order: what a copy writes behind its channels is what the next one overwrites.
template <int kQuads>
void weave_pixels(const float* const* lines, const std::ptrdiff_t* steps, int count, int channels, int pixels, float* to) {
  for (int i = 0; i < pixels; ++i)
    for (int l = 0; l < count; ++l, to += channels)
      for (int q = 0; q < kQuads * kQuad; q += kQuad) std::memcpy(to + q, lines[l] + i * steps[l] + q, kQuad * sizeof(float));
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
  woven_floats_ = weaves ? round_up<std::size_t>(x_.count(limits.columns) * pitch_ + kQuad, 16) : 0;
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
  static constexpr float kZeros[kQuad * kQuad] = {};
  const Range inside{std::clamp(-first, 0, count), std::clamp(x_.input - first, 0, count)};
  const auto copy = [&](int line, int begin, int end, int pixel, int step) {  // all channels and no more
    const int from = window_.y.tap(window, line);
    const bool is_zero = !clamps_ && (from < 0 || from >= y_.input || step == 0);
    const float* values = image + (std::size_t(clamp_index(from, y_.input)) * x_.input + pixel) * channels_;
    for (int i = begin; i < end; ++i, values += step * channels_)
      for (int c = 0; c < channels_; ++c) woven[i * pitch_ + line * channels_ + c] = is_zero ? 0.0f : values[c];
  };
  const auto copy_all = [&](int begin, int end, int pixel, int step) {
    for (int line = 0; line < woven_; ++line) copy(line, begin, end, pixel, step);
  };
  copy_all(0, inside.begin, 0, 0);
  const int quads = ceil_divide(channels_, kQuad);
  // Behind the last pixel's channels there may be nothing to read.
  const int quick = woven_ <= kWovenLines && quads <= kQuad ? std::max(0, inside.size() - 1) : 0;
  if (quick > 0) {
    const float* lines[kWovenLines];
    std::ptrdiff_t steps[kWovenLines];
    for (int line = 0; line < woven_; ++line) {
      const int from = window_.y.tap(window, line);
      const bool is_zero = !clamps_ && (from < 0 || from >= y_.input);
      lines[line] = is_zero ? kZeros : image + (std::size_t(clamp_index(from, y_.input)) * x_.input + first + inside.begin) * channels_;
      steps[line] = is_zero ? 0 : channels_;
    }
    constexpr decltype(&weave_pixels<1>) kWays[kQuad] = {weave_pixels<1>, weave_pixels<2>, weave_pixels<3>, weave_pixels<4>};
    kWays[quads - 1](lines, steps, woven_, channels_, quick, woven + inside.begin * pitch_);
  }
  copy_all(inside.begin + quick, inside.end, first + inside.begin + quick, 1);
  copy_all(std::max(inside.begin, inside.end), count, x_.input - 1, 0);
  isa().matrix_unit->split_rows(woven, 0, 1, count * pitch_, to, 0, part_);
  for (int p = 0; p < split::kParts; ++p) std::memset(to + p * part_ + count * pitch_, 0, split::kDepth * sizeof(std::uint16_t));
}

}  // namespace mpsnn::cpu
