// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <functional>
#include <map>

#include "core/json.hpp"
#include "mpsnn/graph.hpp"
#include "mpsnn/nodes/arithmetic.hpp"
#include "mpsnn/nodes/binary_convolution.hpp"
#include "mpsnn/nodes/concatenation.hpp"
#include "mpsnn/nodes/convolution.hpp"
#include "mpsnn/nodes/dropout.hpp"
#include "mpsnn/nodes/group_normalization.hpp"
#include "mpsnn/nodes/loss.hpp"
#include "mpsnn/nodes/neuron.hpp"
#include "mpsnn/nodes/normalization.hpp"
#include "mpsnn/nodes/pooling.hpp"
#include "mpsnn/nodes/reduction.hpp"
#include "mpsnn/nodes/resampling.hpp"
#include "mpsnn/nodes/shape.hpp"
#include "mpsnn/nodes/softmax.hpp"
#include "mpsnn/nodes/window_normalization.hpp"
#include "nodes/json_fields.hpp"

/// Graph structures as text. A file holds the nodes in construction order; images and states are named by the node that makes
/// them. Loading calls constructors with checked numbers: nothing in a file is executed.
namespace mpsnn {
namespace {

constexpr int kFormatVersion = 1;

[[noreturn]] void bad_file(const std::string& sentence, std::string expected, std::string actual) {
  throw FileError("saved graph: " + sentence, {.expected = std::move(expected), .actual = std::move(actual), .hint = "save the graph again with this version"});
}

/// The numerics contract: what a graph was saved to mean (the answers to the open questions of MPS_SEMANTICS 24).
Json numerics_contract() {
  return {{"maximum_ties", "first in row-major order"}, {"concatenation", "dense"}, {"accumulation", "float32"}, {"image_format", "Float32"}};
}

// --- writing -----------------------------------------------------------------------------------------------------

Json padding_json(const NNFilterNode& node) {
  if (const auto* policy = dynamic_cast<const NNDefaultPadding*>(node.padding_policy.get())) return {{"method", enum_json(policy->padding_method())}};
  if (const auto* policy = dynamic_cast<const ExplicitPadding*>(node.padding_policy.get()))
    return {{"left", policy->left()}, {"right", policy->right()}, {"top", policy->top()}, {"bottom", policy->bottom()}};
  throw GraphError(node.display_name() + ": a padding policy of the application's own cannot be saved.",
                   {node.class_name(), node.display_name(), "MPSNNDefaultPadding or ExplicitPadding", node.padding_policy->label(),
                    "ExplicitPadding says any number of pixels"});
}

template <class Node>
void write_tags(Json::Object& object, const Node& node) {
  if (node.handle) object.emplace("handle", node.handle->label());
  if (node.export_from_graph) object.emplace("export_from_graph", true);
  if (node.synchronize_resource) object.emplace("synchronize_resource", true);
}

Json image_json(const NNImageNode& image) {
  Json::Object object;
  write_tags(object, image);
  object.emplace("format", enum_json(image.format));
  if (image.stop_gradient) object.emplace("stop_gradient", true);
  return object;
}

Json state_json(const NNStateNode& state) {
  Json::Object object;
  write_tags(object, state);
  return object;
}

/// "weights": the label of the data source, and its descriptor.
void write_data_source(Json::Object& object, NNFilterNode& node) {
  ConvolutionDataSourcePtr weights;
  if (auto* convolution = dynamic_cast<CNNConvolutionNode*>(&node)) weights = convolution->weights();
  if (auto* gradient = dynamic_cast<CNNConvolutionGradientNode*>(&node)) weights = gradient->weights();
  std::string label;
  if (weights) {
    label = weights->label();
    object.emplace("descriptor", to_json(weights->descriptor()));
  } else if (auto* normalization = dynamic_cast<CNNBatchNormalizationNode*>(&node)) label = normalization->data_source()->label();
  else if (auto* affine = dynamic_cast<CNNAffineNormalizationNode*>(&node)) label = affine->data_source()->label();
  else return;
  if (label.empty())
    throw GraphError(node.display_name() + ": a data source needs a label to be found again.",
                     {node.class_name(), node.display_name(), "a label", "none", "give every data source a label of its own"});
  object.emplace("data_source", label);
}

// --- reading -----------------------------------------------------------------------------------------------------

/// What a node is made from.
struct SavedNode {
  std::vector<ImageNodePtr> sources;
  std::vector<StateNodePtr> states;
  ConvolutionDataSourcePtr weights;
  BatchNormalizationDataSourcePtr normalization;
  AffineDataSourcePtr affine;
  JsonFields fields;
  std::string class_name;

  const ImageNodePtr& source(std::size_t i) const {
    if (i >= sources.size()) bad_file(class_name + " has too few sources.", std::to_string(i + 1), std::to_string(sources.size()));
    return sources[i];
  }
  template <class StateNode>
  std::shared_ptr<StateNode> state(std::size_t i = 0) const {
    auto typed = i < states.size() ? std::dynamic_pointer_cast<StateNode>(states[i]) : nullptr;
    if (!typed) bad_file(class_name + " has no state of the right class.", "the result state of its forward node", i < states.size() ? states[i]->class_name() : "none");
    return typed;
  }
  template <class StateNode>
  std::shared_ptr<StateNode> optional_state() const { return states.empty() ? nullptr : state<StateNode>(); }
  const ConvolutionDataSourcePtr& convolution() const {
    if (!weights) bad_file(class_name + " names no data source.", "a data source", "none");
    return weights;
  }
  const BatchNormalizationDataSourcePtr& batch_normalization() const {
    if (!normalization) bad_file(class_name + " names no data source.", "a data source", "none");
    return normalization;
  }
};

template <class Node>
FilterNodePtr make_window_normalization(const SavedNode& s) {
  auto node = std::make_shared<Node>(s.source(0), s.fields.integer("kernel_width", 1));
  node->kernel_height = s.fields.integer("kernel_height", 1);
  node->alpha = s.fields.real("alpha");
  node->beta = s.fields.real("beta");
  node->delta = s.fields.real("delta");
  return node;
}

using Factory = std::function<FilterNodePtr(const SavedNode&)>;

template <class Node>
void read_training_style(Node& node, const SavedNode& saved) {
  node.training_style = saved.fields.enumeration<NNTrainingStyle>("training_style", 2);
}

template <class Node>
FilterNodePtr make_convolution(const SavedNode& s) {
  auto node = std::make_shared<Node>(s.source(0), s.convolution());
  read_training_style(*node, s);
  node->accumulator_precision = s.fields.enumeration<NNConvolutionAccumulatorPrecisionOption>("accumulator_precision", 1);
  return node;
}

FilterNodePtr make_transpose(const SavedNode& s) {
  auto node = std::make_shared<CNNConvolutionTransposeNode>(s.source(0), s.optional_state<CNNConvolutionGradientStateNode>(), s.convolution());
  read_training_style(*node, s);
  return node;
}

template <class Node, class StateNode>
FilterNodePtr make_convolution_gradient(const SavedNode& s) {
  auto node = std::make_shared<Node>(s.source(0), s.source(1), s.state<StateNode>(), s.convolution());
  read_training_style(*node, s);
  return node;
}

template <class Node>
FilterNodePtr make_windowed(const SavedNode& s) { return std::make_shared<Node>(s.source(0), s.fields.window()); }

template <class Node>
FilterNodePtr make_windowed_gradient(const SavedNode& s) {
  return std::make_shared<Node>(s.source(0), s.source(1), s.state<NNGradientStateNode>(), s.fields.window());
}

FilterNodePtr make_neuron(const SavedNode& s) { return make_neuron_node(s.source(0), s.fields.neuron()); }

template <class Node>
FilterNodePtr make_unary(const SavedNode& s) { return std::make_shared<Node>(s.source(0)); }

template <class Node>
FilterNodePtr make_plain_gradient(const SavedNode& s) { return std::make_shared<Node>(s.source(0), s.source(1), s.state<NNGradientStateNode>()); }

void read_arithmetic(ArithmeticProperties& p, const JsonFields& fields) {
  p.primary_scale = fields.real("primary_scale");
  p.secondary_scale = fields.real("secondary_scale");
  p.bias = fields.real("bias");
  p.minimum_value = fields.real("minimum_value");
  p.maximum_value = fields.real("maximum_value");
  p.primary_stride_in_pixels_x = fields.integer("primary_stride_in_pixels_x", 0, 1);
  p.primary_stride_in_pixels_y = fields.integer("primary_stride_in_pixels_y", 0, 1);
  p.primary_stride_in_feature_channels = fields.integer("primary_stride_in_feature_channels", 0, 1);
  p.secondary_stride_in_pixels_x = fields.integer("secondary_stride_in_pixels_x", 0, 1);
  p.secondary_stride_in_pixels_y = fields.integer("secondary_stride_in_pixels_y", 0, 1);
  p.secondary_stride_in_feature_channels = fields.integer("secondary_stride_in_feature_channels", 0, 1);
}

template <class Node>
FilterNodePtr make_arithmetic(const SavedNode& s) {
  auto node = std::make_shared<Node>(s.sources);
  read_arithmetic(*node, s.fields);
  return node;
}

template <class Node>
FilterNodePtr make_arithmetic_gradient(const SavedNode& s) {
  auto node = std::make_shared<Node>(s.source(0), s.source(1), s.state<NNBinaryGradientStateNode>(), s.fields.boolean("is_secondary_source_filter"));
  read_arithmetic(*node, s.fields);
  return node;
}

FilterNodePtr make_batch_normalization(const SavedNode& s) {
  auto node = std::make_shared<CNNBatchNormalizationNode>(s.source(0), s.batch_normalization());
  read_training_style(*node, s);
  node->flags = s.fields.enumeration<CNNBatchNormalizationFlags>("flags", 3);
  return node;
}

FilterNodePtr make_batch_normalization_gradient(const SavedNode& s) {
  auto node = std::make_shared<CNNBatchNormalizationGradientNode>(s.source(0), s.source(1), s.state<NNGradientStateNode>());
  read_training_style(*node, s);
  return node;
}

FilterNodePtr make_local_contrast(const SavedNode& s) {
  auto node = std::static_pointer_cast<CNNLocalContrastNormalizationNode>(make_window_normalization<CNNLocalContrastNormalizationNode>(s));
  node->pm = s.fields.real("pm");
  node->ps = s.fields.real("ps");
  node->p0 = s.fields.real("p0");
  return node;
}

FilterNodePtr make_spatial_gradient(const SavedNode& s) {
  auto node = std::make_shared<CNNSpatialNormalizationGradientNode>(s.source(0), s.source(1), s.state<NNGradientStateNode>(), s.fields.integer("kernel_width", 1));
  node->kernel_height = s.fields.integer("kernel_height", 1);
  node->alpha = s.fields.real("alpha");
  node->beta = s.fields.real("beta");
  node->delta = s.fields.real("delta");
  return node;
}

FilterNodePtr make_local_contrast_gradient(const SavedNode& s) {
  auto node = std::make_shared<CNNLocalContrastNormalizationGradientNode>(s.source(0), s.source(1), s.state<NNGradientStateNode>(),
                                                                          s.fields.integer("kernel_width", 1), s.fields.integer("kernel_height", 1));
  node->alpha = s.fields.real("alpha");
  node->beta = s.fields.real("beta");
  node->delta = s.fields.real("delta");
  node->pm = s.fields.real("pm");
  node->ps = s.fields.real("ps");
  node->p0 = s.fields.real("p0");
  return node;
}

FilterNodePtr make_cross_channel(const SavedNode& s) {
  auto node = std::make_shared<CNNCrossChannelNormalizationNode>(s.source(0), s.fields.integer("kernel_size", 1));
  node->alpha = s.fields.real("alpha");
  node->beta = s.fields.real("beta");
  node->delta = s.fields.real("delta");
  return node;
}

FilterNodePtr make_cross_channel_gradient(const SavedNode& s) {
  return std::make_shared<CNNCrossChannelNormalizationGradientNode>(s.source(0), s.source(1), s.state<NNGradientStateNode>(), s.fields.integer("kernel_size", 1));
}

template <class Node, class DataSource>
FilterNodePtr make_affine(const SavedNode& s) {
  const auto source = std::dynamic_pointer_cast<DataSource>(s.affine);
  if (!source) bad_file(s.class_name + " names no data source of its protocol.", "a data source", s.affine ? "another kind" : "none");
  auto node = std::make_shared<Node>(s.source(0), source);
  read_training_style(*node, s);
  return node;
}

template <class Node>
FilterNodePtr make_affine_gradient(const SavedNode& s) {
  auto node = std::make_shared<Node>(s.source(0), s.source(1), s.state<NNGradientStateNode>());
  read_training_style(*node, s);
  return node;
}

template <class Node>
FilterNodePtr make_reduction(const SavedNode& s) {
  auto node = std::make_shared<Node>(s.source(0));
  constexpr std::int64_t kMost = std::numeric_limits<int>::max();
  node->clip_rect_source = {s.fields.integer("clip_x", -kMost, kMost), s.fields.integer("clip_y", -kMost, kMost),
                            s.fields.integer("clip_width", 0, kMost), s.fields.integer("clip_height", 0, kMost)};
  if constexpr (std::is_same_v<Node, NNReductionFeatureChannelsSumNode>) node->weight = s.fields.real("weight");
  return node;
}

template <class Node>
FilterNodePtr make_upsampling(const SavedNode& s) {
  return std::make_shared<Node>(s.source(0), s.fields.integer("scale_factor_x", 1, 1 << 15), s.fields.integer("scale_factor_y", 1, 1 << 15));
}

template <class Node>
FilterNodePtr make_upsampling_gradient(const SavedNode& s) {
  return std::make_shared<Node>(s.source(0), s.source(1), s.state<NNGradientStateNode>(), s.fields.real("scale_factor_x"), s.fields.real("scale_factor_y"));
}

template <class Node>
FilterNodePtr make_scale(const SavedNode& s) {
  return std::make_shared<Node>(s.source(0), nullptr, s.fields.integer("width", 1, 1 << 16), s.fields.integer("height", 1, 1 << 16));
}

FilterNodePtr make_comparison(const SavedNode& s) {
  auto node = std::static_pointer_cast<NNComparisonNode>(make_arithmetic<NNComparisonNode>(s));
  node->comparison_type = s.fields.enumeration<NNComparisonType>("comparison_type", 5);
  return node;
}

FilterNodePtr make_pad(const SavedNode& s) {
  auto size = [&](const char* name) { return s.fields.integer(name, 0, 1 << 16); };
  auto node = std::make_shared<NNPadNode>(s.source(0), ImageCoordinate{size("before_x"), size("before_y"), size("before_channel")},
                                          ImageCoordinate{size("after_x"), size("after_y"), size("after_channel")},
                                          s.fields.enumeration<ImageEdgeMode>("edge_mode", 4));
  node->fill_value = s.fields.real("fill_value");
  return node;
}

template <class Node>
FilterNodePtr make_binary_convolution(const SavedNode& s) {
  const auto type = s.fields.enumeration<CNNBinaryConvolutionType>("type", 2);
  const auto flags = s.fields.enumeration<CNNBinaryConvolutionFlags>("flags", 1);
  if (s.fields.json().has("scale_value")) return std::make_shared<Node>(s.source(0), s.convolution(), s.fields.real("scale_value"), type, flags);
  auto list = [&](const char* name) {
    std::vector<float> values;
    for (const Json& item : s.fields.json().at(name).array(name)) values.push_back(static_cast<float>(item.number(name)));
    return values;
  };
  return std::make_shared<Node>(s.source(0), s.convolution(),
                                BinaryConvolutionTerms{list("output_bias_terms"), list("output_scale_terms"), list("input_bias_terms"), list("input_scale_terms")},
                                type, flags);
}

DropoutParameters dropout(const JsonFields& f) {
  return {f.real("keep_probability"), f.unsigned_integer("seed"), f.integer("mask_stride_x", 0, 1), f.integer("mask_stride_y", 0, 1),
          f.integer("mask_stride_channels", 0, 1)};
}

const std::map<std::string, Factory>& factories() {
  static const std::map<std::string, Factory> table{
      {"MPSCNNConvolutionNode", make_convolution<CNNConvolutionNode>},
      {"MPSCNNFullyConnectedNode", make_convolution<CNNFullyConnectedNode>},
      {"MPSCNNConvolutionTransposeNode", make_transpose},
      {"MPSCNNConvolutionGradientNode", make_convolution_gradient<CNNConvolutionGradientNode, CNNConvolutionGradientStateNode>},
      {"MPSCNNFullyConnectedGradientNode", make_convolution_gradient<CNNFullyConnectedGradientNode, CNNConvolutionGradientStateNode>},
      {"MPSCNNConvolutionTransposeGradientNode",
       make_convolution_gradient<CNNConvolutionTransposeGradientNode, CNNConvolutionTransposeGradientStateNode>},
      {"MPSCNNPoolingMaxNode", make_windowed<CNNPoolingMaxNode>},
      {"MPSCNNPoolingAverageNode", make_windowed<CNNPoolingAverageNode>},
      {"MPSCNNPoolingL2NormNode", make_windowed<CNNPoolingL2NormNode>},
      {"MPSCNNDilatedPoolingMaxNode", make_windowed<CNNDilatedPoolingMaxNode>},
      {"MPSCNNPoolingMaxGradientNode", make_windowed_gradient<CNNPoolingMaxGradientNode>},
      {"MPSCNNPoolingAverageGradientNode", make_windowed_gradient<CNNPoolingAverageGradientNode>},
      {"MPSCNNPoolingL2NormGradientNode", make_windowed_gradient<CNNPoolingL2NormGradientNode>},
      {"MPSCNNDilatedPoolingMaxGradientNode", make_windowed_gradient<CNNDilatedPoolingMaxGradientNode>},
      {"MPSCNNNeuronAbsoluteNode", make_neuron}, {"MPSCNNNeuronELUNode", make_neuron}, {"MPSCNNNeuronReLUNode", make_neuron},
      {"MPSCNNNeuronReLUNNode", make_neuron}, {"MPSCNNNeuronLinearNode", make_neuron}, {"MPSCNNNeuronSigmoidNode", make_neuron},
      {"MPSCNNNeuronHardSigmoidNode", make_neuron}, {"MPSCNNNeuronSoftPlusNode", make_neuron}, {"MPSCNNNeuronSoftSignNode", make_neuron},
      {"MPSCNNNeuronTanHNode", make_neuron}, {"MPSCNNNeuronPReLUNode", make_neuron}, {"MPSCNNNeuronPowerNode", make_neuron},
      {"MPSCNNNeuronExponentialNode", make_neuron}, {"MPSCNNNeuronLogarithmNode", make_neuron}, {"MPSCNNNeuronGeLUNode", make_neuron},
      {"MPSCNNNeuronGradientNode",
       [](const SavedNode& s) {
         return std::make_shared<CNNNeuronGradientNode>(s.source(0), s.source(1), s.state<NNGradientStateNode>(), s.fields.neuron());
       }},
      {"MPSCNNSoftMaxNode", make_unary<CNNSoftMaxNode>},
      {"MPSCNNLogSoftMaxNode", make_unary<CNNLogSoftMaxNode>},
      {"MPSCNNSoftMaxGradientNode", make_plain_gradient<CNNSoftMaxGradientNode>},
      {"MPSCNNLogSoftMaxGradientNode", make_plain_gradient<CNNLogSoftMaxGradientNode>},
      {"MPSNNAdditionNode", make_arithmetic<NNAdditionNode>},
      {"MPSNNSubtractionNode", make_arithmetic<NNSubtractionNode>},
      {"MPSNNMultiplicationNode", make_arithmetic<NNMultiplicationNode>},
      {"MPSNNAdditionGradientNode", make_arithmetic_gradient<NNAdditionGradientNode>},
      {"MPSNNSubtractionGradientNode", make_arithmetic_gradient<NNSubtractionGradientNode>},
      {"MPSNNMultiplicationGradientNode", make_arithmetic_gradient<NNMultiplicationGradientNode>},
      {"MPSCNNBatchNormalizationNode", make_batch_normalization},
      {"MPSCNNBatchNormalizationGradientNode", make_batch_normalization_gradient},
      {"MPSCNNDropoutNode", [](const SavedNode& s) { return std::make_shared<CNNDropoutNode>(s.source(0), dropout(s.fields)); }},
      {"MPSCNNDropoutGradientNode",
       [](const SavedNode& s) {
         return std::make_shared<CNNDropoutGradientNode>(s.source(0), s.source(1), s.state<NNGradientStateNode>(), dropout(s.fields));
       }},
      {"MPSCNNLossNode", [](const SavedNode& s) { return std::make_shared<CNNLossNode>(s.source(0), s.fields.loss()); }},
      {"MPSNNForwardLossNode", [](const SavedNode& s) { return std::make_shared<NNForwardLossNode>(s.sources, s.fields.loss()); }},
      {"MPSNNLossGradientNode",
       [](const SavedNode& s) {
         return std::make_shared<NNLossGradientNode>(s.sources, s.optional_state<NNGradientStateNode>(), s.fields.loss(),
                                                     s.fields.boolean("is_labels_gradient_filter"));
       }},
      {"MPSNNInitialGradientNode", make_unary<NNInitialGradientNode>},
      {"MPSNNConcatenationNode", [](const SavedNode& s) { return std::make_shared<NNConcatenationNode>(s.sources); }},
      {"MPSNNConcatenationGradientNode", make_plain_gradient<NNConcatenationGradientNode>},
      {"MPSCNNSpatialNormalizationNode", make_window_normalization<CNNSpatialNormalizationNode>},
      {"MPSCNNSpatialNormalizationGradientNode", make_spatial_gradient},
      {"MPSCNNLocalContrastNormalizationNode", make_local_contrast},
      {"MPSCNNLocalContrastNormalizationGradientNode", make_local_contrast_gradient},
      {"MPSCNNCrossChannelNormalizationNode", make_cross_channel},
      {"MPSCNNCrossChannelNormalizationGradientNode", make_cross_channel_gradient},
      {"MPSCNNInstanceNormalizationNode", make_affine<CNNInstanceNormalizationNode, CNNInstanceNormalizationDataSource>},
      {"MPSCNNGroupNormalizationNode", make_affine<CNNGroupNormalizationNode, CNNGroupNormalizationDataSource>},
      {"MPSCNNInstanceNormalizationGradientNode", make_affine_gradient<CNNInstanceNormalizationGradientNode>},
      {"MPSCNNGroupNormalizationGradientNode", make_affine_gradient<CNNGroupNormalizationGradientNode>},
      {"MPSNNReductionRowMinNode", make_reduction<NNReductionRowMinNode>},
      {"MPSNNReductionRowMaxNode", make_reduction<NNReductionRowMaxNode>},
      {"MPSNNReductionRowMeanNode", make_reduction<NNReductionRowMeanNode>},
      {"MPSNNReductionRowSumNode", make_reduction<NNReductionRowSumNode>},
      {"MPSNNReductionColumnMinNode", make_reduction<NNReductionColumnMinNode>},
      {"MPSNNReductionColumnMaxNode", make_reduction<NNReductionColumnMaxNode>},
      {"MPSNNReductionColumnMeanNode", make_reduction<NNReductionColumnMeanNode>},
      {"MPSNNReductionColumnSumNode", make_reduction<NNReductionColumnSumNode>},
      {"MPSNNReductionFeatureChannelsMinNode", make_reduction<NNReductionFeatureChannelsMinNode>},
      {"MPSNNReductionFeatureChannelsMaxNode", make_reduction<NNReductionFeatureChannelsMaxNode>},
      {"MPSNNReductionFeatureChannelsMeanNode", make_reduction<NNReductionFeatureChannelsMeanNode>},
      {"MPSNNReductionFeatureChannelsSumNode", make_reduction<NNReductionFeatureChannelsSumNode>},
      {"MPSNNReductionFeatureChannelsArgumentMinNode", make_reduction<NNReductionFeatureChannelsArgumentMinNode>},
      {"MPSNNReductionFeatureChannelsArgumentMaxNode", make_reduction<NNReductionFeatureChannelsArgumentMaxNode>},
      {"MPSNNReductionSpatialMeanNode", make_reduction<NNReductionSpatialMeanNode>},
      {"MPSNNReductionSpatialMeanGradientNode", make_plain_gradient<NNReductionSpatialMeanGradientNode>},
      {"MPSCNNUpsamplingNearestNode", make_upsampling<CNNUpsamplingNearestNode>},
      {"MPSCNNUpsamplingNearestGradientNode", make_upsampling_gradient<CNNUpsamplingNearestGradientNode>},
      {"MPSCNNUpsamplingBilinearNode",
       [](const SavedNode& s) {
         return std::make_shared<CNNUpsamplingBilinearNode>(s.source(0), s.fields.integer("scale_factor_x", 1, 1 << 15),
                                                            s.fields.integer("scale_factor_y", 1, 1 << 15), s.fields.boolean("align_corners"));
       }},
      {"MPSCNNUpsamplingBilinearGradientNode", make_upsampling_gradient<CNNUpsamplingBilinearGradientNode>},
      {"MPSNNBilinearScaleNode", make_scale<NNBilinearScaleNode>},
      {"MPSNNLanczosScaleNode", make_scale<NNLanczosScaleNode>},
      {"MPSNNReshapeNode",
       [](const SavedNode& s) {
         return std::make_shared<NNReshapeNode>(s.source(0), s.fields.integer("result_width", 1, 1 << 30), s.fields.integer("result_height", 1, 1 << 30),
                                                s.fields.integer("result_feature_channels", 1, 1 << 30));
       }},
      {"MPSNNReshapeGradientNode", make_plain_gradient<NNReshapeGradientNode>},
      {"MPSNNPadNode", make_pad},
      {"MPSNNPadGradientNode", make_plain_gradient<NNPadGradientNode>},
      {"MPSNNGramMatrixCalculationNode", [](const SavedNode& s) { return std::make_shared<NNGramMatrixCalculationNode>(s.source(0), s.fields.real("alpha")); }},
      {"MPSNNGramMatrixCalculationGradientNode",
       [](const SavedNode& s) {
         return std::make_shared<NNGramMatrixCalculationGradientNode>(s.source(0), s.source(1), s.state<NNGradientStateNode>(), s.fields.real("alpha"));
       }},
      {"MPSNNDivisionNode", make_arithmetic<NNDivisionNode>},
      {"MPSNNComparisonNode", make_comparison},
      {"MPSCNNYOLOLossNode", [](const SavedNode& s) { return std::make_shared<CNNYOLOLossNode>(s.source(0), s.fields.yolo_loss()); }},
      {"MPSCNNBinaryConvolutionNode", make_binary_convolution<CNNBinaryConvolutionNode>},
      {"MPSCNNBinaryFullyConnectedNode", make_binary_convolution<CNNBinaryFullyConnectedNode>},
  };
  return table;
}

template <class Node>
void read_tags(Node& node, const Json& json) {
  if (json.has("handle")) node.handle = make_handle(json.at("handle").string("handle"));
  node.export_from_graph = json.has("export_from_graph");
  node.synchronize_resource = json.has("synchronize_resource");
}

void read_image(NNImageNode& image, const Json& json) {
  read_tags(image, json);
  image.format = JsonFields(json).enumeration<ImageFeatureChannelFormat>("format", 4);
  image.stop_gradient = json.has("stop_gradient");
}

PaddingPtr read_padding(const Json& json) {
  const JsonFields fields(json);
  if (json.has("method")) return std::make_shared<NNDefaultPadding>(static_cast<NNPaddingMethod>(fields.integer("method", 0, 0xffff)));
  constexpr int kMost = 1 << 15;
  return std::make_shared<ExplicitPadding>(fields.integer("left", -kMost, kMost), fields.integer("right", -kMost, kMost), fields.integer("top", -kMost, kMost),
                                           fields.integer("bottom", -kMost, kMost));
}

class Loader {
 public:
  explicit Loader(const DataSources& sources) : data_sources_(sources) {}

  std::vector<ImageNodePtr> load(const Json& file) {
    if (file.at("format").string("format") != "mpsnn graph") bad_file("this is another kind of file.", "mpsnn graph", file.at("format").string("format"));
    const std::int64_t version = file.at("version").integer("version");
    if (version != kFormatVersion) bad_file("it was saved by another version.", std::to_string(kFormatVersion), std::to_string(version));
    if (file.at("numerics").text() != numerics_contract().text())
      bad_file("it was saved under another numerics contract.", numerics_contract().text(), file.at("numerics").text().substr(0, 400));
    for (const Json& input : file.at("inputs").array("inputs")) {
      images_.push_back(std::make_shared<NNImageNode>());
      read_image(*images_.back(), input);
    }
    input_count_ = images_.size();
    for (const Json& node : file.at("nodes").array("nodes")) load_node(node);
    std::vector<ImageNodePtr> results;
    for (const Json& result : file.at("results").array("results")) results.push_back(image(result));
    return results;
  }

 private:
  /// Only images that exist already can be named: cycles cannot be written down.
  ImageNodePtr image(const Json& index) const {
    const std::int64_t i = index.integer("an image");
    if (i < 0 || i >= static_cast<std::int64_t>(images_.size())) bad_file("an image does not exist.", "0 to " + std::to_string(images_.size()), std::to_string(i));
    return images_[i];
  }

  StateNodePtr state(const Json& reference) const {
    const auto& pair = reference.array("a state");
    if (pair.size() != 2) bad_file("a state is a node and a number.", "2 numbers", std::to_string(pair.size()));
    const std::int64_t node = pair[0].integer("a state"), index = pair[1].integer("a state");
    if (node < 0 || node >= static_cast<std::int64_t>(nodes_.size())) bad_file("a state's node does not exist.", "a node before this one", std::to_string(node));
    const auto states = nodes_[node]->result_states();
    if (index < 0 || index >= static_cast<std::int64_t>(states.size())) bad_file("a state does not exist.", std::to_string(states.size()) + " states", std::to_string(index));
    return states[index];
  }

  void find_data_source(const Json& json, SavedNode& saved) const {
    if (!json.has("data_source")) return;
    const std::string& label = json.at("data_source").string("data_source");
    for (const auto& source : data_sources_.convolutions)
      if (source->label() == label) saved.weights = source;
    for (const auto& source : data_sources_.batch_normalizations)
      if (source->label() == label) saved.normalization = source;
    for (const auto& source : data_sources_.affine_normalizations)
      if (source->label() == label) saved.affine = source;
    auto refuse = [&](const std::string& sentence, std::string expected, std::string actual, std::string hint) {
      throw WeightError("saved graph: " + sentence, {saved.class_name, label, std::move(expected), std::move(actual), std::move(hint)});
    };
    if (!saved.weights && !saved.normalization && !saved.affine)
      refuse("no data source is labelled \"" + label + "\".", "a data source of that label", "none", "pass it in data_sources");
    if (saved.weights && json.has("descriptor") && to_json(saved.weights->descriptor()).text() != json.at("descriptor").text())
      refuse("the data source \"" + label + "\" has another descriptor.", json.at("descriptor").text().substr(0, 400),
             to_json(saved.weights->descriptor()).text(), "pass the data source that the graph was saved with");
  }

  void load_node(const Json& json) {
    const std::string& class_name = json.at("class").string("class");
    const auto factory = factories().find(class_name);
    if (factory == factories().end()) bad_file("\"" + class_name.substr(0, 100) + "\" is no node class of this version.", "a node class", class_name.substr(0, 100));
    SavedNode saved{{}, {}, nullptr, nullptr, nullptr, JsonFields(json.at("parameters")), class_name};
    for (const Json& source : json.at("sources").array("sources")) saved.sources.push_back(image(source));
    for (const Json& reference : json.at("states").array("states")) saved.states.push_back(state(reference));
    find_data_source(json, saved);
    const FilterNodePtr node = factory->second(saved);
    if (node->class_name() != class_name) bad_file("a neuron's parameters belong to another class.", class_name, node->class_name());
    node->label = json.at("label").string("label");
    node->padding_policy = read_padding(json.at("padding"));
    read_image(*node->result_image(), json.at("result"));
    const auto& states = json.at("result_states").array("result_states");
    const auto own_states = node->result_states();
    for (std::size_t i = 0; i < std::min(states.size(), own_states.size()); ++i) read_tags(*own_states[i], states[i]);
    if (NNLabelsNode* labels = node->labels_placeholder(); labels && json.has("labels")) read_tags(*labels, json.at("labels"));
    nodes_.push_back(node);
    images_.push_back(node->result_image());
  }

  const DataSources& data_sources_;
  std::vector<ImageNodePtr> images_;  // inputs, then the result of each node
  std::size_t input_count_ = 0;
  std::vector<FilterNodePtr> nodes_;
};

}  // namespace

std::string save_structure(const std::vector<ImageNodePtr>& result_images) {
  const std::vector<FilterNodePtr> nodes = filters_behind(result_images);
  std::map<const NNImageNode*, int> image_numbers;
  Json::Array inputs, saved_nodes, results;
  for (const FilterNodePtr& node : nodes)
    for (const ImageNodePtr& source : node->sources())
      if (!source->producer() && image_numbers.try_emplace(source.get(), static_cast<int>(inputs.size())).second) inputs.push_back(image_json(*source));
  std::map<const NNFilterNode*, int> node_numbers;
  for (const FilterNodePtr& node : nodes) {
    Json::Array sources, states, result_states;
    for (const ImageNodePtr& source : node->sources()) sources.push_back(image_numbers.at(source.get()));
    for (const StateNodePtr& state : node->source_states())
      states.push_back(Json::Array{node_numbers.at(state->producer()), static_cast<int>(state->producer()->result_state_index(*state))});
    for (const StateNodePtr& state : node->result_states()) result_states.push_back(state_json(*state));
    Json::Object object{{"class", node->class_name()},          {"label", node->label},           {"parameters", node->parameters()},
                        {"padding", padding_json(*node)},       {"sources", std::move(sources)},  {"states", std::move(states)},
                        {"result", image_json(*node->result_image())}, {"result_states", std::move(result_states)}};
    if (const NNLabelsNode* labels = node->labels_placeholder()) object.emplace("labels", state_json(*labels));
    write_data_source(object, *node);
    node_numbers[node.get()] = static_cast<int>(saved_nodes.size());
    image_numbers[node->result_image().get()] = static_cast<int>(inputs.size() + saved_nodes.size());
    saved_nodes.push_back(std::move(object));
  }
  for (const ImageNodePtr& result : result_images) results.push_back(image_numbers.at(result.get()));
  return Json{{"format", "mpsnn graph"}, {"version", kFormatVersion},   {"numerics", numerics_contract()},
              {"inputs", std::move(inputs)}, {"nodes", std::move(saved_nodes)}, {"results", std::move(results)}}
             .text() + "\n";
}

std::vector<ImageNodePtr> load_structure(const std::string& text, const DataSources& data_sources) {
  const Json file = Json::parse(text);
  try {
    return Loader(data_sources).load(file);
  } catch (const WeightError&) {
    throw;
  } catch (const FileError&) {
    throw;
  } catch (const Error& error) {  // a constructor refused what the file says
    throw FileError(std::string("saved graph: ") + error.what(), {error.node(), error.label(), error.expected(), error.actual(), "save the graph again"});
  }
}

}  // namespace mpsnn
