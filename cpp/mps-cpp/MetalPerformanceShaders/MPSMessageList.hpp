// SPDX-License-Identifier: Apache-2.0
// For programs that check the table and for nothing else: every entry adds itself to messages(), with type codes made from its
// C++ types. A type without a code does not link.
#pragma once

#include <Foundation/Foundation.hpp>
#include <Metal/Metal.hpp>

#include <string>
#include <string_view>
#include <vector>

namespace MPS::Private {

struct ListedMessage {
  const char* owner;  // a class, or <a protocol>
  char kind;
  const char* selector;
  std::vector<std::string> types;  // the result, then the arguments
};

inline std::vector<ListedMessage>& messages() {
  static std::vector<ListedMessage> table;
  return table;
}

// Apple's name of a wrapper class, from the compiler's own name of the type: MPS::NNImageNode is MPSNNImageNode.
template <class T>
std::string objective_c_name() {
  std::string_view text = __PRETTY_FUNCTION__;
  text.remove_prefix(text.find("T = ") + 4);
  text = text.substr(0, text.find_first_of(";]"));
  const std::size_t colon = text.find("::");
  return colon == text.npos ? std::string(text) : std::string(text.substr(0, colon)).append(text.substr(colon + 2));
}

// Apple's @encode letters on a 64-bit Mac, with 'B' for BOOL on both CPU types and the class's name after '@'.
template <class T, class = void>
struct Code {
  static std::string text();
};
#define MPS_CODE(TYPE, TEXT)                       \
  template <>                                      \
  struct Code<TYPE, void> {                        \
    static std::string text() { return TEXT; }     \
  };
MPS_CODE(void, "v")
MPS_CODE(bool, "B")
MPS_CODE(float, "f")
MPS_CODE(double, "d")
MPS_CODE(Class, "#")
MPS_CODE(SEL, ":")
MPS_CODE(void*, "^v")

template <class T>
struct Code<T, std::enable_if_t<std::is_integral_v<T>>> {
  static std::string text() {
    constexpr std::string_view letters = std::is_signed_v<T> ? "csiq" : "CSIQ";
    constexpr int log2_size = sizeof(T) == 8 ? 3 : sizeof(T) == 4 ? 2 : sizeof(T) == 2 ? 1 : 0;
    return std::string(1, letters[log2_size]);
  }
};
template <class T>
struct Code<T, std::enable_if_t<std::is_enum_v<T>>> : Code<std::underlying_type_t<T>> {};

template <class T, class = void>
struct HasCode : std::false_type {};
template <class T>
struct HasCode<T, std::void_t<decltype(&Code<T>::kIsValue)>> : std::true_type {};

template <class T>
struct Code<const T, void> : Code<T> {};
// A class is an Objective-C object unless a code says that it is a struct.
template <class T>
struct Code<T*, std::enable_if_t<std::is_class_v<T> && !std::is_const_v<T>>> {
  static std::string text() {
    if constexpr (HasCode<T>::value) return "^" + Code<T>::text();
    else return "@\"" + objective_c_name<T>() + "\"";
  }
};
template <class T>
struct Code<T*, std::enable_if_t<std::is_const_v<T>>> : Code<std::remove_const_t<T>*> {};
template <class T>
struct Code<T*, std::enable_if_t<std::is_pointer_v<T> || (std::is_arithmetic_v<T> && !std::is_const_v<T>)>> {
  static std::string text() { return "^" + Code<T>::text(); }
};
#ifdef __BLOCKS__
template <class R, class... A>
struct Code<R (^)(A...), void> {
  static std::string text() { return "@?"; }
};
#endif

template <class T>
struct FieldOf;
template <class Struct, class Field>
struct FieldOf<Field Struct::*> {
  using type = Field;
};
// MPS_LIST_STRUCT makes the code of a struct from the types of its members, in order.
#define MPS_LIST_STRUCT(NAME, OBJC_NAME, ...)                               \
  namespace Private {                                                       \
  template <>                                                               \
  struct Code<NAME, void> {                                                 \
    static constexpr bool kIsValue = true;                                  \
    static std::string text() { return "{" OBJC_NAME "=" + member_codes(__VA_ARGS__) + "}"; } \
  };                                                                        \
  }
template <class... Members>
std::string member_codes(Members...) {
  return (Code<typename FieldOf<Members>::type>::text() + ...);
}

template <class R, class... A>
std::vector<std::string> codes(R (*)(A...)) {
  return {Code<R>::text(), Code<A>::text()...};
}

template <class Entry>
bool list_message() {
  using Signature = typename Entry::Signature;
  messages().push_back({Entry::kClass, Entry::kKind, Entry::kSelector, codes(static_cast<Signature*>(nullptr))});
  return true;
}
#define MPS_LIST_MESSAGE(ID) inline const bool ID##_is_listed = Private::list_message<ID>();

}  // namespace MPS::Private

namespace MPS {
MPS_LIST_STRUCT(NS::Range, "_NSRange", &NS::Range::location, &NS::Range::length)
MPS_LIST_STRUCT(MTL::Origin, "MTLOrigin", &MTL::Origin::x, &MTL::Origin::y, &MTL::Origin::z)
MPS_LIST_STRUCT(MTL::Size, "MTLSize", &MTL::Size::width, &MTL::Size::height, &MTL::Size::depth)
MPS_LIST_STRUCT(MTL::Region, "MTLRegion", &MTL::Region::origin, &MTL::Region::size)
}  // namespace MPS
