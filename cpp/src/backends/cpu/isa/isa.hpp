// SPDX-License-Identifier: Apache-2.0
#pragma once

// The only header that the files of this folder share with the rest: they are compiled with flags of their own, and an
// inline function of the standard library compiled there could replace the plain copy in the whole program.
#include <cstddef>
#include <cstdint>

#include "mpsnn/enums.hpp"

namespace mpsnn::cpu {

/// An activation function without its vectors of slopes: PReLU is not among them.
struct NeuronFunction {
  CNNNeuronType type;
  float a, b, c;
};

/// One number of each kind for a channel: (x - mean) * scale + beta, and a ReLU with `slope` below 0 behind it, or none.
struct ChannelNormalization {
  const float *mean, *scale, *beta;
  bool has_relu = false;
  float slope = 0;
};


/// A tile of a product: c[i][j] = start[j] + sum over k of a(i, k) * b[k * b_stride + j] for `columns` columns; the
/// tile's own c[i][j] replaces start[j] when `start` is null. The sum over k is one chain that begins with zero. `b` and
/// `start` are read in whole vectors, so they need room up to the tile's width.
using GemmTile = void (*)(std::size_t depth, const float* a, std::size_t a_stride, const float* b, std::size_t b_stride, float* c,
                          std::size_t c_stride, const float* start, int columns);

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

  /// y := f(x), and gradient := incoming * f'(x). Results may be the first operand, but must not overlap it otherwise.
  void (*neuron)(const NeuronFunction& function, const float* x, float* y, std::size_t count);
  void (*neuron_gradient)(const NeuronFunction& function, const float* incoming, const float* x, float* gradient, std::size_t count);
  /// Normalized pixels.
  void (*normalize)(const float* x, float* y, std::size_t pixels, int channels, const ChannelNormalization& n);
  /// gradient := scale * (e' - constant - (x - mean) * factor), e' the incoming gradient behind the ReLU.
  void (*normalize_gradient)(const float* e, const float* x, float* gradient, std::size_t pixels, int channels,
                             const ChannelNormalization& n, const float* constant, const float* factor);
  /// deviations[c] := the sum of x[c] - center[c] over pixels that lie `stride` floats apart; squares[c] := that of its square
  void (*sum_deviations)(const float* x, std::size_t stride, std::size_t pixels, const float* center, float* deviations,
                         float* squares, int channels);
  /// sums[c] := the sum of e'[c]; products[c] := the sum of e'[c] * (x[c] - mean[c])
  void (*sum_gradient)(const float* e, const float* x, std::size_t stride, std::size_t pixels, const ChannelNormalization& n,
                       float* sums, float* products, int channels);

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
