// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "mpsnn/data_source.hpp"
#include "mpsnn/optimizer.hpp"

/// Data sources that applications need not write: MPS ships none.
namespace mpsnn {

/// Records `result := updated values` on a command buffer: one encode of the optimizer, one time step. `history` holds the
/// optimizer's vectors, all as long as `values`. Throws OptionError for other numbers of vectors or lengths.
MPSNN_API void encode(CommandBuffer& command_buffer, const std::shared_ptr<NNOptimizer>& optimizer, const Buffer& gradient, const Buffer& values,
                      const std::vector<Buffer>& history, const Buffer& result);
/// The same for a convolution's weights and biases. With history for the weights only, biases stay as they are.
MPSNN_API void encode(CommandBuffer& command_buffer, const std::shared_ptr<NNOptimizer>& optimizer,
                      const std::shared_ptr<CNNConvolutionGradientState>& gradient_state,
                      const std::shared_ptr<CNNConvolutionWeightsAndBiasesState>& source_state, const std::vector<Buffer>& history,
                      const std::shared_ptr<CNNConvolutionWeightsAndBiasesState>& result_state);

/// How fresh weights are drawn. He: normal, variance 2 / fan_in. Xavier: uniform, variance 2 / (fan_in + fan_out).
enum class Initializer { zeros, he, xavier };

/// Parameters with an optimizer: history vectors and the update, for any kind of data source.
class MPSNN_API TrainedBuffers {
 public:
  /// Takes a copy of `optimizer` with history of its own, all zeros; null stops training.
  void set_optimizer(const std::shared_ptr<NNOptimizer>& optimizer);
  const std::shared_ptr<NNOptimizer>& optimizer() const { return optimizer_; }
  /// One vector per parameter and moment: all of the first parameter, then all of the second. Empty before the first update.
  const std::vector<Buffer>& history() const { return history_; }
  /// Continues from saved vectors; sizes are checked at the next update.
  void set_history(std::vector<Buffer> history) { history_ = std::move(history); }
  /// A copy with an optimizer and history of its own.
  TrainedBuffers copy() const;
  /// Makes the history that an update of such parameters needs. Throws WeightError when restored history does not fit.
  void prepare(const Buffer& first, const Buffer& second, const std::string& label);
  /// Updates in place. prepare() must have run.
  void apply(const Buffer& first, const Buffer& first_gradient, const Buffer& second, const Buffer& second_gradient) const;

 private:
  std::shared_ptr<NNOptimizer> optimizer_;
  std::vector<Buffer> history_;
};

/// What our own data sources have in common.
class MPSNN_API TrainedDataSource {
 public:
  virtual ~TrainedDataSource();
  TrainedBuffers& training() { return training_; }
  /// A way back from updates that follow: optimizer, history and numbers; those in a graph's memory are the graph's to restore.
  virtual std::function<void()> remember() = 0;

 protected:
  TrainedBuffers training_;
};

/// Weights of a convolution over arrays, with an optimizer. The arrays given are never written: training moves to memory of
/// its own, which weights_buffer() shows.
class MPSNN_API ConvolutionWeights : public CNNConvolutionDataSource, public TrainedDataSource, public std::enable_shared_from_this<ConvolutionWeights> {
 public:
  /// `weights` O x kH x kW x I/groups, `biases` O or none. Throws WeightError for other sizes.
  ConvolutionWeights(CNNConvolutionDescriptor descriptor, Buffer weights, Buffer biases, std::string label);
  /// Drawn from `seed`; biases are zeros.
  ConvolutionWeights(CNNConvolutionDescriptor descriptor, Initializer initializer, std::uint64_t seed, std::string label, bool has_biases = true);

  CNNConvolutionDescriptor descriptor() override { return descriptor_; }
  WeightArray weights() override;
  WeightArray bias_terms() override;
  std::string label() override { return label_; }
  bool update(const std::shared_ptr<CNNConvolutionGradientState>& gradient_state,
              const std::shared_ptr<CNNConvolutionWeightsAndBiasesState>& source_state) override;
  std::shared_ptr<CNNConvolutionWeightsAndBiasesState> update(CommandBuffer& command_buffer,
                                                              const std::shared_ptr<CNNConvolutionGradientState>& gradient_state,
                                                              const std::shared_ptr<CNNConvolutionWeightsAndBiasesState>& source_state) override;

  /// The numbers as they are now. Do not write: use set_values().
  const Buffer& weights_buffer() const { return weights_; }
  const Buffer& biases_buffer() const { return biases_; }
  /// Takes copies. Graphs see them after reload_from_data_sources().
  void set_values(const Buffer& weights, const Buffer& biases);
  /// Shows a graph's numbers from now on: for engines that train them in their own memory.
  void follow(const CNNConvolutionWeightsAndBiasesState& state);
  std::function<void()> remember() override;

 private:
  CNNConvolutionDescriptor descriptor_;
  std::string label_;
  Buffer weights_, biases_;
};

/// Weights of few bits, which nobody trains: halves, bytes with ranges or a table, or the words of a binary convolution.
class MPSNN_API PackedConvolutionWeights final : public CNNConvolutionDataSource {
 public:
  struct Arrays {
    WeightArray weights, biases;       ///< elements of the type; floats, or none
    WeightArray ranges, lookup_table;  ///< with UInt8 one of the two: O pairs (lower, upper), or 256 numbers
  };
  /// `type` Float16, UInt8 or UInt32. Throws WeightError for other types and sizes, and where an array has no owner.
  PackedConvolutionWeights(CNNConvolutionDescriptor descriptor, DataType type, Arrays arrays, std::string label);
  /// A copy of what a data source of such a type holds now.
  static std::shared_ptr<PackedConvolutionWeights> copy_of(CNNConvolutionDataSource& source);

  CNNConvolutionDescriptor descriptor() override { return descriptor_; }
  DataType data_type() override { return type_; }
  CNNWeightsQuantizationType weights_quantization_type() override;
  WeightArray weights() override { return arrays_.weights; }
  WeightArray bias_terms() override { return arrays_.biases; }
  WeightArray ranges_for_uint8_kernel() override { return arrays_.ranges; }
  WeightArray lookup_table_for_uint8_kernel() override { return arrays_.lookup_table; }
  std::string label() override { return label_; }
  const Arrays& arrays() const { return arrays_; }
  const CNNConvolutionDescriptor& sizes() const { return descriptor_; }

 private:
  CNNConvolutionDescriptor descriptor_;
  DataType type_;
  Arrays arrays_;
  std::string label_;
};

/// Gamma, beta and running statistics of a batch normalization, with an optimizer.
class MPSNN_API BatchNormalizationWeights : public CNNBatchNormalizationDataSource, public TrainedDataSource, public std::enable_shared_from_this<BatchNormalizationWeights> {
 public:
  /// Gamma and variance 1, beta and mean 0. `momentum` is the weight of the new batch in the running statistics:
  /// running = (1 - momentum) * running + momentum * batch, the variance unbiased as in PyTorch.
  BatchNormalizationWeights(int feature_channels, std::string label, float epsilon = 1e-5f, float momentum = 0.1f);

  int number_of_feature_channels() override { return channels_; }
  WeightArray gamma() override;
  WeightArray beta() override;
  WeightArray mean() override;
  WeightArray variance() override;
  std::string label() override { return label_; }
  float epsilon() override { return epsilon_; }
  bool update_gamma_and_beta(const std::shared_ptr<CNNBatchNormalizationState>& state) override;
  bool update_mean_and_variance(const std::shared_ptr<CNNBatchNormalizationState>& state) override;
  std::shared_ptr<CNNNormalizationGammaAndBetaState> update_gamma_and_beta(CommandBuffer& command_buffer,
                                                                           const std::shared_ptr<CNNBatchNormalizationState>& state) override;
  std::shared_ptr<CNNNormalizationMeanAndVarianceState> update_mean_and_variance(
      CommandBuffer& command_buffer, const std::shared_ptr<CNNBatchNormalizationState>& state) override;

  const Buffer& gamma_buffer() const { return gamma_; }
  const Buffer& beta_buffer() const { return beta_; }
  const Buffer& mean_buffer() const { return mean_; }
  const Buffer& variance_buffer() const { return variance_; }
  /// Takes copies. Graphs see them after reload_from_data_sources().
  void set_values(const Buffer& gamma, const Buffer& beta, const Buffer& mean, const Buffer& variance);
  float momentum() const { return momentum_; }
  std::function<void()> remember() override;

 private:
  void accumulate(const CNNBatchNormalizationState& state);
  int channels_;
  std::string label_;
  float epsilon_, momentum_;
  Buffer gamma_, beta_, mean_, variance_;
};

/// Gamma and beta of an instance or group normalization, with an optimizer.
class MPSNN_API AffineWeights : public TrainedDataSource {
 public:
  /// Gamma 1, beta 0.
  AffineWeights(int feature_channels, std::string label, float epsilon, const char* class_name);
  ~AffineWeights() override;
  const Buffer& gamma_buffer() const { return gamma_; }
  const Buffer& beta_buffer() const { return beta_; }
  /// Takes copies. Graphs see them after reload_from_data_sources().
  void set_values(const Buffer& gamma, const Buffer& beta);
  std::function<void()> remember() override;

 protected:
  bool apply(const CNNAffineDataSource::StateBatch& states);
  void prepare(const CNNAffineDataSource::StateBatch& states);
  static WeightArray float_array(const Buffer& buffer);
  int channels_;
  std::string label_;
  float epsilon_;
  Buffer gamma_, beta_;
};

/// The data source over such weights.
template <class DataSource>
class AffineWeightsSource : public DataSource, public AffineWeights, public std::enable_shared_from_this<AffineWeightsSource<DataSource>> {
 public:
  using AffineWeights::AffineWeights;
  int number_of_feature_channels() override { return channels_; }
  WeightArray gamma() override { return float_array(gamma_); }
  WeightArray beta() override { return float_array(beta_); }
  std::string label() override { return label_; }
  float epsilon() override { return epsilon_; }
  bool update_gamma_and_beta(const CNNAffineDataSource::StateBatch& states) override { return apply(states); }
  std::shared_ptr<CNNNormalizationGammaAndBetaState> update_gamma_and_beta(CommandBuffer& command_buffer,
                                                                           const CNNAffineDataSource::StateBatch& states) override {
    if (!training_.optimizer()) return nullptr;
    prepare(states);
    command_buffer.record([self = this->shared_from_this(), states] { self->apply(states); });
    return std::make_shared<CNNNormalizationGammaAndBetaState>(states.front()->gamma, states.front()->beta);
  }
};

/// Gamma and beta of an instance normalization.
class MPSNN_API InstanceNormalizationWeights final : public AffineWeightsSource<CNNInstanceNormalizationDataSource> {
 public:
  InstanceNormalizationWeights(int feature_channels, std::string label, float epsilon = 1e-5f)
      : AffineWeightsSource(feature_channels, std::move(label), epsilon, "InstanceNormalizationWeights") {}
};

/// Gamma and beta of a group normalization.
class MPSNN_API GroupNormalizationWeights final : public AffineWeightsSource<CNNGroupNormalizationDataSource> {
 public:
  /// Throws OptionError when the groups do not divide the channels.
  GroupNormalizationWeights(int feature_channels, int groups, std::string label, float epsilon = 1e-5f);
  int number_of_groups() override { return groups_; }

 private:
  int groups_;
};

}  // namespace mpsnn
