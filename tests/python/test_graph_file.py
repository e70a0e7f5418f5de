# SPDX-License-Identifier: Apache-2.0
"""Graph files: every node class and data source comes back with its bits."""

import mpsnn
import numpy as np
import pytest
from engines import parameter_arrays
from error_cases import caught
from graph_cases import (
    ENGINES,
    STYLES,
    ArraySource,
    CpuSource,
    GpuSource,
    ThreeLayers,
    adam,
    class_name,
    numbers,
    one_hot,
    sgd,
    weights,
)
from mpsnn import MPSCNNConvolutionNode, MPSCNNNeuronReLUNode, MPSNNGraph, MPSNNImageNode
from saved_graphs import everything, family, separable_loss, without_gradient

Descriptor = mpsnn.MPSCNNConvolutionDescriptor
Types = mpsnn.MPSDataType


# --- what was saved comes back --------------------------------------------------------------------------------------


def step(graph, make, shape, seed):
    """Everything that one training step gives out."""
    images, labels = numbers(4, *shape, seed=seed), one_hot(3, 4, seed=seed)
    if make is family:  # a box in each of two cells
        labels = np.tile(np.array([0.5, 0.25, 1.25, 1.75, 1, 1], np.float32), (4, 1, 2, 1))
    states, exports, gradients = mpsnn.MPSCNNLossLabels(labels), [], []
    graph.run([images], [states], exports, gradients)
    arrays = [states.loss_image.numpy(), exports[0].numpy(), *parameter_arrays(gradients[0]).values()]
    assert len(arrays) >= 4
    assert all(np.isfinite(array).all() for array in arrays)
    return [array.tobytes() for array in arrays]


def trained_state(graph):
    """Every number that training changes, of every data source."""
    state = {}
    for source in graph.data_sources:
        state |= {f"{source.label()}.{name}": np.array(value).tobytes() for name, value in source.values.items()}
        state |= {f"{source.label()}.{i}": np.array(vector).tobytes() for i, vector in enumerate(source.history)}
        state[f"{source.label()}.step"] = getattr(source.optimizer, "time_step", None)
    return state


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("make", "shape"), [(everything, (8, 8, 2)), (family, (4, 4, 4))], ids=["everything", "family"]
)
def test_a_training_continues_from_a_file_with_the_same_bits(engine, make, shape, tmp_path):
    end, sources = make()
    graph = MPSNNGraph(engine, end.result_image, False)
    for seed in range(2):
        step(graph, make, shape, seed)
    graph.save(tmp_path / "graph.safetensors")
    loaded = MPSNNGraph.load(tmp_path / "graph.safetensors", engine)
    assert loaded.debug_description == graph.debug_description
    assert loaded.encode_count == 2
    assert not loaded.result_image_is_needed
    assert loaded.source_image_handles == ["x"]
    assert loaded.source_state_handles == ["targets"]
    assert loaded.intermediate_image_handles == ["logits"]
    assert loaded.result_state_handles == ["gradients"]
    assert [class_name(node) for node in loaded.nodes] == [class_name(node) for node in graph.nodes]
    for one, other in zip(graph.nodes, loaded.nodes, strict=True):
        assert one.label == other.label
        assert one.padding_policy.label() == other.padding_policy.label()
        assert getattr(one, "training_style", None) == getattr(other, "training_style", None)
    assert [type(source) for source in loaded.data_sources] == [type(source) for source in graph.data_sources]
    assert len(loaded.data_sources) == len(sources)
    assert trained_state(loaded) == trained_state(graph)
    loaded.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "graph.safetensors").read_bytes()
    for seed in range(2, 5):
        assert step(graph, make, shape, seed) == step(loaded, make, shape, seed)
    assert trained_state(loaded) == trained_state(graph)


@pytest.mark.parametrize("engine", ENGINES)
def test_nodes_without_a_gradient_come_back_with_their_bits(engine, tmp_path):
    images, sources = without_gradient()
    graph = MPSNNGraph(engine, images)
    graph.save(tmp_path / "graph.safetensors")
    loaded = MPSNNGraph.load(tmp_path / "graph.safetensors", engine)
    assert loaded.debug_description == graph.debug_description
    given = [numbers(2, 4, 4, 4, seed=seed) for seed in range(2)]
    for one, other in zip(graph.run(given), loaded.run(given), strict=True):
        np.testing.assert_array_equal(one, other)
    assert [type(source) for source in loaded.data_sources] == [mpsnn.PackedConvolutionWeights] * 2
    for one, other in zip(sources, loaded.data_sources, strict=True):
        assert one.weights().tobytes() == other.values["weights"].tobytes()


def test_a_separable_loss_comes_back(tmp_path):
    graph = MPSNNGraph("cpu", separable_loss())
    graph.save(tmp_path / "loss.safetensors")
    loaded = MPSNNGraph.load(tmp_path / "loss.safetensors", "cpu")
    images = [numbers(2, 3, 3, 2, seed=i) for i in range(3)]
    for one, other in zip(graph.run(images), loaded.run(images), strict=True):
        np.testing.assert_array_equal(one, other)


def momentum():
    return sgd(0.1, 0.9)


def rmsprop():
    return mpsnn.MPSNNOptimizerRMSProp(None, 0.01)


def amsgrad():
    types = mpsnn.MPSNNRegularizationType
    about = mpsnn.MPSNNOptimizerDescriptor(0.01, 0.5, True, 1.0, -1.0, types.L2, 0.01)
    return mpsnn.MPSNNOptimizerAdam(None, 0.8, 0.99, 1e-6, 3, about, True)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("optimizer", [sgd, momentum, rmsprop, adam, amsgrad])
def test_every_optimizer_continues(optimizer, engine, tmp_path):
    network = ThreeLayers(optimizer=optimizer, engine=engine)
    for seed in range(2):
        network.step(seed)
    network.graph.save(tmp_path / "graph.safetensors")
    before = [repr_of(source.optimizer) for source in network.sources]
    other = ThreeLayers(engine=engine)
    other.graph = MPSNNGraph.load(tmp_path / "graph.safetensors", engine)
    other.sources = other.graph.data_sources
    assert [repr_of(source.optimizer) for source in other.sources] == before
    assert [network.step(seed).tobytes() for seed in (2, 3)] == [other.step(seed).tobytes() for seed in (2, 3)]
    assert network.state() == other.state()


def repr_of(optimizer):
    names = [name for name in dir(optimizer) if not name.startswith("_") and not callable(getattr(optimizer, name))]
    assert len(names) >= 8
    return type(optimizer).__name__, {name: getattr(optimizer, name) for name in names}


def test_settings_of_a_graph_and_its_images_come_back(tmp_path):
    relu = MPSCNNNeuronReLUNode(MPSNNImageNode("x"), 0.0)
    image = relu.result_image
    image.stop_gradient = image.synchronize_resource = True
    image.format = mpsnn.MPSImageFeatureChannelFormat.Float32
    graph = MPSNNGraph("cpu", image)
    graph.label, graph.trap_nonfinite, graph.encode_count = "näme", True, 2**64 - 1
    graph.format = mpsnn.MPSImageFeatureChannelFormat.Float16
    graph.options = mpsnn.MPSKernelOptions.Verbose
    graph.save(tmp_path / "g")
    loaded = MPSNNGraph.load(tmp_path / "g", "cpu")
    for name in ("label", "trap_nonfinite", "encode_count", "format", "options"):
        assert getattr(loaded, name) == getattr(graph, name)
    (image,) = mpsnn.load_result_images(tmp_path / "g")
    assert image.stop_gradient
    assert image.synchronize_resource
    assert not image.export_from_graph
    assert image.format == mpsnn.MPSImageFeatureChannelFormat.Float32


def test_saved_result_images_can_be_built_upon(tmp_path):
    conv = MPSCNNConvolutionNode(MPSNNImageNode("x"), weights(2, 3))
    mpsnn.save_graph(tmp_path / "g", conv.result_image)
    mpsnn.save_graph(tmp_path / "h", [conv.result_image])
    assert (tmp_path / "g").read_bytes() == (tmp_path / "h").read_bytes()
    (image,) = mpsnn.load_result_images(tmp_path / "g")
    longer = MPSNNGraph("cpu", mpsnn.MPSCNNSoftMaxNode(image).result_image)
    expected = MPSNNGraph("cpu", mpsnn.MPSCNNSoftMaxNode(conv.result_image).result_image)
    given = [numbers(1, 4, 4, 2)]
    np.testing.assert_array_equal(longer.run(given).numpy(), expected.run(given).numpy())


# --- data sources -----------------------------------------------------------------------------------------------------


def test_nan_infinities_and_negative_zero_come_back(tmp_path):
    special = np.array([np.nan, np.inf, -np.inf, -0.0, 1e-45, 3.4e38], np.float32)
    special[0] = np.uint32(0x7FC12345).view(np.float32)
    source = mpsnn.ConvolutionWeights(Descriptor(1, 1, 1, 6), special, label="special")
    mpsnn.save_graph(tmp_path / "g", MPSCNNConvolutionNode(MPSNNImageNode(), source).result_image)
    (loaded,) = MPSNNGraph.load(tmp_path / "g").data_sources
    assert loaded.values["weights"].tobytes() == special.tobytes()
    assert "biases" not in loaded.values


def test_sources_without_labels_with_one_label_and_shared_ones_are_told_apart(tmp_path):
    sources = [weights(2, 2, label=label, seed=i) for i, label in enumerate(["", "", "same", "same", "source 1"])]
    node = MPSNNImageNode("x")
    for source in [*sources, sources[0]]:
        node = MPSCNNConvolutionNode(node, source).result_image
    graph = MPSNNGraph("cpu", node)
    graph.save(tmp_path / "g")
    loaded = MPSNNGraph.load(tmp_path / "g")
    assert [source.label() for source in loaded.data_sources] == ["", "", "same", "same", "source 1"]
    given = [numbers(1, 4, 4, 2)]
    assert graph.run(given).numpy().tobytes() == loaded.run(given).numpy().tobytes()


class Packed(ArraySource):
    """Weights in few bits."""

    def __init__(self, kind, table=None, ranges=None, **options):
        super().__init__(**options)
        random = np.random.default_rng(3)
        dtype = {Types.Float16: np.float16, Types.UInt8: np.uint8}[kind]
        self.kind, self.table, self.limits = kind, table, ranges
        self.values = (
            random.normal(size=self.values.shape).astype(dtype)
            if dtype is np.float16
            else random.integers(0, 256, self.values.shape, dtype)
        )

    def weights_quantization_type(self):
        kinds = mpsnn.MPSCNNWeightsQuantizationType
        return (
            kinds.LookupTable
            if self.table is not None
            else kinds.Linear
            if self.limits is not None
            else getattr(kinds, "None_", kinds(0))
        )

    def lookup_table_for_uint8_kernel(self):
        return self.table

    def ranges_for_uint8_kernel(self):
        return self.limits


PACKED = {
    "half": lambda: Packed(Types.Float16),
    "linear": lambda: Packed(Types.UInt8, ranges=numbers(3, 2, seed=4)),
    "table": lambda: Packed(Types.UInt8, table=numbers(256, seed=5)),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", PACKED)
def test_packed_weights_of_an_application_come_back_packed(kind, engine, tmp_path):
    graph = MPSNNGraph(engine, MPSCNNConvolutionNode(MPSNNImageNode(), PACKED[kind]()).result_image)
    graph.save(tmp_path / "g")
    loaded = MPSNNGraph.load(tmp_path / "g", engine)
    assert isinstance(loaded.data_sources[0], mpsnn.PackedConvolutionWeights)
    loaded.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "g").read_bytes()
    given = [numbers(2, 5, 5, 2)]
    assert graph.run(given).numpy().tobytes() == loaded.run(given).numpy().tobytes()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("kind", "style"), [(CpuSource, "UpdateDeviceCPU"), (GpuSource, "UpdateDeviceGPU")])
def test_an_applications_own_weights_are_saved_as_the_graph_uses_them(kind, style, engine, tmp_path):
    """GpuSource's arrays stay as they were: what it trained is in the graph alone."""
    sources = {"first": kind(2, 4, label="first"), "last": kind(3, 3, kernel=6, label="last")}
    network = ThreeLayers(sources, STYLES[style], engine)
    for seed in range(2):
        network.step(seed)
    network.graph.save(tmp_path / "g")
    loaded = MPSNNGraph.load(tmp_path / "g", engine)
    assert [type(source).__name__ for source in loaded.data_sources] == ["ConvolutionWeights"] * 3
    for one, other in zip(network.sources, loaded.data_sources, strict=True):
        state, again = network.graph.export_weights(one), loaded.export_weights(other)
        assert state.weights.tobytes() == again.weights.tobytes()
        assert state.biases.tobytes() == again.biases.tobytes()


def test_a_folded_batch_normalization_is_folded_once(tmp_path):
    about = Descriptor(3, 3, 2, 4)
    about.set_batch_normalization_parameters_for_inference(*(np.abs(numbers(4, seed=i)) for i in range(4)), 1e-3)
    own = mpsnn.ConvolutionWeights(about, seed=2, label="own")
    python = ArraySource(4, 4, label="python")
    python.about = Descriptor(3, 3, 4, 4)
    python.about.set_batch_normalization_parameters_for_inference(*(np.abs(numbers(4, seed=i)) for i in range(4)), 1e-3)
    node = MPSCNNConvolutionNode(MPSCNNConvolutionNode(MPSNNImageNode(), own).result_image, python)
    graph = MPSNNGraph("cpu", node.result_image)
    graph.save(tmp_path / "g")
    loaded = MPSNNGraph.load(tmp_path / "g", "cpu")
    given = [numbers(2, 5, 5, 2)]
    assert graph.run(given).numpy().tobytes() == loaded.run(given).numpy().tobytes()


class OwnNormalization(mpsnn.MPSCNNBatchNormalizationDataSource):
    def number_of_feature_channels(self):
        return 3

    def mean(self):
        return np.array([0.5, 1, 2], np.float32)

    def variance(self):
        return np.array([1, 2, 3], np.float32)

    def label(self):
        return "own"


class OwnInstance(mpsnn.MPSCNNInstanceNormalizationDataSource):
    def number_of_feature_channels(self):
        return 3

    def gamma(self):
        return np.array([3, 2, 1], np.float32)

    def epsilon(self):
        return 0.25


class OwnGroup(mpsnn.MPSCNNGroupNormalizationDataSource):
    def number_of_feature_channels(self):
        return 3

    def number_of_groups(self):
        return 3

    def beta(self):
        return np.array([3, 2, 1], np.float32)


def test_an_applications_own_normalizations_come_back_as_ours(tmp_path):
    node = mpsnn.MPSCNNBatchNormalizationNode(MPSNNImageNode(), OwnNormalization())
    node = mpsnn.MPSCNNInstanceNormalizationNode(node.result_image, OwnInstance())
    node = mpsnn.MPSCNNGroupNormalizationNode(node.result_image, OwnGroup())
    graph = MPSNNGraph("cpu", node.result_image)
    graph.save(tmp_path / "g")
    loaded = MPSNNGraph.load(tmp_path / "g", "cpu")
    kinds = ["BatchNormalizationWeights", "InstanceNormalizationWeights", "GroupNormalizationWeights"]
    assert [type(source).__name__ for source in loaded.data_sources] == kinds
    given = [numbers(2, 4, 4, 3)]
    assert graph.run(given).numpy().tobytes() == loaded.run(given).numpy().tobytes()


def test_data_sources_can_be_replaced_by_label(tmp_path):
    path = tmp_path / "g"
    mpsnn.save_graph(path, MPSCNNConvolutionNode(MPSNNImageNode(), weights(2, 3, label="stem")).result_image)
    own = ArraySource(2, 3, label="stem", seed=9)
    loaded = MPSNNGraph.load(path, "cpu", [own, weights(7, 7, label="of another graph")])
    assert loaded.data_sources[0] is own
    expected = MPSNNGraph("cpu", MPSCNNConvolutionNode(MPSNNImageNode(), own).result_image)
    given = [numbers(1, 4, 4, 2)]
    assert loaded.run(given).numpy().tobytes() == expected.run(given).numpy().tobytes()

    def load(*sources):
        return lambda: MPSNNGraph.load(path, "cpu", sources)

    caught(mpsnn.WeightError, load(weights(2, 5, label="stem")), "another descriptor or kind", label="stem")
    caught(mpsnn.WeightError, load(mpsnn.BatchNormalizationWeights(3, label="stem")), "another descriptor or kind")
    caught(mpsnn.WeightError, load(own, own), 'two data sources are labelled "stem"')
    caught(mpsnn.WeightError, load(np.zeros(3)), "no data source", "ndarray")


def test_packed_weights_say_what_is_wrong_with_their_arrays():
    about, table = Descriptor(1, 1, 2, 3), np.zeros(256)

    def make(array, **options):
        return lambda: mpsnn.PackedConvolutionWeights(about, array, label="culprit", **options)

    for array, options, text in (
        (np.zeros(6), {}, "another type"),
        (np.zeros(5, np.float16), {}, "weights has another size"),
        (np.zeros(6, np.uint32), {}, "weights has another size"),
        (np.zeros(6, np.uint8), {}, "bytes need ranges or a look-up table"),
        (np.zeros(6, np.float16), {"lookup_table": table}, "bytes need ranges or a look-up table"),
        (np.zeros(6, np.uint8), {"lookup_table": table, "ranges": np.zeros(6)}, "bytes need ranges or a look-up table"),
        (np.zeros(6, np.uint8), {"lookup_table": np.zeros(9)}, "lookup_table has another size"),
        (np.zeros(6, np.uint8), {"ranges": np.zeros(9)}, "ranges has another size"),
        (np.zeros(6, np.float16), {"biases": np.zeros(9)}, "biases has another size"),
    ):
        caught(mpsnn.WeightError, make(array, **options), text)
    given = np.arange(6, dtype=np.float16)
    values = make(given)().values
    given[0] = 9
    assert values["weights"].ravel().tolist() == [0, 1, 2, 3, 4, 5]
    assert values["weights"].shape == (3, 1, 1, 2)
