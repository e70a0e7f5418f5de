# SPDX-License-Identifier: Apache-2.0
"""Instance and group normalization: statistics per image, gradients, and who updates gamma and beta."""

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
)
from error_cases import caught, run
from graph_cases import STYLES, adam, loss, sgd
from hypothesis import given, settings
from hypothesis import strategies as st

ENGINES = pytest.mark.parametrize("engine", ["reference", "cpu"])
KINDS = pytest.mark.parametrize("kind", ["instance", "group"])
NODES = {"instance": mpsnn.MPSCNNInstanceNormalizationNode, "group": mpsnn.MPSCNNGroupNormalizationNode}


def parameters_of(kind, channels, groups, seed=0, epsilon=1e-3, **options):
    if kind == "instance":
        source = mpsnn.InstanceNormalizationWeights(channels, label="norm", epsilon=epsilon, **options)
    else:
        source = mpsnn.GroupNormalizationWeights(channels, groups, label="norm", epsilon=epsilon, **options)
    gamma, beta = (normal(seed + i, channels).astype(np.float32) for i in (0, 1))
    source.set_values(gamma=gamma, beta=beta)
    return source


def normalization(kind, source):
    def build(image):
        node = NODES[kind](image, source)
        return node, [node]

    return build


def formulas(x, e, gamma, beta, groups, epsilon):
    """Result, gradients of x, gamma and beta (12.4); the normalized image and its groups' deviation."""
    n, h, w, c = x.shape
    gamma, beta = gamma.astype(np.float64), beta.astype(np.float64)

    def over(values, reduce):  # statistics of each group, in every place of it
        parts = values.reshape(n, h, w, groups, c // groups)
        return np.broadcast_to(reduce(parts, axis=(1, 2, 4), keepdims=True), parts.shape).reshape(x.shape)

    deviation = np.sqrt(over(x, np.var) + np.float64(np.float32(epsilon)))
    normalized = (x - over(x, np.mean)) / deviation
    p, m = e * gamma, h * w * c // groups
    by_x = (p - (over(p, np.sum) + normalized * over(p * normalized, np.sum)) / m) / deviation
    sums = (e * normalized).sum(axis=(0, 1, 2)), e.sum(axis=(0, 1, 2))
    return normalized * gamma + beta, by_x, *sums, normalized, deviation


@st.composite
def cases(draw, largest=5):
    kind = draw(st.sampled_from(["instance", "group"]))
    per_group = draw(st.sampled_from([1, 2, 3, 8, 17] if largest > 3 else [1, 2]))
    groups = draw(st.sampled_from([1, 2, 3]))
    if kind == "instance":
        groups, per_group = groups * per_group, 1
    images = draw(st.sampled_from([1, 2, 3, 0] if largest > 3 else [1, 2]))
    shape = (images, draw(st.integers(1, largest)), draw(st.integers(1, largest)), groups * per_group)
    return kind, shape, groups, draw(st.integers(0, 2**16))


@settings(max_examples=150)
@given(cases(), st.sampled_from([0, 4]))
def test_both_engines_give_the_printed_result_and_gradients(case, shift):
    """x - mean is off by epsilon times x, which the division by the deviation magnifies; see test_batch_normalization.py.
    The parameters' gradients are summed over the batch."""
    kind, shape, groups, seed = case
    x = (normal(seed, *shape) + shift).astype(np.float32).astype(np.float64)
    incoming, source = normal(seed + 1, *shape), parameters_of(kind, shape[3], groups, seed + 2)
    gamma, beta = source.values["gamma"], source.values["beta"]
    expected, by_x, by_gamma, by_beta, normalized, deviation = formulas(x, incoming, gamma, beta, groups, 1e-3)
    m = shape[1] * shape[2] * shape[3] // groups
    reach = (2 * np.abs(x).max(initial=0) + np.abs(normalized).max(initial=0)) / deviation + 1
    slope = np.abs(incoming * gamma)
    most = 1 + np.abs(normalized).max(initial=0)
    per_image = slope.sum(axis=(1, 2, 3), keepdims=True)
    for engine, dtype in DTYPES.items():
        got = evaluate(engine, normalization(kind, source), [x], incoming)
        state = got.states[0]
        assert_close(got.result, expected, np.abs(gamma) * reach + np.abs(beta), m + 8, dtype)
        size = (slope + 2 * per_image * most / m) * reach * most / deviation
        assert_close(got.gradients[0], by_x, size, m + 8, dtype, "data gradient")
        terms = int(np.prod(shape[:3])) + m + 8
        size = (np.abs(incoming) * reach).sum(axis=(0, 1, 2))
        assert_close(state.gradient_for_gamma, by_gamma, size, terms, dtype, "gradient of gamma")
        assert_close(
            state.gradient_for_beta, by_beta, np.abs(incoming).sum(axis=(0, 1, 2)), terms, dtype, "gradient of beta"
        )


@settings(max_examples=40)
@given(cases(largest=3))
def test_gradients_are_central_differences(case):
    """A deviation of at least a half (epsilon is a quarter): third derivatives are at most some 15 / 0.5 ** 3 times the
    numbers. Gamma and beta enter linearly."""
    kind, shape, groups, seed = case
    x, incoming = normal(seed, *shape), normal(seed + 1, *shape)
    source = parameters_of(kind, shape[3], groups, seed + 2, epsilon=0.25)
    build = normalization(kind, source)
    scale = np.abs(incoming).sum() * (1 + np.abs(x).max()) * 8
    got = assert_differences_agree(build, [x], incoming, curvature=120, scale=scale)
    forward = Network("reference", build, differentiate=False)
    for name in ("gamma", "beta"):
        expected = parameter_difference(forward, [x], incoming, source, name)
        error = np.abs(getattr(got.states[0], f"gradient_for_{name}") - expected).max()
        assert error <= difference_tolerance(scale, PARAMETER_STEP, curvature=0)


@ENGINES
def test_one_group_per_channel_is_instance_normalization(engine):
    x, incoming = normal(0, 2, 3, 4, 6), normal(1, 2, 3, 4, 6)
    one, other = (
        evaluate(engine, normalization(kind, parameters_of(kind, 6, 6)), [x], incoming)
        for kind in ("instance", "group")
    )
    assert one.result.tobytes() == other.result.tobytes()
    assert one.gradients[0].tobytes() == other.gradients[0].tobytes()


@KINDS
@ENGINES
def test_an_image_does_not_notice_the_others(engine, kind):
    build, x = normalization(kind, parameters_of(kind, 4, 2)), normal(0, 3, 3, 4, 4)
    alone = np.concatenate([result_of(build, x[i : i + 1], engine=engine) for i in range(3)])
    assert result_of(build, x, engine=engine).tobytes() == alone.tobytes()


@KINDS
@ENGINES
def test_a_constant_image_becomes_beta(engine, kind):
    source = parameters_of(kind, 4, 2)
    x = np.full((2, 3, 3, 4), 0.5)
    got = evaluate(engine, normalization(kind, source), [x], normal(0, 2, 3, 3, 4))
    assert (got.result == source.values["beta"]).all()
    assert np.isfinite(got.gradients[0]).all()
    assert not got.states[0].gradient_for_gamma.any()


@KINDS
def test_a_saved_node_gives_the_same_bits(kind):
    source = parameters_of(kind, 4, 2)
    assert_survives_saving(normalization(kind, source), [normal(0, 2, 3, 4, 4)], normal(1, 2, 3, 4, 4))


# --- training


class PythonSource:
    """What both protocols share; `calls` is the history."""

    def __init__(self, channels=4, groups=2):
        super().__init__()
        self.numbers = [np.ones(channels, np.float32), np.zeros(channels, np.float32)]
        self.groups, self.calls, self.seen = groups, [], []

    def number_of_feature_channels(self):
        return len(self.numbers[0])

    def number_of_groups(self):
        return self.groups

    def gamma(self):
        return self.numbers[0]

    def beta(self):
        return self.numbers[1]

    def epsilon(self):
        return 1e-5

    def label(self):
        return "norm"

    def descend(self, how, states):
        """Plain descent with rate 0.25."""
        self.calls.append((how, len(states)))
        state = states[0]
        self.seen.append([np.array(state.gradient_for_gamma), np.array(state.gradient_for_beta)])
        return [
            (np.array(old) - np.float32(0.25) * np.array(slope)).astype(np.float32)
            for old, slope in ((state.gamma, state.gradient_for_gamma), (state.beta, state.gradient_for_beta))
        ]


class CpuUpdate(PythonSource):
    def update_gamma_and_beta(self, states):
        self.numbers = self.descend("cpu", states)
        return True


class GpuUpdate(PythonSource):
    """Gradients are not known during encode: it answers with numbers of its own."""

    answer = (np.full(4, 2, np.float32), np.full(4, 3, np.float32))

    def update_gamma_and_beta_with_command_buffer(self, command_buffer, states):
        self.calls.append(("gpu", len(states)))
        return self.answer and mpsnn.MPSCNNNormalizationGammaAndBetaState(*self.answer)


PROTOCOLS = {"instance": mpsnn.MPSCNNInstanceNormalizationDataSource, "group": mpsnn.MPSCNNGroupNormalizationDataSource}


def python_source(kind, update):
    return type(f"{kind}{update.__name__}", (update, PROTOCOLS[kind]), {})()


class Trained:
    """A normalization and a squared loss; steps with a seed."""

    def __init__(self, kind, source, style, engine):
        self.dtype, self.source = DTYPES[engine], source
        node = NODES[kind](mpsnn.MPSNNImageNode("x"), source)
        node.training_style = style
        node.result_image.handle, node.result_image.export_from_graph = "y", True
        last = mpsnn.MPSCNNLossNode(node.result_image, loss("MeanSquaredError", weight=1 / 64))
        self.graph = mpsnn.MPSNNGraph(engine, last.training_graph()[0].result_image, False)

    def step(self, seed):
        x, t = (normal(seed + i, 2, 3, 3, 4).astype(self.dtype) for i in (0, 50))
        self.graph.run([x], [mpsnn.MPSCNNLossLabels(t)])
        return x.astype(np.float64), t.astype(np.float64)


@KINDS
@ENGINES
@pytest.mark.parametrize("style", [STYLES.UpdateDeviceCPU, STYLES.UpdateDeviceGPU])
def test_our_weights_descend_along_the_printed_gradient_in_both_styles(style, engine, kind):
    groups = 4 if kind == "instance" else 2
    source = parameters_of(kind, 4, groups, epsilon=1e-5, optimizer=sgd(0.25))
    net = Trained(kind, source, style, engine)
    for seed in range(3):
        gamma, beta = (np.array(source.values[name]) for name in ("gamma", "beta"))
        x, t = net.step(seed)
        y, _, _, _, normalized, deviation = formulas(x, x, gamma, beta, groups, 1e-5)
        e = 2 / 64 * (y - t)
        reach = np.abs(normalized).max() / deviation.min() * 4 + 4
        size = 0.25 * (np.abs(e) * reach * 4).sum() + 4
        assert_close(source.values["gamma"], gamma - 0.25 * (e * normalized).sum(axis=(0, 1, 2)), size, 32)
        assert_close(source.values["beta"], beta - 0.25 * e.sum(axis=(0, 1, 2)), size, 32)


@KINDS
@ENGINES
def test_both_styles_give_the_same_weights_and_history(engine, kind):
    sources = []
    for style in (STYLES.UpdateDeviceCPU, STYLES.UpdateDeviceGPU):
        source = parameters_of(kind, 4, 2, optimizer=adam(0.1))
        net = Trained(kind, source, style, engine)
        for seed in range(3):
            net.step(seed)
        assert source.optimizer.time_step == 3
        sources.append(source)
    one, other = sources
    for name, value in one.values.items():
        assert value.tobytes() == other.values[name].tobytes()
    assert [v.tobytes() for v in one.history] == [v.tobytes() for v in other.history]


@KINDS
@ENGINES
def test_frozen_weights_and_none_without_an_optimizer_stay(engine, kind):
    for source, style in (
        (parameters_of(kind, 4, 2, optimizer=adam(0.1)), STYLES.UpdateDeviceNone),
        (parameters_of(kind, 4, 2), STYLES.UpdateDeviceGPU),
    ):
        before = [np.array(value) for value in source.values.values()]
        Trained(kind, source, style, engine).step(0)
        assert all((new == old).all() for new, old in zip(source.values.values(), before, strict=True))


@KINDS
@ENGINES
def test_a_python_source_in_cpu_style_gets_one_state_summed_over_the_batch_and_is_read_again(engine, kind):
    source = python_source(kind, CpuUpdate)
    groups = 4 if kind == "instance" else 2
    net = Trained(kind, source, STYLES.UpdateDeviceCPU, engine)
    for seed in range(2):
        gamma, beta = source.numbers
        x, t = net.step(seed)
        y, _, _, _, normalized, deviation = formulas(x, x, gamma, beta, groups, 1e-5)
        e = 2 / 64 * (y - t)
        size = (np.abs(e) * (np.abs(normalized).max() / deviation.min() * 4 + 4) * 4).sum() + 4
        assert_close(source.seen[seed][0], (e * normalized).sum(axis=(0, 1, 2)), size, 32)
        assert_close(source.seen[seed][1], e.sum(axis=(0, 1, 2)), size, 32)
    assert source.calls == [("cpu", 1)] * 2


@KINDS
@ENGINES
def test_a_python_source_in_gpu_style_answers_with_the_state_of_the_next_step(engine, kind):
    source = python_source(kind, GpuUpdate)
    net = Trained(kind, source, STYLES.UpdateDeviceGPU, engine)
    results = []
    x, t = normal(0, 2, 3, 3, 4).astype(net.dtype), normal(1, 2, 3, 3, 4).astype(net.dtype)
    for _ in range(2):
        exports = []
        net.graph.run([x], [mpsnn.MPSCNNLossLabels(t)], exports)
        results.append(np.array(exports[0].numpy()))
    assert source.calls == [("gpu", 1)] * 2
    assert_close(results[1], 2 * results[0] + 3, 2 * np.abs(results[0]) + 3, 4, net.dtype)


@KINDS
def test_a_gpu_answer_of_none_changes_nothing_and_one_of_another_size_is_an_error(kind):
    source = python_source(kind, GpuUpdate)
    net = Trained(kind, source, STYLES.UpdateDeviceGPU, "cpu")
    source.answer = None
    net.step(0)
    source.answer = (np.zeros(3, np.float32), np.zeros(4, np.float32))
    caught(mpsnn.WeightError, lambda: net.step(1), "gamma", "3", label="norm")
    source.answer = (np.zeros(4, np.float32), np.zeros(5, np.float32))
    caught(mpsnn.WeightError, lambda: net.step(1), "beta", "5", label="norm")


@KINDS
def test_a_cpu_style_method_on_a_gpu_style_node_is_an_error_that_says_so(kind):
    net = Trained(kind, python_source(kind, CpuUpdate), STYLES.UpdateDeviceGPU, "cpu")
    caught(
        mpsnn.WeightError, lambda: net.step(0), "CPU style", "update_gamma_and_beta_with_command_buffer", label="norm"
    )


@KINDS
def test_a_source_without_gamma_beta_and_epsilon_has_1_and_0_and_the_smallest_number(kind):
    members = {"number_of_feature_channels": lambda self: 4, "number_of_groups": lambda self: 2}
    source = type("Minimal", (PROTOCOLS[kind],), members)()
    x = normal(0, 2, 3, 3, 4)
    ones, zeros = np.ones(4, np.float32), np.zeros(4, np.float32)
    expected, *_, deviation = formulas(x, x, ones, zeros, 4 if kind == "instance" else 2, 1.17549435e-38)
    for engine, dtype in DTYPES.items():
        got = result_of(normalization(kind, source), x, engine=engine)
        assert_close(got, expected, (2 * np.abs(x).max() + np.abs(expected).max()) / deviation + 1, 26, dtype)


# --- errors


@KINDS
def test_channels_that_do_not_fit_name_the_node_and_both(kind):
    node = NODES[kind](mpsnn.MPSNNImageNode(), parameters_of(kind, 4, 2))
    error = caught(mpsnn.ShapeError, lambda: run(node, (1, 4, 5, 6)), label="culprit", node=NODES[kind].__name__)
    assert (error.expected, error.actual) == ("4 channels", "image 1 x 4 x 5 x 6")


@KINDS
def test_a_node_needs_its_data_source(kind):
    caught(
        mpsnn.WeightError, lambda: NODES[kind](mpsnn.MPSNNImageNode(), None), "data source", node=NODES[kind].__name__
    )


@pytest.mark.parametrize("groups", [3, 0, -1, 8])
def test_groups_must_divide_the_channels(groups):
    with pytest.raises(mpsnn.OptionError, match="groups"):
        mpsnn.GroupNormalizationWeights(4, groups, label="norm")
    source = python_source("group", CpuUpdate)
    source.groups = groups
    node = NODES["group"](mpsnn.MPSNNImageNode(), source)
    caught(
        mpsnn.WeightError, lambda: run(node, (1, 2, 2, 4)), "number_of_groups must divide", "divisor of 4", label="norm"
    )


@KINDS
def test_a_gradient_needs_the_state_of_a_normalization(kind):
    x = mpsnn.MPSNNImageNode()
    relu = mpsnn.MPSCNNNeuronReLUNode(x, 0.0)
    relu.label = "culprit"
    gradient = getattr(mpsnn, NODES[kind].__name__.replace("Node", "GradientNode"))
    call = lambda: gradient(x, x, relu.result_state)
    error = caught(mpsnn.GraphError, call, "must come from", label="culprit", node=gradient.__name__)
    assert error.actual == "MPSCNNNeuronReLUNode"


@KINDS
def test_a_gradient_of_another_size_names_both_shapes(kind):
    node = NODES[kind](mpsnn.MPSNNImageNode("x"), parameters_of(kind, 4, 2)).gradient_filter(mpsnn.MPSNNImageNode("e"))
    caught(
        mpsnn.ShapeError,
        lambda: run(node, (1, 4, 5, 4), (1, 5, 4, 4)),
        "1 x 4 x 5 x 4",
        "1 x 5 x 4 x 4",
        label="culprit",
    )
