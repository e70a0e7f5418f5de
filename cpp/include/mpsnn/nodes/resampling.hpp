// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "mpsnn/nodes/node.hpp"

/// Enlarging by whole factors, and scaling to any size (MPS_SEMANTICS 15).
namespace mpsnn {

/// MPSCNNUpsamplingNearestNode: every pixel becomes a block of scale_factor_x x scale_factor_y. Gradient: the sum over each block.
class MPSNN_API CNNUpsamplingNearestNode final : public NNFilterNode {
 public:
  CNNUpsamplingNearestNode(ImageNodePtr source, int integer_scale_factor_x, int integer_scale_factor_y);
  const char* class_name() const override { return "MPSCNNUpsamplingNearestNode"; }
  double scale_factor_x() const { return scale_x_; }
  double scale_factor_y() const { return scale_y_; }
  void lower(PlanBuilder& plan) const override;
  Json parameters() const override;

 protected:
  std::vector<GradientFilterNodePtr> make_gradient_filters(const ImageNodePtr& source_gradient) override;

 private:
  int scale_x_, scale_y_;
};
class MPSNN_API CNNUpsamplingNearestGradientNode final : public NNGradientFilterNode {
 public:
  CNNUpsamplingNearestGradientNode(ImageNodePtr source_gradient, ImageNodePtr source_image, std::shared_ptr<NNGradientStateNode> gradient_state,
                                   double scale_factor_x, double scale_factor_y);
  const char* class_name() const override { return "MPSCNNUpsamplingNearestGradientNode"; }
  double scale_factor_x() const { return scale_x_; }
  double scale_factor_y() const { return scale_y_; }
  void lower(PlanBuilder& plan) const override;
  Json parameters() const override;

 private:
  double scale_x_, scale_y_;
};

/// MPSCNNUpsamplingBilinearNode: between pixel centres, or from corner to corner. Gradient: the exact adjoint.
class MPSNN_API CNNUpsamplingBilinearNode final : public NNFilterNode {
 public:
  CNNUpsamplingBilinearNode(ImageNodePtr source, int integer_scale_factor_x, int integer_scale_factor_y, bool align_corners = false);
  const char* class_name() const override { return "MPSCNNUpsamplingBilinearNode"; }
  double scale_factor_x() const { return scale_x_; }
  double scale_factor_y() const { return scale_y_; }
  bool align_corners() const { return align_corners_; }
  void lower(PlanBuilder& plan) const override;
  Json parameters() const override;

 protected:
  std::vector<GradientFilterNodePtr> make_gradient_filters(const ImageNodePtr& source_gradient) override;

 private:
  int scale_x_, scale_y_;
  bool align_corners_;
};
class MPSNN_API CNNUpsamplingBilinearGradientNode final : public NNGradientFilterNode {
 public:
  CNNUpsamplingBilinearGradientNode(ImageNodePtr source_gradient, ImageNodePtr source_image, std::shared_ptr<NNGradientStateNode> gradient_state,
                                    double scale_factor_x, double scale_factor_y);
  const char* class_name() const override { return "MPSCNNUpsamplingBilinearGradientNode"; }
  double scale_factor_x() const { return scale_x_; }
  double scale_factor_y() const { return scale_y_; }
  void lower(PlanBuilder& plan) const override;
  Json parameters() const override;

 private:
  double scale_x_, scale_y_;
};

/// MPSScaleTransform, in result pixels: result = source * scale + translate.
struct ScaleTransform {
  double scale_x = 1, scale_y = 1, translate_x = 0, translate_y = 0;
};
/// MPSImageTransformProvider: asked when the graph is planned for a source size.
class MPSNN_API ImageTransformProvider {
 public:
  virtual ~ImageTransformProvider();
  virtual ScaleTransform transform(const ImageDescriptor& source_image, const HandlePtr& handle) = 0;
};

/// MPSNNScaleNode: base of the two. Without a provider the whole source fills the whole result. No gradient exists.
class MPSNN_API NNScaleNode : public NNFilterNode {
 public:
  int output_width() const { return width_; }
  int output_height() const { return height_; }
  /// Null when the whole source fills the whole result.
  const std::shared_ptr<ImageTransformProvider>& transform_provider() const { return provider_; }
  void lower(PlanBuilder& plan) const override;
  Json parameters() const override;

 protected:
  NNScaleNode(ImageNodePtr source, std::shared_ptr<ImageTransformProvider> transform_provider, int width, int height, bool is_lanczos);

 private:
  std::shared_ptr<ImageTransformProvider> provider_;
  int width_, height_;
  bool is_lanczos_;
};
class MPSNN_API NNBilinearScaleNode final : public NNScaleNode {
 public:
  NNBilinearScaleNode(ImageNodePtr source, std::shared_ptr<ImageTransformProvider> transform_provider, int width, int height)
      : NNScaleNode(std::move(source), std::move(transform_provider), width, height, false) {}
  const char* class_name() const override { return "MPSNNBilinearScaleNode"; }
};
class MPSNN_API NNLanczosScaleNode final : public NNScaleNode {
 public:
  NNLanczosScaleNode(ImageNodePtr source, std::shared_ptr<ImageTransformProvider> transform_provider, int width, int height)
      : NNScaleNode(std::move(source), std::move(transform_provider), width, height, true) {}
  const char* class_name() const override { return "MPSNNLanczosScaleNode"; }
};

}  // namespace mpsnn
