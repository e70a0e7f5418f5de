// SPDX-License-Identifier: Apache-2.0
#include "mpsnn/nodes/resampling.hpp"

#include "core/plan_builder.hpp"
#include "core/size_limits.hpp"
#include "nodes/json_fields.hpp"

namespace mpsnn {
namespace {

void require_factors(const NNFilterNode& node, int x, int y) {
  if (x >= 1 && y >= 1) return;
  throw OptionError(node.display_name() + ": scale factors must be at least 1.",
                    {node.class_name(), node.display_name(), ">= 1", std::to_string(x) + " x " + std::to_string(y), "give whole, positive factors"});
}

void lower_upsampling(const NNFilterNode& node, PlanBuilder& plan, const UpsamplingOp& operation) {
  const ValueId source = plan.image(node, 0);
  const Shape image = plan.shape(source);
  auto enlarged = [](int size, int factor) { return checked_size(std::int64_t(size) * factor, "an enlarged size"); };
  plan.add_result(node, operation, {source}, {image.images, enlarged(image.height, operation.scale_y), enlarged(image.width, operation.scale_x), image.channels});
}

void lower_upsampling_gradient(const NNFilterNode& node, const NNFilterNode& forward, PlanBuilder& plan, bool is_bilinear, double scale_x, double scale_y) {
  const Step step = plan.forward_step(forward);
  const auto* operation = std::get_if<UpsamplingOp>(&step.operation);
  if (!operation || operation->is_bilinear != is_bilinear || operation->scale_x != scale_x || operation->scale_y != scale_y)
    throw GraphError(plan.name(node) + ": the gradient state must come from an upsampling node of the same kind and factors.",
                     {node.class_name(), plan.name(node), std::to_string(scale_x) + " x " + std::to_string(scale_y),
                      operation ? std::to_string(operation->scale_x) + " x " + std::to_string(operation->scale_y) : forward.class_name(),
                      "pass result_state of the forward node"});
  const ValueId gradient = plan.image(node, 0);
  plan.require_gradient_shape(node, gradient, plan.shape(step.outputs[0]));
  plan.add_result(node, UpsamplingGradientOp{*operation}, {gradient}, plan.shape(step.inputs[0]));
}

Json factors_json(double x, double y) { return {{"scale_factor_x", x}, {"scale_factor_y", y}}; }

}  // namespace

ImageTransformProvider::~ImageTransformProvider() = default;

CNNUpsamplingNearestNode::CNNUpsamplingNearestNode(ImageNodePtr source, int integer_scale_factor_x, int integer_scale_factor_y)
    : NNFilterNode({std::move(source)}, {}), scale_x_(integer_scale_factor_x), scale_y_(integer_scale_factor_y) {
  require_factors(*this, scale_x_, scale_y_);
  add_result_state(std::make_unique<NNGradientStateNode>(this));
}
void CNNUpsamplingNearestNode::lower(PlanBuilder& plan) const { lower_upsampling(*this, plan, {false, false, scale_x_, scale_y_}); }
Json CNNUpsamplingNearestNode::parameters() const { return factors_json(scale_x_, scale_y_); }
std::vector<GradientFilterNodePtr> CNNUpsamplingNearestNode::make_gradient_filters(const ImageNodePtr& source_gradient) {
  return {std::make_shared<CNNUpsamplingNearestGradientNode>(source_gradient, sources()[0], typed_result_state<NNGradientStateNode>(), scale_x_, scale_y_)};
}
CNNUpsamplingNearestGradientNode::CNNUpsamplingNearestGradientNode(ImageNodePtr source_gradient, ImageNodePtr source_image,
                                                                   std::shared_ptr<NNGradientStateNode> gradient_state, double scale_factor_x, double scale_factor_y)
    : NNGradientFilterNode({std::move(source_gradient), std::move(source_image)}, {std::move(gradient_state)}), scale_x_(scale_factor_x), scale_y_(scale_factor_y) {}
void CNNUpsamplingNearestGradientNode::lower(PlanBuilder& plan) const { lower_upsampling_gradient(*this, forward_filter(), plan, false, scale_x_, scale_y_); }
Json CNNUpsamplingNearestGradientNode::parameters() const { return factors_json(scale_x_, scale_y_); }

CNNUpsamplingBilinearNode::CNNUpsamplingBilinearNode(ImageNodePtr source, int integer_scale_factor_x, int integer_scale_factor_y, bool align_corners)
    : NNFilterNode({std::move(source)}, {}), scale_x_(integer_scale_factor_x), scale_y_(integer_scale_factor_y), align_corners_(align_corners) {
  require_factors(*this, scale_x_, scale_y_);
  add_result_state(std::make_unique<NNGradientStateNode>(this));
}
void CNNUpsamplingBilinearNode::lower(PlanBuilder& plan) const { lower_upsampling(*this, plan, {true, align_corners_, scale_x_, scale_y_}); }
Json CNNUpsamplingBilinearNode::parameters() const {
  return {{"scale_factor_x", scale_x_}, {"scale_factor_y", scale_y_}, {"align_corners", align_corners_}};
}
std::vector<GradientFilterNodePtr> CNNUpsamplingBilinearNode::make_gradient_filters(const ImageNodePtr& source_gradient) {
  return {std::make_shared<CNNUpsamplingBilinearGradientNode>(source_gradient, sources()[0], typed_result_state<NNGradientStateNode>(), scale_x_, scale_y_)};
}
CNNUpsamplingBilinearGradientNode::CNNUpsamplingBilinearGradientNode(ImageNodePtr source_gradient, ImageNodePtr source_image,
                                                                     std::shared_ptr<NNGradientStateNode> gradient_state, double scale_factor_x, double scale_factor_y)
    : NNGradientFilterNode({std::move(source_gradient), std::move(source_image)}, {std::move(gradient_state)}), scale_x_(scale_factor_x), scale_y_(scale_factor_y) {}
void CNNUpsamplingBilinearGradientNode::lower(PlanBuilder& plan) const { lower_upsampling_gradient(*this, forward_filter(), plan, true, scale_x_, scale_y_); }
Json CNNUpsamplingBilinearGradientNode::parameters() const { return factors_json(scale_x_, scale_y_); }

NNScaleNode::NNScaleNode(ImageNodePtr source, std::shared_ptr<ImageTransformProvider> transform_provider, int width, int height, bool is_lanczos)
    : NNFilterNode({std::move(source)}, {}), provider_(std::move(transform_provider)), width_(width), height_(height), is_lanczos_(is_lanczos) {
  if (width < 1 || height < 1)
    throw OptionError("MPSNNScaleNode: output_size must be at least 1 x 1.", {.node = "MPSNNScaleNode", .expected = ">= 1 x 1",
                                                                              .actual = std::to_string(width) + " x " + std::to_string(height),
                                                                              .hint = "give (width, height, 1)"});
}

void NNScaleNode::lower(PlanBuilder& plan) const {
  const ValueId source = plan.image(*this, 0);
  const Shape image = plan.shape(source);
  ScaleTransform transform{double(width_) / image.width, double(height_) / image.height, 0, 0};
  if (provider_) transform = provider_->transform(plan.image_descriptor(source), sources()[0]->handle);
  if (!(transform.scale_x > 0 && transform.scale_y > 0))
    fail<OptionError>("the transform provider gave a scale that is not positive.", "> 0", std::to_string(transform.scale_x) + " x " + std::to_string(transform.scale_y),
                      "return positive scales");
  plan.add_result(*this, ScaleOp{is_lanczos_, transform.scale_x, transform.scale_y, transform.translate_x, transform.translate_y}, {source},
                  {image.images, height_, width_, image.channels});
}

Json NNScaleNode::parameters() const {
  if (provider_) fail<GraphError>("a transform provider of the application's own cannot be saved.", "no transform provider", "one", "take it out before saving");
  return {{"width", width_}, {"height", height_}};
}

}  // namespace mpsnn
