// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "mpsnn/descriptors.hpp"
#include "mpsnn/device.hpp"
#include "mpsnn/state.hpp"

namespace mpsnn {

/// An array that a data source hands out: valid until purge().
struct WeightArray {
  const void* data = nullptr;
  std::size_t count = 0;
  std::shared_ptr<const void> owner;  ///< optional: keeps `data` alive
  explicit operator bool() const { return data != nullptr; }
};

/// MPSCNNConvolutionDataSource: where a convolution gets its weights, and who updates them (MPS_SEMANTICS 7.2, 7.8).
/// Derive from it. A graph calls load() before anything else and purge() when it has read what it needs.
class MPSNN_API CNNConvolutionDataSource {
 public:
  virtual ~CNNConvolutionDataSource();
  /// Type of the elements of weights(): Float32, Float16 or UInt8.
  virtual DataType data_type() { return DataType::Float32; }
  virtual CNNConvolutionDescriptor descriptor() = 0;
  /// O x kH x kW x I/groups elements of data_type().
  virtual WeightArray weights() = 0;
  /// O floats, or none.
  virtual WeightArray bias_terms() = 0;
  /// False refuses: the graph is not built.
  virtual bool load() { return true; }
  virtual void purge() {}
  virtual std::string label() { return {}; }
  virtual CNNWeightsQuantizationType weights_quantization_type() { return CNNWeightsQuantizationType::None; }
  /// The only layout that exists.
  virtual CNNConvolutionWeightsLayout weights_layout() { return CNNConvolutionWeightsLayout::OHWI; }
  /// Precision that kernels may use for the weights. The engines here use all of float32 whatever it says.
  virtual DataType kernel_weights_data_type() { return DataType::Float32; }
  /// 256 floats, with LookupTable.
  virtual WeightArray lookup_table_for_uint8_kernel() { return {}; }
  /// Pairs (lower, upper), one per output channel, with Linear.
  virtual WeightArray ranges_for_uint8_kernel() { return {}; }

  /// CPU style: runs in the completion phase, when the gradients are known. True: the graph reads the weights again.
  virtual bool update(const std::shared_ptr<CNNConvolutionGradientState>& gradient_state,
                      const std::shared_ptr<CNNConvolutionWeightsAndBiasesState>& source_state);
  /// GPU style: runs during encode; the numbers are not known yet, so it records work on the command buffer. The state it
  /// returns (or null) holds the new weights once that work has run; it may be `source_state` itself.
  virtual std::shared_ptr<CNNConvolutionWeightsAndBiasesState> update(
      CommandBuffer& command_buffer, const std::shared_ptr<CNNConvolutionGradientState>& gradient_state,
      const std::shared_ptr<CNNConvolutionWeightsAndBiasesState>& source_state);
};
using ConvolutionDataSourcePtr = std::shared_ptr<CNNConvolutionDataSource>;

/// MPSCNNBatchNormalizationDataSource (MPS_SEMANTICS 12.1).
class MPSNN_API CNNBatchNormalizationDataSource {
 public:
  virtual ~CNNBatchNormalizationDataSource();
  virtual int number_of_feature_channels() = 0;
  virtual WeightArray gamma() = 0;  ///< C floats, or none for 1
  virtual WeightArray beta() = 0;   ///< C floats, or none for 0
  virtual WeightArray mean() = 0;   ///< C floats: running statistics, used for inference
  virtual WeightArray variance() = 0;
  virtual bool load() { return true; }
  virtual void purge() {}
  virtual std::string label() { return {}; }
  /// FLT_MIN unless overridden, as in MPS.
  virtual float epsilon() { return 1.17549435e-38f; }

  /// CPU style: true when the source took new values, which the graph then reads.
  virtual bool update_gamma_and_beta(const std::shared_ptr<CNNBatchNormalizationState>& state);
  virtual bool update_mean_and_variance(const std::shared_ptr<CNNBatchNormalizationState>& state);
  /// GPU style: records work on the command buffer; returns a state that will hold the new values, or null.
  virtual std::shared_ptr<CNNNormalizationGammaAndBetaState> update_gamma_and_beta(CommandBuffer& command_buffer,
                                                                                   const std::shared_ptr<CNNBatchNormalizationState>& state);
  virtual std::shared_ptr<CNNNormalizationMeanAndVarianceState> update_mean_and_variance(
      CommandBuffer& command_buffer, const std::shared_ptr<CNNBatchNormalizationState>& state);
};
using BatchNormalizationDataSourcePtr = std::shared_ptr<CNNBatchNormalizationDataSource>;

/// What the data sources of instance and group normalization share: gamma and beta (MPS_SEMANTICS 12.1).
class MPSNN_API CNNAffineDataSource {
 public:
  /// The states that one step leaves. This engine sums over the images of the batch, so there is one.
  using StateBatch = std::vector<std::shared_ptr<CNNAffineGradientState>>;
  virtual ~CNNAffineDataSource();
  virtual int number_of_feature_channels() = 0;
  virtual WeightArray gamma() = 0;  ///< C floats, or none for 1
  virtual WeightArray beta() = 0;   ///< C floats, or none for 0
  virtual bool load() { return true; }
  virtual void purge() {}
  virtual std::string label() { return {}; }
  /// FLT_MIN unless overridden, as in MPS.
  virtual float epsilon() { return 1.17549435e-38f; }
  /// Groups of consecutive channels that share statistics.
  virtual int group_count() = 0;
  /// CPU style: true when the source took new values, which the graph then reads.
  virtual bool update_gamma_and_beta(const StateBatch& states);
  /// GPU style: records work on the command buffer; returns a state that will hold the new values, or null.
  virtual std::shared_ptr<CNNNormalizationGammaAndBetaState> update_gamma_and_beta(CommandBuffer& command_buffer, const StateBatch& states);
};
using AffineDataSourcePtr = std::shared_ptr<CNNAffineDataSource>;

/// MPSCNNInstanceNormalizationDataSource.
class MPSNN_API CNNInstanceNormalizationDataSource : public CNNAffineDataSource {
 public:
  ~CNNInstanceNormalizationDataSource() override;
  int group_count() override { return number_of_feature_channels(); }
};
/// MPSCNNGroupNormalizationDataSource. The groups must divide the channels.
class MPSNN_API CNNGroupNormalizationDataSource : public CNNAffineDataSource {
 public:
  ~CNNGroupNormalizationDataSource() override;
  virtual int number_of_groups() = 0;
  int group_count() override { return number_of_groups(); }
};

/// A data source of any kind.
using AnyDataSource = std::variant<ConvolutionDataSourcePtr, BatchNormalizationDataSourcePtr, AffineDataSourcePtr>;
using DataSources = std::vector<AnyDataSource>;

}  // namespace mpsnn
