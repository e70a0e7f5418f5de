// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "mpsnn/nodes/convolution.hpp"

namespace mpsnn {

struct BinaryConvolutionValues;

/// Scales and biases around a binary convolution, one value per channel; empty arrays are neutral.
struct BinaryConvolutionTerms {
  std::vector<float> output_bias_terms, output_scale_terms, input_bias_terms, input_scale_terms;
};

/// MPSCNNBinaryConvolutionNode: weights are bits, 32 channels to a UInt32 (MPS_SEMANTICS 7.9). Inference only.
class MPSNN_API CNNBinaryConvolutionNode : public CNNConvolutionNode {
 public:
  CNNBinaryConvolutionNode(ImageNodePtr source, ConvolutionDataSourcePtr weights, BinaryConvolutionTerms terms, CNNBinaryConvolutionType type,
                           CNNBinaryConvolutionFlags flags);
  /// One scale for all outputs; the bias is the data source's.
  CNNBinaryConvolutionNode(ImageNodePtr source, ConvolutionDataSourcePtr weights, float scale_value, CNNBinaryConvolutionType type,
                           CNNBinaryConvolutionFlags flags);
  const char* class_name() const override { return "MPSCNNBinaryConvolutionNode"; }
  const BinaryConvolutionTerms& terms() const { return terms_; }
  /// Set where the node was made with a scale instead of terms.
  const std::optional<float>& scale_value() const { return scale_value_; }
  CNNBinaryConvolutionType type() const { return type_; }
  CNNBinaryConvolutionFlags flags() const { return flags_; }
  void declare(ParameterStore& parameters) const override;
  void lower(PlanBuilder& plan) const override;
  Json parameters() const override;

 protected:
  std::vector<GradientFilterNodePtr> make_gradient_filters(const ImageNodePtr& source_gradient) override;
  /// The window: the padding policy's, or for the fully connected node the whole image.
  void lower_binary(PlanBuilder& plan, bool is_fully_connected) const;

 private:
  BinaryConvolutionTerms terms_;
  std::optional<float> scale_value_;
  CNNBinaryConvolutionType type_;
  CNNBinaryConvolutionFlags flags_;
};

/// MPSCNNBinaryFullyConnectedNode: the kernel is the whole image. Result 1 x 1 x O.
class MPSNN_API CNNBinaryFullyConnectedNode final : public CNNBinaryConvolutionNode {
 public:
  CNNBinaryFullyConnectedNode(ImageNodePtr source, ConvolutionDataSourcePtr weights, BinaryConvolutionTerms terms, CNNBinaryConvolutionType type,
                              CNNBinaryConvolutionFlags flags);
  CNNBinaryFullyConnectedNode(ImageNodePtr source, ConvolutionDataSourcePtr weights, float scale_value, CNNBinaryConvolutionType type,
                              CNNBinaryConvolutionFlags flags);
  const char* class_name() const override { return "MPSCNNBinaryFullyConnectedNode"; }
  void lower(PlanBuilder& plan) const override;
};

}  // namespace mpsnn
