// SPDX-License-Identifier: Apache-2.0
#include "backends/metal/lowering.hpp"
#include "mpsnn/nodes/dropout.hpp"
#include "mpsnn/nodes/neuron.hpp"
#include "mpsnn/nodes/softmax.hpp"

/// Nodes whose result has the size of the source: activations, soft-max, dropout.
namespace mpsnn::metal {
namespace {

// Apple's classes take as many parameters as their function has.
template <class Apple>
Owned<MPS::NNFilterNode> neuron(Lowering& l, const NNFilterNode& n) {
  return filter(Apple::alloc()->init(l.source(n)));
}
template <class Apple>
Owned<MPS::NNFilterNode> neuron_a(Lowering& l, const NNFilterNode& n) {
  return filter(Apple::alloc()->init(l.source(n), as<CNNNeuronNode>(n).a()));
}
template <class Apple>
Owned<MPS::NNFilterNode> neuron_ab(Lowering& l, const NNFilterNode& n) {
  const auto& node = as<CNNNeuronNode>(n);
  return filter(Apple::alloc()->init(l.source(n), node.a(), node.b()));
}
template <class Apple>
Owned<MPS::NNFilterNode> neuron_abc(Lowering& l, const NNFilterNode& n) {
  const auto& node = as<CNNNeuronNode>(n);
  return filter(Apple::alloc()->init(l.source(n), node.a(), node.b(), node.c()));
}
Owned<MPS::NNFilterNode> prelu(Lowering& l, const NNFilterNode& n) {
  const std::vector<float>& slopes = as<CNNNeuronNode>(n).descriptor().data;
  return filter(MPS::CNNNeuronPReLUNode::alloc()->init(l.source(n), data(slopes.data(), slopes.size() * sizeof(float))));
}
Owned<MPS::NNFilterNode> neuron_gradient(Lowering& l, const NNFilterNode& n) {
  const auto descriptor = make_neuron_descriptor(as<CNNNeuronGradientNode>(n).descriptor());
  return filter(MPS::CNNNeuronGradientNode::alloc()->init(l.source(n, 0), l.source(n, 1), l.state(n), descriptor.get()));
}

template <class Apple>
Owned<MPS::NNFilterNode> of_source(Lowering& l, const NNFilterNode& n) {
  return filter(Apple::alloc()->init(l.source(n)));
}
MTL::Size mask_stride(const DropoutParameters& d) { return MTL::Size(d.mask_stride_x, d.mask_stride_y, d.mask_stride_channels); }
Owned<MPS::NNFilterNode> dropout(Lowering& l, const NNFilterNode& n) {
  const DropoutParameters& d = as<CNNDropoutNode>(n).dropout();
  return filter(MPS::CNNDropoutNode::alloc()->init(l.source(n), d.keep_probability, d.seed, mask_stride(d)));
}
Owned<MPS::NNFilterNode> dropout_gradient(Lowering& l, const NNFilterNode& n) {
  const DropoutParameters& d = as<CNNDropoutGradientNode>(n).dropout();
  return filter(MPS::CNNDropoutGradientNode::alloc()->init(l.source(n, 0), l.source(n, 1), l.state(n), d.keep_probability, d.seed, mask_stride(d)));
}

}  // namespace

LoweredClasses pointwise_classes() {
  return {
      {"MPSCNNNeuronAbsoluteNode", neuron<MPS::CNNNeuronAbsoluteNode>},
      {"MPSCNNNeuronELUNode", neuron_a<MPS::CNNNeuronELUNode>},
      {"MPSCNNNeuronReLUNode", neuron_a<MPS::CNNNeuronReLUNode>},
      {"MPSCNNNeuronReLUNNode", neuron_ab<MPS::CNNNeuronReLUNNode>},
      {"MPSCNNNeuronLinearNode", neuron_ab<MPS::CNNNeuronLinearNode>},
      {"MPSCNNNeuronSigmoidNode", neuron<MPS::CNNNeuronSigmoidNode>},
      {"MPSCNNNeuronHardSigmoidNode", neuron_ab<MPS::CNNNeuronHardSigmoidNode>},
      {"MPSCNNNeuronSoftPlusNode", neuron_ab<MPS::CNNNeuronSoftPlusNode>},
      {"MPSCNNNeuronSoftSignNode", neuron<MPS::CNNNeuronSoftSignNode>},
      {"MPSCNNNeuronTanHNode", neuron_ab<MPS::CNNNeuronTanHNode>},
      {"MPSCNNNeuronPReLUNode", prelu},
      {"MPSCNNNeuronPowerNode", neuron_abc<MPS::CNNNeuronPowerNode>},
      {"MPSCNNNeuronExponentialNode", neuron_abc<MPS::CNNNeuronExponentialNode>},
      {"MPSCNNNeuronLogarithmNode", neuron_abc<MPS::CNNNeuronLogarithmNode>},
      {"MPSCNNNeuronGeLUNode", neuron<MPS::CNNNeuronGeLUNode>},
      {"MPSCNNNeuronGradientNode", neuron_gradient},
      {"MPSCNNSoftMaxNode", of_source<MPS::CNNSoftMaxNode>},
      {"MPSCNNSoftMaxGradientNode", plain_gradient<MPS::CNNSoftMaxGradientNode>},
      {"MPSCNNLogSoftMaxNode", of_source<MPS::CNNLogSoftMaxNode>},
      {"MPSCNNLogSoftMaxGradientNode", plain_gradient<MPS::CNNLogSoftMaxGradientNode>},
      {"MPSCNNDropoutNode", dropout},
      {"MPSCNNDropoutGradientNode", dropout_gradient},
  };
}

}  // namespace mpsnn::metal
