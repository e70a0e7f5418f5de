# SPDX-License-Identifier: Apache-2.0
"""Convolutions against PyTorch's autograd, over generated geometry."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="PyTorch is the oracle of this file and is not installed")

import mpsnn
from convolution_cases import descriptor_of, weights_of
from engines import DTYPES, assert_close, evaluate, normal
from geometry_cases import Edge, EdgePolicy, Method, window_cases
from hypothesis import given, settings
from test_convolution import transposed_cases
from torch.nn import functional as F
from torch_cases import array, backward, padded, plain, tensor

pytestmark = pytest.mark.oracle


def kernel_of(source):
    """(O, kH, kW, I/groups) becomes (O, I/groups, kH, kW)."""
    return plain(np.moveaxis(source.values["weights"], 3, 1))


def compare(case, node_class, source, policy, x, incoming, result, image, kernel, biases):
    """Both engines against PyTorch's result and gradients; scales are sums of absolute values, from above."""
    terms = case.taps * max(case.channels, case.outputs)
    largest = {
        name: 1 + np.abs(value).max(initial=0)
        for name, value in (("x", x), ("e", incoming), ("w", source.values["weights"]))
    }
    pixels = int(np.prod(incoming.shape[:3]))
    # With edge mode Clamp every window over the edge meets the pixel there.
    clamps = case.padding.edge_mode(Edge.Zero) == Edge.Clamp
    meetings = terms * (int(np.prod(incoming.shape[1:3])) if clamps else 1)

    def build(node_source):
        node = node_class(node_source, source)
        if policy is not None:
            node.padding_policy = policy
        return node, [node]

    for engine, dtype in DTYPES.items():
        got = evaluate(engine, build, [x], incoming)
        assert_close(got.result, array(result), terms * largest["x"] * largest["w"], terms, dtype)
        size = meetings * largest["e"] * largest["w"]
        assert_close(got.gradients[0], array(image.grad), size, meetings, dtype, "data gradient")
        by_weights = np.moveaxis(kernel.grad.numpy(), 1, 3)
        state = got.states[0]
        assert_close(
            state.gradient_for_weights,
            by_weights,
            pixels * largest["x"] * largest["e"],
            pixels,
            dtype,
            "weight gradient",
        )
        assert_close(
            state.gradient_for_biases, biases.grad.numpy(), pixels * largest["e"], pixels, dtype, "bias gradient"
        )


def convolve(case, depthwise):
    source = weights_of(descriptor_of(case, depthwise), case.seed)
    x = normal(case.seed, *case.shape)
    image, kernel, biases = tensor(x), kernel_of(source), plain(source.values["biases"])
    groups = case.channels if depthwise else case.groups
    read = padded(image, case.axes(), case.padding.edge_mode(Edge.Zero))
    result = F.conv2d(read, kernel, biases, stride=case.stride, dilation=case.dilation, groups=groups)
    incoming = normal(case.seed + 3, *array(result).shape)
    backward(result, incoming)
    compare(
        case, mpsnn.MPSCNNConvolutionNode, source, case.padding.policy(), x, incoming, result, image, kernel, biases
    )


@settings(max_examples=300)
@given(window_cases(dilates=True, edges=True, convolves=True, empty=False))
def test_convolutions_are_those_of_pytorch(case):
    convolve(case, depthwise=False)


@settings(max_examples=80)
@given(window_cases(dilates=True, edges=True, empty=False))
def test_depthwise_convolutions_are_grouped_ones_of_pytorch(case):
    convolve(case, depthwise=True)


@settings(max_examples=150)
@given(transposed_cases().filter(lambda case: case.images > 0))
def test_transposed_convolutions_are_those_of_pytorch_with_the_kernel_turned(case):
    """PyTorch's result is ours for the whole reach ("full", k - 1 pixels more than the zero-inserted image on both sides);
    our axis says which part of it a policy keeps. Its kernel is ours turned by 180 degrees, inputs first."""
    source = weights_of(descriptor_of(case), case.seed)
    x = normal(case.seed, *case.shape)
    image, kernel, biases = tensor(x), kernel_of(source), plain(source.values["biases"])
    split = kernel.reshape(case.groups, case.outputs // case.groups, *kernel.shape[1:])
    turned = split.flip(3, 4).transpose(1, 2).reshape(case.channels, case.outputs // case.groups, *case.kernel)
    whole = F.conv_transpose2d(image, turned, stride=case.stride, groups=case.groups)
    for dimension, (size, k, s) in enumerate(zip((case.height, case.width), case.kernel, case.stride, strict=True), 2):
        axis = mpsnn.resolve_reverse_axis(case.padding.method, size, k, s, "yx"[dimension - 2])
        front, back = max(0, -axis.before), max(0, axis.before + axis.input - whole.shape[dimension])
        whole = F.pad(whole, [front, back, 0, 0] if dimension == 3 else [0, 0, front, back])
        whole = whole.narrow(dimension, axis.before + front, axis.input)
    result = whole + biases.reshape(1, -1, 1, 1)
    incoming = normal(case.seed + 3, *array(result).shape)
    backward(result, incoming)
    compare(
        case,
        mpsnn.MPSCNNConvolutionTransposeNode,
        source,
        case.padding.policy(),
        x,
        incoming,
        result,
        image,
        kernel,
        biases,
    )


def test_a_linear_layer_is_a_fully_connected_node():
    source = weights_of(mpsnn.MPSCNNConvolutionDescriptor(4, 3, 5, 7), 2)
    x, incoming = normal(1, 6, 3, 4, 5), normal(2, 6, 1, 1, 7)
    image, weights, biases = plain(x), plain(source.values["weights"]), plain(source.values["biases"])
    result = F.linear(image.reshape(6, -1), weights.reshape(7, -1), biases)
    result.backward(plain(incoming.reshape(6, 7), grad=False))

    def build(node_source):
        node = mpsnn.MPSCNNFullyConnectedNode(node_source, source)
        return node, [node]

    for engine, dtype in DTYPES.items():
        got = evaluate(engine, build, [x], incoming)
        assert_close(got.result.reshape(6, 7), result.detach().numpy(), 60 * 8, 60, dtype)
        assert_close(got.gradients[0], image.grad.numpy(), 7 * 8, 7, dtype)
        assert_close(got.states[0].gradient_for_weights, weights.grad.numpy(), 6 * 8, 6, dtype)
        assert_close(got.states[0].gradient_for_biases, biases.grad.numpy(), 6 * 4, 6, dtype)


def test_the_default_padding_is_pytorch_s_half_kernel_for_odd_kernels_and_strides_one_and_two():
    for k in (1, 3, 5):
        for stride in (1, 2):
            source = weights_of(
                mpsnn.MPSCNNConvolutionDescriptor(k, k, 2, 3, stride_in_pixels_x=stride, stride_in_pixels_y=stride), 2
            )
            x = normal(1, 2, 8, 7, 2)
            expected = F.conv2d(
                tensor(x), kernel_of(source), plain(source.values["biases"]), stride=stride, padding=(k - 1) // 2
            )
            for policy in (None, EdgePolicy(Method.SizeSame, Edge.Zero)):

                def build(node_source, policy=policy, source=source):
                    node = mpsnn.MPSCNNConvolutionNode(node_source, source)
                    if policy is not None:
                        node.padding_policy = policy
                    return node

                assert_close(evaluate("reference", build, [x]).result, array(expected), 50 * 16, 50, np.float64)
