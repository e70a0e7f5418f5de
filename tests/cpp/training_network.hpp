// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <random>
#include <vector>

#include "mpsnn/mpsnn.hpp"

/// A small network with a bit of everything, its data, and its training graph: what the graph tests run.
namespace mpsnn::testing {

/// Stem channels are a multiple of 4: Metal appends channels so.
constexpr int kStem = 8, kClasses = 3, kWidth = 7, kHeight = 6, kChannels = 2, kBatch = 8;

struct Batch {
  ImagePtr images;
  std::shared_ptr<CNNLossLabels> labels;
  double loss() const {
    double sum = 0;
    for (std::size_t i = 0; i < labels->loss_image()->buffer().count(); ++i) sum += labels->loss_image()->buffer().at(i);
    return sum;
  }
};

/// Images whose class shows in their brightness, so that little training is enough.
inline Batch draw_batch(unsigned seed, int images = kBatch) {
  std::mt19937 random(seed);
  std::normal_distribution<float> noise(0.0f, 0.5f);
  Batch batch{std::make_shared<Image>(Shape{images, kHeight, kWidth, kChannels}), nullptr};
  auto one_hot = std::make_shared<Image>(Shape{images, 1, 1, kClasses});
  const std::size_t elements = batch.images->shape().image_count();
  for (int n = 0; n < images; ++n) {
    const int label = static_cast<int>(random() % kClasses);
    one_hot->floats()[n * kClasses + label] = 1;
    for (std::size_t i = 0; i < elements; ++i) batch.images->floats()[n * elements + i] = float(label - 1) + noise(random);
  }
  batch.labels = std::make_shared<CNNLossLabels>(one_hot);
  return batch;
}

enum class Optimizer { sgd, adam };

/// Convolution with stride, batch normalization, ReLU, a residual block, a branch with concatenation, pooling, and a fully
/// connected layer.
class Network {
 public:
  explicit Network(const DevicePtr& device, Optimizer optimizer = Optimizer::sgd,
                   NNTrainingStyle style = NNTrainingStyle::UpdateDeviceGPU)
      : optimizer_(optimizer), style_(style), training_(device, build(), false) {}

  NNGraph& training() { return training_; }
  const ImageNodePtr& logits() const { return logits_; }
  void run(const Batch& batch) { training_.run({batch.images}, {batch.labels}); }

  /// Every parameter, one after another.
  std::vector<double> parameters() const {
    std::vector<double> all;
    auto add = [&](const Buffer& buffer) {
      for (std::size_t i = 0; i < buffer.count(); ++i) all.push_back(buffer.at(i));
    };
    for (const auto& weights : convolutions_) {
      add(weights->weights_buffer());
      add(weights->biases_buffer());
    }
    for (const Buffer* buffer : {&normalization_->gamma_buffer(), &normalization_->beta_buffer(), &normalization_->mean_buffer(),
                                 &normalization_->variance_buffer()})
      add(*buffer);
    return all;
  }

 private:
  std::shared_ptr<NNOptimizer> make_optimizer() const {
    if (optimizer_ == Optimizer::adam) return std::make_shared<NNOptimizerAdam>(0.01f);
    NNOptimizerDescriptor descriptor;
    descriptor.learning_rate = 0.01f;  // at 0.05 this network diverges after some 80 steps
    return std::make_shared<NNOptimizerStochasticGradientDescent>(descriptor, 0.9f);
  }

  template <class Node>
  ImageNodePtr convolution(const char* label, const ImageNodePtr& source, int kernel_width, int kernel_height, int inputs,
                           int outputs, int stride) {
    CNNConvolutionDescriptor descriptor;
    descriptor.kernel_width = kernel_width;
    descriptor.kernel_height = kernel_height;
    descriptor.input_feature_channels = inputs;
    descriptor.output_feature_channels = outputs;
    descriptor.stride_in_pixels_x = descriptor.stride_in_pixels_y = stride;
    auto weights = std::make_shared<ConvolutionWeights>(descriptor, Initializer::he, convolutions_.size() + 1, label);
    weights->training().set_optimizer(make_optimizer());
    convolutions_.push_back(weights);
    auto node = std::make_shared<Node>(source, weights);
    node->training_style = style_;
    return node->result_image();
  }

  ImageNodePtr build() {
    auto image = std::make_shared<NNImageNode>(make_handle("image"));
    const ImageNodePtr stem = convolution<CNNConvolutionNode>("stem", image, 3, 3, kChannels, kStem, 2);  // 3 x 4 x 8
    normalization_ = std::make_shared<BatchNormalizationWeights>(kStem, "normalization");
    normalization_->training().set_optimizer(make_optimizer());
    auto normalized = std::make_shared<CNNBatchNormalizationNode>(stem, normalization_);
    normalized->training_style = style_;
    auto relu = std::make_shared<CNNNeuronReLUNode>(normalized->result_image());
    const ImageNodePtr block = convolution<CNNConvolutionNode>("block", relu->result_image(), 3, 1, kStem, kStem, 1);
    auto residual = std::make_shared<NNAdditionNode>(relu->result_image(), block);
    const ImageNodePtr branch = convolution<CNNConvolutionNode>("branch", residual->result_image(), 1, 3, kStem, 2, 1);
    auto both = std::make_shared<NNConcatenationNode>(std::vector{residual->result_image(), branch});
    WindowSize window{.kernel_width = 2, .kernel_height = 2, .stride_in_pixels_x = 2, .stride_in_pixels_y = 2};
    auto pool = std::make_shared<CNNPoolingMaxNode>(both->result_image(), window);  // 2 x 2 x 10
    logits_ = convolution<CNNFullyConnectedNode>("classes", pool->result_image(), 2, 2, kStem + 2, kClasses, 1);
    CNNLossDescriptor descriptor;
    descriptor.number_of_classes = kClasses;
    descriptor.weight = 1.0f / kBatch;
    return std::make_shared<CNNLossNode>(logits_, descriptor)->training_graph().front()->result_image();
  }

  Optimizer optimizer_;
  NNTrainingStyle style_;
  std::vector<std::shared_ptr<ConvolutionWeights>> convolutions_;
  std::shared_ptr<BatchNormalizationWeights> normalization_;
  ImageNodePtr logits_;
  NNGraph training_;
};

}  // namespace mpsnn::testing
