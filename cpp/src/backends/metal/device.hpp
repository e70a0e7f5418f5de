// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "mpsnn/device.hpp"

namespace mpsnn::metal {

/// What this machine has of Metal.
struct Availability {
  DevicePtr device;         ///< null: none; `reason` says why
  bool is_default = false;  ///< false for a simulated device, which is for tests and never chosen by itself
  std::string reason;       ///< one sentence for people
};
const Availability& availability();

}  // namespace mpsnn::metal
