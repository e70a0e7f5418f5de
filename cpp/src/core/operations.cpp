// SPDX-License-Identifier: Apache-2.0
#include "core/operations.hpp"

#include <cmath>

#include "core/dropout_mask.hpp"

namespace mpsnn {
namespace {

template <class... Cases>
struct Overloaded : Cases... {
  using Cases::operator()...;
};
template <class... Cases>
Overloaded(Cases...) -> Overloaded<Cases...>;  // clang before 17 deduces none for aggregates

}  // namespace

const char* operation_name(const Operation& operation) {
  return std::visit(
      Overloaded{
          [](const ConvolutionOp&) { return "Convolution"; },
          [](const ConvolutionDataGradientOp&) { return "ConvolutionDataGradient"; },
          [](const ConvolutionWeightGradientOp&) { return "ConvolutionWeightGradient"; },
          [](const ConvolutionTransposeOp&) { return "ConvolutionTranspose"; },
          [](const ConvolutionTransposeDataGradientOp&) { return "ConvolutionTransposeDataGradient"; },
          [](const ConvolutionTransposeWeightGradientOp&) { return "ConvolutionTransposeWeightGradient"; },
          [](const PoolingOp&) { return "Pooling"; },
          [](const PoolingGradientOp&) { return "PoolingGradient"; },
          [](const NeuronOp&) { return "Neuron"; },
          [](const NeuronGradientOp&) { return "NeuronGradient"; },
          [](const DropoutOp&) { return "Dropout"; },
          [](const DropoutGradientOp&) { return "DropoutGradient"; },
          [](const ArithmeticOp&) { return "Arithmetic"; },
          [](const ArithmeticGradientOp&) { return "ArithmeticGradient"; },
          [](const SoftMaxOp&) { return "SoftMax"; },
          [](const SoftMaxGradientOp&) { return "SoftMaxGradient"; },
          [](const BatchNormalizationStatisticsOp&) { return "BatchNormalizationStatistics"; },
          [](const BatchNormalizationOp&) { return "BatchNormalization"; },
          [](const BatchNormalizationGradientOp&) { return "BatchNormalizationGradient"; },
          [](const LossOp&) { return "Loss"; },
          [](const ForwardLossOp&) { return "ForwardLoss"; },
          [](const LossGradientOp&) { return "LossGradient"; },
          [](const FillOp&) { return "Fill"; },
          [](const ConcatenationOp&) { return "Concatenation"; },
          [](const ConcatenationGradientOp&) { return "ConcatenationGradient"; },
          [](const SpatialNormalizationOp&) { return "SpatialNormalization"; },
          [](const SpatialNormalizationGradientOp&) { return "SpatialNormalizationGradient"; },
          [](const LocalContrastNormalizationOp&) { return "LocalContrastNormalization"; },
          [](const LocalContrastNormalizationGradientOp&) { return "LocalContrastNormalizationGradient"; },
          [](const CrossChannelNormalizationOp&) { return "CrossChannelNormalization"; },
          [](const CrossChannelNormalizationGradientOp&) { return "CrossChannelNormalizationGradient"; },
          [](const GroupNormalizationOp&) { return "GroupNormalization"; },
          [](const GroupNormalizationGradientOp&) { return "GroupNormalizationGradient"; },
          [](const ReductionOp&) { return "Reduction"; },
          [](const SpatialMeanGradientOp&) { return "SpatialMeanGradient"; },
          [](const UpsamplingOp&) { return "Upsampling"; },
          [](const UpsamplingGradientOp&) { return "UpsamplingGradient"; },
          [](const ScaleOp&) { return "Scale"; },
          [](const ReshapeOp&) { return "Reshape"; },
          [](const PadOp&) { return "Pad"; },
          [](const PadGradientOp&) { return "PadGradient"; },
          [](const GramMatrixOp&) { return "GramMatrix"; },
          [](const GramMatrixGradientOp&) { return "GramMatrixGradient"; },
          [](const RoundOp&) { return "Round"; },
          [](const YOLOLossOp&) { return "YOLOLoss"; },
          [](const BinaryConvolutionOp&) { return "BinaryConvolution"; },
      },
      operation);
}

std::uint64_t dropout_pixel_bits(const DropoutOp& dropout, std::uint64_t encode_count, int image, int y, int x) {
  std::uint64_t bits = mix(dropout.seed + 0x9e3779b97f4a7c15ull);
  bits = mix(bits ^ (encode_count + 0x9e3779b97f4a7c15ull));
  bits = mix(bits ^ static_cast<std::uint64_t>(image));
  return mix(bits ^ (static_cast<std::uint64_t>(dropout.varies_y ? y : 0) << 32 | static_cast<std::uint32_t>(dropout.varies_x ? x : 0)));
}

std::uint64_t dropout_threshold(const DropoutOp& dropout) {
  return static_cast<std::uint64_t>(std::ceil(static_cast<double>(dropout.keep_probability) * 0x1p53));
}

bool dropout_keeps(const DropoutOp& dropout, std::uint64_t encode_count, int image, int y, int x, int channel) {
  return dropout_keeps_channel(dropout_pixel_bits(dropout, encode_count, image, y, x), dropout_threshold(dropout),
                               dropout.varies_channel ? static_cast<std::uint64_t>(channel) : 0);
}

}  // namespace mpsnn
