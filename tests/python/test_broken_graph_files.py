# SPDX-License-Identifier: Apache-2.0
"""Graph files: what is wrong in a file is named, and the container is that of the safetensors package."""

import json
import struct

import mpsnn
import numpy as np
import pytest
from error_cases import caught
from graph_cases import adam, numbers, weights
from mpsnn import MPSCNNConvolutionNode, MPSCNNNeuronReLUNode, MPSNNGraph, MPSNNImageNode

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
