// SPDX-License-Identifier: Apache-2.0
#include "bindings.hpp"

namespace mpsnn::python {
namespace {

void raise_as(const char* class_name, const Error& error) {
  py::object type = py::module_::import("mpsnn.errors").attr(class_name);
  py::object value = type(error.what(), "node"_a = error.node(), "label"_a = error.label(), "expected"_a = error.expected(), "actual"_a = error.actual());
  PyErr_SetObject(type.ptr(), value.ptr());
}

void translate(std::exception_ptr pointer) {
  if (!pointer) return;
  try {
    std::rethrow_exception(pointer);
  } catch (const ShapeError& e) { raise_as("ShapeError", e);
  } catch (const OptionError& e) { raise_as("OptionError", e);
  } catch (const WeightError& e) { raise_as("WeightError", e);
  } catch (const GraphError& e) { raise_as("GraphError", e);
  } catch (const DeviceError& e) { raise_as("DeviceError", e);
  } catch (const FileError& e) { raise_as("FileError", e);
  } catch (const Error& e) { raise_as("Error", e);
  } catch (const py::cast_error& e) { PyErr_SetString(PyExc_TypeError, e.what());  // a callback's result, or a text that is no UTF-8
  }
}

}  // namespace

std::shared_ptr<void> keep_object(py::object object) {
  return {object.release().ptr(), [](void* pointer) {
            if (!Py_IsInitialized()) return;
            py::gil_scoped_acquire gil;
            Py_DECREF(static_cast<PyObject*>(pointer));
          }};
}

}  // namespace mpsnn::python

PYBIND11_MODULE(_mpsnn, m) {
  using namespace mpsnn::python;
  m.doc() = "CNN graphs with the node classes of Apple's Metal Performance Shaders: the compiled part of mpsnn.";
  py::register_exception_translator(translate);
  bind_enums(m);
  bind_image(m);
  bind_geometry(m);
  bind_device(m);
  bind_data_source(m);
  bind_weights(m);
  bind_nodes(m);
  bind_preflight(m);
  bind_graph(m);
}
