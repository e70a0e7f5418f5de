# SPDX-License-Identifier: Apache-2.0
"""The Metal engine, on the simulator: toy classes under Apple's names that compute with the reference engine. What passes here was encoded,
not run on Apple hardware. On a Mac the same tests run on the real framework."""

import subprocess
import sys

import mpsnn
import numpy as np
import pytest
from graph_cases import numbers, weights
from metal_cases import assert_same, both, marks, nothing_is_left, simulated, simulator  # noqa: F401
from mpsnn import _gradient_graph, check_cases

pytestmark = marks


# --- the device


@simulated
def test_the_simulator_is_used_by_name_only():
    assert mpsnn.default_device().name != "metal"
    assert "by name" in mpsnn.metal_availability()


def test_info_says_what_there_is_of_metal():
    text = subprocess.run([sys.executable, "-m", "mpsnn", "info"], capture_output=True, text=True, check=True).stdout
    assert "metal" in text and mpsnn.metal_availability().split('"')[0].strip() in " ".join(text.split())


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


def test_what_apple_refuses_is_refused_before_apple_sees_it():
    source = weights(6, 6, groups=2, label="grouped")  # three channels per group: Apple wants a multiple of four
    node = mpsnn.MPSCNNConvolutionNode(mpsnn.MPSNNImageNode("image"), source)
    with pytest.raises(mpsnn.Error, match="grouped"):
        mpsnn.MPSNNGraph("metal", node.result_image)


def test_the_engine_lowers_what_preflight_says_it_lowers():
    lowered = {name for name in check_cases.node_classes() if mpsnn.metal_status(name)[0] == "lowered"}
    assert (
        lowered == set(check_cases.node_classes()) - check_cases.BASES
    )  # what the engine lowers: see test_metal_source.py


# --- every node class


WITH_GRADIENT = [name for name in check_cases.forward_classes() if name in check_cases.MAKERS]
#: {class: the classes of all nodes in the graphs of its test}
RAN = {}


@pytest.mark.parametrize("name", WITH_GRADIENT)
def test_every_class_with_a_gradient_gives_the_gradients_of_the_reference_engine(name, monkeypatch):
    make_graph, ran, checked = _gradient_graph._graph, set(), 0

    def make_and_note(device, results):
        graph = make_graph(device, results)
        if device == "metal":
            ran.update(type(node).__name__ for node in graph.nodes)
        return graph

    monkeypatch.setattr(_gradient_graph, "_graph", make_and_note)
    for case in check_cases.cases_of(name, 40):
        if checked == 3 or not mpsnn.MPSNNGraph("reference", case.node.result_image).preflight("metal", case.shapes).ok:
            continue  # what Apple refuses is another test's subject
        report = case.check(0, device="metal", samples=2)
        assert report.ok, f"{case.about}\n{report}"
        checked += 1
    assert checked
    RAN[name] = ran


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


def test_every_class_that_is_lowered_has_run():
    """No row of docs/nodes.md is empty: what is called lowered has met the numbers of the reference engine in one of the tests above."""
    if len(RAN) < len(WITH_GRADIENT):
        pytest.skip("needs the tests of all classes in the same process")
    lowered = {name for name in check_cases.node_classes() if mpsnn.metal_status(name)[0] == "lowered"}
    assert lowered == set().union(*RAN.values()) | set(check_cases.NO_GRADIENT)


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


# --- command buffers


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
