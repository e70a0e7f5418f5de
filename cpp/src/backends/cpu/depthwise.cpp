// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <vector>

#include "backends/cpu/convolution_kernels.hpp"
#include "backends/cpu/loops.hpp"
#include "core/parallel.hpp"

// Depthwise convolutions have too little to multiply for matrices: every pixel is a sum of products of vectors over the channels.
// These kernels are for channel multipliers and clamped edges; all others are in depthwise_lines.cpp.
// With a channel multiplier m > 1, output channel q reads input channel q / m; source vectors are repeated m times first.
namespace mpsnn::cpu {
namespace {

void repeat_channels(const float* from, int channels, int multiplier, float* to) {
  for (int c = 0; c < channels; ++c)
    for (int r = 0; r < multiplier; ++r) *to++ = from[c];
}

/// What the three kernels share. Packed weights are kH x kW x O.
class DepthwiseKernel : public Kernel {
 public:
  DepthwiseKernel(const ConvolutionGeometry& geometry, const WeightLayout& layout, int images)
      : isa_(isa()),
        geometry_(geometry),
        layout_(layout),
        images_(std::max(0, images)),
        taps_(geometry.window.y.kernel * geometry.window.x.kernel),
        channels_(geometry.input_channels),
        outputs_(geometry.output_channels),
        multiplier_(geometry.output_channels / geometry.input_channels),
        clamps_(geometry.edge_mode == ImageEdgeMode::Clamp) {}

  std::string algorithm() const override { return std::string("depthwise, vectors over channels, ") + isa_.name; }

 protected:
  std::ptrdiff_t weight_offset(int output, int tap) const {
    const int x_taps = geometry_.window.x.kernel;
    return output / multiplier_ * layout_.group + output % multiplier_ * layout_.output + tap / x_taps * layout_.y +
           tap % x_taps * layout_.x;
  }

  void pack(const float* weights, float* packed) const {
    parallel_ranges(taps_, outputs_, [&](std::size_t begin, std::size_t end, int) {
      for (std::size_t tap = begin; tap < end; ++tap)
        for (int q = 0; q < outputs_; ++q)
          packed[tap * outputs_ + q] = weights[layout_.offset + weight_offset(q, static_cast<int>(tap))];
    });
  }

  /// Taps of output pixel `o` that read a pixel: with edge mode Clamp, all of them.
  Range reading_taps(const Axis& axis, int o) const { return clamps_ ? Range{0, axis.kernel} : axis.taps_inside(o); }

  const float* pixel(const float* image, const Axis& y, const Axis& x, std::size_t n, int i, int j) const {
    return image + ((n * y.input + clamp_index(i, y.input)) * x.input + clamp_index(j, x.input)) * channels_;
  }

  const Isa& isa_;
  ConvolutionGeometry geometry_;
  WeightLayout layout_;
  std::size_t images_;
  int taps_, channels_, outputs_, multiplier_;
  bool clamps_;
};

class DepthwiseForward final : public DepthwiseKernel {
 public:
  DepthwiseForward(const ConvolutionGeometry& geometry, const WeightLayout& layout, int images)
      : DepthwiseKernel(geometry, layout, images), weights_(std::size_t(taps_) * outputs_) {
    pointers_offset_ = thread_.add(std::size_t(taps_) * 2 * sizeof(float*) / sizeof(float));
    if (multiplier_ > 1) repeated_offset_ = thread_.add(std::size_t(taps_) * outputs_);
  }

  std::size_t scratch_bytes() const override { return thread_.floats() * max_thread_count() * sizeof(float); }

  void run(const KernelCall& call) override {
    const float *x = call.input<float>(0), *bias = call.input<float>(2);
    float* y = call.output<float>(0);
    if (!y) return;
    if (version_.is_stale(call)) pack(call.input<float>(1), weights_.data());
    const Axis &rows = geometry_.window.y, &columns = geometry_.window.x;
    const std::size_t line = std::size_t(std::max(0, columns.output)) * outputs_;
    parallel_ranges(images_ * std::max(0, rows.output), line * taps_, [&](std::size_t begin, std::size_t end, int thread) {
      float* scratch = static_cast<float*>(call.scratch) + thread * thread_.floats();
      for (std::size_t row = begin; row < end; ++row) run_row(row, x, bias, y + row * line, scratch);
    });
  }

 private:
  void run_row(std::size_t row, const float* x, const float* bias, float* y, float* scratch) const {
    const Axis& columns = geometry_.window.x;
    const auto** sources = reinterpret_cast<const float**>(scratch + pointers_offset_);
    const auto** weights = sources + taps_;
    const std::ptrdiff_t step = std::ptrdiff_t(columns.stride) * channels_;
    const bool can_step = multiplier_ == 1 && !clamps_;
    Range previous{-1, -1};
    int terms = 0;
    for (int j = 0; j < columns.output; ++j, y += outputs_) {
      const Range taps = reading_taps(columns, j);
      if (can_step && taps == previous) {
        for (int t = 0; t < terms; ++t) sources[t] += step;
      } else {
        terms = list_taps(row, j, taps, x, sources, weights, scratch + repeated_offset_);
        previous = taps;
      }
      isa_.sum_products(outputs_, terms, sources, weights, bias, y);
    }
  }

  int list_taps(std::size_t row, int j, Range taps_x, const float* x, const float** sources, const float** weights,
                float* repeated) const {
    const Axis &rows = geometry_.window.y, &columns = geometry_.window.x;
    const std::size_t image = row / rows.output;
    const int i = static_cast<int>(row % rows.output);
    const Range taps_y = reading_taps(rows, i);
    int terms = 0;
    for (int ky = taps_y.begin; ky < taps_y.end; ++ky) {
      for (int kx = taps_x.begin; kx < taps_x.end; ++kx, ++terms) {
        sources[terms] = pixel(x, rows, columns, image, rows.tap(i, ky), columns.tap(j, kx));
        weights[terms] = weights_.data() + std::ptrdiff_t(ky * columns.kernel + kx) * outputs_;
        if (multiplier_ == 1) continue;
        repeat_channels(sources[terms], channels_, multiplier_, repeated);
        sources[terms] = repeated;
        repeated += outputs_;
      }
    }
    return terms;
  }

  AlignedFloats weights_;
  PackedVersion version_;
  ScratchLayout thread_;
  std::size_t pointers_offset_ = 0, repeated_offset_ = 0;
};

class DepthwiseDataGradient final : public DepthwiseKernel {
 public:
  DepthwiseDataGradient(const ConvolutionGeometry& geometry, const WeightLayout& layout, int images)
      : DepthwiseKernel(geometry, layout, images), weights_(std::size_t(taps_) * outputs_) {
    y_ = {geometry.window.y, 0};
    x_ = {geometry.window.x, 0};
    folds_ = clamps_ && !(geometry.window.y.is_inside() && geometry.window.x.is_inside());
    if (folds_) {
      y_ = enlarge(geometry.window.y);
      x_ = enlarge(geometry.window.x);
      threads_offset_ = round_up<std::size_t>(images_ * y_.axis.input * x_.axis.input * channels_, 16);
    }
    readers_y_ = readers(y_.axis);
    readers_x_ = readers(x_.axis);
    pointers_offset_ = thread_.add(std::size_t(taps_) * 2 * sizeof(float*) / sizeof(float));
    if (multiplier_ > 1) products_offset_ = thread_.add(outputs_);
  }

  std::size_t scratch_bytes() const override { return (threads_offset_ + thread_.floats() * max_thread_count()) * sizeof(float); }

  void run(const KernelCall& call) override {
    const float *incoming = call.input<float>(0), *bias = call.input<float>(2);
    float* result = call.output<float>(0);
    if (!result) return;
    if (version_.is_stale(call)) pack(call.input<float>(1), weights_.data());
    float* scratch = static_cast<float*>(call.scratch);
    float* target = folds_ ? scratch : result;
    const std::size_t line = std::size_t(x_.axis.input) * channels_;
    parallel_ranges(images_ * y_.axis.input, line * taps_, [&](std::size_t begin, std::size_t end, int thread) {
      for (std::size_t row = begin; row < end; ++row)
        run_row(row, incoming, folds_ ? nullptr : bias, target + row * line,
                scratch + threads_offset_ + thread * thread_.floats());
    });
    const Axis &y = geometry_.window.y, &x = geometry_.window.x;
    if (folds_) fold_repetitions(y_, x_, y.input, x.input, static_cast<int>(images_), channels_, bias, target, result);
  }

 private:
  /// A window that reads a pixel, and with which tap.
  struct Reader {
    int output, tap;
  };

  static std::vector<std::vector<Reader>> readers(const Axis& axis) {
    std::vector<std::vector<Reader>> result(axis.input);
    for (int o = 0; o < axis.output; ++o) {
      const Range taps = axis.taps_inside(o);
      for (int tap = taps.begin; tap < taps.end; ++tap) result[axis.tap(o, tap)].push_back({o, tap});
    }
    return result;
  }

  void run_row(std::size_t row, const float* incoming, const float* bias, float* result, float* scratch) const {
    const Axis &rows = y_.axis, &columns = x_.axis;
    const std::size_t image = row / rows.input;
    const auto** sources = reinterpret_cast<const float**>(scratch + pointers_offset_);
    const auto** weights = sources + taps_;
    for (int j = 0; j < columns.input; ++j, result += channels_) {
      int terms = 0;
      for (const Reader& y : readers_y_[row % rows.input]) {
        for (const Reader& x : readers_x_[j]) {
          sources[terms] = incoming + ((image * rows.output + y.output) * columns.output + x.output) * outputs_;
          weights[terms++] = weights_.data() + std::ptrdiff_t(y.tap * columns.kernel + x.tap) * outputs_;
        }
      }
      if (multiplier_ == 1) {
        isa_.sum_products(channels_, terms, sources, weights, bias, result);
        continue;
      }
      const float* products = scratch + products_offset_;
      isa_.sum_products(outputs_, terms, sources, weights, nullptr, scratch + products_offset_);
      for (int c = 0; c < channels_; ++c) {
        result[c] = bias ? bias[c] : 0.0f;
        for (int r = 0; r < multiplier_; ++r) result[c] += *products++;
      }
    }
  }

  AlignedFloats weights_;
  PackedVersion version_;
  EnlargedAxis y_, x_;
  bool folds_ = false;
  std::vector<std::vector<Reader>> readers_y_, readers_x_;
  ScratchLayout thread_;
  std::size_t threads_offset_ = 0, pointers_offset_ = 0, products_offset_ = 0;
};

/// Parts of whole rows of the incoming gradient, with private sums kH x kW x O that are added up in their order.
class DepthwiseWeightGradient final : public DepthwiseKernel {
 public:
  DepthwiseWeightGradient(const ConvolutionGeometry& geometry, const WeightLayout& layout, int images, bool is_transposed)
      : DepthwiseKernel(geometry, layout, images), is_transposed_(is_transposed), bias_(geometry, images, is_transposed) {
    const Axis &y = geometry.window.y, &x = geometry.window.x;
    rows_ = images_ * std::max(0, y.output);
    columns_ = std::max(0, x.output);
    parts_ = std::clamp<std::size_t>(rows_ * columns_ / kPartPixels, 1, kParts);
    pointers_offset_ = thread_.add(columns_ * 2 * sizeof(float*) / sizeof(float));
    if (multiplier_ > 1) repeated_offset_ = thread_.add(std::size_t(x.input) * outputs_);
    threads_offset_ = scratch_.add(thread_.floats() * max_thread_count());
    sums_offset_ = scratch_.add(parts_ * taps_ * outputs_);
    bias_offset_ = scratch_.add(bias_.scratch_floats());
  }

  std::size_t scratch_bytes() const override { return scratch_.floats() * sizeof(float); }

  void run(const KernelCall& call) override {
    float* scratch = static_cast<float*>(call.scratch);
    bias_.run(call, scratch + bias_offset_);
    float* weights = call.output<float>(0);
    if (!weights) return;
    const float* incoming = call.input<float>(is_transposed_ ? 1 : 0);
    const float* source = call.input<float>(is_transposed_ ? 0 : 1);
    float* sums = scratch + sums_offset_;
    const std::size_t count = std::size_t(taps_) * outputs_;
    parallel_for(parts_, [&](std::size_t part, int thread) {
      std::fill_n(sums + part * count, count, 0.0f);
      for (std::size_t row = part_begin(rows_, part, parts_); row < part_begin(rows_, part + 1, parts_); ++row)
        add_row(row, incoming, source, sums + part * count, scratch + threads_offset_ + thread * thread_.floats());
    });
    parallel_for(taps_, [&](std::size_t tap, int) {
      for (int q = 0; q < outputs_; ++q) {
        float total = 0;
        for (std::size_t part = 0; part < parts_; ++part) total += sums[part * count + tap * outputs_ + q];
        weights[layout_.offset + weight_offset(q, static_cast<int>(tap))] = total;
      }
    });
  }

 private:
  static constexpr std::size_t kPartPixels = 512, kParts = 32;

  void add_row(std::size_t row, const float* incoming, const float* source, float* sums, float* scratch) const {
    const Axis &rows = geometry_.window.y, &columns = geometry_.window.x;
    const std::size_t image = row / rows.output;
    const int i = static_cast<int>(row % rows.output);
    const float* line = incoming + row * columns_ * outputs_;
    const auto** gradients = reinterpret_cast<const float**>(scratch + pointers_offset_);
    const auto** sources = gradients + columns_;
    const Range taps_y = reading_taps(rows, i);
    for (int ky = taps_y.begin; ky < taps_y.end; ++ky) {
      const float* pixels = pixel(source, rows, columns, image, rows.tap(i, ky), 0);
      if (multiplier_ > 1) {
        float* repeated = scratch + repeated_offset_;
        repeat_channels(pixels, columns.input * channels_, multiplier_, repeated);
        pixels = repeated;
      }
      for (int kx = 0; kx < columns.kernel; ++kx) {
        const Range inside = clamps_ ? Range{0, columns.output} : columns.outputs_inside(kx);
        for (int j = inside.begin; j < inside.end; ++j) {
          gradients[j - inside.begin] = line + std::ptrdiff_t(j) * outputs_;
          sources[j - inside.begin] = pixels + std::ptrdiff_t(clamp_index(columns.tap(j, kx), columns.input)) * outputs_;
        }
        float* sum = sums + std::ptrdiff_t(ky * columns.kernel + kx) * outputs_;
        isa_.sum_products(outputs_, inside.size(), gradients, sources, sum, sum);
      }
    }
  }

  bool is_transposed_;
  BiasGradient bias_;
  std::size_t rows_ = 0, columns_ = 0, parts_ = 1;
  ScratchLayout thread_, scratch_;
  std::size_t threads_offset_ = 0, pointers_offset_ = 0, repeated_offset_ = 0, sums_offset_ = 0, bias_offset_ = 0;
};

}  // namespace

std::unique_ptr<Kernel> make_depthwise_forward(const ConvolutionGeometry& geometry, const WeightLayout& layout, int images,
                                               const Epilogue& epilogue) {
  if (has_plain_lines(geometry)) return make_depthwise_lines_forward(geometry, layout, images, epilogue);
  const Window& window = geometry.window;
  return with_epilogue(std::make_unique<DepthwiseForward>(geometry, layout, images), epilogue,
                       pixels_of(images, window.y.output, window.x.output), geometry.output_channels);
}

std::unique_ptr<Kernel> make_depthwise_data_gradient(const ConvolutionGeometry& geometry, const WeightLayout& layout, int images,
                                                     const Epilogue& epilogue) {
  if (has_plain_lines(geometry)) return make_depthwise_lines_data_gradient(geometry, layout, images, epilogue);
  const Window& window = geometry.window;
  return with_epilogue(std::make_unique<DepthwiseDataGradient>(geometry, layout, images), epilogue,
                       pixels_of(images, window.y.input, window.x.input), geometry.input_channels);
}

std::unique_ptr<Kernel> make_depthwise_weight_gradient(const ConvolutionGeometry& geometry, const WeightLayout& layout,
                                                       int images, bool is_transposed) {
  if (has_plain_lines(geometry)) return make_depthwise_lines_weight_gradient(geometry, layout, images, is_transposed);
  return std::make_unique<DepthwiseWeightGradient>(geometry, layout, images, is_transposed);
}

}  // namespace mpsnn::cpu
