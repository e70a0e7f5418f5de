// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "core/plan.hpp"

/// Neighbours become one operation where nobody else reads the image between them: it is then never written.
namespace mpsnn {
namespace {

/// Who reads and makes each value.
struct Uses {
  std::vector<std::vector<std::size_t>> readers;  ///< steps, once per operand

  explicit Uses(const Plan& plan) : readers(plan.values.size()) {
    for (std::size_t i = 0; i < plan.steps.size(); ++i)
      for (const ValueId id : plan.steps[i].inputs)
        if (id != kNoValue) readers[id].push_back(i);
  }
};

bool lies_in_arena(const Plan& plan, ValueId id) { return id != kNoValue && plan.values[id].storage == Storage::arena; }

/// The steps that read an image where they are a ReLU and, perhaps, its gradient; without a ReLU when anybody else reads it.
struct ReLUSteps {
  Step *forward = nullptr, *gradient = nullptr;
  const NNNeuronDescriptor& neuron() const { return std::get<NeuronOp>(forward->operation).neuron; }
};

ReLUSteps relu_behind(Plan& plan, const Uses& uses, ValueId between) {
  ReLUSteps found;
  if (!lies_in_arena(plan, between)) return {};
  for (const std::size_t reader : uses.readers[between]) {
    Step& step = plan.steps[reader];
    const bool is_forward = std::holds_alternative<NeuronOp>(step.operation);
    const bool is_gradient = std::holds_alternative<NeuronGradientOp>(step.operation) && step.inputs[0] != between;
    Step*& place = is_forward ? found.forward : found.gradient;
    if (!(is_forward || is_gradient) || place) return {};
    place = &step;
  }
  if (!found.forward || found.neuron().neuron_type != CNNNeuronType::ReLU) return {};
  if (found.gradient && std::get<NeuronGradientOp>(found.gradient->operation).neuron != found.neuron()) return {};
  return found;
}

/// Batch normalization and the ReLU behind it, with their gradients. The gradient works the normalized value out again from x, which
/// it reads anyway. Returns the steps that are gone.
std::vector<const Step*> fuse_normalization(Plan& plan, const Uses& uses, Step& normalization) {
  const ReLUSteps relu = relu_behind(plan, uses, normalization.outputs[0]);
  if (!relu.forward) return {};
  std::vector<const Step*> gone{relu.forward};
  if (relu.gradient) {
    const ValueId between = relu.gradient->outputs[0];
    if (!lies_in_arena(plan, between) || uses.readers[between].size() != 1) return {};
    Step& step = plan.steps[uses.readers[between][0]];
    auto* gradient = std::get_if<BatchNormalizationGradientOp>(&step.operation);
    if (!gradient || step.inputs[0] != between || !std::equal(step.inputs.begin() + 1, step.inputs.begin() + 5, normalization.inputs.begin())) return {};
    gradient->neuron = relu.neuron();
    step.inputs[0] = relu.gradient->inputs[0];
    step.inputs.push_back(normalization.inputs[4]);
    gone.push_back(relu.gradient);
  }
  std::get<BatchNormalizationOp>(normalization.operation).neuron = relu.neuron();
  normalization.outputs[0] = relu.forward->outputs[0];
  return gone;
}

bool is_divided_by(const Plan& plan, const Uses& uses, ValueId id) {
  return std::any_of(uses.readers[id].begin(), uses.readers[id].end(), [&](std::size_t reader) {
    const auto* op = std::get_if<ArithmeticOp>(&plan.steps[reader].operation);
    return op && op->kind == ArithmeticKind::divide;
  });
}

/// A convolution or sum and the ReLU behind it, which becomes its neuron. The ReLU's gradient reads the ReLU's result where it read x: negative
/// slopes would hide the sign. Returns the steps that are gone.
std::vector<const Step*> fuse_neuron(Plan& plan, const Uses& uses, Step& step, NNNeuronDescriptor& neuron) {
  if (neuron.neuron_type != CNNNeuronType::None || step.saved != kNoValue) return {};
  const ReLUSteps relu = relu_behind(plan, uses, step.outputs[0]);
  if (!relu.forward || !(relu.neuron().a >= 0)) return {};
  const ValueId result = relu.forward->outputs[0];
  // Whoever sees the image or divides by it would see the signs of zeros.
  if (relu.gradient && (!lies_in_arena(plan, result) || is_divided_by(plan, uses, result))) return {};
  neuron = relu.neuron();
  if (relu.gradient) {
    neuron.neuron_type = std::get<NeuronGradientOp>(relu.gradient->operation).neuron.neuron_type = kSignedReLU;
    relu.gradient->inputs[1] = result;
  }
  step.outputs[0] = result;
  return {relu.forward};
}

/// The statistics that batch normalization needs of a convolution's result, which become the convolution's. Returns the steps that are gone.
std::vector<const Step*> fuse_statistics(Plan& plan, const Uses& uses, Step& convolution, int sub_pixel_scale) {
  if (sub_pixel_scale != 1 || convolution.outputs.size() != 1 || convolution.outputs[0] == kNoValue) return {};
  for (const std::size_t reader : uses.readers[convolution.outputs[0]]) {
    Step& step = plan.steps[reader];
    if (!std::holds_alternative<BatchNormalizationStatisticsOp>(step.operation)) continue;
    convolution.outputs.insert(convolution.outputs.end(), step.outputs.begin(), step.outputs.end());
    return {&step};
  }
  return {};
}

/// A gradient and that of the neuron in front, unless that has gone elsewhere. Returns the steps that are gone.
std::vector<const Step*> fuse_neuron_gradient(Plan& plan, const Uses& uses, const std::vector<bool>& is_gone, Step& gradient, NNNeuronDescriptor& neuron) {
  const ValueId between = gradient.outputs[0];
  if (neuron.neuron_type != CNNNeuronType::None || !lies_in_arena(plan, between) || uses.readers[between].size() != 1 || is_gone[uses.readers[between][0]]) return {};
  Step& behind = plan.steps[uses.readers[between][0]];
  const auto* op = std::get_if<NeuronGradientOp>(&behind.operation);
  if (!op || behind.inputs[0] != between) return {};
  neuron = op->neuron;
  gradient.inputs.resize(3, kNoValue);
  gradient.inputs.push_back(behind.inputs[1]);
  gradient.outputs[0] = behind.outputs[0];
  return {&behind};
}

/// True for the gradient of a plain sum: a copy of what comes in.
bool is_copy(const ArithmeticGradientOp& op, const OperandShapes& shapes) {
  const ArithmeticOp plain;
  const ArithmeticOp::Source& own = op.is_secondary_source_filter ? op.forward.secondary : op.forward.primary;
  return (op.forward.kind == ArithmeticKind::add || op.forward.kind == ArithmeticKind::subtract) && own == ArithmeticOp::Source{own.scale} && !op.forward.clamps() &&
         op.primary_scale == 1 && op.secondary_scale == 1 && op.bias == 0 && op.minimum_value == plain.minimum_value && op.maximum_value == plain.maximum_value &&
         shapes.inputs[0] == shapes.outputs[0];
}

/// Readers of copies read the original.
void drop_copies(Plan& plan, std::vector<bool>& is_gone) {
  std::vector<ValueId> original(plan.values.size());
  for (std::size_t id = 0; id < original.size(); ++id) original[id] = static_cast<ValueId>(id);
  for (std::size_t i = 0; i < plan.steps.size(); ++i) {
    Step& step = plan.steps[i];
    for (ValueId& input : step.inputs)
      if (input != kNoValue) input = original[input];
    const auto* op = std::get_if<ArithmeticGradientOp>(&step.operation);
    if (!op || plan.values[step.outputs[0]].storage != Storage::arena || !is_copy(*op, plan.operand_shapes(step))) continue;
    original[step.outputs[0]] = step.inputs[0];
    is_gone[i] = true;
  }
}

/// The gradient of max pooling and that of the ReLU in front of it change places: the pooled value has the winner's sign, and is a quarter of the
/// image or less. That image is then free behind the pooling, and the ReLU's gradient next to whatever made its gradient.
void move_slope_behind_maximum(Plan& plan, const Uses& uses, const Step& pooling) {
  const auto* forward = std::get_if<PoolingOp>(&pooling.operation);
  if (!forward || forward->kind != PoolingKind::max || pooling.saved == kNoValue || pooling.outputs[0] == kNoValue) return;
  for (Step& step : plan.steps) {
    if (!std::holds_alternative<PoolingGradientOp>(step.operation) || step.saved != pooling.saved) continue;
    const ValueId between = step.outputs[0];
    if (!lies_in_arena(plan, between) || uses.readers[between].size() != 1) return;
    Step& behind = plan.steps[uses.readers[between][0]];
    const auto* slope = std::get_if<NeuronGradientOp>(&behind.operation);
    if (!slope || slope->neuron.neuron_type != kSignedReLU || behind.inputs[0] != between || behind.inputs[1] != pooling.inputs[0]) return;
    plan.values[between].shape = plan.values[step.inputs[0]].shape;
    std::swap(step.operation, behind.operation);
    std::swap(step.node, behind.node);
    std::swap(step.saved, behind.saved);
    behind.inputs = {between, kNoValue, kNoValue};
    step.inputs = {step.inputs[0], pooling.outputs[0]};
    return;
  }
}

void move_slopes(Plan& plan) {
  const Uses uses(plan);
  for (const Step& step : plan.steps) move_slope_behind_maximum(plan, uses, step);
}

/// A plan's steps that have become part of others, and go at the end.
class Gone {
 public:
  explicit Gone(Plan& plan) : plan_(plan), is_gone_(plan.steps.size(), false) {}
  ~Gone() {
    std::vector<Step> kept;
    for (std::size_t i = 0; i < plan_.steps.size(); ++i)
      if (!is_gone_[i]) kept.push_back(std::move(plan_.steps[i]));
    plan_.steps = std::move(kept);
  }
  std::vector<bool>& flags() { return is_gone_; }
  void add(const std::vector<const Step*>& steps) {
    for (const Step* step : steps) is_gone_[static_cast<std::size_t>(step - plan_.steps.data())] = true;
  }

 private:
  Plan& plan_;
  std::vector<bool> is_gone_;
};

/// Max pooling becomes the convolution's, or the normalization's, where nobody else reads the image between them. Returns the steps that are gone.
template <class Op>
std::vector<const Step*> fuse_pooling(Plan& plan, const Uses& uses, const KernelBackend& backend, Precision precision, Step& step) {
  const ValueId between = step.outputs[0];
  if (step.outputs.size() != 1 || !lies_in_arena(plan, between) || uses.readers[between].size() != 1) return {};
  const Step& behind = plan.steps[uses.readers[between][0]];
  const auto* pooling = std::get_if<PoolingOp>(&behind.operation);
  if (!pooling || pooling->kind != PoolingKind::max || behind.outputs[0] == kNoValue) return {};
  Op pooled = std::get<Op>(step.operation);
  pooled.pooling = *pooling;
  if (!backend.pools(pooled, plan.operand_shapes(step), precision)) return {};
  step.operation = std::move(pooled);
  step.outputs[0] = behind.outputs[0];
  step.saved = behind.saved;
  return {&behind};
}

void fuse_forward(Plan& plan) {
  Gone gone(plan);
  const Uses uses(plan);
  for (Step& step : plan.steps) {
    if (std::holds_alternative<BatchNormalizationOp>(step.operation)) gone.add(fuse_normalization(plan, uses, step));
    if (auto* op = std::get_if<ConvolutionOp>(&step.operation)) {
      gone.add(fuse_neuron(plan, uses, step, op->neuron));
      gone.add(fuse_statistics(plan, uses, step, op->sub_pixel_scale));
    }
    if (auto* op = std::get_if<ConvolutionTransposeOp>(&step.operation)) {
      gone.add(fuse_neuron(plan, uses, step, op->neuron));
      gone.add(fuse_statistics(plan, uses, step, 1));
    }
    if (auto* op = std::get_if<ArithmeticOp>(&step.operation)) gone.add(fuse_neuron(plan, uses, step, op->neuron));
  }
}

void fuse_poolings(Plan& plan, const KernelBackend& backend, Precision precision) {
  Gone gone(plan);
  const Uses uses(plan);
  for (Step& step : plan.steps) {
    if (std::holds_alternative<ConvolutionOp>(step.operation)) gone.add(fuse_pooling<ConvolutionOp>(plan, uses, backend, precision, step));
    if (std::holds_alternative<BatchNormalizationOp>(step.operation)) gone.add(fuse_pooling<BatchNormalizationOp>(plan, uses, backend, precision, step));
  }
}

/// Which neurons are left, and what their gradients read, is known by now.
void fuse_gradients(Plan& plan) {
  Gone gone(plan);
  const Uses uses(plan);
  const auto fuse = [&](Step& step, NNNeuronDescriptor& neuron) {
    const std::vector<const Step*> gradient = fuse_neuron_gradient(plan, uses, gone.flags(), step, neuron);
    gone.add(gradient);
    return !gradient.empty();
  };
  for (Step& step : plan.steps) {
    if (auto* op = std::get_if<ConvolutionDataGradientOp>(&step.operation)) fuse(step, op->neuron);
    if (auto* op = std::get_if<ConvolutionTransposeDataGradientOp>(&step.operation)) fuse(step, op->neuron);
    if (auto* op = std::get_if<PoolingGradientOp>(&step.operation)) fuse(step, op->neuron);
    if (auto* op = std::get_if<ArithmeticOp>(&step.operation)) op->is_neuron_gradient = fuse(step, op->neuron);
  }
  drop_copies(plan, gone.flags());
}

}  // namespace

Plan fused(Plan plan, const KernelBackend& backend, Precision precision) {
  fuse_forward(plan);
  move_slopes(plan);
  fuse_poolings(plan, backend, precision);
  fuse_gradients(plan);
  return plan;
}

}  // namespace mpsnn
