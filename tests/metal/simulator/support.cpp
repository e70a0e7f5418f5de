// SPDX-License-Identifier: Apache-2.0
#include "support.hpp"

#include <exception>

#include "backends/backend.hpp"
#include "mpsnn/device.hpp"

namespace sim {

std::string failure_of(const std::function<void()>& work) {
  try {
    work();
  } catch (const std::exception& error) {
    return error.what();
  }
  return {};
}

}  // namespace sim

/// Stands in for the list of engines, of which the simulator has one.
namespace mpsnn {

Device::Device(std::string name, std::string description, const Backend& backend)
    : name_(std::move(name)), description_(std::move(description)), backend_(backend) {}

ElementType Device::element_type() const { return backend_.element_type(); }

DevicePtr default_device() {
  static const auto device = std::make_shared<const Device>("reference", "the simulator's own", reference_backend());
  return device;
}
std::vector<DevicePtr> devices() { return {default_device()}; }

}  // namespace mpsnn
