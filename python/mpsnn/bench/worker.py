# SPDX-License-Identifier: Apache-2.0
"""A process of the benchmark: one framework. Reads commands as JSON lines and answers with JSON lines.

python -m mpsnn.bench.worker mpsnn|torch|jax|mlx
"""

from __future__ import annotations

import json
import os
import sys
from importlib import import_module
from typing import Any

import numpy as np

from mpsnn.bench.cases import LAYERS, StepCase


def _memory(field: str) -> int:
    """VmHWM (most ever) or VmRSS (now) of this process in bytes; 0 where the system does not say."""
    try:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith(field + ":"))
    except (OSError, StopIteration):
        return 0


class Worker:
    def __init__(self, side: str) -> None:
        self.side = import_module(f"mpsnn.bench.side_{side}")
        self.timed: dict[str, Any] = {}

    def prepare(self, command: dict[str, Any]) -> dict[str, Any]:
        """Builds a case and writes what each variant computes to `outputs`."""
        self.timed = {}
        self.side.set_threads(command["threads"])
        before = _memory("VmRSS")
        if "layer" in command:
            case = next(case for case in LAYERS if case.name == command["layer"])
            self.timed = self.side.layer(case, command["pass"])
        else:
            self.timed = self.side.step(StepCase(*command["step"]), command.get("options", {}))
        peak = _memory("VmHWM") - before
        if command.get("outputs"):
            arrays = {
                f"{variant}/{name}": array
                for variant, timed in self.timed.items()
                for name, array in timed.outputs.items()
            }
            np.savez(command["outputs"], **arrays)
        for timed in self.timed.values():
            timed.outputs = {}
        return {"variants": {variant: timed.notes for variant, timed in self.timed.items()}, "peak_bytes": peak}

    def slot(self, command: dict[str, Any]) -> dict[str, Any]:
        return {"samples": self.timed[command["variant"]].run(command["seconds"])}


def main() -> None:
    # Only answers go to the parent: libraries that print would break the protocol.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    worker = Worker(sys.argv[1])
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        try:
            answer = getattr(worker, command["do"])(command)
        except Exception as error:  # noqa: BLE001 the parent decides what a failing side means
            import traceback

            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
