// SPDX-License-Identifier: Apache-2.0
#include "bindings.hpp"

namespace mpsnn::python {
namespace {

/// Waits without the GIL, but lets Ctrl-C through: the step itself goes on and stays whole.
void wait_until_completed(CommandBuffer& buffer) {
  for (;;) {
    {
      py::gil_scoped_release release;
      if (buffer.wait_for(std::chrono::milliseconds(50))) return;
    }
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
  }
}

py::object error_of(const CommandBuffer& buffer) {
  if (!buffer.error()) return py::none();
  // Raised and caught again: the translator then makes the Python exception.
  const py::object call = py::cpp_function([&buffer] { std::rethrow_exception(buffer.error()); });
  try {
    call();
  } catch (py::error_already_set& error) {
    return error.value();
  }
  return py::none();
}

}  // namespace

DevicePtr device_of(const py::object& object) {
  if (object.is_none()) return default_device();
  if (py::isinstance<py::str>(object)) return device(object.cast<std::string>());
  return object.cast<std::shared_ptr<Device>>();
}

void bind_device(py::module_& m) {
  auto unconst = [](const DevicePtr& device) { return std::const_pointer_cast<Device>(device); };
  py::class_<Device, std::shared_ptr<Device>>(m, "Device", R"(An engine: ``Device("cpu")`` or ``Device("reference")``. Raises DeviceError for other names.

>>> import mpsnn
>>> mpsnn.Device("cpu").name
'cpu'
)")
      .def(py::init([=](const std::string& name) { return unconst(device(name)); }), "name"_a)
      .def_property_readonly("name", &Device::name)
      .def_property_readonly("description", &Device::description)
      .def("__eq__", [](const Device& a, const py::object& b) { return py::isinstance<Device>(b) && a.name() == b.cast<const Device&>().name(); })
      .def("__hash__", [](const Device& d) { return std::hash<std::string>{}(d.name()); })
      .def("__repr__", [](const Device& d) { return "Device(\"" + d.name() + "\")"; });
  m.def("devices", [=] {
    std::vector<std::shared_ptr<Device>> all;
    for (const DevicePtr& device : devices()) all.push_back(unconst(device));
    return all;
  }, "Every device of this machine, the default one first.");
  m.def("default_device", [=] { return unconst(default_device()); });
  m.def("metal_availability", &metal_availability, "Why the default device is what it is: one sentence about Metal on this machine.");
  m.def("num_threads", &num_threads, "Threads of the CPU engine: MPSNN_NUM_THREADS, else one per core. Results do not depend on it.");
  m.def("set_num_threads", &set_num_threads, "count"_a);
  m.def("instruction_set", &instruction_set, "Instruction set of the CPU engine's kernels, e.g. 'avx2'.");

  py::native_enum<CommandBufferStatus>(m, "MTLCommandBufferStatus", "enum.IntEnum")
      .value("NotEnqueued", CommandBufferStatus::NotEnqueued)
      .value("Enqueued", CommandBufferStatus::Enqueued)
      .value("Committed", CommandBufferStatus::Committed)
      .value("Scheduled", CommandBufferStatus::Scheduled)
      .value("Completed", CommandBufferStatus::Completed)
      .value("Error", CommandBufferStatus::Error)
      .finalize();
  py::class_<CommandBuffer, std::shared_ptr<CommandBuffer>>(m, "CommandBuffer", "Work recorded by encode calls; runs in order after commit(), once.")
      .def("commit", [](CommandBuffer& buffer) {
        py::gil_scoped_release release;
        buffer.commit();
      })
      .def("wait_until_completed", &wait_until_completed, "Blocks until all is done; raises the first error of the work: its images must not be used.")
      .def("add_completed_handler", [](CommandBuffer& buffer, std::function<void(std::shared_ptr<CommandBuffer>)> handler) {
             buffer.add_completed_handler([handler = std::move(handler)](CommandBuffer& done) { handler(done.shared_from_this()); });
           }, py::arg("handler").none(false), "handler(command_buffer) is called on the queue's thread once the buffer is done, also after an error.")
      .def_property_readonly("status", &CommandBuffer::status)
      .def_property_readonly("error", &error_of, "The first error of the work, or None.");
  py::class_<CommandQueue, std::shared_ptr<CommandQueue>>(m, "CommandQueue", "Runs committed command buffers one after another on a thread of its own.")
      .def(py::init([](const py::object& device) { return std::make_shared<CommandQueue>(device_of(device)); }), "device"_a = py::none())
      .def("command_buffer", &CommandQueue::command_buffer);
}

}  // namespace mpsnn::python
