# SPDX-License-Identifier: Apache-2.0
"""The `mpsnn` command: train, check, bench, info. Heavy imports wait inside the commands, so that --help is quick."""

from __future__ import annotations

import enum
import json
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    help="Builds, differentiates and trains CNN graphs written with the node classes of Metal Performance Shaders.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class DatasetName(str, enum.Enum):
    """What --dataset takes."""

    digits = "digits"
    fashion_mnist = "fashion-mnist"


class Framework(str, enum.Enum):
    """What --against takes."""

    torch = "torch"


class OptimizerName(str, enum.Enum):
    """What --optimizer takes."""

    adam = "adam"
    sgd = "sgd"
    momentum = "momentum"
    rmsprop = "rmsprop"


@dataclass
class Settings:
    """What decides a training's result. It is stored in the checkpoint, and --resume reads it from there."""

    dataset: str
    batch_size: int
    learning_rate: float
    learning_rate_decay: float
    optimizer: str
    dropout: float
    seed: int
    epochs: int


# Test accuracy with seeds 0, 1, 2: digits 0.989, 0.983, 0.989; fashion-mnist 0.914, 0.911, 0.910.
_DEFAULTS = {
    "digits": Settings("digits", 32, 0.002, 0.9, "adam", 0.25, 0, 15),
    "fashion-mnist": Settings("fashion-mnist", 64, 0.001, 0.7, "adam", 0.25, 0, 5),
}


@contextmanager
def _errors_as_text() -> Iterator[None]:
    """Errors that a user can act on become text and exit code 1, Ctrl-C becomes 130; anything else is a bug and keeps its traceback."""
    from mpsnn.datasets import MissingPackage
    from mpsnn.errors import Error

    try:
        yield
    except (Error, MissingPackage) as error:
        typer.echo(f"{type(error).__name__}: {error}", err=True)
        raise typer.Exit(1) from error
    except KeyboardInterrupt as error:
        typer.echo(f"interrupted: {error}" if str(error) else "interrupted", err=True)
        raise typer.Exit(130) from error


@app.callback()
def _main() -> None:
    pass  # makes `train` a command even while it would be the only one


@app.command()
def train(
    dataset: Annotated[DatasetName | None, typer.Option(help="What to learn.", show_default="digits")] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder with the four IDX files of fashion-mnist.", show_default="where Debian's package puts them"
        ),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Passes over the images.", show_default="digits 15, fashion-mnist 5")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Images per step.", show_default="digits 32, fashion-mnist 64")
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(min=0, help="Rate of the first epoch.", show_default="digits 0.002, fashion-mnist 0.001"),
    ] = None,
    learning_rate_decay: Annotated[
        float | None,
        typer.Option(
            help="Factor on the rate after each epoch, above 0, at most 1.",
            show_default="digits 0.9, fashion-mnist 0.7",
        ),
    ] = None,
    optimizer: Annotated[OptimizerName | None, typer.Option(help="Update rule.", show_default="adam")] = None,
    dropout: Annotated[
        float | None,
        typer.Option(help="Share of hidden values dropped in training, at least 0, below 1.", show_default="0.25"),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Draws weights, dropout and the order of images.", show_default="0")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Engine, a name that `mpsnn info` prints.", show_default="the best one")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads; results do not depend on it.", show_default="all cores")
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for graph, curves, history and checkpoint.")] = Path("mpsnn-run"),
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the checkpoint in --output, with its settings.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print only the last line.")] = False,
) -> None:
    """Trains a LeNet-like network on images and tests it after each epoch.

    Ctrl-C finishes the running step and writes a checkpoint; --resume continues as if nothing had happened.
    """
    given = {
        "dataset": dataset and dataset.value,
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "learning_rate_decay": learning_rate_decay,
        "optimizer": optimizer and optimizer.value,
        "dropout": dropout,
        "seed": seed,
    }
    with _errors_as_text():
        _train(
            {name: value for name, value in given.items() if value is not None},
            data_dir,
            device,
            threads,
            output,
            resume,
            quiet,
        )


def _train(
    given: dict[str, Any],
    data_dir: Path | None,
    device_name: str | None,
    threads: int | None,
    output: Path,
    resume: bool,
    quiet: bool,
) -> None:
    import mpsnn
    from mpsnn.checkpoint import write_atomically
    from mpsnn.datasets import load, require
    from mpsnn.models import lenet
    from mpsnn.plots import save_curves
    from mpsnn.trainer import Trainer

    # Before the training, not after it.
    require("matplotlib", "matplotlib", "drawing the curves")
    if threads is not None:
        mpsnn.set_num_threads(threads)
    device = mpsnn.default_device() if device_name is None else mpsnn.Device(device_name)
    checkpoint_file = output / "checkpoint.safetensors"
    settings = _resumed_settings(checkpoint_file, given) if resume else _settings(given)
    data = load(settings.dataset, data_dir)
    _make_folder(output)

    small = data.image_shape[0] < 16
    network = lenet(
        data.image_shape, data.classes, hidden=64 if small else 128, dropout=settings.dropout, seed=settings.seed
    )
    trainer = Trainer(
        network.training_logits,
        inference_logits=network.logits,
        device=device,
        optimizer=settings.optimizer,
        learning_rate=settings.learning_rate,
        learning_rate_decay=settings.learning_rate_decay,
        batch_size=settings.batch_size,
        seed=settings.seed,
    )
    if resume:
        trainer.load_checkpoint(checkpoint_file)
    if not quiet:
        typer.echo(
            f"{data.name}: {len(data.train_images)} training and {len(data.test_images)} test images; device {device.name}, {mpsnn.num_threads()} thread(s)"
        )
    history = trainer.fit(
        data.train_images,
        data.train_labels,
        settings.epochs,
        test=(data.test_images, data.test_labels),
        checkpoint=checkpoint_file,
        extra=asdict(settings),
        progress=not quiet,
    )

    trainer.save_graph(output / "graph.safetensors")
    save_curves(output / "curves.png", history, data.name)
    record = {"settings": asdict(settings), "epochs": history}
    write_atomically(output / "history.json", (json.dumps(record, indent=2) + "\n").encode())
    if not quiet:
        typer.echo(f"saved graph.safetensors, curves.png, history.json and checkpoint.safetensors in {output}")
    typer.echo(f"test accuracy {history[-1]['test_accuracy']:.4f}")


def _settings(given: dict[str, Any]) -> Settings:
    defaults = _DEFAULTS[given.get("dataset", "digits")]
    return Settings(**(asdict(defaults) | given))


def _resumed_settings(path: Path, given: dict[str, Any]) -> Settings:
    """The checkpoint's settings. Only the number of epochs may be changed, and not to fewer than are done."""
    from mpsnn._errors import make_error
    from mpsnn.checkpoint import read_state

    if not path.exists():
        sentence = "there is nothing to resume."
        hint = "--output with the folder of the run, or no --resume"
        raise make_error("FileError", sentence, expected=path, actual="no such file", hint=hint)
    state = read_state(path)
    saved, done = state["extra"], len(state["history"])
    if set(saved) != set(asdict(_DEFAULTS["digits"])):
        raise make_error("FileError", f"{path} was not written by `mpsnn train`.", hint="Trainer.load_checkpoint()")
    differing = {name: value for name, value in given.items() if name != "epochs" and value != saved[name]}
    if differing:
        expected, actual = (", ".join(f"{name} {values[name]}" for name in differing) for values in (saved, given))
        hint = "leave these options out, or train anew in another --output"
        sentence = f"{path} belongs to a training with other options."
        raise make_error("OptionError", sentence, expected=expected, actual=actual, hint=hint)
    if given.get("epochs", done) < done:
        sentence = f"{path} already holds more epochs."
        raise make_error(
            "OptionError", sentence, expected=f"--epochs {done} or more", actual=f"--epochs {given['epochs']}"
        )
    return Settings(**(saved | given))


def _make_folder(folder: Path) -> None:
    from mpsnn._errors import make_error

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        sentence = f"the folder {folder} cannot be made."
        raise make_error("FileError", sentence, actual=error.strerror, hint="another --output") from error


@app.command()
def check(
    node_classes: Annotated[
        list[str] | None, typer.Argument(help="Node classes, e.g. MPSCNNPoolingMaxNode.", show_default="all")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every node class that there is.")] = False,
    cases: Annotated[int, typer.Option(min=1, help="Graphs per class, each of another geometry.")] = 12,
    seed: Annotated[int, typer.Option(min=0, help="Draws geometry and numbers.")] = 0,
    against: Annotated[
        Framework | None, typer.Option(help="Another framework to compare with, where it has the operation.")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table as Markdown.")] = False,
) -> None:
    """Compares the gradients of node classes with the float64 reference engine and with central differences.

    Numbers are the worst error over its tolerance: up to 1 passes. Exit code 1 when anything fails.
    """
    with _errors_as_text():
        _check([] if everything else node_classes or [], cases, seed, against is Framework.torch, markdown)


def _check(names: list[str], count: int, seed: int, torch: bool, as_markdown: bool) -> None:
    from mpsnn import check_table
    from mpsnn.datasets import require

    if torch:
        require("torch", "torch", "comparing with PyTorch")
    results = check_table.run(names, count, seed, torch)
    failed = [result for result in results if not result.passed]
    if as_markdown:
        typer.echo(check_table.markdown(results, torch))
    else:
        _print_checks(results, torch)
        for result in results:
            for reason, number in result.skipped.items():
                typer.echo(f"{result.node_class}: {number} elements skipped: {reason}")
        elements = sum(result.elements for result in results)
        typer.echo(f"{len(results) - len(failed)} of {len(results)} classes pass, {elements} elements, seed {seed}")
    for result in failed:
        for problem in result.problems:
            typer.echo(f"{result.node_class}: {problem}", err=True)
    if failed:
        raise typer.Exit(1)


def _print_checks(results: list[Any], torch: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    from mpsnn import check_table

    table = Table(title="Gradients: worst error / tolerance", title_justify="left", title_style="bold")
    for number, name in enumerate(check_table.head(torch)):
        table.add_column(name, justify="right" if 0 < number < len(check_table.head(torch)) - 1 else "left")
    for result in results:
        table.add_row(*result.cells(torch), style=None if result.passed else "bold red")
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=160)  # names stay whole in a file
    console.print(table)


@app.command()
def bench(
    layers: Annotated[
        str | None,
        typer.Option(help='Layers whose name or kind contains this, e.g. "3x3"; "" is all.', show_default="all"),
    ] = None,
    passes: Annotated[str, typer.Option(help="Of fwd, dgrad, wgrad, separated by commas.")] = "fwd,dgrad,wgrad",
    steps: Annotated[
        str | None, typer.Option(help='Training steps whose name begins so, e.g. "resnet18".', show_default="all")
    ] = None,
    scaling: Annotated[bool, typer.Option("--scaling", help="Also batch sizes, image sizes and threads.")] = False,
    memory: Annotated[bool, typer.Option("--memory", help="Also the peak memory of the training steps.")] = False,
    against: Annotated[
        str | None,
        typer.Option(help="Of torch, torch tuned, jax, mlx, separated by commas.", show_default="installed ones"),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Two short rounds, PyTorch only: ten minutes, not to quote.")
    ] = False,
    rounds: Annotated[int, typer.Option(min=2, help="Turns of every side; each gives one ratio.")] = 5,
    slot: Annotated[float, typer.Option(min=0.001, help="Least seconds of a turn.")] = 0.12,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of every side.", show_default="all cores")] = None,
    compile: Annotated[bool, typer.Option("--compile", help="Also torch.compile, for training steps.")] = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="Print where our time goes in the chosen steps; no rival.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option(help="Markdown file to write, with a plot beside it.", show_default="none")
    ] = None,
) -> None:
    """Times layers and training steps against other frameworks, turn by turn, after comparing what they compute.

    With neither --layers nor --steps it runs everything, which takes half an hour, and longer with JAX. A ratio is the rival's time over ours.
    """
    with _errors_as_text():
        import mpsnn
        from mpsnn.bench.main import Request, Settings, run

        settings = Settings(rounds, slot, threads or mpsnn.num_threads(), compile)
        if quick:
            settings.rounds, settings.slot, settings.quick = 2, 0.02, True
        sides = None if against is None else [name.strip() for name in against.split(",") if name.strip()]
        run(Request(layers, passes.split(","), steps, scaling, memory, sides, profile, output), settings, typer.echo)


@app.command()
def info() -> None:
    """Prints devices, instruction set, threads and versions."""
    from importlib.metadata import PackageNotFoundError, version

    from rich.console import Console
    from rich.table import Table

    import mpsnn

    with _errors_as_text():
        console = Console(highlight=False)
        devices = Table(title="Devices", title_justify="left", title_style="bold")
        devices.add_column("name")
        devices.add_column("what it is")
        default = mpsnn.default_device().name
        for device in mpsnn.devices():
            devices.add_row(device.name + (" (default)" if device.name == default else ""), device.description)
        console.print(devices)

        machine = Table(title="Machine and versions", title_justify="left", title_style="bold", show_header=False)
        machine.add_row("Metal", mpsnn.metal_availability())
        machine.add_row("instruction set", mpsnn.instruction_set())
        machine.add_row("threads", f"{mpsnn.num_threads()} (MPSNN_NUM_THREADS, --threads)")
        machine.add_row("system", f"{platform.system()} {platform.machine()}")
        machine.add_row("Python", sys.version.split()[0])
        for package in ("mpsnn", "numpy", "matplotlib", "scikit-learn"):
            try:
                machine.add_row(package, version(package))
            except PackageNotFoundError:
                machine.add_row(package, f"not installed (pip install {package})")
        console.print(machine)
