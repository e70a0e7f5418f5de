# SPDX-License-Identifier: Apache-2.0
"""Layers too large for the engine that counts in float64: sizes beyond the limits at which kernels change their way, against NumPy."""

import mpsnn
import numpy as np
import pytest
from convolution_cases import assert_same_bits_for_any_number_of_threads
from engines import assert_close, evaluate, normal

# images, height, width, input channels, output channels
POINTWISE = [
    (8, 1, 1, 2048, 1100),  # few images, weights too many for the caches
    (8, 1, 1, 2051, 1030),  # the same, rows of weights on odd addresses
    (3, 1, 1, 1041, 70),
    (40, 1, 1, 300, 130),
    (2, 9, 8, 1024, 48),  # neighbouring pixels 4 KiB apart: all on the same lines of a cache
    (2, 20, 31, 65, 257),  # more output channels than a task takes
]


def build_pointwise(channels, outputs):
    descriptor = mpsnn.MPSCNNConvolutionDescriptor(1, 1, channels, outputs)
    weights, biases = normal(1, *descriptor.weight_shape), normal(2, outputs)
    source = mpsnn.ConvolutionWeights(
        descriptor, weights.astype(np.float32), biases.astype(np.float32), label="weights"
    )

    def build(image):
        node = mpsnn.MPSCNNConvolutionNode(image, source)
        return node, [node]

    return build, weights.astype(np.float32).astype(np.float64).reshape(outputs, channels), biases.astype(np.float32)


@pytest.mark.parametrize("size", POINTWISE)
def test_pointwise_layers_are_products_of_matrices(size):
    images, height, width, channels, outputs = size
    build, weights, biases = build_pointwise(channels, outputs)
    x = normal(3, images, height, width, channels).astype(np.float32)
    incoming = normal(4, images, height, width, outputs).astype(np.float32)
    got = evaluate("cpu", build, [x], incoming)
    rows, errors = x.reshape(-1, channels).astype(np.float64), incoming.reshape(-1, outputs).astype(np.float64)
    assert_close(
        got.result.reshape(-1, outputs),
        rows @ weights.T + biases,
        np.abs(rows) @ np.abs(weights).T + np.abs(biases),
        channels + 1,
    )
    assert_close(
        got.gradients[0].reshape(-1, channels),
        errors @ weights,
        np.abs(errors) @ np.abs(weights),
        outputs,
        what="data gradient",
    )
    state, pixels = got.states[0], len(rows)
    assert_close(
        state.gradient_for_weights.reshape(outputs, channels),
        errors.T @ rows,
        np.abs(errors).T @ np.abs(rows),
        pixels,
        what="gradient of the weights",
    )
    assert_close(state.gradient_for_biases, errors.sum(0), np.abs(errors).sum(0), pixels, what="gradient of the biases")


def strided(image):
    descriptor = mpsnn.MPSCNNConvolutionDescriptor(3, 3, 24, 40)
    descriptor.stride_in_pixels_x = descriptor.stride_in_pixels_y = 2
    source = mpsnn.ConvolutionWeights(
        descriptor, normal(1, *descriptor.weight_shape).astype(np.float32), None, label="weights"
    )
    node = mpsnn.MPSCNNConvolutionNode(image, source)
    return node, [node]


def depthwise(image):
    descriptor = mpsnn.MPSCNNDepthWiseConvolutionDescriptor(3, 3, 40, 40)
    source = mpsnn.ConvolutionWeights(
        descriptor, normal(1, *descriptor.weight_shape).astype(np.float32), None, label="weights"
    )
    node = mpsnn.MPSCNNConvolutionNode(image, source)
    return node, [node]


@pytest.mark.parametrize(
    ("build", "shape", "result"),
    [
        (build_pointwise(96, 200)[0], (2, 40, 31, 96), (2, 40, 31, 200)),
        (build_pointwise(512, 300)[0], (8, 1, 1, 512), (8, 1, 1, 300)),
        (strided, (3, 51, 40, 24), (3, 26, 20, 40)),
        (depthwise, (2, 41, 37, 40), (2, 41, 37, 40)),
    ],
)
def test_the_number_of_threads_changes_no_bit(build, shape, result):
    assert_same_bits_for_any_number_of_threads(build, shape, result)
