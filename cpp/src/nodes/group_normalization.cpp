// SPDX-License-Identifier: Apache-2.0
#include "mpsnn/nodes/group_normalization.hpp"

#include "core/plan_builder.hpp"
#include "nodes/json_fields.hpp"

namespace mpsnn {

CNNAffineNormalizationNode::CNNAffineNormalizationNode(ImageNodePtr source, AffineDataSourcePtr data_source, const char* class_name)
    : NNFilterNode({std::move(source)}, {}), data_source_(std::move(data_source)) {
  if (!data_source_)
    throw WeightError(std::string(class_name) + " needs a data source.",
                      {.node = class_name, .expected = "a data source", .actual = "none", .hint = "pass InstanceNormalizationWeights or GroupNormalizationWeights"});
  add_result_state(std::make_unique<NNGradientStateNode>(this));
}

void CNNAffineNormalizationNode::declare(ParameterStore& parameters) const { parameters.declare_affine(*this, data_source_); }

void CNNAffineNormalizationNode::lower(PlanBuilder& plan) const {
  const ValueId source = plan.image(*this, 0);
  const AffineValues& values = plan.affine(data_source_);
  const Shape image = plan.shape(source);
  if (image.channels != values.channels)
    fail<ShapeError>("the data source has " + std::to_string(values.channels) + " feature channels but the image has " + std::to_string(image.channels) + ".",
                     std::to_string(values.channels) + " channels", "image " + image.text(), "number_of_feature_channels=" + std::to_string(image.channels));
  plan.add_result(*this, GroupNormalizationOp{values.groups, values.epsilon}, {source, plan.parameter(values.gamma), plan.parameter(values.beta)}, image);
}

Json CNNAffineNormalizationNode::parameters() const { return {{"training_style", enum_json(training_style)}}; }

CNNAffineNormalizationGradientNode::CNNAffineNormalizationGradientNode(ImageNodePtr source_gradient, ImageNodePtr source_image,
                                                                       std::shared_ptr<NNGradientStateNode> gradient_state, const char* class_name)
    : NNGradientFilterNode({std::move(source_gradient), std::move(source_image)}, {std::move(gradient_state)}) {
  if (!dynamic_cast<const CNNAffineNormalizationNode*>(&forward_filter()))
    throw GraphError(std::string(class_name) + ": the gradient state must come from the matching normalization node.",
                     {.node = class_name, .label = forward_filter().display_name(), .expected = "an instance or group normalization node",
                      .actual = forward_filter().class_name(), .hint = "pass result_state of the forward node"});
}

const AffineDataSourcePtr& CNNAffineNormalizationGradientNode::data_source() const {
  return dynamic_cast<const CNNAffineNormalizationNode&>(forward_filter()).data_source();
}

void CNNAffineNormalizationGradientNode::declare(ParameterStore& parameters) const {
  parameters.train_affine(*this, forward_filter(), training_style, data_source());
}

void CNNAffineNormalizationGradientNode::lower(PlanBuilder& plan) const {
  const Step step = plan.forward_step(forward_filter());  // x, gamma, beta
  const auto& operation = std::get<GroupNormalizationOp>(step.operation);
  const ValueId gradient = plan.image(*this, 0), source = plan.image(*this, 1);
  plan.require_gradient_shape(*this, gradient, plan.shape(step.outputs[0]));
  plan.require_same_shape(*this, "the source image", source, plan.shape(step.inputs[0]));
  const TrainedParameters* trained = plan.trained(*this);
  plan.add(*this, GroupNormalizationGradientOp{operation.groups, operation.epsilon}, {gradient, source, step.inputs[1]},
           {plan.result(*this, plan.shape(source)), trained ? plan.gradient(trained->first) : kNoValue, trained ? plan.gradient(trained->second) : kNoValue});
}

Json CNNAffineNormalizationGradientNode::parameters() const { return {{"training_style", enum_json(training_style)}}; }

CNNInstanceNormalizationNode::CNNInstanceNormalizationNode(ImageNodePtr source, std::shared_ptr<CNNInstanceNormalizationDataSource> data_source)
    : CNNAffineNormalizationNode(std::move(source), std::move(data_source), "MPSCNNInstanceNormalizationNode") {}
CNNGroupNormalizationNode::CNNGroupNormalizationNode(ImageNodePtr source, std::shared_ptr<CNNGroupNormalizationDataSource> data_source)
    : CNNAffineNormalizationNode(std::move(source), std::move(data_source), "MPSCNNGroupNormalizationNode") {}
CNNInstanceNormalizationGradientNode::CNNInstanceNormalizationGradientNode(ImageNodePtr source_gradient, ImageNodePtr source_image,
                                                                           std::shared_ptr<NNGradientStateNode> gradient_state)
    : CNNAffineNormalizationGradientNode(std::move(source_gradient), std::move(source_image), std::move(gradient_state), "MPSCNNInstanceNormalizationGradientNode") {}
CNNGroupNormalizationGradientNode::CNNGroupNormalizationGradientNode(ImageNodePtr source_gradient, ImageNodePtr source_image,
                                                                     std::shared_ptr<NNGradientStateNode> gradient_state)
    : CNNAffineNormalizationGradientNode(std::move(source_gradient), std::move(source_image), std::move(gradient_state), "MPSCNNGroupNormalizationGradientNode") {}

std::vector<GradientFilterNodePtr> CNNInstanceNormalizationNode::make_gradient_filters(const ImageNodePtr& source_gradient) {
  auto gradient = std::make_shared<CNNInstanceNormalizationGradientNode>(source_gradient, sources()[0], typed_result_state<NNGradientStateNode>());
  gradient->training_style = training_style;
  return {gradient};
}
std::vector<GradientFilterNodePtr> CNNGroupNormalizationNode::make_gradient_filters(const ImageNodePtr& source_gradient) {
  auto gradient = std::make_shared<CNNGroupNormalizationGradientNode>(source_gradient, sources()[0], typed_result_state<NNGradientStateNode>());
  gradient->training_style = training_style;
  return {gradient};
}

}  // namespace mpsnn
