// SPDX-License-Identifier: Apache-2.0
#include "core/source_file.hpp"

#include <cstring>
#include <utility>

#include "core/node_factories.hpp"
#include "core/parameters.hpp"
#include "mpsnn/weights.hpp"
#include "nodes/json_fields.hpp"

namespace mpsnn {
namespace {

using Tensors = std::map<std::string, Tensor>;
using Shape64 = std::vector<std::int64_t>;

// --- arrays ------------------------------------------------------------------------------------------------------

Shape64 weight_shape(const CNNConvolutionDescriptor& d) { return {d.output_feature_channels, d.kernel_height, d.kernel_width, d.input_channels_per_group()}; }

Tensor tensor_of(const Buffer& buffer, Shape64 shape) {
  return {buffer.type() == ElementType::float64 ? "F64" : "F32", std::move(shape), buffer.owner(), buffer.data()};
}
Tensor tensor_of(const Buffer& buffer) { return tensor_of(buffer, {static_cast<std::int64_t>(buffer.count())}); }

Tensor tensor_of(const WeightArray& array, const char* type, Shape64 shape) { return {type, std::move(shape), array.owner, array.data}; }

/// Numbers of the reference engine that float32 holds exactly, as those of a data source that it never trained, take half the space.
Buffer narrowed(const Buffer& buffer) {
  if (buffer.type() == ElementType::float32) return buffer;
  Buffer single(buffer.count(), ElementType::float32), again(buffer.count(), ElementType::float64);
  single.copy_from(buffer);
  again.copy_from(single);
  return std::memcmp(again.data(), buffer.data(), buffer.bytes()) == 0 ? single : buffer;
}

/// Takes the tensor of that name out of `tensors`.
Tensor take(Tensors& tensors, const std::string& name) {
  auto node = tensors.extract(name);
  if (node.empty()) bad_file("\"" + name + "\" is missing.", "an array of that name", "none");
  return std::move(node.mapped());
}

void require_shape(const std::string& name, const Tensor& tensor, const Shape64& shape) {
  auto text = [](const Shape64& sizes) {
    std::string result;
    for (const std::int64_t size : sizes) result += (result.empty() ? "" : " x ") + std::to_string(size);
    return result;
  };
  if (tensor.shape != shape) bad_file("\"" + name + "\" has another shape than its data source.", text(shape), text(tensor.shape));
}

/// Takes float32 or float64 numbers of that name and shape.
Buffer take_numbers(Tensors& tensors, const std::string& name, const Shape64& shape) {
  const Tensor tensor = take(tensors, name);
  if (tensor.type != "F32" && tensor.type != "F64") bad_file("\"" + name + "\" has another element type.", "F32 or F64", tensor.type);
  require_shape(name, tensor, shape);
  const Buffer buffer(tensor.count(), tensor.type == "F64" ? ElementType::float64 : ElementType::float32);
  std::memcpy(buffer.data(), tensor.data, buffer.bytes());
  return buffer;
}

WeightArray take_array(Tensors& tensors, const std::string& name, const char* type, const Shape64& shape) {
  const Tensor tensor = take(tensors, name);
  if (tensor.type != type) bad_file("\"" + name + "\" has another element type.", type, tensor.type);
  require_shape(name, tensor, shape);
  return {tensor.data, tensor.count(), tensor.owner};
}

// --- optimizers --------------------------------------------------------------------------------------------------

Json optimizer_json(const NNOptimizer& optimizer) {
  const NNOptimizerDescriptor& d = optimizer.descriptor();
  Json::Object object{{"class", optimizer.class_name()},
                      {"learning_rate", double(d.learning_rate)},
                      {"gradient_rescale", double(d.gradient_rescale)},
                      {"apply_gradient_clipping", d.apply_gradient_clipping},
                      {"gradient_clip_max", double(d.gradient_clip_max)},
                      {"gradient_clip_min", double(d.gradient_clip_min)},
                      {"regularization_type", enum_json(d.regularization_type)},
                      {"regularization_scale", double(d.regularization_scale)}};
  if (auto* descent = dynamic_cast<const NNOptimizerStochasticGradientDescent*>(&optimizer)) {
    object.emplace("momentum_scale", double(descent->momentum_scale()));
    object.emplace("use_nesterov_momentum", descent->use_nesterov_momentum());
  } else if (auto* rms = dynamic_cast<const NNOptimizerRMSProp*>(&optimizer)) {
    object.emplace("decay", rms->decay());
    object.emplace("epsilon", double(rms->epsilon()));
  } else if (auto* adam = dynamic_cast<const NNOptimizerAdam*>(&optimizer)) {
    object.emplace("beta1", adam->beta1());
    object.emplace("beta2", adam->beta2());
    object.emplace("epsilon", double(adam->epsilon()));
    object.emplace("time_step", double(adam->time_step()));
    object.emplace("uses_amsgrad", adam->uses_amsgrad());
  } else throw WeightError("an optimizer of the application's own cannot be saved.",
                           {.node = optimizer.class_name(), .expected = "MPSNNOptimizerAdam or another one of this library", .actual = optimizer.class_name()});
  return object;
}

std::shared_ptr<NNOptimizer> read_optimizer(const Json& json) {
  const JsonFields f(json);
  const NNOptimizerDescriptor d{f.real("learning_rate"), f.real("gradient_rescale"), f.boolean("apply_gradient_clipping"), f.real("gradient_clip_max"),
                                f.real("gradient_clip_min"), f.enumeration<NNRegularizationType>("regularization_type", 2), f.real("regularization_scale")};
  const std::string& name = json.at("class").string("class");
  auto number = [&](const char* field) { return json.at(field).number(field); };
  if (name == "MPSNNOptimizerStochasticGradientDescent")
    return std::make_shared<NNOptimizerStochasticGradientDescent>(d, f.real("momentum_scale"), f.boolean("use_nesterov_momentum"));
  if (name == "MPSNNOptimizerRMSProp") return std::make_shared<NNOptimizerRMSProp>(d, number("decay"), f.real("epsilon"));
  if (name == "MPSNNOptimizerAdam")
    return std::make_shared<NNOptimizerAdam>(d, number("beta1"), number("beta2"), f.real("epsilon"),
                                             static_cast<unsigned>(f.whole("time_step", 0, 0xffffffff)), f.boolean("uses_amsgrad"));
  bad_file("\"" + name.substr(0, 100) + "\" is no optimizer of this version.", "MPSNNOptimizerAdam or another one", name.substr(0, 100));
}

void write_training(Json::Object& object, TrainedBuffers& training, const std::string& prefix, Tensors& tensors) {
  if (!training.optimizer()) return;
  object.emplace("optimizer", optimizer_json(*training.optimizer()));
  object.emplace("history_vectors", static_cast<int>(training.history().size()));
  for (std::size_t i = 0; i < training.history().size(); ++i) tensors.emplace(prefix + ".history." + std::to_string(i), tensor_of(training.history()[i]));
}

/// `first` and `second`: how many numbers are trained; no second parameter is 0.
void read_training(const Json& json, TrainedBuffers& training, const std::string& prefix, Tensors& tensors, std::size_t first, std::size_t second) {
  if (!json.has("optimizer")) return;
  training.set_optimizer(read_optimizer(json.at("optimizer")));
  const int moments = training.optimizer()->history_count(), all = second ? 2 * moments : moments;
  const int count = JsonFields(json).integer("history_vectors", 0, 16);
  if (count != 0 && count != all) bad_file("\"" + prefix + "\" has another number of history vectors.", "0 or " + std::to_string(all), std::to_string(count));
  std::vector<Buffer> history;
  for (int i = 0; i < count; ++i)
    history.push_back(take_numbers(tensors, prefix + ".history." + std::to_string(i), {static_cast<std::int64_t>(i < moments ? first : second)}));
  training.set_history(std::move(history));
}

// --- convolutions ------------------------------------------------------------------------------------------------

struct PackedType {
  DataType type;
  const char* name;
};
constexpr PackedType kPackedTypes[] = {{DataType::Float16, "F16"}, {DataType::UInt8, "U8"}, {DataType::UInt32, "U32"}};
constexpr int kMostChannels = 1 << 30;

Shape64 packed_shape(const CNNConvolutionDescriptor& d, DataType type) {
  Shape64 shape = weight_shape(d);
  if (type == DataType::UInt32) shape.back() = ceil_divide(d.input_feature_channels, 32);
  return shape;
}

Json own_weights_json(ConvolutionWeights& weights, const std::string& prefix, Tensors& tensors) {
  Json::Object object{{"class", "ConvolutionWeights"}, {"descriptor", to_json(weights.descriptor())}, {"has_biases", static_cast<bool>(weights.biases_buffer())}};
  tensors.emplace(prefix + ".weights", tensor_of(weights.weights_buffer(), weight_shape(weights.descriptor())));
  if (weights.biases_buffer()) tensors.emplace(prefix + ".biases", tensor_of(weights.biases_buffer()));
  write_training(object, weights.training(), prefix, tensors);
  return object;
}

/// Numbers that the graph uses, which its training may have changed since the data source gave them.
Json graph_weights_json(const ConvolutionValues& values, const ParameterStore& graph, const std::string& prefix, Tensors& tensors) {
  CNNConvolutionDescriptor descriptor = values.descriptor;
  descriptor.batch_mean = descriptor.batch_variance = descriptor.batch_gamma = descriptor.batch_beta = {};  // folded in already
  descriptor.batch_epsilon = 0;
  tensors.emplace(prefix + ".weights", tensor_of(narrowed(graph.values(values.weights)), weight_shape(descriptor)));
  if (values.biases) tensors.emplace(prefix + ".biases", tensor_of(narrowed(graph.values(values.biases))));
  return {{"class", "ConvolutionWeights"}, {"descriptor", to_json(descriptor)}, {"has_biases", static_cast<bool>(values.biases)}};
}

Json packed_weights_json(const PackedConvolutionWeights& weights, const PackedType& type, const std::string& prefix, Tensors& tensors) {
  const PackedConvolutionWeights::Arrays& arrays = weights.arrays();
  const CNNConvolutionDescriptor& d = weights.sizes();
  tensors.emplace(prefix + ".weights", tensor_of(arrays.weights, type.name, packed_shape(d, type.type)));
  if (arrays.biases) tensors.emplace(prefix + ".biases", tensor_of(arrays.biases, "F32", {d.output_feature_channels}));
  if (arrays.ranges) tensors.emplace(prefix + ".ranges", tensor_of(arrays.ranges, "F32", {d.output_feature_channels, 2}));
  if (arrays.lookup_table) tensors.emplace(prefix + ".lookup_table", tensor_of(arrays.lookup_table, "F32", {256}));
  return {{"class", "PackedConvolutionWeights"}, {"descriptor", to_json(d)}, {"type", type.name}, {"has_biases", static_cast<bool>(arrays.biases)},
          {"has_ranges", static_cast<bool>(arrays.ranges)}, {"has_lookup_table", static_cast<bool>(arrays.lookup_table)}};
}

[[noreturn]] void refuse(const std::string& label, const char* expected) {
  throw WeightError("the data source \"" + label + "\" cannot be saved: only it knows its values.",
                    {.label = label, .expected = expected, .actual = "a class of the application's own", .hint = "save a graph that uses it, or save it yourself"});
}

bool is_trained(const ParameterStore& graph, const ConvolutionValues& values) {
  for (const TrainedParameters& trained : graph.trained())
    if (trained.convolution == &values) return true;
  return false;
}

Json write(const ConvolutionDataSourcePtr& source, const std::string& prefix, const ParameterStore* graph, Tensors& tensors) {
  if (auto* own = dynamic_cast<ConvolutionWeights*>(source.get())) return own_weights_json(*own, prefix, tensors);
  for (const PackedType& type : kPackedTypes) {
    if (source->data_type() != type.type) continue;
    auto own = std::dynamic_pointer_cast<PackedConvolutionWeights>(source);
    const ConvolutionValues* values = graph && type.type != DataType::UInt32 ? &graph->convolution(source) : nullptr;
    if (values && is_trained(*graph, *values)) break;  // its numbers are floats by now
    if (!own && graph) own = PackedConvolutionWeights::copy_of(*source);
    if (own) return packed_weights_json(*own, type, prefix, tensors);
  }
  if (!graph) refuse(source->label(), "ConvolutionWeights");
  return graph_weights_json(graph->convolution(source), *graph, prefix, tensors);
}

AnyDataSource read_convolution(const Json& json, const std::string& prefix, const std::string& label, Tensors& tensors) {
  const JsonFields fields(json);
  const CNNConvolutionDescriptor d = JsonFields(json.at("descriptor")).convolution();
  d.validate(label);
  const Buffer weights = take_numbers(tensors, prefix + ".weights", weight_shape(d));
  const Buffer biases = fields.boolean("has_biases") ? take_numbers(tensors, prefix + ".biases", {d.output_feature_channels}) : Buffer();
  auto source = std::make_shared<ConvolutionWeights>(d, weights, biases, label);
  read_training(json, source->training(), prefix, tensors, weights.count(), biases.count());
  return source;
}

AnyDataSource read_packed(const Json& json, const std::string& prefix, const std::string& label, Tensors& tensors) {
  const JsonFields fields(json);
  const CNNConvolutionDescriptor d = JsonFields(json.at("descriptor")).convolution();
  d.validate(label);
  const std::string& name = json.at("type").string("type");
  for (const PackedType& type : kPackedTypes) {
    if (name != type.name) continue;
    PackedConvolutionWeights::Arrays arrays;
    arrays.weights = take_array(tensors, prefix + ".weights", type.name, packed_shape(d, type.type));
    if (fields.boolean("has_biases")) arrays.biases = take_array(tensors, prefix + ".biases", "F32", {d.output_feature_channels});
    if (fields.boolean("has_ranges")) arrays.ranges = take_array(tensors, prefix + ".ranges", "F32", {d.output_feature_channels, 2});
    if (fields.boolean("has_lookup_table")) arrays.lookup_table = take_array(tensors, prefix + ".lookup_table", "F32", {256});
    return std::make_shared<PackedConvolutionWeights>(d, type.type, arrays, label);
  }
  bad_file("\"type\" is no type of packed weights.", "F16, U8 or U32", name.substr(0, 40));
}

// --- normalizations ----------------------------------------------------------------------------------------------

void write_channels(const std::string& prefix, Tensors& tensors, std::initializer_list<std::pair<const char*, Buffer>> parameters) {
  for (const auto& [name, numbers] : parameters) tensors.emplace(prefix + name, tensor_of(numbers));
}

Json write(const BatchNormalizationDataSourcePtr& source, const std::string& prefix, const ParameterStore* graph, Tensors& tensors) {
  Json::Object object{{"class", "BatchNormalizationWeights"}, {"feature_channels", source->number_of_feature_channels()}, {"epsilon", double(source->epsilon())}};
  if (auto* own = dynamic_cast<BatchNormalizationWeights*>(source.get())) {
    object.emplace("momentum", double(own->momentum()));
    write_channels(prefix, tensors, {{".gamma", own->gamma_buffer()}, {".beta", own->beta_buffer()}, {".mean", own->mean_buffer()}, {".variance", own->variance_buffer()}});
    write_training(object, own->training(), prefix, tensors);
    return object;
  }
  if (!graph) refuse(source->label(), "BatchNormalizationWeights");
  const BatchNormalizationValues& values = graph->batch_normalization(source);
  object.emplace("momentum", 0);  // it comes back without its updates: its statistics stay
  write_channels(prefix, tensors, {{".gamma", narrowed(graph->values(values.gamma))}, {".beta", narrowed(graph->values(values.beta))},
                                   {".mean", narrowed(graph->values(values.mean))}, {".variance", narrowed(graph->values(values.variance))}});
  return object;
}

Json write(const AffineDataSourcePtr& source, const std::string& prefix, const ParameterStore* graph, Tensors& tensors) {
  auto* groups = dynamic_cast<CNNGroupNormalizationDataSource*>(source.get());
  Json::Object object{{"class", groups ? "GroupNormalizationWeights" : "InstanceNormalizationWeights"},
                      {"feature_channels", source->number_of_feature_channels()}, {"epsilon", double(source->epsilon())}};
  if (groups) object.emplace("number_of_groups", groups->number_of_groups());
  if (auto* own = dynamic_cast<AffineWeights*>(source.get())) {
    write_channels(prefix, tensors, {{".gamma", own->gamma_buffer()}, {".beta", own->beta_buffer()}});
    write_training(object, own->training(), prefix, tensors);
    return object;
  }
  if (!graph) refuse(source->label(), "InstanceNormalizationWeights or GroupNormalizationWeights");
  const AffineValues& values = graph->affine(source);
  write_channels(prefix, tensors, {{".gamma", narrowed(graph->values(values.gamma))}, {".beta", narrowed(graph->values(values.beta))}});
  return object;
}

/// A vector of one number per channel must exist before a source of so many channels is made.
Buffer take_channels(Tensors& tensors, const std::string& name, int channels) { return take_numbers(tensors, name, {channels}); }

AnyDataSource read_batch_normalization(const Json& json, const std::string& prefix, const std::string& label, Tensors& tensors) {
  const JsonFields f(json);
  const int channels = f.integer("feature_channels", 1, kMostChannels);
  const Buffer gamma = take_channels(tensors, prefix + ".gamma", channels), beta = take_channels(tensors, prefix + ".beta", channels);
  const Buffer mean = take_channels(tensors, prefix + ".mean", channels), variance = take_channels(tensors, prefix + ".variance", channels);
  auto source = std::make_shared<BatchNormalizationWeights>(channels, label, f.real("epsilon"), f.real("momentum"));
  source->set_values(gamma, beta, mean, variance);
  read_training(json, source->training(), prefix, tensors, channels, channels);
  return source;
}

template <class Weights>
AnyDataSource read_affine(std::shared_ptr<Weights> source, const Json& json, const std::string& prefix, const Buffer& gamma, const Buffer& beta, Tensors& tensors) {
  source->set_values(gamma, beta);
  read_training(json, source->training(), prefix, tensors, gamma.count(), beta.count());
  return source;
}

}  // namespace

Json write_source(const AnyDataSource& source, const std::string& prefix, const ParameterStore* graph, Tensors& tensors) {
  Json::Object object = std::visit([&](const auto& pointer) { return write(pointer, prefix, graph, tensors); }, source).object("a data source");
  object.emplace("label", std::visit([](const auto& pointer) { return pointer->label(); }, source));
  object.emplace("tensors", prefix);
  return object;
}

AnyDataSource read_source(const Json& json, Tensors& tensors) {
  const std::string &name = json.at("class").string("class"), &label = json.at("label").string("label"), &prefix = json.at("tensors").string("tensors");
  if (name == "ConvolutionWeights") return read_convolution(json, prefix, label, tensors);
  if (name == "PackedConvolutionWeights") return read_packed(json, prefix, label, tensors);
  if (name == "BatchNormalizationWeights") return read_batch_normalization(json, prefix, label, tensors);
  const bool is_group = name == "GroupNormalizationWeights";
  if (!is_group && name != "InstanceNormalizationWeights")
    bad_file("\"" + name.substr(0, 100) + "\" is no data source of this version.", "ConvolutionWeights or another one", name.substr(0, 100));
  const JsonFields f(json);
  const int channels = f.integer("feature_channels", 1, kMostChannels);
  const float epsilon = f.real("epsilon");
  const Buffer gamma = take_channels(tensors, prefix + ".gamma", channels), beta = take_channels(tensors, prefix + ".beta", channels);
  if (!is_group) return read_affine(std::make_shared<InstanceNormalizationWeights>(channels, label, epsilon), json, prefix, gamma, beta, tensors);
  const int groups = f.integer("number_of_groups", 1, kMostChannels);
  return read_affine(std::make_shared<GroupNormalizationWeights>(channels, groups, label, epsilon), json, prefix, gamma, beta, tensors);
}

}  // namespace mpsnn
