// SPDX-License-Identifier: Apache-2.0
#include "core/plan.hpp"

#include <algorithm>

namespace mpsnn {
namespace {

constexpr std::size_t kArenaAlignment = 64;

std::size_t round_up(std::size_t bytes) { return (bytes + kArenaAlignment - 1) / kArenaAlignment * kArenaAlignment; }

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
    for (ValueId& output : step->outputs)
      if (output != kNoValue && !is_needed[output]) output = kNoValue;
    if (std::all_of(step->outputs.begin(), step->outputs.end(), [](ValueId id) { return id == kNoValue; })) continue;
    for (ValueId input : step->inputs)
      if (input != kNoValue) is_needed[input] = true;
    kept.push_back(std::move(*step));
  }
  std::reverse(kept.begin(), kept.end());
  plan.steps = std::move(kept);
}

std::size_t lay_out_arena(Plan& plan, std::size_t element_bytes, std::size_t scratch_bytes) {
  find_lifetimes(plan);
  std::vector<Value*> values;
  for (Value& value : plan.values) {
    if (value.storage != Storage::arena || value.first_step < 0) continue;
    if (value.bytes == 0) value.bytes = value.shape.count() * element_bytes;
    values.push_back(&value);
  }
  // Largest first, each at the lowest place free during its life: within a few percent of the best for such chains.
  std::stable_sort(values.begin(), values.end(), [](const Value* a, const Value* b) { return a->bytes > b->bytes; });
  std::vector<Value*> placed;
  std::size_t end = 0;
  for (Value* value : values) {
    std::size_t offset = 0;
    for (const Value* other : placed) {  // sorted by offset
      const bool lives_together = value->first_step <= other->last_step && other->first_step <= value->last_step;
      if (!lives_together) continue;
      if (offset + value->bytes <= other->offset) break;
      offset = std::max(offset, round_up(other->offset + other->bytes));
    }
    value->offset = offset;
    placed.insert(std::upper_bound(placed.begin(), placed.end(), value, [](const Value* a, const Value* b) { return a->offset < b->offset; }), value);
    end = std::max(end, round_up(offset + value->bytes));
  }
  plan.arena_bytes = end + round_up(scratch_bytes);
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
