// SPDX-License-Identifier: Apache-2.0
#include <map>

#include "sim.h"

extern "C" void objc_msgSend(void);

/// Data sources: objects of the Objective-C protocols as data sources of ours.
namespace sim {

Encoding& encoding() {
  thread_local Encoding current;
  return current;
}

namespace {

mpsnn::WeightArray floats_of(const float* numbers, std::size_t count) { return {numbers, numbers ? count : 0, nullptr}; }

/// The recorder behind `command_buffer`, which data sources see as Metal's.
id metal_buffer() {
  if (!encoding().command_buffer) raise("an update was called outside an encode");
  return encoding().command_buffer;
}

/// A message whose name is not known here. An implementation fetched and called as a function would be of another type for the sanitizer,
/// to which `id` of the simulator and of the engine are two.
template <class Result, class... Arguments>
Result send(id receiver, SEL selector, Arguments... arguments) {
  return reinterpret_cast<Result (*)(id, SEL, Arguments...)>(objc_msgSend)(receiver, selector, arguments...);
}

class ConvolutionSource final : public mpsnn::CNNConvolutionDataSource {
 public:
  explicit ConvolutionSource(id object) : object_(hold(object)) {}

  mpsnn::DataType data_type() override {
    const Pool pool;
    return static_cast<mpsnn::DataType>([source() dataType]);
  }
  mpsnn::CNNConvolutionDescriptor descriptor() override {
    const Pool pool;
    return converted([source() descriptor]);
  }
  mpsnn::WeightArray weights() override {
    const Pool pool;
    const mpsnn::CNNConvolutionDescriptor d = descriptor();
    const void* data = [source() weights];
    if (!data) throw mpsnn::WeightError("a data source has no weights.");
    if (data_type() == mpsnn::DataType::UInt32) {
      const std::size_t words = (d.input_feature_channels + 31) / 32;
      return {data, std::size_t(d.output_feature_channels) * d.kernel_height * d.kernel_width * words, nullptr};
    }
    if (data_type() != mpsnn::DataType::Float32 || kernel_weights_data_type() == mpsnn::DataType::Float32) return {data, d.weight_count(), nullptr};
    // Kernels that use Float16 weights see them rounded.
    const float* numbers = static_cast<const float*>(data);
    auto rounded = std::make_shared<std::vector<float>>(numbers, numbers + d.weight_count());
    for (float& value : *rounded) value = rounded_to_half(value);
    rounded_ = rounded;
    return {rounded->data(), rounded->size(), rounded};
  }
  mpsnn::WeightArray bias_terms() override {
    const Pool pool;
    return floats_of([source() biasTerms], descriptor().output_feature_channels);
  }
  bool load() override {
    const Pool pool;
    return [source() load];
  }
  void purge() override {
    const Pool pool;
    [source() purge];
    rounded_.reset();
  }
  std::string label() override {
    const Pool pool;
    return text([source() label]);
  }
  mpsnn::CNNWeightsQuantizationType weights_quantization_type() override {
    const Pool pool;
    return has(@selector(weightsQuantizationType)) ? static_cast<mpsnn::CNNWeightsQuantizationType>([source() weightsQuantizationType])
                                                    : mpsnn::CNNWeightsQuantizationType::None;
  }
  /// Float16 unless the source says otherwise (MPS_SEMANTICS 7.2).
  mpsnn::DataType kernel_weights_data_type() override {
    const Pool pool;
    return has(@selector(kernelWeightsDataType)) ? static_cast<mpsnn::DataType>([source() kernelWeightsDataType]) : mpsnn::DataType::Float16;
  }
  mpsnn::WeightArray lookup_table_for_uint8_kernel() override {
    const Pool pool;
    return has(@selector(lookupTableForUInt8Kernel)) ? floats_of([source() lookupTableForUInt8Kernel], 256) : mpsnn::WeightArray();
  }
  mpsnn::WeightArray ranges_for_uint8_kernel() override {
    const Pool pool;
    const SEL selector = sel_registerName("rangesForUInt8Kernel");  // vector_float2*: absent from the API facts
    if (!has(selector)) return {};
    return floats_of(send<const float*>(source(), selector), 2 * std::size_t(descriptor().output_feature_channels));
  }

  bool update(const std::shared_ptr<mpsnn::CNNConvolutionGradientState>& gradient, const std::shared_ptr<mpsnn::CNNConvolutionWeightsAndBiasesState>& values) override {
    if (!has(@selector(updateWithGradientState:sourceState:))) return false;
    const Pool pool;
    return [source() updateWithGradientState:gradient_state(nullptr, *gradient) sourceState:weights_state(nullptr, *values)];
  }
  std::shared_ptr<mpsnn::CNNConvolutionWeightsAndBiasesState> update(
      mpsnn::CommandBuffer& command_buffer, const std::shared_ptr<mpsnn::CNNConvolutionGradientState>& gradient,
      const std::shared_ptr<mpsnn::CNNConvolutionWeightsAndBiasesState>& values) override {
    if (!has(@selector(updateWithCommandBuffer:gradientState:sourceState:))) return nullptr;
    const Pool pool;
    MPSCNNConvolutionGradientState* toy_gradient = gradient_state(&command_buffer, *gradient);
    MPSCNNConvolutionWeightsAndBiasesState* toy_values = weights_state(&command_buffer, *values);
    MPSCNNConvolutionWeightsAndBiasesState* result = [source() updateWithCommandBuffer:metal_buffer() gradientState:toy_gradient sourceState:toy_values];
    require_read(toy_gradient, "updateWithCommandBuffer:gradientState:sourceState:");
    require_read(toy_values, "updateWithCommandBuffer:gradientState:sourceState:");
    if (!result) return nullptr;
    count_read(result);
    return std::make_shared<mpsnn::CNNConvolutionWeightsAndBiasesState>(
        floats([result weights], [result weightsOffset], values->weights.count()),
        values->biases ? floats([result biases], [result biasesOffset], values->biases.count()) : mpsnn::Buffer(), values->descriptor);
  }

 private:
  id<MPSCNNConvolutionDataSource> source() const { return object_of(object_); }
  bool has(SEL selector) const { return [(NSObject*)source() respondsToSelector:selector]; }
  Held object_;
  std::shared_ptr<void> rounded_;
};

std::shared_ptr<mpsnn::CNNNormalizationGammaAndBetaState> taken(MPSCNNNormalizationGammaAndBetaState* result, std::size_t channels) {
  if (!result) return nullptr;
  count_read(result);
  return std::make_shared<mpsnn::CNNNormalizationGammaAndBetaState>(floats([result gamma], 0, channels), floats([result beta], 0, channels));
}

class BatchNormalizationSource final : public mpsnn::CNNBatchNormalizationDataSource {
 public:
  using State = std::shared_ptr<mpsnn::CNNBatchNormalizationState>;
  explicit BatchNormalizationSource(id object) : object_(hold(object)) {}
  int number_of_feature_channels() override {
    const Pool pool;
    return static_cast<int>([source() numberOfFeatureChannels]);
  }
  mpsnn::WeightArray gamma() override {
    const Pool pool;
    return floats_of([source() gamma], number_of_feature_channels());
  }
  mpsnn::WeightArray beta() override {
    const Pool pool;
    return floats_of([source() beta], number_of_feature_channels());
  }
  mpsnn::WeightArray mean() override {
    const Pool pool;
    return floats_of([source() mean], number_of_feature_channels());
  }
  mpsnn::WeightArray variance() override {
    const Pool pool;
    return floats_of([source() variance], number_of_feature_channels());
  }
  bool load() override {
    const Pool pool;
    return [source() load];
  }
  void purge() override {
    const Pool pool;
    [source() purge];
  }
  std::string label() override {
    const Pool pool;
    return text([source() label]);
  }
  float epsilon() override {
    const Pool pool;
    return has(@selector(epsilon)) ? [source() epsilon] : mpsnn::CNNBatchNormalizationDataSource::epsilon();
  }

  bool update_gamma_and_beta(const State& state) override {
    const Pool pool;
    return has(@selector(updateGammaAndBetaWithBatchNormalizationState:)) && [source() updateGammaAndBetaWithBatchNormalizationState:normalization_state(nullptr, *state)];
  }
  bool update_mean_and_variance(const State& state) override {
    const Pool pool;
    return has(@selector(updateMeanAndVarianceWithBatchNormalizationState:)) &&
           [source() updateMeanAndVarianceWithBatchNormalizationState:normalization_state(nullptr, *state)];
  }
  std::shared_ptr<mpsnn::CNNNormalizationGammaAndBetaState> update_gamma_and_beta(mpsnn::CommandBuffer& command_buffer, const State& state) override {
    if (!has(@selector(updateGammaAndBetaWithCommandBuffer:batchNormalizationState:))) return nullptr;
    const Pool pool;
    MPSCNNBatchNormalizationState* toy = normalization_state(&command_buffer, *state);
    id result = [source() updateGammaAndBetaWithCommandBuffer:metal_buffer() batchNormalizationState:toy];
    require_read(toy, "updateGammaAndBetaWithCommandBuffer:batchNormalizationState:");
    return taken(result, state->gamma.count());
  }
  std::shared_ptr<mpsnn::CNNNormalizationMeanAndVarianceState> update_mean_and_variance(mpsnn::CommandBuffer& command_buffer, const State& state) override {
    if (!has(@selector(updateMeanAndVarianceWithCommandBuffer:batchNormalizationState:))) return nullptr;
    const Pool pool;
    MPSCNNBatchNormalizationState* toy = normalization_state(&command_buffer, *state);
    MPSCNNNormalizationMeanAndVarianceState* result = [source() updateMeanAndVarianceWithCommandBuffer:metal_buffer() batchNormalizationState:toy];
    require_read(toy, "updateMeanAndVarianceWithCommandBuffer:batchNormalizationState:");
    if (!result) return nullptr;
    count_read(result);
    const std::size_t channels = state->gamma.count();
    return std::make_shared<mpsnn::CNNNormalizationMeanAndVarianceState>(floats([result mean], 0, channels), floats([result variance], 0, channels));
  }

 private:
  id<MPSCNNBatchNormalizationDataSource> source() const { return object_of(object_); }
  bool has(SEL selector) const { return [(NSObject*)source() respondsToSelector:selector]; }
  Held object_;
};

/// Instance and group normalization: the same questions, other selectors for the updates.
template <class Source>
class AffineSource : public Source {
 public:
  explicit AffineSource(id object) : object_(hold(object)) {}
  int number_of_feature_channels() override {
    const Pool pool;
    return static_cast<int>([source() numberOfFeatureChannels]);
  }
  mpsnn::WeightArray gamma() override {
    const Pool pool;
    return floats_of([source() gamma], number_of_feature_channels());
  }
  mpsnn::WeightArray beta() override {
    const Pool pool;
    return floats_of([source() beta], number_of_feature_channels());
  }
  bool load() override {
    const Pool pool;
    return !has(@selector(load)) || [source() load];
  }
  void purge() override {
    const Pool pool;
    if (has(@selector(purge))) [source() purge];
  }
  std::string label() override {
    const Pool pool;
    return text([source() label]);
  }
  float epsilon() override {
    const Pool pool;
    return has(@selector(epsilon)) ? [source() epsilon] : Source::epsilon();
  }

  bool update_gamma_and_beta(const mpsnn::CNNAffineDataSource::StateBatch& states) override {
    const SEL selector = cpu_update();
    if (!has(selector)) return false;
    const Pool pool;
    return send<BOOL>(source(), selector, affine_states(nullptr, *states.front(), state_class(), encoding().images));
  }
  std::shared_ptr<mpsnn::CNNNormalizationGammaAndBetaState> update_gamma_and_beta(mpsnn::CommandBuffer& command_buffer,
                                                                                  const mpsnn::CNNAffineDataSource::StateBatch& states) override {
    const SEL selector = gpu_update();
    if (!has(selector)) return nullptr;
    const Pool pool;
    NSArray* toys = affine_states(&command_buffer, *states.front(), state_class(), encoding().images);
    id result = send<id>(source(), selector, metal_buffer(), toys);
    for (NSUInteger i = 0; i < [toys count]; ++i) require_read([toys objectAtIndex:i], sel_getName(selector));
    return taken(result, states.front()->gamma.count());
  }

 protected:
  id<MPSCNNInstanceNormalizationDataSource> source() const { return object_of(object_); }
  bool has(SEL selector) const { return [(NSObject*)source() respondsToSelector:selector]; }
  virtual SEL cpu_update() const = 0;
  virtual SEL gpu_update() const = 0;
  virtual Class state_class() const = 0;

 private:
  Held object_;
};

class InstanceNormalizationSource final : public AffineSource<mpsnn::CNNInstanceNormalizationDataSource> {
 public:
  using AffineSource::AffineSource;

 private:
  SEL cpu_update() const override { return @selector(updateGammaAndBetaWithInstanceNormalizationStateBatch:); }
  SEL gpu_update() const override { return @selector(updateGammaAndBetaWithCommandBuffer:instanceNormalizationStateBatch:); }
  Class state_class() const override { return [MPSCNNInstanceNormalizationGradientState class]; }
};

class GroupNormalizationSource final : public AffineSource<mpsnn::CNNGroupNormalizationDataSource> {
 public:
  using AffineSource::AffineSource;
  int number_of_groups() override { return static_cast<int>([(id<MPSCNNGroupNormalizationDataSource>)source() numberOfGroups]); }

 private:
  SEL cpu_update() const override { return @selector(updateGammaAndBetaWithGroupNormalizationStateBatch:); }
  SEL gpu_update() const override { return @selector(updateGammaAndBetaWithCommandBuffer:groupNormalizationStateBatch:); }
  Class state_class() const override { return [MPSCNNGroupNormalizationGradientState class]; }
};

template <class Source> struct Adapter;
template <> struct Adapter<mpsnn::CNNConvolutionDataSource> { using type = ConvolutionSource; };
template <> struct Adapter<mpsnn::CNNBatchNormalizationDataSource> { using type = BatchNormalizationSource; };
template <> struct Adapter<mpsnn::CNNInstanceNormalizationDataSource> { using type = InstanceNormalizationSource; };
template <> struct Adapter<mpsnn::CNNGroupNormalizationDataSource> { using type = GroupNormalizationSource; };

/// Methods of the protocol that a source must have, by the classes of ours.
const char* missing_method(id object, const char* protocol) {
  Protocol* known = objc_getProtocol(protocol);
  if (!known) return nullptr;  // no class of this program was declared with it, as can happen on a Mac
  for (const char* name : {"numberOfFeatureChannels", "gamma", "beta", "label", "dataType", "descriptor", "weights", "biasTerms", "load", "purge", "mean", "variance"}) {
    const struct objc_method_description described = protocol_getMethodDescription(known, sel_registerName(name), YES, YES);
    if (described.name && ![object respondsToSelector:sel_registerName(name)]) return name;
  }
  return nullptr;
}

}  // namespace

template <class Source>
std::shared_ptr<Source> data_source(id object, bool is_nullable, const char* protocol) {
  if (!object) {
    if (is_nullable) return nullptr;
    raise("a data source is missing");
  }
  if (const char* name = missing_method(object, protocol)) raise(std::string("a data source has no method ") + name);
  static std::mutex mutex;
  static std::map<id, std::weak_ptr<Source>> known;
  std::lock_guard lock(mutex);
  std::erase_if(known, [](const auto& entry) { return entry.second.expired(); });
  if (auto found = known.find(object); found != known.end())
    if (auto source = found->second.lock()) return source;
  std::shared_ptr<Source> source = std::make_shared<typename Adapter<Source>::type>(object);
  known[object] = source;
  return source;
}

template <>
std::shared_ptr<mpsnn::CNNConvolutionDataSource> data_source(id object, bool is_nullable) {
  return data_source<mpsnn::CNNConvolutionDataSource>(object, is_nullable, "MPSCNNConvolutionDataSource");
}
template <>
std::shared_ptr<mpsnn::CNNBatchNormalizationDataSource> data_source(id object, bool is_nullable) {
  return data_source<mpsnn::CNNBatchNormalizationDataSource>(object, is_nullable, "MPSCNNBatchNormalizationDataSource");
}
template <>
std::shared_ptr<mpsnn::CNNInstanceNormalizationDataSource> data_source(id object, bool is_nullable) {
  return data_source<mpsnn::CNNInstanceNormalizationDataSource>(object, is_nullable, "MPSCNNInstanceNormalizationDataSource");
}
template <>
std::shared_ptr<mpsnn::CNNGroupNormalizationDataSource> data_source(id object, bool is_nullable) {
  return data_source<mpsnn::CNNGroupNormalizationDataSource>(object, is_nullable, "MPSCNNGroupNormalizationDataSource");
}

}  // namespace sim
