// SPDX-License-Identifier: Apache-2.0
#include "backends/metal/lowering.hpp"
#include "mpsnn/nodes/pooling.hpp"
#include "mpsnn/nodes/window_normalization.hpp"

/// Nodes that slide a window over pixels or channels: pooling and the normalizations without parameters.
namespace mpsnn::metal {
namespace {

template <class Apple>
Owned<MPS::NNFilterNode> pooling(Lowering& l, const NNFilterNode& n) {
  const auto& node = as<CNNPoolingNode>(n);
  auto* lowered = Apple::alloc()->init(l.source(node), node.kernel_width(), node.kernel_height(), node.stride_in_pixels_x(), node.stride_in_pixels_y());
  lowered->setPaddingPolicy(l.padding(node).get());
  return filter(lowered);
}

Owned<MPS::NNFilterNode> dilated_pooling(Lowering& l, const NNFilterNode& n) {
  const auto& node = as<CNNDilatedPoolingMaxNode>(n);
  const WindowSize& w = node.window();
  auto* lowered = MPS::CNNDilatedPoolingMaxNode::alloc()->init(l.source(node), w.kernel_width, w.kernel_height, w.stride_in_pixels_x, w.stride_in_pixels_y,
                                                               w.dilation_rate_x, w.dilation_rate_y);
  lowered->setPaddingPolicy(l.padding(node).get());
  return filter(lowered);
}

template <class Apple>
Owned<MPS::NNFilterNode> pooling_gradient(Lowering& l, const NNFilterNode& n) {
  const auto& node = as<CNNPoolingGradientNode>(n);
  // MAC-UNVERIFIED: gradient-geometry: with a gradient state the policy is not asked: offset and edge mode come from the state (6.8).
  MPS::NNPadding* no_policy = nullptr;
  return filter(Apple::alloc()->init(l.source(node, 0), l.source(node, 1), l.state(node), node.kernel_width(), node.kernel_height(), node.stride_in_pixels_x(),
                                     node.stride_in_pixels_y(), no_policy));
}

Owned<MPS::NNFilterNode> dilated_pooling_gradient(Lowering& l, const NNFilterNode& n) {
  const WindowSize& w = as<CNNPoolingGradientNode>(n).window();
  return filter(MPS::CNNDilatedPoolingMaxGradientNode::alloc()->init(l.source(n, 0), l.source(n, 1), l.state(n), w.kernel_width, w.kernel_height,
                                                                     w.stride_in_pixels_x, w.stride_in_pixels_y, NS::UInteger(w.dilation_rate_x),
                                                                     NS::UInteger(w.dilation_rate_y)));
}

template <class Apple, class Ours>
void set_exponents(Apple* lowered, const Ours& node) {
  lowered->setAlpha(node.alpha);
  lowered->setBeta(node.beta);
  lowered->setDelta(node.delta);
}
template <class Apple, class Ours>
void set_contrast(Apple* lowered, const Ours& node) {
  lowered->setPm(node.pm);
  lowered->setPs(node.ps);
  lowered->setP0(node.p0);
}

Owned<MPS::NNFilterNode> spatial(Lowering& l, const NNFilterNode& n) {
  const auto& node = as<CNNSpatialNormalizationNode>(n);
  auto* lowered = MPS::CNNSpatialNormalizationNode::alloc()->init(l.source(node), node.kernel_width);
  lowered->setKernelWidth(node.kernel_width);
  lowered->setKernelHeight(node.kernel_height);
  set_exponents(lowered, node);
  return filter(lowered);
}
Owned<MPS::NNFilterNode> spatial_gradient(Lowering& l, const NNFilterNode& n) {
  const auto& node = as<CNNSpatialNormalizationGradientNode>(n);
  auto* lowered = MPS::CNNSpatialNormalizationGradientNode::alloc()->init(l.source(node, 0), l.source(node, 1), l.state(node), NS::UInteger(node.kernel_width));
  lowered->setKernelWidth(node.kernel_width);
  lowered->setKernelHeight(node.kernel_height);
  set_exponents(lowered, node);
  return filter(lowered);
}

Owned<MPS::NNFilterNode> contrast(Lowering& l, const NNFilterNode& n) {
  const auto& node = as<CNNLocalContrastNormalizationNode>(n);
  auto* lowered = MPS::CNNLocalContrastNormalizationNode::alloc()->init(l.source(node), node.kernel_width);
  lowered->setKernelWidth(node.kernel_width);
  lowered->setKernelHeight(node.kernel_height);
  set_exponents(lowered, node);
  set_contrast(lowered, node);
  return filter(lowered);
}
Owned<MPS::NNFilterNode> contrast_gradient(Lowering& l, const NNFilterNode& n) {
  const auto& node = as<CNNLocalContrastNormalizationGradientNode>(n);
  auto* lowered = MPS::CNNLocalContrastNormalizationGradientNode::alloc()->init(l.source(node, 0), l.source(node, 1), l.state(node),
                                                                                NS::UInteger(node.kernel_width()), NS::UInteger(node.kernel_height()));
  set_exponents(lowered, node);
  set_contrast(lowered, node);
  return filter(lowered);
}

Owned<MPS::NNFilterNode> cross_channel(Lowering& l, const NNFilterNode& n) {
  const auto& node = as<CNNCrossChannelNormalizationNode>(n);
  auto* lowered = MPS::CNNCrossChannelNormalizationNode::alloc()->init(l.source(node), node.kernel_size_in_feature_channels);
  lowered->setKernelSizeInFeatureChannels(node.kernel_size_in_feature_channels);
  set_exponents(lowered, node);
  return filter(lowered);
}
Owned<MPS::NNFilterNode> cross_channel_gradient(Lowering& l, const NNFilterNode& n) {
  const auto& node = as<CNNCrossChannelNormalizationGradientNode>(n);
  return filter(MPS::CNNCrossChannelNormalizationGradientNode::alloc()->init(l.source(node, 0), l.source(node, 1), l.state(node), NS::UInteger(node.kernel_size())));
}

}  // namespace

LoweredClasses window_classes() {
  return {
      {"MPSCNNPoolingMaxNode", pooling<MPS::CNNPoolingMaxNode>},
      {"MPSCNNPoolingAverageNode", pooling<MPS::CNNPoolingAverageNode>},
      {"MPSCNNPoolingL2NormNode", pooling<MPS::CNNPoolingL2NormNode>},
      {"MPSCNNDilatedPoolingMaxNode", dilated_pooling},
      {"MPSCNNPoolingMaxGradientNode", pooling_gradient<MPS::CNNPoolingMaxGradientNode>},
      {"MPSCNNPoolingAverageGradientNode", pooling_gradient<MPS::CNNPoolingAverageGradientNode>},
      {"MPSCNNPoolingL2NormGradientNode", pooling_gradient<MPS::CNNPoolingL2NormGradientNode>},
      {"MPSCNNDilatedPoolingMaxGradientNode", dilated_pooling_gradient},
      {"MPSCNNSpatialNormalizationNode", spatial},
      {"MPSCNNSpatialNormalizationGradientNode", spatial_gradient},
      {"MPSCNNLocalContrastNormalizationNode", contrast},
      {"MPSCNNLocalContrastNormalizationGradientNode", contrast_gradient},
      {"MPSCNNCrossChannelNormalizationNode", cross_channel},
      {"MPSCNNCrossChannelNormalizationGradientNode", cross_channel_gradient},
  };
}

}  // namespace mpsnn::metal
