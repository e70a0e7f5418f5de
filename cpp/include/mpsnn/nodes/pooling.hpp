// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "mpsnn/nodes/node.hpp"

namespace mpsnn {

enum class PoolingKind;

/// MPSCNNPoolingNode: base of the pooling nodes. Edge mode Clamp, padding "same" (MPS_SEMANTICS 8).
///
/// Result: size by the padding policy, channels unchanged.
class MPSNN_API CNNPoolingNode : public NNFilterNode {
 public:
  int kernel_width() const { return window_.kernel_width; }
  int kernel_height() const { return window_.kernel_height; }
  int stride_in_pixels_x() const { return window_.stride_in_pixels_x; }
  int stride_in_pixels_y() const { return window_.stride_in_pixels_y; }
  const WindowSize& window() const { return window_; }
  void lower(PlanBuilder& plan) const override;
  Json parameters() const override;

 protected:
  CNNPoolingNode(ImageNodePtr source, WindowSize window, PoolingKind kind);

 private:
  WindowSize window_;
  PoolingKind kind_;
};

/// MPSCNNPoolingGradientNode: base of the pooling gradients. The window must be the forward node's.
///
/// Result: the forward source's size and channels; pixels that no window covers get 0.
class MPSNN_API CNNPoolingGradientNode : public NNGradientFilterNode {
 public:
  int kernel_width() const { return window_.kernel_width; }
  int kernel_height() const { return window_.kernel_height; }
  int stride_in_pixels_x() const { return window_.stride_in_pixels_x; }
  int stride_in_pixels_y() const { return window_.stride_in_pixels_y; }
  const WindowSize& window() const { return window_; }
  void lower(PlanBuilder& plan) const override;
  Json parameters() const override;

 protected:
  CNNPoolingGradientNode(ImageNodePtr source_gradient, ImageNodePtr source_image, std::shared_ptr<NNGradientStateNode> gradient_state,
                         WindowSize window, PaddingPtr padding_policy, PoolingKind kind);

 private:
  WindowSize window_;
  PoolingKind kind_;
};

/// MPSCNNPoolingMaxNode: the largest value under each window.
///
/// Gradient: the whole incoming value goes to one winner, the first in row-major order (MPS leaves ties open: OQ-24).
class MPSNN_API CNNPoolingMaxNode final : public CNNPoolingNode {
 public:
  CNNPoolingMaxNode(ImageNodePtr source, WindowSize window);
  const char* class_name() const override { return "MPSCNNPoolingMaxNode"; }

 protected:
  std::vector<GradientFilterNodePtr> make_gradient_filters(const ImageNodePtr& source_gradient) override;
};
class MPSNN_API CNNPoolingMaxGradientNode final : public CNNPoolingGradientNode {
 public:
  CNNPoolingMaxGradientNode(ImageNodePtr source_gradient, ImageNodePtr source_image, std::shared_ptr<NNGradientStateNode> gradient_state,
                            WindowSize window, PaddingPtr padding_policy = nullptr);
  const char* class_name() const override { return "MPSCNNPoolingMaxGradientNode"; }
};

/// MPSCNNPoolingAverageNode: the mean of the pixels under each window; over the edge the window shrinks (8.4).
///
/// Gradient: each pixel of a window gets the incoming value divided by the window's count.
class MPSNN_API CNNPoolingAverageNode final : public CNNPoolingNode {
 public:
  CNNPoolingAverageNode(ImageNodePtr source, WindowSize window);
  const char* class_name() const override { return "MPSCNNPoolingAverageNode"; }

 protected:
  std::vector<GradientFilterNodePtr> make_gradient_filters(const ImageNodePtr& source_gradient) override;
};
class MPSNN_API CNNPoolingAverageGradientNode final : public CNNPoolingGradientNode {
 public:
  CNNPoolingAverageGradientNode(ImageNodePtr source_gradient, ImageNodePtr source_image, std::shared_ptr<NNGradientStateNode> gradient_state,
                                WindowSize window, PaddingPtr padding_policy = nullptr);
  const char* class_name() const override { return "MPSCNNPoolingAverageGradientNode"; }
};

/// MPSCNNPoolingL2NormNode: the root of the sum of squares under each window; over the edge, edge pixels repeat (OQ-22).
///
/// Gradient: x / result times the incoming value, 0 where the result is 0.
class MPSNN_API CNNPoolingL2NormNode final : public CNNPoolingNode {
 public:
  CNNPoolingL2NormNode(ImageNodePtr source, WindowSize window);
  const char* class_name() const override { return "MPSCNNPoolingL2NormNode"; }

 protected:
  std::vector<GradientFilterNodePtr> make_gradient_filters(const ImageNodePtr& source_gradient) override;
};
class MPSNN_API CNNPoolingL2NormGradientNode final : public CNNPoolingGradientNode {
 public:
  CNNPoolingL2NormGradientNode(ImageNodePtr source_gradient, ImageNodePtr source_image, std::shared_ptr<NNGradientStateNode> gradient_state,
                               WindowSize window, PaddingPtr padding_policy = nullptr);
  const char* class_name() const override { return "MPSCNNPoolingL2NormGradientNode"; }
};

/// MPSCNNDilatedPoolingMaxNode: max pooling with gaps between the taps. In Apple's hierarchy it is no CNNPoolingNode.
class MPSNN_API CNNDilatedPoolingMaxNode final : public NNFilterNode {
 public:
  CNNDilatedPoolingMaxNode(ImageNodePtr source, WindowSize window);
  const char* class_name() const override { return "MPSCNNDilatedPoolingMaxNode"; }
  int dilation_rate_x() const { return window_.dilation_rate_x; }
  int dilation_rate_y() const { return window_.dilation_rate_y; }
  const WindowSize& window() const { return window_; }
  void lower(PlanBuilder& plan) const override;
  Json parameters() const override;

 protected:
  std::vector<GradientFilterNodePtr> make_gradient_filters(const ImageNodePtr& source_gradient) override;

 private:
  WindowSize window_;
};
class MPSNN_API CNNDilatedPoolingMaxGradientNode final : public CNNPoolingGradientNode {
 public:
  CNNDilatedPoolingMaxGradientNode(ImageNodePtr source_gradient, ImageNodePtr source_image, std::shared_ptr<NNGradientStateNode> gradient_state,
                                   WindowSize window, PaddingPtr padding_policy = nullptr);
  const char* class_name() const override { return "MPSCNNDilatedPoolingMaxGradientNode"; }
  int dilation_rate_x() const { return window().dilation_rate_x; }
  int dilation_rate_y() const { return window().dilation_rate_y; }
};

}  // namespace mpsnn
