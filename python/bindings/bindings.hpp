// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <pybind11/functional.h>
#include <pybind11/native_enum.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "mpsnn/mpsnn.hpp"

/// What the binding files share. Each binds one public header and is called once from module.cpp.
namespace mpsnn::python {

namespace py = pybind11;
using namespace py::literals;

void bind_enums(py::module_& m);
void bind_geometry(py::module_& m);
void bind_image(py::module_& m);
void bind_device(py::module_& m);
void bind_data_source(py::module_& m);
void bind_weights(py::module_& m);
void bind_nodes(py::module_& m);
void bind_preflight(py::module_& m);
void bind_graph(py::module_& m);

/// A Python object that C++ threads may hold and let go of.
std::shared_ptr<void> keep_object(py::object object);

/// Numbers of any array: a view of float32 or float64 C-contiguous ones, else a float32 copy, which is logged.
struct ArrayView {
  Buffer buffer;
  std::vector<py::ssize_t> shape;
};
ArrayView view_of(const py::object& array, const char* what);
/// A NumPy array over a buffer, which it keeps alive. An empty shape means one dimension; no buffer gives None.
py::object numpy_of(const Buffer& buffer, std::vector<py::ssize_t> shape = {}, bool is_writable = true);
/// A batch of images from an MPSImage or an array of N, H, W, C numbers.
ImagePtr image_of(const py::object& object);
std::vector<ImagePtr> images_of(const py::object& list, const char* what);

/// The allocator; throws OptionError for None.
ImageAllocatorPtr allocator_of(const ImageAllocatorPtr& allocator);

/// A handle from None, a string, or an object with `label`; and back, the very object.
HandlePtr handle_of(const py::object& object);
py::object object_of(const HandlePtr& handle);

/// A device from None (the default), a name, or a Device.
DevicePtr device_of(const py::object& object);

}  // namespace mpsnn::python
