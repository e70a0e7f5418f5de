// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <limits>

#include "mpsnn/nodes/node.hpp"

namespace mpsnn {

enum class ArithmeticKind;

/// What the arithmetic nodes and their gradients share. Strides are 1, or 0 to repeat index 0 along that dimension.
struct ArithmeticProperties {
  float primary_scale = 1, secondary_scale = 1, bias = 0;
  int primary_stride_in_pixels_x = 1, primary_stride_in_pixels_y = 1, primary_stride_in_feature_channels = 1;
  int secondary_stride_in_pixels_x = 1, secondary_stride_in_pixels_y = 1, secondary_stride_in_feature_channels = 1;
  float minimum_value = std::numeric_limits<float>::lowest(), maximum_value = std::numeric_limits<float>::max();
};

/// MPSNNBinaryArithmeticNode: base of addition, subtraction, … of two images (MPS_SEMANTICS 16).
///
/// Result: along each dimension the size of the source whose stride is 1. Gradient: two nodes, primary then secondary.
class MPSNN_API NNBinaryArithmeticNode : public NNFilterNode, public ArithmeticProperties {
 public:
  void lower(PlanBuilder& plan) const override;
  Json parameters() const override;
  /// Apple's name of the gradient class; null where none exists.
  virtual const char* gradient_class() const;
  /// Throws GraphError: an arithmetic node has two gradients, gradient_filters() returns them.
  GradientFilterNodePtr gradient_filter(const std::vector<ImageNodePtr>& source_gradients) override;
  ArithmeticKind kind() const { return kind_; }

 protected:
  NNBinaryArithmeticNode(std::vector<ImageNodePtr> sources, ArithmeticKind kind, const char* class_name);
  virtual NNComparisonType relation() const { return NNComparisonType::Equal; }

 private:
  ArithmeticKind kind_;
};

/// MPSNNArithmeticGradientNode: base of the arithmetic gradients.
class MPSNN_API NNArithmeticGradientNode : public NNGradientFilterNode, public ArithmeticProperties {
 public:
  bool is_secondary_source_filter() const { return is_secondary_source_filter_; }
  void lower(PlanBuilder& plan) const override;
  Json parameters() const override;

 protected:
  NNArithmeticGradientNode(ImageNodePtr source_gradient, ImageNodePtr source_image, std::shared_ptr<NNBinaryGradientStateNode> gradient_state,
                           bool is_secondary_source_filter, ArithmeticKind kind);
  NNArithmeticGradientNode(const std::vector<ImageNodePtr>& gradient_images, const FilterNodePtr& forward_filter, bool is_secondary_source_filter,
                           ArithmeticKind kind);

 private:
  /// Scales, strides and limits as the forward filter implies (16, "Property view").
  void copy_properties(const NNBinaryArithmeticNode& forward);
  bool is_secondary_source_filter_;
};

#define MPSNN_ARITHMETIC_NODE(Name, kind)                                                                          \
  class MPSNN_API NN##Name##Node final : public NNBinaryArithmeticNode {                                          \
   public:                                                                                                         \
    explicit NN##Name##Node(std::vector<ImageNodePtr> sources);                                                    \
    NN##Name##Node(ImageNodePtr left_source, ImageNodePtr right_source)                                            \
        : NN##Name##Node(std::vector<ImageNodePtr>{std::move(left_source), std::move(right_source)}) {}            \
    const char* class_name() const override { return "MPSNN" #Name "Node"; }                                       \
    const char* gradient_class() const override { return "MPSNN" #Name "GradientNode"; }                           \
                                                                                                                   \
   protected:                                                                                                      \
    std::vector<GradientFilterNodePtr> make_gradient_filters(const ImageNodePtr& source_gradient) override;        \
  };                                                                                                               \
  class MPSNN_API NN##Name##GradientNode final : public NNArithmeticGradientNode {                                \
   public:                                                                                                         \
    NN##Name##GradientNode(ImageNodePtr source_gradient, ImageNodePtr source_image,                                \
                           std::shared_ptr<NNBinaryGradientStateNode> gradient_state, bool is_secondary_source_filter); \
    NN##Name##GradientNode(const std::vector<ImageNodePtr>& gradient_images, const FilterNodePtr& forward_filter,  \
                           bool is_secondary_source_filter);                                                       \
    const char* class_name() const override { return "MPSNN" #Name "GradientNode"; }                               \
  };

/// MPSNNAdditionNode: ps * x + ss * y + bias, and its gradient.
MPSNN_ARITHMETIC_NODE(Addition, add)
/// MPSNNSubtractionNode: ps * x - ss * y + bias, and its gradient.
MPSNN_ARITHMETIC_NODE(Subtraction, subtract)
/// MPSNNMultiplicationNode: (ps * x) * (ss * y) + bias, and its gradient.
MPSNN_ARITHMETIC_NODE(Multiplication, multiply)
#undef MPSNN_ARITHMETIC_NODE

/// MPSNNDivisionNode: (ps * x) / (ss * y) + bias. No gradient exists.
class MPSNN_API NNDivisionNode final : public NNBinaryArithmeticNode {
 public:
  explicit NNDivisionNode(std::vector<ImageNodePtr> sources);
  NNDivisionNode(ImageNodePtr left_source, ImageNodePtr right_source)
      : NNDivisionNode(std::vector<ImageNodePtr>{std::move(left_source), std::move(right_source)}) {}
  const char* class_name() const override { return "MPSNNDivisionNode"; }
};
/// MPSNNComparisonNode: 1 where the relation holds, else 0. No gradient exists.
class MPSNN_API NNComparisonNode final : public NNBinaryArithmeticNode {
 public:
  explicit NNComparisonNode(std::vector<ImageNodePtr> sources);
  NNComparisonNode(ImageNodePtr left_source, ImageNodePtr right_source)
      : NNComparisonNode(std::vector<ImageNodePtr>{std::move(left_source), std::move(right_source)}) {}
  const char* class_name() const override { return "MPSNNComparisonNode"; }
  NNComparisonType comparison_type = NNComparisonType::Equal;
  Json parameters() const override;

 protected:
  NNComparisonType relation() const override { return comparison_type; }
};

}  // namespace mpsnn
