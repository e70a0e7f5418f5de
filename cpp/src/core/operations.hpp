// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <optional>
#include <variant>
#include <vector>

#include "mpsnn/descriptors.hpp"
#include "mpsnn/geometry.hpp"

/// What the engines compute. Each struct is one operation with its geometry resolved; the comment gives its
/// operands, images in N, H, W, C order. An operand in [brackets] may be absent: its pointer is null and its shape
/// is all zeros. An absent output is not computed. Formulas: docs/MPS_SEMANTICS.md at the section named.
namespace mpsnn {

// --- pooling (8) -------------------------------------------------------------------------------------------------

enum class PoolingKind { max, average, l2_norm };

/// inputs: x -> y. Edge mode Zero or Clamp; `zero_pad` matters for averages with Clamp only (8.4).
struct PoolingOp {
  PoolingKind kind = PoolingKind::max;
  Window window;
  ImageEdgeMode edge_mode = ImageEdgeMode::Clamp;
  int zero_pad_x = 0, zero_pad_y = 0;
};
/// inputs: gradient of y, [x], [y] -> gradient of x. Averages need neither x nor y; max needs x (or what the forward
/// saved); L2 needs x and y. Ties of max go to the first in row-major order of the window.
/// With a neuron, where fused() put it, x is that neuron of z, input 3, and the gradient that of z.
struct PoolingGradientOp {
  PoolingOp forward;
  NNNeuronDescriptor neuron{};
};

// --- convolution (7.3, 7.4) ------------------------------------------------------------------------------------

/// Geometry shared by a convolution and its two gradients. A depthwise convolution has one group per input channel
/// and weights O x kH x kW x 1; channel counts and shapes are otherwise those of the images and of the weights.
struct ConvolutionGeometry {
  Window window;
  int input_channels = 1, output_channels = 1, groups = 1;
  ImageEdgeMode edge_mode = ImageEdgeMode::Zero;
  bool operator==(const ConvolutionGeometry&) const = default;
};

/// inputs: x, weights (O,kH,kW,I/groups), [bias O] -> y, [mean O], [variance O]. The neuron is applied last; with sub_pixel_scale r > 1
/// the O channels become blocks of r x r pixels and y has the window's output size times r (7.3). Mean and variance are those of
/// BatchNormalizationStatisticsOp, where fused() put them; so may be a max pooling behind the neuron, whose result y is then.
struct ConvolutionOp {
  ConvolutionGeometry geometry;
  NNNeuronDescriptor neuron;
  int sub_pixel_scale = 1;
  std::optional<PoolingOp> pooling{};
};
/// inputs: gradient of y, weights, [], [z] -> gradient of x. Where fused() put it, x is a neuron of z, and the gradient that of z; or
/// z is what the neuron's gradient reads in place of that.
struct ConvolutionDataGradientOp {
  ConvolutionGeometry geometry;
  NNNeuronDescriptor neuron{};
};
/// inputs: gradient of y, x -> [gradient of weights], [gradient of bias]: sums over the batch
struct ConvolutionWeightGradientOp {
  ConvolutionGeometry geometry;
};

// --- transposed convolution (7.6) --------------------------------------------------------------------------------

/// A transposed convolution undoes the convolution described by `undone`: undone.window maps the result (input) to the
/// source (output); undone.input_channels are the result's channels, undone.output_channels the source's. Tap (ky, kx)
/// of the weights O,kH,kW,I/groups (O the result's channels) meets tap (kH-1-ky, kW-1-kx) of that window:
///   y[n, window.y.tap(i, kH-1-ky), window.x.tap(j, kW-1-kx), q] += W[q][ky][kx][ci] * x[n, i, j, group(q)*(I/groups)+ci]
/// inputs: x, weights, [bias O] -> y, [mean O], [variance O], the neuron last
struct ConvolutionTransposeOp {
  ConvolutionGeometry undone;
  NNNeuronDescriptor neuron;
};
/// inputs: gradient of y, weights, [], [z] -> gradient of x, or of z as above
struct ConvolutionTransposeDataGradientOp {
  ConvolutionGeometry undone;
  NNNeuronDescriptor neuron{};
};
/// inputs: gradient of y, x -> [gradient of weights], [gradient of bias]
struct ConvolutionTransposeWeightGradientOp {
  ConvolutionGeometry undone;
};

// --- element-wise ------------------------------------------------------------------------------------------------

/// A ReLU whose result tells the sign of x, so that its gradient may read the result in place of x: f(x) = x < 0 ? a * x : x, where
/// negative x give negative results, if need be -0, and zeros +0. Made by fused() alone; no node has it.
inline constexpr CNNNeuronType kSignedReLU = static_cast<CNNNeuronType>(1000);

/// inputs: x -> y (9.2)
struct NeuronOp {
  NNNeuronDescriptor neuron;
};
/// inputs: gradient of y, x -> gradient of x
struct NeuronGradientOp {
  NNNeuronDescriptor neuron;
};

/// inputs: x -> y (13). Masks come from dropout_keeps(), the same on every engine, so nothing is saved.
struct DropoutOp {
  float keep_probability = 0.5f;
  std::uint64_t seed = 0;
  bool varies_x = true, varies_y = true, varies_channel = true;  ///< maskStrideInPixels, 1 or 0
};
/// inputs: gradient of y -> gradient of x
struct DropoutGradientOp {
  DropoutOp forward;
};

enum class ArithmeticKind { add, subtract, multiply, divide, compare };

/// inputs: x (primary), y (secondary), [], [z] -> r (16). A stride of 0 reads index 0 along that dimension. Where fused() put a neuron, it is
/// applied last; or r is a gradient, and multiplied by the neuron's slope at z.
struct ArithmeticOp {
  struct Source {
    float scale = 1;
    int stride_x = 1, stride_y = 1, stride_channels = 1;
    bool operator==(const Source&) const = default;
  };
  ArithmeticKind kind = ArithmeticKind::add;
  Source primary, secondary;
  float bias = 0;
  float minimum_value = -3.402823466e38f, maximum_value = 3.402823466e38f;
  NNComparisonType comparison_type = NNComparisonType::Equal;
  NNNeuronDescriptor neuron{};
  bool is_neuron_gradient = false;
  bool clamps() const { return minimum_value != -3.402823466e38f || maximum_value != 3.402823466e38f; }
};
/// inputs: gradient of r, [x], [y] -> gradient of the primary, or of the secondary source, summed over the dimensions
/// in which that source was broadcast. x and y are present when the product rule or a clamp needs them. Where the
/// forward clamps, incoming values whose unclamped result is not strictly between the limits count as 0.
struct ArithmeticGradientOp {
  ArithmeticOp forward;
  bool is_secondary_source_filter = false;
  /// A gradient node's own scales: result = primary_scale * E [* secondary_scale * other operand] + bias (16).
  float primary_scale = 1, secondary_scale = 1, bias = 0;
  float minimum_value = -3.402823466e38f, maximum_value = 3.402823466e38f;
};

// --- per pixel over channels (10) --------------------------------------------------------------------------------

/// inputs: x -> y
struct SoftMaxOp {
  bool is_log = false;
};
/// inputs: gradient of y, y -> gradient of x
struct SoftMaxGradientOp {
  bool is_log = false;
};

// --- normalization (12) ------------------------------------------------------------------------------------------

/// inputs: x -> mean C, variance C, over images and pixels; both 0 for an empty batch
struct BatchNormalizationStatisticsOp {};
/// inputs: x, mean, variance, [gamma], [beta] -> y. A ReLU is applied last where fused() put it there, and so is a max pooling behind it.
struct BatchNormalizationOp {
  float epsilon = 1.17549435e-38f;
  NNNeuronDescriptor neuron{};
  std::optional<PoolingOp> pooling{};
};
/// inputs: gradient of y, x, mean, variance, [gamma], [beta] -> [gradient of x], [gradient of gamma], [gradient of beta].
/// With `uses_batch_statistics` mean and variance are functions of x, else constants. beta matters behind a fused ReLU only.
struct BatchNormalizationGradientOp {
  float epsilon = 1.17549435e-38f;
  bool uses_batch_statistics = true;
  NNNeuronDescriptor neuron{};
};

// --- losses (14) -------------------------------------------------------------------------------------------------

/// inputs: y, labels, [weights] -> [gradient of y], [loss]. The loss has one value per image, or y's shape for reduction
/// None or when its own shape says so. The gradient ignores the reduction (14.3).
struct LossOp {
  CNNLossDescriptor loss;
};
/// inputs: y, labels, [weights] -> loss (1 x 1 x 1 per image unless the reduction is None)
struct ForwardLossOp {
  CNNLossDescriptor loss;
};
/// inputs: gradient of the loss, y, labels, [weights] -> gradient of y, or of the labels
struct LossGradientOp {
  CNNLossDescriptor loss;
  bool is_labels_gradient_filter = false;
};

// --- data movement -----------------------------------------------------------------------------------------------

/// no inputs -> y filled with `value`
struct FillOp {
  float value = 1;
};
/// inputs: any number of images of one size -> their channels behind one another (18.1, dense: DESIGN 4)
struct ConcatenationOp {};
/// inputs: gradient of the concatenation -> its channels [first_channel, first_channel + channels of the output)
struct ConcatenationGradientOp {
  int first_channel = 0;
};

// --- normalization with windows (11) -----------------------------------------------------------------------------

/// inputs: x -> y. The window has stride 1, leans to the top left for even kernels (before = kernel / 2) and reads zeros
/// outside; the divisor is the full kernel (OQ-25).
struct SpatialNormalizationOp {
  Window window;
  float alpha = 1, beta = 5, delta = 1;
};
/// inputs: gradient of y, x -> gradient of x: the exact derivative (OQ-26)
struct SpatialNormalizationGradientOp {
  SpatialNormalizationOp forward;
};
/// inputs: x -> y
struct LocalContrastNormalizationOp {
  Window window;
  float alpha = 1, beta = 0.5f, delta = 1.0f / 1024, p0 = 1, pm = 0, ps = 1;
};
/// inputs: gradient of y, x -> gradient of x
struct LocalContrastNormalizationGradientOp {
  LocalContrastNormalizationOp forward;
};
/// inputs: x -> y. `channels` is the window along the feature channels: input = output = C, before = kernel / 2.
struct CrossChannelNormalizationOp {
  Axis channels;
  float alpha = 1, beta = 5, delta = 1;
};
/// inputs: gradient of y, x -> gradient of x
struct CrossChannelNormalizationGradientOp {
  CrossChannelNormalizationOp forward;
};

// --- group and instance normalization (12.3, 12.4) ---------------------------------------------------------------

/// inputs: x, [gamma C], [beta C] -> y. Statistics per image and group of consecutive channels; instance normalization has one
/// group per channel.
struct GroupNormalizationOp {
  int groups = 1;
  float epsilon = 1.17549435e-38f;
};
/// inputs: gradient of y, x, [gamma] -> [gradient of x], [gradient of gamma C], [gradient of beta C]: the last two summed over
/// the batch
struct GroupNormalizationGradientOp {
  int groups = 1;
  float epsilon = 1.17549435e-38f;
};

// --- reductions (17) ---------------------------------------------------------------------------------------------

enum class ReductionKind { minimum, maximum, mean, sum, argument_minimum, argument_maximum };
enum class ReductionAxis { row, column, feature_channels, spatial };

/// inputs: x -> y. Reads the columns and rows of the region only; the result is as large as the region, 1 along what is
/// reduced. Arguments are channel indices, the lowest on ties. The sum over channels is multiplied by `weight`.
struct ReductionOp {
  ReductionKind kind = ReductionKind::mean;
  ReductionAxis axis = ReductionAxis::spatial;
  Range columns, rows;
  float weight = 1;
};
/// inputs: gradient of y -> gradient of x, of a spatial mean: 0 outside the region
struct SpatialMeanGradientOp {
  Range columns, rows;
};

// --- resampling (15) ---------------------------------------------------------------------------------------------

/// inputs: x -> y, enlarged by whole factors
struct UpsamplingOp {
  bool is_bilinear = false;
  bool align_corners = false;
  int scale_x = 1, scale_y = 1;
};
/// inputs: gradient of y -> gradient of x: the exact adjoint
struct UpsamplingGradientOp {
  UpsamplingOp forward;
};
/// inputs: x -> y. Result pixel i reads the source at (i + 0.5 - translate) / scale - 0.5, clamped; Lanczos with 3 lobes,
/// stretched by 1 / scale when it shrinks, weights normalised (OQ-35).
struct ScaleOp {
  bool is_lanczos = false;
  double scale_x = 1, scale_y = 1, translate_x = 0, translate_y = 0;
};

// --- shape (18) --------------------------------------------------------------------------------------------------

/// inputs: x -> the same numbers in H, W, C order under another shape
struct ReshapeOp {};
/// inputs: x -> y: result element (y, x, c) reads source element (y - before_y, x - before_x, c - before_channels)
struct PadOp {
  int before_x = 0, before_y = 0, before_channels = 0;
  ImageEdgeMode edge_mode = ImageEdgeMode::Zero;
  float fill_value = 0;
};
/// inputs: gradient of y -> gradient of x: sums over the result elements that read each source element
struct PadGradientOp {
  PadOp forward;
};
/// inputs: x -> N x 1 x C x C (18.5)
struct GramMatrixOp {
  float alpha = 1;
};
/// inputs: gradient of y, x -> gradient of x
struct GramMatrixGradientOp {
  float alpha = 1;
};
/// inputs: x -> x as its storage format would keep it: Float16 rounds to nearest even, Unorm8 and Unorm16 clamp to [0, 1]
/// and quantise (21)
struct RoundOp {
  ImageFeatureChannelFormat format = ImageFeatureChannelFormat::Float16;
};

// --- object detection (14.6) -------------------------------------------------------------------------------------

/// inputs: y, labels, [weights] -> [gradient of y], [loss]
struct YOLOLossOp {
  CNNYOLOLossDescriptor loss;
};

// --- binary convolution (7.9) ------------------------------------------------------------------------------------

/// Parameters of a binary convolution. Each array holds one value per channel, or is empty for the neutral one.
struct BinaryConvolutionValues {
  std::vector<std::uint32_t> bits;
  std::vector<float> output_bias, output_scale, input_bias, input_scale;
};

/// inputs: x -> y. Weights are bits of `values->bits`, O x kH x kW x ceil(I / 32) words, bit b of word w channel 32 w + b. Out-of-image taps
/// contribute 0 (OQ-21). `values` is shared with the graph's parameters, which may refill it between steps.
struct BinaryConvolutionOp {
  ConvolutionGeometry geometry;
  CNNBinaryConvolutionType type = CNNBinaryConvolutionType::BinaryWeights;
  bool uses_beta_scaling = false;
  NNNeuronDescriptor neuron;
  std::shared_ptr<const BinaryConvolutionValues> values;
};

using Operation =
    std::variant<ConvolutionOp, ConvolutionDataGradientOp, ConvolutionWeightGradientOp, ConvolutionTransposeOp,
                 ConvolutionTransposeDataGradientOp, ConvolutionTransposeWeightGradientOp, PoolingOp, PoolingGradientOp,
                 NeuronOp, NeuronGradientOp, DropoutOp, DropoutGradientOp, ArithmeticOp, ArithmeticGradientOp, SoftMaxOp,
                 SoftMaxGradientOp, BatchNormalizationStatisticsOp, BatchNormalizationOp, BatchNormalizationGradientOp, LossOp,
                 ForwardLossOp, LossGradientOp, FillOp, ConcatenationOp, ConcatenationGradientOp, SpatialNormalizationOp,
                 SpatialNormalizationGradientOp, LocalContrastNormalizationOp, LocalContrastNormalizationGradientOp, CrossChannelNormalizationOp,
                 CrossChannelNormalizationGradientOp, GroupNormalizationOp, GroupNormalizationGradientOp, ReductionOp, SpatialMeanGradientOp,
                 UpsamplingOp, UpsamplingGradientOp, ScaleOp, ReshapeOp, PadOp, PadGradientOp, GramMatrixOp, GramMatrixGradientOp, RoundOp,
                 YOLOLossOp, BinaryConvolutionOp>;

/// "Convolution", "PoolingGradient", …: how a plan prints the operation.
const char* operation_name(const Operation& operation);

/// True when element (image, y, x, channel) survives dropout in encode `encode_count` of its node: a counter-based generator,
/// so the mask depends on nothing else (13, OQ-29). Dimensions that do not vary count as index 0.
bool dropout_keeps(const DropoutOp& dropout, std::uint64_t encode_count, int image, int y, int x, int channel);

}  // namespace mpsnn
