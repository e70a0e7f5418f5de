// SPDX-License-Identifier: Apache-2.0
#include "core/executor.hpp"

#include <algorithm>
#include <chrono>

#include "core/large_memory.hpp"
#include "mpsnn/graph.hpp"

namespace mpsnn {

Arena::~Arena() { release(); }

void Arena::release() {
  free_large(data_);
  data_ = nullptr;
  size_ = 0;
}

void Arena::require(std::size_t bytes) {
  if (bytes <= size_) return;
  release();
  data_ = static_cast<std::byte*>(allocate_large(bytes));
  size_ = bytes;
}

KernelExecutable::KernelExecutable(Plan plan, const KernelBackend& backend, Precision precision, Arena& arena)
    : Executable(backend.fuses() ? fused(std::move(plan), backend, precision) : std::move(plan), backend.element_type()), arena_(arena) {
  shares_packed_ = std::any_of(plan_.values.begin(), plan_.values.end(), [](const Value& value) { return value.storage == Storage::gradient; });
  std::size_t scratch_bytes = 0, packed_bytes = 0, most_inputs = 0, most_outputs = 0;
  for (const Step& step : plan_.steps) {
    kernels_.push_back(backend.make_kernel(step.operation, plan_.operand_shapes(step), precision));
    const Kernel& kernel = *kernels_.back();
    const std::size_t behind_scratch = aligned_in_arena(kernel.scratch_bytes());
    packed_offsets_.push_back(shares_packed_ ? behind_scratch : packed_bytes);
    packed_bytes += aligned_in_arena(kernel.packed_bytes());
    scratch_bytes = std::max(scratch_bytes, behind_scratch + (shares_packed_ ? kernel.packed_bytes() : 0));
    most_inputs = std::max(most_inputs, step.inputs.size());
    most_outputs = std::max(most_outputs, step.outputs.size());
  }
  if (!shares_packed_) own_packed_.require(packed_bytes);
  scratch_offset_ = lay_out_arena(plan_, element_bytes(type_), scratch_bytes, backend.fuses());
  inputs_.resize(most_inputs);
  outputs_.resize(most_outputs);
}

void* KernelExecutable::address(const Value& value, const Bindings& bindings) const {
  return value.storage == Storage::arena ? arena_.data() + value.offset : outside_address(value, bindings);
}

void KernelExecutable::run_step(std::size_t index, const Bindings& bindings) {
  const Step& step = plan_.steps[index];
  auto resolve = [&](const std::vector<ValueId>& ids, std::vector<void*>& pointers) {
    for (std::size_t i = 0; i < ids.size(); ++i) pointers[i] = ids[i] == kNoValue ? nullptr : address(plan_.values[ids[i]], bindings);
    return std::span<void* const>(pointers.data(), ids.size());
  };
  KernelCall call;
  call.inputs = resolve(step.inputs, inputs_);
  call.outputs = resolve(step.outputs, outputs_);
  call.saved = step.saved == kNoValue ? nullptr : address(plan_.values[step.saved], bindings);
  call.scratch = arena_.data() + scratch_offset_;
  call.encode_count = bindings.encode_count;
  call.packed = (shares_packed_ ? arena_.data() + scratch_offset_ : own_packed_.data()) + packed_offsets_[index];
  call.parameters_version = shares_packed_ ? ++packed_count_ : bindings.parameters_version;
  kernels_[index]->run(call);
}

std::unique_ptr<StepOnDevice> KernelExecutable::begin(const Bindings& bindings, const std::function<void()>&) {
  arena_.require(plan_.arena_bytes);
  for (std::size_t i = 0; i < plan_.steps.size(); ++i) run_step(i, bindings);
  return nullptr;
}

namespace {

double seconds_now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

}  // namespace

void KernelExecutable::profile(Bindings bindings, std::size_t runs, double* seconds) {
  arena_.require(plan_.arena_bytes);
  for (std::size_t run = 0; run < runs; ++run, ++bindings.parameters_version)
    for (std::size_t i = 0; i < plan_.steps.size(); ++i) {
      const double begin = seconds_now();
      run_step(i, bindings);
      *seconds++ = seconds_now() - begin;
    }
}

std::vector<double> KernelExecutable::time_steps(Bindings bindings, const std::vector<std::size_t>& steps, std::size_t runs) {
  arena_.require(plan_.arena_bytes);
  for (std::size_t i = 0; !steps.empty() && i <= steps.back(); ++i) run_step(i, bindings);
  std::vector<double> seconds(runs);
  for (double& time : seconds) {
    ++bindings.parameters_version;
    const double begin = seconds_now();
    for (const std::size_t step : steps) run_step(step, bindings);
    time = seconds_now() - begin;
  }
  return seconds;
}

bool KernelExecutable::find_nonfinite(const Bindings& bindings, NonfiniteValue& found) {
  auto is_bad = [&](ValueId id, const Step* step) {
    if (id == kNoValue) return false;
    const std::size_t index = first_nonfinite(plan_.values[id], bindings);
    if (index == plan_.values[id].shape.count()) return false;
    found = {step, id, index};
    return true;
  };
  for (std::size_t i = 0; i < plan_.steps.size(); ++i) {
    const Step& step = plan_.steps[i];
    for (ValueId input : step.inputs)
      if (input != kNoValue && plan_.values[input].storage != Storage::arena && is_bad(input, nullptr)) return true;
    run_step(i, bindings);
    for (ValueId output : step.outputs)
      if (is_bad(output, &step)) return true;
  }
  return false;
}

namespace {

/// Kernels and their arena.
class KernelGraph final : public EngineGraph {
 public:
  explicit KernelGraph(const KernelBackend& backend) : backend_(backend) {}
  std::size_t saved_bytes(const Operation& forward, const OperandShapes& shapes) const override { return backend_.saved_bytes(forward, shapes); }
  std::unique_ptr<Executable> make_executable(const NNGraph& graph, Plan plan, const std::vector<ValueId>&) override {
    return std::make_unique<KernelExecutable>(std::move(plan), backend_, graph.precision, arena_);
  }

 private:
  const KernelBackend& backend_;
  Arena arena_;
};

}  // namespace

std::unique_ptr<EngineGraph> KernelBackend::make_graph(const GraphParts&, ParameterStore&) const { return std::make_unique<KernelGraph>(*this); }

}  // namespace mpsnn
