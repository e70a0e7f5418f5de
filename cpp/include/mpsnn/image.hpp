// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "mpsnn/enums.hpp"
#include "mpsnn/export.hpp"

namespace mpsnn {

/// How one element is stored. Float64 belongs to the reference engine; MPS has no such images.
enum class ElementType { float32, float64 };

constexpr std::size_t element_bytes(ElementType type) { return type == ElementType::float64 ? 8 : 4; }

/// Size of an image batch: images, height, width, channels, the last index fastest.
struct MPSNN_API Shape {
  int images = 1, height = 1, width = 1, channels = 1;
  bool operator==(const Shape&) const = default;
  std::size_t pixels() const { return std::size_t(images) * height * width; }
  std::size_t count() const { return pixels() * channels; }
  std::size_t image_count() const { return std::size_t(height) * width * channels; }
  /// "32 x 14 x 14 x 8"
  std::string text() const;
};

/// MPSImageDescriptor: what a padding policy is asked about and answers with.
struct ImageDescriptor {
  int width = 1, height = 1, feature_channels = 1, number_of_images = 1;
  ImageFeatureChannelFormat channel_format = ImageFeatureChannelFormat::Float32;
  bool operator==(const ImageDescriptor&) const = default;
  Shape shape() const { return {number_of_images, height, width, feature_channels}; }
};

/// A stretch of numbers with an owner: gradients, weights, optimizer history. Copies share the numbers.
class MPSNN_API Buffer {
 public:
  Buffer() = default;
  /// `count` zeros.
  Buffer(std::size_t count, ElementType type);
  /// A view of numbers that `owner` keeps alive.
  Buffer(std::shared_ptr<void> owner, void* data, std::size_t count, ElementType type);

  void* data() const { return data_; }
  float* floats() const { return static_cast<float*>(data_); }
  double* doubles() const { return static_cast<double*>(data_); }
  std::size_t count() const { return count_; }
  std::size_t bytes() const { return count_ * element_bytes(type_); }
  ElementType type() const { return type_; }
  const std::shared_ptr<void>& owner() const { return owner_; }
  explicit operator bool() const { return data_ != nullptr; }
  /// The numbers `[first, first + count)`, sharing memory and owner.
  Buffer part(std::size_t first, std::size_t count) const;
  /// Element `i` whatever the type.
  double at(std::size_t i) const { return type_ == ElementType::float64 ? doubles()[i] : floats()[i]; }
  /// Fills this buffer from `source`, converting between element types. Counts must agree.
  void copy_from(const Buffer& source) const;
  void fill(double value) const;

 private:
  std::shared_ptr<void> owner_;
  void* data_ = nullptr;
  std::size_t count_ = 0;
  ElementType type_ = ElementType::float32;
};

/// MPSImageAllocator: who makes an image. The two that MPS predefines exist, and no others: this engine gives every image that
/// leaves a graph memory of its own and lays out the rest itself, so the choice is kept and saved for engines that follow it.
class MPSNN_API ImageAllocator {
 public:
  ImageAllocator(const ImageAllocator&) = delete;
  ImageAllocator& operator=(const ImageAllocator&) = delete;
  /// True for MPSTemporaryImage's.
  bool is_temporary() const { return is_temporary_; }

 private:
  friend class Image;
  friend class TemporaryImage;
  explicit ImageAllocator(bool is_temporary) : is_temporary_(is_temporary) {}
  bool is_temporary_;
};
using ImageAllocatorPtr = std::shared_ptr<ImageAllocator>;

/// MPSImage: a batch of images in N, H, W, C order. A view: it may own its memory or share another owner's.
class MPSNN_API Image {
 public:
  /// A zeroed image.
  explicit Image(Shape shape, ElementType type = ElementType::float32);
  /// A view of dense N, H, W, C numbers.
  Image(Shape shape, Buffer buffer);

  const Shape& shape() const { return shape_; }
  int width() const { return shape_.width; }
  int height() const { return shape_.height; }
  int feature_channels() const { return shape_.channels; }
  int number_of_images() const { return shape_.images; }
  const Buffer& buffer() const { return buffer_; }
  ElementType type() const { return buffer_.type(); }
  float* floats() const { return buffer_.floats(); }
  /// For images that last.
  static ImageAllocatorPtr default_allocator();

  std::string label;

 private:
  Shape shape_;
  Buffer buffer_;
};
using ImagePtr = std::shared_ptr<Image>;

/// MPSTemporaryImage: only its allocator; no engine here makes images that a step takes back.
class MPSNN_API TemporaryImage {
 public:
  TemporaryImage() = delete;
  static ImageAllocatorPtr default_allocator();
};

}  // namespace mpsnn
