// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "backends/cpu/kernels.hpp"
#include "backends/cpu/loss.hpp"
#include "backends/cpu/vector_math.hpp"
#include "mpsnn/error.hpp"

/// docs/semantics.md, 14.6. Cells are few: what decides is written for clarity, in double, so that a label on a threshold falls on
/// the same side as on the reference engine.
namespace mpsnn::cpu {
namespace {

/// Length that two stretches share, given by centre and size.
double shared_length(double p, double p_size, double q, double q_size) {
  const double begin = std::max(p - p_size / 2, q - q_size / 2), end = std::min(p + p_size / 2, q + q_size / 2);
  return end > begin ? end - begin : 0;
}

/// Intersection by union of boxes, 0 for two empty ones.
double quotient(double common, double area_a, double area_b) {
  const double together = area_a + area_b - common;
  return together > 0 ? common / together : 0;
}

/// One pass over whole cells.
class YOLOPass {
 public:
  explicit YOLOPass(const CNNYOLOLossDescriptor& loss) : loss_(loss) {}

  double operator()(const Stretch& s, int channels) const {
    double sum = 0;
    const int anchor_channels = channels / loss_.number_of_anchor_boxes;
    for (std::size_t first = 0; first < s.pixels * channels; first += channels) {
      const int best = best_anchor(s.labels + first, anchor_channels);
      for (int a = 0; a < loss_.number_of_anchor_boxes; ++a)
        sum += anchor(a, a == best, s.from(first + static_cast<std::size_t>(a) * anchor_channels, 1), anchor_channels);
    }
    return sum;
  }

 private:
  double anchor_overlap(int a, const float* labels) const {
    const double width = loss_.anchor_boxes[2 * a], height = loss_.anchor_boxes[2 * a + 1];
    const double box_width = labels[2], box_height = labels[3];
    return quotient(shared_length(0, width, 0, box_width) * shared_length(0, height, 0, box_height), width * height, box_width * box_height);
  }

  int best_anchor(const float* labels, int channels) const {
    int best = 0;
    double best_overlap = anchor_overlap(0, labels);
    for (int a = 1; a < loss_.number_of_anchor_boxes; ++a) {
      const double overlap = anchor_overlap(a, labels + static_cast<std::ptrdiff_t>(a) * channels);
      if (overlap > best_overlap) best = a, best_overlap = overlap;
    }
    return best;
  }

  /// `count` elements under one of the four losses, with predictions and labels of their own; what is written belongs to `s`.
  static double part(const CNNLossDescriptor& loss, float scale, Stretch s, const float* y, const float* labels, int count) {
    if (count == 0) return 0;
    if (scale == 0) {  // 0 even where the terms are infinite
      if (s.gradient) std::fill_n(s.gradient, count, 0.0f);
      if (s.element_losses) std::fill_n(s.element_losses, count, 0.0f);
      return 0;
    }
    s.y = y, s.labels = labels;
    const double sum = loss_pass(loss, false, s, count);
    for (int i = 0; i < count; ++i) {
      if (s.gradient) s.gradient[i] *= scale;
      if (s.element_losses) s.element_losses[i] *= scale;
    }
    return scale * sum;
  }

  double anchor(int a, bool is_best, const Stretch& s, int channels) const {
    const float *y = s.y, *labels = s.labels;
    const float anchor[] = {loss_.anchor_boxes[2 * a], loss_.anchor_boxes[2 * a + 1]};
    const double fit = anchor_overlap(a, labels);
    const bool has_object = (labels[4] == 1 && is_best) || fit > loss_.min_iou_for_object_presence;
    const bool has_none = fit < loss_.max_iou_for_object_absence && !has_object;

    const float xy[] = {sigmoid(y[0]), sigmoid(y[1])};
    double sum = part(loss_.xy_loss_descriptor, has_object ? loss_.scale_xy : 0, s, xy, labels, 2);
    if (s.gradient)
      for (int k = 0; k < 2; ++k) s.gradient[k] *= xy[k] * sigmoid(-y[k]);  // sigmoid(-y): 1 - xy without cancelling

    const float logarithms[] = {std::log(labels[2] / anchor[0] + 1e-5f), std::log(labels[3] / anchor[1] + 1e-5f)};
    sum += part(loss_.wh_loss_descriptor, has_object ? loss_.scale_wh : 0, s.from(2, 1), y + 2, logarithms, 2);

    const float confidence = has_object ? (loss_.rescore ? quality(xy, y, anchor, labels) : 1.0f) : 0.0f;
    const float confidence_scale = has_object ? loss_.scale_object : has_none ? loss_.scale_no_object : 0;
    sum += part(loss_.confidence_loss_descriptor, confidence_scale, s.from(4, 1), y + 4, &confidence, 1);

    return sum + part(loss_.classes_loss_descriptor, has_object ? loss_.scale_class : 0, s.from(5, 1), y + 5, labels + 5, channels - 5);
  }

  /// How far the predicted box covers the labelled one.
  static float quality(const float* xy, const float* y, const float* anchor, const float* labels) {
    const double width = std::exp(static_cast<double>(y[2])) * anchor[0], height = std::exp(static_cast<double>(y[3])) * anchor[1];
    const double common = shared_length(xy[0], width, labels[0], labels[2]) * shared_length(xy[1], height, labels[1], labels[3]);
    return static_cast<float>(quotient(common, width * height, static_cast<double>(labels[2]) * labels[3]));
  }

  CNNYOLOLossDescriptor loss_;
};

}  // namespace

std::unique_ptr<Kernel> make_kernel(const YOLOLossOp& op, const OperandShapes& shapes) {
  for (const CNNLossDescriptor* part : {&op.loss.xy_loss_descriptor, &op.loss.wh_loss_descriptor, &op.loss.confidence_loss_descriptor,
                                        &op.loss.classes_loss_descriptor})
    if (part->loss_type == CNNLossType::CosineDistance)
      throw OptionError("the parts of a YOLO loss are sums over elements; the cosine distance is not.",
                        {.expected = "another loss type", .actual = "CosineDistance", .hint = "CNNLossType::MeanSquaredError"});
  // A mean divides by all elements, whatever the parts' types.
  const CNNLossDescriptor reduction{.loss_type = CNNLossType::MeanSquaredError, .reduction_type = op.loss.reduction_type,
                                    .reduce_across_batch = op.loss.reduce_across_batch};
  return loss_kernel(reduction, shapes, {.y = 0, .gradient = 0, .loss = 1}, YOLOPass(op.loss));
}

}  // namespace mpsnn::cpu
