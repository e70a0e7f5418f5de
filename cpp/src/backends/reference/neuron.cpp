// SPDX-License-Identifier: Apache-2.0
#include "backends/reference/neuron.hpp"

#include <cmath>

#include "backends/reference/kernels.hpp"

namespace mpsnn::reference {
namespace {

constexpr double kSqrt2 = 1.41421356237309504880;
constexpr double kSqrt2Pi = 2.50662827463100050242;

/// A base of -1 stands for e.
double raise(double base, double exponent) { return base == -1 ? std::exp(exponent) : std::pow(base, exponent); }
double natural_log_of_base(double base) { return base == -1 ? 1 : std::log(base); }

}  // namespace

double sigmoid(double x) {
  if (x >= 0) return 1 / (1 + std::exp(-x));
  const double e = std::exp(x);
  return e / (1 + e);
}

double softplus(double x) { return std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x))); }

double sign(double x) { return x > 0 ? 1 : x < 0 ? -1 : 0; }

double neuron_value(const NNNeuronDescriptor& neuron, double x, int channel) {
  const double a = neuron.a, b = neuron.b, c = neuron.c;
  switch (neuron.neuron_type) {
    case CNNNeuronType::ReLU: return x >= 0 ? x : a * x;
    case CNNNeuronType::Linear: return a * x + b;
    case CNNNeuronType::Sigmoid: return sigmoid(x);
    case CNNNeuronType::HardSigmoid: return std::clamp(a * x + b, 0.0, 1.0);
    case CNNNeuronType::TanH: return a * std::tanh(b * x);
    case CNNNeuronType::Absolute: return std::abs(x);
    case CNNNeuronType::SoftPlus: return a * softplus(b * x);
    case CNNNeuronType::SoftSign: return x / (1 + std::abs(x));
    case CNNNeuronType::ELU: return x >= 0 ? x : a * std::expm1(x);
    case CNNNeuronType::PReLU: return x >= 0 ? x : static_cast<double>(neuron.data[channel]) * x;
    case CNNNeuronType::ReLUN: return std::min(x >= 0 ? x : a * x, b);
    case CNNNeuronType::Power: return std::pow(a * x + b, c);
    case CNNNeuronType::Exponential: return raise(c, a * x + b);
    case CNNNeuronType::Logarithm: return std::log(a * x + b) / natural_log_of_base(c);
    case CNNNeuronType::GeLU: return 0.5 * x * std::erfc(-x / kSqrt2);
    case CNNNeuronType::None:
    case CNNNeuronType::Count: break;
  }
  return x;
}

double neuron_derivative(const NNNeuronDescriptor& neuron, double x, int channel) {
  const double a = neuron.a, b = neuron.b, c = neuron.c;
  switch (neuron.neuron_type) {
    case CNNNeuronType::ReLU: return x >= 0 ? 1 : a;
    case CNNNeuronType::Linear: return a;
    case CNNNeuronType::Sigmoid: return sigmoid(x) * sigmoid(-x);
    case CNNNeuronType::HardSigmoid: return a * x + b >= 0 && a * x + b <= 1 ? a : 0;
    case CNNNeuronType::TanH: {
      const double t = std::tanh(b * x);
      return a * b * (1 - t) * (1 + t);
    }
    case CNNNeuronType::Absolute: return sign(x);
    case CNNNeuronType::SoftPlus: return a * b * sigmoid(b * x);
    case CNNNeuronType::SoftSign: return 1 / ((1 + std::abs(x)) * (1 + std::abs(x)));
    case CNNNeuronType::ELU: return x >= 0 ? 1 : a * std::exp(x);
    case CNNNeuronType::PReLU: return x >= 0 ? 1 : static_cast<double>(neuron.data[channel]);
    case CNNNeuronType::ReLUN:
      // MPS: the header prints b here (E-3). Compared before the limit, so that a negative slope that meets it counts too.
      if ((x >= 0 ? x : a * x) >= b) return 0;
      return x >= 0 ? 1 : a;
    case CNNNeuronType::Power: return a * c == 0 ? 0 : a * c * std::pow(a * x + b, c - 1);  // not 0 * infinity
    case CNNNeuronType::Exponential: return a * natural_log_of_base(c) * raise(c, a * x + b);
    case CNNNeuronType::Logarithm: return a / (natural_log_of_base(c) * (a * x + b));
    case CNNNeuronType::GeLU: return 0.5 * std::erfc(-x / kSqrt2) + x * std::exp(-x * x / 2) / kSqrt2Pi;
    case CNNNeuronType::None:
    case CNNNeuronType::Count: break;
  }
  return 1;
}

std::unique_ptr<Kernel> make_kernel(const NeuronOp& op, const OperandShapes& shapes) {
  return kernel([op, shape = shapes.outputs[0]](const KernelCall& call) {
    const double* x = call.input<double>(0);
    double* y = call.output<double>(0);
    for (std::size_t i = 0; i < shape.count(); ++i) y[i] = neuron_value(op.neuron, x[i], static_cast<int>(i % shape.channels));
  });
}

std::unique_ptr<Kernel> make_kernel(const NeuronGradientOp& op, const OperandShapes& shapes) {
  return kernel([op, shape = shapes.outputs[0]](const KernelCall& call) {
    const double* incoming = call.input<double>(0);
    const double* x = call.input<double>(1);
    double* gradient = call.output<double>(0);
    for (std::size_t i = 0; i < shape.count(); ++i)
      gradient[i] = incoming[i] * neuron_derivative(op.neuron, x[i], static_cast<int>(i % shape.channels));
  });
}

}  // namespace mpsnn::reference
