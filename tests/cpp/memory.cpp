// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <fstream>

#include <unistd.h>

#include "check.hpp"
#include "training_network.hpp"

using namespace mpsnn;
using namespace mpsnn::testing;

namespace {

#ifndef __has_feature  // GCC has macros instead
#define __has_feature(feature) 0
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
// Sanitizers keep what is freed, so resident memory says nothing; the leak checker looks instead.
constexpr bool kIsResidentMeaningful = false;
#else
constexpr bool kIsResidentMeaningful = true;
#endif
constexpr int kWarmUp = 100, kSteps = 1000;

long resident_bytes() {
  long total_pages = 0, resident_pages = 0;
  std::ifstream("/proc/self/statm") >> total_pages >> resident_pages;
  return resident_pages * sysconf(_SC_PAGESIZE);
}

/// Growth of resident memory from step kWarmUp to step kSteps.
template <class Step>
long growth(Step step) {
  long before = 0;
  for (int i = 0; i < kSteps; ++i) {
    if (i <= kWarmUp) before = resident_bytes();  // looked at before each, because the first look itself takes pages
    step(i);
  }
  return std::max(0L, resident_bytes() - before);
}

// The smallest thing that a step hands out is its losses. Leaking those alone would show.
constexpr long kLeakOfLosses = (kSteps - kWarmUp) * long(kBatch * sizeof(float));

}  // namespace

TEST(a_thousand_steps_leave_resident_memory_flat) {
  for (const char* name : {"cpu", "reference"})
    for (NNTrainingStyle style : {NNTrainingStyle::UpdateDeviceCPU, NNTrainingStyle::UpdateDeviceGPU}) {
      Network network(device(name), Optimizer::adam, style);
      double loss = 0;
      const long grown = growth([&](int step) {
        const Batch batch = draw_batch(step);
        network.run(batch);
        loss = batch.loss();
      });
      CHECK(std::isfinite(loss));
      if (kIsResidentMeaningful) CHECK_NEAR(grown, 0, kLeakOfLosses);
    }
}

TEST(a_thousand_steps_on_a_queue_leave_resident_memory_flat) {
  Network network(default_device());
  auto queue = std::make_shared<CommandQueue>(default_device());
  CommandBufferPtr last;
  const long grown = growth([&](int step) {
    const Batch batch = draw_batch(step);
    if (last) last->wait_until_completed();
    last = queue->command_buffer();
    network.training().encode(*last, {batch.images}, {batch.labels});
    last->commit();
  });
  last->wait_until_completed();
  CHECK_EQ(network.training().encode_count(), std::uint64_t(kSteps));
  if (kIsResidentMeaningful) CHECK_NEAR(grown, 0, kLeakOfLosses);
}
