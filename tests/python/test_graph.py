# SPDX-License-Identifier: Apache-2.0
"""Graphs: what goes in, what comes out and in which order; plans, queues, saving and loading."""

import gc
import threading
import weakref

import mpsnn
import numpy as np
import pytest
from graph_cases import (
    ENGINES,
    STYLES,
    ThreeLayers,
    adam,
    class_name,
    loss,
    numbers,
    one_hot,
    sgd,
    tolerance,
    weights,
)
from mpsnn import MPSCNNConvolutionNode, MPSCNNNeuronReLUNode, MPSNNGraph, MPSNNImageNode
from saved_graphs import classes_with_a_factory, everything, family, separable_loss, without_gradient

STATUS = mpsnn.MTLCommandBufferStatus


def chain(engine="cpu", **options):
    """x -> conv -> relu, and the graph of the last one."""
    conv = MPSCNNConvolutionNode(MPSNNImageNode("x"), weights(2, 3, **options))
    relu = MPSCNNNeuronReLUNode(conv.result_image, 0.0)
    return conv, relu, MPSNNGraph(engine, relu.result_image)


# --- results, exports and handles ---------------------------------------------------------------------------------


def test_results_come_in_the_order_of_the_constructor_and_unneeded_ones_are_none():
    conv, relu, graph = chain()
    image = numbers(1, 4, 4, 2)
    y = graph.run([image]).numpy()
    first, second = MPSNNGraph("cpu", [relu.result_image, conv.result_image]).run([image])
    np.testing.assert_array_equal(first, y)
    np.testing.assert_array_equal(np.maximum(second, 0), y)
    none, second = MPSNNGraph("cpu", [relu.result_image, conv.result_image], [False, True]).run([image])
    assert none is None
    np.testing.assert_array_equal(np.maximum(second, 0), y)
    assert MPSNNGraph("cpu", relu.result_image, False).run([image]) is None


def test_a_result_asked_for_twice_is_one_image():
    conv, _, _ = chain()
    first, second = MPSNNGraph("cpu", [conv.result_image, conv.result_image]).run([numbers(1, 4, 4, 2)])
    assert first is second


def test_exported_images_come_with_their_handles_in_execution_order():
    conv, relu, _ = chain()
    conv.result_image.export_from_graph = relu.result_image.export_from_graph = True
    conv.result_image.handle, relu.result_image.handle = "before", "after"
    graph, exports, image = MPSNNGraph("cpu", relu.result_image), [], numbers(1, 4, 4, 2)
    result = graph.run([image], intermediate_images=exports)
    assert graph.intermediate_image_handles == ["before", "after"]
    assert graph.result_handle == "after"
    assert exports[1] is result
    np.testing.assert_array_equal(np.maximum(exports[0], 0), result)
    held = np.array(exports[0])
    graph.run([numbers(1, 4, 4, 2, seed=5)], intermediate_images=[])
    np.testing.assert_array_equal(exports[0], held)


def test_exported_states_hold_the_gradients_of_their_step():
    net = ThreeLayers(style=STYLES.UpdateDeviceGPU, engine="reference", optimizer=lambda: sgd(0.5))
    for node in (net.last, net.first):
        node.result_state.export_from_graph = True
        node.result_state.handle = node.weights.label()
    (end,) = net.loss.training_graph()
    graph = MPSNNGraph("reference", end.result_image, False)
    assert graph.result_state_handles == ["first", "last"]
    before, states = [graph.export_weights(s).weights.copy() for s in net.sources], []
    graph.run([numbers(2, 6, 6, 2)], [mpsnn.MPSCNNLossLabels(one_hot(3, 2))], destination_states=states)
    assert [state.label for state in states] == ["first", "last"]
    assert (states[0].source_width, states[0].source_height) == (6, 6)
    for state, source, old in zip(states, (net.sources[0], net.sources[2]), (before[0], before[2]), strict=True):
        moved = old - 0.5 * state.gradient_for_weights
        limit = tolerance(moved, 2, np.float64)
        np.testing.assert_allclose(graph.export_weights(source).weights, moved, rtol=0, atol=limit)


def test_sources_are_expected_in_the_order_of_their_first_use():
    a, b = MPSNNImageNode("a"), MPSNNImageNode("b")
    minus = mpsnn.MPSNNSubtractionNode(b, a)
    both = mpsnn.MPSNNConcatenationNode([a, minus.result_image])
    graph = MPSNNGraph("cpu", both.result_image)
    assert graph.source_image_handles == ["b", "a"]
    one, two = numbers(1, 2, 2, 1), numbers(1, 2, 2, 1, seed=1)
    np.testing.assert_array_equal(graph.run([one, two]), np.concatenate([two, one - two], -1))


def test_untagged_sources_get_handles_of_their_own_and_tags_are_returned_as_they_are():
    class Tag:
        def label(self):
            return "called"

    tag = Tag()
    add = mpsnn.MPSNNAdditionNode(MPSNNImageNode(), MPSNNImageNode(tag))
    node = mpsnn.MPSCNNLossNode(add.result_image, loss())
    graph = MPSNNGraph("cpu", node.result_image)
    assert graph.source_image_handles == ["source image 1", tag]
    assert graph.source_image_handles[1] is tag
    assert graph.source_state_handles == ["source state 1"]
    node.input_labels.handle = "labels"
    assert graph.source_state_handles == ["labels"]


def test_two_losses_take_their_labels_in_the_order_of_the_handles():
    x = MPSNNImageNode("x")
    losses = [mpsnn.MPSCNNLossNode(x, loss("MeanSquaredError", weight=w)) for w in (1, 2)]
    for node, name in zip(losses, ("one", "two"), strict=True):
        node.input_labels.handle = name
    graph = MPSNNGraph("cpu", [node.result_image for node in losses])
    assert graph.source_state_handles == ["one", "two"]
    image, labels = numbers(2, 1, 1, 3), [numbers(2, 1, 1, 3, seed=i) for i in (1, 2)]
    results = graph.run([image], [mpsnn.MPSCNNLossLabels(label) for label in labels])
    for result, label, weight in zip(results, labels, (1, 2), strict=True):
        expected = 2 * weight * (image - label)
        np.testing.assert_allclose(result, expected, rtol=0, atol=tolerance(expected, 4))


# --- the ways to run ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_all_ways_to_run_a_graph_give_equal_numbers(engine):
    _, _, graph = chain(engine)
    images = numbers(3, 5, 4, 2)
    expected = graph.run([images]).numpy()
    queue, done = mpsnn.CommandQueue(engine), threading.Event()
    buffer = queue.command_buffer()
    encoded = graph.encode(buffer, [images])
    batch = graph.encode_batch(buffer, [[images[i : i + 1] for i in range(3)]])
    buffer.commit()
    buffer.wait_until_completed()
    received = []

    def handler(image, error):
        received.append((image, error))
        done.set()

    graph.execute_async([images], handler).wait_until_completed()
    assert done.wait(10)
    np.testing.assert_array_equal(encoded, expected)
    np.testing.assert_array_equal(np.concatenate(batch), expected)
    np.testing.assert_array_equal(received[0][0], expected)
    assert received[0][1] is None


def test_a_training_step_in_batches_of_single_images_is_the_same_step():
    whole, single = ThreeLayers(), ThreeLayers()
    images, labels = numbers(8, 6, 6, 2), one_hot(3, 8)
    expected = whole.step()
    states = [mpsnn.MPSCNNLossLabels(labels[i : i + 1]) for i in range(8)]
    buffer = mpsnn.CommandQueue("cpu").command_buffer()
    single.graph.encode_batch(buffer, [[images[i : i + 1] for i in range(8)]], [states])
    buffer.commit()
    buffer.wait_until_completed()
    assert single.state() == whole.state()
    np.testing.assert_array_equal(np.concatenate([state.loss_image for state in states]), expected)


def test_command_buffers_in_flight_run_in_order():
    many, one = ThreeLayers(), ThreeLayers()
    queue, labels, order = mpsnn.CommandQueue("cpu"), [], []
    buffers = [queue.command_buffer() for _ in range(6)]
    for seed, buffer in enumerate(buffers):
        labels.append(mpsnn.MPSCNNLossLabels(one_hot(3, 8, seed=seed)))
        many.graph.encode(buffer, [numbers(8, 6, 6, 2, seed=seed)], [labels[-1]])
        buffer.add_completed_handler(lambda done, seed=seed: order.append(seed))
        buffer.commit()
    buffers[-1].wait_until_completed()
    assert order == list(range(6))
    for seed, label in enumerate(labels):
        np.testing.assert_array_equal(label.loss_image, one.step(seed))
    assert many.state() == one.state()


def test_the_status_of_a_command_buffer_goes_from_not_enqueued_to_completed():
    _, _, graph = chain()
    buffer, seen = mpsnn.CommandQueue("cpu").command_buffer(), []
    assert buffer.status == STATUS.NotEnqueued
    graph.encode(buffer, [numbers(1, 4, 4, 2)])
    buffer.add_completed_handler(lambda done: seen.append((done is buffer, done.status)))
    buffer.commit()
    buffer.wait_until_completed()
    assert seen == [(True, STATUS.Completed)]
    assert buffer.status == STATUS.Completed
    assert buffer.error is None


def test_a_step_that_fails_is_an_error_of_its_buffer_and_not_of_the_next():
    _, _, graph = chain()
    graph.trap_nonfinite = True
    queue, seen = mpsnn.CommandQueue("cpu"), []
    bad, good = queue.command_buffer(), queue.command_buffer()
    graph.encode(bad, [np.full((1, 4, 4, 2), np.nan, np.float32)])
    bad.add_completed_handler(lambda done: seen.append(done.status))
    result = graph.encode(good, [np.ones((1, 4, 4, 2), np.float32)])
    bad.commit()
    good.commit()
    for _ in range(2):
        with pytest.raises(mpsnn.DeviceError, match='source image "x"'):
            bad.wait_until_completed()
    assert seen == [STATUS.Error] == [bad.status]
    assert isinstance(bad.error, mpsnn.DeviceError)
    assert bad.error.label == "x"
    good.wait_until_completed()
    assert np.isfinite(result.numpy()).all()


def test_an_asynchronous_step_that_fails_tells_its_handler():
    _, _, graph = chain()
    graph.trap_nonfinite = True
    seen = []
    nan = np.full((1, 4, 4, 2), np.nan, np.float32)
    buffer = graph.execute_async([nan], lambda image, error: seen.append((image, type(error))))
    with pytest.raises(mpsnn.DeviceError):
        buffer.wait_until_completed()
    assert seen == [(None, mpsnn.DeviceError)]


def test_an_exception_in_a_completion_handler_arrives_at_the_wait():
    def handler(_):
        raise LookupError("in the handler")

    buffer = mpsnn.CommandQueue("cpu").command_buffer()
    buffer.add_completed_handler(handler)
    buffer.commit()
    with pytest.raises(LookupError, match="in the handler"):
        buffer.wait_until_completed()


def test_a_graph_may_be_dropped_before_its_command_buffer_runs():
    conv, relu, graph = chain()
    image = numbers(1, 4, 4, 2)
    expected = graph.run([image]).numpy().copy()
    buffer = mpsnn.CommandQueue("cpu").command_buffer()
    result = graph.encode(buffer, [image])
    del conv, relu, graph
    gc.collect()
    buffer.commit()
    buffer.wait_until_completed()
    np.testing.assert_array_equal(result, expected)


def test_a_queue_and_its_buffers_may_be_dropped_while_they_run():
    net, event = ThreeLayers(), threading.Event()
    buffer = mpsnn.CommandQueue("cpu").command_buffer()
    net.graph.encode(buffer, [numbers(8, 6, 6, 2)], [mpsnn.MPSCNNLossLabels(one_hot(3, 8))])
    buffer.add_completed_handler(lambda _: event.set())
    buffer.commit()
    del buffer
    gc.collect()
    assert event.wait(10)


def test_a_data_source_may_keep_the_command_buffer_that_it_was_shown():
    from graph_cases import GpuSource

    class Keeper(GpuSource):
        def update_with_command_buffer(self, command_buffer, *states):
            self.kept = command_buffer
            return super().update_with_command_buffer(command_buffer, *states)

    source = Keeper(2, 4, label="first")
    net = ThreeLayers({"first": source})
    net.step()
    gc.collect()
    assert source.kept.status == STATUS.Completed


# --- batches and threads ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_batch_sizes_may_change_between_encodes(engine):
    changing = ThreeLayers(engine=engine)
    for count in (8, 3, 0, 1, 8, 3):
        images, labels = numbers(count, 6, 6, 2, seed=count), one_hot(3, count, seed=count)
        before = [changing.graph.export_weights(s) for s in changing.sources]
        other = ThreeLayers(engine=engine)
        for source, state in zip(other.sources, before, strict=True):
            source.set_values(weights=state.weights, biases=state.biases)
        other.graph.reload_from_data_sources()
        losses = []
        for net in (changing, other):
            states = mpsnn.MPSCNNLossLabels(labels)
            net.graph.run([images], [states])
            losses.append(states.loss_image.numpy().copy())
        # set_values() stores float32: on reference that is the difference.
        np.testing.assert_allclose(*losses, rtol=0, atol=0 if engine == "cpu" else tolerance(losses[0], 6 * 6 * 3 * 9))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("style", [STYLES.UpdateDeviceCPU, STYLES.UpdateDeviceGPU])
def test_a_step_without_images_moves_no_weight(engine, style):
    norm = mpsnn.BatchNormalizationWeights(4, label="norm", optimizer=sgd())
    net = ThreeLayers(style=style, engine=engine, optimizer=sgd, normalization=norm)
    before = net.weights()
    assert net.step(images=np.zeros((0, 6, 6, 2), np.float32)).shape == (0, 1, 1, 1)
    assert net.weights() == before
    assert norm.values["mean"].tolist() == [0] * 4
    assert norm.values["variance"].tolist() == [1] * 4


def test_a_whole_training_gives_the_same_bits_for_any_number_of_threads():
    threads, states = mpsnn.num_threads(), []
    try:
        for count in (1, 2, 3):
            mpsnn.set_num_threads(count)
            assert mpsnn.num_threads() == count
            norm = mpsnn.BatchNormalizationWeights(4, label="norm", optimizer=adam())
            net = ThreeLayers(normalization=norm)
            losses = [net.step(seed).tobytes() for seed in range(3)]
            images = numbers(37, 6, 6, 2)
            net.step(images=images)
            states.append((losses, net.state(), {name: v.tobytes() for name, v in norm.values.items()}))
    finally:
        mpsnn.set_num_threads(threads)
    assert states[0] == states[1] == states[2]


def test_dropout_masks_depend_on_the_encode_count_alone():
    def make():
        return MPSNNGraph("cpu", mpsnn.MPSCNNDropoutNode(MPSNNImageNode(), 0.5, 7).result_image)

    graph, image = make(), np.ones((2, 8, 8, 4), np.float32)
    assert graph.encode_count == 0
    masks = [graph.run([image]).numpy() for _ in range(3)]
    assert graph.encode_count == 3
    assert (masks[0] != masks[1]).any()
    assert (masks[0][0] != masks[0][1]).any()
    other = make()
    other.encode_count = 2
    np.testing.assert_array_equal(other.run([image]), masks[2])
    np.testing.assert_array_equal(make().run([image]), masks[0])


# --- plans --------------------------------------------------------------------------------------------------------


def test_a_plan_tells_operations_flops_and_memory_before_anything_runs():
    conv, _, graph = chain()
    conv.label = "known"
    report = MPSNNGraph("cpu", conv.result_image).plan([(3, 5, 4, 2)])
    (row,) = report.operations
    assert (row.node, row.result) == ("known", "3 x 5 x 4 x 3")
    assert row.flops == report.flops == 2 * (3 * 5 * 4) * 3 * (3 * 3 * 2)
    floats = 3 * 5 * 4 * 2 + 3 * 3 * 3 * 2 + 3 + 3 * 5 * 4 * 3
    assert row.bytes == 4 * floats
    assert "known" in str(report)
    assert "1 operations" in str(report)
    assert graph.encode_count == 0


def test_images_that_do_not_live_together_share_memory():
    node = MPSCNNConvolutionNode(MPSNNImageNode(), weights(2, 8, label="0"))
    for i in range(6):
        node = MPSCNNConvolutionNode(node.result_image, weights(8, 8, label=str(i + 1)))
    report = MPSNNGraph("reference", node.result_image).plan([(4, 16, 16, 2)])
    assert 0 < report.arena_bytes < report.unshared_bytes


def test_the_data_gradient_of_the_first_layer_is_planned_only_when_it_is_needed():
    net = ThreeLayers()
    (end,) = net.loss.training_graph()

    def operations(is_needed):
        rows = MPSNNGraph("cpu", end.result_image, is_needed).plan([(8, 6, 6, 2)]).operations
        return [row.operation for row in rows if row.node == "first gradient"]

    with_data, without = operations(True), operations(False)
    assert len(with_data) == 2
    assert len(without) == 1
    assert set(without) < set(with_data)


def test_the_weight_gradient_of_a_frozen_layer_is_not_planned():
    rows = ThreeLayers(style=STYLES.UpdateDeviceNone).graph.plan([(8, 6, 6, 2)]).operations
    assert not any("gradient" in row.node for row in rows)


def test_side_branches_are_not_part_of_the_graph():
    conv, relu, _ = chain()
    mpsnn.MPSCNNSoftMaxNode(conv.result_image)
    assert MPSNNGraph("cpu", relu.result_image).nodes == [conv, relu]


def test_a_plan_raises_what_encode_would():
    _, _, graph = chain()
    with pytest.raises(mpsnn.ShapeError, match="expect 2 input channels but the image has 5"):
        graph.plan([(1, 4, 4, 5)])
    with pytest.raises(mpsnn.ShapeError, match="1 x -4 x 4 x 2"):
        graph.plan([(1, -4, 4, 2)])


# --- weights ------------------------------------------------------------------------------------------------------


def test_a_second_graph_on_the_same_sources_sees_new_weights_after_a_reload():
    net = ThreeLayers()
    inference = MPSNNGraph("cpu", net.last.result_image)
    image = numbers(2, 6, 6, 2)
    before = inference.run([image]).numpy()
    net.step()
    np.testing.assert_array_equal(inference.run([image]), before)
    inference.reload_from_data_sources()
    after = inference.run([image]).numpy()
    assert (after != before).any()
    fresh = MPSNNGraph("cpu", net.last.result_image).run([image])
    np.testing.assert_array_equal(fresh, after)


def test_exported_weights_are_a_copy_of_those_in_use():
    net = ThreeLayers()
    exported = net.graph.export_weights(net.sources[0])
    np.testing.assert_array_equal(exported.weights, net.sources[0].values["weights"])
    exported.weights[...] = 0
    assert net.sources[0].values["weights"].any()
    with pytest.raises(mpsnn.WeightError, match='data source "stranger"') as caught:
        net.graph.export_weights(weights(2, 2, label="stranger"))
    assert caught.value.label == "stranger"


def test_a_graph_does_not_outlive_its_last_reference():
    conv, relu, graph = chain()
    alive = weakref.ref(conv.weights)
    graph.run([numbers(1, 4, 4, 2)])
    del conv, relu, graph
    gc.collect()
    assert alive() is None


# --- saving -------------------------------------------------------------------------------------------------------


def test_the_saved_graphs_have_every_node_class_with_a_factory():
    results = [[everything()[0].result_image], [family()[0].result_image], without_gradient()[0], separable_loss()]
    names = {class_name(node) for images in results for node in MPSNNGraph("cpu", images).nodes}
    assert names == classes_with_a_factory()


def test_every_node_class_that_can_be_made_has_a_factory():
    """Abstract classes are bases of others."""
    classes = [getattr(mpsnn, name) for name in dir(mpsnn) if name.endswith("Node")]
    filters = {one for one in classes if isinstance(one, type) and issubclass(one, mpsnn.MPSNNFilterNode)}
    concrete = {
        one.__name__ for one in filters if not any(other is not one and issubclass(other, one) for other in filters)
    }
    bases_too = {"MPSCNNConvolutionNode", "MPSCNNConvolutionGradientNode", "MPSCNNBinaryConvolutionNode"}
    assert concrete | bases_too == classes_with_a_factory()


def test_a_graph_describes_itself():
    conv, relu, _ = chain()
    relu.result_image.handle = "y"
    text = MPSNNGraph("cpu", relu.result_image).debug_description
    assert text.startswith("MPSNNGraph on cpu, 2 nodes")
    assert "MPSCNNConvolutionNode(x)" in text
    assert '-> "y"' in text
    assert repr(conv) == "<MPSCNNConvolutionNode>"


def test_a_plan_says_how_and_why_and_what_limits_each_operation():
    image = mpsnn.MPSNNImageNode("image")
    weights = mpsnn.ConvolutionWeights(mpsnn.MPSCNNConvolutionDescriptor(3, 3, 64, 64), initializer="he", seed=1)
    node = mpsnn.MPSCNNConvolutionNode(image, weights)
    pool = mpsnn.MPSCNNPoolingAverageNode(node.result_image, 2, 2)
    graph = MPSNNGraph("cpu", pool.result_image)
    plan = graph.plan([(8, 56, 56, 64)])
    convolution, pooling = plan.operations
    # The costs of all algorithms that could have done it, the one chosen among them; fewer multiplications than it stands for.
    assert "gemm" in convolution.reason and "winograd" in convolution.reason
    assert convolution.algorithm.startswith("winograd") and "positions" in convolution.layout
    assert 0 < convolution.work < convolution.flops == 2 * 8 * 56 * 56 * 64 * 64 * 9
    assert (pooling.reason, pooling.layout, pooling.limit) == ("", "NHWC", "memory")
    assert pooling.least_seconds == pytest.approx(pooling.bytes / plan.peak_bytes)
    assert convolution.least_seconds >= convolution.work / plan.peak_flops
    lines = str(plan).splitlines()
    assert max(map(len, lines)) < 160
    assert convolution.reason in str(plan)
    assert MPSNNGraph("reference", pool.result_image).plan([(8, 56, 56, 64)]).operations[0].limit == ""
