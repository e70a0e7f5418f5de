// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <map>

#include "backends/metal/data_sources.hpp"
#include "core/engine.hpp"

/// Our nodes as Apple's: only translation, nothing is decided here.
namespace mpsnn::metal {

/// What the functions that lower one node see, and what they have lowered before.
class Lowering {
 public:
  Lowering(const GraphParts& parts, ParameterStore& parameters, SourceContextPtr context);

  /// Lowers every node, in execution order.
  void run();

  // --- operands of a node
  MPS::NNImageNode* source(const NNFilterNode& node, std::size_t index = 0) { return image(*node.sources().at(index)); }
  NS::Array* sources(const NNFilterNode& node);
  /// The state that a gradient node takes from its forward node, as `State`.
  template <class State = MPS::NNGradientStateNode>
  State* state(const NNFilterNode& node, std::size_t index = 0) {
    return static_cast<State*>(state_of(*node.source_states().at(index)));
  }
  MPS::CNNConvolutionDataSource* convolution_source(const ConvolutionDataSourcePtr& source, const NNFilterNode& node);
  MPS::CNNBatchNormalizationDataSource* batch_normalization_source(const BatchNormalizationDataSourcePtr& source);
  NormalizationObject& affine_object(const AffineDataSourcePtr& source);
  MPS::CNNInstanceNormalizationDataSource* instance_normalization_source(const AffineDataSourcePtr& source);
  MPS::CNNGroupNormalizationDataSource* group_normalization_source(const AffineDataSourcePtr& source);
  /// Host updates are CPU style for MPS, whatever the application chose: GPU style is for optimizers that run on the device.
  MPS::NNTrainingStyle training_style(const NNFilterNode& node, NNTrainingStyle chosen) const;
  Owned<MPS::NNPadding> padding(const NNFilterNode& node) const;
  const SourceContextPtr& context() const { return context_; }
  const ErrorsPtr& errors() const { return context_->errors; }
  std::string name(const NNFilterNode& node) const { return parts_.names.at(&node); }

  // --- results
  MPS::NNImageNode* image(const NNImageNode& node);
  /// The tag of an input, result or export; matched by identity in the lists of the graph.
  MPS::Handle* handle(const void* node, const std::string& label);
  NormalizationObject* normalization_of(const BatchNormalizationDataSourcePtr& source) const { return normalization_sources_.at(source.get()).first.get(); }
  const std::vector<std::shared_ptr<ConvolutionObject>>& convolutions() const { return convolution_objects_; }
  const std::vector<std::shared_ptr<NormalizationObject>>& normalizations() const { return normalization_objects_; }
  const std::map<const void*, Owned<MPS::Handle>>& handles() const { return handles_; }
  /// Callbacks of CPU style that one step makes.
  int host_update_count() const { return host_updates_; }
  /// Labels placeholders of loss nodes.
  void set_labels(const NNLabelsNode& node, MPS::NNLabelsNode* lowered);

 private:
  void lower(const FilterNodePtr& node);
  void finish(NNFilterNode& node, MPS::NNFilterNode* lowered);
  MPS::NNStateNode* state_of(const NNStateNode& node);
  /// True when Apple's optimizers update the parameters, in GPU style, not the host.
  bool is_for_device(const TrainedParameters& trained) const;
  bool is_returned(const NNImageNode* image) const;
  std::shared_ptr<NormalizationObject> normalization_object(const std::string& label, int channels, int groups, float epsilon);
  void add_targets();

  const GraphParts& parts_;
  ParameterStore& parameters_;
  SourceContextPtr context_;
  std::map<const NNFilterNode*, Owned<MPS::NNFilterNode>> filters_;
  std::map<const NNImageNode*, Owned<MPS::NNImageNode>> inputs_;
  std::map<const void*, Owned<MPS::Handle>> handles_;
  std::map<const CNNConvolutionDataSource*, Owned<MPS::CNNConvolutionDataSource>> convolution_sources_;
  std::map<const void*, std::pair<std::shared_ptr<NormalizationObject>, Owned<NS::Object>>> normalization_sources_;
  std::vector<std::shared_ptr<ConvolutionObject>> convolution_objects_;
  std::vector<std::shared_ptr<NormalizationObject>> normalization_objects_;
  std::map<const CNNConvolutionDataSource*, std::shared_ptr<ConvolutionObject>> convolution_by_source_;
  int host_updates_ = 0;
};

/// A node of Apple's for one of ours.
using LowerFunction = Owned<MPS::NNFilterNode> (*)(Lowering& lowering, const NNFilterNode& node);
struct LoweredClass {
  const char* class_name;
  LowerFunction lower;
};
using LoweredClasses = std::vector<LoweredClass>;
// One list per family.
LoweredClasses convolution_classes();
LoweredClasses window_classes();
LoweredClasses pointwise_classes();
LoweredClasses arithmetic_classes();
LoweredClasses shape_classes();
LoweredClasses loss_classes();
/// Every class that is lowered.
const std::map<std::string, LowerFunction>& lowered_classes();

/// The node with its own type: the table names the class, so the cast holds.
template <class Node>
const Node& as(const NNFilterNode& node) {
  return dynamic_cast<const Node&>(node);
}
template <class T>
Owned<MPS::NNFilterNode> filter(T* node) {
  return own<MPS::NNFilterNode>(node);
}
/// A gradient node that takes its parameters from the forward node's state.
template <class Apple>
Owned<MPS::NNFilterNode> plain_gradient(Lowering& l, const NNFilterNode& n) {
  return filter(Apple::alloc()->init(l.source(n, 0), l.source(n, 1), l.state(n)));
}

}  // namespace mpsnn::metal
