// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>

#include "mpsnn/descriptors.hpp"
#include "mpsnn/image.hpp"

/// Loss terms and their reduction, for every operation that ends in a loss (docs/semantics.md, 14).
namespace mpsnn::reference {

/// One element's share of the loss and its derivatives. For the cosine distance `value` is y * t, see write_loss().
struct Terms {
  double value, prediction_gradient, label_gradient;
};

/// The rows of 14.2. `log_p` is the logarithm of soft-max at y, used by soft-max cross entropy only.
Terms terms(const CNNLossDescriptor& loss, double y, double label, double log_p);

/// Operands of every loss operation.
struct Operands {
  const double* y;
  const double* labels;
  const double* weights;
};

inline bool sums_over_batch(const CNNLossDescriptor& loss) {
  return loss.reduce_across_batch && loss.reduction_type != CNNReductionType::None;
}

/// What the sum over `shape`, one image or the whole batch, is divided by (14.3). `weights` are those of `shape`.
inline double loss_divisor(const CNNLossDescriptor& loss, const Shape& shape, const double* weights) {
  switch (loss.reduction_type) {
    case CNNReductionType::Mean:
      return static_cast<double>(loss.loss_type == CNNLossType::SoftMaxCrossEntropy ? shape.pixels() : shape.count());
    case CNNReductionType::SumByNonZeroWeights:
      if (weights) return static_cast<double>(std::count_if(weights, weights + shape.count(), [](double w) { return w != 0; }));
      return static_cast<double>(shape.count());
    default: return 1;
  }
}

/// Writes one value per element (reduction None, image as large as y), else each image's value into its element 0 and
/// zeros into the rest; a sum over the batch goes to image 0. `for_each_term(f)` calls f(image, element, weighted terms).
template <class ForEachTerm>
void write_loss(const CNNLossDescriptor& loss, const Shape& shape, const Shape& loss_shape, const double* weights, double* out,
                ForEachTerm for_each_term) {
  std::fill_n(out, loss_shape.count(), 0.0);
  const bool per_element = loss.reduction_type == CNNReductionType::None && loss_shape.image_count() == shape.image_count();
  const std::size_t image_count = loss_shape.image_count();
  if (per_element) return for_each_term([&](std::size_t, std::size_t i, const Terms& t) { out[i] = t.value; });

  const bool across = sums_over_batch(loss);
  for_each_term([&](std::size_t n, std::size_t, const Terms& t) { out[across ? 0 : n * image_count] += t.value; });
  const Shape summed{across ? shape.images : 1, shape.height, shape.width, shape.channels};
  const int sums = across ? std::min(1, shape.images) : shape.images;
  for (int n = 0; n < sums; ++n) {
    double& value = out[n * image_count];
    const double divisor = loss_divisor(loss, summed, weights ? weights + n * shape.image_count() : nullptr);
    if (loss.loss_type == CNNLossType::CosineDistance) value = loss.weight - value;
    value = divisor == 0 ? 0 : value / divisor;  // all weights zero: nothing was summed
  }
}

}  // namespace mpsnn::reference
