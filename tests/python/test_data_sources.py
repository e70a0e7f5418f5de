# SPDX-License-Identifier: Apache-2.0
"""Data sources written in Python, and our own: what a graph reads from them and what it refuses."""

import gc
import weakref

import mpsnn
import numpy as np
import pytest
from graph_cases import ENGINES, ArraySource, CpuSource, adam, loss, numbers, sgd, tolerance, weights

Descriptor = mpsnn.MPSCNNConvolutionDescriptor


def graph_of(source, engine="cpu"):
    node = mpsnn.MPSCNNConvolutionNode(mpsnn.MPSNNImageNode("x"), source)
    return mpsnn.MPSNNGraph(engine, node.result_image)


# --- the protocol -------------------------------------------------------------------------------------------------


def test_load_comes_first_and_is_balanced_by_purge():
    source = ArraySource()
    graph = graph_of(source)
    assert source.calls[0] == "load"
    assert source.calls[-1] == "purge"
    assert source.calls.count("load") == source.calls.count("purge") > 0
    depth = 0
    for call in source.calls:
        depth += {"load": 1, "purge": -1}.get(call, 0)
        assert depth in (0, 1)
        assert call != "weights" or depth == 1
    source.calls.clear()
    graph.reload_from_data_sources()
    assert source.calls == ["load", "weights", "purge"]


def test_load_that_returns_false_refuses_with_the_label():
    source = ArraySource(label="stem")
    source.accepts = False
    with pytest.raises(mpsnn.WeightError, match='"stem": load\\(\\) refused') as caught:
        graph_of(source)
    assert (caught.value.label, caught.value.expected, caught.value.actual) == ("stem", "true", "false")


def test_load_that_returns_nothing_accepts():
    source = ArraySource()
    source.accepts = None
    graph_of(source)


@pytest.mark.parametrize("method", ["load", "weights", "bias_terms", "descriptor", "label", "purge", "data_type"])
def test_an_exception_arrives_as_it_was_raised_and_loads_stay_balanced(method):
    class Broken(ArraySource):
        pass

    error = LookupError("the file is gone")

    def broken(self):
        if method == "purge":
            self.calls.append("purge")
        raise error

    setattr(Broken, method, broken)
    source = Broken()
    with pytest.raises(LookupError) as caught:
        graph_of(source)
    assert caught.value is error
    assert source.calls.count("load") == source.calls.count("purge")


def test_an_exception_in_purge_does_not_hide_the_first_one():
    class Broken(ArraySource):
        def weights(self):
            raise LookupError("first")

        def purge(self):
            super().purge()
            raise ValueError("second")

    with pytest.raises((LookupError, ValueError)) as caught:
        graph_of(Broken())
    # purge() also runs when the descriptor is read, before weights(): then it is the first to raise.
    assert str(caught.value) in ("first", "second")


@pytest.mark.parametrize(
    ("values", "biases", "expected"),
    [
        ((3, 3, 3, 1), 3, "weights has 27 numbers, 54 are needed"),
        ((3, 3, 3, 2), 4, "bias_terms has 4 numbers, 3 are needed"),
    ],
)
def test_arrays_of_the_wrong_size_are_refused_with_both_sizes(values, biases, expected):
    source = ArraySource(label="stem")
    source.values, source.biases = np.zeros(values, np.float32), np.zeros(biases, np.float32)
    with pytest.raises(mpsnn.WeightError, match=f'"stem": {expected}') as caught:
        graph_of(source)
    needed, given = expected.split()[4], expected.split()[2]
    assert caught.value.label == "stem"
    assert needed in caught.value.expected
    assert caught.value.actual == given


def test_a_source_without_weights_is_refused():
    class Empty(mpsnn.MPSCNNConvolutionDataSource):
        def descriptor(self):
            return Descriptor(3, 3, 2, 3)

        def label(self):
            return "empty"

    with pytest.raises(mpsnn.WeightError, match='"empty".*0 numbers, 54 are needed'):
        graph_of(Empty())


def test_a_source_without_a_descriptor_is_refused_by_name():
    class Empty(mpsnn.MPSCNNConvolutionDataSource):
        def label(self):
            return "empty"

    class EmptyNormalization(mpsnn.MPSCNNBatchNormalizationDataSource):
        def label(self):
            return "empty"

    with pytest.raises(mpsnn.WeightError, match='"empty" does not define descriptor'):
        graph_of(Empty())
    node = mpsnn.MPSCNNBatchNormalizationNode(mpsnn.MPSNNImageNode(), EmptyNormalization())
    with pytest.raises(mpsnn.WeightError, match='"empty" does not define number_of_feature_channels'):
        mpsnn.MPSNNGraph("cpu", node.result_image)


@pytest.mark.parametrize(
    ("dtype", "kind"), [(np.float64, "Float32"), (np.float32, "Float16"), (np.float16, "UInt8"), (np.int32, "Float32")]
)
def test_arrays_of_another_type_than_announced_are_refused(dtype, kind):
    source = ArraySource(label="stem")
    source.values, source.kind = source.values.astype(dtype), mpsnn.MPSDataType[kind]
    with pytest.raises(mpsnn.WeightError, match='"stem" returned weights of another type') as caught:
        graph_of(source)
    assert (caught.value.label, caught.value.expected, caught.value.actual) == (
        "stem",
        kind.lower(),
        np.dtype(dtype).name,
    )


def test_a_data_type_that_weights_cannot_have_is_refused():
    source = ArraySource(label="stem")
    source.kind = mpsnn.MPSDataType.Int16
    with pytest.raises(mpsnn.WeightError, match='"stem": weights are Float32, Float16 or UInt8'):
        graph_of(source)


@pytest.mark.parametrize("field", ["kernel_width", "output_feature_channels", "stride_in_pixels_x"])
def test_a_descriptor_that_changes_between_load_and_reload_is_refused(field):
    source = ArraySource(label="stem")
    graph = graph_of(source)
    before = graph.export_weights(source).weights.copy()
    changed = Descriptor(3, 3, 2, 3)
    setattr(changed, field, 5)
    source.about = changed
    with pytest.raises(mpsnn.WeightError, match='"stem": the descriptor changed') as caught:
        graph.reload_from_data_sources()
    assert "3 x 3 x 3 x 2" in caught.value.expected
    assert source.calls[-1] == "purge"
    np.testing.assert_array_equal(graph.export_weights(source).weights, before)


def test_biases_that_appear_or_disappear_later():
    source = ArraySource(label="stem")
    source.biases = None
    graph = graph_of(source)
    source.biases = np.ones(3, np.float32)
    with pytest.raises(mpsnn.WeightError, match='"stem": bias terms appeared'):
        graph.reload_from_data_sources()
    source = ArraySource()
    source.biases += 1
    graph = graph_of(source)
    source.biases = None
    graph.reload_from_data_sources()  # none are zeros
    np.testing.assert_array_equal(graph.export_weights(source).biases, np.zeros(3))


def test_a_reload_that_fails_half_way_leaves_all_weights_as_they_were():
    first, second = ArraySource(2, 3, label="first"), ArraySource(3, 2, label="second")
    node = mpsnn.MPSCNNConvolutionNode(mpsnn.MPSNNImageNode(), first)
    node = mpsnn.MPSCNNConvolutionNode(node.result_image, second)
    graph = mpsnn.MPSNNGraph("cpu", node.result_image)
    image = numbers(1, 4, 4, 2)
    before = graph.run([image]).numpy()
    first.values, second.values = first.values * 2, np.zeros(1, np.float32)
    with pytest.raises(mpsnn.WeightError):
        graph.reload_from_data_sources()
    np.testing.assert_array_equal(graph.run([image]), before)


def test_a_source_without_a_label_goes_by_the_name_of_its_node():
    source = ArraySource(label=None)
    source.values = source.values[:1]
    with pytest.raises(mpsnn.WeightError, match='"MPSCNNConvolutionNode": weights has'):
        graph_of(source)
    node = mpsnn.MPSCNNConvolutionNode(mpsnn.MPSNNImageNode(), source)
    node.label = "my layer"
    with pytest.raises(mpsnn.WeightError, match='"my layer": weights has'):
        mpsnn.MPSNNGraph("cpu", node.result_image)


def test_a_nodes_label_goes_before_the_sources():
    node = mpsnn.MPSCNNConvolutionNode(mpsnn.MPSNNImageNode(), weights(2, 3, label="source"))
    assert mpsnn.MPSNNGraph("cpu", node.result_image).node_name(node) == "source"
    node.label = "node"
    assert mpsnn.MPSNNGraph("cpu", node.result_image).node_name(node) == "node"


def test_a_source_held_by_the_graph_alone_keeps_working():
    source = CpuSource(2, 3)
    node = mpsnn.MPSCNNConvolutionNode(mpsnn.MPSNNImageNode(), source)
    node.training_style = mpsnn.MPSNNTrainingStyle.UpdateDeviceCPU
    (end,) = mpsnn.MPSCNNLossNode(node.result_image, loss("MeanSquaredError", weight=1e-2)).training_graph()
    graph = mpsnn.MPSNNGraph("cpu", end.result_image)
    alive, calls = weakref.ref(source), source.calls
    del source, node, end
    gc.collect()
    calls.clear()
    labels = mpsnn.MPSCNNLossLabels(numbers(1, 4, 4, 3))
    losses = []
    for _ in range(3):
        graph.run([numbers(1, 4, 4, 2)], [labels])
        losses.append(float(labels.loss_image.numpy().sum()))
    assert calls.count("update") == 3
    assert losses[2] < losses[1] < losses[0]
    assert alive() is not None
    del graph
    gc.collect()
    assert alive() is None


def test_a_source_held_by_a_node_alone_keeps_its_class():
    node = mpsnn.MPSCNNConvolutionNode(mpsnn.MPSNNImageNode(), ArraySource(label="mine"))
    gc.collect()
    assert type(node.weights) is ArraySource
    assert node.weights.label() == "mine"


# --- element types ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_float16_weights_are_the_numbers_that_they_say(engine):
    source = ArraySource(1, 4, 4)
    halves = np.array([0, -0.0, 1, -2.5, 65504, 6e-8, 6.1e-5, 0.333251953125] * 8, np.float16)
    source.values, source.kind = halves, mpsnn.MPSDataType.Float16
    graph = graph_of(source, engine)
    got = graph.export_weights(source).weights
    np.testing.assert_array_equal(got.ravel(), halves.astype(np.float64))


@pytest.mark.parametrize("engine", ENGINES)
def test_uint8_weights_with_ranges_are_linear_in_each_output_channel(engine):
    class Linear(ArraySource):
        def weights_quantization_type(self):
            return mpsnn.MPSCNNWeightsQuantizationType.Linear

        def ranges_for_uint8_kernel(self):
            return self.ranges

    source = Linear(2, 3)
    source.values = np.random.default_rng(0).integers(0, 256, (3, 3, 3, 2)).astype(np.uint8)
    source.values[:, 0, 0, :] = [0, 255]
    source.kind = mpsnn.MPSDataType.UInt8
    source.ranges = np.array([[-1, 1], [0.25, 0.5], [3, -3]], np.float32)
    lower, upper = source.ranges.astype(np.float64).T[..., None, None, None]
    expected = lower + source.values * (upper - lower) / 255
    got = graph_of(source, engine).export_weights(source).weights
    np.testing.assert_allclose(got, expected, rtol=np.finfo(np.float32).eps)
    np.testing.assert_array_equal(got[:, 0, 0, :], source.ranges)


@pytest.mark.parametrize("engine", ENGINES)
def test_uint8_weights_with_a_table_are_looked_up(engine):
    class Table(ArraySource):
        def weights_quantization_type(self):
            return mpsnn.MPSCNNWeightsQuantizationType.LookupTable

        def lookup_table_for_uint8_kernel(self):
            return self.table

    source = Table(2, 3)
    source.values = np.random.default_rng(0).integers(0, 256, (3, 3, 3, 2)).astype(np.uint8)
    source.kind, source.table = mpsnn.MPSDataType.UInt8, numbers(256)
    got = graph_of(source, engine).export_weights(source).weights
    np.testing.assert_array_equal(got, source.table[source.values])


@pytest.mark.parametrize(
    ("method", "size", "kind", "expected"),
    [
        ("lookup_table_for_uint8_kernel", 255, "LookupTable", "255 numbers, 256 are needed"),
        ("ranges_for_uint8_kernel", 3, "Linear", "3 numbers, 6 are needed"),
    ],
)
def test_tables_of_the_wrong_size_are_refused(method, size, kind, expected):
    body = {
        "weights_quantization_type": lambda self: mpsnn.MPSCNNWeightsQuantizationType[kind],
        method: lambda self: np.zeros(size, np.float32),
    }
    source = type("Quantized", (ArraySource,), body)(label="stem")
    source.values, source.kind = source.values.astype(np.uint8), mpsnn.MPSDataType.UInt8
    with pytest.raises(mpsnn.WeightError, match=f'"stem": {method} has {expected}'):
        graph_of(source)


def test_uint8_weights_without_a_quantization_are_refused():
    source = ArraySource(label="stem")
    source.values, source.kind = source.values.astype(np.uint8), mpsnn.MPSDataType.UInt8
    with pytest.raises(mpsnn.WeightError, match='"stem": UInt8 weights need a quantization type'):
        graph_of(source)


# --- ConvolutionWeights -------------------------------------------------------------------------------------------


def test_arrays_given_are_used_as_they_are_and_never_written_to():
    array, biases = numbers(3, 3, 3, 2), numbers(3)
    kept = array.copy(), biases.copy()
    source = mpsnn.ConvolutionWeights(Descriptor(3, 3, 2, 3), array, biases, optimizer=adam())
    assert source.values["weights"].__array_interface__["data"][0] == array.__array_interface__["data"][0]
    node = mpsnn.MPSCNNConvolutionNode(mpsnn.MPSNNImageNode(), source)
    (end,) = mpsnn.MPSCNNLossNode(node.result_image, loss("MeanSquaredError")).training_graph()
    graph = mpsnn.MPSNNGraph("cpu", end.result_image)
    graph.run([numbers(1, 4, 4, 2)], [mpsnn.MPSCNNLossLabels(numbers(1, 4, 4, 3))])
    np.testing.assert_array_equal(array, kept[0])
    np.testing.assert_array_equal(biases, kept[1])
    assert (source.values["weights"] != array).all()


def test_values_are_read_only_views():
    with pytest.raises(ValueError, match="read-only"):
        weights(2, 3).values["weights"][...] = 0


@pytest.mark.parametrize("name", ["he", "xavier", "zeros"])
def test_initialisers_repeat_for_a_seed_and_start_biases_at_zero(name):
    def draw(seed):
        return mpsnn.ConvolutionWeights(Descriptor(3, 5, 4, 6), initializer=name, seed=seed)

    first, again, other = draw(1), draw(1), draw(2)
    assert first.values["weights"].tobytes() == again.values["weights"].tobytes()
    assert (first.values["weights"].tobytes() == other.values["weights"].tobytes()) == (name == "zeros")
    assert not first.values["biases"].any()
    assert "biases" not in mpsnn.ConvolutionWeights(Descriptor(3, 3, 1, 1), None, False).values


SIGMAS = 6.0  # a mean of n independent numbers leaves so many standard errors once in half a billion draws


@pytest.mark.parametrize(
    ("descriptor", "fan_in", "fan_out"),
    [
        (Descriptor(3, 5, 32, 48), 3 * 5 * 32, 3 * 5 * 48),
        (Descriptor(3, 3, 64, 64, groups=4), 3 * 3 * 16, 3 * 3 * 16),
        (mpsnn.MPSCNNDepthWiseConvolutionDescriptor(7, 7, 512, 512), 49, 49),
    ],
    ids=["plain", "grouped", "depthwise"],
)
def test_he_and_xavier_have_their_mean_and_variance(descriptor, fan_in, fan_out):
    he = mpsnn.ConvolutionWeights(descriptor, initializer="he", seed=3).values["weights"].astype(np.float64)
    xavier = mpsnn.ConvolutionWeights(descriptor, initializer="xavier", seed=3).values["weights"].astype(np.float64)
    count = he.size
    # Standard error of a mean: sqrt(v / n); of a variance: v sqrt((kurtosis - 1) / n), kurtosis 3 (normal) or 9 / 5 (uniform).
    for values, variance, kurtosis in ((he, 2 / fan_in, 3.0), (xavier, 2 / (fan_in + fan_out), 1.8)):
        assert abs(values.mean()) < SIGMAS * np.sqrt(variance / count)
        assert abs(values.var() - variance) < SIGMAS * variance * np.sqrt((kurtosis - 1) / count)
    limit = np.sqrt(6 / (fan_in + fan_out))
    assert np.abs(xavier).max() <= limit * (1 + np.finfo(np.float32).eps)
    # The largest of n uniform numbers is below limit * (1 - 30 / n) with probability e^-30.
    assert np.abs(xavier).max() > limit * (1 - 30 / count)
    deviation = np.sqrt(2 / fan_in)
    for share, multiple in ((0.682689, 1), (0.954500, 2)):  # it is normal, not uniform
        inside = (np.abs(he) < multiple * deviation).mean()
        assert abs(inside - share) < SIGMAS * np.sqrt(share * (1 - share) / count)


def test_neighbouring_seeds_and_neighbouring_weights_are_uncorrelated():
    a, b = (mpsnn.ConvolutionWeights(Descriptor(3, 3, 32, 32), seed=s).values["weights"].ravel() for s in (1, 2))
    limit = SIGMAS / np.sqrt(a.size)
    assert abs(np.corrcoef(a, b)[0, 1]) < limit
    assert abs(np.corrcoef(a[1:], a[:-1])[0, 1]) < limit


def test_an_unknown_initialiser_is_refused_with_the_list():
    with pytest.raises(mpsnn.OptionError, match="he, xavier or zeros") as caught:
        mpsnn.ConvolutionWeights(Descriptor(3, 3, 1, 1), initializer="glorot")
    assert caught.value.actual == "glorot"


@pytest.mark.parametrize(
    ("values", "biases", "message"),
    [((3, 3, 3, 3), None, "weights has 81 numbers, 54"), ((3, 3, 3, 2), (2,), "biases has 2 numbers, 3")],
)
def test_convolution_weights_of_the_wrong_size_are_refused(values, biases, message):
    arrays = [np.zeros(shape, np.float32) if shape else None for shape in (values, biases)]
    with pytest.raises(mpsnn.WeightError, match=f'weights "stem": {message}') as caught:
        mpsnn.ConvolutionWeights(Descriptor(3, 3, 2, 3), *arrays, label="stem")
    assert caught.value.label == "stem"
    source = weights(2, 3, label="stem")
    given = dict(zip(("weights", "biases"), arrays, strict=True))
    with pytest.raises(mpsnn.WeightError, match='weights "stem"'):
        source.set_values(**{name: array for name, array in given.items() if array is not None})


def test_set_values_copies_and_reaches_graphs_at_the_next_reload():
    source, image = weights(2, 3), numbers(1, 4, 4, 2)
    graph = graph_of(source)
    before, array = graph.run([image]).numpy(), numbers(3, 3, 3, 2, seed=5)
    source.set_values(weights=array)
    np.testing.assert_array_equal(source.values["weights"], array)
    np.testing.assert_array_equal(graph.run([image]), before)
    graph.reload_from_data_sources()
    changed = graph.run([image]).numpy()
    assert (changed != before).any()
    array[...] = 0
    graph.reload_from_data_sources()
    np.testing.assert_array_equal(graph.run([image]), changed)
    with pytest.raises(TypeError, match="gamma"):
        source.set_values(gamma=array)


def test_float64_weights_are_stored_as_they_are_and_read_as_float32():
    array = numbers(3, 3, 3, 2).astype(np.float64) + 2.0**-40
    source = mpsnn.ConvolutionWeights(Descriptor(3, 3, 2, 3), array)
    shown = source.weights()
    gc.collect()
    trash = [np.full(array.size, 7, np.float32) for _ in range(50)]  # would land in freed memory
    np.testing.assert_array_equal(shown, array.astype(np.float32).ravel())
    assert len(trash) == 50


# --- optimizers on data sources -----------------------------------------------------------------------------------


def trained(source, steps, engine="cpu", first=0):
    node = mpsnn.MPSCNNConvolutionNode(mpsnn.MPSNNImageNode(), source)
    (end,) = mpsnn.MPSCNNLossNode(node.result_image, loss("MeanSquaredError", weight=1e-2)).training_graph()
    graph = mpsnn.MPSNNGraph(engine, end.result_image, False)
    for seed in range(first, first + steps):
        graph.run([numbers(2, 4, 4, 2, seed=seed)], [mpsnn.MPSCNNLossLabels(numbers(2, 4, 4, 3, seed=seed))])
    return source


def test_a_source_takes_a_copy_of_its_optimizer():
    shared = adam()
    first, second = weights(2, 3, optimizer=shared), weights(2, 3, optimizer=shared)
    trained(first, 3)
    assert (shared.time_step, first.optimizer.time_step, second.optimizer.time_step) == (0, 3, 0)
    assert first.history != []
    assert second.history == []


@pytest.mark.parametrize("engine", ENGINES)
def test_restored_history_continues_exactly(engine):
    whole = trained(weights(2, 3, optimizer=adam()), 6, engine)
    half = trained(weights(2, 3, optimizer=adam()), 3, engine)
    again = weights(2, 3, optimizer=adam())
    again.set_values(**half.values)
    again.history = half.history
    again.optimizer.time_step = half.optimizer.time_step
    trained(again, 3, engine, first=3)
    limit = 0 if engine == "cpu" else tolerance(whole.values["weights"], 6)  # set_values() stores float32
    np.testing.assert_allclose(again.values["weights"], whole.values["weights"], rtol=0, atol=limit)
    for vector, other in zip(again.history, whole.history, strict=True):
        np.testing.assert_allclose(vector, other, rtol=0, atol=limit)


def test_history_is_copied_when_set():
    source, vectors = weights(2, 3, optimizer=sgd(momentum=0.9)), [np.ones(54, np.float32), np.ones(3, np.float32)]
    source.history = vectors
    trained(source, 1)
    assert all((vector == 1).all() for vector in vectors)


@pytest.mark.parametrize("vectors", [[54], [54, 3, 3], [53, 3], [54, 4]])
def test_history_that_does_not_fit_is_refused_before_anything_moves(vectors):
    source = weights(2, 3, label="stem", optimizer=sgd(momentum=0.9))
    before = source.values["weights"].copy()
    source.history = [np.zeros(count, np.float32) for count in vectors]
    with pytest.raises(mpsnn.WeightError, match='weights "stem": the optimizer\'s history') as caught:
        trained(source, 1)
    assert caught.value.label == "stem"
    np.testing.assert_array_equal(source.values["weights"], before)


def test_without_an_optimizer_weights_stay():
    source = weights(2, 3)
    before = source.values["weights"].copy()
    trained(source, 2)
    np.testing.assert_array_equal(source.values["weights"], before)
    assert source.optimizer is None


# --- BatchNormalizationWeights ------------------------------------------------------------------------------------


def test_a_normalization_starts_as_the_identity():
    source = mpsnn.BatchNormalizationWeights(3, label="norm")
    expected = {"gamma": 1, "beta": 0, "mean": 0, "variance": 1}
    assert {name: value.tolist() for name, value in source.values.items()} == {n: [v] * 3 for n, v in expected.items()}
    assert source.number_of_feature_channels() == 3
    assert source.label() == "norm"
    assert source.epsilon() == np.float32(1e-5)
    assert source.momentum == np.float32(0.1)


@pytest.mark.parametrize("engine", ENGINES)
def test_inference_uses_the_stored_statistics(engine):
    source = mpsnn.BatchNormalizationWeights(3, epsilon=0.5)
    values = {name: np.abs(numbers(3, seed=i)) for i, name in enumerate(("gamma", "beta", "mean", "variance"))}
    source.set_values(**values)
    node = mpsnn.MPSCNNBatchNormalizationNode(mpsnn.MPSNNImageNode(), source)
    image = numbers(2, 4, 4, 3)
    got = mpsnn.MPSNNGraph(engine, node.result_image).run([image])
    wide = {name: value.astype(np.float64) for name, value in values.items()}
    expected = (image - wide["mean"]) / np.sqrt(wide["variance"] + 0.5) * wide["gamma"] + wide["beta"]
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance(expected, 8))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"feature_channels": 0}, "feature_channels"),
        ({"feature_channels": 3, "epsilon": -1}, "epsilon"),
        ({"feature_channels": 3, "momentum": 1.5}, "momentum"),
        ({"feature_channels": 3, "momentum": float("nan")}, "momentum"),
    ],
)
def test_normalization_numbers_out_of_range_are_refused(options, expected):
    with pytest.raises(mpsnn.OptionError, match=f'"norm": {expected}') as caught:
        mpsnn.BatchNormalizationWeights(label="norm", **options)
    assert caught.value.label == "norm"


def test_normalization_values_of_the_wrong_size_are_refused():
    source = mpsnn.BatchNormalizationWeights(3, label="norm")
    with pytest.raises(mpsnn.WeightError, match='"norm": mean has 2 numbers, 3 are needed'):
        source.set_values(mean=np.zeros(2, np.float32))
    with pytest.raises(TypeError, match="weights"):
        source.set_values(weights=np.zeros(3, np.float32))


@pytest.mark.parametrize("name", ["gamma", "beta", "mean", "variance"])
def test_a_python_normalization_of_the_wrong_size_is_refused(name):
    methods = {
        n: (lambda self, n=n: np.ones(2 if n == name else 3, np.float32)) for n in ("gamma", "beta", "mean", "variance")
    }
    methods |= {"number_of_feature_channels": lambda self: 3, "label": lambda self: "norm"}
    source = type("Python", (mpsnn.MPSCNNBatchNormalizationDataSource,), methods)()
    node = mpsnn.MPSCNNBatchNormalizationNode(mpsnn.MPSNNImageNode(), source)
    with pytest.raises(mpsnn.WeightError, match=f'"norm": {name} has 2 numbers, 3 are needed'):
        mpsnn.MPSNNGraph("cpu", node.result_image)


def test_a_python_normalization_needs_only_channels_mean_and_variance():
    class Least(mpsnn.MPSCNNBatchNormalizationDataSource):
        def number_of_feature_channels(self):
            return 2

        def mean(self):
            return np.array([1, 2], np.float32)

        def variance(self):
            return np.array([4, 16], np.float32)

    node = mpsnn.MPSCNNBatchNormalizationNode(mpsnn.MPSNNImageNode(), Least())
    got = mpsnn.MPSNNGraph("reference", node.result_image).run([np.full((1, 1, 1, 2), 5, np.float32)])
    np.testing.assert_array_equal(np.asarray(got).ravel(), [2, 0.75])  # epsilon is FLT_MIN, as in MPS
