# SPDX-License-Identifier: Apache-2.0
"""Convolution, fully connected and transposed convolution: sizes, numbers and gradients on both engines."""

from dataclasses import replace

import mpsnn
import numpy as np
import pytest
from convolution_cases import compare_engines, convolution, descriptor_of, weights_of
from engines import (
    PARAMETER_STEP,
    Network,
    assert_close,
    assert_differences_agree,
    assert_survives_saving,
    difference_tolerance,
    evaluate,
    normal,
    parameter_difference,
    result_of,
    row,
)
from geometry_cases import Edge, EdgePolicy, Method, Padding, WindowCase, window_cases
from hypothesis import example, given, settings
from hypothesis import strategies as st

SAME_TL = Method.SizeSame
SAME_BR = Method.SizeSame | Method.AddRemainderToBottomRight


@settings(max_examples=500)
@given(window_cases(dilates=True, edges=True, convolves=True))
@example(WindowCase(1, 1, 1, 1, (4, 3), (1, 1), (3, 2), Padding(Method.SizeFull), outputs=2))
@example(WindowCase(2, 3, 2, 4, (5, 5), (4, 3), (1, 1), Padding(Method.SizeSame), outputs=6, groups=2))
@example(WindowCase(0, 5, 4, 3, (3, 2), (2, 1), (1, 2), Padding(Method.SizeSame), outputs=4))
@example(WindowCase(2, 13, 33, 19, (3, 3), (1, 1), (1, 1), Padding(Method.SizeSame), outputs=21))
@example(WindowCase(1, 30, 31, 3, (5, 5), (2, 2), (1, 1), Padding(Method.SizeValidOnly), outputs=18))
@example(WindowCase(3, 7, 9, 33, (1, 1), (1, 1), (1, 1), Padding(Method.SizeSame), outputs=40))
def test_the_engines_agree_on_convolutions(case):
    descriptor = descriptor_of(case)

    def build(absolute):
        return convolution(weights_of(descriptor, case.seed, absolute), case.padding.policy())

    compare_engines(case, build, (case.images, *case.result_size(), case.outputs))


@settings(max_examples=200)
@given(window_cases(dilates=True, edges=True))
@example(WindowCase(2, 17, 19, 24, (3, 3), (1, 1), (1, 1)))
@example(WindowCase(1, 16, 15, 8, (3, 3), (2, 2), (1, 1)))
def test_the_engines_agree_on_depthwise_convolutions(case):
    descriptor = descriptor_of(case, depthwise=True)

    def build(absolute):
        return convolution(weights_of(descriptor, case.seed, absolute), case.padding.policy())

    compare_engines(case, build, (case.images, *case.result_size(), case.channels))


@settings(max_examples=150)
@given(window_cases(dilates=True, edges=True), st.sampled_from([(16, 2), (18, 2), (20, 4), (36, 4), (24, 8), (40, 8)]))
@example(WindowCase(2, 15, 17, 1, (3, 3), (1, 1), (1, 1)), (40, 8))
@example(WindowCase(1, 16, 31, 1, (3, 3), (2, 2), (1, 1)), (20, 4))
@example(WindowCase(2, 14, 6, 1, (5, 5), (3, 3), (1, 1)), (18, 2))
def test_the_engines_agree_on_narrow_groups(case, channels_and_width):
    channels, width = channels_and_width
    case = replace(case, channels=channels, outputs=channels, groups=channels // width)
    descriptor = descriptor_of(case)

    def build(absolute):
        return convolution(weights_of(descriptor, case.seed, absolute), case.padding.policy())

    compare_engines(case, build, (case.images, *case.result_size(), channels))


@settings(max_examples=80)
@given(window_cases(dilates=True, largest=5), st.integers(2, 3))
def test_every_channel_of_a_depthwise_convolution_has_filters_of_its_own(case, multiplier):
    """Channel k gives results k * m to k * m + m - 1: the same as a convolution in as many groups as channels."""
    depthwise = mpsnn.MPSCNNDepthWiseConvolutionDescriptor(
        case.kernel[1], case.kernel[0], case.channels, case.channels * multiplier
    )
    grouped = descriptor_of(
        WindowCase(
            *case.shape,
            case.kernel,
            case.stride,
            case.dilation,
            outputs=case.channels * multiplier,
            groups=case.channels,
        )
    )
    depthwise.stride_in_pixels_y, depthwise.stride_in_pixels_x = case.stride
    depthwise.dilation_rate_y, depthwise.dilation_rate_x = case.dilation
    x = normal(case.seed, *case.shape)
    for engine in ("reference", "cpu"):
        first, second = (
            result_of(convolution(weights_of(d, case.seed), case.padding.policy()), x, engine=engine)
            for d in (depthwise, grouped)
        )
        assert_close(first, second, np.abs(first).max(initial=1) * case.taps, case.taps, first.dtype)


@settings(max_examples=120)
@given(window_cases(dilates=True, edges=True, convolves=True, largest=4, largest_kernel=3, empty=False))
def test_convolution_gradients_are_central_differences(case):
    source = weights_of(descriptor_of(case), case.seed)
    build = convolution(source, case.padding.policy())
    x = normal(case.seed, *case.shape)
    incoming = normal(case.seed + 3, case.images, *case.result_size(), case.outputs)
    got = assert_differences_agree(build, [x], incoming, curvature=0, scale=linear_scale(case, x, incoming))
    assert_parameter_differences_agree(build, source, x, incoming, got, linear_scale(case, x, incoming))


def linear_scale(case, x, incoming):
    """More than the absolute values in sum(incoming * result) add up to; weights of a unit normal stay below 5."""
    return np.abs(incoming).sum() * (1 + np.abs(x).max()) * case.taps * case.channels * 5


def assert_parameter_differences_agree(build, source, x, incoming, got, scale):
    network = Network("reference", build, differentiate=False)
    for name in source.values:
        expected = parameter_difference(network, [x], incoming, source, name)
        actual = getattr(got.states[0], f"gradient_for_{name}")
        assert actual.shape == expected.shape
        assert np.abs(actual - expected).max() <= difference_tolerance(scale, PARAMETER_STEP, curvature=0)


@settings(max_examples=120)
@given(window_cases(dilates=True, edges=True, convolves=True, largest=6, empty=False))
def test_the_data_gradient_is_the_adjoint_of_the_convolution(case):
    """Without biases, <conv(x), e> = <x, gradient of x> = <w, gradient of w>."""
    source = weights_of(descriptor_of(case), case.seed, biases=False)
    x = normal(case.seed, *case.shape)
    incoming = normal(case.seed + 3, case.images, *case.result_size(), case.outputs)
    got = evaluate("reference", convolution(source, case.padding.policy()), [x], incoming)
    product = (got.result * incoming).sum()
    scale = linear_scale(case, x, incoming)
    terms = incoming.size * case.taps * case.channels
    assert_close((got.gradients[0] * x).sum(), product, scale, terms, np.float64)
    assert_close(
        (got.states[0].gradient_for_weights * source.values["weights"]).sum(), product, scale, terms, np.float64
    )


@settings(max_examples=80)
@given(window_cases(convolves=True, largest=5, empty=False))
def test_the_weight_gradient_of_a_batch_is_the_sum_over_its_images(case):
    build = convolution(weights_of(descriptor_of(case), case.seed), case.padding.policy())
    x = normal(case.seed, 3, *case.shape[1:])
    incoming = normal(case.seed + 3, 3, *case.result_size(), case.outputs)
    whole = evaluate("reference", build, [x], incoming)
    single = [evaluate("reference", build, [x[i : i + 1]], incoming[i : i + 1]) for i in range(3)]
    assert whole.result.tobytes() == np.concatenate([s.result for s in single]).tobytes()
    total = sum(s.states[0].gradient_for_weights for s in single)
    assert_close(
        whole.states[0].gradient_for_weights, total, linear_scale(case, x, incoming), incoming.size, np.float64
    )


def test_an_empty_batch_gives_zero_weight_gradients():
    descriptor = mpsnn.MPSCNNConvolutionDescriptor(3, 2, 4, 5)
    build = convolution(weights_of(descriptor, 0), mpsnn.MPSNNDefaultPadding(SAME_TL))
    for engine in ("reference", "cpu"):
        got = evaluate(engine, build, [np.zeros((0, 6, 7, 4))], np.zeros((0, 6, 7, 5)))
        assert got.result.shape == (0, 6, 7, 5)
        assert got.gradients[0].shape == (0, 6, 7, 4)
        assert not got.states[0].gradient_for_weights.any()
        assert not got.states[0].gradient_for_biases.any()


@pytest.mark.parametrize("depthwise", [False, True])
def test_a_saved_convolution_gives_the_same_bits(depthwise):
    case = WindowCase(2, 6, 7, 4, (3, 2), (2, 1), (1, 2), groups=1 if depthwise else 2, outputs=4)
    source = weights_of(descriptor_of(case, depthwise), 5)
    incoming = normal(3, 2, *case.result_size(), 4)
    build = convolution(source, mpsnn.MPSNNDefaultPadding(SAME_BR))
    assert_survives_saving(build, [normal(0, *case.shape)], incoming)
    padding = Padding(explicit_y=(1, -1), explicit_x=(0, 3))
    case = WindowCase(2, 6, 7, 4, (3, 2), (2, 1), (1, 2), padding, groups=case.groups, outputs=4)
    incoming = normal(3, 2, *case.result_size(), 4)
    assert_survives_saving(convolution(source, padding.policy()), [normal(0, *case.shape)], incoming)


# --- golden vectors (MPS_SEMANTICS 22.1)


def line(taps, stride=1, dilation=1, biases=True):
    descriptor = mpsnn.MPSCNNConvolutionDescriptor(
        len(taps), 1, 1, 1, stride_in_pixels_x=stride, dilation_rate_x=dilation
    )
    zero = np.zeros(1, np.float32) if biases else None
    return mpsnn.ConvolutionWeights(descriptor, np.array(taps, np.float32), zero, label="line")


GOLDEN = [
    ([1, 10, 100], SAME_TL, 2, 1, 6, [210, 432, 654]),
    ([1, 10, 100], SAME_BR, 2, 1, 6, [321, 543, 65]),
    ([1, 10, 100], SAME_TL, 2, 1, 5, [210, 432, 54]),
    ([1, 10, 100], SAME_BR, 2, 1, 5, [210, 432, 54]),
    ([1, 10, 100], Method.SizeValidOnly, 2, 1, 6, [321, 543]),
    ([1, 10, 100], Method.SizeFull, 1, 1, 6, [100, 210, 321, 432, 543, 654, 65, 6]),
    ([1, 10, 100], SAME_TL, 1, 2, 6, [310, 420, 531, 642, 53, 64]),
    ([1, 10], SAME_TL, 1, 1, 6, [10, 21, 32, 43, 54, 65]),
    ([1, 10], SAME_BR, 1, 1, 6, [21, 32, 43, 54, 65, 6]),
    ([1, 10], SAME_TL, 1, 3, 6, [20, 30, 41, 52, 63, 4]),
]


@pytest.mark.parametrize("engine", ["reference", "cpu"])
@pytest.mark.parametrize(("taps", "method", "stride", "dilation", "length", "expected"), GOLDEN)
def test_convolutions_of_a_line_are_the_printed_ones(engine, taps, method, stride, dilation, length, expected):
    build = convolution(line(taps, stride, dilation), mpsnn.MPSNNDefaultPadding(method))
    assert result_of(build, row(*range(1, length + 1)), engine=engine).ravel().tolist() == expected


@pytest.mark.parametrize("engine", ["reference", "cpu"])
@pytest.mark.parametrize(
    ("method", "data", "weights"),
    [(SAME_TL, [10, 102, 20, 203, 30, 300], [16, 22, 28]), (SAME_BR, [1, 10, 102, 20, 203, 30], [22, 28, 13])],
)
def test_gradients_of_a_line_are_the_printed_ones_and_sum_over_the_batch(engine, method, data, weights):
    build = convolution(line([1, 10, 100], 2), mpsnn.MPSNNDefaultPadding(method))
    x, incoming = row(1, 2, 3, 4, 5, 6), row(1, 2, 3)
    for count in (1, 2):
        got = evaluate(engine, build, [np.repeat(x, count, 0)], np.repeat(incoming, count, 0))
        assert got.gradients[0].reshape(count, -1).tolist() == [data] * count
        assert got.states[0].gradient_for_weights.ravel().tolist() == [count * w for w in weights]
        assert got.states[0].gradient_for_biases.tolist() == [6 * count]


@pytest.mark.parametrize("engine", ["reference", "cpu"])
def test_weights_are_read_output_height_width_input(engine):
    x = np.arange(1, 13).reshape(1, 2, 3, 2)
    valid = mpsnn.MPSNNDefaultPadding(Method.SizeValidOnly)
    source = mpsnn.ConvolutionWeights(
        mpsnn.MPSCNNConvolutionDescriptor(1, 2, 2, 1), np.array([1, 10, 100, 1000], np.float32)
    )
    assert result_of(convolution(source, valid), x, engine=engine).ravel().tolist() == [8721, 10943, 13165]
    full = mpsnn.ConvolutionWeights(mpsnn.MPSCNNConvolutionDescriptor(3, 2, 2, 1), np.arange(1, 13, dtype=np.float32))
    got = evaluate(engine, lambda image: mpsnn.MPSCNNFullyConnectedNode(image, full), [x], np.full((1, 1, 1, 1), 2))
    assert got.result.ravel().tolist() == [650]
    assert got.gradients[0].ravel().tolist() == list(range(2, 26, 2))


@pytest.mark.parametrize("engine", ["reference", "cpu"])
def test_taps_outside_repeat_the_edge_where_the_policy_says_clamp(engine):
    build = convolution(line([1, 10, 100]), EdgePolicy(SAME_TL, Edge.Clamp))
    got = evaluate(engine, build, [row(1, 2, 3)], row(1, 1, 1))
    assert got.result.ravel().tolist() == [211, 321, 332]
    assert got.gradients[0].ravel().tolist() == [12, 111, 210]
    assert got.states[0].gradient_for_weights.ravel().tolist() == [4, 6, 8]


# --- fully connected


@settings(max_examples=80)
@given(
    st.integers(1, 5),
    st.integers(1, 5),
    st.sampled_from([1, 3, 16]),
    st.sampled_from([1, 4, 17, 50]),
    st.sampled_from([0, 1, 7]),
    st.integers(0, 999),
)
@example(4, 5, 53, 70, 8, 0)
@example(2, 3, 7, 67, 3, 0)
@example(1, 1, 1040, 64, 1, 0)
@example(5, 5, 21, 90, 13, 0)
def test_the_engines_agree_on_fully_connected_nodes(height, width, channels, outputs, images, seed):
    case = WindowCase(images, height, width, channels, (height, width), (1, 1), (1, 1), seed=seed, outputs=outputs)

    def build(absolute):
        source = weights_of(descriptor_of(case), seed, absolute)

        def network(image):
            node = mpsnn.MPSCNNFullyConnectedNode(image, source)
            return node, [node]

        return network

    reference = compare_engines(case, build, (images, 1, 1, outputs))
    source = weights_of(descriptor_of(case), seed)
    product = normal(seed, *case.shape).reshape(images, case.taps * channels) @ source.values["weights"].reshape(
        outputs, -1
    ).T.astype(np.float64)
    expected = product + source.values["biases"]
    assert_close(
        reference.result.reshape(images, outputs),
        expected,
        np.abs(expected).max(initial=1) * case.taps * channels,
        case.taps * channels,
        np.float64,
    )


def test_a_saved_fully_connected_node_gives_the_same_bits():
    source = weights_of(mpsnn.MPSCNNConvolutionDescriptor(4, 3, 2, 5), 1)

    def build(image):
        node = mpsnn.MPSCNNFullyConnectedNode(image, source)
        return node, [node]

    assert_survives_saving(build, [normal(0, 3, 3, 4, 2)], normal(1, 3, 1, 1, 5))


# --- what has no gradient: descriptors for inference


@pytest.mark.parametrize("engine", ["reference", "cpu"])
@pytest.mark.parametrize("r", [2, 3])
def test_sub_pixel_convolutions_lay_out_blocks_of_channels_as_pixels(engine, r):
    """Channel block r * (y mod r) + (x mod r) of the result becomes pixel (y, x): block-major, as depth_to_space."""
    plain = mpsnn.MPSCNNConvolutionDescriptor(3, 3, 4, 2 * r * r)
    blocks = mpsnn.MPSCNNSubPixelConvolutionDescriptor(3, 3, 4, 2 * r * r, sub_pixel_scale_factor=r)
    x, policy = normal(3, 2, 4, 5, 4), mpsnn.MPSNNDefaultPadding(SAME_TL)
    flat, shuffled = (result_of(convolution(weights_of(d, 7), policy), x, engine=engine) for d in (plain, blocks))
    expected = flat.reshape(2, 4, 5, r, r, 2).transpose(0, 1, 3, 2, 4, 5).reshape(2, 4 * r, 5 * r, 2)
    assert shuffled.shape == expected.shape
    assert_close(shuffled, expected, np.abs(flat).max() * 36, 36, flat.dtype)


@pytest.mark.parametrize("engine", ["reference", "cpu"])
def test_a_fused_neuron_and_folded_normalization_equal_nodes_of_their_own(engine):
    channels = 5
    numbers = {name: normal(i, channels).astype(np.float32) for i, name in enumerate(("mean", "gamma", "beta"))}
    variance = np.square(normal(4, channels)).astype(np.float32) + np.float32(0.5)
    fused = mpsnn.MPSCNNConvolutionDescriptor(3, 2, 3, channels)
    fused.set_batch_normalization_parameters_for_inference(
        numbers["mean"], variance, numbers["gamma"], numbers["beta"], 0.25
    )
    fused.fused_neuron_descriptor = mpsnn.MPSNNNeuronDescriptor(mpsnn.MPSCNNNeuronType.ReLU, 0.125)
    x, policy = normal(9, 2, 5, 4, 3), mpsnn.MPSNNDefaultPadding(SAME_TL)
    got = result_of(convolution(weights_of(fused, 11), policy), x, engine=engine)

    def apart(image):
        node = mpsnn.MPSCNNConvolutionNode(image, weights_of(mpsnn.MPSCNNConvolutionDescriptor(3, 2, 3, channels), 11))
        normalization = mpsnn.BatchNormalizationWeights(channels, epsilon=0.25)
        normalization.set_values(variance=variance, **numbers)
        node = mpsnn.MPSCNNBatchNormalizationNode(node.result_image, normalization)
        return mpsnn.MPSCNNNeuronReLUNode(node.result_image, 0.125)

    expected = result_of(apart, x)
    assert_close(got, expected, 18 * (1 + np.abs(expected).max()), 20, got.dtype)


# --- transposed convolution


def transposed(source, policy):
    return convolution(source, policy, mpsnn.MPSCNNConvolutionTransposeNode)


TRANSPOSED = [
    ([1, 10, 100], Method.SizeValidOnly, [201, 20, 302]),
    ([1, 10, 100], SAME_TL, [10, 201, 20, 302, 30]),
    ([1, 10, 100], Method.SizeFull, [100, 10, 201, 20, 302, 30, 3]),
    ([1, 10], SAME_TL, [10, 1, 20, 2, 30]),
    ([1, 10], SAME_BR, [1, 20, 2, 30, 3]),
    ([1, 10], Method.SizeFull, [10, 1, 20, 2, 30, 3]),
]


@pytest.mark.parametrize("engine", ["reference", "cpu"])
@pytest.mark.parametrize(("taps", "method", "expected"), TRANSPOSED)
def test_transposed_convolutions_of_a_line_are_the_printed_ones(engine, taps, method, expected):
    build = transposed(line(taps, 2), mpsnn.MPSNNDefaultPadding(method))
    assert result_of(build, row(1, 2, 3), engine=engine).ravel().tolist() == expected


def undo(source, enlarging):
    """A convolution, then the transposed convolution that takes its gradient state."""

    def build(image):
        first = mpsnn.MPSCNNConvolutionNode(image, source)
        second = mpsnn.MPSCNNConvolutionTransposeNode(first.result_image, first.convolution_gradient_state, enlarging)
        return second, [second, first]

    return build


@pytest.mark.parametrize("engine", ["reference", "cpu"])
def test_a_transposed_convolution_with_a_gradient_state_has_the_size_of_that_source(engine):
    """The convolution passes the printed [1, 2, 3] on: it looks at every second pixel only."""
    picking = line([0, 1, 0], 2)
    build = undo(picking, line([1, 10, 100], 2))
    assert result_of(build, row(1, 0, 2, 0, 3, 0), engine=engine).ravel().tolist() == [10, 201, 20, 302, 30, 3]


@st.composite
def transposed_cases(draw, largest=6):
    """Methods whose result has at least one pixel: valid needs (L - 1) * s + 1 >= k."""
    kernel = (draw(st.integers(1, 4)), draw(st.integers(1, 5)))
    stride = (draw(st.integers(1, 3)), draw(st.integers(1, 4)))
    method = draw(st.sampled_from([Method.SizeSame, Method.SizeFull, Method.SizeValidOnly]))
    method |= draw(
        st.sampled_from([Method.AddRemainderToTopLeft, Method.AddRemainderToBottomRight, Method.AddRemainderToTopRight])
    )
    method |= draw(st.sampled_from([Method.AlignCentered, Method.AlignTopLeft, Method.AlignBottomRight]))
    sizes = [draw(st.integers(1, largest)), draw(st.integers(1, largest))]
    if method & Method.SizeMask == Method.SizeValidOnly:
        sizes = [max(size, -(-(k - 1) // s) + 1) for size, k, s in zip(sizes, kernel, stride, strict=True)]
    per_group = st.sampled_from([1, 2, 3, 16, 17]) if largest > 4 else st.integers(1, 2)
    groups = draw(st.sampled_from([1, 1, 2]))
    channels, outputs = groups * draw(per_group), groups * draw(per_group)
    images = draw(st.sampled_from([1, 2, 0])) if largest > 4 else 1
    return WindowCase(
        images, *sizes, channels, kernel, stride, (1, 1), Padding(method), draw(st.integers(0, 999)), groups, outputs
    )


def transposed_size(case):
    """(height, width) by the printed formulas (MPS_SEMANTICS 6.5)."""
    style = {Method.SizeValidOnly: -1, Method.SizeSame: 0, Method.SizeFull: 1}[case.padding.method & Method.SizeMask]
    sizes = zip((case.height, case.width), case.stride, case.kernel, strict=True)
    return tuple((size - 1) * s + 1 + style * (k - 1) for size, s, k in sizes)


@settings(max_examples=300)
@given(transposed_cases())
def test_the_engines_agree_on_transposed_convolutions(case):
    def build(absolute):
        return transposed(weights_of(descriptor_of(case), case.seed, absolute), case.padding.policy())

    compare_engines(case, build, (case.images, *transposed_size(case), case.outputs))


@settings(max_examples=80)
@given(transposed_cases(largest=3))
def test_transposed_convolution_gradients_are_central_differences(case):
    source = weights_of(descriptor_of(case), case.seed)
    build = transposed(source, case.padding.policy())
    x = normal(case.seed, *case.shape)
    incoming = normal(case.seed + 3, case.images, *transposed_size(case), case.outputs)
    scale = linear_scale(case, x, incoming)
    got = assert_differences_agree(build, [x], incoming, curvature=0, scale=scale)
    assert_parameter_differences_agree(build, source, x, incoming, got, scale)


@settings(max_examples=80)
@given(window_cases(convolves=True, largest=6, empty=False, tensorflow=False, explicit=False))
def test_a_transposed_convolution_with_a_state_is_the_data_gradient_of_its_convolution(case):
    """With the kernel turned by 180 degrees and its channels exchanged, the two formulas are one."""
    case = WindowCase(*case.shape, case.kernel, case.stride, (1, 1), case.padding, case.seed, 1, case.outputs)
    source = weights_of(descriptor_of(case), case.seed, biases=False)
    back = mpsnn.MPSCNNConvolutionDescriptor(case.kernel[1], case.kernel[0], case.outputs, case.channels)
    back.stride_in_pixels_y, back.stride_in_pixels_x = case.stride
    turned = np.ascontiguousarray(source.values["weights"][:, ::-1, ::-1].transpose(3, 1, 2, 0))
    enlarging = mpsnn.ConvolutionWeights(back, turned, label="back")

    def build(image):
        first = mpsnn.MPSCNNConvolutionNode(image, source)
        first.padding_policy = case.padding.policy()
        return mpsnn.MPSCNNConvolutionTransposeNode(first.result_image, first.convolution_gradient_state, enlarging)

    x = normal(case.seed, *case.shape)
    for engine, dtype in (("reference", np.float64), ("cpu", np.float32)):
        forward = result_of(convolution(source, case.padding.policy()), x, engine=engine)
        expected = evaluate(engine, convolution(source, case.padding.policy()), [x], forward).gradients[0]
        scale = case.taps * case.outputs * np.abs(forward).max() * np.abs(turned).max()
        assert_close(result_of(build, x, engine=engine), expected, scale, case.taps * case.outputs, dtype)


def test_a_saved_transposed_convolution_gives_the_same_bits():
    down = weights_of(mpsnn.MPSCNNConvolutionDescriptor(3, 2, 2, 3, stride_in_pixels_x=2, stride_in_pixels_y=3), 1)
    up = mpsnn.ConvolutionWeights(
        mpsnn.MPSCNNConvolutionDescriptor(3, 2, 3, 2, stride_in_pixels_x=2, stride_in_pixels_y=3), seed=4, label="up"
    )
    assert_survives_saving(undo(down, up), [normal(0, 2, 7, 8, 2)], normal(1, 2, 7, 8, 2))
