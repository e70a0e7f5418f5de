// SPDX-License-Identifier: Apache-2.0
#include <set>

#include "core/preflight/rules.hpp"
#include "mpsnn/nodes/loss.hpp"
#include "mpsnn/nodes/resampling.hpp"
#include "mpsnn/nodes/shape.hpp"

/// Rules about the graph, its images and its states.
namespace mpsnn::preflight {
namespace {

using enum PreflightSeverity;
using Format = ImageFeatureChannelFormat;

constexpr const char* kGraph = "MPSNNGraph";
constexpr const char* kImage = "MPSNNImageNode";
constexpr const char* kState = "MPSNNStateNode";

constexpr int kMostPixels = 16384;   ///< a side of a 2D texture: every Mac, and iPhones and iPads since the A9
constexpr int kMostSlices = 2048;    ///< of a texture array; each holds four feature channels

std::string label_of(const HandlePtr& handle, const char* otherwise) { return handle ? handle->label() : otherwise; }

/// What finding texts call the n-th input.
std::string input_name(const Inspection& inspection, std::size_t index) { return inspection.graph().source_image_handles()[index]->label(); }

/// Calls `visit(shape, report)` for the images of a step, inputs first.
template <class Visit>
void each_image(Inspection& inspection, Visit visit) {
  for (std::size_t i = 0; i < inspection.inputs().size(); ++i)
    visit(inspection.input_shape(*inspection.inputs()[i]), [&](std::string expected, std::string actual) {
      inspection.report(input_name(inspection, i), kImage, std::move(expected), std::move(actual));
    });
  for (const FilterNodePtr& node : inspection.graph().nodes())
    visit(inspection.planned(*node).result,
          [&](std::string expected, std::string actual) { inspection.report(*node, std::move(expected), std::move(actual)); });
}

void check_size(Inspection& inspection) {
  each_image(inspection, [](const Shape& image, auto report) {
    if (image.width > kMostPixels || image.height > kMostPixels)
      report("width and height of at most " + std::to_string(kMostPixels), "image " + image.text());
  });
}

void check_channels(Inspection& inspection) {
  each_image(inspection, [](const Shape& image, auto report) {
    const int slices = ceil_divide(image.channels, 4);
    if (slices > kMostSlices)
      report("at most " + std::to_string(4 * kMostSlices) + " feature channels, " + std::to_string(kMostSlices) + " slices",
             std::to_string(image.channels) + " feature channels, " + std::to_string(slices) + " slices");
  });
}

void check_empty(Inspection& inspection) {
  for (std::size_t i = 0; i < inspection.inputs().size(); ++i)
    if (const Shape& shape = inspection.input_shape(*inspection.inputs()[i]); shape.count() == 0)
      inspection.report(input_name(inspection, i), kImage, "1 or more images, pixels and feature channels", "image " + shape.text());
}

void check_format(Inspection& inspection) {
  auto is_known = [](Format format) { return format >= Format::None && format <= Format::Float32; };
  auto number = [](Format format) { return "format " + std::to_string(static_cast<std::int64_t>(format)); };
  constexpr const char* kExpected = "None, Unorm8, Unorm16, Float16 or Float32";
  const NNGraph& graph = inspection.graph();
  if (!is_known(graph.format)) inspection.report(kGraph, kGraph, kExpected, number(graph.format));
  for (std::size_t i = 0; i < inspection.inputs().size(); ++i)
    if (const Format format = inspection.inputs()[i]->format; !is_known(format)) inspection.report(input_name(inspection, i), kImage, kExpected, number(format));
  for (const FilterNodePtr& node : graph.nodes())
    if (const Format format = node->result_image_node().format; !is_known(format)) inspection.report(*node, kExpected, number(format));
}

void check_format_none(Inspection& inspection) {
  if (inspection.graph().format == Format::None) inspection.report(kGraph, kGraph, "graph.format Float32 or Float16", "None: Float32 here, Float16 there");
}

/// A check that one bit of graph.options is not set.
std::function<void(Inspection&)> option_is_unset(KernelOptions option, const char* name) {
  return [option, name](Inspection& inspection) {
    const auto options = static_cast<std::int64_t>(inspection.graph().options);
    if (options & static_cast<std::int64_t>(option)) inspection.report(kGraph, kGraph, std::string("options without ") + name, "options " + std::to_string(options));
  };
}

void check_temporary(Inspection& inspection) {
  const NNGraph& graph = inspection.graph();
  constexpr const char* kExpected = "MPSImage.default_allocator()";
  constexpr const char* kActual = "MPSTemporaryImage.default_allocator()";
  if (graph.destination_image_allocator->is_temporary()) inspection.report(kGraph, kGraph, std::string("destination_image_allocator ") + kExpected, kActual);
  for (const FilterNodePtr& node : graph.nodes()) {
    const NNImageNode& image = node->result_image_node();
    if (image.export_from_graph && image.image_allocator->is_temporary()) inspection.report(*node, std::string("result_image.image_allocator ") + kExpected, kActual);
    for (const StateNodePtr& state : node->result_states())
      if (state->export_from_graph && graph.output_state_is_temporary) inspection.report(*node, "graph.output_state_is_temporary False", "True");
  }
}

void check_synchronized(Inspection& inspection) {
  for (const FilterNodePtr& node : inspection.graph().nodes()) {
    const NNImageNode& image = node->result_image_node();
    if (image.export_from_graph && !image.synchronize_resource && !image.image_allocator->is_temporary())
      inspection.report(*node, "result_image.synchronize_resource True", "False");
    for (const StateNodePtr& state : node->result_states())
      if (state->export_from_graph && !state->synchronize_resource) inspection.report(*node, std::string(state->class_name()) + ".synchronize_resource True", "False");
  }
}

/// Everything that has a place in one of the graph's lists of handles, list by list.
struct Tagged { HandlePtr handle; const char* class_name; };
std::vector<std::vector<Tagged>> handle_lists(const Inspection& inspection) {
  std::vector<std::vector<Tagged>> lists(4);
  for (const NNImageNode* input : inspection.inputs()) lists[0].push_back({input->handle, kImage});
  for (const FilterNodePtr& node : inspection.graph().nodes()) {
    if (const NNLabelsNode* labels = node->labels_placeholder()) lists[1].push_back({labels->handle, labels->class_name()});
    if (node->result_image_node().export_from_graph) lists[2].push_back({node->result_image_node().handle, kImage});
    for (const StateNodePtr& state : node->result_states())
      if (state->export_from_graph) lists[3].push_back({state->handle, kState});
  }
  return lists;
}

void check_untagged(Inspection& inspection) {
  for (const auto& list : handle_lists(inspection)) {
    if (list.size() < 2) continue;
    std::size_t untagged = 0;
    for (const Tagged& item : list) untagged += item.handle == nullptr;
    if (untagged)
      inspection.report(kGraph, kGraph, "a handle for each of " + std::to_string(list.size()) + " " + list[0].class_name, std::to_string(untagged) + " without one");
  }
}

void check_duplicates(Inspection& inspection) {
  for (const auto& list : handle_lists(inspection)) {
    std::set<std::string> seen;
    for (const Tagged& item : list)
      if (item.handle && !seen.insert(item.handle->label()).second)
        inspection.report(label_of(item.handle, ""), item.class_name, std::to_string(list.size()) + " different labels", "\"" + item.handle->label() + "\" twice");
  }
}

void check_trap(Inspection& inspection) {
  if (inspection.graph().trap_nonfinite) inspection.report(kGraph, kGraph, "trap_nonfinite False", "True");
}

void check_precision(Inspection& inspection) {
  if (inspection.graph().precision == Precision::strict) inspection.report(kGraph, kGraph, "precision \"fast\"", "\"strict\"");
}

void check_callbacks(Inspection& inspection) {
  for (const FilterNodePtr& node : inspection.graph().nodes()) {
    auto refuse = [&](const char* what) { inspection.report(*node, "a number that does not change", what); };
    if (const auto* loss = dynamic_cast<const NNForwardLossNode*>(node.get()); loss && loss->property_callback) refuse("a property_callback");
    if (const auto* loss = dynamic_cast<const NNLossGradientNode*>(node.get()); loss && loss->property_callback) refuse("a property_callback");
    if (const auto* gram = dynamic_cast<const NNGramMatrixCalculationNode*>(node.get()); gram && gram->property_callback) refuse("a property_callback");
    if (const auto* scale = dynamic_cast<const NNScaleNode*>(node.get()); scale && scale->transform_provider()) refuse("a transform provider");
  }
}

}  // namespace

const std::vector<Rule>& graph_rules() {
  static const std::vector<Rule> rules{
      {{"image-size", refused, "every image", "an image is a 2D texture of at most 16384 x 16384 pixels", "work on tiles, or scale down first", "1.1; Metal's limits", true},
       raise<ShapeError>, check_size},
      {{"image-channels", refused, "every image", "four feature channels share a slice, and a texture array has at most 2048", "fewer feature channels, or two images",
        "1.1; Metal's limits", true},
       raise<ShapeError>, check_channels},
      {{"empty-image", refused, "inputs", "a texture has at least one pixel, and a batch at least one image", "leave the step out when there is nothing to do", "1.1, 1.2", true},
       raise<ShapeError>, check_empty},
      {{"image-format", refused, "format of every image and of the graph", "the other values of the enumeration are reserved", "set a valid format", "1.1", false},
       raise<OptionError>, check_format},
      {{"format-none", differs, "graph.format", "None lets the framework choose: halves", "set graph.format", "3.1, 20.2", false}, raise<OptionError>, check_format_none},
      {{"reduced-precision", differs, "graph.options", "AllowReducedPrecision lets kernels round more; it is ignored here", "leave the option out", "2.1, 21", false},
       raise<OptionError>, option_is_unset(KernelOptions::AllowReducedPrecision, "AllowReducedPrecision")},
      {{"validation-skipped", differs, "graph.options", "SkipAPIValidation turns what would be refused into undefined behaviour; here everything is always checked",
        "leave the option out", "2.1", false},
       raise<OptionError>, option_is_unset(KernelOptions::SkipAPIValidation, "SkipAPIValidation")},
      {{"temporary-export", differs, "exports and the result", "a temporary image or state lives in memory of the GPU until its read count is 0: the CPU cannot read it",
        "use the default allocator of MPSImage, or leave it to work on the GPU", "1.3, 20.3", false},
       raise<OptionError>, check_temporary},
      {{"export-not-synchronized", differs, "exports", "where CPU and GPU have memory of their own, the CPU reads old numbers until the graph synchronizes",
        "set synchronize_resource", "1.4, 20.3", false},
       raise<OptionError>, check_synchronized},
      {{"untagged-handles", unverified, "inputs, labels and exports of which there are several", "the order in which a graph lists untagged nodes is not documented",
        "give each of them a handle and follow the lists of handles", "1.5, OQ-1", false},
       raise<GraphError>, check_untagged},
      {{"duplicate-handles", differs, "inputs, labels and exports", "handles are all that tells the entries of its lists apart", "give each of them a label of its own",
        "1.5, OQ-1", false},
       raise<GraphError>, check_duplicates},
      {{"trap-nonfinite", differs, "graph.trap_nonfinite", "there is no such watch: a NaN or Inf runs on through images and weights", "check the results that are read",
        "20.2", false},
       raise<OptionError>, check_trap},
      {{"strict-precision", differs, "graph.precision", "there is no such promise: kernels choose their algorithms", "allow for the rounding of \"fast\" when comparing", "21", false},
       raise<OptionError>, check_precision},
      {{"callback-once", differs, "losses, gram matrices and scale nodes", "the callback is asked at every encode; here once for each size of the source",
        "return the same numbers every time, or build a graph for each", "14.5, 15, 18.5", false},
       raise<OptionError>, check_callbacks},
  };
  return rules;
}

}  // namespace mpsnn::preflight
