// SPDX-License-Identifier: Apache-2.0
#include "mpsnn/geometry.hpp"

#include <cmath>
#include <numeric>

#include "core/size_limits.hpp"

namespace mpsnn {
namespace {

constexpr std::int64_t bits(NNPaddingMethod method, NNPaddingMethod mask) {
  return static_cast<std::int64_t>(method) & static_cast<std::int64_t>(mask);
}

/// -1 valid, 0 same, +1 full: the sign with which a window's reach enters the size.
int size_style(NNPaddingMethod method) {
  switch (static_cast<NNPaddingMethod>(bits(method, NNPaddingMethod::SizeMask))) {
    case NNPaddingMethod::SizeSame: return 0;
    case NNPaddingMethod::SizeFull: return 1;
    default: return -1;
  }
}

/// How many of `missing` pixels lie in front of the image.
std::int64_t pixels_before(NNPaddingMethod method, AxisDirection direction, std::int64_t missing) {
  switch (static_cast<NNPaddingMethod>(bits(method, NNPaddingMethod::AlignMask))) {
    case NNPaddingMethod::AlignTopLeft: return missing;
    case NNPaddingMethod::AlignBottomRight: return 0;
    default: break;
  }
  const auto remainder_behind =
      direction == AxisDirection::x ? NNPaddingMethod::AddRemainderToTopRight : NNPaddingMethod::AddRemainderToBottomLeft;
  const int odd_pixel_in_front = has(method, remainder_behind) ? 0 : 1;
  // MPS: C division, which truncates toward zero; it matters for negative `missing` (OQ-11).
  return (missing + odd_pixel_in_front) / 2;
}

/// An axis without result and offset yet, whose window is within bounds: constructors refuse less than 1, but not too much.
Axis checked_axis(int input, int kernel, int stride, int dilation) {
  for (const auto& [what, size] : {std::pair{"a kernel size", kernel}, {"a stride", stride}, {"a dilation", dilation}}) {
    if (size < 1) throw ShapeError(std::string(what) + " is less than 1.", {.expected = ">= 1", .actual = std::to_string(size)});
    checked_size(size, what);
  }
  checked_size(std::int64_t(kernel - 1) * dilation + 1, "the extent of a window");
  return {checked_size(input, "an image size"), 0, kernel, stride, dilation, 0};
}

constexpr int floor_divide(int a, int b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }

}  // namespace

Range Axis::taps_inside(int o) const {
  const int first = origin(o);
  const int begin = first >= 0 ? 0 : ceil_divide(-first, dilation);
  const int end = std::min(kernel, floor_divide(input - 1 - first, dilation) + 1);
  return {std::min(begin, kernel), std::max(end, std::min(begin, kernel))};
}

Range Axis::outputs_inside(int t) const {
  const int shift = before - t * dilation;  // o * stride >= shift and o * stride <= input - 1 + shift
  const int begin = std::clamp(shift <= 0 ? 0 : ceil_divide(shift, stride), 0, output);
  const int end = std::clamp(floor_divide(input - 1 + shift, stride) + 1, begin, output);
  return {begin, end};
}

Axis resolve_axis(NNPaddingMethod method, AxisDirection direction, int input, int kernel, int stride, int dilation) {
  Axis axis = checked_axis(input, kernel, stride, dilation);
  const int reach = axis.extent() - 1;
  const int numerator = input + size_style(method) * reach;
  axis.output = numerator <= 0 ? 0 : ceil_divide(numerator, stride);
  axis.before = static_cast<int>(pixels_before(method, direction, std::int64_t(axis.output - 1) * stride + axis.extent() - input));
  return axis;
}

Axis resolve_reverse_axis(NNPaddingMethod method, AxisDirection direction, int source, int kernel, int stride) {
  Axis axis = checked_axis(source, kernel, stride, 1);
  const int style = size_style(method);
  axis.input = checked_size(std::int64_t(source - 1) * stride + 1 + style * (kernel - 1), "the result of a transposed filter");
  axis.output = source;
  const int left = static_cast<int>(pixels_before(method, direction, (style + 1) * std::int64_t(kernel - 1)));
  // The zero-inserted source is read from -left on; seen from the result, whose windows look back at it through
  // the mirrored kernel, the first window starts `kernel - 1 - left` pixels in front of the result.
  axis.before = kernel - 1 - left;
  return axis;
}

Axis resolve_explicit_axis(int input, int kernel, int stride, int dilation, int before, int after) {
  Axis axis = checked_axis(input, kernel, stride, dilation);
  axis.before = checked_size(before, "a padding");
  const int room = input + before + checked_size(after, "a padding") - axis.extent();
  axis.output = room < 0 ? 0 : room / stride + 1;
  return axis;
}

Axis axis_from_offset(int input, int output, int kernel, int stride, int dilation, int offset) {
  Axis axis = checked_axis(input, kernel, stride, dilation);
  axis.output = output;
  checked_size((std::int64_t(output) - 1) * stride, "the place of the last window");
  axis.before = axis.extent() / 2 - checked_size(offset, "an offset");
  return axis;
}

Window resolve_window(NNPaddingMethod method, int height, int width, const WindowSize& size) {
  return {resolve_axis(method, AxisDirection::y, height, size.kernel_height, size.stride_in_pixels_y, size.dilation_rate_y),
          resolve_axis(method, AxisDirection::x, width, size.kernel_width, size.stride_in_pixels_x, size.dilation_rate_x)};
}

Window resolve_reverse_window(NNPaddingMethod method, int height, int width, const WindowSize& size) {
  return {resolve_reverse_axis(method, AxisDirection::y, height, size.kernel_height, size.stride_in_pixels_y),
          resolve_reverse_axis(method, AxisDirection::x, width, size.kernel_width, size.stride_in_pixels_x)};
}

std::vector<Phase> phases(const Axis& forward) {
  std::vector<Phase> result;
  const int common = std::gcd(forward.stride, forward.dilation);
  for (int first = 0; first < std::min(forward.stride, forward.input); ++first) {
    Phase phase;
    phase.first = first;
    phase.step = forward.stride;
    phase.axis = {forward.output, ceil_divide(forward.input - first, forward.stride), 0, 1, forward.dilation / common, 0};
    // Later taps meet a pixel from earlier windows: backwards, so that the axis counts upwards.
    for (int tap = forward.kernel - 1; tap >= 0; --tap) {
      const int distance = first - forward.tap(0, tap);  // from window 0's tap to the pixel
      if (distance % forward.stride != 0) continue;
      if (phase.taps.empty()) phase.axis.before = -(distance / forward.stride);
      phase.taps.push_back(tap);
    }
    phase.axis.kernel = static_cast<int>(phase.taps.size());
    result.push_back(std::move(phase));
  }
  return result;
}

EnlargedAxis enlarge(const Axis& axis) {
  if (axis.output < 1) return {axis, 0};
  const int begin = std::min(0, axis.origin(0)), end = std::max(axis.input, axis.origin(axis.output - 1) + axis.extent());
  Axis enlarged = axis;
  enlarged.input = end - begin;
  enlarged.before = axis.before + begin;
  return {enlarged, -begin};
}

int average_taps(const Axis& axis, int o, ImageEdgeMode edge, int zero_pad) {
  if (edge == ImageEdgeMode::Zero) return axis.kernel;
  Axis extended = axis;
  extended.input += 2 * zero_pad;
  extended.before -= zero_pad;
  return extended.taps_inside(o).size();
}

int padded_index(int index, int size, ImageEdgeMode mode) {
  const auto remainder = [index](int period) { return (index % period + period) % period; };
  switch (mode) {
    case ImageEdgeMode::Clamp: return clamp_index(index, size);
    case ImageEdgeMode::Mirror: {
      if (size == 1) return 0;
      const int period = 2 * (size - 1), rest = remainder(period);
      return rest < size ? rest : period - rest;
    }
    case ImageEdgeMode::MirrorWithEdge: {
      const int period = 2 * size, rest = remainder(period);
      return rest < size ? rest : period - 1 - rest;
    }
    default: return index >= 0 && index < size ? index : -1;
  }
}

LinearSample linear_sample(double position, int size) {
  const double inside = std::clamp(position, 0.0, static_cast<double>(size - 1));
  const int low = static_cast<int>(inside);
  return {low, std::min(low + 1, size - 1), inside - low};
}

double upsampling_position(int o, int size, int factor, bool align_corners) {
  if (!align_corners) return (o + 0.5) / factor - 0.5;
  const int last = size * factor - 1;
  return last == 0 ? 0 : static_cast<double>(o) * (size - 1) / last;
}

LanczosTaps lanczos_taps(double position, double stretch, int size) {
  const double reach = 3 * stretch;
  const double near = std::clamp(position, -reach - 1, size + reach);
  return {{static_cast<int>(std::floor(near - reach)) + 1, static_cast<int>(std::ceil(near + reach))}, near};
}

NNPaddingMethod inverse_padding_method(NNPaddingMethod method) {
  const auto rest = static_cast<std::int64_t>(method) & ~static_cast<std::int64_t>(NNPaddingMethod::SizeMask);
  const NNPaddingMethod opposite[] = {NNPaddingMethod::SizeFull, NNPaddingMethod::SizeSame, NNPaddingMethod::SizeValidOnly};
  return static_cast<NNPaddingMethod>(rest) | opposite[size_style(method) + 1];
}

std::string describe(NNPaddingMethod method) {
  const char* align[] = {"AlignCentered", "AlignTopLeft", "AlignBottomRight", "Align_reserved"};
  const char* remainder[] = {"TopLeft", "TopRight", "BottomLeft", "BottomRight"};
  const char* size[] = {"SizeValidOnly", "SizeSame", "SizeFull"};
  std::string text = align[bits(method, NNPaddingMethod::AlignMask)];
  text += std::string(" | AddRemainderTo") + remainder[bits(method, NNPaddingMethod::AddRemainderToMask) >> 2];
  text += std::string(" | ") + size[size_style(method) + 1];
  if (has(method, NNPaddingMethod::ExcludeEdges)) text += " | ExcludeEdges";
  if (has(method, NNPaddingMethod::CustomAllowForNodeFusion)) text += " | CustomAllowForNodeFusion";
  if (has(method, NNPaddingMethod::Custom)) text += " | Custom";
  return text;
}

}  // namespace mpsnn
