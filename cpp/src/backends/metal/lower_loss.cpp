// SPDX-License-Identifier: Apache-2.0
#include "backends/metal/lowering.hpp"
#include "mpsnn/nodes/loss.hpp"

/// Losses and the nodes that start a backward pass.
namespace mpsnn::metal {
namespace {

MPS::CNNLossDescriptor* loss_descriptor(const CNNLossDescriptor& d) {
  auto* made = MPS::CNNLossDescriptor::cnnLossDescriptor(apple<MPS::CNNLossType>(d.loss_type), apple<MPS::CNNReductionType>(d.reduction_type));
  made->setReduceAcrossBatch(d.reduce_across_batch);
  made->setWeight(d.weight);
  made->setLabelSmoothing(d.label_smoothing);
  made->setNumberOfClasses(d.number_of_classes);
  made->setEpsilon(d.epsilon);
  made->setDelta(d.delta);
  return made;
}

MPS::CNNYOLOLossDescriptor* yolo_descriptor(const CNNYOLOLossDescriptor& d) {
  auto type = [](const CNNLossDescriptor& part) { return apple<MPS::CNNLossType>(part.loss_type); };
  auto* made = MPS::CNNYOLOLossDescriptor::cnnLossDescriptor(type(d.xy_loss_descriptor), type(d.wh_loss_descriptor), type(d.confidence_loss_descriptor),
                                                             type(d.classes_loss_descriptor), apple<MPS::CNNReductionType>(d.reduction_type),
                                                             data(d.anchor_boxes.data(), d.anchor_boxes.size() * sizeof(float)), d.number_of_anchor_boxes);
  made->setXYLossDescriptor(loss_descriptor(d.xy_loss_descriptor));
  made->setWHLossDescriptor(loss_descriptor(d.wh_loss_descriptor));
  made->setConfidenceLossDescriptor(loss_descriptor(d.confidence_loss_descriptor));
  made->setClassesLossDescriptor(loss_descriptor(d.classes_loss_descriptor));
  made->setReduceAcrossBatch(d.reduce_across_batch);
  made->setRescore(d.rescore);
  made->setScaleXY(d.scale_xy);
  made->setScaleWH(d.scale_wh);
  made->setScaleNoObject(d.scale_no_object);
  made->setScaleObject(d.scale_object);
  made->setScaleClass(d.scale_class);
  made->setMinIOUForObjectPresence(d.min_iou_for_object_presence);
  made->setMaxIOUForObjectAbsence(d.max_iou_for_object_absence);
  return made;
}

// Result states are asked for through non-const nodes; the labels placeholder is one of them.
const NNLabelsNode& labels_of(const NNFilterNode& node) { return *const_cast<NNFilterNode&>(node).labels_placeholder(); }

Owned<MPS::NNFilterNode> loss(Lowering& l, const NNFilterNode& n) {
  auto* lowered = MPS::CNNLossNode::alloc()->init(l.source(n), loss_descriptor(as<CNNLossNode>(n).loss_descriptor()));
  l.set_labels(labels_of(n), lowered->inputLabels());
  return filter(lowered);
}
Owned<MPS::NNFilterNode> yolo_loss(Lowering& l, const NNFilterNode& n) {
  auto* lowered = MPS::CNNYOLOLossNode::alloc()->init(l.source(n), yolo_descriptor(as<CNNYOLOLossNode>(n).loss_descriptor()));
  l.set_labels(labels_of(n), lowered->inputLabels());
  return filter(lowered);
}

Owned<MPS::NNFilterNode> forward_loss(Lowering& l, const NNFilterNode& n) {
  const auto& node = as<NNForwardLossNode>(n);
  auto* lowered = MPS::NNForwardLossNode::alloc()->init(l.sources(node), loss_descriptor(node.loss_descriptor()));
  if (node.property_callback) lowered->setPropertyCallBack(make_callback_object(node.property_callback, l.errors()).get());
  return filter(lowered);
}
Owned<MPS::NNFilterNode> loss_gradient(Lowering& l, const NNFilterNode& n) {
  const auto& node = as<NNLossGradientNode>(n);
  auto* lowered = MPS::NNLossGradientNode::alloc()->init(l.sources(node), l.state(node), loss_descriptor(node.loss_descriptor()), node.is_labels_gradient_filter());
  if (node.property_callback) lowered->setPropertyCallBack(make_callback_object(node.property_callback, l.errors()).get());
  return filter(lowered);
}

Owned<MPS::NNFilterNode> initial_gradient(Lowering& l, const NNFilterNode& n) { return filter(MPS::NNInitialGradientNode::alloc()->init(l.source(n))); }

}  // namespace

LoweredClasses loss_classes() {
  return {
      {"MPSCNNLossNode", loss},
      {"MPSCNNYOLOLossNode", yolo_loss},
      {"MPSNNForwardLossNode", forward_loss},
      {"MPSNNLossGradientNode", loss_gradient},
      {"MPSNNInitialGradientNode", initial_gradient},
  };
}

}  // namespace mpsnn::metal
