// SPDX-License-Identifier: Apache-2.0
// Mutations of valid graph files, of their bytes and of their JSON: a file gives a graph or a FileError, and a graph that it gives
// is planned and run, or refuses its images with an error of ours. Nothing else is thrown, nothing large is allocated, nothing takes long.
//   fuzz_graph_file [count] [seed]
// With clang and libFuzzer: docs/fuzzing.md.
#include <cstring>
#include <vector>

#ifdef __unix__
#include <unistd.h>
#endif

#include "../cpp/training_network.hpp"
#include "fuzz.hpp"
#include "mpsnn/graph_file.hpp"

using namespace mpsnn;
using fuzz::Random;

// A file of some kilobytes has no reason to ask for more.
extern "C" const char* __asan_default_options() { return "max_allocation_size_mb=256"; }

namespace {

using Bytes = std::string;

constexpr unsigned kSecondsPerInput = 20;

Bytes bytes_of(const NNGraph& graph) { return tensor_file_bytes(graph_tensors(graph)); }

template <class Node, class... Arguments>
ImageNodePtr after(const ImageNodePtr& source, Arguments... arguments) {
  return std::make_shared<Node>(source, arguments...)->result_image();
}

/// Classes that the training network lacks, with their gradients.
Bytes family() {
  auto x = std::make_shared<NNImageNode>(make_handle("x"));
  auto instance = std::make_shared<InstanceNormalizationWeights>(4, "instance");
  instance->training().set_optimizer(std::make_shared<NNOptimizerRMSProp>(0.01f));
  ImageNodePtr node = std::make_shared<CNNInstanceNormalizationNode>(x, instance)->result_image();
  node = std::make_shared<CNNGroupNormalizationNode>(node, std::make_shared<GroupNormalizationWeights>(4, 2, "group"))->result_image();
  node = after<CNNSpatialNormalizationNode>(node, 3);
  node = after<CNNLocalContrastNormalizationNode>(node, 3);
  node = after<CNNCrossChannelNormalizationNode>(node, 3);
  node = after<CNNUpsamplingNearestNode>(node, 2, 1);
  node = after<CNNUpsamplingBilinearNode>(node, 1, 2, true);
  node = after<NNPadNode>(node, ImageCoordinate{1, 0, 0}, ImageCoordinate{1, 2, 0}, ImageEdgeMode::Mirror);
  node = after<NNReshapeNode>(node, 10, 20, 2);
  node = after<CNNDropoutNode>(node);
  node = std::make_shared<CNNNeuronPReLUNode>(node, std::vector<float>{0.25f, 0.5f})->result_image();
  const WindowSize window{3, 2, 2, 1, 1, 2};
  auto pool = std::make_shared<CNNPoolingAverageNode>(node, window);
  pool->padding_policy = std::make_shared<ExplicitPadding>(1, 0, 2, 1);
  node = after<CNNPoolingL2NormNode>(pool->result_image(), window);
  node = after<CNNSoftMaxNode>(node);
  auto product = std::make_shared<NNMultiplicationNode>(after<NNReductionSpatialMeanNode>(node), after<NNGramMatrixCalculationNode>(node));
  product->primary_stride_in_pixels_x = 0;
  auto loss = std::make_shared<CNNLossNode>(product->result_image(), CNNLossDescriptor{});
  return bytes_of(NNGraph(default_device(), loss->training_graph().front()->result_image()));
}

/// Classes without a gradient, packed weights, and transposed convolution.
Bytes inference() {
  auto x = std::make_shared<NNImageNode>(make_handle("x"));
  CNNConvolutionDescriptor d;
  d.input_feature_channels = 4, d.output_feature_channels = 2;
  const auto words = std::make_shared<std::vector<std::uint32_t>>(18, 0x5a5a5a5a);
  const WeightArray bits{words->data(), 18, words}, halves{words->data(), 72, std::make_shared<std::vector<std::uint16_t>>(72, 0x3c00)};
  PackedConvolutionWeights::Arrays half{{static_cast<const std::vector<std::uint16_t>*>(halves.owner.get())->data(), 72, halves.owner}, {}, {}, {}};
  auto packed = std::make_shared<PackedConvolutionWeights>(d, DataType::Float16, half, "packed");
  auto binary = std::make_shared<PackedConvolutionWeights>(d, DataType::UInt32, PackedConvolutionWeights::Arrays{bits, {}, {}, {}}, "bits");
  auto up = std::make_shared<ConvolutionWeights>(d, Initializer::he, 1, "up");
  std::vector<ImageNodePtr> results{std::make_shared<CNNConvolutionNode>(x, packed)->result_image(), std::make_shared<CNNConvolutionTransposeNode>(x, nullptr, up)->result_image(),
                                    std::make_shared<CNNBinaryConvolutionNode>(x, binary, 0.5f, CNNBinaryConvolutionType::XNOR, CNNBinaryConvolutionFlags::UseBetaScaling)->result_image(),
                                    after<NNReductionFeatureChannelsArgumentMaxNode>(x), after<NNReductionRowMinNode>(x), after<NNBilinearScaleNode>(x, nullptr, 3, 7),
                                    after<NNLanczosScaleNode>(x, nullptr, 7, 3), std::make_shared<NNComparisonNode>(x, x)->result_image(),
                                    std::make_shared<NNDivisionNode>(x, x)->result_image()};
  return bytes_of(NNGraph(default_device(), results));
}

const std::vector<Bytes>& seeds() {
  static const std::vector<Bytes> kSeeds = [] {
    std::vector<Bytes> all{family(), inference()};
    for (auto optimizer : {testing::Optimizer::sgd, testing::Optimizer::adam}) {
      testing::Network network(default_device(), optimizer);
      network.run(testing::draw_batch(1));  // so that there is history
      all.push_back(bytes_of(network.training()));
    }
    return all;
  }();
  return kSeeds;
}

// --- mutations ---------------------------------------------------------------------------------------------------

void mutate_bytes(Bytes& bytes, Random& random, std::size_t within) {
  for (std::uint64_t changes = 1 + random.below(4); changes > 0 && !bytes.empty(); --changes) {
    const std::size_t at = random.below(std::min(within, bytes.size()));
    switch (random.below(6)) {
      case 0: bytes[at] = static_cast<char>(random.bits()); break;
      case 1: bytes[at] = static_cast<char>(bytes[at] ^ (1 << random.below(8))); break;
      case 2: bytes.insert(at, 1 + random.below(8), static_cast<char>(random.bits())); break;
      case 3: bytes.erase(at, 1 + random.below(16)); break;
      case 4: bytes.resize(at); break;
      default: bytes.insert(at, bytes.substr(random.below(bytes.size()), random.below(64))); break;
    }
  }
}

/// The places of numbers, texts and words in a JSON text; of values alone, without the names of members.
std::vector<std::pair<std::size_t, std::size_t>> tokens_of(const Bytes& text, bool values_alone) {
  std::vector<std::pair<std::size_t, std::size_t>> tokens;
  for (std::size_t i = 0; i < text.size();) {
    const std::size_t begin = i;
    if (text[i] == '"') {
      for (++i; i < text.size() && text[i] != '"'; ++i) i += text[i] == '\\';
      ++i;
    } else {
      while (i < text.size() && std::strchr("-+.eE0123456789truefalsn", text[i])) ++i;
      if (i == begin) { ++i; continue; }
    }
    if (!values_alone || i >= text.size() || text[i] != ':') tokens.emplace_back(begin, std::min(i, text.size()) - begin);
  }
  return tokens;
}

/// Replaces tokens by hostile ones or by other tokens of the text: it stays JSON, mostly.
void mutate_json(Bytes& text, Random& random) {
  static const char* const kValues[] = {"0", "1", "-1", "2", "3", "7", "0.5", "1e300", "-1e300", "1e-300", "32768", "32767", "65536", "1048576", "1073741824", "2147483647",
                                        "2147483648", "-2147483648", "4294967295", "4294967296", "9007199254740992", "9223372036854775807", "18446744073709551615",
                                        "true", "false", "null", "[]", "{}", "\"\"", "\"nan\"", "\"inf\"", "\"-inf\"", "\"18446744073709551615\"", "NaN", "[0]", "[[0, 0]]",
                                        "[1, 2]", "\"MPSNNAdditionNode\"", "\"MPSCNNConvolutionNode\"", "\"MPSNNConcatenationNode\"", "\"ConvolutionWeights\"",
                                        "\"F32\"", "\"U8\"", "\"F64\"", "\"BF16\""};
  const bool is_gentle = !random.one_in(3);  // numbers for numbers: what is refused at once tries little
  for (std::uint64_t changes = is_gentle ? 1 : 1 + random.below(3); changes > 0; --changes) {
    const auto tokens = tokens_of(text, is_gentle || !random.one_in(8));
    if (tokens.empty()) return;
    const auto [at, length] = random.of(tokens);
    const auto [other, other_length] = random.of(tokens);
    if (is_gentle && text[at] != '"' && length > 0 && std::strchr("-0123456789", text[at])) {
      text.replace(at, length, random.one_in(2) ? random.of(kValues) : std::to_string(random.below(9)));
      continue;
    }
    text.replace(at, length, random.one_in(3) ? text.substr(other, other_length) : Bytes(random.of(kValues)));
  }
}

Bytes mutated(Random& random) {
  const std::size_t chosen_seed = random.below(seeds().size());
  Bytes bytes = seeds()[chosen_seed];
  std::uint64_t header = 0;
  std::memcpy(&header, bytes.data(), 8);
  switch (random.below(8)) {
    case 0: mutate_bytes(bytes, random, bytes.size()); return bytes;
    case 1: mutate_bytes(bytes, random, 8 + header); return bytes;
    case 2: mutate_bytes(bytes, random, 8); return bytes;
    case 3: {  // the container's own JSON
      Bytes text = bytes.substr(8, header);
      mutate_json(text, random);
      const std::uint64_t length = text.size();
      bytes.replace(0, 8 + header, Bytes(reinterpret_cast<const char*>(&length), 8) + text);
      return bytes;
    }
    default: break;
  }
  // What the file says of the graph; arrays are dropped, doubled or renamed now and then.
  static const std::vector<TensorFile> kFiles = [] {
    std::vector<TensorFile> files;
    for (const Bytes& seed : seeds()) files.push_back(parse_tensor_file(std::as_bytes(std::span(seed)), "seed"));
    return files;
  }();
  TensorFile file = kFiles[chosen_seed];
  mutate_json(file.metadata.at("mpsnn"), random);
  if (random.one_in(8) && !file.tensors.empty()) {
    auto chosen = std::next(file.tensors.begin(), static_cast<std::ptrdiff_t>(random.below(file.tensors.size())));
    if (random.one_in(2)) file.tensors.insert_or_assign(file.tensors.begin()->first, chosen->second);
    else file.tensors.erase(chosen);
  }
  return tensor_file_bytes(file);
}

// --- what must hold ----------------------------------------------------------------------------------------------

/// Runs a step with images of these channels; false when the graph refused it.
bool run(NNGraph& graph, int images, int height, int width, int channels) {
  try {
    std::vector<ImagePtr> sources;
    std::vector<StatePtr> labels;
    for (std::size_t i = 0; i < graph.source_image_handles().size(); ++i) sources.push_back(std::make_shared<Image>(Shape{images, height, width, channels}));
    for (std::size_t i = 0; i < graph.source_state_handles().size(); ++i)
      labels.push_back(std::make_shared<CNNLossLabels>(std::make_shared<Image>(Shape{images, 1, channels == 4 ? 2 : 1, channels == 4 ? 2 : testing::kClasses})));
    graph.run(sources, labels);
    return true;
  } catch (const Error&) {
    return false;
  }
}

/// True when one image makes no large results: only then it is run with numbers.
bool is_small(NNGraph& graph, int height, int width, int channels) {
  try {
    for (const PlannedOperation& o : graph.plan(std::vector<Shape>(graph.source_image_handles().size(), Shape{0, height, width, channels})).operations) {
      int images = 0;
      double h = 0, w = 0, c = 0;
      if (std::sscanf(o.result.c_str(), "%d x %lf x %lf x %lf", &images, &h, &w, &c) == 4 && h * w * c > 4096) return false;
    }
    return true;
  } catch (const Error&) {
    return false;
  }
}

enum class Outcome { refused, loaded, run };

Outcome check(std::span<const std::byte> content) {
  std::shared_ptr<NNGraph> graph;
  try {
    graph = graph_from(parse_tensor_file(content, "input"), "input", default_device());
  } catch (const FileError& error) {
    if (std::string(error.what()).find("input") == std::string::npos) fuzz::fail(std::string("an error that names no file: ") + error.what());
    return Outcome::refused;
  }
  Outcome outcome = Outcome::loaded;
  for (const auto& [height, width, channels] : {std::tuple{4, 4, 4}, {testing::kHeight, testing::kWidth, testing::kChannels}}) {
    run(*graph, 0, height, width, channels);
    if (is_small(*graph, height, width, channels) && run(*graph, 1, height, width, channels)) outcome = Outcome::run;
  }
  if (graph_from(graph_tensors(*graph), "input", default_device())->nodes().size() != graph->nodes().size()) fuzz::fail("a loaded graph was saved as another one");
  return outcome;
}

}  // namespace

#ifdef MPSNN_LIBFUZZER
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  check(std::as_bytes(std::span(data, size)));
  return 0;
}

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t, std::size_t most, unsigned seed) {
  Random random(seed);
  const Bytes bytes = mutated(random);
  const std::size_t size = std::min(most, bytes.size());
  std::memcpy(data, bytes.data(), size);
  return size;
}
#else
int main(int argument_count, char** arguments) {
  const fuzz::Arguments given(argument_count, arguments, 20'000);
  set_num_threads(1);
  for (const Bytes& seed : seeds())
    if (check(std::as_bytes(std::span(seed))) != Outcome::run) fuzz::fail("a file that was not changed was refused");
  std::uint64_t outcomes[3] = {};
  for (std::uint64_t i = 0; i < given.count; ++i) {
    Random random(given.seed + i);
#ifdef __unix__
    alarm(kSecondsPerInput);
#endif
    try {
      const Bytes bytes = mutated(random);
      ++outcomes[static_cast<int>(check(std::as_bytes(std::span(bytes))))];
    } catch (const std::exception& error) {
      fuzz::fail("input " + std::to_string(given.seed + i) + ": " + error.what());
    }
  }
  std::printf("%llu files: %llu refused, %llu loaded, %llu of them run\n", static_cast<unsigned long long>(given.count), static_cast<unsigned long long>(outcomes[0]),
              static_cast<unsigned long long>(outcomes[1] + outcomes[2]), static_cast<unsigned long long>(outcomes[2]));
}
#endif
