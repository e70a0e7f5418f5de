// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "backends/cpu/kernels.hpp"
#include "backends/cpu/loops.hpp"

namespace mpsnn::cpu {
namespace {

/// Copies `channels` channels of every pixel in [begin, end) between images of `from_channels` and `to_channels`.
void copy_channels(const float* from, int from_channels, float* to, int to_channels, int channels, std::size_t begin, std::size_t end) {
  from += begin * from_channels;
  to += begin * to_channels;
  if (channels == from_channels && channels == to_channels) {
    std::copy_n(from, (end - begin) * channels, to);
    return;
  }
  for (std::size_t pixel = begin; pixel < end; ++pixel, from += from_channels, to += to_channels) std::copy_n(from, channels, to);
}

}  // namespace

std::unique_ptr<Kernel> make_kernel(const FillOp& op, const OperandShapes& shapes) {
  return function_kernel([value = op.value, count = shapes.outputs[0].count()](const KernelCall& call) {
    parallel_ranges(count, 1, [&](std::size_t begin, std::size_t end, int) {
      std::fill(call.output<float>(0) + begin, call.output<float>(0) + end, value);
    });
  });
}

std::unique_ptr<Kernel> make_kernel(const ConcatenationOp&, const OperandShapes& shapes) {
  return function_kernel([sources = shapes.inputs, result = shapes.outputs[0]](const KernelCall& call) {
    parallel_ranges(result.pixels(), result.channels, [&](std::size_t begin, std::size_t end, int) {
      int first_channel = 0;
      for (std::size_t s = 0; s < sources.size(); ++s) {
        const int channels = sources[s].channels;
        copy_channels(call.input<float>(s), channels, call.output<float>(0) + first_channel, result.channels, channels, begin, end);
        first_channel += channels;
      }
    });
  });
}

std::unique_ptr<Kernel> make_kernel(const ConcatenationGradientOp& op, const OperandShapes& shapes) {
  return function_kernel([first = op.first_channel, from = shapes.inputs[0], to = shapes.outputs[0]](const KernelCall& call) {
    parallel_ranges(to.pixels(), to.channels, [&](std::size_t begin, std::size_t end, int) {
      copy_channels(call.input<float>(0) + first, from.channels, call.output<float>(0), to.channels, to.channels, begin, end);
    });
  });
}

}  // namespace mpsnn::cpu
