// SPDX-License-Identifier: Apache-2.0
#include "backends/metal/graph.hpp"

#include <utility>

#include "backends/metal/step.hpp"
#include "mpsnn/graph.hpp"

namespace mpsnn::metal {

MetalGraph::MetalGraph(MTL::Device* device, const GraphParts& parts, ParameterStore& parameters)
    : parts_(parts), parameters_(parameters), context_(std::make_shared<SourceContext>()) {
  const Pool pool;
  context_->device = device;
  context_->errors = std::make_shared<KeptError>();
  queue_ = own(device->newCommandQueue());
  Lowering lowering(parts, parameters, context_);
  lowering.run();
  build(lowering);
  match_handles(lowering);
  convolutions_ = lowering.convolutions();
  normalizations_ = lowering.normalizations();
  host_updates_ = lowering.host_update_count();
  for (const TrainedParameters& trained : parameters.trained())
    if (trained.normalization && trained.is_updated_by_engine) statistics_[trained.node] = lowering.normalization_of(trained.normalization->source);
  loaded_version_ = parameters.version();
}

MetalGraph::~MetalGraph() {
  const Pool pool;
  last_.reset();
  graph_.reset();
  queue_.reset();
}

void MetalGraph::build(Lowering& lowering) {
  std::vector<MPS::NNImageNode*> results;
  const auto needed = std::make_unique<bool[]>(parts_.result_images.size());
  for (std::size_t i = 0; i < parts_.result_images.size(); ++i) {
    results.push_back(lowering.image(*parts_.result_images[i]));
    needed[i] = parts_.results_are_needed[i];
  }
  graph_ = own(MPS::NNGraph::alloc()->init(context_->device, array(results), needed.get()));
  context_->errors->rethrow();
  if (!graph_)
    throw DeviceError("MPS did not make a graph of these nodes.",
                      {.node = "MPSNNGraph", .label = parts_.names.at(parts_.nodes.back().get()), .expected = "a graph", .actual = "nil",
                       .hint = "graph.preflight(\"metal\") names what Apple refuses"});
  graph_->setOutputStateIsTemporary(false);
}

void MetalGraph::match_handles(const Lowering& lowering) {
  std::map<const void*, const void*> nodes;  // of each handle object
  for (const auto& [node, handle] : lowering.handles()) nodes[handle.get()] = node;
  auto node_at = [&](const NS::Array* handles, NS::UInteger i) {
    const auto found = nodes.find(handles->object<NS::Object>(i));
    return found == nodes.end() ? nullptr : found->second;
  };
  // MAC-UNVERIFIED: handle-order: the lists hold the very objects that were set, one per input, in the order that encode expects (OQ-1).
  auto order = [&](const NS::Array* handles, const auto& ours, const char* what) {
    std::vector<std::size_t> positions;
    for (NS::UInteger i = 0; i < count(handles); ++i) {
      const void* node = node_at(handles, i);
      std::size_t index = 0;
      while (index < ours.size() && ours[index] != node) ++index;
      positions.push_back(index);
    }
    if (positions.size() != ours.size() || std::find(positions.begin(), positions.end(), ours.size()) != positions.end())
      throw DeviceError(std::string("MPSNNGraph lists other ") + what + " than this graph has.",
                        {.node = "MPSNNGraph", .expected = std::to_string(ours.size()), .actual = std::to_string(positions.size()),
                         .hint = "please report it: a rule of this engine is wrong"});
    return positions;
  };
  source_image_order_ = order(graph_->sourceImageHandles(), parts_.source_images, "source images");
  source_state_order_ = order(graph_->sourceStateHandles(), parts_.source_states, "source states");
  const NS::Array* images = graph_->intermediateImageHandles();
  for (NS::UInteger i = 0; i < count(images); ++i) image_positions_.emplace(node_at(images, i), i);
  const NS::Array* states = graph_->resultStateHandles();
  for (NS::UInteger i = 0; i < count(states); ++i) state_positions_.emplace(node_at(states, i), i);
}

void MetalGraph::begin_step(std::uint64_t parameters_version) {
  for (const auto& object : convolutions_) object->targets.begin_step();
  for (const auto& object : normalizations_) object->targets.begin_step();
  if (parameters_version == loaded_version_) return;
  wait_until_idle();
  graph_->reloadFromDataSources();
  context_->errors->rethrow();
  loaded_version_ = parameters_version;
}

void MetalGraph::set_element_counts(const Plan& plan) {
  for (const Step& step : plan.steps) {
    const auto found = statistics_.find(step.node);
    const auto* gradient = std::get_if<BatchNormalizationGradientOp>(&step.operation);
    if (found == statistics_.end() || !gradient) continue;
    found->second->element_count = gradient->uses_batch_statistics ? plan.values[step.inputs[1]].shape.pixels() : 0;
  }
}

void MetalGraph::has_begun(MTL::CommandBuffer* command_buffer) {
  last_ = keep(command_buffer);
  ++on_device_;
}

void MetalGraph::wait_until_idle() {
  const Pool pool;
  if (last_) last_->waitUntilCompleted();
}

void MetalGraph::update_on_host() {
  wait_until_idle();
  const Buffer& gradients = parameters_.gradients();
  for (const TrainedParameters& trained : parameters_.trained()) {
    if (!trained.is_updated_by_engine) continue;
    const Shape nothing{0, 0, 0, 0};
    if (trained.convolution) trained.convolution->source->update(parameters_.gradient_state(trained, nothing, gradients), parameters_.source_state(*trained.convolution));
    else if (trained.normalization) trained.normalization->source->update_gamma_and_beta(parameters_.normalization_state(trained, nothing, gradients));
    else trained.affine->source->update_gamma_and_beta({parameters_.affine_state(trained, gradients)});
    loaded_version_ = kStale;
  }
}

void MetalGraph::finish_step(bool has_updated) {
  are_weights_behind_ |= has_updated;
  if (on_device_ > 0) return;
  last_.reset();
  if (!std::exchange(are_weights_behind_, false)) return;
  for (const TrainedParameters& trained : parameters_.trained()) {
    if (!trained.is_updated_by_engine) continue;
    if (trained.convolution) {
      auto& weights = dynamic_cast<ConvolutionWeights&>(*trained.convolution->source);
      if (weights.training().optimizer()) weights.follow(*parameters_.source_state(*trained.convolution));
    } else if (const BatchNormalizationValues* n = trained.normalization) {
      const auto values = [&](const ParameterRange& range) { return parameters_.values(range); };
      dynamic_cast<BatchNormalizationWeights&>(*n->source).set_values(values(n->gamma), values(n->beta), values(n->mean), values(n->variance));
    } else {
      dynamic_cast<AffineWeights&>(*trained.affine->source).set_values(parameters_.values(trained.affine->gamma), parameters_.values(trained.affine->beta));
    }
  }
}

std::unique_ptr<Executable> MetalGraph::make_executable(const NNGraph& graph, Plan plan, const std::vector<ValueId>& returned) {
  return std::make_unique<MetalStep>(*this, graph, std::move(plan), returned);
}

}  // namespace mpsnn::metal
