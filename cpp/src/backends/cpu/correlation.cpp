// SPDX-License-Identifier: Apache-2.0
#include "backends/cpu/correlation.hpp"

#include <algorithm>
#include <cstring>

#include "backends/cpu/neuron.hpp"
#include "core/parallel.hpp"

namespace mpsnn::cpu {
namespace {

/// Tasks that a correlation should have, so that eight threads find work and a slow one can be helped.
constexpr std::size_t kTasks = 32;
/// Tiles of rows in a task: the panels of weights are read again for each task, so each should serve many rows.
constexpr int kRowTiles = 8;
/// Values of computed pixels that a thread holds before it scatters them: 256 KiB.
constexpr int kScatteredFloats = 65536;

std::size_t choose_a_stride(const Patches& patches) {
  // Rows of a tile a multiple of 4 KiB apart would all want the same few lines of the first-level cache: copy those.
  return patches.source_stride() % 1024 == 0 ? 0 : patches.source_stride();
}

}  // namespace

Correlation::Correlation(const CorrelationShape& shape, CorrelationWeights weights)
    : isa_(isa()),
      shape_(shape),
      weights_(std::move(weights)),
      patches_(shape.window, shape.source_channels, shape.groups, shape.edge_mode),
      packed_(isa_, patches_.depth(), shape.result_channels / shape.groups, patches_.unit(kMaxDepth)),
      packed_weights_(packed_.count() * shape.groups),
      start_(std::size_t(packed_.padded_columns()) * shape.groups),
      pixels_(std::size_t(std::max(0, shape.images)) * std::max(0, shape.window.y.output) * std::max(0, shape.window.x.output)),
      a_stride_(choose_a_stride(patches_)),
      is_scattered_(shape.sub_pixel_scale > 1 || shape.step_y > 1 || shape.step_x > 1) {
  std::fill_n(start_.data(), std::size_t(packed_.padded_columns()) * shape.groups, 0.0f);
  choose_parts();
}

void Correlation::choose_parts() {
  if (pixels_ == 0) return;
  int block = kRowTiles * isa_.rows;
  if (is_scattered_) block = std::clamp(kScatteredFloats / shape_.result_channels, isa_.rows, block);
  const std::size_t units = std::size_t(shape_.groups) * packed_.panels();
  pixel_parts_ = (pixels_ + block - 1) / block;
  // A block of sub-pixels is written as a whole. Else few pixels, as of a fully connected layer, are shared out by channels.
  if (shape_.sub_pixel_scale == 1 && pixel_parts_ < kTasks)
    column_parts_ = std::min(units, (kTasks + pixel_parts_ - 1) / pixel_parts_);
  const std::size_t rows = std::min<std::size_t>(block, pixels_ / pixel_parts_ + 1);
  // An odd number of cache lines, so that rows do not fall on each other.
  gather_stride_ = round_up(packed_.max_block_depth(), 16) | 16;
  if (a_stride_ == 0) patches_offset_ = scratch_.add(rows * gather_stride_);
  if (is_scattered_) values_offset_ = scratch_.add(rows * shape_.result_channels);
}

void Correlation::pack(const float* weights, const float* bias) {
  const int panels = packed_.panels(), blocks = packed_.blocks();
  parallel_for(std::size_t(shape_.groups) * panels * blocks, [&](std::size_t task, int) {
    pack_panel(weights, static_cast<int>(task / panels / blocks), static_cast<int>(task / panels % blocks),
               static_cast<int>(task % panels));
  });
  if (!bias) return;
  const int channels = packed_.columns();
  for (int group = 0; group < shape_.groups; ++group)
    std::copy_n(bias + std::ptrdiff_t(group) * channels, channels,
                start_.data() + std::ptrdiff_t(group) * packed_.padded_columns());
}

void Correlation::pack_panel(const float* weights, int group, int block, int panel) {
  const int channels = shape_.source_channels / shape_.groups, taps_x = static_cast<int>(weights_.taps_x.size());
  float* to = packed_weights_.data() + group * packed_.count() + packed_.offset(block, panel);
  const float* from =
      weights + weights_.offset + group * weights_.group + std::ptrdiff_t(panel) * isa_.tile_columns() * weights_.result;
  const int begin = packed_.block_begin(block), end = packed_.block_begin(block + 1);
  const int columns = packed_.panel_columns(panel), stride = packed_.panel_stride(panel);
  for (int k = begin; k < end;) {
    const int tap = k / channels, channel = k % channels, count = std::min(channels - channel, end - k);
    const float* source = from + weights_.taps_y[tap / taps_x] * weights_.y + weights_.taps_x[tap % taps_x] * weights_.x +
                          channel * weights_.source;
    pack_rows(source, weights_.source, weights_.result, count, columns, to + std::ptrdiff_t(k - begin) * stride, stride,
              stride - columns);
    k += count;
  }
}

void Correlation::multiply_group(int group, Range panels, std::size_t first_pixel, int pixels, const float* source, float* result,
                                 std::size_t stride, float* scratch) const {
  const float* weights = packed_weights_.data() + group * packed_.count();
  const float* start = start_.data() + std::ptrdiff_t(group) * packed_.padded_columns();
  for (int block = 0; block < packed_.blocks(); ++block) {
    const int begin = packed_.block_begin(block), end = packed_.block_begin(block + 1);
    const float* a;
    std::size_t a_stride = a_stride_;
    if (a_stride_ != 0) {
      a = source + first_pixel * a_stride_ + std::ptrdiff_t(group) * (shape_.source_channels / shape_.groups) + begin;
    } else {
      float* rows = scratch + patches_offset_;
      a_stride = gather_stride_;
      patches_.gather(source, group, first_pixel, pixels, begin, end, rows, a_stride);
      a = rows;
    }
    multiply_rows(isa_, pixels, a, a_stride, packed_, weights, block, panels, result + std::ptrdiff_t(group) * packed_.columns(),
                  stride, block == 0 ? start : nullptr);
  }
}

void Correlation::run_task(std::size_t task, const float* source, float* result, const NNNeuronDescriptor* neuron,
                           float* scratch) const {
  const std::size_t pixel_part = task / column_parts_, column_part = task % column_parts_;
  const std::size_t first_pixel = part_begin(pixels_, pixel_part, pixel_parts_);
  const int pixels = static_cast<int>(part_begin(pixels_, pixel_part + 1, pixel_parts_) - first_pixel);
  const int panels = packed_.panels();
  const std::size_t units = std::size_t(shape_.groups) * panels;
  const int first_unit = static_cast<int>(part_begin(units, column_part, column_parts_));
  const int last_unit = static_cast<int>(part_begin(units, column_part + 1, column_parts_));
  float* values = is_scattered_ ? scratch + values_offset_ : result + first_pixel * shape_.result_channels;

  for (int group = first_unit / panels; group * panels < last_unit; ++group)
    multiply_group(group, {std::max(0, first_unit - group * panels), std::min(panels, last_unit - group * panels)}, first_pixel,
                   pixels, source, values, shape_.result_channels, scratch);
  if (neuron && has_whole_pixels()) apply_neuron(*neuron, values, pixels, shape_.result_channels);
  if (!is_scattered_) return;
  const auto channel_of = [&](int unit) {
    return std::min(shape_.result_channels, unit / panels * packed_.columns() + unit % panels * isa_.tile_columns());
  };
  scatter(first_pixel, pixels, {channel_of(first_unit), channel_of(last_unit)}, values, result);
}

void Correlation::scatter(std::size_t first_pixel, int pixels, Range channels, const float* values, float* result) const {
  const Axis &y = shape_.window.y, &x = shape_.window.x;
  for (int pixel = 0; pixel < pixels; ++pixel) {
    const std::size_t index = first_pixel + pixel;
    scatter_pixel(static_cast<int>(index / x.output / y.output), static_cast<int>(index / x.output % y.output),
                  static_cast<int>(index % x.output), channels, values + std::size_t(pixel) * shape_.result_channels, result);
  }
}

void Correlation::scatter_pixel(int image, int i, int j, Range channels, const float* values, float* result) const {
  const int r = shape_.sub_pixel_scale, sub_channels = shape_.result_channels / (r * r);
  const auto place = [&](int y, int x) {
    return result + ((std::size_t(image) * shape_.result_height + y) * shape_.result_width + x) * sub_channels;
  };
  if (r == 1) {
    float* to = place(shape_.first_y + i * shape_.step_y, shape_.first_x + j * shape_.step_x);
    std::memcpy(to + channels.begin, values + channels.begin, channels.size() * sizeof(float));
    return;
  }
  for (int y = 0; y < r; ++y)
    std::memcpy(place(i * r + y, j * r), values + std::ptrdiff_t(y) * r * sub_channels,
                std::size_t(r) * sub_channels * sizeof(float));
}

}  // namespace mpsnn::cpu
