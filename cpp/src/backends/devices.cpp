// SPDX-License-Identifier: Apache-2.0
#include "mpsnn/device.hpp"

#include "backends/backend.hpp"
#include "backends/cpu/isa/isa.hpp"
#include "core/parallel.hpp"

namespace mpsnn {

Device::Device(std::string name, std::string description, const Backend& backend)
    : name_(std::move(name)), description_(std::move(description)), backend_(backend) {}

ElementType Device::element_type() const { return backend_.element_type(); }

std::vector<DevicePtr> devices() {
  static const std::vector<DevicePtr> all{
      std::make_shared<Device>("cpu", "float32, vectorised (" + instruction_set() + ") and threaded", cpu_backend()),
      std::make_shared<Device>("reference", "float64, plain loops: the definition of correct", reference_backend()),
  };
  return all;
}

DevicePtr default_device() { return devices().front(); }

DevicePtr device(const std::string& name) {
  std::string names;
  for (const DevicePtr& device : devices()) {
    if (device->name() == name) return device;
    names += (names.empty() ? "" : ", ") + device->name();
  }
  throw DeviceError("there is no device \"" + name + "\" on this machine.", {.expected = names, .actual = name, .hint = "Device(\"cpu\")"});
}

int num_threads() { return thread_count(); }
void set_num_threads(int count) { set_thread_count(count); }
std::string instruction_set() { return cpu::isa().name; }

}  // namespace mpsnn
