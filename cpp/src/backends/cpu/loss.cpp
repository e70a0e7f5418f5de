// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "backends/cpu/kernels.hpp"
#include "backends/cpu/loops.hpp"
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

/// What a pass over some pixels reads and writes; each pointer stands at the first of them.
struct Stretch {
  const float *y, *labels, *weights;  ///< weights may be null
  const float* incoming = nullptr;    ///< the loss's gradient, or null for 1
  bool is_incoming_whole = false;     ///< one incoming value for all elements
  float *gradient = nullptr, *element_losses = nullptr;  ///< null where nobody needs them
  bool needs_sum = false;
  std::size_t pixels = 0;

  float factor(float weight, std::size_t i) const { return weights ? weight * weights[i] : weight; }
  float share(std::size_t i) const { return incoming ? incoming[is_incoming_whole ? 0 : i] : 1.0f; }
};

/// Sums of a stretch, in double: an image may have millions of elements.
struct Sums {
  double loss = 0, nonzero_weights = 0;
};

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

/// Soft-max cross entropy of one pixel, in one pass over memory: its channels stay in the cache.
double softmax_pixel(const CNNLossDescriptor& loss, bool by_label, const Stretch& s, int channels) {
  const float smoothing = loss.label_smoothing, keep = smoothing > 0 ? 1 - smoothing : 1;
  const float rest = smoothing > 0 ? smoothing / static_cast<float>(loss.number_of_classes) : 0;
  const float largest = row_maximum(s.y, channels);
  float total;
  if (s.gradient && !by_label) {
    for (int c = 0; c < channels; ++c) s.gradient[c] = exponential(s.y[c] - largest);
    total = row_sum(channels, [&](int c) { return s.gradient[c]; });
    const float inverse = 1.0f / total;
    if (!s.weights && !s.incoming)
      for (int c = 0; c < channels; ++c) s.gradient[c] = loss.weight * (s.gradient[c] * inverse - (s.labels[c] * keep + rest));
    else
      for (int c = 0; c < channels; ++c)
        s.gradient[c] = s.share(c) * (s.factor(loss.weight, c) * (s.gradient[c] * inverse - (s.labels[c] * keep + rest)));
  } else {
    total = row_sum(channels, [&](int c) { return exponential(s.y[c] - largest); });
  }
  const float log_of_total = std::log(total);
  const auto log_p = [&](int c) { return (s.y[c] - largest) - log_of_total; };
  if (s.gradient && by_label)
    for (int c = 0; c < channels; ++c) s.gradient[c] = s.share(c) * (s.factor(loss.weight, c) * (-keep * log_p(c)));
  const auto value = [&](int c) { return -s.factor(loss.weight, c) * label_times_log(s.labels[c] * keep + rest, log_p(c)); };
  if (s.element_losses)
    for (int c = 0; c < channels; ++c) s.element_losses[c] = value(c);
  return s.needs_sum ? static_cast<double>(row_sum(channels, value)) : 0.0;
}

double pass(const CNNLossDescriptor& loss, bool by_label, Stretch s, int channels) {
  double sum = 0;
  if (loss.loss_type != CNNLossType::SoftMaxCrossEntropy) {
    with_element_loss(loss, [&](auto f) { sum = element_pass(f, loss, by_label, s, s.pixels * channels); });
    return sum;
  }
  const auto advance = [channels](auto*& pointer) {
    if (pointer) pointer += channels;
  };
  for (std::size_t pixel = 0; pixel < s.pixels; ++pixel) {
    sum += softmax_pixel(loss, by_label, s, channels);
    advance(s.y), advance(s.labels), advance(s.weights), advance(s.gradient), advance(s.element_losses);
    if (!s.is_incoming_whole) advance(s.incoming);
  }
  return sum;
}

/// All three loss operations: the operands differ, the work does not.
class LossKernel final : public Kernel {
 public:
  /// Where each operand stands among a call's inputs and outputs; -1 where the operation has none.
  struct Operands {
    int y, gradient, loss, incoming = -1;
    bool by_label = false;
  };

  LossKernel(const CNNLossDescriptor& loss, const OperandShapes& shapes, const Operands& operands)
      : loss_(loss), operands_(operands), shape_(shapes.inputs[operands.y]),
        sums_over_batch_(loss.reduce_across_batch && loss.reduction_type != CNNReductionType::None) {
    const std::size_t at = operands.loss;
    if (operands.loss >= 0 && at < shapes.outputs.size()) loss_shape_ = shapes.outputs[at];
    if (operands.incoming >= 0) incoming_shape_ = shapes.inputs[operands.incoming];
    is_per_element_ = loss.reduction_type == CNNReductionType::None && loss_shape_.image_count() == shape_.image_count();
    const std::size_t pixels = static_cast<std::size_t>(shape_.height) * shape_.width;
    // An element costs about as much as eight elements of a copy. Parts follow from the shape alone: same bits always.
    pixels_per_part_ = std::max<std::size_t>(1, kTaskElements / 8 / std::max(1, shape_.channels));
    parts_ = pixels == 0 ? 0 : (pixels + pixels_per_part_ - 1) / pixels_per_part_;
  }

  std::size_t scratch_bytes() const override { return operands_.loss >= 0 ? shape_.images * parts_ * sizeof(Sums) : 0; }

  void run(const KernelCall& call) override {
    float* losses = operands_.loss >= 0 ? call.output<float>(operands_.loss) : nullptr;
    const bool needs_sums = losses && !is_per_element_;
    // Small parts of many images (one pixel each, say) go to one task together.
    const std::size_t part_elements = std::min<std::size_t>(pixels_per_part_ * shape_.channels, shape_.image_count());
    parallel_ranges(shape_.images * parts_, 8 * part_elements, [&](std::size_t begin, std::size_t end, int) {
      for (std::size_t task = begin; task < end; ++task) part(call, losses, needs_sums, task);
    });
    if (needs_sums) write_sums(static_cast<const Sums*>(call.scratch), call.input<float>(operands_.y + 2) != nullptr, losses);
  }

 private:
  void part(const KernelCall& call, float* losses, bool needs_sums, std::size_t task) const {
    const std::size_t n = task / parts_, first_pixel = task % parts_ * pixels_per_part_;
    const std::size_t channels = shape_.channels, at = n * shape_.image_count() + first_pixel * channels;
    const float* weights = call.input<float>(operands_.y + 2);
    Stretch s{call.input<float>(operands_.y) + at, call.input<float>(operands_.y + 1) + at, weights ? weights + at : nullptr};
    s.pixels = std::min(pixels_per_part_, static_cast<std::size_t>(shape_.height) * shape_.width - first_pixel);
    if (operands_.incoming >= 0) {
      const std::size_t count = incoming_shape_.image_count();
      s.is_incoming_whole = count == 1;
      s.incoming = call.input<float>(operands_.incoming) + (sums_over_batch_ ? 0 : n * count) + (count == 1 ? 0 : first_pixel * channels);
    }
    if (operands_.gradient >= 0 && call.output<float>(operands_.gradient)) s.gradient = call.output<float>(operands_.gradient) + at;
    if (losses && is_per_element_) s.element_losses = losses + at;
    s.needs_sum = needs_sums;
    const double sum = pass(loss_, operands_.by_label, s, shape_.channels);
    if (!needs_sums) return;
    Sums& sums = static_cast<Sums*>(call.scratch)[task];
    sums.loss = sum;
    const std::size_t elements = s.pixels * channels;
    sums.nonzero_weights = static_cast<double>(elements);
    if (weights && loss_.reduction_type == CNNReductionType::SumByNonZeroWeights)
      sums.nonzero_weights -= static_cast<double>(std::count(s.weights, s.weights + elements, 0.0f));
  }

  /// Each image's value into element 0 of its loss image, zeros behind; a sum over the batch goes to image 0 (14.3).
  void write_sums(const Sums* sums, bool has_weights, float* losses) const {
    const std::size_t stride = loss_shape_.image_count(), images = shape_.images;
    std::fill_n(losses, stride * loss_shape_.images, 0.0f);
    const std::size_t images_per_sum = sums_over_batch_ ? images : 1;
    for (std::size_t n = 0; n < images; n += images_per_sum) {
      Sums total;
      for (std::size_t i = 0; i < images_per_sum * parts_; ++i, ++sums) {
        total.loss += sums->loss;
        total.nonzero_weights += sums->nonzero_weights;
      }
      const double divisor = this->divisor(images_per_sum, has_weights ? total.nonzero_weights : -1);
      const double value = loss_.loss_type == CNNLossType::CosineDistance ? loss_.weight - total.loss : total.loss;
      losses[n * stride] = divisor == 0 ? 0.0f : static_cast<float>(value / divisor);  // all weights zero: nothing was summed
    }
  }

  double divisor(std::size_t images, double nonzero_weights) const {
    const double pixels = static_cast<double>(images) * shape_.height * shape_.width;
    switch (loss_.reduction_type) {
      case CNNReductionType::Mean:
        return loss_.loss_type == CNNLossType::SoftMaxCrossEntropy ? pixels : pixels * shape_.channels;
      case CNNReductionType::SumByNonZeroWeights: return nonzero_weights < 0 ? pixels * shape_.channels : nonzero_weights;
      default: return 1;
    }
  }

  CNNLossDescriptor loss_;
  Operands operands_;
  Shape shape_, loss_shape_{0, 0, 0, 0}, incoming_shape_{0, 0, 0, 0};
  bool sums_over_batch_, is_per_element_;
  std::size_t pixels_per_part_, parts_;
};

/// The cosine distance is one number, 1 - sum(y * t): there is nothing to average or to keep per element.
void check_reduction(const CNNLossDescriptor& loss) {
  if (loss.loss_type == CNNLossType::CosineDistance && loss.reduction_type != CNNReductionType::Sum)
    throw OptionError("the cosine distance has one value per image.", {.expected = "reduction type Sum", .hint = "CNNReductionType::Sum"});
}

}  // namespace

std::unique_ptr<Kernel> make_kernel(const LossOp& op, const OperandShapes& shapes) {
  check_reduction(op.loss);
  return std::make_unique<LossKernel>(op.loss, shapes, LossKernel::Operands{.y = 0, .gradient = 0, .loss = 1});
}

std::unique_ptr<Kernel> make_kernel(const ForwardLossOp& op, const OperandShapes& shapes) {
  check_reduction(op.loss);
  return std::make_unique<LossKernel>(op.loss, shapes, LossKernel::Operands{.y = 0, .gradient = -1, .loss = 0});
}

std::unique_ptr<Kernel> make_kernel(const LossGradientOp& op, const OperandShapes& shapes) {
  return std::make_unique<LossKernel>(
      op.loss, shapes, LossKernel::Operands{.y = 1, .gradient = 0, .loss = -1, .incoming = 0, .by_label = op.is_labels_gradient_filter});
}

}  // namespace mpsnn::cpu
