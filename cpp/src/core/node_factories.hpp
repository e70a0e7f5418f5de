// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "mpsnn/nodes/node.hpp"
#include "nodes/json_fields.hpp"

/// How each node class is made from what a file says of it.
namespace mpsnn {

[[noreturn]] void bad_file(const std::string& sentence, std::string expected, std::string actual);

/// What a node is made from.
struct SavedNode {
  std::vector<ImageNodePtr> sources;
  std::vector<StateNodePtr> states;
  ConvolutionDataSourcePtr weights;
  BatchNormalizationDataSourcePtr normalization;
  AffineDataSourcePtr affine;
  JsonFields fields;
  std::string class_name;

  const ImageNodePtr& source(std::size_t i) const {
    if (i >= sources.size()) bad_file(class_name + " has too few sources.", std::to_string(i + 1), std::to_string(sources.size()));
    return sources[i];
  }
  template <class StateNode>
  std::shared_ptr<StateNode> state(std::size_t i = 0) const {
    auto typed = i < states.size() ? std::dynamic_pointer_cast<StateNode>(states[i]) : nullptr;
    if (!typed) bad_file(class_name + " has no state of the right class.", "the result state of its forward node", i < states.size() ? states[i]->class_name() : "none");
    return typed;
  }
  template <class StateNode>
  std::shared_ptr<StateNode> optional_state() const { return states.empty() ? nullptr : state<StateNode>(); }
  const ConvolutionDataSourcePtr& convolution() const {
    if (!weights) bad_file(class_name + " names no data source.", "a data source", "none");
    return weights;
  }
  const BatchNormalizationDataSourcePtr& batch_normalization() const {
    if (!normalization) bad_file(class_name + " names no data source.", "a data source", "none");
    return normalization;
  }
};

using NodeFactory = std::function<FilterNodePtr(const SavedNode&)>;

/// By Apple's class name.
const std::map<std::string, NodeFactory>& node_factories();

}  // namespace mpsnn
