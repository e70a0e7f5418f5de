# SPDX-License-Identifier: Apache-2.0
"""Every way to be wrong: the right class, the label, both shapes, and the same facts as attributes.

The data sources' own errors are in test_data_sources.py, those of options in test_option_errors.py, those of updates in
test_updates.py, those of trapped numbers in test_failed_steps.py, those of nodes without a gradient in test_training_graph.py, those
of arrays in test_images.py.
"""

import mpsnn
import numpy as np
import pytest
from error_cases import caught, filled, run
from graph_cases import loss, numbers, weights
from mpsnn import MPSCNNConvolutionDescriptor as Descriptor
from mpsnn import MPSCNNConvolutionNode, MPSCNNLossLabels, MPSCNNNeuronReLUNode, MPSNNGraph, MPSNNImageNode

# --- the tree -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "built_in"),
    [
        (mpsnn.ShapeError, ValueError), (mpsnn.OptionError, ValueError), (mpsnn.WeightError, ValueError),
        (mpsnn.GraphError, RuntimeError), (mpsnn.DeviceError, RuntimeError), (mpsnn.FileError, OSError),
    ],
)  # fmt: skip
def test_every_error_is_an_error_of_ours_and_a_built_in_one(kind, built_in):
    assert issubclass(kind, mpsnn.Error)
    assert issubclass(kind, built_in)
    error = kind("what", node="n", label="l", expected="e", actual="a")
    assert (str(error), error.node, error.label, error.expected, error.actual) == ("what", "n", "l", "e", "a")


# --- shapes -------------------------------------------------------------------------------------------------------


def joined(x):
    return mpsnn.MPSNNConcatenationNode([x, MPSNNImageNode("y")])


WRONG_SHAPES = {
    "convolution channels": (
        lambda x: MPSCNNConvolutionNode(x, weights(16, 32)), [(32, 14, 14, 8)], "32 x 3 x 3 x 16", "32 x 14 x 14 x 8"
    ),
    "transposed channels": (
        lambda x: mpsnn.MPSCNNConvolutionTransposeNode(x, None, weights(3, 5)), [(2, 4, 6, 7)], "5 x 3 x 3 x 3", "2 x 4 x 6 x 7"
    ),
    "fully connected channels": (
        lambda x: mpsnn.MPSCNNFullyConnectedNode(x, weights(3, 5)), [(2, 3, 3, 7)], "5 x 3 x 3 x 3", "2 x 3 x 3 x 7"
    ),
    "fully connected size": (
        lambda x: mpsnn.MPSCNNFullyConnectedNode(x, weights(3, 5)), [(2, 4, 6, 3)], "5 x 4 x 6 x 3", "5 x 3 x 3 x 3"
    ),
    "addition": (lambda x: mpsnn.MPSNNAdditionNode(x, MPSNNImageNode()), [(1, 4, 5, 2), (1, 4, 6, 2)], "1 x 4 x 5 x 2", "1 x 4 x 6 x 2"),
    "multiplication": (
        lambda x: mpsnn.MPSNNMultiplicationNode(x, MPSNNImageNode()), [(1, 4, 5, 2), (1, 4, 5, 3)], "1 x 4 x 5 x 2", "1 x 4 x 5 x 3"
    ),
    "concatenation": (joined, [(1, 4, 5, 2), (1, 3, 5, 2)], "1 x 4 x 5 x 2", "1 x 3 x 5 x 2"),
    "normalization": (
        lambda x: mpsnn.MPSCNNBatchNormalizationNode(x, mpsnn.BatchNormalizationWeights(3)), [(1, 4, 5, 2)], "3 channels", "1 x 4 x 5 x 2"
    ),
    "PReLU slopes": (lambda x: mpsnn.MPSCNNNeuronPReLUNode(x, np.ones(3, np.float32)), [(1, 4, 5, 2)], "1 x 4 x 5 x 2", "3 slopes"),
    "forward loss labels": (
        lambda x: mpsnn.MPSNNForwardLossNode(x, MPSNNImageNode(), loss()), [(1, 4, 5, 2), (1, 4, 5, 3)], "1 x 4 x 5 x 2", "1 x 4 x 5 x 3"
    ),
    "forward loss weights": (
        lambda x: mpsnn.MPSNNForwardLossNode(x, MPSNNImageNode(), MPSNNImageNode(), loss()),
        [(1, 4, 5, 2), (1, 4, 5, 2), (1, 1, 1, 2)], "1 x 4 x 5 x 2", "1 x 1 x 1 x 2",
    ),
    "loss gradient": (
        lambda x: mpsnn.MPSNNForwardLossNode(x, MPSNNImageNode(), loss()).gradient_filter(MPSNNImageNode()),
        [(1, 4, 5, 2), (1, 4, 5, 2), (1, 7, 7, 7)], "1 x 4 x 5 x 2", "1 x 7 x 7 x 7",
    ),
    "neuron gradient": (
        lambda x: MPSCNNNeuronReLUNode(x, 0.0).gradient_filter(MPSNNImageNode()), [(1, 4, 5, 2), (1, 5, 4, 2)], "1 x 4 x 5 x 2", "1 x 5 x 4 x 2"
    ),
    "convolution gradient": (
        lambda x: MPSCNNConvolutionNode(x, weights(2, 3)).gradient_filter(MPSNNImageNode()), [(1, 4, 5, 2), (1, 4, 5, 2)], "1 x 4 x 5 x 3", "1 x 4 x 5 x 2"
    ),
    "transposed gradient": (
        lambda x: mpsnn.MPSCNNConvolutionTransposeNode(x, None, weights(2, 3)).gradient_filter(MPSNNImageNode()),
        [(1, 4, 5, 2), (1, 4, 5, 2)], "1 x 4 x 5 x 3", "1 x 4 x 5 x 2",
    ),
    "pooling gradient": (
        lambda x: mpsnn.MPSCNNPoolingMaxNode(x, 2).gradient_filter(MPSNNImageNode()), [(1, 4, 6, 2), (1, 4, 6, 2)], "1 x 2 x 3 x 2", "1 x 4 x 6 x 2"
    ),
    "soft-max gradient": (
        lambda x: mpsnn.MPSCNNSoftMaxNode(x).gradient_filter(MPSNNImageNode()), [(1, 4, 5, 2), (1, 1, 1, 2)], "1 x 4 x 5 x 2", "1 x 1 x 1 x 2"
    ),
    "dropout gradient": (
        lambda x: mpsnn.MPSCNNDropoutNode(x).gradient_filter(MPSNNImageNode()), [(1, 4, 5, 2), (1, 1, 1, 2)], "1 x 4 x 5 x 2", "1 x 1 x 1 x 2"
    ),
    "arithmetic gradient": (
        lambda x: mpsnn.MPSNNAdditionNode(x, x).gradient_filters(MPSNNImageNode())[0], [(1, 4, 5, 2), (1, 1, 1, 2)], "1 x 4 x 5 x 2", "1 x 1 x 1 x 2"
    ),
    "concatenation gradient": (
        lambda x: mpsnn.MPSNNConcatenationNode([x, x]).gradient_filters(MPSNNImageNode())[0], [(1, 4, 5, 2), (1, 1, 1, 2)], "1 x 4 x 5 x 4", "1 x 1 x 1 x 2"
    ),
    "normalization gradient": (
        lambda x: mpsnn.MPSCNNBatchNormalizationNode(x, mpsnn.BatchNormalizationWeights(2)).gradient_filter(MPSNNImageNode()),
        [(1, 4, 5, 2), (1, 1, 1, 2)], "1 x 4 x 5 x 2", "1 x 1 x 1 x 2",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_SHAPES)
def test_sizes_that_do_not_fit_name_the_node_and_both_shapes(case):
    make, shapes, expected, actual = WRONG_SHAPES[case]
    node = make(MPSNNImageNode("x"))
    error = caught(mpsnn.ShapeError, lambda: run(node, *shapes), label="culprit", node=type(node).__name__)
    assert expected in error.expected
    assert actual in error.actual


@pytest.mark.parametrize(
    "make",
    [
        lambda x: mpsnn.MPSCNNPoolingMaxNode(x, 7, 1),
        lambda x: mpsnn.MPSCNNDilatedPoolingMaxNode(x, 3, 1, 3),
        lambda x: MPSCNNConvolutionNode(x, weights(2, 3, kernel=7)),
    ],
)
def test_a_window_larger_than_the_image_names_both(make):
    node = make(MPSNNImageNode())
    node.padding_policy = mpsnn.MPSNNDefaultPadding(mpsnn.MPSNNPaddingMethod.SizeValidOnly)
    caught(mpsnn.ShapeError, lambda: run(node, (1, 4, 5, 2)), "1 x 4 x 5 x 2", "window of", label="culprit")


def test_a_transposed_convolution_that_vanishes_names_its_window():
    node = mpsnn.MPSCNNConvolutionTransposeNode(MPSNNImageNode(), None, weights(2, 3, kernel=5))
    node.padding_policy = mpsnn.MPSNNDefaultPadding(mpsnn.MPSNNPaddingMethod.SizeValidOnly)
    caught(mpsnn.ShapeError, lambda: run(node, (1, 2, 2, 2)), "1 x 2 x 2 x 2", label="culprit")


def test_a_transposed_convolution_that_undoes_another_one_is_refused():
    down = MPSCNNConvolutionNode(
        MPSNNImageNode(), weights(2, 3, stride_in_pixels_x=2, stride_in_pixels_y=2, label="down")
    )
    node = mpsnn.MPSCNNConvolutionTransposeNode(
        down.result_image, down.convolution_gradient_state, weights(3, 2, kernel=5, label="up")
    )
    caught(
        mpsnn.ShapeError, lambda: run(node, (1, 6, 8, 2)), "image 3 x 4, kernel 3 x 3", "2 x 5 x 5 x 3", label="culprit"
    )


def test_labels_of_another_size_than_the_loss_nodes_source_name_both():
    node = mpsnn.MPSCNNLossNode(MPSNNImageNode(), loss())
    labels = MPSCNNLossLabels(filled((2, 1, 1, 4)))
    error = caught(
        mpsnn.ShapeError, lambda: run(node, (2, 1, 1, 3), labels=[labels]), label="culprit", node="MPSCNNLossNode"
    )
    assert (error.expected, error.actual) == ("2 x 1 x 1 x 3", "2 x 1 x 1 x 4")


def test_label_weights_of_another_size_than_the_labels_name_both():
    error = caught(
        mpsnn.ShapeError, lambda: MPSCNNLossLabels(filled((2, 1, 1, 3)), filled((2, 1, 1, 1))), node="MPSCNNLossLabels"
    )
    assert (error.expected, error.actual) == ("2 x 1 x 1 x 3", "2 x 1 x 1 x 1")


def test_batches_of_different_lengths_name_both():
    graph = MPSNNGraph("cpu", mpsnn.MPSNNAdditionNode(MPSNNImageNode(), MPSNNImageNode()).result_image)
    error = caught(mpsnn.ShapeError, lambda: graph.run([filled((2, 3, 3, 1)), filled((4, 3, 3, 1))]), node="MPSNNGraph")
    assert (error.expected, error.actual) == ("2 x 3 x 3 x 1", "4 x 3 x 3 x 1")


@pytest.mark.parametrize(
    ("batch", "text"),
    [([], "1 or more images"), ([(1, 2, 2, 1), (1, 3, 2, 1)], "1 x 3 x 2 x 1"), ([(2, 2, 2, 1)], "2 x 2 x 2 x 1")],
)
def test_a_batch_is_made_of_single_images_of_one_size(batch, text):
    graph = MPSNNGraph("cpu", MPSCNNNeuronReLUNode(MPSNNImageNode(), 0.0).result_image)
    buffer = mpsnn.CommandQueue("cpu").command_buffer()
    caught(
        mpsnn.ShapeError,
        lambda: graph.encode_batch(buffer, [[filled(shape) for shape in batch]]),
        text,
        node="MPSNNGraph",
    )


def test_labels_of_a_batch_all_have_weights_or_none():
    graph = MPSNNGraph("cpu", mpsnn.MPSCNNLossNode(MPSNNImageNode(), loss()).result_image)
    one = filled((1, 1, 1, 3))
    states = [[MPSCNNLossLabels(one), MPSCNNLossLabels(one, one)]]
    buffer = mpsnn.CommandQueue("cpu").command_buffer()
    caught(
        mpsnn.ShapeError,
        lambda: graph.encode_batch(buffer, [[one, one]], states),
        "weights, or none",
        node="MPSNNGraph",
    )


def test_sizes_that_no_image_can_have_are_refused_by_name():
    pool = mpsnn.MPSCNNPoolingMaxNode(MPSNNImageNode(), 2**30, 2**30, 1, 1)
    caught(mpsnn.ShapeError, lambda: run(pool, (1, 4, 4, 1)), "a kernel size is out of range", label="culprit")
    up = mpsnn.MPSCNNUpsamplingNearestNode(MPSNNImageNode(), 2**30, 2**30)
    caught(mpsnn.ShapeError, lambda: run(up, (1, 4, 4, 1)), "an enlarged size is out of range", label="culprit")
    pad = mpsnn.MPSNNPadNode(
        MPSNNImageNode(),
        mpsnn.MPSImageCoordinate(2**31 - 1, 0, 0),
        mpsnn.MPSImageCoordinate(2**31 - 1, 0, 0),
        mpsnn.MPSImageEdgeMode.Zero,
    )
    caught(mpsnn.ShapeError, lambda: run(pad, (1, 4, 4, 1)), "a padded size is out of range", label="culprit")
    node = mpsnn.MPSNNReshapeNode(MPSNNImageNode(), 2**22, 2**22, 2**20)
    caught(mpsnn.ShapeError, lambda: run(node, (1, 4, 4, 1)), "keeps the number of elements", label="culprit")
    descriptor = Descriptor(2**15, 2**15, 2**20, 2**20)
    caught(mpsnn.OptionError, lambda: mpsnn.ConvolutionWeights(descriptor), "too many weights")
    sub_pixel = mpsnn.MPSCNNSubPixelConvolutionDescriptor(1, 1, 1, 4)
    sub_pixel.sub_pixel_scale_factor = 2**16
    caught(mpsnn.OptionError, lambda: mpsnn.ConvolutionWeights(sub_pixel), "squared sub-pixel scale factor")


@pytest.mark.parametrize("style", ["UpdateDeviceGPU", "UpdateDeviceNone"])
def test_a_convolution_gradient_with_weights_of_another_size_is_refused(style):
    """It wrote behind the end of the gradients."""
    for forward_class, name in (
        (MPSCNNConvolutionNode, "MPSCNNConvolutionGradientNode"),
        (mpsnn.MPSCNNConvolutionTransposeNode, "MPSCNNConvolutionTransposeGradientNode"),
    ):
        state = [None] if forward_class is not MPSCNNConvolutionNode else []
        forward = forward_class(MPSNNImageNode(), *state, weights(2, 4, label="forward"))
        for other in (weights(2, 2, label="small"), weights(2, 4, label="groups", groups=2), weights(2, 4, kernel=5)):
            node = getattr(mpsnn, name)(forward.result_image, forward.sources[0], forward.result_state, other)
            node.training_style = mpsnn.MPSNNTrainingStyle[style]
            caught(mpsnn.ShapeError, lambda node=node: run(node, (1, 6, 6, 2)), "differ in size", label="culprit")


# --- graphs -------------------------------------------------------------------------------------------------------


def test_a_graph_needs_results_that_filters_make():
    relu = MPSCNNNeuronReLUNode(MPSNNImageNode(), 0.0)
    caught(mpsnn.GraphError, lambda: MPSNNGraph("cpu", []), "result image", node="MPSNNGraph")
    caught(
        mpsnn.GraphError,
        lambda: MPSNNGraph("cpu", MPSNNImageNode()),
        "made by a filter",
        "an input image",
        node="MPSNNGraph",
    )
    caught(
        mpsnn.GraphError,
        lambda: MPSNNGraph("cpu", [relu.result_image], [True, False]),
        "1 flags",
        "2",
        node="MPSNNGraph",
    )


def test_the_wrong_number_of_images_or_states_is_said():
    graph = MPSNNGraph("cpu", mpsnn.MPSCNNLossNode(MPSNNImageNode(), loss()).result_image)
    image = filled((2, 1, 1, 3))
    caught(mpsnn.GraphError, lambda: graph.run([]), "takes 1 source images, not 0", node="MPSNNGraph")
    caught(mpsnn.GraphError, lambda: graph.run([image, image]), "takes 1 source images, not 2", node="MPSNNGraph")
    caught(mpsnn.GraphError, lambda: graph.run([image]), "takes 1 source states, not 0", node="MPSNNGraph")


def test_filters_need_their_images_states_and_data_sources():
    x = MPSNNImageNode()
    caught(mpsnn.GraphError, lambda: MPSCNNNeuronReLUNode(None, 0.0), "source images")
    caught(mpsnn.GraphError, lambda: mpsnn.MPSCNNSoftMaxGradientNode(x, x, None), "result state of its forward node")
    caught(mpsnn.WeightError, lambda: MPSCNNConvolutionNode(x, None), "data source", node="MPSCNNConvolutionNode")
    caught(
        mpsnn.WeightError,
        lambda: mpsnn.MPSCNNBatchNormalizationNode(x, None),
        "data source",
        node="MPSCNNBatchNormalizationNode",
    )


def test_an_arithmetic_gradient_needs_an_arithmetic_forward_node():
    x = MPSNNImageNode()
    relu = MPSCNNNeuronReLUNode(x, 0.0)
    relu.label = "culprit"
    caught(
        mpsnn.GraphError, lambda: mpsnn.MPSNNAdditionGradientNode([x], relu, True), "arithmetic node", label="culprit"
    )
    caught(mpsnn.GraphError, lambda: mpsnn.MPSNNAdditionGradientNode([x], None, False), "arithmetic node", "none")
    other = mpsnn.MPSNNSubtractionNode(x, x)
    other.label = "culprit"
    call = lambda: mpsnn.MPSNNAdditionGradientNode(x, x, other.result_state, False)
    caught(mpsnn.GraphError, call, "MPSNNSubtractionNode", label="culprit")


def relu_state(x):
    return MPSCNNNeuronReLUNode(x, 0.0).result_state


def pool_state(x):
    return mpsnn.MPSCNNPoolingMaxNode(x, 1).result_state


DESCRIPTOR = mpsnn.MPSNNNeuronDescriptor(mpsnn.MPSCNNNeuronType.ReLU)
WRONG_STATES = {
    "pooling": (lambda x: mpsnn.MPSCNNPoolingMaxGradientNode(x, x, relu_state(x), 1, 1, 1, 1), "MPSCNNNeuronReLUNode"),
    "average pooling": (
        lambda x: mpsnn.MPSCNNPoolingAverageGradientNode(x, x, pool_state(x), 1, 1, 1, 1),
        "MPSCNNPoolingMaxNode",
    ),
    "soft-max": (lambda x: mpsnn.MPSCNNSoftMaxGradientNode(x, x, relu_state(x)), "MPSCNNNeuronReLUNode"),
    "soft-max and log": (
        lambda x: mpsnn.MPSCNNLogSoftMaxGradientNode(x, x, mpsnn.MPSCNNSoftMaxNode(x).result_state),
        "MPSCNNSoftMaxNode",
    ),
    "dropout": (
        lambda x: mpsnn.MPSCNNDropoutGradientNode(x, x, relu_state(x), 0.5, 0, (1, 1, 1)),
        "MPSCNNNeuronReLUNode",
    ),
    "concatenation": (lambda x: mpsnn.MPSNNConcatenationGradientNode(x, x, relu_state(x)), "MPSCNNNeuronReLUNode"),
    "neuron": (lambda x: mpsnn.MPSCNNNeuronGradientNode(x, x, pool_state(x), DESCRIPTOR), "MPSCNNPoolingMaxNode"),
    "convolution": (
        lambda x: mpsnn.MPSCNNConvolutionGradientNode(
            x, x, mpsnn.MPSCNNConvolutionTransposeNode(x, weights(2, 2)).convolution_gradient_state
        ),
        "MPSCNNConvolutionTransposeNode",
    ),
    "transposed convolution": (
        lambda x: mpsnn.MPSCNNConvolutionTransposeNode(
            x,
            mpsnn.MPSCNNConvolutionTransposeNode(x, weights(2, 2)).convolution_gradient_state,
            weights(2, 2, label="second"),
        ),
        "MPSCNNConvolutionTransposeNode",
    ),
}


@pytest.mark.parametrize("case", WRONG_STATES)
def test_a_gradient_state_of_another_node_is_refused_with_both_classes(case):
    make, given = WRONG_STATES[case]
    node = make(MPSNNImageNode())
    error = caught(
        mpsnn.GraphError,
        lambda: run(node, (1, 4, 4, 2)),
        "gradient state must come from",
        label="culprit",
        node=type(node).__name__,
    )
    assert error.actual == given


def test_a_normalization_gradient_needs_a_normalizations_state():
    x = MPSNNImageNode()
    relu = MPSCNNNeuronReLUNode(x, 0.0)
    relu.label = "culprit"
    call = lambda: mpsnn.MPSCNNBatchNormalizationGradientNode(x, x, relu.result_state)
    caught(mpsnn.GraphError, call, "batch normalization", "MPSCNNNeuronReLUNode", label="culprit")


def test_gradients_with_other_parameters_than_their_forward_node_are_refused():
    x = MPSNNImageNode()
    pool = mpsnn.MPSCNNPoolingMaxNode(x, 2)
    node = mpsnn.MPSCNNPoolingMaxGradientNode(MPSNNImageNode(), x, pool.result_state, 3, 3, 2, 2)
    caught(mpsnn.GraphError, lambda: run(node, (1, 4, 4, 1), (1, 2, 2, 1)), "window differs", label="culprit")
    dropout = mpsnn.MPSCNNDropoutNode(x, 0.5, 1)
    node = mpsnn.MPSCNNDropoutGradientNode(MPSNNImageNode(), x, dropout.result_state, 0.5, 2, (1, 1, 1))
    caught(mpsnn.GraphError, lambda: run(node, (1, 4, 4, 1), (1, 4, 4, 1)), "another mask", label="culprit")


# --- devices and command buffers ----------------------------------------------------------------------------------


def test_a_device_that_is_not_there_is_refused_with_the_list():
    for call in (
        lambda: mpsnn.Device("quantum"),
        lambda: MPSNNGraph("quantum", MPSCNNNeuronReLUNode(MPSNNImageNode(), 0.0).result_image),
    ):
        error = caught(mpsnn.DeviceError, call, '"quantum"')
        assert error.expected == "cpu, reference"


def test_a_command_buffer_runs_once_and_only_after_commit():
    graph = MPSNNGraph("cpu", MPSCNNNeuronReLUNode(MPSNNImageNode(), 0.0).result_image)
    buffer = mpsnn.CommandQueue("cpu").command_buffer()
    caught(mpsnn.DeviceError, buffer.wait_until_completed, "never committed", node="CommandBuffer")
    buffer.commit()
    for call in (buffer.commit, lambda: graph.encode(buffer, [filled()]), lambda: buffer.add_completed_handler(print)):
        caught(mpsnn.DeviceError, call, "committed already", node="CommandBuffer")
    buffer.wait_until_completed()
    assert graph.encode_count == 0


def test_what_is_no_device_and_no_callback_is_refused():
    caught(mpsnn.DeviceError, lambda: mpsnn.CommandQueue(7), "no device", "int")
    with pytest.raises(TypeError):
        mpsnn.CommandQueue("\udc80")
    node = mpsnn.MPSNNGramMatrixCalculationNode(MPSNNImageNode())
    with pytest.raises(mpsnn.OptionError, match="alpha_for_source_image"):
        node.property_call_back = 7


# --- nothing is left behind ---------------------------------------------------------------------------------------


def test_an_encode_that_raises_leaves_the_command_buffer_as_it_was():
    graph = MPSNNGraph("cpu", MPSCNNConvolutionNode(MPSNNImageNode(), weights(2, 3)).result_image)
    buffer, image = mpsnn.CommandQueue("cpu").command_buffer(), numbers(1, 4, 4, 2)
    result = graph.encode(buffer, [image])
    with pytest.raises(mpsnn.ShapeError):
        graph.encode(buffer, [numbers(1, 4, 4, 5)])
    with pytest.raises(mpsnn.ShapeError):
        graph.encode_batch(buffer, [[image, numbers(1, 5, 4, 2)]])
    assert graph.encode_count == 1
    buffer.commit()
    buffer.wait_until_completed()
    np.testing.assert_array_equal(result, graph.run([image]))
