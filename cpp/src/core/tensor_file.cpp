// SPDX-License-Identifier: Apache-2.0
#include "mpsnn/tensor_file.hpp"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>

#include "core/json.hpp"
#include "mpsnn/error.hpp"

/// A safetensors file: the header's length (u64, little-endian), the header (a JSON object: per array its type, shape and
/// place; texts under "__metadata__"), the arrays without gaps.
namespace mpsnn {
namespace {

static_assert(std::endian::native == std::endian::little, "arrays are read and written as they lie in memory");

constexpr std::size_t kLengthBytes = 8;
/// A header of mpsnn takes about a kilobyte per node. Parsed, JSON takes up to 40 times its bytes: this bounds the memory.
constexpr std::size_t kMaxHeaderBytes = std::size_t(16) << 20;
constexpr std::size_t kMaxDimensions = 16;

std::size_t element_bytes_of(const std::string& type) {
  static const std::map<std::string, std::size_t> kBytes{{"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E4M3", 1}, {"F8_E5M2", 1}, {"U16", 2}, {"I16", 2}, {"F16", 2},
                                                         {"BF16", 2}, {"U32", 4}, {"I32", 4}, {"F32", 4},     {"U64", 8},     {"I64", 8}, {"F64", 8}};
  const auto found = kBytes.find(type);
  return found == kBytes.end() ? 0 : found->second;
}

/// `a * b` when it is below 2^63.
bool multiply(std::uint64_t& a, std::uint64_t b) {
  if (b != 0 && a > std::uint64_t(std::numeric_limits<std::int64_t>::max()) / b) return false;
  a *= b;
  return true;
}

class Reader {
 public:
  Reader(std::span<const std::byte> content, std::string name) : content_(content), name_(std::move(name)) {}

  TensorFile read() {
    try {
      return read_all();
    } catch (const FileError& error) {
      if (!error.label().empty()) throw;
      const std::string text = error.what();  // about JSON, which knows no file
      fail("its header is wrong: " + text.substr(0, text.find('\n')), error.expected(), error.actual());
    }
  }

 private:
  struct Place {
    std::uint64_t begin, end;
    std::string name;
    Tensor tensor;
  };

  TensorFile read_all() {
    const std::size_t header_bytes = header_length();
    const Json header = Json::parse(std::string(reinterpret_cast<const char*>(content_.data()) + kLengthBytes, header_bytes));
    data_ = content_.subspan(kLengthBytes + header_bytes);
    TensorFile file;
    for (const auto& [name, entry] : header.object("the header")) {
      if (name == "__metadata__") read_metadata(entry, file.metadata);
      else read_entry(name, entry);
    }
    require_no_gaps();
    take_memory(file);
    return file;
  }

  [[noreturn]] void fail(const std::string& what, std::string expected, std::string actual) const {
    throw FileError(name_ + " is truncated or no safetensors file: " + what,
                    {.label = name_, .expected = std::move(expected), .actual = std::move(actual), .hint = "save or copy the file again"});
  }

  std::size_t header_length() const {
    if (content_.size() < kLengthBytes) fail("it ends within the header's length.", "8 bytes or more", std::to_string(content_.size()) + " bytes");
    std::uint64_t length = 0;
    std::memcpy(&length, content_.data(), kLengthBytes);
    const std::size_t rest = content_.size() - kLengthBytes;
    if (length > rest) fail("its header is longer than the file.", "at most " + std::to_string(rest) + " bytes", std::to_string(length) + " bytes");
    if (length > kMaxHeaderBytes) fail("its header is too long.", "at most " + std::to_string(kMaxHeaderBytes) + " bytes", std::to_string(length) + " bytes");
    return static_cast<std::size_t>(length);
  }

  void read_metadata(const Json& entry, std::map<std::string, std::string>& metadata) const {
    for (const auto& [key, text] : entry.object("__metadata__")) metadata.emplace(key, text.string(key));
  }

  void read_entry(const std::string& name, const Json& entry) {
    Place place{0, 0, name, {}};
    place.tensor.type = entry.at("dtype").string("dtype");
    std::uint64_t bytes = element_bytes_of(place.tensor.type);
    if (bytes == 0) fail("\"" + name + "\" has an unknown element type.", "F32, F64, F16, BF16, U8, ...", place.tensor.type.substr(0, 40));
    const auto& shape = entry.at("shape").array("shape");
    if (shape.size() > kMaxDimensions) fail("\"" + name + "\" has too many dimensions.", "at most 16", std::to_string(shape.size()));
    for (const Json& size : shape) {
      place.tensor.shape.push_back(size.integer("shape"));
      if (place.tensor.shape.back() < 0 || !multiply(bytes, place.tensor.shape.back()))
        fail("\"" + name + "\" has an impossible shape.", "sizes from 0, together below 2^63 bytes", std::to_string(place.tensor.shape.back()));
    }
    const auto& offsets = entry.at("data_offsets").array("data_offsets");
    if (offsets.size() != 2) fail("\"" + name + "\" has no place.", "2 offsets", std::to_string(offsets.size()));
    const std::int64_t begin = offsets[0].integer("data_offsets"), end = offsets[1].integer("data_offsets");
    if (begin < 0 || end < begin || std::uint64_t(end) > data_.size())
      fail("\"" + name + "\" lies outside of the file.", "0 to " + std::to_string(data_.size()), std::to_string(begin) + " to " + std::to_string(end));
    if (std::uint64_t(end - begin) != bytes)
      fail("\"" + name + "\" has another size than its shape says.", std::to_string(bytes) + " bytes", std::to_string(end - begin) + " bytes");
    place.begin = begin, place.end = end;
    places_.push_back(std::move(place));
  }

  void require_no_gaps() {
    std::sort(places_.begin(), places_.end(), [](const Place& a, const Place& b) { return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name); });
    std::uint64_t end = 0;
    for (const Place& place : places_) {
      if (place.begin != end)
        fail("\"" + place.name + "\" " + (place.begin < end ? "overlaps another array." : "leaves a gap before it."), "byte " + std::to_string(end),
             "byte " + std::to_string(place.begin));
      end = place.end;
    }
    if (end != data_.size()) fail("bytes at its end belong to no array.", std::to_string(end) + " bytes of arrays", std::to_string(data_.size()) + " bytes");
  }

  /// Every array gets memory of its own, aligned to any element, so that one can be kept without the others.
  void take_memory(TensorFile& file) {
    for (Place& place : places_) {
      const std::size_t bytes = place.end - place.begin;
      std::shared_ptr<std::byte[]> memory(new std::byte[std::max<std::size_t>(bytes, 1)]);
      if (bytes > 0) std::memcpy(memory.get(), data_.data() + place.begin, bytes);
      place.tensor.data = memory.get();
      place.tensor.owner = std::move(memory);
      file.tensors.emplace(std::move(place.name), std::move(place.tensor));
    }
  }

  std::span<const std::byte> content_, data_;
  std::string name_;
  std::vector<Place> places_;
};

[[noreturn]] void fail_path(const std::string& path, const char* what, std::string expected, std::string actual) {
  throw FileError(path + what, {.label = path, .expected = std::move(expected), .actual = std::move(actual), .hint = "check the path, the folder and the space left"});
}

}  // namespace

std::size_t Tensor::count() const {
  std::size_t product = 1;
  for (const std::int64_t size : shape) product *= static_cast<std::size_t>(size);
  return product;
}

std::size_t Tensor::bytes() const { return count() * element_bytes_of(type); }

TensorFile parse_tensor_file(std::span<const std::byte> content, const std::string& name) { return Reader(content, name).read(); }

TensorFile read_tensor_file(const std::string& path) {
  std::error_code error;
  if (!std::filesystem::exists(path, error)) fail_path(path, " does not exist.", "a safetensors file", "no file");
  const bool is_file = std::filesystem::is_regular_file(path, error);
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!is_file || !file) fail_path(path, " cannot be read.", "a safetensors file", is_file ? std::strerror(errno) : "no regular file");
  std::vector<std::byte> content(static_cast<std::size_t>(file.tellg()));
  file.seekg(0);
  if (!file.read(reinterpret_cast<char*>(content.data()), static_cast<std::streamsize>(content.size())))
    fail_path(path, " cannot be read.", std::to_string(content.size()) + " bytes", std::to_string(file.gcount()) + " bytes");
  return parse_tensor_file(content, path);
}

std::string tensor_file_bytes(const TensorFile& file) {
  // The widest elements first, so that every array is aligned in a file that is mapped into memory; then by name.
  std::vector<const std::pair<const std::string, Tensor>*> order;
  for (const auto& entry : file.tensors) order.push_back(&entry);
  std::stable_sort(order.begin(), order.end(), [](auto* a, auto* b) { return element_bytes_of(a->second.type) > element_bytes_of(b->second.type); });
  Json::Object header, metadata;
  for (const auto& [key, text] : file.metadata) metadata.emplace(key, text);
  if (!metadata.empty()) header.emplace("__metadata__", std::move(metadata));
  std::size_t end = 0;
  for (const auto* entry : order) {
    Json::Array shape;
    for (const std::int64_t size : entry->second.shape) shape.emplace_back(static_cast<double>(size));
    const std::size_t begin = end;
    end += entry->second.bytes();
    header.emplace(entry->first, Json{{"dtype", entry->second.type}, {"shape", std::move(shape)}, {"data_offsets", Json::Array{double(begin), double(end)}}});
  }
  std::string text = Json(std::move(header)).text();
  Json::parse(text);  // what could not be read again is not written: names that are no UTF-8
  text.resize((text.size() + 7) / 8 * 8, ' ');
  if (text.size() > kMaxHeaderBytes)
    throw FileError("the structure of this graph is too large for a file.",
                    {.expected = "at most " + std::to_string(kMaxHeaderBytes) + " bytes of JSON", .actual = std::to_string(text.size()) + " bytes"});
  const std::uint64_t length = text.size();
  std::string bytes(kLengthBytes, '\0');
  std::memcpy(bytes.data(), &length, kLengthBytes);
  bytes.reserve(kLengthBytes + text.size() + end);
  bytes += text;
  for (const auto* entry : order) bytes.append(static_cast<const char*>(entry->second.data), entry->second.bytes());
  return bytes;
}

void write_tensor_file(const std::string& path, const TensorFile& file) {
  const std::string bytes = tensor_file_bytes(file);
  write_atomically(path, std::as_bytes(std::span(bytes)));
}

void write_atomically(const std::string& path, std::span<const std::byte> content) {
  static std::atomic<unsigned> count{0};  // two threads may write the same path: one of the two files wins, whole
  const std::filesystem::path target(path);
  const auto number = std::to_string(static_cast<long long>(std::filesystem::file_time_type::clock::now().time_since_epoch().count())) + "." + std::to_string(count++);
  const std::filesystem::path temporary = target.parent_path() / ("." + target.filename().string() + "." + number + ".tmp");
  std::ofstream file(temporary, std::ios::binary | std::ios::trunc);
  file.write(reinterpret_cast<const char*>(content.data()), static_cast<std::streamsize>(content.size()));
  file.close();
  std::string reason = file ? "" : std::strerror(errno);
  std::error_code error;
  if (reason.empty()) {
    std::filesystem::rename(temporary, target, error);
    if (!error) return;
    reason = error.message();
  }
  std::filesystem::remove(temporary, error);  // it is the first error that counts
  fail_path(path, " cannot be written.", "a writable file", reason);
}

}  // namespace mpsnn
