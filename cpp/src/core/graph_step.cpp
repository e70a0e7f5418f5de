// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstdint>

#include "core/graph_impl.hpp"

/// How a graph runs its steps, at once or on a command buffer.
namespace mpsnn {
namespace {

/// Data of an image in the engine's element type: the image's own, or a converted copy that `keep` holds.
void* in_type(const Image& image, ElementType type, std::vector<Buffer>& keep) {
  if (image.type() == type) return image.buffer().data();
  Buffer converted(image.buffer().count(), type);
  converted.copy_from(image.buffer());
  keep.push_back(converted);
  return converted.data();
}

}  // namespace

const Bindings& NNGraph::Impl::bind(BoundStep& bound, const std::vector<ImagePtr>& images, const std::vector<StatePtr>& states,
                                    const std::vector<ImagePtr>& returned, std::uint64_t count) const {
  const ElementType type = device->element_type();
  Bindings& bindings = bound.bindings;
  for (auto* list : {&bindings.source_images, &bindings.labels, &bindings.label_weights, &bindings.losses, &bindings.results}) list->clear();
  bound.converted.clear();
  for (const ImagePtr& image : images) bindings.source_images.push_back(in_type(*image, type, bound.converted));
  for (const StatePtr& state : states) {
    const auto& labels = static_cast<const CNNLossLabels&>(*state);
    bindings.labels.push_back(in_type(*labels.labels_image(), type, bound.converted));
    bindings.label_weights.push_back(labels.weights_image() ? in_type(*labels.weights_image(), type, bound.converted) : nullptr);
    bindings.losses.push_back(in_type(*labels.loss_image(), type, bound.converted));
  }
  for (const ImagePtr& image : returned) bindings.results.push_back(image->buffer().data());
  bindings.parameters = parameters->parameters().data();
  bindings.gradients = parameters->gradients().data();
  bindings.encode_count = count;
  bindings.parameters_version = parameters->version();
  return bindings;
}

void NNGraph::Impl::finish_step(bool traps_nonfinite, CachedPlan& plan, const Bindings& bindings, const std::vector<StatePtr>& states) {
  const ElementType type = device->element_type();
  for (std::size_t i = 0; i < states.size(); ++i) {
    const Image& loss = *static_cast<const CNNLossLabels&>(*states[i]).loss_image();
    if (loss.type() != type) loss.buffer().copy_from(Buffer(nullptr, bindings.losses[i], loss.buffer().count(), type));
  }
  // Weights are never updated with numbers that are not finite; results are watched where the application asks for it.
  const bool trains = !parameters->trained().empty();
  if ((trains || traps_nonfinite) && !plan.executable->is_finite(bindings, traps_nonfinite)) fail_nonfinite(plan, bindings);
}

void NNGraph::Impl::run_step(bool traps_nonfinite, CachedPlan& plan, const std::vector<ImagePtr>& images, const std::vector<StatePtr>& states,
                             const std::vector<ImagePtr>& returned, std::uint64_t count) {
  std::lock_guard lock(running);
  const Bindings& bindings = bind(plan.bound, images, states, returned, count);
  if (const auto on_device = plan.executable->begin(bindings, {})) on_device->finish(bindings);
  finish_step(traps_nonfinite, plan, bindings, states);
}

void NNGraph::Impl::fail_nonfinite(CachedPlan& plan, const Bindings& bindings) {
  NonfiniteValue found;
  plan.executable->find_nonfinite(bindings, found);
  const Value* value = found.value == kNoValue ? nullptr : &plan.executable->plan().values[found.value];
  std::string where = "a result";
  std::string element = value ? "element " + std::to_string(found.index) + " of " + value->shape.text() : "";
  std::string node = "MPSNNGraph", label;
  if (found.step) {
    node = found.step->node->class_name();
    label = names.at(found.step->node);
    where = label + " (" + operation_name(found.step->operation) + ")";
  } else if (value && value->storage == Storage::source_image) {
    label = handle_of(source_images[value->slot]->handle, source_images[value->slot])->label();
    where = "the source image \"" + label + "\"";
  } else if (value) {
    label = value->label;
    where = (value->storage == Storage::parameter ? "the parameters \"" : value->storage == Storage::gradient ? "the \"" : "the result of \"") + label + "\"";
    if (value->storage == Storage::labels || value->storage == Storage::label_weights || value->storage == Storage::loss) {
      label = handle_of(source_states[value->slot]->handle, source_states[value->slot])->label();
      where = (value->storage == Storage::labels ? "the labels \"" : value->storage == Storage::loss ? "the loss of \"" : "the label weights \"") + label + "\"";
    }
  }
  // An engine that updates weights itself has done so before anybody could look.
  const std::vector<TrainedParameters>& trained = parameters->trained();
  const bool has_changed = std::any_of(trained.begin(), trained.end(), [](const TrainedParameters& t) { return t.is_updated_by_engine; });
  throw DeviceError("a number that is not finite appeared first in " + where +
                        (has_changed ? ": weights that the device updates itself have changed." : ": the step was dropped, no weight has changed."),
                    {node, label, "finite numbers", "NaN or Inf at " + element, "check the input and the labels, or lower the learning rate"});
}

// --- steps on command buffers ------------------------------------------------------------------------------------

NNGraph::Impl::Step::Step(std::shared_ptr<Impl> graph, CachedPlan& cached, std::vector<ImagePtr> source_images, std::vector<StatePtr> source_states,
                          std::vector<ImagePtr> returned_images, bool traps, std::shared_ptr<const Around> around_it)
    : impl(std::move(graph)), plan(cached), images(std::move(source_images)), states(std::move(source_states)), returned(std::move(returned_images)),
      around(std::move(around_it)), count(impl->encode_count), traps_nonfinite(traps) {
  if (around) reads = around->reads, writes = around->writes;
  for (const ImagePtr& image : images) reads.push_back(image->buffer());
  for (const StatePtr& state : states) {
    const auto& labels = static_cast<const CNNLossLabels&>(*state);
    reads.push_back(labels.labels_image()->buffer());
    if (labels.weights_image()) reads.push_back(labels.weights_image()->buffer());
    writes.push_back(labels.loss_image()->buffer());
  }
  for (const ImagePtr& image : returned) writes.push_back(image->buffer());
}

bool NNGraph::Impl::Step::begin(const std::function<void()>& done) {
  std::unique_lock lock(impl->running);
  if (around)
    for (const auto& work : around->before) work();
  on_device = plan.executable->begin(impl->bind(bound, images, states, returned, count), done);
  // What only the device works on leaves the graph to others, who come behind it there too.
  if (!on_device || !plan.executable->runs_ahead()) held = std::move(lock);
  return on_device != nullptr;
}

void NNGraph::Impl::Step::finish() {
  const auto lock = held ? std::move(held) : std::unique_lock(impl->running);
  if (const auto running = std::move(on_device)) running->finish(bound.bindings);
  impl->finish_step(traps_nonfinite, plan, bound.bindings, states);
  if (around)
    for (const auto& work : around->after) work();
}

namespace {

bool share_memory(const Buffer& a, const Buffer& b) {
  const auto begin_a = reinterpret_cast<std::uintptr_t>(a.data()), begin_b = reinterpret_cast<std::uintptr_t>(b.data());
  return begin_a < begin_b + b.bytes() && begin_b < begin_a + a.bytes();
}

}  // namespace

bool NNGraph::Impl::Step::may_begin_behind(const CommandStep& before) const {
  const auto* other = dynamic_cast<const Step*>(&before);
  // Another graph may have the same data sources.
  if (!other || other->impl != impl || !plan.executable->runs_ahead() || !other->plan.executable->runs_ahead()) return false;
  return std::none_of(reads.begin(), reads.end(), [&](const Buffer& read) {
    return std::any_of(other->writes.begin(), other->writes.end(), [&](const Buffer& write) { return share_memory(read, write); });
  });
}

}  // namespace mpsnn
