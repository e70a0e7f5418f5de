// SPDX-License-Identifier: Apache-2.0
#include "mpsnn/optimizer.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <sstream>
#include <string>

#include "core/fetch_ahead.hpp"
#include "core/parallel.hpp"
#include "mpsnn/error.hpp"

namespace mpsnn {
namespace {

constexpr const char* kStochasticGradientDescent = "MPSNNOptimizerStochasticGradientDescent";
constexpr const char* kRMSProp = "MPSNNOptimizerRMSProp";
constexpr const char* kAdam = "MPSNNOptimizerAdam";

std::string text_of(double value) {
  std::ostringstream text;
  text << value;
  return text.str();
}

void check(bool is_good, const char* class_name, const std::string& name, double value, const std::string& expected,
           const std::string& hint) {
  if (is_good) return;
  throw OptionError(std::string(class_name) + " cannot work with a " + name + " of " + text_of(value) + ".",
                    ErrorFacts{class_name, "", expected, text_of(value), hint});
}

void check_learning_rate(const char* class_name, float rate) {
  check(std::isfinite(rate) && rate >= 0, class_name, "learning rate", rate, "a finite number, at least 0", "0.001 is the default");
}

void check_below_one(const char* class_name, const char* name, double value, const char* usual) {
  check(value >= 0 && value < 1, class_name, name, value, "at least 0 and less than 1", std::string(usual) + " is the default");
}

void check_epsilon(const char* class_name, float epsilon) {
  check(std::isfinite(epsilon) && epsilon >= 0, class_name, "epsilon", epsilon, "a finite number, at least 0", "1e-8 is the default");
}

/// Clipping, rescaling and regularization without a branch: what is switched off has limits or factors without effect.
template <class T>
struct Preparation {
  T clip_min = -std::numeric_limits<T>::infinity(), clip_max = std::numeric_limits<T>::infinity();
  T rescale, l1 = 0, l2 = 0;

  explicit Preparation(const NNOptimizerDescriptor& d) : rescale(d.gradient_rescale) {
    if (d.apply_gradient_clipping) clip_min = d.gradient_clip_min, clip_max = d.gradient_clip_max;
    if (d.regularization_type == NNRegularizationType::L1) l1 = d.regularization_scale;
    if (d.regularization_type == NNRegularizationType::L2) l2 = d.regularization_scale;
  }
  T operator()(T g, T v) const {
    g = g < clip_min ? clip_min : g;
    g = g > clip_max ? clip_max : g;
    const T sign = (v > 0 ? T(1) : T(0)) - (v < 0 ? T(1) : T(0));
    return g * rescale + l2 * v + l1 * sign;
  }
};

/// Where all of that is switched off.
struct NoPreparation {
  template <class T>
  T operator()(T g, T) const {
    return g;
  }
};

bool is_plain(const NNOptimizerDescriptor& d) {
  return !d.apply_gradient_clipping && d.gradient_rescale == 1 && (d.regularization_type == NNRegularizationType::None || d.regularization_scale == 0);
}

// Rules: new value of one parameter from its prepared gradient, its value and its history.

template <class T>
struct Descent {
  static constexpr int kHistory = 0;
  T rate;
  T operator()(T g, T v) const { return v - rate * g; }
};
template <class T>
struct Momentum {
  static constexpr int kHistory = 1;
  T rate, momentum;
  T operator()(T g, T v, T& m) const {
    m = momentum * m + rate * g;
    return v - m;
  }
};
template <class T>
struct Nesterov {
  static constexpr int kHistory = 1;
  T rate, momentum;
  T operator()(T g, T v, T& m) const {
    m = momentum * m + g;
    return v - rate * (g + momentum * m);
  }
};
template <class T>
struct RMSProp {
  static constexpr int kHistory = 1;
  T rate, decay, rest, epsilon;
  T operator()(T g, T v, T& s) const {
    s = decay * s + rest * (g * g);
    return v - rate * g / (std::sqrt(s) + epsilon);
  }
};
template <class T>
struct Adam {
  static constexpr int kHistory = 2;
  T rate, beta1, rest1, beta2, rest2, epsilon;
  T operator()(T g, T v, T& m, T& u) const {
    m = beta1 * m + rest1 * g;
    u = beta2 * u + rest2 * (g * g);
    return v - rate * m / (std::sqrt(u) + epsilon);
  }
};
template <class T>
struct AMSGrad {
  static constexpr int kHistory = 3;
  Adam<T> adam;
  T operator()(T g, T v, T& m, T& u, T& largest) const {
    m = adam.beta1 * m + adam.rest1 * g;
    u = adam.beta2 * u + adam.rest2 * (g * g);
    largest = u > largest ? u : largest;
    return v - adam.rate * m / (std::sqrt(largest) + adam.epsilon);
  }
};

/// Applies a rule to a few elements. In place, `v` is not looked at: the compiler would find that it overlaps `r` and not make vectors.
template <bool kInPlace, class Prepare, class T, class Rule>
inline void update(const Prepare& prepare, const Rule& rule, const T* __restrict g, const T* __restrict v, T* __restrict r,
                   T* __restrict h0, T* __restrict h1, T* __restrict h2, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) {
    const T value = kInPlace ? r[i] : v[i], gradient = prepare(g[i], value);
    if constexpr (Rule::kHistory == 0) r[i] = rule(gradient, value);
    if constexpr (Rule::kHistory == 1) r[i] = rule(gradient, value, h0[i]);
    if constexpr (Rule::kHistory == 2) r[i] = rule(gradient, value, h0[i], h1[i]);
    if constexpr (Rule::kHistory == 3) r[i] = rule(gradient, value, h0[i], h1[i], h2[i]);
  }
}

/// The same for a stretch: parameters were last seen a step ago and come from far.
template <bool kInPlace, class Prepare, class T, class Rule>
void update_stretch(const Prepare& prepare, const Rule& rule, const T* g, const T* v, T* r, T* const (&h)[3], std::size_t count) {
  constexpr std::size_t kLines = 4, kBlock = kLines * kCacheLine / sizeof(T);
  for (std::size_t i = 0; i < count; i += kBlock) {
    fetch_ahead<kLines>(g + i);
    fetch_ahead<kLines>((kInPlace ? r : v) + i);
    for (int k = 0; k < Rule::kHistory; ++k) fetch_ahead<kLines>(h[k] + i);
    const auto at = [i](T* p) { return p ? p + i : nullptr; };
    update<kInPlace>(prepare, rule, g + i, v + i, r + i, at(h[0]), at(h[1]), at(h[2]), std::min(kBlock, count - i));
  }
}

/// Applies a rule to all elements, on all threads. Elements are independent: the same bits however they are split.
template <class T, class Prepare, class Rule>
void run(const Prepare& prepare, const Rule& rule, const Buffer& gradient, const Buffer& values,
         std::span<const Buffer> history, const Buffer& result) {
  constexpr std::size_t kStretch = 16384;  // 64 KiB of floats per vector: some 10 microseconds
  const auto numbers = [](const Buffer& buffer) { return static_cast<T*>(buffer.data()); };
  T* h[3] = {};
  for (int i = 0; i < Rule::kHistory; ++i) h[i] = numbers(history[i]);
  const std::size_t count = values.count();
  parallel_for((count + kStretch - 1) / kStretch, [&](std::size_t task, int) {
    const std::size_t begin = task * kStretch, length = std::min(kStretch, count - begin);
    const auto from = [begin](T* p) { return p ? p + begin : nullptr; };
    T* const histories[3] = {from(h[0]), from(h[1]), from(h[2])};
    const auto apply = values.data() == result.data() ? update_stretch<true, Prepare, T, Rule> : update_stretch<false, Prepare, T, Rule>;
    apply(prepare, rule, from(numbers(gradient)), from(numbers(values)), from(numbers(result)), histories, length);
  });
}

template <class T, class Rule>
void run(const NNOptimizerDescriptor& descriptor, const Rule& rule, const Buffer& gradient, const Buffer& values,
         std::span<const Buffer> history, const Buffer& result) {
  if (is_plain(descriptor)) return run<T>(NoPreparation{}, rule, gradient, values, history, result);
  run<T>(Preparation<T>(descriptor), rule, gradient, values, history, result);
}

/// Calls visit(T{}) with the element type of the values.
template <class Visit>
void with_type(const Buffer& values, Visit visit) {
  if (values.type() == ElementType::float64) visit(double{});
  else visit(float{});
}

std::string describe(const Buffer& buffer) {
  return std::to_string(buffer.count()) + (buffer.type() == ElementType::float64 ? " x float64" : " x float32");
}

void check_buffers(const NNOptimizer& optimizer, const Buffer& gradient, const Buffer& values, std::span<const Buffer> history,
                   const Buffer& result) {
  const auto fits = [&](const Buffer& b) { return b.count() == values.count() && b.type() == values.type(); };
  const auto complain = [&](const std::string& what, const std::string& expected, const std::string& actual) {
    throw WeightError(std::string(optimizer.class_name()) + " was given " + what + " that does not fit the values.",
                      ErrorFacts{optimizer.class_name(), "", expected, actual, "give one element per parameter, all of one type"});
  };
  if (!fits(gradient)) complain("a gradient", describe(values), describe(gradient));
  if (!fits(result)) complain("a result", describe(values), describe(result));
  const std::size_t needed = optimizer.history_count();
  if (history.size() < needed) complain("history", std::to_string(needed) + " vectors", std::to_string(history.size()) + " vectors");
  for (const Buffer& vector : history.first(needed))
    if (!fits(vector)) complain("history", describe(values), describe(vector));
}

}  // namespace

// --- MPSNNOptimizer ----------------------------------------------------------------------------------------------

void NNOptimizer::check_descriptor(const char* class_name, const NNOptimizerDescriptor& d) {
  check_learning_rate(class_name, d.learning_rate);
  check(std::isfinite(d.gradient_rescale), class_name, "gradient rescale", d.gradient_rescale, "a finite number", "1 is the default");
  check(std::isfinite(d.regularization_scale) && d.regularization_scale >= 0, class_name, "regularization scale", d.regularization_scale,
        "a finite number, at least 0", "0 is the default; 1e-4 is usual");
  if (d.apply_gradient_clipping && !(d.gradient_clip_min <= d.gradient_clip_max))
    throw OptionError(std::string(class_name) + " cannot clip gradients to a range that ends before it begins.",
                      ErrorFacts{class_name, "", "gradient_clip_min <= gradient_clip_max",
                                 text_of(d.gradient_clip_min) + " and " + text_of(d.gradient_clip_max),
                                 "gradient_clip_min=-1, gradient_clip_max=1, or apply_gradient_clipping=false"});
}

void NNOptimizer::set_learning_rate(float learning_rate) {
  check_learning_rate(class_name(), learning_rate);
  descriptor_.learning_rate = learning_rate;
}

void NNOptimizer::set_apply_gradient_clipping(bool apply) {
  NNOptimizerDescriptor changed = descriptor_;
  changed.apply_gradient_clipping = apply;
  check_descriptor(class_name(), changed);
  descriptor_ = changed;
}

// --- MPSNNOptimizerStochasticGradientDescent ---------------------------------------------------------------------

NNOptimizerStochasticGradientDescent::NNOptimizerStochasticGradientDescent(float learning_rate)
    : NNOptimizerStochasticGradientDescent(NNOptimizerDescriptor{.learning_rate = learning_rate}) {}

NNOptimizerStochasticGradientDescent::NNOptimizerStochasticGradientDescent(const NNOptimizerDescriptor& descriptor, float momentum_scale,
                                                                           bool use_nesterov_momentum)
    : NNOptimizer(descriptor), momentum_scale_(momentum_scale), use_nesterov_momentum_(use_nesterov_momentum) {
  check_descriptor(kStochasticGradientDescent, descriptor);
  check_below_one(kStochasticGradientDescent, "momentum scale", momentum_scale, "0");
}

const char* NNOptimizerStochasticGradientDescent::class_name() const { return kStochasticGradientDescent; }

std::shared_ptr<NNOptimizer> NNOptimizerStochasticGradientDescent::clone() const {
  return std::make_shared<NNOptimizerStochasticGradientDescent>(*this);
}

void NNOptimizerStochasticGradientDescent::apply(const Buffer& gradient, const Buffer& values, std::span<const Buffer> history,
                                                 const Buffer& result) const {
  check_buffers(*this, gradient, values, history, result);
  with_type(values, [&]<class T>(T) {
    const T rate = learning_rate(), momentum = momentum_scale_;
    if (momentum_scale_ == 0) run<T>(descriptor(), Descent<T>{rate}, gradient, values, history, result);
    else if (use_nesterov_momentum_) run<T>(descriptor(), Nesterov<T>{rate, momentum}, gradient, values, history, result);
    else run<T>(descriptor(), Momentum<T>{rate, momentum}, gradient, values, history, result);
  });
}

// --- MPSNNOptimizerRMSProp ---------------------------------------------------------------------------------------

NNOptimizerRMSProp::NNOptimizerRMSProp(float learning_rate) : NNOptimizerRMSProp(NNOptimizerDescriptor{.learning_rate = learning_rate}) {}

NNOptimizerRMSProp::NNOptimizerRMSProp(const NNOptimizerDescriptor& descriptor, double decay, float epsilon)
    : NNOptimizer(descriptor), decay_(decay), epsilon_(epsilon) {
  check_descriptor(kRMSProp, descriptor);
  check_below_one(kRMSProp, "decay", decay, "0.9");
  check_epsilon(kRMSProp, epsilon);
}

const char* NNOptimizerRMSProp::class_name() const { return kRMSProp; }

std::shared_ptr<NNOptimizer> NNOptimizerRMSProp::clone() const { return std::make_shared<NNOptimizerRMSProp>(*this); }

void NNOptimizerRMSProp::apply(const Buffer& gradient, const Buffer& values, std::span<const Buffer> history, const Buffer& result) const {
  check_buffers(*this, gradient, values, history, result);
  with_type(values, [&]<class T>(T) {
    const RMSProp<T> rule{T(learning_rate()), T(decay_), T(1 - decay_), T(epsilon_)};
    run<T>(descriptor(), rule, gradient, values, history, result);
  });
}

// --- MPSNNOptimizerAdam ------------------------------------------------------------------------------------------

NNOptimizerAdam::NNOptimizerAdam(float learning_rate) : NNOptimizerAdam(NNOptimizerDescriptor{.learning_rate = learning_rate}) {}

NNOptimizerAdam::NNOptimizerAdam(const NNOptimizerDescriptor& descriptor, double beta1, double beta2, float epsilon, unsigned time_step,
                                 bool uses_amsgrad)
    : NNOptimizer(descriptor), beta1_(beta1), beta2_(beta2), epsilon_(epsilon), time_step_(time_step), uses_amsgrad_(uses_amsgrad) {
  check_descriptor(kAdam, descriptor);
  check_below_one(kAdam, "beta1", beta1, "0.9");
  check_below_one(kAdam, "beta2", beta2, "0.999");
  check_epsilon(kAdam, epsilon);
}

const char* NNOptimizerAdam::class_name() const { return kAdam; }

std::shared_ptr<NNOptimizer> NNOptimizerAdam::clone() const { return std::make_shared<NNOptimizerAdam>(*this); }

void NNOptimizerAdam::apply(const Buffer& gradient, const Buffer& values, std::span<const Buffer> history, const Buffer& result) const {
  check_buffers(*this, gradient, values, history, result);
  // An update that no begin_step() came before counts as the first: 1 - beta^0 is 0.
  const double t = std::max(1u, time_step_);
  const double rate = learning_rate() * std::sqrt(1 - std::pow(beta2_, t)) / (1 - std::pow(beta1_, t));
  with_type(values, [&]<class T>(T) {
    const Adam<T> rule{T(rate), T(beta1_), T(1 - beta1_), T(beta2_), T(1 - beta2_), T(epsilon_)};
    if (uses_amsgrad_) run<T>(descriptor(), AMSGrad<T>{rule}, gradient, values, history, result);
    else run<T>(descriptor(), rule, gradient, values, history, result);
  });
}

}  // namespace mpsnn
