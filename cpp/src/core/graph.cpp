// SPDX-License-Identifier: Apache-2.0
#include "mpsnn/graph.hpp"

#include <algorithm>
#include <set>
#include <utility>

#include "core/graph_impl.hpp"
#include "core/json.hpp"
#include "core/structure.hpp"

namespace mpsnn {

// --- construction ------------------------------------------------------------------------------------------------

void NNGraph::Impl::collect() {
  nodes = filters_behind(result_images);
  std::set<const NNImageNode*> known;
  for (const FilterNodePtr& node : nodes) {
    for (const ImageNodePtr& source : node->sources())
      if (!source->producer() && known.insert(source.get()).second) source_images.push_back(source.get());
    if (NNLabelsNode* labels = node->labels_placeholder()) source_states.push_back(labels);
    if (node->result_image()->export_from_graph) exported_images.push_back(node->result_image().get());
    for (const StateNodePtr& state : node->result_states())
      if (state->export_from_graph) exported_states.push_back(state.get());
  }
}

void NNGraph::Impl::name_nodes() {
  std::map<std::string, int> counts;
  for (const FilterNodePtr& node : nodes) {
    std::string name = node->display_name();
    if (name == node->class_name()) name += " " + std::to_string(++counts[name]);
    names[node.get()] = std::move(name);
  }
  auto tag = [&](const void* node, const HandlePtr& handle, const std::string& stem, std::size_t number) {
    if (!handle) placeholder_handles[node] = make_handle(stem + " " + std::to_string(number + 1));
  };
  for (std::size_t i = 0; i < source_images.size(); ++i) tag(source_images[i], source_images[i]->handle, "source image", i);
  for (std::size_t i = 0; i < source_states.size(); ++i) tag(source_states[i], source_states[i]->handle, "source state", i);
  for (std::size_t i = 0; i < exported_images.size(); ++i) tag(exported_images[i], exported_images[i]->handle, "intermediate image", i);
  for (std::size_t i = 0; i < exported_states.size(); ++i) tag(exported_states[i], exported_states[i]->handle, "result state", i);
}

HandlePtr NNGraph::Impl::handle_of(const HandlePtr& given, const void* node) const {
  if (given) return given;
  const auto found = placeholder_handles.find(node);
  return found == placeholder_handles.end() ? nullptr : found->second;
}

NNGraph::NNGraph(DevicePtr device, ImageNodePtr result_image, bool result_image_is_needed)
    : NNGraph(std::move(device), std::vector{std::move(result_image)}, std::vector<bool>{result_image_is_needed}) {}

NNGraph::NNGraph(DevicePtr device, std::vector<ImageNodePtr> result_images, std::vector<bool> results_are_needed) : impl_(std::make_shared<Impl>()) {
  auto refuse = [](const std::string& sentence, std::string expected, std::string actual, std::string hint) {
    throw GraphError("MPSNNGraph: " + sentence, {"MPSNNGraph", "", std::move(expected), std::move(actual), std::move(hint)});
  };
  if (!device) refuse("a graph needs a device.", "a Device", "none", "Device(\"cpu\")");
  if (result_images.empty()) refuse("a graph needs a result image.", "1 or more result images", "0", "pass result_image of the last node");
  if (results_are_needed.empty()) results_are_needed.assign(result_images.size(), true);
  if (results_are_needed.size() != result_images.size())
    refuse("every result image needs its flag.", std::to_string(result_images.size()) + " flags", std::to_string(results_are_needed.size()), "one per result image");
  for (const ImageNodePtr& image : result_images)
    if (!image || !image->producer()) refuse("a result image must be made by a filter.", "result_image of a filter node", image ? "an input image" : "none",
                                             "pass result_image of the last node");
  impl_->device = std::move(device);
  impl_->result_images = std::move(result_images);
  impl_->results_are_needed = std::move(results_are_needed);
  impl_->collect();
  impl_->name_nodes();
  impl_->parameters = std::make_shared<ParameterStore>(impl_->nodes, impl_->device->backend());
  if (const char* rules = impl_->device->backend().preflight_engine()) preflight(rules).raise_for_refused();
  impl_->engine = impl_->device->backend().make_graph(*impl_, *impl_->parameters);
}

NNGraph::~NNGraph() = default;

// --- properties --------------------------------------------------------------------------------------------------

const DevicePtr& NNGraph::device() const { return impl_->device; }
bool NNGraph::result_image_is_needed() const { return impl_->results_are_needed.front(); }
std::size_t NNGraph::result_count() const { return impl_->result_images.size(); }
HandlePtr NNGraph::result_handle() const { return impl_->result_images.front()->handle; }
std::uint64_t NNGraph::encode_count() const { return impl_->encode_count; }
void NNGraph::set_encode_count(std::uint64_t count) { impl_->encode_count = count; }
const std::vector<FilterNodePtr>& NNGraph::nodes() const { return impl_->nodes; }
const std::vector<ImageNodePtr>& NNGraph::result_image_nodes() const { return impl_->result_images; }
const std::vector<bool>& NNGraph::results_are_needed() const { return impl_->results_are_needed; }
DataSources NNGraph::data_sources() const { return data_sources_of(impl_->nodes); }
const ParameterStore& NNGraph::parameters() const { return *impl_->parameters; }

std::string NNGraph::node_name(const NNFilterNode& node) const {
  const auto found = impl_->names.find(&node);
  return found == impl_->names.end() ? node.display_name() : found->second;
}

namespace {

template <class Node, class HandleOf>
std::vector<HandlePtr> handles(const std::vector<Node*>& nodes, HandleOf handle_of) {
  std::vector<HandlePtr> result;
  for (const Node* node : nodes) result.push_back(handle_of(node->handle, node));
  return result;
}

}  // namespace

std::vector<HandlePtr> NNGraph::source_image_handles() const {
  return handles(impl_->source_images, [&](const HandlePtr& handle, const void* node) { return impl_->handle_of(handle, node); });
}
namespace {

void require_index(std::size_t index, std::size_t count, const char* what) {
  if (index >= count)
    throw GraphError(std::string("the graph has no ") + what + " " + std::to_string(index) + ".",
                     {.node = "MPSNNGraph", .expected = "an index below " + std::to_string(count), .actual = std::to_string(index), .hint = "see the list of handles"});
}

}  // namespace

std::size_t NNGraph::read_count_for_source_image_at_index(std::size_t index) const {
  require_index(index, impl_->source_images.size(), "source image");
  return 1;  // MPS: once per encode, however many filters read it (MPS_SEMANTICS 1.3)
}

std::size_t NNGraph::read_count_for_source_state_at_index(std::size_t index) const {
  require_index(index, impl_->source_states.size(), "source state");
  return 1;
}

std::vector<HandlePtr> NNGraph::source_state_handles() const {
  return handles(impl_->source_states, [&](const HandlePtr& handle, const void* node) { return impl_->handle_of(handle, node); });
}
std::vector<HandlePtr> NNGraph::intermediate_image_handles() const {
  return handles(impl_->exported_images, [&](const HandlePtr& handle, const void* node) { return impl_->handle_of(handle, node); });
}
std::vector<HandlePtr> NNGraph::result_state_handles() const {
  return handles(impl_->exported_states, [&](const HandlePtr& handle, const void* node) { return impl_->handle_of(handle, node); });
}

void NNGraph::reload_from_data_sources() {
  std::lock_guard lock(impl_->running);
  impl_->engine->wait_until_idle();
  impl_->parameters->reload();
}

std::shared_ptr<CNNConvolutionWeightsAndBiasesState> NNGraph::export_weights(const ConvolutionDataSourcePtr& source) const {
  const auto current = impl_->parameters->source_state(impl_->parameters->convolution(source));
  auto copy = [](const Buffer& buffer) {
    if (!buffer) return Buffer();
    Buffer result(buffer.count(), buffer.type());
    result.copy_from(buffer);
    return result;
  };
  return std::make_shared<CNNConvolutionWeightsAndBiasesState>(copy(current->weights), copy(current->biases), current->descriptor);
}

// --- planning ----------------------------------------------------------------------------------------------------

const SourceShapes& NNGraph::Impl::shapes_of(const std::vector<ImagePtr>& images, const std::vector<StatePtr>& states) {
  SourceShapes& shapes = asked;
  shapes.images.clear();
  shapes.states.clear();
  for (const ImagePtr& image : images) {
    if (!image) throw OptionError("MPSNNGraph: a source image is missing.", {.node = "MPSNNGraph", .expected = "an MPSImage", .actual = "none"});
    shapes.images.push_back(image->shape());
  }
  for (const StatePtr& state : states) {
    const auto* labels = dynamic_cast<const CNNLossLabels*>(state.get());
    if (!labels)
      throw OptionError("MPSNNGraph: source states are the labels of loss nodes.",
                        {.node = "MPSNNGraph", .expected = "MPSCNNLossLabels", .actual = "another state", .hint = "one MPSCNNLossLabels per loss node"});
    shapes.states.push_back({labels->labels_image()->shape(), labels->weights_image() ? labels->weights_image()->shape() : Shape{0, 0, 0, 0},
                             labels->loss_image()->shape()});
  }
  return shapes;
}

namespace {

/// node.lower(), with the node's name on errors of geometry, which knows no nodes.
void lower_node(const NNGraph& graph, const NNFilterNode& node, PlanBuilder& builder) {
  try {
    node.lower(builder);
  } catch (const ShapeError& error) {
    if (!error.node().empty()) throw;
    const std::string text = error.what(), name = graph.node_name(node);
    throw ShapeError(name + ": " + text.substr(0, text.find('\n')),
                     {node.class_name(), name, error.expected(), error.actual(), "check kernel sizes, strides, dilations, paddings and factors"});
  }
}

}  // namespace

std::unique_ptr<PlanBuilder> NNGraph::Impl::lower(const NNGraph& graph, const SourceShapes& shapes, bool needs_labels) const {
  auto require_count = [](const char* what, std::size_t expected, std::size_t actual, const char* hint) {
    if (expected == actual) return;
    throw GraphError(std::string("MPSNNGraph: this graph takes ") + std::to_string(expected) + " " + what + ", not " + std::to_string(actual) + ".",
                     {.node = "MPSNNGraph", .expected = std::to_string(expected), .actual = std::to_string(actual), .hint = hint});
  };
  require_count("source images", source_images.size(), shapes.images.size(), "see source_image_handles");
  if (needs_labels) require_count("source states", source_states.size(), shapes.states.size(), "see source_state_handles");
  for (const Shape& image : shapes.images)
    if (image.images != shapes.images[0].images)
      throw ShapeError("MPSNNGraph: all source images hold the same number of images.",
                       {.node = "MPSNNGraph", .expected = shapes.images[0].text(), .actual = image.text(), .hint = "pass batches of one length"});
  auto builder = std::make_unique<PlanBuilder>(graph, *parameters, *engine, shapes, source_images, source_states);
  for (const FilterNodePtr& node : nodes) lower_node(graph, *node, *builder);
  return builder;
}

CachedPlan& NNGraph::Impl::plan_for(const NNGraph& graph, const SourceShapes& shapes, bool needs_labels) {
  for (const auto& plan : plans)
    if (plan->shapes == shapes && plan->format == graph.format && plan->precision == graph.precision) return *plan;
  // Frameworks refuse empty batches; the engine then has nothing to ask of them.
  const bool is_empty = !shapes.images.empty() && shapes.images.front().images == 0;
  if (const char* rules = device->backend().preflight_engine(); rules && !is_empty) graph.preflight(rules, shapes.images).raise_for_refused();
  const auto builder = lower(graph, shapes, needs_labels);
  std::vector<NNImageNode*> returned;
  for (std::size_t i = 0; i < result_images.size(); ++i)
    if (results_are_needed[i]) returned.push_back(result_images[i].get());
  returned.insert(returned.end(), exported_images.begin(), exported_images.end());
  auto cached = std::make_unique<CachedPlan>();
  cached->shapes = shapes;
  cached->format = graph.format;
  cached->precision = graph.precision;
  std::vector<Shape> trained_source_shapes = builder->trained_source_shapes();
  Plan plan = builder->finish(returned);
  cached->returned = builder->returned_values();
  cached->trained_source_shapes = std::move(trained_source_shapes);
  cached->executable = engine->make_executable(graph, std::move(plan), cached->returned);
  cached->pool.resize(cached->returned.size());
  if (exported_states.empty()) cached->updates = parameters->own_updates(cached->trained_source_shapes);
  plans.push_back(std::move(cached));
  return *plans.back();
}

std::unique_ptr<PlanBuilder> NNGraph::lowered(const std::vector<Shape>& source_shapes) const {
  return impl_->lower(*this, {source_shapes, {}}, false);
}

// --- running -----------------------------------------------------------------------------------------------------

ImagePtr NNGraph::Impl::take_image(CachedPlan& plan, std::size_t index) {
  for (const ImagePtr& image : plan.pool[index])
    if (image.use_count() == 1) return image;
  const Value& value = plan.executable->plan().values[plan.returned[index]];
  auto image = std::make_shared<Image>(value.shape, device->element_type());
  plan.pool[index].push_back(image);
  return image;
}

void NNGraph::Impl::take_images(CachedPlan& plan, std::vector<ImagePtr>& taken) {
  taken.clear();
  for (std::size_t i = 0; i < plan.returned.size(); ++i) {
    // An image that is both result and export has one place: that of its first mention.
    const std::size_t slot = plan.executable->plan().values[plan.returned[i]].slot;
    taken.push_back(slot < i ? taken[slot] : take_image(plan, i));
  }
}

void NNGraph::Impl::deliver(const std::vector<ImagePtr>& returned, EncodedResults& results) const {
  std::size_t next = 0;
  for (const bool is_needed : results_are_needed) results.result_images.push_back(is_needed ? returned[next++] : nullptr);
  results.intermediate_images.assign(returned.begin() + next, returned.end());
}

std::vector<StatePtr> NNGraph::Impl::record_state_exports(CommandBuffer& command_buffer, const CachedPlan& plan) {
  std::vector<StatePtr> exported;
  auto own_copy = [&](Buffer& buffer) {
    if (!buffer) return;
    const Buffer source = buffer, copy(buffer.count(), buffer.type());
    buffer = copy;
    command_buffer.record([source, copy] { copy.copy_from(source); });
  };
  for (const NNStateNode* node : exported_states) {
    const auto& all = parameters->trained();
    const auto trained = std::find_if(all.begin(), all.end(), [&](const TrainedParameters& t) { return t.forward == node->producer(); });
    if (trained == all.end()) {
      exported.push_back(std::make_shared<NNGradientState>());
      continue;
    }
    const Shape& source = plan.trained_source_shapes[trained - all.begin()];
    if (trained->convolution) {
      const auto state = parameters->gradient_state(*trained, source, parameters->gradients());
      own_copy(state->gradient_for_weights);
      own_copy(state->gradient_for_biases);
      exported.push_back(state);
    } else if (trained->affine) {
      const auto state = parameters->affine_state(*trained, parameters->gradients());
      for (Buffer* buffer : {&state->gamma, &state->beta, &state->gradient_for_gamma, &state->gradient_for_beta}) own_copy(*buffer);
      exported.push_back(state);
    } else {
      const auto state = parameters->normalization_state(*trained, source, parameters->gradients());
      for (Buffer* buffer : {&state->gamma, &state->beta, &state->mean, &state->variance, &state->gradient_for_gamma, &state->gradient_for_beta}) own_copy(*buffer);
      exported.push_back(state);
    }
  }
  return exported;
}

EncodedResults NNGraph::encode(CommandBuffer& command_buffer, const std::vector<ImagePtr>& source_images, const std::vector<StatePtr>& source_states) {
  return encode_step(command_buffer, source_images, source_states, false);
}

EncodedResults NNGraph::encode_step(CommandBuffer& command_buffer, const std::vector<ImagePtr>& source_images, const std::vector<StatePtr>& source_states,
                                    bool is_alone, std::shared_ptr<const Around> around) {
  CachedPlan* plan;
  EncodedResults results;
  std::vector<ImagePtr> returned;
  {
    std::lock_guard lock(impl_->planning);
    plan = &impl_->plan_for(*this, impl_->shapes_of(source_images, source_states), true);
    impl_->take_images(*plan, returned);
  }
  impl_->deliver(returned, results);

  const CommandBuffer::Mark mark = command_buffer.mark();
  try {
    command_buffer.record(std::make_shared<Impl::Step>(impl_, *plan, source_images, source_states, returned, trap_nonfinite, std::move(around)));
    results.destination_states = impl_->record_state_exports(command_buffer, *plan);
    const auto& store = impl_->parameters;
    const bool has_cpu_updates = store->has_updates(NNTrainingStyle::UpdateDeviceCPU);
    // GPU-style updates run before the completion phase, in which a CPU-style one may still fail.
    const auto undo = std::make_shared<std::function<void()>>();
    if (has_cpu_updates && store->has_updates(NNTrainingStyle::UpdateDeviceGPU)) command_buffer.record([store, undo] { *undo = store->remember(); });
    store->record_updates(command_buffer, store, plan->trained_source_shapes);
    if (has_cpu_updates) {
      // The completion phase comes after all steps of the buffer; where there are others, each keeps its own gradients until then.
      const Buffer& current = store->gradients();
      const Buffer gradients = is_alone ? current : Buffer(current.count(), current.type());
      if (!is_alone) command_buffer.record([current, gradients] { gradients.copy_from(current); });
      command_buffer.record_completion([store, plan, gradients, undo, impl = impl_] { store->run_updates(plan->trained_source_shapes, gradients, *undo); });
    }
    ++impl_->encode_count;
  } catch (...) {
    command_buffer.rewind(mark);
    throw;
  }
  return results;
}

EncodedResults NNGraph::run(const std::vector<ImagePtr>& source_images, const std::vector<StatePtr>& source_states) {
  EncodedResults results;
  run(source_images, source_states, results);
  return results;
}

void NNGraph::run(const std::vector<ImagePtr>& source_images, const std::vector<StatePtr>& source_states, EncodedResults& results) {
  // What the step before made may be what this one reads.
  if (&source_images == &results.result_images || &source_images == &results.intermediate_images || &source_states == &results.destination_states)
    return run(std::vector(source_images), std::vector(source_states), results);
  results.result_images.clear();  // its images are free again, for this step to write
  results.intermediate_images.clear();
  results.destination_states.clear();
  CachedPlan* plan;
  {
    std::lock_guard lock(impl_->planning);
    plan = &impl_->plan_for(*this, impl_->shapes_of(source_images, source_states), true);
    if (plan->updates) impl_->take_images(*plan, plan->taken);
  }
  if (!plan->updates) return run_on_command_buffer(source_images, source_states, results);
  // Whoever could fail in an update fails here, before anything has changed.
  impl_->parameters->prepare_own_sources({NNTrainingStyle::UpdateDeviceGPU, NNTrainingStyle::UpdateDeviceCPU});
  impl_->deliver(plan->taken, results);
  try {
    impl_->run_step(trap_nonfinite, *plan, source_images, source_states, plan->taken, impl_->encode_count);
  } catch (...) {
    plan->taken.clear();
    results = {};
    throw;
  }
  plan->taken.clear();
  impl_->parameters->run_own_updates(*plan->updates);
  ++impl_->encode_count;
}

/// For data sources of an application's own, which see the command buffer and may keep it.
void NNGraph::run_on_command_buffer(const std::vector<ImagePtr>& source_images, const std::vector<StatePtr>& source_states, EncodedResults& results) {
  const auto command_buffer = std::make_shared<CommandBuffer>();
  const std::uint64_t count = impl_->encode_count;
  try {
    results = encode_step(*command_buffer, source_images, source_states, true);
    command_buffer->commit();
    command_buffer->wait_until_completed();
  } catch (...) {
    impl_->encode_count = count;  // a step that failed never was: the next one draws its dropout masks
    results = {};
    throw;
  }
}

CommandBufferPtr NNGraph::execute_async(const std::vector<ImagePtr>& source_images, CompletionHandler handler) {
  if (!impl_->queue) impl_->queue = std::make_shared<CommandQueue>(impl_->device);
  CommandBufferPtr command_buffer = impl_->queue->command_buffer();
  const EncodedResults results = encode(*command_buffer, source_images);
  command_buffer->add_completed_handler([results, handler = std::move(handler)](CommandBuffer& buffer) { handler(results, buffer.error()); });
  command_buffer->commit();
  return command_buffer;
}

}  // namespace mpsnn
