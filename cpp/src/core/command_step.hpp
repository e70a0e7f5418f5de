// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>

namespace mpsnn {

/// Work of a command buffer in two parts, so that a queue may begin a step while a device runs the one before. Both run on one thread,
/// steps finish in the order in which they began, and each that began without an error is finished.
class CommandStep {
 public:
  virtual ~CommandStep() = default;
  /// True when a device has work of this step to do: it calls `done` after that, from any thread, perhaps before this returns. Else all
  /// is done that may be done early. `done` may be empty.
  virtual bool begin(const std::function<void()>& done) = 0;
  /// Waits for the device where there is one, and does the rest.
  virtual void finish() = 0;
  /// True where nothing that finish() of `before`, which is on a device, has still to do changes what begin() of this one reads.
  virtual bool may_begin_behind(const CommandStep& before) const = 0;
};

}  // namespace mpsnn
