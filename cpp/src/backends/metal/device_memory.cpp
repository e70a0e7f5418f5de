// SPDX-License-Identifier: Apache-2.0
#include "backends/metal/device_memory.hpp"

#include <cstring>
#include <map>

namespace mpsnn::metal {
namespace {

/// Live shared buffers by the address of their contents.
struct Registry {
  struct Entry { std::size_t bytes; MTL::Buffer* buffer; };
  std::mutex mutex;
  std::map<const std::byte*, Entry> entries;
};
Registry& registry() {
  static Registry& all = *new Registry;  // buffers may outlive static objects
  return all;
}

}  // namespace

Buffer allocate_shared(MTL::Device* device, std::size_t count) {
  const std::size_t bytes = std::max<std::size_t>(count, 1) * sizeof(float);
  MTL::Buffer* buffer = device->newBuffer(bytes, MTL::ResourceStorageModeShared);
  if (!buffer)
    throw DeviceError("the device has no " + std::to_string(bytes >> 20) + " MiB for a graph's parameters.",
                      {.node = "MTLBuffer", .expected = std::to_string(bytes) + " bytes", .actual = "none", .hint = "free other graphs first"});
  auto* contents = static_cast<std::byte*>(buffer->contents());
  std::memset(contents, 0, bytes);
  {
    std::lock_guard lock(registry().mutex);
    registry().entries[contents] = {bytes, buffer};
  }
  std::shared_ptr<void> owner(contents, [buffer = own(buffer)](void* address) mutable {
    {
      std::lock_guard lock(registry().mutex);
      registry().entries.erase(static_cast<const std::byte*>(address));
    }
    const Pool pool;
    buffer.reset();
  });
  return Buffer(owner, contents, count, ElementType::float32);
}

DevicePart device_part(const Buffer& buffer) {
  const auto* address = static_cast<const std::byte*>(buffer.data());
  std::lock_guard lock(registry().mutex);
  auto found = registry().entries.upper_bound(address);
  if (found == registry().entries.begin()) return {};
  --found;
  const std::size_t offset = address - found->first;
  if (offset + buffer.bytes() > found->second.bytes) return {};
  return {found->second.buffer, offset};
}

Buffer to_shared(MTL::Device* device, const Buffer& buffer) {
  if (buffer.type() == ElementType::float32 && device_part(buffer).buffer) return buffer;
  const Buffer shared = allocate_shared(device, buffer.count());
  shared.copy_from(buffer);
  return shared;
}

Owned<MPS::Vector> make_vector(const Buffer& shared) {
  const DevicePart part = device_part(shared);
  return own(MPS::Vector::alloc()->init(part.buffer, part.offset, MPS::VectorDescriptor::vectorDescriptor(shared.count(), MPS::DataTypeFloat32)));
}

}  // namespace mpsnn::metal
