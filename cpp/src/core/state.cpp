// SPDX-License-Identifier: Apache-2.0
#include "mpsnn/state.hpp"

#include "mpsnn/error.hpp"

namespace mpsnn {

State::~State() = default;

CNNConvolutionWeightsAndBiasesState::CNNConvolutionWeightsAndBiasesState(const CNNConvolutionDescriptor& descriptor, ElementType type)
    : weights(descriptor.weight_count(), type), biases(descriptor.output_feature_channels, type), descriptor(descriptor) {}

CNNLossLabels::CNNLossLabels(ImagePtr labels, ImagePtr weights, Shape loss_image_size) : labels_(std::move(labels)), weights_(std::move(weights)) {
  if (!labels_) throw OptionError("MPSCNNLossLabels needs a labels image.", {.node = "MPSCNNLossLabels", .expected = "an image", .actual = "none"});
  const Shape& shape = labels_->shape();
  loss_image_size.images = shape.images;
  const Shape one{shape.images, 1, 1, 1};
  if (loss_image_size != one && loss_image_size != shape)
    throw ShapeError("MPSCNNLossLabels: the loss image has one value per image, or the labels' size.",
                     {.node = "MPSCNNLossLabels", .expected = one.text() + " or " + shape.text(), .actual = loss_image_size.text(),
                      .hint = "leave the loss image's size alone"});
  if (weights_ && weights_->shape() != shape)
    throw ShapeError("MPSCNNLossLabels: the weights have the labels' shape.",
                     {.node = "MPSCNNLossLabels", .expected = shape.text(), .actual = weights_->shape().text(), .hint = "one weight per label"});
  loss_ = std::make_shared<Image>(loss_image_size, labels_->type());
}

}  // namespace mpsnn
