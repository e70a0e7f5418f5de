// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "mpsnn/export.hpp"

/// Named arrays in safetensors files, read and written strictly.
namespace mpsnn {

/// An array as a file holds it: dense, the last index fastest.
struct MPSNN_API Tensor {
  std::string type;                 ///< as safetensors names it: F32, F64, F16, U8, U32, ...
  std::vector<std::int64_t> shape;  ///< none for a single number
  std::shared_ptr<const void> owner;
  const void* data = nullptr;  ///< aligned to its element; `owner` keeps it alive
  std::size_t count() const;
  std::size_t bytes() const;
};

/// What a safetensors file holds: arrays and texts by name.
struct TensorFile {
  std::map<std::string, Tensor> tensors;
  std::map<std::string, std::string> metadata;
};

/// Reads a whole file into memory. Throws FileError, which names the file and says what is wrong and where, for anything that
/// the safetensors format does not allow: nothing is allocated on the word of a number in the file.
MPSNN_API TensorFile read_tensor_file(const std::string& path);
/// The same for a file's content; `name` is what errors call it.
MPSNN_API TensorFile parse_tensor_file(std::span<const std::byte> content, const std::string& name);

/// Writes a file: equal arrays and texts give equal bytes. Throws FileError when the folder cannot be written or a name is no UTF-8.
MPSNN_API void write_tensor_file(const std::string& path, const TensorFile& file);
/// The bytes of such a file.
MPSNN_API std::string tensor_file_bytes(const TensorFile& file);

/// Writes a file beside its place and renames it: a reader sees the old file or the new one, never a part. Throws FileError.
MPSNN_API void write_atomically(const std::string& path, std::span<const std::byte> content);

}  // namespace mpsnn
