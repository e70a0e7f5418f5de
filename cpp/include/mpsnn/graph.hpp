// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "mpsnn/device.hpp"
#include "mpsnn/image.hpp"
#include "mpsnn/nodes/node.hpp"
#include "mpsnn/precision.hpp"
#include "mpsnn/preflight.hpp"
#include "mpsnn/state.hpp"

namespace mpsnn {

/// What one encode gives back. The numbers are valid once the command buffer has completed.
struct EncodedResults {
  std::vector<ImagePtr> result_images;        ///< in the order of the constructor; null where not needed
  std::vector<ImagePtr> intermediate_images;  ///< exported images, in the order of intermediate_image_handles()
  std::vector<StatePtr> destination_states;   ///< exported states, in the order of result_state_handles()
};

/// A batch as MPS passes it: images or states with one image each.
using ImageBatch = std::vector<ImagePtr>;
using StateBatch = std::vector<StatePtr>;
struct EncodedBatches {
  std::vector<ImageBatch> result_images, intermediate_images;
  std::vector<StatePtr> destination_states;
};

/// One row of a plan: an operation, how it is computed and why so, and what it costs.
struct PlannedOperation {
  std::string operation, node, algorithm, result;
  std::string layout;  ///< of its numbers inside the kernel
  std::string reason;  ///< why this algorithm; empty where there is one only
  double flops = 0;       ///< of a direct loop, 2 per multiply-add: what rates are usually quoted for
  double work = 0;        ///< of the algorithm: Winograd's needs fewer
  std::size_t bytes = 0;  ///< operands read and written
  std::string limit;      ///< "compute" or "memory", whichever takes longer at the machine's peak; empty where that is unknown
  double least_seconds = 0;  ///< that time
};

/// What graph.plan() reports before anything runs.
struct MPSNN_API PlanReport {
  std::vector<PlannedOperation> operations;
  double flops = 0;
  std::size_t arena_bytes = 0;      ///< images, states and scratch, laid out by lifetimes
  std::size_t unshared_bytes = 0;   ///< the same images without sharing
  std::size_t parameter_bytes = 0;  ///< parameters and their gradients
  double peak_flops = 0, peak_bytes = 0;  ///< of this machine, per second, as measured with its threads; 0 for other engines
  std::string text() const;
};

/// Where the time of a step goes.
struct MPSNN_API ProfileReport {
  std::vector<PlannedOperation> operations;
  std::vector<double> seconds;  ///< per operation, the median of all runs
  double peak_flops = 0, peak_bytes = 0;
  std::string text() const;
};

/// MPSNNGraph: everything that its results need, ready to run (MPS_SEMANTICS 20). Data sources are loaded when it is made.
/// Not to be encoded from two threads at once.
class MPSNN_API NNGraph {
 public:
  NNGraph(DevicePtr device, ImageNodePtr result_image, bool result_image_is_needed = true);
  /// `results_are_needed` empty: all are.
  NNGraph(DevicePtr device, std::vector<ImageNodePtr> result_images, std::vector<bool> results_are_needed = {});
  ~NNGraph();
  NNGraph(const NNGraph&) = delete;
  NNGraph& operator=(const NNGraph&) = delete;

  const DevicePtr& device() const;
  std::string label;
  /// Storage of images whose node says None; Float32 unless set (MPS: Float16).
  ImageFeatureChannelFormat format = ImageFeatureChannelFormat::Float32;
  /// What the kernels of later encodes may trade for speed.
  Precision precision = Precision::fast;
  KernelOptions options = KernelOptions::None;
  bool output_state_is_temporary = false;
  /// Who makes the result image. Never null.
  ImageAllocatorPtr destination_image_allocator = Image::default_allocator();
  /// Also watches result images: a step that makes a NaN or Inf anywhere ends in a DeviceError that names the first node that made
  /// it. A step that trains always watches its losses and weight gradients (one pass over them): no weight changes when one is not
  /// finite.
  bool trap_nonfinite = false;

  /// The order in which encode expects its inputs: first use in execution order. Untagged nodes get handles of their own.
  std::vector<HandlePtr> source_image_handles() const;
  std::vector<HandlePtr> source_state_handles() const;
  std::vector<HandlePtr> intermediate_image_handles() const;
  std::vector<HandlePtr> result_state_handles() const;
  HandlePtr result_handle() const;
  bool result_image_is_needed() const;
  std::size_t result_count() const;
  /// By how much an encode lowers the read count of the temporary source image (state) at this position of the handle lists.
  std::size_t read_count_for_source_image_at_index(std::size_t index) const;
  std::size_t read_count_for_source_state_at_index(std::size_t index) const;

  /// Records one step. All images have the same number of images. Throws before anything is recorded.
  EncodedResults encode(CommandBuffer& command_buffer, const std::vector<ImagePtr>& source_images, const std::vector<StatePtr>& source_states = {});
  /// The same for batches of single images: one batch per graph input.
  EncodedBatches encode_batch(CommandBuffer& command_buffer, const std::vector<ImageBatch>& source_images,
                              const std::vector<StateBatch>& source_states = {});
  /// encode, commit and wait, on the calling thread.
  EncodedResults run(const std::vector<ImagePtr>& source_images, const std::vector<StatePtr>& source_states = {});
  /// The same into `results`, whose lists and images are used again. With data sources of this library only, and no exported states, a
  /// step like the one before allocates nothing.
  void run(const std::vector<ImagePtr>& source_images, const std::vector<StatePtr>& source_states, EncodedResults& results);
  /// Encodes on a queue of the graph's own and returns at once; the handler gets the results, or the error.
  using CompletionHandler = std::function<void(const EncodedResults& results, std::exception_ptr error)>;
  CommandBufferPtr execute_async(const std::vector<ImagePtr>& source_images, CompletionHandler handler);

  /// Reads every data source again. No step may be in flight.
  void reload_from_data_sources();
  /// The weights that the kernels use now, of the convolution with this data source.
  std::shared_ptr<CNNConvolutionWeightsAndBiasesState> export_weights(const ConvolutionDataSourcePtr& source) const;

  /// How often this graph was encoded: dropout masks depend on it. Set it to continue an interrupted training.
  std::uint64_t encode_count() const;
  void set_encode_count(std::uint64_t count);

  /// Filters in execution order.
  const std::vector<FilterNodePtr>& nodes() const;
  const std::vector<ImageNodePtr>& result_image_nodes() const;
  const std::vector<bool>& results_are_needed() const;
  /// Data sources in the order of their first use.
  DataSources data_sources() const;
  /// The parameters that the kernels use now, in the graph's memory.
  const ParameterStore& parameters() const;
  /// Name of a filter of this graph: its label, or class and number.
  std::string node_name(const NNFilterNode& node) const;

  /// What a step would do for these source shapes, labels as they must be. Throws what encode would throw for them.
  PlanReport plan(const std::vector<Shape>& source_shapes);
  /// Every rule that the named engine's framework would enforce or treat differently, with the nodes that break it. For "metal" these
  /// are Apple's; the engines of this library have none. Rules about sizes are checked when source shapes are given, which throws what
  /// encode would throw for them. Throws OptionError for an unknown engine.
  PreflightReport preflight(const std::string& engine, const std::optional<std::vector<Shape>>& source_shapes = {}) const;
  /// Runs steps without updating weights and times each operation.
  ProfileReport profile(const std::vector<ImagePtr>& source_images, const std::vector<StatePtr>& source_states = {}, std::size_t runs = 10);
  /// Seconds that some operations of profile().operations take alone, per run: for benchmarks of single layers. Packed weights are
  /// made anew in every run, as a training step makes them.
  std::vector<double> time_operations(const std::vector<ImagePtr>& source_images, const std::vector<StatePtr>& source_states,
                                      std::vector<std::size_t> operations, std::size_t runs);
  /// Nodes and handles, one line each.
  std::string debug_description() const;

 private:
  /// All nodes lowered for these source shapes, labels as they must be; nothing is pruned or kept.
  std::unique_ptr<PlanBuilder> lowered(const std::vector<Shape>& source_shapes) const;
  struct Impl;
  struct Around;
  /// `is_alone`: the command buffer holds this step only. `around`: what else belongs to the step, or null.
  EncodedResults encode_step(CommandBuffer& command_buffer, const std::vector<ImagePtr>& source_images, const std::vector<StatePtr>& source_states,
                             bool is_alone, std::shared_ptr<const Around> around = nullptr);
  void run_on_command_buffer(const std::vector<ImagePtr>& source_images, const std::vector<StatePtr>& source_states, EncodedResults& results);
  std::shared_ptr<Impl> impl_;  // shared with recorded work, which may outlive the graph
};

}  // namespace mpsnn
