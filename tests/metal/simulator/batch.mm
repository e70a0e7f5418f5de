// SPDX-License-Identifier: Apache-2.0
#include <set>

#include "sim.h"

/// Batches: arrays of images or states with one image each, and the C functions on them.
using namespace sim;

namespace sim {

mpsnn::ImagePtr gather(NSArray* batch, mpsnn::CommandBuffer& command_buffer) {
  if ([batch count] == 0) raise("encode: a batch holds at least one image");
  mpsnn::Shape shape = shape_of([batch objectAtIndex:0]);
  for (NSUInteger i = 0; i < [batch count]; ++i) {
    MPSImage* image = [batch objectAtIndex:i];
    if (shape_of(image) != shape || format_of(image) != format_of([batch objectAtIndex:0])) raise("encode: images of a batch have one size and one format");
    if (shape.images != 1 && [batch count] != 1) raise("encode: images of a batch hold one image each");
    count_read(image);
  }
  shape.images *= static_cast<int>([batch count]);
  auto whole = std::make_shared<mpsnn::Image>(shape);
  command_buffer.record([whole, held = hold([[batch copy] autorelease])] {
    NSArray* images = object_of(held);
    float* target = whole->floats();
    for (NSUInteger i = 0; i < [images count]; ++i) {
      const std::vector<float> numbers = numbers_of([images objectAtIndex:i]);
      target = std::copy(numbers.begin(), numbers.end(), target);
    }
  });
  return whole;
}

void scatter(const mpsnn::ImagePtr& whole, NSArray* batch, mpsnn::CommandBuffer& command_buffer) {
  for (NSUInteger i = 0; i < [batch count]; ++i) announce_write([batch objectAtIndex:i]);
  command_buffer.record([whole, held = hold([[batch copy] autorelease])] {
    NSArray* images = object_of(held);
    std::size_t first = 0;
    for (NSUInteger i = 0; i < [images count]; ++i) {
      const std::size_t count = shape_of([images objectAtIndex:i]).count();
      write_numbers([images objectAtIndex:i], whole->buffer().part(first, count));
      first += count;
    }
  });
}

}  // namespace sim

namespace {

/// Once for each distinct object.
template <class F>
NSUInteger for_each_distinct(NSArray* batch, F&& f) {
  std::set<id> seen;
  for (NSUInteger i = 0; i < [batch count]; ++i)
    if (seen.insert([batch objectAtIndex:i]).second) f([batch objectAtIndex:i], i);
  return seen.size();
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

MTLRegion MPSRectNoClip = {{0, 0, 0}, {NSUIntegerMax, NSUIntegerMax, NSUIntegerMax}};

NSUInteger MPSImageBatchIncrementReadCount(NSArray* batch, NSInteger amount) {
  return for_each_distinct(batch, [&](MPSImage* image, NSUInteger) { raise_read_count(image, amount); });
}
void MPSImageBatchSynchronize(NSArray* batch, id command_buffer) {
  for_each_distinct(batch, [&](MPSImage* image, NSUInteger) { [image synchronizeOnCommandBuffer:command_buffer]; });
}
NSUInteger MPSImageBatchResourceSize(NSArray* batch) {
  NSUInteger sum = 0;
  for_each_distinct(batch, [&](MPSImage* image, NSUInteger) { sum += [image resourceSize]; });
  return sum;
}
NSInteger MPSImageBatchIterate(NSArray* batch, SimBlock block) {
  struct Literal { void* isa; int flags, reserved; NSInteger (*invoke)(void*, MPSImage*, NSUInteger); };
  NSInteger result = 0;
  for_each_distinct(batch, [&](MPSImage* image, NSUInteger index) {
    if (result == 0) result = static_cast<Literal*>(block)->invoke(block, image, index);
  });
  return result;
}
NSUInteger MPSStateBatchIncrementReadCount(NSArray* batch, NSInteger amount) {
  return for_each_distinct(batch, [&](MPSState* state, NSUInteger) {
    if ([state isTemporary] && [state readCount] != 0) [state setReadCount:[state readCount] + amount];
  });
}
void MPSStateBatchSynchronize(NSArray* batch, id command_buffer) {
  for_each_distinct(batch, [&](MPSState* state, NSUInteger) { [state synchronizeOnCommandBuffer:command_buffer]; });
}
NSUInteger MPSStateBatchResourceSize(NSArray* batch) {
  NSUInteger sum = 0;
  for_each_distinct(batch, [&](MPSState* state, NSUInteger) { sum += [state resourceSize]; });
  return sum;
}

}  // extern "C"
#pragma GCC visibility pop
