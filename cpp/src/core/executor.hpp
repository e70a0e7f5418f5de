// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <vector>

#include "core/plan.hpp"

namespace mpsnn {

/// Memory that plans of one graph share: they never run at the same time. Grows to the largest; huge pages where the system
/// has them, touched when it grows, so that no step meets a page fault.
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

/// Addresses of everything outside the arena, for one run.
struct Bindings {
  std::vector<void*> source_images, labels, label_weights, losses, results;
  void* parameters = nullptr;
  void* gradients = nullptr;
  std::uint64_t encode_count = 0, parameters_version = 0;
};

/// Where a number that is not finite first appeared.
struct NonfiniteValue {
  const Step* step = nullptr;  ///< null: in an operand from outside
  ValueId value = kNoValue;
  std::size_t index = 0;
};

/// A plan with its kernels.
class Executable {
 public:
  Executable(Plan plan, const Backend& backend, Precision precision, Arena& arena);
  const Plan& plan() const { return plan_; }
  std::string algorithm(std::size_t step) const { return kernels_[step]->algorithm(); }
  void run(const Bindings& bindings);
  /// Runs again step by step until a value is not finite; false when none is.
  bool find_nonfinite(const Bindings& bindings, NonfiniteValue& found);
  /// True when losses and gradients are all finite, and results too where they are watched.
  bool is_finite(const Bindings& bindings, bool watches_results);

 private:
  void* address(const Value& value, const Bindings& bindings) const;
  void run_step(std::size_t index, const Bindings& bindings);
  /// Index of the first element of a value that is not finite, or its count.
  std::size_t first_nonfinite(const Value& value, const Bindings& bindings) const;

  Plan plan_;
  ElementType type_;
  Arena& arena_;
  std::size_t scratch_offset_ = 0;
  std::vector<std::unique_ptr<Kernel>> kernels_;
  std::vector<void*> inputs_, outputs_;  // as long as the longest step's, so that runs allocate nothing
};

}  // namespace mpsnn
