// SPDX-License-Identifier: Apache-2.0
#include "mpsnn/nodes/shape.hpp"

#include "core/plan_builder.hpp"
#include "core/size_limits.hpp"
#include "nodes/json_fields.hpp"

namespace mpsnn {
namespace {

template <class Forward>
Step forward_step(const NNFilterNode& node, const NNFilterNode& forward, PlanBuilder& plan, const char* wanted) {
  Step step = plan.forward_step(forward);
  if (!std::holds_alternative<Forward>(step.operation))
    throw GraphError(plan.name(node) + ": the gradient state must come from the matching forward node.",
                     {node.class_name(), plan.name(node), wanted, forward.class_name(), "pass result_state of the forward node"});
  plan.require_gradient_shape(node, plan.image(node, 0), plan.shape(step.outputs[0]));
  return step;
}

}  // namespace

NNGramMatrixCallback::~NNGramMatrixCallback() = default;

NNReshapeNode::NNReshapeNode(ImageNodePtr source, int result_width, int result_height, int result_feature_channels)
    : NNFilterNode({std::move(source)}, {}), width_(result_width), height_(result_height), channels_(result_feature_channels) {
  if (width_ < 1 || height_ < 1 || channels_ < 1)
    throw OptionError("MPSNNReshapeNode: sizes must be at least 1.", {.node = "MPSNNReshapeNode", .expected = ">= 1",
                                                                      .actual = Shape{1, height_, width_, channels_}.text(), .hint = "give positive sizes"});
  add_result_state(std::make_unique<NNGradientStateNode>(this));
}

void NNReshapeNode::lower(PlanBuilder& plan) const {
  const ValueId source = plan.image(*this, 0);
  const Shape image = plan.shape(source), result{image.images, checked_size(height_, "result_height"), checked_size(width_, "result_width"),
                                                 checked_size(channels_, "result_feature_channels")};
  // Three sizes of 2^28 wrap around when they are multiplied.
  if (double(height_) * width_ * channels_ != double(image.height) * image.width * image.channels || result.image_count() != image.image_count())
    fail<ShapeError>("a reshape keeps the number of elements.", image.text() + " = " + std::to_string(image.image_count()) + " per image",
                     result.text() + " = " + std::to_string(result.image_count()) + " per image", "width x height x channels must not change");
  plan.add_result(*this, ReshapeOp{}, {source}, result);
}

Json NNReshapeNode::parameters() const { return {{"result_width", width_}, {"result_height", height_}, {"result_feature_channels", channels_}}; }

std::vector<GradientFilterNodePtr> NNReshapeNode::make_gradient_filters(const ImageNodePtr& source_gradient) {
  return {std::make_shared<NNReshapeGradientNode>(source_gradient, sources()[0], typed_result_state<NNGradientStateNode>())};
}

NNReshapeGradientNode::NNReshapeGradientNode(ImageNodePtr source_gradient, ImageNodePtr source_image, std::shared_ptr<NNGradientStateNode> gradient_state)
    : NNGradientFilterNode({std::move(source_gradient), std::move(source_image)}, {std::move(gradient_state)}) {}

void NNReshapeGradientNode::lower(PlanBuilder& plan) const {
  const Step step = forward_step<ReshapeOp>(*this, forward_filter(), plan, "MPSNNReshapeNode");
  plan.add_result(*this, ReshapeOp{}, {plan.image(*this, 0)}, plan.shape(step.inputs[0]));
}

NNPadNode::NNPadNode(ImageNodePtr source, ImageCoordinate padding_size_before, ImageCoordinate padding_size_after, ImageEdgeMode edge_mode)
    : NNFilterNode({std::move(source)}, {}), before_(padding_size_before), after_(padding_size_after), edge_mode_(edge_mode) {
  for (int size : {before_.x, before_.y, before_.channel, after_.x, after_.y, after_.channel})
    if (size < 0)
      throw OptionError("MPSNNPadNode: padding sizes must not be negative.",
                        {.node = "MPSNNPadNode", .expected = ">= 0", .actual = std::to_string(size), .hint = "crop with a convolution or a reduction's clip rectangle"});
  add_result_state(std::make_unique<NNGradientStateNode>(this));
}

void NNPadNode::lower(PlanBuilder& plan) const {
  const ValueId source = plan.image(*this, 0);
  const Shape image = plan.shape(source);
  auto padded = [](int size, int before, int after) { return checked_size(std::int64_t(size) + before + after, "a padded size"); };
  plan.add_result(*this, PadOp{before_.x, before_.y, before_.channel, edge_mode_, fill_value}, {source},
                  {image.images, padded(image.height, before_.y, after_.y), padded(image.width, before_.x, after_.x),
                   padded(image.channels, before_.channel, after_.channel)});
}

Json NNPadNode::parameters() const {
  return {{"before_x", before_.x}, {"before_y", before_.y}, {"before_channel", before_.channel}, {"after_x", after_.x}, {"after_y", after_.y},
          {"after_channel", after_.channel}, {"edge_mode", enum_json(edge_mode_)}, {"fill_value", double(fill_value)}};
}

std::vector<GradientFilterNodePtr> NNPadNode::make_gradient_filters(const ImageNodePtr& source_gradient) {
  return {std::make_shared<NNPadGradientNode>(source_gradient, sources()[0], typed_result_state<NNGradientStateNode>())};
}

NNPadGradientNode::NNPadGradientNode(ImageNodePtr source_gradient, ImageNodePtr source_image, std::shared_ptr<NNGradientStateNode> gradient_state)
    : NNGradientFilterNode({std::move(source_gradient), std::move(source_image)}, {std::move(gradient_state)}) {}

void NNPadGradientNode::lower(PlanBuilder& plan) const {
  const Step step = forward_step<PadOp>(*this, forward_filter(), plan, "MPSNNPadNode");
  plan.add_result(*this, PadGradientOp{std::get<PadOp>(step.operation)}, {plan.image(*this, 0)}, plan.shape(step.inputs[0]));
}

NNGramMatrixCalculationNode::NNGramMatrixCalculationNode(ImageNodePtr source, float alpha) : NNFilterNode({std::move(source)}, {}), alpha_(alpha) {
  add_result_state(std::make_unique<NNGradientStateNode>(this));
}

void NNGramMatrixCalculationNode::lower(PlanBuilder& plan) const {
  const ValueId source = plan.image(*this, 0);
  const Shape image = plan.shape(source), result{image.images, 1, image.channels, image.channels};
  const ImageDescriptor result_descriptor{result.width, result.height, result.channels, result.images};
  const float alpha = property_callback ? property_callback->alpha(plan.image_descriptor(source), result_descriptor) : alpha_;
  plan.add_result(*this, GramMatrixOp{alpha}, {source}, result);
}

Json NNGramMatrixCalculationNode::parameters() const { return {{"alpha", double(alpha_)}}; }

std::vector<GradientFilterNodePtr> NNGramMatrixCalculationNode::make_gradient_filters(const ImageNodePtr& source_gradient) {
  return {std::make_shared<NNGramMatrixCalculationGradientNode>(source_gradient, sources()[0], typed_result_state<NNGradientStateNode>(), alpha_)};
}

NNGramMatrixCalculationGradientNode::NNGramMatrixCalculationGradientNode(ImageNodePtr source_gradient, ImageNodePtr source_image,
                                                                         std::shared_ptr<NNGradientStateNode> gradient_state, float alpha)
    : NNGradientFilterNode({std::move(source_gradient), std::move(source_image)}, {std::move(gradient_state)}), alpha_(alpha) {}

void NNGramMatrixCalculationGradientNode::lower(PlanBuilder& plan) const {
  const Step step = forward_step<GramMatrixOp>(*this, forward_filter(), plan, "MPSNNGramMatrixCalculationNode");
  const ValueId source = plan.image(*this, 1);
  plan.require_same_shape(*this, "the source image", source, plan.shape(step.inputs[0]));
  plan.add_result(*this, GramMatrixGradientOp{std::get<GramMatrixOp>(step.operation).alpha}, {plan.image(*this, 0), source}, plan.shape(source));
}

Json NNGramMatrixCalculationGradientNode::parameters() const { return {{"alpha", double(alpha_)}}; }

}  // namespace mpsnn
