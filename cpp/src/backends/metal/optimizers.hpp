// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <MetalPerformanceShaders/MetalPerformanceShaders.hpp>

#include "backends/metal/device_memory.hpp"
#include "core/parameters.hpp"
#include "mpsnn/weights.hpp"

namespace mpsnn::metal {

/// Apple's optimizer with the settings of one of ours. Values, gradients and history stay on the device; the history of our data
/// source and its numbers show that memory once the command buffer has completed.
class AppleOptimizer {
 public:
  /// Made when it is first needed, and again for another optimizer of ours; learning rate, clipping and time step follow.
  MPS::NNOptimizer* for_optimizer(MTL::Device* device, const std::shared_ptr<NNOptimizer>& ours);

 private:
  std::shared_ptr<NNOptimizer> ours_;  ///< that `theirs_` was made for
  Owned<MPS::NNOptimizer> theirs_;
};

/// For one ConvolutionWeights in GPU style.
class ConvolutionOptimizer {
 public:
  /// Encodes one update in place, of weights and biases in shared memory. Returns the state that kernels take the new numbers
  /// from, or null when the weights have no optimizer.
  Owned<MPS::CNNConvolutionWeightsAndBiasesState> encode(MTL::Device* device, MTL::CommandBuffer* command_buffer, ConvolutionWeights& weights,
                                                         const std::string& label, const Buffer& weight_values, const Buffer& bias_values,
                                                         MPS::CNNConvolutionGradientState* gradient_state, MPS::CNNConvolutionDescriptor* descriptor);

 private:
  AppleOptimizer apples_;
};

/// For one of our normalization data sources in GPU style, with vectors over shared memory: only batch normalization has messages of
/// its own, and their states cannot start inside a buffer.
class NormalizationOptimizer {
 public:
  /// Encodes one update of gamma and beta in place, with gradients that are the sums of these buffers. Returns the state that kernels
  /// take the new numbers from, or null when the data source has no optimizer.
  Owned<MPS::CNNNormalizationGammaAndBetaState> encode(MTL::Device* device, MTL::CommandBuffer* command_buffer, TrainedDataSource& source, const std::string& label,
                                                       const Buffer& gamma, const Buffer& beta, const std::vector<MTL::Buffer*>& gamma_gradients,
                                                       const std::vector<MTL::Buffer*>& beta_gradients);
  /// running = (1 - momentum) * running + momentum * scale * batch
  static void encode_average(MTL::Device* device, MTL::CommandBuffer* command_buffer, const Buffer& running, MTL::Buffer* batch, float momentum, double scale);

 private:
  Owned<MPS::Vector> sum(MTL::Device* device, MTL::CommandBuffer* command_buffer, const std::vector<MTL::Buffer*>& parts, const Buffer& target);

  AppleOptimizer apples_;
  Buffer gamma_sum_, beta_sum_;
  Owned<MPS::CNNNormalizationGammaAndBetaState> result_;
};

}  // namespace mpsnn::metal
