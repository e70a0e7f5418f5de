# SPDX-License-Identifier: Apache-2.0
"""Pooling: sizes, numbers, ties and gradients on both engines."""

import mpsnn
import numpy as np
import pytest
from engines import (
    assert_close,
    assert_differences_agree,
    assert_survives_saving,
    evaluate,
    normal,
    result_of,
    row,
    small_integers,
)
from geometry_cases import METHODS, Edge, EdgePolicy, Method, Padding, WindowCase, window_cases
from hypothesis import example, given, settings

KINDS = ["max", "average", "l2_norm", "dilated_max"]
NODES = {
    "max": mpsnn.MPSCNNPoolingMaxNode,
    "average": mpsnn.MPSCNNPoolingAverageNode,
    "l2_norm": mpsnn.MPSCNNPoolingL2NormNode,
}
SAME_BR = Method.SizeSame | Method.AddRemainderToBottomRight
ENGINES = pytest.mark.parametrize("engine", ["reference", "cpu"])


def pooling(kind, case):
    (kernel_y, kernel_x), (stride_y, stride_x) = case.kernel, case.stride

    def build(image):
        if kind == "dilated_max":
            node = mpsnn.MPSCNNDilatedPoolingMaxNode(
                image, kernel_x, kernel_y, stride_x, stride_y, case.dilation[1], case.dilation[0]
            )
        else:
            node = NODES[kind](image, kernel_x, kernel_y, stride_x, stride_y)
        node.padding_policy = case.padding.policy()
        return node

    return build


def without_dilation(case):
    return WindowCase(*case.shape, case.kernel, case.stride, (1, 1), case.padding, case.seed)


def result_bounds(kind, case, x):
    """Scale and terms of tolerance(): the sums of absolute values, which the reference adds up too. A maximum is exact."""
    if kind in ("max", "dilated_max"):
        return 0, 1
    return evaluate("reference", pooling(kind, case), [np.abs(x)]).result, case.taps + 2


def gradient_bounds(kind, case, x, incoming):
    """Every tap of every window may end at one pixel: those over the edge read the pixel there. Absolute numbers in x would change
    which pixel is the maximum; in a norm they add up to the size of what cancels."""
    source = x if kind in ("max", "dilated_max") else np.abs(x)
    sizes = evaluate("reference", pooling(kind, case), [source], np.abs(incoming)).gradients[0]
    return sizes, case.taps * int(np.prod(case.result_size())) + 2 * case.taps + 4


def agree(kind, case, x):
    """Max chooses: cpu must choose the same pixel, and only sums of incoming gradients round."""
    incoming = normal(case.seed + 1, case.images, *case.result_size(), case.channels)
    reference, cpu = (evaluate(engine, pooling(kind, case), [x], incoming) for engine in ("reference", "cpu"))
    assert reference.result.shape == incoming.shape
    assert reference.gradients[0].shape == x.shape
    assert_close(cpu.result, reference.result, *result_bounds(kind, case, x))
    assert_close(cpu.gradients[0], reference.gradients[0], *gradient_bounds(kind, case, x, incoming), what="gradient")
    return reference


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=250)
@given(case=window_cases(edges=True, dilates=True))
@example(case=WindowCase(2, 13, 19, 24, (3, 3), (2, 2), (1, 1)))
@example(case=WindowCase(1, 20, 33, 16, (2, 2), (2, 2), (1, 1)))
@example(case=WindowCase(1, 1, 1, 1, (4, 3), (1, 1), (1, 1), Padding(Method.SizeFull)))
@example(case=WindowCase(1, 1, 1, 1, (3, 4), (4, 3), (1, 1), Padding(explicit_y=(4, 4), explicit_x=(4, 4))))
@example(case=WindowCase(1, 9, 9, 1, (2, 1), (4, 4), (1, 1), Padding(SAME_BR)))
def test_the_engines_agree(kind, case):
    case = case if kind == "dilated_max" else without_dilation(case)
    agree(kind, case, normal(case.seed, *case.shape))


@pytest.mark.parametrize("kind", ["max", "dilated_max"])
@settings(max_examples=250)
@given(case=window_cases(edges=True, dilates=True))
@example(case=WindowCase(2, 13, 19, 24, (3, 3), (2, 2), (1, 1)))
def test_the_engines_agree_on_tied_maxima(kind, case):
    """Values from five integers: most windows hold several maxima, and zeros that tie with the zeros outside."""
    case = case if kind == "dilated_max" else without_dilation(case)
    agree(kind, case, small_integers(case.seed, *case.shape))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_every_padding_method_gives_the_printed_size_and_equal_engines(kind, method):
    for excludes_edges in (False, True):
        case = WindowCase(2, 7, 10, 3, (3, 2), (2, 3), (1, 1), Padding(method, excludes_edges=excludes_edges), 5)
        agree(kind, case, normal(0, *case.shape))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60)
@given(case=window_cases(edges=True, dilates=True, largest=5, largest_kernel=3, empty=False))
def test_gradients_are_central_differences(kind, case):
    """Values are all different, by more than a difference moves them, and away from 0: no tie, no kink."""
    case = case if kind == "dilated_max" else without_dilation(case)
    random = np.random.default_rng(case.seed)
    count = int(np.prod(case.shape))
    x = (random.permutation(count) + 1.0).reshape(case.shape) * random.choice([-1, 1], case.shape) / count
    incoming = normal(case.seed + 1, case.images, *case.result_size(), case.channels)
    # A norm's third derivative is at most 3 / norm ** 2, the numbers are at least 1 / count; the others are linear.
    scale = np.abs(incoming).sum() * case.taps
    assert_differences_agree(
        pooling(kind, case), [x], incoming, curvature=3 * count**2 if kind == "l2_norm" else 0, scale=scale
    )


@settings(max_examples=100)
@given(case=window_cases(largest=8, explicit=False))
def test_an_average_gradient_loses_nothing_where_windows_shrink(case):
    """With edge mode Clamp the divisor counts what is inside, so a window hands on all that it was given."""
    case = without_dilation(case)
    incoming = normal(case.seed, case.images, *case.result_size(), case.channels)
    got = evaluate("reference", pooling("average", case), [np.zeros(case.shape)], incoming)
    touched = np.ones(incoming.shape, bool)
    for dimension, axis in zip((1, 2), case.axes(), strict=True):
        hits = [len(range(*axis.taps_inside(o))) > 0 for o in range(axis.output)]
        touched &= np.array(hits).reshape([-1 if d == dimension else 1 for d in range(4)])
    assert_close(
        got.gradients[0].sum(), incoming[touched].sum(), np.abs(incoming).sum(), incoming.size * case.taps, np.float64
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_node_gives_the_same_bits(kind):
    for padding in (
        Padding(SAME_BR),
        Padding(SAME_BR, tensorflow=True),
        Padding(explicit_y=(2, 0), explicit_x=(-1, 3)),
        Padding(excludes_edges=True),
    ):
        case = WindowCase(2, 6, 7, 3, (3, 2), (1, 2), (2, 1) if kind == "dilated_max" else (1, 1), padding)
        incoming = normal(1, 2, *case.result_size(), 3)
        assert_survives_saving(pooling(kind, case), [normal(0, *case.shape)], incoming)


# --- what the pools do at ties, zeros and NaN


@ENGINES
def test_the_first_maximum_in_row_major_order_takes_the_gradient(engine):
    case = WindowCase(1, 2, 2, 1, (2, 2), (2, 2), (1, 1))
    for values, expected in (([3, 3, 3, 3], [1, 0, 0, 0]), ([0, 3, 3, 0], [0, 1, 0, 0]), ([0, 0, 3, 3], [0, 0, 1, 0])):
        got = evaluate(engine, pooling("max", case), [np.reshape(values, case.shape)], np.ones((1, 1, 1, 1)))
        assert got.result.ravel().tolist() == [3]
        assert got.gradients[0].ravel().tolist() == expected


@ENGINES
def test_a_pixel_of_zero_wins_over_the_zeros_outside_and_a_negative_one_loses(engine):
    case = WindowCase(1, 1, 3, 1, (1, 3), (1, 2), (1, 1), Padding(Method.SizeSame, edge=Edge.Zero))
    got = evaluate(engine, pooling("max", case), [row(0, -1, -2)], row(5, 7))
    assert got.result.ravel().tolist() == [0, 0]
    assert got.gradients[0].ravel().tolist() == [5, 0, 0]


@ENGINES
def test_a_nan_wins_over_every_number(engine):
    case = WindowCase(1, 1, 4, 1, (1, 2), (1, 2), (1, 1))
    got = evaluate(engine, pooling("max", case), [row(np.inf, np.nan, 1, 2)], row(1, 1))
    assert np.isnan(got.result[0, 0, 0, 0])
    assert got.result[0, 0, 1, 0] == 2
    assert got.gradients[0].ravel().tolist() == [0, 1, 0, 1]


@ENGINES
def test_the_norm_of_zeros_has_gradient_zero(engine):
    case = WindowCase(1, 1, 4, 1, (1, 2), (1, 2), (1, 1))
    got = evaluate(engine, pooling("l2_norm", case), [row(0, 0, 3, 4)], row(1, 10))
    assert got.result.ravel().tolist() == [0, 5]
    assert_close(got.gradients[0].ravel(), [0, 0, 6, 8], 8, 4, got.result.dtype)


@ENGINES
def test_the_average_of_a_window_outside_the_image_is_zero(engine):
    case = WindowCase(1, 1, 2, 1, (1, 1), (1, 1), (1, 1), Padding(explicit_y=(0, 0), explicit_x=(1, 1)))
    got = evaluate(engine, pooling("average", case), [row(3, 4)], row(1, 1, 1, 1))
    assert got.result.ravel().tolist() == [0, 3, 4, 0]
    assert got.gradients[0].ravel().tolist() == [1, 1]


# --- golden vectors (MPS_SEMANTICS 22.3)

X = row(-1, -2, -3, -4, -5)
ROOT = np.sqrt
GOLDEN = [
    ("max", 3, 2, Method.SizeSame, [-1, -2, -4], [0, -2, 0]),
    ("average", 3, 2, Method.SizeSame, [-1.5, -3, -4.5], [-1, -3, -3]),
    ("l2_norm", 3, 2, Method.SizeSame, [ROOT(6), ROOT(29), ROOT(66)], [ROOT(5), ROOT(29), ROOT(41)]),
    ("max", 2, 2, Method.SizeSame, [-1, -2, -4], [0, -2, -4]),
    ("max", 2, 2, SAME_BR, [-1, -3, -5], [-1, -3, 0]),
    ("average", 2, 2, Method.SizeSame, [-1, -2.5, -4.5], [-0.5, -2.5, -4.5]),
    ("max", 2, 2, Method.SizeValidOnly, [-1, -3], [-1, -3]),
]


def line(kernel, stride, padding, dilation=1):
    return WindowCase(1, 1, 5, 1, (1, kernel), (1, stride), (1, dilation), padding)


@ENGINES
@pytest.mark.parametrize(("kind", "kernel", "stride", "method", "clamp", "zero"), GOLDEN)
def test_pools_of_a_line_are_the_printed_ones(engine, kind, kernel, stride, method, clamp, zero):
    for padding, expected in ((Padding(method), clamp), (Padding(method, edge=Edge.Zero), zero)):
        got = result_of(pooling(kind, line(kernel, stride, padding)), X, engine=engine)
        assert_close(got.ravel(), expected, np.abs(expected), kernel if kind == "l2_norm" else 1, got.dtype)


@ENGINES
def test_an_average_that_excludes_edges_counts_the_policy_s_padding(engine):
    case = line(3, 2, Padding(Method.SizeSame, excludes_edges=True))
    assert result_of(pooling("average", case), X, engine=engine).ravel().tolist() == [-1, -3, -3]


@ENGINES
@pytest.mark.parametrize(("edge", "expected"), [(None, [3, 5, 2, 5, 3]), (Edge.Zero, [2, 4, 2, 4, 2])])
def test_the_average_gradient_of_a_line_is_the_printed_one(engine, edge, expected):
    got = evaluate(engine, pooling("average", line(3, 2, Padding(Method.SizeSame, edge=edge))), [X], row(6, 6, 6))
    assert_close(got.gradients[0].ravel(), expected, 6, 3, got.result.dtype)


@ENGINES
def test_the_dilated_maximum_of_a_line_is_the_printed_one(engine):
    case = WindowCase(1, 1, 6, 1, (1, 2), (1, 1), (1, 3))
    assert result_of(pooling("dilated_max", case), row(1, 5, 2, 7, 3, 4), engine=engine).ravel().tolist() == [
        5,
        2,
        7,
        5,
        4,
        7,
    ]


@ENGINES
@pytest.mark.parametrize("size", [Method.SizeSame, Method.SizeValidOnly])
def test_tensorflow_policies_put_the_remainder_behind_and_shrink_averages(engine, size):
    """Also on nodes whose own edge mode is Zero, a convolution's: there the edge pixel is repeated."""
    padding = Padding(size | Method.AddRemainderToBottomRight, tensorflow=True)
    expected = [-1.5, -3.5, -5] if size == Method.SizeSame else [-1.5, -3.5]
    assert result_of(pooling("average", line(2, 2, padding)), X, engine=engine).ravel().tolist() == expected
    clamp = EdgePolicy(size | Method.AddRemainderToBottomRight, Edge.Clamp)
    descriptor = mpsnn.MPSCNNConvolutionDescriptor(2, 1, 1, 1)
    source = mpsnn.ConvolutionWeights(descriptor, np.array([1, 10], np.float32))

    def convolved(policy):
        def build(image):
            node = mpsnn.MPSCNNConvolutionNode(image, source)
            node.padding_policy = policy
            return node

        return result_of(build, X, engine=engine).ravel().tolist()

    values = [-21, -32, -43, -54, -55]
    assert convolved(padding.policy()) == convolved(clamp) == (values if size == Method.SizeSame else values[:4])
