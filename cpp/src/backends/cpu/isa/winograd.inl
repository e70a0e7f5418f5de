// SPDX-License-Identifier: Apache-2.0
// The transforms of Winograd's convolution, included behind microkernel.inl. A two-dimensional transform applies the one for an
// axis to the columns of a tile, then to the rows of what comes out; each vector holds as many channels as it has lanes.

namespace mpsnn::cpu {
namespace {

#define MPSNN_INLINE inline __attribute__((always_inline))

/// Six points: 0, +-3/4, +-3/2 and infinity. Half the rounding error of 0, +-1, +-2, and every coefficient of the transforms of
/// images is exact (81/64, 45/16, ...). Even and odd parts serve two points at a time.
struct SixPoints {
  static constexpr int kTile = 6;
  static constexpr float kA = 0.75f, kB = 1.5f, kA2 = kA * kA, kB2 = kB * kB, kA3 = kA2 * kA, kB3 = kB2 * kB;
  // The denominators of the interpolation: the product of the distances to the other points.
  static constexpr float kN0 = 1 / (kA2 * kB2), kNA = 1 / (2 * kA2 * (kA2 - kB2)), kNB = 1 / (2 * kB2 * (kB2 - kA2));

  /// B^T d
  static MPSNN_INLINE void input(const Vector (&d)[6], Vector (&v)[6]) {
    const Vector even_a = d[4] - kB2 * d[2], odd_a = d[3] - kB2 * d[1];
    const Vector even_b = d[4] - kA2 * d[2], odd_b = d[3] - kA2 * d[1];
    v[0] = (d[4] - (kA2 + kB2) * d[2]) + kA2 * kB2 * d[0];
    v[1] = even_a + kA * odd_a;
    v[2] = even_a - kA * odd_a;
    v[3] = even_b + kB * odd_b;
    v[4] = even_b - kB * odd_b;
    v[5] = (d[5] - (kA2 + kB2) * d[3]) + kA2 * kB2 * d[1];
  }
};

/// F(4, 3)
struct FourOutputs : SixPoints {
  static constexpr int kOutputs = 4, kTaps = 3;
  /// A^T m
  static MPSNN_INLINE void output(const Vector (&m)[6], Vector (&y)[4]) {
    const Vector sum_a = m[1] + m[2], difference_a = m[1] - m[2], sum_b = m[3] + m[4], difference_b = m[3] - m[4];
    y[0] = m[0] + (sum_a + sum_b);
    y[1] = kA * difference_a + kB * difference_b;
    y[2] = kA2 * sum_a + kB2 * sum_b;
    y[3] = m[5] + (kA3 * difference_a + kB3 * difference_b);
  }
  /// A e
  static MPSNN_INLINE void spread(const Vector (&e)[4], Vector (&z)[6]) {
    const Vector even_a = e[0] + kA2 * e[2], odd_a = kA * e[1] + kA3 * e[3];
    const Vector even_b = e[0] + kB2 * e[2], odd_b = kB * e[1] + kB3 * e[3];
    z[0] = e[0];
    z[1] = even_a + odd_a;
    z[2] = even_a - odd_a;
    z[3] = even_b + odd_b;
    z[4] = even_b - odd_b;
    z[5] = e[3];
  }
  /// G w
  static MPSNN_INLINE void weights(const Vector (&w)[3], Vector (&u)[6]) {
    const Vector even_a = w[0] + kA2 * w[2], even_b = w[0] + kB2 * w[2];
    u[0] = kN0 * w[0];
    u[1] = kNA * (even_a + kA * w[1]);
    u[2] = kNA * (even_a - kA * w[1]);
    u[3] = kNB * (even_b + kB * w[1]);
    u[4] = kNB * (even_b - kB * w[1]);
    u[5] = w[2];
  }
  /// G^T u
  static MPSNN_INLINE void gather(const Vector (&u)[6], Vector (&w)[3]) {
    const Vector sum_a = kNA * (u[1] + u[2]), sum_b = kNB * (u[3] + u[4]);
    w[0] = kN0 * u[0] + (sum_a + sum_b);
    w[1] = (kA * kNA) * (u[1] - u[2]) + (kB * kNB) * (u[3] - u[4]);
    w[2] = u[5] + (kA2 * sum_a + kB2 * sum_b);
  }
};

/// F(2, 5)
struct TwoOutputsFiveTaps : SixPoints {
  static constexpr int kOutputs = 2, kTaps = 5;
  static MPSNN_INLINE void output(const Vector (&m)[6], Vector (&y)[2]) {
    y[0] = m[0] + ((m[1] + m[2]) + (m[3] + m[4]));
    y[1] = m[5] + (kA * (m[1] - m[2]) + kB * (m[3] - m[4]));
  }
  static MPSNN_INLINE void spread(const Vector (&e)[2], Vector (&z)[6]) {
    z[0] = e[0];
    z[1] = e[0] + kA * e[1];
    z[2] = e[0] - kA * e[1];
    z[3] = e[0] + kB * e[1];
    z[4] = e[0] - kB * e[1];
    z[5] = e[1];
  }
  static MPSNN_INLINE void weights(const Vector (&w)[5], Vector (&u)[6]) {
    const Vector even_a = w[0] + (kA2 * w[2] + (kA2 * kA2) * w[4]), odd_a = kA * w[1] + kA3 * w[3];
    const Vector even_b = w[0] + (kB2 * w[2] + (kB2 * kB2) * w[4]), odd_b = kB * w[1] + kB3 * w[3];
    u[0] = kN0 * w[0];
    u[1] = kNA * (even_a + odd_a);
    u[2] = kNA * (even_a - odd_a);
    u[3] = kNB * (even_b + odd_b);
    u[4] = kNB * (even_b - odd_b);
    u[5] = w[4];
  }
  static MPSNN_INLINE void gather(const Vector (&u)[6], Vector (&w)[5]) {
    const Vector sum_a = kNA * (u[1] + u[2]), sum_b = kNB * (u[3] + u[4]);
    const Vector difference_a = kNA * (u[1] - u[2]), difference_b = kNB * (u[3] - u[4]);
    w[0] = kN0 * u[0] + (sum_a + sum_b);
    w[1] = kA * difference_a + kB * difference_b;
    w[2] = kA2 * sum_a + kB2 * sum_b;
    w[3] = kA3 * difference_a + kB3 * difference_b;
    w[4] = u[5] + ((kA2 * kA2) * sum_a + (kB2 * kB2) * sum_b);
  }
};

/// F(2, 3): points 0, +-1 and infinity, as exact as adding the products up directly.
struct TwoOutputs {
  static constexpr int kTile = 4, kOutputs = 2, kTaps = 3;
  static MPSNN_INLINE void input(const Vector (&d)[4], Vector (&v)[4]) {
    v[0] = d[0] - d[2];
    v[1] = d[1] + d[2];
    v[2] = d[2] - d[1];
    v[3] = d[3] - d[1];
  }
  static MPSNN_INLINE void output(const Vector (&m)[4], Vector (&y)[2]) {
    y[0] = m[0] + (m[1] + m[2]);
    y[1] = m[3] + (m[1] - m[2]);
  }
  static MPSNN_INLINE void spread(const Vector (&e)[2], Vector (&z)[4]) {
    z[0] = e[0];
    z[1] = e[0] + e[1];
    z[2] = e[0] - e[1];
    z[3] = e[1];
  }
  static MPSNN_INLINE void weights(const Vector (&w)[3], Vector (&u)[4]) {
    const Vector even = w[0] + w[2];
    u[0] = w[0];
    u[1] = 0.5f * (even + w[1]);
    u[2] = 0.5f * (even - w[1]);
    u[3] = w[2];
  }
  static MPSNN_INLINE void gather(const Vector (&u)[4], Vector (&w)[3]) {
    const Vector sum = 0.5f * (u[1] + u[2]);
    w[0] = u[0] + sum;
    w[1] = 0.5f * (u[1] - u[2]);
    w[2] = u[3] + sum;
  }
};

/// Moves a pointer on. The compiler must not see how: it would keep an address for each of the 36 positions in registers that it
/// does not have, four times the work of the transform itself.
template <class T>
MPSNN_INLINE void advance(T*& pointer, std::ptrdiff_t step) {
  pointer += step;
  make_opaque(pointer);
}

/// Column `j` of a tile of `Size` x `Size` pixels, from pixel (0, j) on.
template <int Size, bool kWhole>
MPSNN_INLINE void load_column(const float* source, std::ptrdiff_t line, const WinogradInside& inside, int part, int j,
                              Vector (&column)[Size]) {
#pragma GCC unroll 6
  for (int i = 0; i < Size; ++i, advance(source, line)) {
    if (kWhole) {
      column[i] = load(source);
    } else {
      const bool is_inside = i >= inside.first_y && i < inside.last_y && j >= inside.first_x && j < inside.last_x;
      column[i] = !is_inside ? Vector{} : part == kLanes ? load(source) : load_part(source, part);
    }
  }
}

/// One vector of channels of a tile of `From` pixels each way to `To` x `To` positions.
template <int From, int To, bool kWhole, class Step>
MPSNN_INLINE void spread_vector(const float* source, std::ptrdiff_t line, std::ptrdiff_t pixel, const WinogradInside& inside,
                                int part, float* result, std::size_t step, Step&& transform) {
  Vector half[To][From];
#pragma GCC unroll 6
  for (int j = 0; j < From; ++j, advance(source, pixel)) {
    Vector column[From], out[To];
    load_column<From, kWhole>(source, line, inside, part, j, column);
    transform(column, out);
#pragma GCC unroll 6
    for (int i = 0; i < To; ++i) half[i][j] = out[i];
  }
#pragma GCC unroll 6
  for (int i = 0; i < To; ++i) {
    Vector out[To];
    transform(half[i], out);
#pragma GCC unroll 6
    for (int j = 0; j < To; ++j, advance(result, step)) store(result, out[j]);
  }
}

/// The same from `From` x `From` positions `step` floats apart to `To` x `To`, as vectors: result(i, row) for each row of them.
template <int From, int To, class Step, class Result>
MPSNN_INLINE void gather_vector(const float* source, std::size_t step, Step&& transform, Result&& result) {
  Vector half[From][To];
#pragma GCC unroll 6
  for (int i = 0; i < From; ++i) {
    Vector row[From];
#pragma GCC unroll 6
    for (int j = 0; j < From; ++j, advance(source, step)) row[j] = load(source);
    transform(row, half[i]);
  }
#pragma GCC unroll 6
  for (int j = 0; j < To; ++j) {
    Vector column[From], out[To];
#pragma GCC unroll 6
    for (int i = 0; i < From; ++i) column[i] = half[i][j];
    transform(column, out);
    result(j, out);
  }
}

template <int From, int To, class Step>
MPSNN_INLINE void spread_tile(const float* source, std::ptrdiff_t line, std::ptrdiff_t pixel, const WinogradInside& inside,
                              int channels, float* result, std::size_t step, std::size_t panel_step, Step&& transform) {
  const bool is_whole = inside.first_y == 0 && inside.last_y == From && inside.first_x == 0 && inside.last_x == From;
  for (int c = 0, panel = 0; c < channels; ++panel, result += panel_step) {
    for (int v = 0; v < kVectors && c < channels; ++v, c += kLanes) {
      const int part = channels - c < kLanes ? channels - c : kLanes;
      if (is_whole && part == kLanes) {
        spread_vector<From, To, true>(source + c, line, pixel, inside, part, result + v * kLanes, step, transform);
      } else {
        spread_vector<From, To, false>(source + c, line, pixel, inside, part, result + v * kLanes, step, transform);
      }
    }
  }
}

template <class F>
void winograd_input(const float* source, std::ptrdiff_t line, std::ptrdiff_t pixel, const WinogradInside& inside, int channels,
                    float* v, std::size_t step, std::size_t panel_step) {
  spread_tile<F::kTile, F::kTile>(source, line, pixel, inside, channels, v, step, panel_step,
                                  [](const Vector(&d)[F::kTile], Vector(&o)[F::kTile])
                                      __attribute__((always_inline)) { F::input(d, o); });
}

template <class F>
void winograd_spread(const float* source, std::ptrdiff_t line, std::ptrdiff_t pixel, const WinogradInside& inside, int channels,
                     float* z, std::size_t step, std::size_t panel_step) {
  spread_tile<F::kOutputs, F::kTile>(source, line, pixel, inside, channels, z, step, panel_step,
                                     [](const Vector(&e)[F::kOutputs], Vector(&o)[F::kTile])
                                         __attribute__((always_inline)) { F::spread(e, o); });
}

template <class F>
void winograd_output(const float* m, std::size_t step, const float* bias, int channels, float* result, std::ptrdiff_t line,
                     std::ptrdiff_t pixel, int lines, int columns) {
  constexpr int kTile = F::kTile, kOutputs = F::kOutputs;
  const bool is_whole = lines == kOutputs && columns == kOutputs;
  for (int c = 0; c < channels; c += kLanes) {
    const int part = channels - c < kLanes ? channels - c : kLanes;
    const Vector start = bias ? load_part(bias + c, part) : Vector{};
    const auto transform = [](const Vector(&d)[kTile], Vector(&o)[kOutputs]) __attribute__((always_inline)) { F::output(d, o); };
    if (is_whole && part == kLanes) {
      gather_vector<kTile, kOutputs>(m + c, step, transform, [&](int j, const Vector(&out)[kOutputs]) __attribute__((always_inline)) {
        float* to = result + j * pixel + c;
#pragma GCC unroll 4
        for (int i = 0; i < kOutputs; ++i, advance(to, line)) store(to, out[i] + start);
      });
    } else {
      gather_vector<kTile, kOutputs>(m + c, step, transform, [&](int j, const Vector(&out)[kOutputs]) __attribute__((always_inline)) {
        if (j >= columns) return;
        float* to = result + j * pixel + c;
#pragma GCC unroll 4
        for (int i = 0; i < kOutputs; ++i, advance(to, line))
          if (i < lines) store_part(to, out[i] + start, part);
      });
    }
  }
}

template <class F>
void winograd_weights(const float* w, std::size_t tap_step, std::size_t count, float* u, std::size_t step) {
  for (std::size_t c = 0; c < count; c += kLanes)
    spread_vector<F::kTaps, F::kTile, true>(w + c, F::kTaps * tap_step, tap_step, {}, kLanes, u + c, step,
                                            [](const Vector(&d)[F::kTaps], Vector(&o)[F::kTile])
                                                __attribute__((always_inline)) { F::weights(d, o); });
}

template <class F>
void winograd_gather(const float* u, std::size_t step, std::size_t count, float* w, std::size_t tap_step) {
  constexpr int kTile = F::kTile, kTaps = F::kTaps;
  for (std::size_t c = 0; c < count; c += kLanes)
    gather_vector<kTile, kTaps>(
        u + c, step, [](const Vector(&d)[kTile], Vector(&o)[kTaps]) __attribute__((always_inline)) { F::gather(d, o); },
        [&](int j, const Vector(&out)[kTaps]) __attribute__((always_inline)) {
          float* to = w + j * tap_step + c;
#pragma GCC unroll 5
          for (int i = 0; i < kTaps; ++i, advance(to, kTaps * tap_step)) store(to, out[i]);
        });
}

template <class F>
constexpr WinogradTransforms winograd_transforms() {
  return {F::kOutputs, F::kTaps, winograd_input<F>, winograd_spread<F>, winograd_output<F>, winograd_weights<F>, winograd_gather<F>};
}

constexpr Isa with_winograd(Isa isa) {
  isa.winograd_four = winograd_transforms<FourOutputs>();
  isa.winograd_two = winograd_transforms<TwoOutputs>();
  isa.winograd_five_taps = winograd_transforms<TwoOutputsFiveTaps>();
  return isa;
}

#undef MPSNN_INLINE

}  // namespace
}  // namespace mpsnn::cpu
