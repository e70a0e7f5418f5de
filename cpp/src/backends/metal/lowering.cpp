// SPDX-License-Identifier: Apache-2.0
#include "backends/metal/lowering.hpp"

#include <algorithm>

#include "mpsnn/nodes/binary_convolution.hpp"
#include "mpsnn/nodes/normalization.hpp"

namespace mpsnn::metal {

const std::map<std::string, LowerFunction>& lowered_classes() {
  static const std::map<std::string, LowerFunction> all = [] {
    std::map<std::string, LowerFunction> table;
    for (const LoweredClasses& family : {convolution_classes(), window_classes(), pointwise_classes(), arithmetic_classes(), shape_classes(), loss_classes()})
      for (const LoweredClass& row : family) table.emplace(row.class_name, row.lower);
    return table;
  }();
  return all;
}

bool Lowering::is_for_device(const TrainedParameters& trained) const {
  if (trained.convolution) {
    const CNNConvolutionDataSource& source = *trained.convolution->source;
    return typeid(source) == typeid(ConvolutionWeights);
  }
  // States of normalizations reach the application through the host; and a source that several nodes train is updated by each.
  const auto& exported = parts_.exported_states;
  if (std::any_of(exported.begin(), exported.end(), [&](const NNStateNode* state) { return state->producer() == trained.forward; })) return false;
  const auto& all = parameters_.trained();
  if (std::count_if(all.begin(), all.end(), [&](const TrainedParameters& other) {
        return other.normalization == trained.normalization && other.affine == trained.affine && !other.convolution;
      }) > 1)
    return false;
  if (trained.normalization) {
    const CNNBatchNormalizationDataSource& source = *trained.normalization->source;
    return typeid(source) == typeid(BatchNormalizationWeights);
  }
  const CNNAffineDataSource& source = *trained.affine->source;
  return typeid(source) == typeid(InstanceNormalizationWeights) || typeid(source) == typeid(GroupNormalizationWeights);
}

Lowering::Lowering(const GraphParts& parts, ParameterStore& parameters, SourceContextPtr context)
    : parts_(parts), parameters_(parameters), context_(std::move(context)) {
  for (TrainedParameters& trained : parameters_.trained()) trained.is_updated_by_engine = trained.style == NNTrainingStyle::UpdateDeviceGPU && is_for_device(trained);
}

void Lowering::run() {
  for (const FilterNodePtr& node : parts_.nodes) lower(node);
  add_targets();
}

void Lowering::lower(const FilterNodePtr& node) {
  const auto found = lowered_classes().find(node->class_name());
  if (found == lowered_classes().end())
    throw GraphError(name(*node) + ": Apple has no node for it.", {node->class_name(), name(*node), "a class that MPSNNGraph knows", node->class_name(),
                                                                   "graph.preflight(\"metal\") lists every such node"});
  auto lowered = found->second(*this, *node);
  if (!lowered) {
    errors()->rethrow();
    throw DeviceError(name(*node) + ": MPS did not make the node.", {node->class_name(), name(*node), "a node", "nil", "check its parameters against Apple's documentation"});
  }
  filters_[node.get()] = lowered;
  finish(*node, lowered.get());
}

void Lowering::finish(NNFilterNode& node, MPS::NNFilterNode* lowered) {
  lowered->setLabel(string(name(node)));
  const NNImageNode& result = node.result_image_node();
  MPS::NNImageNode* image = lowered->resultImage();
  if (result.format != ImageFeatureChannelFormat::None) image->setFormat(apple<MPS::ImageFeatureChannelFormat>(result.format));
  if (is_returned(&result)) {
    image->setHandle(handle(&result, result.handle ? result.handle->label() : name(node)));
    // What leaves the step is read by the CPU.
    image->setImageAllocator(MPS::Image::defaultAllocator());
    image->setSynchronizeResource(true);
    image->setExportFromGraph(result.export_from_graph);
  }
  for (const StateNodePtr& state : node.result_states()) {
    if (!state->export_from_graph) continue;
    MPS::NNStateNode* lowered_state = state_of(*state);
    lowered_state->setHandle(handle(state.get(), state->handle ? state->handle->label() : name(node)));
    lowered_state->setExportFromGraph(true);
    lowered_state->setSynchronizeResource(true);
  }
}

bool Lowering::is_returned(const NNImageNode* image) const {
  const auto is = [&](const ImageNodePtr& result) { return result.get() == image; };
  return image->export_from_graph || std::any_of(parts_.result_images.begin(), parts_.result_images.end(), is);
}

MPS::Handle* Lowering::handle(const void* node, const std::string& label) {
  auto& object = handles_[node];
  if (!object) object = make_handle_object(label);
  return object.get();
}

MPS::NNImageNode* Lowering::image(const NNImageNode& node) {
  if (node.producer()) return filters_.at(node.producer())->resultImage();
  auto& input = inputs_[&node];
  if (!input) {
    input = own(MPS::NNImageNode::alloc()->init(handle(&node, node.handle ? node.handle->label() : "input")));
    if (node.format != ImageFeatureChannelFormat::None) input->setFormat(apple<MPS::ImageFeatureChannelFormat>(node.format));
  }
  return input.get();
}

NS::Array* Lowering::sources(const NNFilterNode& node) {
  std::vector<MPS::NNImageNode*> images;
  for (std::size_t i = 0; i < node.sources().size(); ++i) images.push_back(source(node, i));
  return array(images);
}

MPS::NNStateNode* Lowering::state_of(const NNStateNode& node) {
  const NNFilterNode& forward = *node.producer();
  MPS::NNFilterNode* lowered = filters_.at(&forward).get();
  const std::size_t index = forward.result_state_index(node);
  // MAC-UNVERIFIED: result-states: a filter with several states lists them in the order of its sources (OQ-40).
  if (index == 0) return lowered->resultState();
  NS::Array* states = lowered->resultStates();
  return index < count(states) ? states->object<MPS::NNStateNode>(index) : nullptr;
}

void Lowering::set_labels(const NNLabelsNode& node, MPS::NNLabelsNode* lowered) {
  lowered->setHandle(handle(&node, node.handle ? node.handle->label() : "labels"));
}

Owned<MPS::NNPadding> Lowering::padding(const NNFilterNode& node) const { return make_padding_object(node.padding_policy, name(node), errors()); }

MPS::NNTrainingStyle Lowering::training_style(const NNFilterNode& node, NNTrainingStyle chosen) const {
  const TrainedParameters* trained = parameters_.trained(node);
  if (!trained) {
    // A forward node: the style of the gradient node that trains it, if any.
    for (const TrainedParameters& t : parameters_.trained())
      if (t.forward == &node) trained = &t;
  }
  if (!trained || chosen == NNTrainingStyle::UpdateDeviceNone) return MPS::NNTrainingStyleUpdateDeviceNone;
  return trained->is_updated_by_engine ? MPS::NNTrainingStyleUpdateDeviceGPU : MPS::NNTrainingStyleUpdateDeviceCPU;
}

// --- data sources ------------------------------------------------------------------------------------------------

MPS::CNNConvolutionDataSource* Lowering::convolution_source(const ConvolutionDataSourcePtr& source, const NNFilterNode& node) {
  auto& made = convolution_sources_[source.get()];
  if (made) return made.get();
  auto object = std::make_shared<ConvolutionObject>();
  object->context = context_;
  object->source = source;
  if (dynamic_cast<const CNNBinaryConvolutionNode*>(&node)) {
    const BinaryConvolutionParameters& values = parameters_.binary_convolution(node);
    object->descriptor = values.descriptor;
    object->label = values.label;
    object->data_type = DataType::UInt32;
    object->raw_count = values.values->bits.size();
  } else {
    const ConvolutionValues& values = parameters_.convolution(source);
    const auto& all = parameters_.trained();
    const bool is_trained = std::any_of(all.begin(), all.end(), [&](const TrainedParameters& t) { return t.convolution == &values; });
    object->descriptor = values.descriptor;
    object->label = values.label;
    object->data_type = source->data_type();
    object->kernel_data_type = source->kernel_weights_data_type();
    object->raw_count = values.weights.count;
    // Weights that change are handed out as the numbers they have become.
    if (object->data_type == DataType::Float32 || is_trained) {
      object->data_type = DataType::Float32;
      object->weights = parameters_.values(values.weights);
      if (values.biases) object->biases = parameters_.values(values.biases);
    }
  }
  made = make_source_object(object);
  convolution_by_source_[source.get()] = object;
  convolution_objects_.push_back(std::move(object));
  return made.get();
}

std::shared_ptr<NormalizationObject> Lowering::normalization_object(const std::string& label, int channels, int groups, float epsilon) {
  auto object = std::make_shared<NormalizationObject>();
  object->context = context_;
  object->label = label;
  object->channels = channels;
  object->groups = groups;
  object->epsilon = epsilon;
  normalization_objects_.push_back(object);
  return object;
}

MPS::CNNBatchNormalizationDataSource* Lowering::batch_normalization_source(const BatchNormalizationDataSourcePtr& source) {
  auto& [object, made] = normalization_sources_[source.get()];
  if (!made) {
    const BatchNormalizationValues& values = parameters_.batch_normalization(source);
    object = normalization_object(values.label, values.channels, 0, values.epsilon);
    object->gamma = parameters_.values(values.gamma);
    object->beta = parameters_.values(values.beta);
    object->mean = parameters_.values(values.mean);
    object->variance = parameters_.values(values.variance);
    made = keep(reinterpret_cast<NS::Object*>(make_batch_source_object(object).get()));
  }
  return reinterpret_cast<MPS::CNNBatchNormalizationDataSource*>(made.get());
}

NormalizationObject& Lowering::affine_object(const AffineDataSourcePtr& source) {
  auto& object = normalization_sources_[source.get()].first;
  if (!object) {
    const AffineValues& values = parameters_.affine(source);
    object = normalization_object(values.label, values.channels, values.groups, values.epsilon);
    object->gamma = parameters_.values(values.gamma);
    object->beta = parameters_.values(values.beta);
  }
  return *object;
}

MPS::CNNInstanceNormalizationDataSource* Lowering::instance_normalization_source(const AffineDataSourcePtr& source) {
  affine_object(source);
  auto& [object, made] = normalization_sources_[source.get()];
  if (!made) made = keep(reinterpret_cast<NS::Object*>(make_instance_source_object(object).get()));
  return reinterpret_cast<MPS::CNNInstanceNormalizationDataSource*>(made.get());
}

MPS::CNNGroupNormalizationDataSource* Lowering::group_normalization_source(const AffineDataSourcePtr& source) {
  affine_object(source);
  auto& [object, made] = normalization_sources_[source.get()];
  if (!made) made = keep(reinterpret_cast<NS::Object*>(make_group_source_object(object).get()));
  return reinterpret_cast<MPS::CNNGroupNormalizationDataSource*>(made.get());
}

void Lowering::add_targets() {
  auto gradient = [&](const ParameterRange& range) { return range ? parameters_.gradients().part(range.offset, range.count) : Buffer(); };
  for (const TrainedParameters& trained : parameters_.trained()) {
    GradientTarget target{gradient(trained.first), gradient(trained.second), {}, {}, trained.is_updated_by_engine};
    if (trained.convolution) {
      convolution_by_source_.at(trained.convolution->source.get())->targets.add(target);
      host_updates_ += !trained.is_updated_by_engine;
    } else if (trained.normalization) {
      if (const BatchStatistics* statistics = parameters_.batch_statistics(*trained.forward)) {
        target.mean = gradient(statistics->mean);
        target.variance = gradient(statistics->variance);
      }
      NormalizationObject& object = *normalization_sources_.at(trained.normalization->source.get()).first;
      object.targets.add(target);
      if (trained.is_updated_by_engine) {
        auto& ours = dynamic_cast<BatchNormalizationWeights&>(*trained.normalization->source);
        object.trained = &ours;
        object.momentum = ours.momentum();
      } else {
        host_updates_ += 2;  // gamma and beta, then mean and variance
      }
    } else {
      NormalizationObject& object = *normalization_sources_.at(trained.affine->source.get()).first;
      object.targets.add(target);
      if (trained.is_updated_by_engine) object.trained = dynamic_cast<TrainedDataSource*>(trained.affine->source.get());
      else ++host_updates_;
    }
  }
}

}  // namespace mpsnn::metal
