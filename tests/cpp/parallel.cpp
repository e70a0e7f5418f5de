// SPDX-License-Identifier: Apache-2.0
#include "core/parallel.hpp"

#include <memory>
#include <thread>

#include "check.hpp"
#include "mpsnn/error.hpp"

using namespace mpsnn;

namespace {

/// Runs `tasks` tasks and returns how often each ran.
std::vector<int> counts(std::size_t tasks) {
  std::vector<int> count(tasks);  // not atomic: two threads with one task are a race that the thread sanitizer sees
  parallel_for(tasks, [&](std::size_t task, int) { ++count[task]; });
  return count;
}

}  // namespace

TEST(every_task_runs_once_whatever_the_thread_count) {
  const int before = thread_count();
  for (int threads = 1; threads <= max_thread_count(); ++threads) {
    set_thread_count(threads);
    for (std::size_t tasks : {0, 1, 2, 3, 7, 64, 1000}) CHECK_EQ(counts(tasks), std::vector<int>(tasks, 1));
  }
  set_thread_count(before);
}

TEST(thread_numbers_index_private_scratch) {
  const int before = thread_count();
  set_thread_count(max_thread_count());
  std::vector<long> sums(max_thread_count());
  for (int repeat = 0; repeat < 50; ++repeat)
    parallel_for(200, [&](std::size_t task, int thread) { sums[thread] += static_cast<long>(task); });
  long total = 0;
  for (long sum : sums) total += sum;
  CHECK_EQ(total, 50L * (199 * 200 / 2));
  set_thread_count(before);
}

TEST(what_tasks_wrote_is_seen_after_the_loop) {
  std::vector<int> values(512);
  for (int round = 1; round <= 200; ++round) {
    parallel_for(values.size(), [&](std::size_t task, int) { values[task] += round; });
    const int expected = round * (round + 1) / 2;
    CHECK_EQ(values, std::vector<int>(values.size(), expected));
  }
}

TEST(loops_inside_tasks_run_too) {
  std::vector<std::vector<int>> inner(16);
  parallel_for(inner.size(), [&](std::size_t task, int) { inner[task] = counts(10); });
  for (const auto& count : inner) CHECK_EQ(count, std::vector<int>(10, 1));
}

TEST(loops_from_several_threads_take_turns) {
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 4; ++caller)
    callers.emplace_back([] {
      for (int repeat = 0; repeat < 50; ++repeat) CHECK_EQ(counts(33), std::vector<int>(33, 1));
    });
  for (std::thread& caller : callers) caller.join();
}

TEST(a_thread_count_out_of_range_is_refused) {
  CHECK_THROWS(set_thread_count(0), OptionError, "thread count");
  CHECK_THROWS(set_thread_count(max_thread_count() + 1), OptionError, std::to_string(max_thread_count()));
}
