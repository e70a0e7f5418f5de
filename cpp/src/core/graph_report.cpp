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

std::vector<PlannedOperation> planned_operations(const NNGraph& graph, const Executable& executable) {
  const Plan& plan = executable.plan();
  const std::size_t bytes_per_element = element_bytes(graph.device()->element_type());
  std::vector<PlannedOperation> rows;
  for (std::size_t i = 0; i < plan.steps.size(); ++i) {
    const Step& step = plan.steps[i];
    const OperandShapes operands = plan.operand_shapes(step);
    PlannedOperation row{operation_name(step.operation), graph.node_name(*step.node), executable.algorithm(i), "", count_flops(step, operands), 0};
    for (const auto* list : {&operands.inputs, &operands.outputs})
      for (const Shape& shape : *list) row.bytes += shape.count() * bytes_per_element;
    for (const Shape& shape : operands.outputs)
      if (shape.count() != 0 && row.result.empty()) row.result = shape.text();
    rows.push_back(std::move(row));
  }
  return rows;
}

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

PlanReport NNGraph::plan(const std::vector<Shape>& source_shapes) {
  std::lock_guard lock(impl_->planning);
  PlanReport report;
  const CachedPlan& cached = impl_->plan_for(*this, {source_shapes, {}}, false);
  const Plan& plan = cached.executable->plan();
  report.operations = planned_operations(*this, *cached.executable);
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
  std::string text = row("%-28s %-24s %-22s %10s %6s %10s %10s  %s", "node", "operation", "result", "ms", "%", "GFLOP/s", "GB/s", "algorithm");
  for (std::size_t i = 0; i < operations.size(); ++i) {
    const PlannedOperation& o = operations[i];
    const double s = std::max(seconds[i], 1e-9);
    text += row("%-28.28s %-24.24s %-22.22s %10.3f %6.1f %10.1f %10.1f  %s", o.node.c_str(), o.operation.c_str(), o.result.c_str(), s * 1e3, 100 * s / total,
                o.flops / s / 1e9, static_cast<double>(o.bytes) / s / 1e9, o.algorithm.c_str());
  }
  return text + row("%zu operations, %.3f ms", operations.size(), total * 1e3);
}

ProfileReport NNGraph::profile(const std::vector<ImagePtr>& source_images, const std::vector<StatePtr>& source_states, std::size_t runs) {
  std::lock_guard planning(impl_->planning);
  CachedPlan& plan = impl_->plan_for(*this, impl_->shapes_of(source_images, source_states), true);
  std::vector<ImagePtr> returned;
  impl_->take_images(plan, returned);
  std::lock_guard running(impl_->running);
  const Bindings& bindings = impl_->bind(plan, source_images, source_states, returned, impl_->encode_count);
  ProfileReport report{planned_operations(*this, *plan.executable), {}};
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
  const Bindings& bindings = impl_->bind(plan, source_images, source_states, returned, impl_->encode_count);
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
