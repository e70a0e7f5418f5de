# SPDX-License-Identifier: Apache-2.0
"""Graphs that together have every node class that can be saved."""

import re
from pathlib import Path

import mpsnn
import numpy as np
from graph_cases import STYLES, adam, loss, sgd, weights
from mpsnn import MPSCNNConvolutionNode, MPSNNImageNode

NEURONS = {
    "Absolute": (), "ELU": (0.5,), "ReLU": (0.25,), "ReLUN": (0.5, 2.0), "Linear": (2.0, 1.0), "Sigmoid": (), "HardSigmoid": (0.25, 0.5),
    "SoftPlus": (1.5, 0.5), "SoftSign": (), "TanH": (1.5, 0.5), "Power": (1.0, 0.5, 2.0), "Exponential": (0.5, 0.25, -1.0),
    "Logarithm": (0.5, 3.0, -1.0), "GeLU": (),
}  # fmt: skip


def everything():
    """A training graph with every node class that has a gradient, on 8 x 8 x 2 images, and its data sources."""
    x = MPSNNImageNode("x")
    sources = [weights(2, 4, label="conv", optimizer=sgd(1e-3))]
    node = MPSCNNConvolutionNode(x, sources[-1])
    node.padding_policy = mpsnn.ExplicitPadding(left=1, right=1, top=1, bottom=1)
    node.training_style = STYLES.UpdateDeviceCPU
    first = node
    sources.append(mpsnn.BatchNormalizationWeights(4, label="norm", optimizer=sgd(1e-3)))
    node = mpsnn.MPSCNNBatchNormalizationNode(node.result_image, sources[-1])
    node.flags = mpsnn.MPSCNNBatchNormalizationFlags.CalculateStatisticsAlways
    for kind, parameters in NEURONS.items():
        node = getattr(mpsnn, f"MPSCNNNeuron{kind}Node")(node.result_image, *parameters)
    node = mpsnn.MPSCNNNeuronPReLUNode(node.result_image, np.array([0.1, 0.2, 0.3, 0.4], np.float32))
    pools = [
        getattr(mpsnn, f"MPSCNNPooling{kind}Node")(node.result_image, 3, 2, 2, 1)
        for kind in ("Max", "Average", "L2Norm")
    ]
    pools[1].padding_policy = mpsnn.MPSNNDefaultPadding(
        mpsnn.MPSNNPaddingMethod.SizeSame
        | mpsnn.MPSNNPaddingMethod.AddRemainderToBottomRight
        | mpsnn.MPSNNPaddingMethod.ExcludeEdges
    )
    dilated = mpsnn.MPSCNNDilatedPoolingMaxNode(node.result_image, 3, 2, 2, 1, 1, 2)
    both = mpsnn.MPSNNConcatenationNode([pool.result_image for pool in pools] + [dilated.result_image])
    both.label = "joined"
    soft, log = mpsnn.MPSCNNSoftMaxNode(both.result_image), mpsnn.MPSCNNLogSoftMaxNode(both.result_image)
    node = mpsnn.MPSNNMultiplicationNode(soft.result_image, log.result_image)
    node.secondary_scale = 0.1
    node = mpsnn.MPSNNSubtractionNode(node.result_image, both.result_image)
    node.minimum_value, node.maximum_value = -50, float("inf")
    node = mpsnn.MPSNNAdditionNode(node.result_image, soft.result_image)
    node.bias = 0.1
    node = mpsnn.MPSCNNDropoutNode(node.result_image, 0.75, 2**63 + 5, (1, 1, 0))
    sources.append(
        weights(16, 6, label="strided", stride_in_pixels_x=2, stride_in_pixels_y=2, groups=2, optimizer=adam(1e-4))
    )
    strided = node = MPSCNNConvolutionNode(node.result_image, sources[-1])
    sources.append(weights(6, 3, label="up", stride_in_pixels_x=2, stride_in_pixels_y=2, optimizer=adam(1e-4)))
    node = mpsnn.MPSCNNConvolutionTransposeNode(node.result_image, strided.convolution_gradient_state, sources[-1])
    sources.append(
        mpsnn.ConvolutionWeights(mpsnn.MPSCNNConvolutionDescriptor(4, 8, 3, 3), label="fc", optimizer=adam(1e-4))
    )
    node = mpsnn.MPSCNNFullyConnectedNode(node.result_image, sources[-1])
    node.training_style = STYLES.UpdateDeviceNone
    node.result_image.handle, node.result_image.export_from_graph = "logits", True
    first.result_state.handle, first.result_state.export_from_graph = "gradients", True
    last = mpsnn.MPSCNNLossNode(node.result_image, loss(weight=0.25, label_smoothing=0.1, number_of_classes=3))
    last.input_labels.handle = "targets"
    (end,) = last.training_graph()
    return end, sources


def family():
    """The classes with a gradient that everything() has not, in one training graph on 4 x 4 x 4 images."""
    sources = [
        mpsnn.InstanceNormalizationWeights(4, label="instance", optimizer=sgd(1e-3)),
        mpsnn.GroupNormalizationWeights(4, 2, label="group", optimizer=adam(1e-3)),
    ]
    node = mpsnn.MPSCNNInstanceNormalizationNode(MPSNNImageNode("x"), sources[0])
    node.training_style = STYLES.UpdateDeviceCPU
    node.result_state.handle, node.result_state.export_from_graph = "gradients", True
    node = mpsnn.MPSCNNGroupNormalizationNode(node.result_image, sources[1])
    for kind in ("Spatial", "LocalContrast", "CrossChannel"):
        node = getattr(mpsnn, f"MPSCNN{kind}NormalizationNode")(node.result_image, 3)
        node.beta, node.delta = 0.5, 1.5
    node = mpsnn.MPSCNNUpsamplingNearestNode(node.result_image, 2, 1)
    node = mpsnn.MPSCNNUpsamplingBilinearNode(node.result_image, 1, 2, True)
    node = mpsnn.MPSNNPadNode(
        node.result_image,
        mpsnn.MPSImageCoordinate(1, 0, 0),
        mpsnn.MPSImageCoordinate(1, 2, 0),
        mpsnn.MPSImageEdgeMode.Mirror,
    )
    node = mpsnn.MPSNNReshapeNode(node.result_image, 10, 20, 2)
    gram = mpsnn.MPSNNGramMatrixCalculationNode(node.result_image, 1 / 200)
    mean = mpsnn.MPSNNReductionSpatialMeanNode(node.result_image)
    mean.clip_rect_source = mpsnn.MTLRegion(1, 2, 5, 6)
    node = mpsnn.MPSNNMultiplicationNode(gram.result_image, mean.result_image)
    node.secondary_stride_in_pixels_x = 0
    node.result_image.handle, node.result_image.export_from_graph = "logits", True
    # One row of two cells with two channels: four empty ones make it an anchor with a single class.
    node = mpsnn.MPSNNPadNode(
        node.result_image, mpsnn.MPSImageCoordinate(), mpsnn.MPSImageCoordinate(0, 0, 4), mpsnn.MPSImageEdgeMode.Zero
    )
    types = mpsnn.MPSCNNLossType
    detectors = mpsnn.MPSCNNYOLOLossDescriptor(
        types.MeanSquaredError,
        types.Huber,
        types.SigmoidCrossEntropy,
        types.SoftMaxCrossEntropy,
        mpsnn.MPSCNNReductionType.Sum,
        [1.0, 2.0],
        1,
    )
    last = mpsnn.MPSCNNYOLOLossNode(node.result_image, detectors)
    last.input_labels.handle = "targets"
    (end,) = last.training_graph()
    return end, sources


class Bits(mpsnn.MPSCNNConvolutionDataSource):
    """One word of bits per output channel and pixel of the kernel."""

    def __init__(self, label, kernel):
        super().__init__()
        self.name, self.about = label, mpsnn.MPSCNNConvolutionDescriptor(kernel, kernel, 4, 3)
        self.words = np.random.default_rng(1).integers(0, 2**32, 3 * kernel * kernel).astype(np.uint32)

    def descriptor(self):
        return self.about

    def data_type(self):
        return mpsnn.MPSDataType.UInt32

    def weights(self):
        return self.words

    def label(self):
        return self.name


def without_gradient():
    """The classes that have none, side by side on 4 x 4 x 4 images: their result images and data sources."""
    x, y = MPSNNImageNode("x"), MPSNNImageNode("y")
    axes = [f"{axis}{kind}" for axis in ("Row", "Column", "FeatureChannels") for kind in ("Min", "Max", "Mean", "Sum")]
    axes += ["FeatureChannelsArgumentMin", "FeatureChannelsArgumentMax"]
    nodes = [getattr(mpsnn, f"MPSNNReduction{axis}Node")(x) for axis in axes]
    nodes += [mpsnn.MPSNNBilinearScaleNode(x, (3, 7, 1)), mpsnn.MPSNNLanczosScaleNode(x, (7, 3, 1))]
    nodes += [mpsnn.MPSNNDivisionNode(x, y), mpsnn.MPSNNComparisonNode(x, y)]
    nodes[-1].comparison_type = mpsnn.MPSNNComparisonType.GreaterOrEqual
    sources = [Bits("bits", 3), Bits("all bits", 4)]
    type, flags = mpsnn.MPSCNNBinaryConvolutionType.XNOR, mpsnn.MPSCNNBinaryConvolutionFlags.UseBetaScaling
    nodes.append(mpsnn.MPSCNNBinaryConvolutionNode(x, sources[0], None, [0.5, 1, 2], [0.25] * 4, None, type, flags))
    nodes.append(mpsnn.MPSCNNBinaryFullyConnectedNode(x, sources[1], 0.5, type, flags))
    return [node.result_image for node in nodes], sources


def separable_loss():
    """Result images of a loss made of separate nodes, and of the gradients of predictions and labels."""
    x, labels, factors = (MPSNNImageNode(name) for name in ("x", "labels", "weights"))
    value = mpsnn.MPSNNForwardLossNode(x, labels, factors, loss("Huber", delta=0.5, weight=2))
    start = mpsnn.MPSNNInitialGradientNode(value.result_image)
    (end,) = start.training_graph()
    wrt_labels = value.gradient_filters(start.result_image)[1]
    return [value.result_image, end.result_image, wrt_labels.result_image]


def classes_with_a_factory():
    """The names in the table of cpp/src/core/node_factories.cpp."""
    path = Path(__file__).parents[2] / "cpp" / "src" / "core" / "node_factories.cpp"
    return set(re.findall(r'\{"(MPS\w+)",', path.read_text()))
