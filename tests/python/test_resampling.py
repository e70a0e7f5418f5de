# SPDX-License-Identifier: Apache-2.0
"""Upsampling and scaling: positions, weights, adjoint gradients and transform providers."""

import mpsnn
import numpy as np
import pytest
from engines import (
    DTYPES,
    assert_close,
    assert_differences_agree,
    assert_survives_saving,
    evaluate,
    normal,
    result_of,
    row,
)
from error_cases import caught, run
from hypothesis import example, given, settings
from hypothesis import strategies as st

ENGINES = pytest.mark.parametrize("engine", ["reference", "cpu"])
KINDS = ["nearest", "bilinear", "corners"]


def upsampling(kind, scale_y, scale_x):
    def build(image):
        if kind == "nearest":
            return mpsnn.MPSCNNUpsamplingNearestNode(image, scale_x, scale_y)
        return mpsnn.MPSCNNUpsamplingBilinearNode(image, scale_x, scale_y, kind == "corners")

    return build


def linear_weights(positions, size):
    """(positions, size): two-tap weights at positions clamped to the image."""
    p = np.clip(positions, 0, size - 1)
    low = np.floor(p).astype(int)
    weights = np.zeros((len(p), size))
    np.add.at(weights, (range(len(p)), low), 1 - (p - low))
    np.add.at(weights, (range(len(p)), np.minimum(low + 1, size - 1)), p - low)
    return weights


def upsampling_weights(kind, size, scale):
    """MPS_SEMANTICS 15: what output pixel i takes of each source pixel."""
    i = np.arange(size * scale)
    if kind == "nearest":
        return np.eye(size)[i // scale]
    if kind == "corners":
        return linear_weights(i * (size - 1) / max(1, size * scale - 1), size)
    return linear_weights((i + 0.5) / scale - 0.5, size)


def apply(by_y, by_x, image):
    return np.einsum("iy,jx,nyxc->nijc", by_y, by_x, image)


shapes = st.tuples(st.sampled_from([1, 2, 0]), st.integers(1, 6), st.integers(1, 6), st.sampled_from([1, 2, 3, 8, 17]))


def rounding(kind, size):
    """A position is off by epsilon times itself, which moves that much of a neighbour's difference: two more per axis."""
    return 1 if kind == "nearest" else 1 + 2 * size


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=100)
@given(shapes, st.integers(1, 4), st.integers(1, 4), st.integers(0, 2**16))
@example((1, 1, 1, 1), 3, 4, 0)
@example((2, 13, 20, 16), 2, 2, 0)
def test_both_engines_give_the_printed_result_and_its_adjoint(kind, shape, scale_y, scale_x, seed):
    x, incoming = normal(seed, *shape), normal(seed + 1, shape[0], shape[1] * scale_y, shape[2] * scale_x, shape[3])
    by_y, by_x = upsampling_weights(kind, shape[1], scale_y), upsampling_weights(kind, shape[2], scale_x)
    size = np.abs(x).max(initial=0) * rounding(kind, max(shape[1:3]))
    # A weight that should be 0 may be an epsilon: every output near a pixel may give it something.
    incoming_size = apply(by_y.T > 0, by_x.T > 0, np.abs(incoming)) * rounding(kind, max(shape[1:3]))
    if kind != "nearest":
        incoming_size = incoming_size + np.abs(incoming).max(initial=0) * 9 * scale_x * scale_y
    for engine, dtype in DTYPES.items():
        got = evaluate(engine, upsampling(kind, scale_y, scale_x), [x], incoming)
        assert_close(got.result, apply(by_y, by_x, x), 0 if kind == "nearest" else size, 8, dtype)
        terms = 9 * scale_x * scale_y + 8
        assert_close(got.gradients[0], apply(by_y.T, by_x.T, incoming), incoming_size, terms, dtype, "gradient")


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=30)
@given(
    st.tuples(st.integers(1, 2), st.integers(1, 4), st.integers(1, 4), st.integers(1, 2)),
    st.integers(1, 3), st.integers(1, 3), st.integers(0, 2**16),
)  # fmt: skip
def test_gradients_are_central_differences(kind, shape, scale_y, scale_x, seed):
    x, incoming = normal(seed, *shape), normal(seed + 1, shape[0], shape[1] * scale_y, shape[2] * scale_x, shape[3])
    scale = np.abs(incoming).sum() * (1 + np.abs(x).max())
    assert_differences_agree(upsampling(kind, scale_y, scale_x), [x], incoming, curvature=0, scale=scale)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("bilinear", [0, 2.5, 7.5, 12.5, 17.5, 20]), ("corners", [0, 4, 8, 12, 16, 20]), ("nearest", [0, 0, 10, 10, 20, 20]),
    ],
)  # fmt: skip
@ENGINES
def test_the_printed_line_comes_out(engine, kind, expected):
    """MPS_SEMANTICS 22.4."""
    got = result_of(upsampling(kind, 1, 2), row(0, 10, 20), engine=engine)
    assert_close(got.ravel(), expected, 20, 6, got.dtype)


@ENGINES
@pytest.mark.parametrize("kind", KINDS)
def test_factor_one_copies(engine, kind):
    x = normal(0, 2, 3, 4, 5)
    got = evaluate(engine, upsampling(kind, 1, 1), [x], x)
    assert (got.result == x).all()
    assert (got.gradients[0] == x).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_node_gives_the_same_bits(kind):
    assert_survives_saving(upsampling(kind, 2, 3), [normal(0, 2, 3, 4, 5)], normal(1, 2, 6, 12, 5))


# --- scale nodes


class Provider:
    """A transform provider that remembers what it was asked."""

    def __init__(self, *numbers):
        self.numbers, self.asked = numbers, []

    def transform_for_source_image(self, source_image, handle):
        self.asked.append((source_image.width, source_image.height, source_image.feature_channels, handle))
        return mpsnn.MPSScaleTransform(*self.numbers)


def scaling(kind, height, width, provider=None):
    node = {"bilinear": mpsnn.MPSNNBilinearScaleNode, "lanczos": mpsnn.MPSNNLanczosScaleNode}[kind]
    return lambda image: node(image, provider, (width, height, 1)) if provider else node(image, (width, height, 1))


def scale_weights(kind, size, result, scale=None, translate=0.0):
    """p = (i + 0.5 - translate) / scale - 0.5; two taps, or a windowed sinc of three lobes stretched when it shrinks."""
    scale = scale or result / size
    p = (np.arange(result) + 0.5 - translate) / scale - 0.5
    if kind == "bilinear":
        return linear_weights(p, size)
    stretch, weights = max(1.0, 1 / scale), np.zeros((result, size))
    reach = int(np.ceil(3 * stretch)) + 1
    p = np.clip(p, -reach, size - 1 + reach)  # far outside there is nothing but the edge pixel
    for i, position in enumerate(p):
        taps = np.arange(int(np.floor(position)) - reach, int(np.floor(position)) + reach + 2)
        distance = (taps - position) / stretch
        lobes = np.where(np.abs(distance) < 3, np.sinc(distance) * np.sinc(distance / 3), 0)
        np.add.at(weights[i], np.clip(taps, 0, size - 1), lobes / lobes.sum())
    return weights


results = st.tuples(st.integers(1, 9), st.integers(1, 9))


@pytest.mark.parametrize("kind", ["bilinear", "lanczos"])
@settings(max_examples=80)
@given(shapes, results, st.integers(0, 2**16))
@example((1, 9, 9, 3), (1, 2), 0)
@example((1, 1, 1, 1), (5, 4), 0)
def test_the_whole_image_fills_the_whole_result(kind, shape, size, seed):
    x = normal(seed, *shape)
    by_y, by_x = (scale_weights(kind, *pair) for pair in zip(shape[1:3], size, strict=True))
    check_scaling(kind, size, x, by_y, by_x, None)


@pytest.mark.parametrize("kind", ["bilinear", "lanczos"])
@settings(max_examples=80)
@given(
    shapes,
    results,
    st.tuples(*[st.sampled_from([0.25, 0.5, 1.0, 1.5, 3.0])] * 2),
    st.tuples(*[st.integers(-6, 6)] * 2),
    st.integers(0, 2**16),
)
def test_a_provider_s_transform_places_the_image(kind, shape, size, scales, moves, seed):
    x, moves = normal(seed, *shape), [move / 4 for move in moves]
    by_y, by_x = (scale_weights(kind, shape[1 + i], size[i], scales[1 - i], moves[1 - i]) for i in (0, 1))
    check_scaling(kind, size, x, by_y, by_x, Provider(*scales, *moves))


def check_scaling(kind, size, x, by_y, by_x, provider):
    """Lobes are negative too: their sizes add up to less than 2 per axis. A tap at a lobe's end may count or not: it weighs
    no more than the slope of the window, pi / 3, times the position's rounding."""
    expected = apply(by_y, by_x, x)
    scale = 4 * np.abs(x).max(initial=0) * (1 + 4 * max(*x.shape[1:3], *size))
    for engine, dtype in DTYPES.items():
        got = result_of(scaling(kind, *size, provider), x, engine=engine)
        assert_close(got, expected, scale, 64, dtype)


def test_a_provider_is_asked_with_the_source_image_and_its_handle():
    provider = Provider(1, 1, 0, 0)
    x = normal(0, 2, 3, 4, 5)
    result_of(scaling("bilinear", 3, 4, provider), x)
    assert set(provider.asked) == {(4, 3, 5, "input 0")}


@ENGINES
def test_a_transform_that_only_moves_by_whole_pixels_repeats_the_edge(engine):
    got = result_of(scaling("bilinear", 1, 4, Provider(1, 1, 1, 0)), row(1, 2, 3, 4), engine=engine)
    assert got.ravel().tolist() == [1, 1, 2, 3]


@pytest.mark.parametrize("kind", ["bilinear", "lanczos"])
def test_a_saved_scale_node_gives_the_same_bits_and_one_with_a_provider_is_not_saved(kind, tmp_path):
    x = normal(0, 2, 3, 4, 5)
    for engine, dtype in DTYPES.items():
        graph = mpsnn.MPSNNGraph(engine, scaling(kind, 5, 3)(mpsnn.MPSNNImageNode("x")).result_image)
        graph.save(str(tmp_path / "g"))
        loaded = mpsnn.MPSNNGraph.load(str(tmp_path / "g"), engine)
        assert graph.run([x.astype(dtype)]).numpy().tobytes() == loaded.run([x.astype(dtype)]).numpy().tobytes()
    node = scaling(kind, 5, 3, Provider(1, 1, 0, 0))(mpsnn.MPSNNImageNode("x"))
    node.label = "culprit"
    graph = mpsnn.MPSNNGraph("cpu", node.result_image)
    caught(
        mpsnn.GraphError,
        lambda: graph.save(str(tmp_path / "h")),
        "transform provider",
        "cannot be saved",
        label="culprit",
    )


# --- errors


@pytest.mark.parametrize("kind", KINDS)
def test_factors_below_one_are_refused(kind):
    for factors in ((0, 1), (2, -1)):
        name = "MPSCNNUpsamplingNearestNode" if kind == "nearest" else "MPSCNNUpsamplingBilinearNode"
        call = lambda factors=factors: upsampling(kind, *factors)(mpsnn.MPSNNImageNode())
        error = caught(mpsnn.OptionError, call, "scale factors must be at least 1", node=name)
        assert error.actual == f"{factors[1]} x {factors[0]}"


@pytest.mark.parametrize("kind", KINDS)
def test_a_gradient_of_another_size_names_both_shapes(kind):
    node = upsampling(kind, 2, 3)(mpsnn.MPSNNImageNode("x")).gradient_filter(mpsnn.MPSNNImageNode("e"))
    caught(
        mpsnn.ShapeError,
        lambda: run(node, (1, 2, 2, 1), (1, 4, 5, 1)),
        "1 x 4 x 6 x 1",
        "1 x 4 x 5 x 1",
        label="culprit",
    )


def test_a_gradient_takes_the_state_of_its_own_kind_and_factors():
    x = mpsnn.MPSNNImageNode("x")
    nearest, bilinear = (upsampling(kind, 2, 2)(x).result_state for kind in ("nearest", "bilinear"))
    relu = mpsnn.MPSCNNNeuronReLUNode(x, 0.0).result_state
    for node in (
        mpsnn.MPSCNNUpsamplingNearestGradientNode(x, x, bilinear, 2, 2),
        mpsnn.MPSCNNUpsamplingBilinearGradientNode(x, x, nearest, 2, 2),
        mpsnn.MPSCNNUpsamplingNearestGradientNode(x, x, nearest, 2, 3),
        mpsnn.MPSCNNUpsamplingNearestGradientNode(x, x, relu, 2, 2),
    ):
        caught(
            mpsnn.GraphError,
            lambda node=node: run(node, (1, 4, 4, 1)),
            "same kind and factors",
            label="culprit",
            node=type(node).__name__,
        )


@pytest.mark.parametrize("kind", ["bilinear", "lanczos"])
def test_scale_nodes_need_a_size_and_positive_scales_and_have_no_gradient(kind):
    x = mpsnn.MPSNNImageNode()
    caught(mpsnn.OptionError, lambda: scaling(kind, 0, 3)(x), "output_size must be at least 1 x 1", "3 x 0")
    node = scaling(kind, 2, 2, Provider(0, 1, 0, 0))(x)
    caught(mpsnn.OptionError, lambda: run(node, (1, 4, 4, 1)), "scale that is not positive", label="culprit")
    node = scaling(kind, 2, 2)(x)
    node.label = "culprit"
    caught(mpsnn.GraphError, lambda: node.gradient_filters(x), type(node).__name__, label="culprit")


def test_a_provider_that_raises_is_heard():
    class Broken:
        def transform_for_source_image(self, *_):
            raise LookupError("in the provider")

    with pytest.raises(LookupError, match="in the provider"):
        run(scaling("bilinear", 2, 2, Broken())(mpsnn.MPSNNImageNode()), (1, 4, 4, 1))
