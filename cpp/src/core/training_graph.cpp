// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <map>
#include <set>

#include "mpsnn/nodes/arithmetic.hpp"
#include "mpsnn/nodes/node.hpp"

namespace mpsnn {

/// Builds the backward part of a graph (MPS_SEMANTICS 5.2).
class TrainingGraphBuilder {
 public:
  explicit TrainingGraphBuilder(const NodeHandler& handler) : handler_(handler) {}

  std::vector<FilterNodePtr> build(NNFilterNode& last, const ImageNodePtr& start) {
    if (last.is_gradient_origin()) {
      contribute(last.sources().front(), start, nullptr);
      visit_reachable(last.sources().front()->producer());
    } else {
      contribute(last.result_image(), start, nullptr);
      visit_reachable(&last);
    }
    // Construction order is a topological order, so its reverse meets every consumer of an image before its producer.
    std::sort(reachable_.begin(), reachable_.end(), [](NNFilterNode* a, NNFilterNode* b) { return a->construction_index() > b->construction_index(); });
    for (NNFilterNode* filter : reachable_) differentiate(*filter);
    return finish();
  }

 private:
  struct Contribution {
    ImageNodePtr image;
    FilterNodePtr filter;
  };
  struct Gradients {
    ImageNodePtr inference_image;
    std::vector<Contribution> contributions;
  };

  void visit_reachable(NNFilterNode* filter) {
    if (!filter || !seen_.insert(filter).second) return;
    reachable_.push_back(filter);
    for (const ImageNodePtr& source : filter->sources_) visit_reachable(source->producer());
  }

  void contribute(const ImageNodePtr& image, const ImageNodePtr& gradient, const FilterNodePtr& filter) {
    auto [found, is_new] = gradients_.try_emplace(image.get());
    if (is_new) {
      found->second.inference_image = image;
      order_.push_back(image.get());
    }
    found->second.contributions.push_back({gradient, filter});
  }

  void handle(const FilterNodePtr& gradient, const FilterNodePtr& inference, const ImageNodePtr& source, const ImageNodePtr& gradient_source) {
    if (handler_) handler_(gradient, inference, source, gradient_source);
    else gradient->result_image()->handle = source->handle;
  }

  /// One gradient out of all that reached the image.
  Contribution merge(const Gradients& gradients) {
    Contribution sum = gradients.contributions.front();
    for (std::size_t i = 1; i < gradients.contributions.size(); ++i) {
      auto addition = std::make_shared<NNAdditionNode>(sum.image, gradients.contributions[i].image);
      handle(addition, nullptr, gradients.inference_image, sum.image);
      sum = {addition->result_image(), addition};
    }
    return sum;
  }

  void differentiate(NNFilterNode& filter) {
    const ImageNodePtr result = filter.result_image();
    const auto found = gradients_.find(result.get());
    if (found == gradients_.end() || result->stop_gradient) return;
    const Contribution incoming = merge(found->second);
    found->second.contributions = {incoming};
    if (incoming.image->stop_gradient && incoming.filter) return;  // a handler stopped the addition
    is_consumed_.insert(result.get());
    const std::size_t count = filter.trained_source_count();
    const auto filters = filter.gradient_filters(incoming.image);
    for (std::size_t i = 0; i < std::min(count, filters.size()); ++i) {
      handle(filters[i], filter.shared_from_this(), filter.sources_[i], incoming.image);
      // A handler that sets stop_gradient on a new gradient image ends that branch (OQ-8).
      if (filters[i]->result_image()->stop_gradient) stopped_.push_back(filters[i]);
      else contribute(filter.sources_[i], filters[i]->result_image(), filters[i]);
    }
  }

  /// The filters that made the final gradients: of graph inputs and of images where the gradient stops.
  std::vector<FilterNodePtr> finish() {
    std::vector<FilterNodePtr> last = stopped_;
    for (const NNImageNode* image : order_) {
      if (is_consumed_.contains(image)) continue;
      const Contribution sum = merge(gradients_.at(image));
      if (sum.filter) last.push_back(sum.filter);
    }
    return last;
  }

  const NodeHandler& handler_;
  std::map<const NNImageNode*, Gradients> gradients_;
  std::vector<const NNImageNode*> order_;  // in which images first got a gradient
  std::set<const NNImageNode*> is_consumed_;
  std::vector<FilterNodePtr> stopped_;
  std::set<const NNFilterNode*> seen_;
  std::vector<NNFilterNode*> reachable_;
};

std::vector<FilterNodePtr> NNFilterNode::training_graph(const ImageNodePtr& source_gradient, const NodeHandler& node_handler) {
  return TrainingGraphBuilder(node_handler).build(*this, source_gradient ? source_gradient : result_image());
}

}  // namespace mpsnn
