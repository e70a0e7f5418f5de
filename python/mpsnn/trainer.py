# SPDX-License-Identifier: Apache-2.0
"""Trains a graph of nodes: loss, training graph, epochs, mpsnn.checkpoint.

>>> import numpy as np, mpsnn
>>> from mpsnn.trainer import Trainer
>>> image = mpsnn.MPSNNImageNode("image")
>>> weights = mpsnn.ConvolutionWeights(mpsnn.MPSCNNConvolutionDescriptor(2, 2, 1, 2), label="fc")
>>> trainer = Trainer(mpsnn.MPSCNNFullyConnectedNode(image, weights), learning_rate=0.1, batch_size=2)
>>> images = np.stack([np.zeros((2, 2, 1)), np.ones((2, 2, 1))]).astype(np.float32)
>>> history = trainer.fit(images, np.array([0, 1]), epochs=20, progress=False)
>>> trainer.evaluate(images, np.array([0, 1])).accuracy
1.0
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

import mpsnn
import mpsnn.checkpoint
from mpsnn._errors import make_error, shape_text
from mpsnn.optimizers import describe_optimizer, make_optimizer
from mpsnn.progress import Bar, Interrupt, Position, Silent


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C during fit(): the running step was finished, the checkpoint, if one was asked for, is written."""


@dataclass(frozen=True)
class Step:
    """One training step: images, the mean loss, and how many images were right (None without classes)."""

    images: int
    loss: float
    correct: int | None


@dataclass(frozen=True)
class Evaluation:
    """Share of images that were right, and how many there were."""

    accuracy: float
    images: int


class Trainer:
    """Trains the graph that ends in `logits` and tests it.

    logits             what the graph computes, a filter node or its result image; for classes N x 1 x 1 x classes, without softmax
    inference_logits   the same for testing and predicting; needed when `logits` contains dropout, which a graph never switches
                       off: build that part a second time without it, on the same data sources
    device             a Device; the default device when None
    optimizer          "adam", "sgd", "momentum", "rmsprop", or an optimizer object; each data source gets a copy. None keeps
                       the optimizers that the data sources have
    learning_rate      for an optimizer given by name
    learning_rate_decay  in epoch e, counted from 0, every rate is its first value times decay ** e
    batch_size         images per step. No image is left out: a last, smaller batch of n images is made with its loss weighted by
                       batch_size / n, so that with the default loss each step follows the mean of its images
    loss               None for softmax cross-entropy, averaged over the batch; or an MPSCNNLossDescriptor. Its weight
                       is used as it is: gradients are sums over the batch (MPS_SEMANTICS 14.3), so 1 / batch_size makes a mean
    seed               decides the order of the images, nothing else: weights and dropout have seeds of their own

    The same seed, data and weights give the same bits, for any number of threads. An interrupted training that continues
    from its checkpoint gives the bits of one that was not interrupted.

    Raises OptionError, GraphError, WeightError and ShapeError, which name the node.

    >>> image = mpsnn.MPSNNImageNode("image")
    >>> source = mpsnn.ConvolutionWeights(mpsnn.MPSCNNConvolutionDescriptor(4, 4, 1, 3), label="fc")
    >>> trainer = Trainer(mpsnn.MPSCNNFullyConnectedNode(image, source), batch_size=8)
    >>> trainer.predict(np.zeros((5, 4, 4, 1), np.float32)).shape
    (5, 1, 1, 3)
    """

    def __init__(
        self,
        logits: Any,
        *,
        inference_logits: Any = None,
        device: Any = None,
        optimizer: Any = "adam",
        learning_rate: float = 1e-3,
        learning_rate_decay: float = 1.0,
        batch_size: int = 64,
        loss: Any = None,
        seed: int = 0,
    ) -> None:
        for name, value, is_valid, expected in (
            ("batch_size", batch_size, batch_size >= 1, "1 or more"),
            ("learning_rate_decay", learning_rate_decay, 0 < learning_rate_decay <= 1, "above 0, at most 1"),
            ("seed", seed, seed >= 0, "0 or more"),
        ):
            if not is_valid:
                raise make_error("OptionError", f"{name} is out of range.", expected=expected, actual=value)
        self.device = device or mpsnn.default_device()
        self.batch_size, self.seed, self.learning_rate_decay = batch_size, seed, learning_rate_decay
        self._build_graphs(_image(logits), _image(logits if inference_logits is None else inference_logits), loss)
        self.sources = _data_sources([*self.training_graph.nodes, *self.inference_graph.nodes])
        self._attach(optimizer, learning_rate)
        #: One record per epoch: epoch, loss, accuracy, test_accuracy, images_per_second, seconds.
        self.history: list[dict[str, Any]] = []
        self._position = Position()
        self._is_inference_stale = False

    def _build_graphs(self, logits: Any, inference_logits: Any, loss: Any) -> None:
        if loss is None:
            loss = mpsnn.MPSCNNLossDescriptor(
                mpsnn.MPSCNNLossType.SoftMaxCrossEntropy, mpsnn.MPSCNNReductionType.Sum, weight=1 / self.batch_size
            )
        self.inference_graph = mpsnn.MPSNNGraph(self.device, inference_logits)
        dropout = next(
            (node for node in self.inference_graph.nodes if type(node).__name__ == "MPSCNNDropoutNode"), None
        )
        if dropout is not None:
            label = dropout.label or "dropout"
            raise make_error(
                "OptionError",
                f'"{label}" would drop values while testing: a dropout node is never off.',
                expected="inference_logits without dropout",
                actual=f'MPSCNNDropoutNode "{label}"',
                hint="build the nodes behind it again on its source image and pass their result as inference_logits",
                node="MPSCNNDropoutNode",
                label=label,
            )
        ends = mpsnn.MPSCNNLossNode(logits, loss).training_graph()
        images = [node.result_image for node in ends] + [logits]
        self.training_graph = mpsnn.MPSNNGraph(self.device, images, [False] * len(ends) + [True])
        self.training_graph.trap_nonfinite = True

    def _attach(self, optimizer: Any, learning_rate: float) -> None:
        if isinstance(optimizer, str):
            optimizer = make_optimizer(optimizer, learning_rate, self.device)
        trained = {label: source for label, source in self.sources.items() if hasattr(source, "optimizer")}
        for source in trained.values() if optimizer is not None else ():
            source.optimizer = optimizer
        self._rates = {
            label: source.optimizer.learning_rate for label, source in trained.items() if source.optimizer is not None
        }

    # --- one step

    def step(self, images: np.ndarray, labels: np.ndarray) -> Step:
        """One training step on up to batch_size images, N x H x W x C float32, and their labels: N class numbers, or targets
        of the logits' shape.

        A step that fails leaves weights and optimizers as they were. Raises OptionError for images that are not finite.
        """
        return self._step(images, self._targets(images, labels), None)

    def _step(self, images: np.ndarray, targets: np.ndarray, indices: np.ndarray | None) -> Step:
        count = len(images)
        if not 1 <= count <= self.batch_size:
            sentence = "a step takes a batch of images."
            raise make_error(
                "OptionError", sentence, expected=f"1 to {self.batch_size} images", actual=f"{count} images"
            )
        self._require_finite(images, indices)
        if count == self.batch_size:
            labels = mpsnn.MPSCNNLossLabels(targets)
        else:
            labels = mpsnn.MPSCNNLossLabels(targets, np.full(targets.shape, self.batch_size / count, np.float32))
        self._is_inference_stale = True
        logits = self.training_graph.run([images], [labels])
        logits = logits[-1].numpy()
        correct = int((_classes(logits) == _classes(targets)).sum()) if _has_classes(targets) else None
        return Step(count, float(labels.loss_image.numpy().sum(dtype=np.float64)), correct)

    def _require_finite(self, images: np.ndarray, indices: np.ndarray | None) -> None:
        # A sum is one fast pass without a temporary; it may overflow, so it only decides whether to look closer.
        with np.errstate(over="ignore", invalid="ignore"):
            is_finite = math.isfinite(float(images.sum()))
        if is_finite or np.isfinite(images).all():
            return
        image, y, x, channel = (int(i) for i in np.argwhere(~np.isfinite(images))[0])
        value = images[image, y, x, channel]
        place = f"image {image} of the batch"
        if indices is not None:
            batch, epoch = self._position.step + 1, self._position.epoch + 1
            place = f"training image {indices[image]} (image {image} of batch {batch} in epoch {epoch})"
        raise make_error(
            "OptionError",
            f"{place} is not finite; no step was made with it.",
            expected="finite numbers",
            actual=f"{value} at y {y}, x {x}, channel {channel}",
            hint="clean the data, for example with numpy.nan_to_num",
        )

    # --- many steps

    def fit(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        epochs: int,
        *,
        test: tuple[np.ndarray, np.ndarray] | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        extra: Mapping[str, Any] | None = None,
        progress: bool = True,
    ) -> list[dict[str, Any]]:
        """Trains until `epochs` epochs are done, those of a loaded checkpoint included, and returns one record per epoch.

        images, labels   float32 N x H x W x C; N class numbers from 0, or targets of the logits' shape
        test             images and labels that are tested after each epoch
        checkpoint       a file, written after each epoch and on Ctrl-C; `extra`, anything JSON can hold, is stored with it
        progress         shows a bar with loss, accuracy and images per second

        Ctrl-C finishes the running step, writes the checkpoint and raises TrainingInterrupted; a second Ctrl-C stops at once.
        A step that fails leaves weights and optimizers as after the last complete step; the checkpoint is not touched.
        """
        images = _float_images(images)
        targets = self._targets(images, labels)
        tests = None if test is None else (_float_images(test[0]), test[1])
        self._position.require_images(len(images))
        steps = math.ceil(len(images) / self.batch_size)

        def stop_if(interrupt: Interrupt) -> None:
            if interrupt.is_set:
                if checkpoint is not None:
                    self.save_checkpoint(checkpoint, extra)
                where = f"after step {self._position.step} of {steps} in epoch {self._position.epoch + 1}"
                raise TrainingInterrupted(
                    f"stopped {where}" + (f"; continue from {checkpoint}" if checkpoint is not None else "")
                )

        with Interrupt() as interrupt, Bar() if progress else Silent() as display:
            while self._position.epoch < epochs:
                display.start_epoch(self._position.epoch + 1, epochs, steps, self._position.step)
                self._run_epoch(images, targets, steps, display, lambda: stop_if(interrupt))
                accuracy = None if tests is None else self._evaluate(*tests, lambda: stop_if(interrupt)).accuracy
                self.history.append(self._position.record(accuracy))
                self._position = Position(self._position.epoch + 1)
                if checkpoint is not None:
                    self.save_checkpoint(checkpoint, extra)
                display.end_epoch(self.history[-1], epochs)
        return self.history

    def _run_epoch(self, images: np.ndarray, targets: np.ndarray, steps: int, display: Silent, after_step: Any) -> None:
        position = self._position
        position.images = len(images)
        # The order depends on seed and epoch alone, so an interrupted epoch can be taken up anywhere.
        order = np.random.Generator(np.random.PCG64([self.seed, position.epoch])).permutation(len(images))
        for label, rate in self._rates.items():
            self.sources[label].optimizer.set_learning_rate(rate * self.learning_rate_decay**position.epoch)
        batch = np.empty((min(self.batch_size, len(images)), *images.shape[1:]), np.float32)
        while position.step < steps:
            started = time.perf_counter()
            chosen = order[position.step * self.batch_size : (position.step + 1) * self.batch_size]
            part = np.take(images, chosen, axis=0, out=batch[: len(chosen)])
            step = self._step(part, targets[chosen], chosen)
            position.add(step.images, step.loss, step.correct, time.perf_counter() - started)
            display.step(len(chosen), position.means())
            after_step()

    def evaluate(self, images: np.ndarray, labels: np.ndarray) -> Evaluation:
        """How many images the graph gets right: the largest logit is the label's."""
        return self._evaluate(_float_images(images), labels, lambda: None)

    def _evaluate(self, images: np.ndarray, labels: np.ndarray, after_batch: Any) -> Evaluation:
        targets = self._targets(images, labels)
        if not _has_classes(targets):
            sentence = "only classes can be right or wrong: compare predict() with these targets yourself."
            actual = shape_text(targets.shape[1:])
            raise make_error("OptionError", sentence, expected="logits of 1 x 1 x 2 or more", actual=actual)
        correct = 0
        for first, logits in self._inference(images):
            correct += int((_classes(logits) == _classes(targets[first : first + len(logits)])).sum())
            after_batch()
        return Evaluation(correct / max(len(images), 1), len(images))

    def predict(self, images: np.ndarray) -> np.ndarray:
        """The logits of images, N x H x W x C float32, from the inference graph with the weights as they are now."""
        parts = [logits.copy() for _, logits in self._inference(_float_images(images))]
        return np.concatenate(parts) if parts else np.empty((0, *self._logits_shape(images)), np.float32)

    def _reload_inference(self) -> None:
        if self._is_inference_stale:
            self.inference_graph.reload_from_data_sources()
            self._is_inference_stale = False

    def _inference(self, images: np.ndarray) -> Any:
        self._reload_inference()
        for first in range(0, len(images), self.batch_size):
            yield (
                first,
                self.inference_graph.run([np.ascontiguousarray(images[first : first + self.batch_size])]).numpy(),
            )

    def _logits_shape(self, images: np.ndarray) -> tuple[int, ...]:
        return self.inference_graph.run([np.zeros((1, *images.shape[1:]), np.float32)]).numpy().shape[1:]

    def _targets(self, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Labels as the loss node takes them: of the logits' shape, one-hot for class numbers."""
        labels = np.asarray(labels)
        shape = self._logits_shape(images)
        if len(labels) != len(images):
            sentence = "each image needs a label."
            raise make_error("ShapeError", sentence, expected=f"{len(images)} labels", actual=f"{len(labels)} labels")
        if labels.ndim > 1:
            if labels.shape[1:] != shape:
                sentence, actual = "targets must have the logits' shape.", shape_text(labels.shape[1:])
                raise make_error("ShapeError", sentence, expected=shape_text(shape), actual=actual)
            return np.ascontiguousarray(labels, np.float32)
        if shape[:2] != (1, 1):
            sentence, expected = "one class per image needs logits of one pixel.", f"1 x 1 x {shape[2]}"
            raise make_error("ShapeError", sentence, expected=expected, actual=shape_text(shape))
        is_whole = np.issubdtype(labels.dtype, np.integer)
        if not is_whole or (len(labels) and not 0 <= labels.min() <= labels.max() < shape[2]):
            actual = f"{labels.dtype}" + (f" from {labels.min()} to {labels.max()}" if len(labels) else "")
            expected = f"integers from 0 to {shape[2] - 1}"
            raise make_error("OptionError", "labels must be class numbers.", expected=expected, actual=actual)
        return np.eye(shape[2], dtype=np.float32)[labels].reshape(-1, *shape)

    # --- files

    def save_weights(self, path: str | os.PathLike[str]) -> None:
        """Writes the weights as safetensors: `<label>.weights`, `<label>.biases` and so on."""
        mpsnn.checkpoint.save_weights(path, self.sources)

    def load_weights(self, path: str | os.PathLike[str]) -> None:
        """Takes weights from a file. Raises FileError and WeightError; then nothing has changed."""
        mpsnn.checkpoint.load_weights(path, self.sources)
        self._reload()

    def save_graph(self, path: str | os.PathLike[str]) -> None:
        """Writes the inference graph with the weights as they are now; `MPSNNGraph.load(path, device)` reads it."""
        self._reload_inference()
        self.inference_graph.save(path)

    def save_checkpoint(self, path: str | os.PathLike[str], extra: Mapping[str, Any] | None = None) -> None:
        """Writes all that a training needs to continue: weights, optimizers, place in the epoch, dropout counter, history."""
        state = {
            "settings": self._settings(),
            "position": asdict(self._position),
            "history": self.history,
            "encode_count": self.training_graph.encode_count,
            "extra": dict(extra or {}),
        }
        mpsnn.checkpoint.save_checkpoint(path, self.sources, state)

    def load_checkpoint(self, path: str | os.PathLike[str]) -> dict[str, Any]:
        """Continues where save_checkpoint() was called; returns its `extra`.

        Raises OptionError when seed, batch size, learning rates or optimizers differ from then: the result would be neither of
        the two trainings. Raises FileError and WeightError as load_weights() does. Then nothing has changed.
        """
        settings, saved = self._settings(), mpsnn.checkpoint.read_state(path)["settings"]
        differing = [name for name in settings if settings[name] != saved.get(name)]
        if differing:
            expected, actual = ({name: values.get(name) for name in differing} for values in (saved, settings))
            sentence = f"{path} belongs to a training with other settings."
            raise make_error("OptionError", sentence, expected=expected, actual=actual)
        state = mpsnn.checkpoint.load_checkpoint(path, self.sources)
        self._position, self.history = Position(**state["position"]), state["history"]
        self.training_graph.encode_count = state["encode_count"]
        self._reload()
        return state["extra"]

    def _reload(self) -> None:
        self.training_graph.reload_from_data_sources()
        self._is_inference_stale = True

    def _settings(self) -> dict[str, Any]:
        optimizers = {
            label: describe_optimizer(source.optimizer)
            for label, source in self.sources.items()
            if hasattr(source, "optimizer")
        }
        return {
            "batch_size": self.batch_size,
            "seed": self.seed,
            "learning_rate_decay": self.learning_rate_decay,
            "learning_rates": self._rates,
            "optimizers": optimizers,
        }


def _image(node: Any) -> Any:
    return getattr(node, "result_image", node)


def _data_sources(nodes: list[Any]) -> dict[str, Any]:
    """The data sources of nodes by label, in order of first use. Two with one label could not be told apart in a file."""
    sources: dict[str, Any] = {}
    for node in nodes:
        source = getattr(node, "weights", None)
        source = getattr(node, "data_source", None) if source is None else source
        if source is None:
            continue
        label = source.label()
        if sources.setdefault(label, source) is not source:
            sentence, actual = f'two data sources have the label "{label}".', f'"{label}" twice'
            raise make_error(
                "WeightError", sentence, expected="a label of its own for each", actual=actual, label=label
            )
    return sources


def _float_images(images: np.ndarray) -> np.ndarray:
    images = np.asarray(images)
    if images.ndim != 4:
        sentence = "images must have four dimensions."
        raise make_error("ShapeError", sentence, expected="N x H x W x C", actual=shape_text(images.shape))
    return np.ascontiguousarray(images, np.float32)


def _has_classes(targets: np.ndarray) -> bool:
    return targets.shape[1:3] == (1, 1) and targets.shape[3] > 1


def _classes(values: np.ndarray) -> np.ndarray:
    return values.reshape(len(values), -1).argmax(axis=1)
