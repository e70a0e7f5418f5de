// SPDX-License-Identifier: Apache-2.0
// Depthwise kernels of an instruction set: vectors over channels, several pixels at a time, so that a loaded pixel serves all
// windows over it. Included by microkernel.inl.

#include "backends/cpu/isa/grouped.inl"

template <int Vectors, int Taps, int Step, int Pixels>
inline __attribute__((always_inline)) void depthwise_pixels(const DepthwiseRun& run, std::size_t c, int first) {
  Vector sum[Pixels][Vectors];
  if (run.result_ahead > 0)
#pragma GCC unroll 8
    for (int r = 0; r < Pixels; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < Vectors; ++v) __builtin_prefetch(run.result + c + v * kLanes + (first + r) * run.result_step + run.result_ahead, 1);
#pragma GCC unroll 8
  for (int r = 0; r < Pixels; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) sum[r][v] = run.start ? load(run.start + c + v * kLanes) : Vector{};
  for (int line = 0; line < run.line_count; ++line) {
    const float* x = run.lines[line] + c + first * run.pixel_step;
    const float* w = run.weights[line] + c;
    if (line + run.new_lines >= run.line_count)
#pragma GCC unroll 16
      for (int j = 0; j < Pixels * (Step > 0 ? Step : 1); ++j)
#pragma GCC unroll 2
        for (int v = 0; v < Vectors; ++v) __builtin_prefetch(x + v * kLanes + j * run.tap_step + run.ahead, 0, 2);
    if constexpr (Taps > 0) {
      Vector weight[Taps][Vectors];
#pragma GCC unroll 5
      for (int t = 0; t < Taps; ++t)
#pragma GCC unroll 2
        for (int v = 0; v < Vectors; ++v) weight[t][v] = load(w + t * run.weight_step + v * kLanes);
#pragma GCC unroll 32
      for (int j = 0; j < (Pixels - 1) * Step + Taps; ++j, x += run.tap_step)
#pragma GCC unroll 2
        for (int v = 0; v < Vectors; ++v) {
          const Vector pixel = load(x + v * kLanes);
#pragma GCC unroll 8
          for (int r = 0; r < Pixels; ++r)
            if (j >= r * Step && j - r * Step < Taps) sum[r][v] += pixel * weight[j - r * Step][v];
        }
    } else {
      for (int t = 0; t < run.taps; ++t, x += run.tap_step, w += run.weight_step)
#pragma GCC unroll 2
        for (int v = 0; v < Vectors; ++v) {
          const Vector weight = load(w + v * kLanes);
#pragma GCC unroll 8
          for (int r = 0; r < Pixels; ++r) sum[r][v] += load(x + r * run.pixel_step + v * kLanes) * weight;
        }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < Pixels; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) store(run.result + c + v * kLanes + (first + r) * run.result_step, sum[r][v]);
}

/// Three taps and the sums of four pixels leave room for two vectors of channels: cache lines are read in the order in which they are fetched.
template <int Taps>
constexpr int kDepthwiseVectors = kLanes == 16 && Taps == 3 ? 2 : 1;

/// All channels of some pixels, as they lie in memory.
template <int Taps, int Step, int Pixels>
inline __attribute__((always_inline)) void depthwise_tile(const DepthwiseRun& run, int& pixel) {
  // The last vector overlaps the one before it: what both compute is the same.
  std::size_t c = 0;
  if constexpr (kDepthwiseVectors<Taps> == 2)
    for (; c + 2 * kLanes <= run.channels; c += 2 * kLanes) depthwise_pixels<2, Taps, Step, Pixels>(run, c, pixel);
  for (; c + kLanes <= run.channels; c += kLanes) depthwise_pixels<1, Taps, Step, Pixels>(run, c, pixel);
  if (c < run.channels) depthwise_pixels<1, Taps, Step, Pixels>(run, run.channels - kLanes, pixel);
  pixel += Pixels;
}

template <int Taps, int Step>
void depthwise_vectors(const DepthwiseRun& run) {
  int pixel = 0;
  constexpr int kMost = 8 / kDepthwiseVectors<Taps>;
  while (run.pixels - pixel >= kMost) depthwise_tile<Taps, Step, kMost>(run, pixel);
  if (run.pixels - pixel >= 4) depthwise_tile<Taps, Step, 4>(run, pixel);
  if (run.pixels - pixel >= 2) depthwise_tile<Taps, Step, 2>(run, pixel);
  if (run.pixels - pixel >= 1) depthwise_tile<Taps, Step, 1>(run, pixel);
}

/// Fewer channels than a vector has.
void depthwise_scalars(const DepthwiseRun& run) {
  for (int pixel = 0; pixel < run.pixels; ++pixel) {
    for (std::size_t c = 0; c < run.channels; ++c) {
      float sum = run.start ? run.start[c] : 0.0f;
      for (int line = 0; line < run.line_count; ++line)
        for (int t = 0; t < run.taps; ++t)
          sum += run.lines[line][pixel * run.pixel_step + t * run.tap_step + c] * run.weights[line][t * run.weight_step + c];
      run.result[pixel * run.result_step + c] = sum;
    }
  }
}

template <int Step>
void depthwise_step(const DepthwiseRun& run) {
  switch (run.taps) {
    case 1: return depthwise_vectors<1, Step>(run);
    case 2: return depthwise_vectors<2, Step>(run);
    case 3: return depthwise_vectors<3, Step>(run);
    case 5: return depthwise_vectors<5, Step>(run);
    default: return depthwise_vectors<0, 0>(run);
  }
}

void depthwise_run(const DepthwiseRun& run) {
  if (run.width > 1) return grouped_run(run);
  if (run.channels < kLanes) return depthwise_scalars(run);
  if (run.pixel_step == run.tap_step || run.pixels == 1) return depthwise_step<1>(run);
  if (run.pixel_step == 2 * run.tap_step) return depthwise_step<2>(run);
  depthwise_vectors<0, 0>(run);
}

/// Some pixels of a line; sums of all taps stay in registers.
template <int Vectors, int TapsY, int TapsX, int Step, int Pixels>
inline __attribute__((always_inline)) void add_pixels(const DepthwiseSum& sum, const float* e, const float* x, Vector (&total)[Vectors][TapsY][TapsX]) {
  Vector incoming[Pixels][Vectors];
#pragma GCC unroll 4
  for (int r = 0; r < Pixels; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) incoming[r][v] = load(e + r * sum.incoming_pixel + v * kLanes);
#pragma GCC unroll 3
  for (int ty = 0; ty < TapsY; ++ty) {
    const float* p = x + ty * sum.source_tap_line;
#pragma GCC unroll 16
    for (int j = 0; j < (Pixels - 1) * Step + TapsX; ++j, p += sum.source_tap) {
#pragma GCC unroll 2
      for (int v = 0; v < Vectors; ++v) {
        const Vector pixel = load(p + v * kLanes);
#pragma GCC unroll 4
        for (int r = 0; r < Pixels; ++r)
          if (j >= r * Step && j - r * Step < TapsX) total[v][ty][j - r * Step] += pixel * incoming[r][v];
      }
    }
  }
}

/// A stretch of kStretch pixels of a few lines and channels is short enough for its lines to be read as they lie in memory.
constexpr int kStretch = 32;

/// Vectors of channels from `c` on; the first `overlap` channels of them were added already.
template <int Vectors, int TapsY, int TapsX, int Step>
inline __attribute__((always_inline)) void depthwise_add_channels(const DepthwiseSum& sum, int first_y, int first_x, int first, int last, std::size_t c,
                                                                  int overlap) {
  constexpr int kPixels = 4 / Vectors;
  Vector total[Vectors][TapsY][TapsX] = {};
  for (int line = 0; line < sum.lines; ++line) {
    const float* e = sum.incoming + line * sum.incoming_line + first * sum.incoming_pixel + c;
    const float* x = sum.source + line * sum.source_line + first_y * sum.source_tap_line + first_x * sum.source_tap + first * sum.source_pixel + c;
    int pixel = first;
    for (; pixel + kPixels <= last; pixel += kPixels, e += kPixels * sum.incoming_pixel, x += kPixels * sum.source_pixel)
      add_pixels<Vectors, TapsY, TapsX, Step, kPixels>(sum, e, x, total);
    for (; pixel < last; ++pixel, e += sum.incoming_pixel, x += sum.source_pixel)
      add_pixels<Vectors, TapsY, TapsX, Step, 1>(sum, e, x, total);
  }
#pragma GCC unroll 3
  for (int ty = 0; ty < TapsY; ++ty) {
#pragma GCC unroll 5
    for (int tx = 0; tx < TapsX; ++tx) {
      float* to = sum.sums + (first_y + ty) * sum.sum_line + (first_x + tx) * sum.sum_tap + c;
      if (overlap == 0)
#pragma GCC unroll 2
        for (int v = 0; v < Vectors; ++v) store(to + v * kLanes, load(to + v * kLanes) + total[v][ty][tx]);
      else
        for (int i = overlap; i < kLanes; ++i) to[i] += total[0][ty][tx][i];
    }
  }
}

/// Two vectors at a time where there are registers for their sums: cache lines are read in the order in which they are fetched.
template <int TapsY, int TapsX, int Step>
void depthwise_add(const DepthwiseSum& sum, int first_y, int first_x, int first, int last) {
  std::size_t c = 0;
  if constexpr (kLanes == 16)
    for (; c + 2 * kLanes <= sum.channels; c += 2 * kLanes) depthwise_add_channels<2, TapsY, TapsX, Step>(sum, first_y, first_x, first, last, c, 0);
  for (; c < sum.channels; c += kLanes) {
    const int overlap = c + kLanes > sum.channels ? static_cast<int>(c + kLanes - sum.channels) : 0;
    depthwise_add_channels<1, TapsY, TapsX, Step>(sum, first_y, first_x, first, last, c - overlap, overlap);
  }
}

/// One tap; the four pixels have a chain of additions each, as one alone would wait for every addition.
void depthwise_add_tap(const DepthwiseSum& sum, int ty, int tx) {
  for (std::size_t c = 0; c < sum.channels; c += kLanes) {
    const int overlap = c + kLanes > sum.channels ? static_cast<int>(c + kLanes - sum.channels) : 0;
    Vector total[4] = {};
    for (int line = 0; line < sum.lines; ++line) {
      const float* e = sum.incoming + line * sum.incoming_line + (c - overlap);
      const float* x = sum.source + line * sum.source_line + ty * sum.source_tap_line + tx * sum.source_tap + (c - overlap);
      int pixel = 0;
      for (; pixel + 4 <= sum.pixels; pixel += 4, e += 4 * sum.incoming_pixel, x += 4 * sum.source_pixel)
#pragma GCC unroll 4
        for (int r = 0; r < 4; ++r) total[r] += load(e + r * sum.incoming_pixel) * load(x + r * sum.source_pixel);
      for (; pixel < sum.pixels; ++pixel, e += sum.incoming_pixel, x += sum.source_pixel) total[0] += load(e) * load(x);
    }
    const Vector all = (total[0] + total[1]) + (total[2] + total[3]);
    float* to = sum.sums + ty * sum.sum_line + tx * sum.sum_tap + (c - overlap);
    for (int i = overlap; i < kLanes; ++i) to[i] += all[i];
  }
}

void depthwise_add_scalars(const DepthwiseSum& sum) {
  for (int ty = 0; ty < sum.taps_y; ++ty) {
    for (int tx = 0; tx < sum.taps_x; ++tx) {
      for (std::size_t c = 0; c < sum.channels; ++c) {
        float total = 0;
        for (int line = 0; line < sum.lines; ++line)
          for (int pixel = 0; pixel < sum.pixels; ++pixel)
            total += sum.incoming[line * sum.incoming_line + pixel * sum.incoming_pixel + c] *
                     sum.source[line * sum.source_line + ty * sum.source_tap_line + pixel * sum.source_pixel + tx * sum.source_tap + c];
        sum.sums[ty * sum.sum_line + tx * sum.sum_tap + c] += total;
      }
    }
  }
}

template <int TapsX, int Step>
void depthwise_add_taps(const DepthwiseSum& sum) {
  for (int first = 0; first < sum.pixels; first += kStretch) {
    const int last = first + kStretch < sum.pixels ? first + kStretch : sum.pixels;
    int ty = 0;
    if constexpr (TapsX <= 3) {
      for (; ty + 3 <= sum.taps_y; ty += 3) depthwise_add<3, TapsX, Step>(sum, ty, 0, first, last);
      if (sum.taps_y - ty == 2) depthwise_add<2, TapsX, Step>(sum, ty, 0, first, last), ty += 2;
    }
    for (; ty < sum.taps_y; ++ty) depthwise_add<1, TapsX, Step>(sum, ty, 0, first, last);
  }
}

template <int Step>
bool depthwise_add_step(const DepthwiseSum& sum) {
  if (sum.taps_x == 1) return depthwise_add_taps<1, Step>(sum), true;
  if (sum.taps_x == 2) return depthwise_add_taps<2, Step>(sum), true;
  if (sum.taps_x == 3) return depthwise_add_taps<3, Step>(sum), true;
  if (sum.taps_x == 5) return depthwise_add_taps<5, Step>(sum), true;
  return false;
}

void depthwise_sum(const DepthwiseSum& sum) {
  if (sum.width > 1) return grouped_sum(sum);
  if (sum.channels < kLanes) return depthwise_add_scalars(sum);
  if ((sum.source_pixel == sum.source_tap || sum.pixels == 1) && depthwise_add_step<1>(sum)) return;
  if (sum.source_pixel == 2 * sum.source_tap && depthwise_add_step<2>(sum)) return;
  for (int ty = 0; ty < sum.taps_y; ++ty)
    for (int tx = 0; tx < sum.taps_x; ++tx) depthwise_add_tap(sum, ty, tx);
}
