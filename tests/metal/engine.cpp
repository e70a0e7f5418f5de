// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <limits>

#include "backends/metal/device_memory.hpp"
#include "backends/metal/images.hpp"
#include "../cpp/check.hpp"
#include "../cpp/training_network.hpp"

/// The Metal engine on the simulator, from C++: no Python between, so that the sanitizers see all of it.
using namespace mpsnn;
using namespace mpsnn::testing;

extern "C" long mpsnn_sim_live_objects(void);
extern "C" void mpsnn_sim_fail_next_command_buffer(const char* sentence);
extern "C" void mpsnn_sim_let_run(long command_buffers);

namespace {

/// Counts toy objects: none may be left where this goes.
struct NothingIsLeft {
  long before = mpsnn_sim_live_objects();
  ~NothingIsLeft() { CHECK_EQ(mpsnn_sim_live_objects(), before); }
};

/// After so many steps on an engine: every parameter, then the losses.
std::vector<double> trained(const char* engine, testing::Optimizer optimizer, NNTrainingStyle style, int steps) {
  Network network(device(engine), optimizer, style);
  std::vector<double> losses;
  for (int step = 0; step < steps; ++step) {
    const Batch batch = draw_batch(step);
    network.run(batch);
    losses.push_back(batch.loss());
  }
  std::vector<double> all = network.parameters();
  all.insert(all.end(), losses.begin(), losses.end());
  return all;
}

void check_same_training(testing::Optimizer optimizer, NNTrainingStyle style) {
  const NothingIsLeft nothing;
  constexpr int kSteps = 4;
  const auto metal = trained("metal", optimizer, style, kSteps), reference = trained("reference", optimizer, style, kSteps);
  CHECK_EQ(metal.size(), reference.size());
  // Adam's steps are as long as its rate whatever the gradient, so that the rounding of a tiny one shows: 0.01 per step.
  const double epsilon = std::numeric_limits<float>::epsilon(), slack = optimizer == testing::Optimizer::adam ? 0.01 * std::sqrt(epsilon) : 0;
  for (std::size_t i = 0; i < std::min(metal.size(), reference.size()); ++i)
    CHECK_NEAR(metal[i], reference[i], kSteps * (slack + std::sqrt(1000.0) * epsilon * std::max(1.0, std::abs(reference[i]))));
}

}  // namespace

TEST(a_network_trains_on_the_device_with_apples_momentum) { check_same_training(testing::Optimizer::sgd, NNTrainingStyle::UpdateDeviceGPU); }
TEST(a_network_trains_on_the_device_with_apples_adam) { check_same_training(testing::Optimizer::adam, NNTrainingStyle::UpdateDeviceGPU); }
TEST(a_network_trains_in_cpu_style) { check_same_training(testing::Optimizer::sgd, NNTrainingStyle::UpdateDeviceCPU); }

TEST(steps_on_a_queue_run_in_order_and_one_ahead) {
  const NothingIsLeft nothing;
  Network one(device("metal")), two(device("metal"));
  {
    mpsnn_sim_let_run(0);
    const auto queue = std::make_shared<CommandQueue>(device("metal"));
    std::vector<CommandBufferPtr> buffers;
    std::vector<Batch> batches;
    for (int step = 0; step < 4; ++step) {
      batches.push_back(draw_batch(step));
      buffers.push_back(queue->command_buffer());
      one.training().encode(*buffers.back(), {batches.back().images}, {batches.back().labels});
      buffers.back()->commit();
    }
    mpsnn_sim_let_run(-1);
    for (const CommandBufferPtr& buffer : buffers) buffer->wait_until_completed();
  }
  for (int step = 0; step < 4; ++step) two.run(draw_batch(step));
  CHECK(one.parameters() == two.parameters());
}

TEST(a_failed_command_buffer_says_what_apple_said) {
  const NothingIsLeft nothing;
  Network network(device("metal"));
  mpsnn_sim_fail_next_command_buffer("Discarded (victim of GPU error/recovery)");
  CHECK_THROWS(network.run(draw_batch(0)), DeviceError, "victim of GPU error");
  network.run(draw_batch(0));
}

TEST(batches_of_other_sizes_make_images_of_their_own) {
  const NothingIsLeft nothing;
  Network metal(device("metal")), reference(device("reference"));
  for (const int images : {kBatch, 3, 0, kBatch}) {
    const Batch a = draw_batch(7, images), b = draw_batch(7, images);
    metal.run(a);
    reference.run(b);
    CHECK_NEAR(a.loss(), b.loss(), 1e3 * std::numeric_limits<float>::epsilon() * std::max(1.0, b.loss()));
  }
}

TEST(halves_are_rounded_to_even_and_come_back_as_they_were) {
  for (std::uint32_t half = 0; half < 0x10000; ++half) {
    const float value = metal::from_half(static_cast<std::uint16_t>(half));
    if (std::isnan(value)) CHECK(std::isnan(metal::from_half(metal::to_half(value))));
    else CHECK_EQ(metal::to_half(value), half);
  }
  CHECK_EQ(metal::from_half(metal::to_half(65519.0f)), 65504.0f);
  CHECK(std::isinf(metal::from_half(metal::to_half(65520.0f))));
  CHECK_EQ(metal::from_half(metal::to_half(1 + 0x1p-11f)), 1.0f);
  CHECK_EQ(metal::from_half(metal::to_half(1 + 3 * 0x1p-11f)), 1 + 0x1p-9f);
  CHECK_EQ(metal::from_half(metal::to_half(0x1p-25f)), 0.0f);
  CHECK_EQ(metal::from_half(metal::to_half(3 * 0x1p-25f)), 0x1p-23f);
}

TEST(shared_memory_knows_its_buffer_and_nothing_else_does) {
  const NothingIsLeft nothing;
  const metal::Pool pool;
  const auto device = metal::own(MTL::CreateSystemDefaultDevice());
  const Buffer shared = metal::allocate_shared(device.get(), 100);
  CHECK_EQ(metal::device_part(shared).offset, 0u);
  CHECK_EQ(metal::device_part(shared.part(25, 10)).offset, 100u);
  CHECK(metal::device_part(shared.part(25, 10)).buffer == metal::device_part(shared).buffer);
  const Buffer other(100, ElementType::float32);
  CHECK(metal::device_part(other).buffer == nullptr);
  CHECK(metal::to_shared(device.get(), shared).data() == shared.data());
  CHECK(metal::device_part(metal::to_shared(device.get(), other)).buffer != nullptr);
}
