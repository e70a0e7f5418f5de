// SPDX-License-Identifier: Apache-2.0
#include <pybind11/stl/filesystem.h>

#include "bindings.hpp"

namespace mpsnn::python {
namespace {

using Path = std::filesystem::path;

/// A list of data sources of any kind, as C++ takes it.
DataSources sources_of(const py::object& list) {
  DataSources sources;
  for (const py::handle source : list) {
    if (py::isinstance<CNNConvolutionDataSource>(source)) sources.emplace_back(source.cast<ConvolutionDataSourcePtr>());
    else if (py::isinstance<CNNAffineDataSource>(source)) sources.emplace_back(source.cast<AffineDataSourcePtr>());
    else if (py::isinstance<CNNBatchNormalizationDataSource>(source)) sources.emplace_back(source.cast<BatchNormalizationDataSourcePtr>());
    else throw WeightError("data_sources holds something that is no data source.",
                           {.node = "MPSNNGraph", .expected = "ConvolutionWeights, BatchNormalizationWeights or classes of your own derived from a data source",
                            .actual = py::str(py::type::handle_of(source)).cast<std::string>(), .hint = "pass the data sources that the graph was saved with"});
  }
  return sources;
}

/// Python calls elements by NumPy's names; those that NumPy does not know stay bytes of safetensors' name.
constexpr std::pair<const char*, const char*> kTypes[] = {{"F64", "<f8"}, {"F32", "<f4"}, {"F16", "<f2"}, {"I64", "<i8"}, {"I32", "<i4"}, {"I16", "<i2"}, {"I8", "|i1"},
                                                          {"U64", "<u8"}, {"U32", "<u4"}, {"U16", "<u2"}, {"U8", "|u1"}, {"BOOL", "|b1"}};

py::object array_of(const std::string& name, const Tensor& tensor) {
  for (const auto& [type, dtype] : kTypes) {
    if (tensor.type != type) continue;
    auto* owner = new std::shared_ptr<const void>(tensor.owner);
    const py::capsule capsule(owner, [](void* pointer) { delete static_cast<std::shared_ptr<const void>*>(pointer); });
    return py::array(py::dtype(std::string(dtype)), std::vector<py::ssize_t>(tensor.shape.begin(), tensor.shape.end()), tensor.data, capsule);
  }
  throw FileError("\"" + name + "\" has an element type that NumPy lacks.", {.label = name, .expected = "F64, F32, F16, or integers", .actual = tensor.type});
}

Tensor tensor_of(const std::string& name, const py::handle object) {
  const auto array = py::module_::import("numpy").attr("asarray")(object, "order"_a = "C").cast<py::array>();
  const std::string given = array.dtype().attr("str").cast<std::string>();
  for (const auto& [type, dtype] : kTypes)
    if (given == dtype) return {type, {array.shape(), array.shape() + array.ndim()}, keep_object(array), array.data()};
  throw FileError("\"" + name + "\" has an element type that safetensors lacks.", {.label = name, .expected = "floats, integers or booleans", .actual = given});
}

std::pair<py::dict, std::map<std::string, std::string>> read_safetensors(const Path& path) {
  TensorFile file;
  {
    py::gil_scoped_release release;
    file = read_tensor_file(path.string());
  }
  py::dict tensors;
  for (const auto& [name, tensor] : file.tensors) tensors[py::str(name)] = array_of(name, tensor);
  return {tensors, file.metadata};
}

void write_safetensors(const Path& path, const py::dict& tensors, const std::map<std::string, std::string>& metadata) {
  TensorFile file{{}, metadata};
  for (const auto& [name, array] : tensors) file.tensors.emplace(name.cast<std::string>(), tensor_of(name.cast<std::string>(), array));
  py::gil_scoped_release release;
  write_tensor_file(path.string(), file);
}

void save_nodes(const Path& path, const std::vector<ImageNodePtr>& result_images) {
  py::gil_scoped_release release;
  save_graph(path.string(), result_images);
}

std::shared_ptr<NNGraph> load(const Path& path, const py::object& device, const py::object& data_sources) {
  const DataSources sources = sources_of(data_sources);
  const DevicePtr chosen = device_of(device);
  py::gil_scoped_release release;
  return load_graph(path.string(), chosen, sources);
}

std::vector<ImageNodePtr> load_images(const Path& path, const py::object& data_sources) {
  const DataSources sources = sources_of(data_sources);
  py::gil_scoped_release release;
  return load_result_images(path.string(), sources);
}

}  // namespace

void bind_graph_file(py::module_& m, py::class_<NNGraph, std::shared_ptr<NNGraph>>& graph) {
  graph.def("save", [](const NNGraph& g, const Path& path) {
             py::gil_scoped_release release;
             save_graph(path.string(), g);
           }, "path"_a, R"(Writes the graph with its parameters, optimizers and dropout counter to one safetensors file. No step may be in flight.

A data source of your own class is saved as the numbers that the graph uses now; it comes back as ConvolutionWeights,
PackedConvolutionWeights, BatchNormalizationWeights and so on, without its update methods. Raises GraphError for a padding
policy or transform provider of your own, FileError when the file cannot be written.)")
      .def_static("load", &load, "path"_a, "device"_a = py::none(), "data_sources"_a = py::list(), R"(The graph of a file that save() wrote, ready to run and to train on.

``data_sources`` take the place of the file's data sources of the same label, numbers included: classes of your own, say. Nothing
in a file is executed. Raises FileError, which says what is wrong and where, for a file that is damaged or of another format version or
numerics contract, WeightError for a data source that does not fit.)");
  m.def("save_graph", [](const Path& path, const ImageNodePtr& image) { save_nodes(path, {image}); }, "path"_a, py::arg("result_image").none(false));
  m.def("save_graph", &save_nodes, "path"_a, "result_images"_a, "Writes the graph of these result images, as MPSNNGraph.save() does.");
  m.def("load_result_images", &load_images, "path"_a, "data_sources"_a = py::list(), "The result image nodes of a saved graph, to build on; see MPSNNGraph.load().");
  m.def("read_safetensors", &read_safetensors, "path"_a, "Arrays and texts of a safetensors file, by name. Raises FileError, which says what is wrong and where.");
  m.def("write_safetensors", &write_safetensors, "path"_a, "tensors"_a, "metadata"_a = std::map<std::string, std::string>{},
        "Writes arrays and texts to a safetensors file, which takes its place whole or not at all.");
  m.def("_save_data_sources", [](const Path& path, const py::object& sources, const std::string& text) { save_data_sources(path.string(), sources_of(sources), text); },
        "path"_a, "data_sources"_a, "text"_a);
  m.def("_load_data_sources", [](const Path& path) { return load_data_sources(path.string()); }, "path"_a);
  m.def("_write_atomically", [](const Path& path, const py::bytes& content) {
    const std::string_view view = content;
    py::gil_scoped_release release;
    write_atomically(path.string(), std::as_bytes(std::span(view)));
  }, "path"_a, "content"_a);
}

}  // namespace mpsnn::python
