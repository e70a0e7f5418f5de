// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "sim_nodes.h"

@interface NSObject (SimMetal)
- (id)newCommandQueue;
- (id)commandBuffer;
- (void)commit;
@end

/// MPSNNGraph: a graph of ours on the reference engine.
using namespace sim;

namespace {

struct GraphBody : Body {
  std::unique_ptr<mpsnn::NNGraph> graph;
  std::vector<mpsnn::ImageNodePtr> extra_results;  // needed results after the first: they come in the intermediate list
  std::vector<bool> is_group;                      // per exported state: of a group normalization
  NSUInteger result_format = 0;
  bool makes_temporary_result = false;
};

mpsnn::NNGraph& graph_of(MPSNNGraph* graph) { return *body<GraphBody>(graph).graph; }

MPSImageFeatureChannelFormat stored_format(const mpsnn::NNGraph& graph, const mpsnn::NNImageNode& node) {
  const auto format = node.format == mpsnn::ImageFeatureChannelFormat::None ? graph.format : node.format;
  return static_cast<MPSImageFeatureChannelFormat>(format);
}

/// Images that hold `whole` once the command buffer has run.
NSArray* make_batch(const mpsnn::ImagePtr& whole, MPSImageFeatureChannelFormat format, bool is_temporary, NSUInteger read_count, mpsnn::CommandBuffer& command_buffer) {
  NSMutableArray* batch = [NSMutableArray array];
  mpsnn::Shape single = whole->shape();
  single.images = 1;
  for (int i = 0; i < whole->shape().images; ++i)
    [batch addObject:is_temporary ? make_temporary_image(single, format, read_count) : make_image(single, format)];
  scatter(whole, batch, command_buffer);
  return batch;
}

std::vector<const mpsnn::NNImageNode*> exported_images(const mpsnn::NNGraph& graph) {
  std::vector<const mpsnn::NNImageNode*> nodes;
  for (const mpsnn::FilterNodePtr& node : graph.nodes())
    if (node->result_image_node().export_from_graph) nodes.push_back(&node->result_image_node());
  return nodes;
}

/// One encode. All arrays hold batches.
NSArray* encode(MPSNNGraph* self, id metal_buffer, NSArray* source_images, NSArray* source_states, NSMutableArray* intermediate_images,
                NSMutableArray* destination_states) {
  GraphBody& mine = body<GraphBody>(self);
  mpsnn::NNGraph& graph = *mine.graph;
  mpsnn::CommandBuffer& command_buffer = recorder(metal_buffer);
  trace("encode", metal_buffer);
  if ([source_images count] != graph.source_image_handles().size())
    raise("encode: this graph takes " + std::to_string(graph.source_image_handles().size()) + " source images, not " + std::to_string([source_images count]));
  if ([source_states count] != graph.source_state_handles().size())
    raise("encode: this graph takes " + std::to_string(graph.source_state_handles().size()) + " source states, not " + std::to_string([source_states count]));
  const std::size_t images = [(NSArray*)[source_images objectAtIndex:0] count];
  for (NSArray* batches : {source_images, source_states})
    for (NSUInteger i = 0; i < [batches count]; ++i)
      if ([(NSArray*)[batches objectAtIndex:i] count] != images) raise("encode: all batches of an encode have one length");

  std::vector<mpsnn::ImagePtr> inputs;
  for (NSUInteger i = 0; i < [source_images count]; ++i) inputs.push_back(gather([source_images objectAtIndex:i], command_buffer));
  std::vector<mpsnn::StatePtr> states;
  for (NSUInteger i = 0; i < [source_states count]; ++i) states.push_back(labels_of([source_states objectAtIndex:i], command_buffer));

  const Encoding before = encoding();
  encoding() = {metal_buffer, images};
  command_buffer.record_completion([images] { encoding().images = images; });  // for updates in the completion phase, on its thread
  mpsnn::EncodedResults results;
  const std::string failure = failure_of([&] { results = graph.encode(command_buffer, inputs, states); });
  encoding() = before;
  if (!failure.empty()) raise("MPSNNGraph encode: " + failure);

  for (NSUInteger i = 0; i < [source_states count]; ++i)
    scatter_losses([source_states objectAtIndex:i], std::static_pointer_cast<mpsnn::CNNLossLabels>(states[i]), command_buffer);
  for (std::size_t i = 1; i < results.result_images.size(); ++i)
    if (results.result_images[i])
      [intermediate_images addObject:make_batch(results.result_images[i], stored_format(graph, *graph.result_image_nodes()[i]), false, 1, command_buffer)];
  const auto exports = exported_images(graph);
  NSArray* result = nil;
  if (results.result_images.front())
    result = make_batch(results.result_images.front(), stored_format(graph, *graph.result_image_nodes().front()), mine.makes_temporary_result, 1, command_buffer);
  for (std::size_t i = 0; i < exports.size(); ++i) {
    if (exports[i] == graph.result_image_nodes().front().get() && result) [intermediate_images addObject:result];
    else [intermediate_images addObject:make_batch(results.intermediate_images[i], stored_format(graph, *exports[i]), exports[i]->image_allocator->is_temporary(), 1,
                                                   command_buffer)];
  }
  for (std::size_t i = 0; i < results.destination_states.size(); ++i)
    [destination_states addObject:exported_states(command_buffer, results.destination_states[i], mine.is_group[i], images)];
  return result;
}

/// Single objects as batches of one, and back.
NSArray* wrapped(NSArray* objects) {
  if (!objects) return nil;
  NSMutableArray* batches = [NSMutableArray array];
  for (NSUInteger i = 0; i < [objects count]; ++i) [batches addObject:[NSArray arrayWithObject:[objects objectAtIndex:i]]];
  return batches;
}
void unwrap(NSArray* batches, NSMutableArray* objects) {
  for (NSUInteger i = 0; i < [batches count]; ++i) [objects addObject:[[batches objectAtIndex:i] objectAtIndex:0]];
}

}  // namespace

@implementation MPSNNGraph
- (id)initWithDevice:(id)device resultImages:(NSArray*)result_images resultsAreNeeded:(BOOL*)needed {
  require_device(device, "MPSNNGraph");
  auto mine = std::make_unique<GraphBody>();
  std::vector<bool> flags;
  std::vector<mpsnn::ImageNodePtr> images;
  for (NSUInteger i = 0; i < [result_images count]; ++i) {
    images.push_back(image([result_images objectAtIndex:i], false));
    flags.push_back(!needed || needed[i]);
  }
  const std::string failure = failure_of([&] { mine->graph = std::make_unique<mpsnn::NNGraph>(reference_device(), images, flags); });
  if (!failure.empty()) {  // Apple's answer is nil; the sentence is for whoever reads the test's output
    NSLog(@"simulator: no MPSNNGraph: %s", failure.c_str());
    [self release];
    return nil;
  }
  if (!(self = [super init])) return nil;
  mine->graph->format = mpsnn::ImageFeatureChannelFormat::Float16;
  for (std::size_t i = 1; i < images.size(); ++i)
    if (flags[i]) mine->extra_results.push_back(images[i]);
  for (const mpsnn::FilterNodePtr& node : mine->graph->nodes())
    for (const mpsnn::StateNodePtr& state : node->result_states())
      if (state->export_from_graph) mine->is_group.push_back(std::string(node->class_name()) == "MPSCNNGroupNormalizationNode");
  _device = [device retain];
  _body = mine.release();
  return self;
}
- (id)initWithDevice:(id)device resultImage:(MPSNNImageNode*)result resultImageIsNeeded:(BOOL)is_needed {
  if (!result) raise("MPSNNGraph: the result image is missing");
  return [self initWithDevice:device resultImages:[NSArray arrayWithObject:result] resultsAreNeeded:&is_needed];
}
- (id)initWithDevice:(id)device resultImage:(MPSNNImageNode*)result { return [self initWithDevice:device resultImage:result resultImageIsNeeded:YES]; }
+ (id)graphWithDevice:(id)device resultImages:(NSArray*)results resultsAreNeeded:(BOOL*)needed {
  return [[[self alloc] initWithDevice:device resultImages:results resultsAreNeeded:needed] autorelease];
}
+ (id)graphWithDevice:(id)device resultImage:(MPSNNImageNode*)result resultImageIsNeeded:(BOOL)is_needed {
  return [[[self alloc] initWithDevice:device resultImage:result resultImageIsNeeded:is_needed] autorelease];
}
+ (id)graphWithDevice:(id)device resultImage:(MPSNNImageNode*)result { return [self graphWithDevice:device resultImage:result resultImageIsNeeded:YES]; }

- (NSArray*)sourceImageHandles { return handle_objects(graph_of(self).source_image_handles()); }
- (NSArray*)sourceStateHandles { return [self sim_list:graph_of(self).source_state_handles()]; }
- (NSArray*)resultStateHandles { return [self sim_list:graph_of(self).result_state_handles()]; }
- (NSArray*)intermediateImageHandles {
  std::vector<mpsnn::HandlePtr> handles;
  for (const mpsnn::ImageNodePtr& node : body<GraphBody>(self).extra_results) handles.push_back(node->handle ? node->handle : mpsnn::make_handle("result image"));
  const auto exported = graph_of(self).intermediate_image_handles();
  handles.insert(handles.end(), exported.begin(), exported.end());
  return [self sim_list:handles];
}
- (NSArray*)sim_list:(const std::vector<mpsnn::HandlePtr>&)handles { return handles.empty() ? nil : handle_objects(handles); }
- (id)resultHandle { return handle_object(graph_of(self).result_handle()); }
- (BOOL)resultImageIsNeeded { return graph_of(self).result_image_is_needed(); }
- (NSUInteger)readCountForSourceImageAtIndex:(NSUInteger)index {
  return guarded([&] { return graph_of(self).read_count_for_source_image_at_index(index); });
}
- (NSUInteger)readCountForSourceStateAtIndex:(NSUInteger)index {
  return guarded([&] { return graph_of(self).read_count_for_source_state_at_index(index); });
}
- (MPSImageFeatureChannelFormat)format { return static_cast<MPSImageFeatureChannelFormat>(graph_of(self).format); }
- (void)setFormat:(MPSImageFeatureChannelFormat)format { assign(graph_of(self).format, format); }
- (BOOL)outputStateIsTemporary { return graph_of(self).output_state_is_temporary; }
- (void)setOutputStateIsTemporary:(BOOL)flag { graph_of(self).output_state_is_temporary = flag; }
- (id)destinationImageAllocator { return body<GraphBody>(self).makes_temporary_result ? [MPSTemporaryImage defaultAllocator] : [MPSImage defaultAllocator]; }
- (void)setDestinationImageAllocator:(id)allocator {
  if (!allocator) raise("setDestinationImageAllocator: the allocator is missing");
  body<GraphBody>(self).makes_temporary_result = allocator == [MPSTemporaryImage defaultAllocator];
}
- (void)reloadFromDataSources {
  guarded([&] { graph_of(self).reload_from_data_sources(); });
}

- (NSArray*)encodeBatchToCommandBuffer:(id)command_buffer
                          sourceImages:(NSArray*)images
                          sourceStates:(NSArray*)states
                    intermediateImages:(NSMutableArray*)intermediate_images
                     destinationStates:(NSMutableArray*)destination_states {
  return encode(self, command_buffer, images, states, intermediate_images, destination_states);
}
- (NSArray*)encodeBatchToCommandBuffer:(id)command_buffer sourceImages:(NSArray*)images sourceStates:(NSArray*)states {
  return encode(self, command_buffer, images, states, nil, nil);
}
- (MPSImage*)encodeToCommandBuffer:(id)command_buffer
                      sourceImages:(NSArray*)images
                      sourceStates:(NSArray*)states
                intermediateImages:(NSMutableArray*)intermediate_images
                 destinationStates:(NSMutableArray*)destination_states {
  NSMutableArray *image_batches = [NSMutableArray array], *state_batches = [NSMutableArray array];
  NSArray* result = encode(self, command_buffer, wrapped(images), wrapped(states), image_batches, state_batches);
  unwrap(image_batches, intermediate_images);
  unwrap(state_batches, destination_states);
  return result ? [result objectAtIndex:0] : nil;
}
- (MPSImage*)encodeToCommandBuffer:(id)command_buffer sourceImages:(NSArray*)images {
  return [self encodeToCommandBuffer:command_buffer sourceImages:images sourceStates:nil intermediateImages:nil destinationStates:nil];
}
- (MPSImage*)executeAsyncWithSourceImages:(NSArray*)images completionHandler:(SimBlock)block {
  id queue = [[_device newCommandQueue] autorelease];
  id command_buffer = [queue commandBuffer];
  MPSImage* result = [self encodeToCommandBuffer:command_buffer sourceImages:images];
  if (result) [result synchronizeOnCommandBuffer:command_buffer];
  SimBlock copy = _Block_copy(block);
  recorder(command_buffer).add_completed_handler([copy, held = hold(result)](mpsnn::CommandBuffer& done) {
    const Pool pool;
    NSError* error = done.error() ? [NSError errorWithDomain:@"MTLCommandBufferErrorDomain" code:1 userInfo:nil] : nil;
    call_block(copy, static_cast<id>(object_of(held)), static_cast<id>(error));
    _Block_release(copy);
  });
  [command_buffer commit];
  return result;
}
@end
