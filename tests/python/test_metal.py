# SPDX-License-Identifier: Apache-2.0
"""The Metal engine, on the simulator: toy classes under Apple's names that compute with the reference engine. What passes here was encoded,
not run on Apple hardware. On a Mac the same tests run on the real framework."""

import ctypes
import gc
import math
import subprocess
import sys
import threading

import mpsnn
import numpy as np
import pytest
from graph_cases import STYLES, adam, loss, numbers, one_hot, sgd, tolerance, weights
from mpsnn import check_cases
from mpsnn.models import lenet
from mpsnn.trainer import Trainer
from training_cases import IMAGES, LABELS, state_of

METAL = next((device for device in mpsnn.devices() if device.name == "metal"), None)
IS_SIMULATED = METAL is not None and "simulat" in METAL.description.lower()
pytestmark = [
    pytest.mark.metal,
    pytest.mark.skipif(METAL is None, reason=f"no Metal device: {mpsnn.metal_status()}"),
]
simulated = pytest.mark.skipif(
    not IS_SIMULATED, reason="needs the simulator: configure with clang and -DMPSNN_METAL=ON on Linux"
)


def simulator():
    return ctypes.CDLL("libMetalSim.so")  # loaded already: the same library


def live_objects():
    gc.collect()
    count = simulator().mpsnn_sim_live_objects
    count.restype = ctypes.c_long
    return count()


@pytest.fixture(autouse=True)
def nothing_is_left(capfd):
    """Every object of the toy classes is gone after a test, and each was autoreleased into a pool."""
    before = live_objects() if IS_SIMULATED else 0
    yield
    if IS_SIMULATED:
        assert live_objects() == before
    assert "without pool" not in capfd.readouterr().err


def both(build, *arrays, labels=None, device="metal"):
    """Results of the same graph on this device and on the reference engine."""
    results = []
    for name in (device, "reference"):
        graph = mpsnn.MPSNNGraph(name, build())
        states = None if labels is None else [mpsnn.MPSCNNLossLabels(labels)]
        result = graph.run(list(arrays), states)
        results.append([np.array(image.numpy()) for image in (result if isinstance(result, list) else [result])])
    return results


def assert_same(first, second, terms):
    for got, expected in zip(first, second, strict=True):
        assert got.shape == expected.shape
        assert np.abs(got - expected).max(initial=0) <= tolerance(expected, terms)


# --- the device


@simulated
def test_the_simulator_is_used_by_name_only():
    assert mpsnn.default_device().name != "metal"
    assert "by name" in mpsnn.metal_status()


def test_info_says_what_there_is_of_metal():
    text = subprocess.run([sys.executable, "-m", "mpsnn", "info"], capture_output=True, text=True, check=True).stdout
    assert "metal" in text and mpsnn.metal_status().split('"')[0].strip() in " ".join(text.split())


# --- images and results


def test_convolution_and_relu_give_the_numbers_of_the_reference_engine():
    source = weights(3, 5)

    def build():
        node = mpsnn.MPSCNNConvolutionNode(mpsnn.MPSNNImageNode("image"), source)
        return [mpsnn.MPSCNNNeuronReLUNode(node.result_image, 0.1).result_image]

    assert_same(*both(build, numbers(2, 6, 7, 3)), terms=28)


def test_several_results_and_exports_come_back_under_their_handles():
    def build():
        image = mpsnn.MPSNNImageNode("image")
        first = mpsnn.MPSCNNNeuronReLUNode(image, 0.0)
        second = mpsnn.MPSCNNNeuronAbsoluteNode(first.result_image)
        third = mpsnn.MPSCNNNeuronLinearNode(second.result_image, 2.0, 1.0)
        first.result_image.export_from_graph = True
        return [third.result_image, second.result_image]

    results = []
    for device in ("metal", "reference"):
        graph = mpsnn.MPSNNGraph(device, build())
        exported = []
        found = graph.run([numbers(2, 3, 4, 2)], intermediate_images=exported)
        results.append([np.array(image.numpy()) for image in [*found, *exported]])
    assert len(results[0]) == 3
    assert_same(*results, terms=4)


def test_inputs_find_their_place_whatever_the_order_of_apples_lists():
    def build():
        names = "abc"
        a, b, c = (mpsnn.MPSNNImageNode(name) for name in names)
        late = mpsnn.MPSNNSubtractionNode(c, a)
        return [mpsnn.MPSNNSubtractionNode(late.result_image, b).result_image]

    arrays = [numbers(1, 2, 3, 4, seed=i) for i in range(3)]
    assert_same(*both(build, *arrays), terms=4)


def test_half_precision_images_round_as_the_cpu_engine_rounds():
    def build():
        image = mpsnn.MPSNNImageNode("image")
        node = mpsnn.MPSCNNNeuronLinearNode(image, 1.0, 0.0)
        node.result_image.format = mpsnn.MPSImageFeatureChannelFormat.Float16
        return [node.result_image]

    image = np.concatenate([numbers(1, 4, 5, 3), numbers(1, 4, 5, 3, seed=1) * np.float32(1e-6)])
    got, expected = both(build, image)
    assert np.array_equal(got[0], expected[0].astype(np.float32))
    assert np.array_equal(got[0], image.astype(np.float16).astype(np.float32))


def test_a_half_precision_input_reaches_the_device_rounded():
    image = mpsnn.MPSNNImageNode("image")
    image.format = mpsnn.MPSImageFeatureChannelFormat.Float16
    node = mpsnn.MPSCNNNeuronLinearNode(image, 1.0, 0.0)
    node.result_image.format = mpsnn.MPSImageFeatureChannelFormat.Float32
    values = numbers(1, 3, 3, 2)
    result = mpsnn.MPSNNGraph("metal", node.result_image).run([values])
    assert np.array_equal(result.numpy(), values.astype(np.float16).astype(np.float32))


def test_an_empty_batch_gives_an_empty_result():
    node = mpsnn.MPSCNNNeuronReLUNode(mpsnn.MPSNNImageNode("image"), 0.0)
    assert mpsnn.MPSNNGraph("metal", node.result_image).run([numbers(0, 3, 3, 2)]).numpy().shape == (0, 3, 3, 2)


def test_wrong_sizes_are_refused_before_apple_sees_them():
    node = mpsnn.MPSCNNConvolutionNode(mpsnn.MPSNNImageNode("image"), weights(3, 5, label="stem"))
    with pytest.raises(mpsnn.ShapeError, match="stem"):
        mpsnn.MPSNNGraph("metal", node.result_image).run([numbers(1, 6, 6, 4)])


# --- every node class


@pytest.mark.parametrize("name", [name for name in check_cases.forward_classes() if name in check_cases.MAKERS])
def test_every_class_with_a_gradient_gives_the_gradients_of_the_reference_engine(name):
    for case in check_cases.cases_of(name, 3):
        report = case.check(0, device="metal", samples=2)
        assert report.ok, f"{case.about}\n{report}"


WITHOUT_GRADIENT = {name: make for name, make in check_cases.NO_GRADIENT.items() if "Binary" not in name}


@pytest.mark.parametrize("name", WITHOUT_GRADIENT)
def test_every_class_without_a_gradient_gives_the_results_of_the_reference_engine(name):
    inputs = 2 if name in ("MPSNNDivisionNode", "MPSNNComparisonNode") else 1
    arrays = [numbers(2, 5, 4, 3, seed=i) + np.float32(3 * i) for i in range(inputs)]
    got, expected = both(lambda: [WITHOUT_GRADIENT[name](name).result_image], *arrays)
    assert_same(got, expected, terms=36)


@pytest.mark.parametrize("name", ["MPSCNNBinaryConvolutionNode", "MPSCNNBinaryFullyConnectedNode"])
@pytest.mark.parametrize("with_terms", [False, True])
def test_binary_convolutions_take_their_bits_from_the_application(name, with_terms):
    kernel = 3 if name == "MPSCNNBinaryConvolutionNode" else 4
    words = np.random.default_rng(3).integers(0, 2**32, (5, kernel, kernel, 2), np.uint32)
    loads = []

    class Bits(mpsnn.MPSCNNConvolutionDataSource):
        def descriptor(self):
            return mpsnn.MPSCNNConvolutionDescriptor(kernel, kernel, 40, 5)

        def data_type(self):
            return mpsnn.MPSDataType.UInt32

        def weights(self):
            return words

        def load(self):
            loads.append(1)
            return True

        def purge(self):
            loads.pop()

    source = Bits()

    def build():
        image, kinds = (
            mpsnn.MPSNNImageNode("image"),
            (mpsnn.MPSCNNBinaryConvolutionType.BinaryWeights, mpsnn.MPSCNNBinaryConvolutionFlags.None_),
        )
        if not with_terms:
            return [getattr(mpsnn, name)(image, source, 0.5, *kinds).result_image]
        terms = [numbers(5, seed=1), numbers(5, seed=2), numbers(40, seed=3), numbers(40, seed=4)]
        return [getattr(mpsnn, name)(image, source, *terms, *kinds).result_image]

    assert_same(*both(build, numbers(2, 4, 4, 40)), terms=40 * kernel * kernel)
    assert not loads


@pytest.mark.parametrize("quantization", ["Linear", "LookupTable"])
def test_quantized_weights_go_to_apple_as_they_are(quantization):
    class Quantized(mpsnn.MPSCNNConvolutionDataSource):
        def descriptor(self):
            return mpsnn.MPSCNNConvolutionDescriptor(3, 3, 2, 4)

        def data_type(self):
            return mpsnn.MPSDataType.UInt8

        def weights(self):
            return np.random.default_rng(0).integers(0, 256, (4, 3, 3, 2), np.uint8)

        def weights_quantization_type(self):
            return mpsnn.MPSCNNWeightsQuantizationType[quantization]

        def lookup_table_for_uint8_kernel(self):
            return numbers(256)

        def ranges_for_uint8_kernel(self):
            return np.sort(numbers(4, 2), axis=1)

        def bias_terms(self):
            return numbers(4)

    def build():
        return [mpsnn.MPSCNNConvolutionNode(mpsnn.MPSNNImageNode("image"), Quantized()).result_image]

    assert_same(*both(build, numbers(1, 5, 5, 2)), terms=18)


def test_folded_normalization_and_fused_neurons_are_applied_once():
    descriptor = mpsnn.MPSCNNConvolutionDescriptor(3, 3, 2, 4)
    descriptor.fused_neuron_descriptor = mpsnn.MPSNNNeuronDescriptor(mpsnn.MPSCNNNeuronType.ReLU, 0.2)
    descriptor.set_batch_normalization_parameters_for_inference(
        numbers(4), np.abs(numbers(4, seed=1)), numbers(4, seed=2), numbers(4, seed=3), 1e-3
    )
    source = mpsnn.ConvolutionWeights(descriptor, seed=1, label="fused")
    assert_same(
        *both(
            lambda: [mpsnn.MPSCNNConvolutionNode(mpsnn.MPSNNImageNode("image"), source).result_image],
            numbers(1, 5, 5, 2),
        ),
        terms=40,
    )


# --- objects of the application that Apple's classes call


def test_a_custom_padding_policy_is_asked():
    asked = []

    class Shifted(mpsnn.MPSNNPadding):
        def padding_method(self):
            return mpsnn.MPSNNPaddingMethod.Custom | mpsnn.MPSNNPaddingMethod.SizeSame

        def destination_image_descriptor(self, source_images, source_states, kernel, suggested):
            asked.append((source_images[0].width, kernel.kernel_width))
            kernel.offset_x += 1
            suggested.width -= 1
            return suggested

    def build():
        node = mpsnn.MPSCNNPoolingMaxNode(mpsnn.MPSNNImageNode("image"), 3, 2)
        node.padding_policy = Shifted()
        return [node.result_image]

    assert_same(*both(build, numbers(1, 8, 8, 3)), terms=1)
    assert (8, 3) in asked


def test_an_error_in_a_padding_policy_arrives_whole():
    calls = []

    class Broken(mpsnn.MPSNNPadding):
        def padding_method(self):
            return mpsnn.MPSNNPaddingMethod.Custom | mpsnn.MPSNNPaddingMethod.SizeSame

        def destination_image_descriptor(self, source_images, source_states, kernel, suggested):
            calls.append(1)
            if len(calls) > 1:  # the first question is the plan's
                raise KeyError("no such policy")
            return suggested

    node = mpsnn.MPSCNNPoolingMaxNode(mpsnn.MPSNNImageNode("image"), 3, 2)
    node.padding_policy = Broken()
    graph = mpsnn.MPSNNGraph("metal", node.result_image)
    with pytest.raises(KeyError, match="no such policy"):
        graph.run([numbers(1, 8, 8, 3)])


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


def network(device, style):
    net = lenet((8, 8, 1), 3, channels=(4, 8), hidden=12, dropout=0, seed=3)
    return Trainer(
        net.training_logits, inference_logits=net.logits, batch_size=16, learning_rate=0.01, seed=3, device=device
    )


def test_lenet_trains_on_metal_as_on_the_reference_engine():
    found = []
    for device in ("metal", "reference"):
        trainer = network(device, None)
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
@pytest.mark.parametrize("style", [STYLES.UpdateDeviceCPU, STYLES.UpdateDeviceGPU])
def test_normalizations_train(kind, style):
    found = []
    for device in ("metal", "reference"):
        source, node_class = normalization(kind)
        source.optimizer = sgd(0.1)
        convolution = weights(2, 4, optimizer=sgd(0.1, 0.9))
        node = mpsnn.MPSCNNConvolutionNode(mpsnn.MPSNNImageNode("image"), convolution)
        node = node_class(node.result_image, source)
        node.training_style = style
        node = mpsnn.MPSCNNFullyConnectedNode(node.result_image, weights(4, 4, 5, label="fc", seed=2))
        ends = mpsnn.MPSCNNLossNode(node.result_image, loss(weight=0.25)).training_graph()
        graph = mpsnn.MPSNNGraph(device, ends[0].result_image, False)
        found.append([losses_of(graph), *arrays_of(source), convolution.values["weights"].copy()])
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


@simulated
def test_a_failed_command_buffer_becomes_a_device_error_with_apples_words():
    node = mpsnn.MPSCNNNeuronReLUNode(mpsnn.MPSNNImageNode("image"), 0.0)
    node.label = "the only node"
    graph = mpsnn.MPSNNGraph("metal", node.result_image)
    simulator().mpsnn_sim_fail_next_command_buffer(b"Caused GPU Timeout Error (simulated)")
    with pytest.raises(mpsnn.DeviceError, match="Caused GPU Timeout Error") as caught:
        graph.run([numbers(1, 3, 3, 2)])
    assert "the only node" in caught.value.label
    assert graph.run([numbers(1, 3, 3, 2)]).numpy().shape == (1, 3, 3, 2)


def test_a_loss_that_is_not_finite_is_reported():
    graph, _ = trained_graph("metal", weights(2, 3, optimizer=sgd()), STYLES.UpdateDeviceGPU)
    images = np.full((4, 5, 5, 2), np.nan, np.float32)
    with pytest.raises(mpsnn.DeviceError, match="not finite"):
        graph.run([images], [mpsnn.MPSCNNLossLabels(one_hot(4, 4))])
