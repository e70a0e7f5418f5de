# SPDX-License-Identifier: Apache-2.0
"""Optimizers at work in graphs: weights after some steps against the printed formulas in float64."""

import mpsnn
import numpy as np
import pytest
from engines import DTYPES, Network, assert_close, normal

Regularization = mpsnn.MPSNNRegularizationType
ENGINES = pytest.mark.parametrize("engine", ["reference", "cpu"])
STEPS = 7
RATE = 0.0625


def sgd(momentum=0.0, nesterov=False):
    def make(descriptor):
        return mpsnn.MPSNNOptimizerStochasticGradientDescent(None, momentum, nesterov, descriptor)

    def step(v, g, state, rate, t):
        mu = float(np.float32(momentum))
        if mu == 0:
            return v - rate * g
        m = state.get("m", 0)
        if nesterov:
            m = state["m"] = mu * m + g
            return v - rate * (g + mu * m)
        m = state["m"] = mu * m + rate * g
        return v - m

    return make, step


def rmsprop(decay=0.9, epsilon=1e-8):
    def step(v, g, state, rate, t):
        s = state["s"] = decay * state.get("s", 0) + (1 - decay) * g**2
        return v - rate * g / (np.sqrt(s) + float(np.float32(epsilon)))

    return lambda descriptor: mpsnn.MPSNNOptimizerRMSProp(None, decay, epsilon, descriptor), step


def adam(beta1=0.9, beta2=0.999, epsilon=1e-8, amsgrad=False):
    def step(v, g, state, rate, t):
        rate = rate * np.sqrt(1 - beta2**t) / (1 - beta1**t)
        m = state["m"] = beta1 * state.get("m", 0) + (1 - beta1) * g
        u = state["u"] = beta2 * state.get("u", 0) + (1 - beta2) * g**2
        if amsgrad:
            u = state["x"] = np.maximum(state.get("x", 0), u)
        return v - rate * m / (np.sqrt(u) + float(np.float32(epsilon)))

    return lambda descriptor: mpsnn.MPSNNOptimizerAdam(None, beta1, beta2, epsilon, 0, descriptor, amsgrad), step


RULES = {
    "descent": sgd(),
    "momentum": sgd(0.875),
    "nesterov": sgd(0.875, nesterov=True),
    "rmsprop": rmsprop(),
    "rmsprop-slow": rmsprop(0.5, 0.125),
    "adam": adam(),
    "adam-epsilon": adam(0.5, 0.75, 0.125),
    "amsgrad": adam(0.5, 0.25, amsgrad=True),
}
OPTIONS = {
    "plain": {},
    "rescaled": {"gradient_rescale": 0.375},
    "clipped": {"apply_gradient_clipping": True, "gradient_clip_min": -1.5, "gradient_clip_max": 2.5},
    "L1": {"regularization_type": Regularization.L1, "regularization_scale": 0.0625},
    "L2": {"regularization_type": Regularization.L2, "regularization_scale": 0.0625},
    "everything": {
        "gradient_rescale": 0.375,
        "apply_gradient_clipping": True,
        "gradient_clip_min": -1.5,
        "gradient_clip_max": 2.5,
        "regularization_type": Regularization.L2,
        "regularization_scale": 0.0625,
    },
}


def prepared(g, v, options):
    """Clipped, then rescaled, then regularized (MPS_SEMANTICS 19.1)."""
    if options.get("apply_gradient_clipping"):
        g = np.clip(g, options["gradient_clip_min"], options["gradient_clip_max"])
    g = g * options.get("gradient_rescale", 1)
    penalty = {Regularization.L1: np.sign(v), Regularization.L2: v}.get(options.get("regularization_type"), 0)
    return g + options.get("regularization_scale", 0) * penalty


def descriptor_of(options, rate=RATE):
    return mpsnn.MPSNNOptimizerDescriptor(learning_rate=rate, **options)


def small_numbers(seed, *shape):
    """Eighths: the sums that become gradients are exact in float32, so that only the optimizer rounds. A gradient that is
    nothing but rounding would be blown up to a full step by Adam."""
    return np.random.default_rng(seed).integers(-8, 9, shape) / 8


def pointwise(optimizer, style=None, biases=True):
    """A 1 x 1 convolution of 3 to 4 channels: its weight gradient is known without running it."""
    weights, bias = normal(1, 4, 1, 1, 3).astype(np.float32), normal(2, 4).astype(np.float32)
    descriptor = mpsnn.MPSCNNConvolutionDescriptor(1, 1, 3, 4)
    source = mpsnn.ConvolutionWeights(
        descriptor, weights, bias if biases else None, label="pointwise", optimizer=optimizer
    )

    def build(image):
        node = mpsnn.MPSCNNConvolutionNode(image, source)
        if style is not None:
            node.training_style = style
        return node

    return source, build


def gradients_of(step):
    x, incoming = small_numbers(10 + step, 2, 2, 3, 3), small_numbers(50 + step, 2, 2, 3, 4)
    by_weights = np.einsum("nyxo,nyxi->oi", incoming, x).reshape(4, 1, 1, 3)
    return x, incoming, {"weights": by_weights, "biases": incoming.sum(axis=(0, 1, 2))}


def expected_values(source, rule, options, rates):
    values = {name: np.array(value, np.float64) for name, value in source.values.items()}
    states = {name: {} for name in values}
    for t, rate in enumerate(rates, 1):
        gradients = gradients_of(t)[2]
        for name, v in values.items():
            values[name] = RULES[rule][1](v, prepared(gradients[name], v, options), states[name], rate, t)
    return values


def assert_values_close(source, expected, dtype):
    """Every step rounds the value itself and, a dozen times, a change that is no larger than a few values."""
    for name, value in expected.items():
        scale = 2 * (1 + np.abs(value).max())
        assert_close(source.values[name], value, scale, 12 * STEPS, dtype, name)


@ENGINES
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("rule", RULES)
def test_weights_after_some_steps_are_those_of_the_printed_formula(engine, rule, options):
    optimizer = RULES[rule][0](descriptor_of(OPTIONS[options]))
    source, build = pointwise(optimizer)
    expected = expected_values(source, rule, OPTIONS[options], [RATE] * STEPS)
    network = Network(engine, build)
    for t in range(1, STEPS + 1):
        x, incoming, _ = gradients_of(t)
        network.run([x], incoming)
    assert_values_close(source, expected, DTYPES[engine])


def trained_in_both_styles(engine, rule):
    results = []
    for style in (mpsnn.MPSNNTrainingStyle.UpdateDeviceCPU, mpsnn.MPSNNTrainingStyle.UpdateDeviceGPU):
        source, build = pointwise(RULES[rule][0](descriptor_of(OPTIONS["everything"])), style)
        network = Network(engine, build)
        for t in range(1, STEPS + 1):
            network.run([gradients_of(t)[0]], gradients_of(t)[1])
        results.append(source)
    return results


@pytest.mark.parametrize("rule", RULES)
def test_both_training_styles_give_the_same_bits(rule):
    by_cpu, by_gpu = trained_in_both_styles("cpu", rule)
    for name, value in by_cpu.values.items():
        assert value.tobytes() == by_gpu.values[name].tobytes()


@pytest.mark.parametrize("rule", RULES)
def test_both_training_styles_agree_on_the_reference_engine_as_far_as_float32(rule):
    """In CPU style the graph reads the weights again from the data source, whose protocol speaks float32."""
    by_cpu, by_gpu = trained_in_both_styles("reference", rule)
    assert_values_close(by_cpu, by_gpu.values, np.float32)


@ENGINES
def test_without_a_training_style_weights_stay(engine):
    source, build = pointwise(RULES["adam"][0](descriptor_of({})), mpsnn.MPSNNTrainingStyle.UpdateDeviceNone)
    before = {name: value.copy() for name, value in source.values.items()}
    got = Network(engine, build).run([gradients_of(1)[0]], gradients_of(1)[1])
    assert got.gradients[0].any()
    assert all((source.values[name] == value).all() for name, value in before.items())


@ENGINES
@pytest.mark.parametrize("rule", ["momentum", "nesterov", "adam"])
def test_a_changed_learning_rate_counts_from_the_next_step(engine, rule):
    """Plain momentum keeps the old rate in what it has gathered; Nesterov's and Adam's do not."""
    source, build = pointwise(RULES[rule][0](descriptor_of({})))
    rates = [RATE] * 3 + [RATE / 4] * (STEPS - 3)
    expected = expected_values(source, rule, {}, rates)
    network = Network(engine, build)
    for t, rate in enumerate(rates, 1):
        source.optimizer.set_learning_rate(rate)
        network.run([gradients_of(t)[0]], gradients_of(t)[1])
    assert_values_close(source, expected, DTYPES[engine])


@ENGINES
@pytest.mark.parametrize("rule", RULES)
def test_weights_without_biases_are_trained_alone(engine, rule):
    source, build = pointwise(RULES[rule][0](descriptor_of({})), biases=False)
    expected = expected_values(source, rule, {}, [RATE] * STEPS)
    assert list(expected) == ["weights"]
    network = Network(engine, build)
    for t in range(1, STEPS + 1):
        network.run([gradients_of(t)[0]], gradients_of(t)[1])
    assert_values_close(source, expected, DTYPES[engine])


# MPS_SEMANTICS 22.4: one value of 1, gradients 0.5 and 0.25, learning rate 0.1.
PRINTED = {
    "momentum": (sgd(0.9), [0.95, 0.88]),
    "nesterov": (sgd(0.9, nesterov=True), [0.905, 0.817]),
    "rmsprop": (rmsprop(), [0.6837723, 0.5363303]),
    "adam": (adam(), [0.9000000632, 0.8067821521]),
}


@ENGINES
@pytest.mark.parametrize("rule", PRINTED)
def test_the_printed_steps_are_made(engine, rule):
    (make, _), expected = PRINTED[rule]
    descriptor = mpsnn.MPSCNNConvolutionDescriptor(1, 1, 1, 1)
    source = mpsnn.ConvolutionWeights(descriptor, np.ones(1, np.float32), optimizer=make(descriptor_of({}, 0.1)))
    network = Network(engine, lambda image: mpsnn.MPSCNNConvolutionNode(image, source))
    for gradient, value in zip((0.5, 0.25), expected, strict=True):
        network.run([np.ones((1, 1, 1, 1))], np.full((1, 1, 1, 1), gradient))
        # Seven places are printed, and options such as 0.1 and 0.9 are float32 on every engine.
        assert_close(source.values["weights"].item(), value, 1, 24)


@ENGINES
@pytest.mark.parametrize("rule", RULES)
def test_gamma_and_beta_follow_the_same_rules(engine, rule):
    """Against the gradients that the node exports, which its own tests compare with the formulas."""
    source = mpsnn.BatchNormalizationWeights(
        4, label="norm", epsilon=0.25, optimizer=RULES[rule][0](descriptor_of(OPTIONS["L2"]))
    )

    def build(image):
        node = mpsnn.MPSCNNBatchNormalizationNode(image, source)
        return node, [node]

    network = Network(engine, build)
    values = {name: np.array(source.values[name], np.float64) for name in ("gamma", "beta")}
    histories = {name: {} for name in values}
    for t in range(1, STEPS + 1):
        state = network.run([normal(t, 2, 3, 3, 4)], small_numbers(t, 2, 3, 3, 4)).states[0]
        for name, v in values.items():
            g = prepared(np.array(getattr(state, f"gradient_for_{name}"), np.float64), v, OPTIONS["L2"])
            values[name] = RULES[rule][1](v, g, histories[name], RATE, t)
    assert_values_close(source, values, DTYPES[engine])
