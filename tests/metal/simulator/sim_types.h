// SPDX-License-Identifier: Apache-2.0
#pragma once
#import <Foundation/Foundation.h>

#include <stdint.h>

/// Types of Metal that the classes of MPS mention, and the base of every toy object.
typedef NSUInteger MTLPixelFormat, MTLTextureType, MTLTextureUsage, MTLCPUCacheMode, MTLStorageMode, MTLResourceOptions, MTLCommandBufferStatus;
struct MTLOrigin { NSUInteger x, y, z; };
struct MTLSize { NSUInteger width, height, depth; };
struct MTLRegion { struct MTLOrigin origin; struct MTLSize size; };

/// A block. Here it is no Objective-C object: copy it with _Block_copy, never retain it.
typedef void* SimBlock;

namespace sim {
/// What a toy object keeps beside its instance variables: GCC's runtime runs no constructors of those.
struct Body {
  virtual ~Body() = default;
};
}  // namespace sim

/// Base of all toy classes: counts live objects.
@interface SimObject : NSObject {
 @public
  sim::Body* _body;
}
/// Values of the superclass' properties, for copies.
- (void)sim_copyTo:(id)copy;
/// What a category keeps in `_body`, for copies.
- (void)sim_copyBodyTo:(id)copy;
@end
