// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <map>
#include <mutex>

#include "core/engine.hpp"
#include "core/parameters.hpp"
#include "core/plan_builder.hpp"
#include "mpsnn/graph.hpp"

namespace mpsnn {

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
  Bindings bindings;
  std::vector<Buffer> converted;
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
  std::mutex running;   ///< held by the step that runs: it owns arena, parameters and gradients
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
  /// Addresses of a step's operands. Those of another type than the engine's are copied into plan.converted.
  const Bindings& bind(CachedPlan& plan, const std::vector<ImagePtr>& images, const std::vector<StatePtr>& states, const std::vector<ImagePtr>& returned,
                       std::uint64_t count) const;
  void run_step(bool traps_nonfinite, CachedPlan& plan, const std::vector<ImagePtr>& images, const std::vector<StatePtr>& states,
                const std::vector<ImagePtr>& returned, std::uint64_t count);
  [[noreturn]] void fail_nonfinite(CachedPlan& plan, const Bindings& bindings);
  std::vector<StatePtr> record_state_exports(CommandBuffer& command_buffer, const CachedPlan& plan);
};

}  // namespace mpsnn
