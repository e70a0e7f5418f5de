# SPDX-License-Identifier: Apache-2.0
"""What MPSNNGraph, images and their allocators have of Apple's API, beside encode."""

import mpsnn
import pytest
from api_facts import FACTS, image, loss_descriptor, make, snake


def test_properties_of_the_graph():
    graph = mpsnn.MPSNNGraph("cpu", make("MPSCNNPoolingMaxNode").result_image)
    for fact in next(c for c in FACTS["classes"] if c["name"] == "MPSNNGraph")["properties"]:
        before = getattr(graph, snake(fact["name"]))
        if fact["readonly"]:
            with pytest.raises(AttributeError):
                setattr(graph, snake(fact["name"]), before)
        else:
            setattr(graph, snake(fact["name"]), before)
    assert graph.destination_image_allocator is mpsnn.MPSImage.default_allocator()
    with pytest.raises(mpsnn.OptionError):
        graph.destination_image_allocator = None


def test_an_encode_reads_each_input_once_however_many_nodes_read_it():
    source, labels = image(), image("labels")
    total = mpsnn.MPSNNAdditionNode(
        mpsnn.MPSCNNNeuronReLUNode(source).result_image, mpsnn.MPSNNMultiplicationNode(source, source).result_image
    )
    loss = mpsnn.MPSCNNLossNode(mpsnn.MPSNNSubtractionNode(total.result_image, labels).result_image, loss_descriptor())
    graph = mpsnn.MPSNNGraph("cpu", loss.result_image)
    assert graph.source_image_handles == ["image", "labels"]
    assert [graph.read_count_for_source_image_at_index(i) for i in range(2)] == [1, 1]
    assert graph.read_count_for_source_state_at_index(0) == 1
    for method in (graph.read_count_for_source_image_at_index, graph.read_count_for_source_state_at_index):
        with pytest.raises(mpsnn.GraphError):
            method(2)


def test_the_allocator_of_an_image_survives_saving(tmp_path):
    source = image()
    source.image_allocator = mpsnn.MPSImage.default_allocator()
    node = mpsnn.MPSCNNNeuronReLUNode(source)
    mpsnn.MPSNNGraph("cpu", node.result_image).save(str(tmp_path / "graph.safetensors"))
    result = mpsnn.load_result_images(str(tmp_path / "graph.safetensors"))[0]
    assert result.image_allocator is mpsnn.MPSTemporaryImage.default_allocator()
    assert mpsnn.MPSNNGraph("cpu", result).nodes[0].sources[0].image_allocator is mpsnn.MPSImage.default_allocator()
    with pytest.raises(mpsnn.OptionError):
        source.image_allocator = None
