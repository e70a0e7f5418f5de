// SPDX-License-Identifier: Apache-2.0
#include "backends/metal/device.hpp"

namespace mpsnn::metal {

const Availability& availability() {
  static const Availability none{nullptr, false, "this build has no Metal engine (MPSNN_METAL is off)"};
  return none;
}

}  // namespace mpsnn::metal
