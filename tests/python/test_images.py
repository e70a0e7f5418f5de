# SPDX-License-Identifier: Apache-2.0
"""Arrays go in and come out without a copy, and memory lives as long as somebody looks at it."""

import gc
import logging
import weakref

import mpsnn
import numpy as np
import pytest
from graph_cases import ENGINES, numbers
from mpsnn import MPSImage


def address(array):
    return array.__array_interface__["data"][0]


def relu_graph(engine="cpu"):
    return mpsnn.MPSNNGraph(engine, mpsnn.MPSCNNNeuronReLUNode(mpsnn.MPSNNImageNode("x"), 0.0).result_image)


def test_a_contiguous_float32_array_goes_in_and_comes_out_at_the_same_address(caplog):
    caplog.set_level(logging.DEBUG, "mpsnn")
    array = numbers(2, 3, 4, 5)
    image = MPSImage(array)
    assert image.shape == (2, 3, 4, 5)
    assert (image.number_of_images, image.height, image.width, image.feature_channels) == (2, 3, 4, 5)
    for view in (image.numpy(), np.asarray(image), np.from_dlpack(image), np.asarray(memoryview(image))):
        assert address(view) == address(array)
        assert view.shape == array.shape
    assert caplog.records == []
    array[0, 0, 0, 0] = 7
    assert image.numpy()[0, 0, 0, 0] == 7


def test_a_result_comes_out_at_the_address_that_the_graph_wrote_to():
    result = relu_graph().run([numbers(1, 2, 2, 1)])
    assert address(result.numpy()) == address(np.asarray(result)) == address(np.from_dlpack(result))
    result.numpy()[...] = 5
    assert np.asarray(result).min() == 5


def test_the_graph_reads_the_callers_memory_when_the_command_buffer_runs():
    graph, array = relu_graph(), np.full((1, 2, 2, 1), -1, np.float32)
    buffer = mpsnn.CommandQueue("cpu").command_buffer()
    result = graph.encode(buffer, [array])
    array[...] = 3
    buffer.commit()
    buffer.wait_until_completed()
    np.testing.assert_array_equal(result, array)


def test_torch_tensors_share_memory_both_ways():
    torch = pytest.importorskip("torch", reason="shares memory with PyTorch, which is not installed")
    tensor = torch.randn(2, 3, 4, 5)
    image = MPSImage(tensor)
    assert address(image.numpy()) == tensor.data_ptr()
    back = torch.from_dlpack(image)
    assert back.data_ptr() == tensor.data_ptr()
    assert tuple(back.shape) == (2, 3, 4, 5)
    result = relu_graph().run([tensor])
    assert torch.from_dlpack(result).data_ptr() == address(result.numpy())
    assert torch.equal(torch.from_dlpack(result), tensor.relu())


def test_a_torch_view_keeps_the_result_alive():
    torch = pytest.importorskip("torch", reason="shares memory with PyTorch, which is not installed")
    graph, array = relu_graph(), numbers(1, 4, 4, 2)
    view = torch.from_dlpack(graph.run([array]))
    del graph
    gc.collect()
    np.testing.assert_array_equal(view.numpy(), np.maximum(array, 0))


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a.transpose(0, 2, 1, 3),
        lambda a: a[:, ::2],
        lambda a: a[..., ::-1],
        lambda a: np.asfortranarray(a),
        lambda a: a.astype(np.float16),
        lambda a: a.astype(np.int32),
        lambda a: (a * 50).astype(np.uint8),
        lambda a: a > 0,
        lambda a: a.astype(">f4"),
    ],
    ids=["transposed", "strided", "reversed", "fortran", "float16", "int32", "uint8", "bool", "big-endian"],
)
def test_other_arrays_are_copied_with_their_values_and_the_log_says_so(change, caplog):
    caplog.set_level(logging.INFO, "mpsnn")
    array = change(np.abs(numbers(2, 4, 3, 2)))
    image = MPSImage(array)
    assert not np.shares_memory(image.numpy(), array)
    assert image.numpy().dtype == np.float32
    np.testing.assert_array_equal(image, array.astype(np.float32))
    (entry,) = [record for record in caplog.records if record.name == "mpsnn"]
    assert "copied" in entry.getMessage()
    assert str(array.dtype) in entry.getMessage()


def test_float64_arrays_keep_their_precision(caplog):
    caplog.set_level(logging.INFO, "mpsnn")
    array = numbers(1, 2, 2, 1).astype(np.float64) + 2.0**-40
    image = MPSImage(array)
    assert address(image.numpy()) == address(array)
    np.testing.assert_array_equal(relu_graph("reference").run([array]), np.maximum(array, 0))
    assert relu_graph("cpu").run([array]).numpy().dtype == np.float32
    assert caplog.records == []


@pytest.mark.parametrize("shape", [(), (4,), (2, 2), (28, 28, 1), (1, 1, 1, 1, 1)])
def test_an_image_of_other_than_four_dimensions_is_refused_with_its_shape(shape):
    with pytest.raises(mpsnn.ShapeError) as caught:
        MPSImage(np.zeros(shape, np.float32))
    assert caught.value.expected == "N x H x W x C"
    assert caught.value.actual == str(list(shape))
    assert str(list(shape)) in str(caught.value)


@pytest.mark.parametrize(
    "thing",
    [np.array([[[["a"]]]]), np.array([[[[object()]]]]), np.ones((1, 1, 1, 1), complex), None, "text"],
    ids=["strings", "objects", "complex", "none", "str"],
)
def test_what_is_no_array_of_real_numbers_is_refused(thing):
    with pytest.raises(mpsnn.OptionError, match="array of numbers") as caught:
        MPSImage(thing)
    assert caught.value.actual


def test_sources_must_be_a_list():
    with pytest.raises(mpsnn.OptionError, match="must be a list"):
        relu_graph().run(numbers(1, 2, 2, 1))


def test_an_image_keeps_its_array_alive():
    array = numbers(1, 2, 2, 1)
    expected, alive = array.copy(), weakref.ref(array)
    image = MPSImage(array)
    del array
    gc.collect()
    assert alive() is not None
    np.testing.assert_array_equal(image, expected)
    del image
    gc.collect()
    assert alive() is None


def test_a_view_outlives_image_and_graph():
    graph, array = relu_graph(), numbers(1, 8, 8, 3)
    view = graph.run([array]).numpy()
    del graph
    gc.collect()
    trash = [np.full((1, 8, 8, 3), 9, np.float32) for _ in range(50)]  # would land in freed memory
    np.testing.assert_array_equal(view, np.maximum(array, 0))
    assert len(trash) == 50


def test_a_memory_view_keeps_the_image_alive():
    array = numbers(1, 2, 3, 1)
    view = memoryview(relu_graph().run([array]))
    gc.collect()
    assert (view.shape, view.format, view.c_contiguous) == ((1, 2, 3, 1), "f", True)
    np.testing.assert_array_equal(view, np.maximum(array, 0))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_result_that_is_held_is_never_written_again(engine):
    graph = relu_graph(engine)
    inputs = [numbers(1, 3, 3, 2, seed=i) for i in range(5)]
    results = [graph.run([array]) for array in inputs]
    views = [graph.run([array]).numpy() for array in inputs]  # the image itself is let go of
    assert len({address(r.numpy()) for r in results} | {address(v) for v in views}) == 10
    for array, result, view in zip(inputs, results, views, strict=True):
        np.testing.assert_array_equal(result, np.maximum(array, 0))
        np.testing.assert_array_equal(view, np.maximum(array, 0))


def test_a_result_that_was_let_go_of_is_used_again():
    graph, seen = relu_graph(), set()
    for i in range(10):
        result = graph.run([numbers(1, 3, 3, 2, seed=i)])
        seen.add(address(result.numpy()))
        del result
    assert len(seen) == 1


def test_the_images_of_a_batch_that_are_held_are_never_written_again():
    graph, queue = relu_graph(), mpsnn.CommandQueue("cpu")
    inputs = [[numbers(1, 3, 3, 2, seed=10 * k + i) for i in range(3)] for k in range(3)]
    held = []
    for batch in inputs:
        buffer = queue.command_buffer()
        held.append(graph.encode_batch(buffer, [batch]))
        buffer.commit()
        buffer.wait_until_completed()
    for batch, results in zip(inputs, held, strict=True):
        for array, result in zip(batch, results, strict=True):
            np.testing.assert_array_equal(result, np.maximum(array, 0))


def test_read_only_arrays_are_read_in_place_and_stay_read_only():
    array = numbers(1, 2, 2, 2)
    array.setflags(write=False)
    image = MPSImage(array)
    assert address(image.numpy()) == address(array)
    assert not image.numpy().flags.writeable
    assert memoryview(image).readonly
    np.testing.assert_array_equal(relu_graph().run([array]), np.maximum(array, 0))
    with pytest.raises(ValueError, match="read-only"):
        image.numpy()[...] = 0


def test_a_mapped_file_is_read_in_place(tmp_path):
    numbers(2, 3, 3, 1).tofile(tmp_path / "images")
    mapped = np.memmap(tmp_path / "images", np.float32, "r", shape=(2, 3, 3, 1))
    image = MPSImage(mapped)
    assert address(image.numpy()) == address(mapped)
    assert not image.numpy().flags.writeable
    np.testing.assert_array_equal(relu_graph().run([image]), np.maximum(mapped, 0))


def test_a_vector_over_a_read_only_array_is_a_copy():
    array = np.zeros(3, np.float32)
    array.setflags(write=False)
    vector = mpsnn.MPSVector(array)
    assert vector.numpy().flags.writeable
    assert address(vector.numpy()) != address(array)


def test_a_descriptor_makes_an_image_of_zeros():
    descriptor = mpsnn.MPSImageDescriptor(mpsnn.MPSImageFeatureChannelFormat.Float32, 4, 3, 2, 5)
    image = MPSImage(descriptor)
    assert image.shape == (5, 3, 4, 2)
    assert not image.numpy().any()
    assert repr(image) == "<MPSImage 5 x 3 x 4 x 2 float32>"


def test_a_descriptor_of_negative_size_is_refused():
    descriptor = mpsnn.MPSImageDescriptor(mpsnn.MPSImageFeatureChannelFormat.Float32, -4, 3, 2)
    with pytest.raises(mpsnn.ShapeError, match="1 x 3 x -4 x 2"):
        MPSImage(descriptor)


def test_an_array_from_an_image_can_be_asked_to_be_a_copy_or_of_another_type():
    array = numbers(1, 2, 2, 1)
    image = MPSImage(array)
    copy = np.array(image)
    assert address(copy) != address(array)
    np.testing.assert_array_equal(copy, array)
    assert np.asarray(image, dtype=np.float64).dtype == np.float64


def test_empty_batches_are_images_too():
    image = MPSImage(np.zeros((0, 3, 3, 2), np.float32))
    assert image.shape == (0, 3, 3, 2)
    assert image.numpy().shape == (0, 3, 3, 2)
    assert relu_graph().run([image]).shape == (0, 3, 3, 2)
