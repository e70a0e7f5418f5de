// SPDX-License-Identifier: Apache-2.0
#include "mpsnn/optimizer.hpp"

#include <cstring>
#include <limits>
#include <random>

#include "check.hpp"
#include "core/parallel.hpp"
#include "mpsnn/error.hpp"

using namespace mpsnn;

namespace {

constexpr ElementType kTypes[] = {ElementType::float32, ElementType::float64};

Buffer buffer_of(std::vector<double> numbers, ElementType type) {
  Buffer buffer(numbers.size(), type);
  for (std::size_t i = 0; i < numbers.size(); ++i) buffer.part(i, 1).fill(numbers[i]);
  return buffer;
}

double epsilon_of(ElementType type) {
  return type == ElementType::float64 ? std::numeric_limits<double>::epsilon() : std::numeric_limits<float>::epsilon();
}

std::vector<Buffer> history_for(const NNOptimizer& optimizer, std::size_t count, ElementType type) {
  std::vector<Buffer> history;
  for (int i = 0; i < optimizer.history_count(); ++i) history.emplace_back(count, type);
  return history;
}

/// One parameter, from 1, under the gradients of docs/MPS_SEMANTICS.md 22.4: 0.5, then 0.25.
struct Trace {
  std::vector<double> values;
  std::vector<Buffer> history;
};
Trace trace(NNOptimizer& optimizer, ElementType type, std::vector<double> gradients = {0.5, 0.25}, double start = 1) {
  Trace t{{}, history_for(optimizer, 1, type)};
  const Buffer value = buffer_of({start}, type);
  for (double g : gradients) {
    optimizer.begin_step();
    optimizer.apply(buffer_of({g}, type), value, t.history, value);
    t.values.push_back(value.at(0));
  }
  return t;
}

/// The specification prints these numbers; a handful of operations on parameters that are themselves float32 stand between.
void check_trace(NNOptimizer&& optimizer, double first, double second, double printed_digits) {
  for (ElementType type : kTypes) {
    const auto fresh = optimizer.clone();
    const Trace t = trace(*fresh, type);
    const double tolerance = printed_digits + 8 * epsilon_of(ElementType::float32);
    CHECK_NEAR(t.values[0], first, tolerance);
    CHECK_NEAR(t.values[1], second, tolerance);
  }
}

const NNOptimizerDescriptor kRate{.learning_rate = 0.1f};

}  // namespace

TEST(descent_follows_the_gradient) { check_trace(NNOptimizerStochasticGradientDescent(0.1f), 0.95, 0.925, 0); }

TEST(momentum_matches_the_specification) {
  check_trace(NNOptimizerStochasticGradientDescent(kRate, 0.9f), 0.95, 0.88, 0);
  NNOptimizerStochasticGradientDescent optimizer(kRate, 0.9f);
  const Trace t = trace(optimizer, ElementType::float64);
  CHECK_NEAR(t.history[0].at(0), 0.07, 8 * epsilon_of(ElementType::float32));  // the rate is folded in
}

TEST(nesterov_momentum_matches_the_specification) {
  check_trace(NNOptimizerStochasticGradientDescent(kRate, 0.9f, true), 0.905, 0.817, 0);
  NNOptimizerStochasticGradientDescent optimizer(kRate, 0.9f, true);
  const Trace t = trace(optimizer, ElementType::float64);
  CHECK_NEAR(t.history[0].at(0), 0.7, 8 * epsilon_of(ElementType::float32));
}

TEST(rmsprop_matches_the_specification) { check_trace(NNOptimizerRMSProp(kRate), 0.6837723, 0.5363303, 5e-8); }

TEST(adam_matches_the_specification) {
  check_trace(NNOptimizerAdam(kRate), 0.9000000632, 0.8067821521, 5e-11);
  NNOptimizerAdam optimizer(kRate);
  trace(optimizer, ElementType::float32);
  CHECK_EQ(optimizer.time_step(), 2u);
  CHECK_EQ(static_cast<const NNOptimizerAdam&>(*optimizer.clone()).time_step(), 2u);
}

TEST(a_restored_time_step_continues_adam) {
  NNOptimizerAdam whole(kRate), resumed(kRate, 0.9, 0.999, 1e-8f, 1);
  const Trace first = trace(whole, ElementType::float64, {0.5});
  const Buffer value = buffer_of({first.values[0]}, ElementType::float64);
  resumed.begin_step();
  resumed.apply(buffer_of({0.25}, ElementType::float64), value, first.history, value);
  NNOptimizerAdam again(kRate);
  CHECK_EQ(value.at(0), trace(again, ElementType::float64).values[1]);
}

TEST(amsgrad_keeps_the_largest_velocity) {
  NNOptimizerAdam plain(kRate, 0.9, 0.5), largest(kRate, 0.9, 0.5, 1e-8f, 0, true);
  CHECK_EQ(largest.history_count(), 3);
  const Trace a = trace(plain, ElementType::float64, {2, 0.125, 0.125}), b = trace(largest, ElementType::float64, {2, 0.125, 0.125});
  CHECK_EQ(a.values[0], b.values[0]);  // u has only risen
  CHECK_EQ(b.history[2].at(0), 2.0);   // (1 - 0.5) * 2^2
  // m = 0.9 (0.9 * 0.2 + 0.1/8) + 0.1/8; lr_t = 0.1 sqrt(1 - 1/8) / (1 - 0.9^3)
  const double m = 0.9 * (0.9 * 0.2 + 0.1 / 8) + 0.1 / 8, rate = 0.1 * std::sqrt(1 - 0.125) / (1 - 0.9 * 0.9 * 0.9);
  CHECK_NEAR(b.values[1] - b.values[2], rate * m / std::sqrt(2.0), 8 * epsilon_of(ElementType::float32));
  CHECK(a.values[2] < b.values[2]);
}

TEST(gradients_are_clipped_then_rescaled_then_regularized) {
  NNOptimizerDescriptor d{.learning_rate = 1, .gradient_rescale = 0.5f, .apply_gradient_clipping = true, .gradient_clip_max = 2,
                          .gradient_clip_min = -1, .regularization_type = NNRegularizationType::L2, .regularization_scale = 0.25f};
  for (ElementType type : kTypes) {
    const auto step = [&](const NNOptimizerDescriptor& descriptor, double gradient, double value) {
      NNOptimizerStochasticGradientDescent optimizer(descriptor);
      return trace(optimizer, type, {gradient}, value).values[0];
    };
    CHECK_EQ(step(d, 8, 4), 4 - (2 * 0.5 + 0.25 * 4));
    CHECK_EQ(step(d, -8, 4), 4 - (-1 * 0.5 + 0.25 * 4));
    d.apply_gradient_clipping = false;
    CHECK_EQ(step(d, 8, 4), 4 - (8 * 0.5 + 0.25 * 4));
    d.regularization_type = NNRegularizationType::L1;
    CHECK_EQ(step(d, 8, -4), -4 - (8 * 0.5 - 0.25));
    CHECK_EQ(step(d, 8, 0), 0 - 8 * 0.5);
    d.regularization_type = NNRegularizationType::None;
    CHECK_EQ(step(d, 8, -4), -4 - 8 * 0.5);
    d.apply_gradient_clipping = true;
    d.regularization_type = NNRegularizationType::L2;
  }
}

TEST(the_result_may_be_elsewhere_and_threads_change_no_bit) {
  const std::size_t count = 100003;  // several stretches and an odd rest
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<double> g(count), v(count);
  for (std::size_t i = 0; i < count; ++i) g[i] = normal(random), v[i] = normal(random);
  std::vector<std::unique_ptr<NNOptimizer>> optimizers;
  optimizers.push_back(std::make_unique<NNOptimizerStochasticGradientDescent>(kRate, 0.9f));
  optimizers.push_back(std::make_unique<NNOptimizerStochasticGradientDescent>(kRate, 0.9f, true));
  optimizers.push_back(std::make_unique<NNOptimizerRMSProp>(kRate));
  optimizers.push_back(std::make_unique<NNOptimizerAdam>(kRate, 0.9, 0.999, 1e-8f, 0, true));
  const int threads = thread_count();
  for (const auto& optimizer : optimizers) {
    const Buffer gradient = buffer_of(g, ElementType::float32), values = buffer_of(v, ElementType::float32);
    const Buffer elsewhere(count, ElementType::float32), in_place = buffer_of(v, ElementType::float32);
    optimizer->begin_step();
    set_thread_count(1);
    optimizer->apply(gradient, values, history_for(*optimizer, count, ElementType::float32), elsewhere);
    set_thread_count(3);
    optimizer->apply(gradient, in_place, history_for(*optimizer, count, ElementType::float32), in_place);
    CHECK(std::memcmp(elsewhere.data(), in_place.data(), in_place.bytes()) == 0);
    CHECK_EQ(values.at(count - 1), v[count - 1]);
    CHECK(elsewhere.at(count - 1) != v[count - 1]);
  }
  set_thread_count(threads);
}

TEST(an_empty_parameter_is_no_work) {
  const Buffer none(0, ElementType::float32);
  NNOptimizerStochasticGradientDescent(0.1f).apply(none, none, {}, none);
  CHECK_EQ(none.count(), 0u);
}

TEST(bad_options_name_the_class_and_both_values) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  CHECK_THROWS(NNOptimizerAdam(-1.0f), OptionError, "MPSNNOptimizerAdam");
  CHECK_THROWS(NNOptimizerAdam(-1.0f), OptionError, "actual    -1");
  CHECK_THROWS(NNOptimizerRMSProp(nan), OptionError, "learning rate");
  CHECK_THROWS(NNOptimizerRMSProp(kRate, 1.0), OptionError, "decay");
  CHECK_THROWS(NNOptimizerRMSProp(kRate, 0.9, -1.0f), OptionError, "epsilon");
  CHECK_THROWS(NNOptimizerAdam(kRate, 1.5), OptionError, "beta1");
  CHECK_THROWS(NNOptimizerAdam(kRate, 0.9, nan), OptionError, "beta2");
  CHECK_THROWS(NNOptimizerStochasticGradientDescent(kRate, -0.5f), OptionError, "momentum scale");
  const NNOptimizerDescriptor inverted{.apply_gradient_clipping = true, .gradient_clip_max = -1, .gradient_clip_min = 1};
  CHECK_THROWS(NNOptimizerStochasticGradientDescent(inverted), OptionError, "gradient_clip_min <= gradient_clip_max");
  NNOptimizerAdam adam(kRate);
  CHECK_THROWS(adam.set_learning_rate(nan), OptionError, "MPSNNOptimizerAdam");
  CHECK_EQ(adam.learning_rate(), 0.1f);
}

TEST(buffers_that_do_not_fit_are_refused) {
  const Buffer three(3, ElementType::float32), four(4, ElementType::float32), doubles(3, ElementType::float64);
  const NNOptimizerStochasticGradientDescent plain(kRate), momentum(kRate, 0.9f);
  CHECK_THROWS(plain.apply(four, three, {}, three), WeightError, "4 x float32");
  CHECK_THROWS(plain.apply(doubles, three, {}, three), WeightError, "3 x float64");
  CHECK_THROWS(momentum.apply(three, three, {}, three), WeightError, "0 vectors");
}
