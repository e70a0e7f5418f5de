// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "mpsnn/nodes/node.hpp"

/// Nodes that move numbers about: reshape and pad (MPS_SEMANTICS 18.2, 18.3).
namespace mpsnn {

/// MPSNNReshapeNode: the same numbers in height, width, channel order under another shape.
class MPSNN_API NNReshapeNode final : public NNFilterNode {
 public:
  NNReshapeNode(ImageNodePtr source, int result_width, int result_height, int result_feature_channels);
  const char* class_name() const override { return "MPSNNReshapeNode"; }
  int result_width() const { return width_; }
  int result_height() const { return height_; }
  int result_feature_channels() const { return channels_; }
  void lower(PlanBuilder& plan) const override;
  Json parameters() const override;

 protected:
  std::vector<GradientFilterNodePtr> make_gradient_filters(const ImageNodePtr& source_gradient) override;

 private:
  int width_, height_, channels_;
};
class MPSNN_API NNReshapeGradientNode final : public NNGradientFilterNode {
 public:
  NNReshapeGradientNode(ImageNodePtr source_gradient, ImageNodePtr source_image, std::shared_ptr<NNGradientStateNode> gradient_state);
  const char* class_name() const override { return "MPSNNReshapeGradientNode"; }
  void lower(PlanBuilder& plan) const override;
};

/// MPSImageCoordinate.
struct ImageCoordinate {
  int x = 0, y = 0, channel = 0;
  bool operator==(const ImageCoordinate&) const = default;
};

/// MPSNNPadNode: enlarges by whole pixels and channels on each side. Gradient: each source element collects from all that copied it.
class MPSNN_API NNPadNode final : public NNFilterNode {
 public:
  NNPadNode(ImageNodePtr source, ImageCoordinate padding_size_before, ImageCoordinate padding_size_after, ImageEdgeMode edge_mode);
  const char* class_name() const override { return "MPSNNPadNode"; }
  const ImageCoordinate& padding_size_before() const { return before_; }
  const ImageCoordinate& padding_size_after() const { return after_; }
  ImageEdgeMode edge_mode() const { return edge_mode_; }
  float fill_value = 0;  ///< for edge mode Constant
  void lower(PlanBuilder& plan) const override;
  Json parameters() const override;

 protected:
  std::vector<GradientFilterNodePtr> make_gradient_filters(const ImageNodePtr& source_gradient) override;

 private:
  ImageCoordinate before_, after_;
  ImageEdgeMode edge_mode_;
};
class MPSNN_API NNPadGradientNode final : public NNGradientFilterNode {
 public:
  NNPadGradientNode(ImageNodePtr source_gradient, ImageNodePtr source_image, std::shared_ptr<NNGradientStateNode> gradient_state);
  const char* class_name() const override { return "MPSNNPadGradientNode"; }
  void lower(PlanBuilder& plan) const override;
};

/// MPSNNGramMatrixCallback: supplies alpha when the graph is planned.
class MPSNN_API NNGramMatrixCallback {
 public:
  virtual ~NNGramMatrixCallback();
  virtual float alpha(const ImageDescriptor& source_image, const ImageDescriptor& destination_image) = 0;
};

/// MPSNNGramMatrixCalculationNode: alpha * sum over pixels of x[f] * x[c]; result 1 high, C wide, C channels (18.5).
class MPSNN_API NNGramMatrixCalculationNode final : public NNFilterNode {
 public:
  explicit NNGramMatrixCalculationNode(ImageNodePtr source, float alpha = 1);
  const char* class_name() const override { return "MPSNNGramMatrixCalculationNode"; }
  float alpha() const { return alpha_; }
  std::shared_ptr<NNGramMatrixCallback> property_callback;
  void lower(PlanBuilder& plan) const override;
  Json parameters() const override;

 protected:
  std::vector<GradientFilterNodePtr> make_gradient_filters(const ImageNodePtr& source_gradient) override;

 private:
  float alpha_;
};
/// MPSNNGramMatrixCalculationGradientNode: alpha comes from the state of the forward node.
class MPSNN_API NNGramMatrixCalculationGradientNode final : public NNGradientFilterNode {
 public:
  NNGramMatrixCalculationGradientNode(ImageNodePtr source_gradient, ImageNodePtr source_image, std::shared_ptr<NNGradientStateNode> gradient_state,
                                      float alpha = 1);
  const char* class_name() const override { return "MPSNNGramMatrixCalculationGradientNode"; }
  float alpha() const { return alpha_; }
  void lower(PlanBuilder& plan) const override;
  Json parameters() const override;

 private:
  float alpha_;
};

}  // namespace mpsnn
