// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <map>
#include <set>

#include "core/engine.hpp"
#include "core/parameters.hpp"
#include "mpsnn/graph.hpp"

namespace mpsnn {

/// Shapes that a step is given. Without states, labels take the shape that fits: enough to plan, not to run.
struct SourceShapes {
  std::vector<Shape> images;
  struct Labels {
    Shape labels, weights, loss;  ///< weights all zeros when there are none
    bool operator==(const Labels&) const = default;
  };
  std::vector<Labels> states;
  bool operator==(const SourceShapes&) const = default;
};

/// What nodes see while they lower themselves: values for their operands, and where their operations go.
class PlanBuilder {
 public:
  PlanBuilder(const NNGraph& graph, const ParameterStore& parameters, const EngineGraph& engine, const SourceShapes& shapes,
              const std::vector<NNImageNode*>& source_images, const std::vector<NNLabelsNode*>& source_states);

  // --- operands
  /// The value of source image `index` of `node`.
  ValueId image(const NNFilterNode& node, std::size_t index) const;
  Shape shape(ValueId id) const { return plan_.values[id].shape; }
  ImageDescriptor image_descriptor(ValueId id) const;
  ValueId convolution_weights(const ConvolutionDataSourcePtr& source);
  /// kNoValue when the data source has no biases.
  ValueId convolution_biases(const ConvolutionDataSourcePtr& source);
  const CNNConvolutionDescriptor& convolution_descriptor(const ConvolutionDataSourcePtr& source) const;
  const BatchNormalizationValues& batch_normalization(const BatchNormalizationDataSourcePtr& source) const;
  const AffineValues& affine(const AffineDataSourcePtr& source) const { return parameters_.affine(source); }
  const BinaryConvolutionParameters& binary_convolution(const NNFilterNode& node) const { return parameters_.binary_convolution(node); }
  ValueId parameter(const ParameterRange& range);
  /// Accumulators of a trainable gradient node, kNoValue where nobody asked for them.
  ValueId gradient(const ParameterRange& range);
  const TrainedParameters* trained(const NNFilterNode& node) const;
  /// Batch statistics of a normalization node.
  const BatchStatistics& batch_statistics(const NNFilterNode& node) const;
  /// True when a gradient node of this graph consumes a result state of `node`, or it is exported.
  bool is_consumed(const NNFilterNode& node) const { return consumed_.contains(&node); }
  /// Labels, weights and loss of a loss node; weights kNoValue when there are none.
  struct Labels { ValueId labels, weights, loss; };
  Labels labels(const NNLabelsNode& node, const Shape& source);

  // --- geometry
  /// The window of a forward filter under the node's padding policy, custom ones included, and the edge mode. Throws ShapeError
  /// when nothing is left of the image.
  struct PlacedWindow { Window window; ImageEdgeMode edge_mode; };
  PlacedWindow place_window(const NNFilterNode& node, ValueId source, const WindowSize& size, ImageEdgeMode edge_mode) const;
  /// The same for a transposed convolution: see resolve_reverse_window().
  Window place_reverse_window(const NNFilterNode& node, ValueId source, const WindowSize& size) const;

  // --- operations
  /// Adds an operation whose first output is the node's result image.
  ValueId add_result(const NNFilterNode& node, Operation operation, std::vector<ValueId> inputs, const Shape& result);
  void add(const NNFilterNode& node, Operation operation, std::vector<ValueId> inputs, std::vector<ValueId> outputs);
  /// The value of a node's result image, made now if no operation made it yet.
  ValueId result(const NNFilterNode& node, const Shape& shape);
  /// The operation that made the result image of the filter behind a gradient state.
  Step forward_step(const NNFilterNode& forward) const;
  /// Lets the operation of `gradient` read what `forward` saves for it, if anything, in place of that operand.
  void read_saved(const NNFilterNode& gradient, std::size_t operand, const NNFilterNode& forward);

  /// Throws ShapeError unless the incoming gradient of `node` has the forward result's shape.
  void require_gradient_shape(const NNFilterNode& node, ValueId gradient, const Shape& forward_result) const;
  void require_same_shape(const NNFilterNode& node, const char* what, ValueId actual, const Shape& expected) const;

  std::string name(const NNFilterNode& node) const { return graph_.node_name(node); }
  /// The plan, pruned to what the returned images, losses and weight updates need.
  Plan finish(const std::vector<NNImageNode*>& returned_images);
  /// Shapes of the forward sources of trained nodes, in the order of ParameterStore::trained().
  std::vector<Shape> trained_source_shapes() const;
  /// Values of the images given to finish(), in their order.
  const std::vector<ValueId>& returned_values() const { return returned_; }

 private:
  /// Rounds the node's result to its storage format, unless that is Float32.
  void round_to_format(const NNFilterNode& node);
  ValueId add_value(Value value);
  ValueId block_value(std::map<std::size_t, ValueId>& known, Storage storage, const ParameterRange& range);
  const NNGraph& graph_;
  const ParameterStore& parameters_;
  const EngineGraph& engine_;
  Plan plan_;
  std::map<const NNImageNode*, ValueId> images_;
  std::vector<SourceShapes::Labels> given_labels_;
  std::map<const NNLabelsNode*, int> label_slots_;
  std::map<const NNFilterNode*, std::size_t> result_steps_;
  std::set<const NNFilterNode*> consumed_;
  std::map<std::size_t, ValueId> parameter_values_, gradient_values_;
  std::vector<ValueId> returned_;
  std::map<ValueId, ValueId> rounded_;  ///< a result as computed, and as stored
};

}  // namespace mpsnn
