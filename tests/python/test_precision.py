# SPDX-License-Identifier: Apache-2.0
"""``graph.precision``: what convolutions may trade for speed, and that it is saved with the graph."""

import mpsnn
import numpy as np
import pytest


def graph_of_one_convolution():
    descriptor = mpsnn.MPSCNNConvolutionDescriptor(3, 3, 16, 16)
    weights = np.ones(descriptor.weight_shape, np.float32)
    source = mpsnn.ConvolutionWeights(descriptor, weights, None, label="weights")
    node = mpsnn.MPSCNNConvolutionNode(mpsnn.MPSNNImageNode("x"), source)
    return mpsnn.MPSNNGraph("cpu", node.result_image), source


def test_a_graph_is_fast_unless_it_is_asked_to_be_strict():
    graph, _ = graph_of_one_convolution()
    assert graph.precision == "fast"
    graph.precision = "strict"
    assert graph.precision == "strict"
    with pytest.raises(mpsnn.OptionError, match='"fast" or "strict"'):
        graph.precision = "exact"
    assert graph.precision == "strict"


@pytest.mark.parametrize("precision", ["fast", "strict"])
def test_precision_is_part_of_the_saved_contract(precision, tmp_path):
    graph, _ = graph_of_one_convolution()
    graph.precision = precision
    path = tmp_path / "graph.safetensors"
    graph.save(path)
    assert mpsnn.MPSNNGraph.load(path, "cpu").precision == precision
    tensors, metadata = mpsnn.read_safetensors(path)
    for damaged in (f'"{precision}"', '"exact"'), ('"precision"', '"precisions"'):
        assert damaged[0] in metadata["mpsnn"]
        mpsnn.write_safetensors(tmp_path / "damaged", tensors, {"mpsnn": metadata["mpsnn"].replace(*damaged)})
        with pytest.raises(mpsnn.FileError, match="precision"):
            mpsnn.MPSNNGraph.load(tmp_path / "damaged", "cpu")


def test_a_plan_says_how_a_convolution_is_computed_and_why():
    graph, _ = graph_of_one_convolution()
    (operation,) = graph.plan([(1, 28, 28, 16)]).operations
    assert "Mcycles" in operation.reason or "MPSNN_CONV" in operation.reason
