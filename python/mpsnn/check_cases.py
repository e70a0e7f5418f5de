# SPDX-License-Identifier: Apache-2.0
"""What `mpsnn check` runs: for each node class with a gradient, small graphs over odd geometry; for each class without one, a node that
must say so. A class of the module that is in none of the lists here is a failure.

A case's geometry is drawn from (class name, seed, number). The first ones of windowed classes are the corners of WINDOWS, so that a few
cases already meet them; later ones are random.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np

import mpsnn
from mpsnn.checking import Draw, GradientReport, check_gradients

Method, Edge = mpsnn.MPSNNPaddingMethod, mpsnn.MPSImageEdgeMode
Generator = np.random.Generator


@dataclass
class Case:
    """A node to differentiate. `geometry`: what another framework needs to do the same; None where nothing else has the operation."""

    node_class: str
    about: str
    node: Any
    shapes: list[tuple[int, ...]]
    draw: list[Draw | None] | None = None
    labels: Draw | None = None
    geometry: SimpleNamespace | None = None
    keep: Any = field(default=None, repr=False)

    def check(self, seed: int = 0, **options: Any) -> GradientReport:
        return check_gradients(
            self.node, source_shapes=self.shapes, draw=self.draw, labels=self.labels, seed=seed, **options
        )


Maker = Callable[[str, Generator, int], Case]
MAKERS: dict[str, Maker] = {}


def _makes(*names: str) -> Callable[[Maker], Maker]:
    def register(maker: Maker) -> Maker:
        MAKERS.update(dict.fromkeys(names, maker))
        return maker

    return register


def cases_of(node_class: str, count: int, seed: int = 0) -> Iterable[Case]:
    """The first `count` cases of a class; number k is the same whatever the count."""
    for number in range(count):
        yield MAKERS[node_class](
            node_class, np.random.default_rng([zlib.crc32(node_class.encode()), seed, number]), number
        )


def _inputs(count: int) -> list[Any]:
    return [mpsnn.MPSNNImageNode(f"input {i}") for i in range(count)]


def _size(rng: Generator, largest: int = 6) -> tuple[int, int, int]:
    """images, height, width"""
    return int(rng.integers(1, 4)), int(rng.integers(1, largest + 1)), int(rng.integers(1, largest + 1))


def _uniform(low: float, high: float) -> Draw:
    return lambda rng, shape: rng.uniform(low, high, shape)


# --- windows


@dataclass(frozen=True)
class Window:
    """Pairs are (height, width)."""

    size: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    method: Any = Method.SizeSame
    explicit: tuple[int, int, int, int] | None = None  # top, bottom, left, right

    def policy(self) -> Any:
        if self.explicit:
            top, bottom, left, right = self.explicit
            return mpsnn.ExplicitPadding(left=left, right=right, top=top, bottom=bottom)
        return mpsnn.MPSNNDefaultPadding(self.method)

    def text(self) -> str:
        padding = f"explicit {self.explicit}" if self.explicit else str(Method(self.method))
        sizes = zip(
            ("size", "kernel", "stride", "dilation"), (self.size, self.kernel, self.stride, self.dilation), strict=True
        )
        return ", ".join(f"{name} {pair[0]} x {pair[1]}" for name, pair in sizes) + f", {padding}"


WINDOWS = [
    Window((5, 7), (3, 2), (2, 1)),
    Window((6, 5), (2, 4), (1, 3), method=Method.SizeSame | Method.AlignTopLeft | Method.AddRemainderToBottomRight),
    Window((7, 6), (3, 2), (4, 3), method=Method.SizeValidOnly),
    Window((1, 1), (1, 1)),
    Window((2, 3), (5, 4), method=Method.SizeSame | Method.AddRemainderToTopRight),
    Window((4, 5), (3, 3), (2, 2), (2, 3), method=Method.SizeFull | Method.AlignBottomRight),
    Window((5, 4), (3, 2), (2, 3), explicit=(2, 0, 1, 3)),
    Window((1, 6), (2, 3), (1, 2), (1, 2), method=Method.SizeSame | Method.AddRemainderToBottomLeft),
]
_ALIGN = [Method.AlignCentered, Method.AlignTopLeft, Method.AlignBottomRight]
_REMAINDER = [
    Method.AddRemainderToTopLeft,
    Method.AddRemainderToTopRight,
    Method.AddRemainderToBottomLeft,
    Method.AddRemainderToBottomRight,
]


def _window(rng: Generator, number: int, dilates: bool) -> Window:
    if number < len(WINDOWS):
        w = WINDOWS[number]
        return w if dilates else Window(w.size, w.kernel, w.stride, (1, 1), w.method, w.explicit)
    kernel, stride, size = ([int(n) for n in rng.integers(1, high, 2)] for high in (5, 4, 8))
    dilation = [int(n) for n in rng.integers(1, 4 if dilates else 2, 2)]
    style = [Method.SizeValidOnly, Method.SizeSame, Method.SizeFull][rng.integers(3)]
    if style == Method.SizeValidOnly:
        size = [max(s, (k - 1) * d + 1) for s, k, d in zip(size, kernel, dilation, strict=True)]
    method = style | _ALIGN[rng.integers(3)] | _REMAINDER[rng.integers(4)]
    return Window(tuple(size), tuple(kernel), tuple(stride), tuple(dilation), method)  # type: ignore[arg-type]


# --- convolution


def _weights(
    rng: Generator, kernel: tuple[int, ...], inputs: int, outputs: int, kind: Any = None, **properties: Any
) -> Any:
    descriptor = (kind or mpsnn.MPSCNNConvolutionDescriptor)(kernel[1], kernel[0], inputs, outputs, **properties)
    weights = mpsnn.ConvolutionWeights(descriptor, seed=int(rng.integers(1 << 30)), label="weights")
    weights.set_values(biases=rng.normal(size=outputs).astype(np.float32))
    return weights


@_makes("MPSCNNConvolutionNode")
def _convolution(name: str, rng: Generator, number: int) -> Case:
    """Without fused neurons and channel multipliers: MPS defines no gradient for these."""
    window = _window(rng, number, dilates=True)
    groups = int(rng.choice([1, 1, 2, 3]))
    inputs, outputs = (groups * int(rng.integers(1, 5)) for _ in range(2))
    kind, properties = None, {"groups": groups}
    if number % 4 == 3:
        kind, outputs, properties = mpsnn.MPSCNNDepthWiseConvolutionDescriptor, inputs, {}
    weights = _weights(
        rng, window.kernel, inputs, outputs, kind, stride_in_pixels_y=window.stride[0], stride_in_pixels_x=window.stride[1],
        dilation_rate_y=window.dilation[0], dilation_rate_x=window.dilation[1], **properties,
    )  # fmt: skip
    node = mpsnn.MPSCNNConvolutionNode(_inputs(1)[0], weights)
    node.padding_policy = window.policy()
    groups = inputs if kind else groups
    geometry = SimpleNamespace(window=window, groups=groups, source=weights)
    about = f"{window.text()}, {inputs} to {outputs} channels, {groups} groups"
    return Case(name, about, node, [(int(rng.integers(1, 3)), *window.size, inputs)], geometry=geometry)


@_makes("MPSCNNFullyConnectedNode")
def _fully_connected(name: str, rng: Generator, number: int) -> Case:
    images, height, width = _size(rng, 4)
    inputs, outputs = (int(n) for n in rng.integers(1, 6, 2))
    weights = _weights(rng, (height, width), inputs, outputs)
    node = mpsnn.MPSCNNFullyConnectedNode(_inputs(1)[0], weights)
    return Case(
        name,
        f"{height} x {width} x {inputs} to {outputs}",
        node,
        [(images, height, width, inputs)],
        geometry=SimpleNamespace(source=weights),
    )


@_makes("MPSCNNConvolutionTransposeNode")
def _transpose(name: str, rng: Generator, number: int) -> Case:
    kernel, stride = (tuple(int(n) for n in rng.integers(1, high, 2)) for high in (5, 4))
    size = [int(n) for n in rng.integers(1, 5, 2)]
    style = [Method.SizeSame, Method.SizeFull, Method.SizeValidOnly][number % 3]
    if style == Method.SizeValidOnly:
        size = [max(n, -(-(k - 1) // s) + 1) for n, k, s in zip(size, kernel, stride, strict=True)]
    method = style | _ALIGN[rng.integers(3)] | _REMAINDER[rng.integers(4)]
    groups = 1 + number % 2
    inputs, outputs = (groups * int(rng.integers(1, 4)) for _ in range(2))
    weights = _weights(
        rng, kernel, inputs, outputs, stride_in_pixels_y=stride[0], stride_in_pixels_x=stride[1], groups=groups
    )
    node = mpsnn.MPSCNNConvolutionTransposeNode(_inputs(1)[0], weights)
    node.padding_policy = mpsnn.MPSNNDefaultPadding(method)
    window = Window((size[0], size[1]), kernel, stride, method=method)  # type: ignore[arg-type]
    geometry = SimpleNamespace(window=window, groups=groups, source=weights)
    return Case(name, f"{window.text()}, {groups} groups", node, [(2, *size, inputs)], geometry=geometry)


# --- pooling


@_makes("MPSCNNPoolingMaxNode", "MPSCNNPoolingAverageNode", "MPSCNNPoolingL2NormNode", "MPSCNNDilatedPoolingMaxNode")
def _pooling(name: str, rng: Generator, number: int) -> Case:
    dilates = "Dilated" in name
    window = _window(rng, number, dilates)
    arguments = [*window.kernel[::-1], *window.stride[::-1], *(window.dilation[::-1] if dilates else [])]
    node = getattr(mpsnn, name)(_inputs(1)[0], *arguments)
    node.padding_policy = window.policy()
    shape = (int(rng.integers(1, 3)), *window.size, int(rng.integers(1, 6)))
    return Case(name, window.text(), node, [shape], geometry=SimpleNamespace(window=window))


# --- neurons: arguments, and numbers where the function is defined

_NEURONS: dict[str, tuple[list[tuple[float, ...]], Draw | None]] = {
    "Absolute": ([()], None),
    "ELU": ([(), (0.5,)], None),
    "ReLU": ([(), (0.25,)], None),
    "ReLUN": ([(), (0.0, 1.0), (0.25, 0.5)], None),
    "Linear": ([(), (-1.5, 0.25)], None),
    "Sigmoid": ([()], None),
    "HardSigmoid": ([(), (0.5, 0.25)], None),
    "SoftPlus": ([(), (0.5, 2.0)], None),
    "SoftSign": ([()], None),
    "TanH": ([(), (1.5, 0.5)], None),
    "Power": ([(), (0.5, 1.0, 2.5), (1.0, 0.0, -1.0)], _uniform(0.25, 2)),
    "Exponential": ([(), (0.5, 0.25, 2.0)], None),
    "Logarithm": ([(), (0.5, 1.0, 2.0)], _uniform(0.25, 2)),
    "GeLU": ([()], None),
    "PReLU": ([()], None),
}


@_makes(*(f"MPSCNNNeuron{name}Node" for name in _NEURONS))
def _neuron(name: str, rng: Generator, number: int) -> Case:
    choices, draw = _NEURONS[name[len("MPSCNNNeuron") : -len("Node")]]
    shape = (*_size(rng), int(rng.integers(1, 6)))
    values: Any = choices[number % len(choices)]
    arguments = [rng.uniform(-0.5, 0.5, shape[3]).astype(np.float32)] if "PReLU" in name else values
    node = getattr(mpsnn, name)(_inputs(1)[0], *arguments)
    geometry = SimpleNamespace(
        a=getattr(node, "a", 0), b=getattr(node, "b", 0), c=getattr(node, "c", 0), slopes=arguments
    )
    return Case(name, f"parameters {values}", node, [shape], [draw], geometry=geometry)


# --- arithmetic, concatenation


@_makes("MPSNNAdditionNode", "MPSNNSubtractionNode", "MPSNNMultiplicationNode")
def _arithmetic(name: str, rng: Generator, number: int) -> Case:
    shape = (*_size(rng, 4), int(rng.integers(1, 6)))
    node = getattr(mpsnn, name)(*_inputs(2))
    node.primary_scale, node.secondary_scale, node.bias = 0.75, -1.25, 0.5
    strides = (
        [1, 1, 1] if number % 2 == 0 else [int(n) for n in rng.integers(0, 2, 3)]
    )  # y, x, channels of the secondary source
    node.secondary_stride_in_pixels_y, node.secondary_stride_in_pixels_x, node.secondary_stride_in_feature_channels = (
        strides
    )
    clamps = number % 3 == 2
    if clamps:
        node.minimum_value, node.maximum_value = -1.0, 1.25
    second = (shape[0], *(n if s else 1 for n, s in zip(shape[1:], strides, strict=True)))
    about = f"secondary strides {strides}{', clamped' if clamps else ''}"
    return Case(name, about, node, [shape, second], geometry=SimpleNamespace(clamps=clamps))


@_makes("MPSNNConcatenationNode")
def _concatenation(name: str, rng: Generator, number: int) -> Case:
    channels = [int(n) for n in rng.integers(1, 10, 2 + number % 3)]
    size = _size(rng)
    return Case(
        name,
        f"channels {channels}",
        mpsnn.MPSNNConcatenationNode(_inputs(len(channels))),
        [(*size, c) for c in channels],
        geometry=SimpleNamespace(),
    )


# --- normalization


def _affine(rng: Generator, weights: Any, channels: int) -> Any:
    weights.set_values(
        gamma=rng.uniform(0.5, 1.5, channels).astype(np.float32), beta=rng.normal(size=channels).astype(np.float32)
    )
    return weights


@_makes("MPSCNNBatchNormalizationNode", "MPSCNNInstanceNormalizationNode", "MPSCNNGroupNormalizationNode")
def _normalization(name: str, rng: Generator, number: int) -> Case:
    """At least six numbers per statistic: of two, the gradient is nothing but cancellation."""
    groups = int(rng.integers(1, 4)) if "Group" in name else 1
    channels = groups * int(rng.integers(1, 4))
    shape = (int(rng.integers(1, 4)), int(rng.integers(2, 5)), int(rng.integers(3, 6)), channels)
    options: dict[str, Any] = {"label": "parameters", "epsilon": [1e-5, 1e-2][number % 2]}
    flags: Any = None
    source: Any
    if "Batch" in name:
        source = mpsnn.BatchNormalizationWeights(channels, **options)
        source.set_values(
            mean=rng.normal(size=channels).astype(np.float32), variance=rng.uniform(0.5, 2, channels).astype(np.float32)
        )
    elif "Group" in name:
        source = mpsnn.GroupNormalizationWeights(channels, groups, **options)
    else:
        source = mpsnn.InstanceNormalizationWeights(channels, **options)
    node = getattr(mpsnn, name)(_inputs(1)[0], _affine(rng, source, channels))
    if "Batch" in name and number % 3 == 2:
        flags = mpsnn.MPSCNNBatchNormalizationFlags.CalculateStatisticsNever
        node.flags = flags
    geometry = SimpleNamespace(
        source=source, groups=groups, epsilon=float(np.float32(options["epsilon"])), fixed=flags is not None
    )
    return Case(
        name,
        f"{channels} channels, {groups} groups{', fixed statistics' if flags else ''}",
        node,
        [shape],
        geometry=geometry,
    )


@_makes("MPSCNNSpatialNormalizationNode", "MPSCNNLocalContrastNormalizationNode", "MPSCNNCrossChannelNormalizationNode")
def _window_normalization(name: str, rng: Generator, number: int) -> Case:
    size = 1 + (number + int(rng.integers(0, 2))) % 5
    node = getattr(mpsnn, name)(_inputs(1)[0], size)
    node.alpha, node.beta, node.delta = 0.75, [0.5, 0.75, 2.0][number % 3], 1.0
    if "Contrast" in name:
        node.p0, node.pm, node.ps = 0.75, 0.25, 1.5
    geometry = SimpleNamespace(size=size, node=node) if "CrossChannel" in name else None
    return Case(name, f"kernel size {size}", node, [(*_size(rng), int(rng.integers(1, 9)))], geometry=geometry)


# --- soft-max, dropout


@_makes("MPSCNNSoftMaxNode", "MPSCNNLogSoftMaxNode")
def _softmax(name: str, rng: Generator, number: int) -> Case:
    shape = (*_size(rng, 4), [1, 2, 5, 10, 17][number % 5])
    return Case(name, f"{shape[3]} channels", getattr(mpsnn, name)(_inputs(1)[0]), [shape], geometry=SimpleNamespace())


@_makes("MPSCNNDropoutNode")
def _dropout(name: str, rng: Generator, number: int) -> Case:
    stride: Any = tuple(int(n) for n in rng.integers(0, 2, 3)) if number else (1, 1, 1)
    keep = [0.5, 0.75, 0.25][number % 3]
    node = mpsnn.MPSCNNDropoutNode(_inputs(1)[0], keep, int(rng.integers(1 << 30)), stride)
    return Case(name, f"kept with {keep}, mask strides {stride}", node, [(*_size(rng), int(rng.integers(1, 6)))])


# --- losses

_LOSSES: dict[str, tuple[Draw | None, Draw | None]] = {  # predictions and labels; None: normal numbers, one-hot labels
    "MeanAbsoluteError": (None, lambda rng, shape: rng.normal(size=shape)),
    "MeanSquaredError": (None, lambda rng, shape: rng.normal(size=shape)),
    "SoftMaxCrossEntropy": (None, lambda rng, shape: np.eye(shape[3])[rng.integers(0, shape[3], shape[:3])]),
    "SigmoidCrossEntropy": (None, _uniform(0.125, 0.875)),
    "CategoricalCrossEntropy": (_uniform(0.125, 0.875), _uniform(0, 1)),
    "Hinge": (None, lambda rng, shape: rng.integers(0, 2, shape)),
    "Huber": (None, lambda rng, shape: rng.normal(size=shape)),
    "CosineDistance": (None, lambda rng, shape: rng.normal(size=shape)),
    "Log": (_uniform(0.125, 0.875), _uniform(0, 1)),
    "KullbackLeiblerDivergence": (None, _uniform(0.125, 1)),
}


def _loss(rng: Generator, number: int) -> tuple[Any, str, str]:
    kind = list(_LOSSES)[number % len(_LOSSES)]
    reductions = ["Sum", "Mean", "SumByNonZeroWeights", "None_"]
    reduction = "Sum" if kind == "CosineDistance" else reductions[(number + int(rng.integers(0, 4))) % 4]
    types = mpsnn.MPSCNNLossType[kind], mpsnn.MPSCNNReductionType[reduction]
    return mpsnn.MPSCNNLossDescriptor(*types, weight=0.5, delta=0.75, epsilon=1e-3), kind, reduction


@_makes("MPSCNNLossNode")
def _loss_node(name: str, rng: Generator, number: int) -> Case:
    descriptor, kind, reduction = _loss(rng, number)
    shape = (*_size(rng, 3), int(rng.integers(2, 6)))
    node = mpsnn.MPSCNNLossNode(_inputs(1)[0], descriptor)
    draws = _LOSSES[kind]
    return Case(
        name, f"{kind}, {reduction}", node, [shape], [draws[0]], draws[1], SimpleNamespace(kind=kind, sums=True)
    )


@_makes("MPSNNForwardLossNode")
def _forward_loss(name: str, rng: Generator, number: int) -> Case:
    """The gradient takes no notice of the reduction (OQ-32), so that only sums and single elements are its integral. Soft-max cross
    entropy's is E * (softmax - t), which is the derivative where E is the same for all channels of a pixel: a sum."""
    descriptor, kind, reduction = _loss(rng, number)
    if reduction not in ("Sum", "None_") or kind == "SoftMaxCrossEntropy":
        reduction = "Sum"
        descriptor.reduction_type = mpsnn.MPSCNNReductionType.Sum
    shape = (*_size(rng, 3), int(rng.integers(2, 6)))
    node = mpsnn.MPSNNForwardLossNode(_inputs(2), descriptor)
    geometry = SimpleNamespace(kind=kind, sums=reduction == "Sum")
    return Case(name, f"{kind}, {reduction}", node, [shape, shape], list(_LOSSES[kind]), geometry=geometry)


@_makes("MPSNNInitialGradientNode")
def _initial(name: str, rng: Generator, number: int) -> Case:
    tanh = mpsnn.MPSCNNNeuronTanHNode(_inputs(1)[0], 1.0, 1.0)
    return Case(name, "of tanh", mpsnn.MPSNNInitialGradientNode(tanh.result_image), [(*_size(rng), 3)], keep=tanh)


@_makes("MPSCNNYOLOLossNode")
def _yolo(name: str, rng: Generator, number: int) -> Case:
    """Without rescore: with it, the overlap counts as a constant though it is none (MPS_SEMANTICS 14.6)."""
    types, classes, boxes = (
        mpsnn.MPSCNNLossType,
        1 + number % 3,
        np.array([[1.0, 2.0], [2.5, 1.5]], np.float32)[: 1 + number % 2],
    )
    reduction = mpsnn.MPSCNNReductionType.Sum
    kinds = types.MeanSquaredError, types.Huber, types.SigmoidCrossEntropy, types.SoftMaxCrossEntropy
    descriptor = mpsnn.MPSCNNYOLOLossDescriptor(*kinds, reduction, boxes.ravel().tolist(), len(boxes))
    descriptor.rescore = False

    def labels(rng: Generator, shape: tuple[int, ...]) -> np.ndarray:
        t = np.zeros((*shape[:3], len(boxes), 5 + classes))
        t[..., :2], t[..., 2:4] = rng.uniform(0.1, 0.9, t[..., :2].shape), rng.uniform(0.5, 3, t[..., :2].shape)
        t[..., 4] = rng.integers(0, 2, t.shape[:4])
        t[..., 5:] = np.eye(classes)[rng.integers(0, classes, t.shape[:4])]
        return t.reshape(shape)

    shape = (*_size(rng, 3), (5 + classes) * len(boxes))
    return Case(
        name,
        f"{len(boxes)} anchors, {classes} classes",
        mpsnn.MPSCNNYOLOLossNode(_inputs(1)[0], descriptor),
        [shape],
        labels=labels,
    )


# --- resampling, shapes


@_makes("MPSCNNUpsamplingNearestNode", "MPSCNNUpsamplingBilinearNode")
def _upsampling(name: str, rng: Generator, number: int) -> Case:
    x, y = (int(n) for n in rng.integers(1, 4, 2))
    aligned = [bool(number % 2)] if "Bilinear" in name else []
    node = getattr(mpsnn, name)(_inputs(1)[0], x, y, *aligned)
    about = f"factors {y} x {x}{', corners aligned' if any(aligned) else ''}"
    return Case(
        name,
        about,
        node,
        [(*_size(rng), int(rng.integers(1, 6)))],
        geometry=SimpleNamespace(factors=(y, x), aligned=any(aligned)),
    )


@_makes("MPSNNReshapeNode")
def _reshape(name: str, rng: Generator, number: int) -> Case:
    images, a, b = _size(rng)
    shape = [(images, a, b, 2), (images, a, 4, b), (images, 1, a, b)][number % 3]
    height, width, channels = [(b, 2, a), (1, 1, 4 * a * b), (b, a, 1)][number % 3]
    return Case(
        name,
        f"{shape[1:]} to {(height, width, channels)}",
        mpsnn.MPSNNReshapeNode(_inputs(1)[0], width, height, channels),
        [shape],
        geometry=SimpleNamespace(size=(height, width, channels)),
    )


@_makes("MPSNNPadNode")
def _pad(name: str, rng: Generator, number: int) -> Case:
    edge = [Edge.Zero, Edge.Constant, Edge.Clamp, Edge.Mirror, Edge.MirrorWithEdge][number % 5]
    before, after = ([int(n) for n in rng.integers(0, 4, 3)] for _ in range(2))
    node = mpsnn.MPSNNPadNode(_inputs(1)[0], mpsnn.MPSImageCoordinate(*before), mpsnn.MPSImageCoordinate(*after), edge)
    geometry = SimpleNamespace(edge=edge, before=before, after=after)
    return Case(
        name,
        f"{edge.name}, (x, y, channel) before {before}, after {after}",
        node,
        [(*_size(rng, 4), int(rng.integers(1, 5)))],
        geometry=geometry,
    )


@_makes("MPSNNReductionSpatialMeanNode")
def _spatial_mean(name: str, rng: Generator, number: int) -> Case:
    node = mpsnn.MPSNNReductionSpatialMeanNode(_inputs(1)[0])
    shape = (int(rng.integers(1, 4)), int(rng.integers(3, 6)), int(rng.integers(3, 6)), int(rng.integers(1, 6)))
    clip = None
    if number % 2:
        clip = (1, 0, 2, 3)
        node.clip_rect_source = mpsnn.MTLRegion(*clip)
    return Case(
        name, f"clip rectangle (x, y, width, height) {clip}", node, [shape], geometry=SimpleNamespace(clip=clip)
    )


@_makes("MPSNNGramMatrixCalculationNode")
def _gram(name: str, rng: Generator, number: int) -> Case:
    alpha = [1.0, 0.125][number % 2]
    return Case(
        name,
        f"alpha {alpha}",
        mpsnn.MPSNNGramMatrixCalculationNode(_inputs(1)[0], alpha),
        [(*_size(rng), int(rng.integers(1, 6)))],
        geometry=SimpleNamespace(alpha=alpha),
    )


# --- classes without a gradient


def _binary(name: str) -> Any:
    class Bits(mpsnn.MPSCNNConvolutionDataSource):  # type: ignore[misc]
        def descriptor(self) -> Any:
            return mpsnn.MPSCNNConvolutionDescriptor(1, 1, 32, 4)

        def data_type(self) -> Any:
            return mpsnn.MPSDataType.UInt32

        def weights(self) -> Any:
            return np.zeros((4, 1, 1, 1), np.uint32)

    kinds = mpsnn.MPSCNNBinaryConvolutionType.XNOR, mpsnn.MPSCNNBinaryConvolutionFlags.None_
    return getattr(mpsnn, name)(_inputs(1)[0], Bits(), 1.0, *kinds)


_REDUCTIONS = [
    f"{axis}{what}" for axis in ("Row", "Column", "FeatureChannels") for what in ("Min", "Max", "Mean", "Sum")
]
_REDUCTIONS += ["FeatureChannelsArgumentMin", "FeatureChannelsArgumentMax"]

NO_GRADIENT: dict[str, Callable[[str], Any]] = (
    {f"MPSNN{name}Node": lambda name: getattr(mpsnn, name)(*_inputs(2)) for name in ("Division", "Comparison")}
    | {f"MPSNNReduction{name}Node": lambda name: getattr(mpsnn, name)(_inputs(1)[0]) for name in _REDUCTIONS}
    | {
        f"MPSNN{name}ScaleNode": lambda name: getattr(mpsnn, name)(_inputs(1)[0], (3, 4, 1))
        for name in ("Bilinear", "Lanczos")
    }
    | {f"MPSCNNBinary{name}Node": _binary for name in ("Convolution", "FullyConnected")}
)

#: Bases that cannot be made: their subclasses are checked.
BASES = {
    "MPSNNFilterNode", "MPSNNGradientFilterNode", "MPSCNNPoolingNode", "MPSCNNPoolingGradientNode", "MPSCNNNeuronNode", "MPSNNBinaryArithmeticNode",
    "MPSNNArithmeticGradientNode", "MPSCNNNormalizationNode", "MPSNNUnaryReductionNode", "MPSNNScaleNode",
}  # fmt: skip


def node_classes() -> list[str]:
    """Every filter node class of the module, in alphabetical order."""
    found = {name for name in vars(mpsnn._mpsnn) if isinstance(getattr(mpsnn._mpsnn, name), type)}
    return sorted(name for name in found if issubclass(getattr(mpsnn._mpsnn, name), mpsnn.MPSNNFilterNode))


def gradient_classes() -> list[str]:
    """Those that are gradients themselves: the cases of their forward classes must have used them."""
    return [
        name
        for name in node_classes()
        if issubclass(getattr(mpsnn, name), mpsnn.MPSNNGradientFilterNode) and name not in BASES
    ]


def forward_classes() -> list[str]:
    return [name for name in node_classes() if name not in BASES and name not in gradient_classes()]


def refusal(node_class: str) -> str:
    """What a class without a gradient says when it is asked for one; empty when it says nothing or does not name itself."""
    node = NO_GRADIENT[node_class](node_class)
    texts = []
    for ask in (
        lambda: node.training_graph(mpsnn.MPSNNImageNode("incoming")),
        lambda: node.gradient_filter(mpsnn.MPSNNImageNode("incoming")),
    ):
        try:
            ask()
        except mpsnn.GraphError as error:
            texts.append(str(error))
    return texts[0] if len(texts) == 2 and all(node_class in text for text in texts) else ""
