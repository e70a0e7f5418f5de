// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "mpsnn/descriptors.hpp"

/// Neuron functions (docs/MPS_SEMANTICS.md, 9.2), for every operation that applies one.
namespace mpsnn::reference {

/// f(x) of feature channel `channel`; only PReLU looks at the channel.
double neuron_value(const NNNeuronDescriptor& neuron, double x, int channel);
/// f'(x).
double neuron_derivative(const NNNeuronDescriptor& neuron, double x, int channel);

/// 1 / (1 + e^-x), and ln(1 + e^x), for any x without overflow.
double sigmoid(double x);
double softplus(double x);
/// -1, 0 or 1.
double sign(double x);

}  // namespace mpsnn::reference
