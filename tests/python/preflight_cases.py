# SPDX-License-Identifier: Apache-2.0
"""For every rule of preflight("metal"): a graph that breaks it and the same graph mended."""

from dataclasses import dataclass
from typing import Any

import mpsnn
import numpy as np
from geometry_cases import EdgePolicy
from graph_cases import weights
from preflight_graphs import (
    CULPRIT,
    Alpha,
    Edge,
    Format,
    Gamma,
    Method,
    Options,
    Precision,
    TypedSource,
    behind_convolution,
    binary,
    clamped,
    concatenated,
    convolution,
    described,
    exported,
    forward_loss,
    gram,
    graph,
    hand_made_soft_max,
    image,
    loss_node,
    make,
    max_pool,
    options,
    pad,
    padded,
    pair,
    simple,
    spatial,
    sum_of,
    tensorflow,
    trained,
    trained_with,
    transposed,
    undone,
    yolo,
)


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
    Case("strict-precision", lambda: options(precision="strict"), options, "strict", node="MPSNNGraph"),
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
