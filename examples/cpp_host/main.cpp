// SPDX-License-Identifier: Apache-2.0
// Trains a LeNet-like network through the C++ API, on images that it makes itself: ten patterns, shifted and noisy.
// Prints the loss and the accuracy on fresh images; ends with 1 when nothing was learned.

#include <algorithm>
#include <cstdio>
#include <memory>
#include <random>
#include <vector>

#include "mpsnn/mpsnn.hpp"

using namespace mpsnn;

namespace {

constexpr int kSide = 16, kClasses = 10, kBatch = 32, kSteps = 60;

/// Draws images of the ten patterns. Everything follows from the seed.
class Patterns {
 public:
  explicit Patterns(unsigned seed) : random_(seed), pixels_(kClasses * kSide * kSide) {
    std::bernoulli_distribution is_ink(0.3);
    for (float& pixel : pixels_) pixel = is_ink(random_) ? 1.0f : 0.0f;
  }

  /// Fills a batch; `labels` become one-hot rows. Returns the classes.
  std::vector<int> draw(Image& images, Image& labels) {
    std::uniform_int_distribution<int> any_class(0, kClasses - 1), shift(-1, 1);
    std::normal_distribution<float> noise(0.0f, 0.2f);
    std::vector<int> classes(images.number_of_images());
    labels.buffer().fill(0);
    float* pixel = images.floats();
    for (int n = 0; n < images.number_of_images(); ++n) {
      classes[n] = any_class(random_);
      labels.floats()[n * kClasses + classes[n]] = 1.0f;
      const int down = shift(random_), right = shift(random_);
      for (int y = 0; y < kSide; ++y)
        for (int x = 0; x < kSide; ++x) *pixel++ = ink(classes[n], y - down, x - right) + noise(random_);
    }
    return classes;
  }

 private:
  float ink(int pattern, int y, int x) const {
    return y < 0 || y >= kSide || x < 0 || x >= kSide ? 0.0f : pixels_[(pattern * kSide + y) * kSide + x];
  }
  std::mt19937 random_;
  std::vector<float> pixels_;
};

/// Weights with an optimizer of their own. The label names the layer in errors and files.
std::shared_ptr<ConvolutionWeights> weights(const char* label, int kernel, int input_channels, int output_channels) {
  CNNConvolutionDescriptor descriptor;
  descriptor.kernel_width = descriptor.kernel_height = kernel;
  descriptor.input_feature_channels = input_channels;
  descriptor.output_feature_channels = output_channels;
  static std::uint64_t seed = 1;
  auto made = std::make_shared<ConvolutionWeights>(descriptor, Initializer::he, seed++, label);
  made->training().set_optimizer(std::make_shared<NNOptimizerAdam>(0.002f));
  return made;
}

/// Convolution, ReLU, pooling that halves the size.
ImageNodePtr stage(const ImageNodePtr& source, const ConvolutionDataSourcePtr& weights) {
  auto convolution = std::make_shared<CNNConvolutionNode>(source, weights);
  auto relu = std::make_shared<CNNNeuronReLUNode>(convolution->result_image());
  WindowSize window;
  window.kernel_width = window.kernel_height = window.stride_in_pixels_x = window.stride_in_pixels_y = 2;
  return std::make_shared<CNNPoolingMaxNode>(relu->result_image(), window)->result_image();
}

/// Images of kSide x kSide pixels go in, one number per class comes out. Holding the result holds the whole network.
ImageNodePtr network(const ImageNodePtr& image) {
  const ImageNodePtr features = stage(stage(image, weights("conv1", 5, 1, 8)), weights("conv2", 5, 8, 16));
  auto hidden = std::make_shared<CNNFullyConnectedNode>(features, weights("hidden", kSide / 4, 16, 64));
  auto relu = std::make_shared<CNNNeuronReLUNode>(hidden->result_image());
  return std::make_shared<CNNFullyConnectedNode>(relu->result_image(), weights("classes", 1, 64, kClasses))->result_image();
}

double accuracy(NNGraph& graph, Patterns& patterns) {
  auto images = std::make_shared<Image>(Shape{200, kSide, kSide, 1});
  Image labels({200, 1, 1, kClasses});
  const std::vector<int> classes = patterns.draw(*images, labels);
  const ImagePtr logits = graph.run({images}).result_images[0];
  int right = 0;
  for (int n = 0; n < 200; ++n) {
    const float* row = logits->floats() + n * kClasses;
    right += std::max_element(row, row + kClasses) - row == classes[n];
  }
  return right / 200.0;
}

}  // namespace

int main() {
  try {
    const ImageNodePtr logits = network(std::make_shared<NNImageNode>(make_handle("image")));

    CNNLossDescriptor loss_descriptor;  // soft-max cross entropy
    loss_descriptor.number_of_classes = kClasses;
    loss_descriptor.weight = 1.0f / kBatch;  // so that the gradient is that of the batch's mean
    auto loss = std::make_shared<CNNLossNode>(logits, loss_descriptor);
    const std::vector<FilterNodePtr> last = loss->training_graph();
    NNGraph training(default_device(), last.front()->result_image(), /*result_image_is_needed=*/false);

    std::printf("mpsnn %s on %s (%s)\n", version(), default_device()->name().c_str(), default_device()->description().c_str());
    Patterns patterns(7);
    std::vector<double> curve;  // mean loss of ten steps each
    for (int step = 0; step < kSteps; ++step) {
      auto images = std::make_shared<Image>(Shape{kBatch, kSide, kSide, 1});
      auto one_hot = std::make_shared<Image>(Shape{kBatch, 1, 1, kClasses});
      patterns.draw(*images, *one_hot);
      auto labels = std::make_shared<CNNLossLabels>(one_hot);
      training.run({images}, {labels});
      if (step % 10 == 0) curve.push_back(0);
      const Buffer& losses = labels->loss_image()->buffer();  // each is weighted with 1 / kBatch
      for (std::size_t i = 0; i < losses.count(); ++i) curve.back() += losses.at(i) / 10;
      if (step % 10 == 9) std::printf("step %3d  loss %.4f\n", step + 1, curve.back());
    }

    NNGraph inference(default_device(), logits);  // reads the same data sources, as they are now
    const double right = accuracy(inference, patterns);
    std::printf("accuracy on fresh images: %.3f\n", right);
    const bool has_learned = curve.back() < curve.front() / 2 && right > 0.5;
    std::printf("%s\n", has_learned ? "the loss fell" : "the loss did not fall");
    return has_learned ? 0 : 1;
  } catch (const Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
