// SPDX-License-Identifier: Apache-2.0
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>
#include <utility>

#include "core/command_step.hpp"
#include "mpsnn/device.hpp"

namespace mpsnn {

/// Work in one part or in two.
struct CommandBuffer::Item {
  Work work;
  std::shared_ptr<CommandStep> step;
};

struct CommandBuffer::Impl {
  std::shared_ptr<CommandQueue> queue;
  std::vector<Item> work;
  std::vector<Work> completion;
  std::vector<Handler> handlers;
  mutable std::mutex mutex;
  std::condition_variable done;
  CommandBufferStatus status = CommandBufferStatus::NotEnqueued;
  std::exception_ptr error;
  bool has_first_begun = false, is_on_device = false;  // the first item; used by the thread that executes alone
  std::exception_ptr begin_error;
  bool is_finished = false;  // handlers included
};

CommandBuffer::CommandBuffer(std::shared_ptr<CommandQueue> queue) : impl_(std::make_unique<Impl>()) { impl_->queue = std::move(queue); }
CommandBuffer::~CommandBuffer() = default;

namespace {

void require_open(CommandBufferStatus status) {
  if (status == CommandBufferStatus::NotEnqueued) return;
  throw DeviceError("this command buffer was committed already.",
                    {.node = "CommandBuffer", .expected = "an uncommitted command buffer", .actual = "a committed one", .hint = "ask the queue for a new one"});
}

}  // namespace

void CommandBuffer::record(Work work) {
  std::lock_guard lock(impl_->mutex);
  require_open(impl_->status);
  impl_->work.push_back({std::move(work), nullptr});
}

void CommandBuffer::record(std::shared_ptr<CommandStep> step) {
  std::lock_guard lock(impl_->mutex);
  require_open(impl_->status);
  impl_->work.push_back({nullptr, std::move(step)});
}

void CommandBuffer::record_completion(Work work) {
  std::lock_guard lock(impl_->mutex);
  require_open(impl_->status);
  impl_->completion.push_back(std::move(work));
}

void CommandBuffer::add_completed_handler(Handler handler) {
  std::lock_guard lock(impl_->mutex);
  require_open(impl_->status);
  impl_->handlers.push_back(std::move(handler));
}

CommandBuffer::Mark CommandBuffer::mark() const {
  std::lock_guard lock(impl_->mutex);
  return {impl_->work.size(), impl_->completion.size()};
}

void CommandBuffer::rewind(Mark mark) {
  std::lock_guard lock(impl_->mutex);
  require_open(impl_->status);
  impl_->work.resize(mark.work);
  impl_->completion.resize(mark.completion);
}

void CommandBuffer::commit() {
  {
    std::lock_guard lock(impl_->mutex);
    require_open(impl_->status);
    impl_->status = CommandBufferStatus::Committed;
  }
  if (impl_->queue) return impl_->queue->submit(shared_from_this());
  begin({});
  finish();
}

void CommandBuffer::begin(const std::function<void()>& done) {
  {
    std::lock_guard lock(impl_->mutex);
    impl_->status = CommandBufferStatus::Scheduled;
  }
  if (impl_->work.empty() || !impl_->work.front().step) return;
  impl_->has_first_begun = true;
  try {
    impl_->is_on_device = impl_->work.front().step->begin(done);
  } catch (...) {
    impl_->begin_error = std::current_exception();
  }
}

bool CommandBuffer::is_on_device() const { return impl_->is_on_device; }

bool CommandBuffer::may_begin_behind(const CommandBuffer& before) const {
  const Impl &mine = *impl_, &other = *before.impl_;
  // Whatever else `before` has recorded may read or change anything, and comes first.
  const bool is_alone = other.work.size() == 1 && other.completion.empty();
  return other.is_on_device && is_alone && !mine.work.empty() && mine.work.front().step && mine.work.front().step->may_begin_behind(*other.work.front().step);
}

void CommandBuffer::finish() {
  std::exception_ptr error;
  try {
    if (impl_->begin_error) std::rethrow_exception(impl_->begin_error);
    for (Item& item : impl_->work) {
      if (!item.step) {
        item.work();
        continue;
      }
      if (!std::exchange(impl_->has_first_begun, false)) item.step->begin({});
      item.step->finish();
    }
    for (Work& work : impl_->completion) work();
  } catch (...) {
    error = std::current_exception();
  }
  // What was recorded keeps images, graphs and callers' objects alive: let go of it before anybody is told.
  impl_->work.clear();
  impl_->completion.clear();
  {
    std::lock_guard lock(impl_->mutex);
    impl_->error = error;
    impl_->status = error ? CommandBufferStatus::Error : CommandBufferStatus::Completed;
  }
  for (Handler& handler : impl_->handlers) {
    try {
      handler(*this);
    } catch (...) {
      std::lock_guard lock(impl_->mutex);
      if (!impl_->error) impl_->error = std::current_exception();
      impl_->status = CommandBufferStatus::Error;
    }
  }
  impl_->handlers.clear();
  std::lock_guard lock(impl_->mutex);
  impl_->is_finished = true;
  impl_->done.notify_all();
}

bool CommandBuffer::wait_for(std::chrono::milliseconds limit) {
  std::unique_lock lock(impl_->mutex);
  if (impl_->status == CommandBufferStatus::NotEnqueued)
    throw DeviceError("this command buffer was never committed: waiting for it would never end.",
                      {.node = "CommandBuffer", .expected = "a committed command buffer", .actual = "an uncommitted one", .hint = "call commit() first"});
  if (!impl_->done.wait_for(lock, limit, [&] { return impl_->is_finished; })) return false;
  if (impl_->error) std::rethrow_exception(impl_->error);
  return true;
}

void CommandBuffer::wait_until_completed() {
  while (!wait_for(std::chrono::hours(1))) {}
}

CommandBufferStatus CommandBuffer::status() const {
  std::lock_guard lock(impl_->mutex);
  return impl_->status;
}

std::exception_ptr CommandBuffer::error() const {
  std::lock_guard lock(impl_->mutex);
  return impl_->error;
}

struct CommandQueue::Impl : std::enable_shared_from_this<Impl> {
  std::mutex mutex;
  std::condition_variable wake;
  std::deque<CommandBufferPtr> committed;
  bool is_stopping = false;
  std::thread worker;

  /// A buffer whose first part has run, and whether its device is through: guarded by `mutex`, and shared with a device that may say so
  /// when nobody asks any more.
  struct Begun {
    CommandBufferPtr buffer;
    std::shared_ptr<bool> is_done;
  };

  Begun begin_first(std::unique_lock<std::mutex>& lock) {
    Begun first{std::move(committed.front()), std::make_shared<bool>(false)};
    committed.pop_front();
    lock.unlock();
    first.buffer->begin([self = shared_from_this(), is_done = first.is_done] {
      {
        std::lock_guard guard(self->mutex);
        *is_done = true;
      }
      self->wake.notify_one();
    });
    lock.lock();
    return first;
  }

  void run() {
    Begun current;
    std::unique_lock lock(mutex);
    for (;;) {
      if (!current.buffer) {
        wake.wait(lock, [&] { return is_stopping || !committed.empty(); });
        if (committed.empty()) return;
        current = begin_first(lock);
      }
      const auto may_begin = [&] { return !committed.empty() && committed.front()->may_begin_behind(*current.buffer); };
      wake.wait(lock, [&] { return may_begin() || !current.buffer->is_on_device() || *current.is_done; });
      Begun next = may_begin() ? begin_first(lock) : Begun();
      lock.unlock();
      current.buffer->finish();
      current = std::move(next);  // the last owner of a buffer may be the last of its queue too, which locks
      lock.lock();
    }
  }
};

CommandQueue::CommandQueue(DevicePtr device) : device_(std::move(device)), impl_(std::make_shared<Impl>()) {}

CommandQueue::~CommandQueue() {
  {
    std::lock_guard lock(impl_->mutex);
    impl_->is_stopping = true;
  }
  impl_->wake.notify_all();
  if (!impl_->worker.joinable()) return;
  // The last buffer, which keeps the queue, may die on the worker itself: that thread then ends on its own.
  if (impl_->worker.get_id() == std::this_thread::get_id()) impl_->worker.detach();
  else impl_->worker.join();
}

CommandBufferPtr CommandQueue::command_buffer() { return std::make_shared<CommandBuffer>(shared_from_this()); }

void CommandQueue::submit(CommandBufferPtr buffer) {
  {
    std::lock_guard lock(impl_->mutex);
    impl_->committed.push_back(std::move(buffer));
    if (!impl_->worker.joinable()) impl_->worker = std::thread([impl = impl_] { impl->run(); });
  }
  impl_->wake.notify_one();
}

}  // namespace mpsnn
