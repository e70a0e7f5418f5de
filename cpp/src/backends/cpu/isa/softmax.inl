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

/// The sum of e^(x - largest), whose terms go to `powers` unless that is null.
inline float sum_of_powers(const float* x, float largest, int channels, float* powers) {
  Vector sum = {};
  for_each_vector(channels, [&](int c, int count) __attribute__((always_inline)) {
    const Vector power = first_of(exponential_of_negative(load_up_to(x + c, count) - largest), count, Vector{});
    if (powers) store_up_to(powers + c, power, count);
    sum += power;
  });
  return sum_of(sum);
}

void softmax(const float* x, float* y, std::size_t pixels, int channels) {
  for (; pixels > 0; --pixels, x += channels, y += channels) {
    const float inverse = 1.0f / sum_of_powers(x, largest_of_row(x, channels), channels, y);
    for_each_vector(channels, [&](int c, int count) __attribute__((always_inline)) {
      store_up_to(y + c, load_up_to(y + c, count) * inverse, count);
    });
  }
}

void log_softmax(const float* x, float* y, std::size_t pixels, int channels) {
  for (; pixels > 0; --pixels, x += channels, y += channels) {
    const float largest = largest_of_row(x, channels);
    const float log_of_sum = __builtin_logf(sum_of_powers(x, largest, channels, nullptr));
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

/// One pixel of a cross entropy. Plain: neither weights nor an incoming gradient nor losses of elements, and by the prediction.
template <bool kPlain>
inline float softmax_loss_pixel(const SoftMaxLoss& s, std::size_t at, int channels) {
  const float *y = s.y + at, *labels = s.labels + at;
  float* gradient = s.gradient ? s.gradient + at : nullptr;
  const bool keeps_powers = gradient && !s.by_label;
  const float largest = largest_of_row(y, channels);
  const float total = sum_of_powers(y, largest, channels, keeps_powers ? gradient : nullptr);
  const float inverse = 1.0f / total, log_of_total = __builtin_logf(total);
  // A class without a label adds nothing, even with probability 0, whose logarithm is infinite. 0 * log_of_total: a NaN must show.
  Vector losses = Vector{};
  losses[0] = 0 * log_of_total;
  for_each_vector(channels, [&](int c, int count) __attribute__((always_inline)) {
    const Vector label = load_up_to(labels + c, count) * s.keep + s.rest;
    const Vector log_p = (load_up_to(y + c, count) - largest) - log_of_total;
    const Vector loss = label == Vector{} ? Vector{} : label * log_p;
    Vector factor = Vector{} + s.weight;
    if (!kPlain && s.weights) factor *= load_up_to(s.weights + at + c, count);
    if (gradient) {
      Vector share = factor;
      if (!kPlain && s.incoming) share *= s.is_incoming_whole ? Vector{} + s.incoming[0] : load_up_to(s.incoming + at + c, count);
      const Vector slope = kPlain || !s.by_label ? load_up_to(gradient + c, count) * inverse - label : -s.keep * log_p;
      store_up_to(gradient + c, share * slope, count);
    }
    if (!kPlain && s.element_losses) store_up_to(s.element_losses + at + c, -factor * loss, count);
    losses -= first_of(factor * loss, count, Vector{});
  });
  return s.needs_sum ? sum_of(losses) : 0.0f;
}

double softmax_loss(const SoftMaxLoss& s, std::size_t pixels, int channels) {
  const bool is_plain = !s.weights && !s.incoming && !s.element_losses && s.gradient && !s.by_label;
  double sum = 0;
  for (std::size_t at = 0; at < pixels * channels; at += channels)
    sum += is_plain ? softmax_loss_pixel<true>(s, at, channels) : softmax_loss_pixel<false>(s, at, channels);
  return sum;
}

}  // namespace
}  // namespace mpsnn::cpu
