// SPDX-License-Identifier: Apache-2.0
#include "core/json.hpp"

#include <charconv>
#include <cmath>
#include <limits>
#include <cstdio>

#include "mpsnn/error.hpp"

namespace mpsnn {
namespace {

constexpr int kMaxNesting = 64;

class Parser {
 public:
  explicit Parser(const std::string& text) : text_(text) {}

  Json document() {
    Json value = parse_value(0);
    skip_space();
    if (position_ != text_.size()) fail("text behind the end");
    return value;
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw FileError("not a valid JSON text: " + what + " at byte " + std::to_string(position_) + ".",
                    {.expected = "JSON", .actual = what, .hint = "save the file again"});
  }

  void skip_space() {
    while (position_ < text_.size() && (text_[position_] == ' ' || text_[position_] == '\n' || text_[position_] == '\r' || text_[position_] == '\t'))
      ++position_;
  }

  char peek() {
    skip_space();
    if (position_ == text_.size()) fail("unexpected end");
    return text_[position_];
  }

  void expect(char c) {
    if (peek() != c) fail(std::string("no '") + c + "'");
    ++position_;
  }

  bool take(const char* word) {
    const std::string_view wanted(word);
    if (text_.compare(position_, wanted.size(), wanted) != 0) return false;
    position_ += wanted.size();
    return true;
  }

  Json parse_value(int depth) {
    if (depth > kMaxNesting) fail("more than 64 levels");
    switch (peek()) {
      case '{': return parse_object(depth);
      case '[': return parse_array(depth);
      case '"': return parse_string();
      default: break;
    }
    if (take("true")) return true;
    if (take("false")) return false;
    if (take("null")) return {};
    return parse_number();
  }

  Json parse_object(int depth) {
    Json::Object members;
    expect('{');
    if (peek() == '}') return ++position_, Json(std::move(members));
    for (;;) {
      if (peek() != '"') fail("a member without a name");
      std::string name = parse_string();
      if (members.contains(name)) fail("a member that occurs twice");
      expect(':');
      members.emplace(std::move(name), parse_value(depth + 1));
      if (peek() == '}') return ++position_, Json(std::move(members));
      expect(',');
    }
  }

  Json parse_array(int depth) {
    Json::Array items;
    expect('[');
    if (peek() == ']') return ++position_, Json(std::move(items));
    for (;;) {
      items.push_back(parse_value(depth + 1));
      if (peek() == ']') return ++position_, Json(std::move(items));
      expect(',');
    }
  }

  bool is_digit() const { return position_ < text_.size() && text_[position_] >= '0' && text_[position_] <= '9'; }

  void skip_digits() {
    if (!is_digit()) fail("an unexpected character");
    while (is_digit()) ++position_;
  }

  /// JSON's own grammar: from_chars alone would take "inf", "nan", "01" and "1.".
  Json parse_number() {
    const std::size_t begin = position_;
    if (text_[position_] == '-') ++position_;
    if (position_ < text_.size() && text_[position_] == '0') ++position_;
    else skip_digits();
    if (position_ < text_.size() && text_[position_] == '.') ++position_, skip_digits();
    if (position_ < text_.size() && (text_[position_] == 'e' || text_[position_] == 'E')) {
      ++position_;
      if (position_ < text_.size() && (text_[position_] == '+' || text_[position_] == '-')) ++position_;
      skip_digits();
    }
    double value = 0;
    const auto [end, error] = std::from_chars(text_.data() + begin, text_.data() + position_, value);
    if (error != std::errc{} || end != text_.data() + position_ || !std::isfinite(value)) fail("a number out of range");
    return value;
  }

  std::string parse_string() {
    std::string result;
    ++position_;
    for (;;) {
      if (position_ == text_.size()) fail("a string without end");
      const char c = text_[position_++];
      if (c == '"') return result;
      if (static_cast<unsigned char>(c) < 0x20) fail("a control character in a string");
      if (c == '\\') append_escaped(result);
      else if (static_cast<unsigned char>(c) < 0x80) result += c;
      else append_character(result);
    }
  }

  /// The character whose first byte was just read.
  void append_character(std::string& result) {
    --position_;
    const std::size_t length = utf8_length();
    result.append(text_, position_, length);
    position_ += length;
  }

  /// Bytes of the character at this place, which is not ASCII. No long forms, no surrogates, nothing beyond U+10FFFF.
  std::size_t utf8_length() const {
    auto byte = [&](std::size_t i) { return position_ + i < text_.size() ? static_cast<unsigned char>(text_[position_ + i]) : 0u; };
    auto follows = [&](std::size_t i, unsigned low = 0x80, unsigned high = 0xbf) { return byte(i) >= low && byte(i) <= high; };
    const unsigned first = byte(0);
    if (first >= 0xc2 && first <= 0xdf && follows(1)) return 2;
    const unsigned low = first == 0xe0 ? 0xa0 : first == 0xf0 ? 0x90 : 0x80, high = first == 0xed ? 0x9f : first == 0xf4 ? 0x8f : 0xbf;
    if (first >= 0xe0 && first <= 0xef && follows(1, low, high) && follows(2)) return 3;
    if (first >= 0xf0 && first <= 0xf4 && follows(1, low, high) && follows(2) && follows(3)) return 4;
    fail("a byte that is no UTF-8");
  }

  void append_escaped(std::string& result) {
    if (position_ == text_.size()) fail("a string without end");
    const char c = text_[position_++];
    switch (c) {
      case '"': case '\\': case '/': result += c; return;
      case 'b': result += '\b'; return;
      case 'f': result += '\f'; return;
      case 'n': result += '\n'; return;
      case 'r': result += '\r'; return;
      case 't': result += '\t'; return;
      case 'u': append_utf8(result, parse_code_point()); return;
      default: fail("an unknown escape");
    }
  }

  unsigned parse_hex() {
    unsigned value = 0;
    if (position_ + 4 > text_.size()) fail("a short \\u escape");
    const auto [end, error] = std::from_chars(text_.data() + position_, text_.data() + position_ + 4, value, 16);
    if (error != std::errc{} || end != text_.data() + position_ + 4) fail("a bad \\u escape");
    position_ += 4;
    return value;
  }

  unsigned parse_code_point() {
    const unsigned high = parse_hex();
    if (high < 0xd800 || high > 0xdfff) return high;
    if (high > 0xdbff || !take("\\u")) fail("half a surrogate pair");
    const unsigned low = parse_hex();
    if (low < 0xdc00 || low > 0xdfff) fail("half a surrogate pair");
    return 0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00);
  }

  static void append_utf8(std::string& result, unsigned code) {
    auto byte = [&](unsigned bits) { result += static_cast<char>(bits); };
    if (code < 0x80) return byte(code);
    if (code < 0x800) byte(0xc0 | code >> 6);
    else if (code < 0x10000) byte(0xe0 | code >> 12), byte(0x80 | (code >> 6 & 0x3f));
    else byte(0xf0 | code >> 18), byte(0x80 | (code >> 12 & 0x3f)), byte(0x80 | (code >> 6 & 0x3f));
    byte(0x80 | (code & 0x3f));
  }

  const std::string& text_;
  std::size_t position_ = 0;
};

void write_string(std::string& out, const std::string& value) {
  out += '"';
  for (const char c : value) {
    if (c == '"' || c == '\\') out += '\\', out += c;
    else if (static_cast<unsigned char>(c) < 0x20) {
      char escape[8];
      std::snprintf(escape, sizeof escape, "\\u%04x", c);
      out += escape;
    } else out += c;
  }
  out += '"';
}

void write_number(std::string& out, double value) {
  char digits[32];  // the shortest form that reads back as the same double
  const auto [end, error] = std::to_chars(digits, digits + sizeof digits, value);
  // JSON has no word for infinity, which is a limit that arithmetic nodes may have: "inf", "-inf" and "nan", as texts.
  const char* quote = std::isfinite(value) ? "" : "\"";
  out += quote;
  out.append(digits, end);
  out += quote;
}

[[noreturn]] void fail_kind(const std::string& where, const char* wanted) {
  throw FileError("\"" + where + "\" should be " + wanted + ".", {.expected = wanted, .actual = "another kind of value", .hint = "save the file again"});
}

}  // namespace

Json Json::parse(const std::string& text) { return Parser(text).document(); }

std::string Json::text() const {
  std::string out;
  struct Writer {
    std::string& out;
    void operator()(std::monostate) const { out += "null"; }
    void operator()(bool value) const { out += value ? "true" : "false"; }
    void operator()(double value) const { write_number(out, value); }
    void operator()(const std::string& value) const { write_string(out, value); }
    void operator()(const Array& items) const {
      const char* separator = "[";
      for (const Json& item : items) out += separator, std::visit(*this, item.value_), separator = ", ";
      out += items.empty() ? "[]" : "]";
    }
    void operator()(const Object& members) const {
      const char* separator = "{";
      for (const auto& [name, member] : members) {
        out += separator, write_string(out, name), out += ": ", std::visit(*this, member.value_);
        separator = ", ";
      }
      out += members.empty() ? "{}" : "}";
    }
  };
  std::visit(Writer{out}, value_);
  return out;
}

bool Json::boolean(const std::string& where) const {
  if (auto* value = std::get_if<bool>(&value_)) return *value;
  fail_kind(where, "true or false");
}

double Json::number(const std::string& where) const {
  if (auto* value = std::get_if<double>(&value_)) return *value;
  if (auto* text = std::get_if<std::string>(&value_)) {
    if (*text == "inf") return std::numeric_limits<double>::infinity();
    if (*text == "-inf") return -std::numeric_limits<double>::infinity();
    if (*text == "nan") return std::numeric_limits<double>::quiet_NaN();
  }
  fail_kind(where, "a number");
}

std::int64_t Json::integer(const std::string& where) const {
  const double value = number(where);
  if (value != std::floor(value) || std::abs(value) > 0x1p53) fail_kind(where, "a whole number");
  return static_cast<std::int64_t>(value);
}

const std::string& Json::string(const std::string& where) const {
  if (auto* value = std::get_if<std::string>(&value_)) return *value;
  fail_kind(where, "a string");
}

const Json::Array& Json::array(const std::string& where) const {
  if (auto* value = std::get_if<Array>(&value_)) return *value;
  fail_kind(where, "a list");
}

const Json::Object& Json::object(const std::string& where) const {
  if (auto* value = std::get_if<Object>(&value_)) return *value;
  fail_kind(where, "an object");
}

const Json& Json::at(const std::string& name) const {
  const Object& members = object("what holds " + name);
  const auto found = members.find(name);
  if (found == members.end()) throw FileError("\"" + name + "\" is missing.", {.expected = name, .actual = "nothing", .hint = "save the file again"});
  return found->second;
}

bool Json::has(const std::string& name) const {
  auto* members = std::get_if<Object>(&value_);
  return members && members->contains(name);
}

}  // namespace mpsnn
