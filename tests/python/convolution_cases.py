# SPDX-License-Identifier: Apache-2.0
"""Convolutions for tests: built from a WindowCase, compared between the engines and between numbers of threads."""

import mpsnn
import numpy as np
from engines import Network, assert_close, evaluate, normal
from winograd_error import fast_amplification


def descriptor_of(case, depthwise=False):
    kind = mpsnn.MPSCNNDepthWiseConvolutionDescriptor if depthwise else mpsnn.MPSCNNConvolutionDescriptor
    descriptor = kind(case.kernel[1], case.kernel[0], case.channels, case.outputs or case.channels)
    descriptor.stride_in_pixels_y, descriptor.stride_in_pixels_x = case.stride
    descriptor.dilation_rate_y, descriptor.dilation_rate_x = case.dilation
    descriptor.groups = case.groups
    return descriptor


def weights_of(descriptor, seed, absolute=False, biases=True):
    weights, bias = normal(seed + 1, *descriptor.weight_shape), normal(seed + 2, descriptor.output_feature_channels)
    if absolute:
        weights, bias = np.abs(weights), np.abs(bias)
    return mpsnn.ConvolutionWeights(
        descriptor, weights.astype(np.float32), bias.astype(np.float32) if biases else None, label="weights"
    )


def convolution(source, policy, node_class=mpsnn.MPSCNNConvolutionNode):
    def build(image):
        node = node_class(image, source)
        node.padding_policy = policy
        return node, [node]

    return build


def compare_engines(case, make_build, result_shape):
    """The engines agree, within what rounding does to sums of these absolute values, which the reference adds up too:
    everything here is linear in the image, the weights and the incoming gradient."""
    x, incoming = normal(case.seed, *case.shape), normal(case.seed + 3, *result_shape)
    reference = evaluate("reference", make_build(False), [x], incoming)
    network = Network("cpu", make_build(False))
    cpu = network.run([x], incoming)
    sizes = evaluate("reference", make_build(True), [np.abs(x)], np.abs(incoming))
    assert reference.result.shape == result_shape
    assert reference.gradients[0].shape == x.shape
    got, expected, size = cpu.states[0], reference.states[0], sizes.states[0]
    sums = [sizes.result, sizes.gradients[0], size.gradient_for_weights]
    if network.uses("winograd", x, incoming):
        # Each number goes through every position of its tile: what a small one is off by depends on the large ones beside it.
        sums = [fast_amplification(case.kernel[0]) * sum_.max(initial=0) for sum_ in sums]
    assert_close(cpu.result, reference.result, sums[0], case.taps * case.channels + 1)
    # With edge mode Clamp every window over the edge meets the pixel there.
    terms = case.taps * (case.outputs or 1) + int(np.prod(result_shape[1:3]))
    assert_close(cpu.gradients[0], reference.gradients[0], sums[1], terms, what="data gradient")
    pixels = int(np.prod(result_shape[:3]))
    assert_close(got.gradient_for_weights, expected.gradient_for_weights, sums[2], pixels, what="weight gradient")
    assert_close(
        got.gradient_for_biases, expected.gradient_for_biases, size.gradient_for_biases, pixels, what="bias gradient"
    )
    return reference


def assert_same_bits_for_any_number_of_threads(build, shape, result_shape):
    """Result, data gradient and weight gradient of what build() makes."""
    x, incoming = normal(3, *shape), normal(4, *result_shape)
    before, values = mpsnn.num_threads(), []
    try:
        for threads in (1, 2, 5):
            mpsnn.set_num_threads(threads)
            got = evaluate("cpu", build, [x], incoming)
            values.append([got.result, got.gradients[0], got.states[0].gradient_for_weights])
    finally:
        mpsnn.set_num_threads(before)
    for other in values[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(values[0], other, strict=True))
