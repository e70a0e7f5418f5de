// SPDX-License-Identifier: Apache-2.0
// The transforms of Winograd's convolution, included behind microkernel.inl. A two-dimensional transform applies the one for an
// axis to the columns of a tile, then to the rows of what comes out; each vector holds as many channels as it has lanes.
#include "backends/cpu/isa/winograd_points.inl"

namespace mpsnn::cpu {
namespace {

#define MPSNN_INLINE inline __attribute__((always_inline))

/// Moves a pointer on. The compiler must not see how: it would keep an address for each of the 36 positions in registers that it
/// does not have, four times the work of the transform itself.
template <class T>
MPSNN_INLINE void advance(T*& pointer, std::ptrdiff_t step) {
  pointer += step;
  make_opaque(pointer);
}

/// Column `j` of a tile of `Size` x `Size` pixels, from pixel (0, j) on.
template <int Size, bool kWhole>
MPSNN_INLINE void load_column(const float* source, std::ptrdiff_t line, const WinogradInside& inside, int part, int j,
                              Vector (&column)[Size]) {
#pragma GCC unroll 6
  for (int i = 0; i < Size; ++i, advance(source, line)) {
    if (kWhole) {
      column[i] = load(source);
    } else {
      const bool is_inside = i >= inside.first_y && i < inside.last_y && j >= inside.first_x && j < inside.last_x;
      column[i] = !is_inside ? Vector{} : part == kLanes ? load(source) : load_part(source, part);
    }
  }
}

/// One vector of channels of a tile of `From` pixels each way to `To` x `To` positions.
template <int From, int To, bool kWhole, class Step>
MPSNN_INLINE void spread_vector(const float* source, std::ptrdiff_t line, std::ptrdiff_t pixel, const WinogradInside& inside,
                                int part, float* result, std::size_t step, Step&& transform) {
  Vector half[To][From];
#pragma GCC unroll 6
  for (int j = 0; j < From; ++j, advance(source, pixel)) {
    Vector column[From], out[To];
    load_column<From, kWhole>(source, line, inside, part, j, column);
    transform(column, out);
#pragma GCC unroll 6
    for (int i = 0; i < To; ++i) half[i][j] = out[i];
  }
#pragma GCC unroll 6
  for (int i = 0; i < To; ++i) {
    Vector out[To];
    transform(half[i], out);
#pragma GCC unroll 6
    for (int j = 0; j < To; ++j, advance(result, step)) store(result, out[j]);
  }
}

/// The same from `From` x `From` positions `step` floats apart to `To` x `To`, as vectors: result(i, row) for each row of them.
template <int From, int To, class Step, class Result>
MPSNN_INLINE void gather_vector(const float* source, std::size_t step, Step&& transform, Result&& result) {
  Vector half[From][To];
#pragma GCC unroll 6
  for (int i = 0; i < From; ++i) {
    Vector row[From];
#pragma GCC unroll 6
    for (int j = 0; j < From; ++j, advance(source, step)) row[j] = load(source);
    transform(row, half[i]);
  }
#pragma GCC unroll 6
  for (int j = 0; j < To; ++j) {
    Vector column[From], out[To];
#pragma GCC unroll 6
    for (int i = 0; i < From; ++i) column[i] = half[i][j];
    transform(column, out);
    result(j, out);
  }
}

template <int From, int To, class Step>
MPSNN_INLINE void spread_tile(const float* source, std::ptrdiff_t line, std::ptrdiff_t pixel, const WinogradInside& inside,
                              int channels, float* result, std::size_t step, std::size_t panel_step, Step&& transform) {
  const bool is_whole = inside.first_y == 0 && inside.last_y == From && inside.first_x == 0 && inside.last_x == From;
  for (int c = 0, panel = 0; c < channels; ++panel, result += panel_step) {
    for (int v = 0; v < kVectors && c < channels; ++v, c += kLanes) {
      const int part = channels - c < kLanes ? channels - c : kLanes;
      if (is_whole && part == kLanes) {
        spread_vector<From, To, true>(source + c, line, pixel, inside, part, result + v * kLanes, step, transform);
      } else {
        spread_vector<From, To, false>(source + c, line, pixel, inside, part, result + v * kLanes, step, transform);
      }
    }
  }
}

template <class F>
void winograd_input(const float* source, std::ptrdiff_t line, std::ptrdiff_t pixel, const WinogradInside& inside, int channels,
                    float* v, std::size_t step, std::size_t panel_step) {
  spread_tile<F::kTile, F::kTile>(source, line, pixel, inside, channels, v, step, panel_step,
                                  [](const Vector(&d)[F::kTile], Vector(&o)[F::kTile])
                                      __attribute__((always_inline)) { F::input(d, o); });
}

template <class F>
void winograd_spread(const float* source, std::ptrdiff_t line, std::ptrdiff_t pixel, const WinogradInside& inside, int channels,
                     float* z, std::size_t step, std::size_t panel_step) {
  spread_tile<F::kOutputs, F::kTile>(source, line, pixel, inside, channels, z, step, panel_step,
                                     [](const Vector(&e)[F::kOutputs], Vector(&o)[F::kTile])
                                         __attribute__((always_inline)) { F::spread(e, o); });
}

template <class F>
void winograd_output(const float* m, std::size_t step, const float* bias, int channels, float* result, std::ptrdiff_t line,
                     std::ptrdiff_t pixel, int lines, int columns) {
  constexpr int kTile = F::kTile, kOutputs = F::kOutputs;
  const bool is_whole = lines == kOutputs && columns == kOutputs;
  for (int c = 0; c < channels; c += kLanes) {
    const int part = channels - c < kLanes ? channels - c : kLanes;
    const Vector start = bias ? load_part(bias + c, part) : Vector{};
    const auto transform = [](const Vector(&d)[kTile], Vector(&o)[kOutputs]) __attribute__((always_inline)) { F::output(d, o); };
    if (is_whole && part == kLanes) {
      gather_vector<kTile, kOutputs>(m + c, step, transform, [&](int j, const Vector(&out)[kOutputs]) __attribute__((always_inline)) {
        float* to = result + j * pixel + c;
#pragma GCC unroll 4
        for (int i = 0; i < kOutputs; ++i, advance(to, line)) store(to, out[i] + start);
      });
    } else {
      gather_vector<kTile, kOutputs>(m + c, step, transform, [&](int j, const Vector(&out)[kOutputs]) __attribute__((always_inline)) {
        if (j >= columns) return;
        float* to = result + j * pixel + c;
#pragma GCC unroll 4
        for (int i = 0; i < kOutputs; ++i, advance(to, line))
          if (i < lines) store_part(to, out[i] + start, part);
      });
    }
  }
}

template <class F>
void winograd_weights(const float* w, std::size_t tap_step, std::size_t count, float* u, std::size_t step) {
  for (std::size_t c = 0; c < count; c += kLanes)
    spread_vector<F::kTaps, F::kTile, true>(w + c, F::kTaps * tap_step, tap_step, {}, kLanes, u + c, step,
                                            [](const Vector(&d)[F::kTaps], Vector(&o)[F::kTile])
                                                __attribute__((always_inline)) { F::weights(d, o); });
}

template <class F, bool kStreams>
void winograd_gather(const float* u, std::size_t step, std::size_t count, float* w, std::size_t tap_step) {
  constexpr int kTile = F::kTile, kTaps = F::kTaps;
  for (std::size_t c = 0; c < count; c += kLanes)
    gather_vector<kTile, kTaps>(
        u + c, step, [](const Vector(&d)[kTile], Vector(&o)[kTaps]) __attribute__((always_inline)) { F::gather(d, o); },
        [&](int j, const Vector(&out)[kTaps]) __attribute__((always_inline)) {
          float* to = w + j * tap_step + c;
#pragma GCC unroll 5
          for (int i = 0; i < kTaps; ++i, advance(to, kTaps * tap_step)) kStreams ? stream(to, out[i]) : store(to, out[i]);
        });
  if (kStreams) end_streams();
}

template <class F>
constexpr WinogradTransforms winograd_transforms() {
  return {F::kOutputs, F::kTaps, winograd_input<F>, winograd_spread<F>, winograd_output<F>, winograd_weights<F>, winograd_gather<F, false>,
          winograd_gather<F, kLanes == 16>};
}

constexpr Isa with_winograd(Isa isa) {
  isa.winograd_four = winograd_transforms<FourOutputs>();
  isa.winograd_two = winograd_transforms<TwoOutputs>();
  isa.winograd_five_taps = winograd_transforms<TwoOutputsFiveTaps>();
  return isa;
}

#undef MPSNN_INLINE

}  // namespace
}  // namespace mpsnn::cpu
