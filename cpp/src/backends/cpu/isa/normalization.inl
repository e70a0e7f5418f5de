// SPDX-License-Identifier: Apache-2.0
// The passes of normalizations over the pixels of an image. Included behind elementwise.inl.

namespace mpsnn::cpu {
namespace {

/// Calls body(first channel, channels) for each vector of each pixel's channels.
template <class Body>
inline __attribute__((always_inline)) void for_each_vector(std::size_t pixels, int channels, Body body) {
  for (std::size_t p = 0; p < pixels; ++p) {
    const std::size_t first = p * channels;
    int c = 0;
    for (; c + kLanes <= channels; c += kLanes) body(first + c, c, kLanes);
    if (c < channels) body(first + c, c, channels - c);
  }
}
inline __attribute__((always_inline)) Vector load_up_to(const float* p, int count) { return count == kLanes ? load(p) : load_part(p, count); }
inline __attribute__((always_inline)) void store_up_to(float* p, Vector v, int count) { count == kLanes ? store(p, v) : store_part(p, v, count); }

template <bool kRectifies>
void normalize_pixels(const float* x, float* y, std::size_t pixels, int channels, const ChannelNormalization& n) {
  const float slope = n.slope;
  for_each_vector(pixels, channels, [&](std::size_t i, int c, int count) __attribute__((always_inline)) {
    fetch_ahead(x + i);
    fetch_ahead(y + i);
    Vector t = (load_up_to(x + i, count) - load_up_to(n.mean + c, count)) * load_up_to(n.scale + c, count) + load_up_to(n.beta + c, count);
    if (kRectifies) t = t < Vector{} ? (slope == 0 ? Vector{} : slope * t) : t;
    store_up_to(y + i, t, count);
  });
}

void normalize(const float* x, float* y, std::size_t pixels, int channels, const ChannelNormalization& n) {
  n.has_relu ? normalize_pixels<true>(x, y, pixels, channels, n) : normalize_pixels<false>(x, y, pixels, channels, n);
}

/// The gradient that reaches the normalized value, whose ReLU is worked out again.
template <bool kRectifies>
inline __attribute__((always_inline)) Vector behind_relu(Vector e, Vector deviation, Vector scale, Vector beta, float slope) {
  return kRectifies ? (deviation * scale + beta >= Vector{} ? e : slope * e) : e;
}

template <bool kRectifies>
void normalize_gradient_pixels(const float* e, const float* x, float* gradient, std::size_t pixels, int channels, const ChannelNormalization& n,
                               const float* constant, const float* factor) {
  for_each_vector(pixels, channels, [&](std::size_t i, int c, int count) __attribute__((always_inline)) {
    fetch_ahead(e + i);
    fetch_ahead(x + i);
    fetch_ahead(gradient + i);
    const Vector deviation = load_up_to(x + i, count) - load_up_to(n.mean + c, count), scale = load_up_to(n.scale + c, count);
    const Vector beta = kRectifies ? load_up_to(n.beta + c, count) : Vector{};
    const Vector incoming = behind_relu<kRectifies>(load_up_to(e + i, count), deviation, scale, beta, n.slope);
    store_up_to(gradient + i, scale * ((incoming - load_up_to(constant + c, count)) - deviation * load_up_to(factor + c, count)), count);
  });
}

void normalize_gradient(const float* e, const float* x, float* gradient, std::size_t pixels, int channels, const ChannelNormalization& n,
                        const float* constant, const float* factor) {
  n.has_relu ? normalize_gradient_pixels<true>(e, x, gradient, pixels, channels, n, constant, factor)
             : normalize_gradient_pixels<false>(e, x, gradient, pixels, channels, n, constant, factor);
}

/// Calls body.template operator()<vectors>(first channel, channels of the last vector) for all channels, two vectors at a time: their
/// sums stay in registers over all pixels.
template <class Body>
inline __attribute__((always_inline)) void for_each_columns(int channels, Body body) {
  int c = 0;
  for (; c + 2 * kLanes <= channels; c += 2 * kLanes) body.template operator()<2>(c, kLanes);
  for (; c < channels; c += kLanes) body.template operator()<1>(c, channels - c < kLanes ? channels - c : kLanes);
}

/// Calls add(first pixel, pixels) eight pixels at a time, which are eight streams: in a loop over all pixels for each column most reads would
/// wait for another page. Sums of eight make long sums a third as inexact, too.
constexpr std::size_t kPixelGroup = 8;
template <class Add>
inline __attribute__((always_inline)) void for_each_pixel_group(std::size_t pixels, Add add) {
  for (std::size_t first = 0; first < pixels; first += kPixelGroup) add(first, pixels - first < kPixelGroup ? pixels - first : kPixelGroup);
}
inline __attribute__((always_inline)) void add_up_to(float* to, Vector v, int count) { store_up_to(to, load_up_to(to, count) + v, count); }

void add_deviations(const float* x, std::size_t stride, std::size_t pixels, const float* center, float* deviations, float* squares,
                    int channels) {
  for_each_pixel_group(pixels, [&](std::size_t first, std::size_t count) __attribute__((always_inline)) {
    for_each_columns(channels, [&]<int kCount>(int c, int last) __attribute__((always_inline)) {
      Vector middle[kCount], sum[kCount] = {}, square[kCount] = {};
#pragma GCC unroll 2
      for (int v = 0; v < kCount; ++v) middle[v] = load_up_to(center + c + v * kLanes, last);
      const float* from = x + first * stride + c;
      for (std::size_t p = 0; p < count; ++p, from += stride)
#pragma GCC unroll 2
        for (int v = 0; v < kCount; ++v) {
          const Vector d = load_up_to(from + v * kLanes, last) - middle[v];
          sum[v] += d;
          square[v] += d * d;
        }
#pragma GCC unroll 2
      for (int v = 0; v < kCount; ++v) {
        add_up_to(deviations + c + v * kLanes, sum[v], last);
        add_up_to(squares + c + v * kLanes, square[v], last);
      }
    });
  });
}

template <bool kRectifies>
void add_gradient_pixels(const float* e, const float* x, std::size_t stride, std::size_t pixels, const ChannelNormalization& n, float* sums,
                         float* products, int channels) {
  for_each_pixel_group(pixels, [&](std::size_t first, std::size_t count) __attribute__((always_inline)) {
    for_each_columns(channels, [&]<int kCount>(int c, int last) __attribute__((always_inline)) {
      Vector mean[kCount], scale[kCount] = {}, beta[kCount] = {}, sum[kCount] = {}, product[kCount] = {};
#pragma GCC unroll 2
      for (int v = 0; v < kCount; ++v) {
        mean[v] = load_up_to(n.mean + c + v * kLanes, last);
        if (kRectifies) scale[v] = load_up_to(n.scale + c + v * kLanes, last), beta[v] = load_up_to(n.beta + c + v * kLanes, last);
      }
      const float *incoming = e + first * stride + c, *from = x + first * stride + c;
      for (std::size_t p = 0; p < count; ++p, incoming += stride, from += stride)
#pragma GCC unroll 2
        for (int v = 0; v < kCount; ++v) {
          __builtin_prefetch(incoming + kPixelGroup * stride + v * kLanes);
          __builtin_prefetch(from + kPixelGroup * stride + v * kLanes);
          const Vector d = load_up_to(from + v * kLanes, last) - mean[v];
          const Vector share = behind_relu<kRectifies>(load_up_to(incoming + v * kLanes, last), d, scale[v], beta[v], n.slope);
          sum[v] += share;
          product[v] += share * d;
        }
#pragma GCC unroll 2
      for (int v = 0; v < kCount; ++v) {
        add_up_to(sums + c + v * kLanes, sum[v], last);
        add_up_to(products + c + v * kLanes, product[v], last);
      }
    });
  });
}

void add_gradient(const float* e, const float* x, std::size_t stride, std::size_t pixels, const ChannelNormalization& n, float* sums,
                  float* products, int channels) {
  n.has_relu ? add_gradient_pixels<true>(e, x, stride, pixels, n, sums, products, channels)
             : add_gradient_pixels<false>(e, x, stride, pixels, n, sums, products, channels);
}

}  // namespace
}  // namespace mpsnn::cpu
