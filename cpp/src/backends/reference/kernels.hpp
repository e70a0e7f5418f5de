// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <memory>
#include <utility>

#include "backends/backend.hpp"

/// The float64 engine: one maker per operation. Every operand, parameters too, is an array of doubles.
/// Plain loops over the formulas of docs/MPS_SEMANTICS.md; it stays slow so that it stays obviously right.
namespace mpsnn::reference {

std::unique_ptr<Kernel> make_kernel(const ConvolutionOp&, const OperandShapes&);
std::unique_ptr<Kernel> make_kernel(const ConvolutionDataGradientOp&, const OperandShapes&);
std::unique_ptr<Kernel> make_kernel(const ConvolutionWeightGradientOp&, const OperandShapes&);
std::unique_ptr<Kernel> make_kernel(const ConvolutionTransposeOp&, const OperandShapes&);
std::unique_ptr<Kernel> make_kernel(const ConvolutionTransposeDataGradientOp&, const OperandShapes&);
std::unique_ptr<Kernel> make_kernel(const ConvolutionTransposeWeightGradientOp&, const OperandShapes&);
std::unique_ptr<Kernel> make_kernel(const PoolingOp&, const OperandShapes&);
std::unique_ptr<Kernel> make_kernel(const PoolingGradientOp&, const OperandShapes&);
std::unique_ptr<Kernel> make_kernel(const NeuronOp&, const OperandShapes&);
std::unique_ptr<Kernel> make_kernel(const NeuronGradientOp&, const OperandShapes&);
std::unique_ptr<Kernel> make_kernel(const DropoutOp&, const OperandShapes&);
std::unique_ptr<Kernel> make_kernel(const DropoutGradientOp&, const OperandShapes&);
std::unique_ptr<Kernel> make_kernel(const ArithmeticOp&, const OperandShapes&);
std::unique_ptr<Kernel> make_kernel(const ArithmeticGradientOp&, const OperandShapes&);
std::unique_ptr<Kernel> make_kernel(const SoftMaxOp&, const OperandShapes&);
std::unique_ptr<Kernel> make_kernel(const SoftMaxGradientOp&, const OperandShapes&);
std::unique_ptr<Kernel> make_kernel(const BatchNormalizationStatisticsOp&, const OperandShapes&);
std::unique_ptr<Kernel> make_kernel(const BatchNormalizationOp&, const OperandShapes&);
std::unique_ptr<Kernel> make_kernel(const BatchNormalizationGradientOp&, const OperandShapes&);
std::unique_ptr<Kernel> make_kernel(const LossOp&, const OperandShapes&);
std::unique_ptr<Kernel> make_kernel(const ForwardLossOp&, const OperandShapes&);
std::unique_ptr<Kernel> make_kernel(const LossGradientOp&, const OperandShapes&);
std::unique_ptr<Kernel> make_kernel(const FillOp&, const OperandShapes&);
std::unique_ptr<Kernel> make_kernel(const ConcatenationOp&, const OperandShapes&);
std::unique_ptr<Kernel> make_kernel(const ConcatenationGradientOp&, const OperandShapes&);
std::unique_ptr<Kernel> make_kernel(const SpatialNormalizationOp&, const OperandShapes&);
std::unique_ptr<Kernel> make_kernel(const SpatialNormalizationGradientOp&, const OperandShapes&);
std::unique_ptr<Kernel> make_kernel(const LocalContrastNormalizationOp&, const OperandShapes&);
std::unique_ptr<Kernel> make_kernel(const LocalContrastNormalizationGradientOp&, const OperandShapes&);
std::unique_ptr<Kernel> make_kernel(const CrossChannelNormalizationOp&, const OperandShapes&);
std::unique_ptr<Kernel> make_kernel(const CrossChannelNormalizationGradientOp&, const OperandShapes&);
std::unique_ptr<Kernel> make_kernel(const GroupNormalizationOp&, const OperandShapes&);
std::unique_ptr<Kernel> make_kernel(const GroupNormalizationGradientOp&, const OperandShapes&);
std::unique_ptr<Kernel> make_kernel(const ReductionOp&, const OperandShapes&);
std::unique_ptr<Kernel> make_kernel(const SpatialMeanGradientOp&, const OperandShapes&);
std::unique_ptr<Kernel> make_kernel(const UpsamplingOp&, const OperandShapes&);
std::unique_ptr<Kernel> make_kernel(const UpsamplingGradientOp&, const OperandShapes&);
std::unique_ptr<Kernel> make_kernel(const ScaleOp&, const OperandShapes&);
std::unique_ptr<Kernel> make_kernel(const ReshapeOp&, const OperandShapes&);
std::unique_ptr<Kernel> make_kernel(const PadOp&, const OperandShapes&);
std::unique_ptr<Kernel> make_kernel(const PadGradientOp&, const OperandShapes&);
std::unique_ptr<Kernel> make_kernel(const GramMatrixOp&, const OperandShapes&);
std::unique_ptr<Kernel> make_kernel(const GramMatrixGradientOp&, const OperandShapes&);
std::unique_ptr<Kernel> make_kernel(const RoundOp&, const OperandShapes&);
std::unique_ptr<Kernel> make_kernel(const YOLOLossOp&, const OperandShapes&);
std::unique_ptr<Kernel> make_kernel(const BinaryConvolutionOp&, const OperandShapes&);

/// A kernel whose run() is `run(call)`.
template <class F>
std::unique_ptr<Kernel> kernel(F run) {
  class Loops final : public Kernel {
   public:
    explicit Loops(F run) : run_(std::move(run)) {}
    void run(const KernelCall& call) override { run_(call); }
    std::string algorithm() const override { return "plain loops"; }

   private:
    F run_;
  };
  return std::make_unique<Loops>(std::move(run));
}

/// One multiplication of a convolution: result (y, x, q) += weight * source (source_y, source_x, source_channel).
struct Product {
  int y, x, q;
  std::size_t weight;
  int source_y, source_x, source_channel;
};

/// The shape of operand `i`, all zeros when it is absent.
inline Shape shape_of(const std::vector<Shape>& shapes, std::size_t i) {
  return i < shapes.size() ? shapes[i] : Shape{0, 0, 0, 0};
}

/// Position of element (n, y, x, c) in an image of `shape`.
inline std::size_t at(const Shape& shape, int n, int y, int x, int c) {
  return ((static_cast<std::size_t>(n) * shape.height + y) * shape.width + x) * shape.channels + c;
}

/// Calls f(n, y, x, c) for every element of an image, in memory order.
template <class F>
void for_each_element(const Shape& shape, F f) {
  for (int n = 0; n < shape.images; ++n)
    for (int y = 0; y < shape.height; ++y)
      for (int x = 0; x < shape.width; ++x)
        for (int c = 0; c < shape.channels; ++c) f(n, y, x, c);
}

/// Pixel that tap `t` of output pixel `o` reads, or -1 when it reads the zeros around the image.
inline int source_pixel(const Axis& axis, int o, int t, ImageEdgeMode edge_mode) {
  const int pixel = axis.tap(o, t);
  if (edge_mode == ImageEdgeMode::Clamp) return clamp_index(pixel, axis.input);
  return pixel >= 0 && pixel < axis.input ? pixel : -1;
}

}  // namespace mpsnn::reference
