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

/// Batch normalization and the ReLU behind it, with their gradients. The gradient works the normalized value out again from x, which
/// it reads anyway.
class NormalizationAndReLU {
 public:
  NormalizationAndReLU(Plan& plan, std::vector<bool>& is_gone) : plan_(plan), uses_(plan), is_gone_(is_gone) {}

  void fuse(std::size_t normalization) {
    Step& first = plan_.steps[normalization];
    const ValueId between = first.outputs[0];
    if (!stays_inside(between) || !find_partners(between)) return;
    auto& operation = std::get<BatchNormalizationOp>(first.operation);
    const NNNeuronDescriptor neuron = std::get<NeuronOp>(plan_.steps[forward_].operation).neuron;
    if (has_gradient_ && !fuse_gradients(first, neuron)) return;
    operation.neuron = neuron;
    first.outputs[0] = plan_.steps[forward_].outputs[0];
    is_gone_[forward_] = true;
  }

 private:
  bool stays_inside(ValueId id) const { return id != kNoValue && plan_.values[id].storage == Storage::arena; }

  /// The ReLU that reads `between`, and its gradient, if there is one; false when anybody else reads it.
  bool find_partners(ValueId between) {
    has_gradient_ = false;
    bool has_forward = false;
    for (const std::size_t reader : uses_.readers[between]) {
      const Step& step = plan_.steps[reader];
      const auto* forward = std::get_if<NeuronOp>(&step.operation);
      const auto* gradient = std::get_if<NeuronGradientOp>(&step.operation);
      const bool is_relu = (forward && forward->neuron.neuron_type == CNNNeuronType::ReLU) ||
                           (gradient && gradient->neuron.neuron_type == CNNNeuronType::ReLU && step.inputs[0] != between);
      if (!is_relu || (forward ? has_forward : has_gradient_)) return false;
      (forward ? has_forward : has_gradient_) = true;
      (forward ? forward_ : gradient_) = reader;
    }
    return has_forward;
  }

  bool fuse_gradients(const Step& first, const NNNeuronDescriptor& neuron) {
    const Step& relu = plan_.steps[gradient_];
    const ValueId between = relu.outputs[0];
    if (!stays_inside(between) || uses_.readers[between].size() != 1) return false;
    Step& step = plan_.steps[uses_.readers[between][0]];
    auto* gradient = std::get_if<BatchNormalizationGradientOp>(&step.operation);
    const bool undoes_it = gradient && step.inputs[0] == between && std::equal(step.inputs.begin() + 1, step.inputs.begin() + 5, first.inputs.begin()) &&
                           neuron == std::get<NeuronGradientOp>(relu.operation).neuron;
    if (!undoes_it) return false;
    gradient->neuron = neuron;
    step.inputs[0] = relu.inputs[0];
    step.inputs.push_back(first.inputs[4]);
    is_gone_[gradient_] = true;
    return true;
  }

  Plan& plan_;
  Uses uses_;
  std::vector<bool>& is_gone_;
  std::size_t forward_ = 0, gradient_ = 0;
  bool has_gradient_ = false;
};

/// A convolution and the ReLU behind it, which becomes its neuron. The ReLU's gradient reads the ReLU's result where it read x: negative
/// slopes would hide the sign.
class ConvolutionAndReLU {
 public:
  ConvolutionAndReLU(Plan& plan, std::vector<bool>& is_gone) : plan_(plan), uses_(plan), is_gone_(is_gone) {}

  void fuse(std::size_t convolution, NNNeuronDescriptor& neuron) {
    Step& first = plan_.steps[convolution];
    const ValueId between = first.outputs[0];
    if (neuron.neuron_type != CNNNeuronType::None || between == kNoValue || plan_.values[between].storage != Storage::arena || first.saved != kNoValue) return;
    Step *relu = nullptr, *gradient = nullptr;
    for (const std::size_t reader : uses_.readers[between]) {
      Step& step = plan_.steps[reader];
      const auto* forward = std::get_if<NeuronOp>(&step.operation);
      const auto* backward = std::get_if<NeuronGradientOp>(&step.operation);
      const NNNeuronDescriptor* its = forward ? &forward->neuron : backward ? &backward->neuron : nullptr;
      const bool is_taken = forward ? relu != nullptr : gradient != nullptr;
      if (!its || is_taken || its->neuron_type != CNNNeuronType::ReLU || !(its->a >= 0) || (backward && step.inputs[0] == between)) return;
      (forward ? relu : gradient) = &step;
    }
    if (!relu) return;
    const ValueId result = relu->outputs[0];
    neuron = std::get<NeuronOp>(relu->operation).neuron;
    if (gradient) {
      auto& operation = std::get<NeuronGradientOp>(gradient->operation);
      // Whoever sees the image or divides by it would see the signs of zeros.
      if (operation.neuron != neuron || plan_.values[result].storage != Storage::arena || is_divided_by(result)) {
        neuron = {};
        return;
      }
      neuron.neuron_type = operation.neuron.neuron_type = kSignedReLU;
      gradient->inputs[1] = result;
    }
    first.outputs[0] = result;
    is_gone_[static_cast<std::size_t>(relu - plan_.steps.data())] = true;
  }

 private:
  bool is_divided_by(ValueId id) const {
    return std::any_of(uses_.readers[id].begin(), uses_.readers[id].end(), [&](std::size_t reader) {
      const auto* op = std::get_if<ArithmeticOp>(&plan_.steps[reader].operation);
      return op && op->kind == ArithmeticKind::divide;
    });
  }

  Plan& plan_;
  Uses uses_;
  std::vector<bool>& is_gone_;
};

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

}  // namespace

Plan fused(Plan plan) {
  std::vector<bool> is_gone(plan.steps.size(), false);
  NormalizationAndReLU normalization(plan, is_gone);
  ConvolutionAndReLU convolution(plan, is_gone);
  for (std::size_t i = 0; i < plan.steps.size(); ++i) {
    Operation& operation = plan.steps[i].operation;
    if (std::holds_alternative<BatchNormalizationOp>(operation)) normalization.fuse(i);
    if (auto* op = std::get_if<ConvolutionOp>(&operation)) convolution.fuse(i, op->neuron);
    if (auto* op = std::get_if<ConvolutionTransposeOp>(&operation)) convolution.fuse(i, op->neuron);
  }
  drop_copies(plan, is_gone);
  std::vector<Step> kept;
  for (std::size_t i = 0; i < plan.steps.size(); ++i)
    if (!is_gone[i]) kept.push_back(std::move(plan.steps[i]));
  plan.steps = std::move(kept);
  return plan;
}

}  // namespace mpsnn
