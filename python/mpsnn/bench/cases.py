# SPDX-License-Identifier: Apache-2.0
"""The cases of the benchmark: single layers in every pass, and whole training steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mpsnn.bench.networks import enlarged_size, output_size

FORWARD, DATA, WEIGHTS = "forward", "data gradient", "weight gradient"


@dataclass(frozen=True)
class LayerCase:
    """One layer: `group` is the row of the summary that it belongs to."""

    name: str
    group: str
    kind: str
    shape: tuple[int, int, int, int]  # N x H x W x C
    outputs: int = 0
    kernel: int = 1
    stride: int = 1
    padding: int = 0
    groups: int = 1

    @property
    def passes(self) -> tuple[str, ...]:
        if self.kind in ("convolution", "transposed", "fully_connected"):
            return FORWARD, DATA, WEIGHTS
        if self.kind == "addition":
            return (FORWARD,)  # what comes in is the gradient: nobody computes it
        return ("forward and gradient",) if self.kind == "softmax_loss" else (FORWARD, DATA)

    @property
    def result_shape(self) -> tuple[int, int, int, int]:
        images, height, width, channels = self.shape
        if self.kind == "fully_connected":
            return images, 1, 1, self.outputs
        if self.kind == "transposed":
            height, width = (enlarged_size(size, self.kernel, self.stride) for size in (height, width))
            return images, height, width, self.outputs
        window = {"kernel": self.kernel, "stride": self.stride, "padding": self.padding}
        return images, output_size(height, window), output_size(width, window), self.outputs or channels

    @property
    def weights_shape(self) -> tuple[int, int, int, int]:
        height, width = (self.shape[1:3]) if self.kind == "fully_connected" else (self.kernel, self.kernel)
        return self.outputs, height, width, self.shape[3] // self.groups

    def sizes(self) -> tuple[float, float]:
        """Floating-point operations of a direct loop, and bytes of the smallest possible traffic, of one pass."""
        from math import prod

        values = prod(self.shape) + prod(self.result_shape)
        if self.kind not in ("convolution", "transposed", "fully_connected"):
            return 0.0, 4.0 * values
        pixels = prod(self.shape[:3] if self.kind == "transposed" else self.result_shape[:3])
        return 2.0 * pixels * prod(self.weights_shape), 4.0 * (values + prod(self.weights_shape))

    def text(self) -> str:
        text = f"{self.shape[1]}x{self.shape[2]}x{self.shape[3]}"
        if self.outputs:
            text += f" to {self.outputs}"
        if self.kind in ("convolution", "transposed", "max_pool", "average_pool", "l2_pool"):
            text += f", {self.kernel}x{self.kernel}" + (f" stride {self.stride}" if self.stride > 1 else "")
            text += f" padding {self.padding}" if self.padding else ""
        return text + (f", {self.groups} groups" if self.groups > 1 else "") + f", N {self.shape[0]}"


def _convolution(
    group: str, images: int, channels: int, size: int, outputs: int, kernel: int, **options: Any
) -> LayerCase:
    options = {"padding": kernel // 2, **options}
    parts = [f"{kernel}x{kernel}" + (f"s{options['stride']}" if options.get("stride", 1) > 1 else "")]
    parts.append(f"{channels}@{size}" if channels == outputs else f"{channels}>{outputs}@{size}")
    parts += [f"g{options['groups']}"] if options.get("groups", 1) > 1 and group != "depthwise" else []
    prefix = {"depthwise": "dw", "transposed": "transposed "}.get(group, "")
    kind = "transposed" if group == "transposed" else "convolution"
    return LayerCase(prefix + " ".join(parts), group, kind, (images, size, size, channels), outputs, kernel, **options)


def _depthwise(images: int, channels: int, size: int, **options: Any) -> LayerCase:
    kernel = options.pop("kernel", 3)
    return _convolution("depthwise", images, channels, size, channels, kernel, groups=channels, **options)


def _pool(kind: str, images: int, channels: int, size: int, kernel: int, stride: int, padding: int = 0) -> LayerCase:
    name = f"{kind} pool {kernel}x{kernel}s{stride} {channels}@{size}"
    options = {"kernel": kernel, "stride": stride, "padding": padding}
    return LayerCase(name, f"{kind} pool", f"{kind}_pool", (images, size, size, channels), **options)


def _plain(kind: str, group: str, images: int, channels: int, size: int) -> LayerCase:
    name = f"{group} {channels}@{size}" if size > 1 else f"{group} {images}x{channels}"
    return LayerCase(name, group, kind, (images, size, size, channels))


def _fully_connected(images: int, inputs: int, outputs: int) -> LayerCase:
    group = "fully connected batch 8" if images <= 8 else "fully connected"
    return LayerCase(f"fc {inputs}>{outputs} N{images}", group, "fully_connected", (images, 1, 1, inputs), outputs)


LARGE, DEEP, FEW = "3x3 large", "3x3 deep", "3x3 few channels"

# The sizes of well-known networks, and others of the same kinds, so that no kernel is tuned to a listed size alone.
LAYERS: list[LayerCase] = [
    *(_convolution(LARGE, n, c, s, o, 3) for n, c, s, o in (
        (8, 64, 56, 64), (8, 128, 28, 128), (4, 256, 56, 256), (1, 64, 224, 64), (64, 64, 32, 64), (8, 96, 40, 96),
        (6, 72, 35, 120), (8, 160, 30, 160))),
    *(_convolution(DEEP, n, c, s, o, 3) for n, c, s, o in (
        (8, 256, 14, 256), (8, 512, 7, 512), (8, 512, 14, 512), (4, 512, 13, 1024), (8, 384, 12, 256), (16, 320, 9, 320))),
    *(_convolution(FEW, n, c, s, o, 3) for n, c, s, o in ((2, 3, 224, 64), (4, 16, 208, 32), (8, 12, 60, 20))),
    *(_convolution("3x3 grouped", n, c, s, c, 3, groups=g) for n, c, s, g in ((8, 256, 14, 32), (8, 96, 28, 4))),
    *(_convolution("5x5", n, c, s, o, 5, padding=p) for n, c, s, o, p in (
        (64, 20, 12, 50, 0), (64, 32, 14, 64, 2), (64, 24, 12, 64, 0), (8, 64, 28, 64, 2), (16, 40, 21, 48, 2))),
    _convolution("5x5 few channels", 64, 1, 28, 20, 5, padding=0),
    *(_convolution("strided", n, c, s, o, k, stride=t) for n, c, s, o, k, t in (
        (8, 3, 224, 64, 7, 2), (8, 128, 56, 128, 3, 2), (8, 64, 56, 128, 3, 2), (8, 256, 28, 512, 3, 2), (8, 3, 224, 32, 3, 2),
        (8, 48, 45, 80, 5, 2))),
    *(_convolution("transposed", n, c, s, o, k, stride=2, padding=0) for n, c, s, o, k in (
        (8, 64, 32, 32, 4), (4, 128, 32, 64, 2), (8, 96, 20, 48, 4))),
    *(_convolution("1x1", n, c, s, o, 1) for n, c, s, o in (
        (8, 64, 56, 256), (8, 256, 56, 64), (8, 512, 28, 128), (8, 1024, 14, 256), (8, 2048, 7, 512), (8, 120, 30, 88))),
    *(_convolution("1x1 strided", 8, c, s, o, 1, stride=2) for c, s, o in ((256, 56, 512), (64, 56, 128))),
    *(_depthwise(8, c, s, **options) for c, s, options in (
        (32, 112, {}), (144, 56, {}), (384, 14, {}), (96, 112, {"stride": 2}), (240, 28, {"kernel": 5}), (72, 45, {"stride": 2}))),
    *(_pool("max", *rest) for rest in (
        (8, 64, 112, 3, 2, 1), (8, 64, 112, 2, 2), (64, 20, 24, 2, 2), (8, 192, 27, 3, 2), (4, 40, 61, 3, 1, 1))),
    *(_pool("average", *rest) for rest in ((8, 64, 112, 2, 2), (8, 64, 56, 3, 1, 1), (8, 2048, 7, 7, 7), (8, 96, 45, 3, 2, 1))),
    *(_pool("l2", *rest) for rest in ((8, 64, 112, 2, 2), (8, 96, 45, 3, 2))),
    *(_plain("batch_norm_relu", "batch norm + ReLU", 8, c, s) for c, s in ((64, 112), (256, 28), (512, 7), (48, 75))),
    *(_plain("batch_norm", "batch norm", 8, c, s) for c, s in ((64, 112), (256, 28), (512, 7))),
    *(_plain("cross_channel", "cross-channel norm", 8, c, s) for c, s in ((64, 56), (192, 28))),
    *(_plain(kind, group, 8, c, s) for kind, group in (
        ("relu", "ReLU"), ("sigmoid", "sigmoid"), ("tanh", "tanh"), ("exponential", "exponential"), ("elu", "ELU"),
        ("gelu", "GeLU"), ("addition", "addition"), ("dropout", "dropout")) for c, s in ((64, 112), (256, 28))),
    *(_plain("softmax_loss", "softmax + cross-entropy", n, c, 1) for n, c in ((64, 10), (64, 1000), (4096, 1000), (512, 137))),
    *(_fully_connected(*rest) for rest in (
        (8, 25088, 4096), (8, 4096, 1000), (64, 800, 500), (64, 2048, 1000), (64, 500, 10), (32, 1536, 700))),
]  # fmt: skip


@dataclass(frozen=True)
class StepCase:
    """A whole training step of a network from networks.py."""

    network: str
    images: int
    size: int

    @property
    def name(self) -> str:
        return f"{self.network} {self.size}x{self.size} N{self.images}"

    def build(self) -> Any:
        from mpsnn.bench.networks import NETWORKS

        return NETWORKS[self.network](self.images, self.size)


STEPS = [
    StepCase("lenet", 64, 28),
    StepCase("vgg", 64, 32),
    StepCase("resnet18", 8, 224),
    StepCase("tinyyolo", 4, 416),
    StepCase("mobilenet", 8, 224),
    StepCase("unet", 4, 128),
]
SCALING = {
    "batch": [StepCase("vgg", n, 32) for n in (8, 16, 32, 64)] + [StepCase("resnet18", n, 64) for n in (8, 16, 32, 64)],
    "image size": [StepCase("resnet18", 4, size) for size in (64, 128, 192, 256)],
}
