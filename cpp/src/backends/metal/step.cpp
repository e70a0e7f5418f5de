// SPDX-License-Identifier: Apache-2.0
#include "backends/metal/step.hpp"

#include <cstring>

#include "mpsnn/graph.hpp"

namespace mpsnn::metal {

MetalStep::MetalStep(MetalGraph& graph, const NNGraph& settings, Plan plan, const std::vector<ValueId>& returned)
    : Executable(std::move(plan), ElementType::float32), graph_(graph), format_(apple<MPS::ImageFeatureChannelFormat>(settings.format)),
      options_(apple<MPS::KernelOptions>(settings.options)), label_(settings.label), returned_(returned) {
  const Pool pool;
  lay_out_arena(plan_, element_bytes(type_), 0, false);  // says which values a step touches; nothing is allocated
  const GraphParts& parts = graph_.parts();
  for (std::size_t i = 0; i < parts.result_images.size(); ++i)
    if (parts.results_are_needed[i]) returned_nodes_.push_back(parts.result_images[i].get());
  returned_nodes_.insert(returned_nodes_.end(), parts.exported_images.begin(), parts.exported_images.end());

  source_images_.resize(parts.source_images.size());
  labels_.resize(parts.source_states.size());
  std::vector<bool> has_weights(labels_.size());
  for (const Value& value : plan_.values) {
    if (value.storage == Storage::source_image)
      source_images_[value.slot] = make_images(graph_.device(), value.shape, parts.source_images[value.slot]->format);
    else if (value.storage == Storage::labels) {
      labels_[value.slot].shape = value.shape;
      labels_[value.slot].labels = make_images(graph_.device(), value.shape, ImageFeatureChannelFormat::Float32);
    } else if (value.storage == Storage::label_weights) {
      labels_[value.slot].weights = make_images(graph_.device(), value.shape, ImageFeatureChannelFormat::Float32);
    } else if (value.storage == Storage::loss) {
      labels_[value.slot].loss = value.shape;
    }
  }
}

MetalStep::~MetalStep() {
  const Pool pool;  // on whatever thread the last owner is
  source_images_.clear();
  labels_.clear();
}

void MetalStep::run(const Bindings& bindings) {
  const Pool pool;
  if (plan_.images == 0) {
    // MPS takes no empty batches. Nothing is computed; gradients of nothing are 0, which momentum and decay still act upon.
    graph_.parameters().gradients().fill(0);
    graph_.update_on_host();
    return;
  }
  graph_.begin_step(bindings.parameters_version);
  upload(bindings);
  auto command_buffer = keep(graph_.queue()->commandBuffer());
  command_buffer->setLabel(string(label_.empty() ? "mpsnn" : label_));
  graph_.context().expect(graph_.host_update_count());
  graph_.set_element_counts(plan_);
  const Encoded encoded = encode(command_buffer.get());
  synchronize(command_buffer.get(), encoded);
  finish(command_buffer.get());
  download(encoded, bindings);
  download_states(encoded, bindings);
  graph_.finish_step();
}

void MetalStep::upload(const Bindings& bindings) {
  for (const Value& value : plan_.values)
    if (value.storage == Storage::source_image) write(source_images_[value.slot], static_cast<const float*>(bindings.source_images[value.slot]), value.shape);
  for (std::size_t slot = 0; slot < labels_.size(); ++slot) prepare_labels(slot, bindings);
}

void MetalStep::prepare_labels(std::size_t slot, const Bindings& bindings) {
  Labels& labels = labels_[slot];
  write(labels.labels, static_cast<const float*>(bindings.labels[slot]), labels.shape);
  if (!labels.weights.empty()) write(labels.weights, static_cast<const float*>(bindings.label_weights[slot]), labels.shape);
  labels.objects.clear();
  const MTL::Size size(labels.loss.width, labels.loss.height, labels.loss.channels);
  for (std::size_t i = 0; i < labels.labels.size(); ++i)
    labels.objects.push_back(own(MPS::CNNLossLabels::alloc()->init(graph_.device(), size, labels.labels[i].get(), labels.weights.empty() ? nullptr : labels.weights[i].get())));
}

MetalStep::Encoded MetalStep::encode(MTL::CommandBuffer* command_buffer) {
  MPS::NNGraph* mps = graph_.mps_graph();
  mps->setFormat(format_);
  mps->setOptions(options_);
  mps->setLabel(string(label_));
  std::vector<NS::Array*> images, states;
  for (const std::size_t slot : graph_.source_image_order()) images.push_back(array(source_images_[slot]));
  for (const std::size_t slot : graph_.source_state_order()) states.push_back(array(labels_[slot].objects));
  Encoded encoded{nullptr, mutable_array(), mutable_array()};
  encoded.result = mps->encodeBatchToCommandBuffer(command_buffer, array(images), states.empty() ? nullptr : array(states), encoded.images, encoded.states);
  graph_.context().errors->rethrow();  // the buffer was never committed: nothing has happened
  return encoded;
}

void MetalStep::synchronize(MTL::CommandBuffer* command_buffer, const Encoded& encoded) {
  // Only managed storage needs it, on Macs with a GPU of their own memory; elsewhere it costs nothing.
  auto images = [&](const NS::Array* batch) {
    for (NS::UInteger i = 0; i < count(batch); ++i) batch->object<MPS::Image>(i)->synchronizeOnCommandBuffer(command_buffer);
  };
  images(encoded.result);
  const NS::Array *exported = array(encoded.images), *states = array(encoded.states);
  for (NS::UInteger i = 0; i < count(exported); ++i) images(exported->object<NS::Array>(i));
  for (NS::UInteger i = 0; i < count(states); ++i) {
    const auto* batch = states->object<NS::Array>(i);
    if (count(batch) > 0) batch->object<MPS::State>(0)->synchronizeOnCommandBuffer(command_buffer);
  }
  for (const Labels& labels : labels_)
    for (const auto& object : labels.objects) object->synchronizeOnCommandBuffer(command_buffer);
}

std::string MetalStep::node_labels() const {
  std::string labels;
  for (const FilterNodePtr& node : graph_.parts().nodes) labels += (labels.empty() ? "" : ", ") + graph_.parts().names.at(node.get());
  return labels;
}

void MetalStep::finish(MTL::CommandBuffer* command_buffer) {
  command_buffer->commit();
  command_buffer->waitUntilCompleted();
  if (command_buffer->status() == MTL::CommandBufferStatusError) {
    const NS::Error* error = command_buffer->error();
    const std::string said = error ? text(error->localizedDescription()) : "no reason given";
    throw DeviceError("the GPU did not finish the step: " + said,
                      {"MTLCommandBuffer", node_labels(), "a completed command buffer", said, "fewer images per step; results of this step must not be used"});
  }
  // MAC-UNVERIFIED: cpu-style-timing: callbacks of CPU style have run when waitUntilCompleted returns, or run soon after.
  if (!graph_.context().wait_for_updates())
    throw DeviceError("MPS did not hand out the gradients of this step.",
                      {"MPSNNGraph", node_labels(), std::to_string(graph_.host_update_count()) + " update calls", "fewer", "please report it: a rule of this engine is wrong"});
  graph_.context().errors->rethrow();
}

const NS::Array* MetalStep::batch_of(const Encoded& encoded, std::size_t index) const {
  const GraphParts& parts = graph_.parts();
  // MAC-UNVERIFIED: several-results: the first result is returned, the others are in the intermediate list under their handles (20.1).
  if (returned_nodes_[index] == parts.result_images.front().get() && parts.results_are_needed.front()) return encoded.result;
  const std::size_t position = graph_.image_position(returned_nodes_[index]);
  const NS::Array* exported = array(encoded.images);
  return position < count(exported) ? exported->object<NS::Array>(position) : nullptr;
}

void MetalStep::download(const Encoded& encoded, const Bindings& bindings) {
  for (std::size_t i = 0; i < returned_.size(); ++i) {
    const Value& value = plan_.values[returned_[i]];
    if (value.storage != Storage::result || static_cast<std::size_t>(value.slot) != i) continue;  // an image returned twice is read once
    read(batch_of(encoded, i), static_cast<float*>(bindings.results[i]), value.shape, graph_.parts().names.at(returned_nodes_[i]->producer()));
  }
  for (std::size_t slot = 0; slot < labels_.size(); ++slot) {
    const Labels& labels = labels_[slot];
    Shape single = labels.loss;
    single.images = 1;
    for (std::size_t i = 0; i < labels.objects.size(); ++i)
      read(labels.objects[i]->lossImage(), static_cast<float*>(bindings.losses[slot]) + i * single.image_count(), single, "the loss");
  }
}

void MetalStep::download_states(const Encoded& encoded, const Bindings&) {
  const ParameterStore& parameters = graph_.parameters();
  const NS::Array* states = array(encoded.states);
  for (const NNStateNode* node : graph_.parts().exported_states) {
    const std::size_t position = graph_.state_position(node);
    if (position >= count(states)) continue;
    for (const TrainedParameters& trained : parameters.trained()) {
      // Gradients of host updates have arrived already, through the data source.
      if (trained.forward != node->producer() || !trained.is_updated_by_engine) continue;
      auto* state = states->object<NS::Array>(position)->object<MPS::CNNConvolutionGradientState>(0);
      auto copy = [&](const ParameterRange& range, MTL::Buffer* source) {
        const Buffer target = parameters.gradients().part(range.offset, range.count);
        if (range && source) std::memcpy(target.data(), source->contents(), target.bytes());
      };
      copy(trained.first, state->gradientForWeights());
      copy(trained.second, state->gradientForBiases());
    }
  }
}

}  // namespace mpsnn::metal
