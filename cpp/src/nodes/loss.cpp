// SPDX-License-Identifier: Apache-2.0
#include "mpsnn/nodes/loss.hpp"

#include "core/plan_builder.hpp"
#include "nodes/json_fields.hpp"

namespace mpsnn {
namespace {

CNNLossDescriptor validated(const CNNLossDescriptor& loss, const char* class_name) {
  auto refuse = [&](const char* what, std::string expected, std::string actual) {
    throw OptionError(std::string(class_name) + ": " + what,
                      {.node = class_name, .expected = std::move(expected), .actual = std::move(actual), .hint = "change the loss descriptor"});
  };
  if (loss.loss_type < CNNLossType::MeanAbsoluteError || loss.loss_type >= CNNLossType::Count)
    refuse("unknown loss type.", "0 to 9", std::to_string(static_cast<int>(loss.loss_type)));
  if (loss.reduction_type < CNNReductionType::None || loss.reduction_type >= CNNReductionType::Count)
    refuse("unknown reduction type.", "0 to 3", std::to_string(static_cast<int>(loss.reduction_type)));
  if (loss.loss_type == CNNLossType::CosineDistance && loss.reduction_type != CNNReductionType::Sum)
    refuse("cosine distance is one number per image: its reduction is Sum.", "Sum", std::to_string(static_cast<int>(loss.reduction_type)));
  if (loss.number_of_classes < 1) refuse("number_of_classes must be at least 1.", ">= 1", std::to_string(loss.number_of_classes));
  if (!(loss.label_smoothing >= 0 && loss.label_smoothing <= 1)) refuse("label_smoothing must lie in [0, 1].", "0 to 1", std::to_string(loss.label_smoothing));
  if (!(loss.delta > 0)) refuse("delta must be positive.", "> 0", std::to_string(loss.delta));
  return loss;
}

std::vector<ImageNodePtr> two_or_three(std::vector<ImageNodePtr> sources, const char* class_name, std::size_t extra) {
  if (!sources.empty() && !sources.back()) sources.pop_back();  // weights are optional
  if (sources.size() != 2 + extra && sources.size() != 3 + extra)
    throw OptionError(std::string(class_name) + " takes logits, labels and perhaps weights" + (extra ? " behind the gradient." : "."),
                      {.node = class_name, .expected = std::to_string(2 + extra) + " or " + std::to_string(3 + extra) + " sources",
                       .actual = std::to_string(sources.size()), .hint = "pass them in that order"});
  return sources;
}

CNNLossDescriptor with_callback(const CNNLossDescriptor& loss, const std::shared_ptr<NNLossCallback>& callback, const Shape& source, const Shape& result) {
  if (!callback) return loss;
  CNNLossDescriptor weighted = loss;
  weighted.weight = callback->scalar_weight({source.width, source.height, source.channels, source.images},
                                            {result.width, result.height, result.channels, result.images});
  return weighted;
}

}  // namespace

NNLossCallback::~NNLossCallback() = default;

CNNLossNode::CNNLossNode(ImageNodePtr source, CNNLossDescriptor loss_descriptor)
    : NNFilterNode({std::move(source)}, {}), loss_(validated(loss_descriptor, "MPSCNNLossNode")), input_labels_(this) {}

std::shared_ptr<NNLabelsNode> CNNLossNode::input_labels() { return {shared_from_this(), &input_labels_}; }

void CNNLossNode::lower(PlanBuilder& plan) const {
  const ValueId source = plan.image(*this, 0);
  const PlanBuilder::Labels labels = plan.labels(input_labels_, plan.shape(source));
  plan.require_same_shape(*this, "the labels image", labels.labels, plan.shape(source));
  plan.add(*this, LossOp{loss_}, {source, labels.labels, labels.weights}, {plan.result(*this, plan.shape(source)), labels.loss});
}

Json CNNLossNode::parameters() const { return to_json(loss_); }

CNNYOLOLossNode::CNNYOLOLossNode(ImageNodePtr source, CNNYOLOLossDescriptor loss_descriptor)
    : NNFilterNode({std::move(source)}, {}), loss_(std::move(loss_descriptor)), input_labels_(this) {
  for (const CNNLossDescriptor* part : {&loss_.xy_loss_descriptor, &loss_.wh_loss_descriptor, &loss_.confidence_loss_descriptor, &loss_.classes_loss_descriptor})
    validated(*part, class_name());
  if (loss_.number_of_anchor_boxes < 1 || loss_.anchor_boxes.size() != 2 * std::size_t(loss_.number_of_anchor_boxes))
    fail<OptionError>("anchor_boxes holds width and height of each anchor box.", std::to_string(2 * std::max<std::int64_t>(1, loss_.number_of_anchor_boxes)) + " numbers",
                      std::to_string(loss_.anchor_boxes.size()) + " numbers", "give number_of_anchor_boxes pairs");
  for (float size : loss_.anchor_boxes)
    if (!(size > 0)) fail<OptionError>("anchor boxes have positive sizes.", "> 0", std::to_string(size), "sizes in grid units");
}

std::shared_ptr<NNLabelsNode> CNNYOLOLossNode::input_labels() { return {shared_from_this(), &input_labels_}; }

void CNNYOLOLossNode::lower(PlanBuilder& plan) const {
  const ValueId source = plan.image(*this, 0);
  const Shape image = plan.shape(source);
  const int classes = image.channels / loss_.number_of_anchor_boxes - 5;
  if (image.channels % loss_.number_of_anchor_boxes != 0 || classes < 0)
    fail<ShapeError>("the channels hold x, y, width, height, confidence and classes of each anchor box.",
                     "(5 + classes) x " + std::to_string(loss_.number_of_anchor_boxes) + " channels", "image " + image.text(), "check number_of_anchor_boxes");
  const PlanBuilder::Labels labels = plan.labels(input_labels_, image);
  plan.require_same_shape(*this, "the labels image", labels.labels, image);
  plan.add(*this, YOLOLossOp{loss_}, {source, labels.labels, labels.weights}, {plan.result(*this, image), labels.loss});
}

Json CNNYOLOLossNode::parameters() const { return to_json(loss_); }

NNForwardLossNode::NNForwardLossNode(std::vector<ImageNodePtr> source_images, CNNLossDescriptor loss_descriptor)
    : NNFilterNode(two_or_three(std::move(source_images), "MPSNNForwardLossNode", 0), {}), loss_(validated(loss_descriptor, "MPSNNForwardLossNode")) {
  add_result_state(std::make_unique<NNGradientStateNode>(this));
}

NNForwardLossNode::NNForwardLossNode(ImageNodePtr source, ImageNodePtr labels, ImageNodePtr weights, CNNLossDescriptor loss_descriptor)
    : NNForwardLossNode(std::vector{std::move(source), std::move(labels), std::move(weights)}, loss_descriptor) {}

void NNForwardLossNode::lower(PlanBuilder& plan) const {
  const ValueId source = plan.image(*this, 0), labels = plan.image(*this, 1);
  const ValueId weights = sources().size() > 2 ? plan.image(*this, 2) : kNoValue;
  const Shape image = plan.shape(source);
  plan.require_same_shape(*this, "the labels image", labels, image);
  if (weights != kNoValue) plan.require_same_shape(*this, "the weights image", weights, image);
  const Shape result = loss_.reduction_type == CNNReductionType::None ? image : Shape{image.images, 1, 1, 1};
  plan.add_result(*this, ForwardLossOp{with_callback(loss_, property_callback, image, result)}, {source, labels, weights}, result);
}

Json NNForwardLossNode::parameters() const { return to_json(loss_); }

std::vector<GradientFilterNodePtr> NNForwardLossNode::make_gradient_filters(const ImageNodePtr& source_gradient) {
  std::vector<ImageNodePtr> images{source_gradient};
  images.insert(images.end(), sources().begin(), sources().end());
  std::vector<GradientFilterNodePtr> gradients;
  for (bool is_labels_gradient : {false, true}) {
    auto gradient = std::make_shared<NNLossGradientNode>(images, typed_result_state<NNGradientStateNode>(), loss_, is_labels_gradient);
    gradient->property_callback = property_callback;
    gradients.push_back(gradient);
  }
  return gradients;
}

GradientFilterNodePtr NNForwardLossNode::gradient_filter(const std::vector<ImageNodePtr>& source_gradients) { return gradient_filters(source_gradients).front(); }

NNLossGradientNode::NNLossGradientNode(std::vector<ImageNodePtr> source_images, std::shared_ptr<NNGradientStateNode> gradient_state,
                                       CNNLossDescriptor loss_descriptor, bool is_labels_gradient_filter)
    : NNGradientFilterNode(two_or_three(std::move(source_images), "MPSNNLossGradientNode", 1),
                           gradient_state ? std::vector<StateNodePtr>{gradient_state} : std::vector<StateNodePtr>{}),
      loss_(validated(loss_descriptor, "MPSNNLossGradientNode")), is_labels_gradient_filter_(is_labels_gradient_filter) {}

void NNLossGradientNode::lower(PlanBuilder& plan) const {
  const ValueId gradient = plan.image(*this, 0), source = plan.image(*this, 1), labels = plan.image(*this, 2);
  const ValueId weights = sources().size() > 3 ? plan.image(*this, 3) : kNoValue;
  const Shape image = plan.shape(source);
  plan.require_same_shape(*this, "the labels image", labels, image);
  if (weights != kNoValue) plan.require_same_shape(*this, "the weights image", weights, image);
  if (plan.shape(gradient) != Shape{image.images, 1, 1, 1}) plan.require_gradient_shape(*this, gradient, image);
  plan.add_result(*this, LossGradientOp{with_callback(loss_, property_callback, image, image), is_labels_gradient_filter_},
                  {gradient, source, labels, weights}, image);
}

Json NNLossGradientNode::parameters() const {
  Json::Object object = to_json(loss_).object("loss");
  object.emplace("is_labels_gradient_filter", is_labels_gradient_filter_);
  return object;
}

NNInitialGradientNode::NNInitialGradientNode(ImageNodePtr source) : NNFilterNode({std::move(source)}, {}) {}

void NNInitialGradientNode::lower(PlanBuilder& plan) const { plan.add_result(*this, FillOp{1.0f}, {}, plan.shape(plan.image(*this, 0))); }

}  // namespace mpsnn
