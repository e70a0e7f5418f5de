// SPDX-License-Identifier: Apache-2.0
#include "node_class.hpp"

namespace mpsnn::python {
namespace {

template <class Node, class Base>
auto bind_window_normalization(py::module_& m, const char* name, const char* doc) {
  auto c = node_class<Node, Base>(m, name, doc);
  c.def(py::init<Image, int>(), "source"_a, "kernel_size"_a = 5);
  return c;
}

template <class Node, class Class>
void def_constants(Class& c) {
  c.def_readwrite("alpha", &Node::alpha).def_readwrite("beta", &Node::beta).def_readwrite("delta", &Node::delta);
}

template <class Node, class Class>
void def_contrast(Class& c) {
  c.def_readwrite("pm", &Node::pm).def_readwrite("ps", &Node::ps).def_readwrite("p0", &Node::p0);
}

void bind_windows(py::module_& m) {
  auto base = node_class<CNNNormalizationNode, NNFilterNode>(m, "MPSCNNNormalizationNode", "Base of the normalizations over windows (MPS_SEMANTICS 11).");
  def_constants<CNNNormalizationNode>(base);
  bind_window_normalization<CNNSpatialNormalizationNode, CNNNormalizationNode>(m, "MPSCNNSpatialNormalizationNode", "x * (delta + alpha / n * sum of x^2)^-beta over a window of pixels.")
      .def_readwrite("kernel_width", &CNNSpatialNormalizationNode::kernel_width)
      .def_readwrite("kernel_height", &CNNSpatialNormalizationNode::kernel_height);
  auto contrast = bind_window_normalization<CNNLocalContrastNormalizationNode, CNNNormalizationNode>(
      m, "MPSCNNLocalContrastNormalizationNode", "pm + ps * (x - p0 * mean) * (delta + alpha * variance)^-beta over a window of pixels.");
  contrast.def_readwrite("kernel_width", &CNNLocalContrastNormalizationNode::kernel_width).def_readwrite("kernel_height", &CNNLocalContrastNormalizationNode::kernel_height);
  def_contrast<CNNLocalContrastNormalizationNode>(contrast);
  bind_window_normalization<CNNCrossChannelNormalizationNode, CNNNormalizationNode>(m, "MPSCNNCrossChannelNormalizationNode",
                                                                                    "x * (delta + alpha / N * sum of x^2)^-beta over N neighbouring feature channels.")
      .def_readwrite("kernel_size_in_feature_channels", &CNNCrossChannelNormalizationNode::kernel_size_in_feature_channels);

  auto spatial = node_class<CNNSpatialNormalizationGradientNode, NNGradientFilterNode>(m, "MPSCNNSpatialNormalizationGradientNode", "Gradient of spatial normalization; its numbers must be the forward node's.");
  spatial.def(py::init<Image, Image, GradientState, int>(), "source_gradient"_a, "source_image"_a, "gradient_state"_a, "kernel_size"_a)
      .def_readwrite("kernel_width", &CNNSpatialNormalizationGradientNode::kernel_width)
      .def_readwrite("kernel_height", &CNNSpatialNormalizationGradientNode::kernel_height);
  def_constants<CNNSpatialNormalizationGradientNode>(spatial);
  using Contrast = CNNLocalContrastNormalizationGradientNode;
  auto contrast_gradient = node_class<Contrast, NNGradientFilterNode>(m, "MPSCNNLocalContrastNormalizationGradientNode", "Gradient of local contrast normalization; made by hand, alpha starts at 0 as Apple's does.");
  contrast_gradient.def(py::init<Image, Image, GradientState, int, int>(), "source_gradient"_a, "source_image"_a, "gradient_state"_a, "kernel_width"_a, "kernel_height"_a)
      .def_property_readonly("kernel_width", &Contrast::kernel_width)
      .def_property_readonly("kernel_height", &Contrast::kernel_height);
  def_constants<Contrast>(contrast_gradient);
  def_contrast<Contrast>(contrast_gradient);
  node_class<CNNCrossChannelNormalizationGradientNode, NNGradientFilterNode>(m, "MPSCNNCrossChannelNormalizationGradientNode", "Gradient of cross-channel normalization.")
      .def(py::init<Image, Image, GradientState, int>(), "source_gradient"_a, "source_image"_a, "gradient_state"_a, "kernel_size"_a)
      .def_property_readonly("kernel_size", &CNNCrossChannelNormalizationGradientNode::kernel_size);
}

template <class Node, class DataSource>
void bind_affine(py::module_& m, const char* name, const char* doc) {
  auto c = node_class<Node, NNFilterNode>(m, name, doc);
  c.def(py::init<Image, std::shared_ptr<DataSource>>(), "source"_a, "data_source"_a)
      .def_property_readonly("data_source", [](const Node& node) { return std::static_pointer_cast<DataSource>(node.data_source()); });
  def_training_style<Node>(c);
}

template <class Node>
void bind_affine_gradient(py::module_& m, const char* name, const char* doc) {
  auto c = node_class<Node, NNGradientFilterNode>(m, name, doc);
  c.def(py::init<Image, Image, GradientState>(), "source_gradient"_a, "source_image"_a, "gradient_state"_a);
  def_training_style<Node>(c);
}

}  // namespace

void bind_normalization_nodes(py::module_& m) {
  bind_windows(m);
  bind_affine<CNNInstanceNormalizationNode, CNNInstanceNormalizationDataSource>(m, "MPSCNNInstanceNormalizationNode", "Statistics per image and channel (MPS_SEMANTICS 12.3).");
  bind_affine<CNNGroupNormalizationNode, CNNGroupNormalizationDataSource>(m, "MPSCNNGroupNormalizationNode", "Statistics per image and group of consecutive channels (MPS_SEMANTICS 12.4).");
  bind_affine_gradient<CNNInstanceNormalizationGradientNode>(m, "MPSCNNInstanceNormalizationGradientNode", "Gradient of instance normalization.");
  bind_affine_gradient<CNNGroupNormalizationGradientNode>(m, "MPSCNNGroupNormalizationGradientNode", "Gradient of group normalization.");
}

}  // namespace mpsnn::python
