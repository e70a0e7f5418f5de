# SPDX-License-Identifier: Apache-2.0
"""The graph behind a gradient check, as something to run: sizes of its inputs, and a step on an engine with all gradients."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

import mpsnn
from mpsnn._errors import make_error
from mpsnn._gradient_wiring import Wiring, is_one_of, source_of

_PARAMETERS = {
    "weights": "gradient_for_weights",
    "biases": "gradient_for_biases",
    "gamma": "gradient_for_gamma",
    "beta": "gradient_for_beta",
}
# Of an element-wise function, whose flops a plan counts as one: an exponential takes a reduction of its argument and a polynomial of
# degree 6 or 7, a division and a root some more.
_ROUNDINGS = 16.0


@dataclass
class Step:
    """One run: what is differentiated (with the factor of each; None where that is the incoming gradient), gradients in the order of
    Wiring.targets, and for each the root of the sum of squares of what it adds up (0 for images)."""

    outputs: list[np.ndarray]
    factors: list[np.ndarray | None]
    gradients: list[np.ndarray]
    sums: list[float]


def _graph(device: str, results: list[Any]) -> Any:
    return mpsnn.MPSNNGraph(device, results)


class GradientGraph:
    """Runs what a wiring differentiates, while its context is open."""

    def __init__(self, wiring: Wiring):
        self.wiring = wiring
        self._graphs: dict[tuple[str, bool], Any] = {}
        self._is_forward_enough: bool | None = None

    # --- sizes

    def by_input(self, given: Any, what: str) -> list[Any]:
        """A sequence in the order of source_image_handles, or a mapping by handle; None for inputs left out of a mapping."""
        if given is None:
            return [None] * len(self.wiring.inputs)
        if isinstance(given, Mapping):
            unknown = [name for name in given if name not in self.wiring.handles]
            if not unknown:
                return [given.get(name) if name is not None else None for name in self.wiring.handles]
            raise make_error(
                "OptionError",
                f"{what} names inputs that the graph does not have.",
                expected=self.wiring.handles,
                actual=unknown,
            )
        order = [
            handle for handle in self._runner("reference", False).source_image_handles if handle != "check incoming"
        ]
        if len(given) != len(self.wiring.inputs):
            raise make_error(
                "OptionError",
                f"{what} has another length than the graph has inputs.",
                expected=len(self.wiring.inputs),
                actual=len(given),
            )
        position = {handle: i for i, handle in enumerate(order)}
        return [given[position.get(f"check input {i}", i)] for i in range(len(self.wiring.inputs))]

    def shapes(self, given: Any) -> list[tuple[int, ...]]:
        found = [
            self._guess(image) if shape is None else tuple(shape)
            for image, shape in zip(self.wiring.inputs, self.by_input(given, "source_shapes"), strict=True)
        ]
        self._plan(found)  # raises what a step would
        return found

    def _guess(self, image: Any) -> tuple[int, ...]:
        """A small batch that fits the first node."""
        reader = next((node for node in self.wiring.nodes if is_one_of(image, node.sources)), None)
        source = source_of(reader) if reader is not None else None
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
        if not self.wiring.losses.nodes:
            return []
        graph = self._runner("reference", False)
        results = {operation.node: operation.result for operation in self._plan(shapes).operations}
        return [tuple(map(int, results[graph.node_name(node)].split(" x "))) for node in self.wiring.losses.nodes]

    def incoming_shape(self, images: list[np.ndarray], labels: list[np.ndarray]) -> tuple[int, ...] | None:
        if self.wiring.incoming_node is None:
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
            images = self._images(gradients)
            self._graphs[device, gradients] = (_graph(device, images), images)
        return self._graphs[device, gradients][0]

    def _images(self, gradients: bool) -> list[Any]:
        """Results of a graph: what is differentiated, with gradients also those and what the parameters' gradients are sums over."""
        wiring = self.wiring
        losses = [node.result_image for node in wiring.losses.nodes]
        results = losses if wiring.objective is None else [wiring.objective]
        results = [image for image in results if not is_one_of(image, wiring.inputs)]
        if gradients or not results:
            results += [image for _, image in wiring.gradients]
            results += [image for one in wiring.trained for image in (one.incoming, one.image)]
            if not wiring.gradients:
                results += [node.result_image for node in wiring.gradient_nodes if node.source_states]
        given = [*wiring.inputs, wiring.incoming_node]
        return [image for i, image in enumerate(results) if not is_one_of(image, [*given, *results[:i]])]

    def run(
        self,
        device: str,
        images: list[np.ndarray],
        incoming: np.ndarray | None,
        labels: list[np.ndarray],
        gradients: bool = True,
    ) -> Step:
        wiring, graph = self.wiring, self._runner(device, gradients)
        dtype = np.float64 if device == "reference" else np.float32
        given = {f"check input {i}": np.ascontiguousarray(x, dtype) for i, x in enumerate(images)}
        if incoming is not None:
            given["check incoming"] = np.ascontiguousarray(incoming, dtype)
        sums = wiring.losses.sums(labels)
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
        values |= {id(node): given[f"check input {i}"] for i, node in enumerate(wiring.inputs)}
        if wiring.incoming_node is not None and incoming is not None:
            values[id(wiring.incoming_node)] = given["check incoming"]
        if wiring.objective is None:
            outputs = [np.array(state.loss_image.numpy(), np.float64) for state in states]
            factors: list[np.ndarray | None] = [np.float64(factor) * np.ones(1) for _, factor in sums]
        else:
            outputs = [values[id(wiring.objective)]]
            factors = [None if wiring.incoming_node is not None else np.ones(1)]
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
        gradients = [values[id(image)] for _, image in self.wiring.gradients]
        sums = [0.0] * len(gradients)
        for target in self.wiring.targets[len(gradients) :]:
            parts, squares = [], 0.0
            for one in target.trained:
                parts.append(np.array(getattr(exported[one.handle], _PARAMETERS[target.name])))
                incoming, image = (values[id(key)].astype(np.float64) for key in (one.incoming, one.image))
                size = np.abs(image).max(initial=0) if target.name == "weights" else 1.0
                squares += (incoming**2).sum(axis=(0, 1, 2)).max(initial=0) * size**2
            gradients.append(np.asarray(sum(parts)))
            sums.append(math.sqrt(squares))
        return Step(outputs, factors, gradients, sums)

    def reload(self) -> None:
        """After a change of a data source."""
        for graph, _ in self._graphs.values():
            graph.reload_from_data_sources()

    def is_forward_enough(
        self, images: list[np.ndarray], incoming: np.ndarray | None, labels: list[np.ndarray]
    ) -> bool:
        """Whether the graph without gradients computes the same bits. A batch normalization takes other statistics then."""
        if self._is_forward_enough is None:
            whole, forward = (
                self.run("reference", images, incoming if full else None, labels, gradients=full).outputs
                for full in (True, False)
            )
            self._is_forward_enough = all(np.array_equal(a, b) for a, b in zip(whole, forward, strict=True))
        return self._is_forward_enough
