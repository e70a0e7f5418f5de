# SPDX-License-Identifier: Apache-2.0
"""A step that fails leaves everything as it was: data sources that raise, numbers that are trapped, a wait that is interrupted."""

import re
import subprocess
import sys
import textwrap

import mpsnn
import numpy as np
import pytest
from graph_cases import (
    ENGINES,
    LAYERS,
    STYLES,
    CpuSource,
    GpuSource,
    ThreeLayers,
    adam,
    loss,
    numbers,
    one_hot,
    sgd,
    source,
    weights,
)


class Failing(Exception):
    pass


def breaking(kind, method):
    """A source whose method raises while `is_broken`."""

    def broken(self, *arguments):
        if self.is_broken:
            raise Failing("a data source gave up")
        return getattr(kind, method)(self, *arguments)

    return type("Breaking", (kind,), {method: broken, "is_broken": False})


BREAKS = [
    (GpuSource, "update_with_command_buffer", STYLES.UpdateDeviceGPU),
    (CpuSource, "update", STYLES.UpdateDeviceCPU),
    (CpuSource, "load", STYLES.UpdateDeviceCPU),
    (CpuSource, "weights", STYLES.UpdateDeviceCPU),
    (CpuSource, "purge", STYLES.UpdateDeviceCPU),
]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(("kind", "method", "style"), BREAKS, ids=[f"{b[0].__name__}-{b[1]}" for b in BREAKS])
def test_a_data_source_that_raises_leaves_the_step_undone_and_training_goes_on(kind, method, style, layer, engine):
    def make():
        norm = mpsnn.BatchNormalizationWeights(4, label="norm", optimizer=adam())
        return ThreeLayers({layer: source(breaking(kind, method), layer)}, style, engine, normalization=norm), norm

    (broken, norm), (whole, other_norm) = make(), make()
    index = LAYERS.index(layer)
    python = broken.sources[index]
    for seed in range(2):
        broken.step(seed)
        whole.step(seed)
    state, statistics = broken.state(), {k: np.array(v) for k, v in norm.values.items()}
    count, values, biases = broken.graph.encode_count, python.values, python.biases
    python.is_broken = True
    with pytest.raises(Failing, match="gave up"):
        broken.step(7)
    python.is_broken = False
    assert broken.state() == state
    assert broken.graph.encode_count == count
    assert all((norm.values[name] == value).all() for name, value in statistics.items())
    python.values, python.biases = values, biases  # its own arrays are its own affair
    for seed in range(2, 4):
        np.testing.assert_array_equal(broken.step(seed), whole.step(seed))
    assert broken.state() == whole.state()
    assert all((norm.values[name] == value).all() for name, value in other_norm.values.items())


class MixedStyles:
    """Our own data sources of every kind in GPU style, with optimizers, and one in Python in CPU style between them."""

    def __init__(self, kind, method, engine):
        self.python = source(breaking(kind, method), "middle")
        self.own = [
            weights(2, 4, label="first", seed=1, optimizer=adam()),
            mpsnn.BatchNormalizationWeights(4, label="batch", optimizer=adam()),
            mpsnn.InstanceNormalizationWeights(4, label="instance", optimizer=sgd(0.1, 0.9)),
            mpsnn.GroupNormalizationWeights(4, 2, label="group", optimizer=adam()),
            weights(3, 3, kernel=6, label="last", seed=3, optimizer=sgd(0.1, 0.9)),
        ]
        first, batch, instance, group, last = self.own
        node = mpsnn.MPSCNNConvolutionNode(mpsnn.MPSNNImageNode("images"), first)
        node = mpsnn.MPSCNNBatchNormalizationNode(node.result_image, batch)
        node = mpsnn.MPSCNNInstanceNormalizationNode(node.result_image, instance)
        node = mpsnn.MPSCNNConvolutionNode(
            mpsnn.MPSCNNGroupNormalizationNode(node.result_image, group).result_image, self.python
        )
        node.training_style = STYLES.UpdateDeviceCPU
        node = mpsnn.MPSCNNFullyConnectedNode(node.result_image, last)
        node = mpsnn.MPSCNNLossNode(node.result_image, loss(weight=1 / 8))
        self.graph = mpsnn.MPSNNGraph(engine, node.training_graph()[0].result_image, False)

    def step(self, seed):
        labels = mpsnn.MPSCNNLossLabels(one_hot(3, 8, seed=seed))
        self.graph.run([numbers(8, 6, 6, 2, seed=seed)], [labels])
        return labels.loss_image.numpy().copy()

    def state(self):
        """The bits of all values, histories and running statistics, time steps, and what the kernels use."""
        values = [np.array(value).tobytes() for one in self.own for value in one.values.values()]
        history = [np.array(vector).tobytes() for one in self.own for vector in one.history]
        steps = [getattr(one.optimizer, "time_step", 0) for one in self.own]
        states = [self.graph.export_weights(one) for one in (self.own[0], self.python, self.own[-1])]
        return (
            values,
            history,
            steps,
            [a.tobytes() for s in states for a in (s.weights, s.biases)],
            self.graph.encode_count,
        )


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("kind", "method"), [b[:2] for b in BREAKS if b[0] is CpuSource], ids=lambda b: getattr(b, "__name__", b)
)
def test_a_cpu_style_source_that_raises_takes_back_what_gpu_style_optimizers_did(kind, method, engine):
    """The optimizers run with the command buffer, before the completion phase in which the Python source gives up."""
    broken, whole = MixedStyles(kind, method, engine), MixedStyles(kind, method, engine)
    for seed in range(2):
        np.testing.assert_array_equal(broken.step(seed), whole.step(seed))
    before, values, biases = broken.state(), broken.python.values, broken.python.biases
    for attempt in range(2):
        broken.python.is_broken = True
        with pytest.raises(Failing, match="gave up"):
            broken.step(7 + attempt)
        broken.python.is_broken = False
        assert broken.state() == before
        broken.python.values, broken.python.biases = values, biases  # its own arrays are its own affair
    for seed in range(2, 4):
        np.testing.assert_array_equal(broken.step(seed), whole.step(seed))
    assert broken.state() == whole.state()
    assert broken.state() != before


def test_a_first_step_that_fails_leaves_a_history_of_zeros():
    """The vectors are made when the step is encoded; what the optimizers wrote into them is taken back."""
    net = MixedStyles(CpuSource, "update", "cpu")
    net.python.is_broken = True
    values, _, *rest = net.state()
    with pytest.raises(Failing, match="gave up"):
        net.step(0)
    left, history, *others = net.state()
    assert (left, others) == (values, rest)
    assert not any(any(vector) for vector in history)


def test_a_source_that_writes_into_the_state_and_raises_is_undone():
    class Scribbler(CpuSource):
        def update(self, gradient_state, source_state):
            source_state.weights[...] = 0
            raise Failing("after writing")

    net = ThreeLayers({"first": source(Scribbler, "first")}, STYLES.UpdateDeviceCPU)
    before = net.weights()
    with pytest.raises(Failing):
        net.step()
    assert net.weights() == before


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("style", [STYLES.UpdateDeviceCPU, STYLES.UpdateDeviceGPU])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_bad_number_in_the_input_is_trapped_before_anything_moves(style, engine, value):
    def make():
        norm = mpsnn.BatchNormalizationWeights(4, label="norm", optimizer=adam())
        net = ThreeLayers(style=style, engine=engine, normalization=norm)
        net.graph.trap_nonfinite = True
        return net, norm

    (broken, norm), (whole, other_norm) = make(), make()
    for seed in range(2):
        broken.step(seed)
        whole.step(seed)
    state, statistics, count = (
        broken.state(),
        {k: np.array(v) for k, v in norm.values.items()},
        broken.graph.encode_count,
    )
    images = numbers(8, 6, 6, 2)
    images[1, 2, 3, 0] = value
    with pytest.raises(mpsnn.DeviceError, match='source image "images"') as caught:
        broken.step(images=images)
    assert caught.value.label == "images"
    assert re.search(r"element \d+ of 8 x 6 x 6 x 2", caught.value.actual)
    assert broken.state() == state
    assert all((norm.values[name] == before).all() for name, before in statistics.items())
    assert broken.graph.encode_count == count
    for seed in range(2, 4):
        np.testing.assert_array_equal(broken.step(seed), whole.step(seed))
    assert broken.state() == whole.state()
    assert all((norm.values[name] == other).all() for name, other in other_norm.values.items())


def test_a_trapped_number_is_found_in_the_node_that_made_it():
    x = mpsnn.MPSNNImageNode("x")
    logarithm = mpsnn.MPSCNNNeuronLogarithmNode(x)
    logarithm.label = "the logarithm"
    conv = mpsnn.MPSCNNConvolutionNode(logarithm.result_image, weights(2, 2, optimizer=sgd()))
    (end,) = mpsnn.MPSCNNLossNode(conv.result_image, loss("MeanSquaredError")).training_graph()
    graph = mpsnn.MPSNNGraph("cpu", end.result_image, False)
    graph.trap_nonfinite = True
    with pytest.raises(mpsnn.DeviceError, match="the logarithm") as caught:
        graph.run([-np.abs(numbers(1, 3, 3, 2))], [mpsnn.MPSCNNLossLabels(numbers(1, 3, 3, 2))])
    assert (caught.value.node, caught.value.label) == ("MPSCNNNeuronLogarithmNode", "the logarithm")


def test_a_trapped_number_in_the_labels_names_them():
    net = ThreeLayers()
    net.graph.trap_nonfinite = True
    net.loss.input_labels.handle = "targets"
    labels = one_hot(3, 8)
    labels[3] = np.nan
    with pytest.raises(mpsnn.DeviceError, match='labels "targets"') as caught:
        net.graph.run([numbers(8, 6, 6, 2)], [mpsnn.MPSCNNLossLabels(labels)])
    assert caught.value.label == "targets"


def test_a_trapped_number_in_the_weights_names_them():
    net = ThreeLayers()
    net.graph.trap_nonfinite = True
    bad = net.sources[1].values["weights"].copy()
    bad[0] = np.inf
    net.sources[1].set_values(weights=bad)
    net.graph.reload_from_data_sources()
    with pytest.raises(mpsnn.DeviceError, match='parameters "middle.weights"'):
        net.step()


def test_a_failed_step_draws_no_dropout_masks():
    def make():
        dropout = mpsnn.MPSCNNDropoutNode(mpsnn.MPSNNImageNode("x"), 0.5, 3)
        conv = mpsnn.MPSCNNConvolutionNode(dropout.result_image, weights(2, 2, optimizer=sgd()))
        (end,) = mpsnn.MPSCNNLossNode(conv.result_image, loss("MeanSquaredError", weight=1e-2)).training_graph()
        graph = mpsnn.MPSNNGraph("cpu", end.result_image)
        graph.trap_nonfinite = True
        return graph

    graphs, image, target = [make(), make()], numbers(2, 4, 4, 2), numbers(2, 4, 4, 2, seed=1)
    bad = image.copy()
    bad[...] = np.nan
    with pytest.raises(mpsnn.DeviceError):
        graphs[0].run([bad], [mpsnn.MPSCNNLossLabels(target)])
    results = [graph.run([image], [mpsnn.MPSCNNLossLabels(target)]).numpy() for graph in graphs]
    np.testing.assert_array_equal(*results)


INTERRUPTED = """
    import _thread, os, signal, sys, threading
    import mpsnn, numpy as np
    from graph_cases import ThreeLayers, numbers, one_hot

    net, whole = ThreeLayers(), ThreeLayers()
    images = numbers(256, 6, 6, 2)
    labels = [mpsnn.MPSCNNLossLabels(one_hot(3, 256)) for _ in range(2)]
    queue = mpsnn.CommandQueue("cpu")
    release = threading.Event()
    first = queue.command_buffer()
    first.add_completed_handler(lambda _: release.wait())  # holds the queue until the signal has come
    first.commit()
    step = queue.command_buffer()
    net.graph.encode(step, [images], [labels[0]])
    step.commit()
    threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    try:
        step.wait_until_completed()
        sys.exit("the wait was not interrupted")
    except KeyboardInterrupt:
        release.set()
    step.wait_until_completed()
    assert step.status == mpsnn.MTLCommandBufferStatus.Completed
    whole.graph.run([images], [labels[1]])
    assert net.state() == whole.state()
    print("whole")
"""


def test_a_keyboard_interrupt_ends_the_wait_and_the_step_stays_whole():
    from pathlib import Path

    folder = str(Path(__file__).parent)
    code = f"import sys; sys.path.insert(0, {folder!r})\n" + textwrap.dedent(INTERRUPTED)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "whole", "")
