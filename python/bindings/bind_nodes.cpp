// SPDX-License-Identifier: Apache-2.0
#include "node_class.hpp"

namespace mpsnn::python {
namespace {

class PyHandle final : public Handle, public PyCallback {
 public:
  using PyCallback::PyCallback;
  std::string label() const override {
    py::gil_scoped_acquire gil;
    const py::object handle = object();
    if (py::isinstance<py::str>(handle)) return handle.cast<std::string>();
    const py::object label = handle.attr("label");
    return py::str(PyCallable_Check(label.ptr()) ? label() : label).cast<std::string>();
  }
};

std::vector<FilterNodePtr> training_graph(const FilterNodePtr& node, const Image& source_gradient, const py::object& handler) {
  if (handler.is_none()) return node->training_graph(source_gradient);
  return node->training_graph(source_gradient, [&](const FilterNodePtr& gradient, const FilterNodePtr& inference, const Image& source, const Image& gradient_source) {
    handler(gradient, inference, source, gradient_source);
  });
}

void bind_base(py::module_& m) {
  py::class_<NNImageNode, Image>(m, "MPSNNImageNode", R"(A place for an image in a graph; without a producer, an input (MPS_SEMANTICS 3.1).

``handle`` is a string or any object with a label: the tag by which the graph tells you its inputs and exports.)")
      .def(py::init([](const py::object& handle) { return std::make_shared<NNImageNode>(handle_of(handle)); }), "handle"_a = py::none())
      .def_static("exported_node", [](const py::object& handle) { return NNImageNode::exported_node(handle_of(handle)); }, "handle"_a = py::none())
      .def_property("handle", [](const NNImageNode& n) { return object_of(n.handle); }, [](NNImageNode& n, const py::object& h) { n.handle = handle_of(h); })
      .def_readwrite("format", &NNImageNode::format)
      .def_property("image_allocator", [](const NNImageNode& n) { return n.image_allocator; },
                    [](NNImageNode& n, const ImageAllocatorPtr& allocator) { n.image_allocator = allocator_of(allocator); }, "Who makes the image; a temporary image unless set.")
      .def_readwrite("export_from_graph", &NNImageNode::export_from_graph)
      .def_readwrite("synchronize_resource", &NNImageNode::synchronize_resource)
      .def_readwrite("stop_gradient", &NNImageNode::stop_gradient);

  py::class_<NNStateNode, StateNodePtr>(m, "MPSNNStateNode", "A place for a state; made by filter nodes.")
      .def_property("handle", [](const NNStateNode& n) { return object_of(n.handle); }, [](NNStateNode& n, const py::object& h) { n.handle = handle_of(h); })
      .def_readwrite("export_from_graph", &NNStateNode::export_from_graph)
      .def_readwrite("synchronize_resource", &NNStateNode::synchronize_resource);
  node_class<NNGradientStateNode, NNStateNode>(m, "MPSNNGradientStateNode", "State of a filter with one source.");
  node_class<CNNConvolutionGradientStateNode, NNGradientStateNode>(m, "MPSCNNConvolutionGradientStateNode", "State of a convolution: its geometry, and the weight gradients.");
  node_class<CNNConvolutionTransposeGradientStateNode, CNNConvolutionGradientStateNode>(m, "MPSCNNConvolutionTransposeGradientStateNode", "State of a transposed convolution.");
  node_class<NNBinaryGradientStateNode, NNStateNode>(m, "MPSNNBinaryGradientStateNode", "State of a filter with two sources.");
  node_class<NNArithmeticGradientStateNode, NNBinaryGradientStateNode>(m, "MPSNNArithmeticGradientStateNode", "State of an arithmetic filter.");
  node_class<NNMultiaryGradientStateNode, NNStateNode>(m, "MPSNNMultiaryGradientStateNode", "State of a filter with many sources.");
  node_class<NNLabelsNode, NNStateNode>(m, "MPSNNLabelsNode", "Placeholder of the MPSCNNLossLabels that a step is given.");

  using Filter = NNFilterNode;
  py::class_<Filter, FilterNodePtr> filter(m, "MPSNNFilterNode", "One operation of a graph (MPS_SEMANTICS 3.3).");
  // Before the methods that return it: a signature shows the Python name of classes that are known by then.
  node_class<NNGradientFilterNode, Filter>(m, "MPSNNGradientFilterNode", "A gradient; it has none of its own.");
  filter.def_property_readonly("result_image", &Filter::result_image)
      .def_property_readonly("result_state", &Filter::result_state, "The first result state, or None.")
      .def_property_readonly("result_states", [](Filter& f) -> py::object {
        const auto states = f.result_states();
        return states.empty() ? py::object(py::none()) : py::cast(states);
      })
      .def_property("label", [](const Filter& f) -> py::object { return f.label.empty() ? py::object(py::none()) : py::cast(f.label); },
                    [](Filter& f, const std::optional<std::string>& label) { f.label = label.value_or(""); }, "Names the node in errors and plans; None unless set.")
      .def_property("padding_policy", [](const Filter& f) { return f.padding_policy; }, [](Filter& f, PaddingPtr policy) {
                      if (!policy)
                        throw OptionError(f.display_name() + ": a node has a padding policy.", {f.class_name(), f.display_name(), "an MPSNNPadding", "None", "leave the default policy alone"});
                      f.padding_policy = std::move(policy);
                    })
      .def_property_readonly("sources", &Filter::sources)
      .def_property_readonly("source_states", &Filter::source_states)
      .def("gradient_filter", [](Filter& f, const Image& source) { return f.gradient_filter(source); }, "source"_a,
           "The gradient node, given the gradient of result_image. Raises GraphError where none exists.")
      .def("gradient_filter", [](Filter& f, const std::vector<Image>& sources) { return f.gradient_filter(sources); }, "sources"_a)
      .def("gradient_filters", [](Filter& f, const Image& source) { return f.gradient_filters(source); }, "source"_a,
           "All gradient nodes, one per source that receives a gradient, in source order.")
      .def("gradient_filters", [](Filter& f, const std::vector<Image>& sources) { return f.gradient_filters(sources); }, "sources"_a)
      .def("training_graph", &training_graph, "source_gradient"_a = py::none(), "node_handler"_a = py::none(),
           R"(Builds gradient nodes backward from here and returns the last ones (MPS_SEMANTICS 5.2).

``node_handler(gradient_node, inference_node, inference_source, gradient_source)`` is called for every node made; inference_node is None for
the additions inserted where an image has several consumers. Without it, each gradient image takes the handle of its image.)")
      .def("__repr__", [](const Filter& f) { return "<" + std::string(f.class_name()) + (f.label.empty() ? ">" : " \"" + f.label + "\">"); });
}

void bind_convolution(py::module_& m) {
  auto convolution = node_class<CNNConvolutionNode, NNFilterNode>(m, "MPSCNNConvolutionNode", "Correlation with the weights of a data source (MPS_SEMANTICS 7.3). Result: size by the padding policy, the descriptor's output channels.");
  convolution.def(py::init<Image, ConvolutionDataSourcePtr>(), "source"_a, "weights"_a)
      .def_property_readonly("weights", &CNNConvolutionNode::weights, "The data source.")
      .def_property_readonly("convolution_gradient_state", &CNNConvolutionNode::convolution_gradient_state)
      .def_readwrite("accumulator_precision", &CNNConvolutionNode::accumulator_precision);
  def_training_style<CNNConvolutionNode>(convolution);
  node_class<CNNFullyConnectedNode, CNNConvolutionNode>(m, "MPSCNNFullyConnectedNode", "A convolution whose kernel is the whole image (MPS_SEMANTICS 7.7). Result: 1 x 1 x O.")
      .def(py::init<Image, ConvolutionDataSourcePtr>(), "source"_a, "weights"_a);
  node_class<CNNConvolutionTransposeNode, CNNConvolutionNode>(m, "MPSCNNConvolutionTransposeNode", "Enlarges by the stride (MPS_SEMANTICS 7.6); with the gradient state of a convolution, undoes that one.")
      .def(py::init<Image, std::shared_ptr<CNNConvolutionGradientStateNode>, ConvolutionDataSourcePtr>(), "source"_a, "convolution_gradient_state"_a, "weights"_a)
      .def(py::init([](Image source, ConvolutionDataSourcePtr weights) { return std::make_shared<CNNConvolutionTransposeNode>(source, nullptr, weights); }), "source"_a, "weights"_a);
  auto gradient = node_class<CNNConvolutionGradientNode, NNGradientFilterNode>(m, "MPSCNNConvolutionGradientNode", "Gradient of a convolution (MPS_SEMANTICS 7.4). Result: the forward source's size; weight gradients, summed over the batch, in the state.");
  gradient.def(py::init<Image, Image, std::shared_ptr<CNNConvolutionGradientStateNode>, ConvolutionDataSourcePtr>(), "source_gradient"_a, "source_image"_a,
               "convolution_gradient_state"_a, "weights"_a = py::none())
      .def_property_readonly("weights", &CNNConvolutionGradientNode::weights, "The data source.");
  def_training_style<CNNConvolutionGradientNode>(gradient);
  node_class<CNNFullyConnectedGradientNode, CNNConvolutionGradientNode>(m, "MPSCNNFullyConnectedGradientNode", "Gradient of a fully connected node.")
      .def(py::init<Image, Image, std::shared_ptr<CNNConvolutionGradientStateNode>, ConvolutionDataSourcePtr>(), "source_gradient"_a, "source_image"_a,
           "convolution_gradient_state"_a, "weights"_a = py::none());
  node_class<CNNConvolutionTransposeGradientNode, CNNConvolutionGradientNode>(m, "MPSCNNConvolutionTransposeGradientNode", "Gradient of a transposed convolution.")
      .def(py::init<Image, Image, std::shared_ptr<CNNConvolutionTransposeGradientStateNode>, ConvolutionDataSourcePtr>(), "source_gradient"_a, "source_image"_a,
           "convolution_transpose_gradient_state"_a, "weights"_a = py::none())
      .def(py::init([](Image gradient, Image source, const std::shared_ptr<CNNConvolutionGradientStateNode>& state, ConvolutionDataSourcePtr weights) {
             const auto transposed = std::dynamic_pointer_cast<CNNConvolutionTransposeGradientStateNode>(state);
             if (!transposed)
               throw GraphError("the gradient of a transposed convolution needs its state.",
                                {.node = "MPSCNNConvolutionTransposeGradientNode", .expected = "an MPSCNNConvolutionTransposeGradientStateNode",
                                 .actual = state ? state->class_name() : "None", .hint = "pass result_state of the transposed convolution"});
             return std::make_shared<CNNConvolutionTransposeGradientNode>(gradient, source, transposed, weights);
           }), "source_gradient"_a, "source_image"_a, "convolution_gradient_state"_a, "weights"_a = py::none());
}

template <class Node, class Class>
void def_window_properties(Class& c) {
  c.def_property_readonly("kernel_width", &Node::kernel_width)
      .def_property_readonly("kernel_height", &Node::kernel_height)
      .def_property_readonly("stride_in_pixels_x", &Node::stride_in_pixels_x)
      .def_property_readonly("stride_in_pixels_y", &Node::stride_in_pixels_y);
}

template <class Node>
void bind_pooling_pair_forward(py::module_& m, const char* name, const char* doc) {
  node_class<Node, CNNPoolingNode>(m, name, doc)
      .def(py::init([](Image source, int kw, int kh, int sx, int sy) { return std::make_shared<Node>(source, WindowSize{kw, kh, sx, sy, 1, 1}); }), "source"_a, "kernel_width"_a,
           "kernel_height"_a, "stride_in_pixels_x"_a, "stride_in_pixels_y"_a)
      .def(py::init([](Image source, int size, std::optional<int> stride) {
             return std::make_shared<Node>(source, WindowSize{size, size, stride.value_or(size), stride.value_or(size), 1, 1});
           }), "source"_a, "filter_size"_a, "stride"_a = py::none());
}

template <class Node>
void bind_pooling_pair_gradient(py::module_& m, const char* name, const char* doc) {
  node_class<Node, CNNPoolingGradientNode>(m, name, doc)
      .def(py::init([](Image gradient, Image source, GradientState state, int kw, int kh, int sx, int sy, PaddingPtr policy) {
             return std::make_shared<Node>(gradient, source, state, WindowSize{kw, kh, sx, sy, 1, 1}, policy);
           }), "source_gradient"_a, "source_image"_a, "gradient_state"_a, "kernel_width"_a, "kernel_height"_a, "stride_in_pixels_x"_a, "stride_in_pixels_y"_a,
           "padding_policy"_a = py::none());
}

void bind_binary_convolution(py::module_& m) {
  auto def = [](auto& c, auto node) {
    using Node = typename decltype(node)::type;
    using Terms = std::optional<std::vector<float>>;
    c.def(py::init([](Image source, ConvolutionDataSourcePtr weights, Terms output_bias, Terms output_scale, Terms input_bias, Terms input_scale,
                      CNNBinaryConvolutionType type, CNNBinaryConvolutionFlags flags) {
           const std::vector<float> none;
           return std::make_shared<Node>(source, weights, BinaryConvolutionTerms{output_bias.value_or(none), output_scale.value_or(none), input_bias.value_or(none),
                                                                                 input_scale.value_or(none)}, type, flags);
         }), "source"_a, "weights"_a, "output_bias_terms"_a, "output_scale_terms"_a, "input_bias_terms"_a, "input_scale_terms"_a, "type"_a, "flags"_a)
        .def(py::init([](Image source, ConvolutionDataSourcePtr weights, float scale, CNNBinaryConvolutionType type, CNNBinaryConvolutionFlags flags) {
           return std::make_shared<Node>(source, weights, scale, type, flags);
         }), "source"_a, "weights"_a, "scale_value"_a, "type"_a, "flags"_a)
        .def(py::init([](Image source, ConvolutionDataSourcePtr weights) {
           return std::make_shared<Node>(source, weights, 1.0f, CNNBinaryConvolutionType::BinaryWeights, CNNBinaryConvolutionFlags::None);
         }), "source"_a, "weights"_a, "As the superclass is made: scale_value 1, BinaryWeights, no flags.");
  };
  auto convolution = node_class<CNNBinaryConvolutionNode, CNNConvolutionNode>(m, "MPSCNNBinaryConvolutionNode", "Convolution with weights of one bit, 32 channels to a UInt32 (MPS_SEMANTICS 7.9). No gradient exists.");
  def(convolution, std::type_identity<CNNBinaryConvolutionNode>{});
  auto fully_connected = node_class<CNNBinaryFullyConnectedNode, CNNBinaryConvolutionNode>(m, "MPSCNNBinaryFullyConnectedNode", "Binary convolution whose kernel is the whole image.");
  def(fully_connected, std::type_identity<CNNBinaryFullyConnectedNode>{});
}

void bind_pooling(py::module_& m) {
  auto base = node_class<CNNPoolingNode, NNFilterNode>(m, "MPSCNNPoolingNode", "Base of the pooling nodes (MPS_SEMANTICS 8): edge mode Clamp, padding same, channels unchanged.");
  def_window_properties<CNNPoolingNode>(base);
  auto gradient = node_class<CNNPoolingGradientNode, NNGradientFilterNode>(m, "MPSCNNPoolingGradientNode", "Base of the pooling gradients. The window must be the forward node's. Result: the forward source's size.");
  def_window_properties<CNNPoolingGradientNode>(gradient);
  bind_pooling_pair_forward<CNNPoolingMaxNode>(m, "MPSCNNPoolingMaxNode", "The largest value under each window. Gradient: all to the first largest in row-major order.");
  bind_pooling_pair_forward<CNNPoolingAverageNode>(m, "MPSCNNPoolingAverageNode", "The mean of the pixels under each window; over the edge the window shrinks (8.4).");
  bind_pooling_pair_forward<CNNPoolingL2NormNode>(m, "MPSCNNPoolingL2NormNode", "The root of the sum of squares under each window.");
  bind_pooling_pair_gradient<CNNPoolingMaxGradientNode>(m, "MPSCNNPoolingMaxGradientNode", "Gradient of max pooling.");
  bind_pooling_pair_gradient<CNNPoolingAverageGradientNode>(m, "MPSCNNPoolingAverageGradientNode", "Gradient of average pooling.");
  bind_pooling_pair_gradient<CNNPoolingL2NormGradientNode>(m, "MPSCNNPoolingL2NormGradientNode", "Gradient of L2-norm pooling: x / result, 0 where the result is 0.");
  node_class<CNNDilatedPoolingMaxNode, NNFilterNode>(m, "MPSCNNDilatedPoolingMaxNode", "Max pooling with gaps between the taps.")
      .def(py::init([](Image source, int kw, int kh, int sx, int sy, int dx, int dy) {
             return std::make_shared<CNNDilatedPoolingMaxNode>(source, WindowSize{kw, kh, sx, sy, dx, dy});
           }), "source"_a, "kernel_width"_a, "kernel_height"_a, "stride_in_pixels_x"_a, "stride_in_pixels_y"_a, "dilation_rate_x"_a, "dilation_rate_y"_a)
      .def(py::init([](Image source, int size, int stride, int dilation) {
             return std::make_shared<CNNDilatedPoolingMaxNode>(source, WindowSize{size, size, stride, stride, dilation, dilation});
           }), "source"_a, "filter_size"_a, "stride"_a, "dilation_rate"_a)
      .def(py::init([](Image source, int size) { return std::make_shared<CNNDilatedPoolingMaxNode>(source, WindowSize{size, size, size, size, size, size}); }), "source"_a,
           "filter_size"_a)
      .def_property_readonly("dilation_rate_x", &CNNDilatedPoolingMaxNode::dilation_rate_x)
      .def_property_readonly("dilation_rate_y", &CNNDilatedPoolingMaxNode::dilation_rate_y);
  node_class<CNNDilatedPoolingMaxGradientNode, CNNPoolingGradientNode>(m, "MPSCNNDilatedPoolingMaxGradientNode", "Gradient of dilated max pooling.")
      .def(py::init([](Image gradient, Image source, GradientState state, int kw, int kh, int sx, int sy, int dx, int dy) {
             return std::make_shared<CNNDilatedPoolingMaxGradientNode>(gradient, source, state, WindowSize{kw, kh, sx, sy, dx, dy});
           }), "source_gradient"_a, "source_image"_a, "gradient_state"_a, "kernel_width"_a, "kernel_height"_a, "stride_in_pixels_x"_a, "stride_in_pixels_y"_a,
           "dilation_rate_x"_a, "dilation_rate_y"_a)
      .def(py::init([](Image gradient, Image source, GradientState state, int kw, int kh, int sx, int sy, PaddingPtr policy) {
             return std::make_shared<CNNDilatedPoolingMaxGradientNode>(gradient, source, state, WindowSize{kw, kh, sx, sy, 1, 1}, policy);
           }), "source_gradient"_a, "source_image"_a, "gradient_state"_a, "kernel_width"_a, "kernel_height"_a, "stride_in_pixels_x"_a, "stride_in_pixels_y"_a,
           "padding_policy"_a = py::none(), "As the superclass is made: dilation 1.")
      .def_property_readonly("dilation_rate_x", &CNNDilatedPoolingMaxGradientNode::dilation_rate_x)
      .def_property_readonly("dilation_rate_y", &CNNDilatedPoolingMaxGradientNode::dilation_rate_y);
}

/// Neuron nodes with 0 to 3 parameters: all of them or none, as Apple's initializers.
template <class Node, int kParameters>
void bind_neuron_class(py::module_& m, const char* name, const char* doc) {
  auto c = node_class<Node, CNNNeuronNode>(m, name, doc);
  c.def(py::init<Image>(), "source"_a);
  if constexpr (kParameters == 1) c.def(py::init<Image, float>(), "source"_a, "a"_a);
  if constexpr (kParameters == 2) c.def(py::init<Image, float, float>(), "source"_a, "a"_a, "b"_a);
  if constexpr (kParameters == 3) c.def(py::init<Image, float, float, float>(), "source"_a, "a"_a, "b"_a, "c"_a);
}

void bind_neurons(py::module_& m) {
  node_class<CNNNeuronNode, NNFilterNode>(m, "MPSCNNNeuronNode", "Base of the activation functions (MPS_SEMANTICS 9). Gradient: E * f'(x).")
      .def_static("node", &make_neuron_node, "source"_a, "descriptor"_a, "The node class that the descriptor names.")
      .def_property_readonly("a", &CNNNeuronNode::a)
      .def_property_readonly("b", &CNNNeuronNode::b)
      .def_property_readonly("c", &CNNNeuronNode::c);
  bind_neuron_class<CNNNeuronAbsoluteNode, 0>(m, "MPSCNNNeuronAbsoluteNode", "|x|");
  bind_neuron_class<CNNNeuronELUNode, 1>(m, "MPSCNNNeuronELUNode", "x >= 0 ? x : a * (e^x - 1); a is 1 unless given");
  bind_neuron_class<CNNNeuronReLUNode, 1>(m, "MPSCNNNeuronReLUNode", "x >= 0 ? x : a * x; a is 0 unless given");
  bind_neuron_class<CNNNeuronReLUNNode, 2>(m, "MPSCNNNeuronReLUNNode", "min(x >= 0 ? x : a * x, b); a is 1, b is 6 unless given: a = 0 makes ReLU6");
  bind_neuron_class<CNNNeuronLinearNode, 2>(m, "MPSCNNNeuronLinearNode", "a * x + b; a is 1, b is 0 unless given");
  bind_neuron_class<CNNNeuronSigmoidNode, 0>(m, "MPSCNNNeuronSigmoidNode", "1 / (1 + e^-x)");
  bind_neuron_class<CNNNeuronHardSigmoidNode, 2>(m, "MPSCNNNeuronHardSigmoidNode", "clamp(a * x + b, 0, 1); a is 0.2, b is 0.5 unless given");
  bind_neuron_class<CNNNeuronSoftPlusNode, 2>(m, "MPSCNNNeuronSoftPlusNode", "a * ln(1 + e^(b * x)); a and b are 1 unless given");
  bind_neuron_class<CNNNeuronSoftSignNode, 0>(m, "MPSCNNNeuronSoftSignNode", "x / (1 + |x|)");
  bind_neuron_class<CNNNeuronTanHNode, 2>(m, "MPSCNNNeuronTanHNode", "a * tanh(b * x); a and b are 1 unless given");
  bind_neuron_class<CNNNeuronPowerNode, 3>(m, "MPSCNNNeuronPowerNode", "(a * x + b)^c; 1, 0, 1 unless given");
  bind_neuron_class<CNNNeuronExponentialNode, 3>(m, "MPSCNNNeuronExponentialNode", "c^(a * x + b), c = -1 means base e; 1, 0, -1 unless given");
  bind_neuron_class<CNNNeuronLogarithmNode, 3>(m, "MPSCNNNeuronLogarithmNode", "log_c(a * x + b), c = -1 means base e; 1, 0, -1 unless given");
  bind_neuron_class<CNNNeuronGeLUNode, 0>(m, "MPSCNNNeuronGeLUNode", "0.5 * x * (1 + erf(x / sqrt(2)))");
  node_class<CNNNeuronPReLUNode, CNNNeuronNode>(m, "MPSCNNNeuronPReLUNode", "x >= 0 ? x : a[channel] * x. The slopes are constants: they get no gradient.")
      .def(py::init([](Image source, const py::object& a_data) {
             const Buffer slopes = view_of(a_data, "a_data").buffer;
             std::vector<float> values(slopes.count());
             for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(slopes.at(i));
             return std::make_shared<CNNNeuronPReLUNode>(source, std::move(values));
           }), "source"_a, "a_data"_a);
  node_class<CNNNeuronGradientNode, NNGradientFilterNode>(m, "MPSCNNNeuronGradientNode", "Gradient of every activation function.")
      .def(py::init<Image, Image, GradientState, NNNeuronDescriptor>(), "source_gradient"_a, "source_image"_a, "gradient_state"_a, "descriptor"_a)
      .def_property_readonly("descriptor", &CNNNeuronGradientNode::descriptor);
}

template <class Node, class Class>
void def_arithmetic_properties(Class& c) {
  using P = ArithmeticProperties;
  auto property = [&](const char* name, auto P::*member) {
    using Value = std::remove_reference_t<decltype(std::declval<P&>().*member)>;
    c.def_property(name, [member](const Node& node) { return static_cast<const P&>(node).*member; }, [member](Node& node, Value value) { static_cast<P&>(node).*member = value; });
  };
  property("primary_scale", &P::primary_scale);
  property("secondary_scale", &P::secondary_scale);
  property("bias", &P::bias);
  property("minimum_value", &P::minimum_value);
  property("maximum_value", &P::maximum_value);
  property("primary_stride_in_pixels_x", &P::primary_stride_in_pixels_x);
  property("primary_stride_in_pixels_y", &P::primary_stride_in_pixels_y);
  property("primary_stride_in_feature_channels", &P::primary_stride_in_feature_channels);
  property("secondary_stride_in_pixels_x", &P::secondary_stride_in_pixels_x);
  property("secondary_stride_in_pixels_y", &P::secondary_stride_in_pixels_y);
  property("secondary_stride_in_feature_channels", &P::secondary_stride_in_feature_channels);
}

template <class Node, class Gradient>
void bind_arithmetic_pair(py::module_& m, const char* name, const char* gradient_name, const char* doc) {
  node_class<Node, NNBinaryArithmeticNode>(m, name, doc)
      .def(py::init<std::vector<Image>>(), "sources"_a)
      .def(py::init<Image, Image>(), "left_source"_a, "right_source"_a);
  node_class<Gradient, NNArithmeticGradientNode>(m, gradient_name, "Gradient of one source, summed over the dimensions in which it was broadcast (MPS_SEMANTICS 16).")
      .def(py::init<Image, Image, std::shared_ptr<NNBinaryGradientStateNode>, bool>(), "source_gradient"_a, "source_image"_a, "gradient_state"_a, "is_secondary_source_filter"_a)
      .def(py::init<const std::vector<Image>&, const FilterNodePtr&, bool>(), "gradient_images"_a, "forward_filter"_a, "is_secondary_source_filter"_a);
}

template <class Node>
void bind_plain_arithmetic(py::module_& m, const char* name, const char* doc, auto&& more) {
  auto c = node_class<Node, NNBinaryArithmeticNode>(m, name, doc);
  c.def(py::init<std::vector<Image>>(), "sources"_a).def(py::init<Image, Image>(), "left_source"_a, "right_source"_a);
  more(c);
}

void bind_arithmetic(py::module_& m) {
  auto base = node_class<NNBinaryArithmeticNode, NNFilterNode>(m, "MPSNNBinaryArithmeticNode", "Base of the arithmetic nodes (MPS_SEMANTICS 16). Strides of 0 repeat a source along a dimension.");
  base.def_property_readonly("gradient_class", [](const NNBinaryArithmeticNode& node) -> py::object {
    const char* name = node.gradient_class();
    return name ? py::module_::import("mpsnn._mpsnn").attr(name) : py::object(py::none());
  }, "The class of this node's gradients; None where no gradient exists.");
  def_arithmetic_properties<NNBinaryArithmeticNode>(base);
  auto gradient = node_class<NNArithmeticGradientNode, NNGradientFilterNode>(m, "MPSNNArithmeticGradientNode", "Base of the arithmetic gradients.");
  gradient.def_property_readonly("is_secondary_source_filter", &NNArithmeticGradientNode::is_secondary_source_filter);
  def_arithmetic_properties<NNArithmeticGradientNode>(gradient);
  bind_arithmetic_pair<NNAdditionNode, NNAdditionGradientNode>(m, "MPSNNAdditionNode", "MPSNNAdditionGradientNode", "primary_scale * x + secondary_scale * y + bias, clamped");
  bind_arithmetic_pair<NNSubtractionNode, NNSubtractionGradientNode>(m, "MPSNNSubtractionNode", "MPSNNSubtractionGradientNode", "primary_scale * x - secondary_scale * y + bias, clamped");
  bind_arithmetic_pair<NNMultiplicationNode, NNMultiplicationGradientNode>(m, "MPSNNMultiplicationNode", "MPSNNMultiplicationGradientNode",
                                                                           "(primary_scale * x) * (secondary_scale * y) + bias, clamped");
  bind_plain_arithmetic<NNDivisionNode>(m, "MPSNNDivisionNode", "(primary_scale * x) / (secondary_scale * y) + bias, clamped. No gradient exists.", [](auto&) {});
  bind_plain_arithmetic<NNComparisonNode>(m, "MPSNNComparisonNode", "1 where the relation holds, else 0. No gradient exists.",
                                          [](auto& c) { c.def_readwrite("comparison_type", &NNComparisonNode::comparison_type); });
}

void bind_normalization_and_dropout(py::module_& m) {
  auto normalization = node_class<CNNBatchNormalizationNode, NNFilterNode>(m, "MPSCNNBatchNormalizationNode", "(x - mean) * gamma / sqrt(variance + epsilon) + beta per channel (MPS_SEMANTICS 12.2).");
  normalization.def(py::init<Image, BatchNormalizationDataSourcePtr>(), "source"_a, "data_source"_a)
      .def_property_readonly("data_source", &CNNBatchNormalizationNode::data_source)
      .def_readwrite("flags", &CNNBatchNormalizationNode::flags, "Whose statistics: automatic takes the batch's where the node is trained.");
  def_training_style<CNNBatchNormalizationNode>(normalization);
  auto gradient = node_class<CNNBatchNormalizationGradientNode, NNGradientFilterNode>(m, "MPSCNNBatchNormalizationGradientNode", "Gradient of batch normalization.");
  gradient.def(py::init<Image, Image, GradientState>(), "source_gradient"_a, "source_image"_a, "gradient_state"_a);
  def_training_style<CNNBatchNormalizationGradientNode>(gradient);

  auto parameters = [](float keep, std::uint64_t seed, const std::tuple<int, int, int>& stride) {
    return DropoutParameters{keep, seed, std::get<0>(stride), std::get<1>(stride), std::get<2>(stride)};
  };
  auto def_properties = [](auto& c, auto node) {
    using Node = typename decltype(node)::type;
    c.def_property_readonly("keep_probability", [](const Node& n) { return n.dropout().keep_probability; })
        .def_property_readonly("seed", [](const Node& n) { return n.dropout().seed; })
        .def_property_readonly("mask_stride_in_pixels", [](const Node& n) {
          return std::tuple(n.dropout().mask_stride_x, n.dropout().mask_stride_y, n.dropout().mask_stride_channels);
        }, "(width, height, channels), each 0 or 1; 0 repeats one mask value along that dimension");
  };
  auto dropout = node_class<CNNDropoutNode, NNFilterNode>(m, "MPSCNNDropoutNode", "Keeps an element with keep_probability and divides it by that, else 0 (MPS_SEMANTICS 13). Never off: leave it out of inference graphs.");
  dropout.def(py::init([=](Image source, float keep, std::uint64_t seed, std::tuple<int, int, int> stride) {
           return std::make_shared<CNNDropoutNode>(source, parameters(keep, seed, stride));
         }), "source"_a, "keep_probability"_a = 0.5f, "seed"_a = 0, "mask_stride_in_pixels"_a = std::tuple(1, 1, 1));
  def_properties(dropout, std::type_identity<CNNDropoutNode>{});
  auto dropout_gradient = node_class<CNNDropoutGradientNode, NNGradientFilterNode>(m, "MPSCNNDropoutGradientNode", "E * mask / keep_probability with the forward mask.");
  dropout_gradient.def(py::init([=](Image gradient, Image source, GradientState state, float keep, std::uint64_t seed, std::tuple<int, int, int> stride) {
                    return std::make_shared<CNNDropoutGradientNode>(gradient, source, state, parameters(keep, seed, stride));
                  }), "source_gradient"_a, "source_image"_a, "gradient_state"_a, "keep_probability"_a, "seed"_a, "mask_stride_in_pixels"_a);
  def_properties(dropout_gradient, std::type_identity<CNNDropoutGradientNode>{});
}

class PyLossCallback final : public NNLossCallback, public PyCallback {
 public:
  using PyCallback::PyCallback;
  float scalar_weight(const ImageDescriptor& source, const ImageDescriptor& destination) override {
    py::gil_scoped_acquire gil;
    return object().attr("scalar_weight_for_source_image")(source, destination).cast<float>();
  }
};

template <class Node, class Class>
void def_loss_properties(Class& c) {
  c.def_property_readonly("loss_type", [](const Node& n) { return n.loss_descriptor().loss_type; })
      .def_property_readonly("reduction_type", [](const Node& n) { return n.loss_descriptor().reduction_type; })
      .def_property_readonly("reduce_across_batch", [](const Node& n) { return n.loss_descriptor().reduce_across_batch; })
      .def_property_readonly("number_of_classes", [](const Node& n) { return n.loss_descriptor().number_of_classes; })
      .def_property_readonly("weight", [](const Node& n) { return n.loss_descriptor().weight; })
      .def_property_readonly("label_smoothing", [](const Node& n) { return n.loss_descriptor().label_smoothing; })
      .def_property_readonly("epsilon", [](const Node& n) { return n.loss_descriptor().epsilon; })
      .def_property_readonly("delta", [](const Node& n) { return n.loss_descriptor().delta; })
      .def_property("property_call_back", [](const Node& n) -> py::object {
             const auto* callback = dynamic_cast<const PyLossCallback*>(n.property_callback.get());
             return callback ? callback->object() : py::object(py::none());
           }, [](Node& n, const py::object& object) { n.property_callback = object.is_none() ? nullptr : std::make_shared<PyLossCallback>(object); },
           "An object with scalar_weight_for_source_image(source_image, destination_image), asked when the graph is planned; or None.");
}

void bind_losses(py::module_& m) {
  node_class<CNNSoftMaxNode, NNFilterNode>(m, "MPSCNNSoftMaxNode", "e^x / sum of e^x over the feature channels of each pixel (MPS_SEMANTICS 10).").def(py::init<Image>(), "source"_a);
  node_class<CNNSoftMaxGradientNode, NNGradientFilterNode>(m, "MPSCNNSoftMaxGradientNode", "y * (E - sum of E * y). The source image is the forward result.")
      .def(py::init<Image, Image, GradientState>(), "source_gradient"_a, "source_image"_a, "gradient_state"_a);
  node_class<CNNLogSoftMaxNode, NNFilterNode>(m, "MPSCNNLogSoftMaxNode", "The logarithm of soft-max.").def(py::init<Image>(), "source"_a);
  node_class<CNNLogSoftMaxGradientNode, NNGradientFilterNode>(m, "MPSCNNLogSoftMaxGradientNode", "E - e^y * sum of E. The source image is the forward result.")
      .def(py::init<Image, Image, GradientState>(), "source_gradient"_a, "source_image"_a, "gradient_state"_a);

  node_class<CNNLossNode, NNFilterNode>(m, "MPSCNNLossNode", "Starts the backward pass (MPS_SEMANTICS 14.4). Result: the gradient; the loss goes to the MPSCNNLossLabels of the step.")
      .def(py::init<Image, CNNLossDescriptor>(), "source"_a, "loss_descriptor"_a)
      .def_property_readonly("input_labels", &CNNLossNode::input_labels);
  auto forward = node_class<NNForwardLossNode, NNFilterNode>(m, "MPSNNForwardLossNode", "The loss as an image: 1 x 1 x 1 unless the reduction is None (MPS_SEMANTICS 14.5).");
  forward.def(py::init<Image, Image, Image, CNNLossDescriptor>(), "source"_a, "labels"_a, "weights"_a, "loss_descriptor"_a)
      .def(py::init([](Image source, Image labels, const CNNLossDescriptor& loss) { return std::make_shared<NNForwardLossNode>(source, labels, nullptr, loss); }), "source"_a, "labels"_a,
           "loss_descriptor"_a)
      .def(py::init<std::vector<Image>, CNNLossDescriptor>(), "sources"_a, "loss_descriptor"_a);
  def_loss_properties<NNForwardLossNode>(forward);
  auto gradient = node_class<NNLossGradientNode, NNGradientFilterNode>(m, "MPSNNLossGradientNode", "E * dl/dy, or E * dl/dt for the labels.");
  gradient.def(py::init<std::vector<Image>, GradientState, CNNLossDescriptor, bool>(), "sources"_a, "gradient_state"_a, "loss_descriptor"_a, "is_labels_gradient_filter"_a)
      .def(py::init([](Image g, Image source, Image labels, GradientState state, const CNNLossDescriptor& loss, bool is_labels) {
             return std::make_shared<NNLossGradientNode>(std::vector{g, source, labels}, state, loss, is_labels);
           }), "source_gradient"_a, "source_image"_a, "labels"_a, "gradient_state"_a, "loss_descriptor"_a, "is_labels_gradient_filter"_a)
      .def(py::init([](Image g, Image source, Image labels, Image weights, GradientState state, const CNNLossDescriptor& loss, bool is_labels) {
             return std::make_shared<NNLossGradientNode>(std::vector{g, source, labels, weights}, state, loss, is_labels);
           }), "source_gradient"_a, "source_image"_a, "labels"_a, "weights"_a, "gradient_state"_a, "loss_descriptor"_a, "is_labels_gradient_filter"_a)
      .def_property_readonly("is_labels_gradient_filter", &NNLossGradientNode::is_labels_gradient_filter);
  def_loss_properties<NNLossGradientNode>(gradient);
  node_class<CNNYOLOLossNode, NNFilterNode>(m, "MPSCNNYOLOLossNode", "Loss of a grid of object detectors; result and labels as MPSCNNLossNode's (MPS_SEMANTICS 14.6).")
      .def(py::init<Image, CNNYOLOLossDescriptor>(), "source"_a, "loss_descriptor"_a)
      .def_property_readonly("input_labels", &CNNYOLOLossNode::input_labels);
  node_class<NNInitialGradientNode, NNFilterNode>(m, "MPSNNInitialGradientNode", "Ones of the source's size: differentiates the sum of the source.").def(py::init<Image>(), "source"_a);

  node_class<NNConcatenationNode, NNFilterNode>(m, "MPSNNConcatenationNode", "Appends the feature channels of its sources, densely (MPS_SEMANTICS 18.1).")
      .def(py::init<std::vector<Image>>(), "sources"_a);
  node_class<NNConcatenationGradientNode, NNGradientFilterNode>(m, "MPSNNConcatenationGradientNode", "The channels of the incoming gradient that belong to one source.")
      .def(py::init<Image, Image, GradientState>(), "source_gradient"_a, "source_image"_a, "gradient_state"_a);
}

}  // namespace

HandlePtr handle_of(const py::object& object) {
  if (object.is_none()) return nullptr;
  if (!py::isinstance<py::str>(object) && !py::hasattr(object, "label"))
    throw OptionError("a handle is a string or an object with a label.", {.node = "MPSHandle", .expected = "str, or an object with label", .actual = py::str(py::type::of(object)).cast<std::string>()});
  return std::make_shared<PyHandle>(object);
}

py::object object_of(const HandlePtr& handle) {
  if (!handle) return py::none();
  const auto* ours = dynamic_cast<const PyHandle*>(handle.get());
  return ours ? ours->object() : py::object(py::str(handle->label()));
}

void bind_nodes(py::module_& m) {
  bind_base(m);
  bind_convolution(m);
  bind_binary_convolution(m);
  bind_pooling(m);
  bind_neurons(m);
  bind_arithmetic(m);
  bind_normalization_and_dropout(m);
  bind_losses(m);
  bind_normalization_nodes(m);
  bind_shape_nodes(m);
}

}  // namespace mpsnn::python
