// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <chrono>
#include <mutex>

#include "backends/cpu/gemm.hpp"
#include "backends/cpu/kernels.hpp"
#include "core/parallel.hpp"

/// What plan() and profile() compare with. Other processes only ever make a measurement slower: the best of a few counts.
namespace mpsnn::cpu {
namespace {

constexpr int kRounds = 6;

double seconds_now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

/// The best of kRounds rounds in which every thread calls `product` kCalls times, of `flops` each, with `floats` of its own.
template <class Product>
double measure_products(double flops, std::size_t floats, Product product) {
  constexpr int kCalls = 4000;  // about a millisecond
  const std::size_t threads = static_cast<std::size_t>(thread_count());
  const AlignedFloats memory(threads * floats);
  std::fill_n(memory.data(), threads * floats, 0.5f);
  double best = 0;
  for (int round = 0; round < kRounds; ++round) {
    const double begin = seconds_now();
    parallel_for(threads, [&](std::size_t task, int) {
      const OpenMatrixUnit open(isa().matrix_unit);
      for (int call = 0; call < kCalls; ++call) product(memory.data() + task * floats);
    });
    best = std::max(best, flops * kCalls * static_cast<double>(threads) / (seconds_now() - begin));
  }
  return best;
}

/// The largest tile of the micro-kernel with operands in the first-level cache: everything that multiplies consists of it.
double measure_multiply_adds() {
  const Isa& set = isa();
  const std::size_t columns = set.tile_columns();
  const std::size_t depth = (std::size_t(24) << 10) / (sizeof(float) * columns);  // of a first-level cache of 32 KiB, at least
  const GemmTile tile = set.row_tiles[(set.rows - 1) * set.vectors + set.vectors - 1];
  const std::size_t a_floats = round_up<std::size_t>(set.rows * depth, 16), c_floats = round_up<std::size_t>(set.rows * columns, 16);
  return measure_products(2.0 * set.rows * static_cast<double>(columns * depth), a_floats + depth * columns + c_floats, [&](float* a) {
    float *b = a + a_floats, *c = b + depth * columns;
    tile(depth, a, depth, b, columns, c, columns, kZeros, static_cast<int>(columns));
  });
}

/// Products of float32 numbers in the matrix unit, four tiles of sums at a time.
double measure_matrix_unit() {
  constexpr int kSide = 2 * split::kRows, kSteps = 2;
  constexpr std::size_t kStride = kSteps * split::kDepth, kPart = kSide * kStride, kColumnTile = kSteps * split::kParts * split::kTile;
  constexpr std::size_t kFloats = (split::kParts * kPart + 2 * kColumnTile) / 2;  // two elements in each
  return measure_products(2.0 * kSide * kSide * kStride, kFloats + kSide * kSide, [&](float* memory) {
    const auto* a = reinterpret_cast<const std::uint16_t*>(memory);
    isa().matrix_unit->multiply({.rows = kSide, .columns = kSide, .steps = kSteps, .a = a, .a_stride = kStride, .a_part = kPart, .offsets = nullptr,
                                 .b = a + split::kParts * kPart, .b_columns = kColumnTile, .c = memory + kFloats, .c_stride = kSide, .start = nullptr,
                                 .overwrites = true});
  });
}

/// One image read and another written, larger than most caches.
double measure_bytes() {
  constexpr std::size_t kFloats = std::size_t(8) << 20, kTask = 1 << 16;
  const AlignedFloats x(kFloats), y(kFloats);
  const auto copy = [&](std::size_t task, int) {
    isa().neuron({CNNNeuronType::ReLU, 0, 0, 0}, x.data() + task * kTask, y.data() + task * kTask, kTask);
  };
  std::fill_n(x.data(), kFloats, 1.0f);
  parallel_for(kFloats / kTask, copy);  // touches the pages
  double best = 0;
  for (int round = 0; round < kRounds; ++round) {
    const double begin = seconds_now();
    parallel_for(kFloats / kTask, copy);
    best = std::max(best, 2.0 * sizeof(float) * kFloats / (seconds_now() - begin));
  }
  return best;
}

}  // namespace

MachinePeak machine_peak() {
  static std::mutex mutex;
  static MachinePeak peak;
  static int threads = 0;
  const std::lock_guard lock(mutex);
  if (threads != thread_count()) {
    threads = thread_count();
    peak = {std::max(measure_multiply_adds(), isa().matrix_unit ? measure_matrix_unit() : 0.0), measure_bytes()};
  }
  return peak;
}

}  // namespace mpsnn::cpu
