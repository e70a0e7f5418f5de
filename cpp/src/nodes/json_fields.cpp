// SPDX-License-Identifier: Apache-2.0
#include "nodes/json_fields.hpp"

#include <cmath>
#include <limits>

#include "mpsnn/error.hpp"

namespace mpsnn {
namespace {

Json to_json(const std::vector<float>& values) {
  Json::Array items;
  for (float value : values) items.emplace_back(static_cast<double>(value));
  return items;
}

/// A float32 number: what was written is one exactly, so a larger one was written by somebody else.
float single(const Json& json, const char* name) {
  const double value = json.number(name);
  if (std::isfinite(value) && std::abs(value) > std::numeric_limits<float>::max())
    throw FileError(std::string("\"") + name + "\" is out of range.", {.expected = "a float32 number", .actual = std::to_string(value), .hint = "save the file again"});
  return static_cast<float>(value);
}

std::vector<float> singles(const Json& json, const char* name) {
  std::vector<float> values;
  for (const Json& item : json.at(name).array(name)) values.push_back(single(item, name));
  return values;
}

}  // namespace

Json to_json(const WindowSize& window) {
  return {{"kernel_width", window.kernel_width},           {"kernel_height", window.kernel_height},
          {"stride_in_pixels_x", window.stride_in_pixels_x}, {"stride_in_pixels_y", window.stride_in_pixels_y},
          {"dilation_rate_x", window.dilation_rate_x},     {"dilation_rate_y", window.dilation_rate_y}};
}

Json to_json(const NNNeuronDescriptor& neuron) {
  return {{"neuron_type", enum_json(neuron.neuron_type)}, {"a", double(neuron.a)}, {"b", double(neuron.b)}, {"c", double(neuron.c)},
          {"data", to_json(neuron.data)}};
}

Json to_json(const CNNLossDescriptor& loss) {
  return {{"loss_type", enum_json(loss.loss_type)},
          {"reduction_type", enum_json(loss.reduction_type)},
          {"reduce_across_batch", loss.reduce_across_batch},
          {"weight", double(loss.weight)},
          {"label_smoothing", double(loss.label_smoothing)},
          {"number_of_classes", loss.number_of_classes},
          {"epsilon", double(loss.epsilon)},
          {"delta", double(loss.delta)}};
}

Json to_json(const CNNYOLOLossDescriptor& loss) {
  return {{"xy", to_json(loss.xy_loss_descriptor)},
          {"wh", to_json(loss.wh_loss_descriptor)},
          {"confidence", to_json(loss.confidence_loss_descriptor)},
          {"classes", to_json(loss.classes_loss_descriptor)},
          {"reduction_type", enum_json(loss.reduction_type)},
          {"reduce_across_batch", loss.reduce_across_batch},
          {"rescore", loss.rescore},
          {"scale_xy", double(loss.scale_xy)},
          {"scale_wh", double(loss.scale_wh)},
          {"scale_no_object", double(loss.scale_no_object)},
          {"scale_object", double(loss.scale_object)},
          {"scale_class", double(loss.scale_class)},
          {"min_iou_for_object_presence", double(loss.min_iou_for_object_presence)},
          {"max_iou_for_object_absence", double(loss.max_iou_for_object_absence)},
          {"number_of_anchor_boxes", loss.number_of_anchor_boxes},
          {"anchor_boxes", to_json(loss.anchor_boxes)}};
}

Json to_json(const CNNConvolutionDescriptor& convolution) {
  Json::Object object = to_json(convolution.window_size()).object("window");
  object.emplace("input_feature_channels", convolution.input_feature_channels);
  object.emplace("output_feature_channels", convolution.output_feature_channels);
  object.emplace("groups", convolution.groups);
  object.emplace("kind", static_cast<int>(convolution.kind));
  object.emplace("sub_pixel_scale_factor", convolution.sub_pixel_scale_factor);
  object.emplace("fused_neuron_descriptor", to_json(convolution.fused_neuron_descriptor));
  if (convolution.batch_mean.empty()) return object;
  object.emplace("batch_mean", to_json(convolution.batch_mean));
  object.emplace("batch_variance", to_json(convolution.batch_variance));
  object.emplace("batch_gamma", to_json(convolution.batch_gamma));
  object.emplace("batch_beta", to_json(convolution.batch_beta));
  object.emplace("batch_epsilon", double(convolution.batch_epsilon));
  return object;
}

int JsonFields::integer(const char* name, std::int64_t low, std::int64_t high) const { return static_cast<int>(whole(name, low, high)); }

std::int64_t JsonFields::whole(const char* name, std::int64_t low, std::int64_t high) const {
  const std::int64_t value = json_.at(name).integer(name);
  if (value < low || value > high)
    throw FileError(std::string("\"") + name + "\" is out of range.",
                    {.expected = std::to_string(low) + " to " + std::to_string(high), .actual = std::to_string(value), .hint = "save the file again"});
  return value;
}

std::uint64_t JsonFields::unsigned_integer(const char* name) const {
  // Written as text: doubles hold 53 bits only.
  const std::string& digits = json_.at(name).string(name);
  if (digits.empty() || digits.size() > 20 || digits.find_first_not_of("0123456789") != std::string::npos)
    throw FileError(std::string("\"") + name + "\" is no number.", {.expected = "digits", .actual = digits.substr(0, 40), .hint = "save the file again"});
  return std::stoull(digits.size() == 20 && digits > "18446744073709551615" ? "18446744073709551615" : digits);
}

float JsonFields::real(const char* name) const { return single(json_.at(name), name); }
bool JsonFields::boolean(const char* name) const { return json_.at(name).boolean(name); }

WindowSize JsonFields::window() const {
  constexpr std::int64_t kMost = 1 << 15;  // far beyond any image; keeps products within int
  return {integer("kernel_width", 1, kMost),       integer("kernel_height", 1, kMost),   integer("stride_in_pixels_x", 1, kMost),
          integer("stride_in_pixels_y", 1, kMost), integer("dilation_rate_x", 1, kMost), integer("dilation_rate_y", 1, kMost)};
}

NNNeuronDescriptor JsonFields::neuron() const {
  return {enumeration<CNNNeuronType>("neuron_type", 15), real("a"), real("b"), real("c"), singles(json_, "data")};
}

CNNLossDescriptor JsonFields::loss() const {
  return {enumeration<CNNLossType>("loss_type", 9), enumeration<CNNReductionType>("reduction_type", 3), boolean("reduce_across_batch"), real("weight"),
          real("label_smoothing"), integer("number_of_classes", 1), real("epsilon"), real("delta")};
}

CNNYOLOLossDescriptor JsonFields::yolo_loss() const {
  auto part = [&](const char* name) { return JsonFields(json_.at(name)).loss(); };
  return {part("xy"), part("wh"), part("confidence"), part("classes"), enumeration<CNNReductionType>("reduction_type", 3),
                             boolean("reduce_across_batch"), boolean("rescore"), real("scale_xy"), real("scale_wh"), real("scale_no_object"),
                             real("scale_object"), real("scale_class"), real("min_iou_for_object_presence"), real("max_iou_for_object_absence"),
                             integer("number_of_anchor_boxes", 1), singles(json_, "anchor_boxes")};
}

CNNConvolutionDescriptor JsonFields::convolution() const {
  constexpr std::int64_t kMost = 1 << 30;
  const WindowSize size = window();
  CNNConvolutionDescriptor d;
  d.kernel_width = size.kernel_width, d.kernel_height = size.kernel_height;
  d.stride_in_pixels_x = size.stride_in_pixels_x, d.stride_in_pixels_y = size.stride_in_pixels_y;
  d.dilation_rate_x = size.dilation_rate_x, d.dilation_rate_y = size.dilation_rate_y;
  d.input_feature_channels = integer("input_feature_channels", 1, kMost);
  d.output_feature_channels = integer("output_feature_channels", 1, kMost);
  d.groups = integer("groups", 1, kMost);
  d.kind = enumeration<ConvolutionKind>("kind", 2);
  d.sub_pixel_scale_factor = integer("sub_pixel_scale_factor", 1, 1 << 15);
  d.fused_neuron_descriptor = JsonFields(json_.at("fused_neuron_descriptor")).neuron();
  if (!json_.has("batch_mean")) return d;
  d.batch_mean = singles(json_, "batch_mean"), d.batch_variance = singles(json_, "batch_variance");
  d.batch_gamma = singles(json_, "batch_gamma"), d.batch_beta = singles(json_, "batch_beta");
  d.batch_epsilon = real("batch_epsilon");
  return d;
}

}  // namespace mpsnn
