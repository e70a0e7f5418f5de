// SPDX-License-Identifier: Apache-2.0
#include "mpsnn/descriptors.hpp"

#include <cstdint>
#include <utility>

#include "mpsnn/error.hpp"

namespace mpsnn {

std::size_t CNNConvolutionDescriptor::weight_count() const {
  return std::size_t(output_feature_channels) * kernel_height * kernel_width * input_channels_per_group();
}

std::string CNNConvolutionDescriptor::weight_shape_text() const {
  return std::to_string(output_feature_channels) + " x " + std::to_string(kernel_height) + " x " + std::to_string(kernel_width) + " x " +
         std::to_string(input_channels_per_group());
}

void CNNConvolutionDescriptor::validate(const std::string& label) const {
  auto fail = [&](const std::string& what, const std::string& expected, const std::string& actual, const std::string& hint) {
    throw OptionError("convolution \"" + label + "\": " + what,
                      {.node = "MPSCNNConvolutionDescriptor", .label = label, .expected = expected, .actual = actual, .hint = hint});
  };
  auto at_least_one = [&](const char* name, int value) {
    if (value < 1) fail(std::string(name) + " must be at least 1.", ">= 1", std::to_string(value), "give a positive " + std::string(name));
  };
  at_least_one("kernel_width", kernel_width);
  at_least_one("kernel_height", kernel_height);
  at_least_one("input_feature_channels", input_feature_channels);
  at_least_one("output_feature_channels", output_feature_channels);
  at_least_one("stride_in_pixels_x", stride_in_pixels_x);
  at_least_one("stride_in_pixels_y", stride_in_pixels_y);
  at_least_one("dilation_rate_x", dilation_rate_x);
  at_least_one("dilation_rate_y", dilation_rate_y);
  at_least_one("groups", groups);
  at_least_one("sub_pixel_scale_factor", sub_pixel_scale_factor);
  // Weights are counted in 32 bits by other parts of Metal, too; more than 8 GB of them is a mistake.
  constexpr double kMostWeights = 1u << 31;
  if (double(output_feature_channels) * kernel_height * kernel_width * input_channels_per_group() > kMostWeights)
    fail("it would have too many weights.", "at most 2^31", weight_shape_text(), "check channels and kernel sizes");
  if (is_depthwise()) {
    if (groups != 1) fail("a depthwise convolution has groups 1.", "1", std::to_string(groups), "leave groups alone: every channel is its own group");
    if (output_feature_channels % input_feature_channels != 0)
      fail("output channels must be a multiple of input channels.", "a multiple of " + std::to_string(input_feature_channels),
           std::to_string(output_feature_channels), "output_feature_channels = channel_multiplier x input_feature_channels");
  } else if (input_feature_channels % groups != 0 || output_feature_channels % groups != 0) {
    fail("groups must divide both channel counts.", "a divisor of " + std::to_string(input_feature_channels) + " and " + std::to_string(output_feature_channels),
         std::to_string(groups), "groups=1, or channel counts that are multiples of it");
  }
  for (const auto& [name, values] : {std::pair{"mean", &batch_mean}, {"variance", &batch_variance}, {"gamma", &batch_gamma}, {"beta", &batch_beta}}) {
    const bool is_optional = batch_mean.empty() || values == &batch_gamma || values == &batch_beta;
    if (int(values->size()) == output_feature_channels || (values->empty() && is_optional)) continue;
    fail(std::string("folded batch normalization needs one ") + name + " per output channel.", std::to_string(output_feature_channels),
         std::to_string(values->size()), "give output_feature_channels values");
  }
  const std::int64_t block = std::int64_t(sub_pixel_scale_factor) * sub_pixel_scale_factor;
  if (output_feature_channels % block != 0)
    fail("the squared sub-pixel scale factor must divide the output channels.", "a multiple of " + std::to_string(block),
         std::to_string(output_feature_channels), "output_feature_channels = channels x scale x scale");
  if (fused_neuron_descriptor.neuron_type == CNNNeuronType::PReLU && int(fused_neuron_descriptor.data.size()) != output_feature_channels)
    fail("a fused PReLU needs one slope per output channel.", std::to_string(output_feature_channels),
         std::to_string(fused_neuron_descriptor.data.size()), "give output_feature_channels slopes");
}

}  // namespace mpsnn
