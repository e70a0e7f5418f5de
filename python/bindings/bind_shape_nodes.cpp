// SPDX-License-Identifier: Apache-2.0
#include "node_class.hpp"

/// Reductions, resampling, reshape, pad and gram matrix.
namespace mpsnn::python {
namespace {

class PyGramMatrixCallback final : public NNGramMatrixCallback, public PyCallback {
 public:
  using PyCallback::PyCallback;
  float alpha(const ImageDescriptor& source, const ImageDescriptor& destination) override {
    py::gil_scoped_acquire gil;
    return object().attr("alpha_for_source_image")(source, destination).cast<float>();
  }
};

class PyTransformProvider final : public ImageTransformProvider, public PyCallback {
 public:
  using PyCallback::PyCallback;
  ScaleTransform transform(const ImageDescriptor& source, const HandlePtr& handle) override {
    py::gil_scoped_acquire gil;
    return object().attr("transform_for_source_image")(source, object_of(handle)).cast<ScaleTransform>();
  }
};

template <class Node>
py::class_<Node, NNUnaryReductionNode, std::shared_ptr<Node>> bind_reduction(py::module_& m, const char* name, const char* doc) {
  return node_class<Node, NNUnaryReductionNode>(m, name, doc).def(py::init<Image>(), "source"_a);
}

void bind_reductions(py::module_& m) {
  py::class_<ClipRectangle>(m, "MTLRegion", "A rectangle of pixels.")
      .def(py::init([](int x, int y, int width, int height) { return ClipRectangle{x, y, width, height}; }), "x"_a, "y"_a, "width"_a, "height"_a)
      .def_readwrite("x", &ClipRectangle::x)
      .def_readwrite("y", &ClipRectangle::y)
      .def_readwrite("width", &ClipRectangle::width)
      .def_readwrite("height", &ClipRectangle::height)
      .def("__eq__", [](const ClipRectangle& a, const ClipRectangle& b) { return a == b; }, py::is_operator());
  m.attr("MPSRectNoClip") = ClipRectangle{};
  node_class<NNUnaryReductionNode, NNFilterNode>(m, "MPSNNUnaryReductionNode", "Base of the reductions (MPS_SEMANTICS 17).")
      .def_readwrite("clip_rect_source", &NNUnaryReductionNode::clip_rect_source, "Restricts the source to a rectangle; MPSRectNoClip takes it whole.");
  bind_reduction<NNReductionRowMinNode>(m, "MPSNNReductionRowMinNode", "The minimum, along x (MPS_SEMANTICS 17).");
  bind_reduction<NNReductionRowMaxNode>(m, "MPSNNReductionRowMaxNode", "The maximum, along x (MPS_SEMANTICS 17).");
  bind_reduction<NNReductionRowMeanNode>(m, "MPSNNReductionRowMeanNode", "The mean, along x (MPS_SEMANTICS 17).");
  bind_reduction<NNReductionRowSumNode>(m, "MPSNNReductionRowSumNode", "The sum, along x (MPS_SEMANTICS 17).");
  bind_reduction<NNReductionColumnMinNode>(m, "MPSNNReductionColumnMinNode", "The minimum, along y (MPS_SEMANTICS 17).");
  bind_reduction<NNReductionColumnMaxNode>(m, "MPSNNReductionColumnMaxNode", "The maximum, along y (MPS_SEMANTICS 17).");
  bind_reduction<NNReductionColumnMeanNode>(m, "MPSNNReductionColumnMeanNode", "The mean, along y (MPS_SEMANTICS 17).");
  bind_reduction<NNReductionColumnSumNode>(m, "MPSNNReductionColumnSumNode", "The sum, along y (MPS_SEMANTICS 17).");
  bind_reduction<NNReductionFeatureChannelsMinNode>(m, "MPSNNReductionFeatureChannelsMinNode", "The minimum, over the feature channels (MPS_SEMANTICS 17).");
  bind_reduction<NNReductionFeatureChannelsMaxNode>(m, "MPSNNReductionFeatureChannelsMaxNode", "The maximum, over the feature channels (MPS_SEMANTICS 17).");
  bind_reduction<NNReductionFeatureChannelsMeanNode>(m, "MPSNNReductionFeatureChannelsMeanNode", "The mean, over the feature channels (MPS_SEMANTICS 17).");
  bind_reduction<NNReductionFeatureChannelsArgumentMinNode>(m, "MPSNNReductionFeatureChannelsArgumentMinNode", "The channel of the minimum, the lowest on ties, over the feature channels (MPS_SEMANTICS 17).");
  bind_reduction<NNReductionFeatureChannelsArgumentMaxNode>(m, "MPSNNReductionFeatureChannelsArgumentMaxNode", "The channel of the maximum, the lowest on ties, over the feature channels (MPS_SEMANTICS 17).");
  bind_reduction<NNReductionSpatialMeanNode>(m, "MPSNNReductionSpatialMeanNode", "The mean, over all pixels (MPS_SEMANTICS 17).");
  bind_reduction<NNReductionFeatureChannelsSumNode>(m, "MPSNNReductionFeatureChannelsSumNode", "The sum over the feature channels, times weight (MPS_SEMANTICS 17).")
      .def_readwrite("weight", &NNReductionFeatureChannelsSumNode::weight);
  node_class<NNReductionSpatialMeanGradientNode, NNGradientFilterNode>(m, "MPSNNReductionSpatialMeanGradientNode", "E / number of pixels inside the region, 0 outside.")
      .def(py::init<Image, Image, GradientState>(), "source_gradient"_a, "source_image"_a, "gradient_state"_a);
}

template <class Node, class Class>
void def_factors(Class& c) {
  c.def_property_readonly("scale_factor_x", &Node::scale_factor_x).def_property_readonly("scale_factor_y", &Node::scale_factor_y);
}

template <class Node>
void bind_upsampling_gradient(py::module_& m, const char* name, const char* doc) {
  auto c = node_class<Node, NNGradientFilterNode>(m, name, doc);
  c.def(py::init<Image, Image, GradientState, double, double>(), "source_gradient"_a, "source_image"_a, "gradient_state"_a, "scale_factor_x"_a, "scale_factor_y"_a);
  def_factors<Node>(c);
}

template <class Node>
void bind_scale(py::module_& m, const char* name, const char* doc) {
  using Size = std::tuple<int, int, int>;
  node_class<Node, NNScaleNode>(m, name, doc)
      .def(py::init([](Image source, const Size& size) { return std::make_shared<Node>(source, nullptr, std::get<0>(size), std::get<1>(size)); }), "source"_a, "output_size"_a)
      .def(py::init([](Image source, const py::object& provider, const Size& size) {
             return std::make_shared<Node>(source, provider.is_none() ? nullptr : std::make_shared<PyTransformProvider>(provider), std::get<0>(size), std::get<1>(size));
           }), "source"_a, "transform_provider"_a, "output_size"_a);
}

void bind_resampling(py::module_& m) {
  auto nearest = node_class<CNNUpsamplingNearestNode, NNFilterNode>(m, "MPSCNNUpsamplingNearestNode", "Every pixel becomes a block (MPS_SEMANTICS 15). Gradient: the sum over each block.");
  nearest.def(py::init<Image, int, int>(), "source"_a, "integer_scale_factor_x"_a, "integer_scale_factor_y"_a);
  def_factors<CNNUpsamplingNearestNode>(nearest);
  auto bilinear = node_class<CNNUpsamplingBilinearNode, NNFilterNode>(m, "MPSCNNUpsamplingBilinearNode", "Interpolates between pixel centres, or from corner to corner (MPS_SEMANTICS 15).");
  bilinear.def(py::init<Image, int, int, bool>(), "source"_a, "integer_scale_factor_x"_a, "integer_scale_factor_y"_a, "align_corners"_a = false)
      .def_property_readonly("align_corners", &CNNUpsamplingBilinearNode::align_corners);
  def_factors<CNNUpsamplingBilinearNode>(bilinear);
  bind_upsampling_gradient<CNNUpsamplingNearestGradientNode>(m, "MPSCNNUpsamplingNearestGradientNode", "Gradient of nearest upsampling.");
  bind_upsampling_gradient<CNNUpsamplingBilinearGradientNode>(m, "MPSCNNUpsamplingBilinearGradientNode", "Gradient of bilinear upsampling: the exact adjoint.");
  py::class_<ScaleTransform>(m, "MPSScaleTransform", "result pixel = source pixel * scale + translate")
      .def(py::init([](double sx, double sy, double tx, double ty) { return ScaleTransform{sx, sy, tx, ty}; }), "scale_x"_a, "scale_y"_a, "translate_x"_a, "translate_y"_a)
      .def_readwrite("scale_x", &ScaleTransform::scale_x)
      .def_readwrite("scale_y", &ScaleTransform::scale_y)
      .def_readwrite("translate_x", &ScaleTransform::translate_x)
      .def_readwrite("translate_y", &ScaleTransform::translate_y);
  node_class<NNScaleNode, NNFilterNode>(m, "MPSNNScaleNode", R"(Base of the scale nodes (MPS_SEMANTICS 15). output_size: (width, height, 1).

transform_provider: None, or an object with transform_for_source_image(source_image, handle) that returns an MPSScaleTransform. No gradient exists.)");
  bind_scale<NNBilinearScaleNode>(m, "MPSNNBilinearScaleNode", "Two-tap interpolation, also when it shrinks.");
  bind_scale<NNLanczosScaleNode>(m, "MPSNNLanczosScaleNode", "Windowed sinc with three lobes.");
}

void bind_shapes(py::module_& m) {
  node_class<NNReshapeNode, NNFilterNode>(m, "MPSNNReshapeNode", "The same numbers in height, width, channel order under another shape (MPS_SEMANTICS 18.2).")
      .def(py::init<Image, int, int, int>(), "source"_a, "result_width"_a, "result_height"_a, "result_feature_channels"_a);
  node_class<NNReshapeGradientNode, NNGradientFilterNode>(m, "MPSNNReshapeGradientNode", "Reshapes back.")
      .def(py::init<Image, Image, GradientState>(), "source_gradient"_a, "source_image"_a, "gradient_state"_a);
  py::class_<ImageCoordinate>(m, "MPSImageCoordinate", "x, y and feature channel")
      .def(py::init([](int x, int y, int channel) { return ImageCoordinate{x, y, channel}; }), "x"_a = 0, "y"_a = 0, "channel"_a = 0)
      .def_readwrite("x", &ImageCoordinate::x)
      .def_readwrite("y", &ImageCoordinate::y)
      .def_readwrite("channel", &ImageCoordinate::channel)
      .def("__eq__", [](const ImageCoordinate& a, const ImageCoordinate& b) { return a == b; }, py::is_operator());
  node_class<NNPadNode, NNFilterNode>(m, "MPSNNPadNode", "Enlarges by whole pixels and channels on each side (MPS_SEMANTICS 18.3).")
      .def(py::init<Image, ImageCoordinate, ImageCoordinate, ImageEdgeMode>(), "source"_a, "padding_size_before"_a, "padding_size_after"_a, "edge_mode"_a)
      .def_readwrite("fill_value", &NNPadNode::fill_value, "for edge mode Constant");
  node_class<NNPadGradientNode, NNGradientFilterNode>(m, "MPSNNPadGradientNode", "Each source element collects from all that copied it.")
      .def(py::init<Image, Image, GradientState>(), "source_gradient"_a, "source_image"_a, "gradient_state"_a);
  node_class<NNGramMatrixCalculationNode, NNFilterNode>(m, "MPSNNGramMatrixCalculationNode", "alpha * sum over pixels of x[f] * x[c]; result 1 high, C wide, C channels (MPS_SEMANTICS 18.5).")
      .def(py::init<Image, float>(), "source"_a, "alpha"_a = 1.0f)
      .def_property_readonly("alpha", &NNGramMatrixCalculationNode::alpha)
      .def_property("property_call_back", [](const NNGramMatrixCalculationNode& n) -> py::object {
             const auto* callback = dynamic_cast<const PyGramMatrixCallback*>(n.property_callback.get());
             return callback ? callback->object() : py::object(py::none());
           }, [](NNGramMatrixCalculationNode& n, const py::object& object) {
             if (!object.is_none() && !py::hasattr(object, "alpha_for_source_image"))
               throw OptionError(n.display_name() + ": property_call_back lacks a method.",
                                 {n.class_name(), n.display_name(), "alpha_for_source_image", py::str(py::type::of(object)).cast<std::string>(), "define it, or set None"});
             n.property_callback = object.is_none() ? nullptr : std::make_shared<PyGramMatrixCallback>(object);
           }, "An object with alpha_for_source_image(source_image, destination_image), asked when the graph is planned; or None.");
  node_class<NNGramMatrixCalculationGradientNode, NNGradientFilterNode>(m, "MPSNNGramMatrixCalculationGradientNode", "Gradient of the gram matrix; alpha comes from the forward node's state.")
      .def(py::init<Image, Image, GradientState, float>(), "source_gradient"_a, "source_image"_a, "gradient_state"_a, "alpha"_a = 1.0f)
      .def_property_readonly("alpha", &NNGramMatrixCalculationGradientNode::alpha);
}

}  // namespace

void bind_shape_nodes(py::module_& m) {
  bind_reductions(m);
  bind_resampling(m);
  bind_shapes(m);
}

}  // namespace mpsnn::python
