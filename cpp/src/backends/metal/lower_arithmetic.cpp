// SPDX-License-Identifier: Apache-2.0
#include "backends/metal/lowering.hpp"
#include "mpsnn/nodes/arithmetic.hpp"
#include "mpsnn/nodes/reduction.hpp"

/// Arithmetic on two images, and reductions.
namespace mpsnn::metal {
namespace {

template <class Apple>
Apple* make_arithmetic(Lowering& l, const NNBinaryArithmeticNode& node) {
  auto* lowered = Apple::alloc()->init(l.source(node, 0), l.source(node, 1));
  lowered->setPrimaryScale(node.primary_scale);
  lowered->setSecondaryScale(node.secondary_scale);
  lowered->setBias(node.bias);
  lowered->setPrimaryStrideInPixelsX(node.primary_stride_in_pixels_x);
  lowered->setPrimaryStrideInPixelsY(node.primary_stride_in_pixels_y);
  lowered->setPrimaryStrideInFeatureChannels(node.primary_stride_in_feature_channels);
  lowered->setSecondaryStrideInPixelsX(node.secondary_stride_in_pixels_x);
  lowered->setSecondaryStrideInPixelsY(node.secondary_stride_in_pixels_y);
  lowered->setSecondaryStrideInFeatureChannels(node.secondary_stride_in_feature_channels);
  lowered->setMinimumValue(node.minimum_value);
  lowered->setMaximumValue(node.maximum_value);
  return lowered;
}
template <class Apple>
Owned<MPS::NNFilterNode> arithmetic(Lowering& l, const NNFilterNode& n) {
  return filter(make_arithmetic<Apple>(l, as<NNBinaryArithmeticNode>(n)));
}
Owned<MPS::NNFilterNode> comparison(Lowering& l, const NNFilterNode& n) {
  auto* lowered = make_arithmetic<MPS::NNComparisonNode>(l, as<NNBinaryArithmeticNode>(n));
  lowered->setComparisonType(apple<MPS::NNComparisonType>(as<NNComparisonNode>(n).comparison_type));
  return filter(lowered);
}

template <class Apple>
Owned<MPS::NNFilterNode> arithmetic_gradient(Lowering& l, const NNFilterNode& n) {
  const auto& node = as<NNArithmeticGradientNode>(n);
  auto* lowered = Apple::alloc()->init(l.source(node, 0), l.source(node, 1), l.state<MPS::NNBinaryGradientStateNode>(node), node.is_secondary_source_filter());
  lowered->setPrimaryScale(node.primary_scale);
  lowered->setSecondaryScale(node.secondary_scale);
  lowered->setBias(node.bias);
  lowered->setSecondaryStrideInPixelsX(node.secondary_stride_in_pixels_x);
  lowered->setSecondaryStrideInPixelsY(node.secondary_stride_in_pixels_y);
  lowered->setSecondaryStrideInFeatureChannels(node.secondary_stride_in_feature_channels);
  lowered->setMinimumValue(node.minimum_value);
  lowered->setMaximumValue(node.maximum_value);
  return filter(lowered);
}

template <class Apple>
Apple* make_reduction(Lowering& l, const NNUnaryReductionNode& node) {
  auto* lowered = Apple::alloc()->init(l.source(node));
  const ClipRectangle& clip = node.clip_rect_source;
  // The default stays Apple's own MPSRectNoClip.
  if (clip != ClipRectangle{}) lowered->setClipRectSource(MTL::Region(clip.x, clip.y, 0, clip.width, clip.height, 1));
  return lowered;
}
template <class Apple>
Owned<MPS::NNFilterNode> reduction(Lowering& l, const NNFilterNode& n) {
  return filter(make_reduction<Apple>(l, as<NNUnaryReductionNode>(n)));
}
Owned<MPS::NNFilterNode> channel_sum(Lowering& l, const NNFilterNode& n) {
  auto* lowered = make_reduction<MPS::NNReductionFeatureChannelsSumNode>(l, as<NNUnaryReductionNode>(n));
  lowered->setWeight(as<NNReductionFeatureChannelsSumNode>(n).weight);
  return filter(lowered);
}
Owned<MPS::NNFilterNode> spatial_mean_gradient(Lowering& l, const NNFilterNode& n) {
  return filter(MPS::NNReductionSpatialMeanGradientNode::alloc()->init(l.source(n, 0), l.source(n, 1), l.state(n)));
}

}  // namespace

LoweredClasses arithmetic_classes() {
  return {
      {"MPSNNAdditionNode", arithmetic<MPS::NNAdditionNode>},
      {"MPSNNSubtractionNode", arithmetic<MPS::NNSubtractionNode>},
      {"MPSNNMultiplicationNode", arithmetic<MPS::NNMultiplicationNode>},
      {"MPSNNDivisionNode", arithmetic<MPS::NNDivisionNode>},
      {"MPSNNComparisonNode", comparison},
      {"MPSNNAdditionGradientNode", arithmetic_gradient<MPS::NNAdditionGradientNode>},
      {"MPSNNSubtractionGradientNode", arithmetic_gradient<MPS::NNSubtractionGradientNode>},
      {"MPSNNMultiplicationGradientNode", arithmetic_gradient<MPS::NNMultiplicationGradientNode>},
      {"MPSNNReductionRowMinNode", reduction<MPS::NNReductionRowMinNode>},
      {"MPSNNReductionRowMaxNode", reduction<MPS::NNReductionRowMaxNode>},
      {"MPSNNReductionRowMeanNode", reduction<MPS::NNReductionRowMeanNode>},
      {"MPSNNReductionRowSumNode", reduction<MPS::NNReductionRowSumNode>},
      {"MPSNNReductionColumnMinNode", reduction<MPS::NNReductionColumnMinNode>},
      {"MPSNNReductionColumnMaxNode", reduction<MPS::NNReductionColumnMaxNode>},
      {"MPSNNReductionColumnMeanNode", reduction<MPS::NNReductionColumnMeanNode>},
      {"MPSNNReductionColumnSumNode", reduction<MPS::NNReductionColumnSumNode>},
      {"MPSNNReductionFeatureChannelsMinNode", reduction<MPS::NNReductionFeatureChannelsMinNode>},
      {"MPSNNReductionFeatureChannelsMaxNode", reduction<MPS::NNReductionFeatureChannelsMaxNode>},
      {"MPSNNReductionFeatureChannelsMeanNode", reduction<MPS::NNReductionFeatureChannelsMeanNode>},
      {"MPSNNReductionFeatureChannelsSumNode", channel_sum},
      {"MPSNNReductionFeatureChannelsArgumentMinNode", reduction<MPS::NNReductionFeatureChannelsArgumentMinNode>},
      {"MPSNNReductionFeatureChannelsArgumentMaxNode", reduction<MPS::NNReductionFeatureChannelsArgumentMaxNode>},
      {"MPSNNReductionSpatialMeanNode", reduction<MPS::NNReductionSpatialMeanNode>},
      {"MPSNNReductionSpatialMeanGradientNode", spatial_mean_gradient},
  };
}

}  // namespace mpsnn::metal
