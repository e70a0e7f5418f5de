# SPDX-License-Identifier: Apache-2.0
"""Losses: values, reductions, weights and gradients of the loss node and of the separable loss nodes."""

import mpsnn
import numpy as np
import pytest
from engines import (
    DTYPES,
    STEP,
    assert_close,
    assert_differences_agree,
    assert_survives_saving,
    difference_tolerance,
    evaluate,
    normal,
    result_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st

Type, Reduction = mpsnn.MPSCNNLossType, mpsnn.MPSCNNReductionType
ENGINES = pytest.mark.parametrize("engine", ["reference", "cpu"])
# Exponentials and logarithms of one element; sums over elements come on top.
ROUNDINGS = 16


def log_softmax(y):
    y = y - y.max(axis=3, keepdims=True)
    return y - np.log(np.exp(y).sum(axis=3, keepdims=True))


def probabilities(seed, shape):
    return np.random.default_rng(seed).uniform(0.125, 0.875, shape).astype(np.float32).astype(np.float64)


def distributions(seed, shape):
    """Labels that add up to 1 over the channels, as the printed soft-max gradient assumes; one of them is 0."""
    t = np.random.default_rng(seed).integers(0, 4, shape) * 1.0
    t[..., 0] += 1
    return (t / t.sum(axis=3, keepdims=True)).astype(np.float32).astype(np.float64)


def with_zeros(seed, shape):
    return np.maximum(0, probabilities(seed, shape) - 0.25)


def binary(seed, shape):
    return np.random.default_rng(seed).integers(0, 2, shape) * 1.0


def draw_normal(seed, shape):
    return normal(seed, *shape)


# Predictions, labels, value, d/dy, d/dt (MPS_SEMANTICS 14.2), and how much a rounding inside is magnified.
LOSSES = {
    Type.MeanAbsoluteError: (
        draw_normal,
        draw_normal,
        lambda y, t: np.abs(y - t),
        lambda y, t: np.sign(y - t),
        lambda y, t: -np.sign(y - t),
        1,
    ),
    Type.MeanSquaredError: (
        draw_normal,
        draw_normal,
        lambda y, t: (y - t) ** 2,
        lambda y, t: 2 * (y - t),
        lambda y, t: -2 * (y - t),
        4,
    ),
    Type.SoftMaxCrossEntropy: (
        draw_normal,
        distributions,
        lambda y, t: -t * log_softmax(y),
        lambda y, t: np.exp(log_softmax(y)) - t,
        lambda y, t: -log_softmax(y),
        1,
    ),
    Type.SigmoidCrossEntropy: (
        draw_normal,
        probabilities,
        lambda y, t: np.maximum(y, 0) - y * t + np.log1p(np.exp(-np.abs(y))),
        lambda y, t: 1 / (1 + np.exp(-y)) - t,
        lambda y, t: -y,
        1,
    ),
    Type.CategoricalCrossEntropy: (
        probabilities,
        with_zeros,
        lambda y, t: -t * np.log(y),
        lambda y, t: -t / y,
        lambda y, t: -np.log(y),
        8,
    ),
    Type.Hinge: (
        draw_normal,
        binary,
        lambda y, t: np.maximum(0, 1 - (2 * t - 1) * y),
        lambda y, t: np.where(1 - (2 * t - 1) * y > 0, 1 - 2 * t, 0),
        lambda y, t: np.where(1 - (2 * t - 1) * y > 0, -2 * y, 0),
        1,
    ),
    Type.Huber: (
        draw_normal,
        draw_normal,
        lambda y, t: np.where(np.abs(y - t) <= 0.75, (y - t) ** 2 / 2, 0.75**2 / 2 + 0.75 * (np.abs(y - t) - 0.75)),
        lambda y, t: np.clip(y - t, -0.75, 0.75),
        lambda y, t: -np.clip(y - t, -0.75, 0.75),
        1,
    ),
    Type.CosineDistance: (draw_normal, draw_normal, None, lambda y, t: -t, lambda y, t: -y, 1),
    Type.Log: (
        probabilities,
        probabilities,
        lambda y, t: -t * np.log(y + EPSILON) - (1 - t) * np.log(1 - y + EPSILON),
        lambda y, t: (-2 * EPSILON * t - t + y + EPSILON) / (y * (1 - y) + EPSILON * (EPSILON + 1)),
        lambda y, t: -np.log(y + EPSILON) + np.log(1 - y + EPSILON),
        64,
    ),
    Type.KullbackLeiblerDivergence: (
        draw_normal,
        with_zeros,
        lambda y, t: np.where(t > 0, t * (np.log(np.where(t > 0, t, 1)) - y), 0),
        lambda y, t: -t,
        lambda y, t: np.where(t > 0, np.log(np.where(t > 0, t, 1)) - y + 1, 0),
        8,
    ),
}
EPSILON = float(np.float32(1e-3))
TYPES = pytest.mark.parametrize("type", LOSSES, ids=lambda type: type.name)


def loss_of(type, reduction=Reduction.Sum, **options):
    return mpsnn.MPSCNNLossDescriptor(type, reduction, delta=0.75, epsilon=1e-3, **options)


def reductions_of(type):
    return (
        [Reduction.Sum]
        if type == Type.CosineDistance
        else [Reduction.Sum, Reduction.Mean, Reduction.SumByNonZeroWeights]
    )


def example_of(type, shape, seed):
    """Predictions, labels and element weights (some 0), away from the kinks of the piecewise losses."""
    draw_y, draw_t = LOSSES[type][:2]
    y, t = draw_y(seed, shape), draw_t(seed + 1, shape)
    for kink in {Type.MeanAbsoluteError: [0], Type.Huber: [-0.75, 0.75]}.get(type, []):
        y[np.abs(y - t - kink) < 0.01] += 0.0625
    if type == Type.Hinge:
        y[np.abs(1 - (2 * t - 1) * y) < 0.01] += 0.0625
    return y, t, np.random.default_rng(seed + 2).integers(0, 3, shape) * 0.5


def element_losses(type, y, t, factor):
    if type == Type.CosineDistance:
        return -factor * y * t
    return factor * LOSSES[type][2](y, t)


def reduced(type, reduction, elements, w, weight, across=False):
    """(N,) values by 14.3; with `across`, one for the whole batch in front and zeros behind."""
    images = elements.shape[0]
    sums, counts = elements.reshape(images, -1).sum(axis=1), np.count_nonzero(w.reshape(images, -1), axis=1)
    if type == Type.CosineDistance:
        return weight + sums
    pixels = elements[0].size // (elements.shape[3] if type == Type.SoftMaxCrossEntropy else 1)
    if across:
        sums, counts, pixels = np.array([sums.sum()]), np.array([counts.sum()]), pixels * images
    divisor = {Reduction.Sum: 1, Reduction.Mean: pixels, Reduction.SumByNonZeroWeights: np.maximum(counts, 1)}[
        reduction
    ]
    return np.pad(sums / divisor, (0, images - len(sums)))


def scale_of(type, y, t, factor):
    """Sizes of what is added up for one element; a logarithm of soft-max first takes the largest prediction away."""
    reach = (1 + np.abs(y).max(initial=0)) * (1 + np.abs(t).max(initial=0)) * LOSSES[type][5]
    return np.abs(factor) * reach


def run_loss_node(engine, loss, y, t, w=None, per_element=False):
    """(gradient image, loss image) of MPSCNNLossNode."""
    dtype = DTYPES[engine]
    node = mpsnn.MPSCNNLossNode(mpsnn.MPSNNImageNode("y"), loss)
    labels = mpsnn.MPSCNNLossLabels(t.astype(dtype), None if w is None else w.astype(dtype), per_element)
    gradient = mpsnn.MPSNNGraph(engine, node.result_image).run([y.astype(dtype)], [labels])
    return np.array(gradient.numpy()), np.array(labels.loss_image.numpy())


shapes = st.tuples(st.sampled_from([1, 3, 2]), st.integers(1, 4), st.integers(1, 4), st.sampled_from([1, 2, 5, 10, 17]))


@TYPES
@settings(max_examples=40)
@given(shape=shapes, seed=st.integers(0, 2**16), weighted=st.booleans(), weight=st.sampled_from([1.0, 0.5]))
def test_the_loss_node_gives_the_printed_values_and_gradients_on_both_engines(type, shape, seed, weighted, weight):
    """The gradient has the weights in it and takes no notice of the reduction."""
    y, t, w = example_of(type, shape, seed)
    factor = weight * w if weighted else np.full(shape, weight)
    gradient = factor * LOSSES[type][3](y, t)
    elements, scale = element_losses(type, y, t, factor), scale_of(type, y, t, factor)
    for reduction in reductions_of(type):
        value = reduced(type, reduction, elements, w if weighted else np.ones(shape), weight)
        sums = scale.reshape(shape[0], -1).sum(axis=1) + weight
        for engine, dtype in DTYPES.items():
            got, loss = run_loss_node(engine, loss_of(type, reduction, weight=weight), y, t, w if weighted else None)
            assert got.shape == shape
            assert loss.shape == (shape[0], 1, 1, 1)
            assert_close(got, gradient, scale, ROUNDINGS + shape[3], dtype, "gradient")
            assert_close(loss.ravel(), value, sums, ROUNDINGS + elements[0].size, dtype, "loss")


@TYPES
@settings(max_examples=15)
@given(shape=shapes, seed=st.integers(0, 2**16))
def test_a_sum_over_the_batch_goes_to_the_first_image(type, shape, seed):
    y, t, w = example_of(type, shape, seed)
    if type == Type.CosineDistance:
        return  # one distance per image: what a batch's would be, nothing says
    elements, scale = element_losses(type, y, t, w), scale_of(type, y, t, w).sum()
    for reduction in reductions_of(type):
        value = reduced(type, reduction, elements, w, 1, across=True)
        for engine, dtype in DTYPES.items():
            loss = run_loss_node(engine, loss_of(type, reduction, reduce_across_batch=True), y, t, w)[1]
            assert_close(loss.ravel(), value, scale, ROUNDINGS + elements.size, dtype, "loss")
            assert not loss.ravel()[1:].any()


@TYPES
def test_without_a_reduction_the_loss_image_holds_every_element(type):
    if type == Type.CosineDistance:
        return
    y, t, w = example_of(type, (2, 3, 2, 5), 3)
    expected, scale = element_losses(type, y, t, w), scale_of(type, y, t, w)
    for engine, dtype in DTYPES.items():
        loss = run_loss_node(engine, loss_of(type, Reduction.None_), y, t, w, per_element=True)[1]
        assert_close(loss, expected, scale, ROUNDINGS + 5, dtype)
        forward = evaluate(engine, forward_loss(loss_of(type, Reduction.None_)), [y, t, w]).result
        assert forward.tobytes() == loss.tobytes()


@ENGINES
@TYPES
def test_an_empty_batch_has_an_empty_loss(engine, type):
    empty = np.zeros((0, 2, 3, 4))
    for across in (False, True):
        gradient, loss = run_loss_node(engine, loss_of(type, reduce_across_batch=across), empty, empty)
        assert gradient.shape == (0, 2, 3, 4)
        assert loss.shape == (0, 1, 1, 1)


@ENGINES
@TYPES
def test_a_weight_scales_the_whole_loss_and_its_gradient(engine, type):
    """An eighth is exact: the same bits, moved by three places."""
    y, t, _ = example_of(type, (2, 2, 3, 4), 6)
    gradient, loss = run_loss_node(engine, loss_of(type), y, t)
    small_gradient, small_loss = run_loss_node(engine, loss_of(type, weight=0.125), y, t)
    assert small_gradient.tobytes() == (gradient / 8).tobytes()
    assert small_loss.tobytes() == (loss / 8).tobytes()


@ENGINES
def test_weights_of_zero_only_give_no_loss(engine):
    y, t, _ = example_of(Type.MeanSquaredError, (2, 2, 3, 4), 6)
    for reduction in (Reduction.Sum, Reduction.Mean, Reduction.SumByNonZeroWeights):
        gradient, loss = run_loss_node(engine, loss_of(Type.MeanSquaredError, reduction), y, t, np.zeros_like(y))
        assert not gradient.any()
        assert not loss.any()


# --- golden vectors and smoothing (MPS_SEMANTICS 22.4)

Y, T = np.array([1.0, 2, 3]).reshape(1, 1, 1, 3), np.array([0.0, 0, 1]).reshape(1, 1, 1, 3)
PRINTED = 1e-7  # printed with seven places


@ENGINES
@pytest.mark.parametrize(
    ("smoothing", "total", "gradient"),
    [(0, 0.407606, [0.0900306, 0.2447285, -0.3347590]), (0.1, 0.5076060, [0.0566972, 0.2113951, -0.2680924])],
)
def test_softmax_cross_entropy_is_the_printed_one(engine, smoothing, total, gradient):
    loss = loss_of(Type.SoftMaxCrossEntropy, label_smoothing=smoothing, number_of_classes=3)
    got, value = run_loss_node(engine, loss, Y, T)
    rounding = 3 * ROUNDINGS**0.5 * np.finfo(DTYPES[engine]).eps
    assert np.abs(got.ravel() - gradient).max() <= PRINTED + rounding
    assert abs(value.item() - total) <= 5 * PRINTED + rounding


@pytest.mark.parametrize("type", [Type.SoftMaxCrossEntropy, Type.SigmoidCrossEntropy])
def test_smoothing_mixes_the_labels_with_equal_ones(type):
    y, t, w = example_of(type, (2, 2, 3, 5), 4)
    smoothing = 0.25
    mixed = t * (1 - smoothing) + smoothing / (5 if type == Type.SoftMaxCrossEntropy else 2)
    for engine, dtype in DTYPES.items():
        options = {"label_smoothing": smoothing, "number_of_classes": 5}
        smooth, plain = (
            run_loss_node(engine, loss_of(type, **o), y, labels, w) for o, labels in ((options, t), ({}, mixed))
        )
        for got, expected in zip(smooth, plain, strict=True):
            assert_close(got, expected, scale_of(type, y, t, w).sum(), ROUNDINGS + 30, dtype)


@ENGINES
def test_large_predictions_neither_overflow_nor_become_nan(engine):
    y = np.array([1e4, -1e4, 1e4, 0]).reshape(1, 1, 1, 4)
    t = np.array([1.0, 0, 0, 0]).reshape(1, 1, 1, 4)
    gradient, loss = run_loss_node(engine, loss_of(Type.SoftMaxCrossEntropy), y, t)
    assert_close(gradient.ravel(), [-0.5, 0, 0.5, 0], 1, ROUNDINGS, DTYPES[engine])
    assert_close(loss.item(), np.log(2), 1, ROUNDINGS, DTYPES[engine])
    gradient, loss = run_loss_node(engine, loss_of(Type.SigmoidCrossEntropy), y, t)
    assert_close(gradient.ravel(), [0, 0, 1, 0.5], 1, ROUNDINGS, DTYPES[engine])
    assert_close(loss.item(), 1e4 + np.log(2), 1e4, ROUNDINGS, DTYPES[engine])


@ENGINES
def test_classes_without_label_and_probability_cost_nothing(engine):
    y, t = np.array([0.0, 1, 0.5]).reshape(1, 1, 1, 3), np.array([0.0, 0.5, 0]).reshape(1, 1, 1, 3)
    gradient, loss = run_loss_node(engine, loss_of(Type.CategoricalCrossEntropy), y, t)
    assert gradient.ravel().tolist() == [0, -0.5, 0]
    assert loss.item() == 0


# --- separable losses


def forward_loss(loss):
    """With weights where three images are given."""
    return lambda *images: mpsnn.MPSNNForwardLossNode(list(images), loss)


@TYPES
@settings(max_examples=20)
@given(shape=shapes, seed=st.integers(0, 2**16), weighted=st.booleans())
def test_the_separable_nodes_give_the_loss_node_s_numbers_times_the_incoming_gradient(type, shape, seed, weighted):
    y, t, w = example_of(type, shape, seed)
    images, weights = ([y, t, w], w) if weighted else ([y, t], None)
    incoming = normal(seed + 7, shape[0], 1, 1, 1)
    for reduction in reductions_of(type):
        for engine, dtype in DTYPES.items():
            loss = loss_of(type, reduction, weight=0.5)
            gradient, value = run_loss_node(engine, loss, y, t, weights)
            got = evaluate(engine, forward_loss(loss), images, incoming)
            assert got.result.tobytes() == value.tobytes()
            assert got.gradients[1:] == [None] * (len(images) - 1)
            assert_close(got.gradients[0], incoming * gradient, np.abs(incoming * gradient), 3, dtype)


def label_gradient(engine, loss, images, incoming):
    """The second gradient node of a forward loss, which no automatic training graph makes."""
    names = ["y", "t", "w"][: len(images)]
    nodes = [mpsnn.MPSNNImageNode(name) for name in names]
    forward = mpsnn.MPSNNForwardLossNode(nodes, loss)
    gradients = forward.gradient_filters(mpsnn.MPSNNImageNode("incoming"))
    assert [node.is_labels_gradient_filter for node in gradients] == [False, True]
    graph = mpsnn.MPSNNGraph(engine, gradients[1].result_image)
    given_images = dict(zip(names, images, strict=True), incoming=incoming)
    return graph.run([given_images[name].astype(DTYPES[engine]) for name in graph.source_image_handles]).numpy()


@TYPES
@settings(max_examples=20)
@given(shape=shapes, seed=st.integers(0, 2**16))
def test_label_gradients_are_the_printed_ones_on_both_engines(type, shape, seed):
    y, t, w = example_of(type, shape, seed)
    incoming = normal(seed + 7, shape[0], 1, 1, 1)
    expected = incoming * w * LOSSES[type][4](y, t)
    scale = np.abs(incoming) * scale_of(type, y, t, w)
    for engine, dtype in DTYPES.items():
        got = label_gradient(engine, loss_of(type), [y, t, w], incoming)
        assert_close(got, expected, scale + np.abs(expected), ROUNDINGS + shape[3], dtype)


@TYPES
def test_prediction_gradients_are_central_differences_of_the_summed_loss(type):
    """Third derivatives: those of the logarithms at 1/8 are 2 * 8 ** 3, the others' stay below. The printed gradient of
    soft-max takes a pixel's channels to weigh the same."""
    y, t, w = example_of(type, (2, 2, 2, 3), 8)
    if type == Type.SoftMaxCrossEntropy:
        w = np.repeat(w[..., :1], 3, axis=3)
    assert_differences_agree(forward_loss(loss_of(type)), [y, t, w], normal(9, 2, 1, 1, 1), curvature=1024)


@TYPES
def test_label_gradients_are_central_differences_of_the_summed_loss(type):
    """Where a label is 0, a Kullback-Leibler divergence ends: its derivative there is 0 by decision. The hinge loss knows
    labels 0 and 1 only, but is a formula in between."""
    y, t, w = example_of(type, (2, 2, 2, 3), 8)
    incoming = normal(9, 2, 1, 1, 1)
    for options in ({}, {"label_smoothing": 0.25, "number_of_classes": 3}):
        loss = loss_of(type, **options)
        got = label_gradient("reference", loss, [y, t, w], incoming)
        worst = 0
        for index in np.ndindex(t.shape):
            if type == Type.KullbackLeiblerDivergence and t[index] == 0:
                assert got[index] == 0
                continue
            sums = []
            for step in (STEP, -STEP):
                moved = t.copy()
                moved[index] += step
                sums.append((incoming * result_of(forward_loss(loss), y, moved, w)).sum())
            worst = max(worst, abs(got[index] - (sums[0] - sums[1]) / (2 * STEP)))
        scale = np.abs(incoming).sum() * scale_of(type, y, t, w).sum()
        assert worst <= difference_tolerance(scale, curvature=128)


@TYPES
def test_a_saved_node_gives_the_same_bits(type):
    y, t, w = example_of(type, (2, 2, 3, 4), 8)
    loss = loss_of(type, weight=0.75, label_smoothing=0.125, number_of_classes=4)
    assert_survives_saving(forward_loss(loss), [y, t, w], normal(9, 2, 1, 1, 1))


@ENGINES
def test_with_a_batch_reduction_the_first_incoming_gradient_counts_for_all(engine):
    y, t, w = example_of(Type.MeanSquaredError, (3, 2, 2, 2), 1)
    incoming = np.array([2.0, 5, 7]).reshape(3, 1, 1, 1)
    got = evaluate(engine, forward_loss(loss_of(Type.MeanSquaredError, reduce_across_batch=True)), [y, t, w], incoming)
    expected = 2 * w * 2 * (y - t)
    assert_close(got.gradients[0], expected, np.abs(y) + np.abs(t), 4, DTYPES[engine])


@ENGINES
def test_without_a_reduction_every_element_has_an_incoming_gradient(engine):
    y, t, w = example_of(Type.MeanSquaredError, (3, 2, 2, 2), 1)
    incoming = normal(4, 3, 2, 2, 2)
    got = evaluate(engine, forward_loss(loss_of(Type.MeanSquaredError, Reduction.None_)), [y, t, w], incoming)
    assert_close(
        got.gradients[0], incoming * w * 2 * (y - t), np.abs(incoming) * (np.abs(y) + np.abs(t)) * 2, 4, DTYPES[engine]
    )


@ENGINES
def test_a_callback_gives_the_weight_when_the_graph_is_planned(engine):
    class Third:
        def scalar_weight_for_source_image(self, source_image, destination_image):
            return 1 / source_image.feature_channels

    y, t, _ = example_of(Type.MeanSquaredError, (2, 2, 2, 4), 1)

    def build(prediction, labels):
        node = mpsnn.MPSNNForwardLossNode(prediction, labels, loss_of(Type.MeanSquaredError))
        node.property_call_back = Third()
        return node

    got, whole = (
        evaluate(engine, b, [y, t], np.ones((2, 1, 1, 1)))
        for b in (build, forward_loss(loss_of(Type.MeanSquaredError)))
    )
    assert got.result.tobytes() == (whole.result / 4).tobytes()
    assert got.gradients[0].tobytes() == (whole.gradients[0] / 4).tobytes()


@ENGINES
def test_an_initial_gradient_starts_the_training_graph_of_two_losses_multiplied(engine):
    """d (a * b) = b da + a db, where a and b are losses of one image: nodes, state and images by hand."""
    dtype = DTYPES[engine]
    y, t, s = (normal(i, 2, 2, 3, 4) for i in range(3))
    images = {name: mpsnn.MPSNNImageNode(name) for name in ("y", "t", "s")}
    loss = loss_of(Type.MeanSquaredError)
    first, second = (mpsnn.MPSNNForwardLossNode(images["y"], images[name], loss) for name in ("t", "s"))
    product = mpsnn.MPSNNMultiplicationNode(first.result_image, second.result_image)
    ends = mpsnn.MPSNNInitialGradientNode(product.result_image).training_graph()
    assert len(ends) == 1
    graph = mpsnn.MPSNNGraph(engine, ends[0].result_image)
    arrays = {"y": y, "t": t, "s": s}
    got = graph.run([arrays[name].astype(dtype) for name in graph.source_image_handles]).numpy()
    a, b = (((y - other) ** 2).sum(axis=(1, 2, 3), keepdims=True) for other in (t, s))
    expected = b * 2 * (y - t) + a * 2 * (y - s)
    assert_close(got, expected, 2 * (a + b) * (np.abs(y) + np.abs(t) + np.abs(s)), 24 + 8, dtype)
