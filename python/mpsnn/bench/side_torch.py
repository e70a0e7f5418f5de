# SPDX-License-Identifier: Apache-2.0
"""PyTorch's side of the benchmark, in both memory layouts. Its operators are called directly: autograd costs time of its own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from mpsnn.bench.cases import FORWARD, LayerCase, StepCase
from mpsnn.bench.networks import Network, batch, parameters
from mpsnn.bench.timing import Timed, layer_inputs, repeat

VARIANTS = ["NCHW", "channels_last"]
_FORMATS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
_ops = torch.ops.aten


def set_threads(count: int) -> None:
    torch.set_num_threads(count)


def _tensor(array: Any, layout: str) -> torch.Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(np.moveaxis(array, 3, 1)))
    return tensor.contiguous(memory_format=_FORMATS[layout])


def _array(tensor: torch.Tensor) -> Any:
    return np.ascontiguousarray(np.moveaxis(tensor.detach().numpy(), 1, 3))


def _call_overhead() -> float:
    """Seconds that Python and the dispatcher need for one operator, measured on one element."""
    one = torch.ones(1)
    return float(np.median(repeat(lambda: torch.add(one, one), 0.02)))


# --- layers


def _transposed_weights(weights: Any) -> torch.Tensor:
    """MPS correlates with the zero-inserted source: PyTorch's kernel is turned by 180 degrees, with in and out swapped."""
    return torch.from_numpy(np.ascontiguousarray(weights[:, ::-1, ::-1].transpose(3, 0, 1, 2)))


def _ours_from_transposed(tensor: torch.Tensor) -> Any:
    return tensor.numpy().transpose(1, 2, 3, 0)[:, ::-1, ::-1]


Pair = tuple[Callable[[], Any], Callable[[Any], dict[str, Any]]]


def _convolution(case: LayerCase, which: str, layout: str, a: dict[str, Any]) -> Pair:
    x, go = _tensor(a["x"], layout), _tensor(a["incoming"], layout)
    is_transposed = case.kind == "transposed"
    w = _transposed_weights(a["weights"]) if is_transposed else torch.from_numpy(np.moveaxis(a["weights"], 3, 1).copy())
    w = w.contiguous(memory_format=_FORMATS[layout])
    geometry = ([case.stride] * 2, [case.padding] * 2, [1, 1], is_transposed, [0, 0], case.groups)
    if which == FORWARD:
        return lambda: _ops.convolution(x, w, None, *geometry), lambda y: {"result": _array(y)}
    is_data = which.startswith("data")
    call = partial(_ops.convolution_backward, go, x, w, None, *geometry, [is_data, not is_data, False])
    if is_data:
        return call, lambda y: {"data gradient": _array(y[0])}
    if is_transposed:
        return call, lambda y: {"weight gradient": _ours_from_transposed(y[1])}
    return call, lambda y: {"weight gradient": _array(y[1])}


def _fully_connected(case: LayerCase, which: str, layout: str, a: dict[str, Any]) -> Pair:
    x, go = (
        torch.from_numpy(a["x"].reshape(case.shape[0], -1)),
        torch.from_numpy(a["incoming"].reshape(case.shape[0], -1)),
    )
    w = torch.from_numpy(a["weights"].reshape(case.outputs, -1))
    if which == FORWARD:
        return lambda: _ops.mm(x, w.t()), lambda y: {"result": y.numpy().reshape(case.result_shape)}
    if which.startswith("data"):
        return lambda: _ops.mm(go, w), lambda y: {"data gradient": y.numpy().reshape(case.shape)}
    return lambda: _ops.mm(go.t(), x), lambda y: {"weight gradient": y.numpy().reshape(case.weights_shape)}


def _pool(case: LayerCase, which: str, layout: str, a: dict[str, Any]) -> Pair:
    x, go = _tensor(a["x"], layout), _tensor(a["incoming"], layout)
    k, s, p = [case.kernel] * 2, [case.stride] * 2, [case.padding] * 2
    if case.kind == "l2_pool":
        return _by_autograd(lambda t: F.lp_pool2d(t, 2, case.kernel, case.stride), which, x, go)
    if case.kind == "max_pool":
        forward = partial(_ops.max_pool2d_with_indices, x, k, s, p)
        _, index = forward()
        backward = partial(_ops.max_pool2d_with_indices_backward, go, x, k, s, p, [1, 1], False, index)
        return _either(which, forward, backward, lambda y: y[0])
    forward = partial(_ops.avg_pool2d, x, k, s, p, False, False, None)
    return _either(which, forward, partial(_ops.avg_pool2d_backward, go, x, k, s, p, False, False, None))


def _either(which: str, forward: Any, backward: Any, first: Any = lambda y: y) -> Pair:
    if which == FORWARD:
        return forward, lambda y: {"result": _array(first(y))}
    return backward, lambda y: {"data gradient": _array(y[0] if isinstance(y, tuple) else y)}


def _by_autograd(function: Any, which: str, x: torch.Tensor, go: torch.Tensor) -> Pair:
    """For compositions, which have no operator of their own."""
    leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
    result = function(leaf)
    backward = partial(torch.autograd.grad, result, leaf, go, retain_graph=True)
    return _either(which, lambda: function(x), backward)


def _batch_norm(case: LayerCase, which: str, layout: str, a: dict[str, Any]) -> Pair:
    x, go = _tensor(a["x"], layout), _tensor(a["incoming"], layout)
    w, b, mean, var = (torch.full((case.shape[3],), v) for v in (1.0, 0.0, 0.0, 1.0))
    has_relu = case.kind == "batch_norm_relu"
    normalize = partial(_ops.native_batch_norm, x, w, b, mean, var, True, 0.1, 1e-5)

    def forward() -> Any:
        y = normalize()
        return (torch.relu_(y[0]), *y[1:]) if has_relu else y

    y, saved_mean, saved_inverse = forward()

    def backward() -> Any:
        e = _ops.threshold_backward(go, y, 0) if has_relu else go
        return _ops.native_batch_norm_backward(e, x, w, mean, var, saved_mean, saved_inverse, True, 1e-5, [True] * 3)

    return _either(which, forward, backward, lambda y: y[0])


def _element_wise(case: LayerCase, which: str, layout: str, a: dict[str, Any]) -> Pair:
    x, go = _tensor(a["x"], layout), _tensor(a["incoming"], layout)
    forwards = {
        "relu": torch.relu, "sigmoid": torch.sigmoid, "tanh": torch.tanh, "exponential": torch.exp, "elu": F.elu, "gelu": F.gelu,
    }  # fmt: skip
    y = forwards[case.kind](x)
    backwards = {
        "relu": partial(_ops.threshold_backward, go, y, 0),
        "sigmoid": partial(_ops.sigmoid_backward, go, y),
        "tanh": partial(_ops.tanh_backward, go, y),
        "exponential": partial(torch.mul, go, y),
        "elu": partial(_ops.elu_backward, go, 1.0, 1.0, 1.0, False, x),
        "gelu": partial(_ops.gelu_backward, go, x),
    }
    return _either(which, partial(forwards[case.kind], x), backwards[case.kind])


def _other(case: LayerCase, which: str, layout: str, a: dict[str, Any]) -> Pair:
    x, go = _tensor(a["x"], layout), _tensor(a["incoming"], layout)
    if case.kind == "addition":
        y = _tensor(a["y"], layout)
        return lambda: torch.add(x, y), lambda r: {"result": _array(r)}
    if case.kind == "cross_channel":
        return _by_autograd(lambda t: F.local_response_norm(t, 5, 1e-2, 0.75, 1.0), which, x, go)
    _, mask = _ops.native_dropout(x, 0.5, True)
    forward, backward = partial(_ops.native_dropout, x, 0.5, True), partial(_ops.native_dropout_backward, go, mask, 2.0)
    return (forward if which == FORWARD else backward), lambda y: {}


def _loss(case: LayerCase, which: str, layout: str, a: dict[str, Any]) -> Pair:
    x, classes = torch.from_numpy(a["x"].reshape(case.shape[0], -1)), torch.from_numpy(a["classes"])
    one = torch.ones(())

    def both() -> Any:
        logs = _ops._log_softmax(x, 1, False)
        loss, weight = _ops.nll_loss_forward(logs, classes, None, 1, -100)
        gradient = _ops.nll_loss_backward(one, logs, classes, None, 1, -100, weight)
        return _ops._log_softmax_backward_data(gradient, logs, 1, x.dtype), loss

    return both, lambda y: {"data gradient": y[0].numpy().reshape(case.shape), "loss": y[1].numpy().reshape(1)}


# How many operators a call dispatches: so often the overhead of one is taken off.
_CALLS = {"softmax_loss": 4, "batch_norm_relu": 2, "cross_channel": 6, "l2_pool": 5}
_MAKERS = {
    "convolution": _convolution, "transposed": _convolution, "fully_connected": _fully_connected, "max_pool": _pool, "average_pool": _pool,
    "l2_pool": _pool, "batch_norm": _batch_norm, "batch_norm_relu": _batch_norm, "addition": _other, "cross_channel": _other,
    "dropout": _other, "softmax_loss": _loss,
}  # fmt: skip


def layer(case: LayerCase, which: str) -> dict[str, Timed]:
    arrays = layer_inputs(case)
    overhead = _call_overhead() * _CALLS.get(case.kind, 1)
    result = {}
    has_layouts = case.kind not in ("fully_connected", "softmax_loss")
    for layout in VARIANTS if has_layouts else VARIANTS[:1]:
        with torch.no_grad() if case.kind not in ("l2_pool", "cross_channel") else torch.enable_grad():
            call, outputs = _MAKERS.get(case.kind, _element_wise)(case, which, layout, arrays)
            result[layout] = Timed(partial(_timed, call, overhead, case.kind), outputs(call()))
    return result


def _timed(call: Any, overhead: float, kind: str, seconds: float) -> list[float]:
    with torch.no_grad() if kind not in ("l2_pool", "cross_channel") else torch.enable_grad():
        return repeat(call, seconds, overhead)


# --- networks


class Model(torch.nn.Module):
    """A network of networks.py."""

    def __init__(self, network: Network, seed: int = 0) -> None:
        super().__init__()
        from mpsnn.bench.networks import layer_shapes

        self.description = network
        shapes = layer_shapes(network)
        self.parts: Any = torch.nn.ModuleList()
        for layer, arrays in zip(network.layers, parameters(network, seed), strict=True):
            channels = (shapes[layer.sources[0]] if layer.sources[0] >= 0 else network.input_shape)[3]
            self.parts.append(self._part(layer, arrays, channels))

    @staticmethod
    def _part(layer: Any, arrays: dict[str, Any], channels: int) -> torch.nn.Module:
        o = layer.options
        if layer.kind == "convolution":
            part: Any = torch.nn.Conv2d(
                channels, o["outputs"], o["kernel"], o["stride"], o["padding"], groups=o["groups"], bias=o["has_bias"]
            )
            weights = torch.from_numpy(np.moveaxis(arrays["weights"], 3, 1).copy())
        elif layer.kind == "transposed":
            part = torch.nn.ConvTranspose2d(channels, o["outputs"], o["kernel"], o["stride"])
            weights = _transposed_weights(arrays["weights"])
        elif layer.kind == "fully_connected":
            weights = torch.from_numpy(np.moveaxis(arrays["weights"], 3, 1).reshape(o["outputs"], -1).copy())
            part = torch.nn.Linear(weights.shape[1], o["outputs"])
        elif layer.kind == "batch_norm":
            return torch.nn.BatchNorm2d(channels)
        elif layer.kind == "relu":
            return torch.nn.LeakyReLU(o["slope"], True) if o["slope"] else torch.nn.ReLU(True)
        elif layer.kind == "max_pool":
            return torch.nn.MaxPool2d(o["kernel"], o["stride"], o["padding"])
        elif layer.kind == "global_average":
            return torch.nn.AdaptiveAvgPool2d(1)
        else:
            return torch.nn.Identity()
        with torch.no_grad():
            part.weight.copy_(weights)
            if part.bias is not None:
                part.bias.zero_()
        return part

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        results: list[torch.Tensor] = []
        for layer, part in zip(self.description.layers, self.parts, strict=True):
            inputs = [results[source] if source >= 0 else x for source in layer.sources]
            if layer.kind == "addition":
                results.append(inputs[0] + inputs[1])
            elif layer.kind == "concatenation":
                results.append(torch.cat(inputs, 1))
            elif layer.kind == "fully_connected":
                results.append(part(torch.flatten(inputs[0], 1)))
            else:
                results.append(part(inputs[0]))
        return results[-1]

    def weights(self) -> list[Any]:
        """Weights in our order, O x kH x kW x I/groups."""
        result = []
        for layer, part in zip(self.description.layers, self.parts, strict=True):
            if layer.kind in ("convolution", "transposed", "fully_connected"):
                w = part.weight.detach()
                if layer.kind == "transposed":
                    result.append(np.array(_ours_from_transposed(w)))
                elif layer.kind == "convolution":
                    result.append(np.array(_array(w)))
                else:
                    result.append(np.array(w.numpy()))
        return result


def step(case: StepCase, options: dict[str, Any]) -> dict[str, Timed]:
    network = case.build()
    layouts = options.get("layouts", VARIANTS)
    modes = [(layout, False) for layout in layouts] + [(layout, True) for layout in layouts if options.get("compile")]
    return {
        f"{layout} compiled" if is_compiled else layout: _step(network, layout, is_compiled, options)
        for layout, is_compiled in modes
    }


def _step(network: Network, layout: str, is_compiled: bool, options: dict[str, Any]) -> Timed:
    model: Any = Model(network)
    model = model.to(memory_format=_FORMATS[layout])
    images, targets = batch(network)
    x = _tensor(images, layout)
    y = _tensor(targets, layout) if network.classes is None else torch.from_numpy(targets)
    loss_of = F.mse_loss if network.classes is None else F.cross_entropy
    optimizer = torch.optim.SGD(model.parameters(), lr=network.learning_rate)
    predict = torch.compile(model) if is_compiled else model

    def one_step() -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(predict(x).flatten(1) if network.classes else predict(x), y)
        loss.backward()
        optimizer.step()
        return loss.detach()

    before = [] if options.get("measures_memory") else model.weights()
    losses = [one_step().item()]
    changes = [np.zeros(0)]
    weighted = [layer for layer in network.layers if layer.kind in ("convolution", "transposed", "fully_connected")]
    for earlier, later, layer in zip(before, model.weights(), weighted, strict=True) if before else ():
        change = later - earlier
        changes.append(np.ravel(_by_pixels(network, layer, change) if layer.kind == "fully_connected" else change))
    losses += [one_step().item() for _ in range(options.get("steps", 3) - 1)]
    outputs = {"losses": np.array(losses), "weight changes": np.concatenate(changes)}
    return Timed(lambda seconds: repeat(one_step, seconds), outputs)


def _by_pixels(network: Network, layer: Any, change: Any) -> Any:
    """The weights of a fully connected layer from C, H, W to H, W, C order."""
    from mpsnn.bench.networks import layer_shapes

    _, height, width, channels = layer_shapes(network)[layer.sources[0]]
    return np.moveaxis(change.reshape(-1, channels, height, width), 1, 3)
