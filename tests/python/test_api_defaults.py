# SPDX-License-Identifier: Apache-2.0
"""Every default that MPS_SEMANTICS section 4 (and 3, for images and states) states, on nodes made by the shortest initializer."""

import mpsnn
import numpy as np
import pytest
from api_facts import ABSTRACT, CLASSES, ancestors, arguments, image, initializers, instance, make, parameter_names

SAME = (
    mpsnn.MPSNNPaddingMethod.AlignCentered
    | mpsnn.MPSNNPaddingMethod.AddRemainderToTopLeft
    | mpsnn.MPSNNPaddingMethod.SizeSame
)
VALID = mpsnn.MPSNNPaddingMethod.SizeValidOnly
GPU = mpsnn.MPSNNTrainingStyle.UpdateDeviceGPU
FLOAT_MAX = float(np.finfo(np.float32).max)
ABC = ("a", "b", "c")
LRN = {"alpha": 1.0, "beta": 5.0, "delta": 1.0}
POOLS = ["MPSCNNPoolingMaxNode", "MPSCNNPoolingAverageNode", "MPSCNNPoolingL2NormNode"]
ARITHMETIC = [
    f"MPSNN{operation}Node" for operation in ("Addition", "Subtraction", "Multiplication", "Division", "Comparison")
]
STRIDES = ["stride_in_pixels_x", "stride_in_pixels_y", "stride_in_feature_channels"]
REDUCTIONS = [n for n in CLASSES if "MPSNNUnaryReductionNode" in ancestors(n) and n not in ABSTRACT]
BATCHLIKE = [f"MPSCNN{kind}NormalizationNode" for kind in ("Batch", "Instance", "Group")]
CONVOLUTIONS = ["MPSCNNConvolutionNode", "MPSCNNConvolutionTransposeNode", "MPSCNNBinaryConvolutionNode"]
FULLY_CONNECTED = ["MPSCNNFullyConnectedNode", "MPSCNNBinaryFullyConnectedNode"]
CONTRAST = {"p0": 1.0, "ps": 1.0, "pm": 0.0}


def neuron(name, *values):
    return ("4.4", [f"MPSCNNNeuron{name}Node"], {}, dict(zip(ABC, values, strict=False)))


# (section of MPS_SEMANTICS, classes, parameters of the initializer beside the source: names or {name: value}, {property: value})
DEFAULTS = [
    (
        "3.1",
        ["MPSNNImageNode"],
        {},
        {"handle": None, "format": mpsnn.MPSImageFeatureChannelFormat.None_, "export_from_graph": False},
    ),
    (
        "3.1",
        ["MPSNNImageNode"],
        {},
        {"image_allocator": mpsnn.MPSTemporaryImage.default_allocator(), "synchronize_resource": False},
    ),
    ("3.1", ["MPSNNImageNode"], {}, {"stop_gradient": False}),
    ("4.3", CONVOLUTIONS, {"weights"}, {"padding_policy": SAME, "training_style": GPU, "label": None}),
    ("4.3", FULLY_CONNECTED, {"weights"}, {"padding_policy": VALID, "training_style": GPU}),
    (
        "4.3",
        CONVOLUTIONS + FULLY_CONNECTED,
        {"weights"},
        {"accumulator_precision": mpsnn.MPSNNConvolutionAccumulatorPrecisionOption.Float},
    ),
    neuron("ELU", 1.0),
    neuron("ReLU", 0.0),
    neuron("ReLUN", 1.0, 6.0),
    neuron("Linear", 1.0, 0.0),
    neuron("HardSigmoid", float(np.float32(0.2)), 0.5),
    neuron("SoftPlus", 1.0, 1.0),
    neuron("TanH", 1.0, 1.0),
    neuron("Power", 1.0, 0.0, 1.0),
    neuron("Exponential", 1.0, 0.0, -1.0),
    neuron("Logarithm", 1.0, 0.0, -1.0),
    (
        "4.5",
        POOLS,
        {"filter_size": 3},
        {"kernel_width": 3, "kernel_height": 3, "stride_in_pixels_x": 3, "stride_in_pixels_y": 3},
    ),
    ("4.5", POOLS, {"filter_size": 3}, {"padding_policy": SAME}),
    (
        "4.5",
        ["MPSCNNDilatedPoolingMaxNode"],
        {"filter_size": 3},
        {"dilation_rate_x": 3, "dilation_rate_y": 3, "padding_policy": SAME},
    ),
    ("4.6", ["MPSCNNSpatialNormalizationNode"], {}, {**LRN, "kernel_width": 5, "kernel_height": 5}),
    ("4.6", ["MPSCNNSpatialNormalizationNode"], {"kernel_size": 3}, {**LRN, "kernel_width": 3, "kernel_height": 3}),
    ("4.6", ["MPSCNNLocalContrastNormalizationNode"], {}, {"alpha": 1.0, "beta": 0.5, "delta": 2.0**-10, **CONTRAST}),
    ("4.6", ["MPSCNNLocalContrastNormalizationNode"], {}, {"kernel_width": 5, "kernel_height": 5}),
    (
        "4.6",
        ["MPSCNNLocalContrastNormalizationGradientNode"],
        None,
        {"alpha": 0.0, "beta": 0.5, "delta": 2.0**-10, **CONTRAST},
    ),
    ("4.6", ["MPSCNNSpatialNormalizationGradientNode"], None, LRN),
    ("4.6", ["MPSCNNCrossChannelNormalizationNode"], {}, {**LRN, "kernel_size_in_feature_channels": 5}),
    ("4.6", BATCHLIKE, {"data_source"}, {"training_style": GPU}),
    ("4.6", ["MPSCNNBatchNormalizationNode"], {"data_source"}, {"flags": mpsnn.MPSCNNBatchNormalizationFlags.Default}),
    ("4.7", ARITHMETIC, {"right_source"}, {"primary_scale": 1.0, "secondary_scale": 1.0, "bias": 0.0}),
    ("4.7", ARITHMETIC, {"right_source"}, {"minimum_value": -FLOAT_MAX, "maximum_value": FLOAT_MAX}),
    (
        "4.7",
        ARITHMETIC,
        {"right_source"},
        {f"{side}_{stride}": 1 for side in ("primary", "secondary") for stride in STRIDES},
    ),
    (
        "4.7",
        ["MPSNNComparisonNode"],
        {"right_source"},
        {"comparison_type": mpsnn.MPSNNComparisonType.Equal, "gradient_class": None},
    ),
    ("4.7", ["MPSNNDivisionNode"], {"right_source"}, {"gradient_class": None}),
    ("4.7", ["MPSNNAdditionNode"], {"right_source"}, {"gradient_class": mpsnn.MPSNNAdditionGradientNode}),
    ("4.8", REDUCTIONS, {}, {"clip_rect_source": mpsnn.MPSRectNoClip}),
    ("4.8", ["MPSNNReductionFeatureChannelsSumNode"], {}, {"weight": 1.0}),
    (
        "4.9",
        ["MPSCNNUpsamplingBilinearNode"],
        {"integer_scale_factor_x": 2, "integer_scale_factor_y": 3},
        {"align_corners": False, "scale_factor_y": 3.0},
    ),
    ("4.10", ["MPSCNNDropoutNode"], {}, {"keep_probability": 0.5, "seed": 0, "mask_stride_in_pixels": (1, 1, 1)}),
    (
        "4.10",
        ["MPSNNForwardLossNode"],
        {"labels", "loss_descriptor"},
        {"property_call_back": None, "weight": 1.0, "label_smoothing": 0.0},
    ),
    ("4.10", ["MPSNNPadNode"], {"padding_size_before", "padding_size_after", "edge_mode"}, {"fill_value": 0.0}),
    ("4.10", ["MPSNNGramMatrixCalculationNode"], {}, {"alpha": 1.0, "property_call_back": None}),
]


def node_with(name, given):
    """A node of the class by the initializer that takes the source and what is given: values, or names to invent values for."""
    if given is None or name == "MPSNNImageNode":
        return make(name) if given is None else mpsnn.MPSNNImageNode()
    if name.startswith("MPSCNNBinary"):
        return make(name)
    selector = next(s for s in initializers(name) if set(parameter_names(s)) - {"source", "left_source"} == set(given))
    return getattr(mpsnn, name)(**{**arguments(name, selector), **(given if isinstance(given, dict) else {})})


@pytest.mark.parametrize(("section", "names", "given", "expected"), DEFAULTS)
def test_defaults(section, names, given, expected):
    for name in names:
        node = node_with(name, given)
        for attribute, value in expected.items():
            actual = getattr(node, attribute)
            actual = actual.padding_method() if attribute == "padding_policy" else actual
            assert actual == value, f"MPS_SEMANTICS {section}: {name}.{attribute} is {actual}"


@pytest.mark.parametrize(
    "name", [n for n in CLASSES if "MPSNNStateNode" in ancestors(n) and n != "MPSNNMultiaryGradientStateNode"]
)
def test_defaults_of_states(name):  # 3.2
    state = instance(name)
    assert (state.handle, state.export_from_graph, state.synchronize_resource) == (None, False, False)


def test_a_gradient_node_takes_the_training_style_that_its_node_has_then():  # 3.4
    for name in [
        n
        for n in CLASSES
        if "MPSNNTrainableNode" in CLASSES[n]["protocols"] and "Gradient" not in n and "Binary" not in n
    ]:
        node = make(name)
        node.training_style = mpsnn.MPSNNTrainingStyle.UpdateDeviceCPU
        assert node.gradient_filter(image()).training_style == mpsnn.MPSNNTrainingStyle.UpdateDeviceCPU
