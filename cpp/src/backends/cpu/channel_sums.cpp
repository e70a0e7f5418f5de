// SPDX-License-Identifier: Apache-2.0
#include "backends/cpu/channel_sums.hpp"

namespace mpsnn::cpu {
void sum_pixels(const float* x, std::size_t stride, std::size_t pixels, float* sums, int channels) {
  std::fill_n(sums, channels, 0.0f);
  isa().sum_rows(channels, pixels, x, stride, sums);
}

void merge(double& count, double* mean, double* squares, double other_count, const double* other_mean, const double* other_squares,
           int channels) {
  const double total = count + other_count, share = other_count / total, cross = count * share;
  for (int c = 0; c < channels; ++c) {
    const double distance = other_mean[c] - mean[c];
    mean[c] += distance * share;
    squares[c] += other_squares[c] + distance * distance * cross;
  }
  count = total;
}

void part_statistics(const PixelParts& parts, const float* x, std::size_t begin, std::size_t end, double* mean, double* squares) {
  const std::size_t stride = parts.channels;
  std::fill_n(mean, 2 * stride, 0.0);
  double count = 0;
  parts.for_each_run(begin, end, [&](std::size_t from, std::size_t to) {
    const std::size_t pixels = to - from;
    double total = 0;
    for (int first = 0; first < parts.channels; first += kChannelBlock) {
      const int channels = std::min(kChannelBlock, parts.channels - first);
      float center[kChannelBlock], deviations[kChannelBlock] = {}, squared[kChannelBlock] = {};
      double run_mean[kChannelBlock], run_squares[kChannelBlock];
      const float* data = x + from * stride + first;
      sum_pixels(data, stride, pixels, center, channels);
      for (int c = 0; c < channels; ++c) center[c] /= static_cast<float>(pixels);
      isa().add_deviations(data, stride, pixels, center, deviations, squared, channels);
      for (int c = 0; c < channels; ++c) {  // the center is rounded: the deviations put it right
        const double rest = static_cast<double>(deviations[c]) / static_cast<double>(pixels);
        run_mean[c] = center[c] + rest;
        run_squares[c] = squared[c] - rest * deviations[c];
      }
      total = count;
      merge(total, mean + first, squares + first, static_cast<double>(pixels), run_mean, run_squares, channels);
    }
    count = total;
  });
}

void part_products(const PixelParts& parts, const float* e, const float* x, const ChannelNormalization& n, std::size_t begin, std::size_t end,
                   double* sums, double* products) {
  const std::size_t stride = parts.channels;
  std::fill_n(sums, stride, 0.0);
  std::fill_n(products, stride, 0.0);
  parts.for_each_run(begin, end, [&](std::size_t from, std::size_t to) {
    for (int first = 0; first < parts.channels; first += kChannelBlock) {
      const int channels = std::min(kChannelBlock, parts.channels - first);
      ChannelNormalization block = n;
      block.mean += first;
      if (n.has_relu) block.scale += first, block.beta += first;
      float run_sums[kChannelBlock] = {}, run_products[kChannelBlock] = {};
      const std::size_t at = from * stride + first;
      isa().add_gradient(e + at, x + at, stride, to - from, block, run_sums, run_products, channels);
      for (int c = 0; c < channels; ++c) sums[first + c] += run_sums[c];
      for (int c = 0; c < channels; ++c) products[first + c] += run_products[c];
    }
  });
}

}  // namespace mpsnn::cpu
