// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <optional>
#include <vector>

#include "core/json.hpp"
#include "mpsnn/nodes/node.hpp"

/// Nodes as JSON: what a graph file says of them.
namespace mpsnn {

/// The data source that a node names in its constructor, if any.
std::optional<AnyDataSource> data_source_of(NNFilterNode& node);
/// Those of nodes, each once, in the order of first use.
DataSources data_sources_of(const std::vector<FilterNodePtr>& nodes);
/// What tells data sources apart.
const void* identity(const AnyDataSource& source);
std::string label_of(const AnyDataSource& source);

/// Nodes behind the images, in construction order; images and states are named by the node that makes them, data sources by
/// their place in data_sources_of(). Throws GraphError for what cannot be saved.
Json structure_json(const std::vector<ImageNodePtr>& result_images);
/// The result images. Constructors are called with checked numbers, and a node can name only nodes before it: there are no
/// cycles. Throws FileError, or what a constructor throws.
std::vector<ImageNodePtr> load_structure(const Json& structure, const DataSources& data_sources);

}  // namespace mpsnn
