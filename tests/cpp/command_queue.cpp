// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <string>
#include <thread>

#include "check.hpp"
#include "core/command_step.hpp"
#include "mpsnn/mpsnn.hpp"

/// The order in which a queue begins and finishes steps whose device is a thread.
using namespace mpsnn;

namespace {

/// What happened, in order; a test waits for its lines.
class Log {
 public:
  void add(const std::string& line) {
    std::lock_guard lock(mutex_);
    lines_.push_back(line);
    changed_.notify_all();
  }
  /// False when the line does not come.
  bool wait_for(const std::string& line) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::seconds(20), [&] { return std::find(lines_.begin(), lines_.end(), line) != lines_.end(); });
  }
  std::string text() {
    std::lock_guard lock(mutex_);
    std::string all;
    for (const std::string& line : lines_) all += (all.empty() ? "" : ", ") + line;
    return all;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::string> lines_;
};

/// A step that a thread works on until it is released.
class ThreadStep final : public CommandStep {
 public:
  ThreadStep(Log& log, int number, bool is_released = false) : log_(log), name_(std::to_string(number)), is_released_(is_released) {}
  bool begin(const std::function<void()>& done) override {
    log_.add("begin " + name_);
    if (fails_in_begin) throw DeviceError("begin " + name_ + " failed.");
    if (!has_device) return false;
    device_ = std::thread([this, done] {
      is_released_.wait(false);
      if (done) done();
    });
    return true;
  }
  void finish() override {
    if (device_.joinable()) device_.join();
    log_.add("finish " + name_);
    if (fails_in_finish) throw DeviceError("finish " + name_ + " failed.");
  }
  bool may_begin_behind(const CommandStep&) const override { return runs_ahead; }
  void release() {
    is_released_ = true;
    is_released_.notify_all();
  }

  bool runs_ahead = true, has_device = true, fails_in_begin = false, fails_in_finish = false;

 private:
  Log& log_;
  std::string name_;
  std::atomic<bool> is_released_;
  std::thread device_;
};

/// Steps in buffers of their own, on one queue.
struct Steps {
  explicit Steps(int count, bool are_released = false) {
    for (int i = 0; i < count; ++i) {
      steps.push_back(std::make_shared<ThreadStep>(log, i, are_released));
      buffers.push_back(queue->command_buffer());
      buffers.back()->record(steps.back());
      buffers.back()->add_completed_handler([this, i](CommandBuffer& buffer) { log.add((buffer.error() ? "error " : "done ") + std::to_string(i)); });
    }
  }
  void commit() {
    for (const CommandBufferPtr& buffer : buffers) buffer->commit();
  }
  void wait() {
    for (const CommandBufferPtr& buffer : buffers) buffer->wait_until_completed();
  }
  Log log;
  CommandQueuePtr queue = std::make_shared<CommandQueue>(default_device());
  std::vector<std::shared_ptr<ThreadStep>> steps;
  std::vector<CommandBufferPtr> buffers;
};

}  // namespace

TEST(the_next_step_begins_while_the_device_runs_one_and_no_third) {
  Steps s(3);
  s.commit();
  CHECK(s.log.wait_for("begin 1"));
  s.steps[0]->release();
  CHECK(s.log.wait_for("begin 2"));
  s.steps[1]->release();
  s.steps[2]->release();
  s.wait();
  CHECK_EQ(s.log.text(), "begin 0, begin 1, finish 0, done 0, begin 2, finish 1, done 1, finish 2, done 2");
}

TEST(a_step_committed_while_the_queue_waits_for_the_device_begins_at_once) {
  Steps s(2);
  s.buffers[0]->commit();
  CHECK(s.log.wait_for("begin 0"));
  s.buffers[1]->commit();
  CHECK(s.log.wait_for("begin 1"));
  s.steps[1]->release();
  s.steps[0]->release();
  s.wait();
  CHECK_EQ(s.log.text(), "begin 0, begin 1, finish 0, done 0, finish 1, done 1");
}

TEST(a_step_that_may_not_run_ahead_begins_when_the_one_before_is_finished) {
  Steps s(2, true);
  s.steps[1]->runs_ahead = false;
  s.commit();
  s.wait();
  CHECK_EQ(s.log.text(), "begin 0, finish 0, done 0, begin 1, finish 1, done 1");
}

TEST(a_step_without_a_device_is_finished_before_the_next) {
  Steps s(2, true);
  for (const auto& step : s.steps) step->has_device = false;
  s.commit();
  s.wait();
  CHECK_EQ(s.log.text(), "begin 0, finish 0, done 0, begin 1, finish 1, done 1");
}

TEST(other_work_of_a_buffer_comes_before_the_next_step) {
  for (const bool is_completion : {false, true}) {
    Steps s(2, true);
    const auto work = [&] { s.log.add("work"); };
    if (is_completion) s.buffers[0]->record_completion(work);
    else s.buffers[0]->record(work);
    s.commit();
    s.wait();
    CHECK_EQ(s.log.text(), "begin 0, finish 0, work, done 0, begin 1, finish 1, done 1");
  }
  Steps s(1, true);
  const CommandBufferPtr buffer = s.queue->command_buffer();
  const auto second = std::make_shared<ThreadStep>(s.log, 1, true);
  buffer->record([&] { s.log.add("work"); });
  buffer->record(second);
  s.commit();
  buffer->commit();
  buffer->wait_until_completed();
  CHECK_EQ(s.log.text(), "begin 0, finish 0, done 0, work, begin 1, finish 1");
}

TEST(errors_reach_their_own_buffers_in_order) {
  Steps s(4);
  s.steps[0]->fails_in_finish = true;
  s.steps[1]->fails_in_begin = true;
  s.commit();
  CHECK(s.log.wait_for("begin 1"));
  for (const auto& step : s.steps) step->release();
  CHECK_THROWS(s.buffers[0]->wait_until_completed(), DeviceError, "finish 0 failed");
  CHECK_THROWS(s.buffers[1]->wait_until_completed(), DeviceError, "begin 1 failed");
  s.buffers[2]->wait_until_completed();
  s.buffers[3]->wait_until_completed();
  const std::string text = s.log.text();
  CHECK_EQ(text.substr(0, text.find(", begin 2")), "begin 0, begin 1, finish 0, error 0, error 1");
  CHECK(text.find("finish 2, done 2") < text.find("finish 3, done 3"));
}

TEST(a_buffer_without_a_queue_runs_both_parts) {
  Log log;
  const auto buffer = std::make_shared<CommandBuffer>();
  buffer->record(std::make_shared<ThreadStep>(log, 0, true));
  buffer->record(std::make_shared<ThreadStep>(log, 1, true));
  buffer->commit();
  buffer->wait_until_completed();
  CHECK_EQ(log.text(), "begin 0, finish 0, begin 1, finish 1");
}

TEST(a_queue_that_goes_finishes_what_is_on_the_device) {
  constexpr int kSteps = 300;
  auto s = std::make_unique<Steps>(kSteps, true);
  s->commit();
  const CommandBufferPtr last = s->buffers.back();
  s->buffers.clear();
  s->queue.reset();
  last->wait_until_completed();
  const std::string text = s->log.text();
  std::size_t position = 0;
  for (int i = 0; i < kSteps; ++i) {
    const std::size_t next = text.find("done " + std::to_string(i), position);
    CHECK(next != std::string::npos);
    position = next;
  }
}
