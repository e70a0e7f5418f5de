// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "core/operations.hpp"
#include "mpsnn/precision.hpp"

/// The one place where the engine decides how a convolution is computed.
namespace mpsnn::cpu {

enum class ConvolutionPass { forward, data_gradient, weight_gradient };

/// In the order in which the names of MPSNN_CONV are listed.
enum class ConvolutionAlgorithm {
  direct,    ///< products added up where they lie: depthwise
  gemm,      ///< patches times weights; does everything
  patches,   ///< few pixels: their patches copied, the weights read where they lie
  columns,   ///< data gradient: pixels times weights, the products added where their taps lie
  winograd,  ///< tiles and weights transformed, multiplied position by position, transformed back
};

/// One pass over a convolution, whose geometry is that of the forward direction in all passes.
struct ConvolutionProblem {
  ConvolutionPass pass = ConvolutionPass::forward;
  ConvolutionGeometry geometry;
  int images = 1;
  Precision precision = Precision::fast;
  int sub_pixel_scale = 1;
  bool has_natural_weights = true;  ///< as they lie for a convolution, not for the one that it undoes

  std::size_t output_pixels() const;
  std::size_t input_pixels() const;
  int group_inputs() const { return geometry.input_channels / geometry.groups; }
  int group_outputs() const { return geometry.output_channels / geometry.groups; }
  int taps() const { return geometry.window.y.kernel * geometry.window.x.kernel; }
};

struct ConvolutionChoice {
  ConvolutionAlgorithm algorithm = ConvolutionAlgorithm::gemm;
  bool uses_matrix_unit = false;  ///< for a weight gradient by `gemm`; the other algorithms use it wherever there is one
  // For plan():
  std::string reason, layout;
  double work = 0;  ///< floating-point operations; 0 for those of a direct loop
};

/// What keeps an algorithm from computing this, e.g. "stride 2"; empty when nothing does.
std::string obstacle(ConvolutionAlgorithm algorithm, const ConvolutionProblem& problem);
/// Cycles of one core that an algorithm without obstacle is estimated to take.
double estimate_cycles(ConvolutionAlgorithm algorithm, const ConvolutionProblem& problem);

/// The algorithm that MPSNN_CONV names if it can, else the one with the lowest estimate.
ConvolutionChoice choose(const ConvolutionProblem& problem);

}  // namespace mpsnn::cpu
