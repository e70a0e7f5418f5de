// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <variant>
#include <vector>

namespace mpsnn {

/// A JSON value: just what saved graph structures need. The library depends on the standard library alone, so it reads its
/// own files itself.
class Json {
 public:
  using Array = std::vector<Json>;
  using Object = std::map<std::string, Json>;

  Json() = default;
  Json(bool value) : value_(value) {}
  Json(int value) : value_(static_cast<double>(value)) {}
  Json(double value) : value_(value) {}
  Json(std::string value) : value_(std::move(value)) {}
  Json(const char* value) : value_(std::string(value)) {}
  Json(Array value) : value_(std::move(value)) {}
  Json(Object value) : value_(std::move(value)) {}
  Json(std::initializer_list<std::pair<const std::string, Json>> members) : value_(Object(members)) {}

  /// Throws FileError for anything but one JSON value in UTF-8; nesting is limited to 64, and members must differ in name.
  static Json parse(const std::string& text);
  std::string text() const;

  bool is_null() const { return std::holds_alternative<std::monostate>(value_); }
  /// Each throws FileError when the value is of another kind; `where` names it in the text.
  bool boolean(const std::string& where) const;
  double number(const std::string& where) const;
  /// A number without fraction in the range of int64 that doubles hold exactly.
  std::int64_t integer(const std::string& where) const;
  const std::string& string(const std::string& where) const;
  const Array& array(const std::string& where) const;
  const Object& object(const std::string& where) const;
  /// The member of that name; throws FileError when this is no object or has no such member.
  const Json& at(const std::string& name) const;
  bool has(const std::string& name) const;

 private:
  std::variant<std::monostate, bool, double, std::string, Array, Object> value_;
};

}  // namespace mpsnn
