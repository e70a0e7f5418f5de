// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <cstdint>
#include <memory>
#include <numeric>
#include <vector>

#include "backends/cpu/correlation.hpp"
#include "backends/cpu/isa/isa.hpp"
#include "backends/cpu/kernels.hpp"
#include "backends/cpu/loops.hpp"
#include "backends/cpu/neuron.hpp"
#include "backends/cpu/vector_math.hpp"

namespace mpsnn::cpu {
namespace {

/// Convolution with weights of one bit (docs/semantics.md, 7.9). XNOR and AND count bits of words of 64 channels; BinaryWeights is a
/// convolution with weights 1 and -1.
class BinaryConvolution final : public Kernel {
 public:
  BinaryConvolution(const BinaryConvolutionOp& op, const Shape& source, const Shape& result)
      : op_(op), y_(op.geometry.window.y), x_(op.geometry.window.x), source_(source), result_(result),
        counts_bits_(op.type != CNNBinaryConvolutionType::BinaryWeights), words_(ceil_divide(source.channels, 64)),
        window_words_(static_cast<std::size_t>(y_.kernel) * x_.kernel * words_) {
    const std::size_t taps = static_cast<std::size_t>(y_.kernel) * x_.kernel;
    if (counts_bits_) {
      bits_.resize(result.channels * window_words_);
      return;
    }
    signs_.resize(taps * source.channels * result.channels);
    ConvolutionGeometry geometry = op.geometry;
    geometry.groups = 1;
    const WeightLayout layout = natural_layout(geometry);
    std::vector<int> taps_y(y_.kernel), taps_x(x_.kernel);
    std::iota(taps_y.begin(), taps_y.end(), 0);
    std::iota(taps_x.begin(), taps_x.end(), 0);
    const CorrelationShape shape{.window = geometry.window,
                                 .images = source.images,
                                 .source_channels = source.channels,
                                 .result_channels = result.channels,
                                 .edge_mode = geometry.edge_mode,
                                 .result_height = result.height,
                                 .result_width = result.width};
    const CorrelationWeights weights{layout.offset, layout.group, layout.output, layout.y, layout.x, layout.input, taps_y, taps_x};
    correlation_ = std::move(make_correlations({{shape, weights}}).front());
  }

  std::size_t scratch_bytes() const override { return threads_offset() + thread_bytes() * max_thread_count(); }

  std::size_t packed_bytes() const override { return counts_bits_ ? 0 : correlation_->packed_floats() * sizeof(float); }

  std::string algorithm() const override {
    switch (op_.type) {
      case CNNBinaryConvolutionType::XNOR: return std::string("xor and popcount of 64-bit words, ") + isa().name;
      case CNNBinaryConvolutionType::AND: return std::string("and and popcount of 64-bit words, ") + isa().name;
      default: return correlation_->algorithm() + ", weights 1 and -1";
    }
  }

  void run(const KernelCall& call) override {
    const bool is_stale = !is_packed_ || version_ != call.parameters_version;
    if (is_stale) counts_bits_ ? pack_bits() : pack_signs();
    is_packed_ = true;
    version_ = call.parameters_version;
    prepare_input(call);
    if (!counts_bits_) multiply_signs(call, is_stale);
    const std::size_t height = result_.height, line = static_cast<std::size_t>(result_.width) * result_.channels;
    parallel_ranges(result_.images * height, line * y_.kernel * x_.kernel * std::max(1, counts_bits_ ? words_ : 1),
                    [&](std::size_t begin, std::size_t end, int thread) {
                      for (std::size_t row = begin; row < end; ++row) {
                        float* result = call.output<float>(0) + row * line;
                        for (int j = 0; j < result_.width; ++j)
                          pixel(call, row / height, static_cast<int>(row % height), j, thread, result + static_cast<std::size_t>(j) * result_.channels);
                        apply_neuron(op_.neuron, result, result_.width, result_.channels);
                      }
                    });
  }

 private:
  // Scratch: the input as words of bits or as floats, its mean magnitudes, then for each thread a window of words and its counts.
  std::size_t input_bytes() const {
    return source_.pixels() * (counts_bits_ ? words_ * sizeof(std::uint64_t) : source_.channels * sizeof(float));
  }
  static std::size_t rounded(std::size_t bytes) { return (bytes + 63) / 64 * 64; }
  std::size_t magnitudes_offset() const { return rounded(input_bytes()); }
  std::size_t threads_offset() const { return magnitudes_offset() + rounded(op_.uses_beta_scaling ? source_.pixels() * sizeof(float) : 0); }
  std::size_t thread_bytes() const {
    return counts_bits_ ? rounded(window_words_ * sizeof(std::uint64_t)) + rounded(result_.channels * sizeof(int))
                        : rounded(correlation_->scratch_floats() * sizeof(float));
  }

  /// The 32-bit words of one tap, 64 channels at a time; bits behind the last channel become 0.
  std::uint64_t weight_word(std::size_t tap_of_output, int word) const {
    const int halves = ceil_divide(source_.channels, 32);
    const std::uint32_t* from = op_.values->bits.data() + tap_of_output * halves;
    std::uint64_t bits = from[2 * word];
    if (2 * word + 1 < halves) bits |= static_cast<std::uint64_t>(from[2 * word + 1]) << 32;
    const int channels = source_.channels - 64 * word;
    return channels >= 64 ? bits : bits & ((std::uint64_t{1} << channels) - 1);
  }
  void pack_bits() {
    for (std::size_t i = 0; i < bits_.size(); ++i) bits_[i] = weight_word(i / words_, static_cast<int>(i % words_));
  }
  /// Weights O, kH, kW, I.
  void pack_signs() {
    const std::size_t channels = source_.channels;
    for (std::size_t tap = 0; tap < signs_.size() / channels; ++tap)
      for (std::size_t c = 0; c < channels; ++c)
        signs_[tap * channels + c] = weight_word(tap, static_cast<int>(c / 64)) >> (c % 64) & 1 ? 1.0f : -1.0f;
  }
  void multiply_signs(const KernelCall& call, bool is_stale) {
    correlation_->use_memory(static_cast<float*>(call.packed));
    if (is_stale) correlation_->pack(signs_.data(), nullptr);
    else correlation_->keep_weights();
    char* scratch = static_cast<char*>(call.scratch);
    const float* input = reads_input() ? call.input<float>(0) : reinterpret_cast<const float*>(scratch);
    parallel_for(correlation_->task_count(), [&](std::size_t task, int thread) {
      correlation_->run_task(task, input, call.output<float>(0), nullptr,
                             reinterpret_cast<float*>(scratch + threads_offset() + thread * thread_bytes()));
    });
  }

  /// Whether the input has to be scaled at all.
  bool reads_input() const { return !counts_bits_ && op_.values->input_bias.empty() && op_.values->input_scale.empty(); }
  float scaled(float x, std::size_t c) const {
    if (!op_.values->input_bias.empty()) x += op_.values->input_bias[c];
    return op_.values->input_scale.empty() ? x : x * op_.values->input_scale[c];
  }

  void prepare_input(const KernelCall& call) const {
    if (reads_input() && !op_.uses_beta_scaling) return;
    const std::size_t channels = source_.channels;
    char* scratch = static_cast<char*>(call.scratch);
    float* magnitudes = reinterpret_cast<float*>(scratch + magnitudes_offset());
    const bool is_and = op_.type == CNNBinaryConvolutionType::AND;
    parallel_ranges(source_.pixels(), 2 * channels, [&](std::size_t begin, std::size_t end, int) {
      for (std::size_t p = begin; p < end; ++p) {
        const float* x = call.input<float>(0) + p * channels;
        if (counts_bits_) {
          std::uint64_t* words = reinterpret_cast<std::uint64_t*>(scratch) + p * words_;
          for (int w = 0; w < words_; ++w) {
            const std::size_t first = 64 * static_cast<std::size_t>(w), last = std::min(channels, first + 64);
            std::uint64_t word = 0;
            for (std::size_t c = first; c < last; ++c) {
              const float u = scaled(x[c], c);
              word |= static_cast<std::uint64_t>(is_and ? u >= 0 : !(u < 0)) << (c - first);
            }
            words[w] = word;
          }
        } else if (!reads_input()) {
          float* u = reinterpret_cast<float*>(scratch) + p * channels;
          for (std::size_t c = 0; c < channels; ++c) u[c] = scaled(x[c], c);
        }
        if (op_.uses_beta_scaling)
          magnitudes[p] = row_sum(source_.channels, [&](int c) { return std::fabs(scaled(x[c], c)); }) / static_cast<float>(channels);
      }
    });
  }

  /// Taps of an output pixel that count: with clamped edges all do.
  Range taps(const Axis& axis, int o) const {
    return op_.geometry.edge_mode == ImageEdgeMode::Clamp ? Range{0, axis.kernel} : axis.taps_inside(o);
  }
  /// Number of the source pixel under a tap.
  std::size_t source_pixel(std::size_t n, int i, int ky, int j, int kx) const {
    const int y = clamp_index(y_.tap(i, ky), source_.height), x = clamp_index(x_.tap(j, kx), source_.width);
    return (n * source_.height + y) * source_.width + x;
  }

  void pixel(const KernelCall& call, std::size_t n, int i, int j, int thread, float* result) const {
    const Range ys = taps(y_, i), xs = taps(x_, j);
    if (counts_bits_) count(call, n, i, j, ys, xs, thread, result);
    const BinaryConvolutionValues& values = *op_.values;
    if (!values.output_scale.empty())
      for (int q = 0; q < result_.channels; ++q) result[q] *= values.output_scale[q];
    if (op_.uses_beta_scaling) {
      const float* magnitudes = reinterpret_cast<const float*>(static_cast<const char*>(call.scratch) + magnitudes_offset());
      float sum = 0;
      for (int ky = ys.begin; ky < ys.end; ++ky)
        for (int kx = xs.begin; kx < xs.end; ++kx) sum += magnitudes[source_pixel(n, i, ky, j, kx)];
      const float beta = sum / (static_cast<float>(y_.kernel) * static_cast<float>(x_.kernel));
      for (int q = 0; q < result_.channels; ++q) result[q] *= beta;
    }
    if (!values.output_bias.empty())
      for (int q = 0; q < result_.channels; ++q) result[q] += values.output_bias[q];
  }

  void count(const KernelCall& call, std::size_t n, int i, int j, const Range& ys, const Range& xs, int thread, float* result) const {
    const auto* input = static_cast<const std::uint64_t*>(call.scratch);
    char* own = static_cast<char*>(call.scratch) + threads_offset() + thread * thread_bytes();
    auto* window = reinterpret_cast<std::uint64_t*>(own);
    auto* counts = reinterpret_cast<int*>(own + rounded(window_words_ * sizeof(std::uint64_t)));
    std::fill_n(counts, result_.channels, 0);
    const auto offset = [&](int ky, int kx) { return (static_cast<std::size_t>(ky) * x_.kernel + kx) * words_; };
    for (int ky = ys.begin; ky < ys.end; ++ky)
      for (int kx = xs.begin; kx < xs.end; ++kx)
        std::copy_n(input + source_pixel(n, i, ky, j, kx) * words_, words_, window + offset(ky, kx));
    const bool is_and = op_.type == CNNBinaryConvolutionType::AND;
    const auto count_words = is_and ? isa().count_common_bits : isa().count_different_bits;
    const auto count_run = [&](std::size_t first, std::size_t words) {
      count_words(result_.channels, words, window + first, bits_.data() + first, window_words_, counts);
    };
    if (xs.size() == x_.kernel) count_run(offset(ys.begin, 0), ys.size() * offset(1, 0));  // whole rows of taps: one run
    else
      for (int ky = ys.begin; ky < ys.end; ++ky) count_run(offset(ky, xs.begin), static_cast<std::size_t>(xs.size()) * words_);
    const int terms = ys.size() * xs.size() * source_.channels;
    for (int q = 0; q < result_.channels; ++q) result[q] = static_cast<float>(is_and ? counts[q] : terms - 2 * counts[q]);
  }

  BinaryConvolutionOp op_;
  Axis y_, x_;
  Shape source_, result_;
  bool counts_bits_;
  int words_;  ///< of a pixel
  std::size_t window_words_;
  std::vector<std::uint64_t> bits_;
  std::vector<float> signs_;
  std::unique_ptr<Correlation> correlation_;
  bool is_packed_ = false;
  std::uint64_t version_ = 0;
};

}  // namespace

std::unique_ptr<Kernel> make_kernel(const BinaryConvolutionOp& op, const OperandShapes& shapes) {
  return std::make_unique<BinaryConvolution>(op, shapes.inputs[0], shapes.outputs[0]);
}

}  // namespace mpsnn::cpu
