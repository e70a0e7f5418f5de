// SPDX-License-Identifier: Apache-2.0
// The one translation unit that holds metal-cpp's private data.
#define NS_PRIVATE_IMPLEMENTATION
#define MTL_PRIVATE_IMPLEMENTATION
#include "backends/metal/objc.hpp"

namespace mpsnn::metal {

// metal-cpp only leaves room for these two classes.
NS::Data* data(const void* bytes, std::size_t count) {
  static const SEL selector = sel_registerName("dataWithBytes:length:");
  return MPS::Private::Sender::send<NS::Data*, const void*, NS::UInteger>(objc_lookUpClass("NSData"), selector, bytes, count);
}

NS::MutableArray* mutable_array() {
  static const SEL selector = sel_registerName("array");
  return MPS::Private::Sender::send<NS::MutableArray*>(objc_lookUpClass("NSMutableArray"), selector);
}

}  // namespace mpsnn::metal
