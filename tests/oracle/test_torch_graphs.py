# SPDX-License-Identifier: Apache-2.0
"""Gradients of whole training graphs against PyTorch's autograd in float64."""

import sys
from pathlib import Path

import mpsnn
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "python"))
from graph_cases import ENGINES, STYLES, loss, numbers, one_hot, tolerance

torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
functional = torch.nn.functional
pytestmark = pytest.mark.oracle

EPSILON_TYPE = {"cpu": np.float32, "reference": np.float64}


class Layer:
    """A convolution with its weights here and in PyTorch."""

    def __init__(self, label, inputs, outputs, kernel=(3, 3), seed=1, **properties):
        height, width = kernel
        self.values = numbers(outputs, height, width, inputs, seed=seed) / np.float32(np.sqrt(height * width * inputs))
        self.biases = numbers(outputs, seed=seed + 100)
        descriptor = mpsnn.MPSCNNConvolutionDescriptor(width, height, inputs, outputs, **properties)
        self.source = mpsnn.ConvolutionWeights(descriptor, self.values, self.biases, label=label)
        self.tensor = torch.tensor(self.values, dtype=torch.float64).permute(0, 3, 1, 2).contiguous().requires_grad_()
        self.bias_tensor = torch.tensor(self.biases, dtype=torch.float64, requires_grad=True)

    def node(self, source):
        node = mpsnn.MPSCNNConvolutionNode(source, self.source)
        return self.exported(node)

    def exported(self, node):
        node.convolution_gradient_state.export_from_graph = True
        node.convolution_gradient_state.handle = self.source.label()
        return node

    def transpose(self, source):
        return self.exported(mpsnn.MPSCNNConvolutionTransposeNode(source, None, self.source))

    def expected(self, is_transposed=False):
        gradient = self.tensor.grad.permute(0, 2, 3, 1)
        return gradient.numpy(), self.bias_tensor.grad.numpy()


def nchw(array):
    return torch.tensor(array, dtype=torch.float64).permute(0, 3, 1, 2).contiguous().requires_grad_()


def nhwc(tensor):
    return tensor.detach().permute(0, 2, 3, 1).numpy()


def check(engine, end, image, labels, expected_image, layers, terms):
    """Runs a step and compares the gradient of the input and of all weights."""
    graph = mpsnn.MPSNNGraph(engine, end.result_image)
    states, dtype = [], EPSILON_TYPE[engine]
    result = graph.run([image], [mpsnn.MPSCNNLossLabels(labels)], destination_states=states).numpy()
    assert result.dtype == dtype
    np.testing.assert_allclose(result, expected_image, rtol=0, atol=tolerance(expected_image, terms, dtype))
    assert len(states) == len(layers)
    by_label = dict(zip(graph.result_state_handles, states, strict=True))
    for layer in layers:
        state = by_label[layer.source.label()]
        for got, expected in zip(
            (state.gradient_for_weights, state.gradient_for_biases), layer.expected(), strict=True
        ):
            # A weight gradient is a sum over all pixels of the batch, of factors that are such sums themselves.
            pixels = image.shape[0] * image.shape[1] * image.shape[2]
            limit = tolerance(expected, terms * pixels, dtype)
            np.testing.assert_allclose(got, expected, rtol=0, atol=limit, err_msg=layer.source.label())


@pytest.mark.parametrize("engine", ENGINES)
def test_the_residual_blocks_gradients_are_those_of_autograd(engine):
    first, second = Layer("conv1", 4, 4, seed=1), Layer("conv2", 4, 4, seed=2)
    image, labels = numbers(3, 7, 5, 4), numbers(3, 7, 5, 4, seed=9)
    x = nchw(image)
    inner = torch.relu(functional.conv2d(x, first.tensor, first.bias_tensor, padding=1))
    y = torch.relu(functional.conv2d(inner, second.tensor, second.bias_tensor, padding=1) + x)
    ((y - nchw(labels).detach()) ** 2).sum().backward()

    source = mpsnn.MPSNNImageNode("x")
    relu1 = mpsnn.MPSCNNNeuronReLUNode(first.node(source).result_image, 0.0)
    add = mpsnn.MPSNNAdditionNode(second.node(relu1.result_image).result_image, source)
    relu = mpsnn.MPSCNNNeuronReLUNode(add.result_image, 0.0)
    (end,) = mpsnn.MPSCNNLossNode(relu.result_image, loss("MeanSquaredError")).training_graph()
    check(engine, end, image, labels, nhwc(x.grad), [first, second], terms=4 * 3 * 3 * 4)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_concatenation_branchs_gradients_are_those_of_autograd(engine):
    stem = Layer("stem", 2, 3, seed=1)
    left, right = Layer("left", 3, 5, kernel=(1, 3), seed=2), Layer("right", 3, 2, kernel=(5, 1), seed=3)
    joined = Layer("joined", 10, 3, kernel=(1, 1), seed=4)
    image = numbers(2, 6, 9, 2)
    # One class per pixel: the gradient softmax(y) - t is that of the loss where labels sum to exactly 1.
    labels = one_hot(3, 2 * 6 * 9).reshape(2, 6, 9, 3)
    x = nchw(image)
    shared = torch.sigmoid(functional.conv2d(x, stem.tensor, stem.bias_tensor, padding=1))
    branches = [
        functional.conv2d(shared, left.tensor, left.bias_tensor, padding=(0, 1)),
        functional.conv2d(shared, right.tensor, right.bias_tensor, padding=(2, 0)),
        shared,
    ]
    y = functional.conv2d(torch.cat(branches, 1), joined.tensor, joined.bias_tensor)
    (-(nchw(labels).detach() * functional.log_softmax(y, 1))).sum().backward()

    source = mpsnn.MPSNNImageNode("x")
    sigmoid = mpsnn.MPSCNNNeuronSigmoidNode(stem.node(source).result_image)
    images = [left.node(sigmoid.result_image).result_image, right.node(sigmoid.result_image).result_image]
    both = mpsnn.MPSNNConcatenationNode([*images, sigmoid.result_image])
    last = joined.node(both.result_image)
    (end,) = mpsnn.MPSCNNLossNode(last.result_image, loss()).training_graph()
    check(engine, end, image, labels, nhwc(x.grad), [stem, left, right, joined], terms=4 * 3 * 5 * 10)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_u_shapes_gradients_are_those_of_autograd(engine):
    """Down by a strided convolution, up by a transposed one, and a bridge that is concatenated."""
    down = Layer("down", 2, 3, kernel=(2, 2), seed=1, stride_in_pixels_x=2, stride_in_pixels_y=2)
    up = Layer("up", 3, 4, kernel=(2, 2), seed=2, stride_in_pixels_x=2, stride_in_pixels_y=2)
    last = Layer("last", 6, 2, seed=3)
    image, labels = numbers(2, 6, 8, 2), numbers(2, 6, 8, 2, seed=9)
    x = nchw(image)
    low = torch.tanh(functional.conv2d(x, down.tensor, down.bias_tensor, stride=2))
    # MPS correlates with the zero-inserted source: PyTorch's kernel is turned by 180 degrees and has in and out swapped.
    turned = up.tensor.flip(2, 3).transpose(0, 1)
    high = functional.conv_transpose2d(low, turned, up.bias_tensor, stride=2)
    y = functional.conv2d(torch.cat([high, x], 1), last.tensor, last.bias_tensor, padding=1)
    ((y - nchw(labels).detach()) ** 2).sum().backward()

    source = mpsnn.MPSNNImageNode("x")
    strided = down.node(source)
    tanh = mpsnn.MPSCNNNeuronTanHNode(strided.result_image)
    upward = mpsnn.MPSCNNConvolutionTransposeNode(tanh.result_image, strided.convolution_gradient_state, up.source)
    up.exported(upward)
    bridge = mpsnn.MPSNNConcatenationNode([upward.result_image, source])
    node = last.node(bridge.result_image)
    (end,) = mpsnn.MPSCNNLossNode(node.result_image, loss("MeanSquaredError")).training_graph()
    check(engine, end, image, labels, nhwc(x.grad), [down, up, last], terms=3 * 3 * 6 * 4 * 3)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("style", [STYLES.UpdateDeviceCPU, STYLES.UpdateDeviceGPU])
def test_ten_steps_of_plain_descent_end_at_autograds_weights(engine, style):
    rate, steps = 0.05, 10
    layer = Layer("conv", 2, 3)
    descent = torch.optim.SGD([layer.tensor, layer.bias_tensor], lr=rate)
    layer.source.optimizer = mpsnn.MPSNNOptimizerStochasticGradientDescent(None, rate)
    node = mpsnn.MPSCNNConvolutionNode(mpsnn.MPSNNImageNode(), layer.source)
    node.training_style = style
    (end,) = mpsnn.MPSCNNLossNode(node.result_image, loss("MeanSquaredError", weight=1 / 72)).training_graph()
    graph = mpsnn.MPSNNGraph(engine, end.result_image, False)
    for step in range(steps):
        image, labels = numbers(2, 4, 3, 2, seed=step), numbers(2, 4, 3, 3, seed=50 + step)
        descent.zero_grad()
        y = functional.conv2d(nchw(image).detach(), layer.tensor, layer.bias_tensor, padding=1)
        (((y - nchw(labels).detach()) ** 2).sum() / 72).backward()
        descent.step()
        graph.run([image], [mpsnn.MPSCNNLossLabels(labels)])
    got, expected = layer.source.values["weights"], nhwc(layer.tensor)
    # PyTorch's rate is a double, ours a float32, as in MPS: that is a relative error of the steps, of one epsilon.
    limit = tolerance(expected, steps * 2 * 4 * 3, EPSILON_TYPE[engine]) + steps * rate * np.finfo(np.float32).eps
    np.testing.assert_allclose(got, expected, rtol=0, atol=limit)
