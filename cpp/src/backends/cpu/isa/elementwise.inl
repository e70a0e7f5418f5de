// SPDX-License-Identifier: Apache-2.0
// Activation functions and the passes of normalizations: loops that the compiler turns into vectors of this instruction set.
// Included behind microkernel.inl. No function of the standard library: see isa.hpp.
#include "backends/cpu/vector_math.hpp"

namespace mpsnn::cpu {
namespace {

/// One struct per type: value() is f, gradient(e, x) is e * f'(x).
struct Identity {
  float value(float x) const { return x; }
  float gradient(float e, float) const { return e; }
};
struct ReLU {
  float a;
  float value(float x) const { return x >= 0 ? x : a * x; }
  float gradient(float e, float x) const { return x >= 0 ? e : a * e; }
};
/// ReLU with a = 0, where a * x would turn -infinity into NaN.
struct PlainReLU {
  float value(float x) const { return x < 0 ? 0.0f : x; }
  float gradient(float e, float x) const { return x >= 0 ? e : 0.0f; }
};
/// The sign of a result is that of x, and zeros are +0: the gradient reads the result.
struct SignedReLU {
  float a;
  float value(float x) const { return x < 0 ? (a == 0 ? -0.0f : a * x) : x + 0.0f; }
  float gradient(float e, float y) const {
    const bool is_negative = __builtin_signbit(y) || y != y;
    return is_negative ? (a == 0 ? 0.0f : a * e) : e;
  }
};
struct Linear {
  float a, b;
  float value(float x) const { return a * x + b; }
  float gradient(float e, float) const { return a * e; }
};
struct Sigmoid {
  float value(float x) const { return sigmoid(x); }
  float gradient(float e, float x) const {
    const float power = exponential(-__builtin_fabsf(x)), inverse = 1.0f / (1.0f + power);
    return e * (power * inverse * inverse);
  }
};
struct HardSigmoid {
  float a, b;
  float value(float x) const {
    const float t = a * x + b;
    return t < 0 ? 0.0f : (t > 1 ? 1.0f : t);
  }
  float gradient(float e, float x) const {
    const float t = a * x + b;
    return ((t >= 0) & (t <= 1)) ? a * e : 0.0f;
  }
};
struct TanH {
  float a, b;
  float value(float x) const { return a * hyperbolic_tangent(b * x); }
  float gradient(float e, float x) const {
    // 1 - tanh^2(t) = 4 p / (1 + p)^2 with p = e^(-2|t|): no cancellation where tanh is almost 1.
    const float power = exponential(-2.0f * __builtin_fabsf(b * x)), inverse = 1.0f / (1.0f + power);
    return e * (a * b * 4.0f * (power * inverse * inverse));
  }
};
struct Absolute {
  float value(float x) const { return __builtin_fabsf(x); }
  float gradient(float e, float x) const { return x > 0 ? e : (x < 0 ? -e : 0.0f); }
};
struct SoftPlus {
  float a, b;
  float value(float x) const {
    const float t = b * x;
    return a * ((t > 0 ? t : 0.0f) + __builtin_log1pf(__builtin_expf(-__builtin_fabsf(t))));
  }
  float gradient(float e, float x) const { return e * (a * b * sigmoid(b * x)); }
};
struct SoftSign {
  float value(float x) const {
    const float magnitude = __builtin_fabsf(x);
    const float quotient = x / (1.0f + magnitude);
    return magnitude > 1e37f ? (x > 0 ? 1.0f : -1.0f) : quotient;  // infinity / infinity is NaN
  }
  float gradient(float e, float x) const {
    const float inverse = 1.0f / (1.0f + __builtin_fabsf(x));
    return e * (inverse * inverse);
  }
};
struct ELU {
  float a;
  float value(float x) const {
    const float negative = a * exponential_minus_one(x < 0 ? x : x - x);  // x - x: 0, and NaN for NaN
    return x >= 0 ? x : negative;
  }
  float gradient(float e, float x) const {
    const float slope = a * exponential(x);
    return x >= 0 ? e : e * slope;
  }
};
struct ReLUN {
  float a, b;
  float unlimited(float x) const { return x >= 0 ? x : (a == 0 && x < 0 ? 0.0f : a * x); }
  float value(float x) const {
    const float t = unlimited(x);
    return t > b ? b : t;
  }
  // MPS: the header prints b above the limit (E-3). A negative slope can reach the limit too.
  float gradient(float e, float x) const { return unlimited(x) >= b ? 0.0f : (x >= 0 ? e : a * e); }
};
struct Power {
  float a, b, c;
  float value(float x) const { return __builtin_powf(a * x + b, c); }
  float gradient(float e, float x) const {
    return a * c == 0 ? 0.0f : e * (a * c * __builtin_powf(a * x + b, c - 1));  // 0 * infinity is NaN
  }
};
struct Exponential {
  float a, b, c;  // c = -1 stands for base e
  float value(float x) const { return c == -1 ? __builtin_expf(a * x + b) : __builtin_powf(c, a * x + b); }
  float gradient(float e, float x) const { return e * ((c == -1 ? a : a * __builtin_logf(c)) * value(x)); }
};
struct Logarithm {
  float a, b, c;  // c = -1 stands for base e
  float value(float x) const { return c == -1 ? __builtin_logf(a * x + b) : __builtin_logf(a * x + b) / __builtin_logf(c); }
  float gradient(float e, float x) const { return e * (a / ((c == -1 ? 1.0f : __builtin_logf(c)) * (a * x + b))); }
};
struct GeLU {
  static constexpr float kInverseSqrt2 = 0.70710678118654752f, kInverseSqrt2Pi = 0.39894228040143268f;
  // 1 + erf(t) = erfc(-t), which does not cancel for negative t. Beyond -15 it is 0 (and -infinity * 0 is NaN).
  float value(float x) const { return x < -15 ? 0.0f : 0.5f * x * __builtin_erfcf(-x * kInverseSqrt2); }
  float gradient(float e, float x) const {
    const float bounded = x > 15 ? 15.0f : (x < -15 ? -15.0f : x);
    const float density = kInverseSqrt2Pi * __builtin_expf(-0.5f * bounded * bounded);
    return e * (0.5f * __builtin_erfcf(-bounded * kInverseSqrt2) + bounded * density);
  }
};

/// Calls visit(function) with the struct of a neuron that is the same for all channels.
template <class Visit>
decltype(auto) with_function(const NeuronFunction& neuron, Visit visit) {
  const float a = neuron.a, b = neuron.b, c = neuron.c;
  if (neuron.keeps_sign) return visit(SignedReLU{a});
  switch (neuron.type) {
    case CNNNeuronType::ReLU: return a == 0 ? visit(PlainReLU{}) : visit(ReLU{a});
    case CNNNeuronType::Linear: return visit(Linear{a, b});
    case CNNNeuronType::Sigmoid: return visit(Sigmoid{});
    case CNNNeuronType::HardSigmoid: return visit(HardSigmoid{a, b});
    case CNNNeuronType::TanH: return visit(TanH{a, b});
    case CNNNeuronType::Absolute: return visit(Absolute{});
    case CNNNeuronType::SoftPlus: return visit(SoftPlus{a, b});
    case CNNNeuronType::SoftSign: return visit(SoftSign{});
    case CNNNeuronType::ELU: return visit(ELU{a});
    case CNNNeuronType::ReLUN: return visit(ReLUN{a, b});
    case CNNNeuronType::Power: return visit(Power{a, b, c});
    case CNNNeuronType::Exponential: return visit(Exponential{a, b, c});
    case CNNNeuronType::Logarithm: return visit(Logarithm{a, b, c});
    case CNNNeuronType::GeLU: return visit(GeLU{});
    default: return visit(Identity{});
  }
}

// The in-place loops are their own functions: the compiler's test for overlap would send them to scalar code.

template <class Function>
void map_in_place(Function f, float* values, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) values[i] = f.value(values[i]);
}
template <class Function>
void map(Function f, const float* __restrict x, float* __restrict y, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) y[i] = f.value(x[i]);
}
template <class Function>
void map_gradient_in_place(Function f, float* gradient, const float* __restrict x, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) gradient[i] = f.gradient(gradient[i], x[i]);
}
template <class Function>
void map_gradient(Function f, const float* __restrict incoming, const float* __restrict x, float* __restrict gradient,
                  std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) gradient[i] = f.gradient(incoming[i], x[i]);
}

void neuron(const NeuronFunction& function, const float* x, float* y, std::size_t count) {
  with_function(function, [&](auto f) { x == y ? map_in_place(f, y, count) : map(f, x, y, count); });
}

void neuron_gradient(const NeuronFunction& function, const float* incoming, const float* x, float* gradient, std::size_t count) {
  with_function(function, [&](auto f) {
    incoming == gradient ? map_gradient_in_place(f, gradient, x, count) : map_gradient(f, incoming, x, gradient, count);
  });
}

// --- normalization

/// A ReLU behind a normalization, worked out again from the normalized value.
inline float rectified(float t, float slope) { return t < 0 ? (slope == 0 ? 0.0f : slope * t) : t; }

template <bool kRectifies>
void normalize_pixels(const float* __restrict x, float* __restrict y, std::size_t pixels, int channels, const ChannelNormalization& n) {
  const float *__restrict mean = n.mean, *__restrict scale = n.scale, *__restrict beta = n.beta;
  const float slope = n.slope;
  for (std::size_t p = 0; p < pixels; ++p, x += channels, y += channels)
    for (int c = 0; c < channels; ++c) {
      const float t = (x[c] - mean[c]) * scale[c] + beta[c];
      y[c] = kRectifies ? rectified(t, slope) : t;
    }
}

void normalize(const float* x, float* y, std::size_t pixels, int channels, const ChannelNormalization& n) {
  n.has_relu ? normalize_pixels<true>(x, y, pixels, channels, n) : normalize_pixels<false>(x, y, pixels, channels, n);
}

/// The gradient that reaches the normalized value.
template <bool kRectifies>
inline float behind_relu(float e, float x, float mean, float scale, float beta, float slope) {
  if (!kRectifies) return e;
  return (x - mean) * scale + beta >= 0 ? e : slope * e;
}

/// In place, `e` is not looked at.
template <bool kRectifies, bool kInPlace>
void normalize_gradient_pixels(const float* __restrict e, const float* __restrict x, float* __restrict gradient, std::size_t pixels,
                               int channels, const ChannelNormalization& n, const float* __restrict constant,
                               const float* __restrict factor) {
  const float *__restrict mean = n.mean, *__restrict scale = n.scale, *__restrict beta = n.beta;
  const float slope = n.slope;
  for (std::size_t p = 0; p < pixels; ++p, e += channels, x += channels, gradient += channels)
    for (int c = 0; c < channels; ++c) {
      const float incoming = behind_relu<kRectifies>(kInPlace ? gradient[c] : e[c], x[c], mean[c], scale[c], beta[c], slope);
      gradient[c] = scale[c] * ((incoming - constant[c]) - (x[c] - mean[c]) * factor[c]);
    }
}

void normalize_gradient(const float* e, const float* x, float* gradient, std::size_t pixels, int channels, const ChannelNormalization& n,
                        const float* constant, const float* factor) {
  const auto run = e == gradient ? (n.has_relu ? normalize_gradient_pixels<true, true> : normalize_gradient_pixels<false, true>)
                                 : (n.has_relu ? normalize_gradient_pixels<true, false> : normalize_gradient_pixels<false, false>);
  run(e, x, gradient, pixels, channels, n, constant, factor);
}

void sum_deviations(const float* __restrict x, std::size_t stride, std::size_t pixels, const float* __restrict center,
                    float* __restrict deviations, float* __restrict squares, int channels) {
  for (int c = 0; c < channels; ++c) deviations[c] = squares[c] = 0;
  std::size_t p = 0;
  for (; p + 4 <= pixels; p += 4, x += 4 * stride)
    for (int c = 0; c < channels; ++c) {
      const float d = x[c] - center[c], e = x[stride + c] - center[c];
      const float f = x[2 * stride + c] - center[c], g = x[3 * stride + c] - center[c];
      deviations[c] += (d + e) + (f + g);
      squares[c] += (d * d + e * e) + (f * f + g * g);
    }
  for (; p < pixels; ++p, x += stride)
    for (int c = 0; c < channels; ++c) {
      const float d = x[c] - center[c];
      deviations[c] += d;
      squares[c] += d * d;
    }
}

template <bool kRectifies>
void sum_gradient_pixels(const float* __restrict e, const float* __restrict x, std::size_t stride, std::size_t pixels,
                         const ChannelNormalization& n, float* __restrict sums, float* __restrict products, int channels) {
  const float *__restrict mean = n.mean, *__restrict scale = n.scale, *__restrict beta = n.beta;
  const float slope = n.slope;
  for (int c = 0; c < channels; ++c) sums[c] = products[c] = 0;
  const auto incoming = [&](std::size_t at, int c) __attribute__((always_inline)) {
    return behind_relu<kRectifies>(e[at + c], x[at + c], mean[c], kRectifies ? scale[c] : 0, kRectifies ? beta[c] : 0, slope);
  };
  std::size_t p = 0;
  for (; p + 2 <= pixels; p += 2, e += 2 * stride, x += 2 * stride)
    for (int c = 0; c < channels; ++c) {
      const float first = incoming(0, c), second = incoming(stride, c);
      sums[c] += first + second;
      products[c] += first * (x[c] - mean[c]) + second * (x[stride + c] - mean[c]);
    }
  for (; p < pixels; ++p, e += stride, x += stride)
    for (int c = 0; c < channels; ++c) {
      const float first = incoming(0, c);
      sums[c] += first;
      products[c] += first * (x[c] - mean[c]);
    }
}

void sum_gradient(const float* e, const float* x, std::size_t stride, std::size_t pixels, const ChannelNormalization& n, float* sums,
                  float* products, int channels) {
  n.has_relu ? sum_gradient_pixels<true>(e, x, stride, pixels, n, sums, products, channels)
             : sum_gradient_pixels<false>(e, x, stride, pixels, n, sums, products, channels);
}

}  // namespace
}  // namespace mpsnn::cpu
