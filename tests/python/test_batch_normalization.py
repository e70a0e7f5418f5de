# SPDX-License-Identifier: Apache-2.0
"""Batch normalization: statistics, gradients, flags and running averages on both engines."""

import mpsnn
import numpy as np
import pytest
from engines import (
    DTYPES,
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
    tolerance,
)
from hypothesis import given, settings
from hypothesis import strategies as st

Flags = mpsnn.MPSCNNBatchNormalizationFlags
ENGINES = pytest.mark.parametrize("engine", ["reference", "cpu"])
BATCH, STORED = Flags.CalculateStatisticsAlways, Flags.CalculateStatisticsNever
FLAGS = pytest.mark.parametrize("flags", [BATCH, STORED], ids=["batch", "stored"])


def parameters_of(channels, seed, epsilon=1e-3, **options):
    source = mpsnn.BatchNormalizationWeights(channels, label="norm", epsilon=epsilon, **options)
    numbers = {name: normal(seed + i, channels).astype(np.float32) for i, name in enumerate(("gamma", "beta", "mean"))}
    source.set_values(variance=np.square(normal(seed + 5, channels)).astype(np.float32) + np.float32(0.25), **numbers)
    return source


def normalization(source, flags=None):
    def build(image):
        node = mpsnn.MPSCNNBatchNormalizationNode(image, source)
        if flags is not None:
            node.flags = flags
        return node, [node]

    return build


def formulas(x, incoming, values, epsilon, uses_batch):
    """Result, data gradient, and the gradients of gamma and beta (MPS_SEMANTICS 12.2)."""
    axes, m = (0, 1, 2), x[..., 0].size
    gamma, beta, mean, variance = (values[name].astype(np.float64) for name in ("gamma", "beta", "mean", "variance"))
    if uses_batch:
        mean, variance = x.mean(axis=axes), x.var(axis=axes)
    deviation = np.sqrt(variance + np.float64(np.float32(epsilon)))
    normalized = (x - mean) / deviation
    by_gamma, by_beta = (incoming * normalized).sum(axis=axes), incoming.sum(axis=axes)
    statistics = (by_beta + normalized * by_gamma) / m if uses_batch else 0
    return (
        normalized * gamma + beta,
        gamma / deviation * (incoming - statistics),
        by_gamma,
        by_beta,
        normalized,
        deviation,
    )


@FLAGS
@settings(max_examples=80)
@given(
    st.sampled_from([1, 2, 3]),
    st.integers(1, 5),
    st.integers(1, 5),
    st.sampled_from([1, 2, 3, 8, 17]),
    st.sampled_from([0, 4]),
    st.integers(0, 2**16),
)
def test_both_engines_give_the_printed_result_and_gradients(flags, images, height, width, channels, shift, seed):
    """x - mean is off by epsilon times x, which the division by the deviation magnifies, in the result and, times the
    numbers it meets there, in each gradient."""
    x = (normal(seed, images, height, width, channels) + shift).astype(np.float32).astype(np.float64)
    incoming, source = normal(seed + 1, *x.shape), parameters_of(channels, seed + 2)
    expected, by_x, by_gamma, by_beta, normalized, deviation = formulas(
        x, incoming, source.values, 1e-3, flags == BATCH
    )
    gamma, m = np.abs(source.values["gamma"]), x[..., 0].size
    reach = (np.abs(x).max() + np.abs(source.values["mean"]) + np.abs(normalized).max()) / deviation + 1
    size = np.abs(incoming).sum(axis=(0, 1, 2))
    for engine, dtype in DTYPES.items():
        got = evaluate(engine, normalization(source, flags), [x], incoming)
        state = got.states[0]
        assert_close(got.result, expected, gamma * reach + np.abs(source.values["beta"]), m + 8, dtype)
        gradient_size = gamma / deviation * (np.abs(incoming) + 2 * size * reach * (1 + np.abs(normalized).max()) / m)
        assert_close(got.gradients[0], by_x, gradient_size, m + 8, dtype, "data gradient")
        assert_close(state.gradient_for_gamma, by_gamma, size * reach, m + 8, dtype, "gradient of gamma")
        assert_close(state.gradient_for_beta, by_beta, size, m, dtype, "gradient of beta")
        if flags == BATCH:
            assert_close(state.mean, x.mean(axis=(0, 1, 2)), np.abs(x).max(), m, dtype, "mean")
            assert_close(state.variance, x.var(axis=(0, 1, 2)), np.abs(x).max() ** 2, m + 4, dtype, "variance")


@FLAGS
@settings(max_examples=25)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(0, 2**16))
def test_gradients_are_central_differences(flags, images, height, width, channels, seed):
    """A deviation of at least a half (epsilon is a quarter): third derivatives are at most some 15 / 0.5 ** 3 times the
    numbers. Gamma and beta enter linearly."""
    x = normal(seed, images, height, width, channels)
    incoming, source = normal(seed + 1, *x.shape), parameters_of(channels, seed + 2, epsilon=0.25)
    build = normalization(source, flags)
    scale = np.abs(incoming).sum() * (1 + np.abs(x).max()) * 8
    got = assert_differences_agree(build, [x], incoming, curvature=120, scale=scale)
    forward = Network("reference", build, differentiate=False)
    for name in ("gamma", "beta"):
        expected = parameter_difference(forward, [x], incoming, source, name)
        error = np.abs(getattr(got.states[0], f"gradient_for_{name}") - expected).max()
        assert error <= difference_tolerance(scale, PARAMETER_STEP, curvature=0)


@ENGINES
def test_the_printed_batch_has_the_printed_gradients(engine):
    """Images [1, 3] and [5, 7]; epsilon as good as 0."""
    source = mpsnn.BatchNormalizationWeights(1, epsilon=1e-30)
    x = np.array([1.0, 3, 5, 7]).reshape(2, 1, 2, 1)
    got = evaluate(engine, normalization(source), [x], np.array([1.0, 0, 0, 0]).reshape(2, 1, 2, 1))
    state, printed = got.states[0], 5e-8  # seven places
    allowed = printed + tolerance(4, 8, DTYPES[engine])
    assert state.mean.tolist() == [4]
    assert state.variance.tolist() == [5]
    assert abs(state.gradient_for_gamma[0] + 1.3416408) <= allowed
    assert state.gradient_for_beta.tolist() == [1]
    assert np.abs(got.gradients[0].ravel() - [0.1341641, -0.1788854, -0.0447214, 0.0894427]).max() <= allowed


@ENGINES
def test_the_batch_s_statistics_are_used_where_the_node_is_trained_and_the_stored_ones_elsewhere(engine):
    source = parameters_of(3, 1)
    x, incoming = normal(0, 2, 3, 4, 3) + 2, normal(1, 2, 3, 4, 3)
    trained = evaluate(engine, normalization(source), [x], incoming)
    always = evaluate(engine, normalization(parameters_of(3, 1), BATCH), [x], incoming)
    assert trained.result.tobytes() == always.result.tobytes()
    assert trained.gradients[0].tobytes() == always.gradients[0].tobytes()
    fresh = parameters_of(3, 1)
    inferred, never = (
        result_of(normalization(fresh), x, engine=engine),
        result_of(normalization(fresh, STORED), x, engine=engine),
    )
    assert inferred.tobytes() == never.tobytes()
    assert np.abs(inferred - trained.result).max() > 0.1


@ENGINES
@settings(max_examples=20)
@given(
    images=st.sampled_from([1, 2]),
    size=st.integers(1, 4),
    momentum=st.sampled_from([0.1, 0.5, 1.0]),
    seed=st.integers(0, 2**16),
)
def test_running_statistics_follow_the_batches_with_the_unbiased_variance(engine, images, size, momentum, seed):
    source = parameters_of(3, seed, momentum=momentum)
    network = Network(engine, normalization(source))
    mean, variance = source.values["mean"].astype(np.float64), source.values["variance"].astype(np.float64)
    rho, m, reach = float(np.float32(momentum)), images * size * size, 0
    for step in range(3):
        x = normal(seed + 10 + step, images, size, size, 3)
        network.run([x], np.ones_like(x))
        reach = max(reach, np.abs(x).max() ** 2 * max(1, m / max(1, m - 1)) + np.abs(variance).max())
        mean = (1 - rho) * mean + rho * x.mean(axis=(0, 1, 2))
        variance = (1 - rho) * variance + rho * x.var(axis=(0, 1, 2)) * (m / (m - 1) if m > 1 else 1)
    assert_close(source.values["mean"], mean, 1 + reach, m + 9)
    assert_close(source.values["variance"], variance, 1 + reach, m + 9)


@ENGINES
def test_stored_statistics_stay_as_they_are_where_the_batch_s_are_never_used(engine):
    source = parameters_of(3, 1)
    before = {name: value.copy() for name, value in source.values.items()}
    x = normal(0, 2, 3, 4, 3)
    evaluate(engine, normalization(source, STORED), [x], x)
    assert all((source.values[name] == value).all() for name, value in before.items())


@ENGINES
@FLAGS
def test_an_empty_batch_changes_nothing(engine, flags):
    source = parameters_of(3, 1)
    before = {name: value.copy() for name, value in source.values.items()}
    got = evaluate(engine, normalization(source, flags), [np.zeros((0, 2, 3, 3))], np.zeros((0, 2, 3, 3)))
    assert got.result.shape == got.gradients[0].shape == (0, 2, 3, 3)
    assert not got.states[0].gradient_for_gamma.any()
    assert not got.states[0].gradient_for_beta.any()
    assert all((source.values[name] == value).all() for name, value in before.items())


@ENGINES
def test_a_constant_channel_becomes_beta(engine):
    """Variance 0: epsilon keeps the division finite, and 0 divided by its root is 0."""
    source = parameters_of(2, 3, epsilon=1e-5)
    x = np.full((2, 3, 3, 2), 0.5)
    got = evaluate(engine, normalization(source, BATCH), [x], normal(0, 2, 3, 3, 2))
    assert (got.result == source.values["beta"]).all()
    assert np.isfinite(got.gradients[0]).all()
    assert not got.states[0].gradient_for_gamma.any()


class Minimal(mpsnn.MPSCNNBatchNormalizationDataSource):
    """Only what must be there: no gamma, no beta, no epsilon."""

    def number_of_feature_channels(self):
        return 2

    def mean(self):
        return np.array([1, -1], np.float32)

    def variance(self):
        return np.array([4, 0.25], np.float32)


@ENGINES
def test_without_gamma_beta_and_epsilon_they_are_1_and_0_and_the_smallest_number(engine):
    x = normal(0, 2, 2, 2, 2)
    got = result_of(normalization(Minimal(), STORED), x, engine=engine)
    assert_close(got, (x - [1, -1]) / [2, 0.5], (np.abs(x) + 1) * 2, 4, DTYPES[engine])


@pytest.mark.parametrize("flags", [None, BATCH, STORED], ids=["automatic", "batch", "stored"])
def test_a_saved_node_gives_the_same_bits(flags):
    source = parameters_of(3, 1, momentum=0.0)  # running statistics stay, so that both runs see the same
    assert_survives_saving(normalization(source, flags), [normal(0, 2, 3, 4, 3)], normal(1, 2, 3, 4, 3))
