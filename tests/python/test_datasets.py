# SPDX-License-Identifier: Apache-2.0
"""Data sets: what they hold, and what a damaged file says."""

import gzip
import struct
import sys

import numpy as np
import pytest
from mpsnn import datasets
from mpsnn.datasets import MissingPackage
from mpsnn.errors import FileError, OptionError

TRAIN_IMAGES = "train-images-idx3-ubyte.gz"


def idx(array):
    """The bytes of an IDX file."""
    header = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


def write_fashion_mnist(folder, train=60000, test=10000, train_labels=None):
    """Four files of the published form and size, black but for the last pixel."""
    for prefix, count in (("train", train), ("t10k", test)):
        images = np.zeros((count, 28, 28), np.uint8)
        images[-1, -1, -1] = 255
        labels = np.arange(count) % 10
        if prefix == "train" and train_labels is not None:
            labels = train_labels
        folder.joinpath(f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images), 1))
        folder.joinpath(f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels), 1))


def test_digits_are_scaled_and_split_evenly():
    pytest.importorskip("sklearn")
    data = datasets.digits()
    assert data.name == "digits"
    assert data.train_images.shape == (1442, 8, 8, 1)
    assert data.test_images.shape == (355, 8, 8, 1)
    assert data.image_shape == (8, 8, 1)
    assert data.classes == 10
    for images, labels in ((data.train_images, data.train_labels), (data.test_images, data.test_labels)):
        assert images.dtype == np.float32
        assert images.flags.c_contiguous
        assert (images.min(), images.max()) == (0, 1)
        assert labels.dtype == np.int64
        assert len(labels) == len(images)
    everyone = np.bincount(np.concatenate([data.train_labels, data.test_labels]))
    assert np.array_equal(np.bincount(data.test_labels), everyone // 5)


def test_digits_are_the_same_every_time():
    pytest.importorskip("sklearn")
    first, second = datasets.digits(), datasets.digits()
    assert np.array_equal(first.test_images, second.test_images)
    assert np.array_equal(first.train_labels, second.train_labels)


def test_digits_without_scikit_learn_say_what_to_install(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "sklearn"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingPackage, match="digits needs scikit-learn(.|\n)*pip install scikit-learn"):
        datasets.digits()


def test_a_package_that_is_there_but_broken_is_not_called_missing(tmp_path, monkeypatch):
    tmp_path.joinpath("half_installed.py").write_text("import surely_not_there\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="surely_not_there") as caught:
        datasets.require("half_installed", "half", "this test")
    assert not isinstance(caught.value, MissingPackage)


def test_fashion_mnist_is_read_from_a_folder(tmp_path):
    write_fashion_mnist(tmp_path)
    data = datasets.load("fashion-mnist", tmp_path)
    assert data.train_images.shape == (60000, 28, 28, 1)
    assert data.test_images.shape == (10000, 28, 28, 1)
    assert data.train_images[-1, -1, -1, 0] == 1
    assert data.train_images.sum() == 1
    assert data.train_images.dtype == np.float32
    assert np.array_equal(data.test_labels, np.arange(10000) % 10)
    assert data.class_names[0] == "t-shirt/top"
    assert data.classes == 10


@pytest.mark.skipif(not datasets.FASHION_MNIST_DIR.is_dir(), reason="needs Debian's package dataset-fashion-mnist")
def test_fashion_mnist_of_debian_has_its_classes_in_equal_shares():
    data = datasets.fashion_mnist()
    assert np.array_equal(np.bincount(data.train_labels), np.full(10, 6000))
    assert np.array_equal(np.bincount(data.test_labels), np.full(10, 1000))
    assert (data.train_images.min(), data.train_images.max()) == (0, 1)


def test_a_missing_file_is_named_with_the_ways_to_get_it(tmp_path):
    with pytest.raises(FileError) as caught:
        datasets.fashion_mnist(tmp_path)
    text = str(caught.value)
    assert str(tmp_path / TRAIN_IMAGES) in text
    assert "does not exist" in text
    assert "apt-get install dataset-fashion-mnist" in text
    assert "--data-dir" in text
    assert isinstance(caught.value, OSError)


SMALL = idx(np.zeros((3, 28, 28)))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (gzip.compress(SMALL)[:-12], "is truncated"),
        (gzip.compress(SMALL)[:20], "is truncated"),
        (b"", "is truncated"),
        (b"<html>404</html>", "is damaged"),
        (gzip.compress(SMALL)[:-8] + bytes(8), "is damaged"),
        (gzip.compress(SMALL[:9]), "is truncated"),
        (gzip.compress(SMALL[:-1]), "is truncated"),
        (gzip.compress(SMALL + b"x"), "holds more than its header says"),
        (gzip.compress(bytes((0, 0, 13, 3)) + SMALL[4:]), "is not an IDX file of bytes"),
        (gzip.compress(idx(np.zeros(5000))), "is not an IDX file of bytes"),
    ],
    ids=[
        "cut",
        "cut early",
        "empty",
        "no gzip",
        "checksum",
        "header",
        "one byte short",
        "one byte more",
        "floats",
        "labels",
    ],
)
def test_a_damaged_file_is_named_with_what_is_wrong(tmp_path, content, problem):
    tmp_path.joinpath(TRAIN_IMAGES).write_bytes(content)
    with pytest.raises(FileError) as caught:
        datasets.fashion_mnist(tmp_path)
    text = str(caught.value)
    assert f"{tmp_path / TRAIN_IMAGES} {problem}" in text
    assert "expected" in text
    assert "actual" in text
    assert "apt-get install dataset-fashion-mnist" in text


def test_a_folder_in_place_of_a_file_cannot_be_read(tmp_path):
    tmp_path.joinpath(TRAIN_IMAGES).mkdir()
    with pytest.raises(FileError, match=f"{TRAIN_IMAGES} cannot be read"):
        datasets.fashion_mnist(tmp_path)


def test_files_of_another_size_are_not_fashion_mnist(tmp_path):
    write_fashion_mnist(tmp_path, train=30, test=10)
    with pytest.raises(FileError, match="does not hold Fashion-MNIST") as caught:
        datasets.fashion_mnist(tmp_path)
    assert caught.value.expected == "60000 x 28 x 28"
    assert caught.value.actual == "30 x 28 x 28"


def test_a_label_that_is_no_class_is_found(tmp_path):
    labels = np.arange(60000) % 10
    labels[77] = 10
    write_fashion_mnist(tmp_path, train_labels=labels)
    with pytest.raises(FileError, match="holds a label that is no class(.|\n)*label 10 at 77"):
        datasets.fashion_mnist(tmp_path)


def test_unknown_names_get_the_list():
    with pytest.raises(OptionError, match="digits, fashion-mnist"):
        datasets.load("mnist")


def test_digits_take_no_folder(tmp_path):
    with pytest.raises(OptionError, match="not read from a folder"):
        datasets.load("digits", tmp_path)
