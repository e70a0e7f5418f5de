// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>

#include "backends/backend.hpp"

/// Kernels of the `cpu` engine, one maker per operation: float32, images N, H, W, C, weights O, kH, kW, I/groups.
/// Each is defined beside its family; backend.cpp picks one by the operation's type.
namespace mpsnn::cpu {

/// Backend::peak (machine_peak.cpp).
MachinePeak machine_peak();

// convolution.cpp, convolution_transpose.cpp
std::unique_ptr<Kernel> make_kernel(const ConvolutionOp& op, const OperandShapes& shapes, Precision precision);
std::unique_ptr<Kernel> make_kernel(const ConvolutionDataGradientOp& op, const OperandShapes& shapes, Precision precision);
std::unique_ptr<Kernel> make_kernel(const ConvolutionWeightGradientOp& op, const OperandShapes& shapes, Precision precision);
std::unique_ptr<Kernel> make_kernel(const ConvolutionTransposeOp& op, const OperandShapes& shapes, Precision precision);
std::unique_ptr<Kernel> make_kernel(const ConvolutionTransposeDataGradientOp& op, const OperandShapes& shapes, Precision precision);
std::unique_ptr<Kernel> make_kernel(const ConvolutionTransposeWeightGradientOp& op, const OperandShapes& shapes, Precision precision);

// pooling
std::unique_ptr<Kernel> make_kernel(const PoolingOp& op, const OperandShapes& shapes);
std::unique_ptr<Kernel> make_kernel(const PoolingGradientOp& op, const OperandShapes& shapes);
/// Bytes that a pooling keeps for its gradient (Backend::saved_bytes).
std::size_t saved_bytes(const PoolingOp& op, const OperandShapes& shapes);
/// KernelBackend::pools.
bool pools(const ConvolutionOp& op, const OperandShapes& shapes, Precision precision);
bool pools(const BatchNormalizationOp& op, const OperandShapes& shapes);

// element-wise
std::unique_ptr<Kernel> make_kernel(const NeuronOp& op, const OperandShapes& shapes);
std::unique_ptr<Kernel> make_kernel(const NeuronGradientOp& op, const OperandShapes& shapes);
std::unique_ptr<Kernel> make_kernel(const DropoutOp& op, const OperandShapes& shapes);
std::unique_ptr<Kernel> make_kernel(const DropoutGradientOp& op, const OperandShapes& shapes);
std::unique_ptr<Kernel> make_kernel(const ArithmeticOp& op, const OperandShapes& shapes);
std::unique_ptr<Kernel> make_kernel(const ArithmeticGradientOp& op, const OperandShapes& shapes);

// over the channels of a pixel
std::unique_ptr<Kernel> make_kernel(const SoftMaxOp& op, const OperandShapes& shapes);
std::unique_ptr<Kernel> make_kernel(const SoftMaxGradientOp& op, const OperandShapes& shapes);

// normalization
std::unique_ptr<Kernel> make_kernel(const BatchNormalizationStatisticsOp& op, const OperandShapes& shapes);
std::unique_ptr<Kernel> make_kernel(const BatchNormalizationOp& op, const OperandShapes& shapes);
std::unique_ptr<Kernel> make_kernel(const BatchNormalizationGradientOp& op, const OperandShapes& shapes);
std::unique_ptr<Kernel> make_kernel(const GroupNormalizationOp& op, const OperandShapes& shapes);
std::unique_ptr<Kernel> make_kernel(const GroupNormalizationGradientOp& op, const OperandShapes& shapes);
std::unique_ptr<Kernel> make_kernel(const SpatialNormalizationOp& op, const OperandShapes& shapes);
std::unique_ptr<Kernel> make_kernel(const SpatialNormalizationGradientOp& op, const OperandShapes& shapes);
std::unique_ptr<Kernel> make_kernel(const LocalContrastNormalizationOp& op, const OperandShapes& shapes);
std::unique_ptr<Kernel> make_kernel(const LocalContrastNormalizationGradientOp& op, const OperandShapes& shapes);
std::unique_ptr<Kernel> make_kernel(const CrossChannelNormalizationOp& op, const OperandShapes& shapes);
std::unique_ptr<Kernel> make_kernel(const CrossChannelNormalizationGradientOp& op, const OperandShapes& shapes);

// losses
std::unique_ptr<Kernel> make_kernel(const LossOp& op, const OperandShapes& shapes);
std::unique_ptr<Kernel> make_kernel(const ForwardLossOp& op, const OperandShapes& shapes);
std::unique_ptr<Kernel> make_kernel(const LossGradientOp& op, const OperandShapes& shapes);
std::unique_ptr<Kernel> make_kernel(const YOLOLossOp& op, const OperandShapes& shapes);

// data movement
std::unique_ptr<Kernel> make_kernel(const FillOp& op, const OperandShapes& shapes);
std::unique_ptr<Kernel> make_kernel(const ConcatenationOp& op, const OperandShapes& shapes);
std::unique_ptr<Kernel> make_kernel(const ConcatenationGradientOp& op, const OperandShapes& shapes);

// shape.cpp
std::unique_ptr<Kernel> make_kernel(const ReshapeOp& op, const OperandShapes& shapes);
std::unique_ptr<Kernel> make_kernel(const PadOp& op, const OperandShapes& shapes);
std::unique_ptr<Kernel> make_kernel(const PadGradientOp& op, const OperandShapes& shapes);
std::unique_ptr<Kernel> make_kernel(const RoundOp& op, const OperandShapes& shapes);

// reductions, resampling
std::unique_ptr<Kernel> make_kernel(const ReductionOp& op, const OperandShapes& shapes);
std::unique_ptr<Kernel> make_kernel(const SpatialMeanGradientOp& op, const OperandShapes& shapes);
std::unique_ptr<Kernel> make_kernel(const UpsamplingOp& op, const OperandShapes& shapes);
std::unique_ptr<Kernel> make_kernel(const UpsamplingGradientOp& op, const OperandShapes& shapes);
std::unique_ptr<Kernel> make_kernel(const ScaleOp& op, const OperandShapes& shapes);

// products
std::unique_ptr<Kernel> make_kernel(const GramMatrixOp& op, const OperandShapes& shapes);
std::unique_ptr<Kernel> make_kernel(const GramMatrixGradientOp& op, const OperandShapes& shapes);
std::unique_ptr<Kernel> make_kernel(const BinaryConvolutionOp& op, const OperandShapes& shapes);

}  // namespace mpsnn::cpu
