# SPDX-License-Identifier: Apache-2.0
"""Turns results into a Markdown page and a plot."""

from __future__ import annotations

import platform
from pathlib import Path
from statistics import median
from typing import Any

from mpsnn.bench.run import Result

_HOW = (
    "A ratio is the time of the fastest PyTorch variant (NCHW and channels_last, each with the default allocator and with one "
    "that keeps freed memory) over ours: the median of paired rounds, with quartiles. Before timing, the outputs of both sides "
    "are compared: the column `difference` is their relative L2 distance."
)


def _machine() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    return model


def _versions() -> str:
    from importlib.metadata import PackageNotFoundError, version

    found = []
    for package in ("mpsnn", "torch", "jax", "mlx", "numpy"):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            pass
    return ", ".join(found)


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Numbers to the right."""
    bars = ["---" if i < 2 else "---:" for i in range(len(head))]
    return ["| " + " | ".join(cells) + " |" for cells in (head, bars, *rows)] + [""]


def _ratio(result: Result, prefix: str = "torch") -> str:
    ratio = result.ratio(prefix)
    return "" if ratio is None else f"{ratio[0]:.2f} ({ratio[1]:.2f}-{ratio[2]:.2f})"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}"


def line(result: Result) -> str:
    """One result for the terminal."""
    rival = result.rival()
    text = f"{result.name:28.28} {result.which:16.16} {_milliseconds(result.seconds):>8} ms"
    if result.flops:
        text += f" {result.flops / result.seconds / 1e9:6.0f} GF/s"
    else:
        text += f" {result.bytes / result.seconds / 1e9:6.1f} GB/s" if result.bytes else " " * 12
    if rival:
        text += f"  {rival:26.26} {_milliseconds(median(result.times[rival])):>8} ms  ratio {_ratio(result)}"
        text += f"  difference {max(result.errors.values(), default=0):.1e}"
    return (
        text + (f"  [{result.algorithm}]" if result.algorithm else "") + "".join(f"\n    {p}" for p in result.problems)
    )


def markdown(results: list[Result], command: str, threads: int, scaling: dict[str, list[Result]]) -> str:
    lines = [
        "# Benchmarks",
        "",
        f"Made by `{command}` on {_machine()}, {threads} threads, float32; {_versions()}; instruction set {_instruction_set()}.",
        "",
        _HOW,
        "",
    ]
    layers = [result for result in results if result.which != "step"]
    steps = [result for result in results if result.which == "step"]
    if steps:
        lines += ["## Training steps", "", *_step_table(steps)]
    for title, rows in scaling.items():
        lines += [f"## Scaling with {title}", "", *_scaling_table(rows)]
    if layers:
        lines += ["## Layers by kind", "", *_summary(layers), "## Layers", "", *_layer_table(layers)]
    return "\n".join(lines)


def _instruction_set() -> str:
    import mpsnn

    return str(mpsnn.instruction_set())


def _step_table(steps: list[Result]) -> list[str]:
    rows = []
    for result in steps:
        rival = result.rival()
        peaks = result.peak_bytes
        ours = peaks.get("mpsnn", 0)
        theirs = min((peak for name, peak in peaks.items() if name.startswith("torch")), default=0)
        memory = f"{ours / 2**20:.0f} MiB, {theirs / ours:.2f}" if ours and theirs else ""
        others = ", ".join(f"{name} {_ratio(result, name)}" for name in ("jax", "mlx") if result.rival(name))
        rows.append([
            result.name, rival, _milliseconds(result.seconds), _milliseconds(median(result.times[rival])) if rival else "",
            _ratio(result), memory, others,
        ])  # fmt: skip
    return _table(
        ["step", "fastest PyTorch", "ours, ms", "theirs, ms", "ratio", "peak memory, torch / ours", "others"], rows
    )


def _scaling_table(results: list[Result]) -> list[str]:
    rows = [[result.description, result.rival(), _milliseconds(result.seconds), _ratio(result)] for result in results]
    return _table(["case", "fastest PyTorch", "ours, ms", "ratio"], rows)


def _summary(layers: list[Result]) -> list[str]:
    groups: dict[tuple[str, str], list[float]] = {}
    for result in layers:
        ratio = result.ratio()
        if ratio:
            groups.setdefault((result.group, result.which), []).append(ratio[0])
    rows = [[group, which, str(len(r)), f"{min(r):.2f}", f"{median(r):.2f}"] for (group, which), r in groups.items()]
    return _table(["kind", "pass", "cases", "worst ratio", "median ratio"], rows)


def _layer_table(layers: list[Result]) -> list[str]:
    rows = []
    for result in layers:
        rate = (
            f"{result.flops / result.seconds / 1e9:.0f} GFLOP/s"
            if result.flops
            else f"{result.bytes / result.seconds / 1e9:.1f} GB/s"
        )
        rival = result.rival()
        error = max(result.errors.values(), default=0)
        rows.append([
            result.description if result.flops else result.name, result.which, _milliseconds(result.seconds), rate,
            _milliseconds(median(result.times[rival])) if rival else "", _ratio(result), f"{error:.0e}", result.algorithm,
        ])  # fmt: skip
    return _table(["layer", "pass", "ours, ms", "ours", "torch, ms", "ratio", "difference", "algorithm"], rows)


def plot(results: list[Result], path: Path) -> None:
    """Ratios as bars, cases of a kind together."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown: list[Any] = [(result, result.ratio()) for result in results if result.ratio()]
    figure, axes = pyplot.subplots(figsize=(9, max(2.0, 0.19 * len(shown) + 1)))
    colors = {"forward": "#4477aa", "data gradient": "#ee6677", "weight gradient": "#228833", "step": "#222222"}
    places = range(len(shown))
    for place, (result, (middle, low, high)) in zip(places, shown, strict=True):
        axes.barh(place, middle, color=colors.get(result.which, "#aa3377"))
        axes.plot([low, high], [place, place], color="black", linewidth=1)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(list(places), [f"{result.name}, {result.which}" for result, _ in shown], fontsize=6)
    axes.set_ylim(max(len(shown), 1) - 0.5, -0.5)
    axes.set_xlabel("time of the fastest PyTorch variant / ours (line: quartiles)")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
