# SPDX-License-Identifier: Apache-2.0
"""Updates of a batch normalization: gamma and beta, running mean and variance."""

import mpsnn
import numpy as np
import pytest
from graph_cases import ENGINES, STYLES, ThreeLayers, loss, numbers, sgd, tolerance


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
