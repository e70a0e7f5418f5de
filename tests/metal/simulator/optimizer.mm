// SPDX-License-Identifier: Apache-2.0
#include "sim.h"

/// MPSVector and the optimizers: our rules in float32 on Metal buffers.
using namespace sim;

@implementation MPSVectorDescriptor (Sim)
+ (size_t)vectorBytesForLength:(NSUInteger)length dataType:(MPSDataType)type { return length * (type & 0xff) / 8; }
+ (id)vectorDescriptorWithLength:(NSUInteger)length dataType:(MPSDataType)type {
  return [self vectorDescriptorWithLength:length vectors:1 vectorBytes:[self vectorBytesForLength:length dataType:type] dataType:type];
}
+ (id)vectorDescriptorWithLength:(NSUInteger)length vectors:(NSUInteger)vectors vectorBytes:(NSUInteger)bytes dataType:(MPSDataType)type {
  if (length == 0) raise("MPSVectorDescriptor: a vector has at least one element");
  MPSVectorDescriptor* d = [[[self alloc] init] autorelease];
  d->_length = length;
  d->_vectors = vectors;
  d->_vectorBytes = bytes;
  d->_dataType = type;
  return d;
}
@end

@implementation MPSVector (Sim)
- (id)initWithBuffer:(id)buffer offset:(NSUInteger)offset descriptor:(MPSVectorDescriptor*)d {
  if (!buffer || !d) raise("MPSVector: buffer and descriptor are needed");
  if (d->_dataType != static_cast<MPSDataType>(mpsnn::DataType::Float32)) raise("MPSVector: optimizers compute in Float32");
  floats(buffer, offset, d->_length);
  if (!(self = [super init])) return nil;
  _data = [buffer retain];
  _device = [the_device() retain];
  _offset = offset;
  _length = d->_length;
  _vectors = d->_vectors;
  _vectorBytes = d->_vectorBytes;
  _dataType = d->_dataType;
  return self;
}
- (id)initWithBuffer:(id)buffer descriptor:(MPSVectorDescriptor*)d { return [self initWithBuffer:buffer offset:0 descriptor:d]; }
- (id)initWithDevice:(id)device descriptor:(MPSVectorDescriptor*)d {
  require_device(device, "MPSVector");
  return [self initWithBuffer:make_buffer(d->_length * d->_vectors) offset:0 descriptor:d];
}
- (void)synchronizeOnCommandBuffer:(id)command_buffer { recorder(command_buffer); }
@end

@implementation MPSNNOptimizerDescriptor (Sim)
- (id)init {
  if (!(self = [super init])) return nil;
  const mpsnn::NNOptimizerDescriptor defaults;
  _learningRate = defaults.learning_rate;
  _gradientRescale = defaults.gradient_rescale;
  return self;
}
- (id)initWithLearningRate:(float)rate
             gradientRescale:(float)rescale
       applyGradientClipping:(BOOL)clips
             gradientClipMax:(float)maximum
             gradientClipMin:(float)minimum
          regularizationType:(MPSNNRegularizationType)regularization
         regularizationScale:(float)scale {
  if (!(self = [super init])) return nil;
  _learningRate = rate;
  _gradientRescale = rescale;
  _applyGradientClipping = clips;
  _gradientClipMax = maximum;
  _gradientClipMin = minimum;
  _regularizationType = regularization;
  _regularizationScale = scale;
  return self;
}
- (id)initWithLearningRate:(float)rate gradientRescale:(float)rescale regularizationType:(MPSNNRegularizationType)regularization regularizationScale:(float)scale {
  return [self initWithLearningRate:rate gradientRescale:rescale applyGradientClipping:NO gradientClipMax:0 gradientClipMin:0 regularizationType:regularization
                 regularizationScale:scale];
}
+ (id)optimizerDescriptorWithLearningRate:(float)rate
                          gradientRescale:(float)rescale
                    applyGradientClipping:(BOOL)clips
                          gradientClipMax:(float)maximum
                          gradientClipMin:(float)minimum
                       regularizationType:(MPSNNRegularizationType)regularization
                      regularizationScale:(float)scale {
  return [[[self alloc] initWithLearningRate:rate gradientRescale:rescale applyGradientClipping:clips gradientClipMax:maximum gradientClipMin:minimum
                          regularizationType:regularization regularizationScale:scale] autorelease];
}
+ (id)optimizerDescriptorWithLearningRate:(float)rate
                          gradientRescale:(float)rescale
                       regularizationType:(MPSNNRegularizationType)regularization
                      regularizationScale:(float)scale {
  return [[[self alloc] initWithLearningRate:rate gradientRescale:rescale regularizationType:regularization regularizationScale:scale] autorelease];
}
@end

namespace {

struct OptimizerBody : Body {
  std::shared_ptr<mpsnn::NNOptimizer> rule;
  bool has_nesterov = false;
};

mpsnn::NNOptimizerDescriptor converted(MPSNNOptimizerDescriptor* d) {
  if (!d) raise("an optimizer descriptor is missing");
  return {d->_learningRate, d->_gradientRescale, bool(d->_applyGradientClipping), d->_gradientClipMax, d->_gradientClipMin,
          static_cast<mpsnn::NNRegularizationType>(d->_regularizationType), d->_regularizationScale};
}

template <class Rule = mpsnn::NNOptimizer>
Rule& rule_of(MPSNNOptimizer* optimizer) { return static_cast<Rule&>(*body<OptimizerBody>(optimizer).rule); }

template <class Make>
id with_rule(MPSNNOptimizer* optimizer, id device, Make&& make) {
  require_device(device, "MPSNNOptimizer");
  auto mine = std::make_unique<OptimizerBody>();
  mine->rule = guarded([&] { return std::shared_ptr<mpsnn::NNOptimizer>(make()); });
  optimizer->_device = [device retain];
  optimizer->_body = mine.release();
  return optimizer;
}

mpsnn::Buffer numbers(MPSVector* vector) { return vector ? floats(vector->_data, vector->_offset, vector->_length) : mpsnn::Buffer(); }

/// One parameter: its gradient, its values, where the new ones go, and its history vectors.
struct Parameter {
  mpsnn::Buffer gradient, values, result;
  std::vector<mpsnn::Buffer> history;
};

/// One encode of a rule over all parameters: one time step, whenever the command buffer runs.
void encode(MPSNNOptimizer* optimizer, id command_buffer, std::vector<Parameter> parameters, bool uses_amsgrad) {
  auto& rule = body<OptimizerBody>(optimizer).rule;
  rule->begin_step();
  std::shared_ptr<mpsnn::NNOptimizer> step = rule->clone();
  if (auto* adam = dynamic_cast<mpsnn::NNOptimizerAdam*>(step.get()); adam && uses_amsgrad)
    step = std::make_shared<mpsnn::NNOptimizerAdam>(adam->descriptor(), adam->beta1(), adam->beta2(), adam->epsilon(), adam->time_step(), true);
  for (Parameter& p : parameters) {
    if (p.gradient.count() != p.values.count() || p.result.count() != p.values.count()) raise("optimizer encode: gradient, values and result differ in length");
    if (int(p.history.size()) > step->history_count()) p.history.resize(step->history_count());  // no momentum: its vector is not touched
    if (int(p.history.size()) != step->history_count()) raise("optimizer encode: a history vector is missing");
    for (const mpsnn::Buffer& history : p.history)
      if (history.count() != p.values.count()) raise("optimizer encode: a history vector has the wrong length");
  }
  recorder(command_buffer).record([step, parameters = std::move(parameters)] {
    for (const Parameter& p : parameters) step->apply(p.gradient, p.values, p.history, p.result);
  });
}

std::vector<mpsnn::Buffer> history_of(std::initializer_list<MPSVector*> vectors) {
  std::vector<mpsnn::Buffer> history;
  for (MPSVector* vector : vectors)
    if (vector) history.push_back(numbers(vector));
  return history;
}

/// History vectors of parameter `index`; empty past the end of a list, which leaves that parameter alone.
std::vector<mpsnn::Buffer> history_at(const std::vector<NSArray*>& lists, NSUInteger index) {
  std::vector<mpsnn::Buffer> history;
  for (NSArray* list : lists)
    if (list && index < [list count]) history.push_back(numbers([list objectAtIndex:index]));
  return history;
}

/// Weights and biases, or gamma and beta. Lists of one leave the second alone.
void encode_pair(MPSNNOptimizer* optimizer, id command_buffer, Parameter first, Parameter second, const std::vector<NSArray*>& lists, bool uses_amsgrad) {
  std::vector<Parameter> parameters;
  first.history = history_at(lists, 0);
  parameters.push_back(std::move(first));
  const bool has_lists = !lists.empty() && lists.front();
  if (second.values && second.gradient && second.result && (!has_lists || [lists.front() count] > 1)) {
    second.history = history_at(lists, 1);
    parameters.push_back(std::move(second));
  }
  encode(optimizer, command_buffer, std::move(parameters), uses_amsgrad);
}

void encode_vector(MPSNNOptimizer* optimizer, id command_buffer, MPSVector* gradient, MPSVector* values, std::initializer_list<MPSVector*> history,
                   MPSVector* result, bool uses_amsgrad = false) {
  if (!gradient || !values || !result) raise("optimizer encode: a vector is missing");
  encode(optimizer, command_buffer, {{numbers(gradient), numbers(values), numbers(result), history_of(history)}}, uses_amsgrad);
}

void encode_convolution(MPSNNOptimizer* optimizer, id command_buffer, MPSCNNConvolutionGradientState* gradient, MPSCNNConvolutionWeightsAndBiasesState* source,
                        const std::vector<NSArray*>& lists, MPSCNNConvolutionWeightsAndBiasesState* result, bool uses_amsgrad = false) {
  if (!gradient || !source || !result) raise("optimizer encode: a state is missing");
  count_read(gradient);
  count_read(source);
  const mpsnn::Buffer weights = floats([gradient gradientForWeights]), biases = floats([gradient gradientForBiases]);
  auto values = [](MPSCNNConvolutionWeightsAndBiasesState* s, bool is_biases, const mpsnn::Buffer& like) {
    if (is_biases) return [s biases] && like ? floats([s biases], [s biasesOffset], like.count()) : mpsnn::Buffer();
    return floats([s weights], [s weightsOffset], like.count());
  };
  encode_pair(optimizer, command_buffer, {weights, values(source, false, weights), values(result, false, weights), {}},
              {biases, values(source, true, biases), values(result, true, biases), {}}, lists, uses_amsgrad);
}

void encode_normalization(MPSNNOptimizer* optimizer, id command_buffer, MPSCNNBatchNormalizationState* gradient, MPSCNNBatchNormalizationState* source,
                          const std::vector<NSArray*>& lists, MPSCNNNormalizationGammaAndBetaState* result, bool uses_amsgrad = false) {
  if (!gradient || !source || !result) raise("optimizer encode: a state is missing");
  count_read(gradient);
  if (source != gradient) count_read(source);
  encode_pair(optimizer, command_buffer, {floats([gradient gradientForGamma]), floats([source gamma]), floats([result gamma]), {}},
              {floats([gradient gradientForBeta]), floats([source beta]), floats([result beta]), {}}, lists, uses_amsgrad);
}

}  // namespace

@implementation MPSNNOptimizer
- (float)learningRate { return rule_of(self).learning_rate(); }
- (void)setLearningRate:(float)rate {
  guarded([&] { rule_of(self).set_learning_rate(rate); });
}
- (float)gradientRescale { return rule_of(self).gradient_rescale(); }
- (BOOL)applyGradientClipping { return rule_of(self).apply_gradient_clipping(); }
- (void)setApplyGradientClipping:(BOOL)clips { rule_of(self).set_apply_gradient_clipping(clips); }
- (float)gradientClipMax { return rule_of(self).gradient_clip_max(); }
- (float)gradientClipMin { return rule_of(self).gradient_clip_min(); }
- (float)regularizationScale { return rule_of(self).regularization_scale(); }
- (MPSNNRegularizationType)regularizationType { return static_cast<MPSNNRegularizationType>(rule_of(self).regularization_type()); }
@end

@implementation MPSNNOptimizerStochasticGradientDescent
- (id)initWithDevice:(id)device learningRate:(float)rate {
  return with_rule(self, device, [&] { return std::make_shared<mpsnn::NNOptimizerStochasticGradientDescent>(rate); });
}
- (id)initWithDevice:(id)device momentumScale:(float)scale useNesterovMomentum:(BOOL)nesterov optimizerDescriptor:(MPSNNOptimizerDescriptor*)d {
  return with_rule(self, device, [&] { return std::make_shared<mpsnn::NNOptimizerStochasticGradientDescent>(converted(d), scale, nesterov); });
}
- (id)initWithDevice:(id)device momentumScale:(float)scale useNestrovMomentum:(BOOL)nesterov optimizerDescriptor:(MPSNNOptimizerDescriptor*)d {
  return [self initWithDevice:device momentumScale:scale useNesterovMomentum:nesterov optimizerDescriptor:d];
}
- (float)momentumScale { return rule_of<mpsnn::NNOptimizerStochasticGradientDescent>(self).momentum_scale(); }
- (BOOL)useNesterovMomentum { return rule_of<mpsnn::NNOptimizerStochasticGradientDescent>(self).use_nesterov_momentum(); }
- (BOOL)useNestrovMomentum { return [self useNesterovMomentum]; }
- (void)encodeToCommandBuffer:(id)cb inputGradientVector:(MPSVector*)gradient inputValuesVector:(MPSVector*)values inputMomentumVector:(MPSVector*)momentum
           resultValuesVector:(MPSVector*)result {
  encode_vector(self, cb, gradient, values, {momentum}, result);
}
- (void)encodeToCommandBuffer:(id)cb convolutionGradientState:(MPSCNNConvolutionGradientState*)gradient
       convolutionSourceState:(MPSCNNConvolutionWeightsAndBiasesState*)source inputMomentumVectors:(NSArray*)momentum
                  resultState:(MPSCNNConvolutionWeightsAndBiasesState*)result {
  encode_convolution(self, cb, gradient, source, {momentum}, result);
}
- (void)encodeToCommandBuffer:(id)cb batchNormalizationState:(MPSCNNBatchNormalizationState*)state inputMomentumVectors:(NSArray*)momentum
                  resultState:(MPSCNNNormalizationGammaAndBetaState*)result {
  encode_normalization(self, cb, state, state, {momentum}, result);
}
- (void)encodeToCommandBuffer:(id)cb batchNormalizationGradientState:(MPSCNNBatchNormalizationState*)gradient
    batchNormalizationSourceState:(MPSCNNBatchNormalizationState*)source inputMomentumVectors:(NSArray*)momentum
                      resultState:(MPSCNNNormalizationGammaAndBetaState*)result {
  encode_normalization(self, cb, gradient, source, {momentum}, result);
}
@end

@implementation MPSNNOptimizerRMSProp
- (id)initWithDevice:(id)device learningRate:(float)rate {
  return with_rule(self, device, [&] { return std::make_shared<mpsnn::NNOptimizerRMSProp>(rate); });
}
- (id)initWithDevice:(id)device decay:(double)decay epsilon:(float)epsilon optimizerDescriptor:(MPSNNOptimizerDescriptor*)d {
  return with_rule(self, device, [&] { return std::make_shared<mpsnn::NNOptimizerRMSProp>(converted(d), decay, epsilon); });
}
- (double)decay { return rule_of<mpsnn::NNOptimizerRMSProp>(self).decay(); }
- (float)epsilon { return rule_of<mpsnn::NNOptimizerRMSProp>(self).epsilon(); }
- (void)encodeToCommandBuffer:(id)cb inputGradientVector:(MPSVector*)gradient inputValuesVector:(MPSVector*)values inputSumOfSquaresVector:(MPSVector*)sums
           resultValuesVector:(MPSVector*)result {
  encode_vector(self, cb, gradient, values, {sums}, result);
}
- (void)encodeToCommandBuffer:(id)cb convolutionGradientState:(MPSCNNConvolutionGradientState*)gradient
       convolutionSourceState:(MPSCNNConvolutionWeightsAndBiasesState*)source inputSumOfSquaresVectors:(NSArray*)sums
                  resultState:(MPSCNNConvolutionWeightsAndBiasesState*)result {
  encode_convolution(self, cb, gradient, source, {sums}, result);
}
- (void)encodeToCommandBuffer:(id)cb batchNormalizationState:(MPSCNNBatchNormalizationState*)state inputSumOfSquaresVectors:(NSArray*)sums
                  resultState:(MPSCNNNormalizationGammaAndBetaState*)result {
  encode_normalization(self, cb, state, state, {sums}, result);
}
- (void)encodeToCommandBuffer:(id)cb batchNormalizationGradientState:(MPSCNNBatchNormalizationState*)gradient
    batchNormalizationSourceState:(MPSCNNBatchNormalizationState*)source inputSumOfSquaresVectors:(NSArray*)sums
                      resultState:(MPSCNNNormalizationGammaAndBetaState*)result {
  encode_normalization(self, cb, gradient, source, {sums}, result);
}
@end

@implementation MPSNNOptimizerAdam
- (id)initWithDevice:(id)device learningRate:(float)rate {
  return with_rule(self, device, [&] { return std::make_shared<mpsnn::NNOptimizerAdam>(rate); });
}
- (id)initWithDevice:(id)device beta1:(double)beta1 beta2:(double)beta2 epsilon:(float)epsilon timeStep:(NSUInteger)step
    optimizerDescriptor:(MPSNNOptimizerDescriptor*)d {
  return with_rule(self, device, [&] { return std::make_shared<mpsnn::NNOptimizerAdam>(converted(d), beta1, beta2, epsilon, static_cast<unsigned>(step)); });
}
- (double)beta1 { return rule_of<mpsnn::NNOptimizerAdam>(self).beta1(); }
- (double)beta2 { return rule_of<mpsnn::NNOptimizerAdam>(self).beta2(); }
- (float)epsilon { return rule_of<mpsnn::NNOptimizerAdam>(self).epsilon(); }
- (NSUInteger)timeStep { return rule_of<mpsnn::NNOptimizerAdam>(self).time_step(); }
- (void)setTimeStep:(NSUInteger)step { rule_of<mpsnn::NNOptimizerAdam>(self).set_time_step(static_cast<unsigned>(step)); }

- (void)encodeToCommandBuffer:(id)cb inputGradientVector:(MPSVector*)gradient inputValuesVector:(MPSVector*)values inputMomentumVector:(MPSVector*)momentum
          inputVelocityVector:(MPSVector*)velocity maximumVelocityVector:(MPSVector*)maximum resultValuesVector:(MPSVector*)result {
  encode_vector(self, cb, gradient, values, {momentum, velocity, maximum}, result, maximum != nil);
}
- (void)encodeToCommandBuffer:(id)cb inputGradientVector:(MPSVector*)gradient inputValuesVector:(MPSVector*)values inputMomentumVector:(MPSVector*)momentum
          inputVelocityVector:(MPSVector*)velocity resultValuesVector:(MPSVector*)result {
  encode_vector(self, cb, gradient, values, {momentum, velocity}, result);
}
- (void)encodeToCommandBuffer:(id)cb convolutionGradientState:(MPSCNNConvolutionGradientState*)gradient
       convolutionSourceState:(MPSCNNConvolutionWeightsAndBiasesState*)source inputMomentumVectors:(NSArray*)momentum inputVelocityVectors:(NSArray*)velocity
       maximumVelocityVectors:(NSArray*)maximum resultState:(MPSCNNConvolutionWeightsAndBiasesState*)result {
  encode_convolution(self, cb, gradient, source, {momentum, velocity, maximum}, result, maximum != nil);
}
- (void)encodeToCommandBuffer:(id)cb convolutionGradientState:(MPSCNNConvolutionGradientState*)gradient
       convolutionSourceState:(MPSCNNConvolutionWeightsAndBiasesState*)source inputMomentumVectors:(NSArray*)momentum inputVelocityVectors:(NSArray*)velocity
                  resultState:(MPSCNNConvolutionWeightsAndBiasesState*)result {
  encode_convolution(self, cb, gradient, source, {momentum, velocity}, result);
}
- (void)encodeToCommandBuffer:(id)cb batchNormalizationState:(MPSCNNBatchNormalizationState*)state inputMomentumVectors:(NSArray*)momentum
         inputVelocityVectors:(NSArray*)velocity maximumVelocityVectors:(NSArray*)maximum resultState:(MPSCNNNormalizationGammaAndBetaState*)result {
  encode_normalization(self, cb, state, state, {momentum, velocity, maximum}, result, maximum != nil);
}
- (void)encodeToCommandBuffer:(id)cb batchNormalizationState:(MPSCNNBatchNormalizationState*)state inputMomentumVectors:(NSArray*)momentum
         inputVelocityVectors:(NSArray*)velocity resultState:(MPSCNNNormalizationGammaAndBetaState*)result {
  encode_normalization(self, cb, state, state, {momentum, velocity}, result);
}
- (void)encodeToCommandBuffer:(id)cb batchNormalizationGradientState:(MPSCNNBatchNormalizationState*)gradient
    batchNormalizationSourceState:(MPSCNNBatchNormalizationState*)source inputMomentumVectors:(NSArray*)momentum inputVelocityVectors:(NSArray*)velocity
           maximumVelocityVectors:(NSArray*)maximum resultState:(MPSCNNNormalizationGammaAndBetaState*)result {
  encode_normalization(self, cb, gradient, source, {momentum, velocity, maximum}, result, maximum != nil);
}
- (void)encodeToCommandBuffer:(id)cb batchNormalizationGradientState:(MPSCNNBatchNormalizationState*)gradient
    batchNormalizationSourceState:(MPSCNNBatchNormalizationState*)source inputMomentumVectors:(NSArray*)momentum inputVelocityVectors:(NSArray*)velocity
                      resultState:(MPSCNNNormalizationGammaAndBetaState*)result {
  encode_normalization(self, cb, gradient, source, {momentum, velocity}, result);
}
@end
