// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "mpsnn/nodes/node.hpp"

namespace mpsnn {

/// MPSCNNBatchNormalizationNode: (x - mean) * gamma / sqrt(variance + epsilon) + beta per channel (MPS_SEMANTICS 12.2).
///
/// Automatic flags: statistics of the batch where a gradient node consumes the state, else the data source's.
class MPSNN_API CNNBatchNormalizationNode final : public NNFilterNode, public NNTrainableNode {
 public:
  CNNBatchNormalizationNode(ImageNodePtr source, BatchNormalizationDataSourcePtr data_source);
  const char* class_name() const override { return "MPSCNNBatchNormalizationNode"; }
  const BatchNormalizationDataSourcePtr& data_source() const { return data_source_; }
  CNNBatchNormalizationFlags flags = CNNBatchNormalizationFlags::CalculateStatisticsAutomatic;
  void declare(ParameterStore& parameters) const override;
  void lower(PlanBuilder& plan) const override;
  Json parameters() const override;
  std::string data_source_label() const override { return data_source_->label(); }

 protected:
  std::vector<GradientFilterNodePtr> make_gradient_filters(const ImageNodePtr& source_gradient) override;

 private:
  BatchNormalizationDataSourcePtr data_source_;
};

/// MPSCNNBatchNormalizationGradientNode: the source's gradient; those of gamma and beta go to the data source.
class MPSNN_API CNNBatchNormalizationGradientNode final : public NNGradientFilterNode, public NNTrainableNode {
 public:
  CNNBatchNormalizationGradientNode(ImageNodePtr source_gradient, ImageNodePtr source_image, std::shared_ptr<NNGradientStateNode> gradient_state);
  const char* class_name() const override { return "MPSCNNBatchNormalizationGradientNode"; }
  void declare(ParameterStore& parameters) const override;
  void lower(PlanBuilder& plan) const override;
  Json parameters() const override;
  std::string data_source_label() const override;
  /// The forward node's data source.
  const BatchNormalizationDataSourcePtr& data_source() const;
};

}  // namespace mpsnn
