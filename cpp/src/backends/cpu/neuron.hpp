// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>

#include "mpsnn/descriptors.hpp"

/// Activation functions and their derivatives (docs/MPS_SEMANTICS.md, 9.2), for the neuron kernels and for kernels that end in a
/// neuron. NaN stays NaN. The forms over rows choose the function once, outside of the loop.
namespace mpsnn::cpu {

/// f(x). `channel` matters for PReLU only.
float apply_neuron(const NNNeuronDescriptor& neuron, float x, int channel);

/// values := f(values), in place; the values of one pixel's `channels` lie together, channel 0 first.
void apply_neuron(const NNNeuronDescriptor& neuron, float* values, std::size_t pixels, int channels);

/// y := f(x). `y` may be `x`, but must not overlap it otherwise.
void apply_neuron(const NNNeuronDescriptor& neuron, const float* x, float* y, std::size_t pixels, int channels);

/// f'(x)
float neuron_slope(const NNNeuronDescriptor& neuron, float x, int channel);

/// source_gradient := incoming * f'(x). `source_gradient` may be `incoming`.
void apply_neuron_gradient(const NNNeuronDescriptor& neuron, const float* incoming, const float* x, float* source_gradient,
                           std::size_t pixels, int channels);

}  // namespace mpsnn::cpu
