# SPDX-License-Identifier: Apache-2.0
"""What `mpsnn bench` does: chooses cases, runs them, prints and writes the report."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mpsnn.bench.cases import DATA, FORWARD, LAYERS, SCALING, STEPS, WEIGHTS, LayerCase, StepCase
from mpsnn.bench.run import Result, Runner, Settings, SideError, installed_sides

__all__ = ["Request", "Settings", "run"]

_PASSES = {"fwd": (FORWARD, "forward and gradient"), "dgrad": (DATA, "forward and gradient"), "wgrad": (WEIGHTS,)}


@dataclass
class Request:
    """What to run; None for `layers` or `steps` means none of them, or all when both are None."""

    layers: str | None
    passes: list[str]
    steps: str | None
    scaling: bool
    memory: bool
    sides: list[str] | None
    profile: bool
    output: Path | None


def _chosen_layers(request: Request) -> list[tuple[LayerCase, str]]:
    from mpsnn._errors import make_error

    unknown = [name for name in request.passes if name not in _PASSES]
    if unknown:
        raise make_error(
            "OptionError", f"there is no pass {unknown[0]}.", expected="fwd, dgrad, wgrad", actual=unknown[0]
        )
    wanted = {which for name in request.passes for which in _PASSES[name]}
    if request.layers is None and request.steps is not None:
        return []
    text = request.layers or ""
    cases = [case for case in LAYERS if text in case.name or text in case.group]
    if not cases:
        raise make_error(
            "OptionError", f'no layer\'s name contains "{text}".', hint=", ".join(case.name for case in LAYERS)
        )
    return [(case, which) for case in cases for which in case.passes if which in wanted]


def _chosen_steps(request: Request) -> list[StepCase]:
    from mpsnn._errors import make_error

    if request.steps is None and request.layers is not None:
        return []
    chosen = [case for case in STEPS if case.name.startswith(request.steps or "")]
    if not chosen:
        raise make_error(
            "OptionError",
            f'no step\'s name begins with "{request.steps}".',
            hint=", ".join(case.name for case in STEPS),
        )
    return chosen


def _check_output(request: Request) -> None:
    """Before half an hour of measurements, not behind it."""
    from mpsnn._errors import make_error

    if request.output is not None and not request.output.absolute().parent.is_dir():
        raise make_error(
            "OptionError",
            f'there is no folder "{request.output.parent}" to write {request.output.name} to.',
            hint="make it first, or name another file",
        )


def run(request: Request, settings: Settings, say: Callable[[str], None]) -> list[Result]:
    """Runs the request; `say` gets lines of text."""
    from mpsnn.bench.report import line, markdown, plot

    layers, steps = _chosen_layers(request), _chosen_steps(request)
    _check_output(request)
    if request.profile:
        from mpsnn.bench.side_mpsnn import profile, set_threads

        set_threads(settings.threads)
        for step in steps:
            say(profile(step))
        return []
    # Compiling every case takes the others minutes: a quick run has them when they are named.
    sides = installed_sides(("torch", "torch tuned") if settings.quick and request.sides is None else request.sides)
    say(f"sides: {', '.join(sides)}; {settings.threads} threads, {settings.rounds} rounds of {settings.slot} s")
    results: list[Result] = []
    scaling: dict[str, list[Result]] = {}
    with Runner(sides, settings, say) as runner:
        for step in steps:
            results.append(runner.step(step))
            if request.memory:
                results[-1].peak_bytes = runner.peak_memory(
                    step, [name for name in sides if name in ("mpsnn", "torch")]
                )
            say(line(results[-1]))
            for name, peak in results[-1].peak_bytes.items():
                say(f"    peak memory {name:20} {peak / 2**20:8.1f} MiB")
        for case, which in layers:
            try:
                results.append(runner.layer(case, which))
            except SideError as error:  # an hour of other cases is not thrown away
                say(f"left out: {case.name}, {which}: {error}")
                runner.forget("mpsnn")
            else:
                say(line(results[-1]))
    if request.scaling:
        scaling = _scale(settings, [name for name in sides if name == "mpsnn" or not settings.quick], say)
    if request.output is not None:
        words = [
            request.output.name if word == str(request.output) and request.output.is_absolute() else word
            for word in sys.argv[1:]
        ]
        command = "mpsnn " + " ".join(words)
        plot(results, request.output.with_suffix(".png"))
        request.output.write_text(markdown(results, command, settings, scaling, request.output.stem) + "\n")
        say(f"wrote {request.output} and {request.output.with_suffix('.png')}")
    return results


def _scale(settings: Settings, sides: list[str], say: Callable[[str], None]) -> dict[str, list[Result]]:
    """Batches, images and threads of several sizes. PyTorch follows; JAX decides about its threads once in a process."""
    from mpsnn.bench.report import line
    from mpsnn.bench.side_mpsnn import machine_peak

    scaling: dict[str, list[Result]] = {}
    with Runner([name for name in sides if name == "mpsnn" or name.startswith("torch")], settings, say) as runner:
        for title, cases in SCALING.items():
            scaling[title] = [runner.step(case) for case in cases]
            firsts: dict[str, tuple[StepCase, float]] = {}
            for case, result in zip(cases, scaling[title], strict=True):
                first, seconds = firsts.setdefault(case.network, (case, result.seconds))
                pixels = case.images * case.size**2 / (first.images * first.size**2)
                result.scale = f"{result.seconds / seconds / pixels:.2f} of the first, per pixel"
        scaling["threads"] = []
        peaks = [machine_peak(count)[0] for count in range(1, settings.threads + 1)]
        for case in STEPS:
            one = 0.0
            for count in range(1, settings.threads + 1):
                result = runner.step(case, count)
                result.description = f"{case.name}, {count} thread" + ("s" if count > 1 else "")
                result.name = f"{case.name} T{count}"
                one = one or result.seconds
                if count > 1:
                    alone = peaks[count - 1] / peaks[0]
                    result.scale = (
                        f"{one / result.seconds:.2f} times one thread's speed; multiply-adds alone {alone:.2f}"
                    )
                scaling["threads"].append(result)
    for title, results in scaling.items():
        say(title)
        for result in results:
            say(f"{line(result)}  {result.scale}")
    return scaling
