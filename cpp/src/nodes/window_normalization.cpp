// SPDX-License-Identifier: Apache-2.0
#include "mpsnn/nodes/window_normalization.hpp"

#include "core/plan_builder.hpp"
#include "nodes/json_fields.hpp"

namespace mpsnn {
namespace {

void require_kernel(const NNFilterNode& node, int size) {
  if (size >= 1) return;
  throw OptionError(node.display_name() + ": the kernel size must be at least 1.",
                    {node.class_name(), node.display_name(), ">= 1", std::to_string(size), "give a positive kernel size"});
}

/// The window around each pixel: stride 1, leaning to the top left when even (11).
Axis centred(int size, int kernel) { return axis_from_offset(size, size, kernel, 1, 1, 0); }

Window centred_window(const Shape& image, int kernel_height, int kernel_width) { return {centred(image.height, kernel_height), centred(image.width, kernel_width)}; }

/// What all three gradients have in common: shapes, and operands E and x.
template <class Operation>
void lower_gradient(const NNFilterNode& node, const NNFilterNode& forward, PlanBuilder& plan, Operation operation) {
  const Step step = plan.forward_step(forward);
  const ValueId gradient = plan.image(node, 0), source = plan.image(node, 1);
  plan.require_gradient_shape(node, gradient, plan.shape(step.outputs[0]));
  plan.require_same_shape(node, "the source image", source, plan.shape(step.inputs[0]));
  plan.add_result(node, operation, {gradient, source}, plan.shape(source));
}

}  // namespace

CNNNormalizationNode::CNNNormalizationNode(ImageNodePtr source) : NNFilterNode({std::move(source)}, {}) {
  add_result_state(std::make_unique<NNGradientStateNode>(this));
}

// --- spatial -----------------------------------------------------------------------------------------------------

CNNSpatialNormalizationNode::CNNSpatialNormalizationNode(ImageNodePtr source, int kernel_size)
    : CNNNormalizationNode(std::move(source)), kernel_width(kernel_size), kernel_height(kernel_size) {
  require_kernel(*this, kernel_size);
}

void CNNSpatialNormalizationNode::lower(PlanBuilder& plan) const {
  require_kernel(*this, std::min(kernel_width, kernel_height));
  const ValueId source = plan.image(*this, 0);
  const Shape image = plan.shape(source);
  plan.add_result(*this, SpatialNormalizationOp{centred_window(image, kernel_height, kernel_width), alpha, beta, delta}, {source}, image);
}

Json CNNSpatialNormalizationNode::parameters() const {
  return {{"kernel_width", kernel_width}, {"kernel_height", kernel_height}, {"alpha", double(alpha)}, {"beta", double(beta)}, {"delta", double(delta)}};
}

std::vector<GradientFilterNodePtr> CNNSpatialNormalizationNode::make_gradient_filters(const ImageNodePtr& source_gradient) {
  auto gradient =
      std::make_shared<CNNSpatialNormalizationGradientNode>(source_gradient, sources()[0], typed_result_state<NNGradientStateNode>(), kernel_width);
  gradient->kernel_height = kernel_height;
  gradient->alpha = alpha;
  gradient->beta = beta;
  gradient->delta = delta;
  return {gradient};
}

CNNSpatialNormalizationGradientNode::CNNSpatialNormalizationGradientNode(ImageNodePtr source_gradient, ImageNodePtr source_image,
                                                                         std::shared_ptr<NNGradientStateNode> gradient_state, int kernel_size)
    : NNGradientFilterNode({std::move(source_gradient), std::move(source_image)}, {std::move(gradient_state)}), kernel_width(kernel_size),
      kernel_height(kernel_size) {
  require_kernel(*this, kernel_size);
}

void CNNSpatialNormalizationGradientNode::lower(PlanBuilder& plan) const {
  require_kernel(*this, std::min(kernel_width, kernel_height));
  const Shape image = plan.shape(plan.image(*this, 1));
  const SpatialNormalizationOp forward{centred_window(image, kernel_height, kernel_width), alpha, beta, delta};
  lower_gradient(*this, forward_filter(), plan, SpatialNormalizationGradientOp{forward});
}

Json CNNSpatialNormalizationGradientNode::parameters() const {
  return {{"kernel_width", kernel_width}, {"kernel_height", kernel_height}, {"alpha", double(alpha)}, {"beta", double(beta)}, {"delta", double(delta)}};
}

// --- local contrast ----------------------------------------------------------------------------------------------

CNNLocalContrastNormalizationNode::CNNLocalContrastNormalizationNode(ImageNodePtr source, int kernel_size)
    : CNNNormalizationNode(std::move(source)), kernel_width(kernel_size), kernel_height(kernel_size) {
  require_kernel(*this, kernel_size);
  beta = 0.5f;
  delta = 1.0f / 1024;
}

void CNNLocalContrastNormalizationNode::lower(PlanBuilder& plan) const {
  require_kernel(*this, std::min(kernel_width, kernel_height));
  const ValueId source = plan.image(*this, 0);
  const Shape image = plan.shape(source);
  plan.add_result(*this, LocalContrastNormalizationOp{centred_window(image, kernel_height, kernel_width), alpha, beta, delta, p0, pm, ps}, {source}, image);
}

Json CNNLocalContrastNormalizationNode::parameters() const {
  return {{"kernel_width", kernel_width}, {"kernel_height", kernel_height}, {"alpha", double(alpha)}, {"beta", double(beta)},
          {"delta", double(delta)},       {"pm", double(pm)},               {"ps", double(ps)},       {"p0", double(p0)}};
}

std::vector<GradientFilterNodePtr> CNNLocalContrastNormalizationNode::make_gradient_filters(const ImageNodePtr& source_gradient) {
  auto gradient = std::make_shared<CNNLocalContrastNormalizationGradientNode>(source_gradient, sources()[0], typed_result_state<NNGradientStateNode>(),
                                                                              kernel_width, kernel_height);
  gradient->alpha = alpha;
  gradient->beta = beta;
  gradient->delta = delta;
  gradient->pm = pm;
  gradient->ps = ps;
  gradient->p0 = p0;
  return {gradient};
}

CNNLocalContrastNormalizationGradientNode::CNNLocalContrastNormalizationGradientNode(ImageNodePtr source_gradient, ImageNodePtr source_image,
                                                                                     std::shared_ptr<NNGradientStateNode> gradient_state, int kernel_width,
                                                                                     int kernel_height)
    : NNGradientFilterNode({std::move(source_gradient), std::move(source_image)}, {std::move(gradient_state)}), kernel_width_(kernel_width),
      kernel_height_(kernel_height) {
  require_kernel(*this, std::min(kernel_width, kernel_height));
}

void CNNLocalContrastNormalizationGradientNode::lower(PlanBuilder& plan) const {
  const Shape image = plan.shape(plan.image(*this, 1));
  const LocalContrastNormalizationOp forward{centred_window(image, kernel_height_, kernel_width_), alpha, beta, delta, p0, pm, ps};
  lower_gradient(*this, forward_filter(), plan, LocalContrastNormalizationGradientOp{forward});
}

Json CNNLocalContrastNormalizationGradientNode::parameters() const {
  return {{"kernel_width", kernel_width_}, {"kernel_height", kernel_height_}, {"alpha", double(alpha)}, {"beta", double(beta)},
          {"delta", double(delta)},        {"pm", double(pm)},                {"ps", double(ps)},       {"p0", double(p0)}};
}

// --- cross channel -----------------------------------------------------------------------------------------------

CNNCrossChannelNormalizationNode::CNNCrossChannelNormalizationNode(ImageNodePtr source, int kernel_size)
    : CNNNormalizationNode(std::move(source)), kernel_size_in_feature_channels(kernel_size) {
  require_kernel(*this, kernel_size);
}

void CNNCrossChannelNormalizationNode::lower(PlanBuilder& plan) const {
  require_kernel(*this, kernel_size_in_feature_channels);
  const ValueId source = plan.image(*this, 0);
  const Shape image = plan.shape(source);
  plan.add_result(*this, CrossChannelNormalizationOp{centred(image.channels, kernel_size_in_feature_channels), alpha, beta, delta}, {source}, image);
}

Json CNNCrossChannelNormalizationNode::parameters() const {
  return {{"kernel_size", kernel_size_in_feature_channels}, {"alpha", double(alpha)}, {"beta", double(beta)}, {"delta", double(delta)}};
}

std::vector<GradientFilterNodePtr> CNNCrossChannelNormalizationNode::make_gradient_filters(const ImageNodePtr& source_gradient) {
  return {std::make_shared<CNNCrossChannelNormalizationGradientNode>(source_gradient, sources()[0], typed_result_state<NNGradientStateNode>(),
                                                                     kernel_size_in_feature_channels)};
}

CNNCrossChannelNormalizationGradientNode::CNNCrossChannelNormalizationGradientNode(ImageNodePtr source_gradient, ImageNodePtr source_image,
                                                                                   std::shared_ptr<NNGradientStateNode> gradient_state, int kernel_size)
    : NNGradientFilterNode({std::move(source_gradient), std::move(source_image)}, {std::move(gradient_state)}), kernel_size_(kernel_size) {
  require_kernel(*this, kernel_size);
}

void CNNCrossChannelNormalizationGradientNode::lower(PlanBuilder& plan) const {
  const Step step = plan.forward_step(forward_filter());
  const auto* forward = std::get_if<CrossChannelNormalizationOp>(&step.operation);
  if (!forward || forward->channels.kernel != kernel_size_)
    fail<GraphError>("the gradient state must come from a cross-channel normalization of the same kernel size.", std::to_string(kernel_size_),
                     forward ? std::to_string(forward->channels.kernel) : forward_filter().class_name(), "pass result_state of the forward node");
  lower_gradient(*this, forward_filter(), plan, CrossChannelNormalizationGradientOp{*forward});
}

Json CNNCrossChannelNormalizationGradientNode::parameters() const { return {{"kernel_size", kernel_size_}}; }

}  // namespace mpsnn
