// SPDX-License-Identifier: Apache-2.0
#include "mpsnn/nodes/reduction.hpp"

#include "core/plan_builder.hpp"
#include "nodes/json_fields.hpp"

namespace mpsnn {

NNUnaryReductionNode::NNUnaryReductionNode(ImageNodePtr source, ReductionAxis axis, ReductionKind kind)
    : NNFilterNode({std::move(source)}, {}), axis_(axis), kind_(kind) {
  add_result_state(std::make_unique<NNGradientStateNode>(this));
}

void NNUnaryReductionNode::lower(PlanBuilder& plan) const {
  const ValueId source = plan.image(*this, 0);
  const Shape image = plan.shape(source);
  const ClipRectangle& clip = clip_rect_source;
  const Range columns = clip_range(clip.x, clip.width, image.width), rows = clip_range(clip.y, clip.height, image.height);
  if (columns.size() == 0 || rows.size() == 0)
    fail<ShapeError>("clip_rect_source leaves nothing of the image.", "a rectangle that meets image " + image.text(),
                     std::to_string(clip.width) + " x " + std::to_string(clip.height) + " at " + std::to_string(clip.x) + ", " + std::to_string(clip.y),
                     "MPSRectNoClip takes the whole image");
  Shape result{image.images, rows.size(), columns.size(), image.channels};
  if (axis_ == ReductionAxis::row || axis_ == ReductionAxis::spatial) result.width = 1;
  if (axis_ == ReductionAxis::column || axis_ == ReductionAxis::spatial) result.height = 1;
  if (axis_ == ReductionAxis::feature_channels) result.channels = 1;
  plan.add_result(*this, ReductionOp{kind_, axis_, columns, rows, result_weight()}, {source}, result);
}

Json NNUnaryReductionNode::parameters() const {
  const ClipRectangle& clip = clip_rect_source;
  return {{"clip_x", clip.x}, {"clip_y", clip.y}, {"clip_width", clip.width}, {"clip_height", clip.height}};
}

#define MPSNN_REDUCTION_NODE(Name, axis, kind) \
  NNReduction##Name##Node::NNReduction##Name##Node(ImageNodePtr source) : NNUnaryReductionNode(std::move(source), ReductionAxis::axis, ReductionKind::kind) {}
MPSNN_REDUCTION_NODE(RowMin, row, minimum)
MPSNN_REDUCTION_NODE(RowMax, row, maximum)
MPSNN_REDUCTION_NODE(RowMean, row, mean)
MPSNN_REDUCTION_NODE(RowSum, row, sum)
MPSNN_REDUCTION_NODE(ColumnMin, column, minimum)
MPSNN_REDUCTION_NODE(ColumnMax, column, maximum)
MPSNN_REDUCTION_NODE(ColumnMean, column, mean)
MPSNN_REDUCTION_NODE(ColumnSum, column, sum)
MPSNN_REDUCTION_NODE(FeatureChannelsMin, feature_channels, minimum)
MPSNN_REDUCTION_NODE(FeatureChannelsMax, feature_channels, maximum)
MPSNN_REDUCTION_NODE(FeatureChannelsMean, feature_channels, mean)
MPSNN_REDUCTION_NODE(FeatureChannelsSum, feature_channels, sum)
MPSNN_REDUCTION_NODE(FeatureChannelsArgumentMin, feature_channels, argument_minimum)
MPSNN_REDUCTION_NODE(FeatureChannelsArgumentMax, feature_channels, argument_maximum)
MPSNN_REDUCTION_NODE(SpatialMean, spatial, mean)
#undef MPSNN_REDUCTION_NODE

Json NNReductionFeatureChannelsSumNode::parameters() const {
  Json::Object object = NNUnaryReductionNode::parameters().object("reduction");
  object.emplace("weight", double(weight));
  return object;
}

std::vector<GradientFilterNodePtr> NNReductionSpatialMeanNode::make_gradient_filters(const ImageNodePtr& source_gradient) {
  return {std::make_shared<NNReductionSpatialMeanGradientNode>(source_gradient, sources()[0], typed_result_state<NNGradientStateNode>())};
}

NNReductionSpatialMeanGradientNode::NNReductionSpatialMeanGradientNode(ImageNodePtr source_gradient, ImageNodePtr source_image,
                                                                       std::shared_ptr<NNGradientStateNode> gradient_state)
    : NNGradientFilterNode({std::move(source_gradient), std::move(source_image)}, {std::move(gradient_state)}) {}

void NNReductionSpatialMeanGradientNode::lower(PlanBuilder& plan) const {
  const Step step = plan.forward_step(forward_filter());
  const auto* forward = std::get_if<ReductionOp>(&step.operation);
  if (!forward || forward->axis != ReductionAxis::spatial)
    fail<GraphError>("the gradient state must come from a spatial mean.", "MPSNNReductionSpatialMeanNode", forward_filter().class_name(), "pass its result_state");
  const ValueId gradient = plan.image(*this, 0);
  plan.require_gradient_shape(*this, gradient, plan.shape(step.outputs[0]));
  plan.add_result(*this, SpatialMeanGradientOp{forward->columns, forward->rows}, {gradient}, plan.shape(step.inputs[0]));
}

}  // namespace mpsnn
