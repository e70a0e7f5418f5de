// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "backends/metal/objc.hpp"
#include "mpsnn/image.hpp"

/// Memory that the CPU and the GPU share: parameters and optimizer history live there, so that nothing is copied to read them.
namespace mpsnn::metal {

/// Zeros in a shared buffer of the device.
Buffer allocate_shared(MTL::Device* device, std::size_t count);
struct DevicePart {
  MTL::Buffer* buffer = nullptr;  ///< null: not memory of allocate_shared()
  std::size_t offset = 0;         ///< bytes
};
/// Where on the device the numbers of `buffer` are.
DevicePart device_part(const Buffer& buffer);
/// The same numbers in shared memory: `buffer` itself, or a copy.
Buffer to_shared(MTL::Device* device, const Buffer& buffer);
/// A vector over shared memory.
Owned<MPS::Vector> make_vector(const Buffer& shared);

}  // namespace mpsnn::metal
