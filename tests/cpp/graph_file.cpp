// SPDX-License-Identifier: Apache-2.0
// Graph files as a C++ host uses them. What is wrong in a file: tests/python/test_broken_graph_files.py and tests/fuzz/graph_file.cpp.
#include "mpsnn/graph_file.hpp"

#include <cstring>
#include <filesystem>

#include "check.hpp"
#include "training_network.hpp"

using namespace mpsnn;
using testing::draw_batch;
using testing::Network;

namespace {

/// A folder that is gone at the end.
struct Folder {
  std::filesystem::path path = std::filesystem::temp_directory_path() / ("mpsnn_graph_file_" + std::to_string(std::filesystem::file_time_type::clock::now().time_since_epoch().count()));
  Folder() { std::filesystem::create_directory(path); }
  ~Folder() { std::filesystem::remove_all(path); }
  std::string file(const char* name) const { return (path / name).string(); }
};

std::span<const std::byte> bytes(const std::string& text) { return std::as_bytes(std::span(text)); }

std::string with_header(const std::string& header, const std::string& data = {}) {
  const std::uint64_t length = header.size();
  return std::string(reinterpret_cast<const char*>(&length), 8) + header + data;
}

}  // namespace

TEST(a_training_continues_from_a_file_with_the_same_bits) {
  for (const DevicePtr& device : devices()) {
    const Folder folder;
    Network network(device, testing::Optimizer::adam);
    for (unsigned seed = 0; seed < 3; ++seed) network.run(draw_batch(seed));
    save_graph(folder.file("graph"), network.training());
    const auto loaded = load_graph(folder.file("graph"), device);
    CHECK_EQ(loaded->nodes().size(), network.training().nodes().size());
    CHECK_EQ(loaded->encode_count(), std::uint64_t(3));
    CHECK_EQ(loaded->data_sources().size(), network.training().data_sources().size());
    for (unsigned seed = 3; seed < 6; ++seed) {
      const auto one = draw_batch(seed), other = draw_batch(seed);
      network.run(one);
      loaded->run({other.images}, {other.labels});
      CHECK_EQ(one.loss(), other.loss());
    }
    save_graph(folder.file("one"), network.training());
    save_graph(folder.file("other"), *loaded);
    CHECK(tensor_file_bytes(read_tensor_file(folder.file("one"))) == tensor_file_bytes(read_tensor_file(folder.file("other"))));
  }
}

TEST(result_images_come_back_to_build_on) {
  const Folder folder;
  Network network(default_device());
  save_graph(folder.file("graph"), {network.logits()});
  const auto results = load_result_images(folder.file("graph"));
  CHECK_EQ(results.size(), std::size_t(1));
  const auto images = draw_batch(1).images;
  NNGraph one(default_device(), network.logits()), other(default_device(), results);
  const auto expected = one.run({images}).result_images[0], actual = other.run({images}).result_images[0];
  CHECK(std::memcmp(expected->floats(), actual->floats(), expected->buffer().bytes()) == 0);
}

TEST(data_sources_travel_without_a_graph) {
  const Folder folder;
  auto weights = std::make_shared<ConvolutionWeights>(CNNConvolutionDescriptor{}, Initializer::xavier, 3, "weights");
  save_data_sources(folder.file("sources"), {weights}, "a text");
  const auto [sources, text] = load_data_sources(folder.file("sources"));
  CHECK_EQ(text, std::string("a text"));
  CHECK_EQ(sources.size(), std::size_t(1));
  const auto again = std::dynamic_pointer_cast<ConvolutionWeights>(std::get<ConvolutionDataSourcePtr>(sources[0]));
  CHECK(again && std::memcmp(again->weights_buffer().data(), weights->weights_buffer().data(), weights->weights_buffer().bytes()) == 0);
  CHECK_THROWS(load_graph(folder.file("sources"), default_device()), FileError, "no graph");
}

TEST(the_container_is_read_strictly) {
  const std::string entry = "\"a\": {\"dtype\": \"U8\", \"shape\": [2], \"data_offsets\": [0, 2]}";
  const TensorFile file = parse_tensor_file(bytes(with_header("{" + entry + "}  ", "xy")), "file");
  CHECK_EQ(file.tensors.at("a").bytes(), std::size_t(2));
  CHECK(std::memcmp(file.tensors.at("a").data, "xy", 2) == 0);
  CHECK_THROWS(parse_tensor_file(bytes(with_header("{" + entry + "}", "x")), "file"), FileError, "lies outside");
  CHECK_THROWS(parse_tensor_file(bytes(with_header("{" + entry + ", " + entry + "}", "xy")), "file"), FileError, "occurs twice");
  CHECK_THROWS(parse_tensor_file(bytes(with_header("{}", "x")), "file"), FileError, "belong to no array");
  CHECK_THROWS(parse_tensor_file(bytes(with_header(std::string(100'000, '['))), "file"), FileError, "64 levels");
  CHECK_THROWS(parse_tensor_file(bytes("short"), "file"), FileError, "file");
  CHECK_THROWS(graph_from({}, "file", default_device()), FileError, "another kind of file");
}

TEST(a_name_that_could_not_be_read_again_is_not_written) {
  const Folder folder;
  TensorFile file;
  file.metadata.emplace("\xff", "");
  CHECK_THROWS(write_tensor_file(folder.file("bad"), file), FileError, "no UTF-8");
  CHECK(std::filesystem::is_empty(folder.path));
}
