// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "backends/metal/objc.hpp"
#include "mpsnn/image.hpp"

/// Numbers between our images, one per batch in N x H x W x C, and MPS's, one object per image.
namespace mpsnn::metal {

using Images = std::vector<Owned<MPS::Image>>;

/// `shape.images` images; Float32 unless `format` says Float16.
Images make_images(MTL::Device* device, const Shape& shape, ImageFeatureChannelFormat format);
void write(const Images& images, const float* numbers, const Shape& shape);
/// The images of a batch that a graph returned; throws DeviceError when they have another size.
void read(const NS::Array* batch, float* numbers, const Shape& shape, const std::string& what);
void read(MPS::Image* image, float* numbers, const Shape& single, const std::string& what);

std::uint16_t to_half(float value);
float from_half(std::uint16_t half);

}  // namespace mpsnn::metal
