# SPDX-License-Identifier: Apache-2.0
"""Reshape, pad and gram matrix; division and comparison, the arithmetic nodes without a gradient."""

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
    small_integers,
)
from error_cases import caught, run
from hypothesis import example, given, settings
from hypothesis import strategies as st
from mpsnn import MPSImageEdgeMode as Edge

ENGINES = pytest.mark.parametrize("engine", ["reference", "cpu"])
MODES = pytest.mark.parametrize(
    "mode", [Edge.Zero, Edge.Clamp, Edge.Mirror, Edge.MirrorWithEdge, Edge.Constant], ids=lambda m: m.name
)
Coordinate = mpsnn.MPSImageCoordinate
shapes = st.tuples(st.sampled_from([1, 2, 0]), st.integers(1, 5), st.integers(1, 5), st.sampled_from([1, 2, 3, 8, 17]))
small_shapes = st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))
seeds = st.integers(0, 2**16)

# --- reshape


@ENGINES
@settings(max_examples=60)
@given(shapes, st.permutations([0, 1, 2]), seeds)
def test_a_reshape_keeps_the_order_of_the_elements(engine, shape, order, seed):
    x = normal(seed, *shape)
    size = [shape[1 + d] for d in order]
    incoming = normal(seed + 1, shape[0], *size)
    got = evaluate(engine, lambda image: mpsnn.MPSNNReshapeNode(image, size[1], size[0], size[2]), [x], incoming)
    assert (got.result == x.reshape(shape[0], *size)).all()
    assert got.result.shape == (shape[0], *size)
    assert (got.gradients[0] == incoming.reshape(shape)).all()


def test_a_reshape_s_gradient_is_a_central_difference_and_it_survives_saving():
    build = lambda image: mpsnn.MPSNNReshapeNode(image, 6, 1, 4)
    x, incoming = normal(0, 2, 2, 4, 3), normal(1, 2, 1, 6, 4)
    assert_differences_agree(build, [x], incoming, curvature=0, scale=np.abs(incoming).sum() * (1 + np.abs(x).max()))
    assert_survives_saving(build, [x], incoming)


def test_a_reshape_that_loses_elements_names_both_counts():
    node = mpsnn.MPSNNReshapeNode(mpsnn.MPSNNImageNode(), 3, 3, 3)
    error = caught(
        mpsnn.ShapeError,
        lambda: run(node, (2, 2, 4, 3)),
        "keeps the number of elements",
        label="culprit",
        node="MPSNNReshapeNode",
    )
    assert error.expected == "2 x 2 x 4 x 3 = 24 per image"
    assert error.actual == "2 x 3 x 3 x 3 = 27 per image"
    for size in ((0, 1, 1), (1, -1, 1), (1, 1, 0)):
        caught(
            mpsnn.OptionError,
            lambda size=size: mpsnn.MPSNNReshapeNode(mpsnn.MPSNNImageNode(), *size),
            "at least 1",
            node="MPSNNReshapeNode",
        )


# --- pad

# MPS_SEMANTICS 18.3, for a length of 3 and indices -5 to 7.
PRINTED = {
    Edge.Clamp: [0, 0, 0, 0, 0, 0, 1, 2, 2, 2, 2, 2, 2],
    Edge.Mirror: [1, 0, 1, 2, 1, 0, 1, 2, 1, 0, 1, 2, 1],
    Edge.MirrorWithEdge: [1, 2, 2, 1, 0, 0, 1, 2, 2, 1, 0, 0, 1],
}


def padding(mode, before, after, fill_value=0.0):
    """`before` and `after`: y, x, channel."""

    def build(image):
        node = mpsnn.MPSNNPadNode(image, *(Coordinate(x, y, c) for y, x, c in (before, after)), mode)
        node.fill_value = fill_value
        return node

    return build


def indices(mode, size, before, after):
    """The source index of every result index by the printed formulas; None outside."""
    result = []
    for i in range(-before, size + after):
        if mode in (Edge.Zero, Edge.Constant):
            result.append(i if 0 <= i < size else None)
        elif mode == Edge.Clamp:
            result.append(min(max(i, 0), size - 1))
        elif mode == Edge.Mirror:
            r = i % (2 * (size - 1)) if size > 1 else 0
            result.append(r if r < size else 2 * (size - 1) - r)
        else:
            r = i % (2 * size)
            result.append(r if r < size else 2 * size - 1 - r)
    return result


def selections(mode, shape, before, after):
    """For each of y, x, channel: (result, source) of zeros and ones."""
    matrices = []
    for size, b, a in zip(shape[1:], before, after, strict=True):
        chosen = indices(mode, size, b, a)
        matrix = np.zeros((len(chosen), size))
        for i, source in enumerate(chosen):
            if source is not None:
                matrix[i, source] = 1
        matrices.append(matrix)
    return matrices


amounts = st.tuples(st.integers(0, 4), st.integers(0, 7), st.sampled_from([0, 0, 1, 4, 9]))


@MODES
@settings(max_examples=70)
@given(shapes, amounts, amounts, seeds)
@example((1, 1, 1, 1), (2, 3, 2), (1, 4, 3), 0)
@example((2, 1, 4, 2), (0, 0, 0), (0, 0, 0), 0)
def test_both_engines_pad_by_the_printed_indices_and_collect_the_gradient(mode, shape, before, after, seed):
    x = normal(seed, *shape)
    y, z, c = selections(mode, shape, before, after)
    incoming = normal(seed + 1, shape[0], len(y), len(z), len(c))
    fill = 0.625 if mode == Edge.Constant else 0
    inside = np.einsum("i,j,k->ijk", y.sum(1), z.sum(1), c.sum(1))
    expected = np.einsum("iy,jx,kc,nyxc->nijk", y, z, c, x) + fill * (1 - inside)
    gradient, size = (np.einsum("iy,jx,kc,nijk->nyxc", y, z, c, e) for e in (incoming, np.abs(incoming)))
    for engine, dtype in DTYPES.items():
        got = evaluate(engine, padding(mode, before, after, 0.625), [x], incoming)
        assert (got.result == expected).all()
        assert got.result.shape == expected.shape
        assert_close(got.gradients[0], gradient, size, incoming[:1].size, dtype, "gradient")


@MODES
@settings(max_examples=20)
@given(small_shapes, st.tuples(*[st.integers(0, 3)] * 3), st.tuples(*[st.integers(0, 3)] * 3), seeds)
def test_pad_gradients_are_central_differences(mode, shape, before, after, seed):
    x = normal(seed, *shape)
    incoming = normal(seed + 1, shape[0], *(s + b + a for s, b, a in zip(shape[1:], before, after, strict=True)))
    scale = np.abs(incoming).sum() * (1 + np.abs(x).max())
    assert_differences_agree(padding(mode, before, after, 0.5), [x], incoming, curvature=0, scale=scale)


@ENGINES
@pytest.mark.parametrize("mode", PRINTED, ids=lambda m: m.name)
def test_the_printed_table_of_indices_comes_out_along_every_axis(engine, mode):
    for axis in range(3):
        before, after = (tuple(5 if d == axis else 0 for d in range(3)) for _ in "ab")
        x = np.array([0.0, 1, 2]).reshape([-1 if d == axis + 1 else 1 for d in range(4)])
        assert result_of(padding(mode, before, after), x, engine=engine).ravel().tolist() == PRINTED[mode]


@ENGINES
def test_the_printed_gradients_come_out(engine):
    """The header's examples: d = 1, 2, 4 ... shows which ones met."""
    d = row(*(2.0**i for i in range(8)))
    clamp = evaluate(engine, padding(Edge.Clamp, (0, 2, 0), (0, 3, 0)), [row(0, 0, 0)], d)
    mirror = evaluate(engine, padding(Edge.Mirror, (0, 4, 0), (0, 1, 0)), [row(0, 0, 0)], d)
    assert clamp.gradients[0].ravel().tolist() == [1 + 2 + 4, 8, 16 + 32 + 64 + 128]
    assert mirror.gradients[0].ravel().tolist() == [1 + 16, 2 + 8 + 32 + 128, 4 + 64]


@MODES
def test_a_saved_pad_gives_the_same_bits(mode):
    assert_survives_saving(padding(mode, (1, 2, 3), (3, 0, 1), 0.5), [normal(0, 2, 3, 4, 5)], normal(1, 2, 7, 6, 9))


def test_a_pad_refuses_negative_sizes():
    for before, after in ((Coordinate(-1, 0, 0), Coordinate()), (Coordinate(), Coordinate(0, 0, -2))):
        call = lambda before=before, after=after: mpsnn.MPSNNPadNode(mpsnn.MPSNNImageNode(), before, after, Edge.Zero)
        caught(mpsnn.OptionError, call, "must not be negative", node="MPSNNPadNode")


# --- gram matrix


def gram(alpha, callback=None):
    def build(image):
        node = mpsnn.MPSNNGramMatrixCalculationNode(image, alpha)
        node.property_call_back = callback
        return node

    return build


@settings(max_examples=100)
@given(shapes, st.sampled_from([1.0, 0.125, -2.5]), seeds)
@example((2, 9, 11, 24), 0.125, 0)
def test_both_engines_give_the_printed_gram_matrix_and_gradient(shape, alpha, seed):
    x, incoming = normal(seed, *shape), normal(seed + 1, shape[0], 1, shape[3], shape[3])
    pixels, e = x.reshape(shape[0], shape[1] * shape[2], shape[3]), incoming[:, 0]
    expected = alpha * np.einsum("npf,npc->nfc", pixels, pixels)[:, None]
    size = abs(alpha) * np.einsum("npf,npc->nfc", np.abs(pixels), np.abs(pixels))[:, None]
    gradient = alpha * np.einsum("nkc,npc->npk", e + e.transpose(0, 2, 1), pixels).reshape(shape)
    both = np.abs(e) + np.abs(e.transpose(0, 2, 1))
    gradient_size = abs(alpha) * np.einsum("nkc,npc->npk", both, np.abs(pixels)).reshape(shape)
    for engine, dtype in DTYPES.items():
        got = evaluate(engine, gram(alpha), [x], incoming)
        assert_close(got.result, expected, size, shape[1] * shape[2] + 2, dtype)
        assert_close(got.gradients[0], gradient, gradient_size, 2 * shape[3] + 2, dtype, "gradient")


@settings(max_examples=30)
@given(small_shapes, seeds)
def test_gram_matrix_gradients_are_central_differences(shape, seed):
    x, incoming = normal(seed, *shape), normal(seed + 1, shape[0], 1, shape[3], shape[3])
    scale = np.abs(incoming).sum() * (1 + np.abs(x).max()) ** 2 * shape[1] * shape[2]
    assert_differences_agree(gram(0.5), [x], incoming, curvature=0, scale=scale)  # squares have no third derivative


@ENGINES
def test_the_printed_gram_matrix_comes_out(engine):
    """MPS_SEMANTICS 22.4: pixels (1, 2) and (3, 4)."""
    x, incoming = np.array([1.0, 2, 3, 4]).reshape(1, 1, 2, 2), np.array([1.0, 0, 0, 0]).reshape(1, 1, 2, 2)
    got = evaluate(engine, gram(1.0), [x], incoming)
    assert got.result.ravel().tolist() == [10, 14, 14, 20]
    assert got.gradients[0].ravel().tolist() == [2, 0, 6, 0]


@ENGINES
def test_a_callback_gives_alpha_to_the_result_and_the_gradient(engine):
    class Callback:
        def alpha_for_source_image(self, source, destination):
            self.seen = [(i.width, i.height, i.feature_channels) for i in (source, destination)]
            return 1 / (source.width * source.height)

    callback, x, incoming = Callback(), normal(0, 2, 2, 4, 3), normal(1, 2, 1, 3, 3)
    got, expected = (evaluate(engine, build, [x], incoming) for build in (gram(7.0, callback), gram(1 / 8)))
    assert callback.seen == [(4, 2, 3), (3, 1, 3)]
    assert got.result.tobytes() == expected.result.tobytes()
    assert got.gradients[0].tobytes() == expected.gradients[0].tobytes()


def test_a_saved_gram_matrix_gives_the_same_bits():
    assert_survives_saving(gram(0.3), [normal(0, 2, 3, 4, 5)], normal(1, 2, 1, 5, 5))


def test_gradients_of_another_size_or_state_are_refused():
    x, e = mpsnn.MPSNNImageNode("x"), mpsnn.MPSNNImageNode("e")
    forward = {
        "Reshape": (mpsnn.MPSNNReshapeNode(x, 4, 2, 3), "1 x 2 x 4 x 3"),
        "Pad": (padding(Edge.Clamp, (1, 0, 0), (0, 0, 1))(x), "1 x 3 x 4 x 4"),
        "GramMatrixCalculation": (gram(1.0)(x), "1 x 1 x 3 x 3"),
    }
    relu = mpsnn.MPSCNNNeuronReLUNode(x, 0.0).result_state
    for name, (node, size) in forward.items():
        gradient = node.gradient_filter(e)
        graph_order = mpsnn.MPSNNGraph("cpu", gradient.result_image).source_image_handles
        by_name = {"x": (1, 2, 4, 3), "e": (1, 5, 5, 5)}
        shapes = [by_name[handle] for handle in graph_order]
        caught(mpsnn.ShapeError, lambda g=gradient, s=shapes: run(g, *s), size, "1 x 5 x 5 x 5", label="culprit")
        other = getattr(mpsnn, f"MPSNN{name}GradientNode")(x, x, relu)
        error = caught(mpsnn.GraphError, lambda o=other: run(o, (1, 2, 4, 3)), "matching forward node", label="culprit")
        assert (error.expected, error.actual) == (f"MPSNN{name}Node", "MPSCNNNeuronReLUNode")


# --- division and comparison

RELATIONS = {
    "Equal": np.equal, "NotEqual": np.not_equal, "Less": np.less, "LessOrEqual": np.less_equal,
    "Greater": np.greater, "GreaterOrEqual": np.greater_equal,
}  # fmt: skip


@settings(max_examples=60)
@given(shapes, st.booleans(), seeds)
def test_both_engines_divide(shape, is_broadcast, seed):
    x = normal(seed, *shape)
    y = normal(seed + 1, shape[0], 1, 1, shape[3]) if is_broadcast else normal(seed + 1, *shape)
    y += np.where(y < 0, -0.25, 0.25)

    def build(left, right):
        node = mpsnn.MPSNNDivisionNode(left, right)
        node.primary_scale, node.secondary_scale, node.bias, node.maximum_value = 1.5, -0.75, 0.25, 3.0
        if is_broadcast:
            node.secondary_stride_in_pixels_x = node.secondary_stride_in_pixels_y = 0
        return node

    quotient = 1.5 * x / (-0.75 * y)
    for engine, dtype in DTYPES.items():
        got = result_of(build, x, y, engine=engine)
        assert_close(got, np.minimum(quotient + 0.25, 3), np.abs(quotient) + 0.25, 6, dtype)


@pytest.mark.parametrize("relation", RELATIONS)
@ENGINES
@settings(max_examples=20)
@given(shapes, seeds)
def test_a_comparison_is_one_where_the_relation_holds(engine, relation, shape, seed):
    """Scales and bias are unused; few distinct values, so that equal ones meet."""
    x, y = small_integers(seed, *shape), small_integers(seed + 1, *shape)

    def build(left, right):
        node = mpsnn.MPSNNComparisonNode(left, right)
        node.comparison_type = mpsnn.MPSNNComparisonType[relation]
        node.primary_scale, node.bias = 5.0, 2.0
        return node

    assert (result_of(build, x, y, engine=engine) == RELATIONS[relation](x, y)).all()


@pytest.mark.parametrize("name", ["Division", "Comparison"])
def test_division_and_comparison_are_saved_and_have_no_gradient(name, tmp_path):
    x, y = mpsnn.MPSNNImageNode("x"), mpsnn.MPSNNImageNode("y")
    node = getattr(mpsnn, f"MPSNN{name}Node")(x, y)
    if name == "Comparison":
        node.comparison_type = mpsnn.MPSNNComparisonType.Greater
    node.label, node.minimum_value = "culprit", -1.0
    graph = mpsnn.MPSNNGraph("cpu", node.result_image)
    graph.save(str(tmp_path / "g"))
    loaded = mpsnn.MPSNNGraph.load(str(tmp_path / "g"), "cpu")
    images = [normal(i, 2, 3, 4, 5).astype(np.float32) for i in range(2)]
    assert graph.run(images).numpy().tobytes() == loaded.run(images).numpy().tobytes()
    for call in (lambda: node.gradient_filters(x), lambda: node.training_graph(x)):
        caught(mpsnn.GraphError, call, f"MPSNN{name}Node", label="culprit")
