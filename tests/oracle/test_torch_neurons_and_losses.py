# SPDX-License-Identifier: Apache-2.0
"""Activation functions, soft-max, losses and normalization against PyTorch's autograd."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is the oracle of this file and is not installed")

import mpsnn
from engines import DTYPES, Network, assert_close, evaluate, normal
from hypothesis import given, settings
from hypothesis import strategies as st
from test_loss import ROUNDINGS, loss_of, run_loss_node
from test_neuron import SLOPES, neuron, numbers
from torch.nn import functional as F
from torch_cases import array, backward, plain, tensor

pytestmark = pytest.mark.oracle
Neuron, Loss = mpsnn.MPSCNNNeuronType, mpsnn.MPSCNNLossType
SHAPE = (3, 4, 5, 5)
shapes = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.sampled_from([1, 2, 5, 10, 17]))

# Ours, its parameters, theirs, kinks. PyTorch's slope at a kink may differ.
NEURONS = [
    (Neuron.ReLU, (0.0,), F.relu, [0]),
    (Neuron.ReLU, (0.25,), lambda x: F.leaky_relu(x, 0.25), [0]),
    (Neuron.Sigmoid, (), torch.sigmoid, []),
    (Neuron.HardSigmoid, (1 / 8, 0.5), lambda x: F.hardtanh(x / 8 + 0.5, 0, 1), [-4, 4]),
    (Neuron.TanH, (1.0, 1.0), torch.tanh, []),
    (Neuron.Absolute, (), torch.abs, [0]),
    (Neuron.SoftPlus, (1.0, 1.0), F.softplus, []),
    (Neuron.SoftPlus, (0.5, 2.0), lambda x: F.softplus(x, beta=2, threshold=100), []),
    (Neuron.SoftSign, (), F.softsign, [0]),
    (Neuron.ELU, (0.75,), lambda x: F.elu(x, 0.75), [0]),
    (Neuron.ReLUN, (0.0, 6.0), F.relu6, [0, 6]),
    (Neuron.Linear, (2.0, -1.0), lambda x: 2 * x - 1, []),
    (Neuron.Power, (0.5, 8.0, 1.5), lambda x: (0.5 * x + 8) ** 1.5, []),
    (Neuron.Exponential, (0.5, 0.25, -1.0), lambda x: torch.exp(0.5 * x + 0.25), []),
    (Neuron.Exponential, (0.5, 0.25, 2.0), lambda x: torch.exp2(0.5 * x + 0.25), []),
    (Neuron.Logarithm, (0.5, 8.0, -1.0), lambda x: torch.log(0.5 * x + 8), []),
    (Neuron.Logarithm, (0.5, 8.0, 2.0), lambda x: torch.log2(0.5 * x + 8), []),
    (Neuron.GeLU, (), F.gelu, []),
]


@pytest.mark.parametrize(
    ("type", "parameters", "function", "kinks"), NEURONS, ids=[f"{n[0].name}-{n[1]}" for n in NEURONS]
)
def test_activation_functions_are_those_of_pytorch(type, parameters, function, kinks):
    x, incoming = numbers(1, kinks, SHAPE, reach=8), normal(2, *SHAPE)
    image = tensor(x)
    result = function(image)
    backward(result, incoming)
    size, slope = 1 + np.abs(array(result)), 1 + np.abs(array(image.grad))
    for engine, dtype in DTYPES.items():
        got = evaluate(engine, neuron(type, parameters), [x], incoming)
        # The argument, up to 8, is rounded before it goes through the function: its slope is part of the scale.
        assert_close(got.result, array(result), size + 8 * slope, ROUNDINGS, dtype)
        assert_close(got.gradients[0], array(image.grad), 8 * slope * (1 + np.abs(incoming)), ROUNDINGS, dtype)


def test_prelu_is_that_of_pytorch():
    x, incoming = numbers(1, [0], SHAPE), normal(2, *SHAPE)
    image = tensor(x)
    result = F.prelu(image, plain(SLOPES, grad=False))
    backward(result, incoming)
    for engine, dtype in DTYPES.items():
        got = evaluate(engine, lambda source: mpsnn.MPSCNNNeuronPReLUNode(source, SLOPES), [x], incoming)
        assert_close(got.result, array(result), np.abs(x) * 2, 2, dtype)
        assert_close(got.gradients[0], array(image.grad), np.abs(incoming) * 2, 2, dtype)


@pytest.mark.parametrize(
    ("node", "function"),
    [(mpsnn.MPSCNNSoftMaxNode, F.softmax), (mpsnn.MPSCNNLogSoftMaxNode, F.log_softmax)],
    ids=["softmax", "log_softmax"],
)
@settings(max_examples=60)
@given(shape=shapes, spread=st.sampled_from([1, 20]), seed=st.integers(0, 2**16))
def test_softmax_is_that_of_pytorch(node, function, shape, spread, seed):
    x, incoming = spread * normal(seed, *shape), normal(seed + 1, *shape)
    image = tensor(x)
    result = function(image, dim=1)
    backward(result, incoming)
    reach = 1 + 2 * np.abs(x).max() + np.log(shape[3])
    for engine, dtype in DTYPES.items():
        got = evaluate(engine, node, [x], incoming)
        assert_close(got.result, array(result), reach, ROUNDINGS + shape[3], dtype)
        assert_close(
            got.gradients[0],
            array(image.grad),
            np.abs(incoming).sum(axis=3, keepdims=True) * reach,
            ROUNDINGS + shape[3],
            dtype,
        )


# --- losses: sums over each image, weight 1


def classes_of(seed, shape):
    """One class per pixel, as numbers and as one-hot labels."""
    numbers = np.random.default_rng(seed).integers(0, shape[3], shape[:3])
    return numbers, np.eye(shape[3])[numbers]


def assert_loss(ours, y, t, theirs, scale):
    """`theirs`: PyTorch's element losses, summed per image here; its gradient is that of their sum."""
    image = tensor(y)
    elements = theirs(image)
    elements.sum().backward()
    values = elements.detach().reshape(len(y), -1).sum(dim=1).numpy()
    for engine, dtype in DTYPES.items():
        gradient, loss = run_loss_node(engine, ours, y, t)
        assert_close(gradient, array(image.grad), scale, ROUNDINGS + y.shape[3], dtype, "gradient")
        assert_close(loss.ravel(), values, scale * y[0].size, ROUNDINGS + y[0].size, dtype, "loss")


def reach_of(y, t):
    return (1 + np.abs(y).max()) * (1 + np.abs(t).max()) * 4


@settings(max_examples=60)
@given(shapes, st.sampled_from([0.0, 0.125]), st.integers(0, 2**16))
def test_softmax_cross_entropy_with_smoothing_is_pytorch_s(shape, smoothing, seed):
    y, (numbers, t) = 3 * normal(seed, *shape), classes_of(seed + 1, shape)
    ours = loss_of(Loss.SoftMaxCrossEntropy, label_smoothing=smoothing, number_of_classes=shape[3])
    target = torch.from_numpy(numbers)
    assert_loss(
        ours,
        y,
        t,
        lambda image: F.cross_entropy(image, target, reduction="none", label_smoothing=smoothing),
        reach_of(y, t),
    )


@settings(max_examples=30)
@given(shapes, st.integers(0, 2**16))
def test_softmax_cross_entropy_of_distributions_is_pytorch_s(shape, seed):
    y, t = 3 * normal(seed, *shape), np.abs(normal(seed + 1, *shape)) + 0.25
    t = (t / t.sum(axis=3, keepdims=True)).astype(np.float32).astype(np.float64)
    target = tensor(t, grad=False)
    image = tensor(y)
    F.cross_entropy(image, target, reduction="sum").backward()
    for engine, dtype in DTYPES.items():
        # Labels add up to 1 as exactly as float32 holds them, which PyTorch's gradient sees and the printed one does not.
        gradient, _ = run_loss_node(engine, loss_of(Loss.SoftMaxCrossEntropy), y, t)
        excess = np.abs(t.sum(axis=3, keepdims=True) - 1)
        assert np.all(
            np.abs(gradient - array(image.grad))
            <= excess + reach_of(y, t) * np.sqrt(ROUNDINGS + shape[3]) * np.finfo(dtype).eps
        )


ELEMENT_LOSSES = [
    (Loss.SigmoidCrossEntropy, lambda y, t: F.binary_cross_entropy_with_logits(y, t, reduction="none"), "logits"),
    (Loss.MeanSquaredError, lambda y, t: F.mse_loss(y, t, reduction="none"), "normal"),
    (Loss.MeanAbsoluteError, lambda y, t: F.l1_loss(y, t, reduction="none"), "normal"),
    (Loss.Huber, lambda y, t: F.huber_loss(y, t, reduction="none", delta=0.75), "normal"),
    (Loss.KullbackLeiblerDivergence, lambda y, t: F.kl_div(y, t, reduction="none"), "logits"),
]


@pytest.mark.parametrize(("type", "theirs", "domain"), ELEMENT_LOSSES, ids=[loss[0].name for loss in ELEMENT_LOSSES])
@settings(max_examples=40)
@given(shape=shapes, seed=st.integers(0, 2**16))
def test_element_losses_are_those_of_pytorch(type, theirs, domain, shape, seed):
    y = normal(seed, *shape)
    random = np.random.default_rng(seed + 1)
    t = (
        (random.uniform(0, 1, shape) if domain == "logits" else random.normal(size=shape))
        .astype(np.float32)
        .astype(np.float64)
    )
    if domain == "logits":
        t[random.random(shape) < 0.25] = 0
    target = tensor(t, grad=False)
    assert_loss(loss_of(type), y, t, lambda image: theirs(image, target), reach_of(y, t))


# --- batch normalization


def stored(channels, seed, momentum):
    source = mpsnn.BatchNormalizationWeights(channels, label="norm", epsilon=2**-7, momentum=momentum)
    numbers = {name: normal(seed + i, channels).astype(np.float32) for i, name in enumerate(("gamma", "beta", "mean"))}
    source.set_values(variance=np.square(normal(seed + 5, channels)).astype(np.float32) + np.float32(0.5), **numbers)
    return source


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@settings(max_examples=50)
@given(
    shape=shapes.filter(lambda shape: np.prod(shape[:3]) > 1),
    momentum=st.sampled_from([0.125, 0.5]),
    seed=st.integers(0, 2**16),
)
def test_batch_normalization_and_its_running_statistics_are_those_of_pytorch(training, shape, momentum, seed):
    channels, m = shape[3], int(np.prod(shape[:3]))
    flags = (
        mpsnn.MPSCNNBatchNormalizationFlags.CalculateStatisticsAutomatic
        if training
        else mpsnn.MPSCNNBatchNormalizationFlags.CalculateStatisticsNever
    )
    x, incoming = normal(seed, *shape) + 0.5, normal(seed + 1, *shape)
    start = stored(channels, seed + 2, momentum).values
    image, gamma, beta = tensor(x), plain(start["gamma"]), plain(start["beta"])
    mean, variance = plain(start["mean"], grad=False), plain(start["variance"], grad=False)
    result = F.batch_norm(image, mean, variance, gamma, beta, training=training, momentum=momentum, eps=2**-7)
    backward(result, incoming)
    deviation = np.sqrt((x.var(axis=(0, 1, 2)) if training else start["variance"]) + 2**-7)
    normalized = np.abs(array(result) - start["beta"]) / np.maximum(np.abs(start["gamma"]), 2**-20)
    reach = (np.abs(x).max() + np.abs(start["mean"]) + normalized.max()) / deviation + 1
    size = np.abs(incoming).sum(axis=(0, 1, 2))
    for engine, dtype in DTYPES.items():
        source = stored(channels, seed + 2, momentum)

        def build(node_source, source=source):
            node = mpsnn.MPSCNNBatchNormalizationNode(node_source, source)
            node.flags = flags
            return node, [node]

        got = Network(engine, build).run([x], incoming)
        absolute = np.abs(start["gamma"])
        assert_close(got.result, array(result), absolute * reach + np.abs(start["beta"]), m + 8, dtype)
        gradient_size = absolute / deviation * (np.abs(incoming) + 2 * size * reach * (1 + normalized.max()) / m)
        assert_close(got.gradients[0], array(image.grad), gradient_size, m + 8, dtype, "data gradient")
        assert_close(
            got.states[0].gradient_for_gamma, gamma.grad.numpy(), size * reach, m + 8, dtype, "gradient of gamma"
        )
        assert_close(got.states[0].gradient_for_beta, beta.grad.numpy(), size, m, dtype, "gradient of beta")
        assert_close(
            source.values["mean"], mean.numpy(), 1 + np.abs(x).max() + np.abs(start["mean"]), m + 8, what="running mean"
        )
        assert_close(
            source.values["variance"],
            variance.numpy(),
            np.abs(x).max() ** 2 * m / (m - 1) + start["variance"],
            m + 8,
            what="running variance",
        )
