# SPDX-License-Identifier: Apache-2.0
"""Reductions: sizes, clip rectangles, ties and the gradient of the spatial mean."""

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
    small_integers,
)
from error_cases import caught, run
from hypothesis import example, given, settings
from hypothesis import strategies as st

ENGINES = pytest.mark.parametrize("engine", ["reference", "cpu"])
AXES = {"Row": (2,), "Column": (1,), "FeatureChannels": (3,), "Spatial": (1, 2)}
KINDS = {
    "Min": np.min,
    "Max": np.max,
    "Mean": np.mean,
    "Sum": np.sum,
    "ArgumentMin": np.argmin,
    "ArgumentMax": np.argmax,
}
NAMES = [f"{axis}{kind}" for axis in ("Row", "Column", "FeatureChannels") for kind in ("Min", "Max", "Mean", "Sum")]
NAMES += ["FeatureChannelsArgumentMin", "FeatureChannelsArgumentMax", "SpatialMean"]
EVERY = pytest.mark.parametrize("name", NAMES)


def reduction(name, clip=None, **properties):
    def build(image):
        node = getattr(mpsnn, f"MPSNNReduction{name}Node")(image)
        if clip:
            node.clip_rect_source = mpsnn.MTLRegion(*clip)
        for key, value in properties.items():
            setattr(node, key, value)
        return node

    return build


def parts(name):
    axis = next(axis for axis in AXES if name.startswith(axis))
    return AXES[axis], name[len(axis) :]


def clipped(x, clip):
    """The intersection of the rectangle (x, y, width, height) with the image."""
    if clip is None:
        return x
    left, top, width, height = clip
    return x[:, max(top, 0) : max(top + height, 0), max(left, 0) : max(left + width, 0)]


def numpy_reduction(name, x):
    """In numpy; argument reductions take the lowest channel of equals, as numpy does."""
    axes, kind = parts(name)
    if kind.startswith("Argument"):
        return KINDS[kind](x, axis=3)[..., None].astype(np.float64)
    return KINDS[kind](x, axis=axes, keepdims=True)


def scale_of(name, x):
    """Selections are exact; sums and means add up their sizes."""
    return np.abs(numpy_reduction(name, np.abs(x))) if name.endswith(("Mean", "Sum")) else 0


@st.composite
def cases(draw, images=(1, 2, 0)):
    height, width = draw(st.integers(1, 7)), draw(st.integers(1, 7))
    shape = (draw(st.sampled_from(images)), height, width, draw(st.sampled_from([1, 2, 3, 8, 17])))
    if draw(st.booleans()):
        return shape, None, draw(st.integers(0, 2**16))
    left, top = draw(st.integers(-2, width - 1)), draw(st.integers(-2, height - 1))
    clip = (left, top, draw(st.integers(max(1, 1 - left), 9)), draw(st.integers(max(1, 1 - top), 9)))
    return shape, clip, draw(st.integers(0, 2**16))


@EVERY
@settings(max_examples=60)
@given(cases(), st.booleans())
@example(((2, 33, 40, 24), (1, 2, 37, 30), 0), False)
def test_both_engines_reduce_the_clipped_image_as_numpy_does(name, case, tied):
    shape, clip, seed = case
    x = (small_integers if tied else normal)(seed, *shape)
    read = clipped(x, clip)
    expected, scale = numpy_reduction(name, read), scale_of(name, read)
    for engine, dtype in DTYPES.items():
        got = result_of(reduction(name, clip), x, engine=engine)
        assert_close(got, expected, scale, int(np.prod(read.shape[1:])) + 2, dtype)


@settings(max_examples=80)
@given(cases(images=(1, 2)))
def test_the_gradient_of_a_spatial_mean_spreads_over_the_clipped_pixels(case):
    shape, clip, seed = case
    x, incoming = normal(seed, *shape), normal(seed + 1, shape[0], 1, 1, shape[3])
    expected = np.zeros(shape)
    inside = clipped(expected, clip)
    inside += incoming / (inside.shape[1] * inside.shape[2])
    for engine, dtype in DTYPES.items():
        got = evaluate(engine, reduction("SpatialMean", clip), [x], incoming)
        assert_close(got.gradients[0], expected, np.abs(expected), 2, dtype)
    if x.size <= 200:
        assert_differences_agree(
            reduction("SpatialMean", clip), [x], incoming, 0, np.abs(incoming).sum() * (1 + np.abs(x).max())
        )


@ENGINES
def test_an_empty_batch_has_an_empty_gradient(engine):
    got = evaluate(engine, reduction("SpatialMean"), [np.zeros((0, 3, 4, 5))], np.zeros((0, 1, 1, 5)))
    assert got.result.shape == (0, 1, 1, 5)
    assert got.gradients[0].shape == (0, 3, 4, 5)


@ENGINES
@EVERY
def test_results_are_as_large_as_printed(engine, name):
    """MPS_SEMANTICS 17, of a source 5 high, 7 wide, 3 channels, and of its region 2 high, 4 wide."""
    axes = parts(name)[0]
    for clip, size in ((None, (5, 7, 3)), ((1, 2, 4, 2), (2, 4, 3)), ((3, 3, 100, 100), (2, 4, 3))):
        expected = tuple(1 if d in axes else s for d, s in zip((1, 2, 3), size, strict=True))
        assert result_of(reduction(name, clip), normal(0, 2, 5, 7, 3), engine=engine).shape == (2, *expected)


@ENGINES
def test_the_channel_sum_is_multiplied_by_the_weight(engine):
    x = normal(0, 2, 3, 4, 7)
    got = result_of(reduction("FeatureChannelsSum", weight=-1.5), x, engine=engine)
    assert_close(got, -1.5 * x.sum(axis=3, keepdims=True), 1.5 * np.abs(x).sum(axis=3, keepdims=True), 8, got.dtype)


@ENGINES
def test_the_lowest_channel_of_equals_is_the_argument(engine):
    x = np.array([[2.0, 5, 5, 2], [1, 1, 1, 1], [-3, -7, 4, -7]]).reshape(1, 1, 3, 4)
    assert result_of(reduction("FeatureChannelsArgumentMax"), x, engine=engine).ravel().tolist() == [1, 0, 2]
    assert result_of(reduction("FeatureChannelsArgumentMin"), x, engine=engine).ravel().tolist() == [0, 0, 1]


def test_without_a_clip_rectangle_the_whole_image_counts():
    node = mpsnn.MPSNNReductionRowSumNode(mpsnn.MPSNNImageNode())
    assert node.clip_rect_source == mpsnn.MPSRectNoClip
    assert mpsnn.MPSNNReductionFeatureChannelsSumNode(mpsnn.MPSNNImageNode()).weight == 1


@EVERY
def test_a_saved_node_gives_the_same_bits(name, tmp_path):
    x, clip = normal(0, 2, 4, 5, 3), (1, -1, 3, 4)
    if name == "SpatialMean":
        return assert_survives_saving(reduction(name, clip), [x], normal(1, 2, 1, 1, 3))
    properties = {"weight": 0.75} if name == "FeatureChannelsSum" else {}
    for engine, dtype in DTYPES.items():
        graph = mpsnn.MPSNNGraph(engine, reduction(name, clip, **properties)(mpsnn.MPSNNImageNode("x")).result_image)
        graph.save(str(tmp_path / "g"))
        loaded = mpsnn.MPSNNGraph.load(str(tmp_path / "g"), engine)
        one, other = (g.run([x.astype(dtype)]).numpy() for g in (graph, loaded))
        assert one.tobytes() == other.tobytes()
        assert one.shape == other.shape


# --- errors


@pytest.mark.parametrize("clip", [(5, 0, 2, 2), (0, 4, 2, 2), (-2, 0, 2, 4), (0, 0, 0, 3)])
@EVERY
def test_a_rectangle_that_misses_the_image_names_both(name, clip):
    node = reduction(name, clip)(mpsnn.MPSNNImageNode())
    error = caught(
        mpsnn.ShapeError, lambda: run(node, (1, 4, 5, 2)), "leaves nothing", label="culprit", node=type(node).__name__
    )
    assert "1 x 4 x 5 x 2" in error.expected
    assert error.actual == f"{clip[2]} x {clip[3]} at {clip[0]}, {clip[1]}"


@pytest.mark.parametrize("name", NAMES[:-1])
def test_only_the_spatial_mean_has_a_gradient(name):
    node = reduction(name)(mpsnn.MPSNNImageNode())
    node.label = "culprit"
    for call in (
        lambda: node.gradient_filters(mpsnn.MPSNNImageNode()),
        lambda: node.training_graph(mpsnn.MPSNNImageNode()),
    ):
        error = caught(mpsnn.GraphError, call, f"MPSNNReduction{name}Node", label="culprit")
        assert error.node == f"MPSNNReduction{name}Node"


def test_its_gradient_takes_a_state_of_its_own_and_a_gradient_of_its_size():
    x, e = mpsnn.MPSNNImageNode("x"), mpsnn.MPSNNImageNode("e")
    other = mpsnn.MPSNNReductionSpatialMeanGradientNode(e, x, reduction("RowMean")(x).result_state)
    call = lambda: run(other, (1, 4, 5, 2), (1, 4, 5, 2))
    error = caught(mpsnn.GraphError, call, "must come from a spatial mean", label="culprit")
    assert error.actual == "MPSNNReductionRowMeanNode"
    node = reduction("SpatialMean")(x).gradient_filter(e)
    caught(
        mpsnn.ShapeError,
        lambda: run(node, (1, 4, 5, 2), (1, 4, 5, 2)),
        "1 x 1 x 1 x 2",
        "1 x 4 x 5 x 2",
        label="culprit",
    )
