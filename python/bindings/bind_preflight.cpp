// SPDX-License-Identifier: Apache-2.0
#include "bindings.hpp"

namespace mpsnn::python {
namespace {

const char* status_name(MetalStatus status) {
  switch (status) {
    case MetalStatus::lowered: return "lowered";
    case MetalStatus::refused: return "refused";
    case MetalStatus::abstract: return "abstract";
    case MetalStatus::image: return "image";
    case MetalStatus::state: break;
  }
  return "state";
}

py::tuple metal_status(const std::string& class_name) {
  for (const MetalClass& c : metal_classes())
    if (class_name == c.name) return py::make_tuple(status_name(c.status), c.note);
  throw OptionError("metal_status: there is no node class \"" + class_name + "\".", {.expected = "the name of a class of MPSNNGraphNodes.h", .actual = class_name, .hint = "\"MPSCNNConvolutionNode\""});
}

}  // namespace

void bind_preflight(py::module_& m) {
  py::class_<PreflightRule>(m, "PreflightRule", "One row of the table of what Apple enforces or treats differently.")
      .def_property_readonly("id", [](const PreflightRule& r) { return r.id; }, "short and stable, e.g. \"channels-per-group\"")
      .def_property_readonly("severity", [](const PreflightRule& r) { return text(r.severity); }, "\"refused\", \"differs\" or \"unverified\"")
      .def_property_readonly("nodes", [](const PreflightRule& r) { return r.nodes; }, "what it looks at")
      .def_property_readonly("reason", [](const PreflightRule& r) { return r.reason; }, "what Apple does")
      .def_property_readonly("fix", [](const PreflightRule& r) { return r.fix; })
      .def_property_readonly("source", [](const PreflightRule& r) { return r.source; }, "section of MPS_SEMANTICS, open question (OQ) or erratum (E)")
      .def_readonly("needs_shapes", &PreflightRule::needs_shapes, "checked only when source shapes are given");
  py::class_<PreflightFinding>(m, "PreflightFinding", "One node that breaks one rule.")
      .def_readonly("node", &PreflightFinding::node, "the node as graph.node_name() calls it; or an input's handle, or \"MPSNNGraph\"")
      .def_readonly("node_class", &PreflightFinding::node_class)
      .def_readonly("rule", &PreflightFinding::rule)
      .def_property_readonly("severity", [](const PreflightFinding& f) { return text(f.severity); }, "\"refused\", \"differs\" or \"unverified\"")
      .def_readonly("reason", &PreflightFinding::reason, "what Apple does")
      .def_readonly("expected", &PreflightFinding::expected)
      .def_readonly("actual", &PreflightFinding::actual)
      .def_readonly("fix", &PreflightFinding::fix)
      .def_readonly("source", &PreflightFinding::source, "section of MPS_SEMANTICS, open question (OQ) or erratum (E)")
      .def("__repr__", [](const PreflightFinding& f) { return "<PreflightFinding " + f.rule + ": " + f.node + ", " + f.actual + ">"; });
  py::class_<PreflightReport>(m, "PreflightReport", "What MPSNNGraph.preflight() found. print() shows it.")
      .def_readonly("engine", &PreflightReport::engine)
      .def_readonly("findings", &PreflightReport::findings, "refused first, then differs, then unverified; nodes in execution order")
      .def_readonly("skipped_rules", &PreflightReport::skipped_rules, "ids of the rules that need source shapes, where none were given")
      .def_property_readonly("ok", &PreflightReport::ok, "True when no rule that was checked refuses the graph.")
      .def("text", &PreflightReport::text)
      .def("__str__", &PreflightReport::text)
      .def("raise_for_refused", &PreflightReport::raise_for_refused, "Raises the first refusal as the error that it is: ShapeError, OptionError or WeightError.");
  m.def("preflight_rules", &preflight_rules, "Every rule of preflight(\"metal\"), in the order of docs/preflight.md.");
  m.def("unchecked_questions", [] {
    std::vector<std::pair<std::string, std::string>> questions;
    for (const UncheckedQuestion& q : unchecked_questions()) questions.emplace_back(q.id, q.reason);
    return questions;
  }, "Open questions of MPS_SEMANTICS that no rule looks for, each with its reason.");
  m.def("metal_status", &metal_status, "class_name"_a, R"(What the Metal engine does with a node class: (status, note).

The status is "lowered", "refused" (the note says why), "abstract", "image" or "state".

>>> import mpsnn
>>> mpsnn.metal_status("MPSCNNPoolingMaxNode")[0]
'lowered')");
}

}  // namespace mpsnn::python
