// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "mpsnn/nodes/node.hpp"

namespace mpsnn {

/// MPSCNNSoftMaxNode: e^x / sum of e^x over the feature channels of each pixel (MPS_SEMANTICS 10).
class MPSNN_API CNNSoftMaxNode final : public NNFilterNode {
 public:
  explicit CNNSoftMaxNode(ImageNodePtr source);
  const char* class_name() const override { return "MPSCNNSoftMaxNode"; }
  void lower(PlanBuilder& plan) const override;

 protected:
  std::vector<GradientFilterNodePtr> make_gradient_filters(const ImageNodePtr& source_gradient) override;
};
/// MPSCNNSoftMaxGradientNode: y * (E - sum of E * y). Its source image is the forward result (5.4).
class MPSNN_API CNNSoftMaxGradientNode final : public NNGradientFilterNode {
 public:
  CNNSoftMaxGradientNode(ImageNodePtr source_gradient, ImageNodePtr source_image, std::shared_ptr<NNGradientStateNode> gradient_state);
  const char* class_name() const override { return "MPSCNNSoftMaxGradientNode"; }
  void lower(PlanBuilder& plan) const override;
};

/// MPSCNNLogSoftMaxNode: the logarithm of soft-max.
class MPSNN_API CNNLogSoftMaxNode final : public NNFilterNode {
 public:
  explicit CNNLogSoftMaxNode(ImageNodePtr source);
  const char* class_name() const override { return "MPSCNNLogSoftMaxNode"; }
  void lower(PlanBuilder& plan) const override;

 protected:
  std::vector<GradientFilterNodePtr> make_gradient_filters(const ImageNodePtr& source_gradient) override;
};
/// MPSCNNLogSoftMaxGradientNode: E - e^y * sum of E. Its source image is the forward result (5.4).
class MPSNN_API CNNLogSoftMaxGradientNode final : public NNGradientFilterNode {
 public:
  CNNLogSoftMaxGradientNode(ImageNodePtr source_gradient, ImageNodePtr source_image, std::shared_ptr<NNGradientStateNode> gradient_state);
  const char* class_name() const override { return "MPSCNNLogSoftMaxGradientNode"; }
  void lower(PlanBuilder& plan) const override;
};

}  // namespace mpsnn
