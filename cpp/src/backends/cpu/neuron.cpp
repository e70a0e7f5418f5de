// SPDX-License-Identifier: Apache-2.0
#include "backends/cpu/neuron.hpp"

#include <cmath>

#include "backends/cpu/kernels.hpp"
#include "backends/cpu/loops.hpp"
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
struct Linear {
  float a, b;
  float value(float x) const { return a * x + b; }
  float gradient(float e, float) const { return a * e; }
};
struct Sigmoid {
  float value(float x) const { return sigmoid(x); }
  float gradient(float e, float x) const {
    const float power = exponential(-std::fabs(x)), inverse = 1.0f / (1.0f + power);
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
    const float power = exponential(-2.0f * std::fabs(b * x)), inverse = 1.0f / (1.0f + power);
    return e * (a * b * 4.0f * (power * inverse * inverse));
  }
};
struct Absolute {
  float value(float x) const { return std::fabs(x); }
  float gradient(float e, float x) const { return x > 0 ? e : (x < 0 ? -e : 0.0f); }
};
struct SoftPlus {
  float a, b;
  float value(float x) const {
    const float t = b * x;
    return a * ((t > 0 ? t : 0.0f) + std::log1p(std::exp(-std::fabs(t))));
  }
  float gradient(float e, float x) const { return e * (a * b * sigmoid(b * x)); }
};
struct SoftSign {
  float value(float x) const {
    const float magnitude = std::fabs(x);
    const float quotient = x / (1.0f + magnitude);
    return magnitude > 1e37f ? (x > 0 ? 1.0f : -1.0f) : quotient;  // infinity / infinity is NaN
  }
  float gradient(float e, float x) const {
    const float inverse = 1.0f / (1.0f + std::fabs(x));
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
  float value(float x) const { return std::pow(a * x + b, c); }
  float gradient(float e, float x) const {
    return a * c == 0 ? 0.0f : e * (a * c * std::pow(a * x + b, c - 1));  // 0 * infinity is NaN
  }
};
struct Exponential {
  float a, b, c;  // c = -1 stands for base e
  float value(float x) const { return c == -1 ? std::exp(a * x + b) : std::pow(c, a * x + b); }
  float gradient(float e, float x) const { return e * ((c == -1 ? a : a * std::log(c)) * value(x)); }
};
struct Logarithm {
  float a, b, c;  // c = -1 stands for base e
  float value(float x) const { return c == -1 ? std::log(a * x + b) : std::log(a * x + b) / std::log(c); }
  float gradient(float e, float x) const { return e * (a / ((c == -1 ? 1.0f : std::log(c)) * (a * x + b))); }
};
struct GeLU {
  static constexpr float kInverseSqrt2 = 0.70710678118654752f, kInverseSqrt2Pi = 0.39894228040143268f;
  // 1 + erf(t) = erfc(-t), which does not cancel for negative t. Beyond -15 it is 0 (and -infinity * 0 is NaN).
  float value(float x) const { return x < -15 ? 0.0f : 0.5f * x * std::erfc(-x * kInverseSqrt2); }
  float gradient(float e, float x) const {
    const float bounded = x > 15 ? 15.0f : (x < -15 ? -15.0f : x);
    const float density = kInverseSqrt2Pi * std::exp(-0.5f * bounded * bounded);
    return e * (0.5f * std::erfc(-bounded * kInverseSqrt2) + bounded * density);
  }
};

/// Calls visit(function) with the struct of a neuron that is the same for all channels.
template <class Visit>
decltype(auto) with_function(const NNNeuronDescriptor& neuron, Visit visit) {
  const float a = neuron.a, b = neuron.b, c = neuron.c;
  switch (neuron.neuron_type) {
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

/// PReLU's slope of a channel; channels behind the given slopes have slope 0.
float channel_slope(const NNNeuronDescriptor& neuron, int channel) {
  return static_cast<std::size_t>(channel) < neuron.data.size() ? neuron.data[channel] : 0.0f;
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

void prelu(const NNNeuronDescriptor& neuron, const float* x, float* y, std::size_t pixels, int channels) {
  const bool has_all = neuron.data.size() >= static_cast<std::size_t>(channels);
  const float* slopes = neuron.data.data();
  for (std::size_t pixel = 0; pixel < pixels; ++pixel, x += channels, y += channels)
    for (int c = 0; c < channels; ++c) y[c] = x[c] >= 0 ? x[c] : (has_all ? slopes[c] : channel_slope(neuron, c)) * x[c];
}

void prelu_gradient(const NNNeuronDescriptor& neuron, const float* incoming, const float* x, float* gradient, std::size_t pixels,
                    int channels) {
  const bool has_all = neuron.data.size() >= static_cast<std::size_t>(channels);
  const float* slopes = neuron.data.data();
  for (std::size_t pixel = 0; pixel < pixels; ++pixel, incoming += channels, x += channels, gradient += channels)
    for (int c = 0; c < channels; ++c)
      gradient[c] = x[c] >= 0 ? incoming[c] : (has_all ? slopes[c] : channel_slope(neuron, c)) * incoming[c];
}

}  // namespace

float apply_neuron(const NNNeuronDescriptor& neuron, float x, int channel) {
  if (neuron.neuron_type == CNNNeuronType::PReLU) return ReLU{channel_slope(neuron, channel)}.value(x);
  return with_function(neuron, [x](auto f) { return f.value(x); });
}

float neuron_slope(const NNNeuronDescriptor& neuron, float x, int channel) {
  if (neuron.neuron_type == CNNNeuronType::PReLU) return ReLU{channel_slope(neuron, channel)}.gradient(1, x);
  return with_function(neuron, [x](auto f) { return f.gradient(1, x); });
}

void apply_neuron(const NNNeuronDescriptor& neuron, float* values, std::size_t pixels, int channels) {
  if (neuron.neuron_type == CNNNeuronType::None) return;
  if (neuron.neuron_type == CNNNeuronType::PReLU) return prelu(neuron, values, values, pixels, channels);
  with_function(neuron, [&](auto f) { map_in_place(f, values, pixels * channels); });
}

void apply_neuron(const NNNeuronDescriptor& neuron, const float* x, float* y, std::size_t pixels, int channels) {
  if (x == y) return apply_neuron(neuron, y, pixels, channels);
  if (neuron.neuron_type == CNNNeuronType::PReLU) return prelu(neuron, x, y, pixels, channels);
  with_function(neuron, [&](auto f) { map(f, x, y, pixels * channels); });
}

void apply_neuron_gradient(const NNNeuronDescriptor& neuron, const float* incoming, const float* x, float* source_gradient,
                           std::size_t pixels, int channels) {
  if (neuron.neuron_type == CNNNeuronType::PReLU) return prelu_gradient(neuron, incoming, x, source_gradient, pixels, channels);
  const std::size_t count = pixels * channels;
  with_function(neuron, [&](auto f) {
    incoming == source_gradient ? map_gradient_in_place(f, source_gradient, x, count)
                                : map_gradient(f, incoming, x, source_gradient, count);
  });
}

std::unique_ptr<Kernel> make_kernel(const NeuronOp& operation, const OperandShapes& shapes) {
  const Shape shape = shapes.inputs[0];
  return function_kernel([neuron = operation.neuron, shape](const KernelCall& call) {
    const std::size_t channels = shape.channels;
    parallel_ranges(shape.pixels(), channels, [&](std::size_t begin, std::size_t end, int) {
      apply_neuron(neuron, call.input<float>(0) + begin * channels, call.output<float>(0) + begin * channels, end - begin,
                   shape.channels);
    });
  });
}

std::unique_ptr<Kernel> make_kernel(const NeuronGradientOp& operation, const OperandShapes& shapes) {
  const Shape shape = shapes.inputs[0];
  return function_kernel([neuron = operation.neuron, shape](const KernelCall& call) {
    const std::size_t channels = shape.channels;
    parallel_ranges(shape.pixels(), channels, [&](std::size_t begin, std::size_t end, int) {
      const std::size_t first = begin * channels;
      apply_neuron_gradient(neuron, call.input<float>(0) + first, call.input<float>(1) + first, call.output<float>(0) + first,
                            end - begin, shape.channels);
    });
  });
}

}  // namespace mpsnn::cpu
