// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <initializer_list>
#include <optional>
#include <vector>

#include "backends/backend.hpp"
#include "mpsnn/data_source.hpp"
#include "mpsnn/nodes/node.hpp"

namespace mpsnn {

/// A stretch of a graph's parameter or gradient block, in elements.
struct ParameterRange {
  std::size_t offset = 0, count = 0;
  Shape shape;
  std::string label;
  explicit operator bool() const { return count != 0; }
};

/// Parameters of one convolution data source, in the parameter block.
struct ConvolutionValues {
  ConvolutionDataSourcePtr source;
  CNNConvolutionDescriptor descriptor;
  std::string label;
  ParameterRange weights, biases;
};

/// Parameters of one batch-normalization data source, in the parameter block. Gamma and beta are always stored.
struct BatchNormalizationValues {
  BatchNormalizationDataSourcePtr source;
  std::string label;
  int channels = 0;
  float epsilon = 0;
  ParameterRange gamma, beta, mean, variance;
};

/// Parameters of one instance- or group-normalization data source, in the parameter block.
struct AffineValues {
  AffineDataSourcePtr source;
  std::string label;
  int channels = 0, groups = 0;
  float epsilon = 0;
  ParameterRange gamma, beta;
};

/// Parameters of one binary convolution node: bits do not fit the block of numbers, so plans share `values`.
struct BinaryConvolutionParameters {
  const NNFilterNode* node = nullptr;
  ConvolutionDataSourcePtr source;
  CNNConvolutionDescriptor descriptor;
  std::string label;
  std::optional<float> scale_value;
  std::shared_ptr<BinaryConvolutionValues> values;
};

/// What a gradient node accumulates, in the gradient block: weights and biases, or gamma and beta.
struct TrainedParameters {
  const NNFilterNode* node = nullptr;     ///< the gradient node
  const NNFilterNode* forward = nullptr;  ///< the node whose state carries the gradients
  NNTrainingStyle style = NNTrainingStyle::UpdateDeviceNone;
  const ConvolutionValues* convolution = nullptr;
  const BatchNormalizationValues* normalization = nullptr;
  const AffineValues* affine = nullptr;
  ParameterRange first, second;
  bool is_updated_by_engine = false;  ///< GPU style, and the engine encodes the data source's optimizer itself
};

/// An update of one of our own data sources with everything that it needs: made once, run in every step, which then allocates nothing.
struct OwnUpdate {
  const TrainedParameters* trained = nullptr;
  std::shared_ptr<CNNConvolutionGradientState> gradient;
  std::shared_ptr<CNNConvolutionWeightsAndBiasesState> source;
  std::shared_ptr<CNNBatchNormalizationState> normalization;
  CNNAffineDataSource::StateBatch affine;
};

/// Mean and variance of a batch, in the gradient block.
struct BatchStatistics {
  const NNFilterNode* node = nullptr;
  ParameterRange mean, variance;
};

/// The parameters of a graph: one block of values, one block of gradients, and the conversation with the data sources.
class ParameterStore {
 public:
  /// Asks every node what it needs, then loads every data source.
  ParameterStore(const std::vector<FilterNodePtr>& nodes, const Backend& backend);

  // --- for nodes, while they declare
  void declare_convolution(const NNFilterNode& node, const ConvolutionDataSourcePtr& source);
  void declare_batch_normalization(const NNFilterNode& node, const BatchNormalizationDataSourcePtr& source);
  void declare_affine(const NNFilterNode& node, const AffineDataSourcePtr& source);
  /// `values` holds the terms; bits come from the data source, and so does the output bias where `scale_value` is given.
  void declare_binary_convolution(const NNFilterNode& node, const ConvolutionDataSourcePtr& source, BinaryConvolutionValues values,
                                  std::optional<float> scale_value);
  void declare_batch_statistics(const NNFilterNode& node, const BatchNormalizationDataSourcePtr& source);
  void train_convolution(const NNFilterNode& node, const NNFilterNode& forward, NNTrainingStyle style, const ConvolutionDataSourcePtr& source);
  void train_batch_normalization(const NNFilterNode& node, const NNFilterNode& forward, NNTrainingStyle style,
                                 const BatchNormalizationDataSourcePtr& source);

  void train_affine(const NNFilterNode& node, const NNFilterNode& forward, NNTrainingStyle style, const AffineDataSourcePtr& source);

  // --- for plans
  const ConvolutionValues& convolution(const ConvolutionDataSourcePtr& source) const;
  const BatchNormalizationValues& batch_normalization(const BatchNormalizationDataSourcePtr& source) const;
  const AffineValues& affine(const AffineDataSourcePtr& source) const;
  const BinaryConvolutionParameters& binary_convolution(const NNFilterNode& node) const;
  const TrainedParameters* trained(const NNFilterNode& gradient_node) const;
  const BatchStatistics* batch_statistics(const NNFilterNode& node) const;

  const Buffer& parameters() const { return parameters_; }
  const Buffer& gradients() const { return gradients_; }
  Buffer values(const ParameterRange& range) const { return parameters_.part(range.offset, range.count); }
  const std::vector<TrainedParameters>& trained() const { return trained_; }
  std::vector<TrainedParameters>& trained() { return trained_; }
  std::uint64_t version() const { return version_; }
  /// Makes whatever kernels keep of the parameters stale.
  void mark_changed(std::uint64_t times) { version_ += times; }
  /// True when a node is trained in that style.
  bool has_updates(NNTrainingStyle style) const;

  /// Reads all data sources; on an error the old values stay.
  void reload();
  /// GPU style: asks the data sources to record their updates, backward from the loss, behind the work of a step.
  /// `source_shapes` are those of the forward sources, one per entry of trained().
  void record_updates(CommandBuffer& command_buffer, const std::shared_ptr<ParameterStore>& self, const std::vector<Shape>& source_shapes);
  /// CPU style: lets the data sources update themselves with the gradients of one step (a copy of gradients()), then reads the
  /// changed ones. All or nothing as far as this store and our own data sources go.
  /// `undo` goes back to where an error must leave things; empty: to now.
  void run_updates(const std::vector<Shape>& source_shapes, const Buffer& gradients, std::function<void()> undo);
  /// All updates of a step, GPU style first, where nobody but our own data sources takes part; else nothing.
  std::optional<std::vector<OwnUpdate>> own_updates(const std::vector<Shape>& source_shapes) const;
  /// Makes histories ready for updates of these styles. Throws what the updates would: run_own_updates() then throws nothing.
  void prepare_own_sources(std::initializer_list<NNTrainingStyle> styles);
  void run_own_updates(const std::vector<OwnUpdate>& updates);
  /// A way back to the parameters, and to the optimizers and histories of our own data sources, as they are now.
  std::function<void()> remember();

  std::shared_ptr<CNNConvolutionGradientState> gradient_state(const TrainedParameters& trained, const Shape& source, const Buffer& gradients) const;
  std::shared_ptr<CNNConvolutionWeightsAndBiasesState> source_state(const ConvolutionValues& values) const;
  std::shared_ptr<CNNBatchNormalizationState> normalization_state(const TrainedParameters& trained, const Shape& source, const Buffer& gradients) const;
  std::shared_ptr<CNNAffineGradientState> affine_state(const TrainedParameters& trained, const Buffer& gradients) const;

 private:
  /// What to read again: all, or what an update changed.
  struct Changed {
    std::vector<const ConvolutionValues*> convolutions;
    std::vector<const BatchNormalizationValues*> normalizations;
    std::vector<const AffineValues*> affines;
    std::vector<BinaryConvolutionParameters*> binary_convolutions;
  };
  void update_application_source(const TrainedParameters& trained, const Shape& source_shape, const Buffer& gradients, Changed& changed);
  OwnUpdate own_update(const TrainedParameters& trained, const Shape& source_shape, const Buffer& gradients) const;
  void run(const OwnUpdate& update);
  ParameterRange reserve(std::size_t& end, Shape shape, std::string label);
  void reload(const Changed& changed);
  void load(const ConvolutionValues& values, const Buffer& target) const;
  void load(const BatchNormalizationValues& values, const Buffer& target) const;
  void load(const AffineValues& values, const Buffer& target) const;
  BinaryConvolutionValues load(const BinaryConvolutionParameters& parameters) const;
  void record_convolution_update(CommandBuffer& command_buffer, const std::shared_ptr<ParameterStore>& self, const TrainedParameters& trained,
                                 const Shape& source);
  void record_affine_update(CommandBuffer& command_buffer, const std::shared_ptr<ParameterStore>& self, const TrainedParameters& trained);
  void record_normalization_update(CommandBuffer& command_buffer, const std::shared_ptr<ParameterStore>& self, const TrainedParameters& trained,
                                 const Shape& source);

  ElementType type_;
  std::vector<std::unique_ptr<ConvolutionValues>> convolutions_;
  std::vector<std::unique_ptr<BatchNormalizationValues>> normalizations_;
  std::vector<std::unique_ptr<AffineValues>> affines_;
  std::vector<std::unique_ptr<BinaryConvolutionParameters>> binary_convolutions_;
  std::vector<TrainedParameters> trained_;
  std::vector<BatchStatistics> statistics_;
  Buffer parameters_, gradients_;
  std::size_t parameters_end_ = 0, gradients_end_ = 0;
  std::uint64_t version_ = 1;
};

}  // namespace mpsnn
