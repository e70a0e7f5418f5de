// SPDX-License-Identifier: Apache-2.0
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>

#include "mpsnn/device.hpp"

namespace mpsnn {

struct CommandBuffer::Impl {
  std::shared_ptr<CommandQueue> queue;
  std::vector<Work> work, completion;
  std::vector<Handler> handlers;
  mutable std::mutex mutex;
  std::condition_variable done;
  CommandBufferStatus status = CommandBufferStatus::NotEnqueued;
  std::exception_ptr error;
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
  impl_->work.push_back(std::move(work));
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
  if (impl_->queue) impl_->queue->submit(shared_from_this());
  else execute();
}

void CommandBuffer::execute() {
  std::exception_ptr error;
  try {
    {
      std::lock_guard lock(impl_->mutex);
      impl_->status = CommandBufferStatus::Scheduled;
    }
    for (Work& work : impl_->work) work();
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

struct CommandQueue::Impl {
  std::mutex mutex;
  std::condition_variable wake;
  std::deque<CommandBufferPtr> committed;
  bool is_stopping = false;
  std::thread worker;

  void run() {
    for (;;) {
      CommandBufferPtr next;
      {
        std::unique_lock lock(mutex);
        wake.wait(lock, [&] { return is_stopping || !committed.empty(); });
        if (committed.empty()) return;
        next = std::move(committed.front());
        committed.pop_front();
      }
      next->execute();
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
