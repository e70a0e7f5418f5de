// SPDX-License-Identifier: Apache-2.0
#include "mpsnn/device.hpp"

#include "backends/backend.hpp"

/// Stands in for the list of engines, of which the simulator has one.
namespace mpsnn {

Device::Device(std::string name, std::string description, const Backend& backend)
    : name_(std::move(name)), description_(std::move(description)), backend_(backend) {}

ElementType Device::element_type() const { return backend_.element_type(); }

}  // namespace mpsnn
