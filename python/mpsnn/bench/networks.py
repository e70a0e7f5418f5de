# SPDX-License-Identifier: Apache-2.0
"""Networks as lists of layers, which every framework of the benchmark builds from: the same work on all sides.

>>> network = NETWORKS["lenet"](2)
>>> network.input_shape, network.layers[0].kind, network.layers[0].options["outputs"]
((2, 28, 28, 1), 'convolution', 20)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Layer:
    """One layer. `sources` are positions of earlier layers in the network, -1 for its input.

    Kinds and their options: convolution (outputs, kernel, stride, padding, groups, has_bias), transposed (outputs, kernel,
    stride), batch_norm, relu (slope), max_pool (kernel, stride, padding), global_average, fully_connected (outputs),
    addition, concatenation.
    """

    kind: str
    sources: list[int]
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class Network:
    """Layers in order, and a loss: softmax cross-entropy over `classes`, or the mean squared error where that is None."""

    name: str
    input_shape: tuple[int, int, int, int]
    classes: int | None
    layers: list[Layer] = field(default_factory=list)
    learning_rate: float = 1e-3

    def add(self, kind: str, *sources: int, **options: Any) -> int:
        """Adds a layer behind `sources`, or behind the last one; returns its position."""
        self.layers.append(Layer(kind, list(sources) or [len(self.layers) - 1], options))
        return len(self.layers) - 1

    def convolution(self, outputs: int, kernel: int, stride: int = 1, source: int | None = None, **options: Any) -> int:
        options = {"padding": kernel // 2, "groups": 1, "has_bias": True, **options}
        sources = [] if source is None else [source]
        return self.add("convolution", *sources, outputs=outputs, kernel=kernel, stride=stride, **options)

    def block(self, outputs: int, kernel: int = 3, stride: int = 1, slope: float | None = 0.0, **options: Any) -> int:
        """Convolution, batch normalization and, unless `slope` is None, a ReLU."""
        last = self.convolution(outputs, kernel, stride, has_bias=False, **options)
        last = self.add("batch_norm", last)
        return last if slope is None else self.add("relu", last, slope=slope)

    def max_pool(self, kernel: int, stride: int, padding: int = 0) -> int:
        return self.add("max_pool", kernel=kernel, stride=stride, padding=padding)


def lenet(images: int = 64, size: int = 28) -> Network:
    n = Network("lenet", (images, size, size, 1), 10)
    for outputs in (20, 50):
        n.convolution(outputs, 5, padding=0)
        n.max_pool(2, 2)
    n.add("fully_connected", outputs=500)
    n.add("relu", slope=0.0)
    n.add("fully_connected", outputs=10)
    return n


def vgg(images: int = 64, size: int = 32) -> Network:
    n = Network("vgg", (images, size, size, 3), 10)
    for outputs in (64, 128, 256):
        for _ in range(2):
            n.convolution(outputs, 3)
            n.add("relu", slope=0.0)
        n.max_pool(2, 2)
    n.add("fully_connected", outputs=512)
    n.add("relu", slope=0.0)
    n.add("fully_connected", outputs=10)
    return n


def resnet18(images: int = 8, size: int = 224) -> Network:
    n = Network("resnet18", (images, size, size, 3), 1000)
    n.block(64, 7, 2)
    last, channels = n.max_pool(3, 2, 1), 64
    for outputs, first_stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        for stride in (first_stride, 1):
            n.block(outputs, 3, stride, source=last)
            branch = n.block(outputs, slope=None)
            skip = last if stride == 1 and channels == outputs else n.block(outputs, 1, stride, None, source=last)
            n.add("addition", branch, skip)
            last, channels = n.add("relu", slope=0.0), outputs
    n.add("global_average")
    n.add("fully_connected", outputs=1000)
    return n


def tinyyolo(images: int = 4, size: int = 416) -> Network:
    n = Network("tinyyolo", (images, size, size, 3), None)
    for number, outputs in enumerate((16, 32, 64, 128, 256, 512, 1024, 1024)):
        n.block(outputs, slope=0.1)
        if number < 5:
            n.max_pool(2, 2)
    n.convolution(125, 1)
    return n


def mobilenet(images: int = 8, size: int = 224) -> Network:
    n = Network("mobilenet", (images, size, size, 3), 1000)
    n.block(32, 3, 2)
    channels = 32
    strides = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)
    for outputs, stride in zip((64, 128, 128, 256, 256, *[512] * 6, 1024, 1024), strides, strict=True):
        n.block(channels, 3, stride, groups=channels)
        n.block(outputs, 1)
        channels = outputs
    n.add("global_average")
    n.add("fully_connected", outputs=1000)
    return n


def unet(images: int = 4, size: int = 128) -> Network:
    n = Network("unet", (images, size, size, 3), None)
    skips = []
    for outputs in (32, 64, 128):
        n.block(outputs)
        skips.append(n.block(outputs))
        n.max_pool(2, 2)
    n.block(256)
    last = n.block(256)
    for outputs, skip in zip((128, 64, 32), reversed(skips), strict=True):
        last = n.add("transposed", last, outputs=outputs, kernel=2, stride=2)
        n.add("concatenation", skip, last)
        n.block(outputs)
        last = n.block(outputs)
    n.convolution(2, 1)
    return n


NETWORKS: dict[str, Callable[..., Network]] = {
    "lenet": lenet,
    "vgg": vgg,
    "resnet18": resnet18,
    "tinyyolo": tinyyolo,
    "mobilenet": mobilenet,
    "unet": unet,
}


def output_size(size: int, options: dict[str, Any]) -> int:
    """Pixels along one axis behind a convolution or pooling, as the geometry of graphs has them."""
    import mpsnn

    padded = size + 2 * options["padding"]
    return mpsnn.resolve_axis(
        mpsnn.MPSNNPaddingMethod.SizeValidOnly, padded, options["kernel"], options["stride"]
    ).output


def enlarged_size(size: int, kernel: int, stride: int) -> int:
    """Pixels along one axis behind a transposed convolution that crops nothing."""
    import mpsnn

    return mpsnn.resolve_reverse_axis(mpsnn.MPSNNPaddingMethod.SizeFull, size, kernel, stride).input


def layer_shapes(network: Network) -> list[tuple[int, int, int, int]]:
    """The shape of every layer's result, N x H x W x C."""
    shapes: list[tuple[int, int, int, int]] = []
    for layer in network.layers:
        images, height, width, channels = shapes[layer.sources[0]] if layer.sources[0] >= 0 else network.input_shape
        options = layer.options
        if layer.kind in ("convolution", "max_pool"):
            height, width = output_size(height, options), output_size(width, options)
            channels = options.get("outputs", channels)
        elif layer.kind == "transposed":
            kernel, stride, channels = options["kernel"], options["stride"], options["outputs"]
            height, width = enlarged_size(height, kernel, stride), enlarged_size(width, kernel, stride)
        elif layer.kind == "global_average":
            height = width = 1
        elif layer.kind == "fully_connected":
            height, width, channels = 1, 1, options["outputs"]
        elif layer.kind == "concatenation":
            channels = sum(shapes[source][3] for source in layer.sources)
        shapes.append((images, height, width, channels))
    return shapes


def flops(network: Network) -> float:
    """Floating-point operations of a training step: those of every layer that multiplies, forward and twice backward, but for the
    gradient of the images."""
    from math import prod

    shapes, total = layer_shapes(network), 0.0
    for layer, result in zip(network.layers, shapes, strict=True):
        source = shapes[layer.sources[0]] if layer.sources[0] >= 0 else network.input_shape
        o = layer.options
        if layer.kind == "convolution":
            products = prod(result) * o["kernel"] ** 2 * source[3] / o["groups"]
        elif layer.kind == "transposed":
            products = prod(source) * o["kernel"] ** 2 * o["outputs"]
        elif layer.kind == "fully_connected":
            products = float(prod(source) * o["outputs"])
        else:
            continue
        total += 2 * products * (2 if layer.sources[0] < 0 else 3)
    return total


def parameters(network: Network, seed: int = 0) -> list[dict[str, Any]]:
    """Per layer its arrays, drawn from `seed`: weights O x kH x kW x I/groups, biases O; nothing for layers without."""
    import numpy as np

    random = np.random.default_rng(seed)
    shapes, result = layer_shapes(network), []
    for layer in network.layers:
        _, height, width, channels = shapes[layer.sources[0]] if layer.sources[0] >= 0 else network.input_shape
        arrays: dict[str, Any] = {}
        if layer.kind in ("convolution", "transposed", "fully_connected"):
            if layer.kind != "fully_connected":
                height = width = layer.options["kernel"]
            shape = (layer.options["outputs"], height, width, channels // layer.options.get("groups", 1))
            fan_in = height * width * shape[3]
            arrays["weights"] = (random.standard_normal(shape) * np.sqrt(2 / fan_in)).astype(np.float32)
            if layer.options.get("has_bias", True):
                arrays["biases"] = np.zeros(shape[0], np.float32)
        result.append(arrays)
    return result


def batch(network: Network, seed: int = 1) -> tuple[Any, Any]:
    """Images, and class numbers or the targets of the squared error."""
    import numpy as np

    random = np.random.default_rng(seed)
    images = random.standard_normal(network.input_shape).astype(np.float32)
    if network.classes is None:
        return images, random.standard_normal(layer_shapes(network)[-1]).astype(np.float32)
    return images, random.integers(0, network.classes, network.input_shape[0])
