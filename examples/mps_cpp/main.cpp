// SPDX-License-Identifier: Apache-2.0
// MPSCNNPoolingMaxGradient and MPSCNNConvolutionGradient on command buffers, in C++: metal-cpp and mps-cpp, nothing else.
#include <cstdio>
#include <vector>

#include "data_source.hpp"

namespace {

template <class T>
using Owned = NS::SharedPtr<T>;

constexpr NS::UInteger kSize = 4;  // the source images are 4 x 4 with one channel

Owned<MPS::Image> make_image(MTL::Device* device, NS::UInteger size, const std::vector<float>& values) {
  auto* descriptor = MPS::ImageDescriptor::imageDescriptor(MPS::ImageFeatureChannelFormatFloat32, size, size, 1);
  auto image = NS::TransferPtr(MPS::Image::alloc()->init(device, descriptor));
  image->writeBytes(values.data(), MPS::DataLayoutHeightxWidthxFeatureChannels, 0);
  return image;
}

void print(const char* what, const std::vector<float>& values) {
  std::printf("%s:", what);
  for (const float value : values) std::printf(" %g", value);
  std::printf("\n");
}

void print(const char* what, MPS::Image* image) {
  std::vector<float> values(image->width() * image->height());
  image->readBytes(values.data(), MPS::DataLayoutHeightxWidthxFeatureChannels, 0);
  print(what, values);
}

// What ran before the buffers could be read; false when the device reports an error.
bool finish(MTL::CommandBuffer* commands) {
  commands->commit();
  commands->waitUntilCompleted();
  if (NS::Error* error = commands->error()) {
    std::fprintf(stderr, "the command buffer failed: %s\n", error->localizedDescription()->utf8String());
    return false;
  }
  return true;
}

// Windows of 2 x 2: each incoming gradient goes to the pixel that was the window's maximum.
bool pooling_gradient(MTL::Device* device, MTL::CommandQueue* queue) {
  const auto source = make_image(device, kSize, {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16});
  const auto incoming = make_image(device, kSize / 2, {1, 2, 3, 4});
  const auto forward = NS::TransferPtr(MPS::CNNPoolingMax::alloc()->init(device, 2, 2, 2, 2));
  const auto gradient = NS::TransferPtr(MPS::CNNPoolingMaxGradient::alloc()->init(device, 2, 2, 2, 2));
  auto* commands = queue->commandBuffer();
  MPS::State* state = nullptr;
  auto* result = forward->encodeToCommandBuffer(commands, source.get(), &state, false);
  auto* source_gradient = gradient->encodeToCommandBuffer(commands, incoming.get(), source.get(), state);
  result->synchronizeOnCommandBuffer(commands);
  source_gradient->synchronizeOnCommandBuffer(commands);
  if (!finish(commands)) return false;
  print("maxima", result);
  print("gradient of the pooled image", source_gradient);
  return true;
}

// The gradient kernel makes both: the gradient of the source image, and in the state those of weights and bias.
bool convolution_gradient(MTL::Device* device, MTL::CommandQueue* queue) {
  const auto source = make_image(device, kSize, std::vector<float>(kSize * kSize, 1));
  const auto incoming = make_image(device, kSize, std::vector<float>(kSize * kSize, 1));
  const auto weights = NS::TransferPtr(make_data_source());
  const auto forward = NS::TransferPtr(MPS::CNNConvolution::alloc()->init(device, weights.get()));
  const auto gradient = NS::TransferPtr(MPS::CNNConvolutionGradient::alloc()->init(device, weights.get()));
  auto* commands = queue->commandBuffer();
  MPS::State* state = nullptr;
  auto* result = forward->encodeToCommandBuffer(commands, source.get(), &state, false);
  auto* source_gradient = gradient->encodeToCommandBuffer(commands, incoming.get(), source.get(), state);
  result->synchronizeOnCommandBuffer(commands);
  source_gradient->synchronizeOnCommandBuffer(commands);
  state->synchronizeOnCommandBuffer(commands);
  if (!finish(commands)) return false;
  print("convolution", result);
  print("gradient of its source", source_gradient);
  const auto* gradients = static_cast<MPS::CNNConvolutionGradientState*>(state);
  const auto* numbers = static_cast<const float*>(gradients->gradientForWeights()->contents());
  print("gradient of the weights", std::vector<float>(numbers, numbers + 9));
  print("gradient of the bias", {*static_cast<const float*>(gradients->gradientForBiases()->contents())});
  return true;
}

}  // namespace

int main() {
  const auto pool = NS::TransferPtr(NS::AutoreleasePool::alloc()->init());
  const auto device = NS::TransferPtr(MTL::CreateSystemDefaultDevice());
  if (!device || !MPS::SupportsMTLDevice(device.get())) {
    std::fprintf(stderr, "no device here runs Metal Performance Shaders\n");
    return 2;
  }
  const auto queue = NS::TransferPtr(device->newCommandQueue());
  return pooling_gradient(device.get(), queue.get()) && convolution_gradient(device.get(), queue.get()) ? 0 : 1;
}
