# SPDX-License-Identifier: Apache-2.0
"""check_gradients(): an engine's gradients against the float64 reference engine and against central differences.

How the tolerances come about, per gradient image or parameter:

* Engine: ``scale * sqrt(terms) * epsilon(float32)``. ``terms`` is how many roundings one element sees: the plan's flops per result
  element, at least 16, summed over the operations. ``scale`` is the largest gradient, plus what the reference engine's gradients change by when
  inputs and incoming gradient change by a relative epsilon (measured with random changes of 2^-36 and 2^-40; what jumps between them is at a kink and left out), plus, for a
  parameter, the root of the sum of squares of what it adds up: a sum that cancels is rounded like its terms.
* Differences: the same, and truncation, and rounding of float64. The central difference D over the steps h and 2h gives
  ``(4 D(h) - D(2h)) / 3``; what the correction removes, ``|D(2h) - D(h)| / 3 = h^2 / 6 * |third derivative|``, is allowed as
  truncation. Rounding is ``epsilon(float64) * sqrt(terms) * (sum of absolute changes' operands) / h``.

A kink (a tie of a maximum, ReLU at 0) within 2h of an element shows in second differences, which then do not grow with h^2, or in a
D(2h) - D(h) above the engine's tolerance. The step shrinks by 8, three times; an element whose kink stays is skipped and counted, another
one is taken, and a tensor in which no element could be checked fails.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from mpsnn._gradient_graph import GradientGraph, Step
from mpsnn._gradient_report import GradientReport, GradientRow
from mpsnn._gradient_wiring import Target, Wiring

Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]

_NOISE = 2.0**-36  # far above float64's epsilon, far below what could move a maximum to another pixel
_IMAGE_STEP, _PARAMETER_STEP = 2.0**-17, 2.0**-14  # powers of two: x + h is exact, for parameters also in float32
_SHRINKS = 3


def check_gradients(
    graph_or_node: Any,
    *,
    source_shapes: Sequence[tuple[int, ...]] | Mapping[str, tuple[int, ...]] | None = None,
    seed: int = 0,
    tolerance: float | None = None,
    device: str = "cpu",
    samples: int = 24,
    draw: Sequence[Draw | None] | Mapping[str, Draw] | None = None,
    labels: Draw | None = None,
    result: Any = None,
) -> GradientReport:
    """Compares an engine's gradients with the reference engine's and with central differences of the latter.

    Args:
        graph_or_node: a filter node, whose training graph is made here; a graph without gradient nodes, the same for the node of its
            result; or a graph with gradient nodes, which is checked as it is wired. Its gradient images must carry the handles of
            the images that they belong to, as training_graph() gives them.
        source_shapes: (N, H, W, C) per input, in the order of source_image_handles or by handle. Guessed where None.
        seed: of inputs, incoming gradient, labels and the choice of differenced elements.
        tolerance: absolute, instead of the computed one of the engine.
        device: whose gradients are checked.
        samples: elements differenced in each gradient; all where it has no more.
        draw: per input, in the order or by handle, ``function(generator, shape)``; normal numbers where None.
        labels: ``function(generator, shape)`` for loss nodes; one-hot over the feature channels where None.
        result: the node whose result the incoming gradient of a hand-wired graph belongs to, where it is not the only last one.

    Nothing of the graph changes and no parameter is updated. Raises GraphError for nodes without a gradient.

    >>> import mpsnn
    >>> node = mpsnn.MPSCNNPoolingMaxNode(mpsnn.MPSNNImageNode("x"), filter_size=2)
    >>> mpsnn.check_gradients(node, source_shapes=[(1, 4, 4, 2)]).ok
    True
    """
    with Wiring(graph_or_node, result) as wiring:
        check = _Check(GradientGraph(wiring), source_shapes, seed, tolerance, device, samples, draw, labels)
        rows = check.rows()
        classes = tuple(sorted({type(node).__name__ for node in wiring.gradient_nodes}))
        return GradientReport(rows, device, seed, check.images, check.incoming, check.labels, classes)


class _Check:
    """Numbers of one check. A step's gradients are a list: input images first, then parameters."""

    def __init__(
        self,
        graph: GradientGraph,
        shapes: Any,
        seed: int,
        tolerance: float | None,
        device: str,
        samples: int,
        draw: Any,
        labels: Draw | None,
    ):
        self.graph, self.device, self.samples, self.given_tolerance = graph, device, samples, tolerance
        self.rng = np.random.default_rng(seed)
        sizes = graph.shapes(shapes)
        draws = graph.by_input(draw, "draw")
        self.images = [
            _exact((function or _normal)(self.rng, size)) for function, size in zip(draws, sizes, strict=True)
        ]
        self.labels = [_exact((labels or _one_hot)(self.rng, shape)) for shape in graph.label_shapes(sizes)]
        shape = graph.incoming_shape(self.images, self.labels)
        self.incoming = None if shape is None else _exact(_normal(self.rng, shape))
        self.terms = max(1.0, graph.terms(self.images, self.incoming))
        self.reference = graph.run("reference", self.images, self.incoming, self.labels)
        self.engine = graph.run(device, self.images, self.incoming, self.labels)
        self.epsilon = float(np.finfo(np.float64 if device == "reference" else np.float32).eps)
        self.response = self._responses()
        self.wide: list[np.ndarray] | None = None

    def rows(self) -> list[GradientRow]:
        return [self._row(i) for i in range(len(self.reference.gradients))]

    def _changes(self, amplitude: float, draws: int) -> list[np.ndarray]:
        """Largest change of each gradient's element when inputs change by a relative amplitude; in units of it."""
        largest = [np.zeros_like(g) for g in self.reference.gradients]
        for _ in range(draws):
            for most, change in zip(largest, self._change(amplitude, self._noise()), strict=True):
                np.maximum(most, change, out=most)
        return largest

    def _noise(self) -> list[np.ndarray]:
        return [
            self.rng.normal(size=x.shape) for x in [*self.images, *([] if self.incoming is None else [self.incoming])]
        ]

    def _change(self, amplitude: float, noise: list[np.ndarray]) -> list[np.ndarray]:
        images = [x * (1 + amplitude * n) for x, n in zip(self.images, noise, strict=False)]
        incoming = None if self.incoming is None else self.incoming * (1 + amplitude * noise[-1])
        step = self.graph.run("reference", images, incoming, self.labels)
        return [
            np.abs(got - base) / amplitude for got, base in zip(step.gradients, self.reference.gradients, strict=True)
        ]

    def _responses(self) -> list[np.ndarray]:
        """The same for small changes, without the elements that jump: a jump, of a tie, does not shrink with the change."""
        largest = [np.zeros_like(g) for g in self.reference.gradients]
        for _ in range(3):
            noise = self._noise()
            for most, small, large in zip(
                largest, self._change(_NOISE / 16, noise), self._change(_NOISE, noise), strict=True
            ):
                np.maximum(most, np.where(small > 4 * large, 0, large), out=most)
        return largest

    def _tolerance(self, i: int) -> tuple[float, str]:
        if self.given_tolerance is not None:
            return self.given_tolerance, "as given"
        largest, response = (float(np.abs(a[i]).max(initial=0)) for a in (self.reference.gradients, self.response))
        summed = self.reference.sums[i]
        scale = largest + response + summed
        parts = f"largest gradient {largest:.3g} + response to rounded inputs {response:.3g}" + (
            f" + root of summed squares {summed:.3g}" if summed else ""
        )
        name = "float64" if self.device == "reference" else "float32"
        return scale * math.sqrt(
            self.terms
        ) * self.epsilon, f"scale {scale:.3g} ({parts}) * sqrt({self.terms:.0f} roundings) * epsilon({name})"

    def kink_threshold(self, i: int) -> float:
        """What a smooth function's differences may bend by: as much as float32 rounds, also when float64 is checked."""
        scale = (
            sum(float(np.abs(a[i]).max(initial=0)) for a in (self.reference.gradients, self.response))
            + self.reference.sums[i]
        )
        return scale * math.sqrt(self.terms) * float(np.finfo(np.float32).eps)

    def _row(self, i: int) -> GradientRow:
        target = self.graph.wiring.targets[i]
        got, expected = self.engine.gradients[i].astype(np.float64), self.reference.gradients[i]
        allowed, why = self._tolerance(i)
        row = GradientRow(
            target.node_class,
            target.label,
            target.what,
            gradient=got,
            engine_tolerance=allowed,
            tolerance=allowed,
            why=why,
        )
        if got.shape != expected.shape:
            row.problem = f"{self.device} gives a gradient of shape {got.shape}, reference {expected.shape}"
            return row
        if not got.size:
            return row
        error = np.abs(got - expected)
        ratio = _ratio(error, allowed)
        at_kink = self._explained_by_kinks(i, error, ratio) if (ratio > 1).any() else np.zeros(got.shape, bool)
        if at_kink.any():
            row.skipped[f"a change as small as {self.device}'s rounding moves the reference over a kink"] = int(
                at_kink.sum()
            )
        ratio[at_kink] = 0
        row.checked, row.against_reference = int(got.size - at_kink.sum()), float(ratio.max())
        worst = tuple(map(int, np.unravel_index(int(np.argmax(ratio)), got.shape)))
        self._take(row, i, worst)
        self._compare_differences(row, i, worst, at_kink)
        return row

    def _take(self, row: GradientRow, i: int, index: tuple[int, ...]) -> None:
        row.coordinates, row.value, row.reference_value = (
            index,
            float(row.gradient[index]),
            float(self.reference.gradients[i][index]),
        )

    def _explained_by_kinks(self, i: int, error: np.ndarray, ratio: np.ndarray) -> np.ndarray:
        """Where changing the inputs as much as float32 rounds changes the gradient far more than smoothly, and enough."""
        amplitude = self.epsilon * math.sqrt(self.terms)
        if self.wide is None:
            self.wide = self._changes(amplitude, 8)
        change, smooth = self.wide[i] * amplitude, self.response[i] * amplitude
        explained: np.ndarray = (
            (ratio > 1)
            & (change >= error / 2)
            & (change > 16 * smooth + self.epsilon * np.abs(self.reference.gradients[i]))
        )
        return explained

    def _compare_differences(self, row: GradientRow, i: int, worst: tuple[int, ...], at_kink: np.ndarray) -> None:
        reason = self.graph.wiring.targets[i].no_difference
        if reason:
            row.skipped[f"no differences: {reason}"] = row.gradient.size
            return
        shape, size = row.gradient.shape, row.gradient.size
        largest = tuple(map(int, np.unravel_index(int(np.argmax(np.abs(self.reference.gradients[i]))), shape)))
        order = [
            tuple(map(int, np.unravel_index(int(n), shape))) for n in self.rng.permutation(size)[: 2 * self.samples + 2]
        ]
        chosen = [index for index in dict.fromkeys([worst, largest, *order]) if not at_kink[index]]
        engine_ratio = row.against_reference
        with _varying(self.graph, i) as function:
            for index in chosen:
                if row.differenced >= self.samples:
                    break
                self._compare_element(row, i, index, function, engine_ratio)
        if row.differenced == 0:
            row.problem = "no element could be differenced: " + "; ".join(row.skipped)

    def _compare_element(
        self, row: GradientRow, i: int, index: tuple[int, ...], function: Any, engine_ratio: float
    ) -> None:
        estimate = _difference(
            self,
            function,
            index,
            self.kink_threshold(i),
            _IMAGE_STEP if i < len(self.graph.wiring.gradients) else _PARAMETER_STEP,
        )
        if isinstance(estimate, str):
            row.skipped[estimate] = row.skipped.get(estimate, 0) + 1
            return
        row.differenced += 1
        value, extra, why = estimate
        allowed = row.engine_tolerance + extra
        ratio = float(_ratio(np.abs(row.gradient[index] - value), allowed))
        worst_so_far = row.against_differences if row.against_differences is not None else -1.0
        row.against_differences = max(worst_so_far, ratio)
        if index == row.coordinates:
            row.difference_value = value
        if ratio > max(engine_ratio, worst_so_far):
            self._take(row, i, index)
            row.difference_value, row.tolerance = value, allowed
            row.why = f"{self._tolerance(i)[1]} + {why}"

    def objective_change(self, high: Step, low: Step) -> tuple[float, float]:
        """The change of the differentiated number, and the absolute values that went into it. Outputs that stay equal drop out."""
        change = size = 0.0
        for a, b, factor in zip(high.outputs, low.outputs, self.factors(), strict=True):
            changed = a != b
            change += float(((a - b) * factor).sum())
            size += float((np.abs(factor) * changed).sum() * max(np.abs(a).max(initial=0), np.abs(b).max(initial=0)))
        return change, size

    def factors(self) -> list[np.ndarray]:
        incoming = np.ones(1) if self.incoming is None else self.incoming
        return [
            np.broadcast_to(incoming if factor is None else factor, a.shape)
            for a, factor in zip(self.reference.outputs, self.reference.factors, strict=True)
        ]


@contextmanager
def _varying(graph: GradientGraph, i: int) -> Iterator[_Varying]:
    """A function of (index, offset, images, incoming, labels) that runs the reference engine with one number changed."""
    target = graph.wiring.targets[i]
    number, kept = 0, None
    if target.source is None:
        number = next(n for n, image in enumerate(graph.wiring.inputs) if image is graph.wiring.gradients[i][0])
    else:
        kept = np.array(target.source.values[target.name], np.float32)
    try:
        yield _Varying(graph, target, number, kept)
    finally:
        if kept is not None:
            target.source.set_values(**{target.name: kept})
            graph.reload()


class _Varying:
    def __init__(self, graph: GradientGraph, target: Target, number: int, kept: np.ndarray | None):
        self.graph, self.target, self.number, self.kept = graph, target, number, kept
        self.images: list[np.ndarray] = []

    def value(self, index: tuple[int, ...]) -> float:
        return float(self.kept[index] if self.kept is not None else self.images[self.number][index])

    def moved(self, index: tuple[int, ...], offset: float) -> float:
        """How far an offset really goes: parameters are float32, in which a sum with a tiny number is rounded."""
        return (
            float(np.float32(self.value(index) + offset)) if self.kept is not None else self.value(index) + offset
        ) - self.value(index)

    def __call__(
        self,
        index: tuple[int, ...],
        offset: float,
        images: list[np.ndarray],
        incoming: np.ndarray | None,
        labels: list[np.ndarray],
    ) -> Step:
        self.images = images
        full = not self.graph.is_forward_enough(images, incoming, labels)
        if self.kept is None:
            images = list(images)
            images[self.number] = images[self.number].copy()
            images[self.number][index] += offset
        else:
            moved = self.kept.copy()
            moved[index] = self.value(index) + self.moved(index, offset)
            self.target.source.set_values(**{self.target.name: moved})
            self.graph.reload()
        return self.graph.run("reference", images, incoming if full else None, labels, gradients=full)


def _difference(
    check: _Check, function: Any, index: tuple[int, ...], threshold: float, step: float
) -> tuple[float, float, str] | str:
    """(difference, what it may be off, why) of one element; a text where a kink is too near."""

    def at(offset: float) -> Step:
        step_result: Step = function(index, offset, check.images, check.incoming, check.labels)
        return step_result

    base = at(0.0)
    step *= 2.0 ** max(0, math.ceil(math.log2(max(1e-30, abs(function.value(index))))))
    left = right = 0.0
    for _ in range(_SHRINKS + 1):
        change: dict[int, float] = {}
        moved, size = {}, 0.0
        for side in (1, -1, 2, -2):
            change[side], operands = check.objective_change(at(side * step), base)
            moved[side] = function.moved(index, side * step)
            size = max(size, operands)
        left, right, wide_left, wide_right = (change[side] / moved[side] for side in (-1, 1, -2, 2))
        narrow, wide = ((change[side] - change[-side]) / (moved[side] - moved[-side]) for side in (1, 2))
        rounding = 2 * np.finfo(np.float64).eps * math.sqrt(check.terms) * size / step
        bend = abs(
            wide_right - wide_left - 2 * (right - left)
        )  # a kink's jump of the slope; smooth: step^3 times the fourth derivative
        truncation = abs(wide - narrow) / 3
        if max(bend / 6, truncation) <= threshold + 4 * rounding:
            third = 6 * truncation / step**2
            why = f"{truncation:.2g} (step {step:.2g}, third derivative {third:.2g}) + {rounding:.2g} (rounding of the difference)"
            return (4 * narrow - wide) / 3, truncation + rounding, why
        step /= 8
    if not math.isfinite(left + right):
        return "the differenced number is not finite"
    return "one-sided differences disagree at every step: a kink"


def _ratio(error: Any, allowed: float) -> np.ndarray:
    """error / allowed; 0 / 0 is fine, NaN is as wrong as can be."""
    error = np.asarray(error, np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(np.isnan(error), np.inf, np.where(error == 0, 0.0, error / allowed))


def _exact(array: Any) -> np.ndarray:
    """Numbers that float32 holds, so that both engines see the same."""
    return np.ascontiguousarray(np.asarray(array, np.float32), np.float64)


def _normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.normal(size=shape)


def _one_hot(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    if shape[-1] == 1:
        return rng.integers(0, 2, shape)
    return np.eye(shape[-1])[rng.integers(0, shape[-1], shape[:-1])]


__all__ = ["GradientReport", "GradientRow", "check_gradients"]
