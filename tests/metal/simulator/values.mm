// SPDX-License-Identifier: Apache-2.0
#include "sim.h"

/// Descriptors, padding policies and handles: how Apple's become ours and back.
using namespace sim;

// --- convolution -------------------------------------------------------------------------------------------------

/// Folded batch normalization, copied when it is set.
struct FoldedBody : Body {
  std::vector<float> mean, variance, gamma, beta;
  float epsilon = 0;
};

@implementation MPSCNNConvolutionDescriptor (Sim)
- (id)init {
  if (!(self = [super init])) return nil;
  _kernelWidth = _kernelHeight = 3;
  _inputFeatureChannels = _outputFeatureChannels = 1;
  _strideInPixelsX = _strideInPixelsY = _dilationRateX = _dilationRateY = _groups = 1;
  _fusedNeuronDescriptor = [[MPSNNNeuronDescriptor cnnNeuronDescriptorWithType:0] retain];
  return self;
}
+ (id)cnnConvolutionDescriptorWithKernelWidth:(NSUInteger)width
                                 kernelHeight:(NSUInteger)height
                         inputFeatureChannels:(NSUInteger)inputs
                        outputFeatureChannels:(NSUInteger)outputs {
  if (width == 0 || height == 0 || inputs == 0 || outputs == 0) raise("MPSCNNConvolutionDescriptor: no size may be 0");
  MPSCNNConvolutionDescriptor* d = [[[self alloc] init] autorelease];
  d->_kernelWidth = width;
  d->_kernelHeight = height;
  d->_inputFeatureChannels = inputs;
  d->_outputFeatureChannels = outputs;
  return d;
}
- (void)setBatchNormalizationParametersForInferenceWithMean:(const float*)mean
                                                   variance:(const float*)variance
                                                      gamma:(const float*)gamma
                                                       beta:(const float*)beta
                                                    epsilon:(float)epsilon {
  if (!mean || !variance) raise("setBatchNormalizationParametersForInference: mean and variance are needed");
  auto* folded = new FoldedBody;
  auto copy = [&](const float* numbers) { return numbers ? std::vector<float>(numbers, numbers + _outputFeatureChannels) : std::vector<float>(); };
  folded->mean = copy(mean);
  folded->variance = copy(variance);
  folded->gamma = copy(gamma);
  folded->beta = copy(beta);
  folded->epsilon = epsilon;
  delete _body;
  _body = folded;
}
- (void)sim_copyBodyTo:(MPSCNNConvolutionDescriptor*)copy {
  if (_body) copy->_body = new FoldedBody(body<FoldedBody>(self));
}
@end
@implementation MPSCNNDepthWiseConvolutionDescriptor (Sim)
- (NSUInteger)channelMultiplier { return _outputFeatureChannels / _inputFeatureChannels; }
@end
@implementation MPSCNNSubPixelConvolutionDescriptor (Sim)
- (id)init {
  if ((self = [super init])) _subPixelScaleFactor = 1;
  return self;
}
@end

@implementation MPSNNNeuronDescriptor (Sim)
+ (MPSNNNeuronDescriptor*)cnnNeuronDescriptorWithType:(MPSCNNNeuronType)type a:(float)a b:(float)b c:(float)c {
  MPSNNNeuronDescriptor* d = [[[self alloc] init] autorelease];
  d->_neuronType = type;
  d->_a = a;
  d->_b = b;
  d->_c = c;
  return d;
}
+ (MPSNNNeuronDescriptor*)cnnNeuronDescriptorWithType:(MPSCNNNeuronType)type { return [self cnnNeuronDescriptorWithType:type a:0 b:0 c:0]; }
+ (MPSNNNeuronDescriptor*)cnnNeuronDescriptorWithType:(MPSCNNNeuronType)type a:(float)a { return [self cnnNeuronDescriptorWithType:type a:a b:0 c:0]; }
+ (MPSNNNeuronDescriptor*)cnnNeuronDescriptorWithType:(MPSCNNNeuronType)type a:(float)a b:(float)b {
  return [self cnnNeuronDescriptorWithType:type a:a b:b c:0];
}
+ (MPSNNNeuronDescriptor*)cnnNeuronPReLUDescriptorWithData:(NSData*)data noCopy:(BOOL)no_copy {
  MPSNNNeuronDescriptor* d = [self cnnNeuronDescriptorWithType:static_cast<MPSCNNNeuronType>(mpsnn::CNNNeuronType::PReLU)];
  d->_data = no_copy ? [data retain] : [[NSData alloc] initWithBytes:[data bytes] length:[data length]];
  return d;
}
@end

// --- losses ------------------------------------------------------------------------------------------------------

@implementation MPSCNNLossDescriptor (Sim)
+ (MPSCNNLossDescriptor*)cnnLossDescriptorWithType:(MPSCNNLossType)type reductionType:(MPSCNNReductionType)reduction {
  MPSCNNLossDescriptor* d = [[[self alloc] init] autorelease];
  const mpsnn::CNNLossDescriptor defaults;
  d->_lossType = type;
  d->_reductionType = reduction;
  d->_weight = defaults.weight;
  d->_labelSmoothing = defaults.label_smoothing;
  d->_numberOfClasses = defaults.number_of_classes;
  d->_epsilon = defaults.epsilon;
  d->_delta = defaults.delta;
  d->_reduceAcrossBatch = defaults.reduce_across_batch;
  return d;
}
@end

@implementation MPSCNNYOLOLossDescriptor (Sim)
+ (MPSCNNYOLOLossDescriptor*)cnnLossDescriptorWithXYLossType:(MPSCNNLossType)xy
                                                  WHLossType:(MPSCNNLossType)wh
                                          confidenceLossType:(MPSCNNLossType)confidence
                                             classesLossType:(MPSCNNLossType)classes
                                               reductionType:(MPSCNNReductionType)reduction
                                                 anchorBoxes:(NSData*)boxes
                                         numberOfAnchorBoxes:(NSUInteger)count {
  if ([boxes length] < count * 2 * sizeof(float)) raise("MPSCNNYOLOLossDescriptor: two floats for each anchor box");
  MPSCNNYOLOLossDescriptor* d = [[[self alloc] init] autorelease];
  const mpsnn::CNNYOLOLossDescriptor defaults;
  auto loss = [&](MPSCNNLossType type) { return [[MPSCNNLossDescriptor cnnLossDescriptorWithType:type reductionType:reduction] retain]; };
  d->_XYLossDescriptor = loss(xy);
  d->_WHLossDescriptor = loss(wh);
  d->_confidenceLossDescriptor = loss(confidence);
  d->_classesLossDescriptor = loss(classes);
  d->_reductionType = reduction;
  d->_anchorBoxes = [boxes copy];
  d->_numberOfAnchorBoxes = count;
  d->_rescore = defaults.rescore;
  d->_scaleXY = defaults.scale_xy;
  d->_scaleWH = defaults.scale_wh;
  d->_scaleNoObject = defaults.scale_no_object;
  d->_scaleObject = defaults.scale_object;
  d->_scaleClass = defaults.scale_class;
  d->_minIOUForObjectPresence = defaults.min_iou_for_object_presence;
  d->_maxIOUForObjectAbsence = defaults.max_iou_for_object_absence;
  return d;
}
@end

// --- padding -----------------------------------------------------------------------------------------------------

struct PaddingBody : Body {
  mpsnn::PaddingPtr policy;
};

@implementation MPSNNDefaultPadding
+ (id)sim_withPolicy:(mpsnn::PaddingPtr)policy {
  MPSNNDefaultPadding* object = [[[self alloc] init] autorelease];
  auto* mine = new PaddingBody;
  mine->policy = std::move(policy);
  object->_body = mine;
  return object;
}
+ (id)paddingWithMethod:(MPSNNPaddingMethod)method {
  return [self sim_withPolicy:guarded([&] { return std::make_shared<mpsnn::NNDefaultPadding>(static_cast<mpsnn::NNPaddingMethod>(method)); })];
}
+ (id)paddingForTensorflowAveragePooling { return [self sim_withPolicy:mpsnn::NNDefaultPadding::padding_for_tensorflow_average_pooling()]; }
+ (id)paddingForTensorflowAveragePoolingValidOnly { return [self sim_withPolicy:mpsnn::NNDefaultPadding::padding_for_tensorflow_average_pooling_valid_only()]; }
- (MPSNNPaddingMethod)paddingMethod { return static_cast<MPSNNPaddingMethod>(body<PaddingBody>(self).policy->padding_method()); }
- (NSString*)label { return text(body<PaddingBody>(self).policy->label()); }
- (id)inverse { return [MPSNNDefaultPadding sim_withPolicy:body<PaddingBody>(self).policy->inverse()]; }
@end

namespace sim {
namespace {

MPSImageDescriptor* described(const mpsnn::ImageDescriptor& d) {
  return [MPSImageDescriptor imageDescriptorWithChannelFormat:static_cast<MPSImageFeatureChannelFormat>(d.channel_format) width:d.width height:d.height
                                              featureChannels:d.feature_channels numberOfImages:d.number_of_images usage:3];
}

/// A policy that the application wrote.
class CustomPadding final : public mpsnn::NNPadding {
 public:
  explicit CustomPadding(id policy) : policy_(hold(policy)) {}
  id object() const { return object_of(policy_); }
  mpsnn::NNPaddingMethod padding_method() const override {
    const Pool pool;
    return static_cast<mpsnn::NNPaddingMethod>([object() paddingMethod]);
  }
  std::string label() const override {
    const Pool pool;
    return [object() respondsToSelector:@selector(label)] ? text((NSString*)[object() label]) : "custom padding";
  }
  std::shared_ptr<mpsnn::NNPadding> inverse() const override {
    const Pool pool;
    return [object() respondsToSelector:@selector(inverse)] ? padding([(id<MPSNNPadding>)object() inverse]) : mpsnn::NNPadding::inverse();
  }
  mpsnn::ImageDescriptor destination_image_descriptor(const std::vector<mpsnn::ImageDescriptor>& sources, mpsnn::KernelProperties& kernel,
                                                      const mpsnn::ImageDescriptor& suggested) override {
    const Pool pool;
    NSMutableArray* images = [NSMutableArray array];
    for (const mpsnn::ImageDescriptor& source : sources)
      [images addObject:make_image(source.shape(), static_cast<MPSImageFeatureChannelFormat>(source.channel_format))];
    MPSCNNKernel* shown = [[[MPSCNNKernel alloc] init] autorelease];
    shown->_kernelWidth = kernel.window.kernel_width;
    shown->_kernelHeight = kernel.window.kernel_height;
    shown->_strideInPixelsX = kernel.window.stride_in_pixels_x;
    shown->_strideInPixelsY = kernel.window.stride_in_pixels_y;
    shown->_dilationRateX = kernel.window.dilation_rate_x;
    shown->_dilationRateY = kernel.window.dilation_rate_y;
    shown->_offset = {kernel.offset_x, kernel.offset_y, 0};
    shown->_edgeMode = static_cast<MPSImageEdgeMode>(kernel.edge_mode);
    [shown setLabel:text(kernel.label)];
    MPSImageDescriptor* answer = [(id<MPSNNPadding>)object() destinationImageDescriptorForSourceImages:images sourceStates:nil forKernel:shown
                                                                                     suggestedDescriptor:described(suggested)];
    if (!answer) throw mpsnn::OptionError("a padding policy returned no image descriptor.");
    kernel.offset_x = static_cast<int>(shown->_offset.x);
    kernel.offset_y = static_cast<int>(shown->_offset.y);
    kernel.edge_mode = static_cast<mpsnn::ImageEdgeMode>(shown->_edgeMode);
    mpsnn::ImageDescriptor result = suggested;
    result.width = static_cast<int>(answer->_width);
    result.height = static_cast<int>(answer->_height);
    result.feature_channels = static_cast<int>(answer->_featureChannels);
    return result;
  }

 private:
  Held policy_;
};

/// A handle that the application made.
class ObjectHandle final : public mpsnn::Handle {
 public:
  explicit ObjectHandle(id object) : object_(hold(object)) {}
  std::string label() const override {
    const Pool pool;  // errors are worded on the command buffer's own thread
    return text([(id<MPSHandle>)object_of(object_) label]);
  }
  id object() const { return object_of(object_); }

 private:
  Held object_;
};

}  // namespace
}  // namespace sim

/// What a graph hands out for images without a handle.
@interface SimHandle : SimObject <MPSHandle> {
 @public
  NSString* _label;
}
@end
@implementation SimHandle
- (void)dealloc {
  [_label release];
  [super dealloc];
}
- (NSString*)label { return _label; }
@end

namespace sim {

mpsnn::PaddingPtr padding(id policy) {
  if (!policy) return nullptr;
  if ([policy isKindOfClass:[MPSNNDefaultPadding class]]) return body<PaddingBody>(policy).policy;
  return std::make_shared<CustomPadding>(policy);
}

id padding_object(const mpsnn::PaddingPtr& policy) {
  if (!policy) return nil;
  if (auto* custom = dynamic_cast<CustomPadding*>(policy.get())) return custom->object();
  return [MPSNNDefaultPadding sim_withPolicy:policy];
}

mpsnn::HandlePtr handle(id object) { return object ? std::make_shared<ObjectHandle>(object) : nullptr; }

id handle_object(const mpsnn::HandlePtr& handle) {
  if (!handle) return nil;
  if (auto* given = dynamic_cast<ObjectHandle*>(handle.get())) return given->object();
  SimHandle* made = [[[SimHandle alloc] init] autorelease];
  made->_label = [text(handle->label()) retain];
  return made;
}

NSArray* handle_objects(const std::vector<mpsnn::HandlePtr>& handles) {
  NSMutableArray* objects = [NSMutableArray array];
  for (const mpsnn::HandlePtr& handle : handles) [objects addObject:handle_object(handle)];
  return objects;
}

std::vector<float> converted(NSData* data) {
  const float* numbers = static_cast<const float*>([data bytes]);
  return std::vector<float>(numbers, numbers + [data length] / sizeof(float));
}

mpsnn::NNNeuronDescriptor converted(MPSNNNeuronDescriptor* d) {
  if (!d) return {};
  return {static_cast<mpsnn::CNNNeuronType>(d->_neuronType), d->_a, d->_b, d->_c, converted(d->_data)};
}

MPSNNNeuronDescriptor* neuron_descriptor(const mpsnn::NNNeuronDescriptor& neuron) {
  MPSNNNeuronDescriptor* d = [MPSNNNeuronDescriptor cnnNeuronDescriptorWithType:static_cast<MPSCNNNeuronType>(neuron.neuron_type) a:neuron.a b:neuron.b c:neuron.c];
  if (!neuron.data.empty()) [d setData:[NSData dataWithBytes:neuron.data.data() length:neuron.data.size() * sizeof(float)]];
  return d;
}

mpsnn::CNNConvolutionDescriptor converted(MPSCNNConvolutionDescriptor* d) {
  if (!d) throw mpsnn::WeightError("a data source has no descriptor.");
  mpsnn::CNNConvolutionDescriptor result;
  result.kernel_width = static_cast<int>(d->_kernelWidth);
  result.kernel_height = static_cast<int>(d->_kernelHeight);
  result.input_feature_channels = static_cast<int>(d->_inputFeatureChannels);
  result.output_feature_channels = static_cast<int>(d->_outputFeatureChannels);
  result.stride_in_pixels_x = static_cast<int>(d->_strideInPixelsX);
  result.stride_in_pixels_y = static_cast<int>(d->_strideInPixelsY);
  result.dilation_rate_x = static_cast<int>(d->_dilationRateX);
  result.dilation_rate_y = static_cast<int>(d->_dilationRateY);
  result.groups = static_cast<int>(d->_groups);
  result.fused_neuron_descriptor = converted(d->_fusedNeuronDescriptor);
  if ([d isKindOfClass:[MPSCNNDepthWiseConvolutionDescriptor class]]) result.kind = mpsnn::ConvolutionKind::depthwise;
  if ([d isKindOfClass:[MPSCNNSubPixelConvolutionDescriptor class]]) {
    result.kind = mpsnn::ConvolutionKind::sub_pixel;
    result.sub_pixel_scale_factor = static_cast<int>(((MPSCNNSubPixelConvolutionDescriptor*)d)->_subPixelScaleFactor);
  }
  if (!d->_body) return result;
  const FoldedBody& folded = body<FoldedBody>(d);
  result.batch_mean = folded.mean;
  result.batch_variance = folded.variance;
  result.batch_gamma = folded.gamma;
  result.batch_beta = folded.beta;
  result.batch_epsilon = folded.epsilon;
  return result;
}

mpsnn::CNNLossDescriptor converted(MPSCNNLossDescriptor* d) {
  if (!d) raise("a loss descriptor is missing");
  mpsnn::CNNLossDescriptor result;
  result.loss_type = static_cast<mpsnn::CNNLossType>(d->_lossType);
  result.reduction_type = static_cast<mpsnn::CNNReductionType>(d->_reductionType);
  result.reduce_across_batch = d->_reduceAcrossBatch;
  result.weight = d->_weight;
  result.label_smoothing = d->_labelSmoothing;
  result.number_of_classes = static_cast<int>(d->_numberOfClasses);
  result.epsilon = d->_epsilon;
  result.delta = d->_delta;
  return result;
}

mpsnn::CNNYOLOLossDescriptor converted(MPSCNNYOLOLossDescriptor* d) {
  if (!d) raise("a loss descriptor is missing");
  mpsnn::CNNYOLOLossDescriptor result;
  result.xy_loss_descriptor = converted(d->_XYLossDescriptor);
  result.wh_loss_descriptor = converted(d->_WHLossDescriptor);
  result.confidence_loss_descriptor = converted(d->_confidenceLossDescriptor);
  result.classes_loss_descriptor = converted(d->_classesLossDescriptor);
  result.reduction_type = static_cast<mpsnn::CNNReductionType>(d->_reductionType);
  result.reduce_across_batch = d->_reduceAcrossBatch;
  result.rescore = d->_rescore;
  result.scale_xy = d->_scaleXY;
  result.scale_wh = d->_scaleWH;
  result.scale_no_object = d->_scaleNoObject;
  result.scale_object = d->_scaleObject;
  result.scale_class = d->_scaleClass;
  result.min_iou_for_object_presence = d->_minIOUForObjectPresence;
  result.max_iou_for_object_absence = d->_maxIOUForObjectAbsence;
  result.number_of_anchor_boxes = static_cast<int>(d->_numberOfAnchorBoxes);
  result.anchor_boxes = converted(d->_anchorBoxes);
  return result;
}

}  // namespace sim
