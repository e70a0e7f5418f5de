// SPDX-License-Identifier: Apache-2.0
#include "backends/cpu/convolution_choice.hpp"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <optional>

#include "backends/cpu/convolution_kernels.hpp"
#include "backends/cpu/isa/isa.hpp"

namespace mpsnn::cpu {
namespace {

constexpr struct {
  ConvolutionAlgorithm algorithm;
  const char* name;
} kAlgorithms[] = {{ConvolutionAlgorithm::direct, "direct"},
                   {ConvolutionAlgorithm::gemm, "gemm"},
                   {ConvolutionAlgorithm::columns, "columns"}};

const char* name_of(ConvolutionAlgorithm algorithm) { return kAlgorithms[static_cast<int>(algorithm)].name; }

/// What MPSNN_CONV names.
std::optional<ConvolutionAlgorithm> read_environment() {
  const char* text = std::getenv("MPSNN_CONV");
  if (!text || !*text) return std::nullopt;
  std::string names;
  for (const auto& [algorithm, name] : kAlgorithms) {
    if (std::string(text) == name) return algorithm;
    names += std::string(names.empty() ? "" : ", ") + name;
  }
  std::fprintf(stderr, "mpsnn: MPSNN_CONV=%.100s is unknown (there are: %s); every layer gets what suits it\n", text, names.c_str());
  return std::nullopt;
}

const std::optional<ConvolutionAlgorithm>& wanted_algorithm() {
  static const std::optional<ConvolutionAlgorithm> wanted = read_environment();
  return wanted;
}

// --- estimates: cycles of one core
//
// Two vector multiply-adds a cycle at best; the tiles reach 85 % of that from the first-level cache. Copying moves a vector a cycle.
constexpr double kMultiplyAddsPerCycle = 2 * 0.85;

double vectors(int channels) { return ceil_divide(channels, isa().lanes); }

/// Rows of patches times weights; a weight gradient has the roles changed, and the same count.
double gemm_cycles(const ConvolutionProblem& p) {
  const Axis &y = p.geometry.window.y, &x = p.geometry.window.x;
  if (p.pass == ConvolutionPass::data_gradient) {
    // By phases each pixel meets kernel / stride taps along an axis, also those outside of the border, and copies what it meets twice.
    const double depth = double(y.kernel) / y.stride * x.kernel / x.stride * p.group_outputs() * p.geometry.groups;
    return p.input_pixels() * depth * (vectors(p.group_inputs()) / kMultiplyAddsPerCycle + 1.5 / isa().lanes);
  }
  const double depth = double(p.taps()) * p.group_inputs() * p.geometry.groups;
  return p.output_pixels() * depth * (vectors(p.group_outputs()) / kMultiplyAddsPerCycle + 1.0 / isa().lanes);
}

/// Each product is loaded, added to a loaded value and stored, four at a time. Windows across the border of two bands of lines (of
/// at least four windows) are computed for both: half a window more in four.
double column_cycles(const ConvolutionProblem& p) {
  const int columns = p.taps() * p.geometry.input_channels;
  return p.output_pixels() * 1.125 * (p.geometry.output_channels * vectors(columns) / kMultiplyAddsPerCycle + 0.4 * columns);
}

/// A load, a multiply-add and a share of a store for each tap of each vector of channels.
double direct_cycles(const ConvolutionProblem& p) {
  return double(p.output_pixels()) * p.taps() * vectors(p.geometry.output_channels);
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
      if (!is_depthwise(p.geometry)) return "it is not depthwise";
      return p.sub_pixel_scale > 1 ? "sub-pixels" : "";
    case ConvolutionAlgorithm::gemm: return "";
    case ConvolutionAlgorithm::columns: return columns_obstacle(p);
  }
  return "";
}

double estimate_cycles(ConvolutionAlgorithm algorithm, const ConvolutionProblem& problem) {
  switch (algorithm) {
    case ConvolutionAlgorithm::direct: return direct_cycles(problem);
    case ConvolutionAlgorithm::gemm: return gemm_cycles(problem);
    case ConvolutionAlgorithm::columns: return column_cycles(problem);
  }
  return 0;
}

ConvolutionChoice choose(const ConvolutionProblem& problem) {
  std::string note;
  if (const auto& wanted = wanted_algorithm()) {
    const std::string why_not = obstacle(*wanted, problem);
    if (why_not.empty()) return {*wanted, "MPSNN_CONV"};
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
  return choice;
}

}  // namespace mpsnn::cpu
