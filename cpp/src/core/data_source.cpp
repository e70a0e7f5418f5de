// SPDX-License-Identifier: Apache-2.0
#include "mpsnn/data_source.hpp"

namespace mpsnn {

CNNConvolutionDataSource::~CNNConvolutionDataSource() = default;
CNNBatchNormalizationDataSource::~CNNBatchNormalizationDataSource() = default;
CNNAffineDataSource::~CNNAffineDataSource() = default;
CNNInstanceNormalizationDataSource::~CNNInstanceNormalizationDataSource() = default;
CNNGroupNormalizationDataSource::~CNNGroupNormalizationDataSource() = default;

// The update methods are optional: a source without them is simply not updated (MPS_SEMANTICS OQ-20).
bool CNNConvolutionDataSource::update(const std::shared_ptr<CNNConvolutionGradientState>&,
                                      const std::shared_ptr<CNNConvolutionWeightsAndBiasesState>&) {
  return false;
}
std::shared_ptr<CNNConvolutionWeightsAndBiasesState> CNNConvolutionDataSource::update(
    CommandBuffer&, const std::shared_ptr<CNNConvolutionGradientState>&, const std::shared_ptr<CNNConvolutionWeightsAndBiasesState>&) {
  return nullptr;
}
bool CNNBatchNormalizationDataSource::update_gamma_and_beta(const std::shared_ptr<CNNBatchNormalizationState>&) { return false; }
bool CNNBatchNormalizationDataSource::update_mean_and_variance(const std::shared_ptr<CNNBatchNormalizationState>&) { return false; }
std::shared_ptr<CNNNormalizationGammaAndBetaState> CNNBatchNormalizationDataSource::update_gamma_and_beta(
    CommandBuffer&, const std::shared_ptr<CNNBatchNormalizationState>&) {
  return nullptr;
}
std::shared_ptr<CNNNormalizationMeanAndVarianceState> CNNBatchNormalizationDataSource::update_mean_and_variance(
    CommandBuffer&, const std::shared_ptr<CNNBatchNormalizationState>&) {
  return nullptr;
}

bool CNNAffineDataSource::update_gamma_and_beta(const StateBatch&) { return false; }
std::shared_ptr<CNNNormalizationGammaAndBetaState> CNNAffineDataSource::update_gamma_and_beta(CommandBuffer&, const StateBatch&) { return nullptr; }

}  // namespace mpsnn
