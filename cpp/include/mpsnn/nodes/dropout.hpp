// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "mpsnn/nodes/node.hpp"

namespace mpsnn {

/// Parameters of dropout. A mask stride of 0 repeats one mask value along x, y or the feature channels.
struct DropoutParameters {
  float keep_probability = 0.5f;
  std::uint64_t seed = 0;
  int mask_stride_x = 1, mask_stride_y = 1, mask_stride_channels = 1;
  bool operator==(const DropoutParameters&) const = default;
};

/// MPSCNNDropoutNode: keeps an element with the given probability and divides it by that, else 0 (MPS_SEMANTICS 13).
/// Masks differ per encode and per image; a new graph with the same seed repeats them. Never off: leave it out of
/// inference graphs.
class MPSNN_API CNNDropoutNode final : public NNFilterNode {
 public:
  explicit CNNDropoutNode(ImageNodePtr source, DropoutParameters parameters = {});
  const char* class_name() const override { return "MPSCNNDropoutNode"; }
  const DropoutParameters& dropout() const { return dropout_; }
  void lower(PlanBuilder& plan) const override;
  Json parameters() const override;

 protected:
  std::vector<GradientFilterNodePtr> make_gradient_filters(const ImageNodePtr& source_gradient) override;

 private:
  DropoutParameters dropout_;
};

/// MPSCNNDropoutGradientNode: E * mask / keep_probability with the forward mask.
class MPSNN_API CNNDropoutGradientNode final : public NNGradientFilterNode {
 public:
  CNNDropoutGradientNode(ImageNodePtr source_gradient, ImageNodePtr source_image, std::shared_ptr<NNGradientStateNode> gradient_state,
                         DropoutParameters parameters);
  const char* class_name() const override { return "MPSCNNDropoutGradientNode"; }
  const DropoutParameters& dropout() const { return dropout_; }
  void lower(PlanBuilder& plan) const override;
  Json parameters() const override;

 private:
  DropoutParameters dropout_;
};

}  // namespace mpsnn
