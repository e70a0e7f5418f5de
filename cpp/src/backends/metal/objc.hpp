// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <MetalPerformanceShaders/MetalPerformanceShaders.hpp>

#include <exception>
#include <mutex>
#include <string>
#include <vector>

#include "mpsnn/error.hpp"

/// What every file of this engine needs of Objective-C: ownership, strings, arrays, and errors that may not leave a callback.
namespace mpsnn::metal {

/// Owns one reference. alloc/new/copy results go in with own(), everything else is autoreleased and goes in with keep().
template <class T>
using Owned = NS::SharedPtr<T>;
template <class T>
Owned<T> own(T* object) {
  return NS::TransferPtr(object);
}
template <class T>
Owned<T> keep(T* object) {
  return object ? NS::RetainPtr(object) : Owned<T>();
}

/// The autorelease pool of one entry, thread or callback.
class Pool {
 public:
  Pool() : pool_(NS::AutoreleasePool::alloc()->init()) {}
  ~Pool() { pool_->release(); }
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

 private:
  NS::AutoreleasePool* pool_;
};

// Autoreleased.
inline NS::String* string(const std::string& text) { return NS::String::string(text.c_str(), NS::UTF8StringEncoding); }
inline std::string text(const NS::String* string) { return string ? string->utf8String() : ""; }
NS::Data* data(const void* bytes, std::size_t count);
NS::MutableArray* mutable_array();
inline const NS::Array* array(const NS::MutableArray* mutable_array) { return reinterpret_cast<const NS::Array*>(mutable_array); }
template <class T>
NS::Array* array(const std::vector<T*>& objects) {
  return NS::Array::array(reinterpret_cast<const NS::Object* const*>(objects.data()), objects.size());
}
template <class T>
NS::Array* array(const std::vector<Owned<T>>& objects) {
  std::vector<T*> pointers;
  for (const Owned<T>& object : objects) pointers.push_back(object.get());
  return array(pointers);
}
inline std::size_t count(const NS::Array* array) { return array ? array->count() : 0; }

/// The result of a callback: autoreleased, into the pool of whoever calls.
template <class T>
id returned(const Owned<T>& object) {
  return object ? reinterpret_cast<id>(object->retain()->autorelease()) : nullptr;
}

/// Our enums have Apple's values.
template <class Apple, class Ours>
constexpr Apple apple(Ours value) {
  return static_cast<Apple>(value);
}

/// The first exception of callbacks that an Objective-C framework made: it may not pass through the framework, so it waits here.
class KeptError {
 public:
  /// Runs `call`; on an exception keeps that and returns `otherwise`.
  template <class Result, class Call>
  Result guard(Result otherwise, Call call) {
    try {
      Pool pool;
      return call();
    } catch (...) {
      keep(std::current_exception());
      return otherwise;
    }
  }
  /// The same for a call that makes an object.
  template <class T, class Call>
  id guard_object(Call call) {
    return returned(guard(Owned<T>(), call));
  }
  void keep(std::exception_ptr error) {
    std::lock_guard lock(mutex_);
    if (!error_) error_ = std::move(error);
  }
  /// Throws what was kept, once.
  void rethrow() {
    std::exception_ptr error;
    {
      std::lock_guard lock(mutex_);
      std::swap(error, error_);
    }
    if (error) std::rethrow_exception(error);
  }

 private:
  std::mutex mutex_;
  std::exception_ptr error_;
};

}  // namespace mpsnn::metal
