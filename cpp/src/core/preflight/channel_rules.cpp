// SPDX-License-Identifier: Apache-2.0
#include "core/json.hpp"
#include "core/preflight/rules.hpp"
#include "mpsnn/nodes/arithmetic.hpp"
#include "mpsnn/nodes/concatenation.hpp"
#include "mpsnn/nodes/group_normalization.hpp"
#include "mpsnn/nodes/loss.hpp"
#include "mpsnn/nodes/neuron.hpp"
#include "mpsnn/nodes/normalization.hpp"
#include "mpsnn/nodes/reduction.hpp"
#include "mpsnn/nodes/shape.hpp"

/// Rules about where feature channels lie: concatenation, reshape, padding, arguments of reductions.
namespace mpsnn::preflight {
namespace {

using enum PreflightSeverity;

void check_concatenation(Inspection& inspection, const NNConcatenationNode& node) {
  const PlannedNode& planned = inspection.planned(node);
  int here = 0, there = 0;
  std::string sources;
  for (std::size_t i = 0; i < planned.sources.size(); ++i) {
    here += planned.sources[i].channels;
    there = ceil_divide(there, 4) * 4 + inspection.mps_channels(node, i);
    sources += (i ? ", " : "") + std::to_string(planned.sources[i].channels);
  }
  if (here != there)
    inspection.report(node, "multiples of 4 feature channels in every source but the last",
                      "sources of " + sources + " feature channels: " + std::to_string(here) + " here, " + std::to_string(there) + " on Metal");
}

/// True when the node's own numbers fix how many channels its first source has.
bool fixes_channels(const NNFilterNode& node) {
  return dynamic_cast<const CNNConvolutionNode*>(&node) || dynamic_cast<const CNNBatchNormalizationNode*>(&node) || dynamic_cast<const CNNAffineNormalizationNode*>(&node) ||
         dynamic_cast<const CNNNeuronPReLUNode*>(&node) || dynamic_cast<const NNReshapeNode*>(&node) || dynamic_cast<const CNNLossNode*>(&node) ||
         dynamic_cast<const CNNYOLOLossNode*>(&node);
}

void check_padded(Inspection& inspection, const NNFilterNode& node) {
  const PlannedNode& planned = inspection.planned(node);
  auto report = [&](std::size_t i) {
    inspection.report(node, std::to_string(planned.sources[i].channels) + " feature channels",
                      std::to_string(inspection.mps_channels(node, i)) + " on Metal, with those that a concatenation pads with");
  };
  if (fixes_channels(node) && inspection.mps_channels(node, 0) != planned.sources[0].channels) report(0);
  const auto* arithmetic = dynamic_cast<const NNBinaryArithmeticNode*>(&node);
  const bool pairs_channels = (arithmetic && arithmetic->primary_stride_in_feature_channels && arithmetic->secondary_stride_in_feature_channels) ||
                              dynamic_cast<const NNForwardLossNode*>(&node);
  if (pairs_channels && inspection.mps_channels(node, 0) != inspection.mps_channels(node, 1)) report(inspection.mps_channels(node, 0) != planned.sources[0].channels ? 0 : 1);
}

void check_reshape(Inspection& inspection, const NNReshapeNode& node) {
  const PlannedNode& planned = inspection.planned(node);
  if (planned.sources[0] != planned.result) inspection.report(node, "an image of the same shape", planned.sources[0].text() + " to " + planned.result.text());
}

struct ChannelPadding { int before, after; ImageEdgeMode edge_mode; };
ChannelPadding channel_padding(const NNPadNode& node) {
  const Json json = node.parameters();
  auto number = [&](const char* name) { return static_cast<int>(json.at(name).integer(name)); };
  return {number("before_channel"), number("after_channel"), static_cast<ImageEdgeMode>(number("edge_mode"))};
}

void check_pad(Inspection& inspection, const NNPadNode& node) {
  const ChannelPadding padding = channel_padding(node);
  if (padding.before % 4 != 0 || padding.after % 4 != 0)
    inspection.report(node, "multiples of 4 feature channels", std::to_string(padding.before) + " before, " + std::to_string(padding.after) + " after");
}

void check_pad_edge(Inspection& inspection, const NNPadNode& node) {
  const auto [before, after, edge_mode] = channel_padding(node);
  if (before + after > 0 && edge_mode != ImageEdgeMode::Zero && edge_mode != ImageEdgeMode::Constant)
    inspection.report(node, "edge mode Zero or Constant", "edge mode " + std::to_string(static_cast<std::int64_t>(edge_mode)) + " with " + std::to_string(before) +
                                                              " feature channels before, " + std::to_string(after) + " after");
}

bool is_argument(const NNUnaryReductionNode& node) {
  return dynamic_cast<const NNReductionFeatureChannelsArgumentMinNode*>(&node) || dynamic_cast<const NNReductionFeatureChannelsArgumentMaxNode*>(&node);
}

void check_argument_ties(Inspection& inspection, const NNUnaryReductionNode& node) {
  if (is_argument(node)) inspection.report(node, "one extreme value in each pixel", "feature channels that may tie: the lowest index here");
}

void check_argument_precision(Inspection& inspection, const NNUnaryReductionNode& node) {
  if (!is_argument(node)) return;
  auto format = node.result_image_node().format;
  if (format == ImageFeatureChannelFormat::None) format = inspection.graph().format;
  const int channels = inspection.planned(node).sources[0].channels;
  // Halves hold every whole number up to 2048.
  if (format != ImageFeatureChannelFormat::Float32 && channels - 1 > 2048)
    inspection.report(node, "result_image.format Float32 for indices up to " + std::to_string(channels - 1), "a format that is exact up to 2048");
}

}  // namespace

const std::vector<Rule>& channel_rules() {
  static const std::vector<Rule> rules{
      {{"concatenation-channels", differs, "concatenation", "each source starts at a multiple of four feature channels, padded with zeros; here they lie densely",
        "give every source but the last a multiple of 4 feature channels", "18.1, OQ-39", true},
       raise<ShapeError>, each<NNConcatenationNode>(check_concatenation)},
      {{"padded-channels", refused, "nodes behind such a concatenation whose weights, labels or partner fix the number of feature channels",
        "the image has the padding channels too, and does not fit", "give every source of the concatenation but the last a multiple of 4 feature channels", "18.1, OQ-39", true},
       raise<ShapeError>, each<NNFilterNode>(check_padded)},
      {{"reshape-order", unverified, "reshape to another shape", "the order of elements is not documented; here height, width, feature channels", "a fully connected node flattens in this order too",
        "18.2, OQ-41", true},
       raise<ShapeError>, each<NNReshapeNode>(check_reshape)},
      {{"pad-channels", refused, "padding of feature channels", "feature channels are moved in slices of four", "pad by multiples of 4 feature channels", "18.3, OQ-42", false},
       raise<OptionError>, each<NNPadNode>(check_pad)},
      {{"pad-channels-edge", unverified, "padding of feature channels", "what other edge modes do along feature channels is not documented; here what they do along pixels",
        "edge mode Zero or Constant, or pad pixels only", "18.3, OQ-42", false},
       raise<OptionError>, each<NNPadNode>(check_pad_edge)},
      {{"argument-ties", unverified, "arguments of extreme feature channels", "which index wins a tie is not documented; here the lowest", "nothing to do where values do not tie", "17, OQ-38", false},
       raise<OptionError>, each<NNUnaryReductionNode>(check_argument_ties)},
      {{"argument-precision", unverified, "arguments of extreme feature channels", "the index is stored in the format of the image, and how it is rounded is not documented",
        "set the result's format to Float32", "17, OQ-38", true},
       raise<OptionError>, each<NNUnaryReductionNode>(check_argument_precision)},
  };
  return rules;
}

}  // namespace mpsnn::preflight
