# SPDX-License-Identifier: Apache-2.0
"""Max pooling behind a convolution and its ReLU: what becomes one operation computes the same bits as apart."""

import mpsnn
import numpy as np
import pytest
from engines import Network, evaluate
from geometry_cases import Edge, Method, Padding
from test_fusion import SHAPE, both_ways, convolution, numbers

SAME = Method.SizeSame | Method.AddRemainderToBottomRight
# Name: window, stride, padding.
WINDOWS = {
    "2x2": ((2, 2), (2, 2), Padding()),
    "2x2 inside": ((2, 2), (2, 2), Padding(Method.SizeValidOnly)),
    "2x2 over the edge": ((2, 2), (2, 2), Padding(SAME)),
    "2x2 with zeros": ((2, 2), (2, 2), Padding(SAME, edge=Edge.Zero)),
    "2x2 from -1": ((2, 2), (2, 2), Padding(explicit_y=(1, 0), explicit_x=(1, 0))),
    "2x2 overlapping": ((2, 2), (1, 1), Padding(SAME)),
    "3x3 overlapping": ((3, 3), (2, 2), Padding(SAME)),
    "3x3 full": ((3, 3), (2, 2), Padding(Method.SizeFull, edge=Edge.Zero)),
    "2x3 apart": ((2, 3), (3, 4), Padding()),
    "1x1": ((1, 1), (1, 1), Padding()),
}
# Name: channels of the convolution, image.
LAYERS = {
    "few channels": (6, 6, (3, 13, 11)),
    "winograd": (32, 48, (3, 14, 10)),
    "winograd, odd": (32, 48, (3, 13, 11)),
    "winograd, one tile": (32, 40, (2, 4, 4)),
    "winograd, whole tiles": (64, 64, (2, 16, 12)),
    "deep winograd": (208, 212, (2, 14, 10)),
}


def pooled(layer, window, slope, *, exported=False, read_twice=False, alone=False):
    """A convolution, a ReLU with this slope unless it is None, max pooling, and another convolution unless it is `alone`."""
    inputs, outputs, _ = LAYERS[layer]
    (height, width), (stride_y, stride_x), padding = WINDOWS[window]

    def build(image):
        node = convolution(image, inputs=inputs, outputs=outputs)
        image = node.result_image
        if slope is not None:
            image = mpsnn.MPSCNNNeuronReLUNode(image, slope).result_image
        image.export_from_graph = exported
        pool = mpsnn.MPSCNNPoolingMaxNode(image, width, height, stride_x, stride_y)
        pool.padding_policy = padding.policy()
        last = pool if alone else convolution(pool.result_image, inputs=outputs, outputs=5, kernel=1)
        if read_twice:
            other = mpsnn.MPSCNNPoolingAverageNode(image, width, height, stride_x, stride_y)
            other.padding_policy = padding.policy()
            other = convolution(other.result_image, inputs=outputs, outputs=5, kernel=1)
            last = mpsnn.MPSNNAdditionNode(last.result_image, other.result_image)
        return last, [node]

    return build


def incoming_of(build, images):
    """A gradient for the result."""
    node, _ = build(mpsnn.MPSNNImageNode())
    graph = mpsnn.MPSNNGraph(mpsnn.Device("cpu"), node.result_image)
    shape = graph.plan([images.shape]).operations[-1].result
    sizes = [int(size) for size in str(shape).split(" x ")]
    return np.random.default_rng(16).standard_normal(sizes).astype(np.float32)


# A slope of a power of two: products with it are exact, and so are sums of them whatever came first.
@pytest.mark.parametrize("slope", [None, 0.0, 0.25])
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("layer", LAYERS)
def test_pooling_behind_a_convolution_gives_the_same_bits(monkeypatch, layer, window, slope):
    images = numbers(17, *LAYERS[layer][2], LAYERS[layer][0])
    build = pooled(layer, window, slope)
    _, together = both_ways(monkeypatch, build, [images], incoming_of(build, images))
    assert "Neuron" not in together and "NeuronGradient" not in together
    is_even = all(size % 2 == 0 for size in LAYERS[layer][2][1:])  # else the first window begins in front of the image
    lies_in_tiles = window in ("2x2 inside", "2x2 over the edge", "2x2 with zeros", "1x1") or (
        window == "2x2" and is_even
    )
    assert ("Pooling" in together) == (layer == "few channels" or not lies_in_tiles)


@pytest.mark.parametrize("options", [{"read_twice": True}, {"exported": True}, {"alone": True}], ids=str)
@pytest.mark.parametrize("layer", ["few channels", "winograd"])
def test_pooling_stays_apart_where_others_read_its_source(monkeypatch, layer, options):
    images = numbers(18, *LAYERS[layer][2], LAYERS[layer][0])
    build = pooled(layer, "2x2", 0.0, **options)
    _, together = both_ways(monkeypatch, build, [images], incoming_of(build, images))
    assert ("Pooling" in together) == (layer == "few channels" or "alone" not in options)


@pytest.mark.parametrize("layer", LAYERS)
def test_pooling_without_a_gradient_is_the_convolution_s_too(monkeypatch, layer):
    def build(image):
        inputs, outputs, _ = LAYERS[layer]
        node = convolution(image, inputs=inputs, outputs=outputs)
        return mpsnn.MPSCNNPoolingMaxNode(node.result_image, 2, 2)

    images, results = numbers(22, *LAYERS[layer][2], LAYERS[layer][0]), []
    for fuses in ("0", "1"):
        monkeypatch.setenv("MPSNN_FUSE", fuses)
        network = Network("cpu", build, differentiate=False)
        results.append(network.run([images]).result)
    operations = [row.operation for row in network.graph.plan([images.shape]).operations]
    assert operations == (["Convolution", "Pooling"] if layer in ("few channels", "winograd, odd") else ["Convolution"])
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("layer", ["few channels", "winograd"])
def test_a_gradient_reads_winners_where_nobody_reads_the_maxima(layer):
    """The graph's only result is a gradient: pooling still has to find its winners."""
    images = numbers(23, *LAYERS[layer][2], LAYERS[layer][0])
    build = pooled(layer, "2x2", 0.0, alone=True)
    incoming = incoming_of(build, images)
    node, _ = build(mpsnn.MPSNNImageNode("x"))
    ends = node.training_graph(mpsnn.MPSNNImageNode("incoming"))
    (end,) = [end for end in ends if end.result_image.handle == "x"]
    graph = mpsnn.MPSNNGraph("cpu", end.result_image)
    given = {"x": images, "incoming": incoming}
    got = np.array(graph.run([given[name] for name in graph.source_image_handles]).numpy())
    np.testing.assert_array_equal(got, evaluate("cpu", build, [images], incoming).gradients[0])


def test_a_gradient_that_is_stored_in_halves_reads_the_winners(monkeypatch):
    def build(image):
        node = convolution(image)
        pool = mpsnn.MPSCNNPoolingMaxNode(node.result_image, 2, 2)
        pool.result_image.format = mpsnn.MPSImageFeatureChannelFormat.Float16
        return pool, [node]

    def halves(engine):
        network = Network(engine, build)
        network.graph.format = mpsnn.MPSImageFeatureChannelFormat.Float16
        return network.run([numbers(20, *SHAPE)], incoming)

    incoming = np.random.default_rng(21).standard_normal((3, 3, 4, 6)).astype(np.float16)
    expected, got = halves("reference"), halves("cpu")
    assert np.count_nonzero(got.gradients[0]) > 100
    np.testing.assert_allclose(got.gradients[0], expected.gradients[0], rtol=1e-2, atol=1e-2)


def test_pooled_tiles_give_the_same_bits_for_any_number_of_threads():
    images = numbers(24, 5, 30, 26, 64)
    build = pooled("winograd, whole tiles", "2x2 over the edge", 0.0)
    incoming = np.random.default_rng(25).standard_normal((5, 15, 13, 5))
    threads, results = mpsnn.num_threads(), []
    try:
        for count in (1, 2, 3):
            mpsnn.set_num_threads(count)
            results.append(evaluate("cpu", build, [images], incoming))
    finally:
        mpsnn.set_num_threads(threads)
    for other in results[1:]:
        np.testing.assert_array_equal(other.result, results[0].result)
        np.testing.assert_array_equal(other.gradients[0], results[0].gradients[0])


def normalized(window, slope, channels):
    """Batch normalization, a ReLU with this slope unless it is None, max pooling, a convolution."""
    (height, width), (stride_y, stride_x), padding = WINDOWS[window]

    def build(image):
        values = np.linspace(-1, 2, channels, dtype=np.float32)
        weights = mpsnn.BatchNormalizationWeights(channels)
        weights.set_values(gamma=values, beta=values[::-1].copy() / 3, mean=0 * values, variance=1 + 0 * values)
        image = mpsnn.MPSCNNBatchNormalizationNode(image, weights).result_image
        if slope is not None:
            image = mpsnn.MPSCNNNeuronReLUNode(image, slope).result_image
        pool = mpsnn.MPSCNNPoolingMaxNode(image, width, height, stride_x, stride_y)
        pool.padding_policy = padding.policy()
        last = convolution(pool.result_image, inputs=channels, outputs=5, kernel=1)
        return last, [last]

    return build


@pytest.mark.parametrize("slope", [None, 0.0, 0.1])
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("shape", [(3, 13, 11, 6), (2, 16, 12, 40)], ids=str)
def test_pooling_behind_a_normalization_gives_the_same_bits(monkeypatch, window, slope, shape):
    images, build = numbers(26, *shape), normalized(window, slope, shape[3])
    _, together = both_ways(monkeypatch, build, [images], incoming_of(build, images))
    assert "Pooling" not in together and "BatchNormalization" in together


def test_a_window_of_too_many_lines_is_pooled_apart(monkeypatch):
    images = numbers(27, 1, 40, 90, 64)

    def build(image):
        image = mpsnn.MPSCNNBatchNormalizationNode(image, mpsnn.BatchNormalizationWeights(64)).result_image
        last = convolution(mpsnn.MPSCNNPoolingMaxNode(image, 1, 40, 1, 40).result_image, inputs=64, outputs=5, kernel=1)
        return last, [last]

    _, together = both_ways(monkeypatch, build, [images], incoming_of(build, images))
    assert "Pooling" in together
