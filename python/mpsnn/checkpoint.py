# SPDX-License-Identifier: Apache-2.0
"""Weights and training state in safetensors files.

A file holds `<label>.weights` and `<label>.biases` for each convolution, `<label>.gamma`, `.beta`, `.mean`, `.variance` for each
batch normalization. A checkpoint is a graph file without a graph (docs/graph_file.md): optimizers with their histories and time
steps too, and a training's position and settings as JSON text. Files are written beside their place and then renamed, so a
reader sees the old file or the new one, never a part.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

import mpsnn
from mpsnn import _mpsnn
from mpsnn._errors import make_error, shape_text

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
    tensors = {
        f"{label}.{name}": value for label, source in sources.items() for name, value in parameters(source).items()
    }
    mpsnn.write_safetensors(path, tensors)


def load_weights(path: str | os.PathLike[str], sources: Sources) -> None:
    """Sets data sources, given by label, to the values of a safetensors file: of save_weights(), a checkpoint, or a graph.

    Graphs see them after `reload_from_data_sources()`. Nothing is changed unless everything fits.

    Raises FileError when the file is missing, truncated or no safetensors file, WeightError when it lacks a label or has
    another shape for it.
    """
    _set(sources, _fitting(path, mpsnn.read_safetensors(path)[0], sources))


def save_checkpoint(path: str | os.PathLike[str], sources: Sources, state: Mapping[str, Any]) -> None:
    """Writes values, optimizers with their histories and time steps, and `state`, anything that JSON can hold."""
    for source in sources.values():
        parameters(source)
    _mpsnn._save_data_sources(path, list(sources.values()), json.dumps(state))


def load_checkpoint(path: str | os.PathLike[str], sources: Sources) -> dict[str, Any]:
    """Sets data sources and their optimizers as save_checkpoint() found them and returns the state that it was given.

    Nothing is changed unless everything fits. Raises what load_weights() raises, FileError for a file that is no checkpoint,
    and OptionError when a data source has another kind of optimizer now.
    """
    saved, state = _read_checkpoint(path)
    tensors = {
        f"{label}.{name}": value for label, source in saved.items() for name, value in parameters(source).items()
    }
    values = _fitting(path, tensors, sources)
    for label, source in sources.items():
        expected, actual = (type(one.optimizer).__name__ for one in (saved[label], source))
        if expected != actual:
            sentence = f'"{label}" was trained by another optimizer when {path} was written.'
            raise make_error("OptionError", sentence, expected=expected, actual=actual, label=label)
    _set(sources, values)
    for label, source in sources.items():
        source.history = saved[label].history
        if hasattr(source.optimizer, "time_step"):
            source.optimizer.time_step = saved[label].optimizer.time_step
    return state


def read_state(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The state in a checkpoint, without its numbers. Raises FileError like load_checkpoint()."""
    return _read_checkpoint(path)[1]


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes a file so that nobody ever sees a part of it: a new file, then renamed. Raises FileError."""
    _mpsnn._write_atomically(path, content)


def _read_checkpoint(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Data sources by label, and the state."""
    sources, text = _mpsnn._load_data_sources(path)
    try:
        state = json.loads(text)
    except ValueError as error:
        actual = "a graph" if not text else "another text"
        raise make_error(
            "FileError", f"{path} is no checkpoint.", expected="a training's state", actual=actual
        ) from error
    return {source.label(): source for source in sources}, state


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


def _set(sources: Sources, values: Mapping[str, dict[str, np.ndarray]]) -> None:
    for label, source in sources.items():
        source.set_values(**values[label])


def _labels(names: Iterable[str]) -> str:
    """The labels of a file, for an error's text."""
    return ", ".join(sorted({name.rsplit(".", 1)[0] for name in names if ".history." not in name})) or "none"
