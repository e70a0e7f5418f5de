# SPDX-License-Identifier: Apache-2.0
"""How much Winograd's convolution enlarges rounding errors, from its interpolation points."""

import numpy as np

FAST_POINTS = (0, 3 / 4, -3 / 4, 3 / 2, -3 / 2)  # F(4, 3) and F(2, 5), with infinity
STRICT_POINTS = (0, 1, -1)  # F(2, 3)


def matrices(points, outputs, taps):
    """A, G and B of Toom and Cook's algorithm: y = A^T ((G w) * (B^T d)), for finite points and infinity."""
    points, size = np.array(points, float), outputs + taps - 1
    a, g, b = np.zeros((size, outputs)), np.zeros((size, taps)), np.zeros((size, size))
    for i, point in enumerate(points):
        others = np.delete(points, i)
        a[i] = point ** np.arange(outputs)
        g[i] = point ** np.arange(taps) / np.prod(point - others)
        b[: size - 1, i] = np.poly(others)[::-1]
    a[-1, -1] = g[-1, -1] = 1
    b[:, -1] = np.poly(points)[::-1]
    return a, g, b


def amplification(points, outputs, taps):
    """Errors of products at the positions of a tile, relative to those of a direct sum, as they arrive in the result: for
    independent numbers of one size, the root of the mean square, which is the same for all three passes. Two axes multiply."""
    a, g, b = matrices(points, outputs, taps)
    along_axis = np.sum(np.sum(a**2, 1) * np.sum(g**2, 1) * np.sum(b**2, 0)) / (outputs * taps)
    return float(along_axis)  # the square of its root: two axes


def fast_amplification(kernel):
    """That of the tiles which precision "fast" takes for kernels of 3 x 3 and 5 x 5."""
    return amplification(FAST_POINTS, 4, 3) if kernel == 3 else amplification(FAST_POINTS, 2, 5)


def relative_error_bound(kernel, precision, terms):
    """``amplification * sqrt(terms) * epsilon``: as a direct sum of that many terms may be off, times the amplification. In
    strict mode the amplification of F(2 x 2, 3 x 3) is no excuse: the bound is that of a direct sum over all taps."""
    if precision == "strict":
        return float(np.sqrt(kernel * kernel * terms) * np.finfo(np.float32).eps)
    return float(fast_amplification(kernel) * np.sqrt(terms) * np.finfo(np.float32).eps)
