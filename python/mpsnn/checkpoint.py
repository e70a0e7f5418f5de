# SPDX-License-Identifier: Apache-2.0
"""Weights and training state in safetensors files.

A file holds `<label>.weights` and `<label>.biases` for each convolution, `<label>.gamma`, `.beta`, `.mean`, `.variance` for each
batch normalization, and in a checkpoint also `<label>.history.<i>` for what the optimizer remembers. A checkpoint's position,
time steps and settings are JSON text in the file's metadata. Files are written beside their place and then renamed, so a
reader sees the old file or the new one, never a part.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

import mpsnn
from mpsnn._errors import make_error, shape_text

_VERSION = 1

Sources = Mapping[str, Any]


def parameters(source: Any) -> dict[str, np.ndarray]:
    """The current values of a data source by name: views, not copies.

    Raises WeightError for a data source of the application's own: only it knows its values.
    """
    ours = (
        mpsnn.ConvolutionWeights,
        mpsnn.BatchNormalizationWeights,
        mpsnn.InstanceNormalizationWeights,
        mpsnn.GroupNormalizationWeights,
    )
    if not isinstance(source, ours):
        label = source.label()
        raise make_error(
            "WeightError",
            f'the data source "{label}" cannot be saved: only it knows its values.',
            expected="one of " + ", ".join(kind.__name__ for kind in ours),
            actual=type(source).__name__,
            hint="save it yourself and train without a checkpoint",
            label=label,
        )
    return source.values


def save_weights(path: str | os.PathLike[str], sources: Sources) -> None:
    """Writes the values of data sources, given by label. No optimizer state: for that there is save_checkpoint()."""
    _write(path, _tensors(sources), {"format": "weights"})


def load_weights(path: str | os.PathLike[str], sources: Sources) -> None:
    """Sets data sources, given by label, to the values of a file that save_weights() or save_checkpoint() wrote.

    Graphs see them after `reload_from_data_sources()`. Nothing is changed unless everything fits.

    Raises FileError when the file is missing, truncated or no safetensors file, WeightError when it lacks a label or has
    another shape for it.
    """
    tensors, _ = _read(path)
    _set(sources, _fitting(path, tensors, sources))


def save_checkpoint(path: str | os.PathLike[str], sources: Sources, state: Mapping[str, Any]) -> None:
    """Writes values, optimizer histories and time steps of data sources, and `state`, anything that JSON can hold."""
    tensors = _tensors(sources)
    optimizers = {}
    for label, source in sources.items():
        tensors |= {f"{label}.history.{i}": vector for i, vector in enumerate(source.history)}
        optimizers[label] = {
            "class": type(source.optimizer).__name__,
            "vectors": len(source.history),
            "time_step": getattr(source.optimizer, "time_step", None),
        }
    _write(path, tensors, {"format": "checkpoint", "state": state, "optimizers": optimizers})


def load_checkpoint(path: str | os.PathLike[str], sources: Sources) -> dict[str, Any]:
    """Sets data sources and their optimizers as save_checkpoint() found them and returns the state that it was given.

    Nothing is changed unless everything fits. Raises what load_weights() raises, FileError for a file that is no checkpoint,
    and OptionError when a data source has another kind of optimizer now.
    """
    tensors, state, optimizers = _read_checkpoint(path)
    values = _fitting(path, tensors, sources)
    histories = {label: _history(path, label, tensors, optimizers, source) for label, source in sources.items()}
    _set(sources, values)
    for label, source in sources.items():
        source.history = histories[label]
        if optimizers[label]["time_step"] is not None:
            source.optimizer.time_step = optimizers[label]["time_step"]
    return state


def read_state(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The state in a checkpoint, without its numbers. Raises FileError like load_checkpoint()."""
    return _read_checkpoint(path)[1]


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes a file so that nobody ever sees a part of it, not even after a crash: new file, flushed, then renamed.

    Raises FileError when the folder cannot be written.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except OSError as error:
        sentence = f"{target} cannot be written."
        raise make_error("FileError", sentence, expected="a writable file", actual=error.strerror or error) from error
    finally:
        with suppress(OSError):  # it is the first error that counts
            temporary.unlink(missing_ok=True)


def _tensors(sources: Sources) -> dict[str, np.ndarray]:
    return {f"{label}.{name}": value for label, source in sources.items() for name, value in parameters(source).items()}


def _write(path: str | os.PathLike[str], tensors: dict[str, np.ndarray], about: dict[str, Any]) -> None:
    from safetensors.numpy import save

    # One entry only: the format keeps several in no particular order, and equal weights are to give equal files.
    metadata = {"mpsnn": json.dumps({"version": _VERSION, **about})}
    write_atomically(path, save({name: np.ascontiguousarray(value) for name, value in tensors.items()}, metadata))


def _read(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118 (not a dict)
    except FileNotFoundError as error:
        sentence, actual = "does not exist.", "no file"
        cause: Exception = error
    except SafetensorError as error:
        sentence, actual, cause = "is truncated or no safetensors file.", str(error), error
    except OSError as error:
        sentence, actual, cause = "cannot be read.", error.strerror or str(error), error
    raise make_error("FileError", f"{path} {sentence}", expected="a safetensors file", actual=actual) from cause


def _read_checkpoint(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, Any], dict[str, Any]]:
    tensors, metadata = _read(path)
    expected, actual = f"checkpoint, version {_VERSION}", "no description by mpsnn"
    with suppress(ValueError, KeyError, TypeError):
        about = json.loads(metadata["mpsnn"])
        actual = f"{about['format']}, version {about['version']}"
        if actual == expected:
            return tensors, about["state"], about["optimizers"]
    raise make_error("FileError", f"{path} is no checkpoint of this version.", expected=expected, actual=actual)


def _fitting(path: Any, tensors: Mapping[str, np.ndarray], sources: Sources) -> dict[str, dict[str, np.ndarray]]:
    """The tensors for each source, once all are there and have its shapes."""
    return {
        label: {name: _tensor(path, tensors, label, name, value.shape) for name, value in parameters(source).items()}
        for label, source in sources.items()
    }


def _tensor(path: Any, tensors: Mapping[str, np.ndarray], label: str, name: str, shape: tuple[int, ...]) -> np.ndarray:
    value = tensors.get(f"{label}.{name}")
    if value is None or value.shape != shape:
        raise make_error(
            "WeightError",
            f'{path} does not fit "{label}": its {name} differ.',
            expected=shape_text(shape),
            actual="no such tensor" if value is None else shape_text(value.shape),
            hint=f"a file for this graph; this one holds {_labels(tensors)}",
            label=label,
        )
    return value


def _history(
    path: Any, label: str, tensors: Mapping[str, np.ndarray], optimizers: Mapping[str, Any], source: Any
) -> list[np.ndarray]:
    saved = optimizers.get(label, {"class": "no optimizer", "vectors": 0})
    actual = type(source.optimizer).__name__
    if saved["class"] != actual:
        sentence = f'"{label}" was trained by another optimizer when {path} was written.'
        raise make_error("OptionError", sentence, expected=saved["class"], actual=actual, label=label)
    names = [f"{label}.history.{i}" for i in range(saved["vectors"])]
    missing = [name for name in names if name not in tensors]
    if missing:
        sentence = f"{path} lacks {missing[0]}."
        raise make_error("FileError", sentence, expected=f"{len(names)} history vectors", label=label)
    return [tensors[name] for name in names]


def _set(sources: Sources, values: Mapping[str, dict[str, np.ndarray]]) -> None:
    for label, source in sources.items():
        source.set_values(**values[label])


def _labels(names: Iterable[str]) -> str:
    """The labels of a file, for an error's text."""
    return ", ".join(sorted({name.rsplit(".", 1)[0] for name in names if ".history." not in name})) or "none"
