// SPDX-License-Identifier: Apache-2.0
#include "backends/cpu/vector_correlation.hpp"

#include <algorithm>
#include <cstring>

#include "core/parallel.hpp"

namespace mpsnn::cpu {
namespace {

/// Tasks that a correlation should have, so that eight threads find work and a slow one can be helped; fewer where a task would
/// have less than some 10 microseconds of work.
constexpr std::size_t kCorrelationTasks = 48;
constexpr double kCorrelationTaskWork = 1e6;
/// Pixels of a task. A panel of weights is read again for each task, so it should serve many; their patches, kMaxDepth deep, should
/// fill no more than a part of the second-level cache: 256 x 320 floats are 320 KiB.
constexpr std::size_t kFewestPixels = 96, kMostPixels = 256;

/// Groups with fewer channels than a vector has lanes are merged: products with the zeros between them cost no more than unused
/// lanes do, and there are fewer and deeper tiles.
int groups_to_merge(const Isa& isa, const CorrelationShape& shape) {
  const int channels = shape.result_channels / shape.groups;
  for (int count = channels > 0 ? isa.lanes / channels : 1; count > 1; --count)
    if (shape.groups % count == 0) return count;
  return 1;
}

CorrelationShape merged(CorrelationShape shape, int groups) {
  shape.groups /= groups;
  return shape;
}

std::size_t line_count(const CorrelationShape& shape) {
  if (shape.window.x.output < 1 || shape.window.y.output < 1) return 0;
  return std::size_t(std::max(0, shape.images)) * shape.window.y.output;
}

}  // namespace

VectorCorrelation::VectorCorrelation(const CorrelationShape& shape, CorrelationWeights weights)
    : isa_(isa_for_columns(shape.result_channels / shape.groups)),
      merged_(groups_to_merge(isa_, shape)),
      shape_(merged(in_one_line(shape), merged_)),
      weights_(std::move(weights)),
      source_lines_(shape_.window, shape.source_channels, shape_.groups, shape.edge_mode),
      vectors_(best_vectors(isa_, std::clamp(shape_.window.x.output, 1, 1000), shape.result_channels / shape_.groups,
                            std::min(kMaxDepth, source_lines_.depth()))),
      packed_(isa_, source_lines_.depth(), shape.result_channels / shape_.groups, std::max(1, source_lines_.piece_depth()), vectors_),
      start_(std::size_t(packed_.padded_columns()) * shape_.groups),
      lines_(line_count(shape_)) {
  std::fill_n(start_.data(), std::size_t(packed_.padded_columns()) * shape_.groups, 0.0f);
  if (lines_ > 0) choose_parts();
}

void VectorCorrelation::choose_parts() {
  const std::size_t columns = shape_.window.x.output, pixels = lines_ * columns;
  const double pixel_work = double(packed_.depth()) * shape_.result_channels;
  const std::size_t wanted = std::clamp<std::size_t>(static_cast<std::size_t>(pixels * pixel_work / kCorrelationTaskWork), 2, kCorrelationTasks);
  const std::size_t block = std::clamp(pixels / wanted, kFewestPixels, kMostPixels);
  if (lines_ == 1 || (shape_.window.y.kernel <= 1 && columns > block)) {
    line_parts_ = lines_;
    column_parts_ = std::max<std::size_t>(1, columns / block);
  } else {
    line_parts_ = std::max<std::size_t>(1, lines_ / std::max<std::size_t>(1, block / columns));
  }
  // A block of sub-pixels is written as a whole. Else few pixels, as of a fully connected layer, are shared out by channels.
  const std::size_t units = std::size_t(shape_.groups) * packed_.panels(), parts = line_parts_ * column_parts_;
  if (shape_.sub_pixel_scale == 1 && parts < wanted) channel_parts_ = std::min(units, (wanted + parts - 1) / parts);

  const int most_lines = static_cast<int>((lines_ + line_parts_ - 1) / line_parts_);
  const int most_columns = static_cast<int>((columns + column_parts_ - 1) / column_parts_);
  copies_offset_ = scratch_.add(source_lines_.copied_floats(most_lines, most_columns));
  stretches_offset_ = scratch_.add(most_lines * (sizeof(Stretch) + sizeof(const float*)) / sizeof(float));
  if (shape_.sub_pixel_scale > 1) values_offset_ = scratch_.add(std::size_t(most_lines) * most_columns * shape_.result_channels);
}

std::string VectorCorrelation::algorithm() const {
  return "implicit GEMM " + std::to_string(isa_.piece_rows[vectors_ - 1]) + "x" + std::to_string(vectors_ * isa_.lanes) + " " +
         isa_.name + (source_lines_.copies() ? ", lines copied" : "");
}

void VectorCorrelation::pack(const float* weights, const float* bias) {
  const int panels = packed_.panels(), blocks = packed_.blocks();
  unpacked_ = packs_in_tasks() ? weights : nullptr;
  if (!unpacked_) {
    parallel_for(std::size_t(shape_.groups) * panels * blocks, [&](std::size_t task, int) {
      pack_panel(weights, static_cast<int>(task / panels / blocks), static_cast<int>(task / panels % blocks),
                 static_cast<int>(task % panels));
    });
  }
  if (!bias) return;
  const int channels = packed_.columns();
  for (int group = 0; group < shape_.groups; ++group)
    std::copy_n(bias + std::ptrdiff_t(group) * channels, channels,
                start_.data() + std::ptrdiff_t(group) * packed_.padded_columns());
}

void VectorCorrelation::pack_panel(const float* weights, int group, int block, int panel) const {
  const int channels = shape_.source_channels / shape_.groups / merged_, taps_x = static_cast<int>(weights_.taps_x.size());
  const int group_columns = packed_.columns() / merged_, first_column = panel * packed_.tile_columns();
  float* to = packed_weights_ + group * packed_.count() + packed_.offset(block, panel);
  const int begin = packed_.block_begin(block), end = packed_.block_begin(block + 1);
  const int columns = packed_.panel_columns(panel), stride = packed_.panel_stride(panel);
  if (merged_ > 1) std::fill_n(to, std::size_t(end - begin) * stride, 0.0f);
  for (int k = begin; k < end;) {
    const int run = k / channels, channel = k % channels, count = std::min(channels - channel, end - k);
    const int tap = run / merged_, member = run % merged_;
    // The columns of this member of the merged groups that lie in the panel: all of them where nothing is merged.
    const int first = std::max(first_column, member * group_columns);
    const int used = std::min(first_column + columns, (member + 1) * group_columns) - first;
    const float* source = weights + weights_.offset + (std::ptrdiff_t(group) * merged_ + member) * weights_.group +
                          (first - member * group_columns) * weights_.result + weights_.taps_y[tap / taps_x] * weights_.y +
                          weights_.taps_x[tap % taps_x] * weights_.x + channel * weights_.source;
    if (used > 0)
      pack_rows(source, weights_.source, weights_.result, count, used, to + std::ptrdiff_t(k - begin) * stride + (first - first_column),
                stride, merged_ > 1 ? 0 : stride - columns);
    k += count;
  }
}

void VectorCorrelation::run_task(std::size_t task, const float* source, float* result, FinishPixels* finish,
                           float* scratch) const {
  const std::size_t column_part = task % column_parts_, line_part = task / column_parts_ % line_parts_,
                    channel_part = task / column_parts_ / line_parts_;
  const std::size_t first_line = part_begin(lines_, line_part, line_parts_), columns = shape_.window.x.output;
  const int lines = static_cast<int>(part_begin(lines_, line_part + 1, line_parts_) - first_line);
  const std::size_t units = std::size_t(shape_.groups) * packed_.panels();
  const Tile tile{{static_cast<int>(part_begin(columns, column_part, column_parts_)),
                   static_cast<int>(part_begin(columns, column_part + 1, column_parts_))},
                  {static_cast<int>(part_begin(units, channel_part, channel_parts_)),
                   static_cast<int>(part_begin(units, channel_part + 1, channel_parts_))}};
  auto* stretches = reinterpret_cast<Stretch*>(scratch + stretches_offset_);
  list_stretches(first_line, lines, tile.columns, source, result, scratch, stretches);
  multiply(stretches, lines, tile);
  if (finish && has_whole_pixels())
    for (int i = 0; i < lines; ++i) (*finish)(stretches[i].result, tile.columns.size());
  if (shape_.sub_pixel_scale == 1) return;
  for (int i = 0; i < lines; ++i) scatter_blocks(first_line + i, tile.columns, stretches[i].result, result);
}

void VectorCorrelation::list_stretches(std::size_t first_line, int lines, Range columns, const float* source, float* result,
                                 float* scratch, Stretch* stretches) const {
  auto** patches = reinterpret_cast<const float**>(stretches + lines);
  source_lines_.prepare(source, first_line, lines, columns, scratch + copies_offset_, patches);
  for (int i = 0; i < lines; ++i) {
    float* to = shape_.sub_pixel_scale > 1 ? scratch + values_offset_ + std::size_t(i) * columns.size() * shape_.result_channels
                                           : result + result_pixel(first_line + i, columns.begin) * shape_.result_channels;
    stretches[i] = {patches[i], to};
  }
}

std::size_t VectorCorrelation::result_pixel(std::size_t line, int column) const {
  const std::size_t image = line / shape_.window.y.output, i = line % shape_.window.y.output;
  return (image * shape_.result_height + shape_.first_y + i * shape_.step_y) * shape_.result_width + shape_.first_x +
         std::size_t(column) * shape_.step_x;
}

void VectorCorrelation::multiply(const Stretch* stretches, int lines, const Tile& tile) const {
  const int panels = packed_.panels();
  for (int group = tile.units.begin / panels; group * panels < tile.units.end; ++group) {
    const int first = std::max(0, tile.units.begin - group * panels), last = std::min(panels, tile.units.end - group * panels);
    for (int block = 0; block < packed_.blocks(); ++block)
      for (int panel = first; panel < last; ++panel) {
        if (unpacked_) pack_panel(unpacked_, group, block, panel);
        multiply_panel(stretches, lines, tile.columns.size(), group, block, panel);
      }
  }
}

void VectorCorrelation::multiply_panel(const Stretch* stretches, int lines, int pixels, int group, int block, int panel) const {
  const int depth = source_lines_.piece_depth(), first_column = panel * packed_.tile_columns();
  const int begin = packed_.block_begin(block), block_depth = packed_.block_depth(block);
  const bool is_whole = depth > 0 && block_depth % depth == 0;  // whole pieces, else a part of one
  PieceProduct product;
  product.pieces = source_lines_.pieces().data() + (depth > 0 ? begin / depth : 0);
  product.piece_count = is_whole ? block_depth / depth : std::min(1, block_depth);
  product.piece_depth = is_whole ? depth : block_depth;
  product.a_stride = source_lines_.stride();
  product.b = packed_weights_ + group * packed_.count() + packed_.offset(block, panel);
  product.c_stride = std::size_t(shape_.step_x) * shape_.result_channels;
  product.start = block == 0 ? start_.data() + std::ptrdiff_t(group) * packed_.padded_columns() + first_column : nullptr;
  product.columns = packed_.panel_columns(panel);
  const int vectors = ceil_divide(product.columns, isa_.lanes), tiles = ceil_divide(pixels, isa_.piece_rows[vectors - 1]);
  const std::ptrdiff_t source_offset =
      std::ptrdiff_t(group) * source_lines_.group_channels() + (depth > 0 && !is_whole ? begin % depth : 0);
  const std::ptrdiff_t result_offset = std::ptrdiff_t(group) * packed_.columns() + first_column;
  for (int line = 0; line < lines; ++line) {
    for (int tile = 0; tile < tiles; ++tile) {
      const int pixel = static_cast<int>(part_begin(pixels, tile, tiles));
      const int rows = static_cast<int>(part_begin(pixels, tile + 1, tiles)) - pixel;
      product.a = stretches[line].patch + source_offset + pixel * product.a_stride;
      product.c = stretches[line].result + result_offset + pixel * product.c_stride;
      isa_.piece_tiles[vectors - 1][rows - 1](product);
    }
  }
}

/// Blocks of sub-pixels of the windows `columns` in a line, from their channels.
void VectorCorrelation::scatter_blocks(std::size_t line, Range columns, const float* values, float* result) const {
  const int r = shape_.sub_pixel_scale, channels = shape_.result_channels / (r * r);
  const std::size_t image = line / shape_.window.y.output, i = line % shape_.window.y.output;
  for (int j = columns.begin; j < columns.end; ++j)
    for (int y = 0; y < r; ++y, values += std::ptrdiff_t(r) * channels)
      std::memcpy(result + ((image * shape_.result_height + i * r + y) * shape_.result_width + std::size_t(j) * r) * channels, values,
                  std::size_t(r) * channels * sizeof(float));
}

}  // namespace mpsnn::cpu
