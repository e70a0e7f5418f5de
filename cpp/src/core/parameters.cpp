// SPDX-License-Identifier: Apache-2.0
#include "core/parameters.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <typeinfo>

#include "mpsnn/nodes/normalization.hpp"
#include "mpsnn/weights.hpp"

namespace mpsnn {
namespace {

/// Every parameter starts on a cache line.
constexpr std::size_t kAlignedElements = 16;

float half_to_float(std::uint16_t half) {
  const std::uint32_t sign = std::uint32_t(half & 0x8000) << 16, exponent = half >> 10 & 31, mantissa = half & 1023;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000 | mantissa << 13);
  if (exponent == 0) return (sign ? -1.0f : 1.0f) * static_cast<float>(mantissa) * 0x1p-24f;
  return std::bit_cast<float>(sign | (exponent + 112) << 23 | mantissa << 13);
}

/// Names a data source in errors: its own label, else that of the node that uses it.
std::string source_name(const std::string& source_label, const NNFilterNode& node) {
  return source_label.empty() ? node.display_name() : source_label;
}

[[noreturn]] void fail(const std::string& label, const char* protocol, const std::string& sentence, std::string expected, std::string actual, std::string hint) {
  throw WeightError("data source \"" + label + "\": " + sentence, {protocol, label, std::move(expected), std::move(actual), std::move(hint)});
}

constexpr const char* kConvolutionProtocol = "MPSCNNConvolutionDataSource";
constexpr const char* kNormalizationProtocol = "MPSCNNBatchNormalizationDataSource";
constexpr const char* kAffineProtocol = "MPSCNNNormalizationDataSource";

/// load() … purge(), balanced whatever happens between them.
template <class Source>
class Loaded {
 public:
  Loaded(Source& source, const std::string& label, const char* protocol) : source_(source) {
    if (!source.load())
      fail(label, protocol, "load() refused.", "true", "false", "return true from load(), or raise an error that says what is wrong");
  }
  ~Loaded() noexcept(false) {
    if (std::uncaught_exceptions() > uncaught_) {
      try { source_.purge(); } catch (...) {}  // the first error is the one to report
    } else source_.purge();
  }
  Loaded(const Loaded&) = delete;
  Loaded& operator=(const Loaded&) = delete;

 private:
  Source& source_;
  int uncaught_ = std::uncaught_exceptions();
};

void require_count(const WeightArray& array, const std::string& label, const char* protocol, const char* what, std::size_t count, const std::string& shape) {
  if (array.count == count) return;
  fail(label, protocol, std::string(what) + " has " + std::to_string(array.count) + " numbers, " + std::to_string(count) + " are needed.",
       shape + " = " + std::to_string(count), std::to_string(array.count), std::string("give ") + what + " of that size");
}

/// Writes `count` numbers of a Float32 array, or `otherwise` where there is none.
void copy_floats(const WeightArray& array, const Buffer& target, double otherwise) {
  if (!array) return target.fill(otherwise);
  target.copy_from(Buffer(nullptr, const_cast<void*>(array.data), array.count, ElementType::float32));
}

void set(const Buffer& target, std::size_t i, double value) {
  if (target.type() == ElementType::float64) target.doubles()[i] = value;
  else target.floats()[i] = static_cast<float>(value);
}

/// Folds inference batch normalization into weights and biases (MPS_SEMANTICS 7.3).
void fold_batch_normalization(const CNNConvolutionDescriptor& d, const Buffer& weights, const Buffer& biases) {
  const std::size_t per_channel = d.weight_count() / d.output_feature_channels;
  for (int o = 0; o < d.output_feature_channels; ++o) {
    const double gamma = d.batch_gamma.empty() ? 1.0 : d.batch_gamma[o], beta = d.batch_beta.empty() ? 0.0 : d.batch_beta[o];
    const double scale = gamma / std::sqrt(double(d.batch_variance[o]) + d.batch_epsilon);
    for (std::size_t i = o * per_channel; i < (o + 1) * per_channel; ++i) set(weights, i, weights.at(i) * scale);
    set(biases, o, biases.at(o) * scale + beta - scale * d.batch_mean[o]);
  }
}

/// The numbers of our own data source as they are: weights() would round those that the reference engine trained to float32.
const Buffer* unrounded(const CNNConvolutionDataSource& source, const Buffer& (ConvolutionWeights::*buffer)() const) {
  return typeid(source) == typeid(ConvolutionWeights) ? &(static_cast<const ConvolutionWeights&>(source).*buffer)() : nullptr;
}

void copy_weights(CNNConvolutionDataSource& source, const CNNConvolutionDescriptor& descriptor, const std::string& label, const Buffer& target) {
  if (const Buffer* own = unrounded(source, &ConvolutionWeights::weights_buffer)) return target.copy_from(*own);
  const WeightArray weights = source.weights();
  require_count(weights, label, kConvolutionProtocol, "weights", descriptor.weight_count(), descriptor.weight_shape_text() + " (O x kH x kW x I/groups)");
  switch (source.data_type()) {
    case DataType::Float32: return copy_floats(weights, target, 0);
    case DataType::Float16: {
      auto* halves = static_cast<const std::uint16_t*>(weights.data);
      for (std::size_t i = 0; i < weights.count; ++i) set(target, i, half_to_float(halves[i]));
      return;
    }
    case DataType::UInt8: break;
    default:
      fail(label, kConvolutionProtocol, "weights are Float32, Float16 or UInt8.", "one of these", std::to_string(static_cast<std::uint32_t>(source.data_type())),
           "convert them");
  }
  auto* bytes = static_cast<const std::uint8_t*>(weights.data);
  const std::size_t per_channel = weights.count / descriptor.output_feature_channels;
  if (source.weights_quantization_type() == CNNWeightsQuantizationType::LookupTable) {
    const WeightArray table = source.lookup_table_for_uint8_kernel();
    require_count(table, label, kConvolutionProtocol, "lookup_table_for_uint8_kernel", 256, "256");
    for (std::size_t i = 0; i < weights.count; ++i) set(target, i, static_cast<const float*>(table.data)[bytes[i]]);
  } else if (source.weights_quantization_type() == CNNWeightsQuantizationType::Linear) {
    const WeightArray ranges = source.ranges_for_uint8_kernel();
    require_count(ranges, label, kConvolutionProtocol, "ranges_for_uint8_kernel", 2 * std::size_t(descriptor.output_feature_channels), "O x 2");
    for (std::size_t i = 0; i < weights.count; ++i) {
      const float* range = static_cast<const float*>(ranges.data) + 2 * (i / per_channel);
      set(target, i, range[0] + double(bytes[i]) * (double(range[1]) - range[0]) / 255);
    }
  } else fail(label, kConvolutionProtocol, "UInt8 weights need a quantization type.", "Linear or LookupTable", "None", "override weights_quantization_type");
}

}  // namespace

ParameterStore::ParameterStore(const std::vector<FilterNodePtr>& nodes, const Backend& backend) : type_(backend.element_type()) {
  for (const FilterNodePtr& node : nodes) node->declare(*this);
  parameters_ = backend.allocate(parameters_end_);
  gradients_ = Buffer(gradients_end_, type_);
  reload();
  version_ = 1;
}

ParameterRange ParameterStore::reserve(std::size_t& end, Shape shape, std::string label) {
  ParameterRange range{end, shape.count(), shape, std::move(label)};
  end += (range.count + kAlignedElements - 1) / kAlignedElements * kAlignedElements;
  return range;
}

void ParameterStore::declare_convolution(const NNFilterNode& node, const ConvolutionDataSourcePtr& source) {
  for (const auto& values : convolutions_)
    if (values->source == source) return;
  auto values = std::make_unique<ConvolutionValues>();
  values->source = source;
  values->label = source_name(source->label(), node);
  const Loaded loaded(*source, values->label, kConvolutionProtocol);
  values->descriptor = source->descriptor();
  values->descriptor.validate(values->label);
  const CNNConvolutionDescriptor& d = values->descriptor;
  const Shape weights{d.output_feature_channels, d.kernel_height, d.kernel_width, d.input_channels_per_group()};
  values->weights = reserve(parameters_end_, weights, values->label + ".weights");
  if (source->bias_terms() || !d.batch_mean.empty())
    values->biases = reserve(parameters_end_, {1, 1, 1, d.output_feature_channels}, values->label + ".biases");
  convolutions_.push_back(std::move(values));
}

void ParameterStore::declare_batch_normalization(const NNFilterNode& node, const BatchNormalizationDataSourcePtr& source) {
  for (const auto& values : normalizations_)
    if (values->source == source) return;
  auto values = std::make_unique<BatchNormalizationValues>();
  values->source = source;
  values->label = source_name(source->label(), node);
  const Loaded loaded(*source, values->label, kNormalizationProtocol);
  values->channels = source->number_of_feature_channels();
  values->epsilon = source->epsilon();
  if (values->channels < 1)
    fail(values->label, kNormalizationProtocol, "number_of_feature_channels must be at least 1.", ">= 1", std::to_string(values->channels), "give the image's channels");
  for (auto [range, name] : {std::pair{&values->gamma, ".gamma"}, {&values->beta, ".beta"}, {&values->mean, ".mean"}, {&values->variance, ".variance"}})
    *range = reserve(parameters_end_, {1, 1, 1, values->channels}, values->label + name);
  normalizations_.push_back(std::move(values));
}

void ParameterStore::declare_affine(const NNFilterNode& node, const AffineDataSourcePtr& source) {
  for (const auto& values : affines_)
    if (values->source == source) return;
  auto values = std::make_unique<AffineValues>();
  values->source = source;
  values->label = source_name(source->label(), node);
  const Loaded loaded(*source, values->label, kAffineProtocol);
  values->channels = source->number_of_feature_channels();
  values->epsilon = source->epsilon();
  if (values->channels < 1)
    fail(values->label, kAffineProtocol, "number_of_feature_channels must be at least 1.", ">= 1", std::to_string(values->channels), "give the image's channels");
  values->groups = source->group_count();
  if (values->groups < 1 || values->channels % values->groups != 0)
    fail(values->label, kAffineProtocol, "number_of_groups must divide the feature channels.", "a divisor of " + std::to_string(values->channels),
         std::to_string(values->groups), "number_of_groups=1, or another divisor");
  values->gamma = reserve(parameters_end_, {1, 1, 1, values->channels}, values->label + ".gamma");
  values->beta = reserve(parameters_end_, {1, 1, 1, values->channels}, values->label + ".beta");
  affines_.push_back(std::move(values));
}

void ParameterStore::declare_binary_convolution(const NNFilterNode& node, const ConvolutionDataSourcePtr& source, BinaryConvolutionValues values,
                                                std::optional<float> scale_value) {
  auto parameters = std::make_unique<BinaryConvolutionParameters>();
  parameters->node = &node;
  parameters->source = source;
  parameters->label = source_name(source->label(), node);
  parameters->scale_value = scale_value;
  const Loaded loaded(*source, parameters->label, kConvolutionProtocol);
  parameters->descriptor = source->descriptor();
  const CNNConvolutionDescriptor& d = parameters->descriptor;
  d.validate(parameters->label);
  if (d.groups != 1 || d.kind != ConvolutionKind::plain)
    fail(parameters->label, kConvolutionProtocol, "a binary convolution has one group and a plain descriptor.", "groups 1", std::to_string(d.groups), "groups=1");
  const std::tuple<const char*, const std::vector<float>&, int> terms[] = {{"output_bias_terms", values.output_bias, d.output_feature_channels},
                                                                           {"output_scale_terms", values.output_scale, d.output_feature_channels},
                                                                           {"input_bias_terms", values.input_bias, d.input_feature_channels},
                                                                           {"input_scale_terms", values.input_scale, d.input_feature_channels}};
  for (const auto& [what, term, count] : terms)
    if (!term.empty() && int(term.size()) != count)
      fail(parameters->label, node.class_name(), std::string(what) + " needs one number per channel.", std::to_string(count), std::to_string(term.size()),
           "None, or an array of that size");
  parameters->values = std::make_shared<BinaryConvolutionValues>(std::move(values));
  binary_convolutions_.push_back(std::move(parameters));
}

void ParameterStore::declare_batch_statistics(const NNFilterNode& node, const BatchNormalizationDataSourcePtr& source) {
  const BatchNormalizationValues& values = batch_normalization(source);
  const Shape shape{1, 1, 1, values.channels};
  BatchStatistics statistics{&node, {}, {}};
  statistics.mean = reserve(gradients_end_, shape, values.label + ".batch_mean");
  statistics.variance = reserve(gradients_end_, shape, values.label + ".batch_variance");
  statistics_.push_back(std::move(statistics));
}

void ParameterStore::train_convolution(const NNFilterNode& node, const NNFilterNode& forward, NNTrainingStyle style, const ConvolutionDataSourcePtr& source) {
  if (style == NNTrainingStyle::UpdateDeviceNone) return;
  TrainedParameters trained{&node, &forward, style, &convolution(source), nullptr, nullptr, {}, {}};
  trained.first = reserve(gradients_end_, trained.convolution->weights.shape, trained.convolution->label + ".weights gradient");
  if (trained.convolution->biases) trained.second = reserve(gradients_end_, trained.convolution->biases.shape, trained.convolution->label + ".biases gradient");
  trained_.push_back(std::move(trained));
}

void ParameterStore::train_batch_normalization(const NNFilterNode& node, const NNFilterNode& forward, NNTrainingStyle style,
                                               const BatchNormalizationDataSourcePtr& source) {
  if (style == NNTrainingStyle::UpdateDeviceNone) return;
  TrainedParameters trained{&node, &forward, style, nullptr, &batch_normalization(source), nullptr, {}, {}};
  trained.first = reserve(gradients_end_, trained.normalization->gamma.shape, trained.normalization->label + ".gamma gradient");
  trained.second = reserve(gradients_end_, trained.normalization->beta.shape, trained.normalization->label + ".beta gradient");
  trained_.push_back(std::move(trained));
}

void ParameterStore::train_affine(const NNFilterNode& node, const NNFilterNode& forward, NNTrainingStyle style, const AffineDataSourcePtr& source) {
  if (style == NNTrainingStyle::UpdateDeviceNone) return;
  TrainedParameters trained{&node, &forward, style, nullptr, nullptr, &affine(source), {}, {}};
  trained.first = reserve(gradients_end_, trained.affine->gamma.shape, trained.affine->label + ".gamma gradient");
  trained.second = reserve(gradients_end_, trained.affine->beta.shape, trained.affine->label + ".beta gradient");
  trained_.push_back(std::move(trained));
}

const AffineValues& ParameterStore::affine(const AffineDataSourcePtr& source) const {
  for (const auto& values : affines_)
    if (values->source == source) return *values;
  throw WeightError("this graph does not use the data source \"" + source->label() + "\".",
                    {.node = kAffineProtocol, .label = source->label(), .expected = "a data source of one of its nodes", .actual = "another one"});
}

const BinaryConvolutionParameters& ParameterStore::binary_convolution(const NNFilterNode& node) const {
  return **std::find_if(binary_convolutions_.begin(), binary_convolutions_.end(), [&](const auto& parameters) { return parameters->node == &node; });
}

const ConvolutionValues& ParameterStore::convolution(const ConvolutionDataSourcePtr& source) const {
  for (const auto& values : convolutions_)
    if (values->source == source) return *values;
  throw WeightError("this graph does not use the data source \"" + source->label() + "\".",
                    {.node = kConvolutionProtocol, .label = source->label(), .expected = "a data source of one of its nodes", .actual = "another one"});
}

const BatchNormalizationValues& ParameterStore::batch_normalization(const BatchNormalizationDataSourcePtr& source) const {
  for (const auto& values : normalizations_)
    if (values->source == source) return *values;
  throw WeightError("this graph does not use the data source \"" + source->label() + "\".",
                    {.node = kNormalizationProtocol, .label = source->label(), .expected = "a data source of one of its nodes", .actual = "another one"});
}

const TrainedParameters* ParameterStore::trained(const NNFilterNode& gradient_node) const {
  for (const TrainedParameters& trained : trained_)
    if (trained.node == &gradient_node) return &trained;
  return nullptr;
}

const BatchStatistics* ParameterStore::batch_statistics(const NNFilterNode& node) const {
  for (const BatchStatistics& statistics : statistics_)
    if (statistics.node == &node) return &statistics;
  return nullptr;
}

void ParameterStore::load(const ConvolutionValues& values, const Buffer& target) const {
  CNNConvolutionDataSource& source = *values.source;
  const CNNConvolutionDescriptor& descriptor = values.descriptor;
  const Loaded loaded(source, values.label, kConvolutionProtocol);
  if (source.descriptor() != descriptor) {
    fail(values.label, kConvolutionProtocol, "the descriptor changed after the graph was made.", "weights " + descriptor.weight_shape_text(),
         "weights " + source.descriptor().weight_shape_text(), "make a new graph for the new descriptor");
  }
  copy_weights(source, descriptor, values.label, target.part(values.weights.offset, values.weights.count));
  const WeightArray biases = source.bias_terms();
  if (!values.biases) {
    if (biases) fail(values.label, kConvolutionProtocol, "bias terms appeared after the graph was made.", "none", std::to_string(biases.count), "make a new graph");
    return;
  }
  if (biases) require_count(biases, values.label, kConvolutionProtocol, "bias_terms", values.biases.count, "O");
  const Buffer* own = unrounded(source, &ConvolutionWeights::biases_buffer);
  if (own && *own) target.part(values.biases.offset, values.biases.count).copy_from(*own);
  else copy_floats(biases, target.part(values.biases.offset, values.biases.count), 0);
  if (!descriptor.batch_mean.empty())
    fold_batch_normalization(descriptor, target.part(values.weights.offset, values.weights.count), target.part(values.biases.offset, values.biases.count));
}

void ParameterStore::load(const BatchNormalizationValues& values, const Buffer& target) const {
  CNNBatchNormalizationDataSource& source = *values.source;
  const Loaded loaded(source, values.label, kNormalizationProtocol);
  if (typeid(source) == typeid(BatchNormalizationWeights)) {
    const auto& own = static_cast<const BatchNormalizationWeights&>(source);
    for (const auto& [range, numbers] : {std::pair{&values.gamma, &own.gamma_buffer()}, {&values.beta, &own.beta_buffer()},
                                         {&values.mean, &own.mean_buffer()}, {&values.variance, &own.variance_buffer()}})
      target.part(range->offset, range->count).copy_from(*numbers);
    return;
  }
  auto read = [&](const char* what, const WeightArray& array, const ParameterRange& range, double otherwise, bool is_required) {
    if (array || is_required) require_count(array, values.label, kNormalizationProtocol, what, range.count, "number_of_feature_channels");
    copy_floats(array, target.part(range.offset, range.count), otherwise);
  };
  read("gamma", source.gamma(), values.gamma, 1, false);
  read("beta", source.beta(), values.beta, 0, false);
  read("mean", source.mean(), values.mean, 0, true);
  read("variance", source.variance(), values.variance, 1, true);
}

void ParameterStore::load(const AffineValues& values, const Buffer& target) const {
  CNNAffineDataSource& source = *values.source;
  const Loaded loaded(source, values.label, kAffineProtocol);
  if (const auto* own = dynamic_cast<const AffineWeights*>(&source)) {
    target.part(values.gamma.offset, values.gamma.count).copy_from(own->gamma_buffer());
    target.part(values.beta.offset, values.beta.count).copy_from(own->beta_buffer());
    return;
  }
  auto read = [&](const char* what, const WeightArray& array, const ParameterRange& range, double otherwise) {
    if (array) require_count(array, values.label, kAffineProtocol, what, range.count, "number_of_feature_channels");
    copy_floats(array, target.part(range.offset, range.count), otherwise);
  };
  read("gamma", source.gamma(), values.gamma, 1);
  read("beta", source.beta(), values.beta, 0);
}

BinaryConvolutionValues ParameterStore::load(const BinaryConvolutionParameters& parameters) const {
  CNNConvolutionDataSource& source = *parameters.source;
  const CNNConvolutionDescriptor& d = parameters.descriptor;
  const Loaded loaded(source, parameters.label, kConvolutionProtocol);
  BinaryConvolutionValues values = *parameters.values;
  if (source.data_type() != DataType::UInt32)
    fail(parameters.label, kConvolutionProtocol, "the weights of a binary convolution are packed bits.", "UInt32",
         std::to_string(static_cast<std::uint32_t>(source.data_type())), "return MPSDataType.UInt32 from data_type()");
  const std::size_t words = std::size_t(d.output_feature_channels) * d.kernel_height * d.kernel_width * ceil_divide(d.input_feature_channels, 32);
  const WeightArray weights = source.weights();
  require_count(weights, parameters.label, kConvolutionProtocol, "weights", words, "O x kH x kW x ceil(I / 32)");
  auto* bits = static_cast<const std::uint32_t*>(weights.data);
  values.bits.assign(bits, bits + words);
  if (!parameters.scale_value) return values;
  values.output_scale.assign(d.output_feature_channels, *parameters.scale_value);
  const WeightArray biases = source.bias_terms();
  if (!biases) return values;
  require_count(biases, parameters.label, kConvolutionProtocol, "bias_terms", d.output_feature_channels, "O");
  auto* terms = static_cast<const float*>(biases.data);
  values.output_bias.assign(terms, terms + d.output_feature_channels);
  return values;
}

void ParameterStore::reload() {
  Changed all;
  for (const auto& values : convolutions_) all.convolutions.push_back(values.get());
  for (const auto& values : normalizations_) all.normalizations.push_back(values.get());
  for (const auto& values : affines_) all.affines.push_back(values.get());
  for (const auto& parameters : binary_convolutions_) all.binary_convolutions.push_back(parameters.get());
  reload(all);
}

void ParameterStore::reload(const Changed& changed) {
  // Into fresh memory first: a source that fails half-way leaves the old values whole.
  const Buffer fresh(parameters_.count(), type_);
  fresh.copy_from(parameters_);
  for (const ConvolutionValues* values : changed.convolutions) load(*values, fresh);
  for (const BatchNormalizationValues* values : changed.normalizations) load(*values, fresh);
  for (const AffineValues* values : changed.affines) load(*values, fresh);
  std::vector<BinaryConvolutionValues> bits;
  for (const BinaryConvolutionParameters* parameters : changed.binary_convolutions) bits.push_back(load(*parameters));
  parameters_.copy_from(fresh);
  for (std::size_t i = 0; i < bits.size(); ++i) *changed.binary_convolutions[i]->values = std::move(bits[i]);
  ++version_;
}

std::shared_ptr<CNNConvolutionGradientState> ParameterStore::gradient_state(const TrainedParameters& trained, const Shape& source, const Buffer& block) const {
  auto state = std::make_shared<CNNConvolutionGradientState>();
  state->label = trained.convolution->label;
  state->gradient_for_weights = block.part(trained.first.offset, trained.first.count);
  if (trained.second) state->gradient_for_biases = block.part(trained.second.offset, trained.second.count);
  state->descriptor = trained.convolution->descriptor;
  state->source_width = source.width;
  state->source_height = source.height;
  return state;
}

std::shared_ptr<CNNConvolutionWeightsAndBiasesState> ParameterStore::source_state(const ConvolutionValues& convolution) const {
  return std::make_shared<CNNConvolutionWeightsAndBiasesState>(values(convolution.weights), convolution.biases ? values(convolution.biases) : Buffer(),
                                                               convolution.descriptor);
}

std::shared_ptr<CNNBatchNormalizationState> ParameterStore::normalization_state(const TrainedParameters& trained, const Shape& source, const Buffer& block) const {
  auto state = std::make_shared<CNNBatchNormalizationState>();
  const BatchNormalizationValues& normalization = *trained.normalization;
  state->label = normalization.label;
  state->gamma = values(normalization.gamma);
  state->beta = values(normalization.beta);
  // With statistics Never, the batch's were not taken: there is nothing to average.
  const auto flags = static_cast<std::int64_t>(dynamic_cast<const CNNBatchNormalizationNode&>(*trained.forward).flags) &
                     static_cast<std::int64_t>(CNNBatchNormalizationFlags::CalculateStatisticsMask);
  const bool has_statistics = flags != static_cast<std::int64_t>(CNNBatchNormalizationFlags::CalculateStatisticsNever);
  const BatchStatistics* statistics = has_statistics ? batch_statistics(*trained.forward) : nullptr;
  if (statistics) {
    state->mean = block.part(statistics->mean.offset, statistics->mean.count);
    state->variance = block.part(statistics->variance.offset, statistics->variance.count);
  }
  state->gradient_for_gamma = block.part(trained.first.offset, trained.first.count);
  state->gradient_for_beta = block.part(trained.second.offset, trained.second.count);
  state->element_count = source.pixels();
  return state;
}

std::shared_ptr<CNNAffineGradientState> ParameterStore::affine_state(const TrainedParameters& trained, const Buffer& block) const {
  auto state = std::make_shared<CNNAffineGradientState>();
  state->label = trained.affine->label;
  state->gamma = values(trained.affine->gamma);
  state->beta = values(trained.affine->beta);
  state->gradient_for_gamma = block.part(trained.first.offset, trained.first.count);
  state->gradient_for_beta = block.part(trained.second.offset, trained.second.count);
  return state;
}

}  // namespace mpsnn
