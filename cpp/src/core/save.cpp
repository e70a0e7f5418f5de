// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <functional>
#include <map>

#include "core/json.hpp"
#include "core/node_factories.hpp"
#include "mpsnn/graph.hpp"
#include "mpsnn/nodes/convolution.hpp"
#include "mpsnn/nodes/group_normalization.hpp"
#include "mpsnn/nodes/normalization.hpp"
#include "nodes/json_fields.hpp"

/// Graph structures as text. A file holds the nodes in construction order; images and states are named by the node that makes
/// them. Loading calls constructors with checked numbers: nothing in a file is executed.
namespace mpsnn {
namespace {

constexpr int kFormatVersion = 1;

/// The numerics contract: what a graph was saved to mean (the answers to the open questions of MPS_SEMANTICS 24).
Json numerics_contract(Precision precision) {
  return {{"precision", precision_name(precision)}, {"maximum_ties", "first in row-major order"}, {"concatenation", "dense"}, {"accumulation", "float32"}, {"image_format", "Float32"}};
}

// --- writing -----------------------------------------------------------------------------------------------------

Json padding_json(const NNFilterNode& node) {
  if (const auto* policy = dynamic_cast<const NNDefaultPadding*>(node.padding_policy.get())) return {{"method", enum_json(policy->padding_method())}};
  if (const auto* policy = dynamic_cast<const ExplicitPadding*>(node.padding_policy.get()))
    return {{"left", policy->left()}, {"right", policy->right()}, {"top", policy->top()}, {"bottom", policy->bottom()}};
  throw GraphError(node.display_name() + ": a padding policy of the application's own cannot be saved.",
                   {node.class_name(), node.display_name(), "MPSNNDefaultPadding or ExplicitPadding", node.padding_policy->label(),
                    "ExplicitPadding says any number of pixels"});
}

template <class Node>
void write_tags(Json::Object& object, const Node& node) {
  if (node.handle) object.emplace("handle", node.handle->label());
  if (node.export_from_graph) object.emplace("export_from_graph", true);
  if (node.synchronize_resource) object.emplace("synchronize_resource", true);
}

Json image_json(const NNImageNode& image) {
  Json::Object object;
  write_tags(object, image);
  object.emplace("format", enum_json(image.format));
  if (!image.image_allocator->is_temporary()) object.emplace("is_persistent", true);
  if (image.stop_gradient) object.emplace("stop_gradient", true);
  return object;
}

Json state_json(const NNStateNode& state) {
  Json::Object object;
  write_tags(object, state);
  return object;
}

/// "weights": the label of the data source, and its descriptor.
void write_data_source(Json::Object& object, NNFilterNode& node) {
  ConvolutionDataSourcePtr weights;
  if (auto* convolution = dynamic_cast<CNNConvolutionNode*>(&node)) weights = convolution->weights();
  if (auto* gradient = dynamic_cast<CNNConvolutionGradientNode*>(&node)) weights = gradient->weights();
  std::string label;
  if (weights) {
    label = weights->label();
    object.emplace("descriptor", to_json(weights->descriptor()));
  } else if (auto* normalization = dynamic_cast<CNNBatchNormalizationNode*>(&node)) label = normalization->data_source()->label();
  else if (auto* affine = dynamic_cast<CNNAffineNormalizationNode*>(&node)) label = affine->data_source()->label();
  else return;
  if (label.empty())
    throw GraphError(node.display_name() + ": a data source needs a label to be found again.",
                     {node.class_name(), node.display_name(), "a label", "none", "give every data source a label of its own"});
  object.emplace("data_source", label);
}

// --- reading -----------------------------------------------------------------------------------------------------

template <class Node>
void read_tags(Node& node, const Json& json) {
  if (json.has("handle")) node.handle = make_handle(json.at("handle").string("handle"));
  node.export_from_graph = json.has("export_from_graph");
  node.synchronize_resource = json.has("synchronize_resource");
}

void read_image(NNImageNode& image, const Json& json) {
  read_tags(image, json);
  image.format = JsonFields(json).enumeration<ImageFeatureChannelFormat>("format", 4);
  image.image_allocator = json.has("is_persistent") ? Image::default_allocator() : TemporaryImage::default_allocator();
  image.stop_gradient = json.has("stop_gradient");
}

PaddingPtr read_padding(const Json& json) {
  const JsonFields fields(json);
  if (json.has("method")) return std::make_shared<NNDefaultPadding>(static_cast<NNPaddingMethod>(fields.integer("method", 0, 0xffff)));
  constexpr int kMost = 1 << 15;
  return std::make_shared<ExplicitPadding>(fields.integer("left", -kMost, kMost), fields.integer("right", -kMost, kMost), fields.integer("top", -kMost, kMost),
                                           fields.integer("bottom", -kMost, kMost));
}

class Loader {
 public:
  explicit Loader(const DataSources& sources) : data_sources_(sources) {}

  std::vector<ImageNodePtr> load(const Json& file, Precision& precision) {
    if (file.at("format").string("format") != "mpsnn graph") bad_file("this is another kind of file.", "mpsnn graph", file.at("format").string("format"));
    const std::int64_t version = file.at("version").integer("version");
    if (version != kFormatVersion) bad_file("it was saved by another version.", std::to_string(kFormatVersion), std::to_string(version));
    const Json& numerics = file.at("numerics");
    precision = precision_of(numerics.at("precision").string("precision"));
    if (const std::string contract = numerics_contract(precision).text(); numerics.text() != contract)
      bad_file("it was saved under another numerics contract.", contract, numerics.text().substr(0, 400));
    for (const Json& input : file.at("inputs").array("inputs")) {
      images_.push_back(std::make_shared<NNImageNode>());
      read_image(*images_.back(), input);
    }
    for (const Json& node : file.at("nodes").array("nodes")) load_node(node);
    std::vector<ImageNodePtr> results;
    for (const Json& result : file.at("results").array("results")) results.push_back(image(result));
    return results;
  }

 private:
  /// Only images that exist already can be named: cycles cannot be written down.
  ImageNodePtr image(const Json& index) const {
    const std::int64_t i = index.integer("an image");
    if (i < 0 || i >= static_cast<std::int64_t>(images_.size())) bad_file("an image does not exist.", "0 to " + std::to_string(images_.size()), std::to_string(i));
    return images_[i];
  }

  StateNodePtr state(const Json& reference) const {
    const auto& pair = reference.array("a state");
    if (pair.size() != 2) bad_file("a state is a node and a number.", "2 numbers", std::to_string(pair.size()));
    const std::int64_t node = pair[0].integer("a state"), index = pair[1].integer("a state");
    if (node < 0 || node >= static_cast<std::int64_t>(nodes_.size())) bad_file("a state's node does not exist.", "a node before this one", std::to_string(node));
    const auto states = nodes_[node]->result_states();
    if (index < 0 || index >= static_cast<std::int64_t>(states.size())) bad_file("a state does not exist.", std::to_string(states.size()) + " states", std::to_string(index));
    return states[index];
  }

  void find_data_source(const Json& json, SavedNode& saved) const {
    if (!json.has("data_source")) return;
    const std::string& label = json.at("data_source").string("data_source");
    for (const auto& source : data_sources_.convolutions)
      if (source->label() == label) saved.weights = source;
    for (const auto& source : data_sources_.batch_normalizations)
      if (source->label() == label) saved.normalization = source;
    for (const auto& source : data_sources_.affine_normalizations)
      if (source->label() == label) saved.affine = source;
    auto refuse = [&](const std::string& sentence, std::string expected, std::string actual, std::string hint) {
      throw WeightError("saved graph: " + sentence, {saved.class_name, label, std::move(expected), std::move(actual), std::move(hint)});
    };
    if (!saved.weights && !saved.normalization && !saved.affine)
      refuse("no data source is labelled \"" + label + "\".", "a data source of that label", "none", "pass it in data_sources");
    if (saved.weights && json.has("descriptor") && to_json(saved.weights->descriptor()).text() != json.at("descriptor").text())
      refuse("the data source \"" + label + "\" has another descriptor.", json.at("descriptor").text().substr(0, 400),
             to_json(saved.weights->descriptor()).text(), "pass the data source that the graph was saved with");
  }

  void load_node(const Json& json) {
    const std::string& class_name = json.at("class").string("class");
    const auto factory = node_factories().find(class_name);
    if (factory == node_factories().end()) bad_file("\"" + class_name.substr(0, 100) + "\" is no node class of this version.", "a node class", class_name.substr(0, 100));
    SavedNode saved{{}, {}, nullptr, nullptr, nullptr, JsonFields(json.at("parameters")), class_name};
    for (const Json& source : json.at("sources").array("sources")) saved.sources.push_back(image(source));
    for (const Json& reference : json.at("states").array("states")) saved.states.push_back(state(reference));
    find_data_source(json, saved);
    const FilterNodePtr node = factory->second(saved);
    if (node->class_name() != class_name) bad_file("a neuron's parameters belong to another class.", class_name, node->class_name());
    node->label = json.at("label").string("label");
    node->padding_policy = read_padding(json.at("padding"));
    read_image(*node->result_image(), json.at("result"));
    const auto& states = json.at("result_states").array("result_states");
    const auto own_states = node->result_states();
    for (std::size_t i = 0; i < std::min(states.size(), own_states.size()); ++i) read_tags(*own_states[i], states[i]);
    if (NNLabelsNode* labels = node->labels_placeholder(); labels && json.has("labels")) read_tags(*labels, json.at("labels"));
    nodes_.push_back(node);
    images_.push_back(node->result_image());
  }

  const DataSources& data_sources_;
  std::vector<ImageNodePtr> images_;  // inputs, then the result of each node
  std::vector<FilterNodePtr> nodes_;
};

}  // namespace

std::string save_structure(const std::vector<ImageNodePtr>& result_images, Precision precision) {
  const std::vector<FilterNodePtr> nodes = filters_behind(result_images);
  std::map<const NNImageNode*, int> image_numbers;
  Json::Array inputs, saved_nodes, results;
  for (const FilterNodePtr& node : nodes)
    for (const ImageNodePtr& source : node->sources())
      if (!source->producer() && image_numbers.try_emplace(source.get(), static_cast<int>(inputs.size())).second) inputs.push_back(image_json(*source));
  std::map<const NNFilterNode*, int> node_numbers;
  for (const FilterNodePtr& node : nodes) {
    Json::Array sources, states, result_states;
    for (const ImageNodePtr& source : node->sources()) sources.push_back(image_numbers.at(source.get()));
    for (const StateNodePtr& state : node->source_states())
      states.push_back(Json::Array{node_numbers.at(state->producer()), static_cast<int>(state->producer()->result_state_index(*state))});
    for (const StateNodePtr& state : node->result_states()) result_states.push_back(state_json(*state));
    Json::Object object{{"class", node->class_name()},          {"label", node->label},           {"parameters", node->parameters()},
                        {"padding", padding_json(*node)},       {"sources", std::move(sources)},  {"states", std::move(states)},
                        {"result", image_json(*node->result_image())}, {"result_states", std::move(result_states)}};
    if (const NNLabelsNode* labels = node->labels_placeholder()) object.emplace("labels", state_json(*labels));
    write_data_source(object, *node);
    node_numbers[node.get()] = static_cast<int>(saved_nodes.size());
    image_numbers[node->result_image().get()] = static_cast<int>(inputs.size() + saved_nodes.size());
    saved_nodes.push_back(std::move(object));
  }
  for (const ImageNodePtr& result : result_images) results.push_back(image_numbers.at(result.get()));
  return Json{{"format", "mpsnn graph"}, {"version", kFormatVersion},   {"numerics", numerics_contract(precision)},
              {"inputs", std::move(inputs)}, {"nodes", std::move(saved_nodes)}, {"results", std::move(results)}}
             .text() + "\n";
}

std::vector<ImageNodePtr> load_structure(const std::string& text, const DataSources& data_sources, Precision* precision) {
  const Json file = Json::parse(text);
  Precision saved = Precision::fast;
  try {
    std::vector<ImageNodePtr> results = Loader(data_sources).load(file, saved);
    if (precision) *precision = saved;
    return results;
  } catch (const WeightError&) {
    throw;
  } catch (const FileError&) {
    throw;
  } catch (const Error& error) {  // a constructor refused what the file says
    throw FileError(std::string("saved graph: ") + error.what(), {error.node(), error.label(), error.expected(), error.actual(), "save the graph again"});
  }
}

}  // namespace mpsnn
