// SPDX-License-Identifier: Apache-2.0
// Activation functions and arithmetic: loops that the compiler turns into vectors of this instruction set.
// Included behind microkernel.inl. No function of the standard library: see isa.hpp.
#if defined(__AVX2__)
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // in GCC's own header, of operands that it leaves undefined on purpose
#endif
#include <immintrin.h>
#endif

#include "backends/cpu/vector_math.hpp"
#include "core/dropout_mask.hpp"

namespace mpsnn::cpu {
namespace {

typedef std::uint32_t Bits __attribute__((vector_size(kLanes * sizeof(float))));
template <>
struct BitsOf<Vector> {
  using type = Bits;
};

#if MPSNN_ISA_LANES == 16 && defined(__AVX512F__)
/// A division of 16 lanes takes as long as eight multiply-adds.
template <>
struct Reciprocal<Vector> {
  static inline __attribute__((always_inline)) Vector of(Vector x) {
    const Vector r = _mm512_rcp14_ps(x);
    return r + r * (1.0f - x * r);
  }
};
template <>
struct Extremes<Vector> {
  static inline __attribute__((always_inline)) Vector larger(Vector a, Vector b) { return _mm512_max_ps(a, b); }
  static inline __attribute__((always_inline)) Vector smaller(Vector a, Vector b) { return _mm512_min_ps(a, b); }
};
#elif MPSNN_ISA_LANES == 8 && defined(__AVX2__)
template <>
struct Extremes<Vector> {
  static inline __attribute__((always_inline)) Vector larger(Vector a, Vector b) { return _mm256_max_ps(a, b); }
  static inline __attribute__((always_inline)) Vector smaller(Vector a, Vector b) { return _mm256_min_ps(a, b); }
};
#endif

/// One struct per type: value() is f, gradient(e, x) is e * f'(x). Those whose functions are templates are given whole vectors.
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
  template <class T>
  T value(T x) const {
    return sigmoid(x);
  }
  template <class T>
  T gradient(T e, T x) const {
    const T power = exponential_of_negative(-magnitude_of(x)), inverse = reciprocal(1.0f + power);
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
  template <class T>
  T value(T x) const {
    return (b < 0 ? -a : a) * hyperbolic_tangent(x, b);
  }
  template <class T>
  T gradient(T e, T x) const {
    // 1 - tanh^2(t) = 4 p / (1 + p)^2 with p = e^(-2|t|): no cancellation where tanh is almost 1.
    const T power = exponential_of_negative(-2.0f * magnitude_of(b * x)), inverse = reciprocal(1.0f + power);
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
    return a * ((t > 0 ? t : 0.0f) + logarithm_of_one_plus(exponential_of_negative(-__builtin_fabsf(t))));
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
/// The exponents of a power that users write: (a * x + b)^n, 0 < |n| < 16, by products.
struct WholePower {
  float a, b;
  int n;
  static float power(float t, int n) {
    const int count = n < 0 ? -n : n;
    float result = 1.0f, factor = t;
#pragma GCC unroll 4
    for (int bit = 1; bit < 16; bit *= 2, factor *= factor) result = count & bit ? result * factor : result;
    return n < 0 ? 1.0f / result : result;
  }
  float value(float x) const { return power(a * x + b, n); }
  float gradient(float e, float x) const { return a == 0 ? 0.0f : e * (a * static_cast<float>(n) * power(a * x + b, n - 1)); }
};
struct NaturalExponential {
  float a, b;
  template <class T>
  T value(T x) const {
    return exponential(a * x + b);
  }
  template <class T>
  T gradient(T e, T x) const {
    return e * (a * value(x));
  }
};
/// c^(a * x + b), c > 0 and not 1. The exponent of e has more digits than a float: what is left of it comes in to first order.
struct Exponential {
  float a, b;
  double log_c;
  float value(float x) const {
    const double exponent = log_c * (a * x + b);
    const float rounded = static_cast<float>(exponent), rest = static_cast<float>(exponent - rounded);
    const float power = exponential(rounded);
    return __builtin_fabsf(rounded) < 90.0f ? power + power * rest : power;
  }
  float gradient(float e, float x) const { return e * (a * static_cast<float>(log_c) * value(x)); }
};
/// Any other base.
struct OtherExponential {
  float a, b, c;
  float value(float x) const { return __builtin_powf(c, a * x + b); }
  float gradient(float e, float x) const { return e * (a * __builtin_logf(c) * value(x)); }
};
struct Logarithm {
  float a, b, log_c;
  float value(float x) const { return natural_logarithm(a * x + b) / log_c; }
  float gradient(float e, float x) const { return e * (a / (log_c * (a * x + b))); }
};
struct GeLU {
  // x Phi(x) = max(x, 0) - |x| Phi(-|x|): nothing cancels for negative x. Beyond 13.1 Phi is no normal float (and infinity * 0 is NaN).
  template <class T>
  static T bounded(T x) {
    return Extremes<T>::smaller(T{} + 13.1f, magnitude_of(x));
  }
  template <class T>
  T value(T x) const {
    const T limited = bounded(x);
    const NormalTail<T> n = normal_tail(limited);
    return Extremes<T>::larger(T{}, x) - limited * (n.tail * n.density);
  }
  template <class T>
  T gradient(T e, T x) const {
    constexpr float kInverseSqrt2Pi = 0.39894228040143268f;
    const T limited = bounded(x);
    const NormalTail<T> n = normal_tail(limited);
    const T rest = n.density * (n.tail - kInverseSqrt2Pi * limited);  // Phi(-|x|) - |x| phi(x)
    return e * (x >= T{} ? 1.0f - rest : rest);
  }
};

/// Calls visit(function) with the struct of an exponential, a logarithm or a power. In their bases, -1 stands for e.
template <class Visit>
decltype(auto) with_power(const NeuronFunction& neuron, Visit visit) {
  const float a = neuron.a, b = neuron.b, c = neuron.c;
  switch (neuron.type) {
    case CNNNeuronType::Exponential:
      if (c == -1) return visit(NaturalExponential{a, b});
      return c > 0 && c != 1 && c < __builtin_inff() ? visit(Exponential{a, b, __builtin_log(c)}) : visit(OtherExponential{a, b, c});
    case CNNNeuronType::Logarithm: return visit(Logarithm{a, b, c == -1 ? 1.0f : __builtin_logf(c)});
    default: {
      const bool is_whole = c != 0 && c > -15 && c < 16 && c == static_cast<float>(static_cast<int>(c));
      return is_whole ? visit(WholePower{a, b, static_cast<int>(c)}) : visit(Power{a, b, c});
    }
  }
}

/// Calls visit(function) with the struct of a neuron that is the same for all channels.
template <class Visit>
decltype(auto) with_function(const NeuronFunction& neuron, Visit visit) {
  const float a = neuron.a, b = neuron.b;
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
    case CNNNeuronType::Power:
    case CNNNeuronType::Exponential:
    case CNNNeuronType::Logarithm: return with_power(neuron, visit);
    case CNNNeuronType::GeLU: return visit(GeLU{});
    default: return visit(Identity{});
  }
}

template <class Function>
concept OnVectors = requires(Function f, Vector v) { f.value(v); };

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

/// How far ahead numbers are fetched where each takes several cycles: by themselves, reading and computing would take turns.
constexpr int kFetchedAhead = 512;
inline __attribute__((always_inline)) void fetch_ahead(const float* p) {
  for (int i = 0; i < kLanes; i += 16) __builtin_prefetch(p + kFetchedAhead + i);
}

/// result[i] := f(x[i]); the result may be the operand.
template <class Function>
inline __attribute__((always_inline)) void map_vectors(Function f, const float* x, float* result, std::size_t count) {
  std::size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    fetch_ahead(x + i);
    fetch_ahead(result + i);
    store(result + i, f(load(x + i)));
  }
  if (i < count) {
    const int part = static_cast<int>(count - i);
    store_part(result + i, f(load_part(x + i, part)), part);
  }
}

/// result[i] := f(x[i], y[i]); the result may be an operand.
template <class Function>
inline __attribute__((always_inline)) void combine(Function f, const float* x, const float* y, float* result, std::size_t count) {
  std::size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    fetch_ahead(x + i);
    fetch_ahead(y + i);
    fetch_ahead(result + i);
    store(result + i, f(load(x + i), load(y + i)));
  }
  if (i < count) {
    const int part = static_cast<int>(count - i);
    store_part(result + i, f(load_part(x + i, part), load_part(y + i, part)), part);
  }
}

void neuron(const NeuronFunction& function, const float* x, float* y, std::size_t count) {
  with_function(function, [&]<class Function>(Function f) {
    if constexpr (OnVectors<Function>) map_vectors([f](Vector v) __attribute__((always_inline)) { return f.value(v); }, x, y, count);
    else x == y ? map_in_place(f, y, count) : map(f, x, y, count);
  });
}

void neuron_gradient(const NeuronFunction& function, const float* incoming, const float* x, float* gradient, std::size_t count) {
  with_function(function, [&]<class Function>(Function f) {
    if constexpr (OnVectors<Function>)
      combine([f](Vector e, Vector v) __attribute__((always_inline)) { return f.gradient(e, v); }, incoming, x, gradient, count);
    else incoming == gradient ? map_gradient_in_place(f, gradient, x, count) : map_gradient(f, incoming, x, gradient, count);
  });
}

// --- arithmetic

void scaled_sum(float a, const float* x, float b, const float* y, float c, float* result, std::size_t count) {
  combine([=](Vector p, Vector q) __attribute__((always_inline)) { return a * p + b * q + c; }, x, y, result, count);
}

void scaled_product(float a, const float* x, float b, const float* y, float c, float* result, std::size_t count) {
  combine([=](Vector p, Vector q) __attribute__((always_inline)) { return (a * p) * (b * q) + c; }, x, y, result, count);
}

void drop(const PixelMask& mask, const float* __restrict from, float* __restrict to, int channels) {
  const std::uint64_t bits = mask.pixel_bits, threshold = mask.threshold;
  const float keep_probability = mask.keep_probability;
  if (!mask.varies_channel) {
    const bool keeps = dropout_keeps_channel(bits, threshold, 0);
    for (int c = 0; c < channels; ++c) to[c] = keeps ? from[c] / keep_probability : 0.0f;
    return;
  }
  // Two loops: numbers of different sizes in one keep the compiler from making vectors.
  constexpr int kBlock = 256;
  std::uint64_t random[kBlock];
  for (int first = 0; first < channels; first += kBlock, from += kBlock, to += kBlock) {
    const int count = channels - first < kBlock ? channels - first : kBlock;
    for (int c = 0; c < count; ++c) random[c] = mix(bits ^ static_cast<std::uint64_t>(first + c)) >> 11;
    for (int c = 0; c < count; ++c) to[c] = random[c] < threshold ? from[c] / keep_probability : 0.0f;
  }
}

}  // namespace
}  // namespace mpsnn::cpu
