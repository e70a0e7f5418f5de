# SPDX-License-Identifier: Apache-2.0
"""Operations that the cpu engine makes one of two: the same numbers as apart and as on the reference engine."""

import mpsnn
import numpy as np
import pytest
from engines import Network, assert_close
from winograd_error import fast_amplification

SHAPE = (3, 5, 7, 6)
NORMALIZATION, NEURON = "BatchNormalization", "Neuron"


def normalized_relu(slope, exported=False, read_twice=False):
    def build(image):
        weights = mpsnn.BatchNormalizationWeights(SHAPE[3])
        values = np.linspace(-1, 2, SHAPE[3], dtype=np.float32)
        weights.set_values(gamma=values, beta=values[::-1].copy() / 3, mean=0 * values, variance=1 + 0 * values)
        node = mpsnn.MPSCNNBatchNormalizationNode(image, weights)
        node.result_image.export_from_graph = exported
        relu = mpsnn.MPSCNNNeuronReLUNode(node.result_image, slope)
        if not read_twice:
            return relu, [node]
        return mpsnn.MPSNNAdditionNode(relu.result_image, node.result_image), [node]

    return build


def run(engine, build, images, incoming):
    network = Network(engine, build)
    given = {"input 0": images[0].shape, "incoming": incoming.shape}
    shapes = [given[name] for name in network.graph.source_image_handles]
    return network.run(images, incoming), [row.operation for row in network.graph.plan(shapes).operations]


@pytest.mark.parametrize("slope", [0.0, 0.1])
@pytest.mark.parametrize(
    "options", [{}, {"exported": True}, {"read_twice": True}], ids=["plain", "exported", "read twice"]
)
def test_normalization_and_relu_are_fused_where_nobody_else_reads_between(monkeypatch, slope, options):
    random = np.random.default_rng(3)
    images, incoming = [random.standard_normal(SHAPE)], random.standard_normal(SHAPE)
    build = normalized_relu(slope, **options)
    expected, _ = run("reference", build, images, incoming)
    for fuses in ("1", "0"):
        monkeypatch.setenv("MPSNN_FUSE", fuses)
        got, operations = run("cpu", build, images, incoming)
        assert (NEURON in operations) == (fuses == "0" or bool(options))
        assert NORMALIZATION in operations
        pixels = np.prod(SHAPE[:3])
        assert_close(got.result, expected.result, np.abs(expected.result).max(), 16)
        gradient = expected.gradients[0]
        assert_close(got.gradients[0], gradient, np.abs(gradient).max() * 4, pixels)
        for name in ("gradient_for_gamma", "gradient_for_beta"):
            sums = getattr(expected.states[0], name)
            assert_close(getattr(got.states[0], name), sums, np.abs(incoming).sum() / SHAPE[3], 4, what=name)


def test_a_fused_step_gives_the_same_bits_for_any_number_of_threads():
    random = np.random.default_rng(4)
    images, incoming = [random.standard_normal(SHAPE)], random.standard_normal(SHAPE)
    threads, results = mpsnn.num_threads(), []
    try:
        for count in (1, 2, 3):
            mpsnn.set_num_threads(count)
            results.append(run("cpu", normalized_relu(0.0), images, incoming)[0])
    finally:
        mpsnn.set_num_threads(threads)
    for result in results[1:]:
        np.testing.assert_array_equal(result.gradients[0], results[0].gradients[0])
        np.testing.assert_array_equal(result.result, results[0].result)


# --- convolution and ReLU, plain sums, results in place


def convolution(image, outputs=6, kernel=3, groups=1, is_transposed=False, inputs=SHAPE[3]):
    descriptor = mpsnn.MPSCNNConvolutionDescriptor(kernel, kernel, inputs, outputs, groups=groups)
    if groups == inputs:
        descriptor = mpsnn.MPSCNNDepthWiseConvolutionDescriptor(kernel, kernel, inputs, outputs)
    weights = mpsnn.ConvolutionWeights(descriptor, initializer="he", seed=5)
    make = mpsnn.MPSCNNConvolutionTransposeNode if is_transposed else mpsnn.MPSCNNConvolutionNode
    return make(image, weights)


def rectified(slope, behind=None, **options):
    def build(image):
        node = convolution(image, **options)
        relu = mpsnn.MPSCNNNeuronReLUNode(node.result_image, slope)
        last = (
            behind(node.result_image, relu.result_image)
            if behind
            else mpsnn.MPSCNNPoolingMaxNode(relu.result_image, 2, 2)
        )
        return last, [node]

    return build


def both_ways(monkeypatch, build, images, incoming):
    """Operations of the fused plan, after checking that it computes what the unfused one does: the same bits but for the signs of
    zeros."""
    results = {}
    for fuses in ("0", "1"):
        monkeypatch.setenv("MPSNN_FUSE", fuses)
        results[fuses] = run("cpu", build, images, incoming)
    (expected, apart), (got, together) = results["0"], results["1"]
    np.testing.assert_array_equal(got.result, expected.result)
    np.testing.assert_array_equal(got.gradients[0], expected.gradients[0])
    for state, other in zip(got.states, expected.states, strict=True):
        np.testing.assert_array_equal(state.gradient_for_weights, other.gradient_for_weights)
        np.testing.assert_array_equal(state.gradient_for_biases, other.gradient_for_biases)
    return apart, together


def numbers(seed, *shape):
    """Half of the pixels are 0 in all channels: there a convolution without bias gives exact zeros, where the slope is 1."""
    random = np.random.default_rng(seed)
    values = random.standard_normal(shape).astype(np.float32)
    values[:, : shape[1] // 2] = 0
    return values


LAYERS = {
    "plain": {},
    "winograd": {"outputs": 32, "inputs": 32},
    "deep winograd": {"outputs": 208, "inputs": 208},
    "depthwise": {"groups": 6},
    "1x1": {"kernel": 1},
    "groups": {"groups": 2},
    "transposed": {"is_transposed": True},
}


@pytest.mark.parametrize("slope", [0.0, 0.1])
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("algorithm", ["", "gemm"])
def test_a_relu_behind_a_convolution_is_its_neuron(monkeypatch, slope, layer, algorithm):
    monkeypatch.setenv("MPSNN_CONV", algorithm)
    options = LAYERS[layer]
    images = numbers(1, 3, 12, 10, options.get("inputs", SHAPE[3]))
    incoming = np.random.default_rng(2).standard_normal((3, 6, 5, options.get("outputs", 6)))
    apart, together = both_ways(monkeypatch, rectified(slope, **options), [images], incoming)
    assert NEURON in apart and NEURON not in together
    # The slope is that of the pooled value, which comes first; nobody in front of it could have it.
    assert apart.index("NeuronGradient") > apart.index("PoolingGradient")
    assert together.index("NeuronGradient") < together.index("PoolingGradient")


def test_a_relu_stays_apart_where_others_would_see_the_difference(monkeypatch):
    images, incoming = [numbers(3, *SHAPE)], np.random.default_rng(4).standard_normal(SHAPE)
    pool = mpsnn.MPSCNNPoolingMaxNode
    cases = {
        "somebody else reads x": rectified(0.0, lambda x, y: mpsnn.MPSNNAdditionNode(y, x)),
        "a negative slope hides the sign": rectified(-0.5, lambda x, y: pool(y, 1, 1)),
    }
    for name, build in cases.items():
        _, together = both_ways(monkeypatch, build, images, incoming)
        assert NEURON in together, name


def residual(image):
    node = convolution(image)
    total = mpsnn.MPSNNAdditionNode(mpsnn.MPSCNNNeuronReLUNode(node.result_image, 0.0).result_image, image)
    return mpsnn.MPSCNNNeuronReLUNode(total.result_image, 0.0), [node]


def test_the_gradient_of_a_sum_is_what_comes_in(monkeypatch):
    images, incoming = [numbers(5, *SHAPE)], np.random.default_rng(6).standard_normal(SHAPE)
    apart, together = both_ways(monkeypatch, residual, images, incoming)
    assert "ArithmeticGradient" in apart and "ArithmeticGradient" not in together


def test_element_wise_operations_write_where_they_read(monkeypatch):
    def chain(image):
        node = mpsnn.MPSCNNNeuronSigmoidNode(image)
        for _ in range(4):
            node = mpsnn.MPSCNNNeuronSigmoidNode(node.result_image)
        return node

    sizes = {}
    for fuses in ("0", "1"):
        monkeypatch.setenv("MPSNN_FUSE", fuses)
        network = Network("cpu", chain, differentiate=False)
        sizes[fuses] = network.graph.plan([(1, 64, 64, 16)]).arena_bytes
    assert sizes == {"0": 2 * 64 * 64 * 16 * 4, "1": 64 * 64 * 16 * 4}


# --- what follows a convolution, or its data gradient, while pixels are in the cache

STATISTICS = "BatchNormalizationStatistics"


def chain(*, shared=False, **options):
    """A normalized convolution between two neurons, in front of the graph's end; `shared`: another node reads the first neuron's result."""

    def build(image):
        channels = options.get("inputs", SHAPE[3])
        first = convolution(image, outputs=channels, kernel=1, inputs=channels)
        tanh = mpsnn.MPSCNNNeuronTanHNode(first.result_image)
        node = convolution(tanh.result_image, **options)
        outputs = options.get("outputs", 6)
        normalized = mpsnn.MPSCNNBatchNormalizationNode(node.result_image, mpsnn.BatchNormalizationWeights(outputs))
        last = mpsnn.MPSCNNNeuronSigmoidNode(normalized.result_image)
        if shared:
            last = mpsnn.MPSNNAdditionNode(last.result_image, tanh.result_image)
        return last, [node, normalized]

    return build


def normalized_chain(images, incoming, **options):
    """Evaluations of the cpu engine, fused and not, and of the reference engine; and the fused plan's operations."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MPSNN_FUSE", "0")
        apart, operations = run("cpu", chain(**options), images, incoming)
        assert STATISTICS in operations
        patch.setenv("MPSNN_FUSE", "1")
        together, operations = run("cpu", chain(**options), images, incoming)
    expected, _ = run("reference", chain(**options), images, incoming)
    return apart, together, expected, operations


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("algorithm", ["", "gemm"])
@pytest.mark.parametrize("images", [0, 1, 3])
def test_convolutions_sum_statistics_and_apply_slopes(monkeypatch, layer, algorithm, images):
    monkeypatch.setenv("MPSNN_CONV", algorithm)
    options = LAYERS[layer]
    random = np.random.default_rng(8)
    source = random.standard_normal((images, 13, 11, options.get("inputs", SHAPE[3])))
    incoming = random.standard_normal((images, 13, 11, options.get("outputs", 6)))
    apart, together, expected, operations = normalized_chain([source], incoming, **options)
    assert STATISTICS not in operations
    assert operations.count("NeuronGradient") == 1  # of the last neuron; the first one's is the data gradient's
    # What sums of a convolution's terms and of all pixels may be off, as Winograd's algorithm enlarges it.
    terms = max(images * 13 * 11, 9 * options.get("inputs", SHAPE[3]))
    amplification = fast_amplification(3) if algorithm == "" and options.get("kernel", 3) == 3 else 1
    for name in ("mean", "variance"):
        values = getattr(expected.states[1], name)
        assert_close(getattr(together.states[1], name), values, np.abs(values).max() + 1, terms, what=name)
    for got in (apart, together):
        assert_close(got.result, expected.result, amplification, terms)
        gradient = expected.gradients[0]
        scale = np.abs(gradient).max(initial=0) * 8 * amplification
        assert_close(got.gradients[0], gradient, scale, terms, what="gradient")


def test_a_slope_goes_to_the_sum_where_others_add_to_the_gradient():
    random = np.random.default_rng(9)
    source, incoming = random.standard_normal(SHAPE), random.standard_normal(SHAPE)
    _, together, expected, operations = normalized_chain([source], incoming, shared=True)
    assert operations.count("NeuronGradient") == 1 and "Arithmetic" in operations
    gradient = expected.gradients[0]
    assert_close(together.gradients[0], gradient, np.abs(gradient).max() * 8, np.prod(SHAPE[:3]))


@pytest.mark.parametrize("mean", [0.0, 300.0])
def test_statistics_of_a_convolution_stand_a_mean_far_from_zero(mean):
    def build(image):
        node = convolution(image, kernel=1, groups=6)
        node = mpsnn.MPSCNNBatchNormalizationNode(node.result_image, mpsnn.BatchNormalizationWeights(6))
        return node, [node]

    random = np.random.default_rng(10)
    images, incoming = [random.standard_normal((4, 40, 40, 6)) + mean], random.standard_normal((4, 40, 40, 6))
    got, operations = run("cpu", build, images, incoming)
    expected, _ = run("reference", build, images, incoming)
    assert STATISTICS not in operations
    # Each number is off by half an epsilon of the mean at most, which is as good as random beside the deviations.
    variance = expected.states[0].variance
    scale = variance + np.abs(expected.states[0].mean) * np.sqrt(variance) / np.sqrt(4 * 40 * 40)
    assert_close(got.states[0].variance, variance, scale, 64, what="variance")


@pytest.mark.parametrize("layer", LAYERS)
def test_epilogues_give_the_same_bits_for_any_number_of_threads(layer):
    options = LAYERS[layer]
    random = np.random.default_rng(11)
    images = [random.standard_normal((2, 30, 29, options.get("inputs", SHAPE[3])))]
    incoming = random.standard_normal((2, 30, 29, options.get("outputs", 6)))
    threads, results = mpsnn.num_threads(), []
    try:
        for count in (1, 2, 3):
            mpsnn.set_num_threads(count)
            results.append(run("cpu", chain(**options), images, incoming)[0])
    finally:
        mpsnn.set_num_threads(threads)
    for result in results[1:]:
        np.testing.assert_array_equal(result.gradients[0], results[0].gradients[0])
        np.testing.assert_array_equal(result.states[1].variance, results[0].states[1].variance)


def residual_block(image):
    """A sum and its neuron between convolutions; the neuron's result is read twice, so that its gradient is a sum as well."""
    first = convolution(image)
    relu = mpsnn.MPSCNNNeuronReLUNode(mpsnn.MPSNNAdditionNode(first.result_image, image).result_image, 0.0)
    second = convolution(relu.result_image)
    return mpsnn.MPSNNAdditionNode(second.result_image, relu.result_image), [first, second]


def test_a_sum_has_a_neuron_and_a_sum_of_gradients_its_slope(monkeypatch):
    images, incoming = [numbers(12, *SHAPE)], np.random.default_rng(13).standard_normal(SHAPE)
    apart, together = both_ways(monkeypatch, residual_block, images, incoming)
    assert NEURON in apart and NEURON not in together
    assert "NeuronGradient" in apart and "NeuronGradient" not in together


@pytest.mark.parametrize(
    "pool", [mpsnn.MPSCNNPoolingMaxNode, mpsnn.MPSCNNPoolingAverageNode, mpsnn.MPSCNNPoolingL2NormNode]
)
@pytest.mark.parametrize("shape", [SHAPE, (1, 3, 4, 700)], ids=["rows", "slices of channels"])
def test_the_gradient_of_pooling_has_the_slope_of_the_neuron_in_front(monkeypatch, pool, shape):
    def build(image):
        node = convolution(image, outputs=shape[3], kernel=1, inputs=shape[3])
        return pool(mpsnn.MPSCNNNeuronTanHNode(node.result_image).result_image, 3, 3, 2, 2), [node]

    images = [numbers(14, *shape)]
    incoming = np.random.default_rng(15).standard_normal((shape[0], (shape[1] + 1) // 2, (shape[2] + 1) // 2, shape[3]))
    apart, together = both_ways(monkeypatch, build, images, incoming)
    assert "NeuronGradient" in apart and "NeuronGradient" not in together
