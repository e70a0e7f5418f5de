# SPDX-License-Identifier: Apache-2.0
"""Image data sets that need no download by this package: scikit-learn's digits and Fashion-MNIST from Debian.

>>> from mpsnn.datasets import digits
>>> data = digits()                                                     # doctest: +SKIP
>>> data.train_images.shape, data.train_labels.dtype, data.classes      # doctest: +SKIP
((1442, 8, 8, 1), dtype('int64'), 10)
"""

from __future__ import annotations

import gzip
import importlib
import math
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np

from mpsnn._errors import make_error, shape_text

#: Where Debian's package dataset-fashion-mnist puts its files.
FASHION_MNIST_DIR = Path("/usr/share/datasets/fashion-mnist")

_FASHION_MNIST_FILES = {
    # name: (file, number of dimensions, images)
    "train_images": ("train-images-idx3-ubyte.gz", 3, 60000),
    "train_labels": ("train-labels-idx1-ubyte.gz", 1, 60000),
    "test_images": ("t10k-images-idx3-ubyte.gz", 3, 10000),
    "test_labels": ("t10k-labels-idx1-ubyte.gz", 1, 10000),
}
_FASHION_MNIST_CLASSES = (
    "t-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
_GET_FASHION_MNIST = "apt-get install dataset-fashion-mnist, or --data-dir with a folder that holds the four .gz files"


class MissingPackage(ImportError):
    """An optional package is not installed; the text says how to get it."""


def require(module: str, package: str, purpose: str) -> ModuleType:
    """Imports an optional module.

    Raises MissingPackage with the pip command when it is absent.

    >>> require("math", "math", "counting").floor(2.5)
    2
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise  # the package is there but one of its own needs is not: its text says more than ours
        raise MissingPackage(
            f"{purpose} needs {package}, which is not installed.\n    try       pip install {package}"
        ) from error


@dataclass(frozen=True)
class Dataset:
    """Images and what is on them, split for training and testing.

    Images are float32, N x H x W x C, in [0, 1]; labels are int64, N, counting from 0.

    >>> images, labels = np.zeros((2, 4, 4, 1), np.float32), np.array([0, 1])
    >>> data = Dataset(images, labels, images, labels, ("off", "on"), "lamps")
    >>> data.image_shape, data.classes
    ((4, 4, 1), 2)
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    class_names: tuple[str, ...]
    name: str

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of one image."""
        _, height, width, channels = self.train_images.shape
        return height, width, channels

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return len(self.class_names)


def digits() -> Dataset:
    """scikit-learn's bundled 1,797 handwritten digits, 8 x 8 pixels, values 0 to 16 scaled to [0, 1].

    The split is fixed: of each class, in the order of the file, every fifth image (the 5th, 10th, ...) is a test image. That
    leaves 1,442 for training and 355 for testing, a fifth of every class.

    Raises MissingPackage without scikit-learn.
    """
    loaded = require("sklearn.datasets", "scikit-learn", "the data set digits").load_digits()
    images = (loaded.images / 16).astype(np.float32)[..., np.newaxis]
    labels = loaded.target.astype(np.int64)
    is_test = np.zeros(len(labels), bool)
    for label in range(10):
        is_test[np.flatnonzero(labels == label)[4::5]] = True
    names = tuple(str(label) for label in range(10))
    return Dataset(images[~is_test], labels[~is_test], images[is_test], labels[is_test], names, "digits")


def fashion_mnist(data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """Fashion-MNIST: 60,000 training and 10,000 test images of clothes, 28 x 28 pixels, bytes scaled to [0, 1].

    `data_dir` holds the four IDX files as published (`train-images-idx3-ubyte.gz`, ...), by default the folder of Debian's
    package dataset-fashion-mnist.

    Raises FileError that names the file when one is missing, truncated or not what it should be.
    """
    folder = FASHION_MNIST_DIR if data_dir is None else Path(data_dir)
    parts = {name: _read_idx(folder / file, dimensions) for name, (file, dimensions, _) in _FASHION_MNIST_FILES.items()}
    for name, (file, dimensions, count) in _FASHION_MNIST_FILES.items():
        expected = (count, 28, 28) if dimensions == 3 else (count,)
        if parts[name].shape != expected:
            raise _file_error(
                folder / file, "does not hold Fashion-MNIST.", shape_text(expected), shape_text(parts[name].shape)
            )
    for name in ("train_labels", "test_labels"):
        if parts[name].max() >= len(_FASHION_MNIST_CLASSES):
            raise _file_error(
                folder / _FASHION_MNIST_FILES[name][0],
                "holds a label that is no class.",
                "labels 0 to 9",
                f"label {parts[name].max()} at {int(parts[name].argmax())}",
            )
    images = {
        name: np.multiply(parts[name], np.float32(1 / 255), dtype=np.float32)[..., np.newaxis]
        for name in ("train_images", "test_images")
    }
    return Dataset(
        images["train_images"],
        parts["train_labels"].astype(np.int64),
        images["test_images"],
        parts["test_labels"].astype(np.int64),
        _FASHION_MNIST_CLASSES,
        "fashion-mnist",
    )


#: Loaders by the name that `mpsnn train --dataset` takes.
DATASETS = {"digits": digits, "fashion-mnist": fashion_mnist}


def load(name: str, data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """The data set of that name. `data_dir` is where Fashion-MNIST lies; digits come with scikit-learn and need none.

    Raises OptionError for a name that does not exist, and what the data set's own function raises.
    """
    if name not in DATASETS:
        raise make_error(
            "OptionError", f'there is no data set "{name}".', expected="one of " + ", ".join(DATASETS), actual=name
        )
    if name == "fashion-mnist":
        return fashion_mnist(data_dir)
    if data_dir is not None:
        sentence = f'the data set "{name}" is part of a package and is not read from a folder.'
        raise make_error(
            "OptionError", sentence, actual=f"data_dir {data_dir}", hint="--dataset fashion-mnist, or no --data-dir"
        )
    return DATASETS[name]()


def _read_idx(path: Path, dimensions: int) -> np.ndarray:
    """The bytes of a gzipped IDX file: big-endian magic 0x0000 08 <dimensions>, one uint32 per dimension, then the data."""
    try:
        with gzip.open(path, "rb") as file:
            content = file.read()
    except FileNotFoundError as error:
        raise _file_error(path, "does not exist.", "a gzipped IDX file", "no file") from error
    except EOFError as error:
        raise _file_error(
            path, "is truncated.", "a complete gzip stream", f"{path.stat().st_size} bytes that end inside the stream"
        ) from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise _file_error(path, "is damaged.", "a gzipped IDX file", str(error)) from error
    except OSError as error:
        raise _file_error(path, "cannot be read.", "a readable file", error.strerror or str(error)) from error
    header = 4 + 4 * dimensions
    if len(content) < header:
        raise _file_error(path, "is truncated.", f"a header of {header} bytes", f"{len(content)} bytes")
    if content[:4] != bytes((0, 0, 8, dimensions)):
        raise _file_error(
            path,
            f"is not an IDX file of bytes with {dimensions} dimension(s).",
            f"magic 00 00 08 {dimensions:02x}",
            f"magic {content[:4].hex(' ')}",
        )
    shape = struct.unpack(f">{dimensions}I", content[4:header])
    size = math.prod(shape)
    if len(content) - header != size:
        what = "is truncated." if len(content) - header < size else "holds more than its header says."
        raise _file_error(
            path, what, f"{shape_text(shape)} = {size} bytes of data", f"{len(content) - header} bytes of data"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _file_error(path: Path, problem: str, expected: str, actual: str) -> Exception:
    return make_error("FileError", f"{path} {problem}", expected=expected, actual=actual, hint=_GET_FASHION_MNIST)
