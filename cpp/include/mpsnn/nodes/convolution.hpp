// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "mpsnn/nodes/node.hpp"

namespace mpsnn {

class CNNConvolutionGradientNode;

/// MPSCNNConvolutionNode: correlation with the weights of a data source (MPS_SEMANTICS 7.3).
///
/// Result: size by the padding policy, the descriptor's output channels (divided by r * r for sub-pixel scale r).
class MPSNN_API CNNConvolutionNode : public NNFilterNode, public NNTrainableNode {
 public:
  CNNConvolutionNode(ImageNodePtr source, ConvolutionDataSourcePtr weights);
  const char* class_name() const override { return "MPSCNNConvolutionNode"; }
  const ConvolutionDataSourcePtr& weights() const { return weights_; }
  std::shared_ptr<CNNConvolutionGradientStateNode> convolution_gradient_state();
  NNConvolutionAccumulatorPrecisionOption accumulator_precision = NNConvolutionAccumulatorPrecisionOption::Float;

  void declare(ParameterStore& parameters) const override;
  void lower(PlanBuilder& plan) const override;
  Json parameters() const override;
  std::string data_source_label() const override { return weights_->label(); }
  /// Throws unless a gradient is defined for `descriptor` (7.3: no sub-pixel, no multiplier, nothing fused).
  void require_trainable(const CNNConvolutionDescriptor& descriptor) const;

 protected:
  /// For transposed convolutions: makes the state that they publish.
  CNNConvolutionNode(ImageNodePtr source, std::vector<StateNodePtr> states, ConvolutionDataSourcePtr weights, bool is_transposed);
  std::vector<GradientFilterNodePtr> make_gradient_filters(const ImageNodePtr& source_gradient) override;

 private:
  ConvolutionDataSourcePtr weights_;
};

/// MPSCNNConvolutionGradientNode: the data gradient as result image; weight and bias gradients, summed over the batch, in
/// the gradient state (MPS_SEMANTICS 7.4). `weights` null takes the forward node's data source.
///
/// Result: the forward source's size and channels.
class MPSNN_API CNNConvolutionGradientNode : public NNGradientFilterNode, public NNTrainableNode {
 public:
  CNNConvolutionGradientNode(ImageNodePtr source_gradient, ImageNodePtr source_image,
                             std::shared_ptr<CNNConvolutionGradientStateNode> convolution_gradient_state, ConvolutionDataSourcePtr weights = nullptr);
  const char* class_name() const override { return "MPSCNNConvolutionGradientNode"; }
  const ConvolutionDataSourcePtr& weights() const { return weights_; }
  void declare(ParameterStore& parameters) const override;
  void lower(PlanBuilder& plan) const override;
  Json parameters() const override;
  std::string data_source_label() const override { return weights_->label(); }

 private:
  ConvolutionDataSourcePtr weights_;
};

/// MPSCNNFullyConnectedNode: a convolution whose kernel is the whole image (MPS_SEMANTICS 7.7). Result 1 x 1 x O.
class MPSNN_API CNNFullyConnectedNode final : public CNNConvolutionNode {
 public:
  CNNFullyConnectedNode(ImageNodePtr source, ConvolutionDataSourcePtr weights);
  const char* class_name() const override { return "MPSCNNFullyConnectedNode"; }
  void lower(PlanBuilder& plan) const override;

 protected:
  std::vector<GradientFilterNodePtr> make_gradient_filters(const ImageNodePtr& source_gradient) override;
};

/// MPSCNNFullyConnectedGradientNode.
class MPSNN_API CNNFullyConnectedGradientNode final : public CNNConvolutionGradientNode {
 public:
  using CNNConvolutionGradientNode::CNNConvolutionGradientNode;
  const char* class_name() const override { return "MPSCNNFullyConnectedGradientNode"; }
};

/// MPSCNNConvolutionTransposeNode: enlarges by the stride (MPS_SEMANTICS 7.6). With the gradient state of a convolution it
/// undoes that one: result of that convolution's source size. Without, the padding policy sizes the result in reverse.
class MPSNN_API CNNConvolutionTransposeNode final : public CNNConvolutionNode {
 public:
  CNNConvolutionTransposeNode(ImageNodePtr source, std::shared_ptr<CNNConvolutionGradientStateNode> convolution_gradient_state,
                              ConvolutionDataSourcePtr weights);
  const char* class_name() const override { return "MPSCNNConvolutionTransposeNode"; }
  void lower(PlanBuilder& plan) const override;

 protected:
  std::vector<GradientFilterNodePtr> make_gradient_filters(const ImageNodePtr& source_gradient) override;
};

/// MPSCNNConvolutionTransposeGradientNode.
class MPSNN_API CNNConvolutionTransposeGradientNode final : public CNNConvolutionGradientNode {
 public:
  CNNConvolutionTransposeGradientNode(ImageNodePtr source_gradient, ImageNodePtr source_image,
                                      std::shared_ptr<CNNConvolutionTransposeGradientStateNode> convolution_transpose_gradient_state,
                                      ConvolutionDataSourcePtr weights = nullptr);
  const char* class_name() const override { return "MPSCNNConvolutionTransposeGradientNode"; }
  void lower(PlanBuilder& plan) const override;
};

}  // namespace mpsnn
