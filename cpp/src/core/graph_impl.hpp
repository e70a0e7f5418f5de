// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <map>
#include <mutex>

#include "core/command_step.hpp"
#include "core/engine.hpp"
#include "core/parameters.hpp"
#include "core/plan_builder.hpp"
#include "mpsnn/graph.hpp"

namespace mpsnn {

/// A step's operands in the engine's element type.
struct BoundStep {
  Bindings bindings;
  std::vector<Buffer> converted;  ///< what had another type
};

/// A plan ready to run, and images it has handed out before: reused once the caller has let go of them.
struct CachedPlan {
  SourceShapes shapes;
  ImageFeatureChannelFormat format;
  Precision precision;
  std::unique_ptr<Executable> executable;
  std::vector<ValueId> returned;
  std::vector<Shape> trained_source_shapes;
  std::vector<std::vector<ImagePtr>> pool;  ///< per returned image
  std::optional<std::vector<OwnUpdate>> updates;  ///< of a step that nobody but our own data sources takes part in
  // What a step fills, kept so that the next one allocates nothing.
  std::vector<ImagePtr> taken;
  BoundStep bound;
};

/// Work that belongs to a step on a command buffer, with the memory of the application's that it reads and writes.
struct NNGraph::Around {
  std::vector<std::function<void()>> before, after;
  std::vector<Buffer> reads, writes;
};

struct NNGraph::Impl : GraphParts {
  DevicePtr device;
  std::map<const void*, HandlePtr> placeholder_handles;
  std::shared_ptr<ParameterStore> parameters;
  std::unique_ptr<EngineGraph> engine;
  std::vector<std::unique_ptr<CachedPlan>> plans;
  SourceShapes asked;
  std::uint64_t encode_count = 0;
  std::mutex planning;  ///< guards plans and their image pools
  std::mutex running;   ///< held by the step that runs: it owns arena, parameters and gradients; not while a device runs it alone
  CommandQueuePtr queue;

  void collect();
  void name_nodes();
  HandlePtr handle_of(const HandlePtr& given, const void* node) const;
  /// Valid until the next call.
  const SourceShapes& shapes_of(const std::vector<ImagePtr>& images, const std::vector<StatePtr>& states);
  std::unique_ptr<PlanBuilder> lower(const NNGraph& graph, const SourceShapes& shapes, bool needs_labels) const;
  CachedPlan& plan_for(const NNGraph& graph, const SourceShapes& shapes, bool needs_labels);
  ImagePtr take_image(CachedPlan& plan, std::size_t index);
  void take_images(CachedPlan& plan, std::vector<ImagePtr>& taken);
  void deliver(const std::vector<ImagePtr>& returned, EncodedResults& results) const;
  /// Addresses of a step's operands. Those of another type than the engine's are copied.
  const Bindings& bind(BoundStep& bound, const std::vector<ImagePtr>& images, const std::vector<StatePtr>& states, const std::vector<ImagePtr>& returned,
                       std::uint64_t count) const;
  void run_step(bool traps_nonfinite, CachedPlan& plan, const std::vector<ImagePtr>& images, const std::vector<StatePtr>& states,
                const std::vector<ImagePtr>& returned, std::uint64_t count);
  /// When the engine is through: gives back losses and looks for numbers that are not finite.
  void finish_step(bool traps_nonfinite, CachedPlan& plan, const Bindings& bindings, const std::vector<StatePtr>& states);
  [[noreturn]] void fail_nonfinite(CachedPlan& plan, const Bindings& bindings);
  std::vector<StatePtr> record_state_exports(CommandBuffer& command_buffer, const CachedPlan& plan);

  /// A step on a command buffer.
  struct Step final : CommandStep {
    Step(std::shared_ptr<Impl> graph, CachedPlan& cached, std::vector<ImagePtr> source_images, std::vector<StatePtr> source_states,
         std::vector<ImagePtr> returned_images, bool traps, std::shared_ptr<const Around> around_it);
    bool begin(const std::function<void()>& done) override;
    void finish() override;
    bool may_begin_behind(const CommandStep& before) const override;

    std::shared_ptr<Impl> impl;
    CachedPlan& plan;
    std::vector<ImagePtr> images;
    std::vector<StatePtr> states;
    std::vector<ImagePtr> returned;
    std::shared_ptr<const Around> around;
    std::uint64_t count;  ///< encodes before this one
    bool traps_nonfinite;
    std::vector<Buffer> reads, writes;  ///< memory of the application's
    // Between the two parts.
    BoundStep bound;
    std::unique_ptr<StepOnDevice> on_device;
    std::unique_lock<std::mutex> held;
  };
};

}  // namespace mpsnn
