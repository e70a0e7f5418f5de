// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "core/json.hpp"
#include "core/preflight/rules.hpp"
#include "mpsnn/nodes/binary_convolution.hpp"
#include "mpsnn/nodes/pooling.hpp"
#include "mpsnn/nodes/window_normalization.hpp"

/// Rules about windows: padding policies, pooling, and normalization over windows.
namespace mpsnn::preflight {
namespace {

using enum PreflightSeverity;
using Method = NNPaddingMethod;

constexpr std::int64_t bits(Method method) { return static_cast<std::int64_t>(method); }

/// The policy that places the windows of a node; null when it has no windows, or takes their place from elsewhere.
const NNPadding* window_policy(const NNFilterNode& node) {
  if (dynamic_cast<const CNNFullyConnectedNode*>(&node) || dynamic_cast<const CNNBinaryFullyConnectedNode*>(&node)) return nullptr;
  if (dynamic_cast<const CNNConvolutionTransposeNode*>(&node) && !node.source_states().empty()) return nullptr;
  const bool has_window = dynamic_cast<const CNNConvolutionNode*>(&node) || dynamic_cast<const CNNPoolingNode*>(&node) || dynamic_cast<const CNNDilatedPoolingMaxNode*>(&node);
  return has_window ? node.padding_policy.get() : nullptr;
}

/// A check of every policy that places windows.
template <class Check>
std::function<void(Inspection&)> each_policy(Check check) {
  return each<NNFilterNode>([check](Inspection& inspection, const NNFilterNode& node) {
    if (const NNPadding* policy = window_policy(node)) check(inspection, node, *policy);
  });
}

void check_custom(Inspection& inspection, const NNFilterNode& node, const NNPadding& policy) {
  if (!has(policy.padding_method(), Method::Custom) || dynamic_cast<const NNDefaultPadding*>(&policy) || dynamic_cast<const ExplicitPadding*>(&policy)) return;
  inspection.report(node, "MPSNNDefaultPadding or ExplicitPadding", policy.label());
}

void check_tensorflow(Inspection& inspection, const NNFilterNode& node, const NNPadding& policy) {
  if (has(policy.padding_method(), Method::Custom) && dynamic_cast<const NNDefaultPadding*>(&policy))
    inspection.report(node, "a policy without the Custom bit", "padding method " + std::to_string(bits(policy.padding_method())));
}

void check_alignment(Inspection& inspection, const NNFilterNode& node, const NNPadding& policy) {
  const std::int64_t align = bits(policy.padding_method()) & bits(Method::AlignMask);
  if (align == bits(Method::AlignTopLeft) || align == bits(Method::AlignBottomRight)) inspection.report(node, "AlignCentered", policy.label());
}

void check_reserved(Inspection& inspection, const NNFilterNode& node, const NNPadding& policy) {
  const std::int64_t method = bits(policy.padding_method()), size = method & bits(Method::SizeMask);
  if ((method & bits(Method::AlignMask)) == bits(Method::Align_reserved) || size > bits(Method::SizeFull))
    inspection.report(node, "align 0 to 2 and size 0, 16 or 32", "padding method " + std::to_string(method));
}

const Window* window_of(const Operation& operation) {
  if (const auto* convolution = std::get_if<ConvolutionOp>(&operation)) return &convolution->geometry.window;
  if (const auto* binary = std::get_if<BinaryConvolutionOp>(&operation)) return &binary->geometry.window;
  if (const auto* pooling = std::get_if<PoolingOp>(&operation)) return &pooling->window;
  return nullptr;
}

/// Pixels of an axis that no window reads, in front of the first and behind the last.
int unread_pixels(const Axis& axis) { return axis.input - (axis.origin(axis.output - 1) + axis.extent() - axis.origin(0)); }

void check_unread(Inspection& inspection, const NNFilterNode& node, const NNPadding& policy) {
  const Window* window = window_of(inspection.planned(node).operation);
  const Method method = policy.padding_method();
  if (!window || !dynamic_cast<const NNDefaultPadding*>(&policy) || (bits(method) & bits(Method::AlignMask)) != 0) return;
  // A clear remainder bit absorbs the first of them: rounding plays no part until there are more.
  const int x = unread_pixels(window->x), y = unread_pixels(window->y);
  if (x > !has(method, Method::AddRemainderToTopRight) || y > !has(method, Method::AddRemainderToBottomLeft))
    inspection.report(node, "windows that read all " + by(window->x.input, window->y.input) + " pixels",
                      std::to_string(std::max(x, 0)) + " columns and " + std::to_string(std::max(y, 0)) + " rows unread, the first window at " +
                          by(window->x.origin(0), window->y.origin(0)));
}

void check_exclude_edges(Inspection& inspection, const CNNPoolingAverageNode& node) {
  if (has(node.padding_policy->padding_method(), Method::ExcludeEdges)) inspection.report(node, "a policy without ExcludeEdges", node.padding_policy->label());
}

/// Reports a pooling window that hangs over the edge with edge mode Clamp.
void require_inside(Inspection& inspection, const NNFilterNode& node) {
  const auto& pooling = std::get<PoolingOp>(inspection.planned(node).operation);
  const Axis &x = pooling.window.x, &y = pooling.window.y;
  if (pooling.edge_mode == ImageEdgeMode::Clamp && !(x.is_inside() && y.is_inside()))
    inspection.report(node, "windows inside the image", "kernel " + by(x.kernel, y.kernel) + ", dilation " + by(x.dilation, y.dilation) + " on " + inspection.planned(node).sources[0].text());
}

void check_l2_edges(Inspection& inspection, const CNNPoolingL2NormNode& node) { require_inside(inspection, node); }

void check_dilated_edges(Inspection& inspection, const CNNDilatedPoolingMaxNode& node) {
  if (node.dilation_rate_x() > 1 || node.dilation_rate_y() > 1) require_inside(inspection, node);
}

void check_ties(Inspection& inspection, const CNNPoolingGradientNode& node) {
  if (!dynamic_cast<const CNNPoolingMaxGradientNode*>(&node) && !dynamic_cast<const CNNDilatedPoolingMaxGradientNode*>(&node)) return;
  inspection.report(node, "one largest value under each window", "windows of " + by(node.kernel_width(), node.kernel_height()) + " pixels, which may tie");
}

void require_square(Inspection& inspection, const NNFilterNode& node, int width, int height) {
  if (width != height) inspection.report(node, "kernel_width = kernel_height", by(width, height));
}

void check_square(Inspection& inspection) {
  for (const FilterNodePtr& node : inspection.graph().nodes()) {
    if (const auto* n = dynamic_cast<const CNNSpatialNormalizationNode*>(node.get())) require_square(inspection, *n, n->kernel_width, n->kernel_height);
    if (const auto* n = dynamic_cast<const CNNSpatialNormalizationGradientNode*>(node.get())) require_square(inspection, *n, n->kernel_width, n->kernel_height);
    if (const auto* n = dynamic_cast<const CNNLocalContrastNormalizationNode*>(node.get())) require_square(inspection, *n, n->kernel_width, n->kernel_height);
    if (const auto* n = dynamic_cast<const CNNLocalContrastNormalizationGradientNode*>(node.get())) require_square(inspection, *n, n->kernel_width(), n->kernel_height());
  }
}

bool is_normalization_gradient(const NNFilterNode& node) {
  return dynamic_cast<const CNNSpatialNormalizationGradientNode*>(&node) || dynamic_cast<const CNNLocalContrastNormalizationGradientNode*>(&node) ||
         dynamic_cast<const CNNCrossChannelNormalizationGradientNode*>(&node);
}

void check_normalization_gradient(Inspection& inspection, const NNGradientFilterNode& node) {
  if (is_normalization_gradient(node)) inspection.report(node, "a formula without misprints", node.parameters().text());
}

void check_normalization_parameters(Inspection& inspection, const NNGradientFilterNode& node) {
  const auto* forward = is_normalization_gradient(node) ? forward_of<CNNNormalizationNode>(node) : nullptr;
  if (!forward || dynamic_cast<const CNNCrossChannelNormalizationGradientNode*>(&node)) return;  // that one has no parameters of its own
  const std::string expected = forward->parameters().text(), actual = node.parameters().text();
  if (expected != actual) inspection.report(node, expected, actual);
}

}  // namespace

const std::vector<Rule>& window_rules() {
  static const std::vector<Rule> rules{
      {{"custom-padding", differs, "padding policies of the application's own", "the policy is asked at every encode, with a kernel whose changes last; here once for each size of the source",
        "let it set offset, edge mode and size to what they shall be, never by how much they change", "3.3, 6.6", false},
       raise<OptionError>, each_policy(check_custom)},
      {{"tensorflow-padding", unverified, "TensorFlow's padding policies", "the header and the sample disagree on where the remainder goes; here to the bottom right",
        "AddRemainderToBottomRight with SizeSame", "6.6, OQ-14, E-20", false},
       raise<OptionError>, each_policy(check_tensorflow)},
      {{"aligned-padding", unverified, "padding policies with AlignTopLeft or AlignBottomRight", "the pages disagree on what alignment does; here all extra padding goes to the named side",
        "AlignCentered, or ExplicitPadding", "6.2, OQ-12", false},
       raise<OptionError>, each_policy(check_alignment)},
      {{"reserved-padding-bits", refused, "padding policies", "these bits of a padding method are reserved", "combine the named members of MPSNNPaddingMethod", "6.2", false},
       raise<OptionError>, each_policy(check_reserved)},
      {{"unread-pixels", unverified, "windows of convolutions and pooling", "where windows start that leave pixels unread is not documented beyond one sample, whose rounding is used here",
        "ExplicitPadding with negative numbers says which pixels to leave out", "6.3, OQ-11", true},
       raise<OptionError>, each_policy(check_unread)},
      {{"exclude-edges", unverified, "average pooling", "how ExcludeEdges becomes zeroPadSize is not documented; here the padding in front of the image", "a policy without ExcludeEdges",
        "8.4, OQ-23", false},
       raise<OptionError>, each<CNNPoolingAverageNode>(check_exclude_edges)},
      {{"l2-pooling-edges", unverified, "L2-norm pooling", "whether windows over the edge shrink or repeat pixels is not documented; here they repeat", "a valid padding policy", "8.3, OQ-22", true},
       raise<OptionError>, each<CNNPoolingL2NormNode>(check_l2_edges)},
      {{"dilated-pooling-edges", unverified, "dilated max pooling", "edge mode and clamping of dilated taps are not documented; here each tap is clamped on its own", "a valid padding policy",
        "8.6, OQ-5", true},
       raise<OptionError>, each<CNNDilatedPoolingMaxNode>(check_dilated_edges)},
      {{"max-ties", differs, "gradients of max pooling", "which of several largest values gets the gradient is up to the implementation; here the first in row-major order",
        "nothing to do where values do not tie; behind a ReLU, zeros do", "8.5, OQ-24", false},
       raise<OptionError>, each<CNNPoolingGradientNode>(check_ties)},
      {{"square-window", refused, "spatial and local-contrast normalization", "the window is square for now", "set kernel_width and kernel_height to one number", "11", false},
       raise<OptionError>, check_square},
      {{"normalization-gradient", unverified, "gradients of window normalizations", "the header's formulas have misprints; here the exact derivative", "compare with central differences on a Mac",
        "11, OQ-26, E-4 to E-6", false},
       raise<OptionError>, each<NNGradientFilterNode>(check_normalization_gradient)},
      {{"normalization-parameters", differs, "gradients of window normalizations made by hand", "parameters must equal the forward node's; what others give is undefined",
        "copy the forward node's parameters, or let gradient_filter() do it", "11", false},
       raise<OptionError>, each<NNGradientFilterNode>(check_normalization_parameters)},
  };
  return rules;
}

}  // namespace mpsnn::preflight
