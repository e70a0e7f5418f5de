// SPDX-License-Identifier: Apache-2.0
#include "mpsnn/precision.hpp"

#include "mpsnn/error.hpp"

namespace mpsnn {

std::string precision_name(Precision precision) { return precision == Precision::strict ? "strict" : "fast"; }

Precision precision_of(const std::string& name) {
  if (name == "fast") return Precision::fast;
  if (name == "strict") return Precision::strict;
  throw OptionError("\"" + name.substr(0, 100) + "\" is no precision.",
                    {.node = "MPSNNGraph", .expected = "\"fast\" or \"strict\"", .actual = "\"" + name.substr(0, 100) + "\"", .hint = "graph.precision = \"strict\""});
}

}  // namespace mpsnn
