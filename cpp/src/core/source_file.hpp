// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "core/json.hpp"
#include "mpsnn/data_source.hpp"
#include "mpsnn/tensor_file.hpp"

/// Data sources and their optimizers in files: what they are as JSON, their numbers as tensors.
namespace mpsnn {

class ParameterStore;

/// Adds the numbers of a data source to `tensors`, their names begin with `prefix`, and returns what it is. A data source of the
/// application's own is written as the one of this library that holds the numbers that `graph` uses; without a graph it throws
/// WeightError.
Json write_source(const AnyDataSource& source, const std::string& prefix, const ParameterStore* graph, std::map<std::string, Tensor>& tensors);

/// The data source that write_source() wrote; the tensors that it takes are removed from `tensors`. Throws FileError.
AnyDataSource read_source(const Json& json, std::map<std::string, Tensor>& tensors);

}  // namespace mpsnn
