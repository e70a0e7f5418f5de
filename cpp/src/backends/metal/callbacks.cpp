// SPDX-License-Identifier: Apache-2.0
#include "backends/metal/callbacks.hpp"

#include "backends/metal/runtime_class.hpp"

namespace mpsnn::metal {
namespace {

ImageDescriptor described(const MPS::Image* image) {
  return {static_cast<int>(image->width()), static_cast<int>(image->height()), static_cast<int>(image->featureChannels()), 1,
          static_cast<ImageFeatureChannelFormat>(image->featureChannelFormat())};
}

// --- handles -----------------------------------------------------------------------------------------------------

id handle_label(id self, SEL) { return reinterpret_cast<id>(string(held<std::string>(self))); }

const RuntimeClass& handle_class() {
  static const RuntimeClass made("MPSNNCppHandle", "MPSHandle", {method("label", handle_label, "@@:")});
  return made;
}

// --- padding policies --------------------------------------------------------------------------------------------

struct HeldPadding {
  PaddingPtr policy;
  std::string node_name;
  ErrorsPtr errors;
};

NS::UInteger padding_method(id self, SEL) { return static_cast<NS::UInteger>(held<HeldPadding>(self).policy->padding_method()); }
id padding_label(id self, SEL) {
  auto& h = held<HeldPadding>(self);
  return h.errors->guard_object<NS::String>([&] { return keep(string(h.policy->label())); });
}
id padding_inverse(id self, SEL) {
  auto& h = held<HeldPadding>(self);
  return h.errors->guard_object<MPS::NNPadding>([&] { return make_padding_object(h.policy->inverse(), h.node_name, h.errors); });
}

id padding_destination(id self, SEL, id source_images, id, id kernel_object, id suggested_object) {
  auto& h = held<HeldPadding>(self);
  auto* descriptor = reinterpret_cast<MPS::ImageDescriptor*>(suggested_object);
  auto* kernel = reinterpret_cast<MPS::CNNKernel*>(kernel_object);
  return h.errors->guard<id>(suggested_object, [&] {
    std::vector<ImageDescriptor> sources;
    const auto* images = reinterpret_cast<const NS::Array*>(source_images);
    for (NS::UInteger i = 0; i < count(images); ++i) sources.push_back(described(images->object<MPS::Image>(i)));
    const MPS::Offset offset = kernel->offset();
    KernelProperties properties{h.node_name,
                                {static_cast<int>(kernel->kernelWidth()), static_cast<int>(kernel->kernelHeight()), static_cast<int>(kernel->strideInPixelsX()),
                                 static_cast<int>(kernel->strideInPixelsY()), static_cast<int>(kernel->dilationRateX()), static_cast<int>(kernel->dilationRateY())},
                                static_cast<int>(offset.x), static_cast<int>(offset.y), static_cast<ImageEdgeMode>(kernel->edgeMode())};
    const ImageDescriptor suggested{static_cast<int>(descriptor->width()), static_cast<int>(descriptor->height()), static_cast<int>(descriptor->featureChannels()),
                                    static_cast<int>(descriptor->numberOfImages()), static_cast<ImageFeatureChannelFormat>(descriptor->channelFormat())};
    const ImageDescriptor chosen = h.policy->destination_image_descriptor(sources, properties, suggested);
    kernel->setOffset({properties.offset_x, properties.offset_y, offset.z});
    kernel->setEdgeMode(apple<MPS::ImageEdgeMode>(properties.edge_mode));
    descriptor->setWidth(chosen.width);
    descriptor->setHeight(chosen.height);
    return suggested_object;
  });
}

const RuntimeClass& padding_class() {
  static const RuntimeClass made(
      "MPSNNCppPadding", "MPSNNPadding",
      {method("paddingMethod", padding_method, "Q@:"), method("label", padding_label, "@@:"), method("inverse", padding_inverse, "@@:"),
       method("destinationImageDescriptorForSourceImages:sourceStates:forKernel:suggestedDescriptor:", padding_destination, "@@:@@@@")});
  return made;
}

// --- property callbacks ------------------------------------------------------------------------------------------

struct HeldTransform {
  std::shared_ptr<ImageTransformProvider> provider;
  HandlePtr handle;
  ErrorsPtr errors;
};

MPS::ScaleTransform transform_for(id self, SEL, id image, id) {
  auto& h = held<HeldTransform>(self);
  return h.errors->guard<MPS::ScaleTransform>({1, 1, 0, 0}, [&]() -> MPS::ScaleTransform {
    const ScaleTransform t = h.provider->transform(described(reinterpret_cast<const MPS::Image*>(image)), h.handle);
    return {t.scale_x, t.scale_y, t.translate_x, t.translate_y};
  });
}

const RuntimeClass& transform_class() {
  static const RuntimeClass made("MPSNNCppTransformProvider", "MPSImageTransformProvider",
                                 {method("transformForSourceImage:handle:", transform_for, "{MPSScaleTransform=dddd}@:@@")});
  return made;
}

template <class Callback>
struct HeldCallback {
  std::shared_ptr<Callback> callback;
  ErrorsPtr errors;
};

float alpha_for(id self, SEL, id source, id destination) {
  auto& h = held<HeldCallback<NNGramMatrixCallback>>(self);
  return h.errors->guard(1.0f, [&] { return h.callback->alpha(described(reinterpret_cast<MPS::Image*>(source)), described(reinterpret_cast<MPS::Image*>(destination))); });
}
float weight_for(id self, SEL, id source, id destination) {
  auto& h = held<HeldCallback<NNLossCallback>>(self);
  return h.errors->guard(
      1.0f, [&] { return h.callback->scalar_weight(described(reinterpret_cast<MPS::Image*>(source)), described(reinterpret_cast<MPS::Image*>(destination))); });
}

const RuntimeClass& gram_class() {
  static const RuntimeClass made("MPSNNCppGramMatrixCallback", "MPSNNGramMatrixCallback",
                                 {method("alphaForSourceImage:destinationImage:", alpha_for, "f@:@@")});
  return made;
}
const RuntimeClass& loss_class() {
  static const RuntimeClass made("MPSNNCppLossCallback", "MPSNNLossCallback",
                                 {method("scalarWeightForSourceImage:destinationImage:", weight_for, "f@:@@")});
  return made;
}

}  // namespace

Owned<MPS::Handle> make_handle_object(std::string label) { return make_object<MPS::Handle>(handle_class(), std::make_shared<std::string>(std::move(label))); }

Owned<MPS::NNPadding> make_padding_object(const PaddingPtr& policy, const std::string& node_name, const ErrorsPtr& errors) {
  const auto bits = apple<MPS::NNPaddingMethod>(policy->padding_method());
  const bool is_custom = bits & MPS::NNPaddingMethodCustom, is_default = dynamic_cast<const NNDefaultPadding*>(policy.get()) != nullptr;
  auto padding = [](MPS::NNDefaultPadding* object) { return keep(reinterpret_cast<MPS::NNPadding*>(object)); };
  if (!is_custom) return padding(MPS::NNDefaultPadding::padding(bits));
  // The only two default policies with that bit (MPS_SEMANTICS 6.6).
  if (is_default && policy->padding_method() == NNDefaultPadding::padding_for_tensorflow_average_pooling()->padding_method())
    return padding(MPS::NNDefaultPadding::paddingForTensorflowAveragePooling());
  if (is_default) return padding(MPS::NNDefaultPadding::paddingForTensorflowAveragePoolingValidOnly());
  return make_object<MPS::NNPadding>(padding_class(), std::make_shared<HeldPadding>(HeldPadding{policy, node_name, errors}));
}

Owned<MPS::ImageTransformProvider> make_transform_object(std::shared_ptr<ImageTransformProvider> provider, HandlePtr handle, const ErrorsPtr& errors) {
  return make_object<MPS::ImageTransformProvider>(transform_class(), std::make_shared<HeldTransform>(HeldTransform{std::move(provider), std::move(handle), errors}));
}
Owned<MPS::NNGramMatrixCallback> make_callback_object(std::shared_ptr<NNGramMatrixCallback> callback, const ErrorsPtr& errors) {
  return make_object<MPS::NNGramMatrixCallback>(gram_class(),
                                                std::make_shared<HeldCallback<NNGramMatrixCallback>>(HeldCallback<NNGramMatrixCallback>{std::move(callback), errors}));
}
Owned<MPS::NNLossCallback> make_callback_object(std::shared_ptr<NNLossCallback> callback, const ErrorsPtr& errors) {
  return make_object<MPS::NNLossCallback>(loss_class(), std::make_shared<HeldCallback<NNLossCallback>>(HeldCallback<NNLossCallback>{std::move(callback), errors}));
}

}  // namespace mpsnn::metal
