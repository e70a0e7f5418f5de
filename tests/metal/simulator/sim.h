// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "mpsnn/mpsnn.hpp"
#include "sim_classes.h"
#include "support.hpp"

/// The simulator: toy classes under Apple's names that compute with the `reference` engine. For tests only.
/// Where Apple's frameworks end the process, it raises an Objective-C exception that says why.
namespace sim {

[[noreturn]] void raise(const std::string& sentence);
/// Runs `f`, turning C++ exceptions into Objective-C ones.
template <class F>
auto guarded(F&& f) -> decltype(f()) {
  std::conditional_t<std::is_void_v<decltype(f())>, bool, decltype(f())> result{};
  const std::string sentence = failure_of([&] {
    if constexpr (std::is_void_v<decltype(f())>) f();
    else result = f();
  });
  if (!sentence.empty()) raise(sentence);
  if constexpr (!std::is_void_v<decltype(f())>) return result;
}

struct Pool {
  NSAutoreleasePool* pool = [NSAutoreleasePool new];
  Pool() = default;
  Pool(const Pool&) = delete;
  ~Pool() { [pool drain]; }
};

/// A strong reference that C++ objects and recorded work can hold, and drop on any thread.
using Held = std::shared_ptr<void>;
Held hold(id object);
inline id object_of(const Held& held) { return static_cast<id>(held.get()); }

template <class T>
T& body(SimObject* object) {
  if (!object->_body) raise(std::string(class_getName([object class])) + ": used before one of its initializers has run");
  return static_cast<T&>(*object->_body);
}

NSString* text(const std::string& string);
std::string text(NSString* string);

/// Calls a block that takes objects.
template <class... Arguments>
void call_block(SimBlock block, Arguments... arguments) {
  struct Literal { void* isa; int flags, reserved; void (*invoke)(void*, Arguments...); };
  static_cast<Literal*>(block)->invoke(block, arguments...);
}
extern "C" SimBlock _Block_copy(const void* block);
extern "C" void _Block_release(const void* block);

/// The one device: lives as long as the process and does not count as a live object.
id the_device();
mpsnn::DevicePtr reference_device();
void require_device(id device, const char* what);

/// What records on behalf of a Metal command buffer, itself or an MPSCommandBuffer around it. Raises once it is committed.
mpsnn::CommandBuffer& recorder(id command_buffer);

/// What tests ask of the device: see control.mm.
std::string take_failure();
void wait_while_held();
long next_number();
void trace(const char* what, long command_buffer);
void trace(const char* what, id command_buffer);

mpsnn::Shape shape_of(MPSImage* image);
MPSImageFeatureChannelFormat format_of(MPSImage* image);
MPSImage* make_image(const mpsnn::Shape& shape, MPSImageFeatureChannelFormat format);
MPSImage* make_temporary_image(const mpsnn::Shape& shape, MPSImageFeatureChannelFormat format, NSUInteger read_count);
/// One read of an image by an encode: checks and lowers the read count of a temporary one.
void count_read(MPSImage* image);
/// Recorded work reads or writes the numbers of an image; a write is announced when it is encoded.
std::vector<float> numbers_of(MPSImage* image);
void announce_write(MPSImage* image);
void write_numbers(MPSImage* image, const mpsnn::Buffer& numbers);
void synchronize(MPSImage* image, mpsnn::CommandBuffer& command_buffer);
void raise_read_count(MPSImage* image, NSInteger amount);
float rounded_to_half(float value);

/// A Metal buffer of `count` floats, and its floats.
id make_buffer(std::size_t count);
mpsnn::Buffer floats(id buffer, NSUInteger byte_offset = 0);
mpsnn::Buffer floats(id buffer, NSUInteger byte_offset, std::size_t count);
/// A Metal buffer that gets the numbers of `source` when the command buffer runs; nil for no numbers.
id mirror(mpsnn::CommandBuffer* command_buffer, const mpsnn::Buffer& source, double scale = 1);

/// Descriptors and policies as ours.
mpsnn::CNNConvolutionDescriptor converted(MPSCNNConvolutionDescriptor* descriptor);
mpsnn::NNNeuronDescriptor converted(MPSNNNeuronDescriptor* descriptor);
MPSNNNeuronDescriptor* neuron_descriptor(const mpsnn::NNNeuronDescriptor& neuron);
mpsnn::CNNLossDescriptor converted(MPSCNNLossDescriptor* descriptor);
mpsnn::CNNYOLOLossDescriptor converted(MPSCNNYOLOLossDescriptor* descriptor);
std::vector<float> converted(NSData* data);
mpsnn::PaddingPtr padding(id policy);
id padding_object(const mpsnn::PaddingPtr& policy);
mpsnn::HandlePtr handle(id object);
id handle_object(const mpsnn::HandlePtr& handle);
NSArray* handle_objects(const std::vector<mpsnn::HandlePtr>& handles);

/// A data source of ours that asks an Objective-C one; one for each object, so that nodes that share theirs share ours.
template <class Source>
std::shared_ptr<Source> data_source(id object, bool is_nullable);
/// What callbacks of data sources need to know of the encode that they belong to; one per thread.
struct Encoding {
  id command_buffer = nil;
  std::size_t images = 1;
};
Encoding& encoding();

/// States.
struct StateBody : Body {
  std::vector<Held> buffers;
  Held label;
  bool is_temporary = false;
  NSUInteger read_count = 1;
};
/// One read of a state by an encode.
void count_read(MPSState* state);
/// Toy states of ours. With a command buffer (GPU style) they are temporary and get their numbers when it runs.
MPSCNNConvolutionGradientState* gradient_state(mpsnn::CommandBuffer* command_buffer, const mpsnn::CNNConvolutionGradientState& state);
MPSCNNConvolutionWeightsAndBiasesState* weights_state(mpsnn::CommandBuffer* command_buffer, const mpsnn::CNNConvolutionWeightsAndBiasesState& state);
MPSCNNBatchNormalizationState* normalization_state(mpsnn::CommandBuffer* command_buffer, const mpsnn::CNNBatchNormalizationState& state);
/// One state per image of a batch: the sum of their gradients is `state`'s.
NSArray* affine_states(mpsnn::CommandBuffer* command_buffer, const mpsnn::CNNAffineGradientState& state, Class state_class, std::size_t images);
/// Raises unless the update of a data source has counted its read of a temporary state.
void require_read(MPSState* state, const char* callback);
/// States that a graph exports: not temporary, filled when the command buffer runs.
NSArray* exported_states(mpsnn::CommandBuffer& command_buffer, const mpsnn::StatePtr& state, bool is_group, std::size_t images);
std::shared_ptr<mpsnn::CNNLossLabels> labels_of(NSArray* batch, mpsnn::CommandBuffer& command_buffer);
void scatter_losses(NSArray* batch, const std::shared_ptr<mpsnn::CNNLossLabels>& labels, mpsnn::CommandBuffer& command_buffer);
/// All images of a batch as one of ours, filled when the command buffer runs; and back.
mpsnn::ImagePtr gather(NSArray* batch, mpsnn::CommandBuffer& command_buffer);
void scatter(const mpsnn::ImagePtr& whole, NSArray* batch, mpsnn::CommandBuffer& command_buffer);

}  // namespace sim
