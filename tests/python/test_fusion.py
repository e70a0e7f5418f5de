# SPDX-License-Identifier: Apache-2.0
"""Operations that the cpu engine makes one of two: the same numbers as apart and as on the reference engine."""

import mpsnn
import numpy as np
import pytest
from engines import Network, assert_close

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
    operations = [
        row.operation for row in network.graph.plan([SHAPE] * len(network.graph.source_image_handles)).operations
    ]
    return network.run(images, incoming), operations


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
