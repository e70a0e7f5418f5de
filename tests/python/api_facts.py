# SPDX-License-Identifier: Apache-2.0
"""Apple's node API from tools/mps_api.json, in this product's names, and arguments with which every initializer can be called."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import mpsnn
import numpy as np

FACTS = json.loads((Path(__file__).resolve().parents[2] / "tools" / "mps_api.json").read_text())
HEADER = "MPSNNGraphNodes.h"
CLASSES = {c["name"]: c for c in FACTS["classes"] if c["header"] == HEADER}
PROTOCOLS = {p["name"]: p for p in FACTS["protocols"]}
ENUMS = {e["name"]: e for e in FACTS["enums"]}
STRUCTS = {s["name"]: s for s in FACTS["structs"]}

# Apple declares initializers on these too, but no operation: MPS_SEMANTICS 4.1 calls them abstract.
ABSTRACT = {
    "MPSNNFilterNode",
    "MPSNNGradientFilterNode",
    "MPSCNNNeuronNode",
    "MPSNNUnaryReductionNode",
    "MPSCNNPoolingNode",
    "MPSCNNNormalizationNode",
    "MPSNNScaleNode",
    "MPSNNBinaryArithmeticNode",
    "MPSCNNPoolingGradientNode",
    "MPSNNArithmeticGradientNode",
}


# --- names


def snake(name):
    """camelCase as Python people write it: numberOfUInt8 is number_of_uint8, minimumIOUForObject minimum_iou_for_object."""
    name = re.sub(r"UInt(\d+)", r"Uint\1", name)
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def parts(selector):
    return selector.rstrip(":").split(":") if selector.endswith(":") else []


def parameter_names(selector):
    """DESIGN 2: the selector's parts in snake_case, initWith dropped."""
    first, *rest = parts(selector)
    return [snake(re.sub(r"^(init|node)With", "", first)), *map(snake, rest)]


def method_name(selector):
    """DESIGN 2: the words before With; all words where there is no With."""
    return snake(re.split(r"With(?=[A-Z])", selector.split(":")[0])[0])


def ancestors(name):
    """The class and Apple's superclasses of it, without NSObject."""
    while name != "NSObject":
        yield name
        name = CLASSES[name]["superclass"]


def subclasses(name):
    return [other for other in CLASSES if name in ancestors(other)]


# --- initializers and properties


@dataclass(frozen=True)
class Parameter:
    name: str
    type: str
    nullable: bool


def own_initializers(name):
    return {
        m["selector"]: m
        for m in CLASSES[name]["methods"]
        if m["kind"] == "instance" and m["selector"].startswith("init")
    }


def initializers(name):
    """{selector: [Parameter]}: the class's own and those that Apple publishes again for it."""
    found = dict(own_initializers(name))
    for selector in CLASSES[name].get("inherited_constructors", []):
        if selector.startswith("-init"):
            found[selector[1:]] = next(
                own_initializers(a)[selector[1:]] for a in ancestors(name) if selector[1:] in own_initializers(a)
            )
    return {
        selector: [
            Parameter(n, a["objc_type"], a["nullable"])
            for n, a in zip(parameter_names(selector), method["args"], strict=True)
        ]
        for selector, method in found.items()
    }


def properties(name):
    """{Apple's name: fact} of the class, its superclasses and the protocols of this header that they adopt."""
    found = {}
    for ancestor in ancestors(name):
        adopted = [PROTOCOLS[p] for p in CLASSES[ancestor]["protocols"] if p in PROTOCOLS]
        for fact in [p for owner in (CLASSES[ancestor], *adopted) for p in owner["properties"]]:
            found.setdefault(fact["name"], fact)
    return found


def pointed(objc_type):
    """The class or protocol that a type names: MPSNNImageNode of `MPSNNImageNode *`, MPSNNPadding of `id<MPSNNPadding>`."""
    return re.sub(r"^(id|NSObject)<(\w+)>.*$", r"\2", objc_type).rstrip("* ")


# --- nodes and arguments


def image(name="image"):
    return mpsnn.MPSNNImageNode(name)


class BinaryWeights(mpsnn.MPSCNNConvolutionDataSource):
    """Four channels in the bits of one word per tap."""

    def descriptor(self):
        return mpsnn.MPSCNNConvolutionDescriptor(3, 3, 4, 4)

    def data_type(self):
        return mpsnn.MPSDataType.UInt32

    def weights(self):
        return np.zeros((4, 3, 3, 1), np.uint32)


class Callback:
    """What the callback protocols of this header ask for, by the naming rule."""

    def scalar_weight_for_source_image(self, source_image, destination_image):
        return 0.5

    def alpha_for_source_image(self, source_image, destination_image):
        return 0.5

    def transform_for_source_image(self, source_image, handle):
        return mpsnn.MPSScaleTransform(1, 1, 0, 0)


# Where the gradient class's name without "Gradient" is no class that can be made.
FORWARD = {
    "MPSNNLossGradientNode": "MPSNNForwardLossNode",
    "MPSCNNNeuronGradientNode": "MPSCNNNeuronTanHNode",
    "MPSCNNPoolingGradientNode": "MPSCNNPoolingMaxNode",
    "MPSNNArithmeticGradientNode": "MPSNNAdditionNode",
}


def forward_node(gradient_class):
    """A node that gradient nodes of the class differentiate, or None for other classes."""
    name = FORWARD.get(gradient_class, gradient_class.replace("Gradient", ""))
    is_gradient = "MPSNNGradientFilterNode" in ancestors(gradient_class)
    return make(name) if is_gradient else None


def loss_descriptor():
    return mpsnn.MPSCNNLossDescriptor(mpsnn.MPSCNNLossType.Huber, mpsnn.MPSCNNReductionType.Sum)


def yolo_descriptor():
    losses = [mpsnn.MPSCNNLossType.MeanSquaredError] * 4
    return mpsnn.MPSCNNYOLOLossDescriptor(*losses, mpsnn.MPSCNNReductionType.Sum, [1, 2], 1)


OBJECTS = {
    "MPSNNImageNode *": image,
    "id<MPSCNNConvolutionDataSource>": lambda: mpsnn.ConvolutionWeights(mpsnn.MPSCNNConvolutionDescriptor(3, 3, 4, 4)),
    "id<MPSCNNBatchNormalizationDataSource>": lambda: mpsnn.BatchNormalizationWeights(4),
    "id<MPSCNNInstanceNormalizationDataSource>": lambda: mpsnn.InstanceNormalizationWeights(4),
    "id<MPSCNNGroupNormalizationDataSource>": lambda: mpsnn.GroupNormalizationWeights(4, 2),
    "id<MPSNNPadding>": lambda: mpsnn.MPSNNDefaultPadding(mpsnn.MPSNNPaddingMethod.SizeValidOnly),
    "id<MPSImageTransformProvider>": Callback,
    "NSObject<MPSHandle> *": lambda: "tag",
    "MPSCNNLossDescriptor *": loss_descriptor,
    "MPSCNNYOLOLossDescriptor *": yolo_descriptor,
    "MPSNNNeuronDescriptor *": lambda: mpsnn.MPSNNNeuronDescriptor(mpsnn.MPSCNNNeuronType.TanH, 1.0, 1.0),
    "const float *": lambda: np.array([1, 2, 3, 4], np.float32),
    "NSData *": lambda: np.array([1, 2, 3, 4], np.float32),
    "MPSImageCoordinate": lambda: mpsnn.MPSImageCoordinate(1, 2, 3),
    "BOOL": lambda: True,
    "MPSCNNBinaryConvolutionType": lambda: mpsnn.MPSCNNBinaryConvolutionType.XNOR,
    "MPSCNNBinaryConvolutionFlags": lambda: mpsnn.MPSCNNBinaryConvolutionFlags.UseBetaScaling,
    "MPSImageEdgeMode": lambda: mpsnn.MPSImageEdgeMode.Mirror,
}


def argument(class_name, parameter, index, forward):
    """A value that this parameter takes. Numbers differ from one parameter to the next, so that none can stand for another."""
    name, kind = parameter.name, parameter.type
    if class_name.startswith("MPSCNNBinary") and name == "weights":
        return BinaryWeights()
    if kind.endswith("StateNode *"):
        return forward.result_state if forward else make("MPSCNNConvolutionNode").convolution_gradient_state
    if name == "source_image" and forward:
        return forward.sources[0]
    if kind == "MPSNNFilterNode *":
        return forward
    if kind == "NSArray<MPSNNImageNode *> *":
        count = (
            1
            if name == "gradient_images"
            else {"MPSNNLossGradientNode": 4, "MPSNNForwardLossNode": 3}.get(class_name, 2)
        )
        return [image(f"source {i}") for i in range(count)]
    if kind == "MTLSize":
        return (1, 0, 1) if name == "mask_stride_in_pixels" else (5, 6, 1)
    if kind == "NSUInteger":
        return 2 + index
    if kind in ("float", "double"):
        return 0.75 if name == "keep_probability" else 2.0 + index / 4
    return OBJECTS[kind]()


def arguments(class_name, selector):
    """{parameter name: value} for an initializer."""
    forward = forward_node(class_name)
    return {p.name: argument(class_name, p, i, forward) for i, p in enumerate(initializers(class_name)[selector])}


def make(class_name):
    """A node of a class that is not abstract, by Apple's first initializer."""
    selector = next(iter(initializers(class_name)))
    return getattr(mpsnn, class_name)(**arguments(class_name, selector))


def instance(class_name):
    """An object of the class: a node, a state of a node that makes one, or for abstract classes one of a subclass."""
    if class_name == "MPSNNLabelsNode":
        return make("MPSCNNLossNode").input_labels
    if "MPSNNStateNode" in ancestors(class_name):
        makers = [n for n in CLASSES if "MPSNNFilterNode" in ancestors(n) and n not in ABSTRACT]
        states = (make(n).result_state for n in makers)
        return next((s for s in states if isinstance(s, getattr(mpsnn, class_name))), None)
    return make(next(n for n in [class_name, *subclasses(class_name)] if n not in ABSTRACT))
