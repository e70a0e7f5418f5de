// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "backends/metal/images.hpp"
#include "backends/metal/lowering.hpp"

namespace mpsnn::metal {

/// The MPSNNGraph behind one graph of ours. Its calls come one at a time, steps may be on the device meanwhile.
class MetalGraph final : public EngineGraph {
 public:
  MetalGraph(MTL::Device* device, const GraphParts& parts, ParameterStore& parameters);
  ~MetalGraph() override;
  void wait_until_idle() override;
  std::unique_ptr<Executable> make_executable(const NNGraph& graph, Plan plan, const std::vector<ValueId>& returned) override;

  // --- for steps
  MTL::Device* device() const { return context_->device; }
  MPS::NNGraph* mps_graph() const { return graph_.get(); }
  MTL::CommandQueue* queue() const { return queue_.get(); }
  SourceContext& context() const { return *context_; }
  const GraphParts& parts() const { return parts_; }
  ParameterStore& parameters() const { return parameters_; }
  /// Position of each input of ours in MPS's order.
  const std::vector<std::size_t>& source_image_order() const { return source_image_order_; }
  const std::vector<std::size_t>& source_state_order() const { return source_state_order_; }
  /// Where the image (state) of a node is in the intermediate list (destination states), or kNotListed.
  static constexpr std::size_t kNotListed = ~std::size_t(0);
  std::size_t image_position(const NNImageNode* node) const { return position(image_positions_, node); }
  std::size_t state_position(const NNStateNode* node) const { return position(state_positions_, node); }
  /// Host updates that each step waits for.
  int host_update_count() const { return host_updates_; }
  /// Before each step: reads the data sources again when the host has changed parameters.
  void begin_step(std::uint64_t parameters_version);
  /// Before each encode: of how many numbers the statistics of batch normalizations are.
  void set_element_counts(const Plan& plan);
  /// Instead of a step that MPS does not take: the updates that the device would make, with the gradients of the block.
  void update_on_host();
  /// A step was committed; somebody waits for it.
  void has_begun(MTL::CommandBuffer* command_buffer);
  void leaves_device() { --on_device_; }
  /// After each step: weights objects that the device has updated show the new numbers, unless a later step is changing them already.
  void finish_step(bool has_updated);

 private:
  static std::size_t position(const std::map<const void*, std::size_t>& positions, const void* node) {
    const auto found = positions.find(node);
    return found == positions.end() ? kNotListed : found->second;
  }
  void build(Lowering& lowering);
  void match_handles(const Lowering& lowering);

  const GraphParts& parts_;
  ParameterStore& parameters_;
  SourceContextPtr context_;
  std::vector<std::shared_ptr<ConvolutionObject>> convolutions_;
  std::vector<std::shared_ptr<NormalizationObject>> normalizations_;
  std::map<const NNFilterNode*, NormalizationObject*> statistics_;  ///< of gradient nodes whose running statistics the device keeps
  Owned<MTL::CommandQueue> queue_;
  Owned<MPS::NNGraph> graph_;
  std::vector<std::size_t> source_image_order_, source_state_order_;
  std::map<const void*, std::size_t> image_positions_, state_positions_;
  int host_updates_ = 0;
  int on_device_ = 0;                ///< steps between has_begun() and leaves_device()
  Owned<MTL::CommandBuffer> last_;   ///< of the latest of them
  bool are_weights_behind_ = false;  ///< finish_step() has left out something
  static constexpr std::uint64_t kStale = ~std::uint64_t(0);  ///< no version of the parameters
  std::uint64_t loaded_version_ = kStale;
};

}  // namespace mpsnn::metal
