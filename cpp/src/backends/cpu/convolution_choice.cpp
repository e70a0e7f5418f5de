// SPDX-License-Identifier: Apache-2.0
#include "backends/cpu/convolution_choice.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <optional>

#include "backends/cpu/convolution_kernels.hpp"
#include "backends/cpu/matrix_unit_plan.hpp"
#include "backends/cpu/split_correlation.hpp"
#include "backends/cpu/winograd.hpp"

namespace mpsnn::cpu {
namespace {

constexpr struct {
  ConvolutionAlgorithm algorithm;
  const char* name;
} kAlgorithms[] = {{ConvolutionAlgorithm::direct, "direct"},
                   {ConvolutionAlgorithm::gemm, "gemm"},
                   {ConvolutionAlgorithm::patches, "patches"},
                   {ConvolutionAlgorithm::columns, "columns"},
                   {ConvolutionAlgorithm::winograd, "winograd"}};

const char* name_of(ConvolutionAlgorithm algorithm) { return kAlgorithms[static_cast<int>(algorithm)].name; }

/// What MPSNN_CONV names, read anew for each plan.
std::optional<ConvolutionAlgorithm> wanted_algorithm() {
  const char* text = std::getenv("MPSNN_CONV");
  if (!text || !*text) return std::nullopt;
  std::string names;
  for (const auto& [algorithm, name] : kAlgorithms) {
    if (std::string(text) == name) return algorithm;
    names += std::string(names.empty() ? "" : ", ") + name;
  }
  static bool was_said = false;
  if (!was_said) std::fprintf(stderr, "mpsnn: MPSNN_CONV=%.100s is unknown (there are: %s); every layer gets what suits it\n", text, names.c_str());
  was_said = true;
  return std::nullopt;
}

// --- estimates: cycles of one core
//
// Copying moves a vector a cycle.

/// Channels of a group below which transforms cost more than they save. The bound of the rounding error too is that of a sum over
/// channels: a sum of few terms next to large ones in the same tile would lose more.
constexpr int kWinogradChannels = 16;
/// Pixels that a weight gradient adds up at least, for the same reason.
constexpr std::size_t kWinogradPixels = 64;

double vectors(int channels) { return ceil_divide(channels, isa().lanes); }

/// Weights are packed once for each version of the parameters, as often as a training step runs: 3.5 cycles for each that comes from
/// farther away than the second-level cache.
double packing_cycles(const ConvolutionProblem& p) {
  return 3.5 * p.taps() * p.group_inputs() * p.geometry.output_channels;
}

/// Rows of patches times weights; a weight gradient has the roles changed, and the same count.
double sum_cycles(const ConvolutionProblem& p) {
  const double depth = double(p.taps()) * p.group_inputs() * p.geometry.groups;
  return p.output_pixels() * depth * (vectors(p.group_outputs()) / kVectorMultiplyAdds + 1.0 / isa().lanes);
}

double matrix_unit_cycles(const ConvolutionProblem& p) { return WeightGradientPlan(p.geometry, natural_layout(p.geometry), p.images).cycles; }

/// Where there is one, except for few channels: splitting them takes longer than their products. Sums in vector registers take 1.4
/// times their estimate.
bool uses_matrix_unit(const ConvolutionProblem& p) {
  return isa().matrix_unit && p.pass == ConvolutionPass::weight_gradient && p.output_pixels() > 0 && p.taps() > 0 && matrix_unit_cycles(p) < 1.4 * sum_cycles(p);
}

double vector_gemm_cycles(const ConvolutionProblem& p) {
  const Axis &y = p.geometry.window.y, &x = p.geometry.window.x;
  if (p.pass == ConvolutionPass::data_gradient) {
    // By phases each pixel meets kernel / stride taps along an axis, also those outside of the border, and copies what it meets twice.
    const double depth = double(y.kernel) / y.stride * x.kernel / x.stride * p.group_outputs() * p.geometry.groups;
    return p.input_pixels() * depth * (vectors(p.group_inputs()) / kVectorMultiplyAdds + 1.5 / isa().lanes) + packing_cycles(p);
  }
  if (p.pass == ConvolutionPass::weight_gradient) {
    const double weights = double(p.taps()) * p.group_inputs() * p.geometry.output_channels;  // adding one up and storing it takes 5.5
    return uses_matrix_unit(p) ? matrix_unit_cycles(p) + 5.5 * weights : sum_cycles(p);
  }
  return sum_cycles(p) + packing_cycles(p);
}

/// The better one of the vector and the matrix unit.
double gemm_cycles(const ConvolutionProblem& p) {
  const double cycles = vector_gemm_cycles(p);
  if (!isa().matrix_unit || p.pass == ConvolutionPass::weight_gradient) return cycles;
  const bool is_forward = p.pass == ConvolutionPass::forward;
  const std::vector<CorrelationPart> parts = is_forward ? std::vector{forward_correlation(p.geometry, {}, p.images, p.sub_pixel_scale)}
                                                        : gradient_correlations(p.geometry, {}, p.images);
  return can_split(parts) ? std::min(cycles, split_cycles(parts) + packing_cycles(p)) : cycles;
}

/// Each product is loaded, added to a loaded value and stored, four at a time. Windows across the border of two bands of lines (of
/// at least four windows) are computed for both: half a window more in four.
double column_cycles(const ConvolutionProblem& p) {
  const int columns = p.taps() * p.geometry.input_channels;
  return p.output_pixels() * 1.125 * (p.geometry.output_channels * vectors(columns) / kVectorMultiplyAdds + 0.4 * columns) +
         packing_cycles(p);
}

/// A load, a multiply-add and a share of a store for each tap of each vector of channels, and of each input of a narrow group.
double direct_cycles(const ConvolutionProblem& p) {
  return double(p.output_pixels()) * p.taps() * p.group_inputs() * vectors(p.geometry.output_channels);
}

/// Tiles of a batch.
double tile_count(const ConvolutionProblem& p, const WinogradTransforms& transforms) {
  const Window& window = p.geometry.window;
  const bool mirrors = p.pass == ConvolutionPass::data_gradient;
  const TileAxis y(mirrors ? window.y.mirrored() : window.y, transforms), x(mirrors ? window.x.mirrored() : window.x, transforms);
  return double(y.tiles.size()) * x.tiles.size() * std::max(0, p.images);
}

/// Storing the 36 positions of a vector into the second-level cache sets the pace of a transform: 250 cycles with 16 lanes, 130 with 8.
double winograd_cycles(const ConvolutionProblem& p) {
  const WinogradTransforms& transforms = *winograd_transforms(p.geometry.window.y.kernel, p.precision);
  const double tiles = tile_count(p, transforms);
  if (p.pass == ConvolutionPass::forward)
    return p.geometry.groups * plan_winograd(transforms, p.group_inputs(), p.group_outputs(), static_cast<std::size_t>(tiles)).cycles;
  if (p.pass == ConvolutionPass::data_gradient)
    return p.geometry.groups * plan_winograd(transforms, p.group_outputs(), p.group_inputs(), static_cast<std::size_t>(tiles)).cycles;
  if (splits_winograd_weight_gradient(p.geometry)) return split_winograd_weight_gradient_cycles(transforms, p.geometry, p.images);
  const double images = 0.55 * isa().lanes * (vectors(p.group_inputs()) + vectors(p.group_outputs()));
  return p.geometry.groups * tiles * transforms.positions() * (images + p.group_inputs() * vectors(p.group_outputs()) / kVectorMultiplyAdds);
}

/// The products at the positions of the tiles; transforms, additions mostly, are a tenth of them.
double winograd_flops(const ConvolutionProblem& p) {
  const WinogradTransforms& transforms = *winograd_transforms(p.geometry.window.y.kernel, p.precision);
  return 2 * tile_count(p, transforms) * transforms.positions() * p.group_inputs() * p.geometry.output_channels;
}

ConvolutionChoice described(ConvolutionChoice choice, const ConvolutionProblem& p) {
  switch (choice.algorithm) {
    case ConvolutionAlgorithm::direct:
    case ConvolutionAlgorithm::patches: choice.layout = "NHWC"; break;
    case ConvolutionAlgorithm::gemm: choice.uses_matrix_unit = uses_matrix_unit(p); [[fallthrough]];
    case ConvolutionAlgorithm::columns:
      choice.layout = p.pass == ConvolutionPass::weight_gradient ? "NHWC" : "NHWC, weights in panels";
      break;
    case ConvolutionAlgorithm::winograd: {
      const std::string side = std::to_string(winograd_transforms(p.geometry.window.y.kernel, p.precision)->tile());
      choice.layout = "NHWC to " + side + "x" + side + " positions of tiles x channels";
      choice.work = winograd_flops(p);
    }
  }
  return choice;
}

std::string winograd_obstacle(const ConvolutionProblem& p) {
  const Axis &y = p.geometry.window.y, &x = p.geometry.window.x;
  if (y.kernel != x.kernel || !winograd_transforms(y.kernel, p.precision)) return "not 3 x 3 or 5 x 5 taps";
  if (y.stride != 1 || x.stride != 1) return "strides";
  if (p.sub_pixel_scale > 1) return "sub-pixels";
  if (p.geometry.edge_mode == ImageEdgeMode::Clamp && !(y.is_inside() && x.is_inside())) return "edges are clamped";
  if (std::min(p.group_inputs(), p.group_outputs()) < kWinogradChannels) return "few channels";
  // Where most taps meet padding, their part of the transforms' rounding remains without their part of the sum.
  const auto is_shorter = [&](const Axis& axis) {
    return (p.pass == ConvolutionPass::data_gradient ? axis.output : axis.input) < axis.extent();
  };
  if (p.pass != ConvolutionPass::weight_gradient && (is_shorter(y) || is_shorter(x))) return "the image is smaller than the kernel";
  // The adjoint of F(2 x 2, 3 x 3) rounds 1.3 times as much as a direct sum; forward and data gradient do not round more.
  if (p.pass == ConvolutionPass::weight_gradient && p.precision == Precision::strict) return "precision is strict";
  if (p.pass == ConvolutionPass::weight_gradient && p.output_pixels() < kWinogradPixels) return "few pixels";
  return "";
}

std::string columns_obstacle(const ConvolutionProblem& p) {
  const Axis &y = p.geometry.window.y, &x = p.geometry.window.x;
  if (p.pass != ConvolutionPass::data_gradient) return "it is no data gradient";
  if (p.geometry.groups != 1) return "it has groups";
  if (p.taps() == 1) return "one tap";
  if (y.output < 1 || x.output < 1) return "no windows";
  if (p.geometry.edge_mode == ImageEdgeMode::Clamp && !(y.is_inside() && x.is_inside())) return "edges are clamped";
  return "";
}

}  // namespace

std::size_t ConvolutionProblem::output_pixels() const {
  const Window& window = geometry.window;
  return std::size_t(std::max(0, images)) * std::max(0, window.y.output) * std::max(0, window.x.output);
}

std::size_t ConvolutionProblem::input_pixels() const {
  const Window& window = geometry.window;
  return std::size_t(std::max(0, images)) * std::max(0, window.y.input) * std::max(0, window.x.input);
}

std::string obstacle(ConvolutionAlgorithm algorithm, const ConvolutionProblem& p) {
  switch (algorithm) {
    case ConvolutionAlgorithm::direct:
      if (!is_depthwise(p.geometry) && !has_narrow_groups(p.geometry)) return "neither depthwise nor narrow groups";
      return p.sub_pixel_scale > 1 ? "sub-pixels" : "";
    case ConvolutionAlgorithm::gemm: return "";
    case ConvolutionAlgorithm::patches: return patches_obstacle(p);
    case ConvolutionAlgorithm::columns: return columns_obstacle(p);
    case ConvolutionAlgorithm::winograd: return winograd_obstacle(p);
  }
  return "";
}

double estimate_cycles(ConvolutionAlgorithm algorithm, const ConvolutionProblem& problem) {
  switch (algorithm) {
    case ConvolutionAlgorithm::direct: return direct_cycles(problem);
    case ConvolutionAlgorithm::gemm: return gemm_cycles(problem);
    case ConvolutionAlgorithm::patches: return patches_cycles(problem);
    case ConvolutionAlgorithm::columns: return column_cycles(problem);
    case ConvolutionAlgorithm::winograd: return winograd_cycles(problem);
  }
  return 0;
}

ConvolutionChoice choose(const ConvolutionProblem& problem) {
  std::string note;
  if (const auto wanted = wanted_algorithm()) {
    const std::string why_not = obstacle(*wanted, problem);
    if (why_not.empty()) return described({.algorithm = *wanted, .reason = "MPSNN_CONV"}, problem);
    note = std::string("not ") + name_of(*wanted) + ": " + why_not + "; ";
  }
  ConvolutionChoice choice;
  double best = 0;
  std::string others;
  for (const auto& [algorithm, name] : kAlgorithms) {
    if (!obstacle(algorithm, problem).empty()) continue;
    const double cycles = estimate_cycles(algorithm, problem);
    char text[64];
    std::snprintf(text, sizeof text, "%s%s %.3g", others.empty() ? "" : ", ", name, cycles / 1e6);
    others += text;
    if (best != 0 && cycles >= best) continue;
    best = cycles;
    choice.algorithm = algorithm;
  }
  choice.reason = note + "Mcycles: " + others;
  return described(std::move(choice), problem);
}

}  // namespace mpsnn::cpu
