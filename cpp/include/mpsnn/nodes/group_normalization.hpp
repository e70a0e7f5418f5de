// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "mpsnn/nodes/node.hpp"

/// Normalizations with statistics of single images (MPS_SEMANTICS 12.3, 12.4).
namespace mpsnn {

/// What instance and group normalization share; in Apple's hierarchy they are siblings.
class MPSNN_API CNNAffineNormalizationNode : public NNFilterNode, public NNTrainableNode {
 public:
  const AffineDataSourcePtr& data_source() const { return data_source_; }
  void declare(ParameterStore& parameters) const override;
  void lower(PlanBuilder& plan) const override;
  Json parameters() const override;
  std::string data_source_label() const override { return data_source_->label(); }

 protected:
  CNNAffineNormalizationNode(ImageNodePtr source, AffineDataSourcePtr data_source, const char* class_name);

 private:
  AffineDataSourcePtr data_source_;
};
/// Their gradient: the source's; those of gamma and beta, summed over the batch, go to the data source.
class MPSNN_API CNNAffineNormalizationGradientNode : public NNGradientFilterNode, public NNTrainableNode {
 public:
  const AffineDataSourcePtr& data_source() const;
  void declare(ParameterStore& parameters) const override;
  void lower(PlanBuilder& plan) const override;
  Json parameters() const override;
  std::string data_source_label() const override { return data_source()->label(); }

 protected:
  CNNAffineNormalizationGradientNode(ImageNodePtr source_gradient, ImageNodePtr source_image, std::shared_ptr<NNGradientStateNode> gradient_state,
                                     const char* class_name);
};

/// MPSCNNInstanceNormalizationNode: statistics per image and channel.
class MPSNN_API CNNInstanceNormalizationNode final : public CNNAffineNormalizationNode {
 public:
  CNNInstanceNormalizationNode(ImageNodePtr source, std::shared_ptr<CNNInstanceNormalizationDataSource> data_source);
  const char* class_name() const override { return "MPSCNNInstanceNormalizationNode"; }

 protected:
  std::vector<GradientFilterNodePtr> make_gradient_filters(const ImageNodePtr& source_gradient) override;
};
class MPSNN_API CNNInstanceNormalizationGradientNode final : public CNNAffineNormalizationGradientNode {
 public:
  CNNInstanceNormalizationGradientNode(ImageNodePtr source_gradient, ImageNodePtr source_image, std::shared_ptr<NNGradientStateNode> gradient_state);
  const char* class_name() const override { return "MPSCNNInstanceNormalizationGradientNode"; }
};

/// MPSCNNGroupNormalizationNode: statistics per image and group of consecutive channels.
class MPSNN_API CNNGroupNormalizationNode final : public CNNAffineNormalizationNode {
 public:
  CNNGroupNormalizationNode(ImageNodePtr source, std::shared_ptr<CNNGroupNormalizationDataSource> data_source);
  const char* class_name() const override { return "MPSCNNGroupNormalizationNode"; }

 protected:
  std::vector<GradientFilterNodePtr> make_gradient_filters(const ImageNodePtr& source_gradient) override;
};
class MPSNN_API CNNGroupNormalizationGradientNode final : public CNNAffineNormalizationGradientNode {
 public:
  CNNGroupNormalizationGradientNode(ImageNodePtr source_gradient, ImageNodePtr source_image, std::shared_ptr<NNGradientStateNode> gradient_state);
  const char* class_name() const override { return "MPSCNNGroupNormalizationGradientNode"; }
};

}  // namespace mpsnn
