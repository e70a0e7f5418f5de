// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <memory>
#include <type_traits>

namespace mpsnn {

namespace detail {
using TaskBody = void (*)(void* body, std::size_t task, int thread);
void run_tasks(std::size_t task_count, TaskBody call, void* body);
}  // namespace detail

/// Calls body(task, thread) for every task in [0, task_count), on all threads, and returns when all are done. Tasks are
/// handed out in any order, so each must write only its own output; `thread` (< max_thread_count()) may index private
/// scratch. Nested calls run on the calling thread. `body` must not throw. Allocates nothing.
template <class Body>
void parallel_for(std::size_t task_count, Body&& body) {
  using Plain = std::remove_reference_t<Body>;
  detail::run_tasks(
      task_count, [](void* b, std::size_t task, int thread) { (*static_cast<Plain*>(b))(task, thread); },
      const_cast<std::remove_const_t<Plain>*>(std::addressof(body)));
}

/// The first of the tasks that thread `thread` of so many begins a loop with, always the same ones.
inline std::size_t first_own_task(std::size_t task_count, std::size_t thread, std::size_t threads) { return task_count * thread / threads; }

/// Threads that parallel_for uses: what set_thread_count() said, else MPSNN_NUM_THREADS, else one per core.
int thread_count();
/// Takes 1 to max_thread_count(); throws OptionError for anything else.
void set_thread_count(int count);
/// The most threads that parallel_for ever uses, fixed for the life of the process: sizes of per-thread scratch follow it.
int max_thread_count();

}  // namespace mpsnn
