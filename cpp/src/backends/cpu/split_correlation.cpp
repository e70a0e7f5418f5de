// SPDX-License-Identifier: Apache-2.0
#include "backends/cpu/split_correlation.hpp"

#include <algorithm>
#include <limits>

#include "core/parallel.hpp"

namespace mpsnn::cpu {
namespace {

/// Tasks wanted, so that eight threads find work; fewer where a task would have less than some 5 microseconds of work.
constexpr std::size_t kSplitTasks = 32;
constexpr double kSplitTaskWork = 2e6;
/// Pixels of a task: the weights are read again for each.
constexpr std::size_t kFewestTaskPixels = 96, kMostTaskPixels = 256;
/// Bytes of the copies of a task, which stay in the second-level cache beside a panel of weights.
constexpr std::size_t kCopyBytes = 640 << 10;
/// Bytes of weights beside them that stay there too.
constexpr std::size_t kNearWeightBytes = 512 << 10;
/// Columns of a task at least: splitting a source number costs as much as its products with 56 columns.
constexpr int kFewestColumns = 128;

std::vector<CorrelationPart> in_one_line(std::vector<CorrelationPart> parts) {
  if (parts.size() == 1) parts[0].shape = in_one_line(parts[0].shape);
  return parts;
}

std::vector<Window> windows_of(const std::vector<CorrelationPart>& parts) {
  std::vector<Window> result;
  for (const CorrelationPart& part : parts) result.push_back(part.shape.window);
  return result;
}

int most_outputs(const std::vector<CorrelationPart>& parts, Axis Window::* axis) {
  int most = 0;
  for (const CorrelationPart& part : parts) most = std::max(most, (part.shape.window.*axis).output);
  return most;
}

std::size_t ceil_part(std::size_t total, std::size_t parts) { return (total + parts - 1) / parts; }

/// Steps of a pixel's sum in a group of so many channels.
double step_count(const std::vector<CorrelationPart>& parts, int channels, bool weaves) {
  double steps = 0;
  for (const CorrelationPart& part : parts) {
    const Axis &y = part.shape.window.y, &x = part.shape.window.x;
    if (weaves) steps += ceil_divide(y.kernel * x.kernel * channels, split::kDepth);
    else if (x.dilation == 1 && channels % split::kDepth != 0) steps += double(y.kernel) * ceil_divide(x.kernel * channels, split::kDepth);
    else steps += double(y.kernel) * x.kernel * ceil_divide(channels, split::kDepth);
  }
  return steps;
}

/// Cycles of the unit for a pixel of each part: products at two thirds of the peak, and the end of each tile; splitting what is
/// read, which is slow in short rows of a group; and weaving.
double pixel_cycles(const std::vector<CorrelationPart>& parts, int merged, bool weaves) {
  const CorrelationShape& shape = parts[0].shape;
  const Axis &y = shape.window.y, &x = shape.window.x;
  const int groups = shape.groups / merged, channels = shape.source_channels / groups, columns = shape.result_channels / groups;
  const double products = ceil_divide(columns, split::kColumns) * (9.0 * step_count(parts, channels, weaves) + 4.0 + 2.0 * (parts.size() - 1));
  const double reads = (weaves ? y.kernel : y.kernel > 1 ? y.stride : 1) * (x.kernel > 1 ? x.stride : 1) * double(channels);
  return groups * (products + reads * (weaves ? 1.2 : groups == 1 || channels >= 2 * split::kDepth ? 0.7 : channels < split::kDepth ? 3.0 : 2.0));
}

bool may_weave(const std::vector<CorrelationPart>& parts) {
  const Axis &y = parts[0].shape.window.y, &x = parts[0].shape.window.x;
  return parts.size() == 1 && parts[0].shape.groups == 1 && y.kernel > 1 && x.kernel > 1 && x.dilation == 1;
}

bool should_weave(const std::vector<CorrelationPart>& parts) {
  return may_weave(parts) && pixel_cycles(parts, 1, true) < pixel_cycles(parts, 1, false);
}

/// Rows of the tiles for an image: those between the lines of a run and behind its end are multiplied too.
double row_count(const std::vector<CorrelationPart>& parts) {
  const int height = most_outputs(parts, &Window::y), width = most_outputs(parts, &Window::x);
  const SplitAxis x = [&] {
    std::vector<Axis> axes;
    for (const CorrelationPart& part : parts) axes.push_back(part.shape.window.x);
    return SplitAxis(axes);
  }();
  const int lines = std::clamp(200 / width, 1, height), pitch = ceil_divide(x.count(width), x.stride());
  const double run = round_up((lines - 1) * pitch + width, split::kRows), by_line = double(lines) * round_up(width, split::kRows);
  return double(height) / lines * std::min(run, by_line);
}

int groups_to_merge(const std::vector<CorrelationPart>& parts) {
  const CorrelationShape& shape = parts[0].shape;
  int best = 1;
  for (int count = 2; count <= shape.groups; ++count) {
    if (shape.groups % count != 0) continue;
    if (count * std::max(shape.source_channels, shape.result_channels) / shape.groups > 2 * split::kDepth) break;
    if (pixel_cycles(parts, count, false) < pixel_cycles(parts, best, false)) best = count;
  }
  return best;
}

}  // namespace

double split_cycles(std::vector<CorrelationPart> parts) {
  parts = in_one_line(std::move(parts));
  const bool weaves = should_weave(parts), is_aligned = parts[0].shape.source_channels % (split::kDepth / 2) == 0;
  const double cycles = weaves ? pixel_cycles(parts, 1, true) : pixel_cycles(parts, groups_to_merge(parts), false);
  // Rows that lie across cache lines take longer to load.
  return parts[0].shape.images * row_count(parts) * cycles * (weaves || is_aligned ? 1 : 1.13);
}

bool can_split(const std::vector<CorrelationPart>& parts) {
  if (!isa().matrix_unit || parts.empty()) return false;
  const CorrelationShape& shape = parts[0].shape;
  return shape.sub_pixel_scale == 1 && shape.images > 0 && shape.source_channels > 0 && shape.result_channels > 0 &&
         most_outputs(parts, &Window::y) > 0 && most_outputs(parts, &Window::x) > 0 && step_count(parts, 1, false) > 0;
}

SplitCorrelation::SplitCorrelation(std::vector<CorrelationPart> parts) {
  parts = in_one_line(std::move(parts));
  merged_ = groups_to_merge(parts);
  most_lines_ = most_outputs(parts, &Window::y);
  most_columns_ = most_outputs(parts, &Window::x);
  for (CorrelationPart& part : parts) {
    part.shape.groups /= merged_;
    parts_.emplace_back().correlation = std::move(part);
  }
  group_channels_ = shape().source_channels / shape().groups;
  group_columns_ = shape().result_channels / shape().groups;
  start_ = AlignedFloats(shape().result_channels);
  choose_parts();
  lay_out_weights();
}

void SplitCorrelation::choose_parts() {
  std::vector<CorrelationPart> parts;
  double depth = 0;
  for (const Part& part : parts_) {
    parts.push_back(part.correlation);
    depth += double(part.correlation.shape.window.y.kernel) * part.correlation.shape.window.x.kernel * group_channels_;
  }
  const std::size_t images = shape().images, image_pixels = std::size_t(most_lines_) * most_columns_, pixels = images * image_pixels;
  const double work = pixels * depth * shape().result_channels;
  const std::size_t wanted = std::clamp<std::size_t>(static_cast<std::size_t>(work / kSplitTaskWork), 2, kSplitTasks);
  const std::size_t block = std::clamp(pixels / wanted, kFewestTaskPixels, kMostTaskPixels);
  image_parts_ = std::clamp<std::size_t>(images * image_pixels / block, 1, images);
  if (image_pixels > block) {
    if (most_lines_ == 1) column_parts_ = image_pixels / block;
    else line_parts_ = std::max<std::size_t>(1, most_lines_ / std::max<std::size_t>(1, block / most_columns_));
  }
  const std::size_t units = std::size_t(shape().groups) * group_units(), tasks = image_parts_ * line_parts_ * column_parts_;
  const std::size_t fewest_units = shape().groups > 1 ? 1 : kFewestColumns / kUnitColumns;
  if (tasks < wanted) channel_parts_ = std::clamp<std::size_t>(units / fewest_units, 1, ceil_part(wanted, tasks));

  const bool weaves = merged_ == 1 && should_weave(parts);
  SplitLines::Limits limits{static_cast<int>(ceil_part(images, image_parts_)), static_cast<int>(ceil_part(most_lines_, line_parts_)),
                            static_cast<int>(ceil_part(most_columns_, column_parts_)), group_channels_};
  lines_.emplace_back(windows_of(parts), shape().source_channels, shape().edge_mode, weaves, limits);
  block_channels_ = group_channels_;
  const std::size_t bytes = lines_[0].floats() * sizeof(float);
  if (!weaves && bytes > kCopyBytes && group_channels_ >= 4 * split::kDepth) {
    const int count = static_cast<int>(std::min<std::size_t>(ceil_part(bytes, kCopyBytes), group_channels_ / (2 * split::kDepth)));
    block_channels_ = limits.channels = round_up(ceil_divide(group_channels_, count), split::kDepth);
    lines_[0] = SplitLines(windows_of(parts), shape().source_channels, shape().edge_mode, false, limits);
  }
  // Rows between the lines and images of a run too.
  const std::size_t rows = limits.images * lines_[0].image() / lines_[0].stride() + limits.columns;
  places_offset_ = round_up<std::size_t>(lines_[0].floats(), 16);
  scratch_floats_ = places_offset_ + rows * (sizeof(std::ptrdiff_t) / sizeof(float));
}

void SplitCorrelation::lay_out_weights() {
  std::size_t count = 0;
  for (Part& part : parts_) {
    part.weights_offset = count;
    part.first_step.push_back(0);
    for (int block = 0; block < blocks(); ++block) {
      const int channels = block_channels(block).size();
      std::vector<std::ptrdiff_t>& offsets = part.offsets.emplace_back();
      for (const SplitPiece& piece : part.pieces.emplace_back(lines_[0].pieces(part.correlation.shape.window, channels)))
        for (int k = 0; k < piece.taps * channels; k += split::kDepth) offsets.push_back(piece.offset + k);
      part.first_step.push_back(part.first_step.back() + offsets.size());
    }
    count += tile_elements(part) * shape().groups * ceil_divide(group_columns_, split::kColumns);
  }
  packed_floats_ = count / 2;
}

bool SplitCorrelation::has_whole_pixels() const { return channel_parts_ == 1 && parts_.size() == 1 && shape().step_x == 1; }

std::string SplitCorrelation::algorithm() const {
  return std::string("implicit GEMM ") + isa().name + ", 3 x bfloat16" + (lines_[0].weaves() ? ", lines woven" : "") +
         (parts_.size() > 1 ? ", " + std::to_string(parts_.size()) + " phases" : "");
}

void SplitCorrelation::pack(const float* weights, const float* bias) {
  const std::size_t units = std::size_t(shape().groups) * group_units();
  parallel_for(parts_.size() * units, [&](std::size_t task, int) {
    const int unit = static_cast<int>(task % units);
    pack_unit(parts_[task / units], weights, unit / group_units(), unit % group_units());
  });
  has_start_ = bias != nullptr;
  if (bias) std::copy_n(bias, shape().result_channels, start_.data());
}

void SplitCorrelation::pack_unit(const Part& part, const float* weights, int group, int unit) const {
  const CorrelationWeights& from = part.correlation.weights;
  const Range columns{unit * kUnitColumns, std::min(group_columns_, (unit + 1) * kUnitColumns)};
  const std::size_t tile = std::size_t(group) * ceil_divide(group_columns_, split::kColumns) + 2 * unit;
  auto* to = reinterpret_cast<std::uint16_t*>(packed_weights_) + part.weights_offset + tile * tile_elements(part);
  const float* first = weights + from.offset + std::ptrdiff_t(group) * merged_ * from.group;
  alignas(64) float panel[split::kDepth * kUnitColumns];
  for (int block = 0; block < blocks(); ++block) {
    const Range channels = block_channels(block);
    for (const SplitPiece& piece : part.pieces[block])
      for (int k = 0, depth = piece.taps * channels.size(); k < depth; k += split::kDepth) {
        std::fill_n(panel, split::kDepth * kUnitColumns, 0.0f);
        fill_step(from, first, piece, {k, std::min(depth, k + split::kDepth)}, channels, columns, panel);
        isa().matrix_unit->split_pairs(panel, kUnitColumns, split::kDepth, columns.size(), to, tile_elements(part));
        to += split::kParts * split::kTile;
      }
  }
}

/// Terms of a piece, rows of `panel`.
void SplitCorrelation::fill_step(const CorrelationWeights& weights, const float* from, const SplitPiece& piece, Range terms, Range channels,
                                 Range columns, float* panel) const {
  const int member_channels = group_channels_ / merged_, member_columns = group_columns_ / merged_;
  const int taps_y = static_cast<int>(weights.taps_y.size());
  for (int k = terms.begin; k < terms.end;) {
    const int tap = k / channels.size(), channel = channels.begin + k % channels.size();
    const int member = channel / member_channels, in_member = channel % member_channels;
    const int count = std::min({terms.end - k, member_channels - in_member, channels.end - channel});
    const int tap_y = lines_[0].weaves() ? tap % taps_y : piece.tap_y, tap_x = lines_[0].weaves() ? tap / taps_y : piece.tap_x + tap;
    // The columns of this member of the merged groups: all of them where nothing is merged.
    const int first = std::max(columns.begin, member * member_columns), last = std::min(columns.end, (member + 1) * member_columns);
    if (last > first)
      pack_rows(from + member * weights.group + (first - member * member_columns) * weights.result + weights.taps_y[tap_y] * weights.y +
                    weights.taps_x[tap_x] * weights.x + in_member * weights.source,
                weights.source, weights.result, count, last - first,
                panel + std::ptrdiff_t(k - terms.begin) * kUnitColumns + (first - columns.begin), kUnitColumns, 0);
    k += count;
  }
}

SplitCorrelation::Task SplitCorrelation::task_at(std::size_t task) const {
  const auto part_of = [](std::size_t total, std::size_t part, std::size_t parts) {
    return Range{static_cast<int>(part_begin(total, part, parts)), static_cast<int>(part_begin(total, part + 1, parts))};
  };
  Task result;
  result.windows.columns = part_of(most_columns_, task % column_parts_, column_parts_);
  task /= column_parts_;
  result.windows.lines = part_of(most_lines_, task % line_parts_, line_parts_);
  task /= line_parts_;
  result.windows.images = part_of(shape().images, task % image_parts_, image_parts_);
  result.units = part_of(std::size_t(shape().groups) * group_units(), task / image_parts_, channel_parts_);
  return result;
}

void SplitCorrelation::run_task(std::size_t index, const float* source, float* result, FinishPixels* finish,
                                float* scratch) const {
  const Task task = task_at(index);
  const OpenMatrixUnit open(isa().matrix_unit);
  for (int group = task.units.begin / group_units(); group * group_units() < task.units.end; ++group) {
    const Range units{std::max(0, task.units.begin - group * group_units()), std::min(group_units(), task.units.end - group * group_units())};
    for (int block = 0; block < blocks(); ++block) {
      const Range channels = block_channels(block);
      lines_[0].copy(source, task.windows, {group * group_channels_ + channels.begin, group * group_channels_ + channels.end}, scratch);
      for (const Part& part : parts_) multiply(part, task, group, units, block, result, scratch);
    }
  }
  if (!finish || !has_whole_pixels()) return;
  for (int n = task.windows.images.begin; n < task.windows.images.end; ++n)
    for (int i = task.windows.lines.begin; i < task.windows.lines.end; ++i)
      (*finish)(result + ((std::size_t(n) * shape().result_height + i) * shape().result_width + task.windows.columns.begin) * shape().result_channels,
                task.windows.columns.size());
}

/// Lines alone, or with the rows between them in one run, images too, whichever has fewest tiles.
SplitCorrelation::Runs SplitCorrelation::choose_runs(const CorrelationShape& shape, const Range (&windows)[3], std::ptrdiff_t* places) const {
  const SplitLines& copies = lines_[0];
  const int images = windows[0].size(), lines = windows[1].size(), columns = windows[2].size();
  const int line_rows = static_cast<int>(copies.line() / copies.stride()), image_rows = static_cast<int>(copies.image() / copies.stride());
  const int image_run = (lines - 1) * line_rows + columns, whole_run = (images - 1) * image_rows + image_run;
  const bool is_dense = shape.step_y == 1 && shape.step_x == 1 && columns == shape.result_width && columns == line_rows &&
                        (images == 1 || (lines == shape.result_height && image_rows == lines * line_rows));
  if (is_dense) return {1, 1, whole_run, nullptr};
  // Two tiles of rows share the loads of the right operand; one alone takes some 0.7 times as long as two.
  const auto cost = [](int rows) { return (10 * ceil_divide(rows, split::kRows) + 4 * (ceil_divide(rows, split::kRows) % 2)); };
  const int by_line = images * lines * cost(columns), by_image = images * cost(image_run), whole = cost(whole_run);
  if (by_line <= std::min(by_image, whole)) return {images, lines, columns, nullptr};
  const bool joins_images = whole < by_image;
  const int rows = joins_images ? whole_run : image_run;
  std::fill_n(places, rows, -1);
  for (int n = 0; n < (joins_images ? images : 1); ++n)
    for (int i = 0; i < lines; ++i)
      for (int j = 0; j < columns; ++j)
        places[n * image_rows + i * line_rows + j] =
            ((std::ptrdiff_t(n) * shape.result_height + i * shape.step_y) * shape.result_width + j * shape.step_x) * shape.result_channels;
  return {joins_images ? 1 : images, 1, rows, places};
}

void SplitCorrelation::multiply(const Part& part, const Task& task, int group, Range units, int block, float* result, float* scratch) const {
  const CorrelationShape& shape = part.correlation.shape;
  const SplitLines& copies = lines_[0];
  const auto& w = task.windows;
  const Range windows[3] = {w.images,
                            {w.lines.begin, std::min(w.lines.end, shape.window.y.output)},
                            {w.columns.begin, std::min(w.columns.end, shape.window.x.output)}};
  const std::size_t steps = part.offsets[block].size();
  if (windows[1].size() == 0 || windows[2].size() == 0 || (steps == 0 && block > 0)) return;
  const Runs runs = choose_runs(shape, windows, reinterpret_cast<std::ptrdiff_t*>(scratch + places_offset_));
  const auto* weights = reinterpret_cast<const std::uint16_t*>(packed_weights_) + part.weights_offset;
  const std::size_t group_tile = std::size_t(group) * ceil_divide(group_columns_, split::kColumns);
  SplitProduct product{};
  product.steps = steps;
  product.a_stride = copies.stride();
  product.a_part = copies.part();
  product.offsets = part.offsets[block].data();
  product.b_columns = tile_elements(part);
  product.c_stride = std::size_t(shape.step_x) * shape.result_channels;
  product.overwrites = block == 0;
  // Weights that stay in the second-level cache meet a few rows at a time, which are written as they lie; others meet all rows of a run.
  const std::size_t bytes = tile_elements(part) * sizeof(std::uint16_t) * 2 * units.size();
  const int most_rows = bytes <= kNearWeightBytes ? 2 * split::kRows : runs.rows;
  const auto multiply_rows = [&](const std::uint16_t* a, float* c, int first_row, int unit) {
    const int column = group * group_columns_ + unit * kUnitColumns;
    product.rows = std::min(most_rows, runs.rows - first_row);
    product.a = a + first_row * copies.stride();
    product.columns = std::min(kUnitColumns, group_columns_ - unit * kUnitColumns);
    product.b = weights + (group_tile + 2 * unit) * tile_elements(part) + part.first_step[block] * (split::kParts * split::kTile);
    product.c = c + (runs.places ? 0 : first_row * product.c_stride) + column;
    product.c_rows = runs.places ? runs.places + first_row : nullptr;
    product.start = has_start_ && block == 0 ? start_.data() + column : nullptr;
    isa().matrix_unit->multiply(product);
  };
  const auto multiply_runs = [&](Range run_units) {
    for (int n = 0; n < runs.images; ++n)
      for (int i = 0; i < runs.lines; ++i) {
        const std::size_t image = windows[0].begin + n, line = shape.first_y + std::size_t(windows[1].begin + i) * shape.step_y;
        const std::size_t pixel = (image * shape.result_height + line) * shape.result_width + shape.first_x +
                                  std::size_t(windows[2].begin) * shape.step_x;
        const auto* a = reinterpret_cast<const std::uint16_t*>(scratch) + n * copies.image() + i * copies.line();
        for (int row = 0; row < runs.rows; row += most_rows)
          for (int unit = run_units.begin; unit < run_units.end; ++unit) multiply_rows(a, result + pixel * shape.result_channels, row, unit);
      }
  };
  if (bytes <= kNearWeightBytes) return multiply_runs(units);
  for (int unit = units.begin; unit < units.end; ++unit) multiply_runs({unit, unit + 1});
}

}  // namespace mpsnn::cpu
