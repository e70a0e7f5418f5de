// SPDX-License-Identifier: Apache-2.0
#include "backends/metal/lowering.hpp"
#include "mpsnn/nodes/binary_convolution.hpp"
#include "mpsnn/nodes/group_normalization.hpp"
#include "mpsnn/nodes/normalization.hpp"

/// Nodes with data sources: convolutions and the normalizations that train.
namespace mpsnn::metal {
namespace {

template <class Apple>
Owned<MPS::NNFilterNode> finish_convolution(Lowering& l, const CNNConvolutionNode& node, Apple* lowered) {
  auto owned = filter(lowered);
  if (!lowered) return owned;
  lowered->setPaddingPolicy(l.padding(node).get());
  lowered->setTrainingStyle(l.training_style(node, node.training_style));
  lowered->setAccumulatorPrecision(apple<MPS::NNConvolutionAccumulatorPrecisionOption>(node.accumulator_precision));
  return owned;
}

template <class Apple>
Owned<MPS::NNFilterNode> convolution(Lowering& l, const NNFilterNode& n) {
  const auto& node = as<CNNConvolutionNode>(n);
  return finish_convolution(l, node, Apple::alloc()->init(l.source(node), l.convolution_source(node.weights(), node)));
}

Owned<MPS::NNFilterNode> transpose(Lowering& l, const NNFilterNode& n) {
  const auto& node = as<CNNConvolutionTransposeNode>(n);
  auto* undone = node.source_states().empty() ? nullptr : l.state<MPS::CNNConvolutionGradientStateNode>(node);
  return finish_convolution(l, node, MPS::CNNConvolutionTransposeNode::alloc()->init(l.source(node), undone, l.convolution_source(node.weights(), node)));
}

template <class Apple>
Owned<MPS::NNFilterNode> binary(Lowering& l, const NNFilterNode& n) {
  const auto& node = as<CNNBinaryConvolutionNode>(n);
  auto* weights = l.convolution_source(node.weights(), node);
  const auto type = apple<MPS::CNNBinaryConvolutionType>(node.type());
  const auto flags = apple<MPS::CNNBinaryConvolutionFlags>(node.flags());
  if (node.scale_value()) return finish_convolution(l, node, Apple::alloc()->init(l.source(node), weights, *node.scale_value(), type, flags));
  // MAC-UNVERIFIED: binary-terms: the arrays are copied when the node is made; ours live as long as the graph's nodes anyway.
  const BinaryConvolutionTerms& terms = node.terms();
  auto floats = [](const std::vector<float>& values) { return values.empty() ? nullptr : values.data(); };
  return finish_convolution(l, node, Apple::alloc()->init(l.source(node), weights, floats(terms.output_bias_terms), floats(terms.output_scale_terms),
                                                          floats(terms.input_bias_terms), floats(terms.input_scale_terms), type, flags));
}

template <class Apple, class State>
Owned<MPS::NNFilterNode> gradient(Lowering& l, const NNFilterNode& n) {
  const auto& node = as<CNNConvolutionGradientNode>(n);
  auto* lowered = Apple::alloc()->init(l.source(node, 0), l.source(node, 1), l.state<State>(node), l.convolution_source(node.weights(), node));
  auto owned = filter(lowered);
  if (lowered) lowered->setTrainingStyle(l.training_style(node, node.training_style));
  return owned;
}

Owned<MPS::NNFilterNode> batch_normalization(Lowering& l, const NNFilterNode& n) {
  const auto& node = as<CNNBatchNormalizationNode>(n);
  auto* lowered = MPS::CNNBatchNormalizationNode::alloc()->init(l.source(node), l.batch_normalization_source(node.data_source()));
  lowered->setFlags(apple<MPS::CNNBatchNormalizationFlags>(node.flags));
  lowered->setTrainingStyle(l.training_style(node, node.training_style));
  return filter(lowered);
}

Owned<MPS::NNFilterNode> instance_normalization(Lowering& l, const NNFilterNode& n) {
  const auto& node = as<CNNInstanceNormalizationNode>(n);
  auto* lowered = MPS::CNNInstanceNormalizationNode::alloc()->init(l.source(node), l.instance_normalization_source(node.data_source()));
  lowered->setTrainingStyle(l.training_style(node, node.training_style));
  return filter(lowered);
}

Owned<MPS::NNFilterNode> group_normalization(Lowering& l, const NNFilterNode& n) {
  const auto& node = as<CNNGroupNormalizationNode>(n);
  auto* lowered = MPS::CNNGroupNormalizationNode::alloc()->init(l.source(node), l.group_normalization_source(node.data_source()));
  lowered->setTrainingStyle(l.training_style(node, node.training_style));
  return filter(lowered);
}

template <class Ours, class Apple>
Owned<MPS::NNFilterNode> normalization_gradient(Lowering& l, const NNFilterNode& n) {
  const auto& node = as<Ours>(n);
  auto* lowered = Apple::alloc()->init(l.source(node, 0), l.source(node, 1), l.state(node));
  lowered->setTrainingStyle(l.training_style(node, node.training_style));
  return filter(lowered);
}

}  // namespace

LoweredClasses convolution_classes() {
  using MPS::CNNConvolutionGradientStateNode, MPS::CNNConvolutionTransposeGradientStateNode;
  return {
      {"MPSCNNConvolutionNode", convolution<MPS::CNNConvolutionNode>},
      {"MPSCNNFullyConnectedNode", convolution<MPS::CNNFullyConnectedNode>},
      {"MPSCNNConvolutionTransposeNode", transpose},
      {"MPSCNNBinaryConvolutionNode", binary<MPS::CNNBinaryConvolutionNode>},
      {"MPSCNNBinaryFullyConnectedNode", binary<MPS::CNNBinaryFullyConnectedNode>},
      {"MPSCNNConvolutionGradientNode", gradient<MPS::CNNConvolutionGradientNode, CNNConvolutionGradientStateNode>},
      {"MPSCNNFullyConnectedGradientNode", gradient<MPS::CNNFullyConnectedGradientNode, CNNConvolutionGradientStateNode>},
      {"MPSCNNConvolutionTransposeGradientNode", gradient<MPS::CNNConvolutionTransposeGradientNode, CNNConvolutionTransposeGradientStateNode>},
      {"MPSCNNBatchNormalizationNode", batch_normalization},
      {"MPSCNNInstanceNormalizationNode", instance_normalization},
      {"MPSCNNGroupNormalizationNode", group_normalization},
      {"MPSCNNBatchNormalizationGradientNode", normalization_gradient<CNNBatchNormalizationGradientNode, MPS::CNNBatchNormalizationGradientNode>},
      {"MPSCNNInstanceNormalizationGradientNode", normalization_gradient<CNNInstanceNormalizationGradientNode, MPS::CNNInstanceNormalizationGradientNode>},
      {"MPSCNNGroupNormalizationGradientNode", normalization_gradient<CNNGroupNormalizationGradientNode, MPS::CNNGroupNormalizationGradientNode>},
  };
}

}  // namespace mpsnn::metal
