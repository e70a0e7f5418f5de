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

  labels_.resize(parts.source_states.size());
  for (const Value& value : plan_.values) {
    if (value.storage == Storage::labels) labels_[value.slot].labels = value.shape;
    else if (value.storage == Storage::label_weights) labels_[value.slot].weights = value.shape;
    else if (value.storage == Storage::loss) labels_[value.slot].loss = value.shape;
  }
  if (plan_.images > 0) free_inputs();  // an error of memory belongs to the encode
}

MetalStep::~MetalStep() {
  const Pool pool;  // on whatever thread the last owner is
  inputs_.clear();
}

/// A step that is on the device, or about to be.
class MetalStep::OnDevice final : public StepOnDevice {
 public:
  OnDevice(MetalStep& step, Inputs& inputs) : step_(step), inputs_(inputs), command_buffer_(keep(step.graph_.queue()->commandBuffer())) { inputs_.is_in_use = true; }
  ~OnDevice() override {
    const Pool pool;
    encoded_ = {};
    command_buffer_.reset();
    inputs_.is_in_use = false;
  }

  void start(const Bindings& bindings, const std::function<void()>& done) {
    MTL::CommandBuffer* command_buffer = command_buffer_.get();
    step_.upload(inputs_, bindings);
    command_buffer->setLabel(string(step_.label_.empty() ? "mpsnn" : step_.label_));
    encoded_ = step_.encode(inputs_, command_buffer);
    step_.synchronize(command_buffer, inputs_, encoded_);
    if (done) command_buffer->addCompletedHandler([done](MTL::CommandBuffer*) { done(); });
    command_buffer->commit();
    step_.graph_.has_begun(command_buffer);
  }

  void finish(const Bindings& bindings) override {
    const Pool pool;
    MetalGraph& graph = step_.graph_;
    graph.leaves_device();
    try {
      step_.wait_for(command_buffer_.get());
      step_.download(inputs_, encoded_, bindings);
      step_.download_states(encoded_);
    } catch (...) {
      graph.finish_step(false);
      throw;
    }
    graph.finish_step(true);
  }

 private:
  MetalStep& step_;
  Inputs& inputs_;
  Owned<MTL::CommandBuffer> command_buffer_;
  Encoded encoded_;
};

std::unique_ptr<StepOnDevice> MetalStep::begin(const Bindings& bindings, const std::function<void()>& done) {
  const Pool pool;
  if (plan_.images == 0) {
    // MPS takes no empty batches. Nothing is computed; gradients of nothing are 0, which momentum and decay still act upon.
    graph_.parameters().gradients().fill(0);
    graph_.update_on_host();
    return nullptr;
  }
  graph_.begin_step(bindings.parameters_version);
  graph_.context().expect(graph_.host_update_count());
  graph_.set_element_counts(plan_);
  auto step = std::make_unique<OnDevice>(*this, free_inputs());
  step->start(bindings, done);
  return step;
}

MetalStep::Inputs& MetalStep::free_inputs() {
  for (const auto& inputs : inputs_)
    if (!inputs->is_in_use) return *inputs;
  auto inputs = std::make_unique<Inputs>();
  const GraphParts& parts = graph_.parts();
  inputs->source_images.resize(parts.source_images.size());
  for (auto* list : {&inputs->labels, &inputs->weights}) list->resize(labels_.size());
  inputs->losses.resize(labels_.size());
  for (const Value& value : plan_.values) {
    const auto make = [&](ImageFeatureChannelFormat format) { return make_images(graph_.device(), value.shape, format); };
    if (value.storage == Storage::source_image) inputs->source_images[value.slot] = make(parts.source_images[value.slot]->format);
    else if (value.storage == Storage::labels) inputs->labels[value.slot] = make(ImageFeatureChannelFormat::Float32);
    else if (value.storage == Storage::label_weights) inputs->weights[value.slot] = make(ImageFeatureChannelFormat::Float32);
  }
  inputs_.push_back(std::move(inputs));
  return *inputs_.back();
}

void MetalStep::upload(Inputs& inputs, const Bindings& bindings) const {
  const auto numbers = [](void* data) { return static_cast<const float*>(data); };
  for (const Value& value : plan_.values)
    if (value.storage == Storage::source_image) write(inputs.source_images[value.slot], numbers(bindings.source_images[value.slot]), value.shape);
  for (std::size_t slot = 0; slot < labels_.size(); ++slot) {
    const Images &labels = inputs.labels[slot], &weights = inputs.weights[slot];
    write(labels, numbers(bindings.labels[slot]), labels_[slot].labels);
    if (!weights.empty()) write(weights, numbers(bindings.label_weights[slot]), labels_[slot].weights);
    auto& losses = inputs.losses[slot];
    losses.clear();
    const Shape& loss = labels_[slot].loss;
    const MTL::Size size(loss.width, loss.height, loss.channels);
    for (std::size_t i = 0; i < labels.size(); ++i)
      losses.push_back(own(MPS::CNNLossLabels::alloc()->init(graph_.device(), size, labels[i].get(), weights.empty() ? nullptr : weights[i].get())));
  }
}

MetalStep::Encoded MetalStep::encode(const Inputs& inputs, MTL::CommandBuffer* command_buffer) {
  MPS::NNGraph* mps = graph_.mps_graph();
  mps->setFormat(format_);
  mps->setOptions(options_);
  mps->setLabel(string(label_));
  std::vector<NS::Array*> images, states;
  for (const std::size_t slot : graph_.source_image_order()) images.push_back(array(inputs.source_images[slot]));
  for (const std::size_t slot : graph_.source_state_order()) states.push_back(array(inputs.losses[slot]));
  NS::MutableArray *exported_images = mutable_array(), *exported_states = mutable_array();
  Encoded encoded;
  // MAC-UNVERIFIED: encode-ahead: a graph may be encoded while the device runs its encode before, as in Apple's own double buffering.
  encoded.result = keep(mps->encodeBatchToCommandBuffer(command_buffer, array(images), states.empty() ? nullptr : array(states), exported_images,
                                                        exported_states));
  graph_.context().errors->rethrow();  // the buffer was never committed: nothing has happened
  const auto kept = [](const NS::MutableArray* list) { return keep(const_cast<NS::Array*>(array(list))); };
  encoded.images = kept(exported_images);
  encoded.states = kept(exported_states);
  return encoded;
}

void MetalStep::synchronize(MTL::CommandBuffer* command_buffer, const Inputs& inputs, const Encoded& encoded) const {
  // Only managed storage needs it, on Macs with a GPU of their own memory; elsewhere it costs nothing.
  auto images = [&](const NS::Array* batch) {
    for (NS::UInteger i = 0; i < count(batch); ++i) batch->object<MPS::Image>(i)->synchronizeOnCommandBuffer(command_buffer);
  };
  images(encoded.result.get());
  const NS::Array *exported = encoded.images.get(), *states = encoded.states.get();
  for (NS::UInteger i = 0; i < count(exported); ++i) images(exported->object<NS::Array>(i));
  for (NS::UInteger i = 0; i < count(states); ++i) {
    const auto* batch = states->object<NS::Array>(i);
    if (count(batch) > 0) batch->object<MPS::State>(0)->synchronizeOnCommandBuffer(command_buffer);
  }
  for (const auto& losses : inputs.losses)
    for (const auto& object : losses) object->synchronizeOnCommandBuffer(command_buffer);
}

std::string MetalStep::node_labels() const {
  std::string labels;
  for (const FilterNodePtr& node : graph_.parts().nodes) labels += (labels.empty() ? "" : ", ") + graph_.parts().names.at(node.get());
  return labels;
}

void MetalStep::wait_for(MTL::CommandBuffer* command_buffer) {
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
  if (returned_nodes_[index] == parts.result_images.front().get() && parts.results_are_needed.front()) return encoded.result.get();
  const std::size_t position = graph_.image_position(returned_nodes_[index]);
  const NS::Array* exported = encoded.images.get();
  return position < count(exported) ? exported->object<NS::Array>(position) : nullptr;
}

void MetalStep::download(const Inputs& inputs, const Encoded& encoded, const Bindings& bindings) const {
  for (std::size_t i = 0; i < returned_.size(); ++i) {
    const Value& value = plan_.values[returned_[i]];
    if (value.storage != Storage::result || static_cast<std::size_t>(value.slot) != i) continue;  // an image returned twice is read once
    read(batch_of(encoded, i), static_cast<float*>(bindings.results[i]), value.shape, graph_.parts().names.at(returned_nodes_[i]->producer()));
  }
  for (std::size_t slot = 0; slot < labels_.size(); ++slot) {
    const auto& losses = inputs.losses[slot];
    Shape single = labels_[slot].loss;
    single.images = 1;
    for (std::size_t i = 0; i < losses.size(); ++i)
      read(losses[i]->lossImage(), static_cast<float*>(bindings.losses[slot]) + i * single.image_count(), single, "the loss");
  }
}

void MetalStep::download_states(const Encoded& encoded) const {
  const ParameterStore& parameters = graph_.parameters();
  const NS::Array* states = encoded.states.get();
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
