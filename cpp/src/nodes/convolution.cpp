// SPDX-License-Identifier: Apache-2.0
#include "mpsnn/nodes/convolution.hpp"

#include "core/plan_builder.hpp"
#include "nodes/json_fields.hpp"

namespace mpsnn {
namespace {

const ConvolutionDataSourcePtr& required(const ConvolutionDataSourcePtr& weights, const char* class_name) {
  if (!weights)
    throw WeightError(std::string(class_name) + " needs a data source.",
                      {.node = class_name, .expected = "an MPSCNNConvolutionDataSource", .actual = "none", .hint = "pass ConvolutionWeights(...)"});
  return weights;
}

/// The data source of the forward node behind a gradient state.
ConvolutionDataSourcePtr forward_weights(const StateNodePtr& state) {
  auto* forward = state ? dynamic_cast<CNNConvolutionNode*>(state->producer()) : nullptr;
  return forward ? forward->weights() : nullptr;
}

ConvolutionGeometry geometry(const CNNConvolutionDescriptor& descriptor, const PlanBuilder::PlacedWindow& placed) {
  return {placed.window, descriptor.input_feature_channels, descriptor.output_feature_channels, descriptor.effective_groups(), placed.edge_mode};
}

/// Throws unless the image has as many channels as the weights read.
void require_channels(const NNFilterNode& node, const PlanBuilder& plan, ValueId source, const CNNConvolutionDescriptor& descriptor) {
  const Shape& image = plan.shape(source);
  if (image.channels == descriptor.input_feature_channels) return;
  throw ShapeError(plan.name(node) + ": the weights expect " + std::to_string(descriptor.input_feature_channels) + " input channels but the image has " +
                       std::to_string(image.channels) + ".",
                   {node.class_name(), plan.name(node), "weights " + descriptor.weight_shape_text() + " (O x kH x kW x I/groups)", "image " + image.text(),
                    "input_feature_channels=" + std::to_string(image.channels) + ", or check which image feeds this node"});
}

void lower_forward(const NNFilterNode& node, PlanBuilder& plan, ValueId source, const ConvolutionDataSourcePtr& weights,
                   const PlanBuilder::PlacedWindow& placed) {
  const CNNConvolutionDescriptor& descriptor = plan.convolution_descriptor(weights);
  const int scale = descriptor.sub_pixel_scale_factor;
  const Window& window = placed.window;
  const Shape result{plan.shape(source).images, window.y.output * scale, window.x.output * scale, descriptor.output_feature_channels / (scale * scale)};
  plan.add_result(node, ConvolutionOp{geometry(descriptor, placed), descriptor.fused_neuron_descriptor, scale},
                  {source, plan.convolution_weights(weights), plan.convolution_biases(weights)}, result);
}

/// A gradient node may name a data source of its own. The forward node's window and channels walk over it: sizes must agree.
void require_forward_sizes(const NNFilterNode& node, PlanBuilder& plan, const ConvolutionDataSourcePtr& weights, const CNNConvolutionNode& forward) {
  const CNNConvolutionDescriptor &own = plan.convolution_descriptor(weights), &other = plan.convolution_descriptor(forward.weights());
  if (own.weight_shape_text() == other.weight_shape_text() && own.groups == other.groups && own.kind == other.kind) return;
  auto text = [](const CNNConvolutionDescriptor& d) { return "weights " + d.weight_shape_text() + " in " + std::to_string(d.effective_groups()) + " group(s)"; };
  throw ShapeError(plan.name(node) + ": its weights differ in size from those of the forward node \"" + plan.name(forward) + "\".",
                   {node.class_name(), plan.name(node), text(other), text(own), "leave weights out: the forward node's are taken"});
}

}  // namespace

CNNConvolutionNode::CNNConvolutionNode(ImageNodePtr source, ConvolutionDataSourcePtr weights)
    : CNNConvolutionNode(std::move(source), {}, std::move(weights), false) {}

CNNConvolutionNode::CNNConvolutionNode(ImageNodePtr source, std::vector<StateNodePtr> states, ConvolutionDataSourcePtr weights, bool is_transposed)
    : NNFilterNode({std::move(source)}, std::move(states)), weights_(required(weights, "MPSCNNConvolutionNode")) {
  if (is_transposed) add_result_state(std::make_unique<CNNConvolutionTransposeGradientStateNode>(this));
  else add_result_state(std::make_unique<CNNConvolutionGradientStateNode>(this));
}

std::shared_ptr<CNNConvolutionGradientStateNode> CNNConvolutionNode::convolution_gradient_state() {
  return typed_result_state<CNNConvolutionGradientStateNode>();
}

void CNNConvolutionNode::declare(ParameterStore& parameters) const { parameters.declare_convolution(*this, weights_); }

void CNNConvolutionNode::lower(PlanBuilder& plan) const {
  const ValueId source = plan.image(*this, 0);
  const CNNConvolutionDescriptor& descriptor = plan.convolution_descriptor(weights_);
  require_channels(*this, plan, source, descriptor);
  lower_forward(*this, plan, source, weights_, plan.place_window(*this, source, descriptor.window_size(), ImageEdgeMode::Zero));
}

Json CNNConvolutionNode::parameters() const {
  return {{"training_style", enum_json(training_style)}, {"accumulator_precision", enum_json(accumulator_precision)}};
}

std::vector<GradientFilterNodePtr> CNNConvolutionNode::make_gradient_filters(const ImageNodePtr& source_gradient) {
  auto gradient = std::make_shared<CNNConvolutionGradientNode>(source_gradient, sources()[0], convolution_gradient_state());
  gradient->training_style = training_style;
  return {gradient};
}

void CNNConvolutionNode::require_trainable(const CNNConvolutionDescriptor& descriptor) const {
  auto refuse = [&](const char* what, const char* hint) {
    fail<OptionError>(std::string("a convolution with ") + what + " has no gradient (MPS defines none).", "a plain convolution", what, hint);
  };
  if (descriptor.sub_pixel_scale_factor != 1) refuse("a sub-pixel scale", "upsample in a node of its own");
  if (descriptor.is_depthwise() && descriptor.channel_multiplier() != 1) refuse("a channel multiplier", "channel_multiplier 1, then a 1 x 1 convolution");
  if (descriptor.fused_neuron_descriptor.neuron_type != CNNNeuronType::None) refuse("a fused neuron", "put the neuron in a node of its own");
  if (!descriptor.batch_mean.empty()) refuse("folded batch normalization", "put the normalization in a node of its own");
}

CNNConvolutionGradientNode::CNNConvolutionGradientNode(ImageNodePtr source_gradient, ImageNodePtr source_image,
                                                       std::shared_ptr<CNNConvolutionGradientStateNode> convolution_gradient_state,
                                                       ConvolutionDataSourcePtr weights)
    : NNGradientFilterNode({std::move(source_gradient), std::move(source_image)}, {convolution_gradient_state}),
      weights_(weights ? std::move(weights) : forward_weights(convolution_gradient_state)) {}

void CNNConvolutionGradientNode::declare(ParameterStore& parameters) const {
  parameters.declare_convolution(*this, weights_);
  dynamic_cast<const CNNConvolutionNode&>(forward_filter()).require_trainable(parameters.convolution(weights_).descriptor);
  parameters.train_convolution(*this, forward_filter(), training_style, weights_);
}

void CNNConvolutionGradientNode::lower(PlanBuilder& plan) const {
  const auto& forward = dynamic_cast<const CNNConvolutionNode&>(forward_filter());
  const Step step = plan.forward_step(forward);
  if (!std::holds_alternative<ConvolutionOp>(step.operation))
    fail<GraphError>("the gradient state must come from a convolution.", "MPSCNNConvolutionNode", forward.class_name(),
                     "a transposed convolution has a gradient class of its own");
  require_forward_sizes(*this, plan, weights_, forward);
  const auto& operation = std::get<ConvolutionOp>(step.operation);
  const ValueId gradient = plan.image(*this, 0), source = plan.image(*this, 1);
  plan.require_gradient_shape(*this, gradient, plan.shape(step.outputs[0]));
  plan.require_same_shape(*this, "the source image", source, plan.shape(step.inputs[0]));
  if (const TrainedParameters* trained = plan.trained(*this))
    plan.add(*this, ConvolutionWeightGradientOp{operation.geometry}, {gradient, source}, {plan.gradient(trained->first), plan.gradient(trained->second)});
  plan.add_result(*this, ConvolutionDataGradientOp{operation.geometry}, {gradient, plan.convolution_weights(weights_)}, plan.shape(source));
}

Json CNNConvolutionGradientNode::parameters() const { return {{"training_style", enum_json(training_style)}}; }

CNNFullyConnectedNode::CNNFullyConnectedNode(ImageNodePtr source, ConvolutionDataSourcePtr weights)
    : CNNConvolutionNode(std::move(source), std::move(weights)) {
  padding_policy = valid_padding();
}

void CNNFullyConnectedNode::lower(PlanBuilder& plan) const {
  const ValueId source = plan.image(*this, 0);
  const CNNConvolutionDescriptor& descriptor = plan.convolution_descriptor(weights());
  require_channels(*this, plan, source, descriptor);
  const Shape& image = plan.shape(source);
  if (image.height != descriptor.kernel_height || image.width != descriptor.kernel_width || descriptor.groups != 1 || descriptor.is_depthwise())
    fail<ShapeError>("a fully connected node needs weights as large as the image, in one group.",
                     "weights of " + std::to_string(descriptor.output_feature_channels) + " x " + std::to_string(image.height) + " x " + std::to_string(image.width) +
                         " x " + std::to_string(image.channels) + " for image " + image.text(),
                     "weights " + descriptor.weight_shape_text(),
                     "kernel_width=" + std::to_string(image.width) + ", kernel_height=" + std::to_string(image.height));
  WindowSize whole_image{descriptor.kernel_width, descriptor.kernel_height, 1, 1, 1, 1};
  lower_forward(*this, plan, source, weights(), {resolve_window(NNPaddingMethod::SizeValidOnly, image.height, image.width, whole_image), ImageEdgeMode::Zero});
}

std::vector<GradientFilterNodePtr> CNNFullyConnectedNode::make_gradient_filters(const ImageNodePtr& source_gradient) {
  auto gradient = std::make_shared<CNNFullyConnectedGradientNode>(source_gradient, sources()[0], convolution_gradient_state());
  gradient->training_style = training_style;
  return {gradient};
}

CNNConvolutionTransposeNode::CNNConvolutionTransposeNode(ImageNodePtr source, std::shared_ptr<CNNConvolutionGradientStateNode> convolution_gradient_state,
                                                         ConvolutionDataSourcePtr weights)
    : CNNConvolutionNode(std::move(source), convolution_gradient_state ? std::vector<StateNodePtr>{convolution_gradient_state} : std::vector<StateNodePtr>{},
                         std::move(weights), true) {}

void CNNConvolutionTransposeNode::lower(PlanBuilder& plan) const {
  const ValueId source = plan.image(*this, 0);
  const CNNConvolutionDescriptor& descriptor = plan.convolution_descriptor(weights());
  require_channels(*this, plan, source, descriptor);
  if (descriptor.dilation_rate_x != 1 || descriptor.dilation_rate_y != 1 || descriptor.is_depthwise() || descriptor.sub_pixel_scale_factor != 1)
    fail<OptionError>("a transposed convolution takes no dilation, no depthwise and no sub-pixel descriptor.", "dilation 1, a plain descriptor",
                      "dilation " + std::to_string(descriptor.dilation_rate_x) + " x " + std::to_string(descriptor.dilation_rate_y), "use a plain descriptor");
  ConvolutionGeometry undone{plan.place_reverse_window(*this, source, descriptor.window_size()), descriptor.output_feature_channels,
                             descriptor.input_feature_channels, descriptor.groups, ImageEdgeMode::Zero};
  if (!source_states().empty()) {
    const Step& forward = plan.forward_step(*source_states()[0]->producer());
    const auto* convolution = std::get_if<ConvolutionOp>(&forward.operation);
    if (!convolution)
      fail<GraphError>("the gradient state must come from a convolution.", "MPSCNNConvolutionNode", source_states()[0]->producer()->class_name(),
                       "pass convolution_gradient_state of the convolution to undo");
    undone.window = convolution->geometry.window;
    const Window& window = undone.window;
    const WindowSize size{window.x.kernel, window.y.kernel, window.x.stride, window.y.stride, window.x.dilation, window.y.dilation};
    const Shape& image = plan.shape(source);
    if (size != descriptor.window_size() || image.height != window.y.output || image.width != window.x.output)
      fail<ShapeError>("the state's convolution does not fit: its kernel and strides must be these weights', its result as large as this source.",
                       "image " + std::to_string(window.y.output) + " x " + std::to_string(window.x.output) + ", kernel " + std::to_string(size.kernel_height) +
                           " x " + std::to_string(size.kernel_width),
                       "image " + image.text() + ", weights " + descriptor.weight_shape_text(), "pass the state of the convolution that this node undoes");
  }
  const Shape result{plan.shape(source).images, undone.window.y.input, undone.window.x.input, descriptor.output_feature_channels};
  plan.add_result(*this, ConvolutionTransposeOp{undone, descriptor.fused_neuron_descriptor},
                  {source, plan.convolution_weights(weights()), plan.convolution_biases(weights())}, result);
}

std::vector<GradientFilterNodePtr> CNNConvolutionTransposeNode::make_gradient_filters(const ImageNodePtr& source_gradient) {
  auto gradient = std::make_shared<CNNConvolutionTransposeGradientNode>(source_gradient, sources()[0],
                                                                        typed_result_state<CNNConvolutionTransposeGradientStateNode>());
  gradient->training_style = training_style;
  return {gradient};
}

CNNConvolutionTransposeGradientNode::CNNConvolutionTransposeGradientNode(
    ImageNodePtr source_gradient, ImageNodePtr source_image,
    std::shared_ptr<CNNConvolutionTransposeGradientStateNode> convolution_transpose_gradient_state, ConvolutionDataSourcePtr weights)
    : CNNConvolutionGradientNode(std::move(source_gradient), std::move(source_image), std::move(convolution_transpose_gradient_state), std::move(weights)) {}

void CNNConvolutionTransposeGradientNode::lower(PlanBuilder& plan) const {
  const auto& forward = dynamic_cast<const CNNConvolutionNode&>(forward_filter());
  const Step& step = plan.forward_step(forward);
  require_forward_sizes(*this, plan, weights(), forward);
  const auto& operation = std::get<ConvolutionTransposeOp>(step.operation);
  const ValueId gradient = plan.image(*this, 0), source = plan.image(*this, 1);
  plan.require_gradient_shape(*this, gradient, plan.shape(step.outputs[0]));
  plan.require_same_shape(*this, "the source image", source, plan.shape(step.inputs[0]));
  if (const TrainedParameters* trained = plan.trained(*this))
    plan.add(*this, ConvolutionTransposeWeightGradientOp{operation.undone}, {gradient, source}, {plan.gradient(trained->first), plan.gradient(trained->second)});
  plan.add_result(*this, ConvolutionTransposeDataGradientOp{operation.undone}, {gradient, plan.convolution_weights(weights())}, plan.shape(source));
}

}  // namespace mpsnn
