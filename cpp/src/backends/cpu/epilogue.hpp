// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <optional>

#include "backends/backend.hpp"
#include "mpsnn/descriptors.hpp"
#include "mpsnn/geometry.hpp"

namespace mpsnn::cpu {

/// What follows the sum and the bias of a convolution: nothing, a neuron, or what fused() put there.
struct Epilogue {
  NNNeuronDescriptor neuron = {};
  int sub_pixel_scale = 1;
  bool is_gradient = false;     ///< times the neuron's slope at input 3, in place of the neuron
  bool has_statistics = false;  ///< outputs 1 and 2: mean and variance of each channel of the result
  std::optional<PoolingOp> pooling = {};  ///< behind the neuron; see pools_tiles()
  bool has_neuron() const { return neuron.neuron_type != CNNNeuronType::None; }
  bool is_empty() const { return !has_neuron() && !has_statistics; }
};

/// An epilogue at work on the pixels of a result, while they are in the cache. Statistics are sums of deviations from the first pixel of a
/// part of the result, one part for each task of a kernel, and are put together in the order of the parts: the same bits for any number of
/// threads.
class EpilogueStage {
 public:
  EpilogueStage(const Epilogue& epilogue, std::size_t pixels, int channels) : epilogue_(epilogue), pixels_(pixels), channels_(channels) {}

  bool is_empty() const { return epilogue_.is_empty(); }
  /// Slopes of PReLU belong to whole pixels.
  bool works_on_some_channels() const { return epilogue_.neuron.neuron_type != CNNNeuronType::PReLU; }
  /// Of the sums of so many parts; and of those that behind() needs.
  std::size_t sums_floats(std::size_t parts) const { return epilogue_.has_statistics ? parts * (3 * std::size_t(channels_) + 1) : 0; }
  std::size_t sums_floats_behind() const { return sums_floats(behind_parts()); }

  /// Before all parts.
  void begin(std::size_t parts, float* sums) const;
  /// Before the pixels of some channels in a part, whose first is at `values`.
  void begin_part(std::size_t part, const float* values, Range channels, float* sums) const;
  /// Neighbouring pixels; `values` is channel channels.begin of the first.
  void apply(const KernelCall& call, std::size_t part, float* values, std::size_t pixels, Range channels, float* sums) const;
  /// Behind all parts.
  void end(const KernelCall& call, std::size_t parts, const float* sums) const;
  /// All of that for a result that is complete.
  void behind(const KernelCall& call, float* sums) const;

 private:
  /// Of a part: the center, the sums of the deviations from it, those of their squares; and how many pixels there were.
  float* center(float* sums, std::size_t part) const { return sums + part * (3 * std::size_t(channels_) + 1); }
  float* count(float* sums, std::size_t part) const { return center(sums, part) + 3 * std::size_t(channels_); }
  std::size_t behind_pixels() const;
  std::size_t behind_parts() const { return (pixels_ + behind_pixels() - 1) / behind_pixels(); }

  Epilogue epilogue_;
  std::size_t pixels_;
  int channels_;
};

/// The kernel with an epilogue that it does not know.
std::unique_ptr<Kernel> with_epilogue(std::unique_ptr<Kernel> kernel, const Epilogue& epilogue, std::size_t pixels, int channels);

}  // namespace mpsnn::cpu
