# SPDX-License-Identifier: Apache-2.0
"""Pictures of a training run."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from typing import Any

from mpsnn.checkpoint import write_atomically
from mpsnn.datasets import require

# Distinguishable with any colour vision, and in grey (Okabe and Ito's palette).
_BLUE, _ORANGE, _GREY = "#0072B2", "#D55E00", "#777777"


def save_curves(path: str | os.PathLike[str], history: Sequence[dict[str, Any]], name: str) -> None:
    """Draws loss and accuracy over the epochs into a PNG file.

    history   the records of Trainer.fit()
    name      of the data set, for the title

    Raises MissingPackage without matplotlib and FileError when the file cannot be written.
    """
    require("matplotlib", "matplotlib", "drawing the curves")
    # Figure objects of their own: pyplot would choose a window system and keep every figure.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(9, 3.8), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    loss_axes, accuracy_axes = figure.subplots(1, 2)
    _draw(loss_axes, history, "loss", "training", _BLUE, "o")
    loss_axes.set(title="Loss", ylabel="mean cross-entropy")
    loss_axes.set_ylim(bottom=0)
    _draw(accuracy_axes, history, "accuracy", "training", _BLUE, "o")
    _draw(accuracy_axes, history, "test_accuracy", "test", _ORANGE, "s")
    accuracy_axes.set(title="Accuracy", ylabel="share of images that are right")
    for axes in (loss_axes, accuracy_axes):
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(color=_GREY, alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False)
    figure.suptitle(_title(history, name), fontweight="bold")
    png = io.BytesIO()
    figure.savefig(png, format="png")
    write_atomically(path, png.getvalue())


def _draw(axes: Any, history: Sequence[dict[str, Any]], column: str, label: str, color: str, marker: str) -> None:
    points = [(record["epoch"], record[column]) for record in history if record.get(column) is not None]
    if not points:
        return
    epochs, values = zip(*points, strict=True)
    axes.plot(epochs, values, color=color, marker=marker, markersize=4, linewidth=1.8, label=label)


def _title(history: Sequence[dict[str, Any]], name: str) -> str:
    tested = [record["test_accuracy"] for record in history if record.get("test_accuracy") is not None]
    return (
        f"{name}: test accuracy {tested[-1]:.4f} after {len(history)} epoch{'s' * (len(history) > 1)}"
        if tested
        else name
    )
