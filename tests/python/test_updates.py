# SPDX-License-Identifier: Apache-2.0
"""Who updates the weights, when and in which order, and what an update does."""

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
    loss,
    numbers,
    one_hot,
    sgd,
    source,
    tolerance,
)


def all_sources(kind):
    return {layer: source(kind, layer) for layer in LAYERS}


# --- who is called ------------------------------------------------------------------------------------------------


class Watched(GpuSource, CpuSource):
    """Has an update for both styles and writes into a common list which one is called."""

    def __init__(self, *args, log, **options):
        super().__init__(*args, **options)
        self.log = log

    def update(self, gradient_state, source_state):
        self.log.append((self.name, "cpu"))
        return super().update(gradient_state, source_state)

    def update_with_command_buffer(self, command_buffer, gradient_state, source_state):
        self.log.append((self.name, "gpu"))
        return super().update_with_command_buffer(command_buffer, gradient_state, source_state)


@pytest.mark.parametrize(
    ("style", "kind"),
    [(STYLES.UpdateDeviceNone, None), (STYLES.UpdateDeviceCPU, "cpu"), (STYLES.UpdateDeviceGPU, "gpu")],
)
def test_each_style_has_its_callback_once_per_step_from_the_loss_backward(style, kind):
    log = []
    net = ThreeLayers({layer: source(Watched, layer, log=log) for layer in LAYERS}, style)
    assert log == []
    for _ in range(2):
        net.step()
    assert log == ([(layer, kind) for layer in reversed(LAYERS)] * 2 if kind else [])


def test_gpu_callbacks_run_during_encode_and_cpu_callbacks_at_completion():
    for style, calls_at_encode in ((STYLES.UpdateDeviceGPU, 3), (STYLES.UpdateDeviceCPU, 0)):
        log = []
        net = ThreeLayers({layer: source(Watched, layer, log=log) for layer in LAYERS}, style)
        buffer = mpsnn.CommandQueue("cpu").command_buffer()
        net.graph.encode(buffer, [numbers(2, 6, 6, 2)], [mpsnn.MPSCNNLossLabels(one_hot(3, 2))])
        assert len(log) == calls_at_encode
        buffer.commit()
        buffer.wait_until_completed()
        assert len(log) == 3


def test_a_cpu_update_is_followed_by_load_weights_and_purge():
    sources = all_sources(CpuSource)
    net = ThreeLayers(sources, STYLES.UpdateDeviceCPU)
    for one in sources.values():
        one.calls.clear()
    net.step()
    for one in sources.values():
        assert one.calls == ["update", "load", "weights", "purge"]


def test_a_cpu_update_that_returns_false_is_not_read_again():
    class Unmoved(CpuSource):
        def update(self, gradient_state, source_state):
            super().update(gradient_state, source_state)
            return False

    one = source(Unmoved, "middle")
    net = ThreeLayers({"middle": one}, STYLES.UpdateDeviceCPU)
    before = net.graph.export_weights(one).weights.copy()
    one.calls.clear()
    net.step()
    assert one.calls == ["update"]
    np.testing.assert_array_equal(net.graph.export_weights(one).weights, before)


def test_without_an_update_method_nothing_is_updated_and_the_rest_trains():
    class Fixed(mpsnn.MPSCNNConvolutionDataSource):
        def __init__(self, like):
            super().__init__()
            self.like = like

        def descriptor(self):
            return self.like.about

        def weights(self):
            return self.like.values

    for style in (STYLES.UpdateDeviceCPU, STYLES.UpdateDeviceGPU):
        fixed = Fixed(source(CpuSource, "middle"))
        net = ThreeLayers({"middle": fixed}, style)
        before = [net.graph.export_weights(one).weights.copy() for one in net.sources]
        net.step()
        moved = [
            (net.graph.export_weights(one).weights != old).any() for one, old in zip(net.sources, before, strict=True)
        ]
        assert moved == [True, False, True]


def test_a_gpu_update_that_returns_none_changes_nothing():
    class Idle(GpuSource):
        def update_with_command_buffer(self, *_):
            return None

    one = source(Idle, "first")
    net = ThreeLayers({"first": one})
    before = net.graph.export_weights(one).weights.copy()
    net.step()
    np.testing.assert_array_equal(net.graph.export_weights(one).weights, before)


@pytest.mark.parametrize("layer", LAYERS)
def test_a_cpu_style_method_on_a_gpu_style_node_is_an_error_that_says_so(layer):
    net = ThreeLayers({layer: source(CpuSource, layer)})
    state = net.state()
    with pytest.raises(mpsnn.WeightError, match=f'"{layer}" has update\\(\\)') as caught:
        net.step()
    assert caught.value.label == layer
    assert "UpdateDeviceCPU" in caught.value.expected
    assert net.weights() == state[0]


def test_a_normalization_with_cpu_style_methods_on_a_gpu_style_node_is_an_error_too():
    class Half(mpsnn.MPSCNNBatchNormalizationDataSource):
        def number_of_feature_channels(self):
            return 4

        def mean(self):
            return np.zeros(4, np.float32)

        def variance(self):
            return np.ones(4, np.float32)

        def label(self):
            return "norm"

        def update_gamma_and_beta(self, state):
            return False

    net = ThreeLayers(normalization=Half())
    with pytest.raises(mpsnn.WeightError, match='"norm" has update_gamma_and_beta') as caught:
        net.step()
    assert caught.value.label == "norm"


def test_a_gpu_update_that_returns_no_state_is_an_error_that_names_the_source():
    class Wrong(GpuSource):
        def update_with_command_buffer(self, command_buffer, gradient_state, source_state):
            return source_state.weights

    net = ThreeLayers({"middle": source(Wrong, "middle")})
    with pytest.raises(mpsnn.WeightError, match='"middle"') as caught:
        net.step()
    assert "MPSCNNConvolutionWeightsAndBiasesState" in caught.value.expected


def test_a_gpu_update_that_returns_a_state_of_another_size_is_an_error():
    class Wrong(GpuSource):
        def update_with_command_buffer(self, *_):
            return mpsnn.MPSCNNConvolutionWeightsAndBiasesState(mpsnn.MPSCNNConvolutionDescriptor(1, 1, 2, 2))

    net = ThreeLayers({"middle": source(Wrong, "middle")})
    with pytest.raises(mpsnn.WeightError, match='"middle".*4 weights, 108 are needed') as caught:
        net.step()
    assert (caught.value.label, caught.value.expected, caught.value.actual) == ("middle", "108", "4")


def test_two_nodes_on_one_data_source_call_it_once_each():
    log = []
    shared = Watched(2, 2, 3, label="shared", log=log)
    node = mpsnn.MPSCNNConvolutionNode(mpsnn.MPSNNImageNode(), shared)
    node = mpsnn.MPSCNNConvolutionNode(node.result_image, shared)
    (end,) = mpsnn.MPSCNNLossNode(node.result_image, loss("MeanSquaredError")).training_graph()
    graph = mpsnn.MPSNNGraph("cpu", end.result_image, False)
    graph.run([numbers(1, 4, 4, 2)], [mpsnn.MPSCNNLossLabels(numbers(1, 4, 4, 2))])
    assert len(log) == 2


# --- what an update does ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_every_way_to_descend_gives_the_same_weights(engine):
    """Our own sources in both styles, and sources in Python in both styles: v - lr * g."""
    ways = [
        ThreeLayers(style=STYLES.UpdateDeviceCPU, engine=engine, optimizer=sgd),
        ThreeLayers(style=STYLES.UpdateDeviceGPU, engine=engine, optimizer=sgd),
        ThreeLayers(all_sources(CpuSource), STYLES.UpdateDeviceCPU, engine=engine),
        ThreeLayers({layer: source(GpuSource, layer, optimizer=sgd()) for layer in LAYERS}, engine=engine),
    ]
    steps = 3
    for seed in range(steps):
        for net in ways:
            net.step(seed)
    for one, two, three, four in zip(*(net.sources for net in ways), strict=True):
        expected = ways[0].graph.export_weights(one).weights
        for net, other in ((ways[1], two), (ways[3], four)):
            np.testing.assert_array_equal(net.graph.export_weights(other).weights, expected)
        # NumPy rounds the product before it subtracts; on reference it also stores float32.
        np.testing.assert_allclose(
            ways[2].graph.export_weights(three).weights, expected, rtol=0, atol=tolerance(expected, 4 * steps**2)
        )


@pytest.mark.parametrize("engine", ENGINES)
def test_an_optimizer_recorded_from_python_keeps_its_history_in_vectors(engine):
    ours = ThreeLayers(engine=engine)
    python = ThreeLayers({layer: source(GpuSource, layer) for layer in LAYERS}, engine=engine)
    for seed in range(3):
        ours.step(seed)
        python.step(seed)
    for own, other in zip(ours.sources, python.sources, strict=True):
        assert other.optimizer.time_step == own.optimizer.time_step == 3
        expected = ours.graph.export_weights(own).weights
        got = python.graph.export_weights(other).weights
        limit = 0 if engine == "cpu" else tolerance(expected, 3**2)  # float32 vectors beside float64 weights
        np.testing.assert_allclose(got, expected, rtol=0, atol=limit)
        for vector, history in zip(other.vectors, own.history, strict=True):
            assert np.abs(vector.numpy()).max() > 0
            np.testing.assert_allclose(
                vector.numpy(), history, rtol=0, atol=0 if engine == "cpu" else tolerance(history, 9)
            )


def test_history_for_the_weights_alone_leaves_biases_as_they_are():
    class WeightsOnly(GpuSource):
        def update_with_command_buffer(self, command_buffer, gradient_state, source_state):
            first = self.vectors[: self.optimizer.history_count]
            self.optimizer.encode(command_buffer, gradient_state, source_state, first, source_state)
            return source_state

    one = source(WeightsOnly, "first")
    net = ThreeLayers({"first": one})
    before = net.graph.export_weights(one)
    net.step()
    after = net.graph.export_weights(one)
    assert (after.weights != before.weights).any()
    np.testing.assert_array_equal(after.biases, before.biases)


def test_a_new_result_state_takes_the_place_of_the_old_weights():
    class Fresh(GpuSource):
        def update_with_command_buffer(self, command_buffer, gradient_state, source_state):
            result = mpsnn.MPSCNNConvolutionWeightsAndBiasesState(self.about)
            self.optimizer.encode(command_buffer, gradient_state, source_state, self.vectors, result)
            return result

    one, two = source(Fresh, "middle"), source(GpuSource, "middle")
    nets = [ThreeLayers({"middle": one}), ThreeLayers({"middle": two})]
    for seed in range(2):
        for net in nets:
            net.step(seed)
    assert nets[0].weights() == nets[1].weights()


@pytest.mark.parametrize("style", [STYLES.UpdateDeviceCPU, STYLES.UpdateDeviceGPU])
def test_the_gradients_of_a_step_use_the_weights_from_before_its_updates(style):
    """The last layer is updated first; the data gradient behind it must not see that."""
    net = ThreeLayers(style=style, engine="reference", optimizer=sgd)
    still = ThreeLayers(style=STYLES.UpdateDeviceNone, engine="reference", optimizer=sgd)
    ends = []
    for model in (net, still):
        (end,) = model.loss.training_graph()
        graph = mpsnn.MPSNNGraph("reference", end.result_image)
        labels = mpsnn.MPSCNNLossLabels(one_hot(3, 4))
        ends.append(graph.run([numbers(4, 6, 6, 2)], [labels]).numpy().copy())
    np.testing.assert_array_equal(ends[0], ends[1])


@pytest.mark.parametrize("style", [STYLES.UpdateDeviceCPU, STYLES.UpdateDeviceGPU])
def test_two_steps_in_one_command_buffer_use_their_own_gradients(style):
    """GPU style: the second step sees the first one's update. CPU style: both updates come after both steps."""
    net, loop = (ThreeLayers(style=style, engine="reference", optimizer=sgd) for _ in range(2))
    images = [numbers(8, 6, 6, 2, seed=i) for i in range(2)]
    labels = [mpsnn.MPSCNNLossLabels(one_hot(3, 8, seed=i)) for i in range(2)]
    start = [net.graph.export_weights(one).weights.copy() for one in net.sources]
    buffer = mpsnn.CommandQueue("reference").command_buffer()
    for one, label in zip(images, labels, strict=True):
        net.graph.encode(buffer, [one], [label])
    buffer.commit()
    buffer.wait_until_completed()
    if style == STYLES.UpdateDeviceGPU:
        for seed in range(2):
            loop.step(seed)
        assert net.weights() == loop.weights()
        return
    moves = []
    for seed in range(2):
        once = ThreeLayers(style=style, engine="reference", optimizer=sgd)
        once.step(seed)
        moves.append([once.graph.export_weights(s).weights - old for s, old in zip(once.sources, start, strict=True)])
    for one, old, first, second in zip(net.sources, start, *moves, strict=True):
        expected = old + first + second
        got = net.graph.export_weights(one).weights
        np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance(expected, 4, np.float64))
        assert np.abs(first - second).max() > 0
