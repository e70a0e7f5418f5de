// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstdio>
#include <sstream>

#include "core/graph_impl.hpp"
#include "core/json.hpp"

namespace mpsnn {
namespace {

std::string row(const char* format, auto... values) {
  char line[512];
  std::snprintf(line, sizeof line, format, values...);
  return std::string(line) + "\n";
}

double mebibytes(std::size_t bytes) { return static_cast<double>(bytes) / (1 << 20); }

/// The end of a node's name, where its number is.
std::string shown(const std::string& node) {
  constexpr std::size_t kWidth = 28;
  if (node.size() <= kWidth) return node;
  const std::size_t prefix = node.starts_with("MPSCNN") ? 6 : node.starts_with("MPSNN") ? 5 : 0;
  return node.substr(std::max(prefix, node.size() - kWidth));
}

/// What takes longest of a row's work at best.
void find_limit(PlannedOperation& row, const MachinePeak& peak) {
  if (peak.flops <= 0 || peak.bytes <= 0) return;
  const double computing = row.work / peak.flops, moving = static_cast<double>(row.bytes) / peak.bytes;
  row.limit = computing > moving ? "compute" : "memory";
  row.least_seconds = std::max(computing, moving);
}

std::vector<PlannedOperation> planned_operations(const NNGraph& graph, const Executable& executable, const MachinePeak& peak) {
  const Plan& plan = executable.plan();
  const std::size_t bytes_per_element = element_bytes(graph.device()->element_type());
  std::vector<PlannedOperation> rows;
  for (std::size_t i = 0; i < plan.steps.size(); ++i) {
    const Step& step = plan.steps[i];
    const OperandShapes operands = plan.operand_shapes(step);
    PlannedOperation row{.operation = operation_name(step.operation), .node = graph.node_name(*step.node), .algorithm = executable.algorithm(i)};
    row.flops = row.work = count_flops(step, operands);
    if (const Kernel* kernel = executable.kernel(i)) {
      row.layout = kernel->layout();
      row.reason = kernel->reason();
      row.work = kernel->flops(row.flops);
    }
    for (const auto* list : {&operands.inputs, &operands.outputs})
      for (const Shape& shape : *list) row.bytes += shape.count() * bytes_per_element;
    for (const Shape& shape : operands.outputs)
      if (shape.count() != 0 && row.result.empty()) row.result = shape.text();
    find_limit(row, peak);
    rows.push_back(std::move(row));
  }
  return rows;
}

}  // namespace

namespace {

// One line of figures for an operation, and a second for how and why where there is more to say than one word.
constexpr const char* kHead = "%-28s %-25s %-20s";
constexpr const char* kNames = "%-28.28s %-25.25s %-20.20s";

std::string machine(double flops, double bytes) {
  if (flops <= 0) return "";
  return row("this machine at best, measured: %.0f GFLOP/s, %.1f GB/s; memory counts what an operation reads and writes, caches or not", flops / 1e9, bytes / 1e9);
}

std::string how(const PlannedOperation& o) {
  if (o.reason.empty()) return "  " + o.algorithm + "\n";
  return "\n    " + o.algorithm + "; " + o.layout + "; " + o.reason + "\n";
}

}  // namespace

std::string PlanReport::text() const {
  auto cell = [](const char* format, auto... values) {
    char text[512];
    std::snprintf(text, sizeof text, format, values...);
    return std::string(text);
  };
  std::string text = cell(kHead, "node", "operation", "result") + row(" %9s %9s %8s %8s %9s  %s", "MFLOP", "done", "MiB", "limit", "least ms", "how");
  for (const PlannedOperation& o : operations)
    text += cell(kNames, shown(o.node).c_str(), o.operation.c_str(), o.result.c_str()) +
            cell(" %9.2f %9.2f %8.3f %8s %9.3f", o.flops / 1e6, o.work / 1e6, mebibytes(o.bytes), o.limit.c_str(), o.least_seconds * 1e3) + how(o);
  text += row("%zu operations, %.3f GFLOP; arena %.2f MiB (%.2f MiB without sharing), parameters and gradients %.2f MiB", operations.size(), flops / 1e9,
              mebibytes(arena_bytes), mebibytes(unshared_bytes), mebibytes(parameter_bytes));
  return text + machine(peak_flops, peak_bytes);
}

PlanReport NNGraph::plan(const std::vector<Shape>& source_shapes) {
  std::lock_guard lock(impl_->planning);
  PlanReport report;
  const CachedPlan& cached = impl_->plan_for(*this, {source_shapes, {}}, false);
  const Plan& plan = cached.executable->plan();
  const MachinePeak peak = device()->backend().peak();
  report.operations = planned_operations(*this, *cached.executable, peak);
  report.peak_flops = peak.flops;
  report.peak_bytes = peak.bytes;
  for (const PlannedOperation& operation : report.operations) report.flops += operation.flops;
  for (const Value& value : plan.values)
    if (value.storage == Storage::arena && value.first_step >= 0) report.unshared_bytes += value.bytes;
  report.arena_bytes = plan.arena_bytes;
  report.parameter_bytes = impl_->parameters->parameters().bytes() + impl_->parameters->gradients().bytes();
  return report;
}

std::string ProfileReport::text() const {
  double total = 0;
  for (const double s : seconds) total += s;
  std::string text = row("%-28s %-25s %-20s %9s %5s %8s %8s %8s %5s  %s", "node", "operation", "result", "ms", "%", "GFLOP/s", "GB/s", "limit", "of it", "algorithm");
  for (std::size_t i = 0; i < operations.size(); ++i) {
    const PlannedOperation& o = operations[i];
    const double s = std::max(seconds[i], 1e-9);
    text += row("%-28.28s %-25.25s %-20.20s %9.3f %5.1f %8.1f %8.1f %8s %4.0f%%  %.40s", shown(o.node).c_str(), o.operation.c_str(), o.result.c_str(), s * 1e3,
                100 * s / total, o.work / s / 1e9, static_cast<double>(o.bytes) / s / 1e9, o.limit.c_str(), 100 * o.least_seconds / s, o.algorithm.c_str());
  }
  return text + row("%zu operations, %.3f ms", operations.size(), total * 1e3) + machine(peak_flops, peak_bytes);
}

ProfileReport NNGraph::profile(const std::vector<ImagePtr>& source_images, const std::vector<StatePtr>& source_states, std::size_t runs) {
  std::lock_guard planning(impl_->planning);
  CachedPlan& plan = impl_->plan_for(*this, impl_->shapes_of(source_images, source_states), true);
  std::vector<ImagePtr> returned;
  impl_->take_images(plan, returned);
  std::lock_guard running(impl_->running);
  const Bindings& bindings = impl_->bind(plan.bound, source_images, source_states, returned, impl_->encode_count);
  const MachinePeak peak = device()->backend().peak();
  ProfileReport report{planned_operations(*this, *plan.executable, peak), {}, peak.flops, peak.bytes};
  const std::size_t steps = report.operations.size();
  runs = std::max<std::size_t>(1, runs);
  std::vector<double> seconds(steps * runs), of_step(runs);
  plan.executable->profile(bindings, runs, seconds.data());
  impl_->parameters->mark_changed(runs);
  for (std::size_t i = 0; i < steps; ++i) {
    for (std::size_t run = 0; run < runs; ++run) of_step[run] = seconds[run * steps + i];
    std::nth_element(of_step.begin(), of_step.begin() + static_cast<std::ptrdiff_t>(runs / 2), of_step.end());
    report.seconds.push_back(of_step[runs / 2]);
  }
  return report;
}

std::vector<double> NNGraph::time_operations(const std::vector<ImagePtr>& source_images, const std::vector<StatePtr>& source_states,
                                             std::vector<std::size_t> operations, std::size_t runs) {
  std::lock_guard planning(impl_->planning);
  CachedPlan& plan = impl_->plan_for(*this, impl_->shapes_of(source_images, source_states), true);
  std::sort(operations.begin(), operations.end());
  const std::size_t count = plan.executable->plan().steps.size();
  if (!operations.empty() && operations.back() >= count)
    throw OptionError("MPSNNGraph: there is no operation " + std::to_string(operations.back()) + ".",
                      {.node = "MPSNNGraph", .expected = "an index below " + std::to_string(count), .actual = std::to_string(operations.back()),
                       .hint = "indices into profile().operations"});
  std::vector<ImagePtr> returned;
  impl_->take_images(plan, returned);
  std::lock_guard running(impl_->running);
  const Bindings& bindings = impl_->bind(plan.bound, source_images, source_states, returned, impl_->encode_count);
  impl_->parameters->mark_changed(runs);
  return plan.executable->time_steps(bindings, operations, runs);
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
