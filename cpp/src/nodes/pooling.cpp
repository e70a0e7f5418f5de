// SPDX-License-Identifier: Apache-2.0
#include "mpsnn/nodes/pooling.hpp"

#include "core/plan_builder.hpp"
#include "nodes/json_fields.hpp"

namespace mpsnn {
namespace {

WindowSize validated(const WindowSize& window, const char* class_name) {
  const std::pair<const char*, int> sizes[] = {{"kernel_width", window.kernel_width},           {"kernel_height", window.kernel_height},
                                               {"stride_in_pixels_x", window.stride_in_pixels_x}, {"stride_in_pixels_y", window.stride_in_pixels_y},
                                               {"dilation_rate_x", window.dilation_rate_x},     {"dilation_rate_y", window.dilation_rate_y}};
  for (const auto& [name, value] : sizes)
    if (value < 1)
      throw OptionError(std::string(class_name) + ": " + name + " must be at least 1.",
                        {.node = class_name, .expected = ">= 1", .actual = std::to_string(value), .hint = std::string("give a positive ") + name});
  return window;
}

/// The policy's own padding in front of the image, which ExcludeEdges counts in averages (OQ-23).
int counted_padding(const NNFilterNode& node, const Axis& axis) {
  return has(node.padding_policy->padding_method(), NNPaddingMethod::ExcludeEdges) ? std::max(0, axis.before) : 0;
}

void lower_pooling(const NNFilterNode& node, PlanBuilder& plan, PoolingKind kind, const WindowSize& size) {
  const ValueId source = plan.image(node, 0);
  const auto [window, edge_mode] = plan.place_window(node, source, size, ImageEdgeMode::Clamp);
  const Shape& image = plan.shape(source);
  plan.add_result(node, PoolingOp{kind, window, edge_mode, counted_padding(node, window.x), counted_padding(node, window.y)}, {source},
                  {image.images, window.y.output, window.x.output, image.channels});
}

}  // namespace

CNNPoolingNode::CNNPoolingNode(ImageNodePtr source, WindowSize window, PoolingKind kind)
    : NNFilterNode({std::move(source)}, {}), window_(validated(window, "MPSCNNPoolingNode")), kind_(kind) {
  add_result_state(std::make_unique<NNGradientStateNode>(this));
}

void CNNPoolingNode::lower(PlanBuilder& plan) const { lower_pooling(*this, plan, kind_, window_); }

Json CNNPoolingNode::parameters() const { return to_json(window_); }

CNNPoolingGradientNode::CNNPoolingGradientNode(ImageNodePtr source_gradient, ImageNodePtr source_image, std::shared_ptr<NNGradientStateNode> gradient_state,
                                               WindowSize window, PaddingPtr policy, PoolingKind kind)
    : NNGradientFilterNode({std::move(source_gradient), std::move(source_image)}, {std::move(gradient_state)}),
      window_(validated(window, "MPSCNNPoolingGradientNode")), kind_(kind) {
  if (policy) padding_policy = std::move(policy);
}

void CNNPoolingGradientNode::lower(PlanBuilder& plan) const {
  const Step& step = plan.forward_step(forward_filter());
  const auto* forward = std::get_if<PoolingOp>(&step.operation);
  if (!forward || forward->kind != kind_)
    fail<GraphError>("the gradient state must come from the matching pooling node.", "the forward node of this gradient", forward_filter().class_name(),
                     "pass result_state of the forward pooling node");
  const Window& window = forward->window;
  const WindowSize size{window.x.kernel, window.y.kernel, window.x.stride, window.y.stride, window.x.dilation, window.y.dilation};
  if (size != window_)
    fail<GraphError>("the window differs from the forward node's.", to_json(size).text(), to_json(window_).text(), "give the forward node's numbers");
  const ValueId gradient = plan.image(*this, 0), source = plan.image(*this, 1);
  plan.require_gradient_shape(*this, gradient, plan.shape(step.outputs[0]));
  plan.require_same_shape(*this, "the source image", source, plan.shape(step.inputs[0]));
  const bool reads_source = kind_ != PoolingKind::average, reads_result = kind_ == PoolingKind::l2_norm;
  const PoolingOp operation = *forward;
  const Shape result = plan.shape(source);
  plan.add_result(*this, PoolingGradientOp{operation}, {gradient, reads_source ? source : kNoValue, reads_result ? step.outputs[0] : kNoValue}, result);
  plan.read_saved(*this, 1, forward_filter());
}

Json CNNPoolingGradientNode::parameters() const { return to_json(window_); }

CNNPoolingMaxNode::CNNPoolingMaxNode(ImageNodePtr source, WindowSize window) : CNNPoolingNode(std::move(source), window, PoolingKind::max) {}
CNNPoolingAverageNode::CNNPoolingAverageNode(ImageNodePtr source, WindowSize window) : CNNPoolingNode(std::move(source), window, PoolingKind::average) {}
CNNPoolingL2NormNode::CNNPoolingL2NormNode(ImageNodePtr source, WindowSize window) : CNNPoolingNode(std::move(source), window, PoolingKind::l2_norm) {}

CNNPoolingMaxGradientNode::CNNPoolingMaxGradientNode(ImageNodePtr source_gradient, ImageNodePtr source_image,
                                                     std::shared_ptr<NNGradientStateNode> gradient_state, WindowSize window, PaddingPtr policy)
    : CNNPoolingGradientNode(std::move(source_gradient), std::move(source_image), std::move(gradient_state), window, std::move(policy), PoolingKind::max) {}
CNNPoolingAverageGradientNode::CNNPoolingAverageGradientNode(ImageNodePtr source_gradient, ImageNodePtr source_image,
                                                             std::shared_ptr<NNGradientStateNode> gradient_state, WindowSize window, PaddingPtr policy)
    : CNNPoolingGradientNode(std::move(source_gradient), std::move(source_image), std::move(gradient_state), window, std::move(policy), PoolingKind::average) {}
CNNPoolingL2NormGradientNode::CNNPoolingL2NormGradientNode(ImageNodePtr source_gradient, ImageNodePtr source_image,
                                                           std::shared_ptr<NNGradientStateNode> gradient_state, WindowSize window, PaddingPtr policy)
    : CNNPoolingGradientNode(std::move(source_gradient), std::move(source_image), std::move(gradient_state), window, std::move(policy), PoolingKind::l2_norm) {}

std::vector<GradientFilterNodePtr> CNNPoolingMaxNode::make_gradient_filters(const ImageNodePtr& source_gradient) {
  return {std::make_shared<CNNPoolingMaxGradientNode>(source_gradient, sources()[0], typed_result_state<NNGradientStateNode>(), window())};
}
std::vector<GradientFilterNodePtr> CNNPoolingAverageNode::make_gradient_filters(const ImageNodePtr& source_gradient) {
  return {std::make_shared<CNNPoolingAverageGradientNode>(source_gradient, sources()[0], typed_result_state<NNGradientStateNode>(), window())};
}
std::vector<GradientFilterNodePtr> CNNPoolingL2NormNode::make_gradient_filters(const ImageNodePtr& source_gradient) {
  return {std::make_shared<CNNPoolingL2NormGradientNode>(source_gradient, sources()[0], typed_result_state<NNGradientStateNode>(), window())};
}

CNNDilatedPoolingMaxNode::CNNDilatedPoolingMaxNode(ImageNodePtr source, WindowSize window)
    : NNFilterNode({std::move(source)}, {}), window_(validated(window, "MPSCNNDilatedPoolingMaxNode")) {
  add_result_state(std::make_unique<NNGradientStateNode>(this));
}

void CNNDilatedPoolingMaxNode::lower(PlanBuilder& plan) const { lower_pooling(*this, plan, PoolingKind::max, window_); }

Json CNNDilatedPoolingMaxNode::parameters() const { return to_json(window_); }

std::vector<GradientFilterNodePtr> CNNDilatedPoolingMaxNode::make_gradient_filters(const ImageNodePtr& source_gradient) {
  return {std::make_shared<CNNDilatedPoolingMaxGradientNode>(source_gradient, sources()[0], typed_result_state<NNGradientStateNode>(), window_)};
}

CNNDilatedPoolingMaxGradientNode::CNNDilatedPoolingMaxGradientNode(ImageNodePtr source_gradient, ImageNodePtr source_image,
                                                                   std::shared_ptr<NNGradientStateNode> gradient_state, WindowSize window, PaddingPtr policy)
    : CNNPoolingGradientNode(std::move(source_gradient), std::move(source_image), std::move(gradient_state), window, std::move(policy), PoolingKind::max) {}

}  // namespace mpsnn
