# SPDX-License-Identifier: Apache-2.0
"""Options out of range, descriptors without meaning, policies that do not fit: the error names the node and the value."""

import mpsnn
import pytest
from error_cases import caught, filled, run
from graph_cases import ArraySource, adam, loss, weights
from mpsnn import MPSCNNConvolutionDescriptor as Descriptor
from mpsnn import MPSCNNConvolutionNode, MPSCNNLossLabels, MPSCNNNeuronReLUNode, MPSNNGraph, MPSNNImageNode

WRONG_DESCRIPTORS = {
    "kernel_width": (Descriptor(0, 3, 2, 4), "0"),
    "kernel_height": (Descriptor(3, -1, 2, 4), "-1"),
    "input_feature_channels": (Descriptor(3, 3, 0, 4), "0"),
    "output_feature_channels": (Descriptor(3, 3, 2, 0), "0"),
    "stride_in_pixels_x": (Descriptor(3, 3, 2, 4, stride_in_pixels_x=0), "0"),
    "stride_in_pixels_y": (Descriptor(3, 3, 2, 4, stride_in_pixels_y=0), "0"),
    "dilation_rate_x": (Descriptor(3, 3, 2, 4, dilation_rate_x=0), "0"),
    "dilation_rate_y": (Descriptor(3, 3, 2, 4, dilation_rate_y=0), "0"),
    "groups must be": (Descriptor(3, 3, 2, 4, groups=0), "0"),
    "groups must divide": (Descriptor(3, 3, 4, 6, groups=4), "4"),
    "depthwise": (mpsnn.MPSCNNDepthWiseConvolutionDescriptor(3, 3, 4, 4, groups=2), "2"),
    "multiple of input": (mpsnn.MPSCNNDepthWiseConvolutionDescriptor(3, 3, 4, 6), "6"),
    "sub_pixel_scale_factor": (mpsnn.MPSCNNSubPixelConvolutionDescriptor(3, 3, 4, 6, sub_pixel_scale_factor=0), "0"),
    "squared sub-pixel": (mpsnn.MPSCNNSubPixelConvolutionDescriptor(3, 3, 4, 6, sub_pixel_scale_factor=2), "6"),
    "one slope per output channel": (
        Descriptor(3, 3, 2, 4, fused_neuron_descriptor=mpsnn.MPSNNNeuronDescriptor.cnn_neuron_p_re_lu_descriptor([1, 2])), "2",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_DESCRIPTORS)
def test_a_descriptor_without_meaning_names_the_convolution_and_the_number(case):
    descriptor, actual = WRONG_DESCRIPTORS[case]
    error = caught(mpsnn.OptionError, lambda: mpsnn.ConvolutionWeights(descriptor, label="stem"), case, label="stem")
    assert error.node == "MPSCNNConvolutionDescriptor"
    assert error.actual == actual
    source = ArraySource(label="stem")
    source.about = descriptor
    node = MPSCNNConvolutionNode(MPSNNImageNode(), source)
    caught(mpsnn.OptionError, lambda: MPSNNGraph("cpu", node.result_image), case, label="stem")


@pytest.mark.parametrize("name", ["mean", "variance", "gamma", "beta"])
def test_folded_normalization_of_the_wrong_size_is_refused(name):
    values = {key: [1.0] * (3 if key == name else 4) for key in ("mean", "variance", "gamma", "beta")}
    descriptor = Descriptor(3, 3, 2, 4)
    descriptor.set_batch_normalization_parameters_for_inference(**values, epsilon=1e-5)
    error = caught(
        mpsnn.OptionError, lambda: mpsnn.ConvolutionWeights(descriptor, label="stem"), f"one {name} per", label="stem"
    )
    assert (error.expected, error.actual) == ("4", "3")


def test_an_unknown_property_of_a_descriptor_is_a_type_error():
    with pytest.raises(TypeError, match="MPSCNNConvolutionDescriptor has no property 'strides'"):
        Descriptor(3, 3, 2, 4, strides=2)


UNTRAINABLE = {
    "a sub-pixel scale": mpsnn.MPSCNNSubPixelConvolutionDescriptor(3, 3, 2, 4, sub_pixel_scale_factor=2),
    "a channel multiplier": mpsnn.MPSCNNDepthWiseConvolutionDescriptor(3, 3, 2, 4),
    "a fused neuron": Descriptor(
        3, 3, 2, 4, fused_neuron_descriptor=mpsnn.MPSNNNeuronDescriptor(mpsnn.MPSCNNNeuronType.ReLU)
    ),
    "folded batch normalization": Descriptor(3, 3, 2, 4),
}
UNTRAINABLE["folded batch normalization"].set_batch_normalization_parameters_for_inference(
    [0] * 4, [1] * 4, [1] * 4, [0] * 4, 1e-5
)


@pytest.mark.parametrize("what", UNTRAINABLE)
def test_a_convolution_without_a_gradient_cannot_be_trained(what):
    node = MPSCNNConvolutionNode(MPSNNImageNode(), mpsnn.ConvolutionWeights(UNTRAINABLE[what]))
    node.label = "culprit"
    end = node.gradient_filter(MPSNNImageNode())
    caught(
        mpsnn.OptionError,
        lambda: MPSNNGraph("cpu", end.result_image),
        what,
        label="culprit",
        node="MPSCNNConvolutionNode",
    )


def test_a_transposed_convolution_takes_plain_descriptors_only():
    source = mpsnn.ConvolutionWeights(Descriptor(3, 3, 2, 4, dilation_rate_x=2))
    node = mpsnn.MPSCNNConvolutionTransposeNode(MPSNNImageNode(), None, source)
    caught(mpsnn.OptionError, lambda: run(node, (1, 4, 4, 2)), "no dilation", label="culprit")


@pytest.mark.parametrize(
    ("make", "texts"),
    [
        (lambda x: mpsnn.MPSCNNPoolingMaxNode(x, 0), ("kernel_width", "0")),
        (lambda x: mpsnn.MPSCNNPoolingAverageNode(x, 2, -1), ("stride_in_pixels_x", "-1")),
        (lambda x: mpsnn.MPSCNNDilatedPoolingMaxNode(x, 2, 1, 0), ("dilation_rate_x", "0")),
        (lambda x: mpsnn.MPSCNNDropoutNode(x, 1.0), ("keep_probability", "1.0")),
        (lambda x: mpsnn.MPSCNNDropoutNode(x, float("nan")), ("keep_probability", "nan")),
        (lambda x: mpsnn.MPSCNNDropoutNode(x, 0.5, 0, (1, 2, 1)), ("mask strides", "2")),
        (lambda x: mpsnn.MPSNNAdditionNode([x]), ("two sources", "1")),
        (lambda x: mpsnn.MPSNNConcatenationNode([]), ("needs sources", "0")),
        (lambda x: mpsnn.MPSNNForwardLossNode([x], loss()), ("logits, labels", "1")),
        (lambda x: mpsnn.MPSNNLossGradientNode([x, x], None, loss(), False), ("behind the gradient", "2")),
        (lambda x: mpsnn.MPSCNNLossNode(x, loss(number_of_classes=0)), ("number_of_classes", "0")),
        (lambda x: mpsnn.MPSCNNLossNode(x, loss(label_smoothing=1.5)), ("label_smoothing", "1.5")),
        (lambda x: mpsnn.MPSCNNLossNode(x, loss("Huber", delta=0)), ("delta", "0")),
        (lambda x: mpsnn.MPSCNNLossNode(x, loss("Count")), ("unknown loss type", "10")),
        (
            lambda x: mpsnn.MPSCNNLossNode(x, mpsnn.MPSCNNLossDescriptor(mpsnn.MPSCNNLossType.Huber, mpsnn.MPSCNNReductionType.Count)),
            ("unknown reduction type", "4"),
        ),
        (
            lambda x: mpsnn.MPSCNNLossNode(x, mpsnn.MPSCNNLossDescriptor(mpsnn.MPSCNNLossType.CosineDistance, mpsnn.MPSCNNReductionType.Mean)),
            ("cosine distance", "2"),
        ),
        (lambda x: mpsnn.MPSNNDefaultPadding(mpsnn.MPSNNPaddingMethod.Custom), ("Custom bit", "16384")),
        (lambda x: MPSNNImageNode(3), ("a handle is a string", "int")),
        (lambda x: mpsnn.resolve_axis(mpsnn.MPSNNPaddingMethod.SizeSame, 4, 3, 0), ("at least 1",)),
        (lambda x: mpsnn.resolve_axis(mpsnn.MPSNNPaddingMethod.SizeSame, 4, 3, direction="z"), ("x or y", "z")),
        (lambda x: mpsnn.resolve_reverse_axis(mpsnn.MPSNNPaddingMethod.SizeSame, 0, 3), ("at least 1",)),
        (lambda x: mpsnn.set_num_threads(0), ("thread count", "0")),
        (lambda x: mpsnn.set_num_threads(10**6), ("thread count", "1000000")),
        (lambda x: mpsnn.MPSNNOptimizerAdam(None, -1.0), ("learning rate", "-1")),
        (lambda x: adam().set_learning_rate(float("inf")), ("learning rate", "inf")),
    ],
)  # fmt: skip
def test_an_option_out_of_range_says_which_and_what_was_given(make, texts):
    caught(mpsnn.OptionError, lambda: make(MPSNNImageNode()), *texts)


def test_a_stride_of_two_in_arithmetic_names_the_node():
    node = mpsnn.MPSNNAdditionNode(MPSNNImageNode(), MPSNNImageNode())
    node.secondary_stride_in_pixels_y = 2
    caught(mpsnn.OptionError, lambda: run(node, (1, 2, 2, 1), (1, 2, 2, 1)), "0 or 1", label="culprit")


def test_an_image_format_that_is_not_there_names_the_node():
    node = MPSCNNNeuronReLUNode(MPSNNImageNode(), 0.0)
    node.result_image.format = mpsnn.MPSImageFeatureChannelFormat._reserved0
    caught(mpsnn.OptionError, lambda: run(node, (1, 2, 2, 1)), "unknown format", "Float32", label="culprit")


class Policy(mpsnn.MPSNNPadding):
    """A policy of the application's own."""

    edge_mode = mpsnn.MPSImageEdgeMode.Zero

    def padding_method(self):
        return mpsnn.MPSNNPaddingMethod.Custom

    def label(self):
        return "my policy"

    def destination_image_descriptor(self, source_images, source_states, kernel, suggested):
        kernel.edge_mode = self.edge_mode
        return suggested


def test_a_policy_that_chooses_an_impossible_edge_mode_is_named():
    node = mpsnn.MPSCNNPoolingMaxNode(MPSNNImageNode(), 2)
    node.padding_policy = Policy()
    node.padding_policy.edge_mode = mpsnn.MPSImageEdgeMode.Mirror
    caught(mpsnn.OptionError, lambda: run(node, (1, 4, 4, 1)), "my policy", "edge mode", label="culprit")


def test_a_policy_that_raises_is_heard():
    class Broken(Policy):
        def destination_image_descriptor(self, *_):
            raise LookupError("in the policy")

    node = mpsnn.MPSCNNPoolingMaxNode(MPSNNImageNode(), 2)
    node.padding_policy = Broken()
    with pytest.raises(LookupError, match="in the policy"):
        run(node, (1, 4, 4, 1))


def test_a_custom_policy_has_no_place_in_transposed_convolutions_inverses_and_files(tmp_path):
    node = mpsnn.MPSCNNConvolutionTransposeNode(MPSNNImageNode(), None, weights(2, 2))
    node.padding_policy = Policy()
    caught(mpsnn.OptionError, lambda: run(node, (1, 4, 4, 2)), "my policy", label="culprit")
    caught(mpsnn.OptionError, Policy().inverse, "inverse", label="my policy")
    graph = MPSNNGraph("cpu", node.result_image)
    caught(mpsnn.GraphError, lambda: graph.save(str(tmp_path / "g")), "cannot be saved", "my policy", label="culprit")


def test_a_node_needs_a_padding_policy():
    node = mpsnn.MPSCNNPoolingMaxNode(MPSNNImageNode(), 2)
    node.label = "culprit"
    with pytest.raises(mpsnn.OptionError, match="culprit"):
        node.padding_policy = None


def test_what_is_passed_as_states_must_be_states_in_a_list():
    graph = MPSNNGraph("cpu", mpsnn.MPSCNNLossNode(MPSNNImageNode(), loss()).result_image)
    image = filled((2, 1, 1, 3))
    caught(mpsnn.OptionError, lambda: graph.run([image], [image]), "no state", "ndarray", node="MPSNNGraph")
    caught(mpsnn.OptionError, lambda: graph.run([image], MPSCNNLossLabels(image)), "must be a list", node="MPSNNGraph")
    caught(mpsnn.OptionError, lambda: graph.run([image], [None]), "labels of loss nodes", node="MPSNNGraph")
    other = mpsnn.MPSCNNConvolutionWeightsAndBiasesState(Descriptor(1, 1, 1, 1))
    caught(mpsnn.OptionError, lambda: graph.run([image], [other]), "labels of loss nodes", node="MPSNNGraph")


@pytest.mark.parametrize(
    ("vectors", "text"),
    [
        ([54], "the number of history vectors"),
        ([54, 54, 3], "the number of history"),
        ([53, 54, 3, 3], "a history vector"),
    ],
)
def test_an_optimizers_vectors_must_fit_before_anything_is_recorded(vectors, text):
    gradient = mpsnn.CommandQueue("cpu").command_buffer()
    optimizer, values = adam(), [mpsnn.MPSVector(54) for _ in range(3)]
    if len(vectors) == 4:
        wrong = [mpsnn.MPSVector(count) for count in vectors[:2]]
    else:
        wrong = [mpsnn.MPSVector(count) for count in vectors]
    call = lambda: optimizer.encode(gradient, values[0], values[1], wrong, values[2])
    caught(mpsnn.OptionError, call, text, node="MPSNNOptimizerAdam")
    with pytest.raises(mpsnn.OptionError, match="missing"):
        optimizer.encode(gradient, values[0], values[1], [None, None], values[2])


def test_an_empty_range_of_values_is_refused():
    node = mpsnn.MPSNNAdditionNode(MPSNNImageNode(), MPSNNImageNode())
    node.minimum_value, node.maximum_value = 2, 0.5
    shapes = (1, 2, 2, 1), (1, 2, 2, 1)
    caught(mpsnn.OptionError, lambda: run(node, *shapes), "minimum_value must not be above", label="culprit")


def test_a_detector_loss_with_a_huge_number_of_anchors_is_refused():
    types = mpsnn.MPSCNNLossType.Huber
    about = mpsnn.MPSCNNYOLOLossDescriptor(
        types, types, types, types, mpsnn.MPSCNNReductionType.Sum, [1.0] * 5, 2**31 - 1
    )
    caught(mpsnn.OptionError, lambda: mpsnn.MPSCNNYOLOLossNode(MPSNNImageNode(), about), "4294967294 numbers")
