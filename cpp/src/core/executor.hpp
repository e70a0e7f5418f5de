// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <vector>

#include "core/engine.hpp"

namespace mpsnn {

/// Memory that plans of one graph share: they never run at the same time. Grows to the largest; huge pages where the system has them. The
/// first step touches what steps use: scratch of threads that could run and do not takes no memory.
class Arena {
 public:
  Arena() = default;
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  void require(std::size_t bytes);
  std::byte* data() const { return data_; }
  std::size_t size() const { return size_; }

 private:
  void release();
  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

/// A plan with its kernels.
class KernelExecutable final : public Executable {
 public:
  KernelExecutable(Plan plan, const KernelBackend& backend, Precision precision, Arena& arena);
  std::string algorithm(std::size_t step) const override { return kernels_[step]->algorithm(); }
  const Kernel* kernel(std::size_t step) const override { return kernels_[step].get(); }
  std::unique_ptr<StepOnDevice> begin(const Bindings& bindings, const std::function<void()>& done) override;
  void profile(Bindings bindings, std::size_t runs, double* seconds) override;
  std::vector<double> time_steps(Bindings bindings, const std::vector<std::size_t>& steps, std::size_t runs) override;
  /// Runs again step by step until a value is not finite.
  bool find_nonfinite(const Bindings& bindings, NonfiniteValue& found) override;

 private:
  void* address(const Value& value, const Bindings& bindings) const override;
  void run_step(std::size_t index, const Bindings& bindings);

  Arena& arena_;
  std::size_t scratch_offset_ = 0;
  /// Of packed weights: own memory, or, where a step computes gradients, so that the next one finds other weights, a part of the scratch
  /// memory that the kernels share.
  std::vector<std::size_t> packed_offsets_;
  bool shares_packed_ = false;
  std::uint64_t packed_count_ = 0;  ///< how often shared memory was used
  Arena own_packed_;
  std::vector<std::unique_ptr<Kernel>> kernels_;
  std::vector<void*> inputs_, outputs_;  // as long as the longest step's, so that runs allocate nothing
};

}  // namespace mpsnn
