// SPDX-License-Identifier: Apache-2.0
#include "backends/cpu/winograd.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace mpsnn::cpu {
const WinogradTransforms* winograd_transforms(int taps, Precision precision) {
  if (taps == 3) return precision == Precision::strict ? &isa().winograd_two : &isa().winograd_four;
  return taps == 5 && precision == Precision::fast ? &isa().winograd_five_taps : nullptr;
}

namespace {

/// Storing the 36 positions of a vector into the second-level cache sets the pace of a transform: 250 cycles with 16 lanes, 130
/// with 8; 200 next to products that leave it room. Weights are read from farther away and transposed: 27 cycles for a pair of channels.
double vector_cycles(int positions, double sources, int results, double tiles) {
  const double lanes = isa().lanes, vectors = ceil_divide(results, isa().lanes);
  const double images = tiles * 0.36 * lanes * positions * (std::ceil(sources / lanes) + vectors);
  return images + tiles * positions * sources * vectors / kVectorMultiplyAdds + 0.75 * positions * sources * results;
}

/// Products wait for the first-level cache: 42 multiply-adds a cycle. Splitting and storing the transformed weights takes 45 cycles more
/// for a pair of channels, and each task reads them from far away.
double stored_cycles(int positions, double sources, double results, double tiles) {
  const double most = stored_tiles(positions, static_cast<int>(sources), static_cast<int>(results)), task_tiles = std::clamp(tiles / 2, 1.0, most);
  return positions * (tiles * (0.36 * (sources + results) + sources * results / 42) + (2 + 0.9 * std::max(1.0, tiles / task_tiles)) * sources * results);
}

/// Sums leave the first-level cache, and return, every 32 source channels: 40 multiply-adds a cycle. 26 cycles for each pair of channels and
/// block of tiles, 50 for each source channel of a tile, which goes to memory that threads share, 40 for each result channel.
double deep_cycles(int positions, double sources, double results, double tiles) {
  const double blocks = std::ceil(tiles / kDeepTiles), rows = round_up(static_cast<std::size_t>(tiles), std::size_t(split::kRows));
  return rows * positions * sources * results / 40 + 26 * blocks * sources * results + tiles * (50 * sources + 40 * results);
}

}  // namespace

/// Weights of up to so many bytes stay in the second-level cache beside the tiles, which then should be few; others come from farther away for
/// each task, as fast as products of so many more tiles need them.
int stored_tiles(int positions, int sources, int results) {
  constexpr double kNearBytes = 2 << 20, kTileBytes = 5 << 20;
  const double depth = round_up(sources, split::kDepth), columns = round_up(results, split::kColumns);
  if (positions * split::kParts * sizeof(std::uint16_t) * depth * columns <= kNearBytes) return 4 * split::kRows;
  return std::clamp(static_cast<int>(kTileBytes / (positions * sizeof(float) * std::max(depth, columns)) / split::kRows), 1, 8) * split::kRows;
}

WinogradPlan plan_winograd(const WinogradTransforms& transforms, int sources, int results, std::size_t tiles) {
  const int positions = transforms.positions();
  WinogradPlan best{WinogradWay::vectors, vector_cycles(positions, sources, results, double(tiles))};
  const auto offer = [&](WinogradWay way, double cycles) {
    if (cycles < best.cycles) best = {way, cycles};
  };
  if (!isa().matrix_unit || results < 2 * split::kColumns) return best;
  best.cycles *= 1.2;  // where there is a unit, that is what vectors take
  // In it, channels come in steps of 32 and 16.
  const int depth = round_up(sources, split::kDepth), columns = round_up(results, split::kColumns);
  offer(WinogradWay::stored, stored_cycles(positions, depth, columns, double(tiles)));
  if (transforms.tile() == 6) offer(WinogradWay::deep, deep_cycles(positions, depth, columns, double(tiles)));
  return best;
}

TileAxis::TileAxis(const Axis& axis, const WinogradTransforms& transforms)
    : input(axis.input), output(std::max(0, axis.output)), dilation(axis.dilation) {
  for (int phase = 0; phase < std::min(dilation, output); ++phase) {
    for (int first = phase; first < output; first += transforms.outputs * dilation) {
      Tile tile{first, std::min(transforms.outputs, ceil_divide(output - first, dilation)), axis.origin(first), {}};
      while (tile.inside.begin < transforms.tile() && axis.tap(first, tile.inside.begin) < 0) ++tile.inside.begin;
      tile.inside.end = tile.inside.begin;
      while (tile.inside.end < transforms.tile() && axis.tap(first, tile.inside.end) < input) ++tile.inside.end;
      tiles.push_back(tile);
    }
  }
}

Tiles::Tiles(const Window& window, int images, const WinogradTransforms& transforms)
    : y_(window.y, transforms), x_(window.x, transforms), images_(std::max(0, images)), count_(y_.tiles.size() * x_.tiles.size() * images_) {}

Tiles::Place Tiles::place_of(std::size_t tile) const {
  const std::size_t line = tile / x_.tiles.size();
  return {line / y_.tiles.size(), &y_.tiles[line % y_.tiles.size()], &x_.tiles[tile % x_.tiles.size()]};
}

void Tiles::transform_inputs(const WinogradTransforms& transforms, const float* image, int image_channels, int channels,
                             std::size_t first, int tiles, float* v, std::size_t tile_step, std::size_t step,
                             std::size_t panel_step) const {
  const std::ptrdiff_t pixel = image_channels, line = pixel * x_.input;
  for (int t = 0; t < tiles; ++t, v += tile_step) {
    const Place place = place_of(first + t);
    const float* source = image + (std::ptrdiff_t(place.image) * y_.input + place.y->origin) * line + place.x->origin * pixel;
    transforms.input(source, line * y_.dilation, pixel * x_.dilation,
                     {place.y->inside.begin, place.y->inside.end, place.x->inside.begin, place.x->inside.end}, channels, v, step,
                     panel_step);
  }
}

void Tiles::spread(const WinogradTransforms& transforms, const float* incoming, int image_channels, int channels,
                   std::size_t first, int tiles, float* z, std::size_t tile_step, std::size_t step, std::size_t panel_step) const {
  const std::ptrdiff_t pixel = image_channels, line = pixel * x_.output;
  for (int t = 0; t < tiles; ++t, z += tile_step) {
    const Place place = place_of(first + t);
    const float* source = incoming + (std::ptrdiff_t(place.image) * y_.output + place.y->first) * line + place.x->first * pixel;
    transforms.spread(source, line * y_.dilation, pixel * x_.dilation, {0, place.y->count, 0, place.x->count}, channels, z, step,
                      panel_step);
  }
}

void Tiles::place_inputs(const float* image, int image_channels, std::size_t first, int tiles, SplitTransform& transform) const {
  const std::ptrdiff_t pixel = image_channels, line = pixel * x_.input;
  transform.count = tiles;
  transform.line = line * y_.dilation;
  transform.pixel = pixel * x_.dilation;
  for (int t = 0; t < split::kDepth; ++t) {
    transform.tiles[t] = {image, {}};
    if (t >= tiles) continue;
    const Place place = place_of(first + t);
    transform.tiles[t] = {image + (std::ptrdiff_t(place.image) * y_.input + place.y->origin) * line + place.x->origin * pixel,
                          {place.y->inside.begin, place.y->inside.end, place.x->inside.begin, place.x->inside.end}};
  }
}

void Tiles::place_results(const float* incoming, int image_channels, std::size_t first, int tiles, SplitTransform& transform) const {
  const std::ptrdiff_t pixel = image_channels, line = pixel * x_.output;
  transform.count = tiles;
  transform.line = line * y_.dilation;
  transform.pixel = pixel * x_.dilation;
  for (int t = 0; t < split::kDepth; ++t) {
    transform.tiles[t] = {incoming, {}};
    if (t >= tiles) continue;
    const Place place = place_of(first + t);
    transform.tiles[t] = {incoming + (std::ptrdiff_t(place.image) * y_.output + place.y->first) * line + place.x->first * pixel,
                          {0, place.y->count, 0, place.x->count}};
  }
}

void Tiles::transform_outputs(const WinogradTransforms& transforms, const float* m, std::size_t tile_step, std::size_t step,
                              const float* bias, int channels, std::size_t first, int tiles, float* result,
                              int result_channels) const {
  const std::ptrdiff_t pixel = result_channels, line = pixel * x_.output, next_pixel = pixel * x_.dilation, next_line = line * y_.dilation;
  const auto target = [&](const Place& place) {
    return result + (std::ptrdiff_t(place.image) * y_.output + place.y->first) * line + place.x->first * pixel;
  };
  Place next = place_of(first);
  for (int t = 0; t < tiles; ++t, m += tile_step) {
    const Place place = next;
    if (t + 1 < tiles) {
      next = place_of(first + t + 1);
      for (int i = 0; i < next.y->count; ++i)
        for (int j = 0; j < next.x->count; ++j) prefetch_for_writing(target(next) + i * next_line + j * next_pixel, channels);
    }
    transforms.output(m, step, bias, channels, target(place), next_line, next_pixel, place.y->count, place.x->count);
  }
}

namespace {

/// Fetches `bytes` bytes from `place` on during `tiles` tiles of `depth` terms.
void fetch_during(Ahead& ahead, int index, const float* place, std::size_t floats, int tiles, int depth) {
  const std::size_t groups = std::max(1, tiles * (depth / 4));
  ahead.place[index] = reinterpret_cast<const char*>(place);
  ahead.bytes[index] = std::min<std::size_t>(128, (floats * sizeof(float) + groups - 1) / groups);
}

}  // namespace

void multiply_panel(const Isa& isa, const PanelProduct& panel) {
  static constexpr std::ptrdiff_t kStart = 0;
  const int vectors = panel.columns / isa.lanes, tiles = ceil_divide(panel.rows, isa.piece_rows[vectors - 1]);
  PieceProduct product{.a = panel.a,
                       .a_stride = panel.a_stride,
                       .pieces = &kStart,
                       .piece_count = 1,
                       .piece_depth = std::size_t(panel.depth),
                       .b = panel.b,
                       .c = panel.c,
                       .c_stride = panel.c_stride,
                       .start = panel.overwrites ? kZeros : nullptr,
                       .columns = panel.columns};
  fetch_during(product.ahead, 0, panel.next_a, std::size_t(panel.rows) * panel.a_stride, tiles, panel.depth);
  fetch_during(product.ahead, 1, panel.next_b, std::size_t(panel.depth) * panel.columns, tiles, panel.depth);
  for (int tile = 0; tile < tiles; ++tile) {
    const int row = static_cast<int>(part_begin(panel.rows, tile, tiles)), count = static_cast<int>(part_begin(panel.rows, tile + 1, tiles)) - row;
    product.a = panel.a + row * panel.a_stride;
    product.c = panel.c + row * panel.c_stride;
    isa.piece_tiles[vectors - 1][count - 1](product);
  }
}

void multiply_panel_transposed(const Isa& isa, const PanelProduct& panel) {
  const int vectors = panel.columns / isa.lanes, tiles = ceil_divide(panel.rows, isa.piece_rows[vectors - 1]);
  ColumnProduct product{.lines = &panel.a,
                        .line_count = 1,
                        .offset = 0,
                        .pixels = std::size_t(panel.depth),
                        .a_stride = panel.a_stride,
                        .b = panel.b,
                        .b_stride = std::size_t(panel.columns),
                        .c = panel.c,
                        .c_stride = panel.c_stride,
                        .overwrites = panel.overwrites,
                        .ahead = {}};
  fetch_during(product.ahead, 0, panel.next_a, std::size_t(panel.depth) * panel.a_stride, tiles, panel.depth);
  fetch_during(product.ahead, 1, panel.next_b, std::size_t(panel.depth) * panel.columns, tiles, panel.depth);
  for (int tile = 0; tile < tiles; ++tile) {
    const int row = static_cast<int>(part_begin(panel.rows, tile, tiles)), count = static_cast<int>(part_begin(panel.rows, tile + 1, tiles)) - row;
    product.offset = row;
    product.c = panel.c + row * panel.c_stride;
    isa.sum_tiles[vectors - 1][count - 1](product);
  }
}

void gather_filter(const WinogradTransforms& transforms, const float* u, std::size_t step, int inputs, float* w, const WeightLayout& layout,
                   float* filter, bool streams) {
  const int taps = transforms.taps, padded = round_up(inputs, isa().lanes);
  const bool is_direct = layout.input == 1 && padded == inputs && layout.y == taps * layout.x;
  if (is_direct && streams && (reinterpret_cast<std::uintptr_t>(filter) | layout.x * sizeof(float)) % 64 == 0)
    return transforms.stream_gathered(u, step, inputs, filter, layout.x);
  // Stores wait for their lines one after another: fetched a filter ahead, they arrive together.
  if (layout.input == 1)
    for (int tap = 0; tap < taps * taps; ++tap)
      prefetch_for_writing(filter + layout.output + tap / taps * layout.y + tap % taps * layout.x, inputs);
  if (is_direct) return transforms.gather(u, step, inputs, filter, layout.x);
  transforms.gather(u, step, padded, w, padded);
  for (int y = 0; y < taps; ++y)
    for (int x = 0; x < taps; ++x, w += padded) {
      float* to = filter + y * layout.y + x * layout.x;
      if (layout.input == 1) {
        std::copy_n(w, inputs, to);
      } else {
        for (int i = 0; i < inputs; ++i) to[i * layout.input] = w[i];
      }
    }
}

}  // namespace mpsnn::cpu
