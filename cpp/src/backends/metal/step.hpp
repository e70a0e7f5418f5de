// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "backends/metal/graph.hpp"

namespace mpsnn::metal {

/// One step for fixed sizes: images on the device, one encode, one command buffer. The plan says what sizes come out; MPS
/// computes them on its own. A step that begins while another is on the device has source images of its own.
class MetalStep final : public Executable {
 public:
  MetalStep(MetalGraph& graph, const NNGraph& settings, Plan plan, const std::vector<ValueId>& returned);
  ~MetalStep() override;
  std::string algorithm(std::size_t) const override { return "MPS"; }
  std::unique_ptr<StepOnDevice> begin(const Bindings& bindings, const std::function<void()>& done) override;
  bool runs_ahead() const override { return graph_.host_update_count() == 0 && plan_.images > 0; }

 private:
  struct LabelSizes { Shape labels, weights, loss; };
  /// What a device reads in one step, and where it puts the losses.
  struct Inputs {
    std::vector<Images> source_images, labels, weights;
    std::vector<std::vector<Owned<MPS::CNNLossLabels>>> losses;  ///< made for each step
    bool is_in_use = false;
  };
  /// What an encode gave back.
  struct Encoded {
    Owned<NS::Array> result, images, states;
  };
  class OnDevice;
  Inputs& free_inputs();
  void upload(Inputs& inputs, const Bindings& bindings) const;
  Encoded encode(const Inputs& inputs, MTL::CommandBuffer* command_buffer);
  void synchronize(MTL::CommandBuffer* command_buffer, const Inputs& inputs, const Encoded& encoded) const;
  void wait_for(MTL::CommandBuffer* command_buffer);
  void download(const Inputs& inputs, const Encoded& encoded, const Bindings& bindings) const;
  void download_states(const Encoded& encoded) const;
  const NS::Array* batch_of(const Encoded& encoded, std::size_t returned) const;
  std::string node_labels() const;

  MetalGraph& graph_;
  MPS::ImageFeatureChannelFormat format_;
  MPS::KernelOptions options_;
  std::string label_;
  std::vector<ValueId> returned_;
  std::vector<const NNImageNode*> returned_nodes_;
  std::vector<LabelSizes> labels_;
  std::vector<std::unique_ptr<Inputs>> inputs_;  ///< one set, two where steps overlapped
};

}  // namespace mpsnn::metal
