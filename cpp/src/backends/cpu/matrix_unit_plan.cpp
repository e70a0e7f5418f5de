// SPDX-License-Identifier: Apache-2.0
#include "backends/cpu/matrix_unit_plan.hpp"

#include <algorithm>

#include "backends/cpu/gemm.hpp"

namespace mpsnn::cpu {
namespace {

using namespace split;

/// Pixels of a block that make loading and storing the sums cheap, and elements of a slab and the right operand that stay in the
/// second-level cache; sums that stay there beside them.
constexpr int kBlockPixels = 512;
constexpr double kBlockElements = 192 << 10, kNearSums = 96 << 10;
/// Tasks wanted, unless they would have less than some 30 microseconds of work, and the most floats of private sums.
constexpr int kMostTasks = 32;
constexpr double kTaskCycles = 1e5, kSummedFloats = 4 << 20;
/// Cycles of one element: copied, split and transposed; split in pairs; added to its sum, which is near or far away; added to another
/// part; stored in another order. And of a row of a step that is gathered.
constexpr double kTransposed = 1.15, kPaired = 0.75, kNear = 0.25, kFar = 1.0, kPart = 1.0, kReordered = 1.0, kGathered = 8;
/// Six products of 16 cycles for 16 rows, 16 columns and 32 pixels, and what they wait for: a row of tiles alone for its sums and, unless
/// there is one tile, whose operands stay in the first-level cache, for its operands; others for rows that lie across cache lines.
/// Stacked rows are multiplied a few steps at a time, which wait for less, or for far sums.
constexpr double kTileCycles = 6 * 16 * 1.6, kLoneTile = 1.2, kLoneRow = 2, kUnaligned = 1.8, kStackedRow = 0.9, kFarStackedRow = 1.4;

}  // namespace

TapPhases::TapPhases(const Axis& axis, bool is_shared) {
  for (int tap = 0; tap < axis.kernel; ++tap) {
    const int at = tap * axis.dilation, first = is_shared ? at % axis.stride : at;
    const auto is_mine = [&](const Phase& phase) { return phase.first == first; };
    const int known = static_cast<int>(std::find_if(phases.begin(), phases.end(), is_mine) - phases.begin());
    if (known == static_cast<int>(phases.size())) phases.push_back({first, 0});
    phases[known].most_shift = most_shift = (at - first) / axis.stride;
    taps.push_back({known, most_shift});
  }
}

int WeightGradientPlan::Rows::variant(int shift) const { return is_aligned ? shift % kDepth : 0; }

WeightGradientPlan::WeightGradientPlan(const ConvolutionGeometry& geometry, const WeightLayout& layout, int images)
    : geometry(geometry), layout(layout), images(images), rows{false, true, {Axis{}, true}, {Axis{}, true}} {
  exchange();
  merge_groups();
  choose_rows();
  choose_cut();
}

/// Where each pixel sees itself alone, all pixels are one line, and the two images may change places: the image with fewer channels is
/// the one to transpose, and the gradient of natural weights comes out in their order.
void WeightGradientPlan::exchange() {
  const Axis &y = geometry.window.y, &x = geometry.window.x;
  const auto is_pointwise = [](const Axis& a) { return a.kernel == 1 && a.stride == 1 && a.before == 0 && a.input == a.output; };
  if (!is_pointwise(y) || !is_pointwise(x)) return;
  const int pixels = images * y.input * x.input;
  geometry.window = {Axis{}, Axis{pixels, pixels}};
  images = 1;
  const double from = geometry.input_channels, to = geometry.output_channels, order = from / geometry.groups * to * kReordered;
  const double stays = pixels * (kTransposed * from + kPaired * to) + (layout.output == 1 ? 0 : order);
  const double changes = pixels * (kPaired * from + kTransposed * to) + (layout.input == 1 ? 0 : order);
  if (changes >= stays) return;
  is_exchanged = true;
  std::swap(geometry.input_channels, geometry.output_channels);
  std::swap(layout.input, layout.output);
}

/// Two groups or more are taken as one where one does not fill a tile; what belongs to two different groups is not stored.
void WeightGradientPlan::merge_groups() {
  real_inputs = geometry.input_channels / geometry.groups;
  real_outputs = geometry.output_channels / geometry.groups;
  while (geometry.groups % (2 * merged) == 0 && 2 * merged * std::max(real_inputs, real_outputs) <= kColumns) merged *= 2;
  groups = geometry.groups / merged;
  inputs = merged * real_inputs;
  outputs = merged * real_outputs;
  padded = round_up(outputs, kColumns);
}

void WeightGradientPlan::choose_rows() {
  const Axis &y = geometry.window.y, &x = geometry.window.x;
  const int pixels = std::clamp(static_cast<int>(kBlockElements / (inputs + outputs)), kBlockPixels / 2, kBlockPixels);
  chunk = x.output <= 2 * kBlockPixels ? x.output : round_up(ceil_divide(x.output, ceil_divide(x.output, pixels)), kDepth);
  lay_abreast();
  constexpr struct {
    bool is_stacked, is_aligned, shares_lines, shares_columns;
  } kWays[] = {{false, true, true, true}, {false, true, true, false}, {false, true, false, false},
               {false, false, true, true}, {true, true, true, true}};
  double least = 0;
  for (const auto& way : kWays) {
    if (way.is_stacked && (taps() == 1 || geometry.groups > 1 || y.dilation > 1 || x.dilation > 1)) continue;
    const Rows r{way.is_stacked, way.is_aligned, TapPhases(y, way.shares_lines), TapPhases(x, way.shares_columns)};
    const double line = product_cycles(r) + split_cycles(r);
    if (least != 0 && line >= least) continue;
    least = line, rows = r;
  }
  pitch = pitch_of(rows);
  shifts = shifts_of(rows);
  const bool has_gaps = x.output > chunk && (images > 1 || y.output > 1);
  is_direct = !rows.is_stacked && rows.y.most_shift == 0 && rows.x.most_shift == 0 && !has_gaps && y.is_inside() && x.is_inside();
}

void WeightGradientPlan::lay_abreast() {
  gathers = chunk > 0 && chunk <= kDepth && line_pixels() <= kGatheredElements;
  if (gathers) abreast = std::clamp(std::min(kDepth / chunk, kGatheredElements / line_pixels()), 1, std::max(1, images));
}

int WeightGradientPlan::pitch_of(const Rows& r) const { return r.is_stacked ? round_up(abreast * chunk, kDepth) : chunk + r.x.most_shift; }

std::vector<int> WeightGradientPlan::shifts_of(const Rows& r) const {
  std::vector<int> result;
  for (const TapPhases::Tap& ky : r.y.taps)
    for (const TapPhases::Tap& kx : r.x.taps) result.push_back(r.is_stacked ? 0 : r.variant(Rows::shift(ky, kx, pitch_of(r))));
  std::sort(result.begin(), result.end());
  result.erase(std::unique(result.begin(), result.end()), result.end());
  return result;
}

/// Elements of the left operand for a line of windows and a pixel of it.
double WeightGradientPlan::source_elements(const Rows& r, int channels) const {
  const Axis &y = geometry.window.y, &x = geometry.window.x;
  return r.is_stacked ? double(y.stride) * round_up(x.kernel * inputs, kRows) : double(r.slabs()) * round_up(channels, kRows);
}

/// Of a line of windows.
double WeightGradientPlan::product_cycles(const Rows& r) const {
  const int row_tiles = r.is_stacked ? ceil_divide(depth(), kRows) : ceil_divide(inputs, kRows);
  const double stacked = double(groups) * taps() * inputs * padded <= kNearSums ? kStackedRow : kFarStackedRow;
  const double each = row_tiles == 1 ? (padded == kColumns ? kLoneTile : kLoneRow) : r.is_stacked ? stacked : r.is_aligned ? 1 : kUnaligned;
  return pitch_of(r) * each * groups * (r.is_stacked ? 1.0 / abreast : taps()) * row_tiles * (padded / kColumns) * kTileCycles / kDepth;
}

double WeightGradientPlan::left_cycles(const Rows& r) const {
  const Axis &y = geometry.window.y, &x = geometry.window.x;
  if (!r.is_stacked || !gathers) return kTransposed * pitch_of(r) / (r.is_stacked ? abreast : 1) * source_elements(r, inputs * groups);
  return y.stride * (kTransposed * line_pixels() * round_up(inputs, kRows) + kGathered * x.kernel * inputs / abreast);
}
double WeightGradientPlan::split_cycles(const Rows& r) const {
  const double width = r.is_stacked ? chunk : pitch_of(r), most = r.y.most_shift;
  const double more_lines = r.is_stacked ? 1 : 1 + most / std::max(kBlockPixels / width, 4 * most + 1);
  const double variants = double(shifts_of(r).size());
  return more_lines * left_cycles(r) + width * kPaired * variants * groups * outputs;
}

int WeightGradientPlan::shift_lines() const {
  return rows.is_stacked ? (geometry.window.y.kernel - 1) / geometry.window.y.stride : rows.y.most_shift;
}

/// Lines of a block, or whole images.
void WeightGradientPlan::choose_block(int row_parts, int column_parts, int& lines, int& images) const {
  const int output = geometry.window.y.output, channels = ceil_divide(inputs * groups, row_parts);
  const double right = double(shifts.size()) * ceil_divide(padded, column_parts) * (groups > 1 ? ceil_divide(groups, row_parts) : 1);
  const double elements = pitch * (source_elements(rows, channels) / rows.slabs() + right);
  const int most = static_cast<int>(std::clamp(kBlockElements / elements, 1.0, 1e6));
  // What the products of a small group read stays in the first-level cache.
  const int pixels = inputs <= kRows && outputs <= kColumns ? kBlockPixels / 2 : kBlockPixels;
  const int wanted = std::max({1, ceil_divide(pixels, pitch), 4 * shift_lines()}), of_one = std::min(wanted, most);
  const bool is_part = of_one < output;
  lines = is_part ? ceil_divide(output, ceil_divide(output, of_one)) : output;
  images = rows.is_stacked ? abreast : is_part ? 1 : std::clamp(std::min(wanted, most + most / 2) / (output + shift_lines()), 1, this->images);
}

/// The cut that costs least: every part of the rows splits the incoming gradient again, every part of the columns the source, and every
/// part of the pixels writes and adds up private sums; the last task of a thread may keep the others waiting.
void WeightGradientPlan::choose_cut() {
  const Axis &y = geometry.window.y, &x = geometry.window.x;
  const int channels = groups > 1 ? groups : rows.is_stacked ? 1 : ceil_divide(inputs, 2 * kRows);
  const int panels = groups > 1 ? 1 : ceil_divide(padded, 2 * kColumns), chunks = ceil_divide(x.output, chunk);
  const double sums = double(groups) * taps() * inputs * padded, pixels = double(images) * y.output * x.output;
  const double products = double(images) * y.output * chunks * product_cycles(rows);
  const double left = double(images) * y.output * chunks * left_cycles(rows);
  const double right = kPaired * pixels * double(shifts.size()) * outputs * groups;
  const double tasks_wanted = std::clamp(products / kTaskCycles, 1.0, double(kMostTasks));
  for (int r = 1; r <= std::min(channels, kMostTasks); r *= 2) {
    for (int c = 1; c <= std::min(panels, kMostTasks / r); c *= 2) {
      int block_lines = 1, images_of_block = 1;
      choose_block(r, c, block_lines, images_of_block);
      const double count = double(ceil_divide(images, images_of_block)) * chunks * ceil_divide(y.output, block_lines);
      const double parts_wanted = std::clamp(tasks_wanted / (r * c), 1.0, std::min(count, std::max(1.0, kSummedFloats / sums)));
      for (int parts_here = static_cast<int>(parts_wanted); parts_here > 0; parts_here /= 2) {
        const double added = (count - (parts_here == 1)) * sums * (sums / r / c / rows.slabs() <= kNearSums ? kNear : kFar);
        const double here = (c * left + r * right + added + products) * (1 + 1.0 / (parts_here * r * c)) + kPart * (parts_here - 1) * sums;
        if (cycles != 0 && here >= cycles) continue;
        cycles = here, row_parts = r, column_parts = c, parts = parts_here;
        lines = block_lines, block_images = images_of_block, blocks = static_cast<std::size_t>(count);
      }
    }
  }
}

}  // namespace mpsnn::cpu
