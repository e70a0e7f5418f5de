// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <string>
#include <vector>

#include "mpsnn/enums.hpp"
#include "mpsnn/export.hpp"
#include "mpsnn/geometry.hpp"

namespace mpsnn {

/// MPSNNNeuronDescriptor: an activation function and its parameters (MPS_SEMANTICS 9.1). Unset parameters are 0.
struct MPSNN_API NNNeuronDescriptor {
  CNNNeuronType neuron_type = CNNNeuronType::None;
  float a = 0, b = 0, c = 0;
  std::vector<float> data;  ///< PReLU: one slope per feature channel
  bool operator==(const NNNeuronDescriptor&) const = default;
};

/// What kind of convolution a descriptor describes.
enum class ConvolutionKind { plain, depthwise, sub_pixel };

/// MPSCNNConvolutionDescriptor and its two subclasses (MPS_SEMANTICS 7.1).
struct MPSNN_API CNNConvolutionDescriptor {
  int kernel_width = 3, kernel_height = 3;
  int input_feature_channels = 1, output_feature_channels = 1;
  int stride_in_pixels_x = 1, stride_in_pixels_y = 1;
  int dilation_rate_x = 1, dilation_rate_y = 1;
  int groups = 1;
  ConvolutionKind kind = ConvolutionKind::plain;
  int sub_pixel_scale_factor = 1;
  NNNeuronDescriptor fused_neuron_descriptor;
  /// Folded batch normalization, one value per output channel; empty when unset.
  std::vector<float> batch_mean, batch_variance, batch_gamma, batch_beta;
  float batch_epsilon = 0;
  bool operator==(const CNNConvolutionDescriptor&) const = default;

  bool is_depthwise() const { return kind == ConvolutionKind::depthwise; }
  int channel_multiplier() const { return output_feature_channels / input_feature_channels; }
  /// Input channels that one output channel reads.
  int input_channels_per_group() const { return is_depthwise() ? 1 : input_feature_channels / groups; }
  /// Groups as kernels see them: a depthwise convolution has one per input channel.
  int effective_groups() const { return is_depthwise() ? input_feature_channels : groups; }
  /// Elements of the weight array, O x kH x kW x I/groups.
  std::size_t weight_count() const;
  /// "O x kH x kW x I/groups" with the numbers.
  std::string weight_shape_text() const;
  WindowSize window_size() const {
    return {kernel_width, kernel_height, stride_in_pixels_x, stride_in_pixels_y, dilation_rate_x, dilation_rate_y};
  }
  /// Throws OptionError for numbers that have no meaning; `label` names the culprit.
  void validate(const std::string& label) const;
};

/// MPSCNNDepthWiseConvolutionDescriptor: every input channel has filters of its own. Only a constructor: pass it as the base.
struct CNNDepthWiseConvolutionDescriptor : CNNConvolutionDescriptor {
  CNNDepthWiseConvolutionDescriptor() { kind = ConvolutionKind::depthwise; }
};

/// MPSCNNSubPixelConvolutionDescriptor: set sub_pixel_scale_factor. Only a constructor: pass it as the base.
struct CNNSubPixelConvolutionDescriptor : CNNConvolutionDescriptor {
  CNNSubPixelConvolutionDescriptor() { kind = ConvolutionKind::sub_pixel; }
};

/// MPSCNNLossDescriptor (MPS_SEMANTICS 14.1).
struct CNNLossDescriptor {
  CNNLossType loss_type = CNNLossType::SoftMaxCrossEntropy;
  CNNReductionType reduction_type = CNNReductionType::Sum;
  bool reduce_across_batch = false;
  float weight = 1;
  float label_smoothing = 0;
  int number_of_classes = 1;
  float epsilon = 1e-7f;
  float delta = 1;
  bool operator==(const CNNLossDescriptor&) const = default;
};

/// MPSCNNYOLOLossDescriptor (MPS_SEMANTICS 14.6).
struct CNNYOLOLossDescriptor {
  CNNLossDescriptor xy_loss_descriptor, wh_loss_descriptor, confidence_loss_descriptor, classes_loss_descriptor;
  CNNReductionType reduction_type = CNNReductionType::Sum;
  bool reduce_across_batch = false;
  bool rescore = true;
  float scale_xy = 10, scale_wh = 10, scale_no_object = 5, scale_object = 100, scale_class = 2;
  float min_iou_for_object_presence = 0.7f, max_iou_for_object_absence = 0.3f;
  int number_of_anchor_boxes = 1;
  std::vector<float> anchor_boxes;  ///< width and height of each, in grid units
  bool operator==(const CNNYOLOLossDescriptor&) const = default;
};

}  // namespace mpsnn
