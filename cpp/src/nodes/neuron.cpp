// SPDX-License-Identifier: Apache-2.0
#include "mpsnn/nodes/neuron.hpp"

#include "core/plan_builder.hpp"
#include "nodes/json_fields.hpp"

namespace mpsnn {
namespace {

void require_slopes(const NNFilterNode& node, const PlanBuilder& plan, ValueId source, const NNNeuronDescriptor& neuron) {
  const Shape image = plan.shape(source);
  if (neuron.neuron_type != CNNNeuronType::PReLU || static_cast<int>(neuron.data.size()) == image.channels) return;
  throw ShapeError(plan.name(node) + ": PReLU needs one slope per feature channel.",
                   {node.class_name(), plan.name(node), std::to_string(image.channels) + " slopes for image " + image.text(),
                    std::to_string(neuron.data.size()) + " slopes", "give " + std::to_string(image.channels) + " values of a"});
}

}  // namespace

CNNNeuronNode::CNNNeuronNode(ImageNodePtr source, NNNeuronDescriptor descriptor) : NNFilterNode({std::move(source)}, {}), descriptor_(std::move(descriptor)) {
  add_result_state(std::make_unique<NNGradientStateNode>(this));
}

void CNNNeuronNode::lower(PlanBuilder& plan) const {
  const ValueId source = plan.image(*this, 0);
  require_slopes(*this, plan, source, descriptor_);
  plan.add_result(*this, NeuronOp{descriptor_}, {source}, plan.shape(source));
}

Json CNNNeuronNode::parameters() const { return to_json(descriptor_); }

std::vector<GradientFilterNodePtr> CNNNeuronNode::make_gradient_filters(const ImageNodePtr& source_gradient) {
  return {std::make_shared<CNNNeuronGradientNode>(source_gradient, sources()[0], typed_result_state<NNGradientStateNode>(), descriptor_)};
}

CNNNeuronGradientNode::CNNNeuronGradientNode(ImageNodePtr source_gradient, ImageNodePtr source_image, std::shared_ptr<NNGradientStateNode> gradient_state,
                                             NNNeuronDescriptor descriptor)
    : NNGradientFilterNode({std::move(source_gradient), std::move(source_image)}, {std::move(gradient_state)}), descriptor_(std::move(descriptor)) {}

void CNNNeuronGradientNode::lower(PlanBuilder& plan) const {
  const Step step = plan.forward_step(forward_filter());
  if (!std::holds_alternative<NeuronOp>(step.operation))
    fail<GraphError>("the gradient state must come from a neuron node.", "an MPSCNNNeuronNode", forward_filter().class_name(), "pass its result_state");
  const ValueId gradient = plan.image(*this, 0), source = plan.image(*this, 1);
  plan.require_gradient_shape(*this, gradient, plan.shape(step.outputs[0]));
  plan.require_same_shape(*this, "the source image", source, plan.shape(step.inputs[0]));
  require_slopes(*this, plan, source, descriptor_);
  plan.add_result(*this, NeuronGradientOp{descriptor_}, {gradient, source}, plan.shape(source));
}

Json CNNNeuronGradientNode::parameters() const { return to_json(descriptor_); }

std::shared_ptr<CNNNeuronNode> make_neuron_node(ImageNodePtr source, const NNNeuronDescriptor& n) {
  using Type = CNNNeuronType;
  switch (n.neuron_type) {
    case Type::Absolute: return std::make_shared<CNNNeuronAbsoluteNode>(source, n.a, n.b, n.c);
    case Type::ELU: return std::make_shared<CNNNeuronELUNode>(source, n.a, n.b, n.c);
    case Type::ReLU: return std::make_shared<CNNNeuronReLUNode>(source, n.a, n.b, n.c);
    case Type::ReLUN: return std::make_shared<CNNNeuronReLUNNode>(source, n.a, n.b, n.c);
    case Type::Linear: return std::make_shared<CNNNeuronLinearNode>(source, n.a, n.b, n.c);
    case Type::Sigmoid: return std::make_shared<CNNNeuronSigmoidNode>(source, n.a, n.b, n.c);
    case Type::HardSigmoid: return std::make_shared<CNNNeuronHardSigmoidNode>(source, n.a, n.b, n.c);
    case Type::SoftPlus: return std::make_shared<CNNNeuronSoftPlusNode>(source, n.a, n.b, n.c);
    case Type::SoftSign: return std::make_shared<CNNNeuronSoftSignNode>(source, n.a, n.b, n.c);
    case Type::TanH: return std::make_shared<CNNNeuronTanHNode>(source, n.a, n.b, n.c);
    case Type::PReLU: return std::make_shared<CNNNeuronPReLUNode>(source, n.data);
    case Type::Power: return std::make_shared<CNNNeuronPowerNode>(source, n.a, n.b, n.c);
    case Type::Exponential: return std::make_shared<CNNNeuronExponentialNode>(source, n.a, n.b, n.c);
    case Type::Logarithm: return std::make_shared<CNNNeuronLogarithmNode>(source, n.a, n.b, n.c);
    case Type::GeLU: return std::make_shared<CNNNeuronGeLUNode>(source, n.a, n.b, n.c);
    case Type::None: case Type::Count: break;
  }
  throw OptionError("no node exists for this neuron type.", {.node = "MPSCNNNeuronNode", .expected = "a type from ReLU to GeLU",
                                                              .actual = std::to_string(static_cast<int>(n.neuron_type)), .hint = "leave the node out"});
}

}  // namespace mpsnn
