// SPDX-License-Identifier: Apache-2.0
#include <cstdlib>
#include <cstring>
#include <map>

#include "sim.h"

/// Metal: the device, queues, command buffers and buffers; and what all toy objects share.
using namespace sim;

#pragma GCC visibility push(default)
extern "C" {
/// Toy objects that exist now. The device and the predefined allocators live for ever and do not count.
long mpsnn_sim_live_objects(void);
/// The same by class, one line each, for a test that found some.
void mpsnn_sim_print_live_objects(void);
id MTLCreateSystemDefaultDevice(void);
id MTLCopyAllDevices(void);
id MTLCopyAllDevicesWithObserver(id* observer, void* handler);
void MTLRemoveDeviceObserver(id observer);
BOOL MPSSupportsMTLDevice(id device);
}
#pragma GCC visibility pop

namespace {

std::mutex& live_mutex() {
  static std::mutex mutex;
  return mutex;
}
std::map<std::string, long>& live() {
  static std::map<std::string, long> counts;
  return counts;
}
void count_live(Class type, long amount) {
  std::lock_guard lock(live_mutex());
  live()[class_getName(type)] += amount;
}

/// Shared by a command buffer and the first piece of its work.
struct Failure {
  std::string sentence;
};

}  // namespace

long mpsnn_sim_live_objects(void) {
  std::lock_guard lock(live_mutex());
  long sum = 0;
  for (const auto& [name, count] : live()) sum += count;
  return sum;
}

void mpsnn_sim_print_live_objects(void) {
  std::lock_guard lock(live_mutex());
  for (const auto& [name, count] : live())
    if (count != 0) std::fprintf(stderr, "%6ld %s\n", count, name.c_str());
}

@implementation SimObject
// Counted here, not in -init: an initializer that fails deallocates an object that never ran it.
+ (id)allocWithZone:(NSZone*)zone {
  id object = [super allocWithZone:zone];
  count_live(self, 1);
  return object;
}
- (void)dealloc {
  count_live([self class], -1);
  delete _body;
  _body = nullptr;
  [super dealloc];
}
- (void)sim_copyTo:(id)copy {
}
- (void)sim_copyBodyTo:(id)copy {
}
@end

/// An object that the process keeps.
@interface SimForever : NSObject
@end
@implementation SimForever
- (id)retain { return self; }
- (oneway void)release {}
- (id)autorelease { return self; }
@end

// --- buffers -----------------------------------------------------------------------------------------------------

struct BufferBody : Body {
  void* contents = nullptr;
  NSUInteger length = 0;
  std::function<void()> free;
  Held label;
  ~BufferBody() override { free(); }
};

@interface SimBuffer : SimObject
- (id)initWithLength:(NSUInteger)length;
@end
@implementation SimBuffer
- (id)initWithLength:(NSUInteger)length {
  if (!(self = [super init])) return nil;
  auto* buffer = new BufferBody;
  buffer->contents = std::calloc(1, length);
  buffer->length = length;
  buffer->free = [contents = buffer->contents] { std::free(contents); };
  _body = buffer;
  return self;
}
- (id)initWithMemory:(void*)memory length:(NSUInteger)length deallocator:(SimBlock)deallocator {
  if (!(self = [super init])) return nil;
  auto* buffer = new BufferBody;
  buffer->contents = memory;
  buffer->length = length;
  SimBlock copy = deallocator ? _Block_copy(deallocator) : nullptr;
  buffer->free = [=] {
    if (!copy) return;
    call_block(copy, memory, length);
    _Block_release(copy);
  };
  _body = buffer;
  return self;
}
- (void*)contents { return body<BufferBody>(self).contents; }
- (NSUInteger)length { return body<BufferBody>(self).length; }
- (NSUInteger)allocatedSize { return body<BufferBody>(self).length; }
- (void)didModifyRange:(NSRange)range {
  if (NSMaxRange(range) > [self length]) raise("didModifyRange: ends after the buffer");
}
- (MTLStorageMode)storageMode { return 0; }
- (MTLResourceOptions)resourceOptions { return 0; }
- (id)device { return the_device(); }
- (NSString*)label { return object_of(body<BufferBody>(self).label); }
- (void)setLabel:(NSString*)label { body<BufferBody>(self).label = hold([[label copy] autorelease]); }
@end

// --- command buffers ---------------------------------------------------------------------------------------------

@interface SimCommandQueue : SimObject
@end
struct QueueBody : Body {
  mpsnn::CommandQueuePtr queue = std::make_shared<mpsnn::CommandQueue>(reference_device());
  Held label;
};

struct CommandBufferBody : Body {
  mpsnn::CommandBufferPtr buffer;
  Held queue, label, error;
  std::vector<SimBlock> scheduled, completed;
  std::shared_ptr<Failure> failure = std::make_shared<Failure>();
  bool has_open_encoder = false;
  long number = 0;  // in the trace
  ~CommandBufferBody() override {
    for (SimBlock block : scheduled) _Block_release(block);
    for (SimBlock block : completed) _Block_release(block);
  }
};

@interface SimCommandBuffer : SimObject
- (id)initWithQueue:(SimCommandQueue*)queue;
@end

@interface SimBlitEncoder : SimObject
- (id)initWithCommandBuffer:(SimCommandBuffer*)command_buffer;
@end
struct BlitBody : Body {
  Held command_buffer, label;
  bool has_ended = false;
};
@implementation SimBlitEncoder
- (id)initWithCommandBuffer:(SimCommandBuffer*)command_buffer {
  if (!(self = [super init])) return nil;
  auto* blit = new BlitBody;
  blit->command_buffer = hold(command_buffer);
  _body = blit;
  return self;
}
- (void)dealloc {
  if (_body && !body<BlitBody>(self).has_ended) NSLog(@"simulator: a blit encoder was released before endEncoding");
  [super dealloc];
}
- (mpsnn::CommandBuffer&)sim_recorder {
  if (body<BlitBody>(self).has_ended) raise("a blit encoder was used after endEncoding");
  return *body<CommandBufferBody>(object_of(body<BlitBody>(self).command_buffer)).buffer;
}
- (void)synchronizeResource:(id)resource { [self sim_recorder]; }
- (void)copyFromBuffer:(id)source
          sourceOffset:(NSUInteger)source_offset
              toBuffer:(id)target
     destinationOffset:(NSUInteger)target_offset
                  size:(NSUInteger)size {
  if (source_offset + size > [(SimBuffer*)source length] || target_offset + size > [(SimBuffer*)target length]) raise("copyFromBuffer: leaves a buffer");
  [self sim_recorder].record([from = hold(source), to = hold(target), source_offset, target_offset, size] {
    std::memmove(static_cast<char*>([(SimBuffer*)object_of(to) contents]) + target_offset,
                 static_cast<char*>([(SimBuffer*)object_of(from) contents]) + source_offset, size);
  });
}
- (void)fillBuffer:(id)buffer range:(NSRange)range value:(uint8_t)value {
  if (NSMaxRange(range) > [(SimBuffer*)buffer length]) raise("fillBuffer: leaves the buffer");
  [self sim_recorder].record([held = hold(buffer), range, value] {
    std::memset(static_cast<char*>([(SimBuffer*)object_of(held) contents]) + range.location, value, range.length);
  });
}
- (void)endEncoding {
  [self sim_recorder];
  body<BlitBody>(self).has_ended = true;
  body<CommandBufferBody>(object_of(body<BlitBody>(self).command_buffer)).has_open_encoder = false;
}
- (NSString*)label { return object_of(body<BlitBody>(self).label); }
- (void)setLabel:(NSString*)label { body<BlitBody>(self).label = hold([[label copy] autorelease]); }
@end

@implementation SimCommandBuffer
- (id)initWithQueue:(SimCommandQueue*)queue {
  if (!(self = [super init])) return nil;
  auto* mine = new CommandBufferBody;
  mine->queue = hold(queue);
  mine->buffer = body<QueueBody>(queue).queue->command_buffer();
  mine->number = next_number();
  mine->buffer->record([failure = mine->failure] {
    wait_while_held();
    if (!failure->sentence.empty()) throw mpsnn::DeviceError(failure->sentence);
  });
  _body = mine;
  return self;
}
- (id)device { return the_device(); }
- (id)commandQueue { return object_of(body<CommandBufferBody>(self).queue); }
- (BOOL)retainedReferences { return YES; }
- (NSString*)label { return object_of(body<CommandBufferBody>(self).label); }
- (void)setLabel:(NSString*)label { body<CommandBufferBody>(self).label = hold([[label copy] autorelease]); }
- (MTLCommandBufferStatus)status { return static_cast<MTLCommandBufferStatus>(body<CommandBufferBody>(self).buffer->status()); }
- (NSError*)error { return object_of(body<CommandBufferBody>(self).error); }
- (void)enqueue {
  if ([self status] != 0) raise("enqueue: this command buffer was enqueued or committed already");
}
- (id)blitCommandEncoder {
  CommandBufferBody& mine = body<CommandBufferBody>(self);
  if (mine.has_open_encoder) raise("blitCommandEncoder: another encoder of this command buffer has not ended");
  mine.has_open_encoder = true;
  return [[[SimBlitEncoder alloc] initWithCommandBuffer:self] autorelease];
}
- (void)addScheduledHandler:(SimBlock)block { [self sim_add:block to:&body<CommandBufferBody>(self).scheduled]; }
- (void)addCompletedHandler:(SimBlock)block { [self sim_add:block to:&body<CommandBufferBody>(self).completed]; }
- (void)sim_add:(SimBlock)block to:(std::vector<SimBlock>*)list {
  if ([self status] != 0) raise("a handler was added after commit");
  list->push_back(_Block_copy(block));
}
- (void)sim_finish:(std::exception_ptr)error {
  CommandBufferBody& mine = body<CommandBufferBody>(self);
  trace("complete", mine.number);
  if (error) {
    const std::string sentence = failure_of([&] { std::rethrow_exception(error); });
    NSDictionary* info = [NSDictionary dictionaryWithObject:text(sentence) forKey:NSLocalizedDescriptionKey];
    mine.error = hold([NSError errorWithDomain:@"MTLCommandBufferErrorDomain" code:1 userInfo:info]);
  }
  for (const auto* list : {&mine.scheduled, &mine.completed})
    for (SimBlock block : *list) call_block(block, static_cast<id>(self));
}
- (void)commit {
  CommandBufferBody& mine = body<CommandBufferBody>(self);
  if ([self status] != 0) raise("commit: this command buffer was committed already");
  if (mine.has_open_encoder) raise("commit: an encoder of this command buffer has not ended");
  mine.failure->sentence = take_failure();
  trace("commit", mine.number);
  [self retain];  // until its handlers have run
  mine.buffer->add_completed_handler([self](mpsnn::CommandBuffer& done) {
    const Pool pool;
    [self sim_finish:done.error()];
    [self release];
  });
  mine.buffer->commit();
}
- (void)waitUntilScheduled {
  if ([self status] == 0) raise("waitUntilScheduled: this command buffer was never committed");
}
- (void)waitUntilCompleted {
  if ([self status] == 0) raise("waitUntilCompleted: this command buffer was never committed");
  const mpsnn::CommandBufferPtr buffer = body<CommandBufferBody>(self).buffer;
  failure_of([&] { buffer->wait_until_completed(); });  // an error is in -error
}
@end

@implementation SimCommandQueue
- (id)init {
  if ((self = [super init])) _body = new QueueBody;
  return self;
}
- (id)device { return the_device(); }
- (id)commandBuffer { return [[[SimCommandBuffer alloc] initWithQueue:self] autorelease]; }
- (id)commandBufferWithUnretainedReferences { return [self commandBuffer]; }
- (NSString*)label { return object_of(body<QueueBody>(self).label); }
- (void)setLabel:(NSString*)label { body<QueueBody>(self).label = hold([[label copy] autorelease]); }
@end

// --- MPSCommandBuffer --------------------------------------------------------------------------------------------

struct WrappedBufferBody : Body {
  Held root, queue, heap_provider, predicate;
};
@implementation MPSCommandBuffer
- (id)initWithCommandBuffer:(id)command_buffer {
  if (!(self = [super init])) return nil;
  auto* mine = new WrappedBufferBody;
  mine->root = hold(command_buffer);
  mine->queue = hold([command_buffer commandQueue]);
  _body = mine;
  return self;
}
+ (id)commandBufferWithCommandBuffer:(id)command_buffer { return [[[self alloc] initWithCommandBuffer:command_buffer] autorelease]; }
+ (id)commandBufferFromCommandQueue:(id)queue { return [self commandBufferWithCommandBuffer:[queue commandBuffer]]; }
- (id)commandBuffer { return object_of(body<WrappedBufferBody>(self).root); }
- (id)rootCommandBuffer { return [self commandBuffer]; }
- (void)commitAndContinue {
  [[self commandBuffer] commit];
  body<WrappedBufferBody>(self).root = hold([object_of(body<WrappedBufferBody>(self).queue) commandBuffer]);
}
- (void)prefetchHeapForWorkloadSize:(size_t)size {
}
- (id)heapProvider { return object_of(body<WrappedBufferBody>(self).heap_provider); }
- (void)setHeapProvider:(id)provider { body<WrappedBufferBody>(self).heap_provider = hold(provider); }
- (id)predicate { return object_of(body<WrappedBufferBody>(self).predicate); }
- (void)setPredicate:(id)predicate { body<WrappedBufferBody>(self).predicate = hold(predicate); }
// The rest of the MTLCommandBuffer protocol goes to the buffer inside.
- (BOOL)respondsToSelector:(SEL)selector { return [super respondsToSelector:selector] || [SimCommandBuffer instancesRespondToSelector:selector]; }
- (NSMethodSignature*)methodSignatureForSelector:(SEL)selector {
  NSMethodSignature* mine = [super methodSignatureForSelector:selector];
  return mine ? mine : [[self commandBuffer] methodSignatureForSelector:selector];
}
- (void)forwardInvocation:(NSInvocation*)invocation { [invocation invokeWithTarget:[self commandBuffer]]; }
@end

// --- the device --------------------------------------------------------------------------------------------------

@interface SimDevice : SimForever
@end
@implementation SimDevice
- (NSString*)name { return @"Simulated device (mpsnn reference engine)"; }
- (uint64_t)registryID { return 1; }
- (BOOL)hasUnifiedMemory { return NO; }
- (BOOL)isLowPower { return NO; }
- (BOOL)isHeadless { return YES; }
- (BOOL)isRemovable { return NO; }
- (BOOL)supportsFamily:(NSInteger)family { return family == 2002 || family == 5001; }  // Mac2, Metal3
- (uint64_t)recommendedMaxWorkingSetSize { return uint64_t(1) << 32; }
- (NSUInteger)maxBufferLength { return NSUInteger(1) << 32; }
- (NSUInteger)currentAllocatedSize { return 0; }
- (MTLSize)maxThreadsPerThreadgroup { return {1024, 1024, 64}; }
- (id)newCommandQueue { return [[SimCommandQueue alloc] init]; }
- (id)newCommandQueueWithMaxCommandBufferCount:(NSUInteger)count { return [[SimCommandQueue alloc] init]; }
- (id)newBufferWithLength:(NSUInteger)length options:(MTLResourceOptions)options {
  if (length == 0) raise("newBufferWithLength: a buffer has at least one byte");
  return [[SimBuffer alloc] initWithLength:length];
}
- (id)newBufferWithBytes:(const void*)bytes length:(NSUInteger)length options:(MTLResourceOptions)options {
  id buffer = [self newBufferWithLength:length options:options];
  std::memcpy([(SimBuffer*)buffer contents], bytes, length);
  return buffer;
}
- (id)newBufferWithBytesNoCopy:(void*)bytes length:(NSUInteger)length options:(MTLResourceOptions)options deallocator:(SimBlock)deallocator {
  if (reinterpret_cast<uintptr_t>(bytes) % 4096 != 0 || length % 4096 != 0) raise("newBufferWithBytesNoCopy: memory and length are whole pages");
  return [[SimBuffer alloc] initWithMemory:bytes length:length deallocator:deallocator];
}
@end

id MTLCreateSystemDefaultDevice(void) { return the_device(); }
id MTLCopyAllDevices(void) { return [[NSArray alloc] initWithObjects:the_device(), nil]; }
id MTLCopyAllDevicesWithObserver(id*, void*) { return MTLCopyAllDevices(); }
void MTLRemoveDeviceObserver(id) {}
BOOL MPSSupportsMTLDevice(id device) { return device == the_device(); }

namespace sim {

void raise(const std::string& sentence) {
  // Never released: pools on the way to whoever catches it are drained.
  [[[NSException alloc] initWithName:NSInternalInconsistencyException reason:text(sentence) userInfo:nil] raise];
  std::abort();
}

Held hold(id object) {
  if (!object) return nullptr;
  return Held([object retain], [](void* held) {
    const Pool pool;
    [static_cast<id>(held) release];
  });
}

NSString* text(const std::string& string) { return [NSString stringWithUTF8String:string.c_str()]; }
std::string text(NSString* string) { return string ? [string UTF8String] : ""; }

id the_device() {
  static id device = [SimDevice new];
  return device;
}

mpsnn::DevicePtr reference_device() { return mpsnn::default_device(); }

void require_device(id device, const char* what) {
  if (device != the_device()) raise(std::string(what) + ": the device is missing");
}

void trace(const char* what, id command_buffer) {
  if ([command_buffer isKindOfClass:[MPSCommandBuffer class]]) command_buffer = [command_buffer commandBuffer];
  trace(what, body<CommandBufferBody>((SimCommandBuffer*)command_buffer).number);
}

mpsnn::CommandBuffer& recorder(id command_buffer) {
  if ([command_buffer isKindOfClass:[MPSCommandBuffer class]]) command_buffer = [command_buffer commandBuffer];
  if (![command_buffer isKindOfClass:[SimCommandBuffer class]]) raise("this is no command buffer");
  CommandBufferBody& mine = body<CommandBufferBody>(command_buffer);
  if (mine.buffer->status() != mpsnn::CommandBufferStatus::NotEnqueued) raise("encode: this command buffer was committed already");
  if (mine.has_open_encoder) raise("encode: an encoder of this command buffer has not ended");
  return *mine.buffer;
}

id make_buffer(std::size_t count) { return [[[SimBuffer alloc] initWithLength:std::max<std::size_t>(1, count) * sizeof(float)] autorelease]; }

mpsnn::Buffer floats(id buffer, NSUInteger byte_offset, std::size_t count) {
  if (!buffer) return {};
  if (byte_offset % 4 != 0 || byte_offset + count * sizeof(float) > [(SimBuffer*)buffer length]) raise("a Metal buffer is too short for its numbers");
  return mpsnn::Buffer(hold(buffer), static_cast<char*>([(SimBuffer*)buffer contents]) + byte_offset, count, mpsnn::ElementType::float32);
}

mpsnn::Buffer floats(id buffer, NSUInteger byte_offset) {
  return buffer ? floats(buffer, byte_offset, ([(SimBuffer*)buffer length] - byte_offset) / sizeof(float)) : mpsnn::Buffer();
}

id mirror(mpsnn::CommandBuffer* command_buffer, const mpsnn::Buffer& source, double scale) {
  if (!source) return nil;
  id buffer = make_buffer(source.count());
  auto fill = [source, target = floats(buffer), scale] {
    for (std::size_t i = 0; i < source.count(); ++i) target.floats()[i] = static_cast<float>(source.at(i) * scale);
  };
  if (command_buffer) command_buffer->record(fill);
  else fill();
  return buffer;
}

}  // namespace sim
