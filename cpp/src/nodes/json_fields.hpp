// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "core/json.hpp"
#include "mpsnn/descriptors.hpp"

/// Parameter structs as JSON and back: what nodes write in parameters() and core/save.cpp reads.
namespace mpsnn {

template <class Enum>
Json enum_json(Enum value) { return static_cast<double>(static_cast<std::int64_t>(value)); }

Json to_json(const WindowSize& window);
Json to_json(const NNNeuronDescriptor& neuron);
Json to_json(const CNNLossDescriptor& loss);
Json to_json(const CNNYOLOLossDescriptor& loss);
Json to_json(const CNNConvolutionDescriptor& convolution);

/// Numbers of a saved object. Integers outside [low, high] throw FileError: nothing from a file is cast unseen.
class JsonFields {
 public:
  explicit JsonFields(const Json& json) : json_(json) {}
  int integer(const char* name, std::int64_t low = 0, std::int64_t high = 1 << 20) const;
  std::int64_t whole(const char* name, std::int64_t low, std::int64_t high) const;
  std::uint64_t unsigned_integer(const char* name) const;
  float real(const char* name) const;
  bool boolean(const char* name) const;
  template <class Enum>
  Enum enumeration(const char* name, int last) const { return static_cast<Enum>(integer(name, 0, last)); }
  WindowSize window() const;
  NNNeuronDescriptor neuron() const;
  CNNLossDescriptor loss() const;
  CNNYOLOLossDescriptor yolo_loss() const;
  CNNConvolutionDescriptor convolution() const;
  const Json& json() const { return json_; }

 private:
  const Json& json_;
};

}  // namespace mpsnn
