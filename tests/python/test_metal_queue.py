# SPDX-License-Identifier: Apache-2.0
"""Steps that are encoded while the simulated device runs the one before: which are, in what order, and that nothing else changes."""

import ctypes
import threading
import time
from contextlib import contextmanager

import mpsnn
import numpy as np
import pytest
from graph_cases import STYLES, ThreeLayers, numbers, one_hot, sgd, weights
from metal_cases import marks, nothing_is_left, simulated, simulator  # noqa: F401
from test_metal_training import normalized
from training_cases import IMAGES, LABELS, small_trainer

pytestmark = [*marks, simulated]


def trace():
    text = simulator().mpsnn_sim_trace
    text.restype = ctypes.c_char_p
    return text().decode().split("\n")[:-1]


@contextmanager
def held_device():
    """The device stands still until the yielded function is called, which may say for how many command buffers; the trace begins."""

    def go_on(command_buffers=-1):
        simulator().mpsnn_sim_let_run(ctypes.c_long(command_buffers))

    simulator().mpsnn_sim_start_trace()
    go_on(0)
    try:
        yield go_on
    finally:
        go_on()


def wait_for(line):
    deadline = time.monotonic() + 20
    while line not in trace():
        assert time.monotonic() < deadline, f"no {line!r} in {trace()}"
        time.sleep(0.001)


def comes_before(first, second):
    lines = trace()
    return lines.index(first) < lines.index(second)


class Queue:
    """Steps in buffers of their own on one queue, committed at once."""

    def __init__(self):
        self.queue, self.buffers = mpsnn.CommandQueue("metal"), []

    def add(self, graph, images, labels=None, handler=None):
        buffer = self.queue.command_buffer()
        result = graph.encode(buffer, images, labels)
        if handler:
            buffer.add_completed_handler(handler)
        buffer.commit()
        self.buffers.append(buffer)
        return result

    def wait(self):
        for buffer in self.buffers:
            buffer.wait_until_completed()


def batch(step, count=8, size=6, classes=3):
    return [numbers(count, size, size, 2, seed=step)], [mpsnn.MPSCNNLossLabels(one_hot(classes, count, seed=step))]


def losses_of(batches):
    return [labels[0].loss_image.numpy().tobytes() for _, labels in batches]


def train(graph, batches):
    for images, labels in batches:
        graph.run(images, labels)
    return losses_of(batches)


def train_on_a_queue(graph, batches, at_once=2):
    """The same, all committed while the device stands still, until it has got the steps that it must have at once."""
    queue = Queue()
    with held_device() as go_on:
        for images, labels in batches:
            queue.add(graph, images, labels)
        wait_for(f"commit {at_once}")
        go_on()
        queue.wait()
    return losses_of(batches)


def test_lenet_is_encoded_one_step_ahead_and_trains_to_the_same_bits():
    found = []
    for run in (train, train_on_a_queue):
        graph = small_trainer(device="metal", dropout=0).training_graph
        one_hots = np.eye(3, dtype=np.float32)[LABELS].reshape(-1, 1, 1, 3)
        batches = [
            ([IMAGES[first : first + 16]], [mpsnn.MPSCNNLossLabels(one_hots[first : first + 16])])
            for first in range(0, 64, 16)
        ]
        losses = run(graph, batches)
        values = [np.array(v).tobytes() for source in graph.data_sources for v in source.values.values()]
        history = [np.array(v).tobytes() for source in graph.data_sources for v in source.history]
        found.append((values, history, losses))
    assert trace()[:4] == ["encode 1", "commit 1", "encode 2", "commit 2"]
    for step in (1, 2):
        assert comes_before(f"complete {step}", f"encode {step + 2}")
    assert found[0] == found[1]


def python_source():
    class Own(mpsnn.MPSCNNConvolutionDataSource):
        def __init__(self):
            super().__init__()
            self.values = np.array(weights(4, 3, seed=2).values["weights"])

        def descriptor(self):
            return mpsnn.MPSCNNConvolutionDescriptor(3, 3, 4, 3)

        def weights(self):
            return self.values

        def label(self):
            return "own"

        def load(self):
            return True

        def update_with_command_buffer(self, command_buffer, gradient_state, source_state):
            return None  # nothing is recorded, and still the host gets the gradients

    return Own()


def exporting():
    network = ThreeLayers(engine="metal")
    network.middle.convolution_gradient_state.export_from_graph = True
    ends = network.loss.training_graph()
    return mpsnn.MPSNNGraph("metal", ends[0].result_image, False)


HOST_WORK = {
    "CPU style": lambda: ThreeLayers(engine="metal", style=STYLES.UpdateDeviceCPU).graph,
    "a Python data source": lambda: ThreeLayers(engine="metal", sources={"middle": python_source()}).graph,
    "an exported state": exporting,
    "a shared data source": lambda: normalized("metal", "batch", twice=True)[0],
}


@pytest.mark.parametrize("case", HOST_WORK)
def test_where_the_host_has_work_the_next_step_is_encoded_after_it(case):
    sizes = {"size": 5, "classes": 4} if "shared" in case else {}
    losses = train_on_a_queue(HOST_WORK[case](), [batch(step, **sizes) for step in range(3)], at_once=1)
    for step in (1, 2):
        assert comes_before(f"complete {step}", f"encode {step + 1}")
    assert losses == train(HOST_WORK[case](), [batch(step, **sizes) for step in range(3)])


@pytest.mark.parametrize("sizes", [(8, 8, 8, 8), (8, 3, 8, 5), (8, 8, 0, 8)], ids=str)
def test_batches_of_other_sizes_may_come_next(sizes):
    batches = [[batch(step, size) for step, size in enumerate(sizes)] for _ in range(2)]
    norms = [mpsnn.BatchNormalizationWeights(4, label="norm") for _ in range(2)]
    for norm in norms:
        norm.optimizer = mpsnn.MPSNNOptimizerAdam(None, 0.01)
    networks = [ThreeLayers(engine="metal", normalization=norm) for norm in norms]
    assert train_on_a_queue(networks[0].graph, batches[0]) == train(networks[1].graph, batches[1])
    assert networks[0].state() == networks[1].state()
    for name, value in norms[0].values.items():
        assert np.array_equal(value, norms[1].values[name]), name


def image_graph():
    """Five channels in, five out."""
    node = mpsnn.MPSCNNConvolutionNode(mpsnn.MPSNNImageNode("image"), weights(5, 5))
    return mpsnn.MPSNNGraph("metal", node.result_image)


@pytest.mark.parametrize("depends", [False, True])
def test_a_step_that_reads_the_result_before_it_waits_for_that(depends):
    graph, queue, image = image_graph(), Queue(), numbers(2, 4, 4, 5)
    with held_device() as go_on:
        first = queue.add(graph, [image])
        second = queue.add(graph, [first if depends else image])
        wait_for("commit 1" if depends else "commit 2")
        go_on()
        queue.wait()
    assert comes_before("complete 1", "encode 2") == depends
    expected = graph.run([image]).numpy()
    assert np.array_equal(first.numpy(), expected)
    assert np.array_equal(second.numpy(), graph.run([np.array(expected)]).numpy() if depends else expected)


def test_graphs_take_turns():
    graphs, queue, image = [image_graph(), image_graph()], Queue(), numbers(2, 4, 4, 5)
    with held_device() as go_on:
        for step in range(4):
            queue.add(graphs[step % 2], [image])
        wait_for("commit 1")
        go_on()
        queue.wait()
    for step in (1, 2, 3):
        assert comes_before(f"complete {step}", f"encode {step + 1}")


def test_batches_of_single_images_are_encoded_ahead_too():
    graph, image = image_graph(), numbers(3, 4, 4, 5)
    queue, buffers, results = mpsnn.CommandQueue("metal"), [], []
    with held_device() as go_on:
        for _ in range(2):
            buffers.append(queue.command_buffer())
            results.append(graph.encode_batch(buffers[-1], [[mpsnn.MPSImage(one[None]) for one in image]]))
            buffers[-1].commit()
        wait_for("commit 2")
        go_on()
        for buffer in buffers:
            buffer.wait_until_completed()
    expected = graph.run([image]).numpy()
    for result in results:
        assert np.array_equal(np.concatenate([one.numpy() for one in result]), expected)


def test_asynchronous_runs_are_encoded_ahead_too():
    graph, image, seen, buffers = image_graph(), numbers(2, 4, 4, 5), [], []
    with held_device() as go_on:
        for scale in (1, 2, 3):
            buffers.append(
                graph.execute_async(
                    [scale * image], lambda result, error: seen.append((np.array(result.numpy()), error))
                )
            )
        wait_for("commit 2")
        go_on()
        for buffer in buffers:
            buffer.wait_until_completed()
    for (result, error), scale in zip(seen, (1, 2, 3), strict=True):
        assert error is None
        assert np.array_equal(result, graph.run([scale * image]).numpy())


# --- what goes wrong


def test_a_step_that_the_device_does_not_finish_spares_the_one_behind_it():
    queue, graph, done = Queue(), image_graph(), []
    image = numbers(2, 4, 4, 5)
    simulator().mpsnn_sim_fail_next_command_buffer(b"page fault (simulated)")
    with held_device() as go_on:
        for step in range(3):
            result = queue.add(
                graph, [image], handler=lambda buffer, step=step: done.append((step, buffer.status.name))
            )
        wait_for("commit 2")
        go_on()
        with pytest.raises(mpsnn.DeviceError, match="page fault"):
            queue.buffers[0].wait_until_completed()
        for buffer in queue.buffers[1:]:
            buffer.wait_until_completed()
    assert done == [(0, "Error"), (1, "Completed"), (2, "Completed")]
    assert np.array_equal(result.numpy(), graph.run([image]).numpy())


def test_weights_are_those_of_the_last_step_that_the_device_finished():
    network, twin, queue = ThreeLayers(engine="metal"), ThreeLayers(engine="metal"), Queue()
    with held_device() as go_on:
        queue.add(network.graph, *batch(0))
        wait_for("commit 1")
        simulator().mpsnn_sim_fail_next_command_buffer(b"page fault (simulated)")
        queue.add(network.graph, *batch(1))
        wait_for("commit 2")
        go_on()
        queue.buffers[0].wait_until_completed()
        with pytest.raises(mpsnn.DeviceError, match="page fault"):
            queue.buffers[1].wait_until_completed()
    twin.graph.run(*batch(0))
    assert network.state()[:3] == twin.state()[:3]


def test_a_step_that_cannot_be_encoded_spares_the_one_on_the_device():
    class Padding(mpsnn.MPSNNPadding):
        calls = 0

        def padding_method(self):
            return mpsnn.MPSNNPaddingMethod.Custom

        def destination_image_descriptor(self, sources, states, kernel, suggested):
            self.calls += 1
            if self.calls == self.fails_at:
                raise ArithmeticError("padding failed on purpose")
            return suggested

    policy, image, queue = Padding(), numbers(3, 6, 6, 5), Queue()
    policy.fails_at = 0
    node = mpsnn.MPSCNNPoolingMaxNode(mpsnn.MPSNNImageNode("image"), 2)
    node.padding_policy = policy
    graph = mpsnn.MPSNNGraph("metal", node.result_image)
    expected = np.array(graph.run([image]).numpy())
    graph.plan([(2, 6, 6, 5)])  # what comes next is asked for by the device's framework
    policy.fails_at = policy.calls + 1
    with held_device() as go_on:
        results = [queue.add(graph, [image[:size]]) for size in (3, 2, 3)]
        wait_for("encode 2")
        go_on()
        with pytest.raises(ArithmeticError, match="on purpose"):
            queue.buffers[1].wait_until_completed()
        queue.buffers[2].wait_until_completed()
    queue.buffers.clear()  # the error keeps this frame, which keeps them
    for step in (0, 2):
        assert np.array_equal(results[step].numpy(), expected)


def test_a_number_that_is_not_finite_belongs_to_its_own_step():
    graph, queue, image = image_graph(), Queue(), numbers(2, 4, 4, 5)
    graph.trap_nonfinite = True
    with held_device() as go_on:
        queue.add(graph, [np.full_like(image, np.nan)])
        result = queue.add(graph, [image])
        wait_for("commit 2")
        go_on()
        with pytest.raises(mpsnn.DeviceError, match='not finite appeared first in the source image "image"'):
            queue.buffers[0].wait_until_completed()
        queue.buffers[1].wait_until_completed()
    assert np.array_equal(result.numpy(), graph.run([image]).numpy())


def test_a_loss_that_is_not_finite_spares_the_step_behind_it():
    network, twin = (ThreeLayers(engine="metal", optimizer=sgd) for _ in range(2))
    queue, given, again = Queue(), batch(1), batch(1)
    with held_device() as go_on:
        queue.add(network.graph, [np.full((8, 6, 6, 2), np.nan, np.float32)], batch(0)[1])
        queue.add(network.graph, *given)
        wait_for("commit 2")
        go_on()
        with pytest.raises(mpsnn.DeviceError, match="not finite"):
            queue.buffers[0].wait_until_completed()
        queue.buffers[1].wait_until_completed()
    # The simulated device, other than Apple's, refuses to update weights with such numbers.
    assert losses_of([given]) == train(twin.graph, [again])
    assert network.state()[:3] == twin.state()[:3]


# --- what an application may do meanwhile


def test_a_handler_may_run_the_graph_whose_next_step_is_on_the_device():
    graph, queue, image, seen = image_graph(), Queue(), numbers(2, 4, 4, 5), []
    with held_device() as go_on:
        queue.add(graph, [image], handler=lambda _: seen.append(np.array(graph.run([2 * image]).numpy())))
        result = queue.add(graph, [image])
        wait_for("commit 2")
        go_on()
        queue.wait()
    assert np.array_equal(seen[0], graph.run([2 * image]).numpy())
    assert np.array_equal(result.numpy(), graph.run([image]).numpy())


def test_weights_are_read_again_when_the_device_is_through_with_the_old_ones():
    source = weights(1, 1, kernel=1)
    source.set_values(weights=np.full((1, 1, 1, 1), 2, np.float32))
    graph = mpsnn.MPSNNGraph("metal", mpsnn.MPSCNNConvolutionNode(mpsnn.MPSNNImageNode("image"), source).result_image)
    queue, image, inside, reloaded = Queue(), numbers(1, 2, 2, 1), threading.Event(), threading.Event()

    def reload(_):
        inside.set()
        graph.reload_from_data_sources()
        reloaded.set()

    with held_device() as go_on:
        results = [queue.add(graph, [image], handler=reload), queue.add(graph, [image])]
        wait_for("commit 2")
        source.set_values(weights=np.full((1, 1, 1, 1), 3, np.float32))
        go_on(1)
        assert inside.wait(20)  # the second step is on the device
        assert not reloaded.wait(0.2)
        go_on()
        queue.wait()
    for result in results:
        assert np.allclose(result.numpy(), 2 * image)
    assert np.allclose(graph.run([image]).numpy(), 3 * image)


def test_steps_run_by_another_thread_meanwhile():
    """Each step is whole, and comes before or after any other."""
    network, queue = ThreeLayers(engine="metal"), Queue()
    given = [batch(0) for _ in range(12)]
    other = threading.Thread(target=train, args=(network.graph, given[:6]))
    for images, labels in given[6:]:
        queue.add(network.graph, images, labels)
    other.start()
    other.join()
    queue.wait()
    losses = losses_of(given)
    assert losses[6:] != losses[:6]
    twin = ThreeLayers(engine="metal")
    assert sorted(losses) == sorted(train(twin.graph, [batch(0) for _ in range(12)]))
    assert network.state() == twin.state()
