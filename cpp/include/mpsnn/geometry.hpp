// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "mpsnn/enums.hpp"
#include "mpsnn/export.hpp"

/// The only arithmetic on sizes, offsets, windows and divisors.
/// Formulas: docs/MPS_SEMANTICS.md, "Padding, sizing and addressing".
namespace mpsnn {

/// A half-open range of indices.
struct Range {
  int begin = 0;
  int end = 0;
  constexpr int size() const { return end > begin ? end - begin : 0; }
  constexpr bool operator==(const Range&) const = default;
};

/// One spatial axis of a windowed node, resolved. Loops, gradients, MPS offsets and drawings read these
/// numbers; none of them computes its own.
struct MPSNN_API Axis {
  int input = 1;     ///< pixels available
  int output = 1;    ///< pixels produced
  int kernel = 1;    ///< taps of the window
  int stride = 1;    ///< input pixels between neighbouring windows
  int dilation = 1;  ///< input pixels between neighbouring taps
  int before = 0;    ///< virtual pixels in front of pixel 0; negative means cropped

  bool operator==(const Axis&) const = default;

  /// Input pixels that a window spans, gaps included.
  constexpr int extent() const { return (kernel - 1) * dilation + 1; }
  /// First virtual input pixel that output pixel `o` looks at.
  constexpr int origin(int o) const { return o * stride - before; }
  /// Virtual input pixel under tap `t` of output pixel `o`.
  constexpr int tap(int o, int t) const { return origin(o) + t * dilation; }
  /// True when every tap of every output pixel lies inside the image.
  constexpr bool is_inside() const { return origin(0) >= 0 && origin(output - 1) + extent() <= input; }
  /// True when the one window covers the whole image and nothing else.
  constexpr bool covers_image() const { return output == 1 && kernel == input && before == 0 && (dilation == 1 || kernel == 1); }
  /// Taps of output pixel `o` that land inside the image.
  Range taps_inside(int o) const;
  /// Output pixels whose window origin allows tap `t` to land inside the image.
  Range outputs_inside(int t) const;
  /// The axis that walks the same meetings from the other end, for stride 1: tap t of its output pixel p is the output pixel
  /// whose tap kernel - 1 - t reads p. Gradients gather along it.
  constexpr Axis mirrored() const { return {output, input, kernel, 1, dilation, extent() - 1 - before}; }
  /// MPS's `offset`: the input position of the window's centre for output pixel 0.
  constexpr int offset() const { return extent() / 2 - before; }
};

/// A window on an image: one axis each way.
struct Window {
  Axis y, x;
  bool operator==(const Window&) const = default;
};

/// Size of a window before it meets an image: what initializers and descriptors hold.
struct WindowSize {
  int kernel_width = 1, kernel_height = 1;
  int stride_in_pixels_x = 1, stride_in_pixels_y = 1;
  int dilation_rate_x = 1, dilation_rate_y = 1;
  bool operator==(const WindowSize&) const = default;
};

/// Which of the two axes a remainder bit is read for.
enum class AxisDirection { x, y };

/// The axis of a forward filter under a padding method. `output` is less than 1 when the window does not fit.
/// Source: MPS_SEMANTICS 6.3.
MPSNN_API Axis resolve_axis(NNPaddingMethod method, AxisDirection direction, int input, int kernel, int stride, int dilation);

/// The axis of a transposed filter that enlarges `source` pixels, written as the *forward* axis that it undoes:
/// `input` is the result's size, `output` the source's. Source: MPS_SEMANTICS 6.5.
MPSNN_API Axis resolve_reverse_axis(NNPaddingMethod method, AxisDirection direction, int source, int kernel, int stride);

/// The axis with `before` and `after` pixels of explicit padding; negative values crop.
MPSNN_API Axis resolve_explicit_axis(int input, int kernel, int stride, int dilation, int before, int after);

/// The axis that a custom policy chose: its offset (the window's centre at output pixel 0) and its output size.
MPSNN_API Axis axis_from_offset(int input, int output, int kernel, int stride, int dilation, int offset);

/// Both axes of a forward filter.
MPSNN_API Window resolve_window(NNPaddingMethod method, int height, int width, const WindowSize& size);
/// Both axes of a transposed filter; see resolve_reverse_axis.
MPSNN_API Window resolve_reverse_window(NNPaddingMethod method, int height, int width, const WindowSize& size);

/// The pixels first, first + step, ... of an image's axis that are met by the same taps of strided windows. To them, the data
/// gradient is a convolution of stride 1 over the incoming gradient, so no multiplication meets an inserted zero.
struct Phase {
  Axis axis;              ///< from the incoming gradient to the pixels of this phase; kernel 0 when no tap meets them
  std::vector<int> taps;  ///< the tap of the forward window under each tap of `axis`
  int first = 0, step = 1;
};
MPSNN_API std::vector<Phase> phases(const Axis& forward);

/// With edge mode Clamp a window reads what it would read without edges in an image enlarged by repetition. That axis, `shift`
/// pixels in front of the original one: pixel j of it repeats pixel clamp_index(j - shift) of the image.
struct EnlargedAxis {
  Axis axis;
  int shift = 0;
};
MPSNN_API EnlargedAxis enlarge(const Axis& axis);

/// Number of taps that the average of output pixel `o` divides by (MPS_SEMANTICS 8.4). With edge mode Zero it is
/// the kernel; with Clamp, the taps inside the image enlarged by `zero_pad` pixels on each side.
MPSNN_API int average_taps(const Axis& axis, int o, ImageEdgeMode edge, int zero_pad);

/// Element of a dimension of `size` elements that index `index` of its padded form reads, counted from the element's own 0:
/// -1 where it reads the fill value (Zero and Constant outside). Source: MPS_SEMANTICS 18.3.
MPSNN_API int padded_index(int index, int size, ImageEdgeMode mode);

/// Where a pixel of an enlarged or scaled image lies between the pixels of its source: value = (1 - fraction) * low +
/// fraction * high.
struct LinearSample {
  int low = 0, high = 0;
  double fraction = 0;
};
/// The two pixels around a position, clamped to an image of `size` pixels.
MPSNN_API LinearSample linear_sample(double position, int size);

/// Source position of pixel `o` of an image of `size` pixels enlarged by a whole factor: the centres of the first and the last
/// pixels meet (align_corners), or the outer borders do. Source: MPS_SEMANTICS 15.
MPSNN_API double upsampling_position(int o, int size, int factor, bool align_corners);
/// Source position of result pixel `o` under result = source * scale + translate, with pixel centres at halves.
constexpr double scale_position(int o, double scale, double translate) { return (o + 0.5 - translate) / scale - 0.5; }

/// Pixels, those outside of the image included, less than 3 * stretch away from a position: the taps of a stretched Lanczos
/// filter with 3 lobes. Positions far outside move to where all their taps are outside still. Source: MPS_SEMANTICS 15.
struct LanczosTaps {
  Range taps;
  double position = 0;
};
MPSNN_API LanczosTaps lanczos_taps(double position, double stretch, int size);

/// The policy of the gradient direction: valid and full change places (MPS_SEMANTICS 6.6).
MPSNN_API NNPaddingMethod inverse_padding_method(NNPaddingMethod method);

/// Readable form of a padding method, e.g. "AlignCentered | AddRemainderToTopLeft | SizeSame".
MPSNN_API std::string describe(NNPaddingMethod method);

constexpr bool has(NNPaddingMethod method, NNPaddingMethod bits) {
  return (static_cast<std::int64_t>(method) & static_cast<std::int64_t>(bits)) != 0;
}
constexpr NNPaddingMethod operator|(NNPaddingMethod a, NNPaddingMethod b) {
  return static_cast<NNPaddingMethod>(static_cast<std::int64_t>(a) | static_cast<std::int64_t>(b));
}

/// The part of `[first, first + count)` that lies on an image of `size` pixels.
constexpr Range clip_range(int first, int count, int size) {
  const std::int64_t end = std::clamp<std::int64_t>(std::int64_t(first) + count, 0, size);
  return {std::clamp(first, 0, size), static_cast<int>(end)};
}

/// Index of the nearest pixel of an image of `size` pixels.
constexpr int clamp_index(int index, int size) { return std::clamp(index, 0, size - 1); }

/// The smallest integer that is at least a / b, for a >= 0 and b > 0.
constexpr int ceil_divide(int a, int b) { return (a + b - 1) / b; }

}  // namespace mpsnn
