// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "mpsnn/export.hpp"

namespace mpsnn {

/// The version of the library that runs, e.g. "0.1.0".
MPSNN_API const char* version();

}  // namespace mpsnn
