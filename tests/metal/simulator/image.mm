// SPDX-License-Identifier: Apache-2.0
#include <atomic>
#include <bit>
#include <cmath>
#include <cstring>

#include "sim.h"

/// MPSImage and its kin. Numbers are stored densely in the image's own format, height x width x channels, image after image.
using namespace sim;

namespace {

enum Format : NSUInteger { kUnorm8 = 1, kUnorm16 = 2, kFloat16 = 3, kFloat32 = 4 };

std::size_t format_bytes(NSUInteger format) {
  switch (format) {
    case kUnorm8: return 1;
    case kUnorm16: case kFloat16: return 2;
    case kFloat32: return 4;
  }
  raise("an image needs a channel format, not " + std::to_string(format));
}

float half_to_float(std::uint16_t half) {
  const std::uint32_t sign = std::uint32_t(half & 0x8000) << 16, exponent = half >> 10 & 31, mantissa = half & 1023;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000 | mantissa << 13);
  if (exponent == 0) return (sign ? -1.0f : 1.0f) * static_cast<float>(mantissa) * 0x1p-24f;
  return std::bit_cast<float>(sign | (exponent + 112) << 23 | mantissa << 13);
}

/// Rounds to the nearest, ties to even.
std::uint16_t float_to_half(float value) {
  const std::uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const float size = std::fabs(value);
  if (std::isnan(value)) return sign | 0x7e00;
  if (size >= 65520.0f) return sign | 0x7c00;
  if (size < 0x1p-14f) return sign | static_cast<std::uint16_t>(std::nearbyint(size * 0x1p24f));
  int exponent;
  std::frexp(size, &exponent);                                                              // size = m * 2^exponent, m in [0.5, 1)
  const int mantissa = static_cast<int>(std::nearbyint(std::ldexp(size, 11 - exponent)));  // 1024 to 2048
  return sign | static_cast<std::uint16_t>(((exponent + 13) << 10) + mantissa);            // 2048 carries into the exponent
}

float load(const std::uint8_t* at, NSUInteger format) {
  std::uint16_t two;
  float four;
  switch (format) {
    case kUnorm8: return *at / 255.0f;
    case kUnorm16: std::memcpy(&two, at, 2); return two / 65535.0f;
    case kFloat16: std::memcpy(&two, at, 2); return half_to_float(two);
    default: std::memcpy(&four, at, 4); return four;
  }
}

void store(std::uint8_t* at, NSUInteger format, float value) {
  auto unorm = [&](float top) { return static_cast<std::uint16_t>(std::nearbyint(std::fmin(std::fmax(value, 0.0f), 1.0f) * top)); };
  std::uint16_t two;
  switch (format) {
    case kUnorm8: *at = static_cast<std::uint8_t>(unorm(255)); return;
    case kUnorm16: two = unorm(65535); break;
    case kFloat16: two = float_to_half(value); break;
    default: std::memcpy(at, &value, 4); return;
  }
  std::memcpy(at, &two, 2);
}

struct ImageBody : Body {
  mpsnn::Shape shape;
  NSUInteger format = kFloat32, usage = 0;
  bool is_temporary = false;
  NSUInteger read_count = 1;
  std::vector<std::uint8_t> bytes;     // empty until somebody needs them
  std::atomic<int> writes_under_way{0};
  std::atomic<bool> is_out_of_date{false};  // written by recorded work, not synchronized yet
  Held label;
  std::vector<std::uint8_t>& memory() {
    if (bytes.empty()) bytes.resize(shape.count() * format_bytes(format));
    return bytes;
  }
};

ImageBody& image_body(MPSImage* image) {
  if (![image isKindOfClass:[MPSImage class]]) raise("this is no MPSImage");
  return body<ImageBody>(image);
}

ImageBody& readable(MPSImage* image, const char* what) {
  ImageBody& mine = image_body(image);
  if (mine.is_temporary) raise(std::string(what) + ": a temporary image lives in memory of the GPU alone");
  if (mine.writes_under_way != 0) raise(std::string(what) + ": the command buffer that writes this image has not completed");
  return mine;
}

/// Walks the elements that a read or a write touches: f(bytes of the image, bytes of the caller).
template <class F>
void walk(ImageBody& image, NSUInteger layout, NSUInteger column_bytes, NSUInteger row_bytes, NSUInteger image_bytes, const MTLRegion& region,
          const MPSImageReadWriteParams& channels, NSUInteger image_index, F&& f) {
  const mpsnn::Shape& s = image.shape;
  const NSUInteger size = format_bytes(image.format), count = channels.numberOfFeatureChannelsToReadWrite;
  const NSUInteger images = std::max<NSUInteger>(1, region.size.depth), first = image_index + region.origin.z;
  if (region.origin.x + region.size.width > NSUInteger(s.width) || region.origin.y + region.size.height > NSUInteger(s.height) ||
      first + images > NSUInteger(s.images) || channels.featureChannelOffset + count > NSUInteger(s.channels))
    raise("readBytes or writeBytes: the region leaves the image " + s.text());
  if (layout > 1) raise("readBytes or writeBytes: there is no layout " + std::to_string(layout));
  std::vector<std::uint8_t>& memory = image.memory();
  for (NSUInteger n = 0; n < images; ++n)
    for (NSUInteger y = 0; y < region.size.height; ++y)
      for (NSUInteger x = 0; x < region.size.width; ++x)
        for (NSUInteger c = 0; c < count; ++c) {
          const NSUInteger inside = (((first + n) * s.height + region.origin.y + y) * s.width + region.origin.x + x) * s.channels + channels.featureChannelOffset + c;
          const NSUInteger outside = layout == 0 ? n * image_bytes + y * row_bytes + x * column_bytes + c * size
                                                 : n * image_bytes + (c * region.size.height + y) * row_bytes + x * column_bytes;
          f(memory.data() + inside * size, outside, size);
        }
}

}  // namespace

// --- descriptor and allocators -----------------------------------------------------------------------------------

@implementation MPSImageDescriptor (Sim)
- (id)init {
  if (!(self = [super init])) return nil;
  _width = _height = _featureChannels = _numberOfImages = 1;
  _usage = 3;
  return self;
}
+ (id)imageDescriptorWithChannelFormat:(MPSImageFeatureChannelFormat)format width:(NSUInteger)width height:(NSUInteger)height featureChannels:(NSUInteger)channels {
  return [self imageDescriptorWithChannelFormat:format width:width height:height featureChannels:channels numberOfImages:1 usage:3];
}
+ (id)imageDescriptorWithChannelFormat:(MPSImageFeatureChannelFormat)format
                                 width:(NSUInteger)width
                                height:(NSUInteger)height
                       featureChannels:(NSUInteger)channels
                        numberOfImages:(NSUInteger)images
                                 usage:(MTLTextureUsage)usage {
  MPSImageDescriptor* d = [[[self alloc] init] autorelease];
  d->_channelFormat = format;
  d->_width = width;
  d->_height = height;
  d->_featureChannels = channels;
  d->_numberOfImages = images;
  d->_usage = usage;
  return d;
}
@end

/// The two predefined allocators; they live for ever.
@interface SimImageAllocator : NSObject <MPSImageAllocator> {
 @public
  BOOL _isTemporary;
}
@end
@implementation SimImageAllocator
- (id)retain { return self; }
- (oneway void)release {}
- (id)autorelease { return self; }
- (MPSImage*)imageForCommandBuffer:(id)command_buffer imageDescriptor:(MPSImageDescriptor*)descriptor kernel:(MPSKernel*)kernel {
  if (_isTemporary) return [MPSTemporaryImage temporaryImageWithCommandBuffer:command_buffer imageDescriptor:descriptor];
  return [[[MPSImage alloc] initWithDevice:the_device() imageDescriptor:descriptor] autorelease];
}
@end

static id allocator(BOOL is_temporary) {
  SimImageAllocator* result = [SimImageAllocator new];
  result->_isTemporary = is_temporary;
  return result;
}

// --- images ------------------------------------------------------------------------------------------------------

@implementation MPSImage
+ (id)defaultAllocator {
  static id lasting = allocator(NO);
  return lasting;
}
- (id)initWithDevice:(id)device imageDescriptor:(MPSImageDescriptor*)d {
  require_device(device, "MPSImage");
  if (!d) raise("MPSImage: the descriptor is missing");
  if (d->_width == 0 || d->_height == 0 || d->_featureChannels == 0 || d->_numberOfImages == 0) raise("MPSImage: no size may be 0");
  format_bytes(d->_channelFormat);
  if (!(self = [super init])) return nil;
  auto* mine = new ImageBody;
  mine->shape = {int(d->_numberOfImages), int(d->_height), int(d->_width), int(d->_featureChannels)};
  mine->format = d->_channelFormat;
  mine->usage = d->_usage;
  _body = mine;
  return self;
}
- (id)device { return the_device(); }
- (NSUInteger)width { return image_body(self).shape.width; }
- (NSUInteger)height { return image_body(self).shape.height; }
- (NSUInteger)featureChannels { return image_body(self).shape.channels; }
- (NSUInteger)numberOfImages { return image_body(self).shape.images; }
- (MPSImageFeatureChannelFormat)featureChannelFormat { return image_body(self).format; }
- (MTLTextureUsage)usage { return image_body(self).usage; }
- (NSUInteger)precision {
  static constexpr NSUInteger bits[] = {0, 8, 16, 11, 24};
  return bits[image_body(self).format];
}
- (size_t)pixelSize { return format_bytes(image_body(self).format) * ([self featureChannels] > 2 ? 4 : [self featureChannels]); }
- (NSUInteger)resourceSize { return image_body(self).shape.count() * format_bytes(image_body(self).format); }
- (MPSImage*)parent { return nil; }
- (NSString*)label { return object_of(image_body(self).label); }
- (void)setLabel:(NSString*)label { image_body(self).label = hold([[label copy] autorelease]); }
- (void)synchronizeOnCommandBuffer:(id)command_buffer { synchronize(self, recorder(command_buffer)); }

- (void)sim_read:(void*)target
          layout:(NSUInteger)layout
        rowBytes:(NSUInteger)row_bytes
      imageBytes:(NSUInteger)image_bytes
          region:(MTLRegion)region
        channels:(MPSImageReadWriteParams)channels
           index:(NSUInteger)index {
  ImageBody& mine = readable(self, "readBytes");
  if (mine.is_out_of_date) raise("readBytes: the image was not synchronized on the command buffer that wrote it");
  const NSUInteger column = format_bytes(mine.format) * (layout == 0 ? channels.numberOfFeatureChannelsToReadWrite : 1);
  walk(mine, layout, column, row_bytes, image_bytes, region, channels, index,
       [&](const std::uint8_t* inside, NSUInteger outside, NSUInteger size) { std::memcpy(static_cast<std::uint8_t*>(target) + outside, inside, size); });
}
- (void)sim_write:(const void*)source
           layout:(NSUInteger)layout
      columnBytes:(NSUInteger)column_bytes
         rowBytes:(NSUInteger)row_bytes
       imageBytes:(NSUInteger)image_bytes
           region:(MTLRegion)region
         channels:(MPSImageReadWriteParams)channels
            index:(NSUInteger)index {
  ImageBody& mine = readable(self, "writeBytes");
  walk(mine, layout, column_bytes, row_bytes, image_bytes, region, channels, index, [&](std::uint8_t* inside, NSUInteger outside, NSUInteger size) {
    std::memcpy(inside, static_cast<const std::uint8_t*>(source) + outside, size);
  });
  mine.is_out_of_date = false;
}
- (MTLRegion)sim_wholeRegion { return {{0, 0, 0}, {[self width], [self height], 1}}; }
- (NSUInteger)sim_rowBytes:(NSUInteger)layout region:(MTLRegion)region channels:(NSUInteger)channels {
  return format_bytes(image_body(self).format) * region.size.width * (layout == 0 ? channels : 1);
}
- (NSUInteger)sim_columnBytes:(NSUInteger)layout channels:(NSUInteger)channels { return format_bytes(image_body(self).format) * (layout == 0 ? channels : 1); }

- (void)readBytes:(void*)bytes dataLayout:(MPSDataLayout)layout imageIndex:(NSUInteger)index {
  const MTLRegion region = [self sim_wholeRegion];
  [self readBytes:bytes dataLayout:layout bytesPerRow:[self sim_rowBytes:layout region:region channels:[self featureChannels]] region:region
      featureChannelInfo:{0, [self featureChannels]} imageIndex:index];
}
- (void)readBytes:(void*)bytes
           dataLayout:(MPSDataLayout)layout
          bytesPerRow:(NSUInteger)row_bytes
               region:(MTLRegion)region
   featureChannelInfo:(MPSImageReadWriteParams)channels
           imageIndex:(NSUInteger)index {
  const NSUInteger image_bytes = row_bytes * region.size.height * (layout == 0 ? 1 : channels.numberOfFeatureChannelsToReadWrite);
  [self sim_read:bytes layout:layout rowBytes:row_bytes imageBytes:image_bytes region:region channels:channels index:index];
}
- (void)readBytes:(void*)bytes
           dataLayout:(MPSDataLayout)layout
          bytesPerRow:(NSUInteger)row_bytes
        bytesPerImage:(NSUInteger)image_bytes
               region:(MTLRegion)region
   featureChannelInfo:(MPSImageReadWriteParams)channels
           imageIndex:(NSUInteger)index {
  [self sim_read:bytes layout:layout rowBytes:row_bytes imageBytes:image_bytes region:region channels:channels index:index];
}
- (void)writeBytes:(void*)bytes dataLayout:(MPSDataLayout)layout imageIndex:(NSUInteger)index {
  const MTLRegion region = [self sim_wholeRegion];
  [self writeBytes:bytes dataLayout:layout bytesPerRow:[self sim_rowBytes:layout region:region channels:[self featureChannels]] region:region
      featureChannelInfo:{0, [self featureChannels]} imageIndex:index];
}
- (void)writeBytes:(void*)bytes
           dataLayout:(MPSDataLayout)layout
          bytesPerRow:(NSUInteger)row_bytes
               region:(MTLRegion)region
   featureChannelInfo:(MPSImageReadWriteParams)channels
           imageIndex:(NSUInteger)index {
  const NSUInteger image_bytes = row_bytes * region.size.height * (layout == 0 ? 1 : channels.numberOfFeatureChannelsToReadWrite);
  [self writeBytes:bytes dataLayout:layout bytesPerRow:row_bytes bytesPerImage:image_bytes region:region featureChannelInfo:channels imageIndex:index];
}
- (void)writeBytes:(void*)bytes
           dataLayout:(MPSDataLayout)layout
          bytesPerRow:(NSUInteger)row_bytes
        bytesPerImage:(NSUInteger)image_bytes
               region:(MTLRegion)region
   featureChannelInfo:(MPSImageReadWriteParams)channels
           imageIndex:(NSUInteger)index {
  [self writeBytes:bytes dataLayout:layout bytesPerColumn:[self sim_columnBytes:layout channels:channels.numberOfFeatureChannelsToReadWrite]
         bytesPerRow:row_bytes bytesPerImage:image_bytes region:region featureChannelInfo:channels imageIndex:index];
}
- (void)writeBytes:(void*)bytes
           dataLayout:(MPSDataLayout)layout
       bytesPerColumn:(NSUInteger)column_bytes
          bytesPerRow:(NSUInteger)row_bytes
        bytesPerImage:(NSUInteger)image_bytes
               region:(MTLRegion)region
   featureChannelInfo:(MPSImageReadWriteParams)channels
           imageIndex:(NSUInteger)index {
  [self sim_write:bytes layout:layout columnBytes:column_bytes rowBytes:row_bytes imageBytes:image_bytes region:region channels:channels index:index];
}
@end

@implementation MPSTemporaryImage
+ (id)defaultAllocator {
  static id fleeting = allocator(YES);
  return fleeting;
}
+ (void)prefetchStorageWithCommandBuffer:(id)command_buffer imageDescriptorList:(NSArray*)descriptors {
}
+ (id)temporaryImageWithCommandBuffer:(id)command_buffer imageDescriptor:(MPSImageDescriptor*)descriptor {
  recorder(command_buffer);
  MPSTemporaryImage* image = [[[self alloc] initWithDevice:the_device() imageDescriptor:descriptor] autorelease];
  image_body(image).is_temporary = true;
  return image;
}
- (NSUInteger)readCount { return image_body(self).read_count; }
- (void)setReadCount:(NSUInteger)count {
  if (image_body(self).read_count == 0 && count != 0) raise("setReadCount: the memory of this temporary image was given back");
  image_body(self).read_count = count;
}
@end

namespace sim {

mpsnn::Shape shape_of(MPSImage* image) { return image_body(image).shape; }
MPSImageFeatureChannelFormat format_of(MPSImage* image) { return image_body(image).format; }

MPSImage* make_image(const mpsnn::Shape& shape, MPSImageFeatureChannelFormat format) {
  MPSImageDescriptor* d = [MPSImageDescriptor imageDescriptorWithChannelFormat:format width:shape.width height:shape.height featureChannels:shape.channels
                                                                 numberOfImages:shape.images usage:3];
  return [[[MPSImage alloc] initWithDevice:the_device() imageDescriptor:d] autorelease];
}

MPSImage* make_temporary_image(const mpsnn::Shape& shape, MPSImageFeatureChannelFormat format, NSUInteger read_count) {
  MPSImageDescriptor* d = [MPSImageDescriptor imageDescriptorWithChannelFormat:format width:shape.width height:shape.height featureChannels:shape.channels
                                                                 numberOfImages:shape.images usage:3];
  MPSTemporaryImage* image = [[[MPSTemporaryImage alloc] initWithDevice:the_device() imageDescriptor:d] autorelease];
  image_body(image).is_temporary = true;
  image_body(image).read_count = read_count;
  return image;
}

void count_read(MPSImage* image) {
  ImageBody& mine = image_body(image);
  if (!mine.is_temporary) return;
  if (mine.read_count == 0) raise("a temporary image is read although its read count is 0");
  --mine.read_count;
}

void raise_read_count(MPSImage* image, NSInteger amount) {
  ImageBody& mine = image_body(image);
  if (mine.is_temporary && mine.read_count != 0) mine.read_count += amount;
}

float rounded_to_half(float value) { return half_to_float(float_to_half(value)); }

std::vector<float> numbers_of(MPSImage* image) {
  ImageBody& mine = image_body(image);
  const std::vector<std::uint8_t>& memory = mine.memory();
  const std::size_t size = format_bytes(mine.format);
  std::vector<float> numbers(mine.shape.count());
  for (std::size_t i = 0; i < numbers.size(); ++i) numbers[i] = load(memory.data() + i * size, mine.format);
  return numbers;
}

void announce_write(MPSImage* image) { ++image_body(image).writes_under_way; }

void write_numbers(MPSImage* image, const mpsnn::Buffer& numbers) {
  ImageBody& mine = image_body(image);
  std::vector<std::uint8_t>& memory = mine.memory();
  const std::size_t size = format_bytes(mine.format);
  for (std::size_t i = 0; i < mine.shape.count(); ++i) store(memory.data() + i * size, mine.format, static_cast<float>(numbers.at(i)));
  mine.is_out_of_date = true;
  --mine.writes_under_way;
}

void synchronize(MPSImage* image, mpsnn::CommandBuffer& command_buffer) {
  if (image_body(image).is_temporary) raise("synchronizeOnCommandBuffer: a temporary image has no memory that the CPU sees");
  command_buffer.record([held = hold(image)] { image_body(object_of(held)).is_out_of_date = false; });
}

}  // namespace sim
