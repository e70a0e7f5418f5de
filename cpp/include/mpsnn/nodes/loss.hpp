// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "mpsnn/nodes/node.hpp"

namespace mpsnn {

/// MPSCNNLossNode: starts the backward pass. Result: the gradient of the loss, the source's size; the loss itself goes to
/// the CNNLossLabels that the step is given (MPS_SEMANTICS 14.4). The gradient ignores the reduction: set `weight`.
class MPSNN_API CNNLossNode final : public NNFilterNode {
 public:
  CNNLossNode(ImageNodePtr source, CNNLossDescriptor loss_descriptor);
  const char* class_name() const override { return "MPSCNNLossNode"; }
  /// Placeholder of the labels; give it a handle when a graph has several.
  std::shared_ptr<NNLabelsNode> input_labels();
  const CNNLossDescriptor& loss_descriptor() const { return loss_; }
  bool is_gradient_origin() const override { return true; }
  NNLabelsNode* labels_placeholder() override { return &input_labels_; }
  void lower(PlanBuilder& plan) const override;
  Json parameters() const override;

 private:
  CNNLossDescriptor loss_;
  NNLabelsNode input_labels_;
};

/// MPSCNNYOLOLossNode: the loss of a grid of object detectors; result and labels as CNNLossNode's (MPS_SEMANTICS 14.6).
class MPSNN_API CNNYOLOLossNode final : public NNFilterNode {
 public:
  CNNYOLOLossNode(ImageNodePtr source, CNNYOLOLossDescriptor loss_descriptor);
  const char* class_name() const override { return "MPSCNNYOLOLossNode"; }
  std::shared_ptr<NNLabelsNode> input_labels();
  const CNNYOLOLossDescriptor& loss_descriptor() const { return loss_; }
  bool is_gradient_origin() const override { return true; }
  NNLabelsNode* labels_placeholder() override { return &input_labels_; }
  void lower(PlanBuilder& plan) const override;
  Json parameters() const override;

 private:
  CNNYOLOLossDescriptor loss_;
  NNLabelsNode input_labels_;
};

/// MPSNNLossCallback: supplies the scalar weight of a loss when it is encoded.
class MPSNN_API NNLossCallback {
 public:
  virtual ~NNLossCallback();
  virtual float scalar_weight(const ImageDescriptor& source_image, const ImageDescriptor& destination_image) = 0;
};

/// MPSNNForwardLossNode: the loss as an image: 1 x 1 x 1 unless the reduction is None (MPS_SEMANTICS 14.5). Sources: logits,
/// labels and, if given, weights.
class MPSNN_API NNForwardLossNode final : public NNFilterNode {
 public:
  NNForwardLossNode(std::vector<ImageNodePtr> sources, CNNLossDescriptor loss_descriptor);
  NNForwardLossNode(ImageNodePtr source, ImageNodePtr labels, ImageNodePtr weights, CNNLossDescriptor loss_descriptor);
  const char* class_name() const override { return "MPSNNForwardLossNode"; }
  const CNNLossDescriptor& loss_descriptor() const { return loss_; }
  std::shared_ptr<NNLossCallback> property_callback;
  void lower(PlanBuilder& plan) const override;
  Json parameters() const override;
  /// The gradient of the prediction.
  GradientFilterNodePtr gradient_filter(const std::vector<ImageNodePtr>& source_gradients) override;

 protected:
  /// [gradient of the prediction, gradient of the labels]
  std::vector<GradientFilterNodePtr> make_gradient_filters(const ImageNodePtr& source_gradient) override;
  std::size_t trained_source_count() const override { return 1; }

 private:
  CNNLossDescriptor loss_;
};

/// MPSNNLossGradientNode: E * dl/dy, or E * dl/dt for the labels. Sources: gradient, logits, labels and, if given, weights.
class MPSNN_API NNLossGradientNode final : public NNGradientFilterNode {
 public:
  NNLossGradientNode(std::vector<ImageNodePtr> sources, std::shared_ptr<NNGradientStateNode> gradient_state, CNNLossDescriptor loss_descriptor,
                     bool is_labels_gradient_filter);
  const char* class_name() const override { return "MPSNNLossGradientNode"; }
  const CNNLossDescriptor& loss_descriptor() const { return loss_; }
  bool is_labels_gradient_filter() const { return is_labels_gradient_filter_; }
  std::shared_ptr<NNLossCallback> property_callback;
  void lower(PlanBuilder& plan) const override;
  Json parameters() const override;

 private:
  CNNLossDescriptor loss_;
  bool is_labels_gradient_filter_;
};

/// MPSNNInitialGradientNode: ones of the source's size: differentiates the sum of the source.
class MPSNN_API NNInitialGradientNode final : public NNFilterNode {
 public:
  explicit NNInitialGradientNode(ImageNodePtr source);
  const char* class_name() const override { return "MPSNNInitialGradientNode"; }
  bool is_gradient_origin() const override { return true; }
  void lower(PlanBuilder& plan) const override;
};

}  // namespace mpsnn
