# SPDX-License-Identifier: Apache-2.0
"""What the comparisons with PyTorch share. Images are N, H, W, C here and N, C, H, W there."""

import numpy as np
import torch
from geometry_cases import Edge

torch.set_num_threads(1)  # the cases are tiny


def tensor(array, grad=True):
    """A float64 leaf in PyTorch's order."""
    result = torch.from_numpy(np.ascontiguousarray(np.moveaxis(np.asarray(array, np.float64), 3, 1)))
    return result.requires_grad_(grad)


def plain(array, grad=True):
    return torch.from_numpy(np.array(array, np.float64)).requires_grad_(grad)


def array(tensor):
    """Back to N, H, W, C."""
    return np.moveaxis(tensor.detach().numpy(), 1, 3)


def padded(x, axes, edge):
    """What windows read, laid out so that PyTorch needs no padding: pixels outside repeat the edge (Clamp) or are 0; pixels
    in front of the first window or behind the last one are left out."""
    for dimension, axis in zip((2, 3), axes, strict=True):
        last = (axis.output - 1) * axis.stride + (axis.kernel - 1) * axis.dilation
        index = torch.arange(-axis.before, last - axis.before + 1)
        x = x.index_select(dimension, index.clamp(0, axis.input - 1))
        if edge == Edge.Zero:
            inside = ((index >= 0) & (index < axis.input)).to(x.dtype)
            x = x * inside.reshape([-1 if d == dimension else 1 for d in range(4)])
    return x


def backward(result, incoming):
    """Runs PyTorch's autograd from an incoming gradient in our order."""
    result.backward(tensor(incoming, grad=False))
