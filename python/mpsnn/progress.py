# SPDX-License-Identifier: Apache-2.0
"""A running training: where it is, what it shows, how it is stopped."""

from __future__ import annotations

import signal
import threading
import time
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any

from mpsnn._errors import make_error


class Silent:
    """Shows nothing. The base of what Trainer.fit() reports to."""

    def __enter__(self) -> Any:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def start_epoch(self, epoch: int, epochs: int, steps: int, done: int) -> None:
        """Epoch `epoch`, counted from 1, starts; `done` of its `steps` steps were made before an interruption."""

    def step(self, images: int, numbers: dict[str, float]) -> None:
        """A step over so many images is done; the numbers are means over the epoch so far."""

    def end_epoch(self, record: dict[str, Any], epochs: int) -> None:
        """An epoch is done, its tests too."""


class Bar(Silent):
    """A bar with loss, accuracy and images per second, and a line for each epoch. Without a terminal only the lines."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._console = Console(highlight=False)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            TextColumn("{task.completed}/{task.total}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[numbers]}"),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task: Any = None
        self._images, self._started = 0, 0.0

    def __enter__(self) -> Any:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def start_epoch(self, epoch: int, epochs: int, steps: int, done: int) -> None:
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(f"epoch {epoch}/{epochs}", total=steps, completed=done, numbers="")
        self._images, self._started = 0, time.perf_counter()

    def step(self, images: int, numbers: dict[str, float]) -> None:
        self._images += images
        rate = self._images / max(time.perf_counter() - self._started, 1e-9)
        self._progress.update(self._task, advance=1, numbers=f"{_text(numbers)}  {rate:.0f} images/s")

    def end_epoch(self, record: dict[str, Any], epochs: int) -> None:
        numbers = {
            name.replace("_", " "): record[name]
            for name in ("loss", "accuracy", "test_loss", "test_accuracy")
            if record.get(name) is not None
        }
        rate = "" if record["images_per_second"] is None else f"  {record['images_per_second']:.0f} images/s"
        epoch = f"epoch {record['epoch']:>{len(str(epochs))}}/{epochs}"
        line = f"{epoch}  {_text(numbers)}{rate}  {record['seconds']:.1f} s"
        self._console.print(line, soft_wrap=True)


def _text(numbers: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4f}" for name, value in numbers.items())


@dataclass
class Position:
    """Where a training is: epoch and step, both counted from 0, and the sums of this epoch so far. A checkpoint holds it."""

    epoch: int = 0
    step: int = 0
    images: int = 0  #: in the epoch
    seen: int = 0
    loss: float = 0.0
    correct: int | None = 0
    seconds: float = 0.0

    def require_images(self, count: int) -> None:
        """Raises OptionError when this epoch was begun with another number of images."""
        if self.step and self.images != count:
            sentence = "the training was interrupted in the middle of an epoch over another number of images."
            raise make_error("OptionError", sentence, expected=f"{self.images} images", actual=f"{count} images")

    def add(self, images: int, loss: float, correct: int | None, seconds: float) -> None:
        """Counts a step: `loss` is the mean over its images."""
        self.step += 1
        self.seen += images
        self.loss += loss * images
        self.correct = None if correct is None or self.correct is None else self.correct + correct
        self.seconds += seconds

    def means(self) -> dict[str, float]:
        """Loss and, where there are classes, accuracy over the epoch so far."""
        means = {"loss": self.loss / max(self.seen, 1)}
        return means if self.correct is None else {**means, "accuracy": self.correct / max(self.seen, 1)}

    def record(self, test_accuracy: float | None) -> dict[str, Any]:
        """What the history keeps of a finished epoch."""
        rate = self.seen / self.seconds if self.seconds > 0 else None
        numbers = {"accuracy": None, **self.means(), "test_accuracy": test_accuracy}
        return {"epoch": self.epoch + 1, **numbers, "images_per_second": rate, "seconds": self.seconds}


class Interrupt:
    """Makes the first Ctrl-C a flag, so that a step can end; the second works as before."""

    def __init__(self) -> None:
        self.is_set = False
        self._previous: Any = None

    def __enter__(self) -> Any:
        # Only the main thread may set handlers; a process started with SIGINT ignored must go on ignoring it.
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._previous = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        self.is_set = True
        signal.signal(signal.SIGINT, self._previous)
