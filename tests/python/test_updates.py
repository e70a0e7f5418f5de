# SPDX-License-Identifier: Apache-2.0
"""Who updates the weights, when, in which order, and that a step that fails leaves everything as it was."""

import re
import subprocess
import sys
import textwrap

import mpsnn
import numpy as np
import pytest
from graph_cases import (
    ENGINES,
    STYLES,
    CpuSource,
    GpuSource,
    ThreeLayers,
    adam,
    loss,
    numbers,
    one_hot,
    sgd,
    tolerance,
    weights,
)

LAYERS = ("first", "middle", "last")
SHAPES = {"first": (2, 4, 3), "middle": (4, 3, 3), "last": (3, 3, 6)}


def source(kind, layer, **options):
    inputs, outputs, kernel = SHAPES[layer]
    return kind(inputs, outputs, kernel, label=layer, seed=1 + LAYERS.index(layer), **options)


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


# --- batch normalization ------------------------------------------------------------------------------------------


class PythonNormalization(mpsnn.MPSCNNBatchNormalizationDataSource):
    def __init__(self, channels=4, log=None):
        super().__init__()
        self.numbers = {"gamma": np.ones(channels, np.float32), "beta": np.zeros(channels, np.float32)}
        self.numbers |= {"mean": np.zeros(channels, np.float32), "variance": np.ones(channels, np.float32)}
        self.log = [] if log is None else log
        self.seen = {}

    def number_of_feature_channels(self):
        return len(self.numbers["gamma"])

    def gamma(self):
        return self.numbers["gamma"]

    def beta(self):
        return self.numbers["beta"]

    def mean(self):
        return self.numbers["mean"]

    def variance(self):
        return self.numbers["variance"]

    def epsilon(self):
        return 1e-5

    def label(self):
        return "norm"

    def look(self, what, state):
        self.log.append(what)
        names = ("mean", "variance", "gradient_for_gamma", "gradient_for_beta", "gamma", "beta")
        self.seen[what] = {name: np.array(getattr(state, name)) for name in names}
        self.seen[what]["count"] = state.element_count


class CpuNormalization(PythonNormalization):
    def update_gamma_and_beta(self, state):
        self.look("gamma", state)
        self.numbers["gamma"] = (state.gamma - 0.1 * state.gradient_for_gamma).astype(np.float32)
        self.numbers["beta"] = (state.beta - 0.1 * state.gradient_for_beta).astype(np.float32)
        return True

    def update_mean_and_variance(self, state):
        self.look("mean", state)
        for name, batch in (("mean", state.mean), ("variance", state.variance)):
            self.numbers[name] = (0.9 * self.numbers[name] + 0.1 * batch).astype(np.float32)
        return True


class GpuNormalization(PythonNormalization):
    def update_gamma_and_beta_with_command_buffer(self, command_buffer, state):
        self.look("gamma", state)
        return mpsnn.MPSCNNNormalizationGammaAndBetaState(np.full(4, 2, np.float32), np.full(4, 3, np.float32))

    def update_mean_and_variance_with_command_buffer(self, command_buffer, state):
        self.look("mean", state)
        return mpsnn.MPSCNNNormalizationMeanAndVarianceState(np.full(4, 4, np.float32), np.full(4, 5, np.float32))


@pytest.mark.parametrize(
    ("style", "kind"), [(STYLES.UpdateDeviceCPU, CpuNormalization), (STYLES.UpdateDeviceGPU, GpuNormalization)]
)
def test_a_normalization_updates_gamma_and_beta_before_mean_and_variance(style, kind):
    norm = kind()
    net = ThreeLayers(style=style, normalization=norm)
    net.step()
    assert norm.log == ["gamma", "mean"]


def test_a_frozen_normalization_is_never_asked():
    norm = CpuNormalization()
    ThreeLayers(style=STYLES.UpdateDeviceNone, normalization=norm).step()
    assert norm.log == []


def test_cpu_updates_of_a_normalization_see_the_batchs_statistics_and_gradients():
    norm = CpuNormalization()
    net = ThreeLayers(style=STYLES.UpdateDeviceCPU, normalization=norm)
    images = numbers(8, 6, 6, 2)
    before = mpsnn.MPSNNGraph("reference", net.first.result_image).run([images]).numpy().reshape(-1, 4)
    net.step(images=images)
    seen, terms = norm.seen["mean"], before.size // 4
    assert seen["count"] == 8 * 6 * 6
    np.testing.assert_allclose(seen["mean"], before.mean(0), rtol=0, atol=tolerance(before, terms))
    np.testing.assert_allclose(seen["variance"], before.var(0), rtol=0, atol=tolerance(before**2, terms))
    assert np.abs(norm.seen["gamma"]["gradient_for_gamma"]).min() > 0


def test_new_normalization_values_serve_the_next_step():
    norm = GpuNormalization()
    net = ThreeLayers(normalization=norm)
    inference = mpsnn.MPSCNNBatchNormalizationNode(mpsnn.MPSNNImageNode(), norm)
    image = numbers(1, 2, 2, 4)
    start = net.step()
    assert (net.step() != start).any()
    # The data source still holds its own numbers: those of the graph live in the graph (7.8).
    got = mpsnn.MPSNNGraph("reference", inference.result_image).run([image]).numpy()
    np.testing.assert_allclose(got, image / np.sqrt(1 + np.float32(1e-5)), rtol=4 * np.finfo(np.float32).eps)


@pytest.mark.parametrize("style", [STYLES.UpdateDeviceCPU, STYLES.UpdateDeviceGPU])
@pytest.mark.parametrize("engine", ENGINES)
def test_running_statistics_are_a_moving_average_with_the_unbiased_variance(style, engine):
    norm = mpsnn.BatchNormalizationWeights(4, label="norm", momentum=0.25, optimizer=sgd())
    net = ThreeLayers(style=style, engine=engine, normalization=norm)
    mean, variance = np.zeros(4), np.ones(4)
    for seed in range(3):
        images = numbers(8, 6, 6, 2, seed=seed)
        batch = mpsnn.MPSNNGraph("reference", net.first.result_image).run([images]).numpy().reshape(-1, 4)
        net.step(seed, images)
        mean = 0.75 * mean + 0.25 * batch.mean(0)
        variance = 0.75 * variance + 0.25 * batch.var(0, ddof=1)
    limit = tolerance(batch**2, 3 * len(batch))
    np.testing.assert_allclose(norm.values["mean"], mean, rtol=0, atol=limit)
    np.testing.assert_allclose(norm.values["variance"], variance, rtol=0, atol=limit)
    assert (norm.values["gamma"] != 1).any()


@pytest.mark.parametrize("style", [STYLES.UpdateDeviceCPU, STYLES.UpdateDeviceGPU])
def test_running_statistics_stay_when_the_batchs_are_not_taken(style):
    norm = mpsnn.BatchNormalizationWeights(4, label="norm", optimizer=sgd())
    net = ThreeLayers(style=style)
    node = mpsnn.MPSCNNBatchNormalizationNode(net.first.result_image, norm)
    node.training_style = style
    node.flags = mpsnn.MPSCNNBatchNormalizationFlags.CalculateStatisticsNever
    (end,) = mpsnn.MPSCNNLossNode(node.result_image, loss("MeanSquaredError", weight=1e-3)).training_graph()
    graph = mpsnn.MPSNNGraph("cpu", end.result_image, False)
    for _ in range(3):
        graph.run([numbers(2, 6, 6, 2)], [mpsnn.MPSCNNLossLabels(numbers(2, 6, 6, 4))])
    np.testing.assert_array_equal(norm.values["mean"], np.zeros(4))
    np.testing.assert_array_equal(norm.values["variance"], np.ones(4))
    assert (norm.values["gamma"] != 1).any()


# --- atomicity ----------------------------------------------------------------------------------------------------


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
