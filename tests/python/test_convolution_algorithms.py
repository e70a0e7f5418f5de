# SPDX-License-Identifier: Apache-2.0
"""Every algorithm of the cpu engine's convolutions, forced by MPSNN_CONV: the tests of convolutions hold for each, and its error
stays below its bound (docs/accuracy.md)."""

import mpsnn
import numpy as np
import pytest
import test_convolution
from engines import Network, normal
from geometry_cases import Padding
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from winograd_error import relative_error_bound

ALGORITHMS = ["direct", "gemm", "patches", "columns", "winograd"]


@pytest.fixture(params=ALGORITHMS)
def forced(request, monkeypatch):
    monkeypatch.setenv("MPSNN_CONV", request.param)
    return request.param


@pytest.mark.parametrize("name", [name for name in dir(test_convolution) if name.startswith("test_the_engines_agree")])
def test_the_tests_of_convolutions_hold_for_each_algorithm(forced, name):
    getattr(test_convolution, name)()


PADDINGS = [Padding(explicit_y=y, explicit_x=x) for y, x in [((1, 1), (1, 1)), ((2, 0), (-1, 4)), ((0, 0), (3, 2))]]


@st.composite
def layers(draw):
    """Sizes around those of tiles, channels around those of vectors: (N, H, W, C), outputs, kernel, dilation, groups, padding."""
    kernel, dilation, groups = (
        draw(st.sampled_from([3, 5])),
        draw(st.sampled_from([1, 1, 1, 2, 3])),
        draw(st.integers(1, 2)),
    )
    least = (kernel - 1) * dilation + 1
    height, width = (least + draw(st.integers(0, 12)) for _ in range(2))
    channels, outputs = (groups * draw(st.sampled_from([16, 17, 31, 32, 40, 65])) for _ in range(2))
    return (
        (draw(st.integers(1, 3)), height, width, channels),
        outputs,
        kernel,
        dilation,
        groups,
        draw(st.sampled_from(PADDINGS)),
    )


def run_layer(engine, layer, precision, inputs):
    (shape, outputs, kernel, dilation, groups, padding), (x, weights, biases, incoming) = layer, inputs
    descriptor = mpsnn.MPSCNNConvolutionDescriptor(kernel, kernel, shape[3], outputs)
    descriptor.dilation_rate_x = descriptor.dilation_rate_y = dilation
    descriptor.groups = groups
    source = mpsnn.ConvolutionWeights(
        descriptor, weights.astype(np.float32), biases.astype(np.float32), label="weights"
    )

    def build(image):
        node = mpsnn.MPSCNNConvolutionNode(image, source)
        node.padding_policy = padding.policy()
        return node, [node]

    network = Network(engine, build)
    network.graph.precision = precision
    result = network.run([x], incoming)
    given = {"input 0": x.shape, "incoming": incoming.shape}
    plan = network.graph.plan([given[name] for name in network.graph.source_image_handles])
    state = result.states[0]
    numbers = {
        "forward": result.result,
        "data gradient": result.gradients[0],
        "weight gradient": state.gradient_for_weights,
    }
    return numbers, [f"{operation.algorithm} ({operation.reason})" for operation in plan.operations]


def inputs_of(layer, seed=0):
    (images, height, width, channels), outputs, kernel, dilation, groups, padding = layer
    extent = (kernel - 1) * dilation + 1
    size = [n + sum(pad) - extent + 1 for n, pad in ((height, padding.explicit_y), (width, padding.explicit_x))]
    return (
        normal(seed, images, height, width, channels),
        normal(seed + 1, outputs, kernel, kernel, channels // groups),
        normal(seed + 2, outputs),
        normal(seed + 3, images, *size, outputs),
    )


def relative_errors(layer, precision):
    inputs = inputs_of(layer)
    exact, _ = run_layer("reference", layer, precision, inputs)
    got, algorithms = run_layer("cpu", layer, precision, inputs)
    errors = {name: np.linalg.norm(got[name] - exact[name]) / np.linalg.norm(exact[name]) for name in exact}
    return errors, algorithms


@pytest.mark.parametrize("precision", ["fast", "strict"])
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(layer=layers())
@example(layer=((2, 14, 14, 64), 96, 3, 1, 1, PADDINGS[0]))
@example(layer=((1, 30, 31, 130), 70, 3, 1, 1, PADDINGS[1]))
@example(layer=((3, 21, 20, 32), 48, 5, 1, 1, PADDINGS[2]))
@example(layer=((1, 3, 3, 16), 16, 3, 1, 1, PADDINGS[0]))
@example(layer=((5, 40, 41, 16), 16, 3, 1, 1, PADDINGS[0]))
@example(layer=((2, 23, 41, 40), 48, 3, 1, 1, PADDINGS[0]))
@example(layer=((2, 9, 14, 149), 170, 3, 1, 1, PADDINGS[0]))
@example(layer=((2, 11, 18, 500), 200, 3, 1, 1, PADDINGS[0]))
@example(layer=((1, 14, 18, 288), 224, 3, 1, 1, PADDINGS[0]))
@example(layer=((1, 30, 45, 96), 100, 3, 1, 1, PADDINGS[0]))
@example(layer=((2, 34, 33, 128), 120, 3, 1, 2, PADDINGS[0]))
@example(layer=((1, 45, 50, 57), 61, 3, 2, 1, PADDINGS[1]))
@example(layer=((2, 17, 19, 60), 90, 5, 1, 1, PADDINGS[2]))
def test_winograd_stays_below_its_bound(monkeypatch, layer, precision):
    monkeypatch.setenv("MPSNN_CONV", "winograd")
    (*_, channels), outputs, kernel, _, groups, _ = layer
    errors, algorithms = relative_errors(layer, precision)
    is_winograd = any("winograd F(" in text for text in algorithms)
    assert is_winograd == (precision == "fast" or kernel == 3)
    pixels = int(np.prod(inputs_of(layer)[3].shape[:3]))
    terms = {"forward": channels // groups, "data gradient": outputs // groups, "weight gradient": pixels}
    for name, error in errors.items():
        assert error <= relative_error_bound(kernel, precision, terms[name]), (name, algorithms)


def test_winograd_of_many_channels_agrees_with_sums(monkeypatch):
    """Sizes that take the reference engine too long: a matrix unit goes position by position here, in two ranges."""
    layer, threads, gradients = ((1, 44, 45, 300), 290, 3, 1, 1, PADDINGS[0]), mpsnn.num_threads(), []
    inputs = inputs_of(layer)
    try:
        for algorithm, count in [("gemm", 2), ("winograd", 1), ("winograd", 3)]:
            monkeypatch.setenv("MPSNN_CONV", algorithm)
            mpsnn.set_num_threads(count)
            gradients.append(np.array(run_layer("cpu", layer, "fast", inputs)[0]["weight gradient"]))
    finally:
        mpsnn.set_num_threads(threads)
    sums, got, other = gradients
    assert np.array_equal(got, other)
    assert np.linalg.norm(got - sums) / np.linalg.norm(sums) <= 2 * relative_error_bound(3, "fast", 44 * 45)


def test_an_algorithm_that_cannot_do_a_layer_leaves_it_to_another(forced):
    layer = ((1, 8, 8, 16), 16, 3, 1, 1, PADDINGS[0])
    _, algorithms = run_layer("cpu", layer, "fast", inputs_of(layer))
    forward = algorithms[0]
    if forced in ("direct", "patches", "columns"):
        assert f"not {forced}: " in forward
    else:
        assert "MPSNN_CONV" in forward


@pytest.mark.parametrize(("shape", "outputs"), [((5, 40, 41, 16), 24), ((5, 40, 41, 64), 60), ((2, 13, 14, 200), 96)])
def test_the_bits_do_not_depend_on_the_number_of_threads(forced, shape, outputs):
    layer = (shape, outputs, 3, 1, 1, PADDINGS[1])
    inputs, threads, results = inputs_of(layer), mpsnn.num_threads(), []
    try:
        for count in (1, 2, 3, 8):
            mpsnn.set_num_threads(count)
            numbers, _ = run_layer("cpu", layer, "fast", inputs)
            results.append({name: np.asarray(value).tobytes() for name, value in numbers.items()})
    finally:
        mpsnn.set_num_threads(threads)
    assert all(result == results[0] for result in results)


def test_an_empty_batch_has_a_gradient_of_zero(forced):
    layer = ((0, 9, 9, 16), 16, 3, 1, 1, PADDINGS[0])
    numbers, _ = run_layer("cpu", layer, "fast", inputs_of(layer))
    assert numbers["forward"].shape == (0, 9, 9, 16)
    assert not np.any(numbers["weight gradient"])


def test_a_neuron_follows_the_sum(forced):
    """PReLU looks at the channel: it must see whole pixels, in their order."""
    x, slopes = normal(1, 2, 9, 10, 20), np.linspace(-1, 1, 36).astype(np.float32)
    for neuron in (
        mpsnn.MPSNNNeuronDescriptor.cnn_neuron_descriptor(mpsnn.MPSCNNNeuronType.ReLU, 0.25),
        mpsnn.MPSNNNeuronDescriptor.cnn_neuron_p_re_lu_descriptor(slopes),
    ):
        descriptor = mpsnn.MPSCNNConvolutionDescriptor(3, 3, 20, 36)
        descriptor.fused_neuron_descriptor = neuron
        weights = mpsnn.ConvolutionWeights(
            descriptor,
            normal(2, *descriptor.weight_shape).astype(np.float32),
            normal(3, 36).astype(np.float32),
            label="w",
        )
        results = []
        for engine in ("reference", "cpu"):
            network = Network(
                engine, lambda image, weights=weights: mpsnn.MPSCNNConvolutionNode(image, weights), differentiate=False
            )
            results.append(network.run([x]).result)
        error = np.linalg.norm(results[1] - results[0]) / np.linalg.norm(results[0])
        assert error <= relative_error_bound(3, "fast", 20)
