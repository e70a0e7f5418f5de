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

Owned<MPS::Vector> vector_over(MTL::Buffer* buffer, std::size_t count) {
  return own(MPS::Vector::alloc()->init(buffer, 0, MPS::VectorDescriptor::vectorDescriptor(count, MPS::DataTypeFloat32)));
}

/// One parameter in place, with its moments.
void encode_vector(MPS::NNOptimizer* optimizer, const NNOptimizer& ours, MTL::CommandBuffer* command_buffer, const MPS::Vector* gradient, const Buffer& values,
                   const Buffer* history) {
  const int moments = ours.history_count();
  const auto vector = make_vector(values);
  auto moment = [&](int index) { return index < moments ? make_vector(history[index]) : Owned<MPS::Vector>(); };
  const auto first = moment(0), second = moment(1), third = moment(2);
  const MPS::Vector* in_place = vector.get();
  if (dynamic_cast<const NNOptimizerStochasticGradientDescent*>(&ours)) {
    static_cast<MPS::NNOptimizerStochasticGradientDescent*>(optimizer)->encodeToCommandBuffer(command_buffer, gradient, in_place, first.get(), in_place);
  } else if (dynamic_cast<const NNOptimizerRMSProp*>(&ours)) {
    static_cast<MPS::NNOptimizerRMSProp*>(optimizer)->encodeToCommandBuffer(command_buffer, gradient, in_place, first.get(), in_place);
  } else {
    auto* adam = static_cast<MPS::NNOptimizerAdam*>(optimizer);
    // Each encode counts a step: gamma and beta are in the same one.
    adam->setTimeStep(dynamic_cast<const NNOptimizerAdam&>(ours).time_step());
    if (moments == 3) adam->encodeToCommandBuffer(command_buffer, gradient, in_place, first.get(), second.get(), third.get(), in_place);
    else adam->encodeToCommandBuffer(command_buffer, gradient, in_place, first.get(), second.get(), in_place);
  }
}

/// values = values - (rescale * gradient + decay * values): Apple's gradient descent with rate 1, used to add.
// MAC-UNVERIFIED: descent-as-sum: a negative rescale is taken as it is, and L2 regularization of scale 1 or less with it.
void encode_sum(MTL::Device* device, MTL::CommandBuffer* command_buffer, const Buffer& values, const MPS::Vector* gradient, double rescale, double decay) {
  auto* descriptor = MPS::NNOptimizerDescriptor::optimizerDescriptor(1, static_cast<float>(rescale), false, 0, 0,
                                                                     decay == 0 ? MPS::NNRegularizationTypeNone : MPS::NNRegularizationTypeL2, static_cast<float>(decay));
  const auto optimizer = own(MPS::NNOptimizerStochasticGradientDescent::alloc()->initWithDeviceMomentumScaleUseNesterovMomentumOptimizerDescriptor(device, 0, false, descriptor));
  const auto vector = make_vector(values);
  const MPS::Vector *in_place = vector.get(), *no_momentum = nullptr;
  optimizer->encodeToCommandBuffer(command_buffer, gradient, in_place, no_momentum, in_place);
}

/// Encodes a copy of all numbers of `source`.
// MAC-UNVERIFIED: encoder-in-update: an update callback may open an encoder of its own on the command buffer that it is given.
void encode_copy(MTL::CommandBuffer* command_buffer, DevicePart source, DevicePart target, std::size_t bytes) {
  auto* encoder = command_buffer->blitCommandEncoder();
  encoder->copyFromBuffer(source.buffer, source.offset, target.buffer, target.offset, bytes);
  encoder->endEncoding();
}

/// The history of a data source in shared memory, ready for an update.
std::vector<Buffer> shared_history(MTL::Device* device, TrainedBuffers& training, const Buffer& first, const Buffer& second, const std::string& label) {
  training.prepare(first, second, label);
  std::vector<Buffer> history;
  for (const Buffer& vector : training.history()) history.push_back(to_shared(device, vector));
  training.set_history(history);
  return history;
}

}  // namespace

MPS::NNOptimizer* AppleOptimizer::for_optimizer(MTL::Device* device, const std::shared_ptr<NNOptimizer>& ours) {
  if (ours != ours_) {
    theirs_ = make_theirs(device, *ours);
    ours_ = ours;
  }
  theirs_->setLearningRate(ours->learning_rate());
  theirs_->setApplyGradientClipping(ours->apply_gradient_clipping());
  return theirs_.get();
}

Owned<MPS::CNNConvolutionWeightsAndBiasesState> ConvolutionOptimizer::encode(MTL::Device* device, MTL::CommandBuffer* command_buffer, ConvolutionWeights& weights,
                                                                             const std::string& label, const Buffer& weight_values, const Buffer& bias_values,
                                                                             MPS::CNNConvolutionGradientState* gradient_state,
                                                                             MPS::CNNConvolutionDescriptor* descriptor) {
  TrainedBuffers& training = weights.training();
  const std::shared_ptr<NNOptimizer>& ours = training.optimizer();
  if (!ours) return {};
  MPS::NNOptimizer* theirs = apples_.for_optimizer(device, ours);
  const std::vector<Buffer> history = shared_history(device, training, weight_values, bias_values, label);

  // The source state that MPS offers may have been rounded to the kernel's precision: ours are the numbers themselves.
  // MAC-UNVERIFIED: optimizer-in-place: source and result of the optimizer may be the same state (MPS_SEMANTICS 19.1).
  const DevicePart values = device_part(weight_values), biases = bias_values ? device_part(bias_values) : DevicePart{};
  auto state = own(MPS::CNNConvolutionWeightsAndBiasesState::alloc()->init(values.buffer, values.offset, biases.buffer, biases.offset, descriptor));
  const int moments = ours->history_count();
  auto moment = [&](int index) { return vectors(history, moments, index); };
  if (dynamic_cast<NNOptimizerStochasticGradientDescent*>(ours.get())) {
    static_cast<MPS::NNOptimizerStochasticGradientDescent*>(theirs)->encodeToCommandBuffer(command_buffer, gradient_state, state.get(), moment(0), state.get());
  } else if (dynamic_cast<NNOptimizerRMSProp*>(ours.get())) {
    static_cast<MPS::NNOptimizerRMSProp*>(theirs)->encodeToCommandBuffer(command_buffer, gradient_state, state.get(), moment(0), state.get());
  } else {
    auto* adam = static_cast<MPS::NNOptimizerAdam*>(theirs);
    // MAC-UNVERIFIED: adam-time-step: an encode adds one before it uses the step (OQ-45); ours is the count of steps so far.
    adam->setTimeStep(dynamic_cast<NNOptimizerAdam&>(*ours).time_step());
    if (moments == 3) adam->encodeToCommandBuffer(command_buffer, gradient_state, state.get(), moment(0), moment(1), moment(2), state.get());
    else adam->encodeToCommandBuffer(command_buffer, gradient_state, state.get(), moment(0), moment(1), state.get());
  }
  ours->begin_step();
  return state;
}

Owned<MPS::CNNNormalizationGammaAndBetaState> NormalizationOptimizer::encode(MTL::Device* device, MTL::CommandBuffer* command_buffer, TrainedDataSource& source,
                                                                             const std::string& label, const Buffer& gamma, const Buffer& beta,
                                                                             const std::vector<MTL::Buffer*>& gamma_gradients,
                                                                             const std::vector<MTL::Buffer*>& beta_gradients) {
  TrainedBuffers& training = source.training();
  const std::shared_ptr<NNOptimizer>& ours = training.optimizer();
  if (!ours) return {};
  MPS::NNOptimizer* theirs = apples_.for_optimizer(device, ours);
  const std::vector<Buffer> history = shared_history(device, training, gamma, beta, label);
  if (!result_) {
    gamma_sum_ = allocate_shared(device, gamma.count());
    beta_sum_ = allocate_shared(device, beta.count());
    const auto make = [&](const Buffer& like) { return own(device->newBuffer(like.bytes(), MTL::ResourceStorageModeShared)); };
    result_ = own(MPS::CNNNormalizationGammaAndBetaState::alloc()->init(make(gamma).get(), make(beta).get()));
  }
  const std::size_t moments = ours->history_count();
  encode_vector(theirs, *ours, command_buffer, sum(device, command_buffer, gamma_gradients, gamma_sum_).get(), gamma, history.data());
  encode_vector(theirs, *ours, command_buffer, sum(device, command_buffer, beta_gradients, beta_sum_).get(), beta, history.data() + moments);
  ours->begin_step();
  encode_copy(command_buffer, device_part(gamma), {result_->gamma(), 0}, gamma.bytes());
  encode_copy(command_buffer, device_part(beta), {result_->beta(), 0}, beta.bytes());
  return result_;
}

Owned<MPS::Vector> NormalizationOptimizer::sum(MTL::Device* device, MTL::CommandBuffer* command_buffer, const std::vector<MTL::Buffer*>& parts, const Buffer& target) {
  if (parts.size() == 1) return vector_over(parts.front(), target.count());
  encode_copy(command_buffer, {parts.front(), 0}, device_part(target), target.bytes());
  for (std::size_t i = 1; i < parts.size(); ++i) encode_sum(device, command_buffer, target, vector_over(parts[i], target.count()).get(), -1, 0);
  return make_vector(target);
}

void NormalizationOptimizer::encode_average(MTL::Device* device, MTL::CommandBuffer* command_buffer, const Buffer& running, MTL::Buffer* batch, float momentum, double scale) {
  encode_sum(device, command_buffer, running, vector_over(batch, running.count()).get(), -momentum * scale, momentum);
}

}  // namespace mpsnn::metal
