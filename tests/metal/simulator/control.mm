// SPDX-License-Identifier: Apache-2.0
#include <condition_variable>
#include <cstdlib>

#include "sim.h"

/// What tests ask of the device: to fail, to stand still, and to say what came in which order.
#pragma GCC visibility push(default)
extern "C" {
/// The next command buffer that is committed ends in an error with this text. So does the n-th of the process (from 1) when the
/// environment variable MPSNN_SIM_FAIL_COMMAND_BUFFER says n.
void mpsnn_sim_fail_next_command_buffer(const char* sentence);
/// The device runs so many command buffers and then stands still until it is told again; a negative number is no limit. What is
/// committed meanwhile waits.
void mpsnn_sim_let_run(long command_buffers);
/// What has happened since the start, one line each: "encode 2", "commit 2", "complete 2" for the second command buffer made since; an
/// encode is one of MPSNNGraph. The text lives until the next call.
void mpsnn_sim_start_trace(void);
const char* mpsnn_sim_trace(void);
}
#pragma GCC visibility pop

namespace {

struct {
  std::mutex mutex;
  std::condition_variable hold_ends;
  std::string next_failure, traced, shown;
  long commits = 0, made = 0;  // command buffers of the process, and since the trace began
  long may_run = -1;
} control;

}  // namespace

void mpsnn_sim_fail_next_command_buffer(const char* sentence) {
  std::lock_guard lock(control.mutex);
  control.next_failure = sentence;
}

void mpsnn_sim_let_run(long command_buffers) {
  std::lock_guard lock(control.mutex);
  control.may_run = command_buffers;
  control.hold_ends.notify_all();
}

void mpsnn_sim_start_trace(void) {
  std::lock_guard lock(control.mutex);
  control.traced.clear();
  control.made = 0;
}

const char* mpsnn_sim_trace(void) {
  std::lock_guard lock(control.mutex);
  control.shown = control.traced;
  return control.shown.c_str();
}

namespace sim {

std::string take_failure() {
  std::lock_guard lock(control.mutex);
  ++control.commits;
  std::string sentence = std::move(control.next_failure);
  control.next_failure.clear();
  const char* chosen = std::getenv("MPSNN_SIM_FAIL_COMMAND_BUFFER");
  if (sentence.empty() && chosen && std::atol(chosen) == control.commits) sentence = "Simulated failure of command buffer " + std::to_string(control.commits) + ".";
  return sentence;
}

void wait_while_held() {
  std::unique_lock lock(control.mutex);
  control.hold_ends.wait(lock, [] { return control.may_run != 0; });
  if (control.may_run > 0) --control.may_run;
}

long next_number() {
  std::lock_guard lock(control.mutex);
  return ++control.made;
}

void trace(const char* what, long command_buffer) {
  std::lock_guard lock(control.mutex);
  control.traced += std::string(what) + " " + std::to_string(command_buffer) + "\n";
}

}  // namespace sim
