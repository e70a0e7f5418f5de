# SPDX-License-Identifier: Apache-2.0
"""Storage formats: what an image keeps of a result, which image has which format, and that gradients read what was kept."""

import mpsnn
import numpy as np
import pytest
from engines import DTYPES, assert_close, normal
from error_cases import caught
from graph_cases import weights
from hypothesis import given, settings
from hypothesis import strategies as st
from mpsnn import MPSImageFeatureChannelFormat as Format
from mpsnn import MPSNNGraph, MPSNNImageNode

ENGINES = pytest.mark.parametrize("engine", ["reference", "cpu"])
FORMATS = pytest.mark.parametrize("format", [Format.Float16, Format.Unorm8, Format.Unorm16], ids=lambda f: f.name)


def kept(format, values):
    """What a pixel of the format keeps, in the values' type."""
    values = np.asarray(values)
    if format == Format.Float16:
        with np.errstate(over="ignore"):
            return values.astype(np.float16).astype(values.dtype)
    most = {Format.Unorm8: 255, Format.Unorm16: 65535}[format]
    steps = np.rint(np.clip(values.astype(np.float64), 0, 1) * most)
    return (steps / most).astype(values.dtype)


def copied(engine, values, format):
    """The values through a node that changes nothing but the format, not even the sign of 0."""
    node = mpsnn.MPSNNReshapeNode(MPSNNImageNode("x"), len(values), 1, 1)
    node.result_image.format = format
    image = np.asarray(values, DTYPES[engine]).reshape(1, 1, -1, 1)
    return np.array(MPSNNGraph(engine, node.result_image).run([image]).numpy()).ravel()


@ENGINES
def test_a_half_is_rounded_to_the_nearest_and_ties_to_even(engine):
    """Ties between halves of 1, of the largest numbers and of those below normal; the last half before infinity."""
    values = [1 + 2**-11, 1 + 3 * 2**-11, 1 + 2**-11 + 2**-20, 2049, 2051, -2049, 65504, 65519, 65520, 1e6, -1e6]
    values += [2**-24, 2**-25, 1.5 * 2**-24, 3 * 2**-25, 2**-26, 2**-14, 2**-14 - 2**-25, 0.0, -0.0, np.inf, -np.inf]
    got = copied(engine, values, Format.Float16)
    expected = kept(Format.Float16, np.array(values, DTYPES[engine]))
    assert got.tobytes() == expected.astype(got.dtype).tobytes()
    assert got[:5].tolist() == [1, 1 + 2**-9, 1 + 2**-10, 2048, 2052]
    assert np.isnan(copied(engine, [np.nan], Format.Float16)).all()


@ENGINES
def test_every_half_is_kept_as_it_is(engine):
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    halves = halves[~np.isnan(halves)].astype(DTYPES[engine])
    assert copied(engine, halves, Format.Float16).tobytes() == halves.tobytes()


@ENGINES
@settings(max_examples=60)
@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=40))
def test_any_number_becomes_numpy_s_half(engine, values):
    got = copied(engine, values, Format.Float16)
    assert got.tobytes() == kept(Format.Float16, np.array(values, got.dtype)).tobytes()


@ENGINES
@pytest.mark.parametrize(("format", "most"), [(Format.Unorm8, 255), (Format.Unorm16, 65535)], ids=["Unorm8", "Unorm16"])
def test_a_fraction_is_clamped_and_kept_in_equal_steps(engine, format, most):
    got = copied(
        engine, [-1, -1e-9, 0, 1, 1.001, 7, np.inf, -np.inf, 0.3 / most, 0.7 / most, (most - 0.6) / most], format
    )
    assert_close(got * most, [0, 0, 0, most, most, most, most, 0, 0, 1, most - 1], most, 2, got.dtype)
    every = np.arange(most + 1) / most
    again = copied(engine, every, format)
    assert_close(again, every, every, 2, again.dtype)
    assert len(np.unique(again)) == most + 1


@ENGINES
@FORMATS
@settings(max_examples=25)
@given(st.integers(0, 2**16))
def test_random_results_are_kept_to_the_nearest_step(engine, format, seed):
    values = np.random.default_rng(seed).uniform(-0.5, 1.5, 200).astype(np.float32)
    if format != Format.Float16:  # rounding decides at half a step
        most = 255 if format == Format.Unorm8 else 65535
        at = values.astype(np.float64) * most
        values = values[np.abs(at - np.floor(at) - 0.5) > 2**-6]
    got = copied(engine, values, format)
    expected = kept(format, values.astype(got.dtype))
    assert_close(got, expected, 0 if format == Format.Float16 else 1, 2, got.dtype)


def chain(engine, first_format=None, last_format=None, graph_format=None):
    """x -> convolution -> tanh; both results."""
    conv = mpsnn.MPSCNNConvolutionNode(MPSNNImageNode("x"), weights(3, 4))
    last = mpsnn.MPSCNNNeuronTanHNode(conv.result_image, 1.0, 1.0)
    if first_format is not None:
        conv.result_image.format = first_format
    if last_format is not None:
        last.result_image.format = last_format
    conv.result_image.export_from_graph = True
    graph, exports = MPSNNGraph(engine, last.result_image), []
    if graph_format is not None:
        graph.format = graph_format
    image = normal(0, 2, 5, 6, 3).astype(DTYPES[engine])
    result = graph.run([image], intermediate_images=exports)
    return np.array(exports[0].numpy()), np.array(result.numpy())


def tanh_of(engine, image):
    node = mpsnn.MPSCNNNeuronTanHNode(MPSNNImageNode("x"), 1.0, 1.0)
    return np.array(MPSNNGraph(engine, node.result_image).run([np.ascontiguousarray(image)]).numpy())


@ENGINES
@FORMATS
def test_the_next_node_reads_what_was_kept_and_so_does_an_export(engine, format):
    exact, _ = chain(engine)
    stored, result = chain(engine, first_format=format)
    assert stored.tobytes() == kept(format, exact).tobytes()
    assert result.tobytes() == tanh_of(engine, stored).tobytes()
    assert (stored != exact).any()


@ENGINES
@FORMATS
def test_the_graph_s_format_is_that_of_images_without_one(engine, format):
    by_node = chain(engine, format, format)
    by_graph = chain(engine, graph_format=format)
    assert [a.tobytes() for a in by_node] == [b.tobytes() for b in by_graph]
    exact = chain(engine)
    mixed = chain(engine, Format.Float32, graph_format=format)
    assert mixed[0].tobytes() == exact[0].tobytes()
    assert mixed[1].tobytes() == kept(format, exact[1]).tobytes()


@ENGINES
def test_a_format_set_between_two_runs_counts_from_the_next_one(engine):
    node = mpsnn.MPSCNNNeuronLinearNode(MPSNNImageNode("x"), 1.0, 0.0)
    graph, image = MPSNNGraph(engine, node.result_image), normal(0, 1, 2, 3, 4).astype(DTYPES[engine])
    assert (graph.run([image]).numpy() == image).all()
    graph.format = Format.Float16
    assert (graph.run([image]).numpy() == kept(Format.Float16, image)).all()
    graph.format = Format.Float32
    assert (graph.run([image]).numpy() == image).all()


def test_a_result_starts_with_the_format_of_its_first_source():
    """MPS_SEMANTICS 3.1."""
    x, y = MPSNNImageNode("x"), MPSNNImageNode("y")
    x.format, y.format = Format.Float16, Format.Unorm8
    assert mpsnn.MPSNNAdditionNode(x, y).result_image.format == Format.Float16
    assert mpsnn.MPSNNAdditionNode(MPSNNImageNode(), y).result_image.format == MPSNNImageNode().format


@ENGINES
def test_a_gradient_that_needs_the_result_reads_what_was_kept(engine):
    """Soft-max: y * (E - sum of E * y), with y in halves."""
    dtype, x, incoming = DTYPES[engine], normal(0, 2, 3, 4, 5), normal(1, 2, 3, 4, 5)
    node = mpsnn.MPSCNNSoftMaxNode(MPSNNImageNode("x"))
    node.result_image.format = Format.Float16
    gradient = node.gradient_filter(MPSNNImageNode("e"))
    gradient.result_image.format = Format.Float32
    graph = MPSNNGraph(engine, [node.result_image, gradient.result_image])
    images = {"x": x.astype(dtype), "e": incoming.astype(dtype)}
    y, got = (image.numpy() for image in graph.run([images[name] for name in graph.source_image_handles]))
    assert (y == kept(Format.Float16, y)).all()
    expected = y * (incoming - (incoming * y).sum(axis=3, keepdims=True).astype(np.float64))
    size = y * (np.abs(incoming) + (np.abs(incoming) * y).sum(axis=3, keepdims=True))
    assert_close(got, expected, size, 8, dtype)


@ENGINES
def test_a_gradient_that_needs_the_source_reads_what_was_kept(engine):
    """a = 0.3 x in halves, a * a: the gradient of x is 2 a E * 0.3."""
    dtype, x, incoming = DTYPES[engine], normal(0, 2, 3, 4, 5), normal(1, 2, 3, 4, 5)
    first = mpsnn.MPSCNNNeuronLinearNode(MPSNNImageNode("x"), 0.3, 0.0)
    first.result_image.format = Format.Float16
    square = mpsnn.MPSNNMultiplicationNode(first.result_image, first.result_image)
    square.result_image.format = Format.Float32
    start = MPSNNImageNode("e")
    start.format = Format.Float32
    (end,) = square.training_graph(start)
    graph = MPSNNGraph(engine, [first.result_image, end.result_image])
    images = {"x": x.astype(dtype), "e": incoming.astype(dtype)}
    a, got = (image.numpy() for image in graph.run([images[name] for name in graph.source_image_handles]))
    assert a.tobytes() == kept(Format.Float16, (np.float32(0.3).astype(dtype) * x.astype(dtype))).tobytes()
    expected = 2 * a.astype(np.float64) * incoming * np.float64(np.float32(0.3))
    assert_close(got, expected, np.abs(expected), 8, dtype)


@ENGINES
@FORMATS
def test_gradient_images_have_formats_too(engine, format):
    """The sample sets them to Float32 because small gradients underflow in halves."""
    node = mpsnn.MPSCNNNeuronLinearNode(MPSNNImageNode("x"), 0.3, 0.0)
    gradient = node.gradient_filter(MPSNNImageNode("e"))
    graph = MPSNNGraph(engine, gradient.result_image)
    dtype, images = DTYPES[engine], {"x": normal(0, 1, 2, 3, 4), "e": normal(1, 1, 2, 3, 4)}
    arrays = [images[name].astype(dtype) for name in graph.source_image_handles]
    exact = np.array(graph.run(arrays).numpy())
    graph.format = format
    assert graph.run(arrays).numpy().tobytes() == kept(format, exact).tobytes()


@ENGINES
@FORMATS
def test_an_empty_batch_stays_empty(engine, format):
    node = mpsnn.MPSCNNNeuronLinearNode(MPSNNImageNode("x"), 1.0, 0.0)
    node.result_image.format = format
    assert MPSNNGraph(engine, node.result_image).run([np.zeros((0, 2, 3, 4), DTYPES[engine])]).numpy().shape == (
        0,
        2,
        3,
        4,
    )


@ENGINES
@FORMATS
def test_formats_are_saved(engine, format, tmp_path):
    conv = mpsnn.MPSCNNConvolutionNode(MPSNNImageNode("x"), weights(3, 4))
    conv.result_image.format = format
    graph = MPSNNGraph(engine, mpsnn.MPSCNNSoftMaxNode(conv.result_image).result_image)
    graph.save(str(tmp_path / "g"))
    loaded = MPSNNGraph.load(str(tmp_path / "g"), engine, [conv.weights])
    image = normal(0, 2, 5, 6, 3).astype(DTYPES[engine])
    assert graph.run([image]).numpy().tobytes() == loaded.run([image]).numpy().tobytes()


@pytest.mark.parametrize("format", [Format._reserved0, Format.Count], ids=lambda f: f.name)
@pytest.mark.parametrize("of_graph", [False, True])
def test_a_format_that_is_not_there_names_the_node(format, of_graph):
    node = mpsnn.MPSCNNNeuronReLUNode(MPSNNImageNode(), 0.0)
    node.label = "culprit"
    graph = MPSNNGraph("cpu", node.result_image)
    if of_graph:
        graph.format = format
    else:
        node.result_image.format = format
    call = lambda: graph.run([np.zeros((1, 2, 2, 1), np.float32)])
    caught(
        mpsnn.OptionError, call, "unknown format", "Float16 or Float32", label="culprit", node="MPSCNNNeuronReLUNode"
    )
