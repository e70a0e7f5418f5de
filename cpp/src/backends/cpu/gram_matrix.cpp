// SPDX-License-Identifier: Apache-2.0
#include "backends/cpu/gemm.hpp"
#include "backends/cpu/kernels.hpp"
#include "backends/cpu/loops.hpp"

namespace mpsnn::cpu {
namespace {

/// Rows of the matrix that one task computes, from its own column on: the rest is the mirror image.
constexpr int kRowBlock = 64;

/// The matrix of every part of the pixels of an image, then their sum.
class Gram final : public Kernel {
 public:
  Gram(float alpha, const Shape& source)
      : alpha_(alpha), source_(source), pixels_(source.height * source.width), blocks_(ceil_divide(source.channels, kRowBlock)) {
    // A part is worth its matrix when it has more pixels than the matrix has rows. From the shape alone: same bits always.
    parts_ = std::clamp(std::min(pixels_ / 2048, pixels_ / std::max(1, source.channels)), 1, 16);
    tail_stride_ = round_up(source.channels, kTail);
  }

  std::size_t scratch_bytes() const override {
    return sizeof(float) * (matrix() * parts_ * source_.images + std::size_t(kTail) * tail_stride_ * max_thread_count());
  }
  std::string algorithm() const override { return std::string("symmetric GEMM ") + isa().name; }

  void run(const KernelCall& call) override {
    float* matrices = static_cast<float*>(call.scratch);
    float* tails = matrices + matrix() * parts_ * source_.images;
    parallel_for(std::size_t(source_.images) * parts_ * blocks_, [&](std::size_t task, int thread) {
      const std::size_t part = task / blocks_;
      multiply(call.input<float>(0), part, static_cast<int>(task % blocks_) * kRowBlock, matrices + part * matrix(),
               tails + std::size_t(thread) * kTail * tail_stride_);
    });
    const std::size_t channels = source_.channels;
    parallel_ranges(source_.images * channels, channels * parts_, [&](std::size_t begin, std::size_t end, int) {
      for (std::size_t row = begin; row < end; ++row)
        finish_row(matrices + row / channels * parts_ * matrix(), row % channels, call.output<float>(0) + row * channels);
    });
  }

 private:
  /// Pixels that are copied where a vector could reach beyond the images: the widest has 16 lanes, a pixel at least one channel.
  static constexpr int kTail = 16;

  std::size_t matrix() const { return std::size_t(source_.channels) * source_.channels; }

  void multiply(const float* x, std::size_t part, int row, float* matrix, float* tail) const {
    const int n = static_cast<int>(part / parts_), channels = source_.channels;
    const int begin = static_cast<int>(part_begin(pixels_, part % parts_, parts_));
    const int end = static_cast<int>(part_begin(pixels_, part % parts_ + 1, parts_));
    // Counted over all images: the last ones may have fewer pixels than a vector has lanes.
    const std::ptrdiff_t safe = std::ptrdiff_t(source_.images - n) * pixels_ - kTail;
    const int whole = static_cast<int>(std::clamp<std::ptrdiff_t>(safe, begin, end));
    const float* image = x + std::size_t(n) * pixels_ * channels;
    const int rows = std::min(kRowBlock, channels - row), columns = channels - row;
    float* to = matrix + std::size_t(row) * channels + row;
    bool is_first = true;
    const auto add = [&](const float* pixels, std::size_t stride, int depth) {
      multiply_transposed(isa(), rows, columns, depth, pixels + row, stride, pixels + row, stride, to, channels, is_first);
      is_first = false;
    };
    for (int pixel = begin; pixel < whole; pixel += kMaxDepth)
      add(image + std::size_t(pixel) * channels, channels, std::min(kMaxDepth, whole - pixel));
    if (whole == end) return;
    for (int pixel = whole; pixel < end; ++pixel) {
      float* copy = tail + std::size_t(pixel - whole) * tail_stride_;
      std::copy_n(image + std::size_t(pixel) * channels, channels, copy);
      std::fill(copy + channels, copy + tail_stride_, 0.0f);
    }
    add(tail, tail_stride_, end - whole);
  }

  void finish_row(const float* matrices, std::size_t row, float* result) const {
    const std::size_t channels = source_.channels, first = row / kRowBlock * kRowBlock;
    for (std::size_t c = 0; c < channels; ++c) {
      const std::size_t at = c < first ? c * channels + row : row * channels + c;
      float sum = matrices[at];
      for (int part = 1; part < parts_; ++part) sum += matrices[part * matrix() + at];
      result[c] = alpha_ * sum;
    }
  }

  float alpha_;
  Shape source_;
  int pixels_, blocks_, parts_, tail_stride_;
};

/// gradient = x * alpha * (E + E transposed), image by image.
class GramMatrixGradient final : public Kernel {
 public:
  GramMatrixGradient(float alpha, const Shape& source)
      : alpha_(alpha), source_(source), packed_(isa(), source.channels, source.channels), pixels_(source.height * source.width) {
    // Matrices of as many images at once as 4 MiB hold, so that small images fill the threads too.
    const std::size_t matrix = std::size_t(source.channels) * source.channels;
    group_ = static_cast<int>(std::clamp<std::size_t>((1 << 20) / std::max<std::size_t>(1, matrix), 1, std::max(1, source.images)));
    ScratchLayout layout;
    zeros_ = layout.add(packed_.padded_columns());
    packed_size_ = round_up<std::size_t>(packed_.count(), 16);
    matrices_ = layout.add(packed_size_ * group_);
    sums_ = layout.add(matrix * group_);
    scratch_floats_ = layout.floats();
  }

  std::size_t scratch_bytes() const override { return sizeof(float) * scratch_floats_; }
  std::string algorithm() const override { return std::string("GEMM ") + isa().name; }

  void run(const KernelCall& call) override {
    float* scratch = static_cast<float*>(call.scratch);
    std::fill_n(scratch + zeros_, packed_.padded_columns(), 0.0f);
    const std::size_t channels = source_.channels, row_tasks = ceil_divide(pixels_, kRowBlock);
    for (int first = 0; first < source_.images; first += group_) {
      const std::size_t images = std::min(group_, source_.images - first);
      parallel_for(images, [&](std::size_t n, int) {
        pack(call.input<float>(0) + (first + n) * channels * channels, scratch + sums_ + n * channels * channels,
             scratch + matrices_ + n * packed_size_);
      });
      parallel_for(images * row_tasks, [&](std::size_t task, int) {
        const std::size_t n = task / row_tasks, pixel = task % row_tasks * kRowBlock;
        const std::size_t at = ((first + n) * pixels_ + pixel) * channels;
        const int rows = std::min(kRowBlock, pixels_ - static_cast<int>(pixel));
        for (int block = 0; block < packed_.blocks(); ++block)
          multiply_rows(isa(), rows, call.input<float>(1) + at + packed_.block_begin(block), channels, packed_,
                        scratch + matrices_ + n * packed_size_, block, {0, packed_.panels()}, call.output<float>(0) + at, channels,
                        block == 0 ? scratch + zeros_ : nullptr);
      });
    }
  }

 private:
  void pack(const float* incoming, float* sums, float* packed) const {
    const int channels = source_.channels;
    for (int k = 0; k < channels; ++k)
      for (int c = 0; c < channels; ++c)
        sums[std::size_t(k) * channels + c] = alpha_ * (incoming[std::size_t(k) * channels + c] + incoming[std::size_t(c) * channels + k]);
    for (int block = 0; block < packed_.blocks(); ++block)
      for (int panel = 0; panel < packed_.panels(); ++panel)
        pack_rows(sums + std::size_t(packed_.block_begin(block)) * channels + panel * isa().tile_columns(), channels, 1,
                  packed_.block_depth(block), packed_.panel_columns(panel), packed + packed_.offset(block, panel),
                  packed_.panel_stride(panel), packed_.panel_stride(panel) - packed_.panel_columns(panel));
  }

  float alpha_;
  Shape source_;
  PackedShape packed_;
  int pixels_, group_;
  std::size_t zeros_, packed_size_, matrices_, sums_, scratch_floats_;
};

}  // namespace

std::unique_ptr<Kernel> make_kernel(const GramMatrixOp& op, const OperandShapes& shapes) {
  return std::make_unique<Gram>(op.alpha, shapes.inputs[0]);
}

std::unique_ptr<Kernel> make_kernel(const GramMatrixGradientOp& op, const OperandShapes& shapes) {
  return std::make_unique<GramMatrixGradient>(op.alpha, shapes.outputs[0]);
}

}  // namespace mpsnn::cpu
