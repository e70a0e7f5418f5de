// SPDX-License-Identifier: Apache-2.0
#include "core/plan.hpp"

#include <algorithm>

namespace mpsnn {
namespace {

void find_lifetimes(Plan& plan) {
  for (int i = 0; i < static_cast<int>(plan.steps.size()); ++i) {
    auto touch = [&](ValueId id) {
      if (id == kNoValue) return;
      Value& value = plan.values[id];
      if (value.first_step < 0) value.first_step = i;
      value.last_step = i;
    };
    const Step& step = plan.steps[i];
    std::for_each(step.inputs.begin(), step.inputs.end(), touch);
    std::for_each(step.outputs.begin(), step.outputs.end(), touch);
    touch(step.saved);
  }
}

}  // namespace

OperandShapes Plan::operand_shapes(const Step& step) const {
  auto shapes_of = [&](const std::vector<ValueId>& ids) {
    std::vector<Shape> shapes;
    for (ValueId id : ids) shapes.push_back(id == kNoValue ? Shape{0, 0, 0, 0} : values[id].shape);
    return shapes;
  };
  return {shapes_of(step.inputs), shapes_of(step.outputs)};
}

void prune(Plan& plan, const std::vector<ValueId>& needed) {
  std::vector<bool> is_needed(plan.values.size(), false);
  for (ValueId id : needed) is_needed[id] = true;
  std::vector<Step> kept;
  for (auto step = plan.steps.rbegin(); step != plan.steps.rend(); ++step) {
    // What a step saves comes with its results.
    const bool is_saved_read = step->saved != kNoValue && is_needed[step->saved];
    for (ValueId& output : step->outputs)
      if (output != kNoValue && !is_needed[output] && !is_saved_read) output = kNoValue;
    if (std::all_of(step->outputs.begin(), step->outputs.end(), [](ValueId id) { return id == kNoValue; })) continue;
    if (step->saved != kNoValue) is_needed[step->saved] = true;
    for (ValueId input : step->inputs)
      if (input != kNoValue) is_needed[input] = true;
    kept.push_back(std::move(*step));
  }
  std::reverse(kept.begin(), kept.end());
  plan.steps = std::move(kept);
}

namespace {

/// True for an operation whose first result may lie where its first operand does.
bool may_work_in_place(const Operation& operation) {
  if (const auto* op = std::get_if<ArithmeticOp>(&operation)) return op->primary == ArithmeticOp::Source{op->primary.scale} && op->secondary == ArithmeticOp::Source{op->secondary.scale};
  return std::holds_alternative<NeuronOp>(operation) || std::holds_alternative<NeuronGradientOp>(operation) || std::holds_alternative<ReshapeOp>(operation) ||
         std::holds_alternative<BatchNormalizationGradientOp>(operation);
}

/// Values that lie in one place: from the first step of the first to the last step of the last.
struct Place {
  std::vector<Value*> values;
  std::size_t bytes = 0;
  int first_step = -1, last_step = -1;
};

std::vector<Place> places_of(Plan& plan, bool in_place) {
  std::vector<Place> places(plan.values.size());
  std::vector<ValueId> place_of(plan.values.size());
  for (std::size_t id = 0; id < plan.values.size(); ++id) {
    Value& value = plan.values[id];
    place_of[id] = static_cast<ValueId>(id);
    if (value.storage == Storage::arena && value.first_step >= 0) places[id] = {{&value}, value.bytes, value.first_step, value.last_step};
  }
  for (int i = 0; in_place && i < static_cast<int>(plan.steps.size()); ++i) {
    const Step& step = plan.steps[i];
    if (!may_work_in_place(step.operation) || step.outputs.empty() || step.inputs.empty()) continue;
    const ValueId input = step.inputs[0], output = step.outputs[0];
    if (input == kNoValue || output == kNoValue || std::count(step.inputs.begin(), step.inputs.end(), input) != 1) continue;
    Place &from = places[place_of[input]], &to = places[output];
    const bool is_free = from.last_step == i && to.first_step == i && from.bytes == to.bytes && !from.values.empty() && !to.values.empty();
    if (!is_free) continue;
    from.values.push_back(to.values[0]);
    from.last_step = to.last_step;
    place_of[output] = place_of[input];
    to = {};
  }
  std::erase_if(places, [](const Place& place) { return place.values.empty(); });
  return places;
}

}  // namespace

std::size_t lay_out_arena(Plan& plan, std::size_t element_bytes, std::size_t scratch_bytes, bool in_place) {
  find_lifetimes(plan);
  for (Value& value : plan.values)
    if (value.storage == Storage::arena && value.first_step >= 0 && value.bytes == 0) value.bytes = value.shape.count() * element_bytes;
  std::vector<Place> places = places_of(plan, in_place);
  // Largest first, each at the lowest offset free during its life: within a few percent of the best for such chains.
  std::stable_sort(places.begin(), places.end(), [](const Place& a, const Place& b) { return a.bytes > b.bytes; });
  std::vector<std::pair<std::size_t, const Place*>> placed;  // by offset
  std::size_t end = 0;
  for (const Place& place : places) {
    std::size_t offset = 0;
    for (const auto& [other_offset, other] : placed) {
      const bool lives_together = place.first_step <= other->last_step && other->first_step <= place.last_step;
      if (!lives_together) continue;
      if (offset + place.bytes <= other_offset) break;
      offset = std::max(offset, aligned_in_arena(other_offset + other->bytes));
    }
    for (Value* value : place.values) value->offset = offset;
    placed.insert(std::upper_bound(placed.begin(), placed.end(), offset, [](std::size_t at, const auto& other) { return at < other.first; }), {offset, &place});
    end = std::max(end, aligned_in_arena(offset + place.bytes));
  }
  plan.arena_bytes = end + aligned_in_arena(scratch_bytes);
  return end;
}

double count_flops(const Step& step, const OperandShapes& shapes) {
  auto multiply_adds = [](const Shape& windows, const ConvolutionGeometry& geometry) {
    return 2.0 * windows.pixels() * geometry.window.y.kernel * geometry.window.x.kernel * geometry.output_channels *
           (geometry.input_channels / std::max(1, geometry.groups));
  };
  const Operation& operation = step.operation;
  if (auto* op = std::get_if<ConvolutionOp>(&operation)) {
    const Shape& result = shapes.outputs[0];
    const Shape windows{result.images, op->geometry.window.y.output, op->geometry.window.x.output, result.channels};
    return multiply_adds(windows, op->geometry);
  }
  if (auto* op = std::get_if<ConvolutionDataGradientOp>(&operation)) return multiply_adds(shapes.inputs[0], op->geometry);
  if (auto* op = std::get_if<ConvolutionWeightGradientOp>(&operation)) return multiply_adds(shapes.inputs[0], op->geometry);
  if (auto* op = std::get_if<ConvolutionTransposeOp>(&operation)) return multiply_adds(shapes.inputs[0], op->undone);
  if (auto* op = std::get_if<ConvolutionTransposeDataGradientOp>(&operation)) return multiply_adds(shapes.outputs[0], op->undone);
  if (auto* op = std::get_if<ConvolutionTransposeWeightGradientOp>(&operation)) return multiply_adds(shapes.inputs[1], op->undone);
  if (auto* op = std::get_if<PoolingOp>(&operation))
    return double(shapes.outputs[0].count()) * op->window.y.kernel * op->window.x.kernel;
  if (auto* op = std::get_if<PoolingGradientOp>(&operation))
    return double(shapes.inputs[0].count()) * op->forward.window.y.kernel * op->forward.window.x.kernel;
  if (auto* op = std::get_if<BinaryConvolutionOp>(&operation)) return multiply_adds(shapes.outputs[0], op->geometry);
  if (std::holds_alternative<GramMatrixOp>(operation)) return 2.0 * shapes.inputs[0].count() * shapes.inputs[0].channels;
  if (std::holds_alternative<GramMatrixGradientOp>(operation)) return 2.0 * shapes.outputs[0].count() * shapes.outputs[0].channels;
  double elements = 0;
  for (const Shape& shape : shapes.outputs) elements += shape.count();
  for (const Shape& shape : shapes.inputs) elements = std::max(elements, double(shape.count()));
  return elements;
}

}  // namespace mpsnn
