// SPDX-License-Identifier: Apache-2.0
#include "backends/metal/optimizers.hpp"

namespace mpsnn::metal {
namespace {

Owned<MPS::NNOptimizer> make_theirs(MTL::Device* device, const NNOptimizer& ours) {
  const NNOptimizerDescriptor& d = ours.descriptor();
  auto* descriptor = MPS::NNOptimizerDescriptor::optimizerDescriptor(d.learning_rate, d.gradient_rescale, d.apply_gradient_clipping, d.gradient_clip_max,
                                                                     d.gradient_clip_min, apple<MPS::NNRegularizationType>(d.regularization_type),
                                                                     d.regularization_scale);
  if (const auto* sgd = dynamic_cast<const NNOptimizerStochasticGradientDescent*>(&ours))
    return own<MPS::NNOptimizer>(MPS::NNOptimizerStochasticGradientDescent::alloc()->initWithDeviceMomentumScaleUseNesterovMomentumOptimizerDescriptor(device, sgd->momentum_scale(), sgd->use_nesterov_momentum(), descriptor));
  if (const auto* rms = dynamic_cast<const NNOptimizerRMSProp*>(&ours))
    return own<MPS::NNOptimizer>(MPS::NNOptimizerRMSProp::alloc()->init(device, rms->decay(), rms->epsilon(), descriptor));
  const auto& adam = dynamic_cast<const NNOptimizerAdam&>(ours);
  return own<MPS::NNOptimizer>(MPS::NNOptimizerAdam::alloc()->init(device, adam.beta1(), adam.beta2(), adam.epsilon(), adam.time_step(), descriptor));
}

/// Moment `index` of each parameter, weights before biases.
NS::Array* vectors(const std::vector<Buffer>& history, int moments, int index) {
  if (index >= moments) return nullptr;
  std::vector<Owned<MPS::Vector>> list;
  for (std::size_t i = index; i < history.size(); i += moments) list.push_back(make_vector(history[i]));
  return array(list);
}

}  // namespace

Owned<MPS::CNNConvolutionWeightsAndBiasesState> ConvolutionOptimizer::encode(MTL::Device* device, MTL::CommandBuffer* command_buffer, ConvolutionWeights& weights,
                                                                             const std::string& label, const Buffer& weight_values, const Buffer& bias_values,
                                                                             MPS::CNNConvolutionGradientState* gradient_state,
                                                                             MPS::CNNConvolutionDescriptor* descriptor) {
  TrainedBuffers& training = weights.training();
  const std::shared_ptr<NNOptimizer>& ours = training.optimizer();
  if (!ours) return {};
  if (ours != ours_) {
    theirs_ = make_theirs(device, *ours);
    ours_ = ours;
  }
  training.prepare(weight_values, bias_values, label);
  std::vector<Buffer> history;
  for (const Buffer& vector : training.history()) history.push_back(to_shared(device, vector));
  training.set_history(history);

  // The source state that MPS offers may have been rounded to the kernel's precision: ours are the numbers themselves.
  // MAC-UNVERIFIED: optimizer-in-place: source and result of the optimizer may be the same state (MPS_SEMANTICS 19.1).
  const DevicePart values = device_part(weight_values), biases = bias_values ? device_part(bias_values) : DevicePart{};
  auto state = own(MPS::CNNConvolutionWeightsAndBiasesState::alloc()->init(values.buffer, values.offset, biases.buffer, biases.offset, descriptor));
  theirs_->setLearningRate(ours->learning_rate());
  theirs_->setApplyGradientClipping(ours->apply_gradient_clipping());
  const int moments = ours->history_count();
  auto moment = [&](int index) { return vectors(history, moments, index); };
  if (dynamic_cast<NNOptimizerStochasticGradientDescent*>(ours.get())) {
    static_cast<MPS::NNOptimizerStochasticGradientDescent*>(theirs_.get())->encodeToCommandBuffer(command_buffer, gradient_state, state.get(), moment(0), state.get());
  } else if (dynamic_cast<NNOptimizerRMSProp*>(ours.get())) {
    static_cast<MPS::NNOptimizerRMSProp*>(theirs_.get())->encodeToCommandBuffer(command_buffer, gradient_state, state.get(), moment(0), state.get());
  } else {
    auto* adam = static_cast<MPS::NNOptimizerAdam*>(theirs_.get());
    // MAC-UNVERIFIED: adam-time-step: an encode adds one before it uses the step (OQ-45); ours is the count of steps so far.
    adam->setTimeStep(dynamic_cast<NNOptimizerAdam&>(*ours).time_step());
    if (moments == 3) adam->encodeToCommandBuffer(command_buffer, gradient_state, state.get(), moment(0), moment(1), moment(2), state.get());
    else adam->encodeToCommandBuffer(command_buffer, gradient_state, state.get(), moment(0), moment(1), state.get());
  }
  ours->begin_step();
  return state;
}

}  // namespace mpsnn::metal
