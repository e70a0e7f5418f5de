// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "mpsnn/data_source.hpp"
#include "mpsnn/enums.hpp"
#include "mpsnn/error.hpp"
#include "mpsnn/image.hpp"
#include "mpsnn/padding.hpp"

/// What every node is: images and states between filters, and filters that make gradients of themselves.
/// A result image or state keeps its filter alive, and a filter its sources: hold the last image and you hold the graph.
namespace mpsnn {

class Json;
class ParameterStore;
class NNFilterNode;
class NNGradientFilterNode;
class PlanBuilder;

/// MPSHandle: a tag that the application attaches to images and states.
class MPSNN_API Handle {
 public:
  virtual ~Handle();
  virtual std::string label() const = 0;
};
using HandlePtr = std::shared_ptr<Handle>;
/// A handle that is just a name.
MPSNN_API HandlePtr make_handle(std::string label);

/// MPSNNImageNode: a place for an image. Without a producer it is an input of the graph (MPS_SEMANTICS 3.1).
class MPSNN_API NNImageNode {
 public:
  explicit NNImageNode(HandlePtr handle = nullptr, NNFilterNode* producer = nullptr) : handle(std::move(handle)), producer_(producer) {}
  static std::shared_ptr<NNImageNode> exported_node(HandlePtr handle);

  HandlePtr handle;
  /// None takes the graph's format.
  ImageFeatureChannelFormat format = ImageFeatureChannelFormat::None;
  /// Never null. The graph's destination_image_allocator takes its place for the result.
  ImageAllocatorPtr image_allocator = TemporaryImage::default_allocator();
  bool export_from_graph = false;
  bool synchronize_resource = false;
  bool stop_gradient = false;

  /// The filter whose result this is, or null.
  NNFilterNode* producer() const { return producer_; }

 private:
  NNFilterNode* producer_;
};
using ImageNodePtr = std::shared_ptr<NNImageNode>;

/// MPSNNStateNode and its kin: a place for a state. Made by filters only (MPS_SEMANTICS 3.2).
class MPSNN_API NNStateNode {
 public:
  explicit NNStateNode(NNFilterNode* producer) : producer_(producer) {}
  virtual ~NNStateNode();
  virtual const char* class_name() const { return "MPSNNStateNode"; }
  HandlePtr handle;
  bool export_from_graph = false;
  bool synchronize_resource = false;
  /// The filter that makes this state; a labels node has one too: the loss that reads it.
  NNFilterNode* producer() const { return producer_; }

 private:
  NNFilterNode* producer_;
};
using StateNodePtr = std::shared_ptr<NNStateNode>;

class MPSNN_API NNGradientStateNode : public NNStateNode {
 public:
  using NNStateNode::NNStateNode;
  const char* class_name() const override { return "MPSNNGradientStateNode"; }
};
class MPSNN_API CNNConvolutionGradientStateNode : public NNGradientStateNode {
 public:
  using NNGradientStateNode::NNGradientStateNode;
  const char* class_name() const override { return "MPSCNNConvolutionGradientStateNode"; }
};
class MPSNN_API CNNConvolutionTransposeGradientStateNode final : public CNNConvolutionGradientStateNode {
 public:
  using CNNConvolutionGradientStateNode::CNNConvolutionGradientStateNode;
  const char* class_name() const override { return "MPSCNNConvolutionTransposeGradientStateNode"; }
};
class MPSNN_API NNBinaryGradientStateNode : public NNStateNode {
 public:
  using NNStateNode::NNStateNode;
  const char* class_name() const override { return "MPSNNBinaryGradientStateNode"; }
};
class MPSNN_API NNArithmeticGradientStateNode final : public NNBinaryGradientStateNode {
 public:
  using NNBinaryGradientStateNode::NNBinaryGradientStateNode;
  const char* class_name() const override { return "MPSNNArithmeticGradientStateNode"; }
};
class MPSNN_API NNMultiaryGradientStateNode final : public NNStateNode {
 public:
  using NNStateNode::NNStateNode;
  const char* class_name() const override { return "MPSNNMultiaryGradientStateNode"; }
};
/// Placeholder for the CNNLossLabels that a step is given.
class MPSNN_API NNLabelsNode final : public NNStateNode {
 public:
  using NNStateNode::NNStateNode;
  const char* class_name() const override { return "MPSNNLabelsNode"; }
};

using FilterNodePtr = std::shared_ptr<NNFilterNode>;
using GradientFilterNodePtr = std::shared_ptr<NNGradientFilterNode>;

/// Called for every node that training_graph() makes. `inference_node` is null for the additions it inserts.
using NodeHandler = std::function<void(const FilterNodePtr& gradient_node, const FilterNodePtr& inference_node,
                                       const ImageNodePtr& inference_source, const ImageNodePtr& gradient_source)>;

/// MPSNNFilterNode: one operation. Make filters with std::make_shared.
class MPSNN_API NNFilterNode : public std::enable_shared_from_this<NNFilterNode> {
 public:
  virtual ~NNFilterNode();
  NNFilterNode(const NNFilterNode&) = delete;
  NNFilterNode& operator=(const NNFilterNode&) = delete;

  /// Apple's name of the class, e.g. "MPSCNNPoolingMaxNode".
  virtual const char* class_name() const = 0;
  const std::vector<ImageNodePtr>& sources() const { return sources_; }
  const std::vector<StateNodePtr>& source_states() const { return source_states_; }
  ImageNodePtr result_image();
  const NNImageNode& result_image_node() const { return result_image_; }
  /// The first result state, or null.
  StateNodePtr result_state();
  std::vector<StateNodePtr> result_states();
  /// Position of `state` among the result states, or their number when it is none of them.
  std::size_t result_state_index(const NNStateNode& state) const;

  std::string label;
  PaddingPtr padding_policy;

  /// The label, or a name that tells as much as can be known: the data source's label, else the class.
  std::string display_name() const;

  /// The gradient node of this filter, given the gradient of its result. Throws GraphError where none exists.
  virtual GradientFilterNodePtr gradient_filter(const std::vector<ImageNodePtr>& source_gradients);
  GradientFilterNodePtr gradient_filter(const ImageNodePtr& source_gradient) { return gradient_filter(std::vector{source_gradient}); }
  /// All gradient nodes, one per source that receives a gradient, in source order.
  std::vector<GradientFilterNodePtr> gradient_filters(const std::vector<ImageNodePtr>& source_gradients);
  std::vector<GradientFilterNodePtr> gradient_filters(const ImageNodePtr& source_gradient) { return gradient_filters(std::vector{source_gradient}); }

  /// Builds gradient nodes backward from here and returns the last ones (MPS_SEMANTICS 5.2). Without `source_gradient`
  /// the result image of this node is the first gradient. Without `node_handler`, each gradient image takes the handle of
  /// the image that it is the gradient of.
  std::vector<FilterNodePtr> training_graph(const ImageNodePtr& source_gradient = nullptr, const NodeHandler& node_handler = {});

  /// Emits the operations of this node into a plan. For engines, not for applications.
  virtual void lower(PlanBuilder& plan) const = 0;
  /// Tells the graph's parameter store what this node reads and trains. Nodes without parameters have nothing to tell.
  virtual void declare(ParameterStore&) const {}
  /// Everything that a constructor or a property set, for saving and printing.
  virtual Json parameters() const;
  /// True for losses and initial gradients: their result already is the gradient of their source.
  virtual bool is_gradient_origin() const { return false; }
  /// The placeholder of labels that a loss node reads, or null.
  virtual NNLabelsNode* labels_placeholder() { return nullptr; }
  /// Data source of a convolution or normalization; empty for others.
  virtual std::string data_source_label() const { return {}; }
  /// Counts filters in the order of their construction, which is a topological order.
  std::uint64_t construction_index() const { return construction_index_; }

 protected:
  NNFilterNode(std::vector<ImageNodePtr> sources, std::vector<StateNodePtr> source_states);
  /// Throws with this node's class and label.
  template <class ErrorType>
  [[noreturn]] void fail(const std::string& sentence, std::string expected = {}, std::string actual = {}, std::string hint = {}) const {
    throw ErrorType(display_name() + ": " + sentence, {class_name(), display_name(), std::move(expected), std::move(actual), std::move(hint)});
  }
  /// Gradient nodes per source, in order. The base class throws: no gradient exists.
  virtual std::vector<GradientFilterNodePtr> make_gradient_filters(const ImageNodePtr& source_gradient);
  /// Sources that training_graph() propagates into: the first so many.
  virtual std::size_t trained_source_count() const { return sources_.size(); }
  void add_result_state(std::unique_ptr<NNStateNode> state) { result_states_.push_back(std::move(state)); }
  /// The result state as the class that gradient nodes take.
  template <class StateNode>
  std::shared_ptr<StateNode> typed_result_state(std::size_t index = 0) {
    return std::static_pointer_cast<StateNode>(result_states().at(index));
  }

 private:
  friend class TrainingGraphBuilder;
  std::vector<ImageNodePtr> sources_;
  std::vector<StateNodePtr> source_states_;
  NNImageNode result_image_;
  std::vector<std::unique_ptr<NNStateNode>> result_states_;
  std::uint64_t construction_index_;
};

/// MPSNNGradientFilterNode: a gradient. It has no gradient of its own.
/// Sources: the gradient of the forward result, then the image that the gradient's formula needs (5.3, 5.4).
class MPSNN_API NNGradientFilterNode : public NNFilterNode {
 public:
  const ImageNodePtr& source_gradient() const { return sources().front(); }

 protected:
  using NNFilterNode::NNFilterNode;
  std::vector<GradientFilterNodePtr> make_gradient_filters(const ImageNodePtr& source_gradient) override;
  /// The forward filter that made the state at `index`.
  const NNFilterNode& forward_filter(std::size_t index = 0) const { return *source_states().at(index)->producer(); }
};

/// Every filter that the images need, through sources and states, in construction order: an order of execution (20.4), since a
/// node can only be made from nodes that exist.
MPSNN_API std::vector<FilterNodePtr> filters_behind(const std::vector<ImageNodePtr>& images);

/// MPSNNTrainableNode: who updates the parameters. The value at the time a gradient node is made is copied to it.
class MPSNN_API NNTrainableNode {
 public:
  virtual ~NNTrainableNode();
  NNTrainingStyle training_style = NNTrainingStyle::UpdateDeviceGPU;
};

}  // namespace mpsnn
