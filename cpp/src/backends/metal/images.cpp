// SPDX-License-Identifier: Apache-2.0
#include "backends/metal/images.hpp"

#include <bit>

namespace mpsnn::metal {

std::uint16_t to_half(float value) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value), magnitude = bits & 0x7fffffff;
  const std::uint16_t sign = static_cast<std::uint16_t>(bits >> 16 & 0x8000);
  if (magnitude > 0x7f800000) return sign | 0x7e00;   // NaN
  if (magnitude >= 0x477ff000) return sign | 0x7c00;  // 65520 and more round to infinity
  // Below the smallest normal half, adding 0.5 leaves the half's bits at the end of the float, rounded to even.
  if (magnitude < 0x38800000) return sign | static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - 0x3f000000);
  const std::uint32_t rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
  return sign | static_cast<std::uint16_t>((rounded >> 13) - (112 << 10));
}

float from_half(std::uint16_t half) {
  const std::uint32_t sign = std::uint32_t(half & 0x8000) << 16, exponent = half >> 10 & 31, mantissa = half & 1023;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000 | mantissa << 13);
  if (exponent == 0) return (sign ? -1.0f : 1.0f) * static_cast<float>(mantissa) * 0x1p-24f;
  return std::bit_cast<float>(sign | (exponent + 112) << 23 | mantissa << 13);
}

Images make_images(MTL::Device* device, const Shape& shape, ImageFeatureChannelFormat format) {
  const auto stored = format == ImageFeatureChannelFormat::Float16 ? MPS::ImageFeatureChannelFormatFloat16 : MPS::ImageFeatureChannelFormatFloat32;
  Images images;
  for (int i = 0; i < shape.images; ++i) {
    auto* descriptor = MPS::ImageDescriptor::imageDescriptor(stored, shape.width, shape.height, shape.channels);
    images.push_back(own(MPS::Image::alloc()->init(device, descriptor)));
    if (!images.back())
      throw DeviceError("the device did not make an image of " + shape.text() + ".",
                        {.node = "MPSImage", .expected = "an image", .actual = "nil", .hint = "fewer images per step, or smaller ones"});
  }
  return images;
}

namespace {

constexpr auto kLayout = MPS::DataLayoutHeightxWidthxFeatureChannels;

}  // namespace

void write(const Images& images, const float* numbers, const Shape& shape) {
  const std::size_t count = shape.image_count();
  std::vector<std::uint16_t> halves;
  for (const Owned<MPS::Image>& image : images) {
    if (image->featureChannelFormat() == MPS::ImageFeatureChannelFormatFloat16) {
      halves.resize(count);
      for (std::size_t i = 0; i < count; ++i) halves[i] = to_half(numbers[i]);
      image->writeBytes(halves.data(), kLayout, 0);
    } else {
      image->writeBytes(numbers, kLayout, 0);
    }
    numbers += count;
  }
}

void read(MPS::Image* image, float* numbers, const Shape& single, const std::string& what) {
  const Shape actual{single.images, static_cast<int>(image->height()), static_cast<int>(image->width()), static_cast<int>(image->featureChannels())};
  if (actual != single)
    throw DeviceError(what + ": MPS made an image of another size than MPS_SEMANTICS says.",
                      {.node = "MPSImage", .label = what, .expected = single.text(), .actual = actual.text(), .hint = "please report it: a rule of this engine is wrong"});
  const std::size_t count = single.image_count();
  switch (image->featureChannelFormat()) {
    case MPS::ImageFeatureChannelFormatFloat32: return image->readBytes(numbers, kLayout, 0);
    case MPS::ImageFeatureChannelFormatUnorm8: {
      std::vector<std::uint8_t> bytes(count);
      image->readBytes(bytes.data(), kLayout, 0);
      for (std::size_t i = 0; i < count; ++i) numbers[i] = static_cast<float>(bytes[i]) / 255;
      return;
    }
    default: break;
  }
  const bool is_half = image->featureChannelFormat() == MPS::ImageFeatureChannelFormatFloat16;
  std::vector<std::uint16_t> words(count);
  image->readBytes(words.data(), kLayout, 0);
  for (std::size_t i = 0; i < count; ++i) numbers[i] = is_half ? from_half(words[i]) : static_cast<float>(words[i]) / 65535;
}

void read(const NS::Array* batch, float* numbers, const Shape& shape, const std::string& what) {
  if (count(batch) != static_cast<std::size_t>(shape.images))
    throw DeviceError(what + ": MPS returned another number of images.", {.node = "MPSNNGraph", .label = what, .expected = std::to_string(shape.images),
                                                                          .actual = std::to_string(count(batch)), .hint = "please report it: a rule of this engine is wrong"});
  Shape single = shape;
  single.images = 1;
  for (NS::UInteger i = 0; i < count(batch); ++i) read(batch->object<MPS::Image>(i), numbers + i * shape.image_count(), single, what);
}

}  // namespace mpsnn::metal
