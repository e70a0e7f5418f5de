// SPDX-License-Identifier: Apache-2.0
#include "backends/cpu/isa/isa.hpp"
#include "backends/cpu/kernels.hpp"
#include "backends/cpu/loops.hpp"
#include "core/dropout_mask.hpp"

namespace mpsnn::cpu {
namespace {

/// Both directions are the same: the mask keeps or clears, and what it keeps grows by 1 / keep_probability. Neither stores it: it is
/// worked out about as fast as it would be read.
std::unique_ptr<Kernel> masked_scaling(const DropoutOp& op, const Shape& shape) {
  return function_kernel([op, threshold = dropout_threshold(op), shape](const KernelCall& call) {
    const std::size_t row_elements = static_cast<std::size_t>(shape.width) * shape.channels;
    // A mask element costs about as much as four elements of a copy.
    parallel_ranges(static_cast<std::size_t>(shape.images) * shape.height, 4 * row_elements, [&](std::size_t begin, std::size_t end, int) {
      for (std::size_t row = begin; row < end; ++row) {
        const float* from = call.input<float>(0) + row * row_elements;
        float* to = call.output<float>(0) + row * row_elements;
        const int n = static_cast<int>(row / shape.height), y = static_cast<int>(row % shape.height);
        for (int x = 0; x < shape.width; ++x, from += shape.channels, to += shape.channels)
          isa().drop({dropout_pixel_bits(op, call.encode_count, n, y, x), threshold, op.varies_channel, op.keep_probability}, from, to,
                     shape.channels);
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
