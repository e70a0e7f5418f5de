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

/// e^x split as 2^n * (1 + t): what exponentials share.
template <class T>
struct SplitExponential {
  T scale;  ///< 2^(n + kBias - 127)
  T t;
};

/// Needs -86.6 <= x <= 88.8 or NaN. Polynomial of Cephes' expf, |r| <= ln(2)/2: relative error below 1.5e-7.
template <unsigned kBias, class T>
[[maybe_unused]] inline __attribute__((always_inline)) SplitExponential<T> split_exponential(T x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves the rounded integer in the low bits
  using Bits = typename BitsOf<T>::type;
  const T shifted = x * 1.44269504088896341f + kRound;
  const T n = shifted - kRound;
  T r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  T p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const T t = p * (r * r) + r;
  return {__builtin_bit_cast(T, (__builtin_bit_cast(Bits, shifted) + kBias) << 23), t};
}

// Conditions below stand as the instructions for minima and maxima have them: the other way round they become two.

/// e^x. Results below 2.5e-38 are 0; above the largest float, infinity; NaN stays NaN.
template <class T>
[[maybe_unused]] inline __attribute__((always_inline)) T exponential(T x) {
  const T zero{}, largest = zero + 88.8f, smallest = zero - 86.6f;
  T bounded = largest < x ? largest : x;
  bounded = smallest > bounded ? smallest : bounded;
  const SplitExponential<T> e = split_exponential<126>(bounded);  // n reaches 128, whose power of two is no float
  const T value = (e.scale + e.scale * e.t) * 2.0f;
  return x < smallest ? zero : value;
}

/// The same for x <= 0 (or a rounding above).
template <class T>
[[maybe_unused]] inline __attribute__((always_inline)) T exponential_of_negative(T x) {
  const T zero{}, smallest = zero - 86.6f;
  const SplitExponential<T> e = split_exponential<127>(smallest > x ? smallest : x);
  return x < smallest ? zero : e.scale + e.scale * e.t;
}

/// e^x - 1 for x <= 0, accurate near 0 too.
[[maybe_unused]] inline float exponential_minus_one(float x) {
  const SplitExponential<float> e = split_exponential<127>(-30.0f > x ? -30.0f : x);
  return e.scale * e.t + (e.scale - 1.0f);
}

/// 1 / (1 + e^-x), by the sign of x so that nothing overflows.
[[maybe_unused]] inline float sigmoid(float x) {
  const float e = exponential_of_negative(-__builtin_fabsf(x));
  const float positive = 1.0f / (1.0f + e);
  return x >= 0 ? positive : e * positive;
}

/// Cephes' tanhf: a polynomial where (1 - e^-2x) / (1 + e^-2x) would cancel.
[[maybe_unused]] inline float hyperbolic_tangent(float x) {
  const float magnitude = __builtin_fabsf(x);
  const float e = exponential_of_negative(-2.0f * magnitude);
  const float far = (1.0f - e) / (1.0f + e);
  const float z = x * x;
  float p = -5.70498872745e-3f;
  p = p * z + 2.06390887954e-2f;
  p = p * z - 5.37397155531e-2f;
  p = p * z + 1.33314422036e-1f;
  p = p * z - 3.33332819422e-1f;
  const float near = p * z * x + x;
  return magnitude < 0.625f ? near : (x < 0 ? -far : far);
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

/// 1 - erf(x) for x >= 0 (Press et al., erfcc): relative error below 1.2e-7 and a few roundings of x^2.
[[maybe_unused]] inline float complementary_error(float x) {
  const float t = 1.0f / (1.0f + 0.5f * x);
  float p = 0.17087277f;
  p = p * t - 0.82215223f;
  p = p * t + 1.48851587f;
  p = p * t - 1.13520398f;
  p = p * t + 0.27886807f;
  p = p * t - 0.18628806f;
  p = p * t + 0.09678418f;
  p = p * t + 0.37409196f;
  p = p * t + 1.00002368f;
  return t * exponential_of_negative((p * t - 1.26551223f) - x * x);
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
