// SPDX-License-Identifier: Apache-2.0
#pragma once

// The only header that the files of this folder share with the rest: they are compiled with flags of their own, and an
// inline function of the standard library compiled there could replace the plain copy in the whole program.
#include <cstddef>
#include <cstdint>

namespace mpsnn::cpu {

/// A tile of a product: c[i][j] = start[j] + sum over k of a(i, k) * b[k * b_stride + j] for `columns` columns; the
/// tile's own c[i][j] replaces start[j] when `start` is null. The sum over k is one chain that begins with zero. `b` and
/// `start` are read in whole vectors, so they need room up to the tile's width.
using GemmTile = void (*)(std::size_t depth, const float* a, std::size_t a_stride, const float* b, std::size_t b_stride, float* c,
                          std::size_t c_stride, const float* start, int columns);

/// Pixels of a tile that lie on the image: rows [first_y, last_y), columns [first_x, last_x). The others read as zeros.
struct WinogradInside {
  int first_y, last_y, first_x, last_x;
};

/// Winograd's convolution F(m x m, r x r) on tiles of n = m + r - 1 pixels each way, for vectors of channels. What has n x n
/// positions lies `step` floats apart from one position to the next, in whole vectors: channels that fill up the last are zeros.
struct WinogradTransforms {
  int outputs, taps;  ///< m, r
  constexpr int tile() const { return outputs + taps - 1; }
  constexpr int positions() const { return tile() * tile(); }
  /// v := B^T d B of the image's tile d, whose pixel (i, j) is at source + i * line + j * pixel. Channels lie in panels as wide as
  /// a matrix tile, `panel_step` floats apart.
  void (*input)(const float* source, std::ptrdiff_t line, std::ptrdiff_t pixel, const WinogradInside& inside, int channels, float* v,
                std::size_t step, std::size_t panel_step);
  /// z := A e A^T of the incoming gradient's m x m pixels e.
  void (*spread)(const float* source, std::ptrdiff_t line, std::ptrdiff_t pixel, const WinogradInside& inside, int channels, float* z,
                 std::size_t step, std::size_t panel_step);
  /// The first `lines` x `columns` pixels of the result := A^T m A + bias; `bias` may be null.
  void (*output)(const float* m, std::size_t step, const float* bias, int channels, float* result, std::ptrdiff_t line,
                 std::ptrdiff_t pixel, int lines, int columns);
  /// u := G w G^T of weights whose taps lie `tap_step` floats apart; `count` is a multiple of the lanes.
  void (*weights)(const float* w, std::size_t tap_step, std::size_t count, float* u, std::size_t step);
  /// w := G^T u G
  void (*gather)(const float* u, std::size_t step, std::size_t count, float* w, std::size_t tap_step);
};

/// What one instruction set provides. Everything else in the engine is plain C++.
struct Isa {
  const char* name;
  int rows;     ///< most rows of a tile
  int vectors;  ///< most vectors in a row of a tile
  int lanes;    ///< floats in a vector
  /// Tiles by [(rows - 1) * vectors + (vectors - 1)]: a(i, k) is a[i * a_stride + k] ...
  const GemmTile* row_tiles;
  /// ... or a[k * a_stride + i].
  const GemmTile* column_tiles;
  /// result[i] = start[i] + sum over t < terms of a[t][i] * b[t][i], i < count. `start` may be null (zeros) or `result`.
  void (*sum_products)(std::size_t count, std::size_t terms, const float* const* a, const float* const* b, const float* start,
                       float* result);
  /// result[i] += sum over r < rows of a[r * stride + i], i < count.
  void (*sum_rows)(std::size_t count, std::size_t rows, const float* a, std::size_t stride, float* result);

  /// counts[r] += sum over i < words of the bits set in a[i] ^ b[r * stride + i], or in a[i] & b[r * stride + i], r < rows.
  void (*count_different_bits)(std::size_t rows, std::size_t words, const std::uint64_t* a, const std::uint64_t* b,
                               std::size_t stride, int* counts);
  void (*count_common_bits)(std::size_t rows, std::size_t words, const std::uint64_t* a, const std::uint64_t* b,
                            std::size_t stride, int* counts);

  WinogradTransforms winograd_four = {}, winograd_two = {}, winograd_five_taps = {};  ///< F(4 x 4, 3 x 3), F(2 x 2, 3 x 3), F(2 x 2, 5 x 5)

  int tile_columns() const { return vectors * lanes; }
};

/// The table for this machine, chosen once: the widest that it supports, or what MPSNN_ISA names.
const Isa& isa();

extern const Isa kGenericIsa;
#if defined(__x86_64__)
extern const Isa kAvx2Isa, kAvx512Isa;
#elif defined(__aarch64__)
extern const Isa kNeonIsa;
#endif

}  // namespace mpsnn::cpu
