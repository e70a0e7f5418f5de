# SPDX-License-Identifier: Apache-2.0
"""What a gradient check differentiates: a graph's inputs, the image or losses behind them, and which images and parameters have gradients.

Nodes are the user's own. While the context is open they carry handles of ours, and data sources update nothing: those of this package
are without their optimizer, methods of others are replaced. Leaving the context puts everything back; the optimizers are then copies
with the same history, as assigning an optimizer makes them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from typing_extensions import Self

import mpsnn
from mpsnn._errors import make_error
from mpsnn._gradient_losses import Losses

_UPDATES = [
    f"{name}{ending}"
    for name in ("update", "update_gamma_and_beta", "update_mean_and_variance")
    for ending in ("", "_with_command_buffer")
]


@dataclass
class Trained:
    """A forward node whose parameters are trained, and the images whose products are added up to their gradients."""

    node: Any
    data_source: Any
    handle: str  # of the state with the gradients
    incoming: Any
    image: Any


@dataclass
class Target:
    """Something that has a gradient. `source`, `name` and `trained` for parameters."""

    node_class: str
    label: str
    what: str
    no_difference: str  # why differences cannot be taken
    source: Any = None
    name: str = ""
    trained: tuple[Trained, ...] = ()


def is_one_of(item: Any, items: Iterable[Any]) -> bool:
    return any(item is other for other in items)


def source_of(node: Any) -> Any:
    """The data source of a forward node; None for the other nodes."""
    if _is_gradient(node):
        return None
    return getattr(node, "weights", None) or getattr(node, "data_source", None)


def _is_loss(node: Any) -> bool:
    return hasattr(node, "input_labels")


def _is_initial(node: Any) -> bool:
    return type(node).__name__ == "MPSNNInitialGradientNode"


def _is_gradient(node: Any) -> bool:
    return isinstance(node, mpsnn.MPSNNGradientFilterNode)


def _state_of(node: Any) -> Any:
    return getattr(node, "convolution_gradient_state", None) or node.result_state


def _handle_text(handle: Any) -> str | None:
    if handle is None or isinstance(handle, str):
        return handle
    label = handle.label
    return str(label() if callable(label) else label)


class Wiring:
    """See the module. `graph_or_node` and `result` as in check_gradients(). In the context:

    inputs, handles: the images that nothing makes, and the user's handles of them.
    objective: the image that is differentiated; None where it is the losses.
    incoming_node: the image of its incoming gradient; None where the graph makes that itself.
    gradients: pairs of an input and the image of its gradient.
    forward, gradient_nodes, losses: the nodes, by what they do.
    trained: the forward nodes whose parameters have gradients.
    targets: all that has a gradient: those of `gradients` first, then the parameters of `trained`.
    """

    inputs: list[Any]
    handles: list[str | None]
    objective: Any
    incoming_node: Any
    gradients: list[tuple[Any, Any]]
    trained: list[Trained]
    targets: list[Target]

    def __init__(self, graph_or_node: Any, result: Any):
        self._undo = ExitStack()
        self._given_result = result
        self._results: list[Any] = []
        self._has_gradients = False
        self._last: Any = graph_or_node
        if isinstance(graph_or_node, mpsnn.MPSNNGraph):
            self.nodes = list(graph_or_node.nodes)
            self._results = list(graph_or_node.result_images)
            self._has_gradients = any(_is_gradient(node) for node in self.nodes)
            self._last = result if result is not None else self._producer(self._results[0])
        elif isinstance(graph_or_node, mpsnn.MPSNNFilterNode):
            self.nodes = list(mpsnn.MPSNNGraph("reference", [graph_or_node.result_image]).nodes)
        else:
            sentence = "check_gradients() takes a graph or a filter node."
            raise make_error(
                "OptionError", sentence, expected="MPSNNGraph or MPSNNFilterNode", actual=type(graph_or_node).__name__
            )

    def _producer(self, image: Any) -> Any:
        return next((node for node in self.nodes if node.result_image is image), None)

    def __enter__(self) -> Self:
        try:
            self._wire()
        except BaseException:
            self._undo.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def _set(self, target: Any, name: str, value: Any) -> None:
        self._undo.callback(setattr, target, name, getattr(target, name))
        setattr(target, name, value)

    def _wire(self) -> None:
        for source in {id(s): s for s in map(source_of, self.nodes) if s is not None}.values():
            self._freeze(source)
        self.incoming_node = None
        if self._has_gradients:
            backward = self._find_backward()
            self.objective = self._find_objective(backward)
        else:
            backward, makers = self._make_backward()
        self.gradient_nodes = [node for node in backward if _is_gradient(node)]
        self.forward = [node for node in self.nodes if not is_one_of(node, backward)]
        self._find_inputs(backward)
        if self._has_gradients:
            self.gradients = self._match_results()
        else:
            self.gradients = [(image, makers[image].result_image) for image in self.inputs if image in makers]
        self.losses = Losses([node for node in self.nodes if _is_loss(node)])
        for i, node in enumerate(self.losses.nodes):
            self._set(node.input_labels, "handle", f"labels {i}")
        self.targets = [self._image_target(image) for image, _ in self.gradients]
        self.trained = self._find_trained()
        self.targets += self._parameter_targets()
        if not self.targets:
            raise _no_gradient(self._last or self.nodes[-1])

    def _freeze(self, source: Any) -> None:
        """No update may change parameters or running statistics."""
        if hasattr(source, "set_values"):
            values = {name: np.array(v) for name, v in source.values.items()}
            history = [np.array(v) for v in source.history]
            self._undo.callback(source.set_values, **values)
            if source.optimizer is not None:
                self._undo.callback(setattr, source, "history", history)
                self._set(source, "optimizer", None)  # undone first: it makes new history
            return
        for name in _UPDATES:
            if hasattr(source, name) and hasattr(source, "__dict__"):
                if name in vars(source):
                    self._undo.callback(setattr, source, name, vars(source)[name])
                else:
                    self._undo.callback(delattr, source, name)
                setattr(source, name, lambda *_: None)

    # --- gradient nodes: those of the graph, or those of a training graph made here

    def _make_backward(self) -> tuple[list[Any], dict[Any, Any]]:
        """The training graph of the last node, and which of its nodes makes the gradient of an image. Sets the objective."""
        last = self._last
        made: list[Any] = []
        makers: dict[Any, Any] = {}

        def handler(gradient: Any, inference: Any, source: Any, gradient_source: Any) -> None:
            made.append(gradient)
            makers[source] = gradient

        if _is_loss(last) or _is_initial(last):
            self.objective = None if _is_loss(last) else last.sources[0]
            last.training_graph(None, handler)
            return [*made, last], makers or {last.sources[0]: last}  # the gradient of the input itself
        self.objective = last.result_image
        self.incoming_node = mpsnn.MPSNNImageNode("incoming gradient")
        last.training_graph(self.incoming_node, handler)
        if not made:
            raise _no_gradient(last)
        return made, makers

    def _find_backward(self) -> list[Any]:
        """Losses and gradient nodes of a graph as it is, and all that uses their results."""
        backward: list[Any] = []
        images: list[Any] = []
        for node in self.nodes:  # in execution order
            starts = _is_gradient(node) or _is_loss(node) or _is_initial(node)
            if starts or any(is_one_of(image, images) for image in node.sources):
                backward.append(node)
                images.append(node.result_image)
        return backward

    def _find_objective(self, backward: list[Any]) -> Any:
        """Nothing for losses; else the source of an initial gradient, or the only result that no forward node reads."""
        if any(map(_is_loss, backward)):
            return None
        initial = next(filter(_is_initial, backward), None)
        if initial is not None:
            return initial.sources[0]
        if self._given_result is not None:
            return self._given_result.result_image
        forward = [node for node in self.nodes if not is_one_of(node, backward)]
        read = [image for node in forward for image in node.sources]
        last = [node for node in forward if not is_one_of(node.result_image, read)]
        if len(last) != 1:
            sentence = "it is not clear which node's result the gradients belong to."
            raise make_error(
                "OptionError",
                sentence,
                expected="one last forward node",
                actual=f"{len(last)}",
                hint="check_gradients(graph, result=node)",
            )
        return last[0].result_image

    # --- images

    def _find_inputs(self, backward: list[Any]) -> None:
        """Inputs, and the incoming gradient of a graph with gradients, get their handles."""
        produced = [node.result_image for node in [*self.nodes, *backward]]
        losses = [node for node in backward if _is_loss(node)]
        self.inputs = _loose([*self.forward, *losses], produced)
        if not self.inputs and self.objective is not None:
            self.inputs = [self.objective]
        incoming = [image for image in _loose(backward, produced) if not is_one_of(image, self.inputs)]
        if self._has_gradients and incoming:
            if len(incoming) > 1:
                raise make_error(
                    "OptionError",
                    "gradient nodes read several images that nothing makes.",
                    expected="one incoming gradient",
                    actual=len(incoming),
                )
            self.incoming_node = incoming[0]
        self.handles = [_handle_text(image.handle) for image in self.inputs]
        for i, image in enumerate(self.inputs):
            self._set(image, "handle", f"check input {i}")
        if self.incoming_node is not None:
            self._set(self.incoming_node, "handle", "check incoming")

    def _match_results(self) -> list[tuple[Any, Any]]:
        """Which result of a graph with gradients is the gradient of which input."""
        pairs = []
        for result in self._results:
            maker = self._producer(result)
            if maker is None or not (
                _is_gradient(maker) or any(_is_gradient(self._producer(s)) for s in maker.sources)
            ):
                continue
            handle = _handle_text(result.handle)
            names = zip(self.inputs, self.handles, strict=True)
            found = [image for image, name in names if name is not None and name == handle]
            has_source = _is_gradient(maker) and len(maker.sources) > 1
            if not found and has_source and not re.search("Multiplication|SoftMax", type(maker).__name__):
                found = [image for image in self.inputs if image is maker.sources[1]]
            if len(found) != 1:
                sentence = "it is not clear which input a gradient image belongs to."
                raise make_error(
                    "OptionError",
                    sentence,
                    expected=f"a handle of {self.handles}",
                    actual=handle,
                    hint="give the gradient image the handle of its input",
                )
            pairs.append((found[0], result))
        return pairs

    def _image_target(self, image: Any) -> Target:
        readers = (node for node in [*self.forward, *self.nodes] if is_one_of(image, node.sources))
        reader = next(readers, self._last)
        number = next(i for i, other in enumerate(self.inputs) if other is image)
        name = self.handles[number]
        what = f'image "{name}"' if name else f"image {number}"
        return Target(type(reader).__name__, reader.label or "", what, self.losses.no_difference())

    # --- parameters

    def _find_trained(self) -> list[Trained]:
        """The forward nodes for whose parameters an engine computes gradients. It gives out their gradient states."""
        trained: list[Trained] = []
        for node in self.forward:
            source = source_of(node)
            if source is None:
                continue
            state = _state_of(node)
            reader = next((g for g in self.gradient_nodes if is_one_of(state, g.source_states)), None)
            if reader is None or reader.training_style == mpsnn.MPSNNTrainingStyle.UpdateDeviceNone:
                continue
            handle = f"check state {len(trained)}"
            self._set(state, "handle", handle)
            self._set(state, "export_from_graph", True)
            trained.append(Trained(node, source, handle, reader.sources[0], node.sources[0]))
        return trained

    def _parameter_targets(self) -> list[Target]:
        """One target per parameter of a data source, whatever the number of nodes that share it."""
        shared: dict[int, list[Trained]] = {}
        for one in self.trained:
            shared.setdefault(id(one.data_source), []).append(one)
        targets = []
        for group in shared.values():
            node, source = group[0].node, group[0].data_source
            reason = self.losses.no_difference()
            if not hasattr(source, "set_values"):
                reason = "the data source is a class of its own, without set_values()"
            label = node.label or source.label()
            targets += [
                Target(type(node).__name__, label, name, reason, source, name, tuple(group))
                for name in _names_of(source)
            ]
        return targets


def _loose(nodes: list[Any], produced: list[Any]) -> list[Any]:
    """The images that nodes read and nothing makes, each once."""
    loose: list[Any] = []
    for image in (image for node in nodes for image in node.sources):
        if not is_one_of(image, produced) and not is_one_of(image, loose):
            loose.append(image)
    return loose


def _no_gradient(node: Any) -> Exception:
    name = type(node).__name__
    return make_error(
        "GraphError",
        f"{name}: nothing in front of it has a gradient.",
        expected="a node with a gradient",
        hint="check a node further forward",
        node=name,
    )


def _names_of(source: Any) -> list[str]:
    """Parameters with a gradient, by the names of set_values()."""
    values: Callable[[], Mapping[str, Any]] | Mapping[str, Any] | None = getattr(source, "values", None)
    if hasattr(source, "descriptor"):
        has_biases = "biases" in values if isinstance(values, Mapping) else source.bias_terms() is not None
        return ["weights", "biases"] if has_biases else ["weights"]
    return ["gamma", "beta"]
