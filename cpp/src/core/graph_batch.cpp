// SPDX-License-Identifier: Apache-2.0
#include "core/graph_impl.hpp"

/// Batches as MPS passes them, lists of single images, as one image each way.
namespace mpsnn {
namespace {

void require(bool is_right, const char* sentence, const std::string& expected, const std::string& actual) {
  if (!is_right) throw ShapeError(std::string("MPSNNGraph.encode_batch: ") + sentence, {.node = "MPSNNGraph", .expected = expected, .actual = actual});
}

/// An image as large as all of them, which `fill` fills.
ImagePtr gather(const ImageBatch& batch, std::vector<Buffer>& reads, std::vector<std::function<void()>>& fill) {
  require(!batch.empty() && batch.front(), "a batch holds at least one image.", "1 or more images", "none");
  Shape shape = batch.front()->shape();
  for (const ImagePtr& image : batch)
    require(image && image->shape() == shape && shape.images == 1 && image->type() == batch.front()->type(), "images of a batch are single and of one size.",
            Shape{1, shape.height, shape.width, shape.channels}.text(), image ? image->shape().text() : "none");
  shape.images = static_cast<int>(batch.size());
  auto whole = std::make_shared<Image>(shape, batch.front()->type());
  for (const ImagePtr& image : batch) reads.push_back(image->buffer());
  fill.push_back([batch, whole] {
    for (std::size_t i = 0; i < batch.size(); ++i) whole->buffer().part(i * batch[i]->buffer().count(), batch[i]->buffer().count()).copy_from(batch[i]->buffer());
  });
  return whole;
}

ImageBatch split(const ImagePtr& whole) {
  ImageBatch batch;
  if (!whole) return batch;
  Shape single = whole->shape();
  const std::size_t count = single.image_count();
  const int images = single.images;
  single.images = 1;
  // Each part keeps the whole image, not just its memory: an image that nobody holds is given to the next encode.
  const Buffer held(whole, whole->buffer().data(), whole->buffer().count(), whole->type());
  for (int i = 0; i < images; ++i) batch.push_back(std::make_shared<Image>(single, held.part(i * count, count)));
  return batch;
}

}  // namespace

EncodedBatches NNGraph::encode_batch(CommandBuffer& command_buffer, const std::vector<ImageBatch>& source_images, const std::vector<StateBatch>& source_states) {
  const auto around = std::make_shared<Around>();
  const auto whole_of = [&](const ImageBatch& batch) { return gather(batch, around->reads, around->before); };
  std::vector<ImagePtr> images;
  for (const ImageBatch& batch : source_images) images.push_back(whole_of(batch));
  std::vector<StatePtr> states;
  for (const StateBatch& batch : source_states) {
    ImageBatch labels, weights;
    Shape loss_size{0, 1, 1, 1};
    for (const StatePtr& state : batch) {
      const auto* single = dynamic_cast<const CNNLossLabels*>(state.get());
      require(single, "source states are labels.", "MPSCNNLossLabels", "another state");
      labels.push_back(single->labels_image());
      if (single->weights_image()) weights.push_back(single->weights_image());
      loss_size = single->loss_image()->shape();
    }
    require(weights.empty() || weights.size() == labels.size(), "all labels of a batch have weights, or none.", std::to_string(labels.size()), std::to_string(weights.size()));
    const auto whole = std::make_shared<CNNLossLabels>(whole_of(labels), weights.empty() ? nullptr : whole_of(weights), loss_size);
    states.push_back(whole);
    for (const StatePtr& state : batch) around->writes.push_back(static_cast<CNNLossLabels&>(*state).loss_image()->buffer());
    around->after.push_back([batch, whole] {
      const ImageBatch losses = split(whole->loss_image());
      for (std::size_t i = 0; i < batch.size(); ++i) static_cast<CNNLossLabels&>(*batch[i]).loss_image()->buffer().copy_from(losses[i]->buffer());
    });
  }
  const EncodedResults whole = encode_step(command_buffer, images, states, false, around);
  EncodedBatches results;
  for (const ImagePtr& image : whole.result_images) results.result_images.push_back(split(image));
  for (const ImagePtr& image : whole.intermediate_images) results.intermediate_images.push_back(split(image));
  results.destination_states = whole.destination_states;
  return results;
}

}  // namespace mpsnn
