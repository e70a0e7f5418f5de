// SPDX-License-Identifier: Apache-2.0
#include "mpsnn/nodes/softmax.hpp"

#include "core/plan_builder.hpp"

namespace mpsnn {
namespace {

void lower_forward(const NNFilterNode& node, PlanBuilder& plan, bool is_log) {
  const ValueId source = plan.image(node, 0);
  plan.add_result(node, SoftMaxOp{is_log}, {source}, plan.shape(source));
}

/// The formula needs the forward result; whichever image was wired, the state knows it (OQ-10).
void lower_gradient(const NNFilterNode& node, const NNFilterNode& forward, PlanBuilder& plan, bool is_log) {
  const Step step = plan.forward_step(forward);
  const auto* operation = std::get_if<SoftMaxOp>(&step.operation);
  if (!operation || operation->is_log != is_log)
    throw GraphError(plan.name(node) + ": the gradient state must come from the matching soft-max node.",
                     {node.class_name(), plan.name(node), is_log ? "MPSCNNLogSoftMaxNode" : "MPSCNNSoftMaxNode", forward.class_name(), "pass its result_state"});
  const ValueId gradient = plan.image(node, 0);
  plan.require_gradient_shape(node, gradient, plan.shape(step.outputs[0]));
  plan.require_same_shape(node, "the source image", plan.image(node, 1), plan.shape(step.outputs[0]));
  plan.add_result(node, SoftMaxGradientOp{is_log}, {gradient, step.outputs[0]}, plan.shape(step.inputs[0]));
}

}  // namespace

CNNSoftMaxNode::CNNSoftMaxNode(ImageNodePtr source) : NNFilterNode({std::move(source)}, {}) {
  add_result_state(std::make_unique<NNGradientStateNode>(this));
}
void CNNSoftMaxNode::lower(PlanBuilder& plan) const { lower_forward(*this, plan, false); }
std::vector<GradientFilterNodePtr> CNNSoftMaxNode::make_gradient_filters(const ImageNodePtr& source_gradient) {
  return {std::make_shared<CNNSoftMaxGradientNode>(source_gradient, result_image(), typed_result_state<NNGradientStateNode>())};
}
CNNSoftMaxGradientNode::CNNSoftMaxGradientNode(ImageNodePtr source_gradient, ImageNodePtr source_image, std::shared_ptr<NNGradientStateNode> gradient_state)
    : NNGradientFilterNode({std::move(source_gradient), std::move(source_image)}, {std::move(gradient_state)}) {}
void CNNSoftMaxGradientNode::lower(PlanBuilder& plan) const { lower_gradient(*this, forward_filter(), plan, false); }

CNNLogSoftMaxNode::CNNLogSoftMaxNode(ImageNodePtr source) : NNFilterNode({std::move(source)}, {}) {
  add_result_state(std::make_unique<NNGradientStateNode>(this));
}
void CNNLogSoftMaxNode::lower(PlanBuilder& plan) const { lower_forward(*this, plan, true); }
std::vector<GradientFilterNodePtr> CNNLogSoftMaxNode::make_gradient_filters(const ImageNodePtr& source_gradient) {
  return {std::make_shared<CNNLogSoftMaxGradientNode>(source_gradient, result_image(), typed_result_state<NNGradientStateNode>())};
}
CNNLogSoftMaxGradientNode::CNNLogSoftMaxGradientNode(ImageNodePtr source_gradient, ImageNodePtr source_image,
                                                     std::shared_ptr<NNGradientStateNode> gradient_state)
    : NNGradientFilterNode({std::move(source_gradient), std::move(source_image)}, {std::move(gradient_state)}) {}
void CNNLogSoftMaxGradientNode::lower(PlanBuilder& plan) const { lower_gradient(*this, forward_filter(), plan, true); }

}  // namespace mpsnn
