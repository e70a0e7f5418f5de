// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "mpsnn/geometry.hpp"
#include "mpsnn/image.hpp"

namespace mpsnn {

/// What a custom padding policy sees of the kernel it is asked about. It may change `offset_x`, `offset_y` (the position
/// of the window's centre for result pixel 0) and `edge_mode`; the rest is for reading.
struct KernelProperties {
  std::string label;
  WindowSize window;
  int offset_x = 0, offset_y = 0;
  ImageEdgeMode edge_mode = ImageEdgeMode::Zero;
};

/// MPSNNPadding: decides the size of a result and where its windows start (MPS_SEMANTICS 6).
class MPSNN_API NNPadding {
 public:
  virtual ~NNPadding();
  virtual NNPaddingMethod padding_method() const = 0;
  virtual std::string label() const;
  /// The policy of the gradient direction.
  virtual std::shared_ptr<NNPadding> inverse() const;
  /// Asked when the method has the Custom bit. `suggested` follows the method's other bits, and so does `kernel`.
  virtual ImageDescriptor destination_image_descriptor(const std::vector<ImageDescriptor>& source_images, KernelProperties& kernel,
                                                       const ImageDescriptor& suggested);
};
using PaddingPtr = std::shared_ptr<NNPadding>;

/// MPSNNDefaultPadding: a bit field, or one of TensorFlow's two average-pooling conventions.
class MPSNN_API NNDefaultPadding final : public NNPadding {
 public:
  /// Throws OptionError when `method` has the Custom bit.
  explicit NNDefaultPadding(NNPaddingMethod method);
  static std::shared_ptr<NNDefaultPadding> padding_for_tensorflow_average_pooling();
  static std::shared_ptr<NNDefaultPadding> padding_for_tensorflow_average_pooling_valid_only();
  NNPaddingMethod padding_method() const override { return method_; }
  std::string label() const override;
  std::shared_ptr<NNPadding> inverse() const override;
  ImageDescriptor destination_image_descriptor(const std::vector<ImageDescriptor>& source_images, KernelProperties& kernel,
                                               const ImageDescriptor& suggested) override;

 private:
  NNPaddingMethod method_;
};

/// Our own: so many virtual pixels on each side, as other frameworks say it; negative numbers crop.
class MPSNN_API ExplicitPadding final : public NNPadding {
 public:
  ExplicitPadding(int left, int right, int top, int bottom) : left_(left), right_(right), top_(top), bottom_(bottom) {}
  NNPaddingMethod padding_method() const override { return NNPaddingMethod::Custom | NNPaddingMethod::CustomAllowForNodeFusion; }
  std::string label() const override;
  ImageDescriptor destination_image_descriptor(const std::vector<ImageDescriptor>& source_images, KernelProperties& kernel,
                                               const ImageDescriptor& suggested) override;
  int left() const { return left_; }
  int right() const { return right_; }
  int top() const { return top_; }
  int bottom() const { return bottom_; }

 private:
  int left_, right_, top_, bottom_;
};

/// AlignCentered, AddRemainderToTopLeft, SizeSame: the default of almost every node.
MPSNN_API PaddingPtr same_padding();
/// SizeValidOnly: the default of fully connected nodes.
MPSNN_API PaddingPtr valid_padding();

}  // namespace mpsnn
