// SPDX-License-Identifier: Apache-2.0
#include <bit>
#include <cmath>
#include <cstdint>
#include <vector>

#include "backends/cpu/kernels.hpp"
#include "backends/cpu/loops.hpp"

namespace mpsnn::cpu {
namespace {

/// For each index of a padded dimension what it reads, and for each element its readers.
struct PaddedDimension {
  std::vector<int> sources;
  std::vector<std::vector<int>> readers;

  PaddedDimension(int before, int size, int padded_size, ImageEdgeMode mode) : readers(size) {
    for (int i = 0; i < padded_size; ++i) {
      const int source = padded_index(i - before, size, mode);
      sources.push_back(source);
      if (source >= 0) readers[source].push_back(i);
    }
  }
};

/// Result channels [to, to + count) that read the source channels from `from` on, or the fill value where `from` is -1.
struct ChannelRun {
  int to, from, count;
};

std::vector<ChannelRun> channel_runs(const PaddedDimension& channels) {
  std::vector<ChannelRun> runs;
  for (int c = 0; c < static_cast<int>(channels.sources.size()); ++c) {
    const int source = channels.sources[c];
    const bool follows = !runs.empty() && (source < 0 ? runs.back().from < 0 : runs.back().from >= 0 && runs.back().from + runs.back().count == source);
    if (follows) ++runs.back().count;
    else runs.push_back({c, source, 1});
  }
  return runs;
}

/// A padding resolved for fixed shapes.
struct Padding {
  PaddedDimension y, x;
  std::vector<ChannelRun> channels;
  Shape source, result;
  float fill;

  Padding(const PadOp& op, const Shape& source_, const Shape& result_)
      : y(op.before_y, source_.height, result_.height, op.edge_mode), x(op.before_x, source_.width, result_.width, op.edge_mode),
        channels(channel_runs(PaddedDimension(op.before_channels, source_.channels, result_.channels, op.edge_mode))), source(source_),
        result(result_), fill(op.edge_mode == ImageEdgeMode::Constant ? op.fill_value : 0.0f) {}

  void copy_row(const float* image, int i, float* to) const {
    const std::size_t line = static_cast<std::size_t>(result.width) * result.channels;
    if (y.sources[i] < 0) return static_cast<void>(std::fill_n(to, line, fill));
    const float* row = image + static_cast<std::size_t>(y.sources[i]) * source.width * source.channels;
    for (int j = 0; j < result.width; ++j, to += result.channels) {
      if (x.sources[j] < 0) {
        std::fill_n(to, result.channels, fill);
        continue;
      }
      const float* from = row + static_cast<std::size_t>(x.sources[j]) * source.channels;
      for (const ChannelRun& run : channels) {
        if (run.from < 0) std::fill_n(to + run.to, run.count, fill);
        else std::copy_n(from + run.from, run.count, to + run.to);
      }
    }
  }

  /// Row `i` of the source's gradient: the sum of what all its readers bring.
  void gather_row(const float* incoming, int i, float* gradient) const {
    for (int j = 0; j < source.width; ++j, gradient += source.channels) {
      std::fill_n(gradient, source.channels, 0.0f);
      for (int yy : y.readers[i])
        for (int xx : x.readers[j]) {
          const float* pixel = incoming + (static_cast<std::size_t>(yy) * result.width + xx) * result.channels;
          for (const ChannelRun& run : channels)
            if (run.from >= 0) add(pixel + run.to, gradient + run.from, run.count);
        }
    }
  }

 private:
  static void add(const float* __restrict values, float* __restrict sums, int count) {
    for (int c = 0; c < count; ++c) sums[c] += values[c];
  }
};

/// The nearest half, ties to the even one, without branches.
float rounded_to_half(float x) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(x), sign = bits & 0x80000000u, magnitude = bits ^ sign;
  // Below 2^-14 halves are 2^-24 apart, as floats in [0.5, 1) are: adding 0.5 rounds there.
  const float small = (std::bit_cast<float>(magnitude) + 0.5f) - 0.5f;
  const std::uint32_t normal = (magnitude + 0xfffu + ((magnitude >> 13) & 1u)) & ~0x1fffu;
  std::uint32_t rounded = magnitude < 0x38800000u ? std::bit_cast<std::uint32_t>(small) : normal;
  rounded = rounded > 0x477fe000u ? 0x7f800000u : rounded;  // beyond 65504: infinity
  rounded = magnitude > 0x7f800000u ? magnitude : rounded;  // NaN
  return std::bit_cast<float>(rounded | sign);
}

/// The nearest of `steps` + 1 values from 0 to 1; a NaN becomes 0. In double the product is exact, so ties are ties.
float rounded_to_steps(float x, double steps) {
  constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52
  const float inside = x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f;
  return static_cast<float>(((static_cast<double>(inside) * steps + kRound) - kRound) / steps);
}

template <class Function>
std::unique_ptr<Kernel> map_kernel(std::size_t count, Function function) {
  return function_kernel([count, function](const KernelCall& call) {
    parallel_ranges(count, 2, [&](std::size_t begin, std::size_t end, int) {
      const float* __restrict x = call.input<float>(0);
      float* __restrict y = call.output<float>(0);
      for (std::size_t i = begin; i < end; ++i) y[i] = function(x[i]);
    });
  });
}

}  // namespace

std::unique_ptr<Kernel> make_kernel(const ReshapeOp&, const OperandShapes& shapes) {
  return function_kernel([count = shapes.outputs[0].count()](const KernelCall& call) {
    if (call.input<float>(0) == call.output<float>(0)) return;  // the plan gave both one place
    parallel_ranges(count, 1, [&](std::size_t begin, std::size_t end, int) {
      std::copy(call.input<float>(0) + begin, call.input<float>(0) + end, call.output<float>(0) + begin);
    });
  });
}

std::unique_ptr<Kernel> make_kernel(const PadOp& op, const OperandShapes& shapes) {
  return function_kernel([padding = Padding(op, shapes.inputs[0], shapes.outputs[0])](const KernelCall& call) {
    const std::size_t height = padding.result.height, line = static_cast<std::size_t>(padding.result.width) * padding.result.channels;
    parallel_ranges(padding.result.images * height, line, [&](std::size_t begin, std::size_t end, int) {
      for (std::size_t row = begin; row < end; ++row)
        padding.copy_row(call.input<float>(0) + row / height * padding.source.image_count(), static_cast<int>(row % height),
                         call.output<float>(0) + row * line);
    });
  });
}

std::unique_ptr<Kernel> make_kernel(const PadGradientOp& op, const OperandShapes& shapes) {
  return function_kernel([padding = Padding(op.forward, shapes.outputs[0], shapes.inputs[0])](const KernelCall& call) {
    const std::size_t height = padding.source.height, line = static_cast<std::size_t>(padding.source.width) * padding.source.channels;
    parallel_ranges(padding.source.images * height, 2 * line, [&](std::size_t begin, std::size_t end, int) {
      for (std::size_t row = begin; row < end; ++row)
        padding.gather_row(call.input<float>(0) + row / height * padding.result.image_count(), static_cast<int>(row % height),
                           call.output<float>(0) + row * line);
    });
  });
}

std::unique_ptr<Kernel> make_kernel(const RoundOp& op, const OperandShapes& shapes) {
  const std::size_t count = shapes.outputs[0].count();
  switch (op.format) {
    case ImageFeatureChannelFormat::Float16: return map_kernel(count, [](float x) { return rounded_to_half(x); });
    case ImageFeatureChannelFormat::Unorm8: return map_kernel(count, [](float x) { return rounded_to_steps(x, 255); });
    case ImageFeatureChannelFormat::Unorm16: return map_kernel(count, [](float x) { return rounded_to_steps(x, 65535); });
    default: return make_kernel(ReshapeOp{}, shapes);
  }
}

}  // namespace mpsnn::cpu
