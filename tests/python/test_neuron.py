# SPDX-License-Identifier: Apache-2.0
"""Activation functions: values, gradients, and what happens far out and at the kinks."""

from math import erf

import mpsnn
import numpy as np
import pytest
from engines import (
    assert_close,
    assert_differences_agree,
    assert_survives_saving,
    evaluate,
    normal,
    result_of,
    same_on_both,
)
from hypothesis import given, settings
from hypothesis import strategies as st

Type = mpsnn.MPSCNNNeuronType
SHAPE = (2, 3, 4, 5)
ENGINES = pytest.mark.parametrize("engine", ["reference", "cpu"])
SLOPES = np.array([0.5, -0.25, 0.0, 2.0, 1.0], np.float32)
ERF = np.vectorize(erf, otypes=[float])
# An exponential, a logarithm and a division, each good to a few units in the last place, and what is around them.
ROUNDINGS = 16


def base(c):
    return 1.0 if c == -1 else np.log(c)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


# Type, parameters, f, f' (MPS_SEMANTICS 9.2), kinks. Numbers that float32 holds, so that both engines compute with the same.
FUNCTIONS = [
    (Type.ReLU, (0.0,), lambda x, a: np.where(x >= 0, x, a * x), lambda x, a: np.where(x >= 0, 1, a), [0]),
    (Type.ReLU, (0.25,), lambda x, a: np.where(x >= 0, x, a * x), lambda x, a: np.where(x >= 0, 1, a), [0]),
    (Type.Linear, (-1.5, 0.25), lambda x, a, b: a * x + b, lambda x, a, b: np.full_like(x, a), []),
    (Type.Sigmoid, (), sigmoid, lambda x: sigmoid(x) * sigmoid(-x), []),
    (
        Type.HardSigmoid,
        (0.25, 0.5),
        lambda x, a, b: np.clip(a * x + b, 0, 1),
        lambda x, a, b: np.where((a * x + b >= 0) & (a * x + b <= 1), a, 0),
        [-2, 2],
    ),
    (Type.TanH, (1.5, 0.5), lambda x, a, b: a * np.tanh(b * x), lambda x, a, b: a * b * (1 - np.tanh(b * x) ** 2), []),
    (Type.Absolute, (), np.abs, np.sign, [0]),
    (Type.SoftPlus, (2.0, 0.5), lambda x, a, b: a * np.logaddexp(0, b * x), lambda x, a, b: a * b * sigmoid(b * x), []),
    (Type.SoftSign, (), lambda x: x / (1 + np.abs(x)), lambda x: 1 / (1 + np.abs(x)) ** 2, [0]),
    (
        Type.ELU,
        (0.75,),
        lambda x, a: np.where(x >= 0, x, a * np.expm1(x)),
        lambda x, a: np.where(x >= 0, 1, a * np.exp(x)),
        [0],
    ),
    (
        Type.ReLUN,
        (0.0, 1.5),
        lambda x, a, b: np.minimum(np.where(x >= 0, x, a * x), b),
        lambda x, a, b: np.where(x >= b, 0, np.where(x >= 0, 1, a)),
        [0, 1.5],
    ),
    (
        Type.ReLUN,
        (-2.0, 1.5),
        lambda x, a, b: np.minimum(np.where(x >= 0, x, a * x), b),
        lambda x, a, b: np.where(np.where(x >= 0, x, a * x) >= b, 0, np.where(x >= 0, 1, a)),
        [0, 1.5, -0.75],
    ),
    (
        Type.Power,
        (0.5, 4.0, 2.5),
        lambda x, a, b, c: (a * x + b) ** c,
        lambda x, a, b, c: a * c * (a * x + b) ** (c - 1),
        [],
    ),
    (Type.Power, (1.0, 0.0, 2.0), lambda x, a, b, c: x**2, lambda x, a, b, c: 2 * x, []),
    (
        Type.Exponential,
        (0.5, 0.25, -1.0),
        lambda x, a, b, c: np.exp(a * x + b),
        lambda x, a, b, c: a * np.exp(a * x + b),
        [],
    ),
    (
        Type.Exponential,
        (0.5, 0.25, 2.0),
        lambda x, a, b, c: c ** (a * x + b),
        lambda x, a, b, c: a * np.log(c) * c ** (a * x + b),
        [],
    ),
    (Type.Logarithm, (0.5, 4.0, -1.0), lambda x, a, b, c: np.log(a * x + b), lambda x, a, b, c: a / (a * x + b), []),
    (
        Type.Logarithm,
        (0.5, 4.0, 2.0),
        lambda x, a, b, c: np.log(a * x + b) / base(c),
        lambda x, a, b, c: a / (base(c) * (a * x + b)),
        [],
    ),
    (
        Type.GeLU,
        (),
        lambda x: 0.5 * x * (1 + ERF(x / np.sqrt(2))),
        lambda x: 0.5 * (1 + ERF(x / np.sqrt(2))) + x * np.exp(-x * x / 2) / np.sqrt(2 * np.pi),
        [],
    ),
]
ALL = pytest.mark.parametrize(
    ("type", "parameters", "f", "derivative", "kinks"), FUNCTIONS, ids=[f"{f[0].name}-{f[1]}" for f in FUNCTIONS]
)


def neuron(type, parameters, data=None):
    descriptor = mpsnn.MPSNNNeuronDescriptor(type, *parameters, data=data if data is not None else [])
    return lambda image: mpsnn.MPSCNNNeuronNode.node(image, descriptor)


def numbers(seed, kinks=(), shape=SHAPE, reach=4):
    """Between -4 and 4, no closer to a kink than a difference moves."""
    x = np.random.default_rng(seed).uniform(-reach, reach, shape).astype(np.float32).astype(np.float64)
    for kink in kinks:
        x[np.abs(x - kink) < 0.01] += 0.0625
    return x


@ALL
def test_the_reference_computes_the_printed_formulas(type, parameters, f, derivative, kinks):
    x, incoming = numbers(1, kinks), normal(2, *SHAPE)
    got = evaluate("reference", neuron(type, parameters), [x], incoming)
    expected, slope = f(x, *parameters), derivative(x, *parameters)
    assert_close(got.result, expected, np.abs(expected) + 1, ROUNDINGS, np.float64)
    assert_close(got.gradients[0], incoming * slope, np.abs(incoming) * (np.abs(slope) + 1), ROUNDINGS, np.float64)


@ALL
@settings(max_examples=15)
@given(
    seed=st.integers(0, 2**16),
    images=st.sampled_from([0, 1, 3]),
    width=st.sampled_from([1, 7, 40]),
    channels=st.sampled_from([1, 3, 16]),
)
def test_the_engines_agree(type, parameters, f, derivative, kinks, seed, images, width, channels):
    """The argument a * x + b itself is rounded: its error passes through f and f', so their slopes are part of the scale."""
    x = numbers(seed, kinks, (images, 2, width, channels))
    incoming = normal(seed + 1, *x.shape)
    value, slope = np.abs(f(x, *parameters)), np.abs(derivative(x, *parameters))
    argument = 1 + np.abs(x)
    step = 2.0**-10
    bend = np.abs(derivative(x + step, *parameters) - derivative(x - step, *parameters)) / (2 * step)
    for kink in kinks:
        bend[np.abs(x - kink) <= 0.01] = 0
    same_on_both(
        neuron(type, parameters),
        [x],
        incoming,
        value + slope * argument,
        np.abs(incoming) * (slope + bend * argument),
        ROUNDINGS,
    )


@ALL
def test_gradients_are_central_differences(type, parameters, f, derivative, kinks):
    x = numbers(3, kinks, (1, 2, 3, 4), reach=3)
    # The largest third derivative here, that of a power or a logarithm near -3, stays below 16 times the values.
    assert_differences_agree(neuron(type, parameters), [x], normal(4, *x.shape), curvature=16)


@ALL
def test_a_saved_node_gives_the_same_bits(type, parameters, f, derivative, kinks):
    assert_survives_saving(neuron(type, parameters), [numbers(5, kinks)], normal(6, *SHAPE))


@ENGINES
def test_no_function_is_the_identity_of_a_convolution_s_descriptor(engine):
    descriptor = mpsnn.MPSCNNConvolutionDescriptor(1, 1, 5, 5)
    assert descriptor.fused_neuron_descriptor.neuron_type == Type.None_
    source = mpsnn.ConvolutionWeights(descriptor, np.eye(5, dtype=np.float32))
    x = numbers(7)
    assert (result_of(lambda image: mpsnn.MPSCNNConvolutionNode(image, source), x, engine=engine) == x).all()


# --- PReLU: one slope per channel


def test_prelu_multiplies_negative_numbers_by_their_channel_s_slope():
    x, incoming = numbers(9, [0]), normal(10, *SHAPE)
    got = same_on_both(
        lambda image: mpsnn.MPSCNNNeuronPReLUNode(image, SLOPES), [x], incoming, np.abs(x), np.abs(incoming), 2
    )
    assert (got.result == np.where(x >= 0, x, SLOPES * x)).all()
    assert (got.gradients[0] == np.where(x >= 0, incoming, SLOPES * incoming)).all()
    assert_differences_agree(lambda image: mpsnn.MPSCNNNeuronPReLUNode(image, SLOPES), [x], incoming, curvature=0)
    assert_survives_saving(lambda image: mpsnn.MPSCNNNeuronPReLUNode(image, SLOPES), [x], incoming)


# --- node classes and their defaults

CLASSES = {
    Type.ReLU: (mpsnn.MPSCNNNeuronReLUNode, (0,)),
    Type.Linear: (mpsnn.MPSCNNNeuronLinearNode, (1, 0)),
    Type.Sigmoid: (mpsnn.MPSCNNNeuronSigmoidNode, ()),
    Type.HardSigmoid: (mpsnn.MPSCNNNeuronHardSigmoidNode, (0.2, 0.5)),
    Type.TanH: (mpsnn.MPSCNNNeuronTanHNode, (1, 1)),
    Type.Absolute: (mpsnn.MPSCNNNeuronAbsoluteNode, ()),
    Type.SoftPlus: (mpsnn.MPSCNNNeuronSoftPlusNode, (1, 1)),
    Type.SoftSign: (mpsnn.MPSCNNNeuronSoftSignNode, ()),
    Type.ELU: (mpsnn.MPSCNNNeuronELUNode, (1,)),
    Type.ReLUN: (mpsnn.MPSCNNNeuronReLUNNode, (1, 6)),
    Type.Power: (mpsnn.MPSCNNNeuronPowerNode, (1, 0, 1)),
    Type.Exponential: (mpsnn.MPSCNNNeuronExponentialNode, (1, 0, -1)),
    Type.Logarithm: (mpsnn.MPSCNNNeuronLogarithmNode, (1, 0, -1)),
    Type.GeLU: (mpsnn.MPSCNNNeuronGeLUNode, ()),
}


@pytest.mark.parametrize("type", CLASSES, ids=lambda type: type.name)
def test_a_node_without_parameters_is_one_with_the_defaults(type):
    node_class, defaults = CLASSES[type]
    x = np.abs(numbers(11)) + 0.5 if type == Type.Logarithm else numbers(11) * 2
    plain, given = result_of(node_class, x), result_of(lambda image: node_class(image, *defaults), x)
    described = result_of(neuron(type, defaults), x)
    assert plain.tobytes() == given.tobytes() == described.tobytes()


# --- far out, and at the kinks


@ENGINES
@pytest.mark.parametrize(
    "type", [Type.Sigmoid, Type.TanH, Type.SoftPlus, Type.SoftSign, Type.ELU, Type.GeLU], ids=lambda type: type.name
)
def test_large_numbers_neither_overflow_nor_become_nan(engine, type):
    x = np.array([-1e4, -200, -89, -40, 40, 89, 200, 1e4]).reshape(1, 1, 2, 4)
    got = evaluate(engine, neuron(type, CLASSES[type][1]), [x], np.ones_like(x))
    grows = type in (Type.SoftPlus, Type.ELU, Type.GeLU)
    above = x if grows else np.ones_like(x)
    below = {Type.TanH: -1, Type.SoftSign: -1, Type.ELU: -1}.get(type, 0)
    # Beyond 40, e^-x is below epsilon and x / (1 + x) is off 1 by 1 / x.
    slack = 1 / 41 if type == Type.SoftSign else np.exp(-40)
    assert np.abs(got.result - np.where(x > 0, above, below)).max() <= slack + np.finfo(got.result.dtype).eps
    slope = 1.0 if grows else 0.0
    assert np.abs(got.gradients[0] - np.where(x > 0, slope, 0)).max() <= slack + np.finfo(got.result.dtype).eps


@ENGINES
@pytest.mark.parametrize(
    ("type", "parameters", "x", "slope"),
    [
        (Type.ReLU, (0.5,), 0, 1),
        (Type.Absolute, (), 0, 0),
        (Type.ELU, (0.5,), 0, 1),
        (Type.HardSigmoid, (0.25, 0.5), -2, 0.25),
        (Type.HardSigmoid, (0.25, 0.5), 2, 0.25),
        (Type.ReLUN, (1, 1.5), 1.5, 0),
        (Type.ReLUN, (1, 1.5), 0, 1),
        (Type.ReLUN, (-2, 1.5), -0.75, 0),
        (Type.Power, (1, 0, 1), 0, 1),
        (Type.Power, (1, 0, 0), 0, 0),
    ],
)
def test_at_a_kink_the_derivative_is_the_printed_side(engine, type, parameters, x, slope):
    image = np.full((1, 1, 1, 1), x, float)
    assert evaluate(engine, neuron(type, parameters), [image], np.full_like(image, 2)).gradients[0].item() == 2 * slope


@ENGINES
def test_what_has_no_real_value_is_nan_or_infinite_as_in_c(engine):
    x = np.array([-2.0, -1.0, 0.0, 1.0]).reshape(1, 1, 1, 4)
    power = result_of(neuron(Type.Power, (1, 0, 0.5)), x, engine=engine).ravel()
    assert np.isnan(power[:2]).all()
    assert power[2:].tolist() == [0, 1]
    logarithm = result_of(neuron(Type.Logarithm, (1, 0, -1)), x, engine=engine).ravel()
    assert np.isnan(logarithm[:2]).all()
    assert logarithm[2:].tolist() == [-np.inf, 0]


@pytest.mark.parametrize(
    ("type", "parameters"),
    [
        (Type.Logarithm, (1.0, 0.0, -1.0)),
        (Type.Logarithm, (1.0, 0.0, 10.0)),
        (Type.Exponential, (1.0, 0.0, -1.0)),
        (Type.Exponential, (1.0, 0.0, 2.0)),
        (Type.Exponential, (1.0, 0.0, 0.5)),
        (Type.Exponential, (1.0, 0.0, 1.0)),
        (Type.SoftPlus, (1.0, 1.0)),
        (Type.GeLU, ()),
        *((Type.Power, (1.0, 0.0, c)) for c in (-15.0, -3.0, -1.0, 0.0, 1.0, 2.0, 3.0, 7.0, 15.0, 16.0, 0.5)),
    ],
    ids=str,
)
def test_the_engines_agree_far_out_and_where_functions_end(type, parameters):
    x = np.array([0, -1, 1, 1e-40, 1e-37, 3e38, 300, -300, 87, -80, 1 + 2.0**-20, -2.5, np.inf, -np.inf, np.nan, 1e-7])
    if type == Type.GeLU:
        x[-3] = -1e30  # of -infinity the formula is a NaN, the limit 0
    x = x.astype(np.float32).reshape(1, 1, 4, 4)
    with np.errstate(over="ignore"):
        reference = result_of(neuron(type, parameters), x, engine="reference").astype(np.float32)
    cpu = result_of(neuron(type, parameters), x, engine="cpu")
    limits = np.finfo(np.float32)
    # Below the smallest normal number digits go, and some functions round to zero.
    near = np.isfinite(reference) & (np.abs(reference) > limits.tiny * 4)
    special = ~np.isfinite(reference)
    assert np.array_equal(cpu[special], reference[special], equal_nan=True)
    assert np.abs(cpu[~near & ~special]).max(initial=0) <= limits.tiny * 8
    assert_close(cpu[near], reference[near], np.abs(reference[near]), ROUNDINGS**2)
