# SPDX-License-Identifier: Apache-2.0
"""MLX's side of the benchmark: training steps. Its CPU backend takes minutes for the large ones, which are left out."""

from __future__ import annotations

from typing import Any

import numpy as np

from mpsnn.bench.cases import LayerCase, StepCase
from mpsnn.bench.networks import Layer, Network, batch, flops, parameters
from mpsnn.bench.timing import Timed, repeat

VARIANTS = ["NHWC"]
#: Of a step, forward and gradients. MLX was measured at 1 to 2 GFLOP/s: more than that would hold up everybody else.
MOST_FLOPS = 2e9


def set_threads(count: int) -> None:
    """MLX decides for itself."""


def layer(case: LayerCase, which: str) -> dict[str, Timed]:
    return {}


def _apply(layer: Layer, inputs: list[Any], p: dict[str, Any]) -> Any:
    import mlx.core as mx
    from mlx import nn

    o, x = layer.options, inputs[0]
    if layer.kind == "convolution":
        y = mx.conv2d(x, p["weights"], o["stride"], o["padding"], groups=o["groups"])
        return y + p["biases"] if "biases" in p else y
    if layer.kind == "fully_connected":
        w = p["weights"]
        return (x.reshape(x.shape[0], -1) @ w.reshape(w.shape[0], -1).T + p["biases"]).reshape(x.shape[0], 1, 1, -1)
    if layer.kind == "batch_norm":
        mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
        return (x - mean) * (p["gamma"] * mx.rsqrt(variance + 1e-5)) + p["beta"]
    if layer.kind == "relu":
        return mx.where(x >= 0, x, o["slope"] * x)
    if layer.kind == "max_pool":
        return nn.MaxPool2d(o["kernel"], o["stride"], o["padding"])(x)
    if layer.kind == "global_average":
        return x.mean((1, 2), keepdims=True)
    if layer.kind == "addition":
        return x + inputs[1]
    if layer.kind == "concatenation":
        return mx.concatenate(inputs, 3)
    raise NotImplementedError(layer.kind)


def _initial(network: Network) -> list[dict[str, Any]]:
    import mlx.core as mx

    from mpsnn.bench.networks import layer_shapes

    values = []
    for layer, arrays, shape in zip(network.layers, parameters(network), layer_shapes(network), strict=True):
        if layer.kind == "batch_norm":
            values.append({"gamma": mx.ones(shape[3]), "beta": mx.zeros(shape[3])})
        else:
            values.append({name: mx.array(array) for name, array in arrays.items()})
    return values


def step(case: StepCase, options: dict[str, Any]) -> dict[str, Timed]:
    import mlx.core as mx
    from mlx import nn

    network = case.build()
    if flops(network) > MOST_FLOPS:
        return {}
    mx.set_default_device(mx.cpu)
    images, targets = batch(network)
    x, y, state = mx.array(images), mx.array(targets), [_initial(network)]

    def loss_of(values: list[dict[str, Any]]) -> Any:
        results: list[Any] = []
        for layer, p in zip(network.layers, values, strict=True):
            results.append(_apply(layer, [results[i] if i >= 0 else x for i in layer.sources], p))
        if network.classes is None:
            return ((results[-1] - y) ** 2).mean()
        return nn.losses.cross_entropy(results[-1].reshape(len(targets), -1), y, reduction="mean")

    differentiate = mx.value_and_grad(loss_of)

    def one_step() -> float:
        loss, gradients = differentiate(state[0])
        state[0] = [
            {name: value - network.learning_rate * gradient[name] for name, value in values.items()}
            for values, gradient in zip(state[0], gradients, strict=True)
        ]
        mx.eval(state[0], loss)
        return float(loss.item())

    def weights() -> list[Any]:
        return [np.array(values["weights"]) for values in state[0] if "weights" in values]

    before, losses, changes = weights(), [], []
    for number in range(options.get("steps", 3)):
        losses.append(one_step())
        if number == 0:
            changes = [np.ravel(b - a) for a, b in zip(before, weights(), strict=True)]
    outputs = {"losses": np.array(losses), "weight changes": np.concatenate(changes)}
    return {"NHWC": Timed(lambda seconds: repeat(one_step, seconds), outputs)}
