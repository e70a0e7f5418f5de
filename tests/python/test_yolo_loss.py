# SPDX-License-Identifier: Apache-2.0
"""The loss of a grid of object detectors against the printed algorithm (MPS_SEMANTICS 14.6)."""

import mpsnn
import numpy as np
import pytest
from engines import DTYPES, STEP, assert_close, difference_tolerance, normal
from error_cases import caught, run
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_loss import ROUNDINGS, log_softmax

Type, Reduction = mpsnn.MPSCNNLossType, mpsnn.MPSCNNReductionType
ANCHORS = [1.0, 2.0, 3.0, 1.5, 0.75, 0.75]
TYPICAL = (Type.MeanSquaredError, Type.Huber, Type.SigmoidCrossEntropy, Type.SoftMaxCrossEntropy)
OTHER = (Type.SigmoidCrossEntropy, Type.MeanSquaredError, Type.MeanSquaredError, Type.SigmoidCrossEntropy)
KINDS = pytest.mark.parametrize("types", [TYPICAL, OTHER], ids=["typical", "other"])
PARTS = ("xy", "wh", "confidence", "classes")


def sigmoid(y):
    return 1 / (1 + np.exp(-y))


# Value and d/dy of one element; log: log soft-max of the classes.
TERMS = {
    Type.MeanSquaredError: lambda y, t, log: ((y - t) ** 2, 2 * (y - t)),
    Type.Huber: lambda y, t, log: (
        np.where(abs(y - t) <= 1, (y - t) ** 2 / 2, abs(y - t) - 0.5),
        np.clip(y - t, -1, 1),
    ),
    Type.SigmoidCrossEntropy: lambda y, t, log: (np.maximum(y, 0) - y * t + np.log1p(np.exp(-abs(y))), sigmoid(y) - t),
    Type.SoftMaxCrossEntropy: lambda y, t, log: (-t * log, np.exp(log) - t),
}


def descriptor(types, anchors=3, reduction=Reduction.Sum, **options):
    made = mpsnn.MPSCNNYOLOLossDescriptor(*types, reduction, ANCHORS[: 2 * anchors], anchors)
    for name, value in options.items():
        setattr(made, name, value)
    return made


def overlap(a, b):
    """Of boxes (x, y, width, height) by their centres."""
    sides = [
        np.maximum(
            0,
            np.minimum(a[k] + a[2 + k] / 2, b[k] + b[2 + k] / 2) - np.maximum(a[k] - a[2 + k] / 2, b[k] - b[2 + k] / 2),
        )
        for k in (0, 1)
    ]
    common = sides[0] * sides[1]
    together = a[2] * a[3] + b[2] * b[3] - common
    return np.where(together > 0, common / np.where(together > 0, together, 1), 0)


def split(image, anchors):
    """(N, H, W, anchor, 5 + classes)."""
    return image.reshape(*image.shape[:3], anchors, image.shape[3] // anchors)


def fits(labels, d):
    """aIoU of every cell and anchor."""
    anchors = d.number_of_anchor_boxes
    sizes = np.array(d.anchor_boxes).reshape(anchors, 2)
    t, zero = split(labels, anchors), np.zeros(())
    return overlap([zero, zero, sizes[:, 0], sizes[:, 1]], [zero, zero, t[..., 2], t[..., 3]])


def formula(y, labels, w, d):
    """Element losses and gradients in the shape of y, and whether an anchor has an object, or none."""
    anchors = d.number_of_anchor_boxes
    p, t, factor = split(y, anchors), split(labels, anchors), split(w, anchors)
    sizes = np.array(d.anchor_boxes).reshape(anchors, 2)
    fit = fits(labels, d)
    is_best = np.arange(anchors) == fit.argmax(axis=3)[..., None]
    has_object = ((t[..., 4] == 1) & is_best) | (fit > d.min_iou_for_object_presence)
    has_none = (fit < d.max_iou_for_object_absence) & ~has_object
    xy, wh = sigmoid(p[..., :2]), np.exp(p[..., 2:4]) * sizes
    iou = overlap([xy[..., 0], xy[..., 1], wh[..., 0], wh[..., 1]], np.moveaxis(t[..., :4], 4, 0))
    value, slope = np.zeros_like(p), np.zeros_like(p)
    logs = None
    if p.shape[4] > 5:
        classes = p[..., 5:]
        pixels = p.shape[2] * anchors
        logs = log_softmax(classes.reshape(*p.shape[:2], pixels, p.shape[4] - 5)).reshape(classes.shape)
    target = np.log(t[..., 2:4] / sizes + 1e-5)
    goal = np.where(has_object, iou if d.rescore else 1.0, 0.0)[..., None]
    confidence = np.where(has_object, d.scale_object, np.where(has_none, d.scale_no_object, 0.0))
    for part, where, scale, prediction, wanted, inner in (
        ("xy", slice(0, 2), has_object * d.scale_xy, xy, t[..., :2], xy * (1 - xy)),
        ("wh", slice(2, 4), has_object * d.scale_wh, p[..., 2:4], target, 1),
        ("confidence", slice(4, 5), confidence, p[..., 4:5], goal, 1),
        ("classes", slice(5, None), has_object * d.scale_class, p[..., 5:], t[..., 5:], 1),
    ):
        own = getattr(d, f"{part}_loss_descriptor")
        v, s = TERMS[own.loss_type](prediction, wanted, logs)
        value[..., where] = scale[..., None] * own.weight * v
        slope[..., where] = scale[..., None] * own.weight * s * inner
    return (value * factor).reshape(y.shape), (slope * factor).reshape(y.shape), has_object, has_none


def example_of(shape, anchors, classes, seed):
    """Predictions, and labels with boxes in some cells: alike in all anchors or different ones."""
    random = np.random.default_rng(seed)
    y = normal(seed, *shape, anchors, 5 + classes)
    t = np.zeros(y.shape)
    boxes = random.uniform(0.5, 3, (*shape, 1 if seed % 2 else anchors, 2))
    t[..., :2], t[..., 2:4] = random.uniform(0, 1, (*shape, anchors, 2)), boxes
    t[..., 4] = random.integers(0, 2, (*shape, anchors))
    if classes:
        t[..., 5:] = np.eye(classes)[random.integers(0, classes, (*shape, anchors))]
    t *= random.integers(0, 3, shape)[..., None, None] > 0  # a third of the cells is empty
    flat = (*shape[:2], shape[2], anchors * (5 + classes))
    return y.reshape(flat), t.astype(np.float32).astype(np.float64).reshape(flat), random.integers(0, 3, flat) * 0.5


def is_clear(labels, d):
    """No overlap so near to a threshold, or two so near to each other, that rounding decides."""
    fit = fits(labels, d)
    ordered = np.sort(fit, axis=3)
    thresholds = [np.float32(d.min_iou_for_object_presence), np.float32(d.max_iou_for_object_absence)]
    far = all((np.abs(fit - limit) > 1e-4).all() for limit in thresholds)
    return far and ((ordered[..., 1:] - ordered[..., :-1] > 1e-4) | (ordered[..., 1:] == 0)).all()


def run_node(engine, d, y, t, w=None, per_element=False):
    dtype = DTYPES[engine]
    node = mpsnn.MPSCNNYOLOLossNode(mpsnn.MPSNNImageNode("y"), d)
    labels = mpsnn.MPSCNNLossLabels(t.astype(dtype), None if w is None else w.astype(dtype), per_element)
    gradient = mpsnn.MPSNNGraph(engine, node.result_image).run([y.astype(dtype)], [labels])
    return np.array(gradient.numpy()), np.array(labels.loss_image.numpy())


grids = st.tuples(st.sampled_from([1, 2, 0]), st.integers(1, 4), st.integers(1, 4))


@KINDS
@settings(max_examples=80)
@given(
    grids,
    st.sampled_from([1, 2, 3]),
    st.sampled_from([0, 1, 3, 20]),
    st.booleans(),
    st.booleans(),
    st.integers(0, 2**16),
)
def test_both_engines_give_the_printed_losses_and_gradients(types, grid, anchors, classes, rescore, weighted, seed):
    """Boxes are at least half a cell wide and predicted ones e^-3 of an anchor: an overlap magnifies roundings 32 times."""
    assume(classes or types is OTHER)
    y, t, w = example_of(grid, anchors, classes, seed)
    y = np.clip(y, -3, 3)
    for reduction in (Reduction.Sum, Reduction.Mean, Reduction.SumByNonZeroWeights):
        d = descriptor(types, anchors, reduction, rescore=rescore, scale_wh=3.0)
        d.confidence_loss_descriptor.weight = 0.5
        assume(is_clear(t, d))
        factor = w if weighted else np.ones(y.shape)
        value, slope, _, _ = formula(y, t, factor, d)
        targets = np.abs(np.log(1e-5))  # the largest target of a width
        size = factor * 100 * (1 + np.abs(y)) * 32 + factor * (np.abs(value) + np.abs(slope)) * targets
        divisor = {
            Reduction.Sum: 1,
            Reduction.Mean: max(1, y[:1].size),
            Reduction.SumByNonZeroWeights: np.maximum(1, np.count_nonzero(factor.reshape(len(y), y[:1].size), axis=1)),
        }[reduction]
        for engine, dtype in DTYPES.items():
            gradient, loss = run_node(engine, d, y, t, w if weighted else None)
            assert_close(gradient, slope, np.where(slope == 0, 0, size), ROUNDINGS, dtype, "gradient")
            assert loss.shape == (len(y), 1, 1, 1)
            sums = value.sum(axis=(1, 2, 3)) / divisor
            assert_close(loss.ravel(), sums, size.sum(axis=(1, 2, 3)) / divisor, ROUNDINGS + y[:1].size, dtype, "loss")


@KINDS
def test_a_loss_per_element_and_one_for_the_batch(types):
    y, t, w = example_of((2, 3, 2), 3, 4, 6)
    value = formula(y, t, w, descriptor(types))[0]
    size = (np.abs(value) + w * 100 * 32 * (1 + np.abs(y))).sum()
    for engine, dtype in DTYPES.items():
        loss = run_node(engine, descriptor(types, reduction=getattr(Reduction, "None")), y, t, w, True)[1]
        assert_close(loss, value, size, ROUNDINGS, dtype)
        across = run_node(engine, descriptor(types, reduce_across_batch=True), y, t, w)[1].ravel()
        assert across[1] == 0
        assert_close(across[0], value.sum(), size, ROUNDINGS + y.size, dtype)


@KINDS
@settings(max_examples=15)
@given(st.integers(1, 3), st.integers(0, 2**16))
def test_gradients_are_central_differences_of_the_loss(types, anchors, seed):
    """Without rescoring, whose overlap is a constant to the gradient. Third derivatives of sigmoids, their squares and
    cross-entropies are below 2; Huber's kinks are avoided."""
    y, t, w = example_of((1, 2, 2), anchors, 3, seed)
    split(w, anchors)[..., 5:] = 0.5  # soft-max minus label is the derivative only where all classes weigh alike
    d = descriptor(types, anchors, rescore=False)
    assume(is_clear(t, d))
    sizes = np.array(d.anchor_boxes).reshape(anchors, 2)
    error = split(y, anchors)[..., 2:4] - np.log(split(t, anchors)[..., 2:4] / sizes + 1e-5)
    assume((np.abs(np.abs(error) - 1) > 1e-3).all())
    gradient, _loss = run_node("reference", d, y, t, w)
    scale = np.abs(formula(y, t, w, d)[0]).sum() + 100 * w.sum() * (1 + np.abs(y).max()) * 12
    for index in np.ndindex(y.shape):
        sums = []
        for step in (STEP, -STEP):
            moved = y.copy()
            moved[index] += step
            sums.append(run_node("reference", d, moved, t, w)[1].sum())
        assert abs((sums[0] - sums[1]) / (2 * STEP) - gradient[index]) <= difference_tolerance(scale, curvature=2)


def test_the_cases_of_an_anchor_are_all_met():
    """A seed of the tests above has anchors with an object, without one, and between both."""
    y, t, w = example_of((2, 4, 4), 3, 3, 1)
    _, _, has_object, has_none = formula(y, t, w, descriptor(TYPICAL))
    assert has_object.any()
    assert has_none.any()
    assert (~has_object & ~has_none).any()


def test_defaults_are_the_printed_ones():
    d = descriptor(TYPICAL)
    assert (d.scale_xy, d.scale_wh, d.scale_no_object, d.scale_object, d.scale_class) == (10, 10, 5, 100, 2)
    assert d.rescore
    assert not d.reduce_across_batch
    assert (d.min_iou_for_object_presence, d.max_iou_for_object_absence) == (np.float32(0.7), np.float32(0.3))


def test_a_saved_node_gives_the_same_bits(tmp_path):
    d = descriptor(
        TYPICAL, 2, Reduction.Mean, rescore=False, scale_xy=3.0, scale_no_object=0.5, min_iou_for_object_presence=0.6
    )
    y, t, _ = example_of((2, 3, 3), 2, 3, 1)
    for engine, dtype in DTYPES.items():
        node = mpsnn.MPSCNNYOLOLossNode(mpsnn.MPSNNImageNode("y"), d)
        graph = mpsnn.MPSNNGraph(engine, node.result_image)
        graph.save(str(tmp_path / "g"))
        outputs = []
        for one in (graph, mpsnn.MPSNNGraph.load(str(tmp_path / "g"), engine)):
            labels = mpsnn.MPSCNNLossLabels(t.astype(dtype))
            outputs.append(
                [one.run([y.astype(dtype)], [labels]).numpy().tobytes(), labels.loss_image.numpy().tobytes()]
            )
        assert outputs[0] == outputs[1]


def test_the_gradient_goes_on_through_the_network():
    """The node starts a training graph by itself, as MPSCNNLossNode does."""
    y, t, _ = example_of((1, 2, 2), 1, 3, 3)
    first = mpsnn.MPSCNNNeuronLinearNode(mpsnn.MPSNNImageNode("y"), 2.0, 0.0)
    node = mpsnn.MPSCNNYOLOLossNode(first.result_image, descriptor(TYPICAL, 1))
    (end,) = node.training_graph()
    graph = mpsnn.MPSNNGraph("reference", end.result_image)
    got = graph.run([y], [mpsnn.MPSCNNLossLabels(t)]).numpy()
    expected = 2 * run_node("reference", descriptor(TYPICAL, 1), 2 * y, t)[0]
    assert_close(got, expected, np.abs(expected), 4, np.float64)


# --- errors


def test_channels_that_do_not_hold_the_anchors_name_the_node():
    for channels in (16, 12):  # no multiple of three anchors; fewer than five each
        node = mpsnn.MPSCNNYOLOLossNode(mpsnn.MPSNNImageNode(), descriptor(TYPICAL))
        labels = mpsnn.MPSCNNLossLabels(np.zeros((1, 2, 2, channels), np.float32))
        call = lambda node=node, labels=labels, c=channels: run(node, (1, 2, 2, c), labels=[labels])
        error = caught(mpsnn.ShapeError, call, "each anchor box", label="culprit", node="MPSCNNYOLOLossNode")
        assert error.expected == "(5 + classes) x 3 channels"
        assert error.actual == f"image 1 x 2 x 2 x {channels}"


def test_labels_of_another_size_name_both_shapes():
    node = mpsnn.MPSCNNYOLOLossNode(mpsnn.MPSNNImageNode(), descriptor(TYPICAL))
    labels = mpsnn.MPSCNNLossLabels(np.zeros((1, 2, 3, 18), np.float32))
    caught(
        mpsnn.ShapeError,
        lambda: run(node, (1, 2, 2, 18), labels=[labels]),
        "1 x 2 x 2 x 18",
        "1 x 2 x 3 x 18",
        label="culprit",
    )


def test_anchor_boxes_must_be_pairs_of_positive_numbers():
    x = mpsnn.MPSNNImageNode()
    for change, text in (
        ({"anchor_boxes": [1, 2, 3]}, "3 numbers"), ({"number_of_anchor_boxes": 0}, "2 numbers"), ({"anchor_boxes": [1, 2, 3, 0, 1, 1]}, "positive sizes"),
    ):  # fmt: skip
        call = lambda change=change: mpsnn.MPSCNNYOLOLossNode(x, descriptor(TYPICAL, **change))
        caught(mpsnn.OptionError, call, text, node="MPSCNNYOLOLossNode")


@pytest.mark.parametrize("part", PARTS)
def test_parts_are_validated_like_losses_and_cannot_be_a_cosine_distance(part):
    x, d = mpsnn.MPSNNImageNode(), descriptor(TYPICAL)
    getattr(d, f"{part}_loss_descriptor").delta = 0
    caught(
        mpsnn.OptionError, lambda: mpsnn.MPSCNNYOLOLossNode(x, d), "delta must be positive", node="MPSCNNYOLOLossNode"
    )
    d = descriptor(TYPICAL)
    getattr(d, f"{part}_loss_descriptor").loss_type = Type.CosineDistance
    labels = mpsnn.MPSCNNLossLabels(np.zeros((1, 2, 2, 18), np.float32))
    call = lambda: run(mpsnn.MPSCNNYOLOLossNode(x, d), (1, 2, 2, 18), labels=[labels])
    with pytest.raises(mpsnn.OptionError, match="(?i)cosine"):
        call()
