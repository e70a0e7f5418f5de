// SPDX-License-Identifier: Apache-2.0
#include "backends/cpu/kernels.hpp"
#include "backends/cpu/loops.hpp"

namespace mpsnn::cpu {
namespace {

/// Both directions are the same: the mask keeps or clears, and what it keeps grows by 1 / keep_probability. Neither stores it.
std::unique_ptr<Kernel> masked_scaling(const DropoutOp& op, const Shape& shape) {
  return function_kernel([op, shape](const KernelCall& call) {
    const std::size_t row_elements = static_cast<std::size_t>(shape.width) * shape.channels;
    // A mask element costs about as much as eight elements of a copy.
    parallel_ranges(static_cast<std::size_t>(shape.images) * shape.height, 8 * row_elements, [&](std::size_t begin, std::size_t end, int) {
      for (std::size_t row = begin; row < end; ++row) {
        const float* from = call.input<float>(0) + row * row_elements;
        float* to = call.output<float>(0) + row * row_elements;
        const int n = static_cast<int>(row / shape.height), y = static_cast<int>(row % shape.height);
        for (int x = 0; x < shape.width; ++x, from += shape.channels, to += shape.channels) {
          bool keeps = false;
          for (int c = 0; c < shape.channels; ++c) {
            if (c == 0 || op.varies_channel) keeps = dropout_keeps(op, call.encode_count, n, y, x, c);
            to[c] = keeps ? from[c] / op.keep_probability : 0.0f;
          }
        }
      }
    });
  });
}

}  // namespace

std::unique_ptr<Kernel> make_kernel(const DropoutOp& op, const OperandShapes& shapes) { return masked_scaling(op, shapes.outputs[0]); }

std::unique_ptr<Kernel> make_kernel(const DropoutGradientOp& op, const OperandShapes& shapes) {
  return masked_scaling(op.forward, shapes.outputs[0]);
}

}  // namespace mpsnn::cpu
