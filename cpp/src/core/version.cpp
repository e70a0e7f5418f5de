// SPDX-License-Identifier: Apache-2.0
#include "mpsnn/version.hpp"

namespace mpsnn {

const char* version() { return MPSNN_VERSION; }

}  // namespace mpsnn
