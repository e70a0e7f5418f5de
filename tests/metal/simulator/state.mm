// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <cstring>

#include "sim.h"

/// States: numbers beside images, in Metal buffers of floats.
using namespace sim;

namespace {

struct GradientBody : StateBody {
  NSUInteger source_width = 0, source_height = 0;
};
struct WeightsBody : StateBody {
  NSUInteger weights_offset = 0, biases_offset = 0;
};
struct LabelsBody : StateBody {
  Held labels, weights, loss;
};

StateBody& state_body(MPSState* state) {
  if (![state isKindOfClass:[MPSState class]]) raise("this is no MPSState");
  return body<StateBody>(state);
}

id buffer_at(MPSState* state, std::size_t index) {
  const StateBody& mine = state_body(state);
  return index < mine.buffers.size() ? object_of(mine.buffers[index]) : nil;
}

template <class BodyType = StateBody>
BodyType* with_buffers(MPSState* state, std::initializer_list<id> buffers) {
  auto* mine = new BodyType;
  for (id buffer : buffers) mine->buffers.push_back(hold(buffer));
  state->_body = mine;
  return mine;
}

/// A state that a graph makes: temporary when a command buffer fills it.
template <class Class, class BodyType = StateBody>
Class* make_state(Class* state, bool is_temporary, std::initializer_list<id> buffers) {
  with_buffers<BodyType>(state, buffers)->is_temporary = is_temporary;
  return [state autorelease];
}

}  // namespace

@implementation MPSState
- (id)initWithDevice:(id)device bufferSize:(size_t)size {
  require_device(device, "MPSState");
  if ((self = [super init])) with_buffers(self, {make_buffer((size + 3) / 4)});
  return self;
}
- (id)initWithResource:(id)resource {
  if ((self = [super init])) with_buffers(self, {resource});
  return self;
}
- (id)initWithResources:(NSArray*)resources {
  if (!(self = [super init])) return nil;
  StateBody* mine = with_buffers(self, {});
  for (NSUInteger i = 0; i < [resources count]; ++i) mine->buffers.push_back(hold([resources objectAtIndex:i]));
  return self;
}
+ (id)temporaryStateWithCommandBuffer:(id)command_buffer bufferSize:(size_t)size {
  recorder(command_buffer);
  MPSState* state = [[[self alloc] initWithDevice:the_device() bufferSize:size] autorelease];
  state_body(state).is_temporary = true;
  return state;
}
- (BOOL)isTemporary { return state_body(self).is_temporary; }
- (NSUInteger)readCount { return state_body(self).read_count; }
- (void)setReadCount:(NSUInteger)count {
  if (state_body(self).is_temporary && state_body(self).read_count == 0 && count != 0) raise("setReadCount: the memory of this temporary state was given back");
  state_body(self).read_count = count;
}
- (NSString*)label { return object_of(state_body(self).label); }
- (void)setLabel:(NSString*)label { state_body(self).label = hold([[label copy] autorelease]); }
- (NSUInteger)resourceCount { return state_body(self).buffers.size(); }
- (id)resourceAtIndex:(NSUInteger)index allocateMemory:(BOOL)allocate { return buffer_at(self, index); }
- (NSUInteger)bufferSizeAtIndex:(NSUInteger)index { return floats(buffer_at(self, index)).bytes(); }
- (MPSStateResourceType)resourceTypeAtIndex:(NSUInteger)index { return buffer_at(self, index) ? 1 : 0; }
- (NSUInteger)resourceSize {
  NSUInteger sum = 0;
  for (const Held& buffer : state_body(self).buffers) sum += floats(object_of(buffer)).bytes();
  return sum;
}
- (void)synchronizeOnCommandBuffer:(id)command_buffer {
  recorder(command_buffer);
  if ([self isTemporary]) raise("synchronizeOnCommandBuffer: a temporary state has no memory that the CPU sees");
}
@end
@implementation MPSNNGradientState
@end

// --- convolution -------------------------------------------------------------------------------------------------

@implementation MPSCNNConvolutionGradientState
- (id)gradientForWeights { return buffer_at(self, 0); }
- (id)gradientForBiases { return buffer_at(self, 1); }
- (MPSCNNConvolutionWeightsLayout)gradientForWeightsLayout { return 0; }
- (NSUInteger)sourceWidth { return body<GradientBody>(self).source_width; }
- (NSUInteger)sourceHeight { return body<GradientBody>(self).source_height; }
- (MPSCNNConvolution*)convolution { return nil; }
@end
@implementation MPSCNNConvolutionTransposeGradientState
@end

@implementation MPSCNNConvolutionWeightsAndBiasesState
- (id)initWithWeights:(id)weights
        weightsOffset:(NSUInteger)weights_offset
               biases:(id)biases
         biasesOffset:(NSUInteger)biases_offset
cnnConvolutionDescriptor:(MPSCNNConvolutionDescriptor*)descriptor {
  if (!weights) raise("MPSCNNConvolutionWeightsAndBiasesState: the weights are missing");
  const mpsnn::CNNConvolutionDescriptor d = guarded([&] { return converted(descriptor); });
  floats(weights, weights_offset, d.weight_count());
  if (biases) floats(biases, biases_offset, d.output_feature_channels);
  if (!(self = [super init])) return nil;
  auto* mine = with_buffers<WeightsBody>(self, {weights, biases});
  mine->weights_offset = weights_offset;
  mine->biases_offset = biases_offset;
  return self;
}
- (id)initWithWeights:(id)weights biases:(id)biases {
  if (!weights) raise("MPSCNNConvolutionWeightsAndBiasesState: the weights are missing");
  if ((self = [super init])) with_buffers<WeightsBody>(self, {weights, biases});
  return self;
}
- (id)initWithDevice:(id)device cnnConvolutionDescriptor:(MPSCNNConvolutionDescriptor*)descriptor {
  require_device(device, "MPSCNNConvolutionWeightsAndBiasesState");
  const mpsnn::CNNConvolutionDescriptor d = guarded([&] { return converted(descriptor); });
  return [self initWithWeights:make_buffer(d.weight_count()) biases:make_buffer(d.output_feature_channels)];
}
+ (id)temporaryCNNConvolutionWeightsAndBiasesStateWithCommandBuffer:(id)command_buffer cnnConvolutionDescriptor:(MPSCNNConvolutionDescriptor*)descriptor {
  recorder(command_buffer);
  id state = [[[self alloc] initWithDevice:the_device() cnnConvolutionDescriptor:descriptor] autorelease];
  state_body(state).is_temporary = true;
  return state;
}
- (id)weights { return buffer_at(self, 0); }
- (id)biases { return buffer_at(self, 1); }
- (NSUInteger)weightsOffset { return body<WeightsBody>(self).weights_offset; }
- (NSUInteger)biasesOffset { return body<WeightsBody>(self).biases_offset; }
@end

// --- normalization -----------------------------------------------------------------------------------------------

@implementation MPSCNNBatchNormalizationState
- (id)gamma { return buffer_at(self, 0); }
- (id)beta { return buffer_at(self, 1); }
- (id)mean { return buffer_at(self, 2); }
- (id)variance { return buffer_at(self, 3); }
- (id)gradientForGamma { return buffer_at(self, 4); }
- (id)gradientForBeta { return buffer_at(self, 5); }
- (void)reset {
  for (std::size_t i = 2; i < 6; ++i)
    if (id buffer = buffer_at(self, i)) floats(buffer).fill(0);
}
@end
#define SIM_AFFINE_STATE(Name)                                  \
  @implementation Name                                          \
  -(id)gamma { return buffer_at(self, 0); }                     \
  -(id)beta { return buffer_at(self, 1); }                      \
  -(id)gradientForGamma { return buffer_at(self, 2); }          \
  -(id)gradientForBeta { return buffer_at(self, 3); }           \
  @end
SIM_AFFINE_STATE(MPSCNNInstanceNormalizationGradientState)
SIM_AFFINE_STATE(MPSCNNGroupNormalizationGradientState)

@implementation MPSCNNNormalizationGammaAndBetaState
- (id)initWithGamma:(id)gamma beta:(id)beta {
  if (!gamma || !beta) raise("MPSCNNNormalizationGammaAndBetaState: gamma and beta are needed");
  if ((self = [super init])) with_buffers(self, {gamma, beta});
  return self;
}
+ (id)temporaryStateWithCommandBuffer:(id)command_buffer numberOfFeatureChannels:(NSUInteger)channels {
  recorder(command_buffer);
  id state = [[[self alloc] initWithGamma:make_buffer(channels) beta:make_buffer(channels)] autorelease];
  state_body(state).is_temporary = true;
  return state;
}
- (id)gamma { return buffer_at(self, 0); }
- (id)beta { return buffer_at(self, 1); }
@end
@implementation MPSCNNNormalizationMeanAndVarianceState
- (id)initWithMean:(id)mean variance:(id)variance {
  if (!mean || !variance) raise("MPSCNNNormalizationMeanAndVarianceState: mean and variance are needed");
  if ((self = [super init])) with_buffers(self, {mean, variance});
  return self;
}
+ (id)temporaryStateWithCommandBuffer:(id)command_buffer numberOfFeatureChannels:(NSUInteger)channels {
  recorder(command_buffer);
  id state = [[[self alloc] initWithMean:make_buffer(channels) variance:make_buffer(channels)] autorelease];
  state_body(state).is_temporary = true;
  return state;
}
- (id)mean { return buffer_at(self, 0); }
- (id)variance { return buffer_at(self, 1); }
@end

// --- labels ------------------------------------------------------------------------------------------------------

@implementation MPSCNNLossDataDescriptor (Sim)
+ (MPSCNNLossDataDescriptor*)cnnLossDataDescriptorWithData:(NSData*)data layout:(MPSDataLayout)layout size:(MTLSize)size {
  if ([data length] < size.width * size.height * size.depth * sizeof(float)) raise("MPSCNNLossDataDescriptor: the data are too short");
  MPSCNNLossDataDescriptor* d = [[[self alloc] init] autorelease];
  auto* mine = new StateBody;
  mine->buffers.push_back(hold(data));
  d->_body = mine;
  d->_layout = layout;
  d->_size = size;
  d->_bytesPerRow = size.width * (layout == 0 ? size.depth : 1) * sizeof(float);
  d->_bytesPerImage = d->_bytesPerRow * size.height;
  return d;
}
@end

static MPSImage* described_image(MPSCNNLossDataDescriptor* d) {
  if (!d) return nil;
  const MTLSize size = d->_size;
  MPSImage* result = make_image({1, int(size.height), int(size.width), int(size.depth)}, 4);
  NSData* data = object_of(body<StateBody>(d).buffers.front());
  [result writeBytes:const_cast<void*>([data bytes]) dataLayout:d->_layout bytesPerRow:d->_bytesPerRow region:{{0, 0, 0}, {size.width, size.height, 1}}
      featureChannelInfo:{0, size.depth} imageIndex:0];
  return result;
}

@implementation MPSCNNLossLabels
- (id)initWithDevice:(id)device lossImageSize:(MTLSize)size labelsImage:(MPSImage*)labels weightsImage:(MPSImage*)weights {
  require_device(device, "MPSCNNLossLabels");
  if (!labels) raise("MPSCNNLossLabels: the labels are missing");
  if (weights && shape_of(weights) != shape_of(labels)) raise("MPSCNNLossLabels: labels and weights have different sizes");
  const mpsnn::Shape loss{shape_of(labels).images, int(size.height), int(size.width), int(size.depth)};
  if (!(loss.height == 1 && loss.width == 1 && loss.channels == 1) && loss != shape_of(labels)) raise("MPSCNNLossLabels: lossImageSize is {1, 1, 1} or the labels' size");
  if (!(self = [super init])) return nil;
  auto* mine = with_buffers<LabelsBody>(self, {});
  mine->labels = hold(labels);
  mine->weights = hold(weights);
  mine->loss = hold(make_image(loss, 4));
  return self;
}
- (id)initWithDevice:(id)device
           lossImageSize:(MTLSize)size
        labelsDescriptor:(MPSCNNLossDataDescriptor*)labels
       weightsDescriptor:(MPSCNNLossDataDescriptor*)weights {
  return [self initWithDevice:device lossImageSize:size labelsImage:described_image(labels) weightsImage:described_image(weights)];
}
- (id)initWithDevice:(id)device labelsDescriptor:(MPSCNNLossDataDescriptor*)labels {
  return [self initWithDevice:device lossImageSize:{1, 1, 1} labelsDescriptor:labels weightsDescriptor:nil];
}
- (MPSImage*)labelsImage { return object_of(body<LabelsBody>(self).labels); }
- (MPSImage*)weightsImage { return object_of(body<LabelsBody>(self).weights); }
- (MPSImage*)lossImage { return object_of(body<LabelsBody>(self).loss); }
- (void)synchronizeOnCommandBuffer:(id)command_buffer { [[self lossImage] synchronizeOnCommandBuffer:command_buffer]; }
@end

namespace sim {

void count_read(MPSState* state) {
  StateBody& mine = state_body(state);
  if (!mine.is_temporary) return;
  if (mine.read_count == 0) raise(std::string(class_getName([state class])) + ": a temporary state is read although its read count is 0");
  --mine.read_count;
}

void require_read(MPSState* state, const char* callback) {
  if (state_body(state).read_count != 0)
    raise(std::string(callback) + ": the data source must lower the read count of the " + class_getName([state class]) + " that it was given");
}

MPSCNNConvolutionGradientState* gradient_state(mpsnn::CommandBuffer* command_buffer, const mpsnn::CNNConvolutionGradientState& state) {
  auto* toy = make_state<MPSCNNConvolutionGradientState, GradientBody>([MPSCNNConvolutionGradientState alloc], command_buffer != nullptr,
                                                                       {mirror(command_buffer, state.gradient_for_weights), mirror(command_buffer, state.gradient_for_biases)});
  body<GradientBody>(toy).source_width = state.source_width;
  body<GradientBody>(toy).source_height = state.source_height;
  return toy;
}

MPSCNNConvolutionWeightsAndBiasesState* weights_state(mpsnn::CommandBuffer* command_buffer, const mpsnn::CNNConvolutionWeightsAndBiasesState& state) {
  return make_state<MPSCNNConvolutionWeightsAndBiasesState, WeightsBody>([MPSCNNConvolutionWeightsAndBiasesState alloc], command_buffer != nullptr,
                                                                         {mirror(command_buffer, state.weights), mirror(command_buffer, state.biases)});
}

MPSCNNBatchNormalizationState* normalization_state(mpsnn::CommandBuffer* command_buffer, const mpsnn::CNNBatchNormalizationState& s) {
  auto shown = [&](const mpsnn::Buffer& buffer) { return mirror(command_buffer, buffer); };
  return make_state([MPSCNNBatchNormalizationState alloc], command_buffer != nullptr,
                    {shown(s.gamma), shown(s.beta), shown(s.mean), shown(s.variance), shown(s.gradient_for_gamma), shown(s.gradient_for_beta)});
}

NSArray* affine_states(mpsnn::CommandBuffer* command_buffer, const mpsnn::CNNAffineGradientState& s, Class state_class, std::size_t images) {
  NSMutableArray* states = [NSMutableArray array];
  for (std::size_t i = 0; i < images; ++i) {
    // Ours are summed already: the first and the last image get half each, so that whoever forgets one is found out.
    const double share = images == 1 ? 1 : i == 0 || i + 1 == images ? 0.5 : 0;
    [states addObject:make_state((MPSState*)[state_class alloc], command_buffer != nullptr,
                                 {mirror(command_buffer, s.gamma), mirror(command_buffer, s.beta), mirror(command_buffer, s.gradient_for_gamma, share),
                                  mirror(command_buffer, s.gradient_for_beta, share)})];
  }
  return states;
}

NSArray* exported_states(mpsnn::CommandBuffer& command_buffer, const mpsnn::StatePtr& state, bool is_group, std::size_t images) {
  id toy = nil;
  if (auto* convolution = dynamic_cast<const mpsnn::CNNConvolutionGradientState*>(state.get())) toy = gradient_state(&command_buffer, *convolution);
  else if (auto* normalization = dynamic_cast<const mpsnn::CNNBatchNormalizationState*>(state.get())) toy = normalization_state(&command_buffer, *normalization);
  else if (auto* affine = dynamic_cast<const mpsnn::CNNAffineGradientState*>(state.get())) {
    const Class state_class = is_group ? [MPSCNNGroupNormalizationGradientState class] : [MPSCNNInstanceNormalizationGradientState class];
    NSArray* states = affine_states(&command_buffer, *affine, state_class, images);
    for (NSUInteger i = 0; i < images; ++i) state_body([states objectAtIndex:i]).is_temporary = false;
    return states;
  } else toy = make_state([MPSNNGradientState alloc], false, {});
  state_body(toy).is_temporary = false;
  NSMutableArray* batch = [NSMutableArray array];
  for (std::size_t i = 0; i < images; ++i) [batch addObject:toy];
  return batch;
}

std::shared_ptr<mpsnn::CNNLossLabels> labels_of(NSArray* batch, mpsnn::CommandBuffer& command_buffer) {
  NSMutableArray *labels = [NSMutableArray array], *weights = [NSMutableArray array];
  for (NSUInteger i = 0; i < [batch count]; ++i) {
    MPSCNNLossLabels* one = [batch objectAtIndex:i];
    if (![one isKindOfClass:[MPSCNNLossLabels class]]) raise("encode: source states are the labels of loss nodes");
    count_read(one);
    [labels addObject:[one labelsImage]];
    if ([one weightsImage]) [weights addObject:[one weightsImage]];
  }
  if ([weights count] != 0 && [weights count] != [labels count]) raise("encode: all labels of a batch have weights, or none");
  mpsnn::Shape loss = shape_of([(MPSCNNLossLabels*)[batch objectAtIndex:0] lossImage]);
  loss.images = static_cast<int>([batch count]);
  return std::make_shared<mpsnn::CNNLossLabels>(gather(labels, command_buffer), [weights count] ? gather(weights, command_buffer) : nullptr, loss);
}

void scatter_losses(NSArray* batch, const std::shared_ptr<mpsnn::CNNLossLabels>& labels, mpsnn::CommandBuffer& command_buffer) {
  NSMutableArray* losses = [NSMutableArray array];
  for (NSUInteger i = 0; i < [batch count]; ++i) [losses addObject:[(MPSCNNLossLabels*)[batch objectAtIndex:i] lossImage]];
  scatter(labels->loss_image(), losses, command_buffer);
}

}  // namespace sim
