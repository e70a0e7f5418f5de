// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/plan.hpp"
#include "mpsnn/nodes/node.hpp"

/// What a graph asks of its engine.
namespace mpsnn {

class NNGraph;

/// What a graph consists of, in the orders that its handle lists show.
struct GraphParts {
  std::vector<ImageNodePtr> result_images;
  std::vector<bool> results_are_needed;
  std::vector<FilterNodePtr> nodes;  ///< in execution order
  std::map<const NNFilterNode*, std::string> names;
  std::vector<NNImageNode*> source_images;
  std::vector<NNLabelsNode*> source_states;
  std::vector<NNImageNode*> exported_images;
  std::vector<NNStateNode*> exported_states;
};

/// Addresses of everything outside the engine, for one run.
struct Bindings {
  std::vector<void*> source_images, labels, label_weights, losses, results;
  void* parameters = nullptr;
  void* gradients = nullptr;
  std::uint64_t encode_count = 0, parameters_version = 0;
};

/// Where a number that is not finite first appeared.
struct NonfiniteValue {
  const Step* step = nullptr;  ///< null: in an operand from outside, or the engine cannot tell
  ValueId value = kNoValue;
  std::size_t index = 0;
};

/// A step that a device runs by itself.
class StepOnDevice {
 public:
  virtual ~StepOnDevice() = default;
  /// Waits for the device, then gives back losses, results and gradients.
  virtual void finish(const Bindings& bindings) = 0;
};

/// A step made ready for fixed shapes. One runs at a time, except where runs_ahead() says that more may be on the device.
class Executable {
 public:
  Executable(Plan plan, ElementType type) : plan_(std::move(plan)), type_(type) {}
  virtual ~Executable() = default;
  Executable(const Executable&) = delete;
  Executable& operator=(const Executable&) = delete;
  const Plan& plan() const { return plan_; }
  /// What plan() prints for a step.
  virtual std::string algorithm(std::size_t step) const = 0;
  /// The kernel behind a step; null for engines that have none.
  virtual const Kernel* kernel(std::size_t) const { return nullptr; }
  /// Runs a step, or leaves it to a device, which calls `done`, if there is one, when it is through. Null when all is done.
  virtual std::unique_ptr<StepOnDevice> begin(const Bindings& bindings, const std::function<void()>& done) = 0;
  /// True where a step may begin while the one before is on the device: nothing that finishing that one does changes what it reads,
  /// besides images and labels.
  virtual bool runs_ahead() const { return false; }
  /// Runs `runs` times and writes the seconds of every step, run after run.
  virtual void profile(Bindings bindings, std::size_t runs, double* seconds);
  /// Seconds of some steps alone, in rising order, run after run. Steps before the last of them run once, so that their operands are
  /// alive. Parameters count as changed in every run, as they are in training.
  virtual std::vector<double> time_steps(Bindings bindings, const std::vector<std::size_t>& steps, std::size_t runs);
  /// Looks for the first value of the run before that is not finite; false when none is.
  virtual bool find_nonfinite(const Bindings& bindings, NonfiniteValue& found);
  /// True when losses and gradients are all finite, and results too where they are watched.
  bool is_finite(const Bindings& bindings, bool watches_results) const;

 protected:
  /// Of a value outside the arena.
  void* outside_address(const Value& value, const Bindings& bindings) const;
  virtual void* address(const Value& value, const Bindings& bindings) const { return outside_address(value, bindings); }
  /// Index of the first element of a value that is not finite, or its count.
  std::size_t first_nonfinite(const Value& value, const Bindings& bindings) const;
  std::size_t first_nonfinite_at(const void* data, std::size_t count) const;

  Plan plan_;
  ElementType type_;
};

/// An engine's side of one graph.
class EngineGraph {
 public:
  virtual ~EngineGraph() = default;
  /// Before the host changes parameters: waits until no device uses them.
  virtual void wait_until_idle() {}
  /// See KernelBackend::saved_bytes.
  virtual std::size_t saved_bytes(const Operation&, const OperandShapes&) const { return 0; }
  /// `graph` outlives the result's making, not the result. `returned` are the images that a step hands out.
  virtual std::unique_ptr<Executable> make_executable(const NNGraph& graph, Plan plan, const std::vector<ValueId>& returned) = 0;
};

}  // namespace mpsnn
