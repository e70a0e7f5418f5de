// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "mpsnn/nodes/node.hpp"

namespace mpsnn {

/// MPSCNNNeuronNode: base of the activation functions; the formula of each type is in MPS_SEMANTICS 9.2.
///
/// Result: the source's size and channels. Gradient: E * f'(x), one class for all types.
class MPSNN_API CNNNeuronNode : public NNFilterNode {
 public:
  float a() const { return descriptor_.a; }
  float b() const { return descriptor_.b; }
  float c() const { return descriptor_.c; }
  const NNNeuronDescriptor& descriptor() const { return descriptor_; }
  void lower(PlanBuilder& plan) const override;
  Json parameters() const override;

 protected:
  CNNNeuronNode(ImageNodePtr source, NNNeuronDescriptor descriptor);
  std::vector<GradientFilterNodePtr> make_gradient_filters(const ImageNodePtr& source_gradient) override;

 private:
  NNNeuronDescriptor descriptor_;
};

/// The node class that `descriptor` names; throws OptionError for None.
MPSNN_API std::shared_ptr<CNNNeuronNode> make_neuron_node(ImageNodePtr source, const NNNeuronDescriptor& descriptor);

/// One activation function as a class of its own. Unset parameters take the class's defaults (MPS_SEMANTICS 4.4).
#define MPSNN_NEURON_NODE(Name, Type, default_a, default_b, default_c)                                     \
  class MPSNN_API CNNNeuron##Name##Node final : public CNNNeuronNode {                                     \
   public:                                                                                                 \
    explicit CNNNeuron##Name##Node(ImageNodePtr source, float a = default_a, float b = default_b, float c = default_c) \
        : CNNNeuronNode(std::move(source), {CNNNeuronType::Type, a, b, c, {}}) {}                          \
    const char* class_name() const override { return "MPSCNNNeuron" #Name "Node"; }                        \
  };

MPSNN_NEURON_NODE(Absolute, Absolute, 0, 0, 0)
MPSNN_NEURON_NODE(ELU, ELU, 1, 0, 0)
MPSNN_NEURON_NODE(ReLU, ReLU, 0, 0, 0)
MPSNN_NEURON_NODE(ReLUN, ReLUN, 1, 6, 0)
MPSNN_NEURON_NODE(Linear, Linear, 1, 0, 0)
MPSNN_NEURON_NODE(Sigmoid, Sigmoid, 0, 0, 0)
MPSNN_NEURON_NODE(HardSigmoid, HardSigmoid, 0.2f, 0.5f, 0)
MPSNN_NEURON_NODE(SoftPlus, SoftPlus, 1, 1, 0)
MPSNN_NEURON_NODE(SoftSign, SoftSign, 0, 0, 0)
MPSNN_NEURON_NODE(TanH, TanH, 1, 1, 0)
MPSNN_NEURON_NODE(Power, Power, 1, 0, 1)
MPSNN_NEURON_NODE(Exponential, Exponential, 1, 0, -1)
MPSNN_NEURON_NODE(Logarithm, Logarithm, 1, 0, -1)
MPSNN_NEURON_NODE(GeLU, GeLU, 0, 0, 0)
#undef MPSNN_NEURON_NODE

/// MPSCNNNeuronPReLUNode: one negative slope per feature channel. The slopes are constants: they get no gradient.
class MPSNN_API CNNNeuronPReLUNode final : public CNNNeuronNode {
 public:
  CNNNeuronPReLUNode(ImageNodePtr source, std::vector<float> a_data)
      : CNNNeuronNode(std::move(source), {CNNNeuronType::PReLU, 0, 0, 0, std::move(a_data)}) {}
  const char* class_name() const override { return "MPSCNNNeuronPReLUNode"; }
};

/// MPSCNNNeuronGradientNode: the gradient of every activation function.
class MPSNN_API CNNNeuronGradientNode final : public NNGradientFilterNode {
 public:
  CNNNeuronGradientNode(ImageNodePtr source_gradient, ImageNodePtr source_image, std::shared_ptr<NNGradientStateNode> gradient_state,
                        NNNeuronDescriptor descriptor);
  const char* class_name() const override { return "MPSCNNNeuronGradientNode"; }
  const NNNeuronDescriptor& descriptor() const { return descriptor_; }
  void lower(PlanBuilder& plan) const override;
  Json parameters() const override;

 private:
  NNNeuronDescriptor descriptor_;
};

}  // namespace mpsnn
