// SPDX-License-Identifier: Apache-2.0
#include "backends/cpu/gemm.hpp"

#include <algorithm>

#include "core/large_memory.hpp"

namespace mpsnn::cpu {
namespace {

typedef float Four __attribute__((vector_size(16)));
typedef float UnalignedFour __attribute__((vector_size(16), aligned(4), may_alias));

inline Four load(const float* p) { return *reinterpret_cast<const UnalignedFour*>(p); }
inline void store(float* p, Four v) { *reinterpret_cast<UnalignedFour*>(p) = v; }

inline Four low_pairs(Four a, Four b) { return __builtin_shufflevector(a, b, 0, 4, 1, 5); }
inline Four high_pairs(Four a, Four b) { return __builtin_shufflevector(a, b, 2, 6, 3, 7); }
inline Four low_halves(Four a, Four b) { return __builtin_shufflevector(a, b, 0, 1, 4, 5); }
inline Four high_halves(Four a, Four b) { return __builtin_shufflevector(a, b, 2, 3, 6, 7); }

inline void transpose_four(const float* source, std::ptrdiff_t source_stride, float* result, int result_stride) {
  const Four a = load(source), b = load(source + source_stride), c = load(source + 2 * source_stride),
             d = load(source + 3 * source_stride);
  const Four ab_low = low_pairs(a, b), ab_high = high_pairs(a, b), cd_low = low_pairs(c, d), cd_high = high_pairs(c, d);
  store(result, low_halves(ab_low, cd_low));
  store(result + result_stride, high_halves(ab_low, cd_low));
  store(result + 2 * result_stride, low_halves(ab_high, cd_high));
  store(result + 3 * result_stride, high_halves(ab_high, cd_high));
}

/// Tiles for `rows` rows, as equal as possible: 20 rows are 10 + 10, not 14 + 6.
template <class Body>
void for_row_tiles(const Isa& isa, int rows, Body&& body) {
  const int tiles = ceil_divide(rows, isa.rows);
  for (int tile = 0; tile < tiles; ++tile) {
    const int begin = static_cast<int>(part_begin(rows, tile, tiles)), end = static_cast<int>(part_begin(rows, tile + 1, tiles));
    body(begin, end - begin);
  }
}

const GemmTile& tile_for(const Isa& isa, const GemmTile* tiles, int rows, int columns) {
  return tiles[(rows - 1) * isa.vectors + ceil_divide(columns, isa.lanes) - 1];
}

/// What stays in the first-level cache beside a tile's rows, or nearly.
constexpr double kNearPanelBytes = 64 << 10;

/// Cycles for `rows` rows and so many vectors of columns, divided by the depth: two multiply-adds each, of which the
/// tiles reach nine tenths unless they have too few sums to hide the latency, and the start and the end of each tile. A panel that
/// does not stay in the first-level cache comes from the second one for each tile: 30 bytes a cycle.
double tile_cycles(const Isa& isa, int rows, int vectors, int depth) {
  const int tiles = ceil_divide(rows, isa.piece_rows[vectors - 1]);
  const double sums = double(rows) / tiles * vectors, row_bytes = 4.0 * vectors * isa.lanes;
  const bool is_far = depth * row_bytes > kNearPanelBytes;
  return tiles * (std::max({4.6, (is_far ? 0.6 : 0.55) * sums, is_far ? row_bytes / 30 : 0.0}) + 0.04 * rows / tiles + (1.5 * sums + 10) / std::max(1, depth));
}

}  // namespace

alignas(64) const float kZeros[64] = {};

AlignedFloats::AlignedFloats(std::size_t count)
    : data_(static_cast<float*>(allocate_large(round_up<std::size_t>(count, 16) * sizeof(float)))) {}

void AlignedFloats::Free::operator()(float* p) const { free_large(p); }

PackedShape::PackedShape(const Isa& isa, int depth, int columns, int piece, int vectors)
    : lanes_(isa.lanes),
      tile_columns_(vectors > 0 ? vectors * isa.lanes : isa.tile_columns()),
      depth_(depth),
      columns_(columns),
      panels_(ceil_divide(columns, tile_columns_)),
      padded_columns_(round_up(columns, lanes_)) {
  begins_.push_back(0);
  if (depth == 0) {
    begins_.push_back(0);
  } else if (piece <= kMaxDepth) {
    const int pieces = depth / piece, blocks = ceil_divide(pieces, kMaxDepth / piece);
    for (int block = 1; block <= blocks; ++block) begins_.push_back(static_cast<int>(part_begin(pieces, block, blocks)) * piece);
  } else {
    const int parts = ceil_divide(piece, kMaxDepth);
    for (int first = 0; first < depth; first += piece)
      for (int part = 1; part <= parts; ++part) begins_.push_back(first + static_cast<int>(part_begin(piece, part, parts)));
  }
}

int PackedShape::panel_columns(int panel) const { return std::min(tile_columns_, columns_ - panel * tile_columns_); }

int PackedShape::panel_stride(int panel) const { return round_up(panel_columns(panel), lanes_); }

std::size_t PackedShape::offset(int block, int panel) const {
  return std::size_t(block_begin(block)) * padded_columns_ + std::size_t(block_depth(block)) * panel * tile_columns_;
}

int best_vectors(const Isa& isa, int rows, int columns, int depth) {
  const int vectors = ceil_divide(columns, isa.lanes);
  int best = 1;
  double least = 0;
  for (int v = 1; v <= kMaxPieceVectors && v <= std::max(1, vectors); ++v) {
    if (isa.piece_rows[v - 1] == 0) continue;
    const int rest = vectors % v;
    const double cycles =
        vectors / v * tile_cycles(isa, rows, v, depth) + (rest > 0 ? tile_cycles(isa, rows, rest, depth) : 0);
    if (least == 0 || cycles < least) least = cycles, best = v;
  }
  return best;
}

void pack_rows(const float* source, std::ptrdiff_t depth_stride, std::ptrdiff_t column_stride, int depth, int columns,
               float* panel, int panel_stride, int zeros) {
  int transposed_depth = 0, transposed_columns = 0;
  if (depth_stride == 1) {
    transposed_depth = depth / 4 * 4;
    transposed_columns = columns / 4 * 4;
    for (int j = 0; j < transposed_columns; j += 4)
      for (int k = 0; k < transposed_depth; k += 4)
        transpose_four(source + k + j * column_stride, column_stride, panel + std::ptrdiff_t(k) * panel_stride + j, panel_stride);
  }
  for (int k = 0; k < depth; ++k) {
    const float* from = source + k * depth_stride;
    float* to = panel + std::ptrdiff_t(k) * panel_stride;
    if (column_stride == 1) {
      std::copy_n(from, columns, to);
    } else {
      for (int j = k < transposed_depth ? transposed_columns : 0; j < columns; ++j) to[j] = from[j * column_stride];
    }
    std::fill_n(to + columns, zeros, 0.0f);
  }
}

void multiply_rows(const Isa& isa, int rows, const float* a, std::size_t a_stride, const PackedShape& shape, const float* b,
                   int block, Range panels, float* c, std::size_t c_stride, const float* start) {
  const int depth = shape.block_depth(block);
  for (int panel = panels.begin; panel < panels.end; ++panel) {
    const int first_column = panel * isa.tile_columns(), columns = shape.panel_columns(panel), stride = shape.panel_stride(panel);
    const float* right = b + shape.offset(block, panel);
    for_row_tiles(isa, rows, [&](int row, int count) {
      tile_for(isa, isa.row_tiles, count, columns)(depth, a + row * a_stride, a_stride, right, stride,
                                                   c + row * c_stride + first_column, c_stride,
                                                   start ? start + first_column : nullptr, columns);
    });
  }
}

void multiply_in_place(const Isa& isa, int rows, int columns, int depth, const float* a, std::size_t a_stride, const float* b,
                       std::size_t b_stride, float* c, std::size_t c_stride) {
  // Tiles read whole vectors of `b`: what is left behind the last whole one is added up one by one.
  const int whole = columns / isa.lanes * isa.lanes;
  for (int column = 0; column < whole; column += isa.tile_columns()) {
    const int count = std::min(isa.tile_columns(), whole - column);
    for_row_tiles(isa, rows, [&](int row, int row_count) {
      tile_for(isa, isa.row_tiles, row_count, count)(depth, a + row * a_stride, a_stride, b + column, b_stride,
                                                     c + row * c_stride + column, c_stride, nullptr, count);
    });
  }
  for (int row = 0; row < rows; ++row)
    for (int k = 0; k < depth; ++k)
      for (int column = whole; column < columns; ++column) c[row * c_stride + column] += a[row * a_stride + k] * b[k * b_stride + column];
}

void multiply_transposed(const Isa& isa, int rows, int columns, int depth, const float* a, std::size_t a_stride, const float* b,
                         std::size_t b_stride, float* c, std::size_t c_stride, bool overwrites) {
  for (int column = 0; column < columns; column += isa.tile_columns()) {
    const int count = std::min(isa.tile_columns(), columns - column);
    for_row_tiles(isa, rows, [&](int row, int row_count) {
      tile_for(isa, isa.column_tiles, row_count, count)(depth, a + row, a_stride, b + column, b_stride,
                                                        c + row * c_stride + column, c_stride, overwrites ? kZeros : nullptr,
                                                        count);
    });
  }
}

}  // namespace mpsnn::cpu
