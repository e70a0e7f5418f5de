// SPDX-License-Identifier: Apache-2.0
#include "mpsnn/image.hpp"

#include <algorithm>
#include <cstring>
#include <new>

#include "mpsnn/error.hpp"

namespace mpsnn {
namespace {

constexpr std::align_val_t kAlignment{64};  // a cache line, and the widest vector

std::shared_ptr<void> allocate_zeroed(std::size_t bytes) {
  void* memory = ::operator new(std::max<std::size_t>(bytes, 1), kAlignment);
  std::memset(memory, 0, bytes);
  return {memory, [](void* p) { ::operator delete(p, kAlignment); }};
}

}  // namespace

std::string Shape::text() const {
  return std::to_string(images) + " x " + std::to_string(height) + " x " + std::to_string(width) + " x " + std::to_string(channels);
}

Buffer::Buffer(std::size_t count, ElementType type) : owner_(allocate_zeroed(count * element_bytes(type))), data_(owner_.get()), count_(count), type_(type) {}

Buffer::Buffer(std::shared_ptr<void> owner, void* data, std::size_t count, ElementType type)
    : owner_(std::move(owner)), data_(data), count_(count), type_(type) {}

Buffer Buffer::part(std::size_t first, std::size_t count) const {
  return {owner_, static_cast<char*>(data_) + first * element_bytes(type_), count, type_};
}

void Buffer::copy_from(const Buffer& source) const {
  if (source.count_ != count_)
    throw ShapeError("a copy needs as many numbers as its target holds.",
                     {.expected = std::to_string(count_), .actual = std::to_string(source.count_)});
  if (count_ == 0) return;
  if (type_ == source.type_) std::memmove(data_, source.data_, bytes());
  else if (type_ == ElementType::float64) std::copy_n(source.floats(), count_, doubles());
  else std::transform(source.doubles(), source.doubles() + count_, floats(), [](double v) { return static_cast<float>(v); });
}

void Buffer::fill(double value) const {
  if (type_ == ElementType::float64) std::fill_n(doubles(), count_, value);
  else std::fill_n(floats(), count_, static_cast<float>(value));
}

namespace {

const Shape& possible(const Shape& shape) {
  if (shape.images >= 0 && shape.height >= 0 && shape.width >= 0 && shape.channels >= 0) return shape;
  throw ShapeError("an image cannot be of size " + shape.text() + ".",
                   {.node = "MPSImage", .expected = "sizes of at least 0", .actual = shape.text(), .hint = "check the descriptor"});
}

}  // namespace

ImageAllocatorPtr Image::default_allocator() {
  static const ImageAllocatorPtr allocator(new ImageAllocator(false));
  return allocator;
}

ImageAllocatorPtr TemporaryImage::default_allocator() {
  static const ImageAllocatorPtr allocator(new ImageAllocator(true));
  return allocator;
}

Image::Image(Shape shape, ElementType type) : shape_(possible(shape)), buffer_(shape.count(), type) {}

Image::Image(Shape shape, Buffer buffer) : shape_(shape), buffer_(std::move(buffer)) {
  if (buffer_.count() != shape_.count())
    throw ShapeError("an image of " + shape_.text() + " needs " + std::to_string(shape_.count()) + " numbers, its memory has " +
                         std::to_string(buffer_.count()) + ".",
                     {.expected = std::to_string(shape_.count()), .actual = std::to_string(buffer_.count())});
}

}  // namespace mpsnn
