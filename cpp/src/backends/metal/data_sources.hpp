// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <condition_variable>

#include "backends/metal/callbacks.hpp"
#include "backends/metal/optimizers.hpp"
#include "core/parameters.hpp"

/// Data sources as MPS wants them: objects that hand out the graph's parameters and take gradients.
///
/// The parameter store has asked the application's source already, and checked what it said: objects for Float32 weights hand out
/// the store's memory, which the graph keeps current. Quantized, half and binary weights come from the application at each load.
namespace mpsnn::metal {

/// What the data sources of one graph share.
struct SourceContext {
  MTL::Device* device = nullptr;
  ErrorsPtr errors;

  /// CPU-style updates come in the completion phase, perhaps on another thread.
  void expect(int updates);
  void arrived();
  /// False when not all came within the limit.
  bool wait_for_updates();

 private:
  std::mutex mutex_;
  std::condition_variable all_arrived_;
  int missing_ = 0;
};
using SourceContextPtr = std::shared_ptr<SourceContext>;

/// Where the gradients of one gradient node go, in the graph's gradient block; absent where nobody asked.
struct GradientTarget {
  Buffer first, second, mean, variance;
  bool is_updated_by_engine = false;
};

/// Gradient nodes that share a data source, in execution order: MPS does not say which one it asks for.
class GradientTargets {
 public:
  void add(GradientTarget target) { targets_.push_back(std::move(target)); }
  void begin_step() { next_ = 0; }
  /// The target of the next call of this step, null when there is none.
  const GradientTarget* next() { return next_ < targets_.size() ? &targets_[next_++] : nullptr; }
  /// The target of the call before.
  const GradientTarget* last() const { return next_ > 0 ? &targets_[next_ - 1] : nullptr; }
  std::size_t count() const { return targets_.size(); }

 private:
  std::vector<GradientTarget> targets_;
  std::size_t next_ = 0;
};

struct ConvolutionObject {
  SourceContextPtr context;
  ConvolutionDataSourcePtr source;
  CNNConvolutionDescriptor descriptor;
  std::string label;
  Buffer weights, biases;  ///< in the store; empty for raw ones
  DataType data_type = DataType::Float32, kernel_data_type = DataType::Float32;
  GradientTargets targets;
  ConvolutionOptimizer optimizer;

  bool is_raw() const { return !weights; }
  /// Raw sources, between load and purge.
  int loads = 0;
  WeightArray raw_weights, raw_biases, lookup_table, ranges;
  CNNWeightsQuantizationType quantization = CNNWeightsQuantizationType::None;
  std::size_t raw_count = 0;  ///< elements that weights() must have
};

/// Batch, instance and group normalization.
struct NormalizationObject {
  SourceContextPtr context;
  std::string label;
  int channels = 0, groups = 0;
  float epsilon = 0;
  Buffer gamma, beta, mean, variance;  ///< in the store
  GradientTargets targets;

  /// Ours, updated on the device; null where the host updates.
  TrainedDataSource* trained = nullptr;
  NormalizationOptimizer optimizer;
  /// Batch normalization: how much of a batch's statistics the running ones take over, and of how many numbers they are; 0 where fixed
  /// ones are used.
  float momentum = 0;
  std::size_t element_count = 0;
};

Owned<MPS::CNNConvolutionDescriptor> make_descriptor(const CNNConvolutionDescriptor& descriptor, bool has_folded_normalization);
Owned<MPS::NNNeuronDescriptor> make_neuron_descriptor(const NNNeuronDescriptor& descriptor);
Owned<MPS::CNNConvolutionDataSource> make_source_object(const std::shared_ptr<ConvolutionObject>& object);
Owned<MPS::CNNBatchNormalizationDataSource> make_batch_source_object(const std::shared_ptr<NormalizationObject>& object);
Owned<MPS::CNNInstanceNormalizationDataSource> make_instance_source_object(const std::shared_ptr<NormalizationObject>& object);
Owned<MPS::CNNGroupNormalizationDataSource> make_group_source_object(const std::shared_ptr<NormalizationObject>& object);

}  // namespace mpsnn::metal
