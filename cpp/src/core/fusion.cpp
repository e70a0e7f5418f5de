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

}  // namespace

Plan fused(Plan plan) {
  std::vector<bool> is_gone(plan.steps.size(), false);
  NormalizationAndReLU pass(plan, is_gone);
  for (std::size_t i = 0; i < plan.steps.size(); ++i)
    if (std::holds_alternative<BatchNormalizationOp>(plan.steps[i].operation)) pass.fuse(i);
  std::vector<Step> kept;
  for (std::size_t i = 0; i < plan.steps.size(); ++i)
    if (!is_gone[i]) kept.push_back(std::move(plan.steps[i]));
  plan.steps = std::move(kept);
  return plan;
}

}  // namespace mpsnn
