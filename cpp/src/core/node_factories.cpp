// SPDX-License-Identifier: Apache-2.0
#include "core/node_factories.hpp"

#include <limits>

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

namespace mpsnn {

void bad_file(const std::string& sentence, std::string expected, std::string actual) {
  throw FileError(sentence, {.expected = std::move(expected), .actual = std::move(actual), .hint = "save the graph again with this version"});
}

namespace {

template <class Node>
FilterNodePtr make_window_normalization(const SavedNode& s) {
  auto node = std::make_shared<Node>(s.source(0), s.fields.integer("kernel_width", 1));
  node->kernel_height = s.fields.integer("kernel_height", 1);
  node->alpha = s.fields.real("alpha");
  node->beta = s.fields.real("beta");
  node->delta = s.fields.real("delta");
  return node;
}


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

}  // namespace

const std::map<std::string, NodeFactory>& node_factories() {
  static const std::map<std::string, NodeFactory> table{
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

}  // namespace mpsnn
