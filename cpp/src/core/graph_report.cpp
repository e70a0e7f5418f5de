// SPDX-License-Identifier: Apache-2.0
#include <cstdio>
#include <map>
#include <sstream>

#include "core/json.hpp"
#include "mpsnn/graph.hpp"

namespace mpsnn {
namespace {

std::string row(const char* format, auto... values) {
  char line[512];
  std::snprintf(line, sizeof line, format, values...);
  return std::string(line) + "\n";
}

double mebibytes(std::size_t bytes) { return static_cast<double>(bytes) / (1 << 20); }

}  // namespace

std::string PlanReport::text() const {
  std::string text = row("%-28s %-24s %-22s %10s %10s  %s", "node", "operation", "result", "MFLOP", "MiB", "algorithm");
  for (const PlannedOperation& o : operations)
    text += row("%-28.28s %-24.24s %-22.22s %10.2f %10.3f  %s", o.node.c_str(), o.operation.c_str(), o.result.c_str(), o.flops / 1e6, mebibytes(o.bytes),
                o.algorithm.c_str());
  text += row("%zu operations, %.3f GFLOP; arena %.2f MiB (%.2f MiB without sharing), parameters and gradients %.2f MiB", operations.size(), flops / 1e9,
              mebibytes(arena_bytes), mebibytes(unshared_bytes), mebibytes(parameter_bytes));
  return text;
}

std::string NNGraph::debug_description() const {
  std::ostringstream text;
  std::map<const NNImageNode*, std::string> names;
  auto image_name = [&](const NNImageNode& image) {
    const auto found = names.find(&image);
    if (found != names.end()) return found->second;
    return names[&image] = image.producer() ? node_name(*image.producer()) : (image.handle ? image.handle->label() : "input");
  };
  text << "MPSNNGraph on " << device()->name() << ", " << nodes().size() << " nodes\n";
  for (const FilterNodePtr& node : nodes()) {
    text << "  " << node_name(*node) << ": " << node->class_name() << "(";
    const char* separator = "";
    for (const ImageNodePtr& source : node->sources()) text << separator << image_name(*source), separator = ", ";
    text << ") " << node->parameters().text();
    if (const HandlePtr& handle = node->result_image_node().handle) text << " -> \"" << handle->label() << "\"";
    text << "\n";
  }
  return text.str();
}

}  // namespace mpsnn
