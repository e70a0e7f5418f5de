// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

/// Functions that a compiler can vectorise, because they neither branch nor call the C library. Everything is in an unnamed namespace:
/// the files of isa/ compile it with flags of their own, and their copies must not be merged with the others.
namespace mpsnn::cpu {
namespace {

/// e^x split as 2^n * (1 + t): what exponential() and exponential_minus_one() share.
struct SplitExponential {
  float scale;  ///< 2^(n-1): n reaches 128, whose power of two is no float
  float t;
};

/// Needs -86.6 <= x <= 88.8 or NaN. Polynomial of Cephes' expf, |r| <= ln(2)/2: relative error below 1.5e-7.
[[maybe_unused]] inline SplitExponential split_exponential(float x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves the rounded integer in the low bits
  const float shifted = x * 1.44269504088896341f + kRound;
  const float n = shifted - kRound;
  float r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const float t = p * (r * r) + r;
  return {__builtin_bit_cast(float, (__builtin_bit_cast(std::uint32_t, shifted) + 126u) << 23), t};
}

/// e^x. Results below 2.5e-38 are 0; above the largest float, infinity; NaN stays NaN.
[[maybe_unused]] inline float exponential(float x) {
  float bounded = x > 88.8f ? 88.8f : x;
  bounded = bounded < -86.6f ? -86.6f : bounded;
  const SplitExponential e = split_exponential(bounded);
  const float value = (e.scale + e.scale * e.t) * 2.0f;
  return x < -86.6f ? 0.0f : value;
}

/// e^x - 1 for x <= 0, accurate near 0 too.
[[maybe_unused]] inline float exponential_minus_one(float x) {
  const float bounded = x < -30.0f ? -30.0f : x;
  const SplitExponential e = split_exponential(bounded);
  const float scale = e.scale * 2.0f;
  return scale * e.t + (scale - 1.0f);
}

/// 1 / (1 + e^-x), by the sign of x so that nothing overflows.
[[maybe_unused]] inline float sigmoid(float x) {
  const float e = exponential(-__builtin_fabsf(x));
  const float positive = 1.0f / (1.0f + e);
  return x >= 0 ? positive : e * positive;
}

/// Cephes' tanhf: a polynomial where 1 - 2/(e^2x + 1) would cancel.
[[maybe_unused]] inline float hyperbolic_tangent(float x) {
  const float magnitude = __builtin_fabsf(x);
  const float far = 1.0f - 2.0f / (exponential(2.0f * magnitude) + 1.0f);
  const float z = x * x;
  float p = -5.70498872745e-3f;
  p = p * z + 2.06390887954e-2f;
  p = p * z - 5.37397155531e-2f;
  p = p * z + 1.33314422036e-1f;
  p = p * z - 3.33332819422e-1f;
  const float near = p * z * x + x;
  return magnitude < 0.625f ? near : (x < 0 ? -far : far);
}

/// Lanes of the reductions below: enough for two 8-wide or four 4-wide vectors, so that no addition waits for the one before.
constexpr int kReductionLanes = 16;

/// The largest of `count` values (at least one); NaNs are passed over.
[[maybe_unused]] inline float row_maximum(const float* values, int count) {
  float largest = values[0];
  int i = 0;
  if (count >= kReductionLanes) {
    float lane[kReductionLanes];
    for (int j = 0; j < kReductionLanes; ++j) lane[j] = values[j];
    for (i = kReductionLanes; i + kReductionLanes <= count; i += kReductionLanes)
      for (int j = 0; j < kReductionLanes; ++j) lane[j] = values[i + j] > lane[j] ? values[i + j] : lane[j];
    for (int j = 0; j < kReductionLanes; ++j) largest = lane[j] > largest ? lane[j] : largest;
  }
  for (; i < count; ++i) largest = values[i] > largest ? values[i] : largest;
  return largest;
}

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
