// SPDX-License-Identifier: Apache-2.0
#include "mpsnn/nodes/arithmetic.hpp"

#include "core/plan_builder.hpp"
#include "nodes/json_fields.hpp"

namespace mpsnn {
namespace {

Json properties_json(const ArithmeticProperties& p) {
  return {{"primary_scale", double(p.primary_scale)},
          {"secondary_scale", double(p.secondary_scale)},
          {"bias", double(p.bias)},
          {"minimum_value", double(p.minimum_value)},
          {"maximum_value", double(p.maximum_value)},
          {"primary_stride_in_pixels_x", p.primary_stride_in_pixels_x},
          {"primary_stride_in_pixels_y", p.primary_stride_in_pixels_y},
          {"primary_stride_in_feature_channels", p.primary_stride_in_feature_channels},
          {"secondary_stride_in_pixels_x", p.secondary_stride_in_pixels_x},
          {"secondary_stride_in_pixels_y", p.secondary_stride_in_pixels_y},
          {"secondary_stride_in_feature_channels", p.secondary_stride_in_feature_channels}};
}

ArithmeticOp operation(ArithmeticKind kind, const ArithmeticProperties& p) {
  return {kind,
          {p.primary_scale, p.primary_stride_in_pixels_x, p.primary_stride_in_pixels_y, p.primary_stride_in_feature_channels},
          {p.secondary_scale, p.secondary_stride_in_pixels_x, p.secondary_stride_in_pixels_y, p.secondary_stride_in_feature_channels},
          p.bias,
          p.minimum_value,
          p.maximum_value};
}

std::vector<ImageNodePtr> two(std::vector<ImageNodePtr> sources, const char* class_name) {
  if (sources.size() != 2)
    throw OptionError(std::string(class_name) + " takes two sources.",
                      {.node = class_name, .expected = "2 sources", .actual = std::to_string(sources.size()), .hint = "pass [left, right]"});
  return sources;
}

/// The extent of a result along one dimension: that of the source(s) with stride 1 (OQ-37).
int broadcast_extent(const NNFilterNode& node, const PlanBuilder& plan, const char* dimension, int left, int left_stride, int right, int right_stride,
                     const Shape& left_image, const Shape& right_image) {
  if (left_stride == 0 && right_stride == 0) return 1;
  if (left_stride == 0) return right;
  if (right_stride == 0 || left == right) return left;
  throw ShapeError(plan.name(node) + ": the sources differ in " + dimension + ".",
                   {node.class_name(), plan.name(node), left_image.text(), right_image.text(),
                    "images of one size, or a stride of 0 to repeat one of them along that dimension"});
}

NNBinaryArithmeticNode& arithmetic(const FilterNodePtr& forward_filter) {
  if (auto* node = dynamic_cast<NNBinaryArithmeticNode*>(forward_filter.get())) return *node;
  throw GraphError("the forward filter must be an arithmetic node.",
                   {.node = "MPSNNArithmeticGradientNode", .label = forward_filter ? forward_filter->display_name() : "", .expected = "an MPSNNBinaryArithmeticNode",
                    .actual = forward_filter ? forward_filter->class_name() : "none", .hint = "pass the node whose gradient this is"});
}

void require_stride(const NNFilterNode& node, const PlanBuilder& plan, int stride) {
  if (stride == 0 || stride == 1) return;
  throw OptionError(plan.name(node) + ": strides of arithmetic nodes are 0 or 1.",
                    {node.class_name(), plan.name(node), "0 or 1", std::to_string(stride), "0 repeats index 0 along that dimension"});
}

/// A clamp to a range that is empty has no meaning: engines would differ.
void require_limits(const NNFilterNode& node, const PlanBuilder& plan, float minimum, float maximum) {
  if (minimum <= maximum) return;
  throw OptionError(plan.name(node) + ": minimum_value must not be above maximum_value.",
                    {node.class_name(), plan.name(node), "at most " + std::to_string(maximum), std::to_string(minimum), "exchange the two"});
}

}  // namespace

NNBinaryArithmeticNode::NNBinaryArithmeticNode(std::vector<ImageNodePtr> sources, ArithmeticKind kind, const char* class_name)
    : NNFilterNode(two(std::move(sources), class_name), {}), kind_(kind) {}

const char* NNBinaryArithmeticNode::gradient_class() const { return nullptr; }

GradientFilterNodePtr NNBinaryArithmeticNode::gradient_filter(const std::vector<ImageNodePtr>&) {
  fail<GraphError>("has two gradient nodes, one per source.", "gradient_filters()", "gradient_filter()", "call gradient_filters()");
}

void NNBinaryArithmeticNode::lower(PlanBuilder& plan) const {
  const ValueId left = plan.image(*this, 0), right = plan.image(*this, 1);
  ArithmeticOp op = operation(kind_, *this);
  op.comparison_type = relation();
  require_limits(*this, plan, minimum_value, maximum_value);
  for (const auto& source : {op.primary, op.secondary})
    for (int stride : {source.stride_x, source.stride_y, source.stride_channels}) require_stride(*this, plan, stride);
  const Shape a = plan.shape(left), b = plan.shape(right);
  auto extent = [&](const char* dimension, int x, int x_stride, int y, int y_stride) {
    return broadcast_extent(*this, plan, dimension, x, x_stride, y, y_stride, a, b);
  };
  const Shape result{extent("images", a.images, 1, b.images, 1), extent("height", a.height, op.primary.stride_y, b.height, op.secondary.stride_y),
                     extent("width", a.width, op.primary.stride_x, b.width, op.secondary.stride_x),
                     extent("feature channels", a.channels, op.primary.stride_channels, b.channels, op.secondary.stride_channels)};
  plan.add_result(*this, op, {left, right}, result);
}

Json NNBinaryArithmeticNode::parameters() const { return properties_json(*this); }

NNArithmeticGradientNode::NNArithmeticGradientNode(ImageNodePtr source_gradient, ImageNodePtr source_image,
                                                   std::shared_ptr<NNBinaryGradientStateNode> gradient_state, bool is_secondary_source_filter, ArithmeticKind kind)
    : NNGradientFilterNode({std::move(source_gradient), std::move(source_image)}, {std::move(gradient_state)}),
      is_secondary_source_filter_(is_secondary_source_filter) {
  const auto* forward = dynamic_cast<const NNBinaryArithmeticNode*>(&forward_filter());
  if (!forward || forward->kind() != kind)
    throw GraphError("the gradient state must come from the matching arithmetic node.",
                     {.node = "MPSNNArithmeticGradientNode", .label = forward_filter().display_name(), .expected = "the forward node of this gradient",
                      .actual = forward_filter().class_name(), .hint = "pass result_state of the forward node"});
  copy_properties(*forward);
}

NNArithmeticGradientNode::NNArithmeticGradientNode(const std::vector<ImageNodePtr>& gradient_images, const FilterNodePtr& forward_filter,
                                                   bool is_secondary_source_filter, ArithmeticKind kind)
    : NNArithmeticGradientNode(gradient_images.empty() ? nullptr : gradient_images.front(),
                               // The product rule needs the other operand (MPS_SEMANTICS 5.4).
                               arithmetic(forward_filter).sources().at(is_secondary_source_filter == (kind == ArithmeticKind::multiply) ? 0 : 1),
                               std::dynamic_pointer_cast<NNBinaryGradientStateNode>(arithmetic(forward_filter).result_state()), is_secondary_source_filter, kind) {}

void NNArithmeticGradientNode::copy_properties(const NNBinaryArithmeticNode& forward) {
  const bool is_product = forward.kind() == ArithmeticKind::multiply;
  const float sign = forward.kind() == ArithmeticKind::subtract ? -1.0f : 1.0f;
  const float own = is_secondary_source_filter_ ? sign * forward.secondary_scale : forward.primary_scale;
  primary_scale = own;
  secondary_scale = is_product ? (is_secondary_source_filter_ ? forward.primary_scale : forward.secondary_scale) : 1.0f;
}

void NNArithmeticGradientNode::lower(PlanBuilder& plan) const {
  require_limits(*this, plan, minimum_value, maximum_value);
  const Step step = plan.forward_step(forward_filter());
  const auto& forward = std::get<ArithmeticOp>(step.operation);
  const ValueId gradient = plan.image(*this, 0);
  plan.require_gradient_shape(*this, gradient, plan.shape(step.outputs[0]));
  const bool reads_operands = forward.kind == ArithmeticKind::multiply || forward.clamps();
  ArithmeticGradientOp op{forward, is_secondary_source_filter_, primary_scale, secondary_scale, bias, minimum_value, maximum_value};
  plan.add_result(*this, op, {gradient, reads_operands ? step.inputs[0] : kNoValue, reads_operands ? step.inputs[1] : kNoValue},
                  plan.shape(step.inputs[is_secondary_source_filter_ ? 1 : 0]));
}

Json NNArithmeticGradientNode::parameters() const {
  Json::Object object = properties_json(*this).object("properties");
  object.emplace("is_secondary_source_filter", is_secondary_source_filter_);
  return object;
}

#define MPSNN_ARITHMETIC_NODE(Name, Kind)                                                                                                   \
  NN##Name##Node::NN##Name##Node(std::vector<ImageNodePtr> sources)                                                                         \
      : NNBinaryArithmeticNode(std::move(sources), ArithmeticKind::Kind, "MPSNN" #Name "Node") {                                            \
    add_result_state(std::make_unique<NNArithmeticGradientStateNode>(this));                                                                \
  }                                                                                                                                         \
  std::vector<GradientFilterNodePtr> NN##Name##Node::make_gradient_filters(const ImageNodePtr& source_gradient) {                           \
    return {std::make_shared<NN##Name##GradientNode>(std::vector{source_gradient}, shared_from_this(), false),                              \
            std::make_shared<NN##Name##GradientNode>(std::vector{source_gradient}, shared_from_this(), true)};                              \
  }                                                                                                                                         \
  NN##Name##GradientNode::NN##Name##GradientNode(ImageNodePtr source_gradient, ImageNodePtr source_image,                                   \
                                                 std::shared_ptr<NNBinaryGradientStateNode> gradient_state, bool is_secondary_source_filter) \
      : NNArithmeticGradientNode(std::move(source_gradient), std::move(source_image), std::move(gradient_state), is_secondary_source_filter, \
                                 ArithmeticKind::Kind) {}                                                                                   \
  NN##Name##GradientNode::NN##Name##GradientNode(const std::vector<ImageNodePtr>& gradient_images, const FilterNodePtr& forward_filter,     \
                                                 bool is_secondary_source_filter)                                                           \
      : NNArithmeticGradientNode(gradient_images, forward_filter, is_secondary_source_filter, ArithmeticKind::Kind) {}

NNDivisionNode::NNDivisionNode(std::vector<ImageNodePtr> source_images)
    : NNBinaryArithmeticNode(std::move(source_images), ArithmeticKind::divide, "MPSNNDivisionNode") {
  add_result_state(std::make_unique<NNArithmeticGradientStateNode>(this));
}

NNComparisonNode::NNComparisonNode(std::vector<ImageNodePtr> source_images)
    : NNBinaryArithmeticNode(std::move(source_images), ArithmeticKind::compare, "MPSNNComparisonNode") {
  add_result_state(std::make_unique<NNArithmeticGradientStateNode>(this));
}

Json NNComparisonNode::parameters() const {
  Json::Object object = properties_json(*this).object("properties");
  object.emplace("comparison_type", enum_json(comparison_type));
  return object;
}

MPSNN_ARITHMETIC_NODE(Addition, add)
MPSNN_ARITHMETIC_NODE(Subtraction, subtract)
MPSNN_ARITHMETIC_NODE(Multiplication, multiply)
#undef MPSNN_ARITHMETIC_NODE

}  // namespace mpsnn
