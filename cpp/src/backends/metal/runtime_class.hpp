// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <initializer_list>
#include <memory>

#include "backends/metal/objc.hpp"

/// Objective-C classes made at run time, with functions that Apple's and GCC's runtimes both have: MPS wants objects of its
/// protocols, and these hold ours. No Objective-C source, no compiler for it.
namespace mpsnn::metal {

// BOOL is bool on arm64 and signed char on x86_64; in a type string B and c.
#if defined(__APPLE__) && defined(__arm64__)
#define MPSNN_BOOL "B"
#else
#define MPSNN_BOOL "c"
#endif

struct ClassMethod {
  const char* selector;
  IMP implementation;
  const char* types;
};
/// A function that the framework calls: (object, selector, arguments…).
template <class Function>
ClassMethod method(const char* selector, Function* implementation, const char* types) {
  return {selector, reinterpret_cast<IMP>(implementation), types};
}

/// A subclass of NSObject that conforms to `protocol`. Its objects hold a shared_ptr, which copies share: MPS may keep a copy.
class RuntimeClass {
 public:
  RuntimeClass(const char* name, const char* protocol, std::initializer_list<ClassMethod> methods);
  const char* name() const { return class_getName(class_); }

  /// +1.
  id make(std::shared_ptr<void> held) const;
  /// What the object `self` holds.
  static const std::shared_ptr<void>& held(id self);

 private:
  Class class_;
};

/// The object behind `self`.
template <class Held>
Held& held(id self) {
  return *static_cast<Held*>(RuntimeClass::held(self).get());
}
template <class Apple, class Held>
Owned<Apple> make_object(const RuntimeClass& made, std::shared_ptr<Held> object) {
  return own(reinterpret_cast<Apple*>(made.make(std::move(object))));
}

}  // namespace mpsnn::metal
