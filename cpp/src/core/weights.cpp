// SPDX-License-Identifier: Apache-2.0
#include "mpsnn/weights.hpp"

#include <cmath>
#include <cstring>
#include <numbers>

#include "mpsnn/error.hpp"

namespace mpsnn {
namespace {

/// Uniform and normal numbers that are the same on every platform, which the standard library's distributions are not.
class RandomNumbers {
 public:
  explicit RandomNumbers(std::uint64_t seed) : state_(seed) {}

  /// In (0, 1].
  double uniform() {
    std::uint64_t bits = state_ += 0x9e3779b97f4a7c15ull;  // SplitMix64
    bits = (bits ^ (bits >> 30)) * 0xbf58476d1ce4e5b9ull;
    bits = (bits ^ (bits >> 27)) * 0x94d049bb133111ebull;
    return static_cast<double>(((bits ^ (bits >> 31)) >> 11) + 1) * 0x1p-53;
  }

  /// Box and Muller's transform.
  double normal() { return std::sqrt(-2 * std::log(uniform())) * std::cos(2 * std::numbers::pi * uniform()); }

 private:
  std::uint64_t state_;
};

/// Of the same type: numbers that the reference engine trained are not rounded.
Buffer copy_of(const Buffer& source) {
  if (!source) return {};
  Buffer copy(source.count(), source.type());
  copy.copy_from(source);
  return copy;
}

Buffer single_copy_of(const Buffer& source) {
  Buffer copy(source.count(), ElementType::float32);
  copy.copy_from(source);
  return copy;
}

/// A float32 array of a buffer of any type.
WeightArray floats(const Buffer& buffer) {
  if (!buffer) return {};
  if (buffer.type() == ElementType::float32) return {buffer.data(), buffer.count(), buffer.owner()};
  const Buffer single = single_copy_of(buffer);
  return {single.data(), single.count(), single.owner()};
}

void require_count(const std::string& label, const char* what, const Buffer& buffer, std::size_t count, const std::string& shape) {
  if (buffer.count() == count) return;
  throw WeightError("weights \"" + label + "\": " + what + " has " + std::to_string(buffer.count()) + " numbers, " + std::to_string(count) + " are needed.",
                    {.node = "ConvolutionWeights", .label = label, .expected = shape + " = " + std::to_string(count), .actual = std::to_string(buffer.count()),
                     .hint = "check the array against the descriptor"});
}

Buffer filled(std::size_t count, double value) {
  Buffer buffer(count, ElementType::float32);
  buffer.fill(value);
  return buffer;
}

}  // namespace

namespace {

void require_fit(const NNOptimizer& optimizer, const Buffer& gradient, const Buffer& values, std::span<const Buffer> history, const Buffer& result) {
  auto require = [&](const char* what, std::size_t expected, std::size_t actual) {
    if (expected == actual) return;
    throw OptionError(std::string(optimizer.class_name()) + ": " + what + " does not fit the values.",
                      {.node = optimizer.class_name(), .expected = std::to_string(expected), .actual = std::to_string(actual), .hint = "one number per value"});
  };
  require("the number of history vectors", optimizer.history_count(), history.size());
  require("the gradient", values.count(), gradient.count());
  require("the result", values.count(), result.count());
  for (const Buffer& vector : history) require("a history vector", values.count(), vector.count());
}

/// An application's vectors hold float32 numbers, those of the reference engine are float64: one step on any of them.
void apply_update(const NNOptimizer& optimizer, const Buffer& gradient, const Buffer& values, std::span<const Buffer> history, const Buffer& result) {
  auto as_values = [&](const Buffer& buffer) {
    if (buffer.type() == values.type()) return buffer;
    Buffer converted(buffer.count(), values.type());
    converted.copy_from(buffer);
    return converted;
  };
  std::vector<Buffer> vectors;
  for (const Buffer& vector : history) vectors.push_back(as_values(vector));
  const Buffer updated = as_values(result);
  optimizer.apply(as_values(gradient), values, vectors, updated);
  for (std::size_t i = 0; i < vectors.size(); ++i)
    if (vectors[i].data() != history[i].data()) history[i].copy_from(vectors[i]);
  if (updated.data() != result.data()) result.copy_from(updated);
}

}  // namespace

void encode(CommandBuffer& command_buffer, const std::shared_ptr<NNOptimizer>& optimizer, const Buffer& gradient, const Buffer& values,
            const std::vector<Buffer>& history, const Buffer& result) {
  require_fit(*optimizer, gradient, values, history, result);
  command_buffer.record([=] {
    optimizer->begin_step();
    apply_update(*optimizer, gradient, values, history, result);
  });
}

void encode(CommandBuffer& command_buffer, const std::shared_ptr<NNOptimizer>& optimizer, const std::shared_ptr<CNNConvolutionGradientState>& gradient_state,
            const std::shared_ptr<CNNConvolutionWeightsAndBiasesState>& source_state, const std::vector<Buffer>& history,
            const std::shared_ptr<CNNConvolutionWeightsAndBiasesState>& result_state) {
  const std::size_t moments = optimizer->history_count();
  const std::span<const Buffer> all(history);
  const bool has_biases = source_state->biases && gradient_state->gradient_for_biases && (moments == 0 || all.size() > moments);
  const auto first = all.first(std::min(moments, all.size())), second = all.subspan(first.size());
  require_fit(*optimizer, gradient_state->gradient_for_weights, source_state->weights, first, result_state->weights);
  if (has_biases) require_fit(*optimizer, gradient_state->gradient_for_biases, source_state->biases, second, result_state->biases);
  command_buffer.record([=] {
    const std::span<const Buffer> vectors(history);
    optimizer->begin_step();
    apply_update(*optimizer, gradient_state->gradient_for_weights, source_state->weights, vectors.first(moments), result_state->weights);
    if (has_biases) apply_update(*optimizer, gradient_state->gradient_for_biases, source_state->biases, vectors.subspan(moments), result_state->biases);
    else if (source_state->biases && result_state->biases) result_state->biases.copy_from(source_state->biases);
  });
}

void TrainedBuffers::set_optimizer(const std::shared_ptr<NNOptimizer>& optimizer) {
  optimizer_ = optimizer ? optimizer->clone() : nullptr;
  history_.clear();
}

TrainedDataSource::~TrainedDataSource() = default;

TrainedBuffers TrainedBuffers::copy() const {
  TrainedBuffers result;
  if (optimizer_) result.optimizer_ = optimizer_->clone();
  for (const Buffer& vector : history_) {
    result.history_.emplace_back(vector.count(), vector.type());
    result.history_.back().copy_from(vector);
  }
  return result;
}

void TrainedBuffers::prepare(const Buffer& first, const Buffer& second, const std::string& label) {
  const std::size_t moments = optimizer_->history_count();
  const bool is_new = history_.empty();
  if (is_new) history_.resize(moments * (second ? 2 : 1));
  for (std::size_t i = 0; i < history_.size(); ++i) {
    const Buffer& parameter = i < moments ? first : second;
    if (is_new) history_[i] = Buffer(parameter.count(), parameter.type());
    if (history_.size() != moments * (second ? 2 : 1) || history_[i].count() != parameter.count())
      throw WeightError("weights \"" + label + "\": the optimizer's history does not fit the parameters.",
                        {.node = optimizer_->class_name(), .label = label,
                         .expected = std::to_string(moments * (second ? 2 : 1)) + " vectors, this one of " + std::to_string(parameter.count()),
                         .actual = std::to_string(history_.size()) + " vectors, this one of " + std::to_string(history_[i].count()),
                         .hint = "restore the history that was saved with this optimizer"});
    if (history_[i].type() == parameter.type()) continue;
    Buffer converted(parameter.count(), parameter.type());
    converted.copy_from(history_[i]);
    history_[i] = converted;
  }
}

void TrainedBuffers::apply(const Buffer& first, const Buffer& first_gradient, const Buffer& second, const Buffer& second_gradient) const {
  const std::size_t moments = optimizer_->history_count();
  optimizer_->begin_step();
  const std::span<const Buffer> history(history_);
  optimizer_->apply(first_gradient, first, history.first(moments), first);
  if (second) optimizer_->apply(second_gradient, second, history.subspan(moments), second);
}

ConvolutionWeights::ConvolutionWeights(CNNConvolutionDescriptor descriptor, Buffer weights, Buffer biases, std::string label)
    : descriptor_(std::move(descriptor)), label_(std::move(label)), weights_(std::move(weights)), biases_(std::move(biases)) {
  descriptor_.validate(label_);
  require_count(label_, "weights", weights_, descriptor_.weight_count(), descriptor_.weight_shape_text() + " (O x kH x kW x I/groups)");
  if (biases_) require_count(label_, "biases", biases_, descriptor_.output_feature_channels, "O");
}

ConvolutionWeights::ConvolutionWeights(CNNConvolutionDescriptor descriptor, Initializer initializer, std::uint64_t seed, std::string label, bool has_biases)
    : descriptor_(std::move(descriptor)), label_(std::move(label)) {
  descriptor_.validate(label_);
  weights_ = Buffer(descriptor_.weight_count(), ElementType::float32);
  if (has_biases) biases_ = Buffer(descriptor_.output_feature_channels, ElementType::float32);
  RandomNumbers random(seed);
  const double taps = double(descriptor_.kernel_width) * descriptor_.kernel_height;
  const double fan_in = taps * descriptor_.input_channels_per_group();
  const double fan_out = taps * descriptor_.output_feature_channels / descriptor_.effective_groups();
  const double deviation = std::sqrt(2 / fan_in), limit = std::sqrt(6 / (fan_in + fan_out));
  for (std::size_t i = 0; initializer != Initializer::zeros && i < weights_.count(); ++i)
    weights_.floats()[i] = static_cast<float>(initializer == Initializer::he ? deviation * random.normal() : limit * (2 * random.uniform() - 1));
}

WeightArray ConvolutionWeights::weights() { return floats(weights_); }
WeightArray ConvolutionWeights::bias_terms() { return floats(biases_); }

void ConvolutionWeights::set_values(const Buffer& weights, const Buffer& biases) {
  require_count(label_, "weights", weights, descriptor_.weight_count(), descriptor_.weight_shape_text() + " (O x kH x kW x I/groups)");
  require_count(label_, "biases", biases, biases_.count(), "O");
  weights_ = copy_of(weights);
  biases_ = copy_of(biases);
}

bool ConvolutionWeights::update(const std::shared_ptr<CNNConvolutionGradientState>& gradient_state,
                                const std::shared_ptr<CNNConvolutionWeightsAndBiasesState>& source_state) {
  if (!training_.optimizer()) return false;
  training_.prepare(source_state->weights, source_state->biases, label_);
  training_.apply(source_state->weights, gradient_state->gradient_for_weights, source_state->biases, gradient_state->gradient_for_biases);
  follow(*source_state);
  return true;
}

void ConvolutionWeights::follow(const CNNConvolutionWeightsAndBiasesState& state) {
  weights_ = state.weights;
  biases_ = state.biases;
}

std::shared_ptr<CNNConvolutionWeightsAndBiasesState> ConvolutionWeights::update(
    CommandBuffer& command_buffer, const std::shared_ptr<CNNConvolutionGradientState>& gradient_state,
    const std::shared_ptr<CNNConvolutionWeightsAndBiasesState>& source_state) {
  if (!training_.optimizer()) return nullptr;
  training_.prepare(source_state->weights, source_state->biases, label_);  // what can fail, fails before anything runs
  command_buffer.record([self = shared_from_this(), gradient_state, source_state] { self->update(gradient_state, source_state); });
  return source_state;
}

std::function<void()> ConvolutionWeights::remember() {
  return [self = shared_from_this(), training = training_.copy(), weights = weights_, biases = biases_] {
    self->training_ = training;
    self->weights_ = weights;
    self->biases_ = biases;
  };
}

PackedConvolutionWeights::PackedConvolutionWeights(CNNConvolutionDescriptor descriptor, DataType type, Arrays arrays, std::string label)
    : descriptor_(std::move(descriptor)), type_(type), arrays_(std::move(arrays)), label_(std::move(label)) {
  descriptor_.validate(label_);
  auto refuse = [&](const std::string& sentence, std::string expected, std::string actual) {
    throw WeightError("weights \"" + label_ + "\": " + sentence,
                      {.node = "PackedConvolutionWeights", .label = label_, .expected = std::move(expected), .actual = std::move(actual), .hint = "check the arrays"});
  };
  auto require = [&](const char* what, const WeightArray& array, std::size_t count, bool is_needed) {
    if (array ? array.owner != nullptr && array.count == count : !is_needed) return;
    refuse(std::string(what) + " has another size.", std::to_string(count) + " numbers", std::to_string(array.count));
  };
  const CNNConvolutionDescriptor& d = descriptor_;
  const bool is_bits = type == DataType::UInt32, is_bytes = type == DataType::UInt8;
  if (!is_bits && !is_bytes && type != DataType::Float16)
    refuse("they are no packed type.", "Float16, UInt8 or UInt32", std::to_string(static_cast<std::uint32_t>(type)));
  const std::size_t words = std::size_t(d.output_feature_channels) * d.kernel_height * d.kernel_width * ceil_divide(d.input_feature_channels, 32);
  require("weights", arrays_.weights, is_bits ? words : d.weight_count(), true);
  require("biases", arrays_.biases, d.output_feature_channels, false);
  if (is_bytes == (!arrays_.ranges && !arrays_.lookup_table) || (arrays_.ranges && arrays_.lookup_table))
    refuse("bytes need ranges or a look-up table, and nothing else does.", is_bytes ? "one of the two" : "none", arrays_.ranges ? "ranges" : arrays_.lookup_table ? "a table" : "none");
  require("ranges", arrays_.ranges, 2 * std::size_t(d.output_feature_channels), false);
  require("lookup_table", arrays_.lookup_table, 256, false);
}

CNNWeightsQuantizationType PackedConvolutionWeights::weights_quantization_type() {
  if (arrays_.ranges) return CNNWeightsQuantizationType::Linear;
  return arrays_.lookup_table ? CNNWeightsQuantizationType::LookupTable : CNNWeightsQuantizationType::None;
}

std::shared_ptr<PackedConvolutionWeights> PackedConvolutionWeights::copy_of(CNNConvolutionDataSource& source) {
  auto copy = [](const WeightArray& array, std::size_t element_bytes) -> WeightArray {
    if (!array) return {};
    std::shared_ptr<std::byte[]> memory(new std::byte[std::max<std::size_t>(array.count * element_bytes, 1)]);
    std::memcpy(memory.get(), array.data, array.count * element_bytes);
    return {memory.get(), array.count, memory};
  };
  const DataType type = source.data_type();
  const auto quantization = source.weights_quantization_type();
  const std::string label = source.label();
  if (!source.load())
    throw WeightError("data source \"" + label + "\": load() refused.", {.node = "MPSCNNConvolutionDataSource", .label = label, .expected = "true", .actual = "false"});
  Arrays arrays;
  arrays.weights = copy(source.weights(), type == DataType::Float16 ? 2 : type == DataType::UInt8 ? 1 : 4);
  arrays.biases = copy(source.bias_terms(), sizeof(float));
  if (type == DataType::UInt8 && quantization == CNNWeightsQuantizationType::Linear) arrays.ranges = copy(source.ranges_for_uint8_kernel(), sizeof(float));
  if (type == DataType::UInt8 && quantization == CNNWeightsQuantizationType::LookupTable) arrays.lookup_table = copy(source.lookup_table_for_uint8_kernel(), sizeof(float));
  const CNNConvolutionDescriptor descriptor = source.descriptor();
  source.purge();
  return std::make_shared<PackedConvolutionWeights>(descriptor, type, arrays, label);
}

BatchNormalizationWeights::BatchNormalizationWeights(int feature_channels, std::string label, float epsilon, float momentum)
    : channels_(feature_channels), label_(std::move(label)), epsilon_(epsilon), momentum_(momentum) {
  auto refuse = [&](const char* what, const char* expected, const std::string& actual) {
    throw OptionError("batch normalization \"" + label_ + "\": " + what,
                      {.node = "BatchNormalizationWeights", .label = label_, .expected = expected, .actual = actual, .hint = "see the default values"});
  };
  if (feature_channels < 1) refuse("feature_channels must be at least 1.", ">= 1", std::to_string(feature_channels));
  if (!(epsilon >= 0)) refuse("epsilon must not be negative.", ">= 0", std::to_string(epsilon));
  if (!(momentum >= 0 && momentum <= 1)) refuse("momentum must lie in [0, 1].", "0 to 1", std::to_string(momentum));
  gamma_ = filled(channels_, 1);
  beta_ = filled(channels_, 0);
  mean_ = filled(channels_, 0);
  variance_ = filled(channels_, 1);
}

WeightArray BatchNormalizationWeights::gamma() { return floats(gamma_); }
WeightArray BatchNormalizationWeights::beta() { return floats(beta_); }
WeightArray BatchNormalizationWeights::mean() { return floats(mean_); }
WeightArray BatchNormalizationWeights::variance() { return floats(variance_); }

void BatchNormalizationWeights::set_values(const Buffer& gamma, const Buffer& beta, const Buffer& mean, const Buffer& variance) {
  for (const auto& [what, buffer] : {std::pair{"gamma", &gamma}, {"beta", &beta}, {"mean", &mean}, {"variance", &variance}})
    require_count(label_, what, *buffer, channels_, "feature_channels");
  gamma_ = copy_of(gamma);
  beta_ = copy_of(beta);
  mean_ = single_copy_of(mean);  // accumulate() writes floats
  variance_ = single_copy_of(variance);
}

std::function<void()> BatchNormalizationWeights::remember() {
  return [self = shared_from_this(), training = training_.copy(), gamma = gamma_, beta = beta_, mean = copy_of(mean_), variance = copy_of(variance_)] {
    self->training_ = training;
    self->gamma_ = gamma;
    self->beta_ = beta;
    self->mean_.copy_from(mean);
    self->variance_.copy_from(variance);
  };
}

bool BatchNormalizationWeights::update_gamma_and_beta(const std::shared_ptr<CNNBatchNormalizationState>& state) {
  if (!training_.optimizer()) return false;
  training_.prepare(state->gamma, state->beta, label_);
  training_.apply(state->gamma, state->gradient_for_gamma, state->beta, state->gradient_for_beta);
  gamma_ = state->gamma;
  beta_ = state->beta;
  return true;
}

bool BatchNormalizationWeights::update_mean_and_variance(const std::shared_ptr<CNNBatchNormalizationState>& state) {
  if (!state->mean || state->element_count == 0) return false;
  accumulate(*state);
  return true;
}

void BatchNormalizationWeights::accumulate(const CNNBatchNormalizationState& state) {
  const double count = static_cast<double>(state.element_count);
  const double unbias = count > 1 ? count / (count - 1) : 1;
  for (int c = 0; c < channels_; ++c) {
    mean_.floats()[c] = static_cast<float>((1 - momentum_) * mean_.floats()[c] + momentum_ * state.mean.at(c));
    variance_.floats()[c] = static_cast<float>((1 - momentum_) * variance_.floats()[c] + momentum_ * unbias * state.variance.at(c));
  }
}

std::shared_ptr<CNNNormalizationGammaAndBetaState> BatchNormalizationWeights::update_gamma_and_beta(
    CommandBuffer& command_buffer, const std::shared_ptr<CNNBatchNormalizationState>& state) {
  if (!training_.optimizer()) return nullptr;
  training_.prepare(state->gamma, state->beta, label_);
  command_buffer.record([self = shared_from_this(), state] { self->update_gamma_and_beta(state); });
  return std::make_shared<CNNNormalizationGammaAndBetaState>(state->gamma, state->beta);
}

std::shared_ptr<CNNNormalizationMeanAndVarianceState> BatchNormalizationWeights::update_mean_and_variance(
    CommandBuffer& command_buffer, const std::shared_ptr<CNNBatchNormalizationState>& state) {
  if (!state->mean || state->element_count == 0) return nullptr;
  command_buffer.record([self = shared_from_this(), state] { self->accumulate(*state); });
  return std::make_shared<CNNNormalizationMeanAndVarianceState>(mean_, variance_);
}

AffineWeights::AffineWeights(int feature_channels, std::string label, float epsilon, const char* class_name)
    : channels_(feature_channels), label_(std::move(label)), epsilon_(epsilon) {
  if (feature_channels < 1 || !(epsilon >= 0))
    throw OptionError(std::string(class_name) + " \"" + label_ + "\": feature_channels must be at least 1 and epsilon not negative.",
                      {.node = class_name, .label = label_, .expected = ">= 1, >= 0", .actual = std::to_string(feature_channels) + ", " + std::to_string(epsilon)});
  gamma_ = filled(channels_, 1);
  beta_ = filled(channels_, 0);
}

AffineWeights::~AffineWeights() = default;

WeightArray AffineWeights::float_array(const Buffer& buffer) { return floats(buffer); }

std::function<void()> AffineWeights::remember() {
  return [this, training = training_.copy(), gamma = gamma_, beta = beta_] {  // the graph that remembers holds this data source
    training_ = training;
    gamma_ = gamma;
    beta_ = beta;
  };
}


void AffineWeights::set_values(const Buffer& gamma, const Buffer& beta) {
  require_count(label_, "gamma", gamma, channels_, "feature_channels");
  require_count(label_, "beta", beta, channels_, "feature_channels");
  gamma_ = copy_of(gamma);
  beta_ = copy_of(beta);
}

void AffineWeights::prepare(const CNNAffineDataSource::StateBatch& states) { training_.prepare(states.front()->gamma, states.front()->beta, label_); }

bool AffineWeights::apply(const CNNAffineDataSource::StateBatch& states) {
  if (!training_.optimizer()) return false;
  prepare(states);
  const CNNAffineGradientState& state = *states.front();
  training_.apply(state.gamma, state.gradient_for_gamma, state.beta, state.gradient_for_beta);
  gamma_ = state.gamma;
  beta_ = state.beta;
  return true;
}

GroupNormalizationWeights::GroupNormalizationWeights(int feature_channels, int groups, std::string label, float epsilon)
    : AffineWeightsSource(feature_channels, std::move(label), epsilon, "GroupNormalizationWeights"), groups_(groups) {
  if (groups < 1 || feature_channels % groups != 0)
    throw OptionError("GroupNormalizationWeights \"" + this->label() + "\": the number of groups must divide the feature channels.",
                      {.node = "GroupNormalizationWeights", .label = this->label(), .expected = "a divisor of " + std::to_string(feature_channels),
                       .actual = std::to_string(groups), .hint = "1, or another divisor"});
}

}  // namespace mpsnn
