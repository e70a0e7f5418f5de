// SPDX-License-Identifier: Apache-2.0
// How a message is sent, and the one place where it is written down. Each MPS_MESSAGE is an entry of the table: the class (or
// <protocol>), '-' or '+', the selector and the C++ signature. The entry sends with exactly these types, and the same types are
// what the judges compare with Apple's, in programs that define MPS_CPP_LIST_MESSAGES.
#pragma once

#include <Foundation/Foundation.hpp>
#include <Metal/Metal.hpp>

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace MPS::Private {

constexpr std::size_t colons(const char* selector) {
  std::size_t count = 0;
  for (; *selector; ++selector) count += *selector == ':';
  return count;
}

// NS::Object keeps sendMessage to classes that derive from it.
struct Sender : NS::Object {
  template <class R, class... A>
  static R send(const void* receiver, SEL selector, A... arguments) {
    return sendMessage<R, A...>(receiver, selector, arguments...);
  }
};

// Looked up at the first send, not when the program starts: 2,000 messages cost nothing until they are used.
template <class Entry, class Signature>
struct Message;

template <class Entry, class R, class... A>
struct Message<Entry, R(A...)> {
  using Signature = R(A...);
  static constexpr std::size_t kArguments = sizeof...(A);
  static SEL selector() {
    static const SEL registered = sel_registerName(Entry::kSelector);
    return registered;
  }
  static R send(const void* receiver, A... arguments) { return Sender::send<R, A...>(receiver, selector(), arguments...); }
  static R sendToClass(A... arguments) { return send(objc_lookUpClass(Entry::kClass), arguments...); }
};

}  // namespace MPS::Private

#ifdef MPS_CPP_LIST_MESSAGES
#include "MPSMessageList.hpp"
#else
#define MPS_LIST_MESSAGE(ID)
#define MPS_LIST_STRUCT(NAME, OBJC_NAME, ...)
#endif

#define MPS_MESSAGE(ID, CLASS, KIND, SELECTOR, ...)                                                  \
  struct ID : Private::Message<ID, __VA_ARGS__> {                                                    \
    static constexpr const char* kClass = CLASS;                                                     \
    static constexpr char kKind = KIND;                                                              \
    static constexpr const char* kSelector = SELECTOR;                                               \
    static_assert(Private::colons(SELECTOR) == kArguments, "one argument for each colon: " SELECTOR); \
  };                                                                                                 \
  MPS_LIST_MESSAGE(ID)

// SIZE is Apple's; a struct that is not trivially copyable would be passed by other rules.
#define MPS_STRUCT(NAME, SIZE, ...)                                                      \
  static_assert(sizeof(NAME) == SIZE && std::is_trivially_copyable_v<NAME>, "MPS" #NAME); \
  MPS_LIST_STRUCT(NAME, "MPS" #NAME, __VA_ARGS__)
