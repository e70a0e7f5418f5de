// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <string>

#include "mpsnn/descriptors.hpp"
#include "mpsnn/image.hpp"

namespace mpsnn {

/// MPSState: numbers that travel beside images. Accessors return views; copies share memory.
class MPSNN_API State {
 public:
  virtual ~State();
  std::string label;
};
using StatePtr = std::shared_ptr<State>;

/// MPSCNNConvolutionWeightsAndBiasesState: the weights that a kernel uses, O x kH x kW x I/groups, and O biases or none.
class MPSNN_API CNNConvolutionWeightsAndBiasesState final : public State {
 public:
  CNNConvolutionWeightsAndBiasesState(Buffer weights, Buffer biases, CNNConvolutionDescriptor descriptor)
      : weights(std::move(weights)), biases(std::move(biases)), descriptor(std::move(descriptor)) {}
  /// Zeros of the sizes that `descriptor` asks for.
  explicit CNNConvolutionWeightsAndBiasesState(const CNNConvolutionDescriptor& descriptor, ElementType type = ElementType::float32);
  Buffer weights, biases;
  CNNConvolutionDescriptor descriptor;
};

/// MPSNNGradientState: what a forward filter remembers for its gradient; opaque.
class MPSNN_API NNGradientState : public State {};

/// MPSCNNConvolutionGradientState: weight gradients, summed over the batch, in the layout of the weights.
class MPSNN_API CNNConvolutionGradientState final : public NNGradientState {
 public:
  Buffer gradient_for_weights, gradient_for_biases;
  CNNConvolutionDescriptor descriptor;
  int source_width = 0, source_height = 0;
};

/// MPSCNNBatchNormalizationState: statistics of one batch, and the gradients of gamma and beta once computed; C numbers each.
class MPSNN_API CNNBatchNormalizationState final : public NNGradientState {
 public:
  Buffer gamma, beta, mean, variance, gradient_for_gamma, gradient_for_beta;
  /// Elements per channel that the statistics were taken over: images x height x width.
  std::size_t element_count = 0;
};

/// MPSCNNInstanceNormalizationGradientState and MPSCNNGroupNormalizationGradientState: gradients of gamma and beta, summed over
/// the images of the batch; C numbers each.
class MPSNN_API CNNAffineGradientState final : public NNGradientState {
 public:
  Buffer gamma, beta, gradient_for_gamma, gradient_for_beta;
};

/// MPSCNNNormalizationGammaAndBetaState.
class MPSNN_API CNNNormalizationGammaAndBetaState final : public State {
 public:
  CNNNormalizationGammaAndBetaState(Buffer gamma, Buffer beta) : gamma(std::move(gamma)), beta(std::move(beta)) {}
  Buffer gamma, beta;
};

/// MPSCNNNormalizationMeanAndVarianceState.
class MPSNN_API CNNNormalizationMeanAndVarianceState final : public State {
 public:
  CNNNormalizationMeanAndVarianceState(Buffer mean, Buffer variance) : mean(std::move(mean)), variance(std::move(variance)) {}
  Buffer mean, variance;
};

/// MPSCNNLossLabels: labels and weights that go into a loss node, and the loss that comes out (MPS_SEMANTICS 14.4).
/// One object may hold a whole batch.
class MPSNN_API CNNLossLabels final : public State {
 public:
  /// `loss_image_size` is 1 x 1 x 1 per image (the default) or the labels' size. Throws ShapeError for any other, or when
  /// the weights' shape is not the labels'.
  explicit CNNLossLabels(ImagePtr labels, ImagePtr weights = nullptr, Shape loss_image_size = {0, 1, 1, 1});
  const ImagePtr& labels_image() const { return labels_; }
  const ImagePtr& weights_image() const { return weights_; }
  /// The loss of each image after the command buffer has completed.
  const ImagePtr& loss_image() const { return loss_; }

 private:
  ImagePtr labels_, weights_, loss_;
};

}  // namespace mpsnn
