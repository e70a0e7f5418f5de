// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "backends/metal/graph.hpp"

namespace mpsnn::metal {

/// One step for fixed sizes: images on the device, one encode, one command buffer. The plan says what sizes come out; MPS
/// computes them on its own.
class MetalStep final : public Executable {
 public:
  MetalStep(MetalGraph& graph, const NNGraph& settings, Plan plan, const std::vector<ValueId>& returned);
  ~MetalStep() override;
  std::string algorithm(std::size_t) const override { return "MPS"; }
  void run(const Bindings& bindings) override;

 private:
  struct Labels {
    Shape shape, loss;
    Images labels, weights;
    std::vector<Owned<MPS::CNNLossLabels>> objects;
  };
  /// What an encode gave back.
  struct Encoded {
    const NS::Array* result = nullptr;
    NS::MutableArray *images = nullptr, *states = nullptr;
  };
  void upload(const Bindings& bindings);
  void prepare_labels(std::size_t slot, const Bindings& bindings);
  Encoded encode(MTL::CommandBuffer* command_buffer);
  void synchronize(MTL::CommandBuffer* command_buffer, const Encoded& encoded);
  void finish(MTL::CommandBuffer* command_buffer);
  void download(const Encoded& encoded, const Bindings& bindings);
  void download_states(const Encoded& encoded, const Bindings& bindings);
  const NS::Array* batch_of(const Encoded& encoded, std::size_t returned) const;
  std::string node_labels() const;

  MetalGraph& graph_;
  MPS::ImageFeatureChannelFormat format_;
  MPS::KernelOptions options_;
  std::string label_;
  std::vector<ValueId> returned_;
  std::vector<const NNImageNode*> returned_nodes_;
  std::vector<Images> source_images_;
  std::vector<Labels> labels_;
};

}  // namespace mpsnn::metal
