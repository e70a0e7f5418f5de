// SPDX-License-Identifier: Apache-2.0
#include "backends/cpu/epilogue.hpp"

#include <algorithm>

#include "backends/cpu/channel_sums.hpp"
#include "backends/cpu/loops.hpp"
#include "backends/cpu/neuron.hpp"

namespace mpsnn::cpu {

void EpilogueStage::begin(std::size_t parts, float* sums) const {
  for (std::size_t part = 0; epilogue_.has_statistics && part < parts; ++part) *count(sums, part) = 0;
}

void EpilogueStage::begin_part(std::size_t part, const float* values, Range channels, float* sums) const {
  if (!epilogue_.has_statistics) return;
  float* to = center(sums, part) + channels.begin;
  std::copy_n(values, channels.size(), to);
  std::fill_n(to + channels_, channels.size(), 0.0f);
  std::fill_n(to + 2 * std::size_t(channels_), channels.size(), 0.0f);
}

void EpilogueStage::apply(const KernelCall& call, std::size_t part, float* values, std::size_t pixels, Range channels, float* sums) const {
  if (epilogue_.has_neuron()) {
    const auto finish = [&](float* to, std::size_t neighbours, int width) {
      if (epilogue_.is_gradient) apply_neuron_gradient(epilogue_.neuron, to, call.input<float>(3) + (to - call.output<float>(0)), to, neighbours, width);
      else apply_neuron(epilogue_.neuron, to, neighbours, width);
    };
    if (channels.size() == channels_) finish(values, pixels, channels_);
    else
      for (std::size_t pixel = 0; pixel < pixels; ++pixel) finish(values + pixel * channels_, 1, channels.size());
  }
  if (!epilogue_.has_statistics) return;
  const float* from = center(sums, part) + channels.begin;
  float* to = center(sums, part) + channels.begin + channels_;
  isa().add_deviations(values, channels_, pixels, from, to, to + channels_, channels.size());
  if (channels.begin == 0) *count(sums, part) += static_cast<float>(pixels);
}

void EpilogueStage::end(const KernelCall& call, std::size_t parts, const float* sums) const {
  if (!epilogue_.has_statistics) return;
  constexpr int kTaskChannels = 64;
  parallel_for(ceil_divide(channels_, kTaskChannels), [&](std::size_t task, int) {
    const int first = static_cast<int>(task) * kTaskChannels, channels = std::min(kTaskChannels, channels_ - first);
    double mean[kTaskChannels] = {}, squares[kTaskChannels] = {}, part_mean[kTaskChannels], part_squares[kTaskChannels], total = 0;
    for (std::size_t part = 0; part < parts; ++part) {
      const float* middle = center(const_cast<float*>(sums), part) + first;
      const double pixels = *count(const_cast<float*>(sums), part);
      if (pixels == 0) continue;
      for (int c = 0; c < channels; ++c) {
        const double deviation = middle[channels_ + c], rest = deviation / pixels;
        part_mean[c] = middle[c] + rest;
        part_squares[c] = middle[2 * std::size_t(channels_) + c] - rest * deviation;
      }
      merge(total, mean, squares, pixels, part_mean, part_squares, channels);
    }
    for (int c = 0; c < channels; ++c) {
      if (float* to = call.output<float>(1)) to[first + c] = static_cast<float>(mean[c]);
      if (float* to = call.output<float>(2)) to[first + c] = static_cast<float>(std::max(0.0, squares[c]) / std::max(1.0, total));
    }
  });
}

std::size_t EpilogueStage::behind_pixels() const {
  // 64 parts at most, of 16 Ki numbers at least.
  return std::max({std::size_t(1), (pixels_ + 63) / 64, kTaskElements / std::max(1, channels_)});
}

void EpilogueStage::behind(const KernelCall& call, float* sums) const {
  const std::size_t parts = behind_parts();
  begin(parts, sums);
  parallel_for(parts, [&](std::size_t part, int) {
    const std::size_t first = part * behind_pixels(), pixels = std::min(pixels_, first + behind_pixels()) - first;
    float* values = call.output<float>(0) + first * channels_;
    begin_part(part, values, {0, channels_}, sums);
    apply(call, part, values, pixels, {0, channels_}, sums);
  });
  end(call, parts, sums);
}

namespace {

class KernelWithEpilogue final : public Kernel {
 public:
  KernelWithEpilogue(std::unique_ptr<Kernel> kernel, EpilogueStage stage) : kernel_(std::move(kernel)), stage_(std::move(stage)) {}
  std::size_t scratch_bytes() const override { return std::max(kernel_->scratch_bytes(), stage_.sums_floats_behind() * sizeof(float)); }
  std::size_t packed_bytes() const override { return kernel_->packed_bytes(); }
  void run(const KernelCall& call) override {
    kernel_->run(call);
    if (call.output<float>(0)) stage_.behind(call, static_cast<float*>(call.scratch));
  }
  std::string algorithm() const override { return kernel_->algorithm(); }
  std::string layout() const override { return kernel_->layout(); }
  std::string reason() const override { return kernel_->reason(); }
  double flops(double direct) const override { return kernel_->flops(direct); }

 private:
  std::unique_ptr<Kernel> kernel_;
  EpilogueStage stage_;
};

}  // namespace

std::unique_ptr<Kernel> with_epilogue(std::unique_ptr<Kernel> kernel, const Epilogue& epilogue, std::size_t pixels, int channels) {
  if (epilogue.is_empty()) return kernel;
  return std::make_unique<KernelWithEpilogue>(std::move(kernel), EpilogueStage(epilogue, pixels, channels));
}

}  // namespace mpsnn::cpu
