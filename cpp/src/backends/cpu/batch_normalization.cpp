// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "backends/cpu/channel_sums.hpp"
#include "backends/cpu/kernels.hpp"
#include "backends/cpu/loops.hpp"
#include "backends/cpu/pooling.hpp"

namespace mpsnn::cpu {
namespace {

/// What a kernel normalizes with: `arrays` holds 2 * channels floats of its own.
ChannelNormalization normalization(const KernelCall& call, std::size_t first_operand, float epsilon, const NNNeuronDescriptor& neuron,
                                   const float* beta, int channels, float* arrays) {
  const float *variance = call.input<float>(first_operand + 1), *gamma = call.input<float>(first_operand + 2);
  float *scale = arrays, *zeros = arrays + channels;
  for (int c = 0; c < channels; ++c)
    scale[c] = static_cast<float>((gamma ? gamma[c] : 1.0) / std::sqrt(static_cast<double>(variance[c]) + epsilon));
  if (!beta) std::fill_n(zeros, channels, 0.0f);
  return {call.input<float>(first_operand), scale, beta ? beta : zeros, neuron.neuron_type == CNNNeuronType::ReLU, neuron.a};
}

std::string algorithm_of(const NNNeuronDescriptor& neuron) {
  return neuron.neuron_type == CNNNeuronType::ReLU ? std::string("fused with ReLU, ") + isa().name : std::string("direct, ") + isa().name;
}

/// Calls body(begin, end) for stretches of the pixels: each thread goes back from the end of those that it begins a loop with to their
/// beginning, as the last ones that the loop before has read are in its cache still.
template <class Body>
void backwards(std::size_t pixels, int channels, Body body) {
  const std::size_t step = std::max<std::size_t>(1, kTaskElements / std::max(1, channels)), tasks = (pixels + step - 1) / step;
  const std::size_t threads = thread_count();  // once: another thread may change it meanwhile, and each stretch has one turn
  parallel_for(tasks, [&](std::size_t task, int) {
    const std::size_t share = ((task + 1) * threads - 1) / tasks;
    const std::size_t begin = (first_own_task(tasks, share, threads) + first_own_task(tasks, share + 1, threads) - 1 - task) * step;
    body(begin, std::min(pixels, begin + step));
  });
}

class Apply final : public Kernel {
 public:
  Apply(const BatchNormalizationOp& op, const Shape& shape) : op_(op), shape_(shape) {}
  std::size_t scratch_bytes() const override { return 2 * sizeof(float) * shape_.channels; }
  std::string algorithm() const override { return algorithm_of(op_.neuron); }
  void run(const KernelCall& call) override {
    const int channels = shape_.channels;
    const ChannelNormalization n =
        normalization(call, 1, op_.epsilon, op_.neuron, call.input<float>(4), channels, static_cast<float*>(call.scratch));
    backwards(shape_.pixels(), channels, [&](std::size_t begin, std::size_t end) {
      isa().normalize(call.input<float>(0) + begin * channels, call.output<float>(0) + begin * channels, end - begin, channels, n);
    });
  }

 private:
  BatchNormalizationOp op_;
  Shape shape_;
};

/// With max pooling behind it: what is normalized is never stored.
class ApplyAndPool final : public Kernel {
 public:
  ApplyAndPool(const BatchNormalizationOp& op, const Shape& shape, std::unique_ptr<LinePooling> pooling)
      : op_(op), shape_(shape), pooling_(std::move(pooling)) {}
  std::size_t scratch_bytes() const override { return sizeof(float) * (arrays_floats() + pooling_->scratch_floats()); }
  std::string algorithm() const override { return algorithm_of(op_.neuron) + ", pooled"; }
  void run(const KernelCall& call) override {
    float* scratch = static_cast<float*>(call.scratch);
    const Lines lines(shape_, call.input<float>(0), normalization(call, 1, op_.epsilon, op_.neuron, call.input<float>(4), shape_.channels, scratch));
    pooling_->run(call, lines, scratch + arrays_floats());
  }

 private:
  class Lines final : public LineSource {
   public:
    Lines(const Shape& shape, const float* x, const ChannelNormalization& n) : width_(shape.width), channels_(shape.channels), x_(x), n_(n) {}
    void make(std::size_t first, std::size_t lines, float* to) const override {
      isa().normalize(x_ + first * width_ * channels_, to, lines * width_, channels_, n_);
    }

   private:
    std::size_t width_;
    int channels_;
    const float* x_;
    ChannelNormalization n_;
  };
  std::size_t arrays_floats() const { return (2 * std::size_t(shape_.channels) + 15) / 16 * 16; }

  BatchNormalizationOp op_;
  Shape shape_;
  std::unique_ptr<LinePooling> pooling_;
};

class Gradient final : public Kernel {
 public:
  Gradient(const BatchNormalizationGradientOp& op, const Shape& shape) : op_(op), parts_(shape) {}

  std::size_t scratch_bytes() const override { return parts_.sums_bytes() + sizeof(float) * 4 * parts_.channels; }
  std::string algorithm() const override { return algorithm_of(op_.neuron); }

  void run(const KernelCall& call) override {
    const int channels = parts_.channels;
    float* arrays = reinterpret_cast<float*>(static_cast<char*>(call.scratch) + parts_.sums_bytes());
    const ChannelNormalization n = normalization(call, 2, op_.epsilon, op_.neuron, call.input<float>(5), channels, arrays);
    float *constant = arrays + 2 * channels, *factor = arrays + 3 * channels;
    const bool needs_sums = call.output<float>(1) || call.output<float>(2) || (op_.uses_batch_statistics && call.output<float>(0));
    if (needs_sums) sum(call, n);
    for (int c = 0; c < channels; ++c) finish_channel(call, c, needs_sums, constant[c], factor[c]);
    float* gradient = call.output<float>(0);
    if (!gradient) return;
    backwards(parts_.pixels, channels, [&](std::size_t begin, std::size_t end) {
      const std::size_t first = begin * channels;
      isa().normalize_gradient(call.input<float>(0) + first, call.input<float>(1) + first, gradient + first, end - begin, channels, n, constant,
                               factor);
    });
  }

 private:
  /// Sums of E and of E * (x - mean), one pair per part and channel.
  void sum(const KernelCall& call, const ChannelNormalization& n) const {
    const float *e = call.input<float>(0), *x = call.input<float>(1);
    parts_.for_each_part(call.scratch, [&](std::size_t begin, std::size_t end, double* totals) {
      part_products(parts_, e, x, n, begin, end, totals, totals + parts_.channels);
    });
  }

  void finish_channel(const KernelCall& call, int c, bool has_sums, float& constant, float& factor) const {
    const double inverse = 1.0 / std::sqrt(static_cast<double>(call.input<float>(3)[c]) + op_.epsilon);
    double beta_gradient = 0, gamma_gradient = 0;
    const double* totals = static_cast<const double*>(call.scratch);
    for (int part = 0; has_sums && part < parts_.parts; ++part, totals += 2 * parts_.channels) {
      beta_gradient += totals[c];
      gamma_gradient += totals[parts_.channels + c];
    }
    gamma_gradient *= inverse;
    if (float* out = call.output<float>(1)) out[c] = static_cast<float>(gamma_gradient);
    if (float* out = call.output<float>(2)) out[c] = static_cast<float>(beta_gradient);
    const double part_of_mean = op_.uses_batch_statistics && parts_.pixels > 0 ? 1.0 / static_cast<double>(parts_.pixels) : 0;
    constant = static_cast<float>(beta_gradient * part_of_mean);
    factor = static_cast<float>(inverse * gamma_gradient * part_of_mean);
  }

  BatchNormalizationGradientOp op_;
  PixelParts parts_;
};

}  // namespace

std::unique_ptr<Kernel> make_kernel(const BatchNormalizationStatisticsOp&, const OperandShapes& shapes) {
  const PixelParts parts(shapes.inputs[0]);
  const auto run = [parts](const KernelCall& call) {
    const std::size_t channels = parts.channels;
    parts.for_each_part(call.scratch, [&](std::size_t begin, std::size_t end, double* sums) {
      part_statistics(parts, call.input<float>(0), begin, end, sums, sums + channels);
    });
    double* mean = static_cast<double*>(call.scratch);
    double count = static_cast<double>(std::min(parts.pixels, parts.pixels_per_part));
    for (int part = 1; part < parts.parts; ++part) {
      const double* other = mean + part * 2 * channels;
      const std::size_t begin = part * parts.pixels_per_part, end = std::min(parts.pixels, begin + parts.pixels_per_part);
      merge(count, mean, mean + channels, static_cast<double>(end - begin), other, other + channels, parts.channels);
    }
    for (std::size_t c = 0; c < channels; ++c) {
      if (float* out = call.output<float>(0)) out[c] = parts.parts == 0 ? 0.0f : static_cast<float>(mean[c]);
      if (float* out = call.output<float>(1))
        out[c] = parts.parts == 0 ? 0.0f : static_cast<float>(std::max(0.0, mean[channels + c]) / static_cast<double>(parts.pixels));
    }
  };
  return function_kernel(run, parts.sums_bytes());
}

std::unique_ptr<Kernel> make_kernel(const BatchNormalizationOp& op, const OperandShapes& shapes) {
  if (op.pooling) return std::make_unique<ApplyAndPool>(op, shapes.inputs[0], make_line_pooling(*op.pooling, shapes.inputs[0]));
  return std::make_unique<Apply>(op, shapes.inputs[0]);
}

bool pools(const BatchNormalizationOp& op, const OperandShapes& shapes) { return make_line_pooling(*op.pooling, shapes.inputs[0]) != nullptr; }

std::unique_ptr<Kernel> make_kernel(const BatchNormalizationGradientOp& op, const OperandShapes& shapes) {
  return std::make_unique<Gradient>(op, shapes.inputs[0]);
}

}  // namespace mpsnn::cpu
