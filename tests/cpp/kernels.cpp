// SPDX-License-Identifier: Apache-2.0
// Layers that have code of their own for each instruction set: cpu against reference, result and gradients. Small enough for emulators.
#include <cmath>
#include <functional>
#include <limits>
#include <random>

#include "check.hpp"
#include "mpsnn/mpsnn.hpp"

using namespace mpsnn;

namespace {

using Build = std::function<FilterNodePtr(const ImageNodePtr&)>;

ImagePtr draw(const Shape& shape, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  auto image = std::make_shared<Image>(shape);
  for (std::size_t i = 0; i < shape.count(); ++i) image->floats()[i] = normal(random);
  return image;
}

/// Result, gradient of the image and, for a convolution, of the weights.
std::vector<Buffer> run(const char* engine, const Build& build, const Shape& source) {
  auto image = std::make_shared<NNImageNode>(make_handle("x"));
  const FilterNodePtr forward = build(image);
  const Shape result = NNGraph(device("reference"), forward->result_image()).run({draw(source, 1)}).result_images[0]->shape();
  const FilterNodePtr node = build(image);
  auto* convolution = dynamic_cast<CNNConvolutionNode*>(node.get());
  if (convolution) convolution->convolution_gradient_state()->export_from_graph = true;
  const auto end = node->training_graph(std::make_shared<NNImageNode>(make_handle("incoming"))).front();
  NNGraph graph(device(engine), {node->result_image(), end->result_image()});
  std::vector<ImagePtr> images;
  for (const HandlePtr& handle : graph.source_image_handles()) images.push_back(handle->label() == "x" ? draw(source, 1) : draw(result, 2));
  const EncodedResults results = graph.run(images);
  std::vector<Buffer> numbers;
  for (const ImagePtr& got : results.result_images) numbers.push_back(got->buffer());
  if (convolution) numbers.push_back(dynamic_cast<CNNConvolutionGradientState&>(*results.destination_states[0]).gradient_for_weights);
  return numbers;
}

/// Relative error, root of the sum of squares; that of a sum grows with the root of its terms.
void check_engines_agree(const char* name, const Build& build, const Shape& source, double terms, double amplification = 2) {
  const std::vector<Buffer> expected = run("reference", build, source), got = run("cpu", build, source);
  CHECK_EQ(got.size(), expected.size());
  for (std::size_t i = 0; i < expected.size(); ++i) {
    double square = 0, total = 0;
    for (std::size_t j = 0; j < expected[i].count(); ++j) {
      square += std::pow(got[i].at(j) - expected[i].at(j), 2);
      total += std::pow(expected[i].at(j), 2);
    }
    const double error = std::sqrt(square / total), bound = amplification * std::sqrt(terms) * std::numeric_limits<float>::epsilon();
    if (!(error <= bound)) std::fprintf(stderr, "%s: number %zu\n", name, i);
    CHECK_NEAR(error, 0, bound);
  }
}

struct Layer {
  const char* name;
  int inputs, outputs, kernel, stride, groups, height, width;
  bool is_transposed = false;
};

FilterNodePtr make(const Layer& layer, const ImageNodePtr& image) {
  CNNConvolutionDescriptor d;
  d.kernel_width = d.kernel_height = layer.kernel;
  d.input_feature_channels = layer.inputs;
  d.output_feature_channels = layer.outputs;
  d.stride_in_pixels_x = d.stride_in_pixels_y = layer.stride;
  d.groups = layer.groups;
  if (layer.groups == layer.inputs && layer.groups > 1) d.kind = ConvolutionKind::depthwise, d.groups = 1;
  auto weights = std::make_shared<ConvolutionWeights>(d, Initializer::he, 3, layer.name);
  if (layer.is_transposed) return std::make_shared<CNNConvolutionTransposeNode>(image, nullptr, weights);
  return std::make_shared<CNNConvolutionNode>(image, weights);
}

}  // namespace

TEST(convolutions_of_every_kind_agree) {
  const Layer layers[] = {
      {"3x3", 16, 20, 3, 1, 1, 13, 11},         {"3x3 many channels", 33, 40, 3, 1, 1, 9, 10}, {"5x5", 16, 24, 5, 1, 1, 12, 9},
      {"few channels", 3, 18, 3, 1, 1, 10, 11}, {"strided", 12, 20, 3, 2, 1, 11, 12},          {"7x7 strided", 3, 20, 7, 2, 1, 17, 15},
      {"1x1", 37, 26, 1, 1, 1, 7, 9},           {"groups", 12, 20, 3, 1, 4, 8, 9},             {"depthwise", 21, 21, 3, 1, 21, 11, 13},
      {"depthwise strided", 21, 21, 5, 2, 21, 11, 13}, {"transposed", 12, 10, 4, 2, 1, 6, 5, true},
  };
  for (const Layer& layer : layers) {
    const Shape source{2, layer.height, layer.width, layer.inputs};
    // Sums over taps and channels of either side, or over pixels; Winograd's transforms amplify rounding up to 5.7 times (docs/accuracy.md).
    const double terms = std::max(layer.kernel * layer.kernel * std::max(layer.inputs, layer.outputs) / layer.groups, 2 * layer.height * layer.width);
    check_engines_agree(layer.name, [&](const ImageNodePtr& image) { return make(layer, image); }, source, terms, 5.7);
  }
}

TEST(pooling_of_every_kind_agrees) {
  for (const int kernel : {2, 3})
    for (const int stride : {1, 2}) {
      const WindowSize window{.kernel_width = kernel, .kernel_height = kernel, .stride_in_pixels_x = stride, .stride_in_pixels_y = stride};
      const Shape source{2, 9, 11, 19};
      const double terms = kernel * kernel * 4;
      check_engines_agree("max", [&](const ImageNodePtr& image) { return std::make_shared<CNNPoolingMaxNode>(image, window); }, source, terms);
      check_engines_agree("average", [&](const ImageNodePtr& image) { return std::make_shared<CNNPoolingAverageNode>(image, window); }, source, terms);
      check_engines_agree("L2", [&](const ImageNodePtr& image) { return std::make_shared<CNNPoolingL2NormNode>(image, window); }, source, terms);
    }
}

TEST(neurons_agree) {
  // Some take an exponential and a quotient: a few roundings each.
  const std::function<FilterNodePtr(const ImageNodePtr&)> neurons[] = {
      [](const ImageNodePtr& image) { return std::make_shared<CNNNeuronReLUNode>(image, 0.1f); },
      [](const ImageNodePtr& image) { return std::make_shared<CNNNeuronSigmoidNode>(image); },
      [](const ImageNodePtr& image) { return std::make_shared<CNNNeuronTanHNode>(image); },
      [](const ImageNodePtr& image) { return std::make_shared<CNNNeuronELUNode>(image); },
      [](const ImageNodePtr& image) { return std::make_shared<CNNNeuronGeLUNode>(image); },
  };
  for (const auto& build : neurons) check_engines_agree("neuron", build, {2, 5, 7, 13}, 16);
}

TEST(normalization_agrees) {
  const auto build = [](const ImageNodePtr& image) {
    return std::make_shared<CNNBatchNormalizationNode>(image, std::make_shared<BatchNormalizationWeights>(19, "norm"));
  };
  check_engines_agree("batch normalization", build, {3, 6, 7, 19}, 3 * 6 * 7);
}
