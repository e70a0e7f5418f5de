// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "backends/metal/device_memory.hpp"
#include "core/parameters.hpp"
#include "mpsnn/weights.hpp"

namespace mpsnn::metal {

/// Apple's optimizer for one ConvolutionWeights in GPU style. Values, gradients and history stay on the device; the history of
/// the weights object and its numbers are views of that memory, current once the command buffer has completed.
class ConvolutionOptimizer {
 public:
  /// Encodes one update in place, of weights and biases in shared memory. Returns the state that kernels take the new numbers
  /// from, or null when the weights have no optimizer.
  Owned<MPS::CNNConvolutionWeightsAndBiasesState> encode(MTL::Device* device, MTL::CommandBuffer* command_buffer, ConvolutionWeights& weights,
                                                         const std::string& label, const Buffer& weight_values, const Buffer& bias_values,
                                                         MPS::CNNConvolutionGradientState* gradient_state, MPS::CNNConvolutionDescriptor* descriptor);

 private:
  std::shared_ptr<NNOptimizer> ours_;  ///< that `theirs_` was made for
  Owned<MPS::NNOptimizer> theirs_;
};

}  // namespace mpsnn::metal
