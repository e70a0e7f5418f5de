# SPDX-License-Identifier: Apache-2.0
"""The cases of `mpsnn check` in PyTorch, float64: images are N, C, H, W there. Imported only for --against torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

import mpsnn
from mpsnn.check_cases import Case, Window
from mpsnn.checking import GradientReport

Tensor = Any
_Edge = mpsnn.MPSImageEdgeMode


def _tensor(array: np.ndarray) -> Tensor:
    moved = np.moveaxis(np.asarray(array, np.float64), 3, 1) if np.ndim(array) == 4 else np.asarray(array, np.float64)
    return torch.from_numpy(np.ascontiguousarray(moved)).requires_grad_(True)


def _axes(window: Window) -> list[tuple[int, int, int, int]]:
    """(input, pixels in front of the first window, outputs, reach of a window) for y and x."""
    axes = []
    for i, name in enumerate("yx"):
        kernel, stride, dilation = window.kernel[i], window.stride[i], window.dilation[i]
        reach = (kernel - 1) * dilation + 1
        if window.explicit:
            before, after = window.explicit[2 * i : 2 * i + 2]
            starts = range(-before, window.size[i] + after - reach + 1, stride)
            axes.append((window.size[i], before, len(starts), reach))
        else:
            axis = mpsnn.resolve_axis(window.method, window.size[i], kernel, stride, dilation, name)
            axes.append((window.size[i], axis.before, axis.output, reach))
    return axes


def _read(x: Tensor, window: Window, outside: str) -> Tensor:
    """What the windows read, so that PyTorch needs no padding. Outside: "zero", "clamp" or "lowest"."""
    for dimension, (size, before, outputs, reach), stride in zip((2, 3), _axes(window), window.stride, strict=True):
        index = torch.arange(-before, (outputs - 1) * stride + reach - before)
        x = x.index_select(dimension, index.clamp(0, size - 1))
        if outside != "clamp":
            inside = ((index >= 0) & (index < size)).reshape([-1 if d == dimension else 1 for d in range(4)])
            x = torch.where(
                inside, x, torch.zeros(()).double() if outside == "zero" else torch.tensor(-torch.inf).double()
            )
    return x


def _kernel(p: dict[str, Tensor]) -> Tensor:
    return p["weights"].permute(0, 3, 1, 2)


def _convolution(x: Tensor, p: dict[str, Tensor], g: Any) -> Tensor:
    return F.conv2d(
        _read(x, g.window, "zero"),
        _kernel(p),
        p["biases"],
        stride=g.window.stride,
        dilation=g.window.dilation,
        groups=g.groups,
    )


def _transpose(x: Tensor, p: dict[str, Tensor], g: Any) -> Tensor:
    """PyTorch's result is ours for the whole reach; its kernel is ours turned by 180 degrees, inputs first."""
    kernel = _kernel(p)
    split = kernel.reshape(g.groups, -1, *kernel.shape[1:]).flip(3, 4).transpose(1, 2)
    whole = F.conv_transpose2d(
        x, split.reshape(x.shape[1], -1, *kernel.shape[2:]), stride=g.window.stride, groups=g.groups
    )
    for d, name in ((2, "y"), (3, "x")):
        axis = mpsnn.resolve_reverse_axis(
            g.window.method, g.window.size[d - 2], g.window.kernel[d - 2], g.window.stride[d - 2], name
        )
        front, back = max(0, -axis.before), max(0, axis.before + axis.input - whole.shape[d])
        whole = F.pad(whole, [front, back, 0, 0] if d == 3 else [0, 0, front, back]).narrow(
            d, axis.before + front, axis.input
        )
    return whole + p["biases"].reshape(1, -1, 1, 1)


def _max(x: Tensor, g: Any) -> Tensor:
    return F.max_pool2d(_read(x, g.window, "clamp"), g.window.kernel, g.window.stride, 0, g.window.dilation)


def _average(x: Tensor, g: Any) -> Tensor:
    """Over the edge the window shrinks (MPS_SEMANTICS 8.4)."""
    sums, counts = (
        F.avg_pool2d(_read(image, g.window, "zero"), g.window.kernel, g.window.stride)
        for image in (x, torch.ones_like(x))
    )
    return sums / counts


def _norm(x: Tensor, g: Any) -> Tensor:
    taps = g.window.kernel[0] * g.window.kernel[1]
    return (F.avg_pool2d(_read(x, g.window, "clamp") ** 2, g.window.kernel, g.window.stride) * taps).sqrt()


def _neuron(name: str, x: Tensor, g: Any) -> Tensor:
    a, b, c = g.a, g.b, g.c
    functions: dict[str, Callable[[], Tensor]] = {
        "Absolute": lambda: x.abs(),
        "ELU": lambda: F.elu(x, a),
        "ReLU": lambda: F.leaky_relu(x, a),
        "ReLUN": lambda: F.leaky_relu(x, a).clamp(max=b),
        "Linear": lambda: a * x + b,
        "Sigmoid": lambda: torch.sigmoid(x),
        "HardSigmoid": lambda: (a * x + b).clamp(0, 1),
        "SoftPlus": lambda: a * F.softplus(b * x),
        "SoftSign": lambda: F.softsign(x),
        "TanH": lambda: a * torch.tanh(b * x),
        "Power": lambda: (a * x + b) ** c,
        "Exponential": lambda: torch.exp((a * x + b) * (1 if c == -1 else np.log(c))),
        "Logarithm": lambda: torch.log(a * x + b) / (1 if c == -1 else np.log(c)),
        "GeLU": lambda: F.gelu(x),
        "PReLU": lambda: F.prelu(x, torch.from_numpy(np.asarray(g.slopes[0], np.float64))),
    }
    return functions[name]()


def _batch(x: Tensor, p: dict[str, Tensor], g: Any) -> Tensor:
    return F.batch_norm(
        x, p["mean"].detach(), p["variance"].detach(), p["gamma"], p["beta"], training=not g.fixed, eps=g.epsilon
    )


def _bilinear(x: Tensor, g: Any) -> Tensor:
    return F.interpolate(x, scale_factor=tuple(map(float, g.factors)), mode="bilinear", align_corners=g.aligned)


def _pad(x: Tensor, g: Any) -> Tensor:
    for dimension, which in ((1, 2), (2, 1), (3, 0)):
        size, index = x.shape[dimension], torch.arange(-g.before[which], x.shape[dimension] + g.after[which])
        if g.edge == _Edge.Mirror and size > 1:
            source = (index % (2 * size - 2)).where(
                index % (2 * size - 2) < size, 2 * size - 2 - index % (2 * size - 2)
            )
        elif g.edge == _Edge.MirrorWithEdge:
            source = (index % (2 * size)).where(index % (2 * size) < size, 2 * size - 1 - index % (2 * size))
        else:
            source = index.clamp(0, size - 1)
        x = x.index_select(dimension, source)
        if g.edge in (_Edge.Zero, _Edge.Constant):
            x = x * ((index >= 0) & (index < size)).double().reshape([-1 if d == dimension else 1 for d in range(4)])
    return x


def _mean(x: Tensor, g: Any) -> Tensor:
    if g.clip:
        left, top, width, height = g.clip
        x = x[:, :, top : top + height, left : left + width]
    return x.mean(dim=(2, 3), keepdim=True)


def _arithmetic(name: str, x: Tensor, y: Tensor, g: Any) -> Tensor:
    first, second = 0.75 * x, -1.25 * y
    result = {"Addition": first + second, "Subtraction": first - second, "Multiplication": first * second}[name] + 0.5
    return result.clamp(-1.0, 1.25) if g.clamps else result


def _loss(y: Tensor, t: Tensor, g: Any) -> Tensor:
    """Element losses, or sums per image, with the weight of the cases."""
    elements: dict[str, Callable[[], Tensor]] = {
        "MeanAbsoluteError": lambda: F.l1_loss(y, t, reduction="none"),
        "MeanSquaredError": lambda: F.mse_loss(y, t, reduction="none"),
        "SoftMaxCrossEntropy": lambda: -t * F.log_softmax(y, 1),
        "SigmoidCrossEntropy": lambda: F.binary_cross_entropy_with_logits(y, t, reduction="none"),
        "CategoricalCrossEntropy": lambda: -t * torch.log(y),
        "Hinge": lambda: F.relu(1 - (2 * t - 1) * y),
        "Huber": lambda: F.huber_loss(y, t, reduction="none", delta=0.75),
        "CosineDistance": lambda: -y * t,
        "Log": lambda: (
            -t * torch.log(y + float(np.float32(1e-3))) - (1 - t) * torch.log(1 - y + float(np.float32(1e-3)))
        ),
        "KullbackLeiblerDivergence": lambda: F.kl_div(y, t, reduction="none"),
    }
    loss = 0.5 * elements[g.kind]()
    return loss.sum(dim=(1, 2, 3), keepdim=True) if g.sums else loss


def _reshape(x: Tensor, g: Any) -> Tensor:
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], *g.size).permute(0, 3, 1, 2)


def _gram(x: Tensor, g: Any) -> Tensor:
    return g.alpha * torch.einsum("nfyx,ncyx->ncf", x, x).unsqueeze(2)


def _result(case: Case, images: list[Tensor], p: dict[str, Tensor], labels: list[np.ndarray]) -> Tensor | None:
    """None where PyTorch has no such operation."""
    name, x = case.node_class, images[0]
    g: Any = case.geometry
    if name.startswith("MPSCNNNeuron"):
        return _neuron(name[len("MPSCNNNeuron") : -len("Node")], x, g)
    if name in ("MPSNNAdditionNode", "MPSNNSubtractionNode", "MPSNNMultiplicationNode"):
        return _arithmetic(name[len("MPSNN") : -len("Node")], images[0], images[1], g)
    functions: dict[str, Callable[[], Tensor]] = {
        "MPSCNNConvolutionNode": lambda: _convolution(x, p, g),
        "MPSCNNFullyConnectedNode": lambda: F.conv2d(x, _kernel(p), p["biases"]),
        "MPSCNNConvolutionTransposeNode": lambda: _transpose(x, p, g),
        "MPSCNNPoolingMaxNode": lambda: _max(x, g),
        "MPSCNNDilatedPoolingMaxNode": lambda: _max(x, g),
        "MPSCNNPoolingAverageNode": lambda: _average(x, g),
        "MPSCNNPoolingL2NormNode": lambda: _norm(x, g),
        "MPSCNNCrossChannelNormalizationNode": lambda: F.local_response_norm(
            x, g.size, g.node.alpha, g.node.beta, g.node.delta
        ),
        "MPSCNNBatchNormalizationNode": lambda: _batch(x, p, g),
        "MPSCNNInstanceNormalizationNode": lambda: F.instance_norm(x, weight=p["gamma"], bias=p["beta"], eps=g.epsilon),
        "MPSCNNGroupNormalizationNode": lambda: F.group_norm(x, g.groups, p["gamma"], p["beta"], g.epsilon),
        "MPSCNNSoftMaxNode": lambda: F.softmax(x, 1),
        "MPSCNNLogSoftMaxNode": lambda: F.log_softmax(x, 1),
        "MPSNNConcatenationNode": lambda: torch.cat(images, 1),
        "MPSCNNUpsamplingNearestNode": lambda: x.repeat_interleave(g.factors[0], 2).repeat_interleave(g.factors[1], 3),
        "MPSCNNUpsamplingBilinearNode": lambda: _bilinear(x, g),
        "MPSNNReshapeNode": lambda: _reshape(x, g),
        "MPSNNPadNode": lambda: _pad(x, g),
        "MPSNNReductionSpatialMeanNode": lambda: _mean(x, g),
        "MPSNNGramMatrixCalculationNode": lambda: _gram(x, g),
        "MPSCNNLossNode": lambda: _loss(x, _tensor(labels[0]).detach(), g),
        "MPSNNForwardLossNode": lambda: _loss(x, images[1].detach(), g),
        "MPSNNInitialGradientNode": lambda: torch.tanh(x),
    }
    return functions[name]() if name in functions else None


def worst_difference(case: Case, report: GradientReport) -> float | None:
    """Largest error / tolerance of the engine's gradients against PyTorch's; None where PyTorch has no such operation."""
    images = [_tensor(image) for image in report.images]
    source = getattr(case.geometry, "source", None)
    parameters = {} if source is None else {name: _tensor_of(values) for name, values in source.values.items()}
    result = _result(case, images, parameters, report.labels)
    if result is None:
        return None
    incoming = torch.ones_like(result) if report.incoming is None else _tensor(report.incoming).detach()
    result.backward(incoming)
    worst = 0.0
    for row in report.rows:
        wanted = parameters.get(row.what)
        if wanted is None:
            number = int(row.what.split()[-1].rstrip('"'))
            gradient = np.moveaxis(images[number].grad.numpy(), 1, 3)
        else:
            gradient = wanted.grad.numpy()
        error = float(np.abs(row.gradient - gradient).max(initial=0))
        worst = max(
            worst,
            0.0 if error == 0 else float(np.float64(error) / row.engine_tolerance) if row.engine_tolerance else np.inf,
        )
    return worst


def _tensor_of(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(values, np.float64)).requires_grad_(True)
