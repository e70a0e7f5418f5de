// SPDX-License-Identifier: Apache-2.0
#include "backends/cpu/neuron.hpp"

#include "backends/cpu/kernels.hpp"
#include "backends/cpu/isa/isa.hpp"
#include "backends/cpu/loops.hpp"

namespace mpsnn::cpu {
namespace {

NeuronFunction function_of(const NNNeuronDescriptor& neuron) {
  return {neuron.neuron_type, neuron.a, neuron.b, neuron.c, neuron.neuron_type == kSignedReLU};
}

/// PReLU's slope of a channel; channels behind the given slopes have slope 0.
float channel_slope(const NNNeuronDescriptor& neuron, int channel) {
  return static_cast<std::size_t>(channel) < neuron.data.size() ? neuron.data[channel] : 0.0f;
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
  if (neuron.neuron_type == CNNNeuronType::PReLU) return x >= 0 ? x : channel_slope(neuron, channel) * x;
  isa().neuron(function_of(neuron), &x, &x, 1);
  return x;
}

float neuron_slope(const NNNeuronDescriptor& neuron, float x, int channel) {
  if (neuron.neuron_type == CNNNeuronType::PReLU) return x >= 0 ? 1.0f : channel_slope(neuron, channel);
  float slope = 1;
  isa().neuron_gradient(function_of(neuron), &slope, &x, &slope, 1);
  return slope;
}

void apply_neuron(const NNNeuronDescriptor& neuron, float* values, std::size_t pixels, int channels) {
  if (neuron.neuron_type == CNNNeuronType::None) return;
  if (neuron.neuron_type == CNNNeuronType::PReLU) return prelu(neuron, values, values, pixels, channels);
  isa().neuron(function_of(neuron), values, values, pixels * channels);
}

void apply_neuron(const NNNeuronDescriptor& neuron, const float* x, float* y, std::size_t pixels, int channels) {
  if (x == y) return apply_neuron(neuron, y, pixels, channels);
  if (neuron.neuron_type == CNNNeuronType::PReLU) return prelu(neuron, x, y, pixels, channels);
  isa().neuron(function_of(neuron), x, y, pixels * channels);
}

void apply_neuron_gradient(const NNNeuronDescriptor& neuron, const float* incoming, const float* x, float* source_gradient,
                           std::size_t pixels, int channels) {
  if (neuron.neuron_type == CNNNeuronType::PReLU) return prelu_gradient(neuron, incoming, x, source_gradient, pixels, channels);
  isa().neuron_gradient(function_of(neuron), incoming, x, source_gradient, pixels * channels);
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
