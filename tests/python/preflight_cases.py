# SPDX-License-Identifier: Apache-2.0
"""For every rule of preflight("metal"): a graph that breaks it and the same graph mended."""

from dataclasses import dataclass
from typing import Any

import mpsnn
import numpy as np
from geometry_cases import EdgePolicy
from graph_cases import ArraySource, loss, weights

Method, Format, Options = mpsnn.MPSNNPaddingMethod, mpsnn.MPSImageFeatureChannelFormat, mpsnn.MPSKernelOptions
Precision = mpsnn.MPSNNConvolutionAccumulatorPrecisionOption
Reduction, Loss, Edge = mpsnn.MPSCNNReductionType, mpsnn.MPSCNNLossType, mpsnn.MPSImageEdgeMode
CULPRIT = "culprit"  # the label of the node that breaks the rule


def image(name="x"):
    return mpsnn.MPSNNImageNode(name)


def make(cls, *arguments, source=None, **properties):
    """A labelled node on one input, with properties set."""
    node = cls(source or image(), *arguments)
    node.label = CULPRIT
    for name, value in properties.items():
        setattr(node, name, value)
    return node


def graph(node, **properties):
    made = mpsnn.MPSNNGraph("cpu", node.result_image)
    for name, value in properties.items():
        setattr(made, name, value)
    return made


def simple(cls, *arguments, **properties):
    return graph(make(cls, *arguments, **properties))


def options(**properties):
    return graph(make(mpsnn.MPSCNNNeuronSigmoidNode), **properties)


def trained(node, source_gradient="g"):
    """The graph of a node's gradient. Data sources and labels name the gradient nodes."""
    ends = node.training_graph(image(source_gradient))
    for end in ends:
        end.label = CULPRIT
    return mpsnn.MPSNNGraph("cpu", [end.result_image for end in ends])


def convolution(cls=mpsnn.MPSCNNConvolutionNode, inputs=4, outputs=4, kernel=3, source=None, **properties):
    """A convolution that its data source names."""
    return cls(image(), source or weights(inputs, outputs, kernel, label=CULPRIT, **properties))


def described(descriptor, *sizes, **properties):
    return convolution(source=mpsnn.ConvolutionWeights(descriptor(*sizes, **properties), label=CULPRIT))


def transposed(source, state=None):
    return mpsnn.MPSCNNConvolutionTransposeNode(image(), state, source)


class TypedSource(ArraySource):
    """Weights of another type, for kernels of another type."""

    def __init__(self, dtype=np.float32, kernel="Float32", quantization="None_", **options):
        super().__init__(4, 4, label=CULPRIT, **options)
        self.values = self.values.astype(dtype)
        self.kind = mpsnn.MPSDataType[{"float16": "Float16", "uint8": "UInt8"}.get(np.dtype(dtype).name, "Float32")]
        self.kernel, self.quantization = kernel, quantization

    def kernel_weights_data_type(self):
        return mpsnn.MPSDataType[self.kernel]

    def weights_quantization_type(self):
        return mpsnn.MPSCNNWeightsQuantizationType[self.quantization]

    def lookup_table_for_uint8_kernel(self):
        return np.linspace(-1, 1, 256, dtype=np.float32)

    def ranges_for_uint8_kernel(self):
        return np.tile(np.float32([-1, 1]), 4)


class Bits(ArraySource):
    """Packed weights of a binary convolution: 4 outputs, 3 x 3, one word of channels."""

    def __init__(self):
        super().__init__(4, 4, label=CULPRIT)
        self.values, self.kind = np.arange(36, dtype=np.uint32), mpsnn.MPSDataType.UInt32


class Gamma(mpsnn.MPSCNNInstanceNormalizationDataSource):
    def __init__(self, has_gamma=True):
        super().__init__()
        self.numbers = np.ones(4, np.float32) if has_gamma else None

    def number_of_feature_channels(self):
        return 4

    def gamma(self):
        return self.numbers

    def label(self):
        return CULPRIT


class Alpha:
    def alpha_for_source_image(self, source_image, destination_image):
        return 2.0


def exported(allocator=None, synchronize=False, **properties):
    node = make(mpsnn.MPSCNNNeuronSigmoidNode)
    inner = make(mpsnn.MPSCNNNeuronAbsoluteNode, source=node.result_image)
    node.result_image.export_from_graph = True
    node.result_image.synchronize_resource = synchronize
    if allocator:
        node.result_image.image_allocator = allocator
    return graph(inner, **properties)


def sum_of(first, second):
    return graph(mpsnn.MPSNNAdditionNode(first, second))


def gram(callback):
    node = make(mpsnn.MPSNNGramMatrixCalculationNode)
    if callback:
        node.property_call_back = callback
    return graph(node)


def undone(has_state):
    """A convolution of stride 2 and the transposed convolution that undoes it."""
    down = mpsnn.MPSCNNConvolutionNode(image(), weights(4, 4, stride_in_pixels_x=2, stride_in_pixels_y=2, label="down"))
    source = weights(4, 4, stride_in_pixels_x=2, stride_in_pixels_y=2, label=CULPRIT)
    state = down.convolution_gradient_state if has_state else None
    return graph(mpsnn.MPSCNNConvolutionTransposeNode(down.result_image, state, source))


def binary(method):
    terms = ([], [], [], [])
    kind = mpsnn.MPSCNNBinaryConvolutionType.XNOR
    node = mpsnn.MPSCNNBinaryConvolutionNode(image(), Bits(), *terms, kind, mpsnn.MPSCNNBinaryConvolutionFlags["None"])
    node.padding_policy = mpsnn.MPSNNDefaultPadding(method)
    return graph(node)


def padded(cls, policy, *arguments, **properties):
    policy = policy if isinstance(policy, mpsnn.MPSNNPadding) else mpsnn.MPSNNDefaultPadding(policy)
    return make(cls, *arguments, padding_policy=policy, **properties)


def max_pool(policy, kernel=2, stride=2):
    return graph(padded(mpsnn.MPSCNNPoolingMaxNode, policy, kernel, kernel, stride, stride))


def tensorflow():
    return mpsnn.MPSNNDefaultPadding.padding_for_tensorflow_average_pooling()


def clamped(policy):
    node = convolution()
    node.padding_policy = policy
    return trained(node)


def hand_made_soft_max(is_right):
    forward = mpsnn.MPSCNNSoftMaxNode(image())
    read = forward.result_image if is_right else forward.sources[0]
    node = mpsnn.MPSCNNSoftMaxGradientNode(image("g"), read, forward.result_state)
    node.label = CULPRIT
    return graph(node)


def spatial(height=3, alpha=None):
    forward = mpsnn.MPSCNNSpatialNormalizationNode(image(), 3)
    forward.kernel_height = height
    forward.label = CULPRIT
    if alpha is None:
        return graph(forward)
    node = mpsnn.MPSCNNSpatialNormalizationGradientNode(image("g"), forward.sources[0], forward.result_state, 3)
    node.alpha, node.label = alpha, CULPRIT
    return graph(node)


def concatenated(*channels, behind=None):
    """Convolutions to so many channels, concatenated; and what `behind` makes of the result."""
    source, parts = image(), []
    for i, count in enumerate(channels):
        parts.append(mpsnn.MPSCNNConvolutionNode(source, weights(4, count, label=f"part {i}")).result_image)
    node = mpsnn.MPSNNConcatenationNode(parts)
    if behind:
        node = behind(mpsnn.MPSCNNNeuronSigmoidNode(node.result_image).result_image, sum(channels))
    node.label = CULPRIT
    return graph(node)


def behind_convolution(source, channels):
    return mpsnn.MPSCNNConvolutionNode(source, weights(channels, 4))


def behind_sum(source, channels):
    return mpsnn.MPSNNAdditionNode(source, mpsnn.MPSCNNConvolutionNode(image("y"), weights(4, channels)).result_image)


def pad(channels, edge=Edge.Zero):
    coordinate = mpsnn.MPSImageCoordinate
    return simple(mpsnn.MPSNNPadNode, coordinate(0, 0, 0), coordinate(1, 1, channels), edge)


def pair(cls, **properties):
    node = cls(image("a"), image("b"))
    node.label = CULPRIT
    for name, value in properties.items():
        setattr(node, name, value)
    return node


def loss_node(kind="SoftMaxCrossEntropy", reduction="Sum", **properties):
    descriptor = mpsnn.MPSCNNLossDescriptor(Loss[kind], Reduction[reduction], **properties)
    return simple(mpsnn.MPSCNNLossNode, descriptor)


def forward_loss(sources, reduction="Sum", is_trained=False, **properties):
    descriptor = mpsnn.MPSCNNLossDescriptor(Loss.MeanSquaredError, Reduction[reduction], **properties)
    node = mpsnn.MPSNNForwardLossNode([image(f"source {i}") for i in range(sources)], descriptor)
    node.label = CULPRIT
    return trained(node) if is_trained else graph(node)


def yolo():
    kinds = (Loss.MeanSquaredError, Loss.Huber, Loss.SigmoidCrossEntropy, Loss.SoftMaxCrossEntropy)
    descriptor = mpsnn.MPSCNNYOLOLossDescriptor(*kinds, Reduction.Sum, [1, 1], 1)
    return simple(mpsnn.MPSCNNYOLOLossNode, descriptor)


def trained_with(kind):
    descriptor = mpsnn.MPSNNOptimizerDescriptor(
        learning_rate=0.1, regularization_type=mpsnn.MPSNNRegularizationType[kind], regularization_scale=0.01
    )
    optimizer = mpsnn.MPSNNOptimizerStochasticGradientDescent(None, 0.0, False, descriptor)
    return trained(convolution(optimizer=optimizer))


@dataclass
class Case:
    """A graph that breaks a rule and one that does not; None for shapes where the rule needs none."""

    rule: str
    broken: Any
    mended: Any
    numbers: str  # what the finding says of the graph
    shapes: Any = None
    mended_shapes: Any = None
    node: str = CULPRIT


SIGMOID, AVERAGE = mpsnn.MPSCNNNeuronSigmoidNode, mpsnn.MPSCNNPoolingAverageNode
DILATED, SHAPE = mpsnn.MPSCNNDilatedPoolingMaxNode, [(1, 8, 8, 4)]
BATCH_MEAN = {"reduction": "Mean", "reduce_across_batch": True}
PERSISTENT = mpsnn.MPSImage.default_allocator()
IMAGES = [
    Case("image-size", lambda: simple(SIGMOID), None, "1 x 2 x 16385 x 1", [(1, 2, 16385, 1)], [(1, 2, 16384, 1)]),
    Case("image-channels", lambda: simple(SIGMOID), None, "2049 slices", [(1, 2, 2, 8193)], [(1, 2, 2, 8192)]),
    Case("empty-image", lambda: simple(SIGMOID), None, "0 x 2 x 2 x 1", [(0, 2, 2, 1)], [(1, 2, 2, 1)], "x"),
    Case("format-none", lambda: options(format=Format["None"]), options, "None", node="MPSNNGraph"),
    Case("image-format", lambda: options(format=Format.Count), options, "format 6", node="MPSNNGraph"),
    Case(
        "reduced-precision",
        lambda: options(options=Options.AllowReducedPrecision | Options.Verbose),
        lambda: options(options=Options.Verbose),
        "options 18",
        node="MPSNNGraph",
    ),
    Case(
        "validation-skipped",
        lambda: options(options=Options.SkipAPIValidation),
        options,
        "options 1",
        node="MPSNNGraph",
    ),
    Case("temporary-export", exported, lambda: exported(PERSISTENT, True), "MPSTemporaryImage"),
    Case("export-not-synchronized", lambda: exported(PERSISTENT), lambda: exported(PERSISTENT, True), "False"),
    Case(
        "untagged-handles",
        lambda: sum_of(image(), mpsnn.MPSNNImageNode()),
        lambda: sum_of(image("a"), image("b")),
        "1 without",
        node="MPSNNGraph",
    ),
    Case(
        "duplicate-handles",
        lambda: sum_of(image("same"), image("same")),
        lambda: sum_of(image("a"), image("b")),
        '"same" twice',
        node="same",
    ),
    Case("trap-nonfinite", lambda: options(trap_nonfinite=True), options, "True", node="MPSNNGraph"),
    Case("callback-once", lambda: gram(Alpha()), lambda: gram(None), "property_callback"),
]
CONVOLUTIONS = [
    Case(
        "channels-per-group",
        lambda: graph(convolution(inputs=12, outputs=8, groups=2)),
        lambda: graph(convolution(inputs=8, outputs=8, groups=2)),
        "2 groups of 6 input and 4 output",
    ),
    Case(
        "channel-multiplier",
        lambda: graph(described(mpsnn.MPSCNNDepthWiseConvolutionDescriptor, 3, 3, 4, 8)),
        lambda: graph(described(mpsnn.MPSCNNDepthWiseConvolutionDescriptor, 3, 3, 4, 4)),
        "multiplier 2: 8",
    ),
    Case(
        "sub-pixel-channels",
        lambda: graph(
            described(mpsnn.MPSCNNSubPixelConvolutionDescriptor, 3, 3, 8, 8, groups=2, sub_pixel_scale_factor=2)
        ),
        lambda: graph(
            described(mpsnn.MPSCNNSubPixelConvolutionDescriptor, 3, 3, 8, 16, groups=2, sub_pixel_scale_factor=2)
        ),
        "2 result channels, 2 groups, scale 2",
    ),
    Case(
        "transpose-dilation",
        lambda: graph(transposed(weights(4, 4, label=CULPRIT, dilation_rate_x=2))),
        lambda: graph(transposed(weights(4, 4))),
        "dilation 2 x 1",
    ),
    Case(
        "transpose-weight-type",
        lambda: graph(transposed(TypedSource(np.float16))),
        lambda: graph(transposed(TypedSource())),
        "Float16",
    ),
    Case("transpose-placement", lambda: undone(False), lambda: undone(True), "kernel 3 x 3, stride 2 x 2"),
    Case(
        "fully-connected-strides",
        lambda: graph(convolution(mpsnn.MPSCNNFullyConnectedNode, kernel=8, stride_in_pixels_x=2)),
        lambda: graph(convolution(mpsnn.MPSCNNFullyConnectedNode, kernel=8)),
        "stride 2 x 1",
    ),
    Case(
        "accumulator-precision",
        lambda: simple(mpsnn.MPSCNNConvolutionNode, weights(4, 4), accumulator_precision=Precision.Half),
        lambda: simple(mpsnn.MPSCNNConvolutionNode, weights(4, 4)),
        "Half",
    ),
    Case(
        "half-accumulation",
        lambda: simple(
            mpsnn.MPSCNNConvolutionNode, TypedSource(kernel="Float16"), accumulator_precision=Precision.Half
        ),
        lambda: simple(mpsnn.MPSCNNConvolutionNode, TypedSource(kernel="Float16")),
        "Half",
    ),
    Case(
        "half-precision-weights",
        lambda: graph(convolution(source=TypedSource(kernel="Float16"))),
        lambda: graph(convolution(source=TypedSource())),
        "kernel_weights_data_type Float16",
    ),
    Case(
        "linear-quantization",
        lambda: graph(convolution(source=TypedSource(np.uint8, quantization="Linear"))),
        lambda: graph(convolution(source=TypedSource(np.uint8, quantization="LookupTable"))),
        "Linear",
    ),
    Case(
        "binary-borders",
        lambda: binary(Method.SizeSame),
        lambda: binary(Method.SizeValidOnly),
        "kernel 3 x 3 on 1 x 8 x 8 x 4",
        SHAPE,
    ),
    Case(
        "clamped-convolution",
        lambda: clamped(tensorflow()),
        lambda: clamped(mpsnn.MPSNNDefaultPadding(Method.SizeSame)),
        "Clamp",
    ),
    Case(
        "gradient-source-image",
        lambda: hand_made_soft_max(False),
        lambda: hand_made_soft_max(True),
        "another image node",
    ),
]
WINDOWS = [
    Case(
        "custom-padding",
        lambda: max_pool(EdgePolicy(Method.SizeSame, Edge.Zero)),
        lambda: max_pool(mpsnn.ExplicitPadding(left=1)),
        "",
    ),
    Case(
        "tensorflow-padding", lambda: max_pool(tensorflow()), lambda: max_pool(Method.SizeSame), "padding method 16412"
    ),
    Case(
        "aligned-padding",
        lambda: max_pool(Method.SizeSame | Method.AlignTopLeft),
        lambda: max_pool(Method.SizeSame),
        "AlignTopLeft",
    ),
    Case("reserved-padding-bits", lambda: max_pool(Method(48)), lambda: max_pool(Method(32)), "padding method 48"),
    Case(
        "unread-pixels",
        lambda: max_pool(Method.SizeValidOnly, 2, 5),
        lambda: max_pool(mpsnn.ExplicitPadding(right=-1, bottom=-1), 2, 5),
        "first window at 1 x 1",
        [(1, 10, 10, 1)],
    ),
    Case(
        "exclude-edges",
        lambda: graph(padded(AVERAGE, Method.SizeSame | Method.ExcludeEdges, 3)),
        lambda: graph(padded(AVERAGE, Method.SizeSame, 3)),
        "SizeSame",
    ),
    Case(
        "l2-pooling-edges",
        lambda: graph(padded(mpsnn.MPSCNNPoolingL2NormNode, Method.SizeSame, 3, 1)),
        lambda: graph(padded(mpsnn.MPSCNNPoolingL2NormNode, Method.SizeValidOnly, 3, 1)),
        "kernel 3 x 3",
        SHAPE,
    ),
    Case(
        "dilated-pooling-edges",
        lambda: graph(padded(DILATED, Method.SizeSame, 2, 1, 2)),
        lambda: graph(padded(DILATED, Method.SizeValidOnly, 2, 1, 2)),
        "dilation 2 x 2",
        SHAPE,
    ),
    Case(
        "max-ties",
        lambda: trained(make(mpsnn.MPSCNNPoolingMaxNode, 2)),
        lambda: trained(make(AVERAGE, 2)),
        "windows of 2 x 2",
    ),
    Case("square-window", lambda: spatial(height=5), spatial, "3 x 5"),
    Case("normalization-gradient", lambda: spatial(alpha=1), spatial, '"alpha"'),
    Case("normalization-parameters", lambda: spatial(alpha=2), lambda: spatial(alpha=1), '"alpha": 2'),
]
CHANNELS = [
    Case(
        "concatenation-channels",
        lambda: concatenated(23, 18),
        lambda: concatenated(24, 18),
        "23, 18 feature channels: 41 here, 42 on Metal",
        SHAPE,
    ),
    Case(
        "padded-channels",
        lambda: concatenated(23, 18, behind=behind_convolution),
        lambda: concatenated(24, 18, behind=behind_convolution),
        "42 on Metal",
        SHAPE,
    ),
    Case(
        "reshape-order",
        lambda: simple(mpsnn.MPSNNReshapeNode, 4, 4, 16),
        lambda: simple(mpsnn.MPSNNReshapeNode, 8, 8, 4),
        "1 x 8 x 8 x 4 to 1 x 4 x 4 x 16",
        SHAPE,
    ),
    Case("pad-channels", lambda: pad(3), lambda: pad(4), "0 before, 3 after"),
    Case("pad-channels-edge", lambda: pad(4, Edge.Clamp), lambda: pad(0, Edge.Clamp), "edge mode 1"),
    Case(
        "argument-ties",
        lambda: simple(mpsnn.MPSNNReductionFeatureChannelsArgumentMaxNode),
        lambda: simple(mpsnn.MPSNNReductionFeatureChannelsMaxNode),
        "lowest index",
    ),
    Case(
        "argument-precision",
        lambda: graph(make(mpsnn.MPSNNReductionFeatureChannelsArgumentMinNode), format=Format.Float16),
        lambda: graph(make(mpsnn.MPSNNReductionFeatureChannelsArgumentMinNode)),
        "2048",
        [(1, 1, 1, 2050)],
    ),
]
LAYERS = [
    Case(
        "broadcast-stride",
        lambda: graph(pair(mpsnn.MPSNNAdditionNode, secondary_stride_in_pixels_x=2)),
        lambda: graph(pair(mpsnn.MPSNNAdditionNode, secondary_stride_in_pixels_x=0)),
        "2 in x",
    ),
    Case(
        "broadcast-size",
        lambda: graph(pair(mpsnn.MPSNNAdditionNode, primary_stride_in_pixels_y=0, secondary_stride_in_pixels_y=0)),
        lambda: graph(pair(mpsnn.MPSNNAdditionNode, primary_stride_in_pixels_y=0)),
        "0 in both in y",
    ),
    Case(
        "comparison-threshold",
        lambda: graph(pair(mpsnn.MPSNNComparisonNode)),
        lambda: graph(pair(mpsnn.MPSNNComparisonNode, comparison_type=mpsnn.MPSNNComparisonType.Less)),
        "Equal",
    ),
    Case(
        "clamped-arithmetic",
        lambda: trained(pair(mpsnn.MPSNNAdditionNode, maximum_value=1.0)),
        lambda: trained(pair(mpsnn.MPSNNAdditionNode)),
        "to 1.0",
    ),
    Case(
        "label-smoothing",
        lambda: loss_node(label_smoothing=0.1),
        lambda: loss_node(label_smoothing=0.1, number_of_classes=4),
        "1",
        SHAPE,
    ),
    Case("loss-weights", lambda: forward_loss(3, weight=0.5), lambda: forward_loss(3), "0.5"),
    Case(
        "loss-gradient-scale",
        lambda: forward_loss(2, "Mean", is_trained=True),
        lambda: forward_loss(2, is_trained=True),
        "reduction 2",
    ),
    Case("loss-batch-mean", lambda: loss_node(**BATCH_MEAN), lambda: loss_node(reduction="Mean"), "images here"),
    Case("yolo-loss", yolo, loss_node, "1 anchor boxes"),
    Case("dropout-mask", lambda: simple(mpsnn.MPSCNNDropoutNode), lambda: simple(SIGMOID), "0.5"),
    Case(
        "bilinear-centres",
        lambda: simple(mpsnn.MPSCNNUpsamplingBilinearNode, 2, 3),
        lambda: simple(mpsnn.MPSCNNUpsamplingBilinearNode, 2, 3, True),
        "2 x 3",
    ),
    Case(
        "lanczos-filter",
        lambda: simple(mpsnn.MPSNNLanczosScaleNode, (5, 7, 1)),
        lambda: simple(mpsnn.MPSNNBilinearScaleNode, (5, 7, 1)),
        "5 x 7",
    ),
    Case(
        "absent-gamma",
        lambda: simple(mpsnn.MPSCNNInstanceNormalizationNode, Gamma(False)),
        lambda: simple(mpsnn.MPSCNNInstanceNormalizationNode, Gamma()),
        "none",
    ),
    Case(
        "per-image-states",
        lambda: trained(make(mpsnn.MPSCNNInstanceNormalizationNode, Gamma())),
        lambda: trained(make(mpsnn.MPSCNNInstanceNormalizationNode, mpsnn.InstanceNormalizationWeights(4))),
        "1 per image",
    ),
    Case("l1-regularization", lambda: trained_with("L1"), lambda: trained_with("L2"), "with L1, scale 0.01"),
]
CASES = [*IMAGES, *CONVOLUTIONS, *WINDOWS, *CHANNELS, *LAYERS]
