// SPDX-License-Identifier: Apache-2.0
// Convolutions of narrow groups: a vector over the channels of several groups, of pixels that lie behind one another in a copy with the zeros
// outside of the image. Each input of a group meets all outputs of it, so a pixel's vector is multiplied once for each input, spread over its
// group's lanes. Included by depthwise.inl.

/// to[i * lanes] := from[i * stride] and the lanes behind it.
void gather_vectors(const float* from, std::size_t stride, std::size_t count, float* to) {
  for (std::size_t i = 0; i < count; ++i) store(to + i * kLanes, load(from + i * stride));
}

/// Lane l holds the first lane of its group.
inline Indices first_lanes_of_groups(int width) {
  Indices result;
  for (int i = 0; i < kLanes; ++i) result[i] = i / width * width;
  return result;
}

/// Sums of few pixels are taken apart: one chain of additions alone would wait for each.
template <int Taps, int Step, int Pixels>
inline __attribute__((always_inline)) void grouped_pixels(const DepthwiseRun& run, const Indices& lanes, int first) {
  constexpr int kChains = Pixels >= 7 ? 1 : Pixels >= 4 ? 2 : 4;
  Vector sum[kChains][Pixels] = {};
#pragma GCC unroll 12
  for (int r = 0; r < Pixels; ++r)
    if (run.start) sum[0][r] = load(run.start);
  for (int line = 0; line < run.line_count; ++line) {
    const float *x = run.lines[line] + first * run.pixel_step, *w = run.weights[line];
    const auto add = [&](Indices from, Vector (&total)[Pixels]) __attribute__((always_inline)) {
      if constexpr (Taps > 0) {
        Vector weight[Taps];
#pragma GCC unroll 3
        for (int t = 0; t < Taps; ++t) weight[t] = load(w + t * run.weight_step);
#pragma GCC unroll 32
        for (int j = 0; j < (Pixels - 1) * Step + Taps; ++j) {
          const Vector v = pick_lanes(load(x + j * run.tap_step), from);
#pragma GCC unroll 12
          for (int r = 0; r < Pixels; ++r)
            if (j >= r * Step && j - r * Step < Taps) total[r] += v * weight[j - r * Step];
        }
      } else {
        for (int t = 0; t < run.taps; ++t) {
          const Vector weight = load(w + t * run.weight_step);
#pragma GCC unroll 12
          for (int r = 0; r < Pixels; ++r) total[r] += pick_lanes(load(x + t * run.tap_step + r * run.pixel_step), from) * weight;
        }
      }
      w += kLanes;
    };
    for (int input = 0; input < run.width; input += kChains)
#pragma GCC unroll 4
      for (int chain = 0; chain < kChains; ++chain)
        if (input + chain < run.width) add(lanes + (input + chain), sum[chain]);
  }
#pragma GCC unroll 12
  for (int r = 0; r < Pixels; ++r) {
#pragma GCC unroll 4
    for (int chain = 1; chain < kChains; ++chain) sum[0][r] += sum[chain][r];
    store(run.result + (first + r) * run.result_step, sum[0][r]);
  }
}

template <int Taps, int Step>
void grouped_vectors(const DepthwiseRun& run) {
  const Indices lanes = first_lanes_of_groups(run.width);
  constexpr int kMost = MPSNN_ISA_REGISTERS == 32 ? 12 : 8;
  int pixel = 0;
  for (; run.pixels - pixel >= kMost && run.pixels - pixel != 14; pixel += kMost) grouped_pixels<Taps, Step, kMost>(run, lanes, pixel);
  for (; run.pixels - pixel >= 7; pixel += 7) grouped_pixels<Taps, Step, 7>(run, lanes, pixel);
  for (; run.pixels - pixel >= 4; pixel += 4) grouped_pixels<Taps, Step, 4>(run, lanes, pixel);
  if (run.pixels - pixel >= 2) grouped_pixels<Taps, Step, 2>(run, lanes, pixel), pixel += 2;
  if (run.pixels - pixel >= 1) grouped_pixels<Taps, Step, 1>(run, lanes, pixel);
}

template <int Step>
void grouped_step(const DepthwiseRun& run) {
  switch (run.taps) {
    case 1: return grouped_vectors<1, Step>(run);
    case 2: return grouped_vectors<2, Step>(run);
    case 3: return grouped_vectors<3, Step>(run);
    default: return grouped_vectors<0, 0>(run);
  }
}

void grouped_run(const DepthwiseRun& run) {
  if (run.pixel_step == run.tap_step || run.pixels == 1) return grouped_step<1>(run);
  if (run.pixel_step == 2 * run.tap_step) return grouped_step<2>(run);
  grouped_vectors<0, 0>(run);
}

/// A line of taps with some inputs of each group: their sums stay in registers.
template <int Inputs, int Taps, int Step>
void grouped_add(const DepthwiseSum& sum, const Indices& lanes, int ty, int first_tap, int first_input) {
  Vector total[Inputs][Taps] = {};
  for (int line = 0; line < sum.lines; ++line) {
    const float *e = sum.incoming + line * sum.incoming_line,
                *x = sum.source + line * sum.source_line + ty * sum.source_tap_line + first_tap * sum.source_tap;
    const auto add = [&]<int Pixels>(Numbers<Pixels>) __attribute__((always_inline)) {
      Vector incoming[Pixels];
#pragma GCC unroll 4
      for (int r = 0; r < Pixels; ++r) incoming[r] = load(e + r * sum.incoming_pixel);
#pragma GCC unroll 16
      for (int j = 0; j < (Pixels - 1) * Step + Taps; ++j) {
        const Vector v = load(x + j * sum.source_tap);
#pragma GCC unroll 4
        for (int input = 0; input < Inputs; ++input) {
          const Vector spread = pick_lanes(v, lanes + (first_input + input));
#pragma GCC unroll 4
          for (int r = 0; r < Pixels; ++r)
            if (j >= r * Step && j - r * Step < Taps) total[input][j - r * Step] += spread * incoming[r];
        }
      }
      e += Pixels * sum.incoming_pixel;
      x += Pixels * sum.source_pixel;
    };
    int pixel = 0;
    if constexpr (Step > 0)
      for (; pixel + 4 <= sum.pixels; pixel += 4) add(Numbers<4>{});
    for (; pixel < sum.pixels; ++pixel) add(Numbers<1>{});
  }
#pragma GCC unroll 4
  for (int input = 0; input < Inputs; ++input)
#pragma GCC unroll 3
    for (int tx = 0; tx < Taps; ++tx) {
      float* to = sum.sums + ty * sum.sum_line + (first_tap + tx) * sum.sum_tap + (first_input + input) * kLanes;
      store(to, load(to) + total[input][tx]);
    }
}

/// Groups of two channels, or of a multiple of four.
template <int Taps, int Step>
void grouped_add_inputs(const DepthwiseSum& sum, const Indices& lanes, int first_tap) {
  for (int ty = 0; ty < sum.taps_y; ++ty)
    for (int input = 0; input < sum.width; input += 4)
      sum.width == 2 ? grouped_add<2, Taps, Step>(sum, lanes, ty, first_tap, 0) : grouped_add<4, Taps, Step>(sum, lanes, ty, first_tap, input);
}

void grouped_sum(const DepthwiseSum& sum) {
  const Indices lanes = first_lanes_of_groups(sum.width);
  if (sum.taps_x == 3 && sum.source_pixel == sum.source_tap) return grouped_add_inputs<3, 1>(sum, lanes, 0);
  if (sum.taps_x == 3 && sum.source_pixel == 2 * sum.source_tap) return grouped_add_inputs<3, 2>(sum, lanes, 0);
  for (int tap = 0; tap < sum.taps_x; ++tap) grouped_add_inputs<1, 0>(sum, lanes, tap);
}
