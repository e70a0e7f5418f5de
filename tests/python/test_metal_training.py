# SPDX-License-Identifier: Apache-2.0
"""Training on the Metal engine: data sources and optimizers, in both styles. See test_metal.py for what a pass here means."""

import math
import subprocess
import sys
import threading

import mpsnn
import numpy as np
import pytest
from graph_cases import STYLES, adam, loss, numbers, one_hot, sgd, tolerance, weights
from metal_cases import assert_same, marks, nothing_is_left, simulated, simulator  # noqa: F401
from mpsnn.models import lenet
from mpsnn.trainer import Trainer
from training_cases import IMAGES, LABELS, state_of

pytestmark = marks


class Own(mpsnn.MPSCNNConvolutionDataSource):
    """A data source of an application: plain gradient descent, in either style."""

    def __init__(self, inputs, outputs, kernel=3, fails_in=""):
        super().__init__()
        self.shape = outputs, kernel, kernel, inputs
        self.values, self.biases = numbers(*self.shape, seed=5), numbers(outputs, seed=6)
        self.fails_in = fails_in
        self.calls = []

    def _call(self, name):
        self.calls.append(name)
        if name == self.fails_in:
            raise ArithmeticError(f"{name} failed on purpose")

    def descriptor(self):
        return mpsnn.MPSCNNConvolutionDescriptor(self.shape[2], self.shape[1], self.shape[3], self.shape[0])

    def weights(self):
        self._call("weights")
        return self.values

    def bias_terms(self):
        return self.biases

    def load(self):
        self._call("load")
        return True

    def label(self):
        return "own"

    def _stepped(self, gradient, source):
        self._call("update")
        return (
            np.array(source.weights - 0.1 * gradient.gradient_for_weights, np.float32),
            np.array(source.biases - 0.1 * gradient.gradient_for_biases, np.float32),
        )


class CpuSource(Own):
    def update(self, gradient_state, source_state):
        self.values, self.biases = self._stepped(gradient_state, source_state)
        return True


class GpuSource(Own):
    def update_with_command_buffer(self, command_buffer, gradient_state, source_state):
        self._call("update")
        optimizer = mpsnn.MPSNNOptimizerStochasticGradientDescent(None, 0.1)
        optimizer.encode(command_buffer, gradient_state, source_state, [], source_state)
        return source_state


SOURCES = {STYLES.UpdateDeviceCPU: CpuSource, STYLES.UpdateDeviceGPU: GpuSource}


def trained_graph(device, source, style, classes=4):
    image = mpsnn.MPSNNImageNode("image")
    node = mpsnn.MPSCNNConvolutionNode(image, source)
    node.training_style = style
    last = mpsnn.MPSCNNFullyConnectedNode(
        mpsnn.MPSCNNNeuronTanHNode(node.result_image).result_image,
        weights(3, classes, 5, label="fc", seed=2, optimizer=adam(0.05)),
    )
    last.training_style = style
    ends = mpsnn.MPSCNNLossNode(last.result_image, loss(weight=0.25)).training_graph()
    return mpsnn.MPSNNGraph(device, ends[0].result_image, False), last


def losses_of(graph, steps=3):
    found = []
    for step in range(steps):
        labels = mpsnn.MPSCNNLossLabels(one_hot(4, 4))
        graph.run([numbers(4, 5, 5, 2, seed=step % 2)], [labels])
        found.append(labels.loss_image.numpy().ravel())
    return np.array(found)


@pytest.mark.parametrize("style", [STYLES.UpdateDeviceCPU, STYLES.UpdateDeviceGPU])
def test_a_python_data_source_trains_as_on_the_reference_engine(style):
    sources, found = [], []
    for device in ("metal", "reference"):
        sources.append(SOURCES[style](2, 3))
        graph, last = trained_graph(device, sources[-1], style)
        found.append(
            (
                losses_of(graph),
                np.array(graph.export_weights(sources[-1]).weights),
                np.array(last.weights.values["weights"]),
            )
        )
    (first, own, fc), (second, expected_own, expected_fc) = found
    assert first[-1].sum() < first[0].sum()
    assert_same([first, own, fc], [second, expected_own, expected_fc], terms=4000)


@pytest.mark.parametrize("place", ["load", "weights", "update"])
@pytest.mark.parametrize("style", [STYLES.UpdateDeviceCPU, STYLES.UpdateDeviceGPU])
def test_what_a_data_source_raises_arrives_whole(place, style):
    source = SOURCES[style](2, 3, fails_in=place)
    with pytest.raises(ArithmeticError, match=f"{place} failed on purpose"):
        losses_of(trained_graph("metal", source, style)[0], 1)


def test_a_quantized_source_that_fails_when_apple_loads_it_fails_with_its_own_error():
    class Late(mpsnn.MPSCNNConvolutionDataSource):
        loads = 0

        def descriptor(self):
            return mpsnn.MPSCNNConvolutionDescriptor(1, 1, 1, 1)

        def data_type(self):
            return mpsnn.MPSDataType.Float16

        def weights(self):
            return np.ones((1, 1, 1, 1), np.float16)

        def load(self):
            self.loads += 1
            if self.loads > 2:  # the parameter store has asked twice
                raise OSError("the file is gone")
            return True

    node = mpsnn.MPSCNNConvolutionNode(mpsnn.MPSNNImageNode("image"), Late())
    with pytest.raises(OSError, match="the file is gone"):
        mpsnn.MPSNNGraph("metal", node.result_image)


# --- training


def arrays_of(source):
    return [np.array(array) for array in source.values.values() if array is not None]


OPTIMIZERS = {
    "sgd": lambda: sgd(0.05),
    "momentum": lambda: sgd(0.05, 0.9),
    "nesterov": lambda: mpsnn.MPSNNOptimizerStochasticGradientDescent(
        None, 0.9, True, mpsnn.MPSNNOptimizerDescriptor(learning_rate=0.05)
    ),
    "rmsprop": lambda: mpsnn.MPSNNOptimizerRMSProp(None, 0.01),
    "adam": adam,
    "amsgrad": lambda: mpsnn.MPSNNOptimizerAdam(
        None, 0.9, 0.999, 1e-8, 0, mpsnn.MPSNNOptimizerDescriptor(learning_rate=0.01), uses_amsgrad=True
    ),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_apples_optimizers_keep_values_and_history_where_the_application_sees_them(optimizer):
    found = []
    for device in ("metal", "reference"):
        source = weights(2, 3, optimizer=OPTIMIZERS[optimizer]())
        graph, _ = trained_graph(device, source, STYLES.UpdateDeviceGPU)
        found.append([losses_of(graph), *arrays_of(source), *[np.array(vector) for vector in source.history]])
    assert len(found[0]) == len(found[1])
    # RMSProp divides by the root of a moment: a relative error there is one of the step.
    assert_same(*found, terms=20_000)


def network(device):
    net = lenet((8, 8, 1), 3, channels=(4, 8), hidden=12, dropout=0, seed=3)
    return Trainer(
        net.training_logits, inference_logits=net.logits, batch_size=16, learning_rate=0.01, seed=3, device=device
    )


def test_lenet_trains_on_metal_as_on_the_reference_engine():
    found = []
    for device in ("metal", "reference"):
        trainer = network(device)
        trainer.fit(IMAGES, LABELS, epochs=2)
        found.append(state_of(trainer))
    for name, value in found[0].items():
        expected = found[1][name]
        # Adam's first steps are as long as the learning rate whatever the gradient: rounding shows where gradients are tiny.
        assert np.abs(value - expected).max(initial=0) <= max(
            tolerance(expected, 1e6), 10 * 0.01 * math.sqrt(np.finfo(np.float32).eps)
        ), name


def test_a_program_that_trains_differs_only_in_the_devices_name():
    program = """
import mpsnn, numpy as np
from mpsnn.models import lenet
from mpsnn.trainer import Trainer
net = lenet((8, 8, 1), 3, channels=(4, 8), hidden=12, dropout=0, seed=3)
trainer = Trainer(net.training_logits, inference_logits=net.logits, batch_size=16, learning_rate=0.01, seed=3, device=DEVICE)
images = np.random.default_rng(0).random((64, 8, 8, 1), dtype=np.float32)
labels = np.arange(64) % 3
trainer.fit(images, labels, epochs=1)
print("RESULT", sum(float(abs(array).sum()) for source in trainer.sources.values() for array in source.values.values()))
"""
    texts = [
        subprocess.run(
            [sys.executable, "-c", program.replace("DEVICE", repr(device))], capture_output=True, text=True, check=True
        )
        for device in ("metal", "cpu")
    ]
    assert all("without pool" not in run.stderr for run in texts)
    values = [float(run.stdout.split("RESULT")[1]) for run in texts]
    assert math.isclose(*values, rel_tol=1e3 * np.finfo(np.float32).eps)


def normalization(kind):
    if kind == "batch":
        return mpsnn.BatchNormalizationWeights(4, label="norm"), mpsnn.MPSCNNBatchNormalizationNode
    if kind == "instance":
        return mpsnn.InstanceNormalizationWeights(4, label="norm"), mpsnn.MPSCNNInstanceNormalizationNode
    return mpsnn.GroupNormalizationWeights(4, 2, label="norm"), mpsnn.MPSCNNGroupNormalizationNode


@pytest.mark.parametrize("kind", ["batch", "instance", "group"])
@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "rmsprop", "adam", "amsgrad"])
@pytest.mark.parametrize("style", [STYLES.UpdateDeviceCPU, STYLES.UpdateDeviceGPU])
def test_normalizations_train(kind, optimizer, style):
    found = []
    for device in ("metal", "reference"):
        source, node_class = normalization(kind)
        source.optimizer = OPTIMIZERS[optimizer]()
        convolution = weights(2, 4, optimizer=sgd(0.1, 0.9))
        node = mpsnn.MPSCNNConvolutionNode(mpsnn.MPSNNImageNode("image"), convolution)
        node = node_class(node.result_image, source)
        node.training_style = style
        node = mpsnn.MPSCNNFullyConnectedNode(node.result_image, weights(4, 4, 5, label="fc", seed=2))
        ends = mpsnn.MPSCNNLossNode(node.result_image, loss(weight=0.25)).training_graph()
        graph = mpsnn.MPSNNGraph(device, ends[0].result_image, False)
        history = [np.array(vector) for vector in source.history]
        found.append([losses_of(graph), *arrays_of(source), *history, convolution.values["weights"].copy()])
    assert_same(*found, terms=20_000)


def normalized(device, kind, flags=None, twice=False, style=STYLES.UpdateDeviceGPU):
    """A graph that trains a normalization alone, and its data source."""
    source, node_class = normalization(kind)
    source.optimizer = sgd(0.1, 0.9)
    node = mpsnn.MPSCNNConvolutionNode(mpsnn.MPSNNImageNode("image"), weights(2, 4))
    node.training_style = STYLES.UpdateDeviceNone
    for _ in range(1 + twice):
        node = node_class(node.result_image, source)
        node.training_style = style
        if flags is not None:
            node.flags = flags
    node = mpsnn.MPSCNNFullyConnectedNode(node.result_image, weights(4, 4, 5, label="fc", seed=2))
    node.training_style = STYLES.UpdateDeviceNone
    ends = mpsnn.MPSCNNLossNode(node.result_image, loss(weight=0.25)).training_graph()
    return mpsnn.MPSNNGraph(device, ends[0].result_image, False), source


@simulated
@pytest.mark.parametrize("kind", ["batch", "instance", "group"])
@pytest.mark.parametrize("style", [STYLES.UpdateDeviceCPU, STYLES.UpdateDeviceGPU])
def test_in_gpu_style_updates_of_normalizations_are_encoded_with_the_step(kind, style):
    """A step that the device does not finish has been encoded: its update too, or it would have come afterwards."""
    graph, source = normalized("metal", kind, style=style)
    source.optimizer = adam()
    simulator().mpsnn_sim_fail_next_command_buffer(b"no power (simulated)")
    with pytest.raises(mpsnn.DeviceError, match="no power"):
        losses_of(graph, 1)
    assert source.optimizer.time_step == (1 if style == STYLES.UpdateDeviceGPU else 0)


@pytest.mark.parametrize(
    "case", [{"kind": "batch", "flags": 2}, {"kind": "batch", "twice": True}, {"kind": "group", "twice": True}], ids=str
)
def test_fixed_statistics_and_shared_data_sources_of_normalizations(case):
    if "flags" in case:
        case = case | {"flags": mpsnn.MPSCNNBatchNormalizationFlags(case["flags"])}
    found = []
    for device in ("metal", "reference"):
        graph, source = normalized(device, **case)
        found.append([losses_of(graph), *arrays_of(source)])
    assert_same(*found, terms=20_000)


@pytest.mark.parametrize("kind", ["batch", "instance", "group"])
def test_an_empty_batch_decays_what_the_device_updates(kind):
    found = []
    for device in ("metal", "reference"):
        graph, source = normalized(device, kind)
        losses_of(graph, 1)
        graph.run([numbers(0, 5, 5, 2)], [mpsnn.MPSCNNLossLabels(one_hot(4, 4)[:0])])
        found.append([losses_of(graph), *arrays_of(source)])
    assert_same(*found, terms=20_000)


def test_exported_gradient_states_hold_apples_gradients():
    found = []
    for device in ("metal", "reference"):
        image = mpsnn.MPSNNImageNode("image")
        node = mpsnn.MPSCNNConvolutionNode(image, weights(2, 3))
        node.convolution_gradient_state.export_from_graph = True
        ends = node.training_graph(mpsnn.MPSNNImageNode("incoming"))
        states = []
        graph = mpsnn.MPSNNGraph(device, ends[0].result_image)
        given = {"image": numbers(2, 5, 5, 2), "incoming": numbers(2, 5, 5, 3, seed=1)}
        result = graph.run([given[name] for name in graph.source_image_handles], destination_states=states)
        found.append(
            [
                np.array(result.numpy()),
                np.array(states[0].gradient_for_weights),
                np.array(states[0].gradient_for_biases),
            ]
        )
    assert np.abs(found[0][1]).max() > 0
    assert_same(*found, terms=50)


def test_weights_set_by_hand_reach_the_device_after_a_reload():
    source = weights(1, 1, kernel=1)
    graph = mpsnn.MPSNNGraph("metal", mpsnn.MPSCNNConvolutionNode(mpsnn.MPSNNImageNode("image"), source).result_image)
    image = numbers(1, 2, 2, 1)
    source.set_values(weights=np.full((1, 1, 1, 1), 3, np.float32))
    graph.reload_from_data_sources()
    assert np.allclose(graph.run([image]).numpy(), 3 * image)


# --- command buffers


def test_the_next_batch_is_encoded_while_one_is_in_flight():
    source = weights(2, 3, optimizer=sgd(0.05, 0.9))
    graph, _ = trained_graph("metal", source, STYLES.UpdateDeviceGPU)
    queue = mpsnn.CommandQueue("metal")
    inside, go_on = threading.Event(), threading.Event()
    first = queue.command_buffer()
    first.add_completed_handler(lambda _: (inside.set(), go_on.wait(10)))
    first.commit()
    assert inside.wait(10)  # in flight: the others are encoded and committed behind it
    losses, buffers = [], []
    for step in range(3):
        buffers.append(queue.command_buffer())
        losses.append(mpsnn.MPSCNNLossLabels(one_hot(4, 4)))
        graph.encode(buffers[-1], [numbers(4, 5, 5, 2, seed=step % 2)], [losses[-1]])
        buffers[-1].commit()
    go_on.set()
    for buffer in buffers:
        buffer.wait_until_completed()
    again, _ = trained_graph("metal", weights(2, 3, optimizer=sgd(0.05, 0.9)), STYLES.UpdateDeviceGPU)
    assert np.array_equal(np.array([labels.loss_image.numpy().ravel() for labels in losses]), losses_of(again))


def test_a_loss_that_is_not_finite_is_reported():
    graph, _ = trained_graph("metal", weights(2, 3, optimizer=sgd()), STYLES.UpdateDeviceGPU)
    images = np.full((4, 5, 5, 2), np.nan, np.float32)
    with pytest.raises(mpsnn.DeviceError, match="not finite"):
        graph.run([images], [mpsnn.MPSCNNLossLabels(one_hot(4, 4))])
