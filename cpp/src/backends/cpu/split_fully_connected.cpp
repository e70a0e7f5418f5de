// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstdint>

#include "backends/cpu/convolution_kernels.hpp"
#include "core/parallel.hpp"

// Fully connected layers of some 16 to 64 images on the matrix unit. The weights are most of the memory and serve few images: splitting
// them where they lie, block by block, takes less time than reading a split copy three halves as large.
namespace mpsnn::cpu {
namespace {

using namespace split;

std::uint16_t* elements(void* scratch, std::size_t offset) { return reinterpret_cast<std::uint16_t*>(static_cast<float*>(scratch) + offset); }

/// Transposed: result^T = W x^T, so that the rows of the left operand are those of the weights.
class SplitFullyConnectedForward final : public Kernel {
 public:
  SplitFullyConnectedForward(int inputs, int outputs, int images)
      : inputs_(inputs), outputs_(outputs), images_(images), width_(round_up(images, kColumns)),
        tile_(std::size_t(round_up(inputs, kDepth)) * (kParts * kColumns)) {
    source_offset_ = scratch_.add(tile_ * (width_ / kColumns) / 2);
    thread_floats_ = 2 * kPartsFloats + kMostBlocks * kRowsOfBlock * width_;
    threads_offset_ = scratch_.add(thread_floats_ * max_thread_count());
  }

  std::size_t scratch_bytes() const override { return scratch_.floats() * sizeof(float); }
  std::string algorithm() const override { return std::string("weights in place, ") + isa().name + ", 3 x bfloat16"; }

  void run(const KernelCall& call) override {
    const float *x = call.input<float>(0), *weights = call.input<float>(1), *bias = call.input<float>(2);
    float* y = call.output<float>(0);
    if (!y) return;
    std::uint16_t* source = elements(call.scratch, source_offset_);
    const auto thread_scratch = [&](int thread) { return static_cast<float*>(call.scratch) + threads_offset_ + thread * thread_floats_; };
    parallel_for(ceil_divide(inputs_, kDepth), [&](std::size_t step, int thread) {
      const int begin = static_cast<int>(step) * kDepth, depth = std::min(kDepth, inputs_ - begin);
      float* rows = thread_scratch(thread);
      pack_rows(x + begin, 1, inputs_, depth, images_, rows, width_, width_ - images_);
      isa().matrix_unit->split_pairs(rows, width_, depth, width_, source + step * (kParts * kTile), tile_);
    });
    const int blocks = ceil_divide(outputs_, kRowsOfBlock);
    const int tasks = std::max(ceil_divide(blocks, kMostBlocks), std::min(images_ > kFewImages ? kMostBlocks : kFewestTasks, blocks));
    parallel_for(tasks, [&](std::size_t task, int thread) {
      const Range range{static_cast<int>(part_begin(blocks, task, tasks)), static_cast<int>(part_begin(blocks, task + 1, tasks))};
      multiply(range, weights, source, bias, y, thread_scratch(thread));
    });
  }

 private:
  static constexpr int kRowsOfBlock = 32, kBlock = 1024;  ///< weights that are split together: long stretches come faster from memory
  static constexpr int kMostBlocks = 4, kFewestTasks = 8;
  static constexpr int kFewImages = 64;  ///< beyond, all of the source does not stay in the second-level cache: larger tasks pass over it less often
  static constexpr std::size_t kStride = kBlock | kDepth, kPart = kRowsOfBlock * kStride + kDepth, kPartsFloats = kParts * kPart / 2;

  int block_rows(int block) const { return std::min(kRowsOfBlock, outputs_ - block * kRowsOfBlock); }

  /// The next weights are split, and so fetched, during the product of those before. All blocks take their turn at a chunk of the source.
  void multiply(Range blocks, const float* weights, const std::uint16_t* source, const float* bias, float* y, float* scratch) const {
    const OpenMatrixUnit open(isa().matrix_unit);
    const int chunks = ceil_divide(inputs_, kBlock), count = blocks.size() * chunks;
    const auto rows_at = [&](int i) {
      const int block = blocks.begin + i % blocks.size(), begin = i / blocks.size() * kBlock;
      return SplitRows{weights + std::size_t(block) * kRowsOfBlock * inputs_ + begin, std::size_t(inputs_), std::size_t(block_rows(block)),
                       std::size_t(std::min(kBlock, inputs_ - begin)), elements(scratch, i % 2 * kPartsFloats), kStride, kPart};
    };
    SplitRows rows = rows_at(0);
    isa().matrix_unit->split_rows(rows.x, rows.x_stride, rows.rows, rows.count, rows.to, rows.to_stride, rows.part);
    for (int i = 0; i < count; ++i) {
      const int block = i % blocks.size(), chunk = i / blocks.size();
      const SplitRows next = i + 1 < count ? rows_at(i + 1) : SplitRows{};
      float* sums = scratch + 2 * kPartsFloats + std::size_t(block) * kRowsOfBlock * width_;
      SplitProduct product{};
      product.rows = static_cast<int>(rows.rows);
      product.columns = width_;
      product.steps = ceil_divide(static_cast<int>(rows.count), kDepth);
      product.a = rows.to;
      product.a_stride = kStride;
      product.a_part = kPart;
      product.b = source + std::size_t(chunk * (kBlock / kDepth)) * (kParts * kTile);
      product.b_columns = tile_;
      product.c = sums;
      product.c_stride = width_;
      product.overwrites = chunk == 0;
      product.meanwhile = i + 1 < count ? &next : nullptr;
      isa().matrix_unit->multiply(product);
      if (chunk == chunks - 1) store(blocks.begin + block, sums, bias, y);
      rows = next;
    }
  }

  void store(int block, const float* sums, const float* bias, float* y) const {
    const int first = block * kRowsOfBlock, rows = block_rows(block);
    for (int p = 0; p < images_; ++p) {
      float* to = y + std::size_t(p) * outputs_ + first;
      for (int o = 0; o < rows; ++o) to[o] = sums[std::size_t(o) * width_ + p] + (bias ? bias[first + o] : 0.0f);
    }
  }

  int inputs_, outputs_, images_, width_;
  std::size_t tile_;  ///< elements of a tile of columns
  ScratchLayout scratch_;
  std::size_t source_offset_ = 0, threads_offset_ = 0, thread_floats_ = 0;
};

/// A task owns a stretch of the input channels.
class SplitFullyConnectedDataGradient final : public Kernel {
 public:
  SplitFullyConnectedDataGradient(int inputs, int outputs, int images)
      : inputs_(inputs), outputs_(outputs), images_(images), stride_(round_up(outputs, kDepth) | kDepth),
        part_(round_up(images, kRows) * std::size_t(stride_) + kDepth) {
    incoming_offset_ = scratch_.add(kParts * part_ / 2);
    threads_offset_ = scratch_.add(kThreadFloats * max_thread_count());
  }

  std::size_t scratch_bytes() const override { return scratch_.floats() * sizeof(float); }
  std::string algorithm() const override { return std::string("weights in place, ") + isa().name + ", 3 x bfloat16"; }

  void run(const KernelCall& call) override {
    const float *incoming = call.input<float>(0), *weights = call.input<float>(1), *bias = call.input<float>(2);
    float* result = call.output<float>(0);
    if (!result) return;
    std::uint16_t* left = elements(call.scratch, incoming_offset_);
    parallel_for(images_, [&](std::size_t p, int) {
      isa().matrix_unit->split_rows(incoming + p * outputs_, 0, 1, outputs_, left + p * stride_, 0, part_);
    });
    const int units = ceil_divide(inputs_, kUnit), tasks = std::max(ceil_divide(inputs_, kStretch), std::min(kFewestTasks, units));
    parallel_for(tasks, [&](std::size_t task, int thread) {
      const int first = static_cast<int>(part_begin(units, task, tasks)) * kUnit;
      const int columns = std::min(static_cast<int>(part_begin(units, task + 1, tasks)) * kUnit, inputs_) - first;
      multiply(left, weights + first, columns, bias ? bias + first : nullptr,
               elements(call.scratch, threads_offset_ + thread * kThreadFloats), result + first);
    });
  }

 private:
  static constexpr int kUnit = 2 * kColumns, kStretch = 8 * kUnit, kFewestTasks = 12, kRowBlock = 128;
  static constexpr std::size_t kTileElements = kParts * kRowBlock * kColumns, kThreadFloats = kTileElements * (kStretch / kColumns) / 2;

  void multiply(const std::uint16_t* left, const float* weights, int columns, const float* bias, std::uint16_t* right, float* result) const {
    const OpenMatrixUnit open(isa().matrix_unit);
    for (int begin = 0; begin < outputs_; begin += kRowBlock) {
      const int depth = std::min(kRowBlock, outputs_ - begin);
      isa().matrix_unit->split_pairs(weights + std::size_t(begin) * inputs_, inputs_, depth, columns, right, kTileElements);
      SplitProduct product{};
      product.rows = images_;
      product.columns = columns;
      product.steps = ceil_divide(depth, kDepth);
      product.a = left + begin;
      product.a_stride = stride_;
      product.a_part = part_;
      product.b = right;
      product.b_columns = kTileElements;
      product.c = result;
      product.c_stride = inputs_;
      product.start = begin == 0 ? bias : nullptr;
      product.overwrites = begin == 0;
      product.chains = begin > 0;
      isa().matrix_unit->multiply(product);
    }
  }

  int inputs_, outputs_, images_, stride_;
  std::size_t part_;
  ScratchLayout scratch_;
  std::size_t incoming_offset_ = 0, threads_offset_ = 0;
};

}  // namespace

std::unique_ptr<Kernel> make_split_fully_connected_forward(int inputs, int outputs, int images) {
  return std::make_unique<SplitFullyConnectedForward>(inputs, outputs, images);
}

std::unique_ptr<Kernel> make_split_fully_connected_data_gradient(int inputs, int outputs, int images) {
  return std::make_unique<SplitFullyConnectedDataGradient>(inputs, outputs, images);
}

}  // namespace mpsnn::cpu
