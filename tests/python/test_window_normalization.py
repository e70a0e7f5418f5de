# SPDX-License-Identifier: Apache-2.0
"""Spatial, local-contrast and cross-channel normalization against the printed formulas, on both engines."""

import mpsnn
import numpy as np
import pytest
from engines import DTYPES, assert_close, assert_differences_agree, assert_survives_saving, evaluate, normal, result_of
from error_cases import caught, run
from hypothesis import example, given, settings
from hypothesis import strategies as st

ENGINES = pytest.mark.parametrize("engine", ["reference", "cpu"])
KINDS = ["spatial", "contrast", "channels"]
NODES = {
    "spatial": mpsnn.MPSCNNSpatialNormalizationNode,
    "contrast": mpsnn.MPSCNNLocalContrastNormalizationNode,
    "channels": mpsnn.MPSCNNCrossChannelNormalizationNode,
}
CONTRAST = {"pm": 0.25, "ps": 1.5, "p0": 0.75}


def normalization(kind, kernel=(3, 3), **constants):
    """`kernel`: height and width; in channels, the product of both."""

    def build(image):
        if kind == "channels":
            node = NODES[kind](image, kernel[0] * kernel[1])
        else:
            node = NODES[kind](image, kernel[1])
            node.kernel_height = kernel[0]
        for name, value in constants.items():
            setattr(node, name, value)
        return node

    return build


def sums(values, size, axis, is_mirrored=False):
    """Over [i - size // 2, i + (size - 1) // 2], zeros outside; the other way round when mirrored (11)."""
    before, after = size // 2, (size - 1) // 2
    if is_mirrored:
        before, after = after, before
    pad = [(before, after) if d == axis else (0, 0) for d in range(4)]
    padded = np.pad(values, pad)
    extent = values.shape[axis]
    return sum(np.take(padded, range(k, k + extent), axis=axis) for k in range(size))


def windows(kind, kernel):
    """The window's sum as a function, and how many elements it has."""

    def box(values, is_mirrored=False):
        if kind == "channels":
            return sums(values, kernel[0] * kernel[1], 3, is_mirrored)
        return sums(sums(values, kernel[0], 1, is_mirrored), kernel[1], 2, is_mirrored)

    return box, kernel[0] * kernel[1]


def formulas(kind, kernel, x, e, alpha, beta, delta, pm=0.0, ps=1.0, p0=0.0):
    """Result, gradient, and for both the sizes of what is added up, times how much a rounding of T or V is magnified."""
    box, n = windows(kind, kernel)
    if kind == "contrast":
        mean, mean_size, squares = box(x) / n, box(np.abs(x)) / n, box(x * x) / n
        t = delta + alpha * (squares - mean**2)
        unsafe = 1 + alpha * (squares + mean_size**2) / t  # a variance cancels
        top, top_size = x - p0 * mean, np.abs(x) + abs(p0) * mean_size
    else:
        mean = mean_size = np.zeros_like(x)
        t = delta + alpha / n * box(x * x)
        unsafe, top, top_size = np.ones_like(x), x, np.abs(x)
    magnified = 1 + (beta + 1) * (unsafe + np.abs(np.log(t)))  # what a power makes of a rounding of its base
    y = pm + ps * top * t**-beta
    y_size = abs(pm) + abs(ps) * top_size * t**-beta * magnified
    slope = 2 * alpha * beta / n
    gradient = e * t**-beta
    gradient_size = np.abs(gradient) * magnified
    pull, pull_size = e * top * t ** (-beta - 1), np.abs(e) * top_size * t ** (-beta - 1) * magnified
    gradient = gradient - slope * (x * box(pull, True) - box(mean * pull, True))
    gradient_size = gradient_size + slope * (np.abs(x) * box(pull_size, True) + box(mean_size * pull_size, True))
    if kind == "contrast":
        gradient = gradient - p0 / n * box(e * t**-beta, True)
        gradient_size = gradient_size + abs(p0) / n * box(np.abs(e) * t**-beta * magnified, True)
    return y, ps * gradient, y_size, abs(ps) * gradient_size


def constants_of(kind, alpha, beta, delta):
    return {"alpha": alpha, "beta": beta, "delta": delta, **(CONTRAST if kind == "contrast" else {})}


shapes = st.tuples(st.sampled_from([1, 2, 0]), st.integers(1, 7), st.integers(1, 7), st.sampled_from([1, 2, 3, 8, 17]))
kernels = st.tuples(st.integers(1, 5), st.integers(1, 5))
numbers = st.tuples(
    st.sampled_from([0.5, 1.0, 3.0]), st.sampled_from([0.5, 0.75, 1.0, 2.0]), st.sampled_from([1.0, 0.5])
)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=120)
@given(shapes, kernels, numbers, st.integers(0, 2**16))
@example((1, 1, 1, 1), (5, 4), (1.0, 0.75, 1.0), 0)
@example((2, 13, 19, 24), (3, 5), (1.0, 0.75, 1.0), 0)
def test_both_engines_give_the_printed_result_and_gradient(kind, shape, kernel, numbers, seed):
    """Windows that are not square, even, larger than the image; images of one pixel; empty batches."""
    x, incoming, constants = normal(seed, *shape), normal(seed + 1, *shape), constants_of(kind, *numbers)
    y, gradient, y_size, gradient_size = formulas(kind, kernel, x, incoming, **constants)
    terms = 2 * kernel[0] * kernel[1] + 16
    for engine, dtype in DTYPES.items():
        got = evaluate(engine, normalization(kind, kernel, **constants), [x], incoming)
        assert_close(got.result, y, y_size, terms, dtype)
        assert_close(got.gradients[0], gradient, gradient_size, terms, dtype, "gradient")


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40)
@given(
    st.tuples(st.integers(1, 2), st.integers(1, 4), st.integers(1, 4), st.integers(1, 5)),
    kernels,
    st.integers(0, 2**16),
)
def test_gradients_are_central_differences(kind, shape, kernel, seed):
    """With u for one pixel, c = alpha / n <= 1, T >= delta >= 1 and c u^2 <= T: the third derivative of T^-beta is at most
    12 beta (beta + 1) + 8 beta (beta + 1) (beta + 2), 45 for beta 0.75; three times the second one (7) comes with x itself."""
    x, incoming = normal(seed, *shape), normal(seed + 1, *shape)
    scale = np.abs(incoming).sum() * (1 + np.abs(x).max()) * 4
    build = normalization(kind, kernel, **constants_of(kind, 1.0, 0.75, 1.5))
    assert_differences_agree(build, [x], incoming, curvature=70, scale=scale)


@pytest.mark.parametrize(
    ("size", "alpha", "expected"), [(3, 3, [1 / 6, 2 / 15, 1 / 10, 2 / 13]), (2, 2, [1 / 2, 1 / 3, 3 / 14, 2 / 13])]
)
@ENGINES
def test_the_printed_channels_come_out(engine, size, alpha, expected):
    """MPS_SEMANTICS 22.4; an even window leans to lower channels."""
    x = np.array([1.0, 2, 3, 4]).reshape(1, 1, 1, 4)
    got = result_of(normalization("channels", (1, size), alpha=alpha, beta=1, delta=1), x, engine=engine)
    assert_close(got.ravel(), expected, np.abs(expected) * 4, size + 4, got.dtype)


@ENGINES
def test_a_window_of_one_pixel_has_no_variance(engine):
    """delta alone is raised, and nothing but the pixel itself gets a gradient."""
    x, incoming = normal(0, 1, 3, 2, 3), normal(1, 1, 3, 2, 3)
    got = evaluate(engine, normalization("contrast", (1, 1), alpha=1, beta=0.5, delta=0.25, p0=0.5), [x], incoming)
    size = 2 * np.abs(x) * (1 + x * x * 4) * 3
    assert_close(got.result, x, size, 8, got.result.dtype)
    assert got.gradients[0].shape == x.shape


def test_defaults_are_the_printed_ones():
    """MPS_SEMANTICS 4.6."""
    x = mpsnn.MPSNNImageNode()
    spatial, contrast, channels = (NODES[kind](x) for kind in KINDS)
    for node, beta, delta in ((spatial, 5, 1), (contrast, 0.5, 1 / 1024), (channels, 5, 1)):
        assert (node.beta, node.delta) == (beta, delta)
        assert node.alpha == 1
    assert (contrast.pm, contrast.ps, contrast.p0) == (0, 1, 1)
    by_hand = mpsnn.MPSCNNLocalContrastNormalizationGradientNode(x, x, contrast.result_state, 5, 5)
    assert by_hand.alpha == 0
    assert (spatial.kernel_width, spatial.kernel_height, channels.kernel_size_in_feature_channels) == (5, 5, 5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_made_gradient_has_the_numbers_of_its_forward_node(kind):
    forward = normalization(kind, (2, 3), **constants_of(kind, 0.5, 2.0, 1.5))(mpsnn.MPSNNImageNode())
    gradient = forward.gradient_filter(mpsnn.MPSNNImageNode())
    names = {
        "spatial": ["alpha", "beta", "delta"],
        "contrast": ["alpha", "beta", "delta", "pm", "ps", "p0"],
        "channels": [],
    }[kind]
    for name in names:
        assert getattr(gradient, name) == getattr(forward, name)
    if kind == "channels":
        assert gradient.kernel_size == 6
    else:
        assert (gradient.kernel_height, gradient.kernel_width) == (2, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_node_gives_the_same_bits(kind):
    build = normalization(kind, (2, 3), **constants_of(kind, 0.5, 0.75, 1.5))
    assert_survives_saving(build, [normal(0, 2, 4, 5, 7)], normal(1, 2, 4, 5, 7))


# --- errors


@pytest.mark.parametrize("kind", KINDS)
def test_a_kernel_of_no_size_is_refused_at_once_and_when_set_later(kind):
    x = mpsnn.MPSNNImageNode()
    name = NODES[kind].__name__
    caught(mpsnn.OptionError, lambda: NODES[kind](x, 0), "kernel size must be at least 1", node=name)
    node = NODES[kind](x, 3)
    setattr(node, "kernel_size_in_feature_channels" if kind == "channels" else "kernel_height", -2)
    caught(mpsnn.OptionError, lambda: run(node, (1, 4, 4, 2)), "kernel size must be at least 1", "-2", label="culprit")


@pytest.mark.parametrize("kind", KINDS)
def test_a_gradient_of_another_size_names_both_shapes(kind):
    node = NODES[kind](mpsnn.MPSNNImageNode("x"), 3).gradient_filter(mpsnn.MPSNNImageNode("e"))
    error = caught(
        mpsnn.ShapeError, lambda: run(node, (1, 4, 5, 2), (1, 5, 4, 2)), label="culprit", node=type(node).__name__
    )
    assert "1 x 4 x 5 x 2" in error.expected
    assert "1 x 5 x 4 x 2" in error.actual


def test_a_gradient_with_another_source_image_names_both_shapes():
    x, e = mpsnn.MPSNNImageNode("x"), mpsnn.MPSNNImageNode("e")
    state = NODES["spatial"](x, 3).result_state
    node = mpsnn.MPSCNNSpatialNormalizationGradientNode(e, mpsnn.MPSNNImageNode("other"), state, 3)
    shapes = [(1, 4, 5, 2), (1, 4, 5, 2), (1, 4, 5, 3)]
    node.label = "culprit"
    graph = mpsnn.MPSNNGraph("cpu", node.result_image)
    images = {"x": shapes[0], "e": shapes[1], "other": shapes[2]}
    call = lambda: graph.run([np.zeros(images[name], np.float32) for name in graph.source_image_handles])
    caught(mpsnn.ShapeError, call, "the source image", "1 x 4 x 5 x 2", "1 x 4 x 5 x 3", label="culprit")


def test_gradients_with_a_kernel_of_no_size_are_refused():
    x = mpsnn.MPSNNImageNode()
    state = NODES["spatial"](x, 3).result_state
    for make in (
        lambda: mpsnn.MPSCNNSpatialNormalizationGradientNode(x, x, state, 0),
        lambda: mpsnn.MPSCNNLocalContrastNormalizationGradientNode(x, x, state, 3, 0),
        lambda: mpsnn.MPSCNNCrossChannelNormalizationGradientNode(x, x, state, 0),
    ):
        caught(mpsnn.OptionError, make, "kernel size must be at least 1")


def test_a_channel_gradient_takes_its_forward_node_s_kernel_and_class():
    x = mpsnn.MPSNNImageNode("x")
    for forward, shown in ((NODES["channels"](x, 3), "3"), (NODES["spatial"](x, 3), "MPSCNNSpatialNormalizationNode")):
        node = mpsnn.MPSCNNCrossChannelNormalizationGradientNode(x, x, forward.result_state, 5)
        error = caught(mpsnn.GraphError, lambda node=node: run(node, (1, 4, 4, 2)), "same kernel size", label="culprit")
        assert (error.expected, error.actual) == ("5", shown)
