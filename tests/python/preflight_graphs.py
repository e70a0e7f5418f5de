# SPDX-License-Identifier: Apache-2.0
"""Small graphs that break rules of preflight("metal"), or do not."""

import mpsnn
import numpy as np
from graph_cases import ArraySource, weights

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
