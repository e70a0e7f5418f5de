// SPDX-License-Identifier: Apache-2.0
#include "backends/cpu/convolution_kernels.hpp"

#include <algorithm>
#include <vector>

#include "backends/cpu/correlation.hpp"
#include "backends/cpu/kernels.hpp"
#include "backends/cpu/loops.hpp"
#include "backends/cpu/winograd.hpp"
#include "backends/cpu/winograd_pooling.hpp"
#include "core/parallel.hpp"

namespace mpsnn::cpu {
namespace {

/// Correlations that together compute one image: their tasks run in one loop.
class CorrelationKernel final : public Kernel {
 public:
  CorrelationKernel(std::vector<CorrelationPart> parts, const ConvolutionGeometry& geometry, int images, int result_channels,
                    std::size_t result_pixels, const Epilogue& epilogue)
      : correlations_(make_correlations(std::move(parts))),
        geometry_(geometry),
        stage_(epilogue, result_pixels, result_channels),
        images_(images),
        result_channels_(result_channels) {
    for (const auto& correlation : correlations_) {
      has_whole_pixels_ = has_whole_pixels_ && correlation->has_whole_pixels();
      thread_floats_ = std::max(thread_floats_, round_up<std::size_t>(correlation->scratch_floats(), 16));
      task_count_ += correlation->task_count();
    }
  }

  /// The correlations compute the gradient of the image enlarged by repetition, which is folded into the result.
  void fold(const EnlargedAxis& y, const EnlargedAxis& x) {
    folds_ = true;
    y_ = y;
    x_ = x;
    threads_offset_ = round_up<std::size_t>(std::size_t(images_) * y.axis.input * x.axis.input * result_channels_, 16);
  }

  std::size_t scratch_bytes() const override {
    return (sums_offset() + std::max(stage_.sums_floats(task_count_), stage_.sums_floats_behind())) * sizeof(float);
  }

  std::size_t packed_bytes() const override {
    std::size_t floats = 0;
    for (const auto& correlation : correlations_) floats += round_up<std::size_t>(correlation->packed_floats(), 16);
    return floats * sizeof(float);
  }

  std::string algorithm() const override {
    std::string text = correlations_.empty() ? "nothing" : correlations_[0]->algorithm();
    if (correlations_.size() > 1) text += ", " + std::to_string(correlations_.size()) + " phases";
    if (folds_) text += ", clamped edges folded";
    return text;
  }

  void run(const KernelCall& call) override {
    const float *source = call.input<float>(0), *bias = call.input<float>(2);
    float* result = call.output<float>(0);
    if (!result) return;
    float* scratch = static_cast<float*>(call.scratch);
    const bool is_stale = version_.is_stale(call);
    float* packed = static_cast<float*>(call.packed);
    for (const auto& correlation : correlations_) {
      correlation->use_memory(packed);
      packed += round_up<std::size_t>(correlation->packed_floats(), 16);
      if (is_stale) correlation->pack(call.input<float>(1), folds_ ? nullptr : bias);
      else correlation->keep_weights();
    }
    float *target = folds_ ? scratch : result, *sums = scratch + sums_offset();
    const bool fuses = !stage_.is_empty() && has_whole_pixels_ && !folds_;
    if (fuses) stage_.begin(task_count_, sums);
    parallel_for(task_count_, [&](std::size_t task, int thread) {
      Finish finish(stage_, call, task, {0, result_channels_}, sums);
      std::size_t index = 0;
      while (task >= correlations_[index]->task_count()) task -= correlations_[index++]->task_count();
      correlations_[index]->run_task(task, source, target, fuses ? &finish : nullptr, scratch + threads_offset_ + thread * thread_floats_);
    });
    if (folds_)
      fold_repetitions(y_, x_, geometry_.window.y.input, geometry_.window.x.input, images_, result_channels_, bias, target,
                       result);
    if (fuses) stage_.end(call, task_count_, sums);
    else if (!stage_.is_empty()) stage_.behind(call, sums);
  }

 private:
  /// A task is a part of the epilogue.
  class Finish final : public FinishPixels {
   public:
    Finish(const EpilogueStage& stage, const KernelCall& call, std::size_t part, Range channels, float* sums)
        : stage_(stage), call_(call), part_(part), channels_(channels), sums_(sums) {}
    void operator()(float* values, std::size_t pixels) override {
      if (!has_begun_) stage_.begin_part(part_, values, channels_, sums_);
      has_begun_ = true;
      stage_.apply(call_, part_, values, pixels, channels_, sums_);
    }

   private:
    const EpilogueStage& stage_;
    const KernelCall& call_;
    std::size_t part_;
    Range channels_;
    float* sums_;
    bool has_begun_ = false;
  };

  std::size_t sums_offset() const { return threads_offset_ + thread_floats_ * max_thread_count(); }

  std::vector<std::unique_ptr<Correlation>> correlations_;
  ConvolutionGeometry geometry_;
  EpilogueStage stage_;
  bool has_whole_pixels_ = true, folds_ = false;
  int images_, result_channels_;
  std::size_t thread_floats_ = 0, threads_offset_ = 0, task_count_ = 0;
  EnlargedAxis y_, x_;
  PackedVersion version_;
};

/// A kernel that says why it was chosen.
class ExplainedKernel final : public Kernel {
 public:
  ExplainedKernel(std::unique_ptr<Kernel> kernel, ConvolutionChoice choice) : kernel_(std::move(kernel)), choice_(std::move(choice)) {}
  std::size_t scratch_bytes() const override { return kernel_->scratch_bytes(); }
  std::size_t packed_bytes() const override { return kernel_->packed_bytes(); }
  void run(const KernelCall& call) override { kernel_->run(call); }
  std::string algorithm() const override { return kernel_->algorithm(); }
  std::string layout() const override { return choice_.layout; }
  std::string reason() const override { return choice_.reason; }
  double flops(double direct) const override { return choice_.work != 0 ? choice_.work : direct; }

 private:
  std::unique_ptr<Kernel> kernel_;
  ConvolutionChoice choice_;
};

}  // namespace

CorrelationPart forward_correlation(const ConvolutionGeometry& geometry, const WeightLayout& layout, int images,
                                    int sub_pixel_scale) {
  const CorrelationShape shape{.window = geometry.window,
                               .images = images,
                               .source_channels = geometry.input_channels,
                               .result_channels = geometry.output_channels,
                               .groups = geometry.groups,
                               .edge_mode = geometry.edge_mode,
                               .result_height = geometry.window.y.output * sub_pixel_scale,
                               .result_width = geometry.window.x.output * sub_pixel_scale,
                               .sub_pixel_scale = sub_pixel_scale};
  return {shape,
          {layout.offset, layout.group, layout.output, layout.y, layout.x, layout.input, all_taps(geometry.window.y),
           all_taps(geometry.window.x)}};
}

std::vector<CorrelationPart> gradient_correlations(const ConvolutionGeometry& geometry, const WeightLayout& layout, int images) {
  std::vector<CorrelationPart> result;
  for (const Phase& y : phases(geometry.window.y)) {
    for (const Phase& x : phases(geometry.window.x)) {
      const CorrelationShape shape{.window = {y.axis, x.axis},
                                   .images = images,
                                   .source_channels = geometry.output_channels,
                                   .result_channels = geometry.input_channels,
                                   .groups = geometry.groups,
                                   .result_height = geometry.window.y.input,
                                   .result_width = geometry.window.x.input,
                                   .first_y = y.first,
                                   .first_x = x.first,
                                   .step_y = y.step,
                                   .step_x = x.step};
      result.push_back({shape, {layout.offset, layout.group, layout.input, layout.y, layout.x, layout.output, y.taps, x.taps}});
    }
  }
  return result;
}

std::unique_ptr<Kernel> explain(std::unique_ptr<Kernel> kernel, const ConvolutionChoice& choice) {
  return std::make_unique<ExplainedKernel>(std::move(kernel), choice);
}

std::unique_ptr<Kernel> make_forward(const ConvolutionGeometry& geometry, const WeightLayout& layout, int images,
                                     const Epilogue& epilogue, Precision precision) {
  const ConvolutionProblem problem{ConvolutionPass::forward, geometry, images, precision, epilogue.sub_pixel_scale, layout == natural_layout(geometry)};
  const ConvolutionChoice choice = choose(problem);
  if (choice.algorithm == ConvolutionAlgorithm::direct)
    return explain(make_depthwise_forward(geometry, layout, images, epilogue), choice);
  if (choice.algorithm == ConvolutionAlgorithm::winograd)
    return explain(make_winograd_forward(geometry, layout, images, epilogue, precision), choice);
  const std::size_t pixels = pixels_of(images, geometry.window.y.output, geometry.window.x.output);
  if (choice.algorithm == ConvolutionAlgorithm::patches)
    return explain(with_epilogue(make_patches(problem), epilogue, pixels, geometry.output_channels), choice);
  std::vector<CorrelationPart> parts{forward_correlation(geometry, layout, images, epilogue.sub_pixel_scale)};
  return explain(std::make_unique<CorrelationKernel>(std::move(parts), geometry, images, geometry.output_channels, pixels, epilogue), choice);
}

std::unique_ptr<Kernel> make_data_gradient(const ConvolutionGeometry& geometry, const WeightLayout& layout, int images,
                                           const Epilogue& epilogue, Precision precision) {
  const ConvolutionProblem problem{.pass = ConvolutionPass::data_gradient, .geometry = geometry, .images = images, .precision = precision,
                                   .has_natural_weights = layout == natural_layout(geometry)};
  const ConvolutionChoice choice = choose(problem);
  const std::size_t pixels = pixels_of(images, geometry.window.y.input, geometry.window.x.input);
  if (choice.algorithm == ConvolutionAlgorithm::direct)
    return explain(make_depthwise_data_gradient(geometry, layout, images, epilogue), choice);
  if (choice.algorithm == ConvolutionAlgorithm::columns)
    return explain(with_epilogue(make_column_gradient(geometry, layout, images), epilogue, pixels, geometry.input_channels), choice);
  if (choice.algorithm == ConvolutionAlgorithm::winograd)
    return explain(make_winograd_data_gradient(geometry, layout, images, epilogue, precision), choice);
  if (choice.algorithm == ConvolutionAlgorithm::patches)
    return explain(with_epilogue(make_patches(problem), epilogue, pixels, geometry.input_channels), choice);
  const bool clamps =
      geometry.edge_mode == ImageEdgeMode::Clamp && !(geometry.window.y.is_inside() && geometry.window.x.is_inside());
  ConvolutionGeometry enlarged = geometry;
  const EnlargedAxis y = enlarge(geometry.window.y), x = enlarge(geometry.window.x);
  if (clamps) enlarged.window = {y.axis, x.axis};
  auto kernel = std::make_unique<CorrelationKernel>(
      gradient_correlations(enlarged, layout, images), geometry, images, geometry.input_channels, pixels, epilogue);
  if (clamps) kernel->fold(y, x);
  return explain(std::move(kernel), choice);
}

void fold_repetitions(const EnlargedAxis& y, const EnlargedAxis& x, int height, int width, int images, int channels,
                      const float* bias, const float* enlarged, float* result) {
  const std::size_t line = std::size_t(x.axis.input) * channels;
  parallel_for(std::size_t(std::max(0, images)) * height, [&](std::size_t task, int) {
    const int row = static_cast<int>(task % height);
    float* to = result + task * width * channels;
    for (int j = 0; j < width; ++j)
      for (int c = 0; c < channels; ++c) to[std::ptrdiff_t(j) * channels + c] = bias ? bias[c] : 0.0f;
    const float* from = enlarged + task / height * y.axis.input * line;
    for (int i = 0; i < y.axis.input; ++i, from += line) {
      if (clamp_index(i - y.shift, height) != row) continue;
      for (int j = 0; j < x.axis.input; ++j) {
        float* pixel = to + std::ptrdiff_t(clamp_index(j - x.shift, width)) * channels;
        for (int c = 0; c < channels; ++c) pixel[c] += from[std::ptrdiff_t(j) * channels + c];
      }
    }
  });
}

std::unique_ptr<Kernel> make_kernel(const ConvolutionOp& op, const OperandShapes& shapes, Precision precision) {
  const ConvolutionGeometry geometry = simplified(op.geometry);
  return make_forward(geometry, natural_layout(geometry), shapes.inputs[0].images,
                      {.neuron = op.neuron, .sub_pixel_scale = op.sub_pixel_scale, .has_statistics = shapes.outputs.size() > 1, .pooling = op.pooling}, precision);
}

bool pools(const ConvolutionOp& op, const OperandShapes& shapes, Precision precision) {
  const ConvolutionGeometry geometry = simplified(op.geometry);
  const ConvolutionProblem problem{ConvolutionPass::forward, geometry, shapes.inputs[0].images, precision, op.sub_pixel_scale};
  return choose(problem).algorithm == ConvolutionAlgorithm::winograd && pools_tiles(*winograd_transforms(geometry.window.y.kernel, precision), op);
}

std::unique_ptr<Kernel> make_kernel(const ConvolutionDataGradientOp& op, const OperandShapes& shapes, Precision precision) {
  const ConvolutionGeometry geometry = simplified(op.geometry);
  return make_data_gradient(geometry, natural_layout(geometry), shapes.inputs[0].images, {.neuron = op.neuron, .is_gradient = true}, precision);
}

std::unique_ptr<Kernel> make_kernel(const ConvolutionWeightGradientOp& op, const OperandShapes& shapes, Precision precision) {
  const ConvolutionGeometry geometry = simplified(op.geometry);
  return make_weight_gradient(geometry, natural_layout(geometry), shapes.inputs[0].images, false, precision);
}

}  // namespace mpsnn::cpu
