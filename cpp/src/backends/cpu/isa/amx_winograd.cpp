// SPDX-License-Identifier: Apache-2.0
// Winograd's transforms whose results are operands of the matrix unit: split in registers, so that 36 positions are stored once, as parts.
#include "backends/cpu/isa/isa.hpp"
#include "backends/cpu/isa/split.inl"

namespace mpsnn::cpu {
namespace {
using Vector = __m512;
}
}  // namespace mpsnn::cpu
#include "backends/cpu/isa/winograd_points.inl"

namespace mpsnn::cpu {
namespace {

#define MPSNN_INLINE inline __attribute__((always_inline))

constexpr int kLanes = 16, kPoints = 6;

/// Moves a pointer on. The compiler must not see how: it would keep an address for each position in registers that it does not have.
template <class T>
MPSNN_INLINE void advance(T*& pointer, std::ptrdiff_t step) {
  pointer += step;
  asm("" : "+r"(pointer));
}

/// Stores the parts of the positions of a row, `low` and `high` by turns.
template <bool kStreams = false, int kCount>
MPSNN_INLINE void store_row(const Vector (&low)[kCount], const Vector (&high)[kCount], std::uint16_t*& to, std::size_t step, std::size_t part) {
#pragma GCC unroll 6
  for (int x = 0; x < kCount; ++x, advance(to, step)) {
    const Parts a(low[x]), b(high[x]);
    for (int p = 0; p < kParts; ++p) {
      const __m512i both = pairs(a.part[p], b.part[p]);
      kStreams ? _mm512_stream_si512(reinterpret_cast<__m512i*>(to + p * part), both) : _mm512_store_si512(to + p * part, both);
    }
  }
}

/// The transform along the columns of a tile for its rows [kBegin, kEnd) of positions, 16 channels.
template <class F, int kBegin, int kEnd, bool kWhole>
MPSNN_INLINE void input_columns(const SplitTransform::Tile& tile, const SplitTransform& t, int channel,
                                Vector (&half)[kEnd - kBegin][kPoints]) {
  const float* column = tile.source + channel;
  const WinogradInside& inside = tile.inside;
  const __mmask16 lanes = channel < t.channels ? first_lanes(t.channels - channel) : __mmask16(0);
  __mmask16 rows[kPoints];
#pragma GCC unroll 6
  for (int y = 0; y < kPoints; ++y) rows[y] = y >= inside.first_y && y < inside.last_y ? lanes : __mmask16(0);
#pragma GCC unroll 6
  for (int x = 0; x < kPoints; ++x, advance(column, t.pixel)) {
    const __mmask16 is_inside = x >= inside.first_x && x < inside.last_x ? 0xffff : 0;
    Vector d[kPoints], v[kPoints];
    const float* at = column;
#pragma GCC unroll 6
    for (int y = 0; y < kPoints; ++y, advance(at, t.line))
      d[y] = kWhole ? _mm512_loadu_ps(at) : _mm512_maskz_loadu_ps(_kand_mask16(rows[y], is_inside), at);
    F::input(d, v);
#pragma GCC unroll 6
    for (int y = kBegin; y < kEnd; ++y) half[y - kBegin][x] = v[y];
  }
}

bool is_whole(const WinogradInside& inside, int size) {
  return inside.first_y == 0 && inside.first_x == 0 && inside.last_y == size && inside.last_x == size;
}

template <class F, int kBegin, int kEnd>
void input(const SplitTransform& t) {
  for (int pair = 0; pair < kDepth / 2; ++pair) {
    const SplitTransform::Tile &low = t.tiles[pair], &high = t.tiles[pair + kDepth / 2];
    const bool are_whole = is_whole(low.inside, kPoints) && is_whole(high.inside, kPoints);
    std::uint16_t* to = t.to + pair * (2 * kColumns);
    for (int channel = 0; channel < t.channels; channel += kLanes, to += t.part) {
      Vector half[2][kEnd - kBegin][kPoints];
      if (are_whole && t.channels - channel >= kLanes) {
        input_columns<F, kBegin, kEnd, true>(low, t, channel, half[0]);
        input_columns<F, kBegin, kEnd, true>(high, t, channel, half[1]);
      } else {
        input_columns<F, kBegin, kEnd, false>(low, t, channel, half[0]);
        input_columns<F, kBegin, kEnd, false>(high, t, channel, half[1]);
      }
      std::uint16_t* position = to;
#pragma GCC unroll 6
      for (int y = 0; y < kEnd - kBegin; ++y) {
        Vector row[2][kPoints];
        F::input(half[0][y], row[0]);
        F::input(half[1][y], row[1]);
        store_row(row[0], row[1], position, t.step, kTile);
      }
    }
  }
}

/// pixels[p * 16 + c][t] := channel c of pixel p of tile t. Lanes are tiles from there on: there are fewer pixels to transpose than
/// positions.
template <int kOutputs>
void transpose_tiles(const SplitTransform& t, int channel, float (&pixels)[kOutputs * kOutputs * kLanes][kDepth]) {
  const __mmask16 lanes = first_lanes(t.channels - channel);
  for (int y = 0; y < kOutputs; ++y)
    for (int x = 0; x < kOutputs; ++x) {
      for (int half = 0; half < kDepth; half += kLanes) {
        Vector v[kLanes];
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) {
          const SplitTransform::Tile& tile = t.tiles[half + i];
          const bool is_inside = y < tile.inside.last_y && x < tile.inside.last_x;
          v[i] = _mm512_maskz_loadu_ps(is_inside ? lanes : __mmask16(0), tile.source + y * t.line + x * t.pixel + channel);
        }
        transpose(v);
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) _mm512_store_ps(&pixels[(y * kOutputs + x) * kLanes + i][half], v[i]);
      }
    }
}

template <class F, int kBegin, int kEnd>
void spread(const SplitTransform& t) {
  constexpr int kOutputs = F::kOutputs;
  alignas(64) float pixels[kOutputs * kOutputs * kLanes][kDepth];
  std::uint16_t* to = t.to;
  for (int channel = 0; channel < t.channels; channel += kLanes) {
    transpose_tiles<kOutputs>(t, channel, pixels);
    for (int c = 0; c < kLanes; ++c, to += kDepth) {
      Vector half[2][kEnd - kBegin][kOutputs];
#pragma GCC unroll 2
      for (int h = 0; h < 2; ++h) {
#pragma GCC unroll 4
        for (int x = 0; x < kOutputs; ++x) {
          Vector e[kOutputs], z[kPoints];
#pragma GCC unroll 4
          for (int y = 0; y < kOutputs; ++y) e[y] = _mm512_load_ps(&pixels[(y * kOutputs + x) * kLanes + c][h * kLanes]);
          F::spread(e, z);
#pragma GCC unroll 6
          for (int y = kBegin; y < kEnd; ++y) half[h][y - kBegin][x] = z[y];
        }
      }
      std::uint16_t* position = to;
#pragma GCC unroll 6
      for (int y = 0; y < kEnd - kBegin; ++y) {
        Vector row[2][kPoints];
        F::spread(half[0][y], row[0]);
        F::spread(half[1][y], row[1]);
        store_row(row[0], row[1], position, t.step, t.part);
      }
    }
  }
}

/// The same tiles as rows. Channels c and c + 16 are neighbours in a step.
template <class F>
void rows(const SplitTransform& t) {
  for (int i = 0; i < t.count; ++i) {
    const SplitTransform::Tile& tile = t.tiles[i];
    Vector half[2][kPoints][kPoints];
    if (is_whole(tile.inside, kPoints) && t.channels == kDepth) {
      input_columns<F, 0, kPoints, true>(tile, t, 0, half[0]);
      input_columns<F, 0, kPoints, true>(tile, t, kLanes, half[1]);
    } else {
      input_columns<F, 0, kPoints, false>(tile, t, 0, half[0]);
      input_columns<F, 0, kPoints, false>(tile, t, kLanes, half[1]);
    }
    std::uint16_t* position = t.to + i * kDepth;
#pragma GCC unroll 6
    for (int y = 0; y < kPoints; ++y) {
      Vector row[2][kPoints];
      F::input(half[0][y], row[0]);
      F::input(half[1][y], row[1]);
      store_row(row[0], row[1], position, t.step, t.part);
    }
  }
}

/// taps[t][k][j] := tap t of source channel k for result channel j.
template <int kTaps>
void transpose_taps(const SplitWeights& weights, float (&taps)[kTaps * kTaps][kDepth][kColumns]) {
  for (int y = 0; y < kTaps; ++y)
    for (int x = 0; x < kTaps; ++x)
      for (int k = 0; k < kDepth; k += kLanes) {
        const float* from = weights.from + y * weights.y + x * weights.x + k;
        const __mmask16 lanes = k < weights.sources ? first_lanes(weights.sources - k) : __mmask16(0);
        Vector v[kLanes];
#pragma GCC unroll 16
        for (int j = 0; j < kLanes; ++j, advance(from, weights.result)) v[j] = _mm512_maskz_loadu_ps(j < weights.results ? lanes : __mmask16(0), from);
        transpose(v);
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) _mm512_store_ps(taps[y * kTaps + x][k + i], v[i]);
      }
}

/// The transform along the columns of one source channel's taps.
template <class F>
MPSNN_INLINE void tap_columns(const float* from, std::ptrdiff_t line, std::ptrdiff_t pixel, __mmask16 lanes, Vector (&half)[F::kTile][F::kTaps]) {
#pragma GCC unroll 5
  for (int x = 0; x < F::kTaps; ++x, advance(from, pixel)) {
    Vector w[F::kTaps], u[F::kTile];
    const float* at = from;
#pragma GCC unroll 5
    for (int y = 0; y < F::kTaps; ++y, advance(at, line)) w[y] = _mm512_maskz_loadu_ps(lanes, at);
    F::weights(w, u);
#pragma GCC unroll 6
    for (int y = 0; y < F::kTile; ++y) half[y][x] = u[y];
  }
}

/// A share of what the next call reads: two lines of each tap.
template <int kTaps>
MPSNN_INLINE void fetch_taps(const SplitWeights& weights, int k) {
  const bool is_transposed = weights.result != 1;
  const float* from = weights.next + k * (is_transposed ? weights.result : weights.source);
  const std::ptrdiff_t second = is_transposed ? kLanes : kLanes * weights.source;
  for (int y = 0; y < kTaps; ++y, advance(from, weights.y)) {
    const float* at = from;
    for (int x = 0; x < kTaps; ++x, advance(at, weights.x)) {
      __builtin_prefetch(at);
      __builtin_prefetch(at + second);
    }
  }
}

template <class F, bool kStreams>
void weights(const SplitWeights& weights) {
  alignas(64) float taps[F::kTaps * F::kTaps][kDepth][kColumns];
  const float* from = weights.from;
  std::ptrdiff_t line = weights.y, pixel = weights.x, source = weights.source;
  if (weights.result != 1) {
    transpose_taps<F::kTaps>(weights, taps);
    from = taps[0][0];
    source = kColumns;
    pixel = kDepth * kColumns;
    line = F::kTaps * pixel;
  }
  const __mmask16 lanes = first_lanes(weights.results);
  const int pair = weights.in_order ? 2 : 1, neighbour = weights.in_order ? 1 : kLanes;
  for (int k = 0; k < kDepth / 2; ++k, from += pair * source) {
    fetch_taps<F::kTaps>(weights, k);
    Vector half[2][F::kTile][F::kTaps];
    tap_columns<F>(from, line, pixel, k * pair < weights.sources ? lanes : __mmask16(0), half[0]);
    tap_columns<F>(from + neighbour * source, line, pixel, k * pair + neighbour < weights.sources ? lanes : __mmask16(0), half[1]);
    std::uint16_t* position = weights.to + k * (2 * kColumns);
#pragma GCC unroll 6
    for (int y = 0; y < F::kTile; ++y) {
      Vector row[2][F::kTile];
      F::weights(half[0][y], row[0]);
      F::weights(half[1][y], row[1]);
      store_row<kStreams>(row[0], row[1], position, weights.step, kTile);
    }
  }
  if (kStreams) _mm_sfence();
}

template <class F>
constexpr SplitTransforms split_transforms() {
  return {{{input<F, 0, 6>, nullptr}, {input<F, 0, 3>, input<F, 3, 6>}},
          {{spread<F, 0, 6>, nullptr}, {spread<F, 0, 3>, spread<F, 3, 6>}},
          rows<F>,
          weights<F, false>,
          weights<F, true>};
}

#undef MPSNN_INLINE

}  // namespace

const SplitTransforms kSplitFour = split_transforms<FourOutputs>(), kSplitFiveTaps = split_transforms<TwoOutputsFiveTaps>(),
                      kSplitTwo = {{}, {}, nullptr, weights<TwoOutputs, false>, weights<TwoOutputs, true>};

}  // namespace mpsnn::cpu
