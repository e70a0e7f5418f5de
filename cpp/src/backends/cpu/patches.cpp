// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <climits>

#include "backends/cpu/convolution_kernels.hpp"
#include "core/parallel.hpp"

namespace mpsnn::cpu {
namespace {

int patch_depth(const ConvolutionGeometry& geometry) {
  return geometry.window.y.kernel * geometry.window.x.kernel * geometry.input_channels;
}

/// A convolution of few pixels is a fully connected layer, whose images are the patches under its windows: copying those costs less than
/// packing weights of which each serves a few pixels.
class PatchKernel final : public Kernel {
 public:
  PatchKernel(ConvolutionPass pass, const ConvolutionGeometry& geometry, int images, std::unique_ptr<Kernel> product)
      : pass_(pass), geometry_(geometry), images_(std::max(0, images)), depth_(patch_depth(geometry)), product_(std::move(product)) {
    patches_offset_ = scratch_.add(pixels() * depth_);
    product_offset_ = scratch_.add(product_->scratch_bytes() / sizeof(float));
  }

  std::size_t scratch_bytes() const override { return scratch_.floats() * sizeof(float); }
  std::string algorithm() const override { return (pass_ == ConvolutionPass::data_gradient ? "col2im of " : "im2col, ") + product_->algorithm(); }

  void run(const KernelCall& call) override {
    float* result = call.output<float>(0);
    float* patches = static_cast<float*>(call.scratch) + patches_offset_;
    KernelCall product = call;
    product.scratch = static_cast<float*>(call.scratch) + product_offset_;
    const auto at = [](const float* operand) { return const_cast<float*>(operand); };
    if (pass_ == ConvolutionPass::data_gradient) {
      if (!result) return;
      void* const inputs[] = {at(call.input<float>(0)), at(call.input<float>(1))};
      void* const outputs[] = {patches};
      product.inputs = inputs;
      product.outputs = outputs;
      product_->run(product);
      return add_patches(patches, call.input<float>(2), result);
    }
    const bool is_forward = pass_ == ConvolutionPass::forward;
    if (result) copy_patches(call.input<float>(is_forward ? 0 : 1), patches);
    void* const inputs[] = {is_forward ? patches : at(call.input<float>(0)), is_forward ? at(call.input<float>(1)) : patches, at(call.input<float>(2))};
    product.inputs = inputs;
    product_->run(product);
  }

 private:
  std::size_t pixels() const { return pixels_of(images_, geometry_.window.y.output, geometry_.window.x.output); }

  /// The pixel of an axis that a tap reads; -1 for none.
  int pixel(const Axis& axis, int o, int tap) const {
    const int at = axis.tap(o, tap);
    if (geometry_.edge_mode == ImageEdgeMode::Clamp) return clamp_index(at, axis.input);
    return at >= 0 && at < axis.input ? at : -1;
  }

  /// f(tap, pixel of the image that it reads or -1) for all taps of a window.
  template <class F>
  void for_taps(int line, int column, F&& f) const {
    const Axis &y = geometry_.window.y, &x = geometry_.window.x;
    for (int i = 0; i < y.kernel; ++i) {
      const int row = pixel(y, line, i);
      for (int j = 0; j < x.kernel; ++j) {
        const int at = pixel(x, column, j);
        f(i * x.kernel + j, row < 0 || at < 0 ? -1 : row * x.input + at);
      }
    }
  }

  void copy_patches(const float* x, float* patches) const {
    const int lines = geometry_.window.y.output, columns = geometry_.window.x.output, channels = geometry_.input_channels;
    parallel_for(pixels(), [&](std::size_t p, int) {
      const float* image = x + p / (std::size_t(lines) * columns) * image_floats();
      for_taps(static_cast<int>(p / columns % lines), static_cast<int>(p % columns), [&](int tap, int at) {
        float* to = patches + p * depth_ + std::ptrdiff_t(tap) * channels;
        if (at < 0) std::fill_n(to, channels, 0.0f);
        else std::copy_n(image + std::ptrdiff_t(at) * channels, channels, to);
      });
    });
  }

  /// A task owns some channels of an image.
  void add_patches(const float* patches, const float* bias, float* result) const {
    const int lines = geometry_.window.y.output, columns = geometry_.window.x.output, channels = geometry_.input_channels;
    const int stretches = ceil_divide(channels, kStretch);
    parallel_for(std::size_t(images_) * stretches, [&](std::size_t task, int) {
      const int first = static_cast<int>(task % stretches) * kStretch, count = std::min(kStretch, channels - first);
      const std::size_t image = task / stretches;
      float* to = result + image * image_floats() + first;
      for (int p = 0; p < geometry_.window.y.input * geometry_.window.x.input; ++p)
        for (int c = 0; c < count; ++c) to[std::ptrdiff_t(p) * channels + c] = bias ? bias[first + c] : 0.0f;
      const float* from = patches + image * lines * columns * depth_ + first;
      for (int p = 0; p < lines * columns; ++p, from += depth_)
        for_taps(p / columns, p % columns, [&](int tap, int at) {
          if (at >= 0) isa().add_block(1, count, from + std::ptrdiff_t(tap) * channels, 0, to + std::ptrdiff_t(at) * channels, 0);
        });
    });
  }

  std::size_t image_floats() const {
    return std::size_t(geometry_.window.y.input) * geometry_.window.x.input * geometry_.input_channels;
  }

  static constexpr int kStretch = 128;

  ConvolutionPass pass_;
  ConvolutionGeometry geometry_;
  int images_, depth_;
  std::unique_ptr<Kernel> product_;
  ScratchLayout scratch_;
  std::size_t patches_offset_ = 0, product_offset_ = 0;
};

/// Whether the image is its patches: one tap on each pixel.
bool is_its_patches(const Window& window) {
  const auto is_plain = [](const Axis& axis) { return axis.kernel == 1 && axis.stride == 1 && axis.before == 0 && axis.input == axis.output; };
  return is_plain(window.y) && is_plain(window.x);
}

}  // namespace

std::string patches_obstacle(const ConvolutionProblem& p) {
  if (p.geometry.groups != 1) return "it has groups";
  if (!p.has_natural_weights) return "the weights are those of a transposed convolution";
  if (p.sub_pixel_scale > 1) return "sub-pixels";
  if (p.output_pixels() == 0 || p.input_pixels() == 0) return "no windows";
  return fully_connected_obstacle(p.pass, p.geometry.output_channels, static_cast<int>(std::min<std::size_t>(p.output_pixels(), INT_MAX)));
}

double patches_cycles(const ConvolutionProblem& p) {
  const int depth = patch_depth(p.geometry), pixels = static_cast<int>(p.output_pixels());
  const double copies = is_its_patches(p.geometry.window) ? 0 : double(pixels) * depth;
  return fully_connected_cycles(p.pass, depth, p.geometry.output_channels, pixels) + copies;
}

std::unique_ptr<Kernel> make_patches(const ConvolutionProblem& p) {
  auto product = make_fully_connected(p.pass, patch_depth(p.geometry), p.geometry.output_channels, static_cast<int>(p.output_pixels()));
  if (is_its_patches(p.geometry.window)) return product;
  return std::make_unique<PatchKernel>(p.pass, p.geometry, p.images, std::move(product));
}

}  // namespace mpsnn::cpu
