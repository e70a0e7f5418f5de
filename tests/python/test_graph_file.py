# SPDX-License-Identifier: Apache-2.0
"""Graph files: every node class and data source comes back with its bits, and what is wrong in a file is named."""

import json
import struct

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


# --- the container, taken apart without our reader ------------------------------------------------------------------


def parts(content):
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def joined(header, data, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def change_description(path, change):
    """Rewrites what a file says of itself."""
    header, data = parts(path.read_bytes())
    about = json.loads(header["__metadata__"]["mpsnn"])
    change(about)
    header["__metadata__"]["mpsnn"] = json.dumps(about)
    path.write_bytes(joined(header, data))


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


# --- files that are wrong ---------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    """The file of a small graph."""
    relu = MPSCNNNeuronReLUNode(
        MPSCNNConvolutionNode(MPSNNImageNode("x"), weights(2, 3, label="stem", optimizer=adam())).result_image, 0.0
    )
    path = tmp_path / "graph.safetensors"
    mpsnn.save_graph(path, relu.result_image)
    return path


def put(*keys, value):
    def change(content):
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return change


BAD_DESCRIPTIONS = {
    "version": (put("version", value=99), "another version of the format", "2", "99"),
    "numerics": (put("numerics", "maximum_ties", value="last"), '"maximum_ties" differs', "first in row-major", "last"),
    "unknown item": (put("numerics", "new", value="yes"), '"new" differs', "not mentioned", "yes"),
    "missing item": (lambda about: about["numerics"].pop("dropout"), '"dropout" differs', "not mentioned"),
    "no graph": (lambda about: about.pop("graph"), "no graph"),
    "class": (put("graph", "nodes", 0, "class", value="NSObject"), '"NSObject" is no node class'),
    "image": (put("graph", "nodes", 1, "sources", value=[7]), "an image does not exist"),
    "cycle": (put("graph", "nodes", 0, "sources", value=[2]), "an image does not exist"),
    "itself": (put("graph", "nodes", 0, "sources", value=[1]), "an image does not exist"),
    "negative image": (put("graph", "nodes", 0, "sources", value=[-1]), "an image does not exist"),
    "fraction": (put("graph", "nodes", 0, "sources", value=[0.5]), "a whole number"),
    "state": (put("graph", "nodes", 1, "states", value=[[0, 5]]), "a state does not exist"),
    "state's node": (put("graph", "nodes", 1, "states", value=[[9, 0]]), "node does not exist"),
    "state pair": (put("graph", "nodes", 1, "states", value=[[0]]), "a node and a number"),
    "result states": (put("graph", "nodes", 0, "result_states", value=[]), "another number of result states"),
    "no sources": (put("graph", "nodes", 1, "sources", value=[]), "too few sources"),
    "missing": (lambda about: about["graph"]["nodes"][1].pop("label"), '"label" is missing'),
    "kind of value": (put("graph", "nodes", 1, "label", value=3), '"label" should be'),
    "range": (put("graph", "nodes", 0, "parameters", "training_style", value=77), '"training_style" is out of range'),
    "float range": (put("graph", "nodes", 1, "parameters", "a", value=1e300), '"a" is out of range'),
    "no data source": (lambda about: about["graph"]["nodes"][0].pop("data_source"), "names no data source"),
    "data source": (put("graph", "nodes", 0, "data_source", value=4), "a data source does not exist"),
    "another neuron": (put("graph", "nodes", 1, "parameters", "neuron_type", value=5), "another class"),
    "refused": (put("graph", "nodes", 1, "parameters", "neuron_type", value=0), "no node exists for this neuron type"),
    "policy": (put("graph", "nodes", 0, "padding", value={"method": 16384}), "Custom bit"),
    "flag": (put("graph", "nodes", 0, "result", "stop_gradient", value="no"), "true or false"),
    "source class": (put("data_sources", 0, "class", value="os.system"), "no data source of this version"),
    "descriptor": (put("data_sources", 0, "descriptor", "kernel_width", value=5), "another shape"),
    "huge weights": (
        lambda about: about["data_sources"][0]["descriptor"].update(
            kernel_width=2**15, kernel_height=2**15, input_feature_channels=2**30, output_feature_channels=2**30
        ),
        "too many weights",
    ),
    "tensors": (put("data_sources", 0, "tensors", value="elsewhere"), '"elsewhere.weights" is missing'),
    "too many tensors": (put("data_sources", 0, "has_biases", value=False), '"stem.biases" belongs to no data source'),
    "optimizer": (put("data_sources", 0, "optimizer", "class", value="Lion"), "no optimizer of this version"),
    "rate": (put("data_sources", 0, "optimizer", "learning_rate", value=-1), "learning rate"),
    "time step": (put("data_sources", 0, "optimizer", "time_step", value=2**32), '"time_step" is out of range'),
    "history": (put("data_sources", 0, "history_vectors", value=3), "another number of history vectors"),
    "no history": (put("data_sources", 0, "history_vectors", value=4), '"stem.history.0" is missing'),
    "flags": (put("settings", "results_are_needed", value=[]), "every result image needs its flag"),
    "results": (put("graph", "results", value=[]), "every result image needs its flag"),
    "input as result": (put("graph", "results", value=[0]), "must be made by a filter"),
}


@pytest.mark.parametrize("case", BAD_DESCRIPTIONS)
def test_a_description_that_is_wrong_says_what(saved, case):
    change, *texts = BAD_DESCRIPTIONS[case]
    change_description(saved, change)
    caught(mpsnn.FileError, lambda: MPSNNGraph.load(saved), "graph.safetensors", *texts)


BAD_JSON = {
    "empty": "", "open": "{", "list": "[1, 2", "no value": '{"a": }', "word": "nonsense", "two": "{} {}", "escape": '{"a": "\\x"}',
    "surrogate": '{"a": "\\ud800"}', "deep": "[" * 100_000, "name": '{"a: 1}', "nan": '{"a": NaN}', "infinity": '{"a": -Infinity}',
    "inf": '{"a": inf}', "hex": '{"a": 0x10}', "octal": '{"a": 010}', "dot": '{"a": 1.}', "plus": '{"a": +1}', "range": '{"a": 1e999}',
    "twice": '{"a": 1, "a": 2}', "control": '{"a": "\x01"}', "comma": '{"a": 1,}', "comment": "{} // no",
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_JSON)
def test_json_that_is_wrong_says_where(saved, case):
    header, data = parts(saved.read_bytes())
    for content in (
        joined(BAD_JSON[case].encode(), data),
        joined({**header, "__metadata__": {"mpsnn": BAD_JSON[case]}}, data),
    ):
        saved.write_bytes(content)
        caught(mpsnn.FileError, lambda: MPSNNGraph.load(saved), "graph.safetensors", "not a valid JSON text", "at byte")


@pytest.mark.parametrize("text", [b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82", b"\x80"])
def test_text_that_is_no_utf8_is_refused(saved, text):
    saved.write_bytes(joined(b'{"__metadata__": {"a": "' + text + b'"}}', b""))
    caught(mpsnn.FileError, lambda: MPSNNGraph.load(saved), "no UTF-8", "at byte")


def place(**changes):
    """A header with one array of 2 x 3 floats, changed."""
    return {"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24], **changes}}


FLOATS = bytes(24)
BAD_CONTAINERS = {
    "empty": (b"", "within the header's length"),
    "short": (bytes(7), "within the header's length"),
    "header beyond the file": (joined(place(), FLOATS, 10_000), "longer than the file"),
    "largest header": (joined(place(), FLOATS, 2**64 - 1), "longer than the file"),
    "too long a header": (struct.pack("<Q", 2**24 + 8) + b" " * (2**24 + 8), "too long"),
    "no object": (joined([1], b""), "should be an object"),
    "dtype": (joined(place(dtype="F31"), FLOATS), "unknown element type"),
    "dtype kind": (joined(place(dtype=7), FLOATS), "should be a string"),
    "another dtype": (joined(place(dtype="F64"), FLOATS), "another size than its shape says"),
    "shape": (joined(place(shape=[2, 4]), FLOATS), "another size than its shape says"),
    "negative size": (joined(place(shape=[-2, -3]), FLOATS), "impossible shape"),
    "overflow": (joined(place(shape=[2**32, 2**32, 6]), FLOATS), "impossible shape"),
    "overflow to the right size": (joined(place(shape=[2**31, 2**31, 4, 6]), FLOATS), "impossible shape"),
    "size beyond doubles": (joined(place(shape=[2**60]), FLOATS), "a whole number"),
    "many dimensions": (joined(place(shape=[1] * 17), FLOATS), "too many dimensions"),
    "no offsets": (joined(place(data_offsets=[]), FLOATS), "has no place"),
    "backwards": (joined(place(data_offsets=[24, 0]), FLOATS), "lies outside"),
    "negative offset": (joined(place(data_offsets=[-24, 0]), FLOATS), "lies outside"),
    "beyond the end": (joined(place(data_offsets=[8, 32]), FLOATS), "lies outside"),
    "gap": (joined(place(data_offsets=[8, 32]), FLOATS + bytes(8)), "leaves a gap"),
    "overlap": (
        joined({**place(), "b": place(data_offsets=[8, 32])["a"]}, FLOATS + bytes(8)),
        "overlaps another array",
    ),
    "the same place": (joined({**place(), "b": place()["a"]}, FLOATS), "overlaps another array"),
    "bytes left": (joined(place(), FLOATS + b"x"), "belong to no array"),
    "metadata": (joined({"__metadata__": {"a": 1}}, b""), "should be a string"),
    "incomplete": (joined({"a": {"dtype": "F32"}}, b""), '"shape" is missing'),
}


@pytest.mark.parametrize("case", BAD_CONTAINERS)
def test_a_container_that_is_wrong_says_what(tmp_path, case):
    content, text = BAD_CONTAINERS[case]
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    for read in (mpsnn.read_safetensors, MPSNNGraph.load, mpsnn.load_result_images):
        caught(mpsnn.FileError, lambda read=read: read(path), "bad.safetensors", text)


def test_a_truncated_file_is_an_error_at_every_length(saved):
    whole = saved.read_bytes()
    for length in [*range(0, len(whole), 37), len(whole) - 1]:
        saved.write_bytes(whole[:length])
        with pytest.raises(mpsnn.FileError, match=r"graph\.safetensors"):
            MPSNNGraph.load(saved, "cpu")


def test_a_file_that_cannot_be_opened_is_named(tmp_path):
    missing = tmp_path / "no" / "graph.safetensors"
    graph = MPSNNGraph("cpu", MPSCNNNeuronReLUNode(MPSNNImageNode(), 0.0).result_image)
    caught(mpsnn.FileError, lambda: MPSNNGraph.load(missing), "does not exist", label=str(missing))
    caught(mpsnn.FileError, lambda: graph.save(missing), "cannot be written", label=str(missing))
    caught(mpsnn.FileError, lambda: MPSNNGraph.load(tmp_path), "cannot be read", "no regular file", label=str(tmp_path))
    with pytest.raises(OSError, match="does not exist"):
        mpsnn.load_result_images(missing)


# --- the container -----------------------------------------------------------------------------------------------------


def test_arrays_of_every_type_go_through_our_container_and_the_reference_one(tmp_path):
    reference = pytest.importorskip("safetensors.numpy")
    kinds = ("f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "?")
    tensors = {f"{kind} ä": np.arange(6).reshape(1, 2, 3).astype(kind) for kind in kinds}
    tensors |= {
        "none": np.zeros((3, 0, 2), np.float32),
        "one": np.array(7, np.int64),
        "turned": np.arange(6.0).reshape(2, 3).T,
    }
    metadata = {"about": 'quotes " and \\ and ü and \n', "": ""}
    mpsnn.write_safetensors(tmp_path / "ours", tensors, metadata)
    reference.save_file(
        {name: np.ascontiguousarray(array) if array.ndim else array for name, array in tensors.items()},
        tmp_path / "theirs",
        metadata,
    )
    ours, texts = mpsnn.read_safetensors(tmp_path / "theirs")
    assert texts == metadata
    again, _ = mpsnn.read_safetensors(tmp_path / "ours")
    for read in (ours, again, reference.load_file(tmp_path / "ours")):
        assert read.keys() == tensors.keys()
        for name, array in tensors.items():
            assert read[name].dtype == array.dtype
            assert read[name].shape == array.shape
            np.testing.assert_array_equal(read[name], array)


def test_equal_contents_give_equal_files_and_unknown_types_are_refused(tmp_path):
    tensors = {name: numbers(3, seed=i) for i, name in enumerate("cab")}
    mpsnn.write_safetensors(tmp_path / "a", tensors, {"x": "1", "y": "2"})
    mpsnn.write_safetensors(tmp_path / "b", dict(reversed(tensors.items())), {"y": "2", "x": "1"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    caught(mpsnn.FileError, lambda: mpsnn.write_safetensors(tmp_path / "c", {"z": np.zeros(2, complex)}), '"z"')
    assert not (tmp_path / "c").exists()
    (tmp_path / "d").write_bytes(joined(place(dtype="BF16", shape=[12]), FLOATS))
    caught(mpsnn.FileError, lambda: mpsnn.read_safetensors(tmp_path / "d"), "NumPy lacks", "BF16")
