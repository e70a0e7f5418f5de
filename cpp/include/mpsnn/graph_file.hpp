// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "mpsnn/graph.hpp"
#include "mpsnn/tensor_file.hpp"
#include "mpsnn/weights.hpp"

/// Graphs with their parameters in one safetensors file, which Python and C++ write and read alike. Format: docs/graph_file.md.
/// Nothing in a file is executed, and no number in it is believed before it is checked.
namespace mpsnn {

/// The graph, its numbers, its optimizers and its dropout counter. A data source of the application's own is saved as the numbers
/// that the graph uses now; it comes back as the data source of this library that holds such numbers, without its update methods.
/// Throws GraphError for a padding policy or transform provider of the application's own, FileError when the file cannot be
/// written.
MPSNN_API void save_graph(const std::string& path, const NNGraph& graph);
/// The same for nodes of which no graph was made: data sources say what their numbers are.
MPSNN_API void save_graph(const std::string& path, const std::vector<ImageNodePtr>& result_images);

/// A graph as it was saved. `replacements` take the place of the file's data sources of the same label, numbers included: classes
/// of the application's own, say. Throws FileError for a file that is damaged, or of another format version or numerics contract;
/// it says what differs. Throws WeightError when a replacement has another descriptor or kind.
MPSNN_API std::shared_ptr<NNGraph> load_graph(const std::string& path, DevicePtr device, const DataSources& replacements = {});
/// The result images of a saved graph, to build on.
MPSNN_API std::vector<ImageNodePtr> load_result_images(const std::string& path, const DataSources& replacements = {});

/// A file without a graph: data sources with their optimizers, and a text of the application's own.
MPSNN_API void save_data_sources(const std::string& path, const DataSources& sources, const std::string& text);
/// The data sources of any file of these functions, in the order in which they were saved, and its text.
MPSNN_API std::pair<DataSources, std::string> load_data_sources(const std::string& path);

/// The file of a graph as it would be written, and the graph of such bytes; `name` is what errors call them.
MPSNN_API TensorFile graph_tensors(const NNGraph& graph);
MPSNN_API std::shared_ptr<NNGraph> graph_from(const TensorFile& file, const std::string& name, DevicePtr device, const DataSources& replacements = {});

}  // namespace mpsnn
