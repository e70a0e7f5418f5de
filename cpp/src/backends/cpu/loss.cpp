// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "backends/cpu/isa/isa.hpp"
#include "backends/cpu/kernels.hpp"
#include "backends/cpu/loops.hpp"
#include "backends/cpu/loss.hpp"
#include "backends/cpu/vector_math.hpp"
#include "mpsnn/error.hpp"

namespace mpsnn::cpu {
namespace {

float sign(float x) { return static_cast<float>((x > 0) - (x < 0)); }

/// t * ln p, with the limit 0 where a class has neither a label nor a probability.
float label_times_log(float t, float log_p) { return t == 0 && std::isinf(log_p) ? 0.0f : t * log_p; }

// One struct per element loss (14.2): value, derivative by the prediction y, derivative by the label t.

struct AbsoluteError {
  float value(float y, float t) const { return std::fabs(y - t); }
  float by_prediction(float y, float t) const { return sign(y - t); }
  float by_label(float y, float t) const { return -sign(y - t); }
};
struct SquaredError {
  float value(float y, float t) const { return (y - t) * (y - t); }
  float by_prediction(float y, float t) const { return 2 * (y - t); }
  float by_label(float y, float t) const { return -2 * (y - t); }
};
struct SigmoidCrossEntropy {
  float smoothing;
  float label(float t) const { return smoothing > 0 ? t * (1 - smoothing) + smoothing / 2 : t; }
  float value(float y, float t) const { return (y > 0 ? y : 0.0f) - y * label(t) + std::log1p(std::exp(-std::fabs(y))); }
  float by_prediction(float y, float t) const { return sigmoid(y) - label(t); }
  float by_label(float y, float) const { return -(1 - std::max(0.0f, smoothing)) * y; }
};
struct CategoricalCrossEntropy {
  float value(float y, float t) const { return -label_times_log(t, std::log(y)); }
  float by_prediction(float y, float t) const { return t == 0 && y == 0 ? 0.0f : -t / y; }
  float by_label(float y, float) const { return -std::log(y); }
};
struct Hinge {
  static float distance(float y, float t) { return 1 - (2 * t - 1) * y; }
  float value(float y, float t) const { return distance(y, t) > 0 ? distance(y, t) : 0.0f; }
  float by_prediction(float y, float t) const { return distance(y, t) > 0 ? 1 - 2 * t : 0.0f; }
  float by_label(float y, float t) const { return distance(y, t) > 0 ? -2 * y : 0.0f; }
};
struct Huber {
  float delta;
  float value(float y, float t) const {
    const float e = std::fabs(y - t);
    return e <= delta ? e * e / 2 : delta * delta / 2 + delta * (e - delta);
  }
  float by_prediction(float y, float t) const {
    const float e = y - t;
    return e > delta ? delta : (e < -delta ? -delta : e);
  }
  float by_label(float y, float t) const { return -by_prediction(y, t); }
};
/// value() is y * t: the distance itself, 1 - sum(y * t), exists for whole images only.
struct CosineDistance {
  float value(float y, float t) const { return y * t; }
  float by_prediction(float, float t) const { return -t; }
  float by_label(float y, float) const { return -y; }
};
struct Log {
  float epsilon;
  float value(float y, float t) const { return -t * std::log(y + epsilon) - (1 - t) * std::log((1 - y) + epsilon); }
  // The fraction of 14.2 taken apart: its numerator cancels where y is close to t.
  float by_prediction(float y, float t) const { return (1 - t) / ((1 - y) + epsilon) - t / (y + epsilon); }
  float by_label(float y, float) const { return std::log((1 - y) + epsilon) - std::log(y + epsilon); }
};
struct KullbackLeibler {
  float value(float y, float t) const { return t == 0 ? 0.0f : t * (std::log(t) - y); }
  float by_prediction(float, float t) const { return -t; }
  float by_label(float y, float t) const { return t == 0 ? 0.0f : std::log(t) - y + 1; }
};

/// Calls visit(struct) for every type but SoftMaxCrossEntropy.
template <class Visit>
void with_element_loss(const CNNLossDescriptor& loss, Visit visit) {
  switch (loss.loss_type) {
    case CNNLossType::MeanAbsoluteError: return visit(AbsoluteError{});
    case CNNLossType::MeanSquaredError: return visit(SquaredError{});
    case CNNLossType::SigmoidCrossEntropy: return visit(SigmoidCrossEntropy{loss.label_smoothing});
    case CNNLossType::CategoricalCrossEntropy: return visit(CategoricalCrossEntropy{});
    case CNNLossType::Hinge: return visit(Hinge{});
    case CNNLossType::Huber: return visit(Huber{loss.delta});
    case CNNLossType::CosineDistance: return visit(CosineDistance{});
    case CNNLossType::Log: return visit(Log{loss.epsilon});
    case CNNLossType::KullbackLeiblerDivergence: return visit(KullbackLeibler{});
    default: return;
  }
}

template <class ElementLoss>
double element_pass(const ElementLoss& f, const CNNLossDescriptor& loss, bool by_label, const Stretch& s, std::size_t count) {
  if (s.gradient) {
    if (by_label)
      for (std::size_t i = 0; i < count; ++i) s.gradient[i] = s.share(i) * (s.factor(loss.weight, i) * f.by_label(s.y[i], s.labels[i]));
    else if (!s.weights && !s.incoming)
      for (std::size_t i = 0; i < count; ++i) s.gradient[i] = loss.weight * f.by_prediction(s.y[i], s.labels[i]);
    else
      for (std::size_t i = 0; i < count; ++i)
        s.gradient[i] = s.share(i) * (s.factor(loss.weight, i) * f.by_prediction(s.y[i], s.labels[i]));
  }
  if (s.element_losses)
    for (std::size_t i = 0; i < count; ++i) s.element_losses[i] = s.factor(loss.weight, i) * f.value(s.y[i], s.labels[i]);
  double sum = 0;
  if (s.needs_sum)
    for (std::size_t i = 0; i < count; ++i) sum += s.factor(loss.weight, i) * f.value(s.y[i], s.labels[i]);
  return sum;
}

/// The cosine distance is one number, 1 - sum(y * t): there is nothing to average or to keep per element.
void check_reduction(const CNNLossDescriptor& loss) {
  if (loss.loss_type == CNNLossType::CosineDistance && loss.reduction_type != CNNReductionType::Sum)
    throw OptionError("the cosine distance has one value per image.", {.expected = "reduction type Sum", .hint = "CNNReductionType::Sum"});
}

/// sums[p] := the soft-max cross entropy of each pixel.
void softmax_pass(const CNNLossDescriptor& loss, bool by_label, const Stretch& s, int channels, float* sums) {
  const float smoothing = std::max(0.0f, loss.label_smoothing);
  const float rest = smoothing > 0 ? smoothing / static_cast<float>(loss.number_of_classes) : 0;
  isa().softmax_loss({s.y, s.labels, s.weights, s.incoming, s.is_incoming_whole, by_label, loss.weight, 1 - smoothing, rest, s.gradient,
                      s.element_losses},
                     s.pixels, channels, sums);
}

/// The pass of every loss operation: the operands differ, the work does not.
struct ElementPass {
  CNNLossDescriptor loss;
  bool by_label = false;
  double operator()(const Stretch& s, int channels) const { return loss_pass(loss, by_label, s, channels); }
  bool has_pixel_sums() const { return loss.loss_type == CNNLossType::SoftMaxCrossEntropy; }
  void pixel_sums(const Stretch& s, int channels, float* sums) const { softmax_pass(loss, by_label, s, channels, sums); }
};

}  // namespace

double loss_pass(const CNNLossDescriptor& loss, bool by_label, const Stretch& s, int channels) {
  if (loss.loss_type != CNNLossType::SoftMaxCrossEntropy) {
    double sum = 0;
    with_element_loss(loss, [&](auto f) { sum = element_pass(f, loss, by_label, s, s.pixels * channels); });
    return sum;
  }
  double sum = 0;
  float sums[kSummedPixels];
  for (std::size_t pixel = 0; pixel < s.pixels; pixel += kSummedPixels) {
    const Stretch part = s.from(pixel * channels, std::min(kSummedPixels, s.pixels - pixel));
    softmax_pass(loss, by_label, part, channels, sums);
    for (std::size_t p = 0; p < part.pixels; ++p) sum += sums[p];
  }
  return sum;
}

std::unique_ptr<Kernel> make_kernel(const LossOp& op, const OperandShapes& shapes) {
  check_reduction(op.loss);
  return loss_kernel(op.loss, shapes, {.y = 0, .gradient = 0, .loss = 1}, ElementPass{op.loss});
}

std::unique_ptr<Kernel> make_kernel(const ForwardLossOp& op, const OperandShapes& shapes) {
  check_reduction(op.loss);
  return loss_kernel(op.loss, shapes, {.y = 0, .gradient = -1, .loss = 0}, ElementPass{op.loss});
}

std::unique_ptr<Kernel> make_kernel(const LossGradientOp& op, const OperandShapes& shapes) {
  return loss_kernel(op.loss, shapes, {.y = 1, .gradient = 0, .loss = -1, .incoming = 0}, ElementPass{op.loss, op.is_labels_gradient_filter});
}

}  // namespace mpsnn::cpu
