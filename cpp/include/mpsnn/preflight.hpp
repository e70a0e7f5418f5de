// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "mpsnn/export.hpp"
#include "mpsnn/image.hpp"

/// What another engine would refuse or do differently with a graph, found before it is built there: NNGraph::preflight().
namespace mpsnn {

/// How much a finding matters.
enum class PreflightSeverity {
  refused,     ///< Apple's framework raises, aborts or returns nil: the graph cannot be built or run there
  differs,     ///< it runs, and gives other numbers, another layout, or numbers that cannot be read
  unverified,  ///< Apple's public material leaves it open: the decision made here may not be Apple's
};
/// "refused", "differs" or "unverified".
MPSNN_API const char* text(PreflightSeverity severity);

/// One row of the table of rules.
struct PreflightRule {
  const char* id;     ///< short and stable, e.g. "channels-per-group"
  PreflightSeverity severity;
  const char* nodes;  ///< what it looks at
  const char* reason; ///< what Apple does
  const char* fix;
  const char* source; ///< section of MPS_SEMANTICS, open question or erratum
  bool needs_shapes;  ///< checked only when source shapes are given
};
/// Every rule of the Metal engine, in the order of the documentation.
MPSNN_API std::vector<PreflightRule> preflight_rules();

/// An open question of MPS_SEMANTICS 24 that no graph can run into, and why.
struct UncheckedQuestion {
  const char* id;
  const char* reason;
};
MPSNN_API std::vector<UncheckedQuestion> unchecked_questions();

/// One node that breaks one rule.
struct PreflightFinding {
  std::string node;        ///< NNGraph::node_name(), or what else it is about: an input's handle, "MPSNNGraph"
  std::string node_class;  ///< Apple's name of the class
  std::string rule;
  PreflightSeverity severity = PreflightSeverity::refused;
  std::string reason, expected, actual, fix, source;
};

/// What NNGraph::preflight() found.
struct MPSNN_API PreflightReport {
  std::string engine;
  std::vector<PreflightFinding> findings;  ///< refused first, then differs, then unverified; in execution order
  std::vector<std::string> skipped_rules;  ///< those that need source shapes, where none were given
  /// True when nothing would be refused by the rules that were checked.
  bool ok() const;
  std::string text() const;
  /// Throws the first refusal as the error that it is: ShapeError, OptionError or WeightError.
  void raise_for_refused() const;
};

/// What the Metal engine does with a class of MPSNNGraphNodes.h.
enum class MetalStatus {
  lowered,   ///< becomes Apple's node of the same name
  refused,   ///< no graph with it can be built on Metal; `note` says why
  abstract,  ///< never instantiated: its subclasses have rows of their own
  image,     ///< a place for an image
  state,     ///< made by the filter whose state it stands for
};
struct MetalClass {
  const char* name;  ///< Apple's
  MetalStatus status;
  const char* note;
};
/// One row for each class of MPSNNGraphNodes.h, in alphabetical order. The rows with status `lowered` are exactly the classes that
/// the Metal engine's own table of translations must have: its tests compare the two.
MPSNN_API const std::vector<MetalClass>& metal_classes();

}  // namespace mpsnn
