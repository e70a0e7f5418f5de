// SPDX-License-Identifier: Apache-2.0
#include "backends/metal/data_sources.hpp"

#include <chrono>
#include <cstring>

#include "backends/metal/runtime_class.hpp"

namespace mpsnn::metal {

void SourceContext::expect(int updates) {
  std::lock_guard lock(mutex_);
  missing_ = updates;
}

void SourceContext::arrived() {
  std::lock_guard lock(mutex_);
  if (--missing_ <= 0) all_arrived_.notify_all();
}

bool SourceContext::wait_for_updates() {
  constexpr std::chrono::seconds kLimit(10);  // the handlers run in microseconds once the buffer is done
  std::unique_lock lock(mutex_);
  return all_arrived_.wait_for(lock, kLimit, [&] { return missing_ <= 0; });
}

Owned<MPS::NNNeuronDescriptor> make_neuron_descriptor(const NNNeuronDescriptor& d) {
  if (d.neuron_type == CNNNeuronType::PReLU)
    return keep(MPS::NNNeuronDescriptor::cnnNeuronPReLUDescriptor(data(d.data.data(), d.data.size() * sizeof(float)), false));
  return keep(MPS::NNNeuronDescriptor::cnnNeuronDescriptor(apple<MPS::CNNNeuronType>(d.neuron_type), d.a, d.b, d.c));
}

Owned<MPS::CNNConvolutionDescriptor> make_descriptor(const CNNConvolutionDescriptor& d, bool has_folded_normalization) {
  MPS::CNNConvolutionDescriptor* made;
  if (d.kind == ConvolutionKind::depthwise) {
    made = MPS::CNNDepthWiseConvolutionDescriptor::cnnConvolutionDescriptor(d.kernel_width, d.kernel_height, d.input_feature_channels, d.output_feature_channels);
  } else if (d.kind == ConvolutionKind::sub_pixel) {
    auto* sub_pixel = MPS::CNNSubPixelConvolutionDescriptor::cnnConvolutionDescriptor(d.kernel_width, d.kernel_height, d.input_feature_channels, d.output_feature_channels);
    sub_pixel->setSubPixelScaleFactor(d.sub_pixel_scale_factor);
    made = sub_pixel;
  } else {
    made = MPS::CNNConvolutionDescriptor::cnnConvolutionDescriptor(d.kernel_width, d.kernel_height, d.input_feature_channels, d.output_feature_channels);
  }
  made->setStrideInPixelsX(d.stride_in_pixels_x);
  made->setStrideInPixelsY(d.stride_in_pixels_y);
  made->setDilationRateX(d.dilation_rate_x);
  made->setDilationRateY(d.dilation_rate_y);
  made->setGroups(d.groups);
  if (d.fused_neuron_descriptor.neuron_type != CNNNeuronType::None) made->setFusedNeuronDescriptor(make_neuron_descriptor(d.fused_neuron_descriptor).get());
  auto floats = [](const std::vector<float>& values) { return values.empty() ? nullptr : values.data(); };
  if (!d.batch_mean.empty() && !has_folded_normalization)
    made->setBatchNormalizationParametersForInference(floats(d.batch_mean), floats(d.batch_variance), floats(d.batch_gamma), floats(d.batch_beta), d.batch_epsilon);
  return keep(made);
}

namespace {

/// Floats of a Metal buffer into `target`; none where either is absent.
void copy_to(const Buffer& target, MTL::Buffer* source) {
  if (target && source) std::memcpy(target.data(), source->contents(), target.bytes());
}
void add_to(const Buffer& target, MTL::Buffer* source) {
  if (!target || !source) return;
  const auto* numbers = static_cast<const float*>(source->contents());
  for (std::size_t i = 0; i < target.count(); ++i) target.floats()[i] += numbers[i];
}
/// One read of a temporary state that this engine does not look at.
void skip_read(MPS::State* state) {
  if (state && state->isTemporary()) state->setReadCount(state->readCount() - 1);
}
/// The one read of temporary states that a GPU-style update counts, once all that reads them is encoded.
struct OneRead {
  std::vector<MPS::State*> states;
  ~OneRead() {
    for (MPS::State* state : states) skip_read(state);
  }
};
float* pointer(const Buffer& buffer) { return static_cast<float*>(buffer.data()); }

// --- convolution -------------------------------------------------------------------------------------------------

ConvolutionObject& convolution(id self) { return held<ConvolutionObject>(self); }

/// Reads a raw source between its load and purge, and checks the sizes: MPS takes bare pointers.
void load_raw(ConvolutionObject& c) {
  auto refuse = [&](const std::string& what, std::size_t expected, std::size_t actual) {
    throw WeightError("data source \"" + c.label + "\": " + what + " changed after the graph was made.",
                      {"MPSCNNConvolutionDataSource", c.label, std::to_string(expected), std::to_string(actual), "make a new graph"});
  };
  if (!c.source->load()) throw WeightError("data source \"" + c.label + "\": load() refused.", {"MPSCNNConvolutionDataSource", c.label, "true", "false", "return true from load()"});
  c.raw_weights = c.source->weights();
  c.raw_biases = c.source->bias_terms();
  c.quantization = c.source->weights_quantization_type();
  if (c.raw_weights.count != c.raw_count) refuse("weights", c.raw_count, c.raw_weights.count);
  const std::size_t outputs = c.descriptor.output_feature_channels;
  if (c.raw_biases && c.raw_biases.count != outputs) refuse("bias_terms", outputs, c.raw_biases.count);
  if (c.quantization == CNNWeightsQuantizationType::LookupTable) {
    c.lookup_table = c.source->lookup_table_for_uint8_kernel();
    if (c.lookup_table.count != 256) refuse("lookup_table_for_uint8_kernel", 256, c.lookup_table.count);
  } else if (c.quantization == CNNWeightsQuantizationType::Linear) {
    c.ranges = c.source->ranges_for_uint8_kernel();
    if (c.ranges.count != 2 * outputs) refuse("ranges_for_uint8_kernel", 2 * outputs, c.ranges.count);
  }
}

BOOL convolution_load(id self, SEL) {
  auto& c = convolution(self);
  if (!c.is_raw()) return 1;
  return c.context->errors->guard<BOOL>(0, [&]() -> BOOL {
    if (c.loads++ == 0) load_raw(c);
    return 1;
  });
}
void convolution_purge(id self, SEL) {
  auto& c = convolution(self);
  if (!c.is_raw() || c.loads == 0 || --c.loads > 0) return;
  c.raw_weights = c.raw_biases = c.lookup_table = c.ranges = {};
  c.context->errors->guard(0, [&] { return c.source->purge(), 0; });
}
MPS::DataType convolution_data_type(id self, SEL) { return apple<MPS::DataType>(convolution(self).data_type); }
MPS::DataType convolution_kernel_data_type(id self, SEL) { return apple<MPS::DataType>(convolution(self).kernel_data_type); }
id convolution_descriptor(id self, SEL) {
  auto& c = convolution(self);
  return c.context->errors->guard_object<MPS::CNNConvolutionDescriptor>([&] { return make_descriptor(c.descriptor, !c.is_raw()); });
}
void* convolution_weights(id self, SEL) {
  auto& c = convolution(self);
  return c.is_raw() ? const_cast<void*>(c.raw_weights.data) : c.weights.data();
}
float* convolution_biases(id self, SEL) {
  auto& c = convolution(self);
  return c.is_raw() ? static_cast<float*>(const_cast<void*>(c.raw_biases.data)) : pointer(c.biases);
}
id convolution_label(id self, SEL) { return reinterpret_cast<id>(string(convolution(self).label)); }
MPS::CNNWeightsQuantizationType convolution_quantization(id self, SEL) { return apple<MPS::CNNWeightsQuantizationType>(convolution(self).quantization); }
MPS::CNNConvolutionWeightsLayout convolution_layout(id, SEL) { return MPS::CNNConvolutionWeightsLayoutOHWI; }
float* convolution_lookup_table(id self, SEL) { return static_cast<float*>(const_cast<void*>(convolution(self).lookup_table.data)); }
void* convolution_ranges(id self, SEL) { return const_cast<void*>(convolution(self).ranges.data); }

BOOL convolution_update_cpu(id self, SEL, id gradient_state, id) {
  auto& c = convolution(self);
  auto* state = reinterpret_cast<MPS::CNNConvolutionGradientState*>(gradient_state);
  c.context->errors->guard(0, [&] {
    if (const GradientTarget* target = c.targets.next()) {
      copy_to(target->first, state->gradientForWeights());
      copy_to(target->second, state->gradientForBiases());
    }
    return 0;
  });
  c.context->arrived();
  // The graph's own update follows, with all gradients; it reloads the graph when numbers have changed.
  return 0;
}

id convolution_update_gpu(id self, SEL, id command_buffer, id gradient_state, id source_state) {
  auto& c = convolution(self);
  return c.context->errors->guard_object<MPS::CNNConvolutionWeightsAndBiasesState>([&]() -> Owned<MPS::CNNConvolutionWeightsAndBiasesState> {
    // MAC-UNVERIFIED: read-counts: an optimizer takes one read of the states it gets; what it does not get is ours to count down.
    skip_read(reinterpret_cast<MPS::State*>(source_state));
    auto state = c.optimizer.encode(c.context->device, reinterpret_cast<MTL::CommandBuffer*>(command_buffer), dynamic_cast<ConvolutionWeights&>(*c.source), c.label,
                                    c.weights, c.biases, reinterpret_cast<MPS::CNNConvolutionGradientState*>(gradient_state),
                                    make_descriptor(c.descriptor, true).get());
    if (!state) skip_read(reinterpret_cast<MPS::State*>(gradient_state));
    return state;
  });
}

const RuntimeClass& convolution_class() {
  static const RuntimeClass made("MPSNNCppConvolutionDataSource", "MPSCNNConvolutionDataSource",
                                 {method("load", convolution_load, MPSNN_BOOL "@:"), method("purge", convolution_purge, "v@:"),
                                  method("dataType", convolution_data_type, "I@:"), method("kernelWeightsDataType", convolution_kernel_data_type, "I@:"),
                                  method("descriptor", convolution_descriptor, "@@:"), method("weights", convolution_weights, "^v@:"),
                                  method("biasTerms", convolution_biases, "^f@:"), method("label", convolution_label, "@@:"),
                                  method("weightsQuantizationType", convolution_quantization, "I@:"), method("weightsLayout", convolution_layout, "I@:"),
                                  method("lookupTableForUInt8Kernel", convolution_lookup_table, "^f@:"), method("rangesForUInt8Kernel", convolution_ranges, "^v@:"),
                                  method("updateWithGradientState:sourceState:", convolution_update_cpu, MPSNN_BOOL "@:@@"),
                                  method("updateWithCommandBuffer:gradientState:sourceState:", convolution_update_gpu, "@@:@@@")});
  return made;
}

// --- normalizations ----------------------------------------------------------------------------------------------

NormalizationObject& normalization(id self) { return held<NormalizationObject>(self); }

BOOL normalization_load(id, SEL) { return 1; }
void normalization_purge(id, SEL) {}
NS::UInteger normalization_channels(id self, SEL) { return normalization(self).channels; }
NS::UInteger normalization_groups(id self, SEL) { return normalization(self).groups; }
void normalization_set_groups(id self, SEL, NS::UInteger groups) { normalization(self).groups = static_cast<int>(groups); }
float* normalization_gamma(id self, SEL) { return pointer(normalization(self).gamma); }
float* normalization_beta(id self, SEL) { return pointer(normalization(self).beta); }
float* normalization_mean(id self, SEL) { return pointer(normalization(self).mean); }
float* normalization_variance(id self, SEL) { return pointer(normalization(self).variance); }
float normalization_epsilon(id self, SEL) { return normalization(self).epsilon; }
id normalization_label(id self, SEL) { return reinterpret_cast<id>(string(normalization(self).label)); }

BOOL batch_update_affine(id self, SEL, id state_object) {
  auto& n = normalization(self);
  auto* state = reinterpret_cast<MPS::CNNBatchNormalizationState*>(state_object);
  n.context->errors->guard(0, [&] {
    if (const GradientTarget* target = n.targets.next()) {
      copy_to(target->first, state->gradientForGamma());
      copy_to(target->second, state->gradientForBeta());
    }
    return 0;
  });
  n.context->arrived();
  return 0;
}
BOOL batch_update_statistics(id self, SEL, id state_object) {
  auto& n = normalization(self);
  auto* state = reinterpret_cast<MPS::CNNBatchNormalizationState*>(state_object);
  n.context->errors->guard(0, [&] {
    // MAC-UNVERIFIED: batch-norm-update-order: gamma and beta are asked about before mean and variance (OQ-28).
    if (const GradientTarget* target = n.targets.last()) {
      copy_to(target->mean, state->mean());
      copy_to(target->variance, state->variance());
    }
    return 0;
  });
  n.context->arrived();
  return 0;
}

id batch_update_affine_gpu(id self, SEL, id command_buffer, id state_object) {
  auto& n = normalization(self);
  auto* state = reinterpret_cast<MPS::CNNBatchNormalizationState*>(state_object);
  return n.context->errors->guard_object<MPS::CNNNormalizationGammaAndBetaState>([&] {
    const OneRead read{{state}};
    return n.optimizer.encode(n.context->device, reinterpret_cast<MTL::CommandBuffer*>(command_buffer), *n.trained, n.label, n.gamma, n.beta,
                              {state->gradientForGamma()}, {state->gradientForBeta()});
  });
}
/// Nothing that kernels of this graph read: they have the batch's own. The running ones change in the graph's memory alone.
id batch_update_statistics_gpu(id self, SEL, id command_buffer, id state_object) {
  auto& n = normalization(self);
  auto* state = reinterpret_cast<MPS::CNNBatchNormalizationState*>(state_object);
  return n.context->errors->guard_object<MPS::CNNNormalizationMeanAndVarianceState>([&]() -> Owned<MPS::CNNNormalizationMeanAndVarianceState> {
    const OneRead read{{state}};
    if (n.element_count == 0) return {};
    auto* buffer = reinterpret_cast<MTL::CommandBuffer*>(command_buffer);
    const double count = static_cast<double>(n.element_count);
    NormalizationOptimizer::encode_average(n.context->device, buffer, n.mean, state->mean(), n.momentum, 1);
    NormalizationOptimizer::encode_average(n.context->device, buffer, n.variance, state->variance(), n.momentum, count > 1 ? count / (count - 1) : 1);
    return {};
  });
}

/// The different states of a batch: one per image, or one object many times.
template <class State>
std::vector<State*> distinct(const NS::Array* batch) {
  std::vector<State*> seen;
  for (NS::UInteger i = 0; i < count(batch); ++i) {
    auto* state = batch->object<State>(i);
    if (std::find(seen.begin(), seen.end(), state) == seen.end()) seen.push_back(state);
  }
  return seen;
}

template <class State>
id affine_update_gpu(id self, SEL, id command_buffer, id batch_object) {
  auto& n = normalization(self);
  return n.context->errors->guard_object<MPS::CNNNormalizationGammaAndBetaState>([&] {
    const std::vector<State*> states = distinct<State>(reinterpret_cast<const NS::Array*>(batch_object));
    const OneRead read{{states.begin(), states.end()}};
    std::vector<MTL::Buffer*> gamma, beta;
    for (const State* state : states) {
      gamma.push_back(state->gradientForGamma());
      beta.push_back(state->gradientForBeta());
    }
    return n.optimizer.encode(n.context->device, reinterpret_cast<MTL::CommandBuffer*>(command_buffer), *n.trained, n.label, n.gamma, n.beta, gamma, beta);
  });
}

template <class State>
BOOL affine_update(id self, SEL, id batch_object) {
  auto& n = normalization(self);
  const auto* batch = reinterpret_cast<const NS::Array*>(batch_object);
  n.context->errors->guard(0, [&] {
    const GradientTarget* target = n.targets.next();
    if (!target) return 0;
    target->first.fill(0);
    target->second.fill(0);
    for (const State* state : distinct<State>(batch)) {
      add_to(target->first, state->gradientForGamma());
      add_to(target->second, state->gradientForBeta());
    }
    return 0;
  });
  n.context->arrived();
  return 0;
}

#define MPSNN_LOAD_METHODS method("load", normalization_load, MPSNN_BOOL "@:"), method("purge", normalization_purge, "v@:")
#define MPSNN_AFFINE_METHODS                                                                                          \
  method("numberOfFeatureChannels", normalization_channels, "Q@:"), method("gamma", normalization_gamma, "^f@:"),     \
      method("beta", normalization_beta, "^f@:"), method("epsilon", normalization_epsilon, "f@:"), method("label", normalization_label, "@@:")

const RuntimeClass& batch_class() {
  static const RuntimeClass made("MPSNNCppBatchNormalizationDataSource", "MPSCNNBatchNormalizationDataSource",
                                 {MPSNN_LOAD_METHODS, MPSNN_AFFINE_METHODS, method("mean", normalization_mean, "^f@:"), method("variance", normalization_variance, "^f@:"),
                                  method("updateGammaAndBetaWithBatchNormalizationState:", batch_update_affine, MPSNN_BOOL "@:@"),
                                  method("updateMeanAndVarianceWithBatchNormalizationState:", batch_update_statistics, MPSNN_BOOL "@:@"),
                                  method("updateGammaAndBetaWithCommandBuffer:batchNormalizationState:", batch_update_affine_gpu, "@@:@@"),
                                  method("updateMeanAndVarianceWithCommandBuffer:batchNormalizationState:", batch_update_statistics_gpu, "@@:@@")});
  return made;
}
const RuntimeClass& instance_class() {
  static const RuntimeClass made("MPSNNCppInstanceNormalizationDataSource", "MPSCNNInstanceNormalizationDataSource",
                                 {MPSNN_LOAD_METHODS, MPSNN_AFFINE_METHODS, method("updateGammaAndBetaWithInstanceNormalizationStateBatch:",
                                                               affine_update<MPS::CNNInstanceNormalizationGradientState>, MPSNN_BOOL "@:@"),
                                  method("updateGammaAndBetaWithCommandBuffer:instanceNormalizationStateBatch:",
                                         affine_update_gpu<MPS::CNNInstanceNormalizationGradientState>, "@@:@@")});
  return made;
}
const RuntimeClass& group_class() {
  static const RuntimeClass made(
      "MPSNNCppGroupNormalizationDataSource", "MPSCNNGroupNormalizationDataSource",
      {MPSNN_AFFINE_METHODS, method("numberOfGroups", normalization_groups, "Q@:"), method("setNumberOfGroups:", normalization_set_groups, "v@:Q"),
       method("updateGammaAndBetaWithGroupNormalizationStateBatch:", affine_update<MPS::CNNGroupNormalizationGradientState>, MPSNN_BOOL "@:@"),
       method("updateGammaAndBetaWithCommandBuffer:groupNormalizationStateBatch:", affine_update_gpu<MPS::CNNGroupNormalizationGradientState>, "@@:@@")});
  return made;
}
#undef MPSNN_AFFINE_METHODS
#undef MPSNN_LOAD_METHODS

}  // namespace

Owned<MPS::CNNConvolutionDataSource> make_source_object(const std::shared_ptr<ConvolutionObject>& object) {
  return make_object<MPS::CNNConvolutionDataSource>(convolution_class(), object);
}
Owned<MPS::CNNBatchNormalizationDataSource> make_batch_source_object(const std::shared_ptr<NormalizationObject>& object) {
  return make_object<MPS::CNNBatchNormalizationDataSource>(batch_class(), object);
}
Owned<MPS::CNNInstanceNormalizationDataSource> make_instance_source_object(const std::shared_ptr<NormalizationObject>& object) {
  return make_object<MPS::CNNInstanceNormalizationDataSource>(instance_class(), object);
}
Owned<MPS::CNNGroupNormalizationDataSource> make_group_source_object(const std::shared_ptr<NormalizationObject>& object) {
  return make_object<MPS::CNNGroupNormalizationDataSource>(group_class(), object);
}

}  // namespace mpsnn::metal
