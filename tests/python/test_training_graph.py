# SPDX-License-Identifier: Apache-2.0
"""Gradient nodes: which are made, in which order, and what they are wired to."""

import mpsnn
import numpy as np
import pytest
from graph_cases import STYLES, class_name, loss, numbers, record, weights
from mpsnn import (
    MPSCNNConvolutionNode,
    MPSCNNLossNode,
    MPSCNNNeuronReLUNode,
    MPSNNAdditionNode,
    MPSNNConcatenationNode,
    MPSNNGraph,
    MPSNNImageNode,
)


class Residual:
    """y = relu(conv2(relu1(conv1(x))) + x) with a loss on y."""

    def __init__(self):
        self.x = MPSNNImageNode("x")
        self.conv1 = MPSCNNConvolutionNode(self.x, weights(4, 4, label="conv1"))
        self.relu1 = MPSCNNNeuronReLUNode(self.conv1.result_image, 0.0)
        self.conv2 = MPSCNNConvolutionNode(self.relu1.result_image, weights(4, 4, label="conv2"))
        self.add = MPSNNAdditionNode(self.conv2.result_image, self.x)
        self.relu = MPSCNNNeuronReLUNode(self.add.result_image, 0.0)
        self.loss = MPSCNNLossNode(self.relu.result_image, loss("MeanSquaredError"))


# The worked example of the behaviour specification, 5.2: what is made, from which node, the gradient of which image.
RESIDUAL_ORDER = [
    ("MPSCNNNeuronGradientNode", "relu", "add"),
    ("MPSNNAdditionGradientNode", "add", "conv2"),
    ("MPSNNAdditionGradientNode", "add", "x"),
    ("MPSCNNConvolutionGradientNode", "conv2", "relu1"),
    ("MPSCNNNeuronGradientNode", "relu1", "conv1"),
    ("MPSCNNConvolutionGradientNode", "conv1", "x"),
    ("MPSNNAdditionNode", None, "x"),
]


def image_of(block, name):
    return block.x if name == "x" else getattr(block, name).result_image


def test_the_residual_block_gives_the_seven_nodes_of_the_specification_in_order():
    block, log = Residual(), []
    ends = block.loss.training_graph(None, record(log))
    assert [class_name(gradient) for gradient, *_ in log] == [row[0] for row in RESIDUAL_ORDER]
    for (_, inference, source, _), (_, forward, image) in zip(log, RESIDUAL_ORDER, strict=True):
        assert inference is (getattr(block, forward) if forward else None)
        assert source is image_of(block, image)
    assert len(ends) == 1
    assert ends[0] is log[-1][0]


def test_the_residual_blocks_gradient_sources_follow_the_wires():
    block, log = Residual(), []
    block.loss.training_graph(None, record(log))
    made = [gradient for gradient, *_ in log]
    sources = [gradient_source for *_, gradient_source in log]
    results = [node.result_image for node in made]
    assert sources[0] is block.loss.result_image
    assert sources[1] is results[0] and sources[2] is results[0]
    assert sources[3] is results[1]
    assert sources[4] is results[3]
    assert sources[5] is results[4]
    assert sources[6] is results[2]  # the contribution that was there first
    assert made[6].sources == [results[2], results[5]]
    assert not made[1].is_secondary_source_filter
    assert made[2].is_secondary_source_filter


def test_without_a_handler_gradients_take_the_handle_of_their_image():
    block = Residual()
    for name in ("conv1", "relu1", "conv2", "add"):
        getattr(block, name).result_image.handle = name
    (end,) = block.loss.training_graph()
    graph = MPSNNGraph("cpu", end.result_image)
    made = graph.nodes[-7:]
    assert [class_name(node) for node in made] == [row[0] for row in RESIDUAL_ORDER]
    assert [node.result_image.handle for node in made] == [row[2] for row in RESIDUAL_ORDER]
    assert graph.result_handle == "x"


def test_handle_objects_are_copied_as_they_are():
    class Tag:
        label = "a tag"

    tag = Tag()
    source = MPSNNImageNode(tag)
    (end,) = MPSCNNNeuronReLUNode(source, 0.0).training_graph()
    assert end.result_image.handle is tag


def test_with_a_handler_no_handle_is_set():
    block = Residual()
    (end,) = block.loss.training_graph(None, lambda *_: None)
    assert end.result_image.handle is None


def test_a_chain_has_one_terminus_that_is_the_gradient_of_its_first_node():
    x = MPSNNImageNode()
    first = MPSCNNConvolutionNode(x, weights(2, 3))
    last = MPSCNNLossNode(MPSCNNNeuronReLUNode(first.result_image, 0.0).result_image, loss())
    (end,) = last.training_graph()
    assert class_name(end) == "MPSCNNConvolutionGradientNode"
    assert end.sources[1] is x
    assert end.source_states == [first.convolution_gradient_state]


def test_a_concatenation_hands_one_gradient_to_each_source_in_order():
    x, log = MPSNNImageNode("x"), []
    left = MPSCNNConvolutionNode(x, weights(2, 3, label="left"))
    right = MPSCNNConvolutionNode(x, weights(2, 5, label="right"))
    both = MPSNNConcatenationNode([left.result_image, right.result_image])
    ends = MPSCNNLossNode(both.result_image, loss()).training_graph(None, record(log))
    assert [class_name(gradient) for gradient, *_ in log] == [
        "MPSNNConcatenationGradientNode",
        "MPSNNConcatenationGradientNode",
        "MPSCNNConvolutionGradientNode",
        "MPSCNNConvolutionGradientNode",
        "MPSNNAdditionNode",
    ]
    assert [inference for _, inference, *_ in log] == [both, both, right, left, None]
    assert [source for *_, source, _ in log][:2] == [left.result_image, right.result_image]
    assert [log[0][0].source_states, log[1][0].source_states] == [[state] for state in both.result_states]
    assert ends == [log[-1][0]]


def test_three_consumers_are_merged_by_two_additions_in_the_order_of_their_contributions():
    x, log = MPSNNImageNode("x"), []
    consumers = [MPSCNNConvolutionNode(x, weights(2, 2, label=f"c{i}")) for i in range(3)]
    both = MPSNNConcatenationNode([node.result_image for node in consumers])
    (end,) = MPSCNNLossNode(both.result_image, loss()).training_graph(None, record(log))
    contributions = [gradient.result_image for gradient, inference, *_ in log if inference in consumers]
    first, second = [gradient for gradient, inference, *_ in log if inference is None]
    assert first.sources == contributions[:2]
    assert second.sources == [first.result_image, contributions[2]]
    assert end is second


@pytest.mark.parametrize("engine", ["cpu", "reference"])
def test_x_plus_x_gets_both_contributions(engine):
    x, log = MPSNNImageNode("x"), []
    add = MPSNNAdditionNode(x, x)
    end = MPSCNNLossNode(add.result_image, loss("MeanSquaredError")).training_graph(None, record(log))
    assert [class_name(gradient) for gradient, *_ in log] == ["MPSNNAdditionGradientNode"] * 2 + ["MPSNNAdditionNode"]
    graph = MPSNNGraph(engine, end[0].result_image)
    image, labels = numbers(2, 3, 3, 2), numbers(2, 3, 3, 2, seed=1)
    got = graph.run([image], [mpsnn.MPSCNNLossLabels(labels)])
    np.testing.assert_allclose(got, 4 * (2 * image - labels), rtol=4 * np.finfo(np.float32).eps)


def test_stop_gradient_on_an_image_ends_the_branch_there():
    block, log = Residual(), []
    block.relu1.result_image.stop_gradient = True
    ends = block.loss.training_graph(None, record(log))
    assert [class_name(gradient) for gradient, *_ in log] == [row[0] for row in RESIDUAL_ORDER[:4]]
    assert ends == [log[2][0], log[3][0]]  # the gradient of x, and that of the stopped image


def test_stop_gradient_on_the_first_image_leaves_nothing_to_build():
    block, log = Residual(), []
    block.relu.result_image.stop_gradient = True
    assert block.loss.training_graph(None, record(log)) == []
    assert log == []


def test_a_stopped_image_with_several_consumers_still_gets_one_gradient():
    x = MPSNNImageNode("x")
    shared = MPSCNNNeuronReLUNode(x, 0.0)
    shared.result_image.stop_gradient = True
    add = MPSNNAdditionNode(shared.result_image, shared.result_image)
    (end,) = MPSCNNLossNode(add.result_image, loss()).training_graph()
    assert class_name(end) == "MPSNNAdditionNode"


def test_a_handler_prunes_a_branch_with_stop_gradient():
    block, log = Residual(), []

    def handler(gradient, inference, source, gradient_source):
        log.append((gradient, inference, source, gradient_source))
        if inference is block.conv2:
            gradient.result_image.stop_gradient = True

    ends = block.loss.training_graph(None, handler)
    assert [inference for _, inference, *_ in log] == [block.relu, block.add, block.add, block.conv2]
    assert ends == [log[3][0], log[2][0]]


def test_a_handler_sees_only_its_exception():
    def handler(*_):
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        Residual().loss.training_graph(None, handler)


def test_a_given_gradient_is_where_the_backward_pass_starts():
    x, incoming, log = MPSNNImageNode("x"), MPSNNImageNode("incoming"), []
    relu = MPSCNNNeuronReLUNode(x, 0.0)
    (end,) = relu.training_graph(incoming, record(log))
    assert log == [(end, relu, x, incoming)]
    graph = MPSNNGraph("cpu", end.result_image)
    assert graph.source_image_handles == ["x", "incoming"]
    image, gradient = numbers(1, 2, 2, 3), numbers(1, 2, 2, 3, seed=1)
    np.testing.assert_array_equal(graph.run([image, gradient]), np.where(image > 0, gradient, 0))


def test_a_given_gradient_takes_the_place_of_the_losses_own():
    block, incoming, log = Residual(), MPSNNImageNode("incoming"), []
    block.loss.training_graph(incoming, record(log))
    assert log[0][3] is incoming


def test_an_ordinary_node_without_a_gradient_starts_from_its_own_result():
    x, log = MPSNNImageNode("x"), []
    relu = MPSCNNNeuronReLUNode(x, 0.0)
    relu.training_graph(None, record(log))
    assert log[0][3] is relu.result_image


def test_an_initial_gradient_differentiates_the_sum_of_its_source():
    x, log = MPSNNImageNode("x"), []
    square = mpsnn.MPSNNMultiplicationNode(x, x)
    start = mpsnn.MPSNNInitialGradientNode(square.result_image)
    (end,) = start.training_graph(None, record(log))
    assert log[0][3] is start.result_image
    image = numbers(2, 3, 1, 2)
    got = MPSNNGraph("reference", end.result_image).run([image])
    np.testing.assert_array_equal(got, 2 * image.astype(np.float64))


def test_a_forward_loss_propagates_into_the_prediction_only():
    x, labels, log = MPSNNImageNode("x"), MPSNNImageNode("labels"), []
    conv = MPSCNNConvolutionNode(x, weights(2, 3))
    value = mpsnn.MPSNNForwardLossNode(conv.result_image, labels, loss("MeanSquaredError"))
    start = mpsnn.MPSNNInitialGradientNode(value.result_image)
    (end,) = start.training_graph(None, record(log))
    assert [class_name(gradient) for gradient, *_ in log] == ["MPSNNLossGradientNode", "MPSCNNConvolutionGradientNode"]
    assert not log[0][0].is_labels_gradient_filter
    assert log[0][2] is conv.result_image
    assert end is log[1][0]


def test_gradient_filters_of_a_forward_loss_are_prediction_then_labels():
    value = mpsnn.MPSNNForwardLossNode(MPSNNImageNode(), MPSNNImageNode(), loss())
    first, second = value.gradient_filters(MPSNNImageNode())
    assert [first.is_labels_gradient_filter, second.is_labels_gradient_filter] == [False, True]
    assert not value.gradient_filter(MPSNNImageNode()).is_labels_gradient_filter


def test_every_graph_input_is_a_terminus_of_its_own():
    a, b, log = MPSNNImageNode("a"), MPSNNImageNode("b"), []
    both = MPSNNConcatenationNode(
        [MPSCNNNeuronReLUNode(a, 0.0).result_image, MPSCNNNeuronReLUNode(b, 0.0).result_image]
    )
    ends = MPSCNNLossNode(both.result_image, loss()).training_graph(None, record(log))
    # b's neuron is younger, so its gradient is made first; both contributions come from the concatenation.
    assert {end.sources[1].handle for end in ends} == {"a", "b"}
    graph = MPSNNGraph("cpu", [end.result_image for end in ends])
    images = [numbers(1, 2, 2, 2, seed=i) for i in (1, 2)]
    results = graph.run(images, [mpsnn.MPSCNNLossLabels(numbers(1, 2, 2, 4))])
    assert len(results) == 2


def test_consumers_that_do_not_lead_to_the_last_node_get_no_gradient():
    block, log = Residual(), []
    MPSCNNNeuronReLUNode(block.conv1.result_image, 0.0)  # a side branch
    block.loss.training_graph(None, record(log))
    assert len(log) == len(RESIDUAL_ORDER)


def test_training_styles_are_those_of_the_forward_node_when_the_gradient_is_made():
    source = MPSNNImageNode()
    conv = MPSCNNConvolutionNode(source, weights(2, 2))
    for style in (STYLES.UpdateDeviceNone, STYLES.UpdateDeviceCPU, STYLES.UpdateDeviceGPU):
        conv.training_style = style
        assert conv.gradient_filter(conv.result_image).training_style == style
    norm = mpsnn.MPSCNNBatchNormalizationNode(source, mpsnn.BatchNormalizationWeights(2))
    norm.training_style = STYLES.UpdateDeviceCPU
    assert norm.gradient_filter(norm.result_image).training_style == STYLES.UpdateDeviceCPU


FORWARD_NODES = {
    "MPSCNNConvolutionNode": lambda x: MPSCNNConvolutionNode(x, weights(2, 2)),
    "MPSCNNFullyConnectedNode": lambda x: mpsnn.MPSCNNFullyConnectedNode(x, weights(2, 2)),
    "MPSCNNConvolutionTransposeNode": lambda x: mpsnn.MPSCNNConvolutionTransposeNode(x, None, weights(2, 2)),
    "MPSCNNPoolingMaxNode": lambda x: mpsnn.MPSCNNPoolingMaxNode(x, 2),
    "MPSCNNPoolingAverageNode": lambda x: mpsnn.MPSCNNPoolingAverageNode(x, 2),
    "MPSCNNPoolingL2NormNode": lambda x: mpsnn.MPSCNNPoolingL2NormNode(x, 2),
    "MPSCNNDilatedPoolingMaxNode": lambda x: mpsnn.MPSCNNDilatedPoolingMaxNode(x, 2),
    "MPSCNNSoftMaxNode": mpsnn.MPSCNNSoftMaxNode,
    "MPSCNNLogSoftMaxNode": mpsnn.MPSCNNLogSoftMaxNode,
    "MPSCNNDropoutNode": mpsnn.MPSCNNDropoutNode,
    "MPSCNNBatchNormalizationNode": lambda x: mpsnn.MPSCNNBatchNormalizationNode(x, mpsnn.BatchNormalizationWeights(2)),
    "MPSCNNNeuronSigmoidNode": mpsnn.MPSCNNNeuronSigmoidNode,
}


@pytest.mark.parametrize("name", FORWARD_NODES)
def test_the_gradient_class_has_the_stem_of_the_forward_class(name):
    node = FORWARD_NODES[name](MPSNNImageNode())
    incoming = MPSNNImageNode()
    gradient = node.gradient_filter(incoming)
    expected = "MPSCNNNeuronGradientNode" if "Neuron" in name else name.replace("Node", "GradientNode")
    assert class_name(gradient) == expected
    assert gradient.sources[0] is incoming
    is_soft_max = "SoftMax" in name
    assert gradient.sources[1] is (node.result_image if is_soft_max else node.sources[0])
    assert gradient.source_states == [node.result_state]
    assert class_name(node.gradient_filters(incoming)[0]) == expected


@pytest.mark.parametrize("kind", ["Addition", "Subtraction", "Multiplication"])
def test_arithmetic_nodes_have_two_gradients_primary_first(kind):
    a, b, incoming = MPSNNImageNode(), MPSNNImageNode(), MPSNNImageNode()
    node = getattr(mpsnn, f"MPSNN{kind}Node")(a, b)
    primary, secondary = node.gradient_filters(incoming)
    assert [primary.is_secondary_source_filter, secondary.is_secondary_source_filter] == [False, True]
    assert class_name(primary) == f"MPSNN{kind}GradientNode" == node.gradient_class.__name__
    operands = [primary.sources[1], secondary.sources[1]]
    assert operands == ([b, a] if kind == "Multiplication" else [a, b])  # a product needs the other operand
    with pytest.raises(mpsnn.GraphError, match=f"MPSNN{kind}Node.*two gradient nodes"):
        node.gradient_filter(incoming)


@pytest.mark.parametrize(
    "make",
    [
        lambda x: MPSCNNLossNode(x, loss()),
        mpsnn.MPSNNInitialGradientNode,
        lambda x: MPSCNNNeuronReLUNode(x, 0.0).gradient_filter(x),
        lambda x: MPSCNNConvolutionNode(x, weights(2, 2)).gradient_filter(x),
        lambda x: MPSNNAdditionNode(x, x).gradient_filters(x)[0],
        lambda x: MPSNNConcatenationNode([x]).gradient_filters(x)[0],
        lambda x: mpsnn.MPSNNForwardLossNode(x, x, loss()).gradient_filter(x),
    ],
)
def test_nodes_without_a_gradient_raise_an_error_that_names_their_class(make):
    node = make(MPSNNImageNode())
    for ask in (node.gradient_filter, node.gradient_filters):
        with pytest.raises(mpsnn.GraphError) as caught:
            ask(MPSNNImageNode())
        assert class_name(node) in str(caught.value)
        assert caught.value.node == class_name(node)


def test_a_backward_pass_through_a_node_without_gradient_names_it():
    x = MPSNNImageNode()
    ones = mpsnn.MPSNNInitialGradientNode(x)
    relu = MPSCNNNeuronReLUNode(ones.result_image, 0.0)
    with pytest.raises(mpsnn.GraphError, match="MPSNNInitialGradientNode"):
        MPSCNNLossNode(relu.result_image, loss()).training_graph()


def test_sources_lists_of_one_gradient_are_the_same_as_one_source():
    relu = MPSCNNNeuronReLUNode(MPSNNImageNode(), 0.0)
    incoming = MPSNNImageNode()
    assert relu.gradient_filter(sources=[incoming]).sources[0] is incoming
    assert relu.gradient_filters(sources=[incoming])[0].sources[0] is incoming
    for wrong in ([], [incoming, incoming]):
        with pytest.raises(mpsnn.GraphError, match="one gradient image"):
            relu.gradient_filter(sources=wrong)


def test_nodes_made_by_hand_are_worth_those_of_the_training_graph():
    x = MPSNNImageNode("x")
    source = weights(2, 3)
    conv = MPSCNNConvolutionNode(x, source)
    last = MPSCNNLossNode(conv.result_image, loss("MeanSquaredError"))
    by_hand = mpsnn.MPSCNNConvolutionGradientNode(last.result_image, x, conv.convolution_gradient_state)
    (made,) = last.training_graph()
    image, labels = numbers(2, 4, 4, 2), numbers(2, 4, 4, 3)
    results = [
        MPSNNGraph("cpu", end.result_image).run([image], [mpsnn.MPSCNNLossLabels(labels)]).numpy()
        for end in (by_hand, made)
    ]
    np.testing.assert_array_equal(*results)
    assert by_hand.weights is source
