// SPDX-License-Identifier: Apache-2.0
#include "core/plan_builder.hpp"

#include "core/size_limits.hpp"

namespace mpsnn {

PlanBuilder::PlanBuilder(const NNGraph& graph, const ParameterStore& parameters, const EngineGraph& engine, const SourceShapes& shapes,
                         const std::vector<NNImageNode*>& source_images, const std::vector<NNLabelsNode*>& source_states)
    : graph_(graph), parameters_(parameters), engine_(engine), given_labels_(shapes.states) {
  plan_.images = shapes.images.empty() ? 0 : shapes.images.front().images;
  for (std::size_t i = 0; i < source_images.size(); ++i)
    images_[source_images[i]] = add_value({.shape = shapes.images[i], .storage = Storage::source_image, .slot = int(i), .label = {}});
  for (std::size_t i = 0; i < source_states.size(); ++i) label_slots_[source_states[i]] = static_cast<int>(i);
  for (const FilterNodePtr& node : graph.nodes()) {
    for (const StateNodePtr& state : node->source_states()) consumed_.insert(state->producer());
    for (const StateNodePtr& state : node->result_states())
      if (state->export_from_graph) consumed_.insert(node.get());
  }
}

ValueId PlanBuilder::add_value(Value value) {
  // 2^40 numbers are 4 TB: more is a mistake, and from 2^63 on counts would wrap around.
  const Shape& shape = value.shape;
  if (double(shape.images) * shape.height * shape.width * shape.channels > 0x1p40)
    throw ShapeError("an image would have too many numbers.", {.expected = "at most 2^40", .actual = shape.text(), .hint = "check sizes and factors"});
  plan_.values.push_back(std::move(value));
  return static_cast<ValueId>(plan_.values.size()) - 1;
}

ValueId PlanBuilder::image(const NNFilterNode& node, std::size_t index) const { return images_.at(node.sources()[index].get()); }

ImageDescriptor PlanBuilder::image_descriptor(ValueId id) const {
  const Shape image = shape(id);
  return {image.width, image.height, image.channels, image.images};
}

const CNNConvolutionDescriptor& PlanBuilder::convolution_descriptor(const ConvolutionDataSourcePtr& source) const {
  return parameters_.convolution(source).descriptor;
}

const BatchNormalizationValues& PlanBuilder::batch_normalization(const BatchNormalizationDataSourcePtr& source) const {
  return parameters_.batch_normalization(source);
}

ValueId PlanBuilder::convolution_weights(const ConvolutionDataSourcePtr& source) { return parameter(parameters_.convolution(source).weights); }
ValueId PlanBuilder::convolution_biases(const ConvolutionDataSourcePtr& source) { return parameter(parameters_.convolution(source).biases); }

ValueId PlanBuilder::block_value(std::map<std::size_t, ValueId>& known, Storage storage, const ParameterRange& range) {
  if (!range) return kNoValue;
  const auto [found, is_new] = known.try_emplace(range.offset, kNoValue);
  if (is_new) found->second = add_value({.shape = range.shape, .storage = storage, .offset = range.offset, .label = range.label});
  return found->second;
}

ValueId PlanBuilder::parameter(const ParameterRange& range) { return block_value(parameter_values_, Storage::parameter, range); }
ValueId PlanBuilder::gradient(const ParameterRange& range) { return block_value(gradient_values_, Storage::gradient, range); }

const TrainedParameters* PlanBuilder::trained(const NNFilterNode& node) const { return parameters_.trained(node); }
const BatchStatistics& PlanBuilder::batch_statistics(const NNFilterNode& node) const { return *parameters_.batch_statistics(node); }

PlanBuilder::Labels PlanBuilder::labels(const NNLabelsNode& node, const Shape& source) {
  const int slot = label_slots_.at(&node);
  const SourceShapes::Labels given =
      given_labels_.empty() ? SourceShapes::Labels{source, {0, 0, 0, 0}, {source.images, 1, 1, 1}} : given_labels_[slot];
  auto value = [&](const Shape& shape, Storage storage) { return add_value({.shape = shape, .storage = storage, .slot = slot, .label = {}}); };
  return {value(given.labels, Storage::labels), given.weights == Shape{0, 0, 0, 0} ? kNoValue : value(given.weights, Storage::label_weights),
          value(given.loss, Storage::loss)};
}

namespace {

[[noreturn]] void nothing_left(const PlanBuilder& plan, const NNFilterNode& node, const Shape& image, const WindowSize& size) {
  throw ShapeError(plan.name(node) + ": the window is larger than the image, nothing is left of it.",
                   {node.class_name(), plan.name(node), "an image that a window of " + std::to_string(size.kernel_height) + " x " + std::to_string(size.kernel_width) +
                        " (dilation " + std::to_string(size.dilation_rate_y) + " x " + std::to_string(size.dilation_rate_x) + ") fits in",
                    "image " + image.text(), "padding policy \"same\", or a smaller window"});
}

}  // namespace

PlanBuilder::PlacedWindow PlanBuilder::place_window(const NNFilterNode& node, ValueId source, const WindowSize& size, ImageEdgeMode edge_mode) const {
  const Shape image = shape(source);
  NNPadding& policy = *node.padding_policy;
  const NNPaddingMethod method = policy.padding_method();
  Window window = resolve_window(method, image.height, image.width, size);
  if (has(method, NNPaddingMethod::Custom)) {
    KernelProperties kernel{name(node), size, window.x.offset(), window.y.offset(), edge_mode};
    ImageDescriptor suggested{window.x.output, window.y.output, image.channels, image.images};
    const ImageDescriptor chosen = policy.destination_image_descriptor({image_descriptor(source)}, kernel, suggested);
    edge_mode = kernel.edge_mode;
    if (edge_mode != ImageEdgeMode::Zero && edge_mode != ImageEdgeMode::Clamp)
      throw OptionError(name(node) + ": its padding policy chose an edge mode that windows do not have.",
                        {node.class_name(), name(node), "Zero or Clamp", std::to_string(static_cast<std::int64_t>(edge_mode)), "see policy \"" + policy.label() + "\""});
    window.x = axis_from_offset(image.width, chosen.width, size.kernel_width, size.stride_in_pixels_x, size.dilation_rate_x, kernel.offset_x);
    window.y = axis_from_offset(image.height, chosen.height, size.kernel_height, size.stride_in_pixels_y, size.dilation_rate_y, kernel.offset_y);
  }
  if (window.x.output < 1 || window.y.output < 1 || image.height < 1 || image.width < 1) nothing_left(*this, node, image, size);
  return {window, edge_mode};
}

Window PlanBuilder::place_reverse_window(const NNFilterNode& node, ValueId source, const WindowSize& size) const {
  const Shape image = shape(source);
  const Window window = resolve_reverse_window(node.padding_policy->padding_method(), image.height, image.width, size);
  if (has(node.padding_policy->padding_method(), NNPaddingMethod::Custom))
    throw OptionError(name(node) + ": a transposed convolution takes no custom padding policy.",
                      {node.class_name(), name(node), "a policy without the Custom bit", node.padding_policy->label(),
                       "MPSNNDefaultPadding, or the gradient state of the convolution to undo"});
  if (window.x.input < 1 || window.y.input < 1 || image.height < 1 || image.width < 1) nothing_left(*this, node, image, size);
  return window;
}

ValueId PlanBuilder::result(const NNFilterNode& node, const Shape& shape) {
  const NNImageNode* image = &node.result_image_node();
  const auto [found, is_new] = images_.try_emplace(image, kNoValue);
  if (is_new) found->second = add_value({.shape = shape, .label = name(node)});
  return found->second;
}

ValueId PlanBuilder::add_result(const NNFilterNode& node, Operation operation, std::vector<ValueId> inputs, const Shape& shape) {
  const ValueId value = result(node, shape);
  add(node, std::move(operation), std::move(inputs), {value});
  return value;
}

void PlanBuilder::add(const NNFilterNode& node, Operation operation, std::vector<ValueId> inputs, std::vector<ValueId> outputs) {
  const auto result = images_.find(&node.result_image_node());
  const bool makes_result = result != images_.end() && !outputs.empty() && outputs[0] == result->second;
  if (makes_result) result_steps_[&node] = plan_.steps.size();
  plan_.steps.push_back({std::move(operation), std::move(inputs), std::move(outputs), kNoValue, &node});
  if (makes_result) round_to_format(node);
}

void PlanBuilder::round_to_format(const NNFilterNode& node) {
  const NNImageNode* image = &node.result_image_node();
  const auto format = image->format == ImageFeatureChannelFormat::None ? graph_.format : image->format;
  if (format == ImageFeatureChannelFormat::None || format == ImageFeatureChannelFormat::Float32) return;
  if (format != ImageFeatureChannelFormat::Float16 && format != ImageFeatureChannelFormat::Unorm8 && format != ImageFeatureChannelFormat::Unorm16)
    throw OptionError(name(node) + ": its result image has an unknown format.",
                      {node.class_name(), name(node), "Unorm8, Unorm16, Float16 or Float32", std::to_string(static_cast<std::int64_t>(format)), "set a valid format"});
  const ValueId computed = images_.at(image);
  const ValueId stored = add_value({.shape = shape(computed), .label = name(node)});
  plan_.steps.push_back({RoundOp{format}, {computed}, {stored}, kNoValue, &node});
  images_[image] = stored;
  rounded_[computed] = stored;
}

Step PlanBuilder::forward_step(const NNFilterNode& forward) const {
  Step step = plan_.steps[result_steps_.at(&forward)];
  // Gradients read the result as it was stored.
  if (const auto stored = rounded_.find(step.outputs[0]); stored != rounded_.end()) step.outputs[0] = stored->second;
  return step;
}

void PlanBuilder::read_saved(const NNFilterNode& gradient, std::size_t operand, const NNFilterNode& forward) {
  Step& producer = plan_.steps[result_steps_.at(&forward)];
  if (producer.saved == kNoValue) {
    const std::size_t bytes = engine_.saved_bytes(producer.operation, plan_.operand_shapes(producer));
    if (bytes == 0) return;
    producer.saved = add_value({.shape = {0, 0, 0, 0}, .bytes = bytes, .label = name(forward) + " state"});
  }
  Step& reader = plan_.steps[result_steps_.at(&gradient)];
  reader.saved = producer.saved;
  reader.inputs[operand] = kNoValue;
}

void PlanBuilder::require_same_shape(const NNFilterNode& node, const char* what, ValueId actual, const Shape& expected) const {
  const Shape given = shape(actual);
  if (given == expected) return;
  throw ShapeError(name(node) + ": " + what + " has the wrong size.",
                   {node.class_name(), name(node), expected.text(), given.text(), std::string("check where ") + what + " comes from"});
}

void PlanBuilder::require_gradient_shape(const NNFilterNode& node, ValueId gradient, const Shape& forward_result) const {
  require_same_shape(node, "the source gradient", gradient, forward_result);
}

std::vector<Shape> PlanBuilder::trained_source_shapes() const {
  std::vector<Shape> shapes;
  for (const TrainedParameters& trained : parameters_.trained()) shapes.push_back(shape(image(*trained.forward, 0)));
  return shapes;
}

Plan PlanBuilder::finish(const std::vector<NNImageNode*>& returned_images) {
  for (std::size_t i = 0; i < returned_images.size(); ++i) {
    Value& value = plan_.values[images_.at(returned_images[i])];
    if (value.storage == Storage::arena) {
      value.storage = Storage::result;
      value.slot = static_cast<int>(i);
    }
    returned_.push_back(images_.at(returned_images[i]));
  }
  std::vector<ValueId> needed = returned_;
  for (std::size_t id = 0; id < plan_.values.size(); ++id)
    if (plan_.values[id].storage == Storage::loss || plan_.values[id].storage == Storage::gradient) needed.push_back(static_cast<ValueId>(id));
  prune(plan_, needed);
  return std::move(plan_);
}

}  // namespace mpsnn
