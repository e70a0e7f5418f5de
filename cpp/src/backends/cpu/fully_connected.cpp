// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstdint>

#include "backends/cpu/convolution_kernels.hpp"
#include "backends/cpu/loops.hpp"
#include "backends/cpu/matrix_unit_plan.hpp"
#include "core/parallel.hpp"

// Fully connected layers of few images: the weights are most of the memory, so they are read, or their gradient written, once, where
// they lie. Weights O x I, images P x I and P x O.
namespace mpsnn::cpu {
namespace {

constexpr int kBlock = 320;

/// Images for which weights are read where they lie, and outputs that are worth it.
constexpr int kMostImages = 256, kFewestOutputs = 64;
/// Splitting a weight for the matrix unit costs as much as its products with this many images.
constexpr int kSplitImages = 32;
/// A weight gradient adds up so many in vector registers, and more than that where there are few outputs.
constexpr int kFewImages = 16, kFewOutputs = 16;

/// Transposed: result^T = W x^T, so that the rows of the left operand are those of the weights.
class FullyConnectedForward final : public Kernel {
 public:
  FullyConnectedForward(int inputs, int outputs, int images)
      : isa_(isa()), inputs_(inputs), outputs_(outputs), images_(images), vectors_(ceil_divide(images, isa_.lanes)) {
    rows_ = isa_.piece_rows[vectors_ - 1];
    blocks_ = ceil_divide(inputs, kBlock);
    source_offset_ = scratch_.add(std::size_t(inputs) * width());
    sums_offset_ = scratch_.add(std::size_t(outputs) * width());
  }

  std::size_t scratch_bytes() const override { return scratch_.floats() * sizeof(float); }
  std::string algorithm() const override {
    return "weights in place, " + std::to_string(rows_) + "x" + std::to_string(width()) + " " + isa_.name;
  }

  void run(const KernelCall& call) override {
    const float *x = call.input<float>(0), *weights = call.input<float>(1), *bias = call.input<float>(2);
    float *y = call.output<float>(0), *source = static_cast<float*>(call.scratch) + source_offset_,
          *sums = static_cast<float*>(call.scratch) + sums_offset_;
    if (!y) return;
    parallel_for(blocks_, [&](std::size_t block, int) {
      const int begin = block_begin(block), depth = block_begin(block + 1) - begin;
      pack_rows(x + begin, 1, inputs_, depth, images_, source + std::size_t(begin) * width(), width(), width() - images_);
    });
    const int tiles = ceil_divide(outputs_, rows_), tasks = std::min(kTasks, tiles);
    parallel_for(tasks, [&](std::size_t task, int) {
      const int begin = static_cast<int>(part_begin(outputs_, task, tasks)), end = static_cast<int>(part_begin(outputs_, task + 1, tasks));
      multiply(weights, source, {begin, end}, sums);
      for (int o = begin; o < end; ++o)
        for (int p = 0; p < images_; ++p) y[std::size_t(p) * outputs_ + o] = sums[std::size_t(o) * width() + p] + (bias ? bias[o] : 0.0f);
    });
  }

 private:
  static constexpr int kTasks = 32;
  int width() const { return vectors_ * isa_.lanes; }
  int block_begin(std::size_t block) const { return static_cast<int>(part_begin(inputs_, block, blocks_)); }

  /// A few rows of the weights at a time, from their beginning to their end.
  void multiply(const float* weights, const float* source, Range rows, float* sums) const {
    const std::ptrdiff_t start = 0;
    const int tiles = ceil_divide(rows.size(), rows_);
    for (int tile = 0; tile < tiles; ++tile) {
      const int o = rows.begin + static_cast<int>(part_begin(rows.size(), tile, tiles));
      const int count = rows.begin + static_cast<int>(part_begin(rows.size(), tile + 1, tiles)) - o;
      for (int block = 0; block < blocks_; ++block) {
        const int begin = block_begin(block);
        PieceProduct product{.a = weights + std::size_t(o) * inputs_ + begin,
                             .a_stride = std::size_t(inputs_),
                             .pieces = &start,
                             .piece_count = 1,
                             .piece_depth = std::size_t(block_begin(block + 1) - begin),
                             .b = source + std::size_t(begin) * width(),
                             .c = sums + std::size_t(o) * width(),
                             .c_stride = std::size_t(width()),
                             .start = block == 0 ? kZeros : nullptr,
                             .columns = width()};
        isa_.piece_tiles[vectors_ - 1][count - 1](product);
      }
    }
  }

  const Isa& isa_;
  int inputs_, outputs_, images_, vectors_, rows_ = 1, blocks_ = 1;
  ScratchLayout scratch_;
  std::size_t source_offset_ = 0, sums_offset_ = 0;
};

/// Images that fill half a vector at most: rows of the weights times images instead.
class FullyConnectedRows final : public Kernel {
 public:
  FullyConnectedRows(int inputs, int outputs, int images)
      : isa_(isa()), inputs_(inputs), outputs_(outputs), images_(images), steps_(ceil_divide(inputs, isa_.lanes)) {}

  std::size_t scratch_bytes() const override { return std::size_t(steps_) * step() * sizeof(float); }
  std::string algorithm() const override { return std::string("weights in place, row by row, ") + isa_.name; }

  void run(const KernelCall& call) override {
    const float *x = call.input<float>(0), *weights = call.input<float>(1), *bias = call.input<float>(2);
    float *y = call.output<float>(0), *source = static_cast<float*>(call.scratch);
    if (!y) return;
    parallel_ranges(steps_, step(), [&](std::size_t begin, std::size_t end, int) {
      for (std::size_t i = begin; i < end; ++i)
        for (int p = 0; p < images_; ++p) {
          const int first = static_cast<int>(i) * isa_.lanes, count = std::min(isa_.lanes, inputs_ - first);
          float* to = source + i * step() + p * isa_.lanes;
          std::copy_n(x + std::size_t(p) * inputs_ + first, count, to);
          std::fill(to + count, to + isa_.lanes, 0.0f);
        }
    });
    const int tasks = std::min(kTasks, outputs_);
    parallel_for(tasks, [&](std::size_t task, int) {
      const std::size_t begin = part_begin(outputs_, task, tasks), end = part_begin(outputs_, task + 1, tasks);
      isa_.row_products({.a = weights + begin * inputs_,
                         .b = source,
                         .start = bias ? bias + begin : nullptr,
                         .result = y + begin,
                         .rows = end - begin,
                         .images = std::size_t(images_),
                         .depth = std::size_t(inputs_),
                         .a_stride = std::size_t(inputs_),
                         .result_stride = std::size_t(outputs_)});
    });
  }

 private:
  static constexpr int kTasks = 32;
  std::size_t step() const { return std::size_t(images_) * isa_.lanes; }

  const Isa& isa_;
  int inputs_, outputs_, images_, steps_;
};

/// A task owns a stretch of the input channels; sixteen rows of the weights at a time are added to it.
class FullyConnectedDataGradient final : public Kernel {
 public:
  FullyConnectedDataGradient(int inputs, int outputs, int images)
      : inputs_(inputs), outputs_(outputs), images_(images), stretch_(images > kFewImages ? kStretch / 2 : kStretch) {}
  std::string algorithm() const override { return std::string("weights in place, row by row, ") + isa().name; }

  void run(const KernelCall& call) override {
    const float *incoming = call.input<float>(0), *weights = call.input<float>(1), *bias = call.input<float>(2);
    float* result = call.output<float>(0);
    if (!result) return;
    parallel_for(ceil_divide(inputs_, stretch_), [&](std::size_t task, int) {
      const int begin = static_cast<int>(task) * stretch_, count = std::min(stretch_, inputs_ - begin);
      alignas(64) float sums[kFewImages * kStretch];
      for (int p = 0; p < images_; ++p) {
        float* to = sums + p * stretch_;
        if (bias) std::copy_n(bias + begin, count, to);
        else std::fill_n(to, count, 0.0f);
      }
      for (int o = 0; o < outputs_; o += kRows)
        isa().weighted_rows({.b = weights + std::size_t(o) * inputs_ + begin,
                             .factors = incoming + o,
                             .result = sums,
                             .images = std::size_t(images_),
                             .columns = std::size_t(count),
                             .depth = std::size_t(std::min(kRows, outputs_ - o)),
                             .b_stride = std::size_t(inputs_),
                             .factor_stride = std::size_t(outputs_),
                             .result_stride = std::size_t(stretch_)});
      for (int p = 0; p < images_; ++p) std::copy_n(sums + p * stretch_, count, result + std::size_t(p) * inputs_ + begin);
    });
  }

 private:
  static constexpr int kStretch = 512, kRows = 16;  ///< sums of 16 images, 32 KiB, stay in the first-level cache
  int inputs_, outputs_, images_, stretch_;
};

/// Outer products. A large gradient of few images is written past the caches, which it would only sweep; a small one in pieces whose images
/// stay in the first-level cache.
class FullyConnectedWeightGradient final : public Kernel {
 public:
  FullyConnectedWeightGradient(int inputs, int outputs, int images, bool streams)
      : inputs_(inputs), outputs_(outputs), images_(images), streams_(streams), columns_(streams ? inputs : kColumns) {}
  std::size_t scratch_bytes() const override { return pixel_sum_floats(images_, outputs_) * sizeof(float); }
  std::string algorithm() const override { return std::string("outer products, ") + (streams_ ? "streamed, " : "") + isa().name; }

  void run(const KernelCall& call) override {
    const float *incoming = call.input<float>(0), *x = call.input<float>(1);
    if (float* bias = call.output<float>(1)) sum_pixels(incoming, images_, outputs_, static_cast<float*>(call.scratch), bias);
    float* weights = call.output<float>(0);
    if (!weights) return;
    const std::size_t pieces = ceil_divide(inputs_, columns_);
    parallel_for(ceil_divide(outputs_, kRows) * pieces, [&](std::size_t task, int) {
      const int first = static_cast<int>(task / pieces) * kRows, rows = std::min(kRows, outputs_ - first);
      const int begin = static_cast<int>(task % pieces) * columns_, columns = std::min(columns_, inputs_ - begin);
      isa().outer_products(rows, columns, images_, incoming + first, outputs_, x + begin, inputs_,
                           weights + std::size_t(first) * inputs_ + begin, inputs_, streams_);
    });
  }

 private:
  static constexpr int kRows = 16, kColumns = 128;
  int inputs_, outputs_, images_;
  bool streams_;
  int columns_;  ///< of a piece
};

/// Weights whose gradient is worth streaming.
constexpr std::size_t kStreamedFloats = std::size_t(2) << 20;

bool splits_forward(int images) { return isa().matrix_unit && images > kSplitImages; }
bool splits_data_gradient(int images) { return isa().matrix_unit && images > kSplitImages; }
bool splits_weight_gradient(int outputs, int images) { return isa().matrix_unit && images > kFewImages && outputs > kFewOutputs; }
bool has_half_vectors(int images) { return 2 * images <= isa().lanes; }

}  // namespace

std::string fully_connected_obstacle(ConvolutionPass pass, int outputs, int images) {
  int most = kMostImages;
  if (!isa().matrix_unit && pass == ConvolutionPass::forward) most = isa().lanes * (isa().piece_rows[3] > 0 ? 4 : isa().piece_rows[2] > 0 ? 3 : 2);
  if (!isa().matrix_unit && pass == ConvolutionPass::data_gradient) most = kSplitImages;
  if (images > most) return "more than " + std::to_string(most) + " pixels";
  const bool needs_outputs = pass == ConvolutionPass::forward || (pass == ConvolutionPass::data_gradient && images > kSplitImages);
  return needs_outputs && outputs < kFewestOutputs ? "few outputs" : "";
}

// Cycles for a weight: reading it once takes 0.5 to 0.75, splitting it for the matrix unit 1.5, writing its gradient 1.
double fully_connected_cycles(ConvolutionPass pass, int inputs, int outputs, int images) {
  const double weights = double(inputs) * outputs;
  switch (pass) {
    case ConvolutionPass::forward:
      if (splits_forward(images)) return (1.2 + images / 30.0) * weights;
      return has_half_vectors(images) ? 0.75 * weights : (0.5 + 0.6 * ceil_divide(images, isa().lanes)) * weights;
    case ConvolutionPass::data_gradient:
      return splits_data_gradient(images) ? (2 + images / 47.0) * weights : std::max(0.75, 1.2 * images / isa().lanes) * weights;
    case ConvolutionPass::weight_gradient: break;
  }
  if (!splits_weight_gradient(outputs, images)) return (0.2 + 0.8 * images / isa().lanes) * weights;
  const ConvolutionGeometry geometry{.input_channels = inputs, .output_channels = outputs};
  return weights + WeightGradientPlan(geometry, natural_layout(geometry), images).cycles;
}

std::unique_ptr<Kernel> make_fully_connected(ConvolutionPass pass, int inputs, int outputs, int images) {
  switch (pass) {
    case ConvolutionPass::forward:
      if (splits_forward(images)) return make_split_fully_connected_forward(inputs, outputs, images);
      if (has_half_vectors(images)) return std::make_unique<FullyConnectedRows>(inputs, outputs, images);
      return std::make_unique<FullyConnectedForward>(inputs, outputs, images);
    case ConvolutionPass::data_gradient:
      if (splits_data_gradient(images)) return make_split_fully_connected_data_gradient(inputs, outputs, images);
      return std::make_unique<FullyConnectedDataGradient>(inputs, outputs, images);
    case ConvolutionPass::weight_gradient: break;
  }
  if (splits_weight_gradient(outputs, images)) {
    const ConvolutionGeometry geometry{.input_channels = inputs, .output_channels = outputs};
    return make_matrix_unit_weight_gradient(geometry, natural_layout(geometry), images, false);
  }
  const bool streams = std::size_t(inputs) * outputs >= kStreamedFloats;
  return std::make_unique<FullyConnectedWeightGradient>(inputs, outputs, images, streams);
}

}  // namespace mpsnn::cpu
