// SPDX-License-Identifier: Apache-2.0
#include "mpsnn/nodes/binary_convolution.hpp"

#include "core/plan_builder.hpp"
#include "nodes/json_fields.hpp"

namespace mpsnn {

CNNBinaryConvolutionNode::CNNBinaryConvolutionNode(ImageNodePtr source, ConvolutionDataSourcePtr weights, BinaryConvolutionTerms terms,
                                                   CNNBinaryConvolutionType type, CNNBinaryConvolutionFlags flags)
    : CNNConvolutionNode(std::move(source), std::move(weights)), terms_(std::move(terms)), type_(type), flags_(flags) {}

CNNBinaryConvolutionNode::CNNBinaryConvolutionNode(ImageNodePtr source, ConvolutionDataSourcePtr weights, float scale_value, CNNBinaryConvolutionType type,
                                                   CNNBinaryConvolutionFlags flags)
    : CNNConvolutionNode(std::move(source), std::move(weights)), scale_value_(scale_value), type_(type), flags_(flags) {}

void CNNBinaryConvolutionNode::declare(ParameterStore& parameters) const {
  BinaryConvolutionValues values{{}, terms_.output_bias_terms, terms_.output_scale_terms, terms_.input_bias_terms, terms_.input_scale_terms};
  parameters.declare_binary_convolution(*this, weights(), std::move(values), scale_value_);
}

void CNNBinaryConvolutionNode::lower(PlanBuilder& plan) const { lower_binary(plan, false); }

void CNNBinaryConvolutionNode::lower_binary(PlanBuilder& plan, bool is_fully_connected) const {
  const ValueId source = plan.image(*this, 0);
  const BinaryConvolutionParameters& parameters = plan.binary_convolution(*this);
  const CNNConvolutionDescriptor& descriptor = parameters.descriptor;
  const Shape image = plan.shape(source);
  if (image.channels != descriptor.input_feature_channels)
    fail<ShapeError>("the weights expect " + std::to_string(descriptor.input_feature_channels) + " input channels but the image has " +
                         std::to_string(image.channels) + ".",
                     "weights " + descriptor.weight_shape_text() + " (O x kH x kW x I)", "image " + image.text(), "check which image feeds this node");
  PlanBuilder::PlacedWindow placed;
  if (is_fully_connected) {
    if (image.height != descriptor.kernel_height || image.width != descriptor.kernel_width)
      fail<ShapeError>("a fully connected node needs weights as large as the image.", "kernel " + std::to_string(image.height) + " x " + std::to_string(image.width),
                       "weights " + descriptor.weight_shape_text(), "kernel_width=" + std::to_string(image.width));
    placed = {resolve_window(NNPaddingMethod::SizeValidOnly, image.height, image.width, {image.width, image.height, 1, 1, 1, 1}), ImageEdgeMode::Zero};
  } else placed = plan.place_window(*this, source, descriptor.window_size(), ImageEdgeMode::Zero);
  const ConvolutionGeometry geometry{placed.window, descriptor.input_feature_channels, descriptor.output_feature_channels, 1, placed.edge_mode};
  const bool uses_beta = flags_ == CNNBinaryConvolutionFlags::UseBetaScaling;
  plan.add_result(*this, BinaryConvolutionOp{geometry, type_, uses_beta, descriptor.fused_neuron_descriptor, parameters.values}, {source},
                  {image.images, placed.window.y.output, placed.window.x.output, descriptor.output_feature_channels});
}

Json CNNBinaryConvolutionNode::parameters() const {
  Json::Object object{{"type", enum_json(type_)}, {"flags", enum_json(flags_)}};
  auto list = [&](const char* name, const std::vector<float>& values) {
    Json::Array items;
    for (float value : values) items.emplace_back(double(value));
    object.emplace(name, std::move(items));
  };
  list("output_bias_terms", terms_.output_bias_terms);
  list("output_scale_terms", terms_.output_scale_terms);
  list("input_bias_terms", terms_.input_bias_terms);
  list("input_scale_terms", terms_.input_scale_terms);
  if (scale_value_) object.emplace("scale_value", double(*scale_value_));
  return object;
}

std::vector<GradientFilterNodePtr> CNNBinaryConvolutionNode::make_gradient_filters(const ImageNodePtr& source_gradient) {
  return NNFilterNode::make_gradient_filters(source_gradient);  // throws: MPS defines none
}

CNNBinaryFullyConnectedNode::CNNBinaryFullyConnectedNode(ImageNodePtr source, ConvolutionDataSourcePtr weights, BinaryConvolutionTerms terms,
                                                         CNNBinaryConvolutionType type, CNNBinaryConvolutionFlags flags)
    : CNNBinaryConvolutionNode(std::move(source), std::move(weights), std::move(terms), type, flags) {
  padding_policy = valid_padding();
}

CNNBinaryFullyConnectedNode::CNNBinaryFullyConnectedNode(ImageNodePtr source, ConvolutionDataSourcePtr weights, float scale_value,
                                                         CNNBinaryConvolutionType type, CNNBinaryConvolutionFlags flags)
    : CNNBinaryConvolutionNode(std::move(source), std::move(weights), scale_value, type, flags) {
  padding_policy = valid_padding();
}

void CNNBinaryFullyConnectedNode::lower(PlanBuilder& plan) const { lower_binary(plan, true); }

}  // namespace mpsnn
