// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <optional>

#include "backends/reference/kernels.hpp"
#include "backends/reference/loss.hpp"
#include "backends/reference/neuron.hpp"
#include "backends/reference/softmax.hpp"
#include "mpsnn/error.hpp"

/// docs/semantics.md, 14.6.
namespace mpsnn::reference {
namespace {

struct Box {
  double x, y, width, height;  ///< of the centre, in cells
};

/// The area of the intersection by that of the union; 0 for two empty boxes.
double overlap(const Box& a, const Box& b) {
  const auto shared = [](double p, double p_size, double q, double q_size) {
    return std::max(0.0, std::min(p + p_size / 2, q + q_size / 2) - std::max(p - p_size / 2, q - q_size / 2));
  };
  const double common = shared(a.x, a.width, b.x, b.width) * shared(a.y, a.height, b.y, b.height);
  const double together = a.width * a.height + b.width * b.height - common;
  return together > 0 ? common / together : 0;
}

/// How far anchor `a` has the shape of its labelled box. `labels` are the anchor's.
double anchor_overlap(const CNNYOLOLossDescriptor& loss, int a, const double* labels) {
  return overlap({0, 0, loss.anchor_boxes[2 * a], loss.anchor_boxes[2 * a + 1]}, {0, 0, labels[2], labels[3]});
}

/// The anchor that fits the labels of its cell best, the first of equals. `labels` are the cell's.
int best_anchor(const CNNYOLOLossDescriptor& loss, int channels, const double* labels) {
  int best = 0;
  for (int a = 1; a < loss.number_of_anchor_boxes; ++a)
    if (anchor_overlap(loss, a, labels + a * channels) > anchor_overlap(loss, best, labels + best * channels)) best = a;
  return best;
}

/// Calls f(channel, terms) for the channels of anchor `a`; y and labels are the anchor's.
template <class F>
void for_each_anchor_term(const CNNYOLOLossDescriptor& loss, int a, bool is_best, int channels, const double* y, const double* labels,
                          F f) {
  const auto scaled = [&](int channel, double scale, const Terms& t, double inner = 1) {
    // A part that does not count is 0 even where its terms are infinite.
    f(channel, scale == 0 ? Terms{0, 0, 0} : Terms{scale * t.value, scale * t.prediction_gradient * inner, 0});
  };
  const double fit = anchor_overlap(loss, a, labels);
  const bool has_object = (labels[4] == 1 && is_best) || fit > loss.min_iou_for_object_presence;
  const bool has_none = fit < loss.max_iou_for_object_absence && !has_object;
  const double xy[] = {sigmoid(y[0]), sigmoid(y[1])};
  const double anchor[] = {loss.anchor_boxes[2 * a], loss.anchor_boxes[2 * a + 1]};
  for (int k = 0; k < 2; ++k)
    scaled(k, has_object ? loss.scale_xy : 0, terms(loss.xy_loss_descriptor, xy[k], labels[k], 0), xy[k] * (1 - xy[k]));
  for (int k = 0; k < 2; ++k)
    scaled(2 + k, has_object ? loss.scale_wh : 0,
           terms(loss.wh_loss_descriptor, y[2 + k], std::log(labels[2 + k] / anchor[k] + 1e-5), 0));
  const double quality = overlap({xy[0], xy[1], std::exp(y[2]) * anchor[0], std::exp(y[3]) * anchor[1]},
                                 {labels[0], labels[1], labels[2], labels[3]});
  scaled(4, has_object ? loss.scale_object : has_none ? loss.scale_no_object : 0,
         terms(loss.confidence_loss_descriptor, y[4], has_object ? (loss.rescore ? quality : 1) : 0, 0));
  std::optional<LogSoftMax> log_softmax;
  if (channels > 5) log_softmax.emplace(y + 5, channels - 5);
  for (int k = 5; k < channels; ++k)
    scaled(k, has_object ? loss.scale_class : 0, terms(loss.classes_loss_descriptor, y[k], labels[k], log_softmax ? (*log_softmax)(y[k]) : 0));
}

const CNNLossDescriptor& part_of(const CNNYOLOLossDescriptor& loss, int channel) {
  return channel < 2 ? loss.xy_loss_descriptor
         : channel < 4 ? loss.wh_loss_descriptor
         : channel < 5 ? loss.confidence_loss_descriptor
                       : loss.classes_loss_descriptor;
}

/// Calls f(image, element, weighted terms) for every element of `shape`.
template <class F>
void for_each_term(const CNNYOLOLossDescriptor& loss, const Shape& shape, const Operands& in, F f) {
  const int channels = shape.channels / loss.number_of_anchor_boxes;
  for (std::size_t first = 0; first < shape.count(); first += shape.channels) {
    const int best = best_anchor(loss, channels, in.labels + first);
    for (int a = 0; a < loss.number_of_anchor_boxes; ++a) {
      const std::size_t i = first + a * channels;
      for_each_anchor_term(loss, a, a == best, channels, in.y + i, in.labels + i, [&](int k, const Terms& t) {
        const double factor = part_of(loss, k).weight * (in.weights ? in.weights[i + k] : 1);
        f(i / shape.image_count(), i + k, Terms{factor * t.value, factor * t.prediction_gradient, 0});
      });
    }
  }
}

}  // namespace

std::unique_ptr<Kernel> make_kernel(const YOLOLossOp& op, const OperandShapes& shapes) {
  for (int k : {0, 2, 4, 5})
    if (part_of(op.loss, k).loss_type == CNNLossType::CosineDistance)
      throw OptionError("the parts of a YOLO loss are sums over elements; the cosine distance is not.",
                        {.expected = "another loss type", .actual = "CosineDistance", .hint = "CNNLossType::MeanSquaredError"});
  return kernel([op, shape = shapes.inputs[0], loss_shape = shape_of(shapes.outputs, 1)](const KernelCall& call) {
    const Operands in{call.input<double>(0), call.input<double>(1), call.input<double>(2)};
    if (double* gradient = call.output<double>(0))
      for_each_term(op.loss, shape, in, [&](std::size_t, std::size_t i, const Terms& t) { gradient[i] = t.prediction_gradient; });
    if (double* loss = call.output<double>(1)) {
      // A mean divides by all elements, whatever the parts' types.
      const CNNLossDescriptor reduction{.loss_type = CNNLossType::MeanSquaredError, .reduction_type = op.loss.reduction_type,
                                        .reduce_across_batch = op.loss.reduce_across_batch};
      write_loss(reduction, shape, loss_shape, in.weights, loss, [&](auto f) { for_each_term(op.loss, shape, in, f); });
    }
  });
}

}  // namespace mpsnn::reference
