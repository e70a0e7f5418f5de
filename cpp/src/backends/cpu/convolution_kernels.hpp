// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>

#include "backends/backend.hpp"
#include "backends/cpu/convolution_choice.hpp"
#include "backends/cpu/convolution_geometry.hpp"
#include "backends/cpu/correlation.hpp"
#include "backends/cpu/epilogue.hpp"
#include "backends/cpu/gemm.hpp"

/// The three kernels of the convolution family, for weights of any layout: a transposed convolution is the data gradient of the
/// convolution that it undoes, and the other way round.
namespace mpsnn::cpu {

/// inputs: x, weights, [bias], [what the epilogue needs] -> y, [what it makes]
std::unique_ptr<Kernel> make_forward(const ConvolutionGeometry& geometry, const WeightLayout& layout, int images,
                                     const Epilogue& epilogue, Precision precision);
/// inputs: gradient of y, weights, [bias], [...] -> gradient of x, [...]; the bias belongs to transposed convolutions
std::unique_ptr<Kernel> make_data_gradient(const ConvolutionGeometry& geometry, const WeightLayout& layout, int images,
                                           const Epilogue& epilogue, Precision precision);

/// What they compute as implicit GEMMs: one correlation, or one for each phase of the strides over the incoming gradient.
CorrelationPart forward_correlation(const ConvolutionGeometry& geometry, const WeightLayout& layout, int images, int sub_pixel_scale);
std::vector<CorrelationPart> gradient_correlations(const ConvolutionGeometry& geometry, const WeightLayout& layout, int images);

/// The data gradient by another way (column_gradient.cpp), without an epilogue.
std::unique_ptr<Kernel> make_column_gradient(const ConvolutionGeometry& geometry, const WeightLayout& layout, int images);

/// inputs: gradient of y, x -> [gradient of weights], [gradient of bias]. For a transposed convolution the two images change
/// places in the product, while the gradient of the bias still sums input 0.
std::unique_ptr<Kernel> make_weight_gradient(const ConvolutionGeometry& geometry, const WeightLayout& layout, int images,
                                             bool is_transposed, Precision precision);

/// The implicit GEMM of a weight gradient in the matrix unit (matrix_unit_weight_gradient.cpp), where there is one, and windows.
std::unique_ptr<Kernel> make_matrix_unit_weight_gradient(const ConvolutionGeometry& geometry, const WeightLayout& layout, int images,
                                                         bool is_transposed);

// One group per input channel (depthwise.cpp); same operands.
inline bool is_depthwise(const ConvolutionGeometry& geometry) {
  return geometry.groups == geometry.input_channels && geometry.groups > 1;
}
std::unique_ptr<Kernel> make_depthwise_forward(const ConvolutionGeometry& geometry, const WeightLayout& layout, int images,
                                               const Epilogue& epilogue);
std::unique_ptr<Kernel> make_depthwise_data_gradient(const ConvolutionGeometry& geometry, const WeightLayout& layout, int images,
                                                     const Epilogue& epilogue);
std::unique_ptr<Kernel> make_depthwise_weight_gradient(const ConvolutionGeometry& geometry, const WeightLayout& layout,
                                                       int images, bool is_transposed);

// Convolutions of few pixels (patches.cpp): where patches_obstacle() is empty. Same operands, without an epilogue.
std::string patches_obstacle(const ConvolutionProblem& problem);
double patches_cycles(const ConvolutionProblem& problem);
std::unique_ptr<Kernel> make_patches(const ConvolutionProblem& problem);

// What they become, fully connected layers of few images (fully_connected.cpp): weights outputs x inputs.
std::string fully_connected_obstacle(ConvolutionPass pass, int outputs, int images);
double fully_connected_cycles(ConvolutionPass pass, int inputs, int outputs, int images);
std::unique_ptr<Kernel> make_fully_connected(ConvolutionPass pass, int inputs, int outputs, int images);
/// On the matrix unit (split_fully_connected.cpp).
std::unique_ptr<Kernel> make_split_fully_connected_forward(int inputs, int outputs, int images);
std::unique_ptr<Kernel> make_split_fully_connected_data_gradient(int inputs, int outputs, int images);

/// Groups of a few channels with as many outputs, so that a vector holds whole groups: the same kernels do them.
bool has_narrow_groups(const ConvolutionGeometry& geometry);

// The same without channel multiplier and without clamped edges (depthwise_lines.cpp), the common case.
bool has_plain_lines(const ConvolutionGeometry& geometry);
std::unique_ptr<Kernel> make_depthwise_lines_forward(const ConvolutionGeometry& geometry, const WeightLayout& layout, int images,
                                                     const Epilogue& epilogue);
std::unique_ptr<Kernel> make_depthwise_lines_data_gradient(const ConvolutionGeometry& geometry, const WeightLayout& layout,
                                                           int images, const Epilogue& epilogue);
std::unique_ptr<Kernel> make_depthwise_lines_weight_gradient(const ConvolutionGeometry& geometry, const WeightLayout& layout,
                                                             int images, bool is_transposed);

inline std::size_t pixels_of(int images, int height, int width) {
  return std::size_t(std::max(0, images)) * std::max(0, height) * std::max(0, width);
}

/// The same kernel, whose algorithm() also says why it was chosen.
std::unique_ptr<Kernel> explain(std::unique_ptr<Kernel> kernel, const ConvolutionChoice& choice);

/// Remembers which weights a kernel has packed.
class PackedVersion {
 public:
  /// True once for each version of the parameters.
  bool is_stale(const KernelCall& call) {
    const bool stale =
        !is_packed_ || version_ != call.parameters_version || weights_ != call.input<float>(1) || bias_ != call.input<float>(2);
    is_packed_ = true;
    version_ = call.parameters_version;
    weights_ = call.input<float>(1);
    bias_ = call.input<float>(2);
    return stale;
  }

 private:
  bool is_packed_ = false;
  std::uint64_t version_ = 0;
  const float *weights_ = nullptr, *bias_ = nullptr;
};

/// The gradient of the enlarged image folded back: every pixel gets what its repetitions got, and the bias if any. `enlarged` is
/// images x y.axis.input x x.axis.input x channels, `result` images x height x width x channels.
void fold_repetitions(const EnlargedAxis& y, const EnlargedAxis& x, int height, int width, int images, int channels,
                      const float* bias, const float* enlarged, float* result);

/// Pixels with all their channels that fill whole vectors together, for sums over pixels: rows are added up, and folded at the end.
struct PixelRow {
  explicit PixelRow(int channels);
  int channels, pixels = 1, floats;
  /// sums[0 ... floats) += `count` pixels
  void add(const float* values, std::size_t count, float* sums) const;
  /// result[c] := the sum of all parts of `sums`
  void fold(const float* sums, std::size_t parts, float* result) const;
};

/// result[c] = sum over pixels of values[p * channels + c], in parts that depend on the counts alone. `partial` holds
/// pixel_sum_floats() floats.
std::size_t pixel_sum_floats(std::size_t pixels, int channels);
void sum_pixels(const float* values, std::size_t pixels, int channels, float* partial, float* result);

/// The gradient of the bias, which every weight gradient computes beside its own: the sum of operand 0 over its pixels. Of a transposed
/// convolution, seen as the one that it undoes, that is the source's side.
class BiasGradient {
 public:
  BiasGradient(const ConvolutionGeometry& geometry, int images, bool is_transposed);
  std::size_t scratch_floats() const { return pixel_sum_floats(pixels_, channels_); }
  /// Nothing where nobody needs it.
  void run(const KernelCall& call, float* scratch) const;

 private:
  std::size_t pixels_;
  int channels_;
};

}  // namespace mpsnn::cpu
