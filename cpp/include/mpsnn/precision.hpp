// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "mpsnn/export.hpp"

namespace mpsnn {

/// How exact the float32 convolutions of an engine must be. Part of the numerics contract that a graph is saved with.
enum class Precision {
  fast,    ///< algorithms with fewer multiplications and a bounded, somewhat larger rounding error (docs/accuracy.md)
  strict,  ///< only algorithms as exact as adding the products up directly
};

/// "fast", "strict"
MPSNN_API std::string precision_name(Precision precision);
/// Throws OptionError for other names.
MPSNN_API Precision precision_of(const std::string& name);

}  // namespace mpsnn
