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

/// The largest tile of the micro-kernel with operands in the first-level cache: everything that multiplies consists of it.
double measure_flops() {
  const Isa& set = isa();
  const std::size_t columns = set.tile_columns();
  const std::size_t depth = (std::size_t(24) << 10) / (sizeof(float) * columns);  // of a first-level cache of 32 KiB, at least
  constexpr int kCalls = 4000;                                                    // about a millisecond
  const GemmTile tile = set.row_tiles[(set.rows - 1) * set.vectors + set.vectors - 1];
  const std::size_t a_floats = round_up<std::size_t>(set.rows * depth, 16), c_floats = round_up<std::size_t>(set.rows * columns, 16);
  const std::size_t floats = a_floats + depth * columns + c_floats;
  const std::size_t threads = static_cast<std::size_t>(thread_count());
  const AlignedFloats memory(threads * floats);
  std::fill_n(memory.data(), threads * floats, 0.5f);
  double best = 0;
  for (int round = 0; round < kRounds; ++round) {
    const double begin = seconds_now();
    parallel_for(threads, [&](std::size_t task, int) {
      float *a = memory.data() + task * floats, *b = a + a_floats, *c = b + depth * columns;
      for (int call = 0; call < kCalls; ++call) tile(depth, a, depth, b, columns, c, columns, kZeros, static_cast<int>(columns));
    });
    const double flops = 2.0 * set.rows * static_cast<double>(columns * depth) * kCalls * static_cast<double>(threads);
    best = std::max(best, flops / (seconds_now() - begin));
  }
  return best;
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
    peak = {measure_flops(), measure_bytes()};
  }
  return peak;
}

}  // namespace mpsnn::cpu
