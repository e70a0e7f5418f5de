// SPDX-License-Identifier: Apache-2.0
#include "mpsnn/nodes/dropout.hpp"

#include "core/plan_builder.hpp"
#include "nodes/json_fields.hpp"

namespace mpsnn {
namespace {

DropoutParameters validated(const DropoutParameters& dropout, const char* class_name) {
  if (!(dropout.keep_probability > 0 && dropout.keep_probability < 1))
    throw OptionError(std::string(class_name) + ": keep_probability must lie between 0 and 1.",
                      {.node = class_name, .expected = "0 < keep_probability < 1", .actual = std::to_string(dropout.keep_probability),
                       .hint = "leave the node out to keep everything"});
  for (int stride : {dropout.mask_stride_x, dropout.mask_stride_y, dropout.mask_stride_channels})
    if (stride != 0 && stride != 1)
      throw OptionError(std::string(class_name) + ": mask strides are 0 or 1.",
                        {.node = class_name, .expected = "0 or 1", .actual = std::to_string(stride), .hint = "0 repeats one mask value along that dimension"});
  return dropout;
}

DropoutOp operation(const DropoutParameters& dropout) {
  return {dropout.keep_probability, dropout.seed, dropout.mask_stride_x != 0, dropout.mask_stride_y != 0, dropout.mask_stride_channels != 0};
}

Json dropout_json(const DropoutParameters& dropout) {
  return {{"keep_probability", double(dropout.keep_probability)},
          {"seed", std::to_string(dropout.seed)},
          {"mask_stride_x", dropout.mask_stride_x},
          {"mask_stride_y", dropout.mask_stride_y},
          {"mask_stride_channels", dropout.mask_stride_channels}};
}

}  // namespace

CNNDropoutNode::CNNDropoutNode(ImageNodePtr source, DropoutParameters parameters)
    : NNFilterNode({std::move(source)}, {}), dropout_(validated(parameters, "MPSCNNDropoutNode")) {
  add_result_state(std::make_unique<NNGradientStateNode>(this));
}

void CNNDropoutNode::lower(PlanBuilder& plan) const {
  const ValueId source = plan.image(*this, 0);
  plan.add_result(*this, operation(dropout_), {source}, plan.shape(source));
}

Json CNNDropoutNode::parameters() const { return dropout_json(dropout_); }

std::vector<GradientFilterNodePtr> CNNDropoutNode::make_gradient_filters(const ImageNodePtr& source_gradient) {
  return {std::make_shared<CNNDropoutGradientNode>(source_gradient, sources()[0], typed_result_state<NNGradientStateNode>(), dropout_)};
}

CNNDropoutGradientNode::CNNDropoutGradientNode(ImageNodePtr source_gradient, ImageNodePtr source_image, std::shared_ptr<NNGradientStateNode> gradient_state,
                                               DropoutParameters parameters)
    : NNGradientFilterNode({std::move(source_gradient), std::move(source_image)}, {std::move(gradient_state)}),
      dropout_(validated(parameters, "MPSCNNDropoutGradientNode")) {}

void CNNDropoutGradientNode::lower(PlanBuilder& plan) const {
  const Step step = plan.forward_step(forward_filter());
  if (!std::holds_alternative<DropoutOp>(step.operation))
    fail<GraphError>("the gradient state must come from a dropout node.", "MPSCNNDropoutNode", forward_filter().class_name(), "pass its result_state");
  const DropoutParameters& forward = dynamic_cast<const CNNDropoutNode&>(forward_filter()).dropout();
  if (forward != dropout_)
    fail<GraphError>("its parameters differ from the forward node's: another mask would be applied.", dropout_json(forward).text(), dropout_json(dropout_).text(),
                     "give the forward node's keep_probability, seed and mask stride");
  const ValueId gradient = plan.image(*this, 0);
  plan.require_gradient_shape(*this, gradient, plan.shape(step.outputs[0]));
  plan.add_result(*this, DropoutGradientOp{operation(dropout_)}, {gradient}, plan.shape(step.inputs[0]));
}

Json CNNDropoutGradientNode::parameters() const { return dropout_json(dropout_); }

}  // namespace mpsnn
