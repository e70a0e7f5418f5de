// SPDX-License-Identifier: Apache-2.0
#include "backends/cpu/source_lines.hpp"

#include <algorithm>
#include <cstring>

namespace mpsnn::cpu {

SourceLines::SourceLines(const Window& window, int channels, int groups, ImageEdgeMode edge_mode)
    : window_(window), channels_(channels), group_channels_(channels / groups), clamps_(edge_mode == ImageEdgeMode::Clamp) {
  const Axis &y = window.y, &x = window.x;
  const bool reads = y.kernel > 0 && x.kernel > 0;
  copies_ = reads && (y.output < 1 || x.output < 1 || !y.is_inside() || !x.is_inside());
  const bool joins_taps = groups == 1 && x.dilation == 1;
  piece_depth_ = joins_taps ? x.kernel * channels : group_channels_;
  const std::ptrdiff_t line = copies_ ? line_floats(x.output) : std::ptrdiff_t(x.input) * channels;
  for (int ky = 0; ky < y.kernel; ++ky)
    for (int kx = 0; kx < (joins_taps ? std::min(1, x.kernel) : x.kernel); ++kx)
      pieces_.push_back(ky * y.dilation * line + std::ptrdiff_t(kx) * x.dilation * channels_);
}

std::size_t SourceLines::stride() const { return std::size_t(copies_ && window_.x.kernel <= 1 ? 1 : window_.x.stride) * channels_; }

/// One tap needs its own pixels only, without those between.
std::ptrdiff_t SourceLines::line_floats(int columns) const {
  const Axis& x = window_.x;
  return std::ptrdiff_t(x.kernel <= 1 ? columns : (columns - 1) * x.stride + x.extent()) * channels_;
}

std::size_t SourceLines::copied_floats(int lines, int columns) const {
  if (!copies_) return 0;
  const Axis& y = window_.y;
  const int images = (lines - 1) / std::max(1, y.output) + 2;
  const int count = y.kernel <= 1 ? lines : lines * y.stride + images * y.extent();
  return std::size_t(count) * line_floats(columns);
}

void SourceLines::copy_line(const float* line, Range columns, float* to) const {
  const Axis& x = window_.x;
  const int step = x.kernel <= 1 ? x.stride : 1, first = x.origin(columns.begin);
  const int count = x.kernel <= 1 ? columns.size() : (columns.size() - 1) * x.stride + x.extent();
  if (!line) return std::fill_n(to, std::size_t(count) * channels_, 0.0f), void();
  const Range inside{std::clamp((-first + step - 1) / step, 0, count), std::clamp((x.input - first + step - 1) / step, 0, count)};
  const auto border = [&](int begin, int end, int pixel) {
    for (int i = begin; i < end; ++i) {
      float* p = to + std::ptrdiff_t(i) * channels_;
      if (clamps_) std::memcpy(p, line + std::ptrdiff_t(pixel) * channels_, channels_ * sizeof(float));
      else std::memset(p, 0, channels_ * sizeof(float));
    }
  };
  border(0, inside.begin, 0);
  if (step == 1) {
    if (inside.size() > 0)
      std::memcpy(to + std::ptrdiff_t(inside.begin) * channels_, line + std::ptrdiff_t(first + inside.begin) * channels_,
                  std::size_t(inside.size()) * channels_ * sizeof(float));
  } else {
    for (int i = inside.begin; i < inside.end; ++i)
      std::memcpy(to + std::ptrdiff_t(i) * channels_, line + std::ptrdiff_t(first + i * step) * channels_, channels_ * sizeof(float));
  }
  border(std::max(inside.begin, inside.end), count, x.input - 1);
}

void SourceLines::prepare(const float* source, std::size_t first_line, int lines, Range columns, float* copies,
                          const float** patches) const {
  const Axis &y = window_.y, &x = window_.x;
  const std::size_t image_line = std::size_t(x.input) * channels_, image_floats = y.input * image_line;
  const std::ptrdiff_t copied_line = line_floats(columns.size());
  for (int done = 0; done < lines;) {
    const int i = static_cast<int>((first_line + done) % y.output), count = std::min(lines - done, y.output - i);
    const float* image = source + (first_line + done) / y.output * image_floats;
    if (!copies_) {
      for (int l = 0; l < count; ++l)
        patches[done + l] = image + y.origin(i + l) * image_line + std::size_t(x.origin(columns.begin)) * channels_;
      done += count;
      continue;
    }
    const int step = y.kernel <= 1 ? y.stride : 1;
    const int needed = y.kernel <= 1 ? count : (count - 1) * y.stride + y.extent();
    for (int l = 0; l < needed; ++l) {
      const int from = y.origin(i) + l * step;
      const bool is_inside = from >= 0 && from < y.input;
      copy_line(is_inside || clamps_ ? image + clamp_index(from, y.input) * image_line : nullptr, columns, copies + l * copied_line);
    }
    for (int l = 0; l < count; ++l) patches[done + l] = copies + (y.kernel <= 1 ? l : l * y.stride) * copied_line;
    copies += needed * copied_line;
    done += count;
  }
}

}  // namespace mpsnn::cpu
