// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "backends/cpu/kernels.hpp"
#include "backends/cpu/loops.hpp"
#include "backends/cpu/vector_math.hpp"

namespace mpsnn::cpu {
namespace {

void softmax_row(const float* __restrict x, float* __restrict y, int channels) {
  const float largest = row_maximum(x, channels);
  for (int c = 0; c < channels; ++c) y[c] = exponential(x[c] - largest);
  const float inverse = 1.0f / row_sum(channels, [y](int c) { return y[c]; });
  for (int c = 0; c < channels; ++c) y[c] *= inverse;
}

void log_softmax_row(const float* __restrict x, float* __restrict y, int channels) {
  const float largest = row_maximum(x, channels);
  const float log_of_sum = std::log(row_sum(channels, [x, largest](int c) { return exponential(x[c] - largest); }));
  for (int c = 0; c < channels; ++c) y[c] = (x[c] - largest) - log_of_sum;
}

void softmax_gradient_row(const float* __restrict incoming, const float* __restrict y, float* __restrict gradient, int channels) {
  const float sum = row_sum(channels, [=](int c) { return incoming[c] * y[c]; });
  for (int c = 0; c < channels; ++c) gradient[c] = y[c] * (incoming[c] - sum);
}

void log_softmax_gradient_row(const float* __restrict incoming, const float* __restrict y, float* __restrict gradient, int channels) {
  const float sum = row_sum(channels, [=](int c) { return incoming[c]; });
  for (int c = 0; c < channels; ++c) gradient[c] = incoming[c] - exponential(y[c]) * sum;
}

}  // namespace

std::unique_ptr<Kernel> make_kernel(const SoftMaxOp& op, const OperandShapes& shapes) {
  return function_kernel([row = op.is_log ? log_softmax_row : softmax_row, shape = shapes.outputs[0]](const KernelCall& call) {
    const std::size_t channels = shape.channels;
    // An exponential costs about as much as four elements of a copy.
    parallel_ranges(shape.pixels(), 4 * channels, [&](std::size_t begin, std::size_t end, int) {
      for (std::size_t pixel = begin; pixel < end; ++pixel)
        row(call.input<float>(0) + pixel * channels, call.output<float>(0) + pixel * channels, shape.channels);
    });
  });
}

std::unique_ptr<Kernel> make_kernel(const SoftMaxGradientOp& op, const OperandShapes& shapes) {
  return function_kernel(
      [row = op.is_log ? log_softmax_gradient_row : softmax_gradient_row, shape = shapes.outputs[0]](const KernelCall& call) {
        const std::size_t channels = shape.channels;
        parallel_ranges(shape.pixels(), 2 * channels, [&](std::size_t begin, std::size_t end, int) {
          for (std::size_t pixel = begin; pixel < end; ++pixel) {
            const std::size_t first = pixel * channels;
            row(call.input<float>(0) + first, call.input<float>(1) + first, call.output<float>(0) + first, shape.channels);
          }
        });
      });
}

}  // namespace mpsnn::cpu
