// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <limits>

#include "mpsnn/nodes/node.hpp"

namespace mpsnn {

enum class ReductionKind;
enum class ReductionAxis;

/// A rectangle of pixels: MTLRegion without its depth. Parts outside an image are ignored; the default, MPSRectNoClip, is the
/// whole image.
struct ClipRectangle {
  int x = 0, y = 0, width = std::numeric_limits<int>::max(), height = std::numeric_limits<int>::max();
  bool operator==(const ClipRectangle&) const = default;
};

/// MPSNNUnaryReductionNode: base of the reductions (MPS_SEMANTICS 17). Result: 1 along what is reduced, else the source's size.
class MPSNN_API NNUnaryReductionNode : public NNFilterNode {
 public:
  /// Restricts the source.
  ClipRectangle clip_rect_source;
  void lower(PlanBuilder& plan) const override;
  Json parameters() const override;

 protected:
  NNUnaryReductionNode(ImageNodePtr source, ReductionAxis axis, ReductionKind kind);
  virtual float result_weight() const { return 1; }

 private:
  ReductionAxis axis_;
  ReductionKind kind_;
};

#define MPSNN_REDUCTION_NODE(Name)                                                \
  class MPSNN_API NNReduction##Name##Node final : public NNUnaryReductionNode {  \
   public:                                                                        \
    explicit NNReduction##Name##Node(ImageNodePtr source);                        \
    const char* class_name() const override { return "MPSNNReduction" #Name "Node"; } \
  };
MPSNN_REDUCTION_NODE(RowMin)
MPSNN_REDUCTION_NODE(RowMax)
MPSNN_REDUCTION_NODE(RowMean)
MPSNN_REDUCTION_NODE(RowSum)
MPSNN_REDUCTION_NODE(ColumnMin)
MPSNN_REDUCTION_NODE(ColumnMax)
MPSNN_REDUCTION_NODE(ColumnMean)
MPSNN_REDUCTION_NODE(ColumnSum)
MPSNN_REDUCTION_NODE(FeatureChannelsMin)
MPSNN_REDUCTION_NODE(FeatureChannelsMax)
MPSNN_REDUCTION_NODE(FeatureChannelsMean)
MPSNN_REDUCTION_NODE(FeatureChannelsArgumentMin)
MPSNN_REDUCTION_NODE(FeatureChannelsArgumentMax)
#undef MPSNN_REDUCTION_NODE

/// MPSNNReductionFeatureChannelsSumNode: the sum over the channels, times `weight`.
class MPSNN_API NNReductionFeatureChannelsSumNode final : public NNUnaryReductionNode {
 public:
  explicit NNReductionFeatureChannelsSumNode(ImageNodePtr source);
  const char* class_name() const override { return "MPSNNReductionFeatureChannelsSumNode"; }
  float weight = 1;
  Json parameters() const override;

 protected:
  float result_weight() const override { return weight; }
};

/// MPSNNReductionSpatialMeanNode: the mean over all pixels; the one reduction with a gradient.
class MPSNN_API NNReductionSpatialMeanNode final : public NNUnaryReductionNode {
 public:
  explicit NNReductionSpatialMeanNode(ImageNodePtr source);
  const char* class_name() const override { return "MPSNNReductionSpatialMeanNode"; }

 protected:
  std::vector<GradientFilterNodePtr> make_gradient_filters(const ImageNodePtr& source_gradient) override;
};
/// MPSNNReductionSpatialMeanGradientNode: E / number of pixels inside the region, 0 outside.
class MPSNN_API NNReductionSpatialMeanGradientNode final : public NNGradientFilterNode {
 public:
  NNReductionSpatialMeanGradientNode(ImageNodePtr source_gradient, ImageNodePtr source_image, std::shared_ptr<NNGradientStateNode> gradient_state);
  const char* class_name() const override { return "MPSNNReductionSpatialMeanGradientNode"; }
  void lower(PlanBuilder& plan) const override;
};

}  // namespace mpsnn
