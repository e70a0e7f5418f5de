// SPDX-License-Identifier: Apache-2.0
#include "mpsnn/geometry.hpp"

#include <limits>

#include "check.hpp"

using namespace mpsnn;
using Method = NNPaddingMethod;

namespace {

constexpr Method kSameTopLeft = Method::SizeSame;
constexpr Method kSameBottomRight = Method::SizeSame | Method::AddRemainderToBottomRight;
constexpr Method kValid = Method::SizeValidOnly;
constexpr Method kFull = Method::SizeFull;
constexpr Method kSizes[] = {kValid, kSameTopLeft, kFull};
constexpr Method kAligns[] = {Method::AlignCentered, Method::AlignTopLeft, Method::AlignBottomRight};
constexpr Method kRemainders[] = {Method::AddRemainderToTopLeft, Method::AddRemainderToTopRight, Method::AddRemainderToBottomLeft,
                                  Method::AddRemainderToBottomRight};

/// Size, offset and first source index of a forward filter, as the table of docs/MPS_SEMANTICS.md 6.3 lists them.
struct Row {
  int output, offset, first;
  bool operator==(const Row&) const = default;
  friend std::ostream& operator<<(std::ostream& out, const Row& r) { return out << r.output << '/' << r.offset << '/' << r.first; }
};

Row row(Method method, AxisDirection direction, int input, int stride, int kernel, int dilation = 1) {
  const Axis axis = resolve_axis(method, direction, input, kernel, stride, dilation);
  return {axis.output, axis.offset(), axis.origin(0)};
}

/// Every axis that small sizes, all policies and both directions give, and explicit padding and cropping besides.
template <class F>
void for_each_axis(F f) {
  for (int input = 1; input <= 7; ++input)
    for (int kernel = 1; kernel <= 5; ++kernel)
      for (int stride = 1; stride <= 4; ++stride)
        for (int dilation = 1; dilation <= 3; ++dilation) {
          for (Method size : kSizes)
            for (Method align : kAligns)
              for (Method remainder : kRemainders)
                for (AxisDirection direction : {AxisDirection::x, AxisDirection::y})
                  f(resolve_axis(size | align | remainder, direction, input, kernel, stride, dilation));
          for (int before = -3; before <= 9; before += 3)
            for (int after = -3; after <= 9; after += 3)
              f(resolve_explicit_axis(input, kernel, stride, dilation, before, after));
        }
}

bool is_in_image(const Axis& axis, int o, int t) { return axis.tap(o, t) >= 0 && axis.tap(o, t) < axis.input; }

}  // namespace

TEST(forward_sizes_and_offsets_are_those_of_the_table) {
  struct Case {
    int input, stride, kernel;
    Row valid, same_top_left, same_bottom_right, full;
  };
  const Case cases[] = {
      {8, 1, 3, {6, 1, 0}, {8, 0, -1}, {8, 0, -1}, {10, -1, -2}}, {8, 1, 2, {7, 1, 0}, {8, 0, -1}, {8, 1, 0}, {9, 0, -1}},
      {8, 2, 2, {4, 1, 0}, {4, 1, 0}, {4, 1, 0}, {5, 0, -1}},     {8, 2, 3, {3, 1, 0}, {4, 0, -1}, {4, 1, 0}, {5, -1, -2}},
      {7, 2, 2, {3, 1, 0}, {4, 0, -1}, {4, 1, 0}, {4, 0, -1}},    {7, 2, 3, {3, 1, 0}, {4, 0, -1}, {4, 0, -1}, {5, -1, -2}},
      {5, 1, 5, {1, 2, 0}, {5, 0, -2}, {5, 0, -2}, {9, -2, -4}},  {10, 2, 5, {3, 2, 0}, {5, 0, -2}, {5, 1, -1}, {7, -2, -4}},
      {28, 1, 5, {24, 2, 0}, {28, 0, -2}, {28, 0, -2}, {32, -2, -4}},
      {8, 4, 2, {2, 1, 0}, {2, 1, 0}, {2, 2, 1}, {3, 0, -1}},     {9, 3, 1, {3, 0, 0}, {3, 0, 0}, {3, 1, 1}, {3, 0, 0}},
  };
  for (const Case& c : cases)
    for (AxisDirection direction : {AxisDirection::x, AxisDirection::y}) {
      CHECK_EQ(row(kValid, direction, c.input, c.stride, c.kernel), c.valid);
      CHECK_EQ(row(kSameTopLeft, direction, c.input, c.stride, c.kernel), c.same_top_left);
      CHECK_EQ(row(kSameBottomRight, direction, c.input, c.stride, c.kernel), c.same_bottom_right);
      CHECK_EQ(row(kFull, direction, c.input, c.stride, c.kernel), c.full);
    }
  // Strides beyond the window leave pixels unread; the remainder bits say on which side the odd one lies.
  const Method valid_bottom_right = kValid | Method::AddRemainderToBottomRight;
  CHECK_EQ(row(valid_bottom_right, AxisDirection::x, 8, 4, 2), (Row{2, 2, 1}));
  CHECK_EQ(row(valid_bottom_right, AxisDirection::x, 9, 3, 1), (Row{3, 1, 1}));
}

TEST(dilated_windows_are_centred_on_their_extent) {
  CHECK_EQ(row(kSameTopLeft, AxisDirection::x, 6, 1, 3, 2), (Row{6, 0, -2}));
  CHECK_EQ(row(kSameTopLeft, AxisDirection::x, 6, 1, 2, 3), (Row{6, 0, -2}));
  const Axis axis = resolve_axis(kSameTopLeft, AxisDirection::x, 6, 2, 1, 3);
  CHECK_EQ(axis.tap(0, 0), -2);
  CHECK_EQ(axis.tap(0, 1), 1);
}

TEST(each_remainder_bit_moves_its_own_direction_only) {
  const auto before = [](Method remainder, AxisDirection direction) {
    return resolve_axis(Method::SizeSame | remainder, direction, 8, 2, 1, 1).before;
  };
  CHECK_EQ(before(Method::AddRemainderToTopLeft, AxisDirection::x), 1);
  CHECK_EQ(before(Method::AddRemainderToTopLeft, AxisDirection::y), 1);
  CHECK_EQ(before(Method::AddRemainderToTopRight, AxisDirection::x), 0);
  CHECK_EQ(before(Method::AddRemainderToTopRight, AxisDirection::y), 1);
  CHECK_EQ(before(Method::AddRemainderToBottomLeft, AxisDirection::x), 1);
  CHECK_EQ(before(Method::AddRemainderToBottomLeft, AxisDirection::y), 0);
  CHECK_EQ(before(Method::AddRemainderToBottomRight, AxisDirection::x), 0);
  CHECK_EQ(before(Method::AddRemainderToBottomRight, AxisDirection::y), 0);
}

TEST(alignment_puts_all_padding_on_the_named_side) {
  const Axis top_left = resolve_axis(kSameTopLeft | Method::AlignTopLeft, AxisDirection::x, 8, 3, 1, 1);
  CHECK_EQ(top_left.before, 2);
  const Axis bottom_right = resolve_axis(kSameTopLeft | Method::AlignBottomRight, AxisDirection::x, 8, 3, 1, 1);
  CHECK_EQ(bottom_right.before, 0);
}

TEST(windows_larger_than_the_image_do_not_fit_in_valid_mode) {
  CHECK(resolve_axis(kValid, AxisDirection::x, 2, 3, 1, 1).output < 1);
  CHECK(resolve_axis(kValid, AxisDirection::x, 4, 3, 2, 2).output < 1);
  CHECK_EQ(resolve_axis(kValid, AxisDirection::x, 5, 3, 2, 2).output, 1);
  CHECK(resolve_explicit_axis(2, 5, 1, 1, 1, 1).output < 1);
  CHECK_EQ(resolve_explicit_axis(2, 5, 3, 1, 2, 1).output, 1);
}

TEST(transposed_sizes_are_those_of_the_table) {
  struct Case {
    int source, stride, kernel, valid, same, full;
  };
  for (const Case& c : {Case{4, 2, 3, 5, 7, 9}, {4, 2, 2, 6, 7, 8}, {4, 1, 3, 2, 4, 6}, {4, 3, 5, 6, 10, 14}}) {
    CHECK_EQ(resolve_reverse_axis(kValid, AxisDirection::x, c.source, c.kernel, c.stride).input, c.valid);
    CHECK_EQ(resolve_reverse_axis(kSameTopLeft, AxisDirection::x, c.source, c.kernel, c.stride).input, c.same);
    CHECK_EQ(resolve_reverse_axis(kFull, AxisDirection::x, c.source, c.kernel, c.stride).input, c.full);
  }
}

TEST(transposed_taps_read_the_zero_inserted_source) {
  // 6.5: destination y reads, under tap p, position y + total - kernel/2 + p of the source with stride - 1 zeros between
  // neighbours, so source pixel i meets y = i * stride - total + kernel/2 - p.
  for (Method size : kSizes)
    for (Method remainder : kRemainders)
      for (int source = 1; source <= 5; ++source)
        for (int kernel = 1; kernel <= 5; ++kernel)
          for (int stride = 1; stride <= 3; ++stride) {
            const Axis undone = resolve_reverse_axis(size | remainder, AxisDirection::x, source, kernel, stride);
            const int style = size == kValid ? -1 : size == kFull ? 1 : 0;
            const int odd_in_front = has(remainder, Method::AddRemainderToTopRight) ? 0 : 1;
            const int left = ((style + 1) * (kernel - 1) + odd_in_front) / 2;
            const int total = kernel / 2 - left;
            CHECK_EQ(undone.output, source);
            CHECK_EQ(undone.input, (source - 1) * stride + 1 + style * (kernel - 1));
            for (int i = 0; i < source; ++i)
              for (int p = 0; p < kernel; ++p) CHECK_EQ(undone.tap(i, kernel - 1 - p), i * stride - total + kernel / 2 - p);
          }
}

TEST(taps_inside_are_the_taps_whose_pixel_exists) {
  for_each_axis([](const Axis& axis) {
    for (int o = -2; o < axis.output + 2; ++o) {
      const Range range = axis.taps_inside(o);
      CHECK(range.begin >= 0 && range.begin <= range.end && range.end <= axis.kernel);
      for (int t = 0; t < axis.kernel; ++t) CHECK_EQ(t >= range.begin && t < range.end, is_in_image(axis, o, t));
    }
  });
}

TEST(outputs_inside_are_the_outputs_whose_tap_exists) {
  for_each_axis([](const Axis& axis) {
    const int outputs = std::max(axis.output, 0);
    for (int t = 0; t < axis.kernel; ++t) {
      const Range range = axis.outputs_inside(t);
      CHECK(range.begin >= 0 && range.begin <= range.end && range.end <= outputs);
      for (int o = 0; o < outputs; ++o) CHECK_EQ(o >= range.begin && o < range.end, is_in_image(axis, o, t));
    }
  });
}

TEST(an_axis_is_inside_when_every_tap_is) {
  for_each_axis([](const Axis& axis) {
    if (axis.output < 1) return;
    bool all = true;
    for (int o = 0; o < axis.output; ++o)
      for (int t = 0; t < axis.kernel; ++t) all = all && is_in_image(axis, o, t);
    CHECK_EQ(axis.is_inside(), all);
  });
}

TEST(an_offset_and_a_size_name_the_same_axis_again) {
  for_each_axis([](const Axis& a) { CHECK(axis_from_offset(a.input, a.output, a.kernel, a.stride, a.dilation, a.offset()) == a); });
}

TEST(explicit_padding_fits_as_many_windows_as_there_is_room_for) {
  for (int input = 1; input <= 7; ++input)
    for (int kernel = 1; kernel <= 4; ++kernel)
      for (int stride = 1; stride <= 4; ++stride)
        for (int before = -2; before <= 3; ++before)
          for (int after = -2; after <= 3; ++after) {
            const Axis axis = resolve_explicit_axis(input, kernel, stride, 2, before, after);
            int fitting = 0;
            while (axis.tap(fitting, kernel - 1) < input + after) ++fitting;
            CHECK_EQ(std::max(axis.output, 0), fitting);
            CHECK_EQ(axis.origin(0), -before);
          }
}

TEST(average_divisors_count_what_their_edge_mode_says) {
  for_each_axis([](const Axis& axis) {
    for (int o = 0; o < axis.output; ++o) {
      CHECK_EQ(average_taps(axis, o, ImageEdgeMode::Zero, 0), axis.kernel);
      CHECK_EQ(average_taps(axis, o, ImageEdgeMode::Zero, 2), axis.kernel);
      for (int zero_pad = 0; zero_pad <= 3; ++zero_pad) {
        int counted = 0;
        for (int t = 0; t < axis.kernel; ++t)
          counted += axis.tap(o, t) >= -zero_pad && axis.tap(o, t) < axis.input + zero_pad ? 1 : 0;
        CHECK_EQ(average_taps(axis, o, ImageEdgeMode::Clamp, zero_pad), counted);
      }
    }
  });
}

TEST(a_mirrored_axis_meets_the_same_pixels) {
  for_each_axis([](const Axis& axis) {
    if (axis.stride != 1 || axis.output < 1) return;
    const Axis mirrored = axis.mirrored();
    CHECK(mirrored.mirrored() == axis);
    for (int p = 0; p < axis.input; ++p)
      for (int t = 0; t < axis.kernel; ++t) CHECK_EQ(axis.tap(mirrored.tap(p, t), axis.kernel - 1 - t), p);
  });
}

TEST(padding_reads_the_elements_of_the_table) {
  const std::vector<int> clamp{0, 0, 0, 0, 0, 0, 1, 2, 2, 2, 2, 2, 2}, mirror{1, 0, 1, 2, 1, 0, 1, 2, 1, 0, 1, 2, 1},
      with_edge{1, 2, 2, 1, 0, 0, 1, 2, 2, 1, 0, 0, 1}, fill{-1, -1, -1, -1, -1, 0, 1, 2, -1, -1, -1, -1, -1};
  const auto read = [](int size, ImageEdgeMode mode) {
    std::vector<int> elements;
    for (int i = -5; i <= 7; ++i) elements.push_back(padded_index(i, size, mode));
    return elements;
  };
  CHECK_EQ(read(3, ImageEdgeMode::Clamp), clamp);
  CHECK_EQ(read(3, ImageEdgeMode::Mirror), mirror);
  CHECK_EQ(read(3, ImageEdgeMode::MirrorWithEdge), with_edge);
  CHECK_EQ(read(3, ImageEdgeMode::Zero), fill);
  CHECK_EQ(read(3, ImageEdgeMode::Constant), fill);
  for (ImageEdgeMode mode : {ImageEdgeMode::Clamp, ImageEdgeMode::Mirror, ImageEdgeMode::MirrorWithEdge})
    CHECK_EQ(read(1, mode), std::vector<int>(13, 0));
}

TEST(enlarged_images_sample_where_they_should) {
  const auto values = [](bool align_corners) {  // of 0, 10, 20 enlarged twice
    std::vector<double> result;
    for (int o = 0; o < 6; ++o) {
      const LinearSample s = linear_sample(upsampling_position(o, 3, 2, align_corners), 3);
      result.push_back((1 - s.fraction) * 10 * s.low + s.fraction * 10 * s.high);
    }
    return result;
  };
  CHECK_EQ(values(false), (std::vector<double>{0, 2.5, 7.5, 12.5, 17.5, 20}));
  const std::vector<double> aligned = values(true);
  for (int o = 0; o < 6; ++o) CHECK_NEAR(aligned[o], 4 * o, 20 * std::numeric_limits<double>::epsilon());
  CHECK_EQ(upsampling_position(0, 1, 1, true), 0);
  for (int size = 1; size <= 4; ++size)
    for (int factor = 1; factor <= 5; ++factor)
      for (bool align_corners : {false, true}) {
        const LinearSample first = linear_sample(upsampling_position(0, size, factor, align_corners), size);
        CHECK(first.low == 0 && first.fraction == 0 && first.high == std::min(1, size - 1));
        for (int o = 0; o < size * factor; ++o) {
          const LinearSample s = linear_sample(upsampling_position(o, size, factor, align_corners), size);
          CHECK(s.low >= 0 && s.low <= s.high && s.high < size && s.fraction >= 0 && s.fraction < 1);
          if (factor == 1) CHECK(s.low == o && s.fraction == 0);
          if (!align_corners) CHECK_EQ(scale_position(o, factor, 0), upsampling_position(o, size, factor, false));
        }
      }
  CHECK_EQ(scale_position(7, 2, 3), 1.75);
}

TEST(lanczos_taps_lie_within_three_lobes) {
  for (double stretch : {1.0, 1.5, 4.0})
    for (double position : {-1e12, -7.25, 0.0, 2.0, 2.5, 9.125, 1e12}) {
      const LanczosTaps lanczos = lanczos_taps(position, stretch, 5);
      if (std::abs(position) < 1e3) {
        const auto is_near = [&](int tap) { return std::abs(tap - lanczos.position) < 3 * stretch; };
        CHECK_EQ(std::clamp(position, -3 * stretch - 1, 5 + 3 * stretch), lanczos.position);
        CHECK(is_near(lanczos.taps.begin) && is_near(lanczos.taps.end - 1));
        CHECK(!is_near(lanczos.taps.begin - 1) && !is_near(lanczos.taps.end));
      } else {
        CHECK(position < 0 ? lanczos.taps.end <= 0 : lanczos.taps.begin >= 5);
      }
    }
}

TEST(height_and_width_resolve_each_on_its_own) {
  const Window window = resolve_window(kSameTopLeft | Method::AddRemainderToTopRight, 7, 8, {3, 2, 2, 1, 1, 2});
  CHECK(window.y == resolve_axis(kSameTopLeft, AxisDirection::y, 7, 2, 1, 2));
  CHECK(window.x == resolve_axis(kSameBottomRight, AxisDirection::x, 8, 3, 2, 1));
  const Window reverse = resolve_reverse_window(kFull | Method::AddRemainderToTopRight, 3, 4, {3, 2, 2, 1, 1, 1});
  CHECK(reverse.y == resolve_reverse_axis(kFull, AxisDirection::y, 3, 2, 1));
  CHECK(reverse.x == resolve_reverse_axis(kFull | Method::AddRemainderToBottomRight, AxisDirection::x, 4, 3, 2));
}

TEST(the_inverse_policy_exchanges_valid_and_full_and_keeps_the_rest) {
  for (Method align : kAligns)
    for (Method remainder : kRemainders) {
      const Method rest = align | remainder | Method::ExcludeEdges;
      CHECK(inverse_padding_method(rest | kValid) == (rest | kFull));
      CHECK(inverse_padding_method(rest | kFull) == (rest | kValid));
      CHECK(inverse_padding_method(rest | kSameTopLeft) == (rest | kSameTopLeft));
    }
}

TEST(padding_methods_can_be_read) {
  CHECK_EQ(describe(kSameTopLeft), "AlignCentered | AddRemainderToTopLeft | SizeSame");
  CHECK_EQ(describe(kFull | Method::AlignBottomRight | Method::AddRemainderToBottomRight | Method::ExcludeEdges),
           "AlignBottomRight | AddRemainderToBottomRight | SizeFull | ExcludeEdges");
}
