// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "sim.h"

/// How the generated node classes reach the nodes of ours that they wrap.
namespace sim {

struct ImageNodeBody : Body {
  mpsnn::ImageNodePtr node;
};
struct StateNodeBody : Body {
  mpsnn::StateNodePtr node;
};
struct FilterBody : Body {
  mpsnn::FilterNodePtr node;
  Held result_image;
  std::vector<Held> result_states;
  Held property_callback;
};

/// The toy object of a node of ours: the living one, else a new one of the class that the node names.
MPSNNFilterNode* wrap(const mpsnn::FilterNodePtr& node);
MPSNNImageNode* wrap(const mpsnn::ImageNodePtr& node);
MPSNNStateNode* wrap(const mpsnn::StateNodePtr& node);
id init_filter(MPSNNFilterNode* filter, mpsnn::FilterNodePtr node);

template <class Make>
id make_filter(MPSNNFilterNode* filter, Make&& make) {
  return init_filter(filter, guarded([&] { return mpsnn::FilterNodePtr(make()); }));
}
id refuse_initializer(id object, SEL selector);

template <class Node>
Node& node_of(MPSNNFilterNode* filter) {
  auto* node = dynamic_cast<Node*>(body<FilterBody>(filter).node.get());
  if (!node) raise(std::string(class_getName([filter class])) + " holds a node of another class");
  return *node;
}

mpsnn::ImageNodePtr image(MPSNNImageNode* node, bool is_nullable);
template <class State>
std::shared_ptr<State> state(MPSNNStateNode* node, bool is_nullable) {
  if (!node) {
    if (is_nullable) return nullptr;
    raise("a gradient state node is missing");
  }
  auto result = std::dynamic_pointer_cast<State>(body<StateNodeBody>(node).node);
  if (!result) raise(std::string("a gradient state node has the wrong class: ") + class_getName([node class]));
  return result;
}
std::vector<mpsnn::ImageNodePtr> converted(NSArray* nodes);
mpsnn::FilterNodePtr converted(MPSNNFilterNode* node);
inline mpsnn::ImageCoordinate converted(MPSImageCoordinate c) { return {int(c.x), int(c.y), int(c.channel)}; }
std::vector<mpsnn::ImageNodePtr> gradient_sources(mpsnn::ImageNodePtr gradient, mpsnn::ImageNodePtr source, mpsnn::ImageNodePtr labels,
                                                  mpsnn::ImageNodePtr weights);
/// An unsigned number that must fit.
int whole(NSUInteger number);
mpsnn::WindowSize window(NSUInteger kernel_width, NSUInteger kernel_height, NSUInteger stride_x, NSUInteger stride_y, NSUInteger dilation_x,
                         NSUInteger dilation_y);
inline mpsnn::WindowSize square_window(NSUInteger size, NSUInteger stride, NSUInteger dilation) { return window(size, size, stride, stride, dilation, dilation); }
template <class Node>
inline constexpr bool kIsDilated = std::is_same_v<Node, mpsnn::CNNDilatedPoolingMaxNode>;
mpsnn::DropoutParameters dropout(float keep_probability, NSUInteger seed, MTLSize mask_stride);
mpsnn::BinaryConvolutionTerms binary_terms(const mpsnn::ConvolutionDataSourcePtr& source, const float* output_bias, const float* output_scale,
                                           const float* input_bias, const float* input_scale);
std::shared_ptr<mpsnn::ImageTransformProvider> transform_provider(id object);

template <class Member, class Value>
void assign(Member& member, Value value) {
  member = static_cast<Member>(value);
}

}  // namespace sim
