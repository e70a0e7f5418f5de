// SPDX-License-Identifier: Apache-2.0
#include "backends/cpu/isa/isa.hpp"
#include "backends/cpu/kernels.hpp"
#include "backends/cpu/loops.hpp"

namespace mpsnn::cpu {

std::unique_ptr<Kernel> make_kernel(const SoftMaxOp& op, const OperandShapes& shapes) {
  return function_kernel([rows = op.is_log ? isa().log_softmax : isa().softmax, shape = shapes.outputs[0]](const KernelCall& call) {
    const std::size_t channels = shape.channels;
    // An exponential costs about as much as four elements of a copy.
    parallel_ranges(shape.pixels(), 4 * channels, [&](std::size_t begin, std::size_t end, int) {
      rows(call.input<float>(0) + begin * channels, call.output<float>(0) + begin * channels, end - begin, shape.channels);
    });
  });
}

std::unique_ptr<Kernel> make_kernel(const SoftMaxGradientOp& op, const OperandShapes& shapes) {
  return function_kernel(
      [rows = op.is_log ? isa().log_softmax_gradient : isa().softmax_gradient, shape = shapes.outputs[0]](const KernelCall& call) {
        const std::size_t channels = shape.channels;
        parallel_ranges(shape.pixels(), 2 * channels, [&](std::size_t begin, std::size_t end, int) {
          const std::size_t first = begin * channels;
          rows(call.input<float>(0) + first, call.input<float>(1) + first, call.output<float>(0) + first, end - begin, shape.channels);
        });
      });
}

}  // namespace mpsnn::cpu
