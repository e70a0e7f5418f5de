// SPDX-License-Identifier: Apache-2.0
#include "mpsnn/graph_file.hpp"

#include <set>

#include "core/node_factories.hpp"
#include "core/source_file.hpp"
#include "core/structure.hpp"

/// The metadata of a file have an entry "mpsnn", JSON: the version, the numerics contract, data sources, and the graph if there is
/// one; and an entry "mpsnn.text" for a text of the application's own.
namespace mpsnn {
namespace {

constexpr int kFormatVersion = 2;
constexpr const char* kEntry = "mpsnn";
constexpr const char* kTextEntry = "mpsnn.text";

/// The numerics contract: what numbers a graph was saved to give, where MPS leaves that open (MPS_SEMANTICS 24). Whoever changes
/// an answer changes its text here, and files of before are refused.
Json numerics_contract() {
  return {{"accumulation", "float32"},
          {"argument_ties", "lowest index"},
          {"average_divisor", "window inside the image and its zero padding"},
          {"batch_variance", "biased in the batch, unbiased in the running statistics"},
          {"binary_padding", "contributes 0"},
          {"bilinear_upsampling", "half-pixel centres unless corners are aligned"},
          {"concatenation", "dense"},
          {"dropout", "by seed, encode count, image and element"},
          {"gram_and_reshape_order", "height, width, channel"},
          {"image_format", "Float32"},
          {"lanczos", "3 lobes, normalised"},
          {"linear_quantization", "lower + q * (upper - lower) / 255"},
          {"maximum_ties", "first in row-major order"},
          {"separable_loss_gradient", "not scaled by the reduction"},
          {"weight_layout", "OHWI"}};
}

/// Refuses files of another version or contract: the graph would not give the numbers that it gave there.
void require_contract(const Json& file) {
  const std::int64_t version = file.at("version").integer("version");
  if (version != kFormatVersion) bad_file("it was saved by another version of the format.", std::to_string(kFormatVersion), std::to_string(version));
  const Json numerics = numerics_contract();
  const auto &ours = numerics.object("numerics"), &theirs = file.at("numerics").object("numerics");
  auto value = [](const Json::Object& contract, const std::string& item) {
    const auto found = contract.find(item);
    return found == contract.end() ? std::string("not mentioned") : found->second.text().substr(0, 200);
  };
  std::set<std::string> items;
  for (const auto* contract : {&ours, &theirs})
    for (const auto& [item, text] : *contract) items.insert(item);
  for (const std::string& item : items)
    if (value(ours, item) != value(theirs, item))
      bad_file("it was saved under another numerics contract: \"" + item.substr(0, 100) + "\" differs.", value(ours, item), value(theirs, item));
}

// --- writing -----------------------------------------------------------------------------------------------------

/// Data sources as JSON, in order. Labels name their tensors; where one is missing or taken, a number makes the difference.
Json sources_json(const DataSources& sources, const ParameterStore* graph, std::map<std::string, Tensor>& tensors) {
  Json::Array items;
  std::set<std::string> prefixes;
  for (const AnyDataSource& source : sources) {
    const std::string label = label_of(source);
    std::string prefix = label.empty() ? "source" : label;
    for (int i = 1; label.empty() ? !prefixes.insert(prefix = "source " + std::to_string(i)).second : !prefixes.insert(prefix).second; ++i)
      if (!label.empty()) prefix = label + " " + std::to_string(i + 1);
    items.push_back(write_source(source, prefix, graph, tensors));
  }
  return items;
}

Json settings_json(const NNGraph& graph) {
  Json::Array needed;
  for (const bool is_needed : graph.results_are_needed()) needed.emplace_back(is_needed);
  return {{"label", graph.label},
          {"format", enum_json(graph.format)},
          {"precision", precision_name(graph.precision)},
          {"options", enum_json(graph.options)},
          {"output_state_is_temporary", graph.output_state_is_temporary},
          {"destination_image_is_temporary", graph.destination_image_allocator->is_temporary()},
          {"trap_nonfinite", graph.trap_nonfinite},
          {"results_are_needed", std::move(needed)},
          {"encode_count", std::to_string(graph.encode_count())}};
}

TensorFile file_of(Json::Object about, std::map<std::string, Tensor> tensors) {
  about.emplace("version", kFormatVersion);
  about.emplace("numerics", numerics_contract());
  return {std::move(tensors), {{kEntry, Json(std::move(about)).text()}}};
}

// --- reading -----------------------------------------------------------------------------------------------------

/// What a file says, checked as far as it goes without constructing nodes.
struct Contents {
  Json about;
  DataSources sources;
};

/// Runs `body` and names the file in what it throws; a constructor that refuses what the file says makes a FileError too. A
/// WeightError stays one where it may be about data sources that the caller gave.
template <class Body>
auto in_file(const std::string& name, const DataSources& replacements, Body body) {
  try {
    return body();
  } catch (const Error& error) {
    if (!replacements.empty() && dynamic_cast<const WeightError*>(&error)) throw;
    const std::string text = error.what();
    throw FileError(name + ": " + text.substr(0, text.find('\n')),
                    {error.node(), error.label().empty() ? name : error.label(), error.expected(), error.actual(), "save the graph again with this version"});
  }
}

Contents contents_of(const TensorFile& file) {
  const auto entry = file.metadata.find(kEntry);
  if (entry == file.metadata.end()) bad_file("it is another kind of file: it has no description by mpsnn.", "metadata \"mpsnn\"", "none");
  Contents contents{Json::parse(entry->second), {}};
  require_contract(contents.about);
  std::map<std::string, Tensor> tensors = file.tensors;
  for (const Json& source : contents.about.at("data_sources").array("data_sources")) contents.sources.push_back(read_source(source, tensors));
  if (!tensors.empty()) bad_file("\"" + tensors.begin()->first.substr(0, 100) + "\" belongs to no data source.", "no other arrays", std::to_string(tensors.size()) + " more");
  return contents;
}

/// What two data sources must have in common to take each other's place.
std::string protocol_text(const AnyDataSource& source) {
  if (auto* convolution = std::get_if<ConvolutionDataSourcePtr>(&source)) return "convolution " + to_json((*convolution)->descriptor()).text();
  if (auto* normalization = std::get_if<BatchNormalizationDataSourcePtr>(&source))
    return "batch normalization of " + std::to_string((*normalization)->number_of_feature_channels()) + " channels";
  CNNAffineDataSource& affine = *std::get<AffineDataSourcePtr>(source);
  return std::string(dynamic_cast<CNNGroupNormalizationDataSource*>(&affine) ? "group" : "instance") + " normalization of " +
         std::to_string(affine.number_of_feature_channels()) + " channels in " + std::to_string(affine.group_count()) + " groups";
}

void replace(DataSources& sources, const DataSources& replacements) {
  std::set<std::string> labels;
  for (const AnyDataSource& replacement : replacements) {
    const std::string label = label_of(replacement);
    auto refuse = [&](const std::string& sentence, std::string expected, std::string actual) {
      throw WeightError("saved graph: " + sentence, {.label = label, .expected = std::move(expected), .actual = std::move(actual),
                                                     .hint = "pass the data source that the graph was saved with"});
    };
    if (!labels.insert(label).second) refuse("two data sources are labelled \"" + label + "\".", "a label of its own for each", "\"" + label + "\" twice");
    for (AnyDataSource& source : sources) {
      if (label.empty() || label_of(source) != label) continue;
      const std::string expected = protocol_text(source), actual = protocol_text(replacement);
      if (expected != actual) refuse("the data source \"" + label + "\" has another descriptor or kind.", expected.substr(0, 400), actual.substr(0, 400));
      source = replacement;
    }
  }
}

Contents graph_contents(const TensorFile& file, const DataSources& replacements) {
  Contents contents = contents_of(file);
  if (!contents.about.has("graph")) bad_file("it holds parameters, but no graph.", "a file of save_graph()", "data sources alone");
  replace(contents.sources, replacements);
  return contents;
}

std::vector<ImageNodePtr> nodes_of(const Contents& contents) { return load_structure(contents.about.at("graph"), contents.sources); }

std::shared_ptr<NNGraph> make_graph(const Contents& contents, DevicePtr device) {
  const Json& settings = contents.about.at("settings");
  const JsonFields fields(settings);
  std::vector<bool> needed;
  for (const Json& is_needed : settings.at("results_are_needed").array("results_are_needed")) needed.push_back(is_needed.boolean("results_are_needed"));
  const auto results = nodes_of(contents);
  if (needed.size() != results.size()) bad_file("every result image needs its flag.", std::to_string(results.size()) + " flags", std::to_string(needed.size()));
  auto graph = std::make_shared<NNGraph>(std::move(device), results, needed);
  graph->label = settings.at("label").string("label");
  graph->format = fields.enumeration<ImageFeatureChannelFormat>("format", 4);
  graph->precision = precision_of(settings.at("precision").string("precision"));
  graph->options = fields.enumeration<KernelOptions>("options", 31);
  graph->output_state_is_temporary = fields.boolean("output_state_is_temporary");
  if (fields.boolean("destination_image_is_temporary")) graph->destination_image_allocator = TemporaryImage::default_allocator();
  graph->trap_nonfinite = fields.boolean("trap_nonfinite");
  graph->set_encode_count(fields.unsigned_integer("encode_count"));
  return graph;
}

}  // namespace

TensorFile graph_tensors(const NNGraph& graph) {
  std::map<std::string, Tensor> tensors;
  Json structure = structure_json(graph.result_image_nodes());
  Json sources = sources_json(graph.data_sources(), &graph.parameters(), tensors);
  return file_of({{"graph", std::move(structure)}, {"data_sources", std::move(sources)}, {"settings", settings_json(graph)}}, std::move(tensors));
}

void save_graph(const std::string& path, const NNGraph& graph) { write_tensor_file(path, graph_tensors(graph)); }

void save_graph(const std::string& path, const std::vector<ImageNodePtr>& result_images) { save_graph(path, NNGraph(default_device(), result_images)); }

std::shared_ptr<NNGraph> graph_from(const TensorFile& file, const std::string& name, DevicePtr device, const DataSources& replacements) {
  return in_file(name, replacements, [&] { return make_graph(graph_contents(file, replacements), std::move(device)); });
}

std::shared_ptr<NNGraph> load_graph(const std::string& path, DevicePtr device, const DataSources& replacements) {
  return graph_from(read_tensor_file(path), path, std::move(device), replacements);
}

std::vector<ImageNodePtr> load_result_images(const std::string& path, const DataSources& replacements) {
  const TensorFile file = read_tensor_file(path);
  return in_file(path, replacements, [&] { return nodes_of(graph_contents(file, replacements)); });
}

void save_data_sources(const std::string& path, const DataSources& sources, const std::string& text) {
  std::map<std::string, Tensor> tensors;
  Json items = sources_json(sources, nullptr, tensors);
  TensorFile file = file_of({{"data_sources", std::move(items)}}, std::move(tensors));
  file.metadata.emplace(kTextEntry, text);
  write_tensor_file(path, file);
}

std::pair<DataSources, std::string> load_data_sources(const std::string& path) {
  const TensorFile file = read_tensor_file(path);
  const auto text = file.metadata.find(kTextEntry);
  return {in_file(path, {}, [&] { return contents_of(file).sources; }), text == file.metadata.end() ? "" : text->second};
}

}  // namespace mpsnn
