// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "mpsnn/nodes/node.hpp"

namespace mpsnn {

/// MPSNNConcatenationNode: appends the feature channels of its sources, densely (MPS_SEMANTICS 18.1; MPS itself starts each
/// source at a multiple of four channels).
class MPSNN_API NNConcatenationNode final : public NNFilterNode {
 public:
  explicit NNConcatenationNode(std::vector<ImageNodePtr> sources);
  const char* class_name() const override { return "MPSNNConcatenationNode"; }
  void lower(PlanBuilder& plan) const override;

 protected:
  /// One per source, in order.
  std::vector<GradientFilterNodePtr> make_gradient_filters(const ImageNodePtr& source_gradient) override;
};

/// MPSNNConcatenationGradientNode: the channels of the incoming gradient that belong to one source; which one is told by
/// the gradient state.
class MPSNN_API NNConcatenationGradientNode final : public NNGradientFilterNode {
 public:
  NNConcatenationGradientNode(ImageNodePtr source_gradient, ImageNodePtr source_image, std::shared_ptr<NNGradientStateNode> gradient_state);
  const char* class_name() const override { return "MPSNNConcatenationGradientNode"; }
  void lower(PlanBuilder& plan) const override;
};

}  // namespace mpsnn
