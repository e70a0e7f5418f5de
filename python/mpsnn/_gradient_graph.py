# SPDX-License-Identifier: Apache-2.0
"""The graph behind a gradient check: which images and parameters have gradients, and how to run it on an engine.

Nodes are the user's own. While a check runs they carry handles of ours, and data sources update nothing: those of this package are
without their optimizer, methods of others are replaced. Leaving the context puts everything back; the optimizers are then copies with
the same history, as assigning an optimizer makes them.
"""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import Self

import mpsnn
from mpsnn._errors import make_error

_PARAMETERS = {
    "weights": "gradient_for_weights",
    "biases": "gradient_for_biases",
    "gamma": "gradient_for_gamma",
    "beta": "gradient_for_beta",
}
# Of an element-wise function, whose flops a plan counts as one: an exponential takes a reduction of its argument and a polynomial of
# degree 6 or 7, a division and a root some more.
_ROUNDINGS = 16.0
_UPDATES = [
    f"{name}{ending}"
    for name in ("update", "update_gamma_and_beta", "update_mean_and_variance")
    for ending in ("", "_with_command_buffer")
]


@dataclass
class Step:
    """One run: what is differentiated (with the factor of each; None where that is the incoming gradient), gradients in the order of
    GradientGraph.targets, and for each the root of the sum of squares of what it adds up (0 for images)."""

    outputs: list[np.ndarray]
    factors: list[np.ndarray | None]
    gradients: list[np.ndarray]
    sums: list[float]


@dataclass
class Target:
    """Something that has a gradient. `source` and `name` for parameters."""

    node_class: str
    label: str
    what: str
    source: Any = None
    name: str = ""
    nodes: tuple[Any, ...] = ()
    no_difference: str = ""  # why differences cannot be taken


def _graph(device: str, results: list[Any]) -> Any:
    return mpsnn.MPSNNGraph(device, results)


def _is_loss(node: Any) -> bool:
    return hasattr(node, "input_labels")


def _is_initial(node: Any) -> bool:
    return type(node).__name__ == "MPSNNInitialGradientNode"


def _is_gradient(node: Any) -> bool:
    return isinstance(node, mpsnn.MPSNNGradientFilterNode)


def _state_of(node: Any) -> Any:
    return getattr(node, "convolution_gradient_state", None) or node.result_state


def _source_of(node: Any) -> Any:
    if _is_gradient(node):
        return None
    return getattr(node, "weights", None) or getattr(node, "data_source", None)


def _handle_text(handle: Any) -> str | None:
    if handle is None or isinstance(handle, str):
        return handle
    label = handle.label
    return str(label() if callable(label) else label)


class GradientGraph:
    """See the module. `graph_or_node` and `result` as in check_gradients()."""

    def __init__(self, graph_or_node: Any, result: Any):
        self._undo: list[Callable[[], None]] = []
        self._graphs: dict[tuple[str, bool], Any] = {}
        self.forward_only: bool | None = None
        if isinstance(graph_or_node, mpsnn.MPSNNGraph):
            self.nodes = list(graph_or_node.nodes)
            results = list(graph_or_node.result_images)
            self.wired = any(_is_gradient(node) for node in self.nodes)
            self.last = result if result is not None else self._producer(results[0])
        elif isinstance(graph_or_node, mpsnn.MPSNNFilterNode):
            self.nodes = list(_graph("reference", [graph_or_node.result_image]).nodes)
            results, self.wired, self.last = [], False, graph_or_node
        else:
            sentence = "check_gradients() takes a graph or a filter node."
            raise make_error(
                "OptionError", sentence, expected="MPSNNGraph or MPSNNFilterNode", actual=type(graph_or_node).__name__
            )
        self._results = results
        self._given_result = result

    def _producer(self, image: Any) -> Any:
        return next((node for node in self.nodes if node.result_image is image), None)

    # --- wiring

    def __enter__(self) -> Self:
        try:
            self._wire()
        except BaseException:
            self._put_back()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._put_back()

    def _set(self, target: Any, name: str, value: Any) -> None:
        kept = getattr(target, name)
        self._undo.append(lambda: setattr(target, name, kept))
        setattr(target, name, value)

    def _put_back(self) -> None:
        while self._undo:
            self._undo.pop()()

    def _wire(self) -> None:
        for source in {id(s): s for s in map(_source_of, self.nodes) if s is not None}.values():
            self._freeze(source)
        self.incoming_node: Any = None
        self.gradients: list[Any] = []
        if self.wired:
            backward = self._find_backward()
        else:
            backward = self._make_backward()
        self.gradient_nodes = [node for node in backward if _is_gradient(node)]
        self.forward = [node for node in self.nodes if not any(node is other for other in backward)]
        self._name_inputs(backward)
        if self.wired:
            self._match_results()
        self.losses = [node for node in self.nodes if _is_loss(node)]
        for i, node in enumerate(self.losses):
            self._set(node.input_labels, "handle", f"labels {i}")
        self._find_parameters()

    def _freeze(self, source: Any) -> None:
        """No update may change parameters or running statistics."""
        if hasattr(source, "set_values"):
            values, history = (
                {name: np.array(v) for name, v in source.values.items()},
                [np.array(v) for v in source.history],
            )
            self._undo.append(lambda: source.set_values(**values))
            if source.optimizer is not None:
                optimizer = source.optimizer
                self._undo.append(lambda: setattr(source, "history", history))
                self._undo.append(lambda: setattr(source, "optimizer", optimizer))  # undone first: it makes new history
                source.optimizer = None
            return
        for name in _UPDATES:
            if hasattr(source, name) and hasattr(source, "__dict__"):
                kept = vars(source).get(name)
                self._undo.append(
                    lambda name=name, kept=kept: delattr(source, name) if kept is None else setattr(source, name, kept)
                )
                setattr(source, name, lambda *_: None)

    def _make_backward(self) -> list[Any]:
        """The training graph of the last node."""
        origin = _is_loss(self.last) or _is_initial(self.last)
        if not origin:
            self.incoming_node = mpsnn.MPSNNImageNode("incoming gradient")
        made: list[Any] = []
        self._of_image: dict[Any, Any] = {}

        def handler(gradient: Any, inference: Any, source: Any, gradient_source: Any) -> None:
            made.append(gradient)
            self._of_image[source] = gradient

        self.last.training_graph(self.incoming_node, handler)
        if origin and not made:
            self._of_image[self.last.sources[0]] = self.last  # the gradient of the input itself
        if not made and not origin:
            raise self._no_gradient(self.last)
        self.objective = (
            None if _is_loss(self.last) else self.last.sources[0] if _is_initial(self.last) else self.last.result_image
        )
        return made + ([self.last] if origin else [])

    def _no_gradient(self, node: Any) -> Exception:
        sentence = f"{type(node).__name__}: nothing in front of it has a gradient."
        return make_error(
            "GraphError",
            sentence,
            expected="a node with a gradient",
            hint="check a node further forward",
            node=type(node).__name__,
        )

    def _find_backward(self) -> list[Any]:
        """Gradient nodes of a graph as it is, and all that uses their results. What is differentiated: losses, the source of an
        initial gradient, or the only result that no forward node reads."""
        backward: list[Any] = []
        images: list[Any] = []
        for node in self.nodes:  # in execution order
            if (
                _is_gradient(node)
                or _is_loss(node)
                or _is_initial(node)
                or any(s is image for s in node.sources for image in images)
            ):
                backward.append(node)
                images.append(node.result_image)
        forward = [node for node in self.nodes if not any(node is other for other in backward)]
        initial = [node for node in backward if _is_initial(node)]
        if any(_is_loss(node) for node in backward):
            self.objective = None
        elif initial:
            self.objective = initial[0].sources[0]
        elif self._given_result is not None:
            self.objective = self._given_result.result_image
        else:
            last = [n for n in forward if not any(n.result_image is s for other in forward for s in other.sources)]
            if len(last) != 1:
                sentence = "it is not clear which node's result the gradients belong to."
                raise make_error(
                    "OptionError",
                    sentence,
                    expected="one last forward node",
                    actual=f"{len(last)}",
                    hint="check_gradients(graph, result=node)",
                )
            self.objective = last[0].result_image
        return backward

    def _name_inputs(self, backward: list[Any]) -> None:
        produced = [node.result_image for node in [*self.nodes, *backward]]
        readers = {"forward": [*self.forward, *(n for n in backward if _is_loss(n))], "backward": backward}
        loose: dict[str, list[Any]] = {name: [] for name in readers}
        for name, nodes in readers.items():
            for image in (image for node in nodes for image in node.sources):
                if not any(image is other for other in [*produced, *loose[name]]):
                    loose[name].append(image)
        self.inputs = loose["forward"] or ([self.objective] if self.objective is not None else [])
        incoming = [image for image in loose["backward"] if not any(image is other for other in self.inputs)]
        if self.wired and incoming:
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
        if not self.wired:
            order = [image for image in self.inputs if image in self._of_image]
            self.gradients = [(image, self._of_image[image].result_image) for image in order]

    def _match_results(self) -> None:
        for result in self._results:
            maker = self._producer(result)
            if maker is None or not (
                _is_gradient(maker) or any(_is_gradient(self._producer(s)) for s in maker.sources)
            ):
                continue
            handle = _handle_text(result.handle)
            found = [
                image
                for image, name in zip(self.inputs, self.handles, strict=True)
                if name is not None and name == handle
            ]
            if (
                not found
                and _is_gradient(maker)
                and len(maker.sources) > 1
                and not re.search("Multiplication|SoftMax", type(maker).__name__)
            ):
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
            self.gradients.append((found[0], result))

    def _find_parameters(self) -> None:
        """One target per parameter of a data source, whatever the number of nodes that share it."""
        self._states: list[tuple[Any, str]] = []
        self._places: dict[int, tuple[Any, Any]] = {}
        self.targets = [self._image_target(image) for image, _ in self.gradients]
        sources: dict[int, tuple[Any, list[Any]]] = {}
        for node in self.forward:
            source = _source_of(node)
            reader = next(
                (
                    g
                    for g in self.gradient_nodes
                    if source is not None and any(s is _state_of(node) for s in g.source_states)
                ),
                None,
            )
            if reader is None or reader.training_style == mpsnn.MPSNNTrainingStyle.UpdateDeviceNone:
                continue  # not trained: no engine computes its gradients
            state = _state_of(node)
            self._set(state, "handle", f"check state {len(self._states)}")
            self._set(state, "export_from_graph", True)
            self._states.append((node, state.handle))
            self._places[id(node)] = (reader.sources[0], node.sources[0])
            sources.setdefault(id(source), (source, []))[1].append(node)
        for source, nodes in sources.values():
            reason = (
                "" if hasattr(source, "set_values") else "the data source is a class of its own, without set_values()"
            )
            label = nodes[0].label or source.label()
            for name in _names_of(source, nodes[0]):
                self.targets.append(
                    Target(
                        type(nodes[0]).__name__, label, name, source, name, tuple(nodes), reason or self._loss_reason()
                    )
                )
        if not self.targets:
            raise self._no_gradient(self.last or self.nodes[-1])

    def _image_target(self, image: Any) -> Target:
        reader = next(
            (node for node in [*self.forward, *self.nodes] if any(image is s for s in node.sources)), self.last
        )
        number = next(i for i, other in enumerate(self.inputs) if other is image)
        name = self.handles[number]
        return Target(
            type(reader).__name__,
            reader.label or "",
            f'image "{name}"' if name else f"image {number}",
            no_difference=self._loss_reason(),
        )

    # --- sizes

    def by_input(self, given: Any, what: str) -> list[Any]:
        """A sequence in the order of source_image_handles, or a mapping by handle; None for inputs left out of a mapping."""
        if given is None:
            return [None] * len(self.inputs)
        if isinstance(given, Mapping):
            unknown = [name for name in given if name not in self.handles]
            if not unknown:
                return [given.get(name) if name is not None else None for name in self.handles]
            raise make_error(
                "OptionError",
                f"{what} names inputs that the graph does not have.",
                expected=self.handles,
                actual=unknown,
            )
        order = [
            handle for handle in self._runner("reference", False).source_image_handles if handle != "check incoming"
        ]
        if len(given) != len(self.inputs):
            raise make_error(
                "OptionError",
                f"{what} has another length than the graph has inputs.",
                expected=len(self.inputs),
                actual=len(given),
            )
        position = {handle: i for i, handle in enumerate(order)}
        return [given[position.get(f"check input {i}", i)] for i in range(len(self.inputs))]

    def shapes(self, given: Any) -> list[tuple[int, ...]]:
        found = [
            self._guess(image) if shape is None else tuple(shape)
            for image, shape in zip(self.inputs, self.by_input(given, "source_shapes"), strict=True)
        ]
        self._plan(found)  # raises what a step would
        return found

    def _guess(self, image: Any) -> tuple[int, ...]:
        """A small batch that fits the first node."""
        reader = next((node for node in self.nodes if any(image is s for s in node.sources)), None)
        source = _source_of(reader) if reader is not None else None
        if source is None:
            return (2, 8, 8, 4)
        if not hasattr(source, "descriptor"):
            return (2, 8, 8, source.number_of_feature_channels())
        descriptor = source.descriptor()
        if "FullyConnected" in type(reader).__name__:
            return (2, descriptor.kernel_height, descriptor.kernel_width, descriptor.input_feature_channels)
        return (2, 8, 8, descriptor.input_feature_channels)

    def _plan(self, shapes: list[tuple[int, ...]], incoming: tuple[int, ...] | None = None) -> Any:
        graph = self._runner("reference", incoming is not None)
        given = {f"check input {i}": shape for i, shape in enumerate(shapes)} | {"check incoming": incoming}
        return graph.plan([given[handle] for handle in graph.source_image_handles])

    def label_shapes(self, shapes: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
        """A loss node's labels are as large as its result."""
        if not self.losses:
            return []
        graph = self._runner("reference", False)
        results = {operation.node: operation.result for operation in self._plan(shapes).operations}
        return [tuple(map(int, results[graph.node_name(node)].split(" x "))) for node in self.losses]

    def incoming_shape(self, images: list[np.ndarray], labels: list[np.ndarray]) -> tuple[int, ...] | None:
        if self.incoming_node is None:
            return None
        return tuple(self.run("reference", images, None, labels, gradients=False).outputs[0].shape)

    def terms(self, images: list[np.ndarray], incoming: np.ndarray | None) -> float:
        """Roundings that one element of a gradient sees: flops per result element, over all operations, at least _ROUNDINGS each."""
        shape = () if incoming is None else incoming.shape
        operations = self._plan([x.shape for x in images], shape).operations
        return sum(
            max(_ROUNDINGS, op.flops / max(1, math.prod(map(int, re.findall(r"\d+", op.result))))) for op in operations
        )

    # --- running

    def _runner(self, device: str, gradients: bool) -> Any:
        if (device, gradients) not in self._graphs:
            results = [node.result_image for node in self.losses] if self.objective is None else [self.objective]
            results = [image for image in results if not any(image is other for other in self.inputs)]
            if gradients or not results:
                results += [image for _, image in self.gradients] + [
                    image for pair in self._places.values() for image in pair
                ]
                results += [
                    node.result_image for node in self.gradient_nodes if node.source_states and not self.gradients
                ]
            self._graphs[device, gradients] = (_graph(device, self._distinct(results)), self._distinct(results))
        return self._graphs[device, gradients][0]

    def _distinct(self, images: list[Any]) -> list[Any]:
        given = [*self.inputs, self.incoming_node]
        return [image for i, image in enumerate(images) if not any(image is other for other in [*given, *images[:i]])]

    def run(
        self,
        device: str,
        images: list[np.ndarray],
        incoming: np.ndarray | None,
        labels: list[np.ndarray],
        gradients: bool = True,
    ) -> Step:
        graph = self._runner(device, gradients)
        dtype = np.float64 if device == "reference" else np.float32
        given = {f"check input {i}": np.ascontiguousarray(x, dtype) for i, x in enumerate(images)}
        if incoming is not None:
            given["check incoming"] = np.ascontiguousarray(incoming, dtype)
        sums = self._sums_of_losses(labels)
        states = [
            mpsnn.MPSCNNLossLabels(t.astype(dtype), None, whole) for t, (whole, _) in zip(labels, sums, strict=True)
        ]
        order = {f"labels {i}": state for i, state in enumerate(states)}
        exported: list[Any] = []
        graph.encode_count = 0  # the same dropout masks every time
        arguments = [given[handle] for handle in graph.source_image_handles]
        results = graph.run(
            arguments, [order[handle] for handle in graph.source_state_handles], destination_states=exported
        )
        results = results if isinstance(results, list) else [results]
        values = {
            id(node): np.array(image.numpy())
            for node, image in zip(self._graphs[device, gradients][1], results, strict=True)
        }
        values |= {id(node): given[f"check input {i}"] for i, node in enumerate(self.inputs)}
        if self.incoming_node is not None and incoming is not None:
            values[id(self.incoming_node)] = given["check incoming"]
        if self.objective is None:
            outputs = [np.array(state.loss_image.numpy(), np.float64) for state in states]
            factors: list[np.ndarray | None] = [np.float64(factor) * np.ones(1) for _, factor in sums]
        else:
            outputs = [values[id(self.objective)]]
            factors = [None if self.incoming_node is not None else np.ones(1)]
        if not gradients:
            return Step(outputs, factors, [], [])
        return self._collect(outputs, factors, values, dict(zip(graph.result_state_handles, exported, strict=True)))

    def _collect(
        self,
        outputs: list[np.ndarray],
        factors: list[np.ndarray | None],
        values: dict[int, np.ndarray],
        exported: Mapping[Any, Any],
    ) -> Step:
        gradients = [values[id(image)] for _, image in self.gradients]
        sums = [0.0] * len(gradients)
        handles = {id(node): handle for node, handle in self._states}
        for target in self.targets[len(gradients) :]:
            total, squares = 0.0, 0.0
            for node in target.nodes:
                total = total + np.array(getattr(exported[handles[id(node)]], _PARAMETERS[target.name]))
                gradient, source = (values[id(image)].astype(np.float64) for image in self._places[id(node)])
                size = np.abs(source).max(initial=0) if target.name == "weights" else 1.0
                squares += (gradient**2).sum(axis=(0, 1, 2)).max(initial=0) * size**2
            gradients.append(np.asarray(total))
            sums.append(math.sqrt(squares))
        return Step(outputs, factors, gradients, sums)

    # --- losses

    def _saved_losses(self) -> list[dict[str, Any]]:
        """What the loss nodes do not tell but a saved graph does. Empty where the graph cannot be saved."""
        if not hasattr(self, "_saved"):
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "graph.safetensors"
                try:
                    _graph("reference", [node.result_image for node in self.losses]).save(path)
                    nodes = json.loads(mpsnn.read_safetensors(path)[1]["mpsnn"])["graph"]["nodes"]
                except mpsnn.Error:
                    nodes = []
            self._saved = [node for node in nodes if "labels" in node]
        return self._saved

    def _loss_reason(self) -> str:
        if not self.losses:
            return ""
        if len(self._saved_losses()) != len(self.losses):
            return "the graph cannot be saved, so the losses' reduction is not known"
        if any(_field(loss, "rescore") for loss in self._saved_losses()):
            return "a YOLO loss with rescore takes the overlap, which depends on the predictions, as a constant (MPS_SEMANTICS 14.6)"
        return ""

    def _sums_of_losses(self, labels: list[np.ndarray]) -> list[tuple[bool, float]]:
        """Per loss node: whether its loss image holds every element, and the factor that makes the loss the sum whose gradient
        MPS computes (MPS_SEMANTICS 14.3: the gradient takes no notice of the reduction)."""
        saved = self._saved_losses() if self.losses else []
        if len(saved) != len(self.losses):
            return [(False, 1.0)] * len(labels)
        kinds, types = mpsnn.MPSCNNReductionType, mpsnn.MPSCNNLossType
        factors = []
        for loss, t in zip(saved, labels, strict=True):
            kind = kinds(_field(loss, "reduction_type"))
            count = math.prod(t.shape[1:])
            if kind == kinds.Mean and _field(loss, "loss_type") == types.SoftMaxCrossEntropy:
                count //= t.shape[3]
            count *= t.shape[0] if _field(loss, "reduce_across_batch") else 1
            factors.append(
                (kind == kinds.None_, float(count if kind in (kinds.Mean, kinds.SumByNonZeroWeights) else 1))
            )
        return factors

    def reload(self) -> None:
        """After a change of a data source."""
        for graph, _ in self._graphs.values():
            graph.reload_from_data_sources()

    def is_forward_enough(
        self, images: list[np.ndarray], incoming: np.ndarray | None, labels: list[np.ndarray]
    ) -> bool:
        """Whether the graph without gradients computes the same bits. A batch normalization takes other statistics then."""
        if self.forward_only is None:
            whole, forward = (
                self.run("reference", images, incoming if full else None, labels, gradients=full).outputs
                for full in (True, False)
            )
            self.forward_only = all(np.array_equal(a, b) for a, b in zip(whole, forward, strict=True))
        return self.forward_only


def _names_of(source: Any, node: Any) -> list[str]:
    """Parameters with a gradient, by the names of set_values()."""
    values: Callable[[], Mapping[str, Any]] | Mapping[str, Any] | None = getattr(source, "values", None)
    if hasattr(source, "descriptor"):
        has_biases = "biases" in values if isinstance(values, Mapping) else source.bias_terms() is not None
        return ["weights", "biases"] if has_biases else ["weights"]
    return ["gamma", "beta"]


def _field(saved: Mapping[str, Any], name: str) -> Any:
    """A number of a saved node, wherever in it."""
    if name in saved:
        return saved[name]
    return next(
        (
            found
            for value in saved.values()
            if isinstance(value, Mapping) and (found := _field(value, name)) is not None
        ),
        None,
    )
