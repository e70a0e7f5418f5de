// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

/// The inner loops of pooling: one output pixel, a stretch of channels, a few taps at once. Each takes up to kChunk taps, so
/// that the running value stays in a register for a whole 3 x 3 window; larger windows take several calls.
namespace mpsnn::cpu {

constexpr int kChunk = 9;

/// Up to kChunk taps of one window, gathered before a call.
struct TapChunk {
  const float* values[kChunk];   ///< channel 0 of the stretch
  const float* others[kChunk];   ///< a second operand: pooled values
  const void* winners[kChunk];   ///< saved winners
  int codes[kChunk];             ///< the tap's number in its window
  float factors[kChunk];
  int count = 0;
};

/// Calls step(constant) for 0 .. K-1, written out: a loop here would keep the loop around it from becoming vectors, and its
/// arrays of pointers from becoming registers.
template <int K, class Step>
inline void unrolled(Step step) {
  [&]<int... k>(std::integer_sequence<int, k...>) { (step(std::integral_constant<int, k>{}), ...); }
  (std::make_integer_sequence<int, K>{});
}

/// best, winners := the larger of each value and of what was there. A NaN wins over everything, the first one.
template <int K, bool kFirst, bool kWinners>
void maximum_of_taps(const TapChunk& taps, float* __restrict best, int* __restrict winners, int channels) {
  const float* values[K];
  int codes[K];
  unrolled<K>([&](auto k) { values[k] = taps.values[k], codes[k] = taps.codes[k]; });
  for (int c = 0; c < channels; ++c) {
    float largest = kFirst ? values[0][c] : best[c];
    int winner = kFirst ? codes[0] : (kWinners ? winners[c] : 0);
    unrolled<K>([&](auto k) {
      if constexpr (k > 0 || !kFirst) {
        const float value = values[k][c];
        // Numbers instead of conditions: gcc 12 makes vectors of these, but not of `a > b || c`.
        const int is_greater = value > largest, is_nan = value != value, was_nan = largest != largest;
        const bool wins = (is_greater | (is_nan & ~was_nan)) != 0;
        largest = wins ? value : largest;
        if constexpr (kWinners) winner = wins ? codes[k] : winner;
      }
    });
    best[c] = largest;
    if constexpr (kWinners) winners[c] = winner;
  }
}

/// sum (+)= the sum of factor * value
template <int K, bool kFirst>
void sum_of_taps(const TapChunk& taps, float* __restrict sum, int channels) {
  const float* values[K];
  float factors[K];
  unrolled<K>([&](auto k) { values[k] = taps.values[k], factors[k] = taps.factors[k]; });
  for (int c = 0; c < channels; ++c) {
    float chunk = factors[0] * values[0][c];
    unrolled<K>([&](auto k) {
      if constexpr (k > 0) chunk += factors[k] * values[k][c];
    });
    sum[c] = kFirst ? chunk : sum[c] + chunk;
  }
}

/// sum (+)= the sum of the values whose tap won
template <int K, bool kFirst, class Code>
void sum_of_won_taps(const TapChunk& taps, float* __restrict sum, int channels) {
  const float* values[K];
  const Code* winners[K];
  Code codes[K];
  unrolled<K>([&](auto k) {
    values[k] = taps.values[k], winners[k] = static_cast<const Code*>(taps.winners[k]), codes[k] = static_cast<Code>(taps.codes[k]);
  });
  for (int c = 0; c < channels; ++c) {
    float chunk = kFirst ? 0.0f : sum[c];
    unrolled<K>([&](auto k) {
      const float value = values[k][c];  // loaded whether it won or not: a branch would be slower
      chunk += winners[k][c] == codes[k] ? value : 0.0f;
    });
    sum[c] = chunk;
  }
}

/// sum (+)= the sum of factor * value^2
inline void sum_of_squares(const TapChunk& taps, bool is_first, float* __restrict sum, int channels) {
  for (int k = 0; k < taps.count; ++k) {
    const float* value = taps.values[k];
    const float factor = taps.factors[k];
    if (is_first && k == 0) for (int c = 0; c < channels; ++c) sum[c] = factor * (value[c] * value[c]);
    else for (int c = 0; c < channels; ++c) sum[c] += factor * (value[c] * value[c]);
  }
}

/// sum (+)= the sum of factor * value * x / norm, where norm is not 0
inline void sum_of_shares(const TapChunk& taps, bool is_first, const float* __restrict x, float* __restrict sum, int channels) {
  for (int k = 0; k < taps.count; ++k) {
    const float *value = taps.values[k], *norm = taps.others[k];
    const float factor = taps.factors[k];
    for (int c = 0; c < channels; ++c) {
      const float before = is_first && k == 0 ? 0.0f : sum[c];
      const float divisor = norm[c] == 0 ? 1.0f : norm[c];
      const float share = factor * value[c] * (x[c] / divisor);  // x / norm is at most 1, however small the norm
      sum[c] = before + (norm[c] == 0 ? 0.0f : share);
    }
  }
}

/// Calls visit(std::integral_constant<int, taps.count>).
template <class Visit>
void with_tap_count(int count, Visit visit) {
  switch (count) {
    case 1: return visit(std::integral_constant<int, 1>{});
    case 2: return visit(std::integral_constant<int, 2>{});
    case 3: return visit(std::integral_constant<int, 3>{});
    case 4: return visit(std::integral_constant<int, 4>{});
    case 5: return visit(std::integral_constant<int, 5>{});
    case 6: return visit(std::integral_constant<int, 6>{});
    case 7: return visit(std::integral_constant<int, 7>{});
    case 8: return visit(std::integral_constant<int, 8>{});
    case 9: return visit(std::integral_constant<int, 9>{});
    default: return;
  }
}

}  // namespace mpsnn::cpu
