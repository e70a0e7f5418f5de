# SPDX-License-Identifier: Apache-2.0
"""Addition, subtraction and multiplication: broadcasting, scales, clamping and both gradients."""

import mpsnn
import numpy as np
import pytest
from engines import (
    Network,
    assert_close,
    assert_differences_agree,
    assert_survives_saving,
    evaluate,
    normal,
    same_on_both,
)
from hypothesis import given, settings
from hypothesis import strategies as st

NODES = {
    "add": mpsnn.MPSNNAdditionNode,
    "subtract": mpsnn.MPSNNSubtractionNode,
    "multiply": mpsnn.MPSNNMultiplicationNode,
}
GRADIENTS = {
    "add": mpsnn.MPSNNAdditionGradientNode,
    "subtract": mpsnn.MPSNNSubtractionGradientNode,
    "multiply": mpsnn.MPSNNMultiplicationGradientNode,
}
KINDS = pytest.mark.parametrize("kind", NODES)
ENGINES = pytest.mark.parametrize("engine", ["reference", "cpu"])
DIMENSIONS = ("pixels_y", "pixels_x", "feature_channels")


def arithmetic(kind, broadcast=((1, 1, 1), (1, 1, 1)), **properties):
    """`broadcast`: strides in y, x and channels of the primary and the secondary source."""

    def build(left, right):
        node = NODES[kind](left, right)
        for which, strides in zip(("primary", "secondary"), broadcast, strict=True):
            for dimension, stride in zip(DIMENSIONS, strides, strict=True):
                setattr(node, f"{which}_stride_in_{dimension}", stride)
        for name, value in properties.items():
            setattr(node, name, value)
        return node

    return build


def numpy_result(kind, x, y, primary_scale=1.0, secondary_scale=1.0, bias=0.0):
    x, y = primary_scale * x, secondary_scale * y
    return {"add": x + y, "subtract": x - y, "multiply": x * y}[kind] + bias


@st.composite
def operands(draw, largest=5):
    """Two shapes and their strides: where a stride is 0, only index 0 of that source is read, whatever its extent."""
    images = draw(st.sampled_from([1, 2, 0] if largest > 3 else [1, 2]))
    result = [
        draw(st.integers(1, largest)),
        draw(st.integers(1, largest)),
        draw(st.sampled_from([1, 2, 3, 16, 17] if largest > 3 else [1, 2])),
    ]
    strides = [tuple(draw(st.sampled_from([1, 1, 0])) for _ in range(3)) for _ in range(2)]
    shapes = []
    for own in strides:
        extents = [
            extent if stride else draw(st.sampled_from([1, 1, 2])) for extent, stride in zip(result, own, strict=True)
        ]
        shapes.append((images, *extents))
    size = tuple(e if strides[0][i] or strides[1][i] else 1 for i, e in enumerate(result))
    return shapes, tuple(strides), (images, *size)


SCALES = {"primary_scale": 1.5, "secondary_scale": -0.75, "bias": 0.25}


@KINDS
@settings(max_examples=100)
@given(operands(), st.booleans(), st.integers(0, 2**16))
def test_the_engines_agree_and_give_numpy_s_broadcast(kind, operands, scaled, seed):
    (left, right), strides, size = operands
    x, y, incoming = normal(seed, *left), normal(seed + 1, *right), normal(seed + 2, *size)
    properties = SCALES if scaled else {}
    largest = 2 * (1 + np.abs(x).max(initial=0)) * (1 + np.abs(y).max(initial=0))
    terms = 1 + max(int(np.prod(size[1:])), 1)
    got = same_on_both(
        arithmetic(kind, strides, **properties), [x, y], incoming, largest, np.abs(incoming).sum() * largest, terms
    )
    first = [
        image[tuple(slice(None) if i == 0 or own[i - 1] else slice(0, 1) for i in range(4))]
        for image, own in zip((x, y), strides, strict=True)
    ]
    expected = np.broadcast_to(numpy_result(kind, *first, **properties), size)
    assert_close(got.result, expected, largest, 4, np.float64)
    assert got.gradients[0].shape == left
    assert got.gradients[1].shape == right


@KINDS
@settings(max_examples=40)
@given(operands(largest=3), st.booleans(), st.integers(0, 2**16))
def test_gradients_are_central_differences(kind, operands, scaled, seed):
    """A product is linear in each of its sources, so the differences are only rounded."""
    (left, right), strides, size = operands
    x, y, incoming = normal(seed, *left), normal(seed + 1, *right), normal(seed + 2, *size)
    scale = np.abs(incoming).sum() * 2 * (1 + np.abs(x).max()) * (1 + np.abs(y).max())
    assert_differences_agree(
        arithmetic(kind, strides, **(SCALES if scaled else {})), [x, y], incoming, curvature=0, scale=scale
    )


@KINDS
@settings(max_examples=30)
@given(operands(largest=4), st.integers(0, 2**16))
def test_a_clamped_element_passes_no_gradient(kind, operands, seed):
    (left, right), strides, size = operands
    x, y, incoming = normal(seed, *left), normal(seed + 1, *right), normal(seed + 2, *size)
    build = arithmetic(kind, strides, minimum_value=-0.5, maximum_value=0.75)
    largest = 2 * (1 + np.abs(x).max(initial=0)) * (1 + np.abs(y).max(initial=0))
    free = evaluate("reference", arithmetic(kind, strides), [x, y], incoming)
    near = np.minimum(np.abs(free.result + 0.5), np.abs(free.result - 0.75)) < 2**-12  # rounding decides there
    incoming = np.where(near, 0, incoming)
    got = same_on_both(build, [x, y], incoming, largest, np.abs(incoming).sum() * largest, 1 + incoming.size)
    assert (got.result == np.clip(free.result, -0.5, 0.75)).all()
    inside = (free.result > -0.5) & (free.result < 0.75)
    masked = evaluate("reference", arithmetic(kind, strides), [x, y], np.where(inside, incoming, 0))
    for clamped, expected in zip(got.gradients, masked.gradients, strict=True):
        assert_close(clamped, expected, np.abs(incoming).sum() * largest, incoming.size, np.float64)


@KINDS
def test_a_saved_node_gives_the_same_bits(kind):
    strides = ((1, 1, 1), (0, 1, 0))
    x, y, incoming = normal(0, 2, 3, 4, 5), normal(1, 2, 1, 4, 1), normal(2, 2, 3, 4, 5)
    build = arithmetic(
        kind, strides, primary_scale=1.5, secondary_scale=0.5, bias=-0.25, minimum_value=-1.0, maximum_value=2.0
    )
    assert_survives_saving(build, [x, y], incoming)


@ENGINES
def test_a_product_with_one_pixel_is_the_printed_one(engine):
    build = arithmetic("multiply", ((1, 1, 1), (0, 0, 0)))
    x, y = np.array([1.0, 2, 3]).reshape(1, 1, 3, 1), np.full((1, 1, 1, 1), 10.0)
    got = evaluate(engine, build, [x, y], np.array([1.0, 1, 2]).reshape(1, 1, 3, 1))
    assert got.result.ravel().tolist() == [10, 20, 30]
    assert got.gradients[0].ravel().tolist() == [10, 10, 20]
    assert got.gradients[1].ravel().tolist() == [9]


@ENGINES
@KINDS
def test_an_image_used_twice_gets_the_sum_of_both_gradients(engine, kind):
    """x + x, x - x, x * x: 2, 0 and 2 x."""
    x, incoming = normal(3, 2, 2, 3, 4), normal(4, 2, 2, 3, 4)
    got = evaluate(engine, lambda image: NODES[kind](image, image), [x], incoming)
    slope = {"add": 2, "subtract": 0, "multiply": 2 * x}[kind]
    assert_close(got.gradients[0], incoming * slope, np.abs(incoming) * (2 + np.abs(2 * x)), 3, got.result.dtype)


@ENGINES
@KINDS
@pytest.mark.parametrize("is_secondary", [False, True])
def test_a_hand_made_gradient_node_uses_its_properties_as_set(engine, kind, is_secondary):
    """primary_scale * E [* secondary_scale * other] + bias, clamped: also where the caller passes either source image."""
    dtype = np.float32 if engine == "cpu" else np.float64
    values = {name: normal(i, 1, 2, 3, 4) for i, name in enumerate(("left", "right", "incoming"))}
    left, right, incoming = (mpsnn.MPSNNImageNode(name) for name in values)
    forward = NODES[kind](left, right)
    other = values["left"] if is_secondary else values["right"]
    expected = 2 * values["incoming"] * (3 * other if kind == "multiply" else 1) + 0.5
    for source in (left, right):
        node = GRADIENTS[kind](incoming, source, forward.result_state, is_secondary)
        node.primary_scale, node.secondary_scale, node.bias = 2, 3, 0.5
        node.minimum_value, node.maximum_value = -1, 1
        graph = mpsnn.MPSNNGraph(engine, [forward.result_image, node.result_image])
        got = graph.run([values[name].astype(dtype) for name in graph.source_image_handles])[1].numpy()
        assert_close(got, np.clip(expected, -1, 1), np.abs(expected) + 1, 4, dtype)


@ENGINES
def test_strides_of_zero_on_both_sides_leave_one_pixel(engine):
    network = Network(engine, arithmetic("add", ((0, 0, 1), (0, 0, 1))), 2)
    got = network.run([normal(0, 2, 3, 4, 5), normal(1, 2, 2, 1, 5)], np.ones((2, 1, 1, 5)))
    assert got.result.shape == (2, 1, 1, 5)
    assert got.gradients[0].sum() == 10
    assert (got.gradients[0][:, 0, 0] == 1).all()
