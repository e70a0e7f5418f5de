// SPDX-License-Identifier: Apache-2.0
// The transforms of Winograd's convolution along one axis, for any type `Vector`.

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

#undef MPSNN_INLINE

}  // namespace
}  // namespace mpsnn::cpu
