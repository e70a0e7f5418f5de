// SPDX-License-Identifier: Apache-2.0
#include "mpsnn/device.hpp"

#include "backends/backend.hpp"
#include "backends/cpu/isa/isa.hpp"
#include "backends/metal/device.hpp"
#include "core/parallel.hpp"

namespace mpsnn {

Device::Device(std::string name, std::string description, const Backend& backend)
    : name_(std::move(name)), description_(std::move(description)), backend_(backend) {}

ElementType Device::element_type() const { return backend_.element_type(); }

std::vector<DevicePtr> devices() {
  static const std::vector<DevicePtr> all = [] {
    std::vector<DevicePtr> list{
        std::make_shared<Device>("cpu", "float32, vectorised (" + instruction_set() + ") and threaded", cpu_backend()),
        std::make_shared<Device>("reference", "float64, plain loops: the definition of correct", reference_backend()),
    };
    const metal::Availability& metal = metal::availability();
    if (metal.device) list.insert(metal.is_default ? list.begin() : list.end(), metal.device);
    return list;
  }();
  return all;
}

std::string metal_availability() { return metal::availability().reason; }

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
