// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <span>

#include "mpsnn/enums.hpp"
#include "mpsnn/export.hpp"
#include "mpsnn/image.hpp"

/// Rules by which parameters follow their gradients. Formulas: docs/MPS_SEMANTICS.md, "Optimizers".
namespace mpsnn {

/// MPSNNOptimizerDescriptor: what every rule does to a gradient element first. In this order: clipping, rescaling,
/// regularization.
struct NNOptimizerDescriptor {
  float learning_rate = 0.001f;
  float gradient_rescale = 1;
  bool apply_gradient_clipping = false;
  float gradient_clip_max = 0, gradient_clip_min = 0;
  NNRegularizationType regularization_type = NNRegularizationType::None;
  float regularization_scale = 0;
  bool operator==(const NNOptimizerDescriptor&) const = default;
};

/// MPSNNOptimizer: base of all rules. Constructors and setters throw OptionError for numbers that have no meaning.
class MPSNN_API NNOptimizer {
 public:
  virtual ~NNOptimizer() = default;

  const NNOptimizerDescriptor& descriptor() const { return descriptor_; }
  float learning_rate() const { return descriptor_.learning_rate; }
  float gradient_rescale() const { return descriptor_.gradient_rescale; }
  bool apply_gradient_clipping() const { return descriptor_.apply_gradient_clipping; }
  float gradient_clip_max() const { return descriptor_.gradient_clip_max; }
  float gradient_clip_min() const { return descriptor_.gradient_clip_min; }
  NNRegularizationType regularization_type() const { return descriptor_.regularization_type; }
  float regularization_scale() const { return descriptor_.regularization_scale; }

  void set_learning_rate(float learning_rate);
  void set_apply_gradient_clipping(bool apply);

  /// Apple's name of the class, e.g. "MPSNNOptimizerAdam".
  virtual const char* class_name() const = 0;
  /// Vectors that the rule keeps for each parameter vector, all zeros before the first step.
  virtual int history_count() const = 0;
  /// A copy, time step included.
  virtual std::shared_ptr<NNOptimizer> clone() const = 0;
  /// Called once per encode, before the first apply().
  virtual void begin_step() {}
  /// result := updated values; history changes in place. All buffers have as many elements, of one type, as `values`;
  /// `result` may be `values`. Runs on all threads, allocates nothing. Throws WeightError when the buffers do not fit.
  virtual void apply(const Buffer& gradient, const Buffer& values, std::span<const Buffer> history, const Buffer& result) const = 0;

 protected:
  /// Derived constructors call check_descriptor(), which needs their name.
  explicit NNOptimizer(const NNOptimizerDescriptor& descriptor) : descriptor_(descriptor) {}
  NNOptimizer(const NNOptimizer&) = default;
  NNOptimizer& operator=(const NNOptimizer&) = default;
  static void check_descriptor(const char* class_name, const NNOptimizerDescriptor& descriptor);

 private:
  NNOptimizerDescriptor descriptor_;
};

/// MPSNNOptimizerStochasticGradientDescent. Without momentum v -= lr * g. Plain momentum folds the rate into its history,
/// m = mu * m + lr * g, v -= m; Nesterov's does not, m = mu * m + g, v -= lr * (g + mu * m).
class MPSNN_API NNOptimizerStochasticGradientDescent final : public NNOptimizer {
 public:
  explicit NNOptimizerStochasticGradientDescent(float learning_rate);
  explicit NNOptimizerStochasticGradientDescent(const NNOptimizerDescriptor& descriptor = {}, float momentum_scale = 0,
                                                bool use_nesterov_momentum = false);
  float momentum_scale() const { return momentum_scale_; }
  bool use_nesterov_momentum() const { return use_nesterov_momentum_; }

  const char* class_name() const override;
  int history_count() const override { return momentum_scale_ != 0 ? 1 : 0; }
  std::shared_ptr<NNOptimizer> clone() const override;
  void apply(const Buffer& gradient, const Buffer& values, std::span<const Buffer> history, const Buffer& result) const override;

 private:
  float momentum_scale_;
  bool use_nesterov_momentum_;
};

/// MPSNNOptimizerRMSProp: s = decay * s + (1 - decay) * g^2, v -= lr * g / (sqrt(s) + epsilon).
class MPSNN_API NNOptimizerRMSProp final : public NNOptimizer {
 public:
  explicit NNOptimizerRMSProp(float learning_rate);
  explicit NNOptimizerRMSProp(const NNOptimizerDescriptor& descriptor = {}, double decay = 0.9, float epsilon = 1e-8f);
  double decay() const { return decay_; }
  float epsilon() const { return epsilon_; }

  const char* class_name() const override;
  int history_count() const override { return 1; }
  std::shared_ptr<NNOptimizer> clone() const override;
  void apply(const Buffer& gradient, const Buffer& values, std::span<const Buffer> history, const Buffer& result) const override;

 private:
  double decay_;
  float epsilon_;
};

/// MPSNNOptimizerAdam. Epsilon joins the uncorrected sqrt(u): v -= lr_t * m / (sqrt(u) + epsilon) with
/// lr_t = lr * sqrt(1 - beta2^t) / (1 - beta1^t). With AMSGrad the largest u so far takes the place of u. History: m, u [, max u].
class MPSNN_API NNOptimizerAdam final : public NNOptimizer {
 public:
  explicit NNOptimizerAdam(float learning_rate);
  explicit NNOptimizerAdam(const NNOptimizerDescriptor& descriptor = {}, double beta1 = 0.9, double beta2 = 0.999,
                           float epsilon = 1e-8f, unsigned time_step = 0, bool uses_amsgrad = false);
  double beta1() const { return beta1_; }
  double beta2() const { return beta2_; }
  float epsilon() const { return epsilon_; }
  bool uses_amsgrad() const { return uses_amsgrad_; }
  /// Encodes so far: the first update runs with 1.
  unsigned time_step() const { return time_step_; }
  void set_time_step(unsigned time_step) { time_step_ = time_step; }

  const char* class_name() const override;
  int history_count() const override { return uses_amsgrad_ ? 3 : 2; }
  std::shared_ptr<NNOptimizer> clone() const override;
  void begin_step() override { ++time_step_; }
  void apply(const Buffer& gradient, const Buffer& values, std::span<const Buffer> history, const Buffer& result) const override;

 private:
  double beta1_, beta2_;
  float epsilon_;
  unsigned time_step_;
  bool uses_amsgrad_;
};

}  // namespace mpsnn
