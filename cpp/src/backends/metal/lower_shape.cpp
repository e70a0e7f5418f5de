// SPDX-License-Identifier: Apache-2.0
#include "backends/metal/lowering.hpp"
#include "mpsnn/nodes/concatenation.hpp"
#include "mpsnn/nodes/resampling.hpp"
#include "mpsnn/nodes/shape.hpp"

/// Nodes that change sizes: concatenation, reshape, pad, gram matrix, upsampling and scaling.
namespace mpsnn::metal {
namespace {

Owned<MPS::NNFilterNode> concatenation(Lowering& l, const NNFilterNode& n) { return filter(MPS::NNConcatenationNode::alloc()->init(l.sources(n))); }

Owned<MPS::NNFilterNode> reshape(Lowering& l, const NNFilterNode& n) {
  const auto& node = as<NNReshapeNode>(n);
  return filter(MPS::NNReshapeNode::alloc()->init(l.source(node), node.result_width(), node.result_height(), node.result_feature_channels()));
}

MPS::ImageCoordinate coordinate(const ImageCoordinate& c) { return {NS::UInteger(c.x), NS::UInteger(c.y), NS::UInteger(c.channel)}; }
Owned<MPS::NNFilterNode> pad(Lowering& l, const NNFilterNode& n) {
  const auto& node = as<NNPadNode>(n);
  auto* lowered = MPS::NNPadNode::alloc()->init(l.source(node), coordinate(node.padding_size_before()), coordinate(node.padding_size_after()),
                                                apple<MPS::ImageEdgeMode>(node.edge_mode()));
  lowered->setFillValue(node.fill_value);
  return filter(lowered);
}

Owned<MPS::NNFilterNode> gram_matrix(Lowering& l, const NNFilterNode& n) {
  const auto& node = as<NNGramMatrixCalculationNode>(n);
  auto* lowered = MPS::NNGramMatrixCalculationNode::alloc()->init(l.source(node), node.alpha());
  if (node.property_callback) lowered->setPropertyCallBack(make_callback_object(node.property_callback, l.errors()).get());
  return filter(lowered);
}
Owned<MPS::NNFilterNode> gram_matrix_gradient(Lowering& l, const NNFilterNode& n) {
  return filter(MPS::NNGramMatrixCalculationGradientNode::alloc()->init(l.source(n, 0), l.source(n, 1), l.state(n), as<NNGramMatrixCalculationGradientNode>(n).alpha()));
}

Owned<MPS::NNFilterNode> nearest(Lowering& l, const NNFilterNode& n) {
  const auto& node = as<CNNUpsamplingNearestNode>(n);
  return filter(MPS::CNNUpsamplingNearestNode::alloc()->init(l.source(node), NS::UInteger(node.scale_factor_x()), NS::UInteger(node.scale_factor_y())));
}
Owned<MPS::NNFilterNode> bilinear(Lowering& l, const NNFilterNode& n) {
  const auto& node = as<CNNUpsamplingBilinearNode>(n);
  return filter(MPS::CNNUpsamplingBilinearNode::alloc()->init(l.source(node), NS::UInteger(node.scale_factor_x()), NS::UInteger(node.scale_factor_y()), node.align_corners()));
}
template <class Apple, class Ours>
Owned<MPS::NNFilterNode> upsampling_gradient(Lowering& l, const NNFilterNode& n) {
  const auto& node = as<Ours>(n);
  return filter(Apple::alloc()->init(l.source(node, 0), l.source(node, 1), l.state(node), node.scale_factor_x(), node.scale_factor_y()));
}

template <class Apple>
Owned<MPS::NNFilterNode> scale(Lowering& l, const NNFilterNode& n) {
  const auto& node = as<NNScaleNode>(n);
  Owned<MPS::ImageTransformProvider> provider;
  if (node.transform_provider()) provider = make_transform_object(node.transform_provider(), node.sources()[0]->handle, l.errors());
  return filter(Apple::alloc()->init(l.source(node), provider.get(), MTL::Size(node.output_width(), node.output_height(), 1)));
}

}  // namespace

LoweredClasses shape_classes() {
  return {
      {"MPSNNConcatenationNode", concatenation},
      {"MPSNNConcatenationGradientNode", plain_gradient<MPS::NNConcatenationGradientNode>},
      {"MPSNNReshapeNode", reshape},
      {"MPSNNReshapeGradientNode", plain_gradient<MPS::NNReshapeGradientNode>},
      {"MPSNNPadNode", pad},
      {"MPSNNPadGradientNode", plain_gradient<MPS::NNPadGradientNode>},
      {"MPSNNGramMatrixCalculationNode", gram_matrix},
      {"MPSNNGramMatrixCalculationGradientNode", gram_matrix_gradient},
      {"MPSCNNUpsamplingNearestNode", nearest},
      {"MPSCNNUpsamplingNearestGradientNode", upsampling_gradient<MPS::CNNUpsamplingNearestGradientNode, CNNUpsamplingNearestGradientNode>},
      {"MPSCNNUpsamplingBilinearNode", bilinear},
      {"MPSCNNUpsamplingBilinearGradientNode", upsampling_gradient<MPS::CNNUpsamplingBilinearGradientNode, CNNUpsamplingBilinearGradientNode>},
      {"MPSNNBilinearScaleNode", scale<MPS::NNBilinearScaleNode>},
      {"MPSNNLanczosScaleNode", scale<MPS::NNLanczosScaleNode>},
  };
}

}  // namespace mpsnn::metal
