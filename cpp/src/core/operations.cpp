// SPDX-License-Identifier: Apache-2.0
#include "core/operations.hpp"

namespace mpsnn {
namespace {

template <class... Cases>
struct Overloaded : Cases... {
  using Cases::operator()...;
};
template <class... Cases>
Overloaded(Cases...) -> Overloaded<Cases...>;  // clang before 17 deduces none for aggregates

/// SplitMix64's finalizer: every input bit reaches every output bit.
constexpr std::uint64_t mix(std::uint64_t bits) {
  bits = (bits ^ (bits >> 30)) * 0xbf58476d1ce4e5b9ull;
  bits = (bits ^ (bits >> 27)) * 0x94d049bb133111ebull;
  return bits ^ (bits >> 31);
}

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

bool dropout_keeps(const DropoutOp& dropout, std::uint64_t encode_count, int image, int y, int x, int channel) {
  std::uint64_t bits = mix(dropout.seed + 0x9e3779b97f4a7c15ull);
  bits = mix(bits ^ (encode_count + 0x9e3779b97f4a7c15ull));
  bits = mix(bits ^ static_cast<std::uint64_t>(image));
  bits = mix(bits ^ (static_cast<std::uint64_t>(dropout.varies_y ? y : 0) << 32 | static_cast<std::uint32_t>(dropout.varies_x ? x : 0)));
  bits = mix(bits ^ static_cast<std::uint64_t>(dropout.varies_channel ? channel : 0));
  return static_cast<double>(bits >> 11) * 0x1p-53 < static_cast<double>(dropout.keep_probability);
}

}  // namespace mpsnn
