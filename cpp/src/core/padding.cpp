// SPDX-License-Identifier: Apache-2.0
#include "mpsnn/padding.hpp"

#include "mpsnn/error.hpp"

namespace mpsnn {
namespace {

using Method = NNPaddingMethod;
constexpr Method kTensorflowSame = Method::Custom | Method::SizeSame | Method::AddRemainderToBottomRight;
constexpr Method kTensorflowValid = Method::Custom | Method::SizeValidOnly | Method::AddRemainderToBottomRight;

/// Lets the constructor pass TensorFlow's methods, whose Custom bit forces edge mode Clamp (MPS_SEMANTICS 6.6).
bool is_tensorflow(Method method) { return method == kTensorflowSame || method == kTensorflowValid; }

}  // namespace

NNPadding::~NNPadding() = default;

std::string NNPadding::label() const { return describe(padding_method()); }

std::shared_ptr<NNPadding> NNPadding::inverse() const {
  if (has(padding_method(), Method::Custom))
    throw OptionError("padding policy \"" + label() + "\" is custom and does not say what its inverse is.",
                      {.node = "MPSNNPadding", .label = label(), .expected = "an inverse() method", .actual = "none", .hint = "override inverse()"});
  return std::make_shared<NNDefaultPadding>(inverse_padding_method(padding_method()));
}

ImageDescriptor NNPadding::destination_image_descriptor(const std::vector<ImageDescriptor>&, KernelProperties&, const ImageDescriptor& suggested) {
  return suggested;
}

NNDefaultPadding::NNDefaultPadding(Method method) : method_(method) {
  if (has(method, Method::Custom) && !is_tensorflow(method))
    throw OptionError("MPSNNDefaultPadding takes no method with the Custom bit.",
                      {.node = "MPSNNDefaultPadding", .expected = "bits without Custom (16384)", .actual = std::to_string(static_cast<std::int64_t>(method)),
                       .hint = "derive a policy of your own from MPSNNPadding, or use ExplicitPadding"});
}

std::shared_ptr<NNDefaultPadding> NNDefaultPadding::padding_for_tensorflow_average_pooling() {
  return std::make_shared<NNDefaultPadding>(kTensorflowSame);
}

std::shared_ptr<NNDefaultPadding> NNDefaultPadding::padding_for_tensorflow_average_pooling_valid_only() {
  return std::make_shared<NNDefaultPadding>(kTensorflowValid);
}

std::string NNDefaultPadding::label() const { return is_tensorflow(method_) ? "TensorFlow average pooling, " + describe(method_) : describe(method_); }

std::shared_ptr<NNPadding> NNDefaultPadding::inverse() const { return std::make_shared<NNDefaultPadding>(inverse_padding_method(method_)); }

ImageDescriptor NNDefaultPadding::destination_image_descriptor(const std::vector<ImageDescriptor>&, KernelProperties& kernel,
                                                               const ImageDescriptor& suggested) {
  if (is_tensorflow(method_)) kernel.edge_mode = ImageEdgeMode::Clamp;
  return suggested;
}

std::string ExplicitPadding::label() const {
  return "explicit padding: left " + std::to_string(left_) + ", right " + std::to_string(right_) + ", top " + std::to_string(top_) + ", bottom " +
         std::to_string(bottom_);
}

ImageDescriptor ExplicitPadding::destination_image_descriptor(const std::vector<ImageDescriptor>& source_images, KernelProperties& kernel,
                                                              const ImageDescriptor& suggested) {
  const WindowSize& size = kernel.window;
  const ImageDescriptor& source = source_images.front();
  const Axis x = resolve_explicit_axis(source.width, size.kernel_width, size.stride_in_pixels_x, size.dilation_rate_x, left_, right_);
  const Axis y = resolve_explicit_axis(source.height, size.kernel_height, size.stride_in_pixels_y, size.dilation_rate_y, top_, bottom_);
  kernel.offset_x = x.offset();
  kernel.offset_y = y.offset();
  ImageDescriptor result = suggested;
  result.width = x.output;
  result.height = y.output;
  return result;
}

PaddingPtr same_padding() {
  static const PaddingPtr policy = std::make_shared<NNDefaultPadding>(Method::SizeSame);
  return policy;
}

PaddingPtr valid_padding() {
  static const PaddingPtr policy = std::make_shared<NNDefaultPadding>(Method::SizeValidOnly);
  return policy;
}

}  // namespace mpsnn
