// SPDX-License-Identifier: Apache-2.0
#include <array>

#include "core/preflight/rules.hpp"
#include "mpsnn/nodes/arithmetic.hpp"
#include "mpsnn/nodes/dropout.hpp"
#include "mpsnn/nodes/group_normalization.hpp"
#include "mpsnn/nodes/loss.hpp"
#include "mpsnn/nodes/normalization.hpp"
#include "mpsnn/nodes/resampling.hpp"
#include "mpsnn/weights.hpp"

/// Rules of the remaining families: arithmetic, losses, dropout, resampling, normalization, optimizers.
namespace mpsnn::preflight {
namespace {

using enum PreflightSeverity;

// --- arithmetic

/// Strides of both sources by dimension: x, y, feature channels.
std::array<std::pair<int, int>, 3> strides(const ArithmeticProperties& p) {
  return {{{p.primary_stride_in_pixels_x, p.secondary_stride_in_pixels_x},
           {p.primary_stride_in_pixels_y, p.secondary_stride_in_pixels_y},
           {p.primary_stride_in_feature_channels, p.secondary_stride_in_feature_channels}}};
}
constexpr const char* kDimensions[] = {"x", "y", "feature channels"};

void check_broadcast_stride(Inspection& inspection, const NNBinaryArithmeticNode& node) {
  const auto all = strides(node);
  for (int i = 0; i < 3; ++i)
    for (int stride : {all[i].first, all[i].second})
      if (stride != 0 && stride != 1) inspection.report(node, "strides of 0 or 1", std::to_string(stride) + " in " + kDimensions[i]);
}

void check_broadcast_size(Inspection& inspection, const NNBinaryArithmeticNode& node) {
  const auto all = strides(node);
  for (int i = 0; i < 3; ++i)
    if (all[i].first == 0 && all[i].second == 0) inspection.report(node, "a stride of 1 in one of the two sources", std::string("0 in both in ") + kDimensions[i]);
}

void check_threshold(Inspection& inspection, const NNComparisonNode& node) {
  if (node.comparison_type == NNComparisonType::Equal || node.comparison_type == NNComparisonType::NotEqual)
    inspection.report(node, "Less, LessOrEqual, Greater or GreaterOrEqual", node.comparison_type == NNComparisonType::Equal ? "Equal, threshold 0" : "NotEqual, threshold 0");
}

void check_clamped_gradient(Inspection& inspection, const NNArithmeticGradientNode& node) {
  const auto* forward = forward_of<NNBinaryArithmeticNode>(node);
  const ArithmeticProperties defaults;
  if (forward && (forward->minimum_value != defaults.minimum_value || forward->maximum_value != defaults.maximum_value))
    inspection.report(node, "a forward node without limits", std::to_string(forward->minimum_value) + " to " + std::to_string(forward->maximum_value));
}

// --- losses

void require_smoothed_classes(Inspection& inspection, const NNFilterNode& node, const CNNLossDescriptor& loss, int classes) {
  if (loss.loss_type == CNNLossType::SoftMaxCrossEntropy && loss.label_smoothing > 0 && loss.number_of_classes != classes)
    inspection.report(node, "number_of_classes " + std::to_string(classes), std::to_string(loss.number_of_classes));
}

void check_smoothing(Inspection& inspection) {
  for (const FilterNodePtr& node : inspection.graph().nodes()) {
    const PlannedNode& planned = inspection.planned(*node);
    if (const auto* loss = dynamic_cast<const CNNLossNode*>(node.get())) require_smoothed_classes(inspection, *node, loss->loss_descriptor(), planned.sources[0].channels);
    if (const auto* loss = dynamic_cast<const NNForwardLossNode*>(node.get())) require_smoothed_classes(inspection, *node, loss->loss_descriptor(), planned.sources[0].channels);
    if (const auto* loss = dynamic_cast<const CNNYOLOLossNode*>(node.get())) {
      const CNNYOLOLossDescriptor& yolo = loss->loss_descriptor();
      require_smoothed_classes(inspection, *node, yolo.classes_loss_descriptor, planned.sources[0].channels / yolo.number_of_anchor_boxes - 5);
    }
  }
}

void require_one_weight(Inspection& inspection, const NNFilterNode& node, const CNNLossDescriptor& loss, bool has_weights) {
  if (has_weights && loss.weight != 1) inspection.report(node, "weight 1 beside a weights image", std::to_string(loss.weight));
}

void check_loss_weights(Inspection& inspection) {
  for (const FilterNodePtr& node : inspection.graph().nodes()) {
    if (const auto* loss = dynamic_cast<const NNForwardLossNode*>(node.get())) require_one_weight(inspection, *node, loss->loss_descriptor(), node->sources().size() > 2);
    if (const auto* loss = dynamic_cast<const NNLossGradientNode*>(node.get())) require_one_weight(inspection, *node, loss->loss_descriptor(), node->sources().size() > 3);
  }
}

void check_loss_scale(Inspection& inspection, const NNLossGradientNode& node) {
  const CNNLossDescriptor& loss = node.loss_descriptor();
  const bool divides = loss.reduction_type == CNNReductionType::Mean || loss.reduction_type == CNNReductionType::SumByNonZeroWeights;
  if (divides || (loss.reduce_across_batch && loss.reduction_type != CNNReductionType::None))
    inspection.report(node, "reduction Sum or None, not across the batch",
                      "reduction " + std::to_string(static_cast<std::int64_t>(loss.reduction_type)) + (loss.reduce_across_batch ? ", across the batch" : ""));
}

void require_batch_sum(Inspection& inspection, const NNFilterNode& node, const CNNLossDescriptor& loss) {
  if (loss.loss_type == CNNLossType::SoftMaxCrossEntropy && loss.reduction_type == CNNReductionType::Mean && loss.reduce_across_batch)
    inspection.report(node, "reduction Sum, or not across the batch", "Mean across the batch: divided by width x height x images here");
}

void check_batch_mean(Inspection& inspection) {
  for (const FilterNodePtr& node : inspection.graph().nodes()) {
    if (const auto* loss = dynamic_cast<const CNNLossNode*>(node.get())) require_batch_sum(inspection, *node, loss->loss_descriptor());
    if (const auto* loss = dynamic_cast<const NNForwardLossNode*>(node.get())) require_batch_sum(inspection, *node, loss->loss_descriptor());
  }
}

void check_yolo(Inspection& inspection, const CNNYOLOLossNode& node) {
  inspection.report(node, "a documented assignment of anchor boxes", std::to_string(node.loss_descriptor().number_of_anchor_boxes) + " anchor boxes");
}

// --- dropout, resampling

void check_dropout(Inspection& inspection, const CNNDropoutNode& node) {
  inspection.report(node, "a mask that can be repeated", "keep_probability " + std::to_string(node.dropout().keep_probability) + ", seed " + std::to_string(node.dropout().seed));
}

void check_bilinear(Inspection& inspection, const CNNUpsamplingBilinearNode& node) {
  if (!node.align_corners() && (node.scale_factor_x() != 1 || node.scale_factor_y() != 1))
    inspection.report(node, "align_corners True", "False, factors " + by(int(node.scale_factor_x()), int(node.scale_factor_y())));
}

void check_lanczos(Inspection& inspection, const NNLanczosScaleNode& node) {
  inspection.report(node, "a documented filter", "3 lobes, normalised weights, to " + by(node.output_width(), node.output_height()) + " pixels");
}

// --- normalization and optimizers

template <class Source>
void require_gamma(Inspection& inspection, const NNFilterNode& node, Source& source) {
  if (!source.load()) return;
  bool has_gamma;
  try {
    has_gamma = bool(source.gamma());
  } catch (...) {
    source.purge();
    throw;
  }
  source.purge();
  if (!has_gamma) inspection.report(node, std::to_string(source.number_of_feature_channels()) + " values of gamma", "none");
}

void check_gamma(Inspection& inspection) {
  for (const FilterNodePtr& node : inspection.graph().nodes()) {
    if (const auto* batch = dynamic_cast<const CNNBatchNormalizationNode*>(node.get())) require_gamma(inspection, *node, *batch->data_source());
    if (const auto* affine = dynamic_cast<const CNNAffineNormalizationNode*>(node.get())) require_gamma(inspection, *node, *affine->data_source());
  }
}

void check_states(Inspection& inspection, const CNNAffineNormalizationGradientNode& node) {
  if (node.training_style != NNTrainingStyle::UpdateDeviceNone && !dynamic_cast<const TrainedDataSource*>(node.data_source().get()))
    inspection.report(node, "a data source that adds up the states it is given", "a data source of the application's own, given 1 state here and 1 per image on Metal");
}

/// The data source that a gradient node trains, where it is one of ours.
TrainedDataSource* trained_source(const NNFilterNode& node) {
  if (const auto* n = dynamic_cast<const CNNConvolutionGradientNode*>(&node)) return dynamic_cast<TrainedDataSource*>(n->weights().get());
  if (const auto* n = dynamic_cast<const CNNBatchNormalizationGradientNode*>(&node)) return dynamic_cast<TrainedDataSource*>(n->data_source().get());
  if (const auto* n = dynamic_cast<const CNNAffineNormalizationGradientNode*>(&node)) return dynamic_cast<TrainedDataSource*>(n->data_source().get());
  return nullptr;
}

void check_l1(Inspection& inspection, const NNGradientFilterNode& node) {
  TrainedDataSource* source = trained_source(node);
  const NNOptimizer* optimizer = source ? source->training().optimizer().get() : nullptr;
  if (optimizer && optimizer->regularization_type() == NNRegularizationType::L1)
    inspection.report(node, "regularization None or L2", std::string(optimizer->class_name()) + " with L1, scale " + std::to_string(optimizer->regularization_scale()));
}

}  // namespace

const std::vector<Rule>& layer_rules() {
  static const std::vector<Rule> rules{
      {{"broadcast-stride", refused, "arithmetic", "the strides of a source are 0 or 1", "0 repeats index 0 along that dimension", "4.7, 16", false},
       raise<OptionError>, each<NNBinaryArithmeticNode>(check_broadcast_stride)},
      {{"broadcast-size", unverified, "arithmetic", "how large a result is where both sources are repeated is not documented; here 1", "a stride of 1 in the source that is as large as the result",
        "16, OQ-37", false},
       raise<OptionError>, each<NNBinaryArithmeticNode>(check_broadcast_size)},
      {{"comparison-threshold", unverified, "comparison", "the threshold within which values are equal exists on the kernel only, its default is not documented; here 0",
        "compare with an order relation", "16, OQ-36", false},
       raise<OptionError>, each<NNComparisonNode>(check_threshold)},
      {{"clamped-arithmetic", unverified, "gradients of arithmetic with limits", "the header contradicts itself on gradients of clamped results; here they stop at the limits",
        "clamp in a neuron node of its own", "16, E-12", false},
       raise<OptionError>, each<NNArithmeticGradientNode>(check_clamped_gradient)},
      {{"label-smoothing", unverified, "soft-max cross entropy", "the gradient where labels do not add up to 1 is not documented, and smoothing with another number of classes makes such labels",
        "set number_of_classes to the feature channels of a label", "14.2, OQ-30", true},
       raise<OptionError>, check_smoothing},
      {{"loss-weights", unverified, "separable losses with a weights image", "whether the scalar weight also applies beside a weights image is not documented; here both multiply",
        "put the factor into the weights image", "14.2, OQ-31", false},
       raise<OptionError>, check_loss_weights},
      {{"loss-gradient-scale", unverified, "gradients of separable losses", "whether the gradient is divided as the loss was is not documented; here it is not", "reduction Sum, and a weight of 1 / count",
        "14.5, OQ-32", false},
       raise<OptionError>, each<NNLossGradientNode>(check_loss_scale)},
      {{"loss-batch-mean", unverified, "soft-max cross entropy", "what a mean across the batch is divided by is not documented", "reduction Sum, and a weight of 1 / count", "14.3, OQ-49", false},
       raise<OptionError>, check_batch_mean},
      {{"yolo-loss", unverified, "YOLO loss", "the assignment of anchor boxes and the regularisation are not documented; here those of Apple's public object detector", "compare one step on a Mac",
        "14.6, OQ-33", false},
       raise<OptionError>, each<CNNYOLOLossNode>(check_yolo)},
      {{"dropout-mask", differs, "dropout", "the generator of masks is not public: the same seed gives other masks", "compare without the node", "13, OQ-29", false},
       raise<OptionError>, each<CNNDropoutNode>(check_dropout)},
      {{"bilinear-centres", unverified, "bilinear upsampling", "where samples lie without align_corners is not documented; here at pixel centres", "align_corners=True", "15, OQ-34", false},
       raise<OptionError>, each<CNNUpsamplingBilinearNode>(check_bilinear)},
      {{"lanczos-filter", unverified, "Lanczos scale", "lobes and normalisation of the filter are not documented", "MPSNNBilinearScaleNode", "15, OQ-35", false},
       raise<OptionError>, each<NNLanczosScaleNode>(check_lanczos)},
      {{"absent-gamma", unverified, "data sources of normalizations", "what stands for a gamma that is not given is not documented; here 1", "return ones", "12, OQ-27", false},
       raise<WeightError>, check_gamma},
      {{"per-image-states", differs, "trained instance and group normalization", "the update is given one state per image; here one with the sum over the batch",
        "add up whatever states there are", "1.4, 12.3, 12.4", false},
       raise<WeightError>, each<CNNAffineNormalizationGradientNode>(check_states)},
      {{"l1-regularization", unverified, "optimizers", "whether the L1 term is the sign of the value or 1 is not documented; here the sign", "L2, or none", "19.1, OQ-44", false},
       raise<WeightError>, each<NNGradientFilterNode>(check_l1)},
  };
  return rules;
}

}  // namespace mpsnn::preflight
