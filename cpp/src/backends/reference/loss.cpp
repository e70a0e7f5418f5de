// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <optional>

#include "backends/reference/kernels.hpp"
#include "backends/reference/loss.hpp"
#include "backends/reference/neuron.hpp"
#include "backends/reference/softmax.hpp"
#include "mpsnn/error.hpp"

namespace mpsnn::reference {
namespace {

double smoothed_label(const CNNLossDescriptor& loss, double t) {
  const double smoothing = loss.label_smoothing;
  if (smoothing <= 0) return t;
  if (loss.loss_type == CNNLossType::SoftMaxCrossEntropy) return t * (1 - smoothing) + smoothing / loss.number_of_classes;
  if (loss.loss_type == CNNLossType::SigmoidCrossEntropy) return t * (1 - smoothing) + smoothing / 2;
  return t;
}

/// t * ln p, with the limit 0 where a class has neither a label nor a probability.
double label_times_log(double t, double log_p) { return t == 0 && std::isinf(log_p) ? 0 : t * log_p; }

/// Calls f(image, element, weighted terms) for every element of `shape`.
template <class F>
void for_each_term(const CNNLossDescriptor& loss, const Shape& shape, const Operands& in, F f) {
  for (std::size_t pixel = 0; pixel < shape.pixels(); ++pixel) {
    const std::size_t first = pixel * shape.channels;
    std::optional<LogSoftMax> log_softmax;
    if (loss.loss_type == CNNLossType::SoftMaxCrossEntropy) log_softmax.emplace(in.y + first, shape.channels);
    for (std::size_t i = first; i < first + shape.channels; ++i) {
      const double factor = loss.weight * (in.weights ? in.weights[i] : 1);
      const Terms t = terms(loss, in.y[i], in.labels[i], log_softmax ? (*log_softmax)(in.y[i]) : 0);
      f(i / shape.image_count(), i, Terms{factor * t.value, factor * t.prediction_gradient, factor * t.label_gradient});
    }
  }
}

/// for_each_term as write_loss() wants it.
auto terms_of(const CNNLossDescriptor& loss, const Shape& shape, const Operands& in) {
  return [&, in](auto f) { for_each_term(loss, shape, in, f); };
}

/// The cosine distance is one number, 1 - sum(y * t): there is nothing to average or to keep per element.
void check_reduction(const CNNLossDescriptor& loss) {
  if (loss.loss_type == CNNLossType::CosineDistance && loss.reduction_type != CNNReductionType::Sum)
    throw OptionError("the cosine distance has one value per image.",
                      {.expected = "reduction type Sum", .hint = "CNNReductionType::Sum"});
}

}  // namespace

Terms terms(const CNNLossDescriptor& loss, double y, double label, double log_p) {
  const double t = smoothed_label(loss, label);
  const double smoothing = std::max(0.0, static_cast<double>(loss.label_smoothing));
  const double e = y - t, eps = loss.epsilon, delta = loss.delta;
  switch (loss.loss_type) {
    case CNNLossType::MeanAbsoluteError: return {std::abs(e), sign(e), -sign(e)};
    case CNNLossType::MeanSquaredError: return {e * e, 2 * e, -2 * e};
    case CNNLossType::SoftMaxCrossEntropy: return {-label_times_log(t, log_p), std::exp(log_p) - t, -(1 - smoothing) * log_p};
    case CNNLossType::SigmoidCrossEntropy:
      return {std::max(y, 0.0) - y * t + std::log1p(std::exp(-std::abs(y))), sigmoid(y) - t, -(1 - smoothing) * y};
    case CNNLossType::CategoricalCrossEntropy:
      return {-label_times_log(t, std::log(y)), t == 0 && y == 0 ? 0 : -t / y, -std::log(y)};
    case CNNLossType::Hinge: {
      const double distance = 1 - (2 * t - 1) * y;
      if (distance > 0) return {distance, 1 - 2 * t, -2 * y};
      return {0, 0, 0};
    }
    case CNNLossType::Huber: {
      const double value = std::abs(e) <= delta ? e * e / 2 : delta * delta / 2 + delta * (std::abs(e) - delta);
      const double slope = std::abs(e) <= delta ? e : delta * sign(e);
      return {value, slope, -slope};
    }
    case CNNLossType::CosineDistance: return {y * t, -t, -y};
    case CNNLossType::Log:
      return {-t * std::log(y + eps) - (1 - t) * std::log(1 - y + eps),
              (-2 * eps * t - t + y + eps) / (y * (1 - y) + eps * (eps + 1)), -std::log(y + eps) + std::log(1 - y + eps)};
    case CNNLossType::KullbackLeiblerDivergence:
      if (t == 0) return {0, 0, 0};
      return {t * (std::log(t) - y), -t, std::log(t) - y + 1};
    case CNNLossType::Count: break;
  }
  return {0, 0, 0};
}

std::unique_ptr<Kernel> make_kernel(const LossOp& op, const OperandShapes& shapes) {
  check_reduction(op.loss);
  return kernel([op, shape = shapes.inputs[0], loss_shape = shape_of(shapes.outputs, 1)](const KernelCall& call) {
    const Operands in{call.input<double>(0), call.input<double>(1), call.input<double>(2)};
    if (double* gradient = call.output<double>(0))
      for_each_term(op.loss, shape, in, [&](std::size_t, std::size_t i, const Terms& t) { gradient[i] = t.prediction_gradient; });
    if (double* loss = call.output<double>(1)) write_loss(op.loss, shape, loss_shape, in.weights, loss, terms_of(op.loss, shape, in));
  });
}

std::unique_ptr<Kernel> make_kernel(const ForwardLossOp& op, const OperandShapes& shapes) {
  check_reduction(op.loss);
  return kernel([op, shape = shapes.inputs[0], loss_shape = shapes.outputs[0]](const KernelCall& call) {
    const Operands in{call.input<double>(0), call.input<double>(1), call.input<double>(2)};
    write_loss(op.loss, shape, loss_shape, in.weights, call.output<double>(0), terms_of(op.loss, shape, in));
  });
}

std::unique_ptr<Kernel> make_kernel(const LossGradientOp& op, const OperandShapes& shapes) {
  return kernel([op, incoming_shape = shapes.inputs[0], shape = shapes.inputs[1]](const KernelCall& call) {
    const double* incoming = call.input<double>(0);
    const Operands in{call.input<double>(1), call.input<double>(2), call.input<double>(3)};
    double* gradient = call.output<double>(0);
    const std::size_t incoming_count = incoming_shape.image_count();
    for_each_term(op.loss, shape, in, [&](std::size_t n, std::size_t i, const Terms& t) {
      const std::size_t first = (sums_over_batch(op.loss) ? 0 : n) * incoming_count;
      const double e = incoming[incoming_count == 1 ? first : first + i % shape.image_count()];
      gradient[i] = e * (op.is_labels_gradient_filter ? t.label_gradient : t.prediction_gradient);
    });
  });
}

}  // namespace mpsnn::reference
