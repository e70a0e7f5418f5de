// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "backends/cpu/channel_sums.hpp"
#include "backends/cpu/kernels.hpp"
#include "backends/cpu/loops.hpp"

namespace mpsnn::cpu {
namespace {

/// Statistics of the groups of every image, made from those of its channels. Scratch begins with the sums of the parts of images,
/// two rows of channels each, and goes on with rows of floats, one of each kind for an image.
class ImageGroups {
 public:
  ImageGroups(const Shape& shape, int groups, float epsilon)
      : shape_(shape), groups_(groups), epsilon_(epsilon), parts_(Shape{1, shape.height, shape.width, shape.channels}) {}

  std::size_t scratch_bytes(int rows_of_floats) const {
    return shape_.images * (parts_.sums_bytes() + sizeof(float) * rows_of_floats * shape_.channels);
  }
  const PixelParts& parts() const { return parts_; }
  int channels_per_group() const { return shape_.channels / groups_; }

  /// The sums of image `n`, part 0.
  double* sums(const KernelCall& call, int n) const {
    return static_cast<double*>(call.scratch) + static_cast<std::size_t>(n) * parts_.parts * 2 * shape_.channels;
  }
  /// Row `kind` of image `n`.
  float* row(const KernelCall& call, int kind, int n) const {
    return reinterpret_cast<float*>(sums(call, shape_.images)) + (static_cast<std::size_t>(kind) * shape_.images + n) * shape_.channels;
  }

  /// Calls body(first pixel of the image, last + 1, elements in front of the image, image, sums) for every part.
  template <class Body>
  void for_each_part(const KernelCall& call, Body&& body) const {
    const std::size_t parts = parts_.parts, part_elements = std::min(parts_.pixels, parts_.pixels_per_part) * shape_.channels;
    parallel_ranges(shape_.images * parts, part_elements, [&](std::size_t first, std::size_t last, int) {
      for (std::size_t task = first; task < last; ++task) {
        const std::size_t n = task / parts, begin = task % parts * parts_.pixels_per_part;
        body(begin, std::min(parts_.pixels, begin + parts_.pixels_per_part), n * shape_.image_count(), static_cast<int>(n),
             sums(call, 0) + task * 2 * shape_.channels);
      }
    });
  }

  /// means, inverses := mean and 1 / deviation of each channel's group, rows 0 and 1 of every image.
  void find_statistics(const KernelCall& call, const float* x) const {
    const std::size_t channels = shape_.channels;
    for_each_part(call, [&](std::size_t begin, std::size_t end, std::size_t image, int, double* sums) {
      part_statistics(parts_, x + image, begin, end, sums, sums + channels);
    });
    if (parts_.parts == 0) return;
    for (int n = 0; n < shape_.images; ++n) {
      double* mean = sums(call, n);
      double count = static_cast<double>(std::min(parts_.pixels, parts_.pixels_per_part));
      for (int part = 1; part < parts_.parts; ++part) {
        const double* other = mean + part * 2 * channels;
        const std::size_t begin = part * parts_.pixels_per_part;
        merge(count, mean, mean + channels, static_cast<double>(std::min(parts_.pixels_per_part, parts_.pixels - begin)), other,
              other + channels, shape_.channels);
      }
      for (int group = 0; group < groups_; ++group) finish_group(call, n, group, mean, mean + channels);
    }
  }

 private:
  void finish_group(const KernelCall& call, int n, int group, double* mean, double* squares) const {
    const int first = group * channels_per_group(), last = first + channels_per_group();
    const double pixels = static_cast<double>(parts_.pixels);
    double count = pixels;
    for (int c = first + 1; c < last; ++c) merge(count, mean + first, squares + first, pixels, mean + c, squares + c, 1);
    const double inverse = 1.0 / std::sqrt(std::max(0.0, squares[first]) / count + epsilon_);
    std::fill(row(call, 0, n) + first, row(call, 0, n) + last, static_cast<float>(mean[first]));
    std::fill(row(call, 1, n) + first, row(call, 1, n) + last, static_cast<float>(inverse));
  }

  Shape shape_;
  int groups_;
  float epsilon_;
  PixelParts parts_;
};

/// gradient := scale * e - (constant + (x - mean) * slope)
void source_gradient(const float* __restrict e, const float* __restrict x, float* __restrict gradient, std::size_t pixels, int channels,
                     const float* __restrict mean, const float* __restrict scale, const float* __restrict constant,
                     const float* __restrict slope) {
  for (std::size_t p = 0; p < pixels; ++p, e += channels, x += channels, gradient += channels)
    for (int c = 0; c < channels; ++c) gradient[c] = scale[c] * e[c] - (constant[c] + (x[c] - mean[c]) * slope[c]);
}

class GroupNormalizationGradient final : public Kernel {
 public:
  GroupNormalizationGradient(const GroupNormalizationGradientOp& op, const Shape& shape)
      : groups_(shape, op.groups, op.epsilon), shape_(shape), group_count_(op.groups) {}

  std::size_t scratch_bytes() const override { return groups_.scratch_bytes(5); }

  void run(const KernelCall& call) override {
    const std::size_t channels = shape_.channels;
    const float *incoming = call.input<float>(0), *x = call.input<float>(1);
    if (float* out = call.output<float>(1)) std::fill_n(out, channels, 0.0f);
    if (float* out = call.output<float>(2)) std::fill_n(out, channels, 0.0f);
    if (shape_.count() == 0) return;
    groups_.find_statistics(call, x);
    groups_.for_each_part(call, [&](std::size_t begin, std::size_t end, std::size_t image, int n, double* sums) {
      part_products(groups_.parts(), incoming + image, x + image, {groups_.row(call, kMean, n), nullptr, nullptr}, begin, end, sums, sums + channels);
    });
    for (int n = 0; n < shape_.images; ++n) finish_image(call, n);
    sum_parameters(call);
    float* gradient = call.output<float>(0);
    if (!gradient) return;
    groups_.for_each_part(call, [&](std::size_t begin, std::size_t end, std::size_t image, int n, double*) {
      const std::size_t at = image + begin * channels;
      source_gradient(incoming + at, x + at, gradient + at, end - begin, shape_.channels, groups_.row(call, kMean, n),
                      groups_.row(call, kScale, n), groups_.row(call, kConstant, n), groups_.row(call, kSlope, n));
    });
  }

 private:
  enum Row { kMean, kInverse, kScale, kConstant, kSlope };

  /// Adds the parts of image `n` to part 0 and works out what its elements need.
  void finish_image(const KernelCall& call, int n) const {
    const int channels = shape_.channels;
    double *sums = groups_.sums(call, n), *products = sums + channels;
    for (int part = 1; part < groups_.parts().parts; ++part)
      for (int c = 0; c < 2 * channels; ++c) sums[c] += sums[static_cast<std::size_t>(part) * 2 * channels + c];
    const float *inverse = groups_.row(call, kInverse, n), *gamma = call.input<float>(2);
    const double count = static_cast<double>(groups_.parts().pixels) * groups_.channels_per_group();
    for (int group = 0; group < group_count_; ++group) {
      const int first = group * groups_.channels_per_group(), last = first + groups_.channels_per_group();
      double sum = 0, product = 0;
      for (int c = first; c < last; ++c) {
        products[c] *= inverse[c];
        sum += sums[c] * (gamma ? gamma[c] : 1.0);
        product += products[c] * (gamma ? gamma[c] : 1.0);
      }
      for (int c = first; c < last; ++c) {
        groups_.row(call, kScale, n)[c] = static_cast<float>((gamma ? gamma[c] : 1.0) * inverse[c]);
        groups_.row(call, kConstant, n)[c] = static_cast<float>(sum / count * inverse[c]);
        groups_.row(call, kSlope, n)[c] = static_cast<float>(product / count * inverse[c] * inverse[c]);
      }
    }
  }

  void sum_parameters(const KernelCall& call) const {
    float *gamma_gradient = call.output<float>(1), *beta_gradient = call.output<float>(2);
    const int channels = shape_.channels;
    for (int c = 0; c < channels; ++c) {
      double beta = 0, gamma = 0;
      for (int n = 0; n < shape_.images; ++n) {
        beta += groups_.sums(call, n)[c];
        gamma += groups_.sums(call, n)[channels + c];
      }
      if (gamma_gradient) gamma_gradient[c] = static_cast<float>(gamma);
      if (beta_gradient) beta_gradient[c] = static_cast<float>(beta);
    }
  }

  ImageGroups groups_;
  Shape shape_;
  int group_count_;
};

}  // namespace

std::unique_ptr<Kernel> make_kernel(const GroupNormalizationOp& op, const OperandShapes& shapes) {
  const Shape shape = shapes.outputs[0];
  const ImageGroups groups(shape, op.groups, op.epsilon);
  const auto run = [groups, shape](const KernelCall& call) {
    const int channels = shape.channels;
    const float *x = call.input<float>(0), *gamma = call.input<float>(1), *beta = call.input<float>(2);
    if (shape.count() == 0) return;
    groups.find_statistics(call, x);
    for (int n = 0; n < shape.images; ++n) {
      float *scale = groups.row(call, 1, n), *shift = groups.row(call, 2, n);
      for (int c = 0; c < channels; ++c) scale[c] *= gamma ? gamma[c] : 1.0f;
      for (int c = 0; c < channels; ++c) shift[c] = beta ? beta[c] : 0.0f;
    }
    groups.for_each_part(call, [&](std::size_t begin, std::size_t end, std::size_t image, int n, double*) {
      const std::size_t at = image + begin * channels;
      isa().normalize(x + at, call.output<float>(0) + at, end - begin, channels, {groups.row(call, 0, n), groups.row(call, 1, n), groups.row(call, 2, n)});
    });
  };
  return function_kernel(run, groups.scratch_bytes(3));
}

std::unique_ptr<Kernel> make_kernel(const GroupNormalizationGradientOp& op, const OperandShapes& shapes) {
  return std::make_unique<GroupNormalizationGradient>(op, shapes.inputs[0]);
}

}  // namespace mpsnn::cpu
