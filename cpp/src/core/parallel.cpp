// SPDX-License-Identifier: Apache-2.0
#include "core/parallel.hpp"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "mpsnn/error.hpp"

namespace mpsnn {
namespace {

thread_local bool is_inside_task = false;

int threads_from_environment() {
  const char* text = std::getenv("MPSNN_NUM_THREADS");
  return text ? std::atoi(text) : 0;
}

/// Leaves a core's execution units to its sibling for some 100 cycles.
void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#endif
}

int hardware_threads() { return std::max(1u, std::thread::hardware_concurrency()); }

/// Persistent workers. Each thread begins with a stretch of the tasks of its own, always the same one, so that what an operation leaves in
/// a core's cache is mostly what the next one reads there; then it helps the others. One loop runs at a time.
class ThreadPool {
 public:
  static ThreadPool& instance() {
    // Never destroyed: worker threads may still be parked in it when static destructors run.
    static ThreadPool* pool = new ThreadPool;
    return *pool;
  }

  int thread_count() const { return thread_count_; }

  void set_thread_count(int count) { thread_count_ = count; }

  void run(std::size_t task_count, detail::TaskBody call, void* body) {
    std::lock_guard one_loop(loop_mutex_);
    const int helpers = static_cast<int>(std::min<std::size_t>(thread_count_, task_count)) - 1;
    start_workers(helpers);
    call_ = call;
    body_ = body;
    sharers_ = helpers + 1;
    for (int i = 0; i < sharers_; ++i) {
      shares_[i].next.store(first_own_task(task_count, i, sharers_), std::memory_order_relaxed);
      shares_[i].end = first_own_task(task_count, i + 1, sharers_);
    }
    {
      std::lock_guard lock(mutex_);
      wanted_ = helpers;
      busy_.store(helpers, std::memory_order_relaxed);
      generation_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    work(0);
    // Loops are short: the others finish within microseconds, sooner than a sleep would take. Giving the core away at once would
    // cost a time slice wherever other processes wait for it.
    for (int i = 0; busy_.load(std::memory_order_acquire) != 0; ++i) i < 2000 ? pause() : std::this_thread::yield();
  }

 private:
  void start_workers(int count) {
    while (static_cast<int>(workers_.size()) < count) {
      const int index = static_cast<int>(workers_.size()) + 1;
      const unsigned seen = generation_.load(std::memory_order_relaxed);
      workers_.emplace_back([this, index, seen] { worker(index, seen); });
      workers_.back().detach();
    }
  }

  void worker(int index, unsigned seen) {
    for (;;) {
      wait_for_loop(seen);
      bool takes_part;
      {
        std::lock_guard lock(mutex_);
        seen = generation_.load(std::memory_order_relaxed);
        takes_part = index <= wanted_;
      }
      if (!takes_part) continue;
      work(index);
      busy_.fetch_sub(1, std::memory_order_release);
    }
  }

  void wait_for_loop(unsigned seen) {
    // A step is a row of short loops: look a few thousand times (some 20 microseconds) before sleeping.
    for (int i = 0; i < 4000; ++i) {
      if (generation_.load(std::memory_order_acquire) != seen) return;
      pause();
    }
    std::unique_lock lock(mutex_);
    wake_.wait(lock, [&] { return generation_.load(std::memory_order_relaxed) != seen; });
  }

  void work(int thread) {
    is_inside_task = true;
    for (int i = 0; i < sharers_; ++i) {
      Share& share = shares_[(thread + i) % sharers_];
      for (std::size_t task; (task = share.next.fetch_add(1, std::memory_order_relaxed)) < share.end;) call_(body_, task, thread);
    }
    is_inside_task = false;
  }

  struct alignas(64) Share {
    std::atomic<std::size_t> next{0};
    std::size_t end = 0;
  };

  std::mutex loop_mutex_, mutex_;
  std::condition_variable wake_;
  std::vector<std::thread> workers_;
  std::atomic<unsigned> generation_{0};
  std::atomic<int> busy_{0};
  std::vector<Share> shares_{static_cast<std::size_t>(max_thread_count())};
  int sharers_ = 1;
  detail::TaskBody call_ = nullptr;
  void* body_ = nullptr;
  int wanted_ = 0;
  std::atomic<int> thread_count_{std::clamp(threads_from_environment() > 0 ? threads_from_environment() : hardware_threads(), 1,
                                            max_thread_count())};
};

}  // namespace

void detail::run_tasks(std::size_t task_count, TaskBody call, void* body) {
  if (task_count == 0) return;
  if (task_count == 1 || is_inside_task || thread_count() == 1) {
    for (std::size_t task = 0; task < task_count; ++task) call(body, task, 0);
    return;
  }
  ThreadPool::instance().run(task_count, call, body);
}

int thread_count() { return ThreadPool::instance().thread_count(); }

int max_thread_count() {
  // At least 8, so that results can be compared between thread counts on a small machine.
  static const int count = std::max({8, hardware_threads(), threads_from_environment()});
  return count;
}

void set_thread_count(int count) {
  if (count < 1 || count > max_thread_count())
    throw OptionError("the thread count must be from 1 to " + std::to_string(max_thread_count()) + ", not " + std::to_string(count) + ".",
                      {.expected = "1 to " + std::to_string(max_thread_count()), .actual = std::to_string(count),
                       .hint = "set MPSNN_NUM_THREADS before the process starts to raise the limit"});
  ThreadPool::instance().set_thread_count(count);
}

}  // namespace mpsnn
