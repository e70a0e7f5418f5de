# SPDX-License-Identifier: Apache-2.0
"""Soft-max and its logarithm over the feature channels of each pixel."""

import mpsnn
import numpy as np
import pytest
from engines import assert_close, assert_differences_agree, assert_survives_saving, evaluate, normal, same_on_both
from hypothesis import given, settings
from hypothesis import strategies as st

NODES = {"softmax": mpsnn.MPSCNNSoftMaxNode, "log_softmax": mpsnn.MPSCNNLogSoftMaxNode}
KINDS = pytest.mark.parametrize("kind", NODES)
ENGINES = pytest.mark.parametrize("engine", ["reference", "cpu"])
ROUNDINGS = 8  # of an exponential and what is around it, besides the sum over channels


@KINDS
@settings(max_examples=60)
@given(
    st.sampled_from([0, 1, 3]),
    st.integers(1, 4),
    st.integers(1, 4),
    st.sampled_from([1, 2, 3, 8, 10, 17, 100]),
    st.sampled_from([0.1, 3, 30]),
    st.integers(0, 2**16),
)
def test_the_engines_agree(kind, images, height, width, channels, spread, seed):
    """The exponent x - max is rounded to epsilon times its size, which passes into e^x as a relative error."""
    x = (normal(seed, images, height, width, channels) * spread).astype(np.float32)
    incoming = normal(seed + 1, *x.shape)
    reach = 1 + 2 * np.abs(x).max(initial=0)
    size = reach if kind == "softmax" else reach + np.log(channels)
    gradient_size = np.abs(incoming).sum(axis=3, keepdims=True) * reach
    same_on_both(NODES[kind], [x], incoming, size, gradient_size, channels + ROUNDINGS)


@ENGINES
def test_the_results_are_the_printed_formulas(engine):
    x, incoming = normal(1, 2, 3, 2, 5), normal(2, 2, 3, 2, 5)
    y = np.exp(x) / np.exp(x).sum(axis=3, keepdims=True)
    expected = {
        "softmax": (y, y * (incoming - (incoming * y).sum(axis=3, keepdims=True))),
        "log_softmax": (np.log(y), incoming - y * incoming.sum(axis=3, keepdims=True)),
    }
    for kind, (value, gradient) in expected.items():
        got = evaluate(engine, NODES[kind], [x], incoming)
        reach = 1 + 2 * np.abs(x).max()
        assert_close(got.result, value, reach, 5 + ROUNDINGS, got.result.dtype)
        assert_close(
            got.gradients[0],
            gradient,
            np.abs(incoming).sum(axis=3, keepdims=True) * reach,
            5 + ROUNDINGS,
            got.result.dtype,
        )


@KINDS
@settings(max_examples=20)
@given(st.integers(1, 2), st.integers(1, 3), st.integers(1, 3), st.integers(1, 6), st.integers(0, 2**16))
def test_gradients_are_central_differences(kind, images, height, width, channels, seed):
    x = normal(seed, images, height, width, channels)
    assert_differences_agree(NODES[kind], [x], normal(seed + 1, *x.shape))


@KINDS
def test_a_saved_node_gives_the_same_bits(kind):
    assert_survives_saving(NODES[kind], [normal(0, 2, 3, 4, 5)], normal(1, 2, 3, 4, 5))


@ENGINES
def test_large_and_equal_numbers_neither_overflow_nor_lose_their_sum(engine):
    x = np.array([[1e30, 1e30, -1e30], [1e4, 1e4, 1e4], [-1e4, -1e4, -2e4]]).reshape(1, 1, 3, 3)
    expected = np.array([[1 / 2, 1 / 2, 0], [1 / 3, 1 / 3, 1 / 3], [1 / 2, 1 / 2, 0]]).reshape(x.shape)
    got = evaluate(engine, NODES["softmax"], [x], np.ones_like(x))
    assert_close(got.result, expected, 1, ROUNDINGS, got.result.dtype)
    assert_close(got.gradients[0], np.zeros_like(x), 3, ROUNDINGS, got.result.dtype)
    logarithm = evaluate(engine, NODES["log_softmax"], [x[:, :, 1:2]], np.ones((1, 1, 1, 3)))
    assert_close(logarithm.result, np.full((1, 1, 1, 3), -np.log(3)), np.log(3), ROUNDINGS, got.result.dtype)


@ENGINES
def test_pixels_do_not_see_each_other(engine):
    x = normal(3, 1, 2, 2, 4)
    whole = evaluate(engine, NODES["softmax"], [x], np.ones_like(x)).result
    for i in range(2):
        for j in range(2):
            alone = evaluate(engine, NODES["softmax"], [x[:, i : i + 1, j : j + 1]], np.ones((1, 1, 1, 4))).result
            assert alone.tobytes() == np.ascontiguousarray(whole[:, i : i + 1, j : j + 1]).tobytes()


@ENGINES
@KINDS
def test_a_hand_made_gradient_node_works_with_the_forward_result(engine, kind):
    """What the automatic wiring passes (MPS_SEMANTICS 5.4), spelled out."""
    gradient_class = {"softmax": mpsnn.MPSCNNSoftMaxGradientNode, "log_softmax": mpsnn.MPSCNNLogSoftMaxGradientNode}[
        kind
    ]
    x, incoming = normal(4, 1, 2, 3, 5), normal(5, 1, 2, 3, 5)
    image, source_gradient = mpsnn.MPSNNImageNode("x"), mpsnn.MPSNNImageNode("incoming")
    forward = NODES[kind](image)
    gradient = gradient_class(source_gradient, forward.result_image, forward.result_state)
    graph = mpsnn.MPSNNGraph(engine, gradient.result_image)
    given_images = {"x": x, "incoming": incoming}
    dtype = np.float32 if engine == "cpu" else np.float64
    got = graph.run([given_images[name].astype(dtype) for name in graph.source_image_handles]).numpy()
    assert got.tobytes() == evaluate(engine, NODES[kind], [x], incoming).gradients[0].tobytes()
