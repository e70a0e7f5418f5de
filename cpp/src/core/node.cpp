// SPDX-License-Identifier: Apache-2.0
#include "mpsnn/nodes/node.hpp"

#include <algorithm>
#include <atomic>
#include <set>

#include "core/json.hpp"

namespace mpsnn {
namespace {

class NamedHandle final : public Handle {
 public:
  explicit NamedHandle(std::string label) : label_(std::move(label)) {}
  std::string label() const override { return label_; }

 private:
  std::string label_;
};

std::atomic<std::uint64_t> next_construction_index{0};

}  // namespace

Handle::~Handle() = default;
NNStateNode::~NNStateNode() = default;
NNTrainableNode::~NNTrainableNode() = default;
NNFilterNode::~NNFilterNode() = default;

HandlePtr make_handle(std::string label) { return std::make_shared<NamedHandle>(std::move(label)); }

std::shared_ptr<NNImageNode> NNImageNode::exported_node(HandlePtr handle) {
  auto node = std::make_shared<NNImageNode>(std::move(handle));
  node->export_from_graph = true;
  return node;
}

NNFilterNode::NNFilterNode(std::vector<ImageNodePtr> sources, std::vector<StateNodePtr> source_states)
    : padding_policy(same_padding()), sources_(std::move(sources)), source_states_(std::move(source_states)), result_image_(nullptr, this),
      construction_index_(next_construction_index.fetch_add(1)) {
  for (const ImageNodePtr& source : sources_)
    if (!source)
      throw GraphError("a filter node needs all of its source images.",
                       {.node = "MPSNNFilterNode", .expected = "an MPSNNImageNode", .actual = "none", .hint = "pass result_image of the node before it"});
  for (const StateNodePtr& state : source_states_)
    if (!state)
      throw GraphError("a gradient node needs the result state of its forward node.",
                       {.node = "MPSNNFilterNode", .expected = "an MPSNNStateNode", .actual = "none", .hint = "pass result_state of the forward node"});
  // MPS: the result's format starts as a copy of the first source's (MPS_SEMANTICS 3.1).
  if (!sources_.empty()) result_image_.format = sources_.front()->format;
}

// Result images and states live inside their filter; these pointers share the filter's owner. So whoever holds a result holds
// the filter, the filter holds its sources, and nothing holds itself.
ImageNodePtr NNFilterNode::result_image() { return {shared_from_this(), &result_image_}; }

StateNodePtr NNFilterNode::result_state() { return result_states_.empty() ? nullptr : StateNodePtr(shared_from_this(), result_states_.front().get()); }

std::vector<StateNodePtr> NNFilterNode::result_states() {
  std::vector<StateNodePtr> states;
  for (const auto& state : result_states_) states.emplace_back(shared_from_this(), state.get());
  return states;
}

std::size_t NNFilterNode::result_state_index(const NNStateNode& state) const {
  std::size_t index = 0;
  while (index < result_states_.size() && result_states_[index].get() != &state) ++index;
  return index;
}

std::string NNFilterNode::display_name() const {
  if (!label.empty()) return label;
  const std::string source_label = data_source_label();
  if (source_label.empty()) return class_name();
  // A gradient node shares its forward node's data source.
  return dynamic_cast<const NNGradientFilterNode*>(this) ? source_label + " gradient" : source_label;
}

Json NNFilterNode::parameters() const { return Json::Object{}; }

std::vector<GradientFilterNodePtr> NNFilterNode::make_gradient_filters(const ImageNodePtr&) {
  fail<GraphError>("has no gradient.", "a node with a gradient", class_name(),
                   "set stop_gradient on its result image, or take the node out of the trained part");
}

std::vector<GradientFilterNodePtr> NNFilterNode::gradient_filters(const std::vector<ImageNodePtr>& source_gradients) {
  if (source_gradients.size() != 1 || !source_gradients.front())
    fail<GraphError>("takes one gradient image, for its one result image.", "1 image", std::to_string(source_gradients.size()) + " images",
                     "pass the gradient of result_image");
  return make_gradient_filters(source_gradients.front());
}

GradientFilterNodePtr NNFilterNode::gradient_filter(const std::vector<ImageNodePtr>& source_gradients) {
  const auto filters = gradient_filters(source_gradients);
  if (filters.size() != 1)
    fail<GraphError>("has " + std::to_string(filters.size()) + " gradient nodes, one per source.", "1 gradient node", std::to_string(filters.size()),
                     "call gradient_filters()");
  return filters.front();
}

std::vector<FilterNodePtr> filters_behind(const std::vector<ImageNodePtr>& images) {
  std::vector<FilterNodePtr> filters;
  std::set<const NNFilterNode*> seen;
  std::vector<NNFilterNode*> waiting;
  auto visit = [&](NNFilterNode* filter) {
    if (filter && seen.insert(filter).second) waiting.push_back(filter);
  };
  for (const ImageNodePtr& image : images) visit(image->producer());
  while (!waiting.empty()) {
    const FilterNodePtr filter = waiting.back()->shared_from_this();
    waiting.pop_back();
    filters.push_back(filter);
    for (const ImageNodePtr& source : filter->sources()) visit(source->producer());
    for (const StateNodePtr& state : filter->source_states()) visit(state->producer());
  }
  std::sort(filters.begin(), filters.end(), [](const auto& a, const auto& b) { return a->construction_index() < b->construction_index(); });
  return filters;
}

std::vector<GradientFilterNodePtr> NNGradientFilterNode::make_gradient_filters(const ImageNodePtr&) {
  fail<GraphError>(std::string(class_name()) + " is a gradient and has none of its own.", "a forward node", class_name(),
                   "differentiate the forward node");
}

}  // namespace mpsnn
