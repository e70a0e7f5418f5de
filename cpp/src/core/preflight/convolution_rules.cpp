// SPDX-License-Identifier: Apache-2.0
#include "core/preflight/rules.hpp"
#include "mpsnn/nodes/arithmetic.hpp"
#include "mpsnn/nodes/binary_convolution.hpp"
#include "mpsnn/nodes/softmax.hpp"

/// Rules of the convolution family and its weights.
namespace mpsnn::preflight {
namespace {

using enum PreflightSeverity;
using AccumulatorPrecision = NNConvolutionAccumulatorPrecisionOption;

void check_groups(Inspection& inspection, const CNNConvolutionNode& node) {
  const CNNConvolutionDescriptor& d = inspection.weights(node.weights()).descriptor;
  const int in = d.input_feature_channels / d.groups, out = d.output_feature_channels / d.groups;
  if (d.groups > 1 && (in % 4 != 0 || out % 4 != 0))
    inspection.report(node, "multiples of 4 channels per group", std::to_string(d.groups) + " groups of " + std::to_string(in) + " input and " + std::to_string(out) + " output channels");
}

void check_multiplier(Inspection& inspection, const CNNConvolutionNode& node) {
  const CNNConvolutionDescriptor& d = inspection.weights(node.weights()).descriptor;
  if (d.is_depthwise() && d.channel_multiplier() != 1)
    inspection.report(node, "channel multiplier 1: " + std::to_string(d.input_feature_channels) + " output channels",
                      "channel multiplier " + std::to_string(d.channel_multiplier()) + ": " + std::to_string(d.output_feature_channels));
}

void check_sub_pixel(Inspection& inspection, const CNNConvolutionNode& node) {
  const CNNConvolutionDescriptor& d = inspection.weights(node.weights()).descriptor;
  const int channels = d.output_feature_channels / (d.sub_pixel_scale_factor * d.sub_pixel_scale_factor);
  if (d.sub_pixel_scale_factor > 1 && d.groups > 1 && channels % 4 != 0)
    inspection.report(node, "a multiple of 4 result channels", std::to_string(channels) + " result channels, " + std::to_string(d.groups) + " groups, scale " +
                                                                    std::to_string(d.sub_pixel_scale_factor));
}

void check_transpose_dilation(Inspection& inspection, const CNNConvolutionTransposeNode& node) {
  const CNNConvolutionDescriptor& d = inspection.weights(node.weights()).descriptor;
  if (d.dilation_rate_x != 1 || d.dilation_rate_y != 1) inspection.report(node, "dilation 1 x 1", "dilation " + by(d.dilation_rate_x, d.dilation_rate_y));
}

const char* type_name(DataType type) { return type == DataType::Float16 ? "Float16" : type == DataType::UInt8 ? "UInt8" : type == DataType::Float32 ? "Float32" : "another type"; }

void check_transpose_type(Inspection& inspection, const CNNConvolutionTransposeNode& node) {
  const WeightFacts& facts = inspection.weights(node.weights());
  if (facts.data_type != DataType::Float32) inspection.report(node, "data_type Float32", type_name(facts.data_type));
}

void check_transpose_placement(Inspection& inspection, const CNNConvolutionTransposeNode& node) {
  const CNNConvolutionDescriptor& d = inspection.weights(node.weights()).descriptor;
  if (node.source_states().empty())
    inspection.report(node, "the gradient state of the convolution to undo", "none: kernel " + by(d.kernel_width, d.kernel_height) + ", stride " +
                                                                                 by(d.stride_in_pixels_x, d.stride_in_pixels_y) + ", " + node.padding_policy->label());
}

void check_fully_connected(Inspection& inspection, const CNNConvolutionNode& node) {
  if (!dynamic_cast<const CNNFullyConnectedNode*>(&node) && !dynamic_cast<const CNNBinaryFullyConnectedNode*>(&node)) return;
  const CNNConvolutionDescriptor& d = inspection.weights(node.weights()).descriptor;
  if (d.stride_in_pixels_x != 1 || d.stride_in_pixels_y != 1 || d.dilation_rate_x != 1 || d.dilation_rate_y != 1)
    inspection.report(node, "stride 1 x 1, dilation 1 x 1", "stride " + by(d.stride_in_pixels_x, d.stride_in_pixels_y) + ", dilation " + by(d.dilation_rate_x, d.dilation_rate_y));
}

void check_accumulator(Inspection& inspection, const CNNConvolutionNode& node) {
  const WeightFacts& facts = inspection.weights(node.weights());
  if (node.accumulator_precision == AccumulatorPrecision::Half && !facts.has_half_kernel())
    inspection.report(node, "accumulator_precision Float", "Half, with kernel_weights_data_type Float32");
}

void check_half_accumulation(Inspection& inspection, const CNNConvolutionNode& node) {
  if (node.accumulator_precision == AccumulatorPrecision::Half && inspection.weights(node.weights()).has_half_kernel())
    inspection.report(node, "accumulator_precision Float", "Half");
}

bool is_trained(const Inspection& inspection, const ConvolutionDataSourcePtr& source) {
  for (const FilterNodePtr& node : inspection.graph().nodes())
    if (const auto* gradient = dynamic_cast<const CNNConvolutionGradientNode*>(node.get()))
      if (gradient->weights() == source && gradient->training_style != NNTrainingStyle::UpdateDeviceNone) return true;
  return false;
}

void check_half_weights(Inspection& inspection, const CNNConvolutionNode& node) {
  const WeightFacts& facts = inspection.weights(node.weights());
  if (facts.data_type == DataType::UInt32 || !facts.has_half_kernel()) return;          // packed bits have no precision
  if (facts.data_type == DataType::Float16 && !is_trained(inspection, node.weights())) return;  // halves already, until an update
  inspection.report(node, "data_type and kernel_weights_data_type Float32",
                    std::string("data_type ") + type_name(facts.data_type) + ", kernel_weights_data_type " + type_name(facts.kernel_type));
}

void check_quantization(Inspection& inspection, const CNNConvolutionNode& node) {
  const WeightFacts& facts = inspection.weights(node.weights());
  if (facts.data_type == DataType::UInt8 && facts.quantization == CNNWeightsQuantizationType::Linear)
    inspection.report(node, "LookupTable, which lists its 256 values", "Linear");
}

void check_binary_borders(Inspection& inspection, const CNNBinaryConvolutionNode& node) {
  const auto* operation = std::get_if<BinaryConvolutionOp>(&inspection.planned(node).operation);
  if (!operation || operation->type == CNNBinaryConvolutionType::BinaryWeights) return;
  const Window& window = operation->geometry.window;
  if (!window.x.is_inside() || !window.y.is_inside())
    inspection.report(node, "windows inside the image", "kernel " + by(window.x.kernel, window.y.kernel) + " on " + inspection.planned(node).sources[0].text() + ", " +
                                                            node.padding_policy->label());
}

void check_clamped_convolution(Inspection& inspection, const CNNConvolutionGradientNode& node) {
  const auto* forward = forward_of<CNNConvolutionNode>(node);
  if (forward && dynamic_cast<const NNDefaultPadding*>(forward->padding_policy.get()) && has(forward->padding_policy->padding_method(), NNPaddingMethod::Custom))
    inspection.report(node, "edge mode Zero", "Clamp, from " + forward->padding_policy->label());
}

/// Soft-max and products: their gradients here take the right image from the state, whichever was wired.
void check_gradient_sources(Inspection& inspection) {
  for (const FilterNodePtr& node : inspection.graph().nodes()) {
    const NNImageNode* wanted = nullptr;
    const char* name = "";
    if (dynamic_cast<const CNNSoftMaxGradientNode*>(node.get()) || dynamic_cast<const CNNLogSoftMaxGradientNode*>(node.get())) {
      if (const auto* forward = forward_of<NNFilterNode>(*node)) wanted = &forward->result_image_node();
      name = "result_image of the forward node";
    } else if (const auto* product = dynamic_cast<const NNMultiplicationGradientNode*>(node.get())) {
      if (const auto* forward = forward_of<NNMultiplicationNode>(*node)) wanted = forward->sources()[product->is_secondary_source_filter() ? 0 : 1].get();
      name = "the other operand of the product";
    }
    if (wanted && node->sources()[1].get() != wanted) inspection.report(*node, std::string("source_image: ") + name, "another image node");
  }
}

}  // namespace

const std::vector<Rule>& convolution_rules() {
  static const std::vector<Rule> rules{
      {{"channels-per-group", refused, "convolutions with groups", "channels per group come in multiples of four", "fewer groups, more channels, or a depthwise descriptor",
        "7.1, OQ-15", false},
       raise<OptionError>, each<CNNConvolutionNode>(check_groups)},
      {{"channel-multiplier", refused, "depthwise convolutions", "the only channel multiplier is 1", "channel multiplier 1, then a 1 x 1 convolution", "7.1", false},
       raise<OptionError>, each<CNNConvolutionNode>(check_multiplier)},
      {{"sub-pixel-channels", refused, "sub-pixel convolutions with groups", "with groups, the channels behind the rearrangement are a multiple of four",
        "one group, or a multiple of 4 result channels", "7.3", false},
       raise<OptionError>, each<CNNConvolutionNode>(check_sub_pixel)},
      {{"transpose-dilation", refused, "transposed convolutions", "a transposed convolution has no dilation", "dilation 1", "7.6, OQ-19", false},
       raise<OptionError>, each<CNNConvolutionTransposeNode>(check_transpose_dilation)},
      {{"transpose-weight-type", refused, "transposed convolutions", "the weights of a transposed convolution are Float32", "convert the weights", "7.6", false},
       raise<WeightError>, each<CNNConvolutionTransposeNode>(check_transpose_type)},
      {{"transpose-placement", unverified, "transposed convolutions without a state", "where a padding policy puts the kernel of a transposed convolution is not documented",
        "pass convolution_gradient_state of the convolution that this one undoes", "6.5, OQ-13", false},
       raise<OptionError>, each<CNNConvolutionTransposeNode>(check_transpose_placement)},
      {{"fully-connected-strides", refused, "fully connected nodes", "a kernel as large as the image has stride and dilation 1; here they are ignored", "leave strides and dilation alone",
        "7.7", false},
       raise<OptionError>, each<CNNConvolutionNode>(check_fully_connected)},
      {{"accumulator-precision", refused, "accumulator_precision of convolutions", "weights of Float32 need an accumulator of Float32", "accumulator_precision Float", "7.3", false},
       raise<OptionError>, each<CNNConvolutionNode>(check_accumulator)},
      {{"half-accumulation", differs, "accumulator_precision of convolutions", "sums are kept in halves; here always in Float32", "accumulator_precision Float", "7.3, 21", false},
       raise<OptionError>, each<CNNConvolutionNode>(check_half_accumulation)},
      {{"half-precision-weights", differs, "data sources of convolutions", "the kernel rounds its weights to halves; here they keep the precision of Float32",
        "Float32 for data_type and kernel_weights_data_type", "7.2, 21, OQ-46", false},
       raise<WeightError>, each<CNNConvolutionNode>(check_half_weights)},
      {{"linear-quantization", unverified, "data sources with UInt8 weights", "the formula of Linear is not documented; here lower + q * (upper - lower) / 255",
        "use LookupTable", "7.2, OQ-16", false},
       raise<WeightError>, each<CNNConvolutionNode>(check_quantization)},
      {{"binary-borders", unverified, "binary convolutions of type XNOR and AND", "what a pixel outside of the image counts as is not documented; here 0",
        "a valid padding policy", "7.9, OQ-21", true},
       raise<OptionError>, each<CNNBinaryConvolutionNode>(check_binary_borders)},
      {{"clamped-convolution", unverified, "gradients of convolutions with edge mode Clamp", "the gradient is documented for edge mode Zero; here it is the exact adjoint",
        "a padding policy with edge mode Zero", "7.4, OQ-17", false},
       raise<OptionError>, each<CNNConvolutionGradientNode>(check_clamped_convolution)},
      {{"gradient-source-image", differs, "gradients of soft-max and products made by hand", "the gradient is computed from the source image that it is given; here from the right one",
        "wire the image that the formula needs, or let gradient_filters() do it", "5.4, OQ-10", false},
       raise<GraphError>, check_gradient_sources},
  };
  return rules;
}

}  // namespace mpsnn::preflight
