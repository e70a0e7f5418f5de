// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

/// Functions that a compiler can vectorise, because they neither branch nor call the C library. Everything is in an unnamed namespace:
/// the files of isa/ compile it with flags of their own, and their copies must not be merged with the others.
namespace mpsnn::cpu {
namespace {

/// Unsigned integers of the same size as T, a float or a vector of floats (isa/).
template <class T>
struct BitsOf {
  using type = std::uint32_t;
};

template <class T>
[[maybe_unused]] inline __attribute__((always_inline)) T magnitude_of(T x) {
  using Bits = typename BitsOf<T>::type;
  return __builtin_bit_cast(T, __builtin_bit_cast(Bits, x) & 0x7fffffffu);
}

/// `value`, which is positive, with the sign of `x`.
template <class T>
[[maybe_unused]] inline __attribute__((always_inline)) T with_sign_of(T x, T value) {
  using Bits = typename BitsOf<T>::type;
  return __builtin_bit_cast(T, __builtin_bit_cast(Bits, value) | (__builtin_bit_cast(Bits, x) & 0x80000000u));
}

/// 1 / x for 1 <= x < 2^120, within two roundings. Instruction sets may have a faster one for vectors (isa/).
template <class T>
struct Reciprocal {
  static inline __attribute__((always_inline)) T of(T x) { return 1.0f / x; }
};
template <class T>
[[maybe_unused]] inline __attribute__((always_inline)) T reciprocal(T x) {
  return Reciprocal<T>::of(x);
}

/// e^x split as 2^n * (1 + t): what exponentials share.
template <class T>
struct SplitExponential {
  T scale;  ///< 2^(n + kBias - 127)
  T t;
};

/// Needs -86.6 <= x <= 88.8 or NaN. e^r = 1 + r + r^2 P(r) with |r| <= ln(2)/2, P fitted to relative errors of 3e-9; in float32 1.2e-7.
template <unsigned kBias, class T>
[[maybe_unused]] inline __attribute__((always_inline)) SplitExponential<T> split_exponential(T x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves the rounded integer in the low bits
  using Bits = typename BitsOf<T>::type;
  const T shifted = x * 1.44269504088896341f + kRound;
  const T n = shifted - kRound;
  T r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  T p = r * 1.38145406e-3f + 8.36874545e-3f;
  p = p * r + 4.1668389e-2f;
  p = p * r + 1.66665211e-1f;
  p = p * r + 4.9999994e-1f;
  const T t = p * (r * r) + r;
  return {__builtin_bit_cast(T, (__builtin_bit_cast(Bits, shifted) + kBias) << 23), t};
}

/// 2^(x * factor) in the same way, for -124 <= x * factor <= 0 or NaN: no reduction in two parts is needed where x itself is rounded, or the
/// result is close to a limit. 2^r = 1 + r Q(r), Q fitted to relative errors of 1e-8.
template <class T>
struct PowerOfTwo {
  T power, t;  ///< power + power * t is the result
  static constexpr float kRound = 12582912.0f;
  using Bits = typename BitsOf<T>::type;
  [[maybe_unused]] inline __attribute__((always_inline)) PowerOfTwo(T x, float factor) {
    const T shifted = x * factor + kRound;
    const T n = shifted - kRound, r = x * factor - n;
    T q = r * 1.5403495e-4f + 1.3390735e-3f;
    q = q * r + 9.618238e-3f;
    q = q * r + 5.5503573e-2f;
    q = q * r + 0.24022649f;
    q = q * r + 0.6931472f;
    t = q * r;
    power = __builtin_bit_cast(T, (__builtin_bit_cast(Bits, shifted) + 127u) << 23);
  }
};

/// The larger and the smaller of two numbers, the second one where either is NaN. Compilers know the instructions for floats in this form
/// alone, and for vectors in none (isa/).
template <class T>
struct Extremes {
  static inline __attribute__((always_inline)) T larger(T a, T b) { return a > b ? a : b; }
  static inline __attribute__((always_inline)) T smaller(T a, T b) { return a < b ? a : b; }
};

/// e^x. Results below 2.5e-38 are 0; above the largest float, infinity; NaN stays NaN.
template <class T>
[[maybe_unused]] inline __attribute__((always_inline)) T exponential(T x) {
  const T zero{}, largest = zero + 88.8f, smallest = zero - 86.6f;
  const T bounded = Extremes<T>::larger(smallest, Extremes<T>::smaller(largest, x));
  const SplitExponential<T> e = split_exponential<126>(bounded);  // n reaches 128, whose power of two is no float
  const T value = (e.scale + e.scale * e.t) * 2.0f;
  return x < smallest ? zero : value;
}

/// The same for x <= 0 (or a rounding above).
template <class T>
[[maybe_unused]] inline __attribute__((always_inline)) T exponential_of_negative(T x) {
  const T zero{}, smallest = zero - 86.6f;
  const SplitExponential<T> e = split_exponential<127>(Extremes<T>::larger(smallest, x));
  return x < smallest ? zero : e.scale + e.scale * e.t;
}

/// e^x - 1 for x <= 0, accurate near 0 too.
template <class T>
[[maybe_unused]] inline __attribute__((always_inline)) T exponential_minus_one(T x) {
  const T smallest = T{} - 30.0f;
  const SplitExponential<T> e = split_exponential<127>(Extremes<T>::larger(smallest, x));
  return e.scale * e.t + (e.scale - 1.0f);
}

/// 1 / (1 + e^-x), by the sign of x so that nothing overflows.
template <class T>
[[maybe_unused]] inline __attribute__((always_inline)) T sigmoid(T x) {
  const T e = exponential_of_negative(-magnitude_of(x));
  const T positive = reciprocal(1.0f + e);
  return x >= T{} ? positive : e * positive;
}

/// tanh(factor * x), but for the sign of `factor`. From m = e^(-2|factor x|) - 1, which does not cancel near 0, as -m / (2 + m); it is -1 beyond
/// the bound.
template <class T>
[[maybe_unused]] inline __attribute__((always_inline)) T hyperbolic_tangent(T x, float factor) {
  const float size = __builtin_fabsf(factor), bound = 15.0f / size;
  const PowerOfTwo<T> e(Extremes<T>::smaller(T{} + bound, magnitude_of(x)), -2.88539008f * size);
  const T m = e.power * e.t + (e.power - 1.0f);
  return with_sign_of(x, -m * reciprocal(2.0f + m));
}

/// Cephes' logf: relative error below 1e-7. Of 0 it is -infinity; of negative numbers and NaN, NaN.
[[maybe_unused]] inline float natural_logarithm(float x) {
  const bool is_tiny = x < 1.17549435e-38f;
  const std::uint32_t bits = __builtin_bit_cast(std::uint32_t, is_tiny ? x * 8388608.0f : x);
  float exponent = static_cast<float>(static_cast<int>(bits >> 23) - (is_tiny ? 149 : 126));
  float m = __builtin_bit_cast(float, (bits & 0x7fffffu) | 0x3f000000u);  // in [1/2, 1)
  const bool is_small = m < 0.707106781186547524f;
  exponent = is_small ? exponent - 1.0f : exponent;
  m = (is_small ? m + m : m) - 1.0f;
  const float z = m * m;
  float p = 7.0376836292e-2f;
  p = p * m - 1.1514610310e-1f;
  p = p * m + 1.1676998740e-1f;
  p = p * m - 1.2420140846e-1f;
  p = p * m + 1.4249322787e-1f;
  p = p * m - 1.6668057665e-1f;
  p = p * m + 2.0000714765e-1f;
  p = p * m - 2.4999993993e-1f;
  p = p * m + 3.3333331174e-1f;
  const float tail = p * m * z - 2.12194440e-4f * exponent - 0.5f * z;
  const float value = (m + tail) + 0.693359375f * exponent;
  const float special = x == 0 ? -__builtin_inff() : __builtin_nanf("");
  return x > 0 ? (x > 3.402823466e38f ? x : value) : special;
}

/// ln(1 + x) for 0 <= x <= 1: what 1 + x rounds off comes back to first order.
[[maybe_unused]] inline float logarithm_of_one_plus(float x) {
  const float sum = 1.0f + x;
  return natural_logarithm(sum) + (x - (sum - 1.0f)) / sum;
}

/// What both sides of the normal distribution consist of, for 0 <= x <= 13.1: its density without the factor 1 / sqrt(2 pi), and the part of it
/// beyond x relative to that. Behind x it is erfc(x / sqrt(2)) / 2 = tail * density; tail is t * P(t) with t = 1 / (1 + 0.3 x / sqrt(2)), and P a
/// polynomial fitted to relative errors of 2e-8; evaluated in float32, 4e-7 at most, 1e-7 typically.
template <class T>
struct NormalTail {
  T density, tail;
};
template <class T>
[[maybe_unused]] inline __attribute__((always_inline)) NormalTail<T> normal_tail(T x) {
  const PowerOfTwo<T> e(x * x, -0.72134752f);
  const T t = reciprocal(1.0f + 0.212132034f * x);
  T p = t * -0.064777866f + 0.242867798f;
  p = p * t - 0.256333083f;
  p = p * t + 0.274104238f;
  p = p * t - 0.0475130342f;
  p = p * t + 0.10755305f;
  p = p * t + 0.0741433064f;
  p = p * t + 0.0853618756f;
  p = p * t + 0.084593706f;
  return {e.power + e.power * e.t, p * t};
}

/// Lanes of the reductions below: enough for two 8-wide or four 4-wide vectors, so that no addition waits for the one before.
constexpr int kReductionLanes = 16;

/// The sum of term(i) for i in [0, count), in an order that depends on `count` alone.
template <class Term>
[[maybe_unused]] inline float row_sum(int count, Term term) {
  float lane[kReductionLanes] = {};
  int i = 0;
  for (; i + kReductionLanes <= count; i += kReductionLanes)
    for (int j = 0; j < kReductionLanes; ++j) lane[j] += term(i + j);
  for (int half = kReductionLanes / 2; half > 0; half /= 2)
    for (int j = 0; j < half; ++j) lane[j] += lane[j + half];
  for (; i < count; ++i) lane[0] += term(i);
  return lane[0];
}

}  // namespace
}  // namespace mpsnn::cpu
