// SPDX-License-Identifier: Apache-2.0
#include "mpsnn/graph.hpp"

#include <limits>
#include <thread>

#include "check.hpp"
#include "training_network.hpp"

using namespace mpsnn;
using namespace mpsnn::testing;

namespace {

const char* const kDevices[] = {"cpu", "reference"};

std::vector<double> trained_parameters(const DevicePtr& device, int steps, Optimizer optimizer = Optimizer::sgd,
                                       NNTrainingStyle style = NNTrainingStyle::UpdateDeviceGPU) {
  Network network(device, optimizer, style);
  for (int step = 0; step < steps; ++step) network.run(draw_batch(step));
  return network.parameters();
}

double largest(const std::vector<double>& values) {
  double result = 0;
  for (double value : values) result = std::max(result, std::abs(value));
  return result;
}

/// How far apart two lists are: 0 only when they are the same.
double distance(const std::vector<double>& a, const std::vector<double>& b) {
  if (a.size() != b.size()) return std::numeric_limits<double>::infinity();
  double result = 0;
  for (std::size_t i = 0; i < a.size(); ++i) result = a[i] == b[i] ? result : std::max(result, std::abs(a[i] - b[i]));
  return result;
}

/// Sets the thread count and puts it back.
class Threads {
 public:
  explicit Threads(int count) : before_(num_threads()) { set_num_threads(count); }
  ~Threads() { set_num_threads(before_); }

 private:
  int before_;
};

}  // namespace

TEST(training_lowers_the_loss_on_every_device_with_every_optimizer) {
  for (const char* name : kDevices)
    for (Optimizer optimizer : {Optimizer::sgd, Optimizer::adam}) {
      Network network(device(name), optimizer);
      std::vector<double> losses;
      for (int step = 0; step < 40; ++step) {
        const Batch batch = draw_batch(step);
        network.run(batch);
        losses.push_back(batch.loss());
      }
      const double first = losses[0] + losses[1] + losses[2], last = losses[37] + losses[38] + losses[39];
      CHECK(last < first / 2);
    }
}

TEST(engines_agree_on_a_step) {
  const std::vector<double> fast = trained_parameters(device("cpu"), 1), exact = trained_parameters(device("reference"), 1);
  // The longest sums are the weight gradients of the first convolution, over the batch and its 3 x 4 results, of sums over
  // the 3 x 1 x 5 taps of the next layer.
  const double terms = kBatch * 3.0 * 4.0 * (3 * 1 * 5);
  CHECK_NEAR(distance(fast, exact), 0, largest(exact) * std::sqrt(terms) * std::numeric_limits<float>::epsilon());
}

TEST(both_training_styles_take_the_same_steps) {
  constexpr int kSteps = 3;
  auto difference = [](const char* name) {
    return distance(trained_parameters(device(name), kSteps, Optimizer::adam, NNTrainingStyle::UpdateDeviceCPU),
                    trained_parameters(device(name), kSteps, Optimizer::adam, NNTrainingStyle::UpdateDeviceGPU));
  };
  CHECK_EQ(difference("cpu"), 0);
  // With CPU style the weights pass through the data source, which holds float32: one rounding per step, of weights below 2.
  CHECK_NEAR(difference("reference"), 0, 2 * kSteps * std::numeric_limits<float>::epsilon());
}

TEST(any_thread_count_gives_the_same_bits) {
  for (const char* name : kDevices) {
    std::vector<double> alone;
    {
      Threads one(1);
      alone = trained_parameters(device(name), 3);
    }
    for (int count : {2, 3, 5}) {
      Threads many(count);
      CHECK_EQ(distance(trained_parameters(device(name), 3), alone), 0);
    }
  }
}

TEST(graphs_in_two_threads_do_not_disturb_each_other) {
  const std::vector<double> alone = trained_parameters(default_device(), 5);
  std::vector<double> first, second;
  std::thread other([&] { first = trained_parameters(default_device(), 5); });
  second = trained_parameters(default_device(), 5);
  other.join();
  CHECK_EQ(distance(first, alone), 0);
  CHECK_EQ(distance(second, alone), 0);
}

TEST(steps_encoded_ahead_on_a_queue_give_the_bits_of_steps_run_one_by_one) {
  constexpr int kSteps = 6;
  for (NNTrainingStyle style : {NNTrainingStyle::UpdateDeviceCPU, NNTrainingStyle::UpdateDeviceGPU}) {
    Network network(default_device(), Optimizer::sgd, style);
    auto queue = std::make_shared<CommandQueue>(default_device());
    std::vector<CommandBufferPtr> buffers;
    for (int step = 0; step < kSteps; ++step) {
      const Batch batch = draw_batch(step);
      buffers.push_back(queue->command_buffer());
      network.training().encode(*buffers.back(), {batch.images}, {batch.labels});
      buffers.back()->commit();
    }
    for (const CommandBufferPtr& buffer : buffers) buffer->wait_until_completed();
    CHECK_EQ(distance(network.parameters(), trained_parameters(default_device(), kSteps, Optimizer::sgd, style)), 0);
  }
}

TEST(a_result_image_outlives_its_graph_and_its_queue) {
  ImagePtr result;
  {
    Network network(default_device());
    NNGraph inference(default_device(), network.logits());
    auto queue = std::make_shared<CommandQueue>(default_device());
    CommandBufferPtr buffer = queue->command_buffer();
    result = inference.encode(*buffer, {draw_batch(1).images}).result_images.front();
    buffer->commit();
    buffer->wait_until_completed();
  }
  CHECK_EQ(result->shape().text(), (Shape{kBatch, 1, 1, kClasses}).text());
  CHECK(std::isfinite(result->buffer().at(0)));
}

TEST(the_handler_of_an_asynchronous_run_gets_the_results) {
  Network network(default_device());
  NNGraph inference(default_device(), network.logits());
  const ImagePtr expected = inference.run({draw_batch(1).images}).result_images.front();
  ImagePtr result;
  auto handler = [&](const EncodedResults& results, std::exception_ptr error) {
    CHECK(!error);
    result = results.result_images.front();
  };
  const CommandBufferPtr buffer = inference.execute_async({draw_batch(1).images}, handler);
  buffer->wait_until_completed();
  CHECK(result);
  for (std::size_t i = 0; result && i < result->buffer().count(); ++i) CHECK_EQ(result->buffer().at(i), expected->buffer().at(i));
}

TEST(an_empty_batch_changes_nothing_but_runs) {
  for (const char* name : kDevices) {
    Network network(device(name));
    NNGraph inference(device(name), network.logits());
    CHECK_EQ(inference.run({draw_batch(1, 0).images}).result_images.front()->shape().text(), (Shape{0, 1, 1, kClasses}).text());
  }
}

TEST(batches_of_any_length_share_a_graph) {
  Network network(default_device());
  NNGraph inference(default_device(), network.logits());
  const Batch all = draw_batch(1);
  const ImagePtr together = inference.run({all.images}).result_images.front();
  const std::size_t elements = all.images->shape().image_count();
  for (int n = 0; n < kBatch; ++n) {
    const Buffer part = all.images->buffer().part(n * elements, elements);
    auto single = std::make_shared<Image>(Shape{1, kHeight, kWidth, kChannels}, part);
    const ImagePtr alone = inference.run({single}).result_images.front();
    // Logits below 10, sums of 2 x 2 x 7 terms.
    const double tolerance = 10 * std::sqrt(28.0) * std::numeric_limits<float>::epsilon();
    for (int c = 0; c < kClasses; ++c) CHECK_NEAR(alone->buffer().at(c), together->buffer().at(n * kClasses + c), tolerance);
  }
}

TEST(a_wrong_image_is_refused_with_its_layer_and_both_shapes_and_leaves_the_buffer_usable) {
  Network network(default_device());
  auto queue = std::make_shared<CommandQueue>(default_device());
  const CommandBufferPtr buffer = queue->command_buffer();
  auto wrong = std::make_shared<Image>(Shape{kBatch, kHeight, kWidth, kChannels + 1});
  const Batch batch = draw_batch(0);
  CHECK_THROWS(network.training().encode(*buffer, {wrong}, {batch.labels}), ShapeError, "stem");
  CHECK_THROWS(network.training().encode(*buffer, {}, {batch.labels}), GraphError, "source images");
  CHECK_THROWS(network.training().encode(*buffer, {batch.images}, {}), GraphError, "source states");
  CHECK(buffer->status() == CommandBufferStatus::NotEnqueued);
  network.training().encode(*buffer, {batch.images}, {batch.labels});
  buffer->commit();
  buffer->wait_until_completed();
  CHECK_EQ(distance(network.parameters(), trained_parameters(default_device(), 1)), 0);
}

TEST(a_trapped_nan_leaves_every_parameter_alone_and_names_the_input) {
  for (const char* name : kDevices) {
    Network network(device(name));
    network.training().trap_nonfinite = true;
    network.run(draw_batch(0));
    const std::vector<double> before = network.parameters();
    const Batch batch = draw_batch(1);
    batch.images->floats()[5] = std::numeric_limits<float>::quiet_NaN();
    CHECK_THROWS(network.run(batch), DeviceError, "image");
    CHECK_EQ(distance(network.parameters(), before), 0);
    network.run(draw_batch(2));
    CHECK(distance(network.parameters(), before) > 0);
  }
}

TEST(an_error_in_a_buffer_reaches_whoever_waits_and_spares_the_next_one) {
  auto queue = std::make_shared<CommandQueue>(default_device());
  const CommandBufferPtr failing = queue->command_buffer(), working = queue->command_buffer();
  bool handler_saw_error = false, later_work_ran = false, next_ran = false;
  failing->record([] { throw DeviceError("the device is on fire."); });
  failing->record([&] { later_work_ran = true; });
  failing->add_completed_handler([&](CommandBuffer& buffer) { handler_saw_error = buffer.error() != nullptr; });
  working->record([&] { next_ran = true; });
  failing->commit();
  working->commit();
  CHECK_THROWS(failing->wait_until_completed(), DeviceError, "on fire");
  working->wait_until_completed();
  CHECK(failing->status() == CommandBufferStatus::Error);
  CHECK(working->status() == CommandBufferStatus::Completed);
  CHECK(handler_saw_error && next_ran && !later_work_ran);
  CHECK_THROWS(working->commit(), DeviceError, "committed");
  CHECK_THROWS(queue->command_buffer()->wait_until_completed(), DeviceError, "commit");
}

TEST(a_queue_finishes_what_was_committed_when_it_goes) {
  int done = 0;
  {
    auto queue = std::make_shared<CommandQueue>(default_device());
    for (int i = 0; i < 20; ++i) {
      const CommandBufferPtr buffer = queue->command_buffer();
      buffer->record([&done] {
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
        ++done;
      });
      buffer->commit();
      if (i == 19) {
        queue.reset();
        buffer->wait_until_completed();
      }
    }
  }
  CHECK_EQ(done, 20);
}

TEST(a_step_into_given_results_uses_their_images_again_even_as_its_source) {
  auto image = std::make_shared<NNImageNode>(make_handle("image"));
  NNGraph graph(default_device(), std::make_shared<CNNNeuronLinearNode>(image, 2.0f, 1.0f)->result_image());
  auto source = std::make_shared<Image>(Shape{1, 1, 1, 4});
  source->floats()[3] = 5;
  EncodedResults results;
  graph.run({source}, {}, results);
  CHECK_EQ(results.result_images.front()->floats()[3], 11.0f);
  const Image* first = results.result_images.front().get();
  source->floats()[3] = 6;
  graph.run({source}, {}, results);
  CHECK(results.result_images.front().get() == first);
  CHECK_EQ(first->floats()[3], 13.0f);
  graph.run(results.result_images, {}, results);
  CHECK_EQ(results.result_images.front()->floats()[3], 27.0f);
}
