// SPDX-License-Identifier: Apache-2.0
// Random axes: policies, sizes, strides, dilations, kernels, negative and huge ones among them. Either geometry refuses them with a
// ShapeError, or forward and adjoint meet the same pairs of output and tap, all inside the image.
//   fuzz_geometry [count] [seed]
#include <cstdint>
#include <limits>

#include "fuzz.hpp"
#include "mpsnn/error.hpp"
#include "mpsnn/geometry.hpp"

using namespace mpsnn;
using fuzz::Random;

namespace {

int number(Random& random) {
  static const int kHostile[] = {0, -1, 1 << 15, 1 << 28, (1 << 28) + 1, 1 << 30, std::numeric_limits<int>::max(), std::numeric_limits<int>::min(), -(1 << 28)};
  if (random.one_in(24)) return random.of(kHostile);
  if (random.one_in(12)) return static_cast<int>(random.bits() >> 33) >> random.below(31);
  return static_cast<int>(random.below(13)) - (random.one_in(4) ? 3 : 0) + 1;
}

Axis draw(Random& random) {
  const int input = number(random), kernel = number(random), stride = number(random), dilation = random.one_in(2) ? 1 : number(random);
  const auto method = static_cast<NNPaddingMethod>(random.bits() & 0xffff);
  const auto direction = random.one_in(2) ? AxisDirection::x : AxisDirection::y;
  switch (random.below(4)) {
    case 0: return resolve_axis(method, direction, input, kernel, stride, dilation);
    case 1: return resolve_reverse_axis(method, direction, input, kernel, stride);
    case 2: return resolve_explicit_axis(input, kernel, stride, dilation, number(random), number(random));
    default: return axis_from_offset(input, number(random), kernel, stride, dilation, number(random));
  }
}

std::string text(const Axis& a) {
  std::string result = "input output kernel stride dilation before =";
  for (int value : {a.input, a.output, a.kernel, a.stride, a.dilation, a.before}) result += " " + std::to_string(value);
  return result;
}

void require(bool is_true, const Axis& axis, const char* what) {
  if (!is_true) fuzz::fail(std::string(what) + "; " + text(axis));
}

bool is_inside(const Axis& axis, int o, int t) { return axis.tap(o, t) >= 0 && axis.tap(o, t) < axis.input; }

/// Taps and outputs at both ends and at random places; all of them on small axes.
template <class F>
void for_some(int count, Random& random, F f) {
  if (count <= 64) {
    for (int i = 0; i < count; ++i) f(i);
    return;
  }
  for (int i : {0, 1, count / 2, count - 2, count - 1}) f(i);
  for (int i = 0; i < 8; ++i) f(static_cast<int>(random.below(count)));
}

void check(const Axis& axis, Random& random) {
  if (axis.output < 1 || axis.input < 1) return;  // the graph says that nothing is left
  for_some(axis.output, random, [&](int o) {
    const Range taps = axis.taps_inside(o);
    require(0 <= taps.begin && taps.begin <= taps.end && taps.end <= axis.kernel, axis, "taps beyond the kernel");
    for_some(axis.kernel, random, [&](int t) { require((t >= taps.begin && t < taps.end) == is_inside(axis, o, t), axis, "taps_inside differs from tap"); });
    const int divisor = average_taps(axis, o, ImageEdgeMode::Clamp, std::max(0, axis.before));
    require(divisor >= taps.size() && divisor <= axis.kernel, axis, "a divisor that no window has");
  });
  for_some(axis.kernel, random, [&](int t) {
    const Range outputs = axis.outputs_inside(t);
    require(0 <= outputs.begin && outputs.begin <= outputs.end && outputs.end <= axis.output, axis, "outputs beyond the result");
    for_some(axis.output, random, [&](int o) { require((o >= outputs.begin && o < outputs.end) == is_inside(axis, o, t), axis, "outputs_inside differs from tap"); });
  });
  if (axis.output > 64 || axis.kernel > 64 || axis.input > 512 || axis.extent() > 4096) return;
  std::int64_t forward = 0, adjoint = 0, phased = 0;
  for (int o = 0; o < axis.output; ++o) forward += axis.taps_inside(o).size();
  for (int t = 0; t < axis.kernel; ++t) adjoint += axis.outputs_inside(t).size();
  require(forward == adjoint, axis, "forward and adjoint meet different pairs");
  for (const Phase& phase : phases(axis))
    for (int p = 0; p < phase.axis.output && phase.axis.kernel > 0; ++p) phased += phase.axis.taps_inside(p).size();
  require(forward == phased, axis, "phases meet different pairs");
  const EnlargedAxis enlarged = enlarge(axis);
  require(enlarged.axis.is_inside(), axis, "an enlarged axis leaves its image");
}

}  // namespace

int main(int argument_count, char** arguments) {
  const fuzz::Arguments given(argument_count, arguments, 50'000);
  std::uint64_t refused = 0;
  for (std::uint64_t i = 0; i < given.count; ++i) {
    Random random(given.seed + i);
    try {
      check(draw(random), random);
    } catch (const ShapeError&) {
      ++refused;
    }
  }
  std::printf("%llu geometries, %llu refused\n", static_cast<unsigned long long>(given.count), static_cast<unsigned long long>(refused));
}
