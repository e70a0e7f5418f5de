# SPDX-License-Identifier: Apache-2.0
"""What a gradient check found: a row for each gradient, as numbers and as a table."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from mpsnn._errors import make_error


@dataclass
class GradientRow:
    """One gradient: of an input image, or of a parameter. The numbers are those of the worst element."""

    node_class: str
    label: str
    what: str
    coordinates: tuple[int, ...] = ()
    value: float = 0.0
    reference_value: float = 0.0
    difference_value: float | None = None  #: None where that element was not differenced
    tolerance: float = 0.0
    why: str = ""  #: how the tolerance comes about
    against_reference: float = 0.0  #: worst error / tolerance over all elements
    against_differences: float | None = None  #: the same over the differenced ones; None where there are none
    checked: int = 0
    differenced: int = 0
    skipped: dict[str, int] = field(default_factory=dict)  #: elements left out, by reason
    problem: str = ""  #: why nothing could be compared
    gradient: np.ndarray = field(default_factory=lambda: np.zeros(0), repr=False)
    engine_tolerance: float = 0.0

    @property
    def passed(self) -> bool:
        return not self.problem and max(self.against_reference, self.against_differences or 0.0) <= 1

    @property
    def name(self) -> str:
        return f'{self.node_class} "{self.label}"' if self.label else self.node_class


@dataclass
class GradientReport:
    """What check_gradients() found. ``print(report)`` shows a table."""

    rows: list[GradientRow]
    device: str
    seed: int
    images: list[np.ndarray] = field(repr=False)
    incoming: np.ndarray | None = field(repr=False)
    labels: list[np.ndarray] = field(repr=False)
    gradient_classes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return bool(self.rows) and all(row.passed for row in self.rows)

    @property
    def failures(self) -> list[GradientRow]:
        return [row for row in self.rows if not row.passed]

    def __str__(self) -> str:
        head = (
            "node",
            "gradient of",
            "worst at",
            self.device,
            "reference",
            "difference",
            "error/tolerance",
            "checked",
            "verdict",
        )
        lines = [head, *map(_cells, self.rows)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
        text = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
        ]
        for row in self.rows:
            text += [f"{row.name}, {row.what}: {count} skipped: {reason}" for reason, count in row.skipped.items()]
        text += [
            f"{row.name}, {row.what}: tolerance {row.tolerance:.3g} = {row.why}" for row in self.failures if row.why
        ]
        text += [f"{row.name}, {row.what}: {row.problem}" for row in self.failures if row.problem]
        return "\n".join(
            text + [f"{'all pass' if self.ok else f'{len(self.failures)} of {len(self.rows)} FAIL'} (seed {self.seed})"]
        )

    def raise_if_failed(self) -> None:
        """Raises GraphError that names the worst element; does nothing when all pass."""
        if self.ok:
            return
        row = max(
            self.failures, key=lambda r: math.inf if r.problem else max(r.against_reference, r.against_differences or 0)
        )
        difference = "" if row.difference_value is None else f", differences {row.difference_value:.9g}"
        raise make_error(
            "GraphError",
            f"the gradient of {row.what}{list(row.coordinates)} is wrong in {row.name}."
            if not row.problem
            else f"{row.name}: {row.problem}",
            expected=f"reference {row.reference_value:.9g}{difference}, within {row.tolerance:.3g} = {row.why}",
            actual=f"{self.device} {row.value:.9g}",
            hint=f"print(check_gradients(..., seed={self.seed})) shows every gradient",
            node=row.node_class,
            label=row.label,
        )


def _cells(row: GradientRow) -> tuple[str, ...]:
    def ratio(value: float | None) -> str:
        return "-" if value is None else f"{value:.2g}"

    difference = "-" if row.difference_value is None else f"{row.difference_value:.7g}"
    return (
        row.name,
        row.what,
        str(list(row.coordinates)),
        f"{row.value:.7g}",
        f"{row.reference_value:.7g}",
        difference,
        f"{ratio(row.against_reference)}, {ratio(row.against_differences)}",
        f"{row.checked}, {row.differenced}",
        "pass" if row.passed else "FAIL",
    )
