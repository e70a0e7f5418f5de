// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <memory>
#include <utility>

#include "backends/backend.hpp"
#include "backends/cpu/loops.hpp"

/// Passes over losses and their reduction, for every operation that ends in a loss (docs/semantics.md, 14).
namespace mpsnn::cpu {

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
  /// `count` pixels from element `i` on.
  Stretch from(std::size_t i, std::size_t count) const {
    const auto moved = [i](auto* p) { return p ? p + i : nullptr; };
    return {y + i, moved(labels), moved(weights), is_incoming_whole ? incoming : moved(incoming), is_incoming_whole, moved(gradient), moved(element_losses), needs_sum, count};
  }
};

/// Pixels whose losses are summed up one by one before they meet.
constexpr std::size_t kSummedPixels = 64;

/// Sums of a stretch, in double: an image may have millions of elements.
struct Sums {
  double loss = 0, nonzero_weights = 0;
};

/// Terms of a stretch: writes what it asks for and returns its sum, if asked for. Any type; for the cosine distance the sum of
/// y * t.
double loss_pass(const CNNLossDescriptor& loss, bool by_label, const Stretch& s, int channels);

/// Where each operand stands among a call's inputs and outputs; -1 where the operation has none. Labels and weights follow y.
struct LossOperands {
  int y, gradient, loss, incoming = -1;
};

/// A loss operation whose pass is `pass(stretch, channels)`, which returns the stretch's sum; a pass with pixel_sums() does better on
/// several pixels, also where each is an image. The descriptor says how sums are reduced.
template <class Pass>
class LossKernel final : public Kernel {
 public:
  LossKernel(const CNNLossDescriptor& loss, const OperandShapes& shapes, const LossOperands& operands, Pass pass)
      : pass_(std::move(pass)), loss_(loss), operands_(operands), shape_(shapes.inputs[operands.y]),
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
      if constexpr (requires(float* sums) { pass_.pixel_sums(Stretch{}, 0, sums); })
        if (pass_.has_pixel_sums() && shape_.height * shape_.width == 1 && operands_.incoming < 0) return single_pixels(call, losses, needs_sums, begin, end);
      for (std::size_t task = begin; task < end; ++task) part(call, losses, needs_sums, task);
    });
    if (needs_sums) write_sums(static_cast<const Sums*>(call.scratch), call.input<float>(operands_.y + 2) != nullptr, losses);
  }

 private:
  Stretch stretch(const KernelCall& call, float* losses, std::size_t at) const {
    const float* weights = call.input<float>(operands_.y + 2);
    Stretch s{call.input<float>(operands_.y) + at, call.input<float>(operands_.y + 1) + at, weights ? weights + at : nullptr};
    if (operands_.gradient >= 0 && call.output<float>(operands_.gradient)) s.gradient = call.output<float>(operands_.gradient) + at;
    if (losses && is_per_element_) s.element_losses = losses + at;
    return s;
  }

  void keep_sums(const KernelCall& call, const Stretch& s, std::size_t task, double loss) const {
    Sums& sums = static_cast<Sums*>(call.scratch)[task];
    sums.loss = loss;
    const std::size_t elements = s.pixels * shape_.channels;
    sums.nonzero_weights = static_cast<double>(elements);
    if (s.weights && loss_.reduction_type == CNNReductionType::SumByNonZeroWeights)
      sums.nonzero_weights -= static_cast<double>(std::count(s.weights, s.weights + elements, 0.0f));
  }

  void part(const KernelCall& call, float* losses, bool needs_sums, std::size_t task) const {
    const std::size_t n = task / parts_, first_pixel = task % parts_ * pixels_per_part_;
    const std::size_t channels = shape_.channels;
    Stretch s = stretch(call, losses, n * shape_.image_count() + first_pixel * channels);
    s.pixels = std::min(pixels_per_part_, static_cast<std::size_t>(shape_.height) * shape_.width - first_pixel);
    if (operands_.incoming >= 0) {
      const std::size_t count = incoming_shape_.image_count();
      s.is_incoming_whole = count == 1;
      s.incoming = call.input<float>(operands_.incoming) + (sums_over_batch_ ? 0 : n * count) + (count == 1 ? 0 : first_pixel * channels);
    }
    s.needs_sum = needs_sums;
    const double sum = pass_(s, shape_.channels);
    if (needs_sums) keep_sums(call, s, task, sum);
  }

  /// Images of one pixel.
  void single_pixels(const KernelCall& call, float* losses, bool needs_sums, std::size_t begin, std::size_t end) const {
    float sums[kSummedPixels];
    for (std::size_t n = begin; n < end; n += kSummedPixels) {
      Stretch s = stretch(call, losses, n * shape_.channels);
      s.pixels = std::min(kSummedPixels, end - n);
      pass_.pixel_sums(s, shape_.channels, sums);
      for (std::size_t i = 0; needs_sums && i < s.pixels; ++i)
        keep_sums(call, s.from(i * shape_.channels, 1), n + i, sums[i]);
    }
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

  Pass pass_;
  CNNLossDescriptor loss_;
  LossOperands operands_;
  Shape shape_, loss_shape_{0, 0, 0, 0}, incoming_shape_{0, 0, 0, 0};
  bool sums_over_batch_, is_per_element_;
  std::size_t pixels_per_part_, parts_;
};

template <class Pass>
std::unique_ptr<Kernel> loss_kernel(const CNNLossDescriptor& loss, const OperandShapes& shapes, const LossOperands& operands, Pass pass) {
  return std::make_unique<LossKernel<Pass>>(loss, shapes, operands, std::move(pass));
}

}  // namespace mpsnn::cpu
