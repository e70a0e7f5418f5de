# SPDX-License-Identifier: Apache-2.0
"""Turns results into a Markdown page and a plot."""

from __future__ import annotations

import platform
from pathlib import Path
from statistics import median

from mpsnn.bench.run import Result, Settings

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


def markdown(
    results: list[Result], command: str, settings: Settings, scaling: dict[str, list[Result]], picture: str
) -> str:
    lines = [
        "# Benchmarks",
        "",
        f"Made by `{command}` on {_machine()}, {settings.threads} threads, float32, {settings.rounds} rounds; {_versions()}; instruction "
        f"set {_instruction_set()}." + (" A quick run: to see that it runs, not to quote." if settings.quick else ""),
        "",
        _HOW,
        "",
    ]
    if any(result.ratio() for result in results):
        lines += [f"![Ratios by kind of layer]({picture}.png)", ""]
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
        [
            "step",
            "fastest PyTorch",
            "ours, ms",
            "theirs, ms",
            "ratio",
            "our peak memory, PyTorch's / ours",
            "others / ours",
        ],
        rows,
    )


def _scaling_table(results: list[Result]) -> list[str]:
    rows = [
        [result.description, result.rival(), _milliseconds(result.seconds), result.scale, _ratio(result)]
        for result in results
    ]
    return _table(["case", "fastest PyTorch", "ours, ms", "our time", "ratio"], rows)


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
    """Ratios as bars: one for each training step, and one for each kind of layer and pass."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    bars: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    for result in results:
        ratio = result.ratio()
        if ratio:
            bars.setdefault((result.name if result.which == "step" else result.group, result.which), []).append(ratio)
    figure, axes = pyplot.subplots(figsize=(9, max(2.0, 0.19 * len(bars) + 1)))
    colors = {"forward": "#4477aa", "data gradient": "#ee6677", "weight gradient": "#228833", "step": "#222222"}
    for place, ((_, which), ratios) in enumerate(bars.items()):
        axes.barh(place, median([r for r, _, _ in ratios]) - 1, left=1, color=colors.get(which, "#aa3377"))
        # Of one case its quartiles, of several the worst and the best.
        spread = ratios[0][1:] if len(ratios) == 1 else (min(ratios)[0], max(ratios)[0])
        axes.plot(spread, [place, place], color="black", linewidth=0.8)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    names = [
        f"{name}, {which}" + (f" ({len(ratios)})" if len(ratios) > 1 else "") for (name, which), ratios in bars.items()
    ]
    axes.set_yticks(list(range(len(bars))), names, fontsize=6)
    axes.set_ylim(max(len(bars), 1) - 0.5, -0.5)
    axes.set_xlabel(
        "time of the fastest PyTorch variant / ours: median of a kind's cases (line: worst to best; of one case: quartiles)",
        fontsize=7,
    )
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
