// SPDX-License-Identifier: Apache-2.0
#include "mpsnn/nodes/concatenation.hpp"

#include "core/plan_builder.hpp"
#include "core/size_limits.hpp"

namespace mpsnn {

NNConcatenationNode::NNConcatenationNode(std::vector<ImageNodePtr> source_images) : NNFilterNode(std::move(source_images), {}) {
  if (sources().empty())
    throw OptionError("MPSNNConcatenationNode needs sources.", {.node = class_name(), .expected = "1 or more sources", .actual = "0", .hint = "pass a list"});
  for (std::size_t i = 0; i < sources().size(); ++i) add_result_state(std::make_unique<NNGradientStateNode>(this));
}

void NNConcatenationNode::lower(PlanBuilder& plan) const {
  std::vector<ValueId> images;
  Shape result = plan.shape(plan.image(*this, 0));
  result.channels = 0;
  for (std::size_t i = 0; i < sources().size(); ++i) {
    images.push_back(plan.image(*this, i));
    const Shape image = plan.shape(images.back());
    if (image.images != result.images || image.height != result.height || image.width != result.width)
      fail<ShapeError>("source " + std::to_string(i) + " differs in size from source 0.", plan.shape(images[0]).text(), image.text(),
                       "images of one height and width");
    result.channels = checked_size(std::int64_t(result.channels) + image.channels, "the number of channels");
  }
  plan.add_result(*this, ConcatenationOp{}, images, result);
}

std::vector<GradientFilterNodePtr> NNConcatenationNode::make_gradient_filters(const ImageNodePtr& source_gradient) {
  std::vector<GradientFilterNodePtr> gradients;
  for (std::size_t i = 0; i < sources().size(); ++i)
    gradients.push_back(std::make_shared<NNConcatenationGradientNode>(source_gradient, sources()[i], typed_result_state<NNGradientStateNode>(i)));
  return gradients;
}

NNConcatenationGradientNode::NNConcatenationGradientNode(ImageNodePtr source_gradient, ImageNodePtr source_image,
                                                         std::shared_ptr<NNGradientStateNode> gradient_state)
    : NNGradientFilterNode({std::move(source_gradient), std::move(source_image)}, {std::move(gradient_state)}) {}

void NNConcatenationGradientNode::lower(PlanBuilder& plan) const {
  const Step step = plan.forward_step(forward_filter());
  if (!std::holds_alternative<ConcatenationOp>(step.operation))
    fail<GraphError>("the gradient state must come from a concatenation.", "MPSNNConcatenationNode", forward_filter().class_name(), "pass one of its result_states");
  const ValueId gradient = plan.image(*this, 0);
  plan.require_gradient_shape(*this, gradient, plan.shape(step.outputs[0]));
  const std::size_t index = forward_filter().result_state_index(*source_states()[0]);
  int first_channel = 0;
  for (std::size_t i = 0; i < index; ++i) first_channel += plan.shape(step.inputs[i]).channels;
  plan.add_result(*this, ConcatenationGradientOp{first_channel}, {gradient}, plan.shape(step.inputs[index]));
}

}  // namespace mpsnn
