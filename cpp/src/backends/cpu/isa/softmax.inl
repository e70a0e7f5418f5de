// SPDX-License-Identifier: Apache-2.0
// Soft-max, its logarithm, their gradients and its cross entropy: rows of channels, which stay in the first-level cache between the
// looks at them. Included behind elementwise.inl. No function of the standard library: see isa.hpp.

namespace mpsnn::cpu {
namespace {

/// Numbers of the lanes: those behind the end of a row take no part.
inline __attribute__((always_inline)) Bits lane_numbers() {
  Bits numbers;
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) numbers[i] = i;
  return numbers;
}
inline __attribute__((always_inline)) Vector first_of(Vector v, int count, Vector others) {
  return count == kLanes ? v : (lane_numbers() < Bits{} + static_cast<unsigned>(count) ? v : others);
}

/// True where all bits are 0.
inline __attribute__((always_inline)) bool is_zero(Vector v) {
#if MPSNN_ISA_LANES == 16 && defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)v, (__m512i)v) == 0;
#elif MPSNN_ISA_LANES == 8 && defined(__AVX2__)
  return _mm256_testz_si256((__m256i)v, (__m256i)v);
#else
  const Bits bits = (Bits)v;
  unsigned all = 0;
  for (int i = 0; i < kLanes; ++i) all |= bits[i];
  return all == 0;
#endif
}

/// Calls body(first channel, channels) for each vector of a row, the last of which may be short.
template <class Body>
inline __attribute__((always_inline)) void for_each_vector(int channels, Body body) {
  int c = 0;
  for (; c + kLanes <= channels; c += kLanes) body(c, kLanes);
  if (c < channels) body(c, channels - c);
}

/// All lanes of a vector made one by `meet`, half with half.
template <int Lanes, class Meet>
inline __attribute__((always_inline)) float meet_lanes(typename Lane<Lanes>::Float v, Meet meet) {
  if constexpr (Lanes == 1) {
    return v[0];
  } else {
    using Half = typename Lane<Lanes / 2>::Float;
    const char* bytes = reinterpret_cast<const char*>(&v);
    return meet_lanes<Lanes / 2>(meet(read_vector<Half>(bytes), read_vector<Half>(bytes + sizeof(Half))), meet);
  }
}
inline __attribute__((always_inline)) float sum_of(Vector v) {
#if MPSNN_ISA_LANES == 16 && defined(__AVX512F__)
  return _mm512_reduce_add_ps(v);  // gcc 12 keeps what meet_lanes() takes apart in memory, in the loop before it too
#endif
  return meet_lanes<kLanes>(v, [](auto a, auto b) __attribute__((always_inline)) { return a + b; });
}

/// The largest of a row; NaNs are passed over.
inline float largest_of_row(const float* x, int channels) {
  const Vector none = Vector{} - __builtin_inff();
  Vector best[4] = {none, none, none, none};
  int c = 0;
  for (; c + 4 * kLanes <= channels; c += 4 * kLanes)
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const Vector v = load(x + c + i * kLanes);
      best[i] = v > best[i] ? v : best[i];
    }
  for_each_vector(channels - c, [&](int at, int count) __attribute__((always_inline)) {
    const Vector v = first_of(load_up_to(x + c + at, count), count, none);
    best[0] = v > best[0] ? v : best[0];
  });
  best[0] = best[0] > best[1] ? best[0] : best[1];
  best[2] = best[2] > best[3] ? best[2] : best[3];
  best[0] = best[0] > best[2] ? best[0] : best[2];
  return meet_lanes<kLanes>(best[0], [](auto a, auto b) __attribute__((always_inline)) { return a > b ? a : b; });
}

/// The sum of e^(x - largest), whose terms go to `powers` unless that is null. Calls fetch(c) for each vector: there is time for it.
template <class Fetch>
inline __attribute__((always_inline)) float sum_of_powers(const float* x, float largest, int channels, float* powers, Fetch fetch) {
  const auto term = [=](int c, int count) __attribute__((always_inline)) {
    for (int i = 0; i < kLanes; i += 16) fetch(c + i);
    const Vector power = first_of(exponential_of_negative(load_up_to(x + c, count) - largest), count, Vector{});
    if (powers) store_up_to(powers + c, power, count);
    return power;
  };
  Vector sum = {};  // of a lambda's captures it would be in memory
  int c = 0;
  for (; c + kLanes <= channels; c += kLanes) sum += term(c, kLanes);
  if (c < channels) sum += term(c, channels - c);
  return sum_of(sum);
}

void softmax(const float* x, float* y, std::size_t pixels, int channels) {
  for (; pixels > 0; --pixels, x += channels, y += channels) {
    const float inverse = 1.0f / sum_of_powers(x, largest_of_row(x, channels), channels, y, [](int) {});
    for_each_vector(channels, [&](int c, int count) __attribute__((always_inline)) {
      store_up_to(y + c, load_up_to(y + c, count) * inverse, count);
    });
  }
}

void log_softmax(const float* x, float* y, std::size_t pixels, int channels) {
  for (; pixels > 0; --pixels, x += channels, y += channels) {
    const float largest = largest_of_row(x, channels);
    const float log_of_sum = __builtin_logf(sum_of_powers(x, largest, channels, nullptr, [](int) {}));
    for_each_vector(channels, [&](int c, int count) __attribute__((always_inline)) {
      store_up_to(y + c, (load_up_to(x + c, count) - largest) - log_of_sum, count);
    });
  }
}

void softmax_gradient(const float* incoming, const float* y, float* gradient, std::size_t pixels, int channels) {
  for (; pixels > 0; --pixels, incoming += channels, y += channels, gradient += channels) {
    Vector products = {};
    for_each_vector(channels, [&](int c, int count) __attribute__((always_inline)) {
      products += load_up_to(incoming + c, count) * load_up_to(y + c, count);  // what load_up_to leaves out is 0
    });
    const float sum = sum_of(products);
    for_each_vector(channels, [&](int c, int count) __attribute__((always_inline)) {
      store_up_to(gradient + c, load_up_to(y + c, count) * (load_up_to(incoming + c, count) - sum), count);
    });
  }
}

void log_softmax_gradient(const float* incoming, const float* y, float* gradient, std::size_t pixels, int channels) {
  for (; pixels > 0; --pixels, incoming += channels, y += channels, gradient += channels) {
    Vector all = {};
    for_each_vector(channels, [&](int c, int count) __attribute__((always_inline)) { all += load_up_to(incoming + c, count); });
    const float sum = sum_of(all);
    for_each_vector(channels, [&](int c, int count) __attribute__((always_inline)) {
      store_up_to(gradient + c, load_up_to(incoming + c, count) - exponential(load_up_to(y + c, count)) * sum, count);
    });
  }
}

/// Pixels of a cross entropy that take each step together, so that their sums and logarithms do not wait for one another; as many as stay in
/// the first-level cache.
constexpr int kLossPixels = 16, kLossFloats = 4096;

/// Some pixels of a cross entropy. Plain: neither weights nor an incoming gradient nor losses of elements, and by the prediction.
template <bool kPlain>
inline void softmax_loss_pixels(const SoftMaxLoss& s, std::size_t first, int pixels, int channels, float* sums) {
  float largest[kLossPixels], total[kLossPixels], inverse[kLossPixels], log_of_total[kLossPixels];
  const bool keeps_powers = s.gradient && !s.by_label;
  for (int p = 0; p < pixels; ++p) {
    const std::size_t at = first + static_cast<std::size_t>(p) * channels;
    const float *labels = s.labels + at, *next = s.y + at + pixels * channels, *to = s.gradient ? s.gradient + at + pixels * channels : next;
    largest[p] = largest_of_row(s.y + at, channels);
    total[p] = sum_of_powers(s.y + at, largest[p], channels, keeps_powers ? s.gradient + at : nullptr, [=](int c) __attribute__((always_inline)) {
      __builtin_prefetch(labels + c);
      __builtin_prefetch(next + c, 0, 2);
      __builtin_prefetch(to + c, 0, 2);
    });
  }
  for (int p = pixels; p < kLossPixels; ++p) total[p] = 1;
  for (int p = 0; p < kLossPixels; ++p) {
    inverse[p] = 1.0f / total[p];
    log_of_total[p] = natural_logarithm(total[p]);
  }
  for (int p = 0; p < pixels; ++p) {
    const std::size_t at = first + static_cast<std::size_t>(p) * channels;
    const float *y = s.y + at, *labels = s.labels + at;
    float* gradient = s.gradient ? s.gradient + at : nullptr;
    Vector losses = {};
    for_each_vector(channels, [&](int c, int count) __attribute__((always_inline)) {
      const Vector given = load_up_to(labels + c, count);
      if (kPlain && s.rest == 0 && is_zero(given)) {  // most of a label in one class
        store_up_to(gradient + c, s.weight * (load_up_to(gradient + c, count) * inverse[p]), count);
        return;
      }
      const Vector label = given * s.keep + s.rest;
      const Vector log_p = (load_up_to(y + c, count) - largest[p]) - log_of_total[p];
      const Vector loss = label == Vector{} ? Vector{} : label * log_p;  // without a label nothing, even where the logarithm is infinite
      Vector factor = Vector{} + s.weight;
      if (!kPlain && s.weights) factor *= load_up_to(s.weights + at + c, count);
      if (gradient) {
        Vector share = factor;
        if (!kPlain && s.incoming) share *= s.is_incoming_whole ? Vector{} + s.incoming[0] : load_up_to(s.incoming + at + c, count);
        const Vector slope = kPlain || !s.by_label ? load_up_to(gradient + c, count) * inverse[p] - label : -s.keep * log_p;
        store_up_to(gradient + c, share * slope, count);
      }
      if (!kPlain && s.element_losses) store_up_to(s.element_losses + at + c, -factor * loss, count);
      losses -= first_of(factor * loss, count, Vector{});
    });
    sums[p] = sum_of(losses) + 0 * log_of_total[p];  // a NaN must show
  }
}

void softmax_loss(const SoftMaxLoss& s, std::size_t pixels, int channels, float* sums) {
  const bool is_plain = !s.weights && !s.incoming && !s.element_losses && s.gradient && !s.by_label;
  const int fitting = kLossFloats / channels, most = fitting < 1 ? 1 : fitting < kLossPixels ? fitting : kLossPixels;
  for (std::size_t pixel = 0; pixel < pixels; pixel += most) {
    const int count = pixels - pixel < static_cast<std::size_t>(most) ? static_cast<int>(pixels - pixel) : most;
    if (is_plain) softmax_loss_pixels<true>(s, pixel * channels, count, channels, sums + pixel);
    else softmax_loss_pixels<false>(s, pixel * channels, count, channels, sums + pixel);
  }
}

}  // namespace
}  // namespace mpsnn::cpu
