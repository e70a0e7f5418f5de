# SPDX-License-Identifier: Apache-2.0
"""Runs cases on all sides, turn by turn, and pairs what they measured."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from mpsnn.bench.cases import LayerCase, StepCase

if TYPE_CHECKING:
    from typing_extensions import Self

# glibc keeps what was freed instead of giving it back: fresh tensors then meet no page faults. torch gains up to 10 times by it.
_TUNED = {
    "MALLOC_MMAP_THRESHOLD_": "8589934592",
    "MALLOC_TRIM_THRESHOLD_": "8589934592",
    "MALLOC_TOP_PAD_": "268435456",
}

#: Name of a side: the module that it runs, and what is set in its environment.
SIDES: dict[str, tuple[str, dict[str, str]]] = {
    "mpsnn": ("mpsnn", {}),
    "torch": ("torch", {}),
    "torch tuned": ("torch", _TUNED),
    "jax": ("jax", {}),
    "mlx": ("mlx", {}),
}


def installed_sides(wanted: Iterable[str] | None = None) -> list[str]:
    """mpsnn and every other side whose package is there, in the order of SIDES."""
    names = SIDES if wanted is None else ["mpsnn", *wanted]
    return [name for name in SIDES if name in names and importlib.util.find_spec(SIDES[name][0])]


class SideError(RuntimeError):
    """A side could not run a case."""


class Side:
    """A worker process."""

    def __init__(self, name: str) -> None:
        self.name = name
        module, environment = SIDES[name]
        command = [sys.executable, "-m", "mpsnn.bench.worker", module]
        # Ours says here what is wrong with the environment, e.g. an unknown MPSNN_ISA; others warn of what nobody can change.
        log = None if module == "mpsnn" or os.environ.get("MPSNN_BENCH_LOG") else subprocess.DEVNULL
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, **environment},
        )
        self._answer()

    def ask(self, do: str, **values: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        print(json.dumps({"do": do, **values}), file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        answer = json.loads(line) if line else {"error": f"the process ended with code {self._process.wait()}"}
        if "error" in answer:
            raise SideError(f"{self.name}: {answer['error']}")
        return answer

    def close(self) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._process.wait()


@dataclass
class Result:
    """One case in one pass, everywhere. Times are seconds, per variant and round."""

    name: str
    group: str
    which: str
    description: str
    times: dict[str, list[float]]
    errors: dict[str, float]
    algorithm: str = ""
    flops: float = 0.0
    bytes: float = 0.0
    peak_bytes: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    scale: str = ""  # how the time follows what is scaled

    @property
    def seconds(self) -> float:
        return median(self.times["mpsnn"])

    def rival(self, prefix: str = "torch") -> str:
        """The fastest variant whose name begins so; empty without one."""
        names = [name for name in self.times if name.startswith(prefix)]
        return min(names, key=lambda name: median(self.times[name]), default="")

    def ratios(self, rival: str) -> list[float]:
        """Time of the rival over ours, round by round."""
        return [theirs / ours for theirs, ours in zip(self.times[rival], self.times["mpsnn"], strict=True)]

    def ratio(self, prefix: str = "torch") -> tuple[float, float, float] | None:
        """Median, lower and upper quartile of the paired ratios to the fastest variant."""
        rival = self.rival(prefix)
        if not rival:
            return None
        low, middle, high = np.percentile(self.ratios(rival), [25, 50, 75])
        return float(middle), float(low), float(high)


@dataclass
class Settings:
    """How long and how often. `slot` is the least time of one turn in seconds."""

    rounds: int = 5
    slot: float = 0.12
    threads: int = 2
    compile: bool = False
    quick: bool = False


class Runner:
    """Keeps one process per side for any number of cases."""

    def __init__(self, sides: list[str], settings: Settings, say: Callable[[str], None] = print) -> None:
        self.settings, self.say = settings, say
        self.names = sides
        self._sides: dict[str, Side] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="mpsnn-bench-")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused: object) -> None:
        for side in self._sides.values():
            side.close()
        self._folder.cleanup()

    def side(self, name: str) -> Side:
        if name not in self._sides:
            self._sides[name] = Side(name)
        return self._sides[name]

    def forget(self, name: str) -> None:
        """The next case gets a new process of that side: this one may have ended."""
        if side := self._sides.pop(name, None):
            side.close()

    def layer(self, case: LayerCase, which: str) -> Result:
        flops, size = case.sizes()
        result = Result(case.name, case.group, which, case.text(), {}, {}, flops=flops, bytes=size)
        return self._measure(result, {"layer": case.name, "pass": which}, _layer_tolerance(case, which))

    def step(self, case: StepCase, threads: int | None = None) -> Result:
        result = Result(case.name, "training step", "step", case.name, {}, {})
        command = {"step": [case.network, case.images, case.size], "options": {"compile": self.settings.compile}}
        # MobileNet's gradients differ by 2.6 % between PyTorch's own two layouts: batch normalization amplifies rounding.
        return self._measure(result, command, {"losses": 5e-3, "weight changes": 0.06}, threads)

    def peak_memory(self, case: StepCase, sides: Iterable[str]) -> dict[str, int]:
        """Most bytes that three steps need beyond what the process had after its imports: each variant in a process of its own."""
        peaks = {}
        for name in sides:
            for layout in ("NCHW", "channels_last") if name.startswith("torch") else ("",):
                side = Side(name)
                options = {"measures_memory": True, "layouts": [layout]}
                command = {"step": [case.network, case.images, case.size], "options": options}
                try:
                    answer = side.ask("prepare", threads=self.settings.threads, **command)
                    peaks[f"{name} {layout}".strip()] = answer["peak_bytes"]
                except SideError as error:
                    self.say(f"  {error}")
                side.close()
        return peaks

    def _measure(
        self, result: Result, command: dict[str, Any], tolerances: dict[str, float], threads: int | None = None
    ) -> Result:
        turns: list[tuple[Side, str, str]] = []
        outputs: dict[str, Path] = {}
        for name in self.names:
            file = Path(self._folder.name) / f"{name}.npz"
            try:
                side = self.side(name)
                prepared = side.ask("prepare", outputs=str(file), threads=threads or self.settings.threads, **command)
            except SideError as error:
                if name == "mpsnn":
                    raise
                result.problems.append(str(error))
                self.forget(name)
                continue
            outputs[name] = file
            for variant, notes in prepared["variants"].items():
                shown = variant if variant == name else f"{name} {variant}"
                turns.append((side, variant, shown))
                if name == "mpsnn":
                    result.algorithm = notes
        self._compare(result, outputs, tolerances)
        result.times = {shown: [] for _, _, shown in turns}
        for number in range(self.settings.rounds):
            # The order turns, so that nobody always follows the same neighbour.
            for side, variant, shown in turns[number % len(turns) :] + turns[: number % len(turns)]:
                time.sleep(0.005)  # threads of the side before go to sleep: they spin for a while
                samples = side.ask("slot", variant=variant, seconds=self.settings.slot)["samples"]
                result.times[shown].append(median(samples))
        return result

    def _compare(self, result: Result, outputs: dict[str, Path], tolerances: dict[str, float]) -> None:
        """Relative L2 distance of every side's outputs from ours. A side that computes something else is a problem, not a time."""
        ours = {name.partition("/")[2]: array for name, array in np.load(outputs["mpsnn"]).items()}
        for side, file in outputs.items():
            if side == "mpsnn":
                continue
            for key, array in np.load(file).items():
                variant, _, name = key.partition("/")
                shown = f"{side} {variant}"
                if name not in ours:
                    result.problems.append(f"{shown} gives {name}, which we do not")
                    continue
                expected = np.asarray(array, np.float64).reshape(ours[name].shape)
                error = float(np.linalg.norm(ours[name] - expected) / max(1e-30, float(np.linalg.norm(expected))))
                result.errors[shown] = max(error, result.errors.get(shown, 0.0))
                if not error <= tolerances.get(name, tolerances.get("", 0.0)):
                    result.problems.append(f"{name} differs from {shown} by {error:.2g}")


def _layer_tolerance(case: LayerCase, which: str) -> dict[str, float]:
    """Both sides round: epsilon times the root of the terms of a sum, and a factor for Winograd (PERFORMANCE.md, accuracy)."""
    terms = 16.0
    if case.outputs:
        height, width, inputs = case.weights_shape[1:]
        sums = {"forward": height * width * inputs, "data gradient": height * width * case.outputs / case.groups}
        images, rows, columns, _ = case.result_shape
        terms = sums.get(which, images * rows * columns)
    return {"": float(np.finfo(np.float32).eps * 16 * np.sqrt(terms))}
