// SPDX-License-Identifier: Apache-2.0
#include "nodes/json_fields.hpp"

#include "mpsnn/error.hpp"

namespace mpsnn {
namespace {

Json to_json(const std::vector<float>& values) {
  Json::Array items;
  for (float value : values) items.emplace_back(static_cast<double>(value));
  return items;
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
  return object;
}

int JsonFields::integer(const char* name, std::int64_t low, std::int64_t high) const {
  const std::int64_t value = json_.at(name).integer(name);
  if (value < low || value > high)
    throw FileError(std::string("\"") + name + "\" is out of range.",
                    {.expected = std::to_string(low) + " to " + std::to_string(high), .actual = std::to_string(value), .hint = "save the file again"});
  return static_cast<int>(value);
}

std::uint64_t JsonFields::unsigned_integer(const char* name) const {
  // Written as text: doubles hold 53 bits only.
  const std::string& digits = json_.at(name).string(name);
  if (digits.empty() || digits.size() > 20 || digits.find_first_not_of("0123456789") != std::string::npos)
    throw FileError(std::string("\"") + name + "\" is no number.", {.expected = "digits", .actual = digits.substr(0, 40), .hint = "save the file again"});
  return std::stoull(digits.size() == 20 && digits > "18446744073709551615" ? "18446744073709551615" : digits);
}

float JsonFields::real(const char* name) const { return static_cast<float>(json_.at(name).number(name)); }
bool JsonFields::boolean(const char* name) const { return json_.at(name).boolean(name); }

WindowSize JsonFields::window() const {
  constexpr std::int64_t kMost = 1 << 15;  // far beyond any image; keeps products within int
  return {integer("kernel_width", 1, kMost),       integer("kernel_height", 1, kMost),   integer("stride_in_pixels_x", 1, kMost),
          integer("stride_in_pixels_y", 1, kMost), integer("dilation_rate_x", 1, kMost), integer("dilation_rate_y", 1, kMost)};
}

NNNeuronDescriptor JsonFields::neuron() const {
  NNNeuronDescriptor neuron{enumeration<CNNNeuronType>("neuron_type", 15), real("a"), real("b"), real("c"), {}};
  for (const Json& slope : json_.at("data").array("data")) neuron.data.push_back(static_cast<float>(slope.number("data")));
  return neuron;
}

CNNLossDescriptor JsonFields::loss() const {
  return {enumeration<CNNLossType>("loss_type", 9), enumeration<CNNReductionType>("reduction_type", 3), boolean("reduce_across_batch"), real("weight"),
          real("label_smoothing"), integer("number_of_classes", 1), real("epsilon"), real("delta")};
}

CNNYOLOLossDescriptor JsonFields::yolo_loss() const {
  auto part = [&](const char* name) { return JsonFields(json_.at(name)).loss(); };
  CNNYOLOLossDescriptor loss{part("xy"), part("wh"), part("confidence"), part("classes"), enumeration<CNNReductionType>("reduction_type", 3),
                             boolean("reduce_across_batch"), boolean("rescore"), real("scale_xy"), real("scale_wh"), real("scale_no_object"),
                             real("scale_object"), real("scale_class"), real("min_iou_for_object_presence"), real("max_iou_for_object_absence"),
                             integer("number_of_anchor_boxes", 1), {}};
  for (const Json& size : json_.at("anchor_boxes").array("anchor_boxes")) loss.anchor_boxes.push_back(static_cast<float>(size.number("anchor_boxes")));
  return loss;
}

}  // namespace mpsnn
