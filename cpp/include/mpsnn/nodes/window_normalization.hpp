// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "mpsnn/nodes/node.hpp"

/// Normalizations over windows of pixels or of feature channels (MPS_SEMANTICS 11). Gradients are the exact derivatives (OQ-26).
namespace mpsnn {

/// MPSCNNNormalizationNode: base of the three.
class MPSNN_API CNNNormalizationNode : public NNFilterNode {
 public:
  float alpha = 1, beta = 5, delta = 1;

 protected:
  explicit CNNNormalizationNode(ImageNodePtr source);
};

/// MPSCNNSpatialNormalizationNode: x * (delta + alpha / n * sum of x^2)^-beta over kernel_width x kernel_height pixels (11.1).
class MPSNN_API CNNSpatialNormalizationNode final : public CNNNormalizationNode {
 public:
  explicit CNNSpatialNormalizationNode(ImageNodePtr source, int kernel_size = 5);
  const char* class_name() const override { return "MPSCNNSpatialNormalizationNode"; }
  int kernel_width, kernel_height;
  void lower(PlanBuilder& plan) const override;
  Json parameters() const override;

 protected:
  std::vector<GradientFilterNodePtr> make_gradient_filters(const ImageNodePtr& source_gradient) override;
};
/// MPSCNNSpatialNormalizationGradientNode. Its numbers must be the forward node's.
class MPSNN_API CNNSpatialNormalizationGradientNode final : public NNGradientFilterNode {
 public:
  CNNSpatialNormalizationGradientNode(ImageNodePtr source_gradient, ImageNodePtr source_image, std::shared_ptr<NNGradientStateNode> gradient_state,
                                      int kernel_size);
  const char* class_name() const override { return "MPSCNNSpatialNormalizationGradientNode"; }
  int kernel_width, kernel_height;
  float alpha = 1, beta = 5, delta = 1;
  void lower(PlanBuilder& plan) const override;
  Json parameters() const override;
};

/// MPSCNNLocalContrastNormalizationNode: pm + ps * (x - p0 * mean) * (delta + alpha * variance)^-beta (11.2).
class MPSNN_API CNNLocalContrastNormalizationNode final : public CNNNormalizationNode {
 public:
  explicit CNNLocalContrastNormalizationNode(ImageNodePtr source, int kernel_size = 5);
  const char* class_name() const override { return "MPSCNNLocalContrastNormalizationNode"; }
  int kernel_width, kernel_height;
  float pm = 0, ps = 1, p0 = 1;
  void lower(PlanBuilder& plan) const override;
  Json parameters() const override;

 protected:
  std::vector<GradientFilterNodePtr> make_gradient_filters(const ImageNodePtr& source_gradient) override;
};
/// MPSCNNLocalContrastNormalizationGradientNode. Made by hand, alpha starts at 0, as Apple's does; gradient_filter() copies the
/// forward node's.
class MPSNN_API CNNLocalContrastNormalizationGradientNode final : public NNGradientFilterNode {
 public:
  CNNLocalContrastNormalizationGradientNode(ImageNodePtr source_gradient, ImageNodePtr source_image, std::shared_ptr<NNGradientStateNode> gradient_state,
                                            int kernel_width, int kernel_height);
  const char* class_name() const override { return "MPSCNNLocalContrastNormalizationGradientNode"; }
  int kernel_width() const { return kernel_width_; }
  int kernel_height() const { return kernel_height_; }
  float alpha = 0, beta = 0.5f, delta = 1.0f / 1024, pm = 0, ps = 1, p0 = 1;
  void lower(PlanBuilder& plan) const override;
  Json parameters() const override;

 private:
  int kernel_width_, kernel_height_;
};

/// MPSCNNCrossChannelNormalizationNode: x * (delta + alpha / N * sum of x^2)^-beta over N neighbouring feature channels (11.3).
class MPSNN_API CNNCrossChannelNormalizationNode final : public CNNNormalizationNode {
 public:
  explicit CNNCrossChannelNormalizationNode(ImageNodePtr source, int kernel_size = 5);
  const char* class_name() const override { return "MPSCNNCrossChannelNormalizationNode"; }
  int kernel_size_in_feature_channels;
  void lower(PlanBuilder& plan) const override;
  Json parameters() const override;

 protected:
  std::vector<GradientFilterNodePtr> make_gradient_filters(const ImageNodePtr& source_gradient) override;
};
/// MPSCNNCrossChannelNormalizationGradientNode: alpha, beta and delta are the forward node's.
class MPSNN_API CNNCrossChannelNormalizationGradientNode final : public NNGradientFilterNode {
 public:
  CNNCrossChannelNormalizationGradientNode(ImageNodePtr source_gradient, ImageNodePtr source_image, std::shared_ptr<NNGradientStateNode> gradient_state,
                                           int kernel_size);
  const char* class_name() const override { return "MPSCNNCrossChannelNormalizationGradientNode"; }
  int kernel_size() const { return kernel_size_; }
  void lower(PlanBuilder& plan) const override;
  Json parameters() const override;

 private:
  int kernel_size_;
};

}  // namespace mpsnn
