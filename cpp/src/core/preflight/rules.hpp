// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <map>

#include "core/plan_builder.hpp"
#include "mpsnn/nodes/convolution.hpp"
#include "mpsnn/preflight.hpp"

/// Rules of the preflight for Metal: one table per family, each row with its check beside it.
namespace mpsnn::preflight {

struct Rule;

/// What a convolution's data source says, read between load() and purge().
struct WeightFacts {
  CNNConvolutionDescriptor descriptor;
  DataType data_type = DataType::Float32, kernel_type = DataType::Float32;
  CNNWeightsQuantizationType quantization = CNNWeightsQuantizationType::None;
  /// The type of the weights in Apple's kernels (MPS_SEMANTICS 7.2): only Float32 sources may choose Float32.
  bool has_half_kernel() const { return data_type != DataType::Float32 || kernel_type != DataType::Float32; }
};

/// A node as a step with the given source shapes sees it.
struct PlannedNode {
  std::vector<Shape> sources;
  Shape result;
  Operation operation;
};

/// One graph, looked at by every rule.
class Inspection {
 public:
  /// `plan` holds the lowered nodes, or is null when no source shapes are known.
  Inspection(const NNGraph& graph, const PlanBuilder* plan);

  const NNGraph& graph() const { return graph_; }
  bool has_shapes() const { return has_shapes_; }
  /// Only with shapes.
  const PlannedNode& planned(const NNFilterNode& node) const { return planned_.at(&node); }
  /// Feature channels of source image `index` as Apple counts them: behind a concatenation, padding included. Only with shapes.
  int mps_channels(const NNFilterNode& node, std::size_t index) const;
  const WeightFacts& weights(const ConvolutionDataSourcePtr& source);
  /// Input images of the graph, in the order of source_image_handles().
  const std::vector<const NNImageNode*>& inputs() const { return inputs_; }
  const Shape& input_shape(const NNImageNode& input) const { return input_shapes_.at(&input); }

  void run(const Rule& rule);
  void report(const NNFilterNode& node, std::string expected, std::string actual);
  /// A finding about something that is no filter node.
  void report(const std::string& name, const char* class_name, std::string expected, std::string actual);
  /// Refused first; nodes in execution order.
  std::vector<PreflightFinding> take_findings();

 private:
  void count_mps_channels();
  const NNGraph& graph_;
  bool has_shapes_;
  std::map<const NNFilterNode*, PlannedNode> planned_;
  std::map<const NNImageNode*, int> mps_channels_;
  std::map<const CNNConvolutionDataSource*, WeightFacts> weights_;
  std::vector<const NNImageNode*> inputs_;
  std::map<const NNImageNode*, Shape> input_shapes_;
  const Rule* rule_ = nullptr;
  std::vector<std::pair<std::uint64_t, PreflightFinding>> findings_;
};

struct Rule {
  PreflightRule row;
  void (*raise)(const std::string& sentence, ErrorFacts facts);
  std::function<void(Inspection&)> check;
};

template <class ErrorType>
void raise(const std::string& sentence, ErrorFacts facts) { throw ErrorType(sentence, std::move(facts)); }

/// A check that looks at each node of one class on its own.
template <class Node, class Check>
std::function<void(Inspection&)> each(Check check) {
  return [check](Inspection& inspection) {
    for (const FilterNodePtr& filter : inspection.graph().nodes())
      if (const auto* node = dynamic_cast<const Node*>(filter.get())) check(inspection, *node);
  };
}

/// The filter behind a gradient node's state, as a class; null when it is another.
template <class Forward>
const Forward* forward_of(const NNFilterNode& gradient) {
  return gradient.source_states().empty() ? nullptr : dynamic_cast<const Forward*>(gradient.source_states().front()->producer());
}

/// "4 x 3", width first: how Apple orders kernel sizes, strides and dilation rates.
inline std::string by(int x, int y) { return std::to_string(x) + " x " + std::to_string(y); }

const std::vector<Rule>& graph_rules();
const std::vector<Rule>& convolution_rules();
const std::vector<Rule>& window_rules();
const std::vector<Rule>& channel_rules();
const std::vector<Rule>& layer_rules();
/// All of them.
std::vector<const Rule*> all_rules();

}  // namespace mpsnn::preflight
