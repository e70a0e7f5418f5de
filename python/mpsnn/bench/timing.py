# SPDX-License-Identifier: Apache-2.0
"""What every side of the benchmark hands to its worker, and how it is timed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Timed:
    """Something to time. `run(seconds)` gives the seconds of single executions; `outputs` are compared before that."""

    run: Callable[[float], list[float]]
    outputs: dict[str, Any] = field(default_factory=dict)
    notes: str = ""


def repeat(call: Callable[[], Any], seconds: float, overhead: float = 0.0) -> list[float]:
    """Calls for so long, at least twice. `overhead` is taken off each time."""
    samples: list[float] = []
    end = time.perf_counter() + seconds
    while len(samples) < 2 or time.perf_counter() < end:
        begin = time.perf_counter()
        call()
        samples.append(max(1e-9, time.perf_counter() - begin - overhead))
    return samples


def layer_inputs(case: Any, seed: int = 0) -> dict[str, Any]:
    """Arrays of a layer case: x and incoming in N, H, W, C order, weights O x kH x kW x I/groups, labels."""
    import numpy as np

    random = np.random.default_rng(seed)

    def draw(shape: tuple[int, ...]) -> Any:
        # At the beginning of a cache line, as the arrays of every side are inside a training step.
        memory = np.empty(4 * math.prod(shape) + 64, np.uint8)
        begin = -memory.ctypes.data % 64
        array = memory[begin : begin + 4 * math.prod(shape)].view(np.float32).reshape(shape)
        return random.standard_normal(out=array, dtype=np.float32)

    arrays = {"x": draw(case.shape), "incoming": draw(case.result_shape)}
    if case.outputs:
        arrays["weights"] = draw(case.weights_shape)
    if case.kind == "softmax_loss":
        arrays["classes"] = random.integers(0, case.shape[3], case.shape[0])
    if case.kind == "addition":
        arrays["y"] = draw(case.shape)
    return arrays
