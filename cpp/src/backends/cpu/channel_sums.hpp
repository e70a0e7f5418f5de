// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>

#include "backends/cpu/isa/isa.hpp"
#include "core/parallel.hpp"
#include "mpsnn/image.hpp"

/// Sums over the pixels of an image, one per channel, for the normalizations and reductions.
namespace mpsnn::cpu {

/// Channels whose sums are kept at a time, on the stack.
constexpr int kChannelBlock = 256;

/// How the pixels of a batch are shared out when they are summed: into parts, whose sums are added in order at the end, and
/// parts into runs short enough for float sums and for the second look at a run to find it in the cache.
struct PixelParts {
  std::size_t pixels, run;
  int channels, parts;
  std::size_t pixels_per_part;

  explicit PixelParts(const Shape& shape) : pixels(shape.pixels()), channels(shape.channels) {
    // 16 Ki floats of both images are 128 KiB; 512 pixels at most, for float sums.
    run = std::clamp<std::size_t>(16384 / std::max(channels, 1), 16, 512);
    // 64 parts at most: their sums are 64 * 2 * channels doubles. A function of the shape alone, for the same bits always.
    const std::size_t wanted = std::clamp<std::size_t>(shape.count() / 32768, 1, 64);
    pixels_per_part = std::max<std::size_t>(1, (pixels + wanted - 1) / wanted);
    parts = pixels == 0 ? 0 : static_cast<int>((pixels + pixels_per_part - 1) / pixels_per_part);
  }

  std::size_t sums_bytes() const { return static_cast<std::size_t>(parts) * 2 * channels * sizeof(double); }

  /// Calls body(first pixel, last pixel + 1, sums) for every part; `sums` are 2 * channels doubles of its own.
  template <class Body>
  void for_each_part(void* scratch, Body&& body) const {
    parallel_for(parts, [&](std::size_t part, int) {
      const std::size_t begin = part * pixels_per_part;
      body(begin, std::min(pixels, begin + pixels_per_part), static_cast<double*>(scratch) + part * 2 * channels);
    });
  }
  /// Calls body(first pixel, last pixel + 1) for every run of [begin, end).
  template <class Body>
  void for_each_run(std::size_t begin, std::size_t end, Body&& body) const {
    for (std::size_t first = begin; first < end; first += run) body(first, std::min(end, first + run));
  }
};

/// sums[c] := the sum of x[c] over `pixels` pixels that lie `stride` floats apart, in floats: for short runs.
void sum_pixels(const float* x, std::size_t stride, std::size_t pixels, float* sums, int channels);

/// Adds a set of values to another, both given by count, mean and sum of squared deviations from the mean (Chan et al.): no
/// difference of large numbers, whatever the mean.
void merge(double& count, double* mean, double* squares, double other_count, const double* other_mean, const double* other_squares,
           int channels);

/// mean, squares := those of the pixels [begin, end), a block of channels at a time. `squares` follows `mean` in memory.
void part_statistics(const PixelParts& parts, const float* x, std::size_t begin, std::size_t end, double* mean, double* squares);

/// sums[c] := the sum of e[c], products[c] := the sum of e[c] * (x[c] - mean[c]) over the pixels [begin, end); e behind the ReLU of `n`,
/// whose scale and beta matter with a ReLU only.
void part_products(const PixelParts& parts, const float* e, const float* x, const ChannelNormalization& n, std::size_t begin, std::size_t end,
                   double* sums, double* products);

}  // namespace mpsnn::cpu
