// SPDX-License-Identifier: Apache-2.0
#include "backends/backend.hpp"

#include <algorithm>

#include "backends/metal/device.hpp"
#include "backends/metal/graph.hpp"

namespace mpsnn::metal {
namespace {

/// The `metal` engine: MPSNNGraph computes, this library feeds it.
class Metal final : public Backend {
 public:
  explicit Metal(MTL::Device* device) : device_(device) {}
  ElementType element_type() const override { return ElementType::float32; }
  const char* preflight_engine() const override { return "metal"; }
  Buffer allocate(std::size_t count) const override {
    const Pool pool;
    return allocate_shared(device_, count);
  }
  std::unique_ptr<EngineGraph> make_graph(const GraphParts& parts, ParameterStore& parameters) const override {
    return std::make_unique<MetalGraph>(device_, parts, parameters);
  }

 private:
  MTL::Device* device_;
};

bool is_simulated(std::string name) {
  std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return name.find("simulat") != std::string::npos;
}

Availability look() {
  const Pool pool;
  MTL::Device* device = MTL::CreateSystemDefaultDevice();  // kept for the life of the process, like every Device
  if (!device) return {nullptr, false, "this machine has no Metal device"};
  const std::string name = text(device->name());
  if (!MPS::SupportsMTLDevice(device)) return {nullptr, false, "Metal Performance Shaders does not support \"" + name + "\""};
  static const Metal backend(device);
  auto found = std::make_shared<Device>("metal", "float32 and float16, Metal Performance Shaders on \"" + name + "\"", backend);
  if (is_simulated(name)) return {found, false, "\"" + name + "\" only simulates Metal, for tests: use it by name"};
  return {found, true, "Metal Performance Shaders supports \"" + name + "\""};
}

}  // namespace

const Availability& availability() {
  static const Availability found = look();
  return found;
}

}  // namespace mpsnn::metal
