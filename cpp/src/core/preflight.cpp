// SPDX-License-Identifier: Apache-2.0
#include "mpsnn/preflight.hpp"

#include <algorithm>

#include "core/preflight/rules.hpp"

namespace mpsnn {
namespace {

/// The engine whose rules are Apple's. It has them whether or not a device of that name exists on this machine.
constexpr const char* kMetal = "metal";
const std::string kDocument = "MPS_SEMANTICS ";

void require_engine(const std::string& engine) {
  std::vector<std::string> names;
  for (const DevicePtr& device : devices()) names.push_back(device->name());
  if (std::find(names.begin(), names.end(), kMetal) == names.end()) names.push_back(kMetal);
  if (std::find(names.begin(), names.end(), engine) != names.end()) return;
  std::string known;
  for (const std::string& name : names) known += (known.empty() ? "" : ", ") + name;
  throw OptionError("preflight: there is no engine \"" + engine + "\".", {.node = "MPSNNGraph", .expected = known, .actual = engine, .hint = "preflight(\"metal\")"});
}

}  // namespace

namespace preflight {

Inspection::Inspection(const NNGraph& graph, const PlanBuilder* plan) : graph_(graph), has_shapes_(plan != nullptr) {
  for (const FilterNodePtr& node : graph.nodes()) {
    PlannedNode planned;
    for (std::size_t i = 0; i < node->sources().size(); ++i) {
      const NNImageNode* source = node->sources()[i].get();
      if (!source->producer() && std::find(inputs_.begin(), inputs_.end(), source) == inputs_.end()) inputs_.push_back(source);
      if (!plan) continue;
      planned.sources.push_back(plan->shape(plan->image(*node, i)));
      if (!source->producer()) input_shapes_.emplace(source, planned.sources.back());
    }
    if (!plan) continue;
    const Step step = plan->forward_step(*node);
    planned.result = plan->shape(step.outputs.front());
    planned.operation = step.operation;
    planned_.emplace(node.get(), std::move(planned));
  }
  if (plan) count_mps_channels();
}

void Inspection::count_mps_channels() {
  for (const FilterNodePtr& node : graph_.nodes()) {
    const PlannedNode& planned = planned_.at(node.get());
    int channels = planned.result.channels;
    if (std::holds_alternative<ConcatenationOp>(planned.operation)) {
      // Each source starts at a multiple of four (MPS_SEMANTICS 18.1).
      channels = 0;
      for (std::size_t i = 0; i < node->sources().size(); ++i) channels = ceil_divide(channels, 4) * 4 + mps_channels(*node, i);
    } else if (!dynamic_cast<const CNNConvolutionNode*>(node.get()) && !node->sources().empty() && planned.sources[0].channels == channels) {
      channels = mps_channels(*node, 0);  // what keeps the number of channels keeps the padding
    }
    mps_channels_[&node->result_image_node()] = channels;
  }
}

int Inspection::mps_channels(const NNFilterNode& node, std::size_t index) const {
  const auto found = mps_channels_.find(node.sources()[index].get());
  return found == mps_channels_.end() ? planned(node).sources[index].channels : found->second;
}

const WeightFacts& Inspection::weights(const ConvolutionDataSourcePtr& source) {
  const auto [found, is_new] = weights_.try_emplace(source.get());
  if (is_new && source->load()) {
    WeightFacts& facts = found->second;
    try {
      facts = {source->descriptor(), source->data_type(), source->kernel_weights_data_type(), source->weights_quantization_type()};
    } catch (...) {
      source->purge();
      throw;
    }
    source->purge();
  }
  return found->second;
}

void Inspection::run(const Rule& rule) {
  rule_ = &rule;
  rule.check(*this);
}

void Inspection::report(const NNFilterNode& node, std::string expected, std::string actual) {
  const PreflightRule& row = rule_->row;
  findings_.push_back({node.construction_index() + 1,
                       {graph_.node_name(node), node.class_name(), row.id, row.severity, row.reason, std::move(expected), std::move(actual), row.fix, kDocument + row.source}});
}

void Inspection::report(const std::string& name, const char* class_name, std::string expected, std::string actual) {
  const PreflightRule& row = rule_->row;
  findings_.push_back({0, {name, class_name, row.id, row.severity, row.reason, std::move(expected), std::move(actual), row.fix, kDocument + row.source}});
}

std::vector<PreflightFinding> Inspection::take_findings() {
  std::stable_sort(findings_.begin(), findings_.end(), [](const auto& a, const auto& b) {
    return std::pair(a.second.severity, a.first) < std::pair(b.second.severity, b.first);
  });
  std::vector<PreflightFinding> findings;
  for (auto& [order, finding] : findings_) findings.push_back(std::move(finding));
  return findings;
}

std::vector<const Rule*> all_rules() {
  std::vector<const Rule*> rules;
  for (const auto* family : {&graph_rules(), &convolution_rules(), &window_rules(), &channel_rules(), &layer_rules()})
    for (const Rule& rule : *family) rules.push_back(&rule);
  return rules;
}

}  // namespace preflight

const char* text(PreflightSeverity severity) {
  switch (severity) {
    case PreflightSeverity::refused: return "refused";
    case PreflightSeverity::differs: return "differs";
    case PreflightSeverity::unverified: break;
  }
  return "unverified";
}

std::vector<PreflightRule> preflight_rules() {
  std::vector<PreflightRule> rows;
  for (const preflight::Rule* rule : preflight::all_rules()) rows.push_back(rule->row);
  return rows;
}

PreflightReport NNGraph::preflight(const std::string& engine, const std::optional<std::vector<Shape>>& source_shapes) const {
  require_engine(engine);
  PreflightReport report{engine, {}, {}};
  std::unique_ptr<PlanBuilder> plan;
  if (source_shapes) plan = lowered(*source_shapes);  // for every engine: the shapes may be wrong
  if (engine != kMetal) return report;
  preflight::Inspection inspection(*this, plan.get());
  for (const preflight::Rule* rule : preflight::all_rules()) {
    if (rule->row.needs_shapes && !plan) report.skipped_rules.push_back(rule->row.id);
    else inspection.run(*rule);
  }
  report.findings = inspection.take_findings();
  return report;
}

bool PreflightReport::ok() const {
  return std::none_of(findings.begin(), findings.end(), [](const PreflightFinding& f) { return f.severity == PreflightSeverity::refused; });
}

std::string PreflightReport::text() const {
  std::string text = "preflight for " + engine + ":";
  for (const auto severity : {PreflightSeverity::refused, PreflightSeverity::differs, PreflightSeverity::unverified}) {
    const auto count = std::count_if(findings.begin(), findings.end(), [&](const PreflightFinding& f) { return f.severity == severity; });
    text += (severity == PreflightSeverity::refused ? " " : ", ") + std::to_string(count) + " " + mpsnn::text(severity);
  }
  text += "\n";
  for (const PreflightFinding& f : findings) {
    text += std::string(mpsnn::text(f.severity)) + "  " + f.rule + "  " + f.node + (f.node == f.node_class ? "" : " (" + f.node_class + ")") + "\n";
    for (const auto& [name, value] : {std::pair{"why", &f.reason}, {"expected", &f.expected}, {"actual", &f.actual}, {"try", &f.fix}, {"source", &f.source}}) {
      std::string column = name;
      column.resize(10, ' ');
      text += "    " + column + *value + "\n";
    }
  }
  if (!skipped_rules.empty()) {
    text += "not checked, for want of source shapes:";
    for (const std::string& rule : skipped_rules) text += (&rule == &skipped_rules.front() ? " " : ", ") + rule;
    text += "\n";
  }
  return text;
}

void PreflightReport::raise_for_refused() const {
  if (ok()) return;
  const PreflightFinding& finding = findings.front();  // refusals come first
  const auto rules = preflight::all_rules();
  const auto rule = std::find_if(rules.begin(), rules.end(), [&](const preflight::Rule* r) { return r->row.id == finding.rule; });
  (*rule)->raise(finding.node + ": on Metal, " + finding.reason + " (" + finding.rule + ", " + finding.source + ")",
                 {finding.node_class, finding.node, finding.expected, finding.actual, finding.fix});
}

}  // namespace mpsnn
