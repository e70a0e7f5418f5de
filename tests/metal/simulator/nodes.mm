// SPDX-License-Identifier: Apache-2.0
#include <limits>
#include <map>

#include "sim_nodes.h"

/// Nodes: what the generator does not write. Each toy node wraps one of ours; both graphs have the same shape.
using namespace sim;

namespace {

/// Living toy objects by the node of ours that they wrap. Nodes are built and released on one thread at a time.
std::mutex known_mutex;
std::map<const void*, id> known;

void remember(const void* node, id object) {
  std::lock_guard lock(known_mutex);
  known[node] = object;
}
void forget(const void* node) {
  std::lock_guard lock(known_mutex);
  known.erase(node);
}
id known_object(const void* node) {
  std::lock_guard lock(known_mutex);
  const auto found = known.find(node);
  return found == known.end() ? nil : [[found->second retain] autorelease];
}

template <class Class, class BodyType, class Pointer>
Class* wrapped(const Pointer& node, const char* class_name) {
  if (!node) return nil;
  if (id object = known_object(node.get())) return object;
  Class* object = [[objc_getClass(class_name) alloc] autorelease];
  auto* mine = new BodyType;
  mine->node = node;
  object->_body = mine;
  remember(node.get(), object);
  return object;
}

std::vector<mpsnn::ImageNodePtr> one_gradient(MPSNNImageNode* image_node) { return {image(image_node, false)}; }

NSArray* wrapped(const std::vector<mpsnn::GradientFilterNodePtr>& filters) {
  NSMutableArray* objects = [NSMutableArray array];
  for (const auto& filter : filters) [objects addObject:wrap(mpsnn::FilterNodePtr(filter))];
  return objects;
}

}  // namespace

// --- images and states -------------------------------------------------------------------------------------------

static mpsnn::NNImageNode& image_node(MPSNNImageNode* object) { return *body<ImageNodeBody>(object).node; }

@implementation MPSNNImageNode (Sim)
- (id)initWithHandle:(id)tag {
  if (!(self = [super init])) return nil;
  auto* mine = new ImageNodeBody;
  mine->node = std::make_shared<mpsnn::NNImageNode>(handle(tag));
  _body = mine;
  remember(mine->node.get(), self);
  return self;
}
+ (id)nodeWithHandle:(id)tag { return [[[self alloc] initWithHandle:tag] autorelease]; }
+ (id)exportedNodeWithHandle:(id)tag {
  MPSNNImageNode* node = [self nodeWithHandle:tag];
  [node setExportFromGraph:YES];
  return node;
}
- (void)dealloc {
  if (_body) forget(&image_node(self));
  [super dealloc];
}
- (id)handle { return handle_object(image_node(self).handle); }
- (void)setHandle:(id)tag { image_node(self).handle = handle(tag); }
- (id)imageAllocator { return image_node(self).image_allocator->is_temporary() ? [MPSTemporaryImage defaultAllocator] : [MPSImage defaultAllocator]; }
- (void)setImageAllocator:(id)allocator {
  image_node(self).image_allocator =
      allocator == [MPSTemporaryImage defaultAllocator] ? mpsnn::TemporaryImage::default_allocator() : mpsnn::Image::default_allocator();
}
- (BOOL)exportFromGraph { return image_node(self).export_from_graph; }
- (void)setExportFromGraph:(BOOL)flag { image_node(self).export_from_graph = flag; }
- (MPSImageFeatureChannelFormat)format { return static_cast<MPSImageFeatureChannelFormat>(image_node(self).format); }
- (void)setFormat:(MPSImageFeatureChannelFormat)format { assign(image_node(self).format, format); }
- (BOOL)stopGradient { return image_node(self).stop_gradient; }
- (void)setStopGradient:(BOOL)flag { image_node(self).stop_gradient = flag; }
- (BOOL)synchronizeResource { return image_node(self).synchronize_resource; }
- (void)setSynchronizeResource:(BOOL)flag { image_node(self).synchronize_resource = flag; }
@end

static mpsnn::NNStateNode& state_node(MPSNNStateNode* object) { return *body<StateNodeBody>(object).node; }

@implementation MPSNNStateNode (Sim)
- (void)dealloc {
  if (_body) forget(&state_node(self));
  [super dealloc];
}
- (id)handle { return handle_object(state_node(self).handle); }
- (void)setHandle:(id)tag { state_node(self).handle = handle(tag); }
- (BOOL)exportFromGraph { return state_node(self).export_from_graph; }
- (void)setExportFromGraph:(BOOL)flag { state_node(self).export_from_graph = flag; }
- (BOOL)synchronizeResource { return state_node(self).synchronize_resource; }
- (void)setSynchronizeResource:(BOOL)flag { state_node(self).synchronize_resource = flag; }
@end

// --- filters -----------------------------------------------------------------------------------------------------

@implementation MPSNNFilterNode (Sim)
- (void)dealloc {
  if (_body) forget(body<FilterBody>(self).node.get());
  [super dealloc];
}
- (NSString*)label {
  const std::string& label = node_of<mpsnn::NNFilterNode>(self).label;
  return label.empty() ? nil : text(label);
}
- (void)setLabel:(NSString*)label { node_of<mpsnn::NNFilterNode>(self).label = text(label); }
- (id)paddingPolicy { return padding_object(node_of<mpsnn::NNFilterNode>(self).padding_policy); }
- (void)setPaddingPolicy:(id)policy {
  if (!policy) raise("setPaddingPolicy: the policy is missing");
  node_of<mpsnn::NNFilterNode>(self).padding_policy = padding(policy);
}
- (MPSNNImageNode*)resultImage {
  FilterBody& mine = body<FilterBody>(self);
  if (!mine.result_image) mine.result_image = hold(wrap(mine.node->result_image()));
  return object_of(mine.result_image);
}
- (NSArray*)resultStates {
  FilterBody& mine = body<FilterBody>(self);
  const auto states = mine.node->result_states();
  if (states.empty()) return nil;
  if (mine.result_states.empty())
    for (const mpsnn::StateNodePtr& node : states) mine.result_states.push_back(hold(wrap(node)));
  NSMutableArray* objects = [NSMutableArray array];
  for (const Held& held : mine.result_states) [objects addObject:object_of(held)];
  return objects;
}
- (MPSNNStateNode*)resultState {
  NSArray* states = [self resultStates];
  return [states count] == 0 ? nil : [states objectAtIndex:0];
}
- (MPSNNGradientFilterNode*)gradientFilterWithSource:(MPSNNImageNode*)gradient {
  return guarded([&] { return (MPSNNGradientFilterNode*)wrap(mpsnn::FilterNodePtr(body<FilterBody>(self).node->gradient_filter(one_gradient(gradient)))); });
}
- (MPSNNGradientFilterNode*)gradientFilterWithSources:(NSArray*)gradients {
  return guarded([&] { return (MPSNNGradientFilterNode*)wrap(mpsnn::FilterNodePtr(body<FilterBody>(self).node->gradient_filter(converted(gradients)))); });
}
- (NSArray*)gradientFiltersWithSource:(MPSNNImageNode*)gradient {
  return guarded([&] { return wrapped(body<FilterBody>(self).node->gradient_filters(one_gradient(gradient))); });
}
- (NSArray*)gradientFiltersWithSources:(NSArray*)gradients {
  return guarded([&] { return wrapped(body<FilterBody>(self).node->gradient_filters(converted(gradients))); });
}
- (NSArray*)trainingGraphWithSourceGradient:(MPSNNImageNode*)gradient nodeHandler:(SimBlock)block {
  mpsnn::NodeHandler handler;
  if (block)
    handler = [block](const mpsnn::FilterNodePtr& gradient_node, const mpsnn::FilterNodePtr& inference_node, const mpsnn::ImageNodePtr& inference_source,
                      const mpsnn::ImageNodePtr& gradient_source) {
      call_block(block, static_cast<id>(wrap(gradient_node)), static_cast<id>(wrap(inference_node)), static_cast<id>(wrap(inference_source)),
                 static_cast<id>(wrap(gradient_source)));
    };
  const auto last = guarded([&] { return body<FilterBody>(self).node->training_graph(image(gradient, true), handler); });
  if (last.empty()) return nil;
  NSMutableArray* objects = [NSMutableArray array];
  for (const mpsnn::FilterNodePtr& filter : last) [objects addObject:wrap(filter)];
  return objects;
}
@end

@implementation MPSCNNNeuronNode (Sim)
+ (id)nodeWithSource:(MPSNNImageNode*)source descriptor:(MPSNNNeuronDescriptor*)descriptor {
  return wrap(guarded([&] { return mpsnn::FilterNodePtr(mpsnn::make_neuron_node(image(source, false), converted(descriptor))); }));
}
@end

@implementation MPSCNNNeuronGradientNode (Sim)
- (MPSNNNeuronDescriptor*)descriptor { return neuron_descriptor(node_of<mpsnn::CNNNeuronGradientNode>(self).descriptor()); }
@end

@implementation MPSCNNConvolutionNode (Sim)
- (MPSCNNConvolutionGradientStateNode*)convolutionGradientState { return (MPSCNNConvolutionGradientStateNode*)[self resultState]; }
@end

@implementation MPSCNNLossNode (Sim)
- (MPSNNLabelsNode*)inputLabels { return (MPSNNLabelsNode*)wrap(mpsnn::StateNodePtr(node_of<mpsnn::CNNLossNode>(self).input_labels())); }
@end
@implementation MPSCNNYOLOLossNode (Sim)
- (MPSNNLabelsNode*)inputLabels { return (MPSNNLabelsNode*)wrap(mpsnn::StateNodePtr(node_of<mpsnn::CNNYOLOLossNode>(self).input_labels())); }
@end

@implementation MPSNNBinaryArithmeticNode (Sim)
- (Class)gradientClass {
  const char* name = node_of<mpsnn::NNBinaryArithmeticNode>(self).gradient_class();
  return name ? objc_getClass(name) : Nil;
}
@end

static MTLSize mask_stride(const mpsnn::DropoutParameters& d) { return {NSUInteger(d.mask_stride_x), NSUInteger(d.mask_stride_y), NSUInteger(d.mask_stride_channels)}; }
@implementation MPSCNNDropoutNode (Sim)
- (MTLSize)maskStrideInPixels { return mask_stride(node_of<mpsnn::CNNDropoutNode>(self).dropout()); }
@end
@implementation MPSCNNDropoutGradientNode (Sim)
- (MTLSize)maskStrideInPixels { return mask_stride(node_of<mpsnn::CNNDropoutGradientNode>(self).dropout()); }
@end

@implementation MPSNNUnaryReductionNode (Sim)
- (MTLRegion)clipRectSource {
  const mpsnn::ClipRectangle& r = node_of<mpsnn::NNUnaryReductionNode>(self).clip_rect_source;
  return {{NSUInteger(r.x), NSUInteger(r.y), 0}, {NSUInteger(r.width), NSUInteger(r.height), NSUIntegerMax}};
}
- (void)setClipRectSource:(MTLRegion)region {
  auto clipped = [](NSUInteger n) { return static_cast<int>(std::min<NSUInteger>(n, std::numeric_limits<int>::max())); };
  node_of<mpsnn::NNUnaryReductionNode>(self).clip_rect_source = {clipped(region.origin.x), clipped(region.origin.y), clipped(region.size.width),
                                                                 clipped(region.size.height)};
}
@end

// --- callbacks ---------------------------------------------------------------------------------------------------

namespace {

MPSImage* shown(const mpsnn::ImageDescriptor& d) { return make_image(d.shape(), static_cast<MPSImageFeatureChannelFormat>(d.channel_format)); }

struct LossCallback final : mpsnn::NNLossCallback {
  explicit LossCallback(id object) : object(hold(object)) {}
  float scalar_weight(const mpsnn::ImageDescriptor& source, const mpsnn::ImageDescriptor& destination) override {
    const Pool pool;
    return [(id<MPSNNLossCallback>)object_of(object) scalarWeightForSourceImage:shown(source) destinationImage:shown(destination)];
  }
  Held object;
};
struct GramMatrixCallback final : mpsnn::NNGramMatrixCallback {
  explicit GramMatrixCallback(id object) : object(hold(object)) {}
  float alpha(const mpsnn::ImageDescriptor& source, const mpsnn::ImageDescriptor& destination) override {
    const Pool pool;
    return [(id<MPSNNGramMatrixCallback>)object_of(object) alphaForSourceImage:shown(source) destinationImage:shown(destination)];
  }
  Held object;
};
struct TransformProvider final : mpsnn::ImageTransformProvider {
  explicit TransformProvider(id object) : object(hold(object)) {}
  mpsnn::ScaleTransform transform(const mpsnn::ImageDescriptor& source, const mpsnn::HandlePtr& tag) override {
    const Pool pool;
    const MPSScaleTransform t = [(id<MPSImageTransformProvider>)object_of(object) transformForSourceImage:shown(source) handle:handle_object(tag)];
    return {t.scaleX, t.scaleY, t.translateX, t.translateY};
  }
  Held object;
};

template <class Node, class Callback>
void set_callback(MPSNNFilterNode* filter, id object) {
  body<FilterBody>(filter).property_callback = hold(object);
  node_of<Node>(filter).property_callback = object ? std::make_shared<Callback>(object) : nullptr;
}

}  // namespace

@implementation MPSNNForwardLossNode (Sim)
- (id)propertyCallBack { return object_of(body<FilterBody>(self).property_callback); }
- (void)setPropertyCallBack:(id)object { set_callback<mpsnn::NNForwardLossNode, LossCallback>(self, object); }
@end
@implementation MPSNNLossGradientNode (Sim)
- (id)propertyCallBack { return object_of(body<FilterBody>(self).property_callback); }
- (void)setPropertyCallBack:(id)object { set_callback<mpsnn::NNLossGradientNode, LossCallback>(self, object); }
@end
@implementation MPSNNGramMatrixCalculationNode (Sim)
- (id)propertyCallBack { return object_of(body<FilterBody>(self).property_callback); }
- (void)setPropertyCallBack:(id)object { set_callback<mpsnn::NNGramMatrixCalculationNode, GramMatrixCallback>(self, object); }
@end

namespace sim {

MPSNNFilterNode* wrap(const mpsnn::FilterNodePtr& node) { return wrapped<MPSNNFilterNode, FilterBody>(node, node ? node->class_name() : ""); }
MPSNNImageNode* wrap(const mpsnn::ImageNodePtr& node) { return wrapped<MPSNNImageNode, ImageNodeBody>(node, "MPSNNImageNode"); }
MPSNNStateNode* wrap(const mpsnn::StateNodePtr& node) { return wrapped<MPSNNStateNode, StateNodeBody>(node, node ? node->class_name() : ""); }

id init_filter(MPSNNFilterNode* filter, mpsnn::FilterNodePtr node) {
  auto* mine = new FilterBody;
  mine->node = std::move(node);
  filter->_body = mine;
  remember(mine->node.get(), filter);
  return filter;
}

id refuse_initializer(id object, SEL selector) {
  raise(std::string(class_getName([object class])) + ": " + sel_getName(selector) + " makes no sense for this class");
}

mpsnn::ImageNodePtr image(MPSNNImageNode* node, bool is_nullable) {
  if (!node) {
    if (is_nullable) return nullptr;
    raise("an image node is missing");
  }
  return body<ImageNodeBody>(node).node;
}

std::vector<mpsnn::ImageNodePtr> converted(NSArray* nodes) {
  std::vector<mpsnn::ImageNodePtr> images;
  for (NSUInteger i = 0; i < [nodes count]; ++i) images.push_back(image([nodes objectAtIndex:i], false));
  return images;
}

mpsnn::FilterNodePtr converted(MPSNNFilterNode* node) {
  if (!node) raise("a filter node is missing");
  return body<FilterBody>(node).node;
}

std::vector<mpsnn::ImageNodePtr> gradient_sources(mpsnn::ImageNodePtr gradient, mpsnn::ImageNodePtr source, mpsnn::ImageNodePtr labels, mpsnn::ImageNodePtr weights) {
  std::vector<mpsnn::ImageNodePtr> sources{std::move(gradient), std::move(source), std::move(labels)};
  if (weights) sources.push_back(std::move(weights));
  return sources;
}

int whole(NSUInteger number) {
  if (number > NSUInteger(std::numeric_limits<int>::max())) raise("a number is too large: " + std::to_string(number));
  return static_cast<int>(number);
}

mpsnn::WindowSize window(NSUInteger kernel_width, NSUInteger kernel_height, NSUInteger stride_x, NSUInteger stride_y, NSUInteger dilation_x, NSUInteger dilation_y) {
  return {whole(kernel_width), whole(kernel_height), whole(stride_x), whole(stride_y), whole(dilation_x), whole(dilation_y)};
}

mpsnn::DropoutParameters dropout(float keep_probability, NSUInteger seed, MTLSize stride) {
  return {keep_probability, seed, whole(stride.width), whole(stride.height), whole(stride.depth)};
}

mpsnn::BinaryConvolutionTerms binary_terms(const mpsnn::ConvolutionDataSourcePtr& source, const float* output_bias, const float* output_scale,
                                           const float* input_bias, const float* input_scale) {
  const mpsnn::CNNConvolutionDescriptor d = source->descriptor();
  auto copy = [](const float* numbers, int count) { return numbers ? std::vector<float>(numbers, numbers + count) : std::vector<float>(); };
  return {copy(output_bias, d.output_feature_channels), copy(output_scale, d.output_feature_channels), copy(input_bias, d.input_feature_channels),
          copy(input_scale, d.input_feature_channels)};
}

std::shared_ptr<mpsnn::ImageTransformProvider> transform_provider(id object) { return object ? std::make_shared<TransformProvider>(object) : nullptr; }

}  // namespace sim
