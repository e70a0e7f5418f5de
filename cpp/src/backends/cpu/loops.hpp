// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <utility>

#include "backends/backend.hpp"
#include "core/parallel.hpp"

namespace mpsnn::cpu {

/// Elements of a task: 16 Ki floats take some 5 microseconds from memory, far more than handing out a task does.
constexpr std::size_t kTaskElements = 16384;

/// Calls body(begin, end, thread) for stretches of [0, count) of about kTaskElements elements each, given the elements that
/// one unit stands for. The stretches depend on the sizes alone, never on the number of threads.
template <class Body>
void parallel_ranges(std::size_t count, std::size_t elements_per_unit, Body&& body) {
  const std::size_t step = std::max<std::size_t>(1, kTaskElements / std::max<std::size_t>(1, elements_per_unit));
  parallel_for((count + step - 1) / step, [&](std::size_t task, int thread) {
    body(task * step, std::min(count, (task + 1) * step), thread);
  });
}

/// A kernel that is one function.
template <class Function>
class FunctionKernel final : public Kernel {
 public:
  FunctionKernel(Function function, std::size_t scratch_bytes) : function_(std::move(function)), scratch_bytes_(scratch_bytes) {}
  std::size_t scratch_bytes() const override { return scratch_bytes_; }
  void run(const KernelCall& call) override { function_(call); }

 private:
  Function function_;
  std::size_t scratch_bytes_;
};

template <class Function>
std::unique_ptr<Kernel> function_kernel(Function function, std::size_t scratch_bytes = 0) {
  return std::make_unique<FunctionKernel<Function>>(std::move(function), scratch_bytes);
}

}  // namespace mpsnn::cpu
