// SPDX-License-Identifier: Apache-2.0
#include <pybind11/trampoline_self_life_support.h>

#include "bindings.hpp"

namespace mpsnn::python {
namespace {

class PyPadding : public NNPadding, public py::trampoline_self_life_support {
 public:
  NNPaddingMethod padding_method() const override { PYBIND11_OVERRIDE_PURE(NNPaddingMethod, NNPadding, padding_method); }
  std::string label() const override { PYBIND11_OVERRIDE(std::string, NNPadding, label); }
  std::shared_ptr<NNPadding> inverse() const override { PYBIND11_OVERRIDE(std::shared_ptr<NNPadding>, NNPadding, inverse); }
  ImageDescriptor destination_image_descriptor(const std::vector<ImageDescriptor>& source_images, KernelProperties& kernel,
                                               const ImageDescriptor& suggested) override {
    py::gil_scoped_acquire gil;
    const py::function method = py::get_override(static_cast<const NNPadding*>(this), "destination_image_descriptor");
    if (!method) return suggested;
    // The kernel goes by reference: a policy sets its offsets.
    return method(source_images, py::list(), py::cast(&kernel, py::return_value_policy::reference), suggested).cast<ImageDescriptor>();
  }
};

}  // namespace

void bind_geometry(py::module_& m) {
  py::class_<Axis>(m, "Axis", "One spatial axis of a windowed node, resolved: where each output pixel's window lies.")
      .def_readonly("input", &Axis::input, "pixels available")
      .def_readonly("output", &Axis::output, "pixels produced")
      .def_readonly("kernel", &Axis::kernel)
      .def_readonly("stride", &Axis::stride)
      .def_readonly("dilation", &Axis::dilation)
      .def_readonly("before", &Axis::before, "virtual pixels in front of pixel 0; negative means cropped")
      .def_property_readonly("offset", &Axis::offset, "position of the window's centre for output pixel 0, as MPS counts it")
      .def("tap", &Axis::tap, "output_pixel"_a, "tap"_a, "Virtual input pixel under a tap.")
      .def("taps_inside", [](const Axis& axis, int o) { const Range r = axis.taps_inside(o); return std::pair(r.begin, r.end); }, "output_pixel"_a,
           "Half-open range of the taps that land inside the image.")
      .def("__eq__", [](const Axis& a, const Axis& b) { return a == b; }, py::is_operator());
  auto direction = [](const std::string& name) {
    if (name == "x") return AxisDirection::x;
    if (name == "y") return AxisDirection::y;
    throw OptionError("a direction is x or y.", {.node = "resolve_axis", .expected = "\"x\" or \"y\"", .actual = name});
  };
  m.def("resolve_axis", [=](NNPaddingMethod method, int input, int kernel, int stride, int dilation, const std::string& axis) {
          if (input < 1 || kernel < 1 || stride < 1 || dilation < 1) throw OptionError("sizes are at least 1.", {.node = "resolve_axis", .expected = ">= 1"});
          return resolve_axis(method, direction(axis), input, kernel, stride, dilation);
        }, "padding_method"_a, "input"_a, "kernel"_a, "stride"_a = 1, "dilation"_a = 1, "direction"_a = "x",
        "The axis of a forward filter under a padding method (MPS_SEMANTICS 6.3).");
  m.def("resolve_reverse_axis", [=](NNPaddingMethod method, int source, int kernel, int stride, const std::string& axis) {
          if (source < 1 || kernel < 1 || stride < 1) throw OptionError("sizes are at least 1.", {.node = "resolve_reverse_axis", .expected = ">= 1"});
          return resolve_reverse_axis(method, direction(axis), source, kernel, stride);
        }, "padding_method"_a, "source"_a, "kernel"_a, "stride"_a = 1, "direction"_a = "x",
        "The axis of a transposed filter, written as the forward axis that it undoes (MPS_SEMANTICS 6.5).");

  py::class_<KernelProperties>(m, "MPSCNNKernel", "What a custom padding policy sees of a kernel. Settable: offset_x, offset_y, edge_mode.")
      .def_readonly("label", &KernelProperties::label)
      .def_property_readonly("kernel_width", [](const KernelProperties& k) { return k.window.kernel_width; })
      .def_property_readonly("kernel_height", [](const KernelProperties& k) { return k.window.kernel_height; })
      .def_property_readonly("stride_in_pixels_x", [](const KernelProperties& k) { return k.window.stride_in_pixels_x; })
      .def_property_readonly("stride_in_pixels_y", [](const KernelProperties& k) { return k.window.stride_in_pixels_y; })
      .def_property_readonly("dilation_rate_x", [](const KernelProperties& k) { return k.window.dilation_rate_x; })
      .def_property_readonly("dilation_rate_y", [](const KernelProperties& k) { return k.window.dilation_rate_y; })
      .def_readwrite("offset_x", &KernelProperties::offset_x)
      .def_readwrite("offset_y", &KernelProperties::offset_y)
      .def_readwrite("edge_mode", &KernelProperties::edge_mode);

  py::class_<NNPadding, PyPadding, py::smart_holder>(m, "MPSNNPadding", R"(Decides the size of a result and where its windows start (MPS_SEMANTICS 6).

Derive from it and define ``padding_method()``. With the Custom bit, ``destination_image_descriptor(source_images, source_states,
kernel, suggested_descriptor)`` is called: set ``kernel.offset_x`` and ``kernel.offset_y`` (the source pixel under the centre of the
first window) and return an MPSImageDescriptor of the result's size.)")
      .def(py::init<>())
      .def("padding_method", &NNPadding::padding_method)
      .def("label", &NNPadding::label)
      .def("destination_image_descriptor", [](NNPadding& p, const std::vector<ImageDescriptor>& source_images, const py::object&, KernelProperties& kernel,
                                              const ImageDescriptor& suggested) { return p.destination_image_descriptor(source_images, kernel, suggested); },
           "source_images"_a, "source_states"_a, "kernel"_a, "suggested_descriptor"_a, "Asked when padding_method() has the Custom bit.")
      .def("inverse", &NNPadding::inverse, "The policy of the gradient direction: valid and full change places.");
  py::class_<NNDefaultPadding, NNPadding, py::smart_holder>(m, "MPSNNDefaultPadding", "A padding policy made of MPSNNPaddingMethod bits.")
      .def(py::init<NNPaddingMethod>(), "method"_a)
      .def_static("padding", [](NNPaddingMethod method) { return std::make_shared<NNDefaultPadding>(method); }, "method"_a)
      .def_static("padding_for_tensorflow_average_pooling", &NNDefaultPadding::padding_for_tensorflow_average_pooling)
      .def_static("padding_for_tensorflow_average_pooling_valid_only", &NNDefaultPadding::padding_for_tensorflow_average_pooling_valid_only);
  py::class_<ExplicitPadding, NNPadding, py::smart_holder>(m, "ExplicitPadding", R"(So many virtual pixels on each side; negative numbers crop.

>>> import mpsnn
>>> mpsnn.ExplicitPadding(left=1, right=1, top=0, bottom=2).label()
'explicit padding: left 1, right 1, top 0, bottom 2'
)")
      .def(py::init<int, int, int, int>(), py::kw_only(), "left"_a = 0, "right"_a = 0, "top"_a = 0, "bottom"_a = 0)
      .def_property_readonly("left", &ExplicitPadding::left)
      .def_property_readonly("right", &ExplicitPadding::right)
      .def_property_readonly("top", &ExplicitPadding::top)
      .def_property_readonly("bottom", &ExplicitPadding::bottom);
}

}  // namespace mpsnn::python
