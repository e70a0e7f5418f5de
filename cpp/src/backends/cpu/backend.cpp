// SPDX-License-Identifier: Apache-2.0
#include "backends/backend.hpp"

#include <cstdlib>
#include <cstring>

#include "backends/cpu/kernels.hpp"
#include "core/large_memory.hpp"

namespace mpsnn {
namespace {

/// The `cpu` engine. An operation without a make_kernel overload in kernels.hpp fails to compile here.
class Cpu final : public KernelBackend {
 public:
  ElementType element_type() const override { return ElementType::float32; }
  Buffer allocate(std::size_t count) const override {
    const std::size_t bytes = count * sizeof(float);
    const std::shared_ptr<void> memory(allocate_large(bytes), free_large);
    std::memset(memory.get(), 0, bytes);
    return {memory, memory.get(), count, ElementType::float32};
  }
  MachinePeak peak() const override { return cpu::machine_peak(); }

  std::size_t saved_bytes(const Operation& forward, const OperandShapes& shapes) const override {
    const auto* pooling = std::get_if<PoolingOp>(&forward);
    return pooling ? cpu::saved_bytes(*pooling, shapes) : 0;
  }

  /// MPSNN_FUSE=0 leaves every operation alone, to compare.
  bool fuses() const override {
    const char* wanted = std::getenv("MPSNN_FUSE");
    return !wanted || *wanted != '0';
  }

  bool pools(const ConvolutionOp& op, const OperandShapes& shapes, Precision precision) const override { return cpu::pools(op, shapes, precision); }
  bool pools(const BatchNormalizationOp& op, const OperandShapes& shapes, Precision) const override { return cpu::pools(op, shapes); }

  std::unique_ptr<Kernel> make_kernel(const Operation& operation, const OperandShapes& shapes, Precision precision) const override {
    return std::visit(
        [&](const auto& op) {
          if constexpr (requires { cpu::make_kernel(op, shapes, precision); }) {
            return cpu::make_kernel(op, shapes, precision);
          } else {
            return cpu::make_kernel(op, shapes);
          }
        },
        operation);
  }
};

}  // namespace

const Backend& cpu_backend() {
  static const Cpu backend;
  return backend;
}

}  // namespace mpsnn
