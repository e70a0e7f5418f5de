// SPDX-License-Identifier: Apache-2.0
#include "mpsnn/nodes/normalization.hpp"

#include "core/plan_builder.hpp"
#include "nodes/json_fields.hpp"

namespace mpsnn {

CNNBatchNormalizationNode::CNNBatchNormalizationNode(ImageNodePtr source, BatchNormalizationDataSourcePtr data_source)
    : NNFilterNode({std::move(source)}, {}), data_source_(std::move(data_source)) {
  if (!data_source_)
    throw WeightError("MPSCNNBatchNormalizationNode needs a data source.",
                      {.node = class_name(), .expected = "an MPSCNNBatchNormalizationDataSource", .actual = "none", .hint = "pass BatchNormalizationWeights(...)"});
  add_result_state(std::make_unique<NNGradientStateNode>(this));
}

void CNNBatchNormalizationNode::declare(ParameterStore& parameters) const {
  parameters.declare_batch_normalization(*this, data_source_);
  parameters.declare_batch_statistics(*this, data_source_);
}

void CNNBatchNormalizationNode::lower(PlanBuilder& plan) const {
  const ValueId source = plan.image(*this, 0);
  const BatchNormalizationValues& values = plan.batch_normalization(data_source_);
  const Shape image = plan.shape(source);
  if (image.channels != values.channels)
    fail<ShapeError>("the data source has " + std::to_string(values.channels) + " feature channels but the image has " + std::to_string(image.channels) + ".",
                     std::to_string(values.channels) + " channels", "image " + image.text(), "number_of_feature_channels=" + std::to_string(image.channels));
  const auto requested = static_cast<CNNBatchNormalizationFlags>(static_cast<std::int64_t>(flags) &
                                                                 static_cast<std::int64_t>(CNNBatchNormalizationFlags::CalculateStatisticsMask));
  const bool is_automatic = requested == CNNBatchNormalizationFlags::CalculateStatisticsAutomatic;
  const bool uses_batch = requested == CNNBatchNormalizationFlags::CalculateStatisticsAlways || (is_automatic && plan.is_consumed(*this));
  ValueId mean = plan.parameter(values.mean), variance = plan.parameter(values.variance);
  if (uses_batch) {
    const BatchStatistics& statistics = plan.batch_statistics(*this);
    mean = plan.gradient(statistics.mean);
    variance = plan.gradient(statistics.variance);
    plan.add(*this, BatchNormalizationStatisticsOp{}, {source}, {mean, variance});
  }
  plan.add_result(*this, BatchNormalizationOp{values.epsilon}, {source, mean, variance, plan.parameter(values.gamma), plan.parameter(values.beta)}, image);
}

Json CNNBatchNormalizationNode::parameters() const { return {{"training_style", enum_json(training_style)}, {"flags", enum_json(flags)}}; }

std::vector<GradientFilterNodePtr> CNNBatchNormalizationNode::make_gradient_filters(const ImageNodePtr& source_gradient) {
  auto gradient = std::make_shared<CNNBatchNormalizationGradientNode>(source_gradient, sources()[0], typed_result_state<NNGradientStateNode>());
  gradient->training_style = training_style;
  return {gradient};
}

CNNBatchNormalizationGradientNode::CNNBatchNormalizationGradientNode(ImageNodePtr source_gradient, ImageNodePtr source_image,
                                                                     std::shared_ptr<NNGradientStateNode> gradient_state)
    : NNGradientFilterNode({std::move(source_gradient), std::move(source_image)}, {std::move(gradient_state)}) {
  if (!dynamic_cast<const CNNBatchNormalizationNode*>(&forward_filter()))
    throw GraphError("the gradient state must come from a batch normalization node.",
                     {.node = class_name(), .label = forward_filter().display_name(), .expected = "MPSCNNBatchNormalizationNode",
                      .actual = forward_filter().class_name(), .hint = "pass result_state of the forward node"});
}

const BatchNormalizationDataSourcePtr& CNNBatchNormalizationGradientNode::data_source() const {
  return dynamic_cast<const CNNBatchNormalizationNode&>(forward_filter()).data_source();
}

std::string CNNBatchNormalizationGradientNode::data_source_label() const { return data_source()->label(); }

void CNNBatchNormalizationGradientNode::declare(ParameterStore& parameters) const {
  parameters.train_batch_normalization(*this, forward_filter(), training_style, data_source());
}

void CNNBatchNormalizationGradientNode::lower(PlanBuilder& plan) const {
  const Step step = plan.forward_step(forward_filter());  // x, mean, variance, gamma, beta
  const auto& operation = std::get<BatchNormalizationOp>(step.operation);
  const ValueId gradient = plan.image(*this, 0), source = plan.image(*this, 1);
  plan.require_gradient_shape(*this, gradient, plan.shape(step.outputs[0]));
  plan.require_same_shape(*this, "the source image", source, plan.shape(step.inputs[0]));
  const bool uses_batch = step.inputs[1] != plan.parameter(plan.batch_normalization(data_source()).mean);
  const TrainedParameters* trained = plan.trained(*this);
  plan.add(*this, BatchNormalizationGradientOp{operation.epsilon, uses_batch}, {gradient, source, step.inputs[1], step.inputs[2], step.inputs[3]},
           {plan.result(*this, plan.shape(source)), trained ? plan.gradient(trained->first) : kNoValue, trained ? plan.gradient(trained->second) : kNoValue});
}

Json CNNBatchNormalizationGradientNode::parameters() const { return {{"training_style", enum_json(training_style)}}; }

}  // namespace mpsnn
