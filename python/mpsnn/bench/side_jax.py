# SPDX-License-Identifier: Apache-2.0
"""JAX's side of the benchmark: whole steps and layers as one compiled function each, in N, H, W, C order."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from mpsnn.bench.cases import FORWARD, WEIGHTS, LayerCase, StepCase
from mpsnn.bench.networks import Layer, Network, batch, parameters
from mpsnn.bench.timing import Timed, layer_inputs, repeat

VARIANTS = ["NHWC"]
_LAYOUTS = ("NHWC", "HWIO", "NHWC")
_EPSILON, _MOMENTUM = 1e-5, 0.1


def set_threads(count: int) -> None:
    """XLA reads its thread count once, from the processors that the process may use: it counts before the first computation."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    if hasattr(os, "sched_setaffinity") and count < len(os.sched_getaffinity(0)):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


def _convolve(x: Any, w: Any, stride: int, padding: int, groups: int, enlarged: int = 1) -> Any:
    from jax import lax

    return lax.conv_general_dilated(
        x,
        w,
        (stride, stride),
        [(padding, padding)] * 2,
        lhs_dilation=(enlarged, enlarged),
        dimension_numbers=_LAYOUTS,
        feature_group_count=groups,
    )


def _pooled(kind: str, x: Any, o: dict[str, Any]) -> Any:
    from jax import lax

    window, strides = (1, o["kernel"], o["kernel"], 1), (1, o["stride"], o["stride"], 1)
    padding = [(0, 0), *[(o["padding"],) * 2] * 2, (0, 0)]
    if kind == "max_pool":
        return lax.reduce_window(x, -np.inf, lax.max, window, strides, padding)
    ones = np.ones((1, *x.shape[1:3], 1), np.float32)
    total = lax.reduce_window(x, 0.0, lax.add, window, strides, padding)
    return total / lax.reduce_window(ones, 0.0, lax.add, window, strides, padding)


def _normalized(x: Any, gamma: Any, beta: Any) -> tuple[Any, Any, Any]:
    from jax import lax

    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
    return (x - mean) * (gamma * lax.rsqrt(variance + _EPSILON)) + beta, mean, variance


# --- layers


def _function(case: LayerCase) -> Callable[..., Any] | None:
    """The layer as a function of x and, if it has them, weights; None for kinds that this side leaves out."""
    import jax

    o = {"kernel": case.kernel, "stride": case.stride, "padding": case.padding}
    simple: dict[str, Callable[[Any], Any]] = {
        "relu": lambda x: jax.numpy.maximum(x, 0),
        "sigmoid": jax.nn.sigmoid,
        "tanh": jax.numpy.tanh,
        "exponential": jax.numpy.exp,
        "elu": jax.nn.elu,
        "gelu": partial(jax.nn.gelu, approximate=False),
        "max_pool": lambda x: _pooled("max_pool", x, o),
        "batch_norm": lambda x: _normalized(x, 1.0, 0.0)[0],
        "batch_norm_relu": lambda x: jax.numpy.maximum(_normalized(x, 1.0, 0.0)[0], 0),
    }
    if case.kind == "convolution":
        return lambda x, w: _convolve(x, w, case.stride, case.padding, case.groups)
    if case.kind == "transposed":
        return lambda x, w: _convolve(x, w, 1, case.kernel - 1, 1, case.stride)
    if case.kind == "fully_connected":
        return lambda x, w: (x.reshape(case.shape[0], -1) @ w.reshape(-1, case.outputs)).reshape(case.result_shape)
    return simple.get(case.kind)


def layer(case: LayerCase, which: str) -> dict[str, Timed]:
    import jax

    function = _function(case)
    if function is None:
        return {}
    arrays = layer_inputs(case)
    operands = [jax.numpy.asarray(arrays["x"])]
    if "weights" in arrays:
        operands.append(jax.numpy.asarray(np.moveaxis(arrays["weights"], 0, 3)))
    incoming = jax.numpy.asarray(arrays["incoming"])
    place = 1 if which == WEIGHTS else 0

    @jax.jit
    def call(incoming: Any, *operands: Any) -> Any:
        if which == FORWARD:
            return function(*operands)
        return jax.vjp(function, *operands)[1](incoming)[place]

    def run() -> Any:
        return call(incoming, *operands).block_until_ready()

    one = jax.jit(lambda x: x + 1)
    number = jax.numpy.ones(1)
    one(number).block_until_ready()
    overhead = float(np.median(repeat(lambda: one(number).block_until_ready(), 0.02)))
    result = np.asarray(run())
    if which == WEIGHTS:
        result = np.moveaxis(result, 3, 0)
    names = {FORWARD: "result", WEIGHTS: "weight gradient"}
    outputs = {names.get(which, "data gradient"): result}
    return {"NHWC": Timed(lambda seconds: repeat(run, seconds, overhead), outputs)}


# --- networks


def _apply(
    layer: Layer, inputs: list[Any], p: dict[str, Any], statistics: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """The layer's result, and its running statistics behind it."""
    import jax.numpy as jnp

    o, x = layer.options, inputs[0]
    if layer.kind in ("convolution", "transposed"):
        if layer.kind == "convolution":
            y = _convolve(x, p["weights"], o["stride"], o["padding"], o["groups"])
        else:
            y = _convolve(x, p["weights"], 1, o["kernel"] - 1, 1, o["stride"])
        return (y + p["biases"] if "biases" in p else y), statistics
    if layer.kind == "fully_connected":
        w = p["weights"]
        y = x.reshape(x.shape[0], -1) @ w.reshape(-1, w.shape[-1]) + p["biases"]
        return y.reshape(x.shape[0], 1, 1, -1), statistics
    if layer.kind == "batch_norm":
        y, mean, variance = _normalized(x, p["gamma"], p["beta"])
        count = x.size // x.shape[3]
        new = {"mean": mean, "variance": variance * (count / max(1, count - 1))}
        return y, {name: (1 - _MOMENTUM) * statistics[name] + _MOMENTUM * new[name] for name in new}
    if layer.kind == "relu":
        return jnp.where(x >= 0, x, o["slope"] * x), statistics
    if layer.kind == "max_pool":
        return _pooled("max_pool", x, o), statistics
    if layer.kind == "global_average":
        return x.mean((1, 2), keepdims=True), statistics
    return (x + inputs[1] if layer.kind == "addition" else jnp.concatenate(inputs, 3)), statistics


def _initial(network: Network) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Parameters and running statistics per layer."""
    import jax.numpy as jnp

    from mpsnn.bench.networks import layer_shapes

    shapes = layer_shapes(network)
    values: list[dict[str, Any]] = []
    statistics: list[dict[str, Any]] = []
    for layer, arrays, shape in zip(network.layers, parameters(network), shapes, strict=True):
        p = {"weights": jnp.asarray(np.moveaxis(arrays["weights"], 0, 3))} if "weights" in arrays else {}
        if "biases" in arrays:
            p["biases"] = jnp.asarray(arrays["biases"])
        is_normalization = layer.kind == "batch_norm"
        zeros, ones = jnp.zeros(shape[3]), jnp.ones(shape[3])
        if is_normalization:
            p = {"gamma": ones, "beta": zeros}
        values.append(p)
        statistics.append({"mean": zeros + 0, "variance": ones + 0} if is_normalization else {})
    return values, statistics


def _loss(network: Network, values: Any, statistics: Any, x: Any, targets: Any) -> tuple[Any, Any]:
    import jax

    results: list[Any] = []
    behind = []
    for layer, p, s in zip(network.layers, values, statistics, strict=True):
        y, new = _apply(layer, [results[i] if i >= 0 else x for i in layer.sources], p, s)
        results.append(y)
        behind.append(new)
    last = results[-1]
    if network.classes is None:
        return ((last - targets) ** 2).mean(), behind
    logs = jax.nn.log_softmax(last.reshape(last.shape[0], -1))
    return -jax.numpy.take_along_axis(logs, targets[:, None], 1).mean(), behind


def step(case: StepCase, options: dict[str, Any]) -> dict[str, Timed]:
    import jax

    network = case.build()
    images, targets = (jax.numpy.asarray(array) for array in batch(network))
    state = [*_initial(network)]

    @partial(jax.jit, donate_argnums=(0, 1))
    def train(values: Any, statistics: Any, x: Any, y: Any) -> Any:
        function = partial(_loss, network)
        (loss, statistics), gradients = jax.value_and_grad(function, has_aux=True)(values, statistics, x, y)
        values = jax.tree_util.tree_map(lambda v, g: v - network.learning_rate * g, values, gradients)
        return values, statistics, loss

    def one_step() -> float:
        state[0], state[1], loss = train(state[0], state[1], images, targets)
        return float(loss)

    def weights() -> list[Any]:
        return [np.moveaxis(np.array(p["weights"]), 3, 0) for p in state[0] if "weights" in p]

    before, losses, changes = weights(), [], []
    for number in range(options.get("steps", 3)):
        losses.append(one_step())
        if number == 0:
            changes = [np.ravel(b - a) for a, b in zip(before, weights(), strict=True)]
    outputs = {"losses": np.array(losses), "weight changes": np.concatenate(changes)}
    return {"NHWC": Timed(lambda seconds: repeat(one_step, seconds), outputs)}
