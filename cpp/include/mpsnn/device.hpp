// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <exception>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "mpsnn/error.hpp"
#include "mpsnn/export.hpp"
#include "mpsnn/image.hpp"

namespace mpsnn {

class Backend;
class CommandQueue;
class CommandStep;

/// Something that runs graphs: an engine on a piece of hardware. Devices live as long as the process.
class MPSNN_API Device {
 public:
  Device(std::string name, std::string description, const Backend& backend);
  const std::string& name() const { return name_; }                ///< "cpu", "reference"
  const std::string& description() const { return description_; }  ///< e.g. "float32, vectorised (avx2) and threaded"
  const Backend& backend() const { return backend_; }
  /// The type of the numbers that this engine computes with.
  ElementType element_type() const;

 private:
  std::string name_, description_;
  const Backend& backend_;
};
using DevicePtr = std::shared_ptr<const Device>;

/// Every device of this machine, the default one first.
MPSNN_API std::vector<DevicePtr> devices();
MPSNN_API DevicePtr default_device();
/// The device of that name; throws DeviceError with the names that exist.
MPSNN_API DevicePtr device(const std::string& name);

/// Why the default device is what it is: one sentence about Metal on this machine.
MPSNN_API std::string metal_availability();

/// Threads that the CPU engine uses: MPSNN_NUM_THREADS, else one per core. Results do not depend on it.
MPSNN_API int num_threads();
MPSNN_API void set_num_threads(int count);
/// Instruction set of the CPU engine's kernels, e.g. "avx2".
MPSNN_API std::string instruction_set();

/// MTLCommandBufferStatus.
enum class CommandBufferStatus { NotEnqueued, Enqueued, Committed, Scheduled, Completed, Error };

/// Work recorded by encode calls; runs in order after commit(), once (MPS_SEMANTICS 2.2). A buffer without a queue runs on the
/// thread that commits it.
class MPSNN_API CommandBuffer : public std::enable_shared_from_this<CommandBuffer> {
 public:
  using Work = std::function<void()>;
  using Handler = std::function<void(CommandBuffer&)>;

  explicit CommandBuffer(std::shared_ptr<CommandQueue> queue = nullptr);
  ~CommandBuffer();
  CommandBuffer(const CommandBuffer&) = delete;
  CommandBuffer& operator=(const CommandBuffer&) = delete;

  /// Records work. Throws DeviceError after commit().
  void record(Work work);
  /// Records work in two parts: how graphs record their steps.
  void record(std::shared_ptr<CommandStep> step);
  /// Records work of the completion phase: after all record()ed work, before the handlers (CPU-style updates, 7.8).
  void record_completion(Work work);
  /// Called once the buffer is done, on the queue's thread, also after an error.
  void add_completed_handler(Handler handler);

  void commit();
  /// Blocks until the work, the completion phase and the handlers are done, then throws the first error of the work, if any:
  /// its images must not be used. Commits nothing: throws DeviceError when commit() was never called.
  void wait_until_completed();
  /// As above with a limit; true when done.
  bool wait_for(std::chrono::milliseconds limit);
  CommandBufferStatus status() const;
  /// The first error of the work, or null.
  std::exception_ptr error() const;

  /// How much is recorded, and a way back to it: an encode that throws leaves the buffer as it was.
  struct Mark { std::size_t work, completion; };
  Mark mark() const;
  void rewind(Mark mark);

 private:
  friend class CommandQueue;
  struct Item;
  /// The two parts of execution. `done`: see CommandStep::begin.
  void begin(const std::function<void()>& done);
  void finish();
  /// True when begin() has left a device at work.
  bool is_on_device() const;
  bool may_begin_behind(const CommandBuffer& before) const;
  struct Impl;
  std::unique_ptr<Impl> impl_;
};
using CommandBufferPtr = std::shared_ptr<CommandBuffer>;

/// Runs committed command buffers one after another on a thread of its own. While a device runs the only step of a buffer, the first
/// step of the buffer behind it is uploaded, encoded and committed to the device, where nothing that the one before has still to do
/// can change it: same graph, an engine with a device of its own that updates all weights itself, no input that is a result of the step
/// before. So at most two buffers have begun. Errors, results, completed handlers and `completed` come in the order of commits all the same.
/// Images and labels of a committed buffer may be read at any time, and an optimizer's settings up to one step ahead.
class MPSNN_API CommandQueue : public std::enable_shared_from_this<CommandQueue> {
 public:
  explicit CommandQueue(DevicePtr device);
  /// Finishes what was committed.
  ~CommandQueue();
  const DevicePtr& device() const { return device_; }
  CommandBufferPtr command_buffer();

 private:
  friend class CommandBuffer;
  void submit(CommandBufferPtr buffer);
  DevicePtr device_;
  struct Impl;
  std::shared_ptr<Impl> impl_;  // shared with the worker, which may outlive the queue by a moment
};
using CommandQueuePtr = std::shared_ptr<CommandQueue>;

}  // namespace mpsnn
