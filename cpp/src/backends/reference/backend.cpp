// SPDX-License-Identifier: Apache-2.0
#include "backends/backend.hpp"

#include "backends/reference/kernels.hpp"

namespace mpsnn {
namespace {

class Reference final : public KernelBackend {
 public:
  ElementType element_type() const override { return ElementType::float64; }

  /// Gradients recompute what they need from the forward operands.
  std::size_t saved_bytes(const Operation&, const OperandShapes&) const override { return 0; }

  std::unique_ptr<Kernel> make_kernel(const Operation& operation, const OperandShapes& shapes, Precision) const override {
    return std::visit([&](const auto& op) { return reference::make_kernel(op, shapes); }, operation);
  }
};

}  // namespace

const Backend& reference_backend() {
  static const Reference backend;
  return backend;
}

}  // namespace mpsnn
