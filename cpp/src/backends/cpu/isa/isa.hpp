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
  bool keeps_sign = false;  ///< kSignedReLU
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

/// What will be needed later, fetched while a tile is computed: two places, and so many bytes of each for every four terms of the sum,
/// at most 128. Null for nothing.
struct Ahead {
  const char* place[2];
  std::size_t bytes[2];
};

/// A tile whose left operand lies in pieces, as the patch under a window does: with k = p * piece_depth + d, element (i, k) is
/// a[pieces[p] + i * a_stride + d]. `b` has rows of whole vectors behind one another; `c`, `start` and `columns` are those of a
/// GemmTile. One chain of additions, pieces in their order.
struct PieceProduct {
  const float* a;
  std::size_t a_stride;
  const std::ptrdiff_t* pieces;
  std::size_t piece_count, piece_depth;
  const float* b;
  float* c;
  std::size_t c_stride;
  const float* start;
  int columns;
  Ahead ahead = {};
};
/// Advances product.ahead.
using PieceTile = void (*)(PieceProduct& product);

/// A tile of a product whose left operand is read by columns, as in a weight gradient that sums over the pixels of some lines:
/// c[i][j] (+)= sum over lines l and pixels p of lines[l][offset + p * a_stride + i] * b[(l * pixels + p) * b_stride + j]. `b` is read in
/// whole vectors, and c has whole vectors.
struct ColumnProduct {
  const float* const* lines;
  std::size_t line_count;
  std::ptrdiff_t offset;
  std::size_t pixels, a_stride;
  const float* b;
  std::size_t b_stride;
  float* c;
  std::size_t c_stride;
  bool overwrites;
  Ahead ahead;
};
/// Advances product.ahead.
using ColumnTile = void (*)(ColumnProduct& product);

/// Neighbouring pixels of a depthwise correlation, and the lines and taps that they read: result[p][c] = start[c] + sum over lines l
/// and taps t of lines[l][p * pixel_step + t * tap_step + c] * weights[l][t * weight_step + c]. `start` may be null.
struct DepthwiseRun {
  const float* const* lines;
  const float* const* weights;
  int line_count, taps, pixels;
  std::size_t pixel_step, tap_step, weight_step, result_step, channels;
  int new_lines;      ///< the last so many lines are read here first: meanwhile, ...
  std::size_t ahead;  ///< ... what lies so many floats behind them is fetched for the next run
  std::size_t result_ahead;  ///< the result's lines come from far: stores would wait for them one after another, so those so many floats ahead
                             ///< are fetched; 0 for none
  const float* start;
  float* result;
  int width = 1;  ///< channels of a group. More than one: a single vector of channels, with a row of weights for each input of the groups
};

/// The sums of a depthwise weight gradient over neighbouring pixels of some lines: sums[ty * sum_line + tx * sum_tap + c] += sum over
/// lines l and pixels p of incoming[l * incoming_line + p * incoming_pixel + c] *
/// source[l * source_line + ty * source_tap_line + p * source_pixel + tx * source_tap + c].
struct DepthwiseSum {
  const float *incoming, *source;
  float* sums;
  int lines, pixels, taps_y, taps_x;
  std::size_t incoming_line, incoming_pixel, source_line, source_tap_line, source_pixel, source_tap, sum_line, sum_tap, channels;
  int width = 1;  ///< channels of a group. More than one: a single vector of channels, with a row of sums for each input of the groups
};

/// Rows of a matrix that is read once, times a few vectors. At most lanes / 2 images: more are better off as columns of a product.
struct RowProducts {
  const float *a, *b, *start;
  float* result;
  std::size_t rows, images, depth, a_stride, result_stride;
};

/// Some rows of a matrix that is read once, added up with a few sets of factors. The result stays in the first-level cache.
struct WeightedRows {
  const float *b, *factors;
  float* result;
  std::size_t images, columns, depth, b_stride, factor_stride, result_stride;
};

/// What pools: forward passes that keep the winners of a maximum in no, one or four bytes each, and gradients.
enum class PoolingPass {
  maximum, maximum_in_bytes, maximum_in_words, average, l2_norm,
  maximum_gradient_in_bytes, maximum_gradient_in_words, average_gradient, l2_norm_gradient,
};
constexpr int kPoolingPasses = 9;

/// What a pixel of the result meets along one axis: where (elements), under which number of the window's, and its factor.
struct PoolingTap {
  std::ptrdiff_t offset;
  std::int32_t code;
  float factor;
};

/// Neighbouring elements of a result row that meet the same taps: the channels of a pixel, or of several where both move alike.
struct PoolingStretch {
  std::size_t at, count;     ///< elements of the result
  int first_tap, tap_count;  ///< element `at` + i meets element row.taps[first_tap + t].offset + i
  bool reads_zeros;  ///< some taps are outside of the image, where a maximum reads zeros
  float divisor;     ///< of an average: row.divisor * divisor
};

/// A row of the result of a pooling or of its gradient. Each of its pixels meets all of `lines`.
struct PoolingRow {
  const float* values;   ///< pooled values, or the gradient of the result; this image's first element
  const float* norms;    ///< l2_norm_gradient: the norms, beside `values`
  const void* winners;   ///< maximum gradients: the winners, beside `values`
  const float* x;        ///< l2_norm_gradient: the source, beside `result`
  const PoolingTap* lines;
  int line_count;
  const PoolingTap* taps;
  const PoolingStretch* stretches;
  int stretch_count;
  std::size_t first, last;  ///< these elements of each stretch
  bool reads_zeros;
  float divisor;
  float* result;  ///< the row's first element; may be null in maximum_in_...
  void* saved;    ///< maximum_in_...: where the winners go, beside `result`
};

/// Soft-max cross entropy of some pixels, as in loss.hpp's Stretch: labels count as label * keep + rest.
struct SoftMaxLoss {
  const float *y, *labels, *weights, *incoming;  ///< the last two may be null
  bool is_incoming_whole, by_label;
  float weight, keep, rest;
  float *gradient, *element_losses;  ///< null where nobody needs them
};

/// Dropout of a pixel's channels: see dropout_keeps_channel().
struct PixelMask {
  std::uint64_t pixel_bits, threshold;
  bool varies_channel;
  float keep_probability;
};

constexpr int kMaxPieceRows = 14, kMaxPieceVectors = 4;

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
  /// w := G^T u G; the second one past the caches, to the boundary of a line, where vectors are as long as one.
  void (*gather)(const float* u, std::size_t step, std::size_t count, float* w, std::size_t tap_step);
  void (*stream_gathered)(const float* u, std::size_t step, std::size_t count, float* w, std::size_t tap_step);
};

/// Products in a unit for matrices of bfloat16 numbers, whose sums are float32. A float32 number is the sum of kParts such numbers, exact
/// but for what is smaller than 2^-126; of the nine products of two such sums, the six largest are added up, the small ones first: what is
/// missing is 2^-25 of the whole at most, less than a multiply-add in float32 loses. Infinite operands give NaN.
namespace split {
constexpr int kParts = 3;
constexpr int kDepth = 32;        ///< terms of a step: rows of the left operand are read, and the right one is packed, in such stretches
constexpr int kColumns = 16;      ///< columns of a tile of the right operand
constexpr int kTile = kDepth * kColumns;  ///< elements of one part of a tile
constexpr int kRows = 16;         ///< rows that are read together: the left operand must be readable up to a multiple of it
constexpr int kGatheredElements = 2 * kDepth;  ///< of a row from which a step is gathered
}  // namespace split

/// Rows to split: see MatrixUnit::split_rows.
struct SplitRows {
  const float* x;
  std::size_t x_stride, rows, count;
  std::uint16_t* to;
  std::size_t to_stride, part;
};

/// c[i][j] (+)= sum over steps s and k < 32 of a[i * a_stride + s.offset + k] * b[s * 32 + k][j]
struct SplitProduct {
  int rows, columns;
  std::size_t steps;
  const std::uint16_t* a;
  std::size_t a_stride, a_part;       ///< elements between rows, and between the parts of the split numbers
  const std::ptrdiff_t* offsets;      ///< of each step in a row of `a`; null for 0, 32, 64, ...
  const std::uint16_t* b;             ///< from MatrixUnit::split_pairs
  std::size_t b_columns;              ///< elements from one tile of 16 columns to the next
  float* c;
  std::size_t c_stride;
  const std::ptrdiff_t* c_rows;  ///< where in `c` each row lies, -1 for one that nobody needs; null for multiples of c_stride
  const float* start;  ///< the sum begins there (`columns` values); null for zero, or what c holds:
  bool overwrites;
  /// In whole tiles the sum begins with what c holds instead of being added to it: a rounding more for each of the six products of a
  /// step, still a third of a multiply-add's, but an eighth of the time less where sums are short.
  bool chains = false;
  const SplitRows* meanwhile = nullptr;  ///< split during the product, which leaves the vector units idle
  /// What the next product reads, fetched during this one: its left operand, and the first sums (of products of a step or two).
  const std::uint16_t* next_a = nullptr;
  std::size_t next_a_count = 0;
  const float* next_c = nullptr;
};

/// Transforms of kDepth tiles of an image as an operand of a SplitProduct over the tiles, for the positions in some of a tile's rows.
/// Tiles t and t + 16 are neighbours in a step of either operand; what fills up the last 16 channels is zero.
struct SplitTransform {
  struct Tile {
    const float* source;  ///< of pixel (0, 0), which may lie outside
    WinogradInside inside;  ///< all zeros for a tile that does not exist
  } tiles[split::kDepth];
  int count;  ///< of them that exist
  std::ptrdiff_t line, pixel;
  int channels;
  std::uint16_t* to;
  std::size_t step;  ///< elements from one position to the next
  /// Left operand: elements between the parts, each with rows of kDepth; right operand: from one tile of 16 channels to the next.
  std::size_t part;
};
/// The transform of a step of weights, at most kDepth source channels and kColumns result channels: tap (y, x) of source channel k for
/// result channel j is from[y * y + x * x + k * source + j * result].
struct SplitWeights {
  const float* from;
  std::ptrdiff_t y, x, source, result;  ///< source or result is 1
  int sources, results;
  std::uint16_t* to;
  std::size_t step;  ///< elements from one position to the next
  const float* next;  ///< `from` of the next call, fetched meanwhile
  bool in_order = false;  ///< channels k and k + 1 are neighbours in a step, as split_rows has them, not k and k + 16
};
struct SplitTransforms {
  static constexpr int kMaxGroups = 2;
  /// By [groups - 1][group], which hold as many rows of positions each: B^T d B as a right operand, and A e A^T as a left one.
  void (*input[kMaxGroups][kMaxGroups])(const SplitTransform&);
  void (*spread[kMaxGroups][kMaxGroups])(const SplitTransform&);
  /// Operands of a product over the channels, at most kDepth of them: B^T d B as a left one, with rows of kDepth for the tiles, and the
  /// weights G w G^T as a right one; `streamed_weights` stores them past the caches. Channels k and k + 16 are neighbours in a step.
  void (*rows)(const SplitTransform&);
  void (*weights)(const SplitWeights&);
  void (*streamed_weights)(const SplitWeights&);
};

struct MatrixUnit {
  /// Around the products of a thread: the unit keeps a configuration, which slows a change of threads down while it is there.
  void (*open)();
  void (*close)();
  /// to[p * part + i * to_stride + k] := part p of x[i * x_stride + k], k < count, and zeros up to a multiple of 32.
  void (*split_rows)(const float* x, std::size_t x_stride, std::size_t rows, std::size_t count, std::uint16_t* to, std::size_t to_stride,
                     std::size_t part);
  /// The same of x[k * x_stride + i]: a left operand that is read by columns.
  void (*split_columns)(const float* x, std::size_t x_stride, std::size_t rows, std::size_t count, std::uint16_t* to, std::size_t to_stride,
                        std::size_t part);
  /// to[i * to_stride + k] := from[i * stride + places[k]], k < 32, i < rows, of elements that are split already; places < kGatheredElements.
  void (*gather_steps)(const std::uint16_t* from, std::size_t stride, std::size_t rows, const std::uint16_t* places, std::uint16_t* to,
                       std::size_t to_stride);
  /// A right operand, x[k * x_stride + j] with k < depth and j < columns: tiles of 32 x 16, all parts of a step behind one another, steps
  /// behind one another, and `to_columns` elements from one tile of columns to the next. What is missing of the last tiles is zero.
  void (*split_pairs)(const float* x, std::size_t x_stride, std::size_t depth, std::size_t columns, std::uint16_t* to, std::size_t to_columns);
  void (*multiply)(const SplitProduct& product);
  /// F(4 x 4, 3 x 3), F(2 x 2, 5 x 5), and F(2 x 2, 3 x 3) for weights alone.
  const SplitTransforms *winograd_four, *winograd_five_taps, *winograd_two;
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
  /// Tiles of pieces and of columns by [vectors - 1][rows - 1], and the most rows for a number of vectors: 0 where the sums would not fit into
  /// the registers.
  const PieceTile (*piece_tiles)[kMaxPieceRows];
  const ColumnTile (*sum_tiles)[kMaxPieceRows];
  const int* piece_rows;
  /// result[i] = start[i] + sum over t < terms of a[t][i] * b[t][i], i < count. `start` may be null (zeros) or `result`.
  void (*sum_products)(std::size_t count, std::size_t terms, const float* const* a, const float* const* b, const float* start,
                       float* result);
  /// c[i][j] = sum over k < depth of a[k * a_stride + i] * b[k * b_stride + j], if wanted written past the caches where c's rows allow it.
  void (*outer_products)(std::size_t rows, std::size_t columns, std::size_t depth, const float* a, std::size_t a_stride, const float* b,
                         std::size_t b_stride, float* c, std::size_t c_stride, bool streams);
  void (*depthwise_run)(const DepthwiseRun&);
  void (*depthwise_sum)(const DepthwiseSum&);
  /// to[i * lanes] := from[i * stride] and the lanes - 1 floats behind it.
  void (*gather_vectors)(const float* from, std::size_t stride, std::size_t count, float* to);
  /// result[r * result_stride + p] = start[r] + sum over k < depth of a[r * a_stride + k] * b(p, k), `start` null for zeros. b has `images`
  /// vectors for each vector of a row, whose missing lanes are zeros.
  void (*row_products)(const RowProducts&);
  /// result[p * result_stride + j] += sum over k < depth of factors[p * factor_stride + k] * b[k * b_stride + j].
  void (*weighted_rows)(const WeightedRows&);
  /// result[i] += sum over r < rows of a[r * stride + i], i < count.
  void (*sum_rows)(std::size_t count, std::size_t rows, const float* a, std::size_t stride, float* result);
  /// result[r * result_stride + i] += a[r * stride + i], r < rows, i < count; rows of the result do not overlap.
  void (*add_block)(std::size_t rows, std::size_t count, const float* a, std::size_t stride, float* result, std::size_t result_stride);

  /// counts[r] += sum over i < words of the bits set in a[i] ^ b[r * stride + i], or in a[i] & b[r * stride + i], r < rows.
  void (*count_different_bits)(std::size_t rows, std::size_t words, const std::uint64_t* a, const std::uint64_t* b,
                               std::size_t stride, int* counts);
  void (*count_common_bits)(std::size_t rows, std::size_t words, const std::uint64_t* a, const std::uint64_t* b,
                            std::size_t stride, int* counts);

  /// y := f(x), and gradient := incoming * f'(x). Results may be the first operand, but must not overlap it otherwise.
  void (*neuron)(const NeuronFunction& function, const float* x, float* y, std::size_t count);
  void (*neuron_gradient)(const NeuronFunction& function, const float* incoming, const float* x, float* gradient, std::size_t count);
  /// result := a * x + b * y + c, or (a * x) * (b * y) + c. The result may be an operand.
  void (*scaled_sum)(float a, const float* x, float b, const float* y, float c, float* result, std::size_t count);
  void (*scaled_product)(float a, const float* x, float b, const float* y, float c, float* result, std::size_t count);
  void (*drop)(const PixelMask& mask, const float* from, float* to, int channels);
  /// Normalized pixels.
  void (*normalize)(const float* x, float* y, std::size_t pixels, int channels, const ChannelNormalization& n);
  /// gradient := scale * (e' - constant - (x - mean) * factor), e' the incoming gradient behind the ReLU. `gradient` may be `e`.
  void (*normalize_gradient)(const float* e, const float* x, float* gradient, std::size_t pixels, int channels,
                             const ChannelNormalization& n, const float* constant, const float* factor);
  /// deviations[c] += the sum of x[c] - center[c] over pixels that lie `stride` floats apart; squares[c] += that of its square
  void (*add_deviations)(const float* x, std::size_t stride, std::size_t pixels, const float* center, float* deviations,
                         float* squares, int channels);
  /// sums[c] += the sum of e'[c]; products[c] += the sum of e'[c] * (x[c] - mean[c])
  void (*add_gradient)(const float* e, const float* x, std::size_t stride, std::size_t pixels, const ChannelNormalization& n,
                       float* sums, float* products, int channels);

  void (*const* pooling)(const PoolingRow&);  ///< by PoolingPass

  /// Soft-max of each pixel's channels, or its logarithm, and their gradients from the result y.
  void (*softmax)(const float* x, float* y, std::size_t pixels, int channels);
  void (*log_softmax)(const float* x, float* y, std::size_t pixels, int channels);
  void (*softmax_gradient)(const float* incoming, const float* y, float* gradient, std::size_t pixels, int channels);
  void (*log_softmax_gradient)(const float* incoming, const float* y, float* gradient, std::size_t pixels, int channels);
  /// sums[p] := the loss of pixel p. Several pixels together take less time for each.
  void (*softmax_loss)(const SoftMaxLoss& loss, std::size_t pixels, int channels, float* sums);

  WinogradTransforms winograd_four = {}, winograd_two = {}, winograd_five_taps = {};  ///< F(4 x 4, 3 x 3), F(2 x 2, 3 x 3), F(2 x 2, 5 x 5)

  const MatrixUnit* matrix_unit = nullptr;  ///< null where there is none

  int tile_columns() const { return vectors * lanes; }
};

/// The table for this machine, chosen once: the widest that it supports, or what MPSNN_ISA names.
const Isa& isa();

/// The same for products of few columns: vectors of 16 lanes have no advantage where 8 are enough, and longer latencies.
const Isa& isa_for_columns(int columns);

extern const Isa kGenericIsa;
#if defined(__x86_64__)
extern const Isa kAvx2Isa, kAvx512Isa;
#if MPSNN_AMX
extern const MatrixUnit kAmx;
extern const SplitTransforms kSplitFour, kSplitFiveTaps, kSplitTwo;
/// True when this machine has the unit and the system lets this process use it, which it asks for.
bool may_use_amx();
#endif
#elif defined(__aarch64__)
extern const Isa kNeonIsa;
#endif

}  // namespace mpsnn::cpu
