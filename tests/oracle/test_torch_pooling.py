# SPDX-License-Identifier: Apache-2.0
"""Pooling against PyTorch's autograd, over generated geometry and tied maxima."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is the oracle of this file and is not installed")

from engines import DTYPES, assert_close, evaluate, normal, small_integers
from geometry_cases import Edge, window_cases
from hypothesis import given, settings
from test_pooling import gradient_bounds, pooling, result_bounds, without_dilation
from torch.nn import functional as F
from torch_cases import array, backward, padded, tensor

pytestmark = pytest.mark.oracle


def compare(kind, case, x, result, image, incoming):
    backward(result, incoming)
    value_scale, value_terms = result_bounds(kind, case, x)
    scale, terms = gradient_bounds(kind, case, x, incoming)
    for engine, dtype in DTYPES.items():
        got = evaluate(engine, pooling(kind, case), [x], incoming)
        assert_close(got.result, array(result), value_scale, value_terms, dtype)
        assert_close(got.gradients[0], array(image.grad), scale, terms, dtype, "gradient")


def incoming_of(case, result):
    return normal(case.seed + 1, *array(result).shape)


@pytest.mark.parametrize("kind", ["max", "dilated_max"])
@pytest.mark.parametrize("draw", [normal, small_integers])
@settings(max_examples=150)
@given(case=window_cases(dilates=True, edges=True, empty=False))
def test_maxima_and_the_pixel_that_takes_the_gradient_are_those_of_pytorch(kind, draw, case):
    """Ties included: PyTorch takes the first in row-major order too. Where zeros lie outside, a zero inside wins in our
    case only, so tied cases keep away from them."""
    case = case if kind == "dilated_max" else without_dilation(case)
    edge = case.padding.edge_mode(Edge.Clamp)
    x = draw(case.seed, *case.shape)
    if edge == Edge.Zero:
        x = np.where(x == 0, 0.5, x)
    image = tensor(x)
    read = padded(image, case.axes(), edge)
    result = F.max_pool2d(read, case.kernel, case.stride, dilation=case.dilation)
    compare(kind, case, x, result, image, incoming_of(case, result))


@settings(max_examples=200)
@given(case=window_cases(edges=True, empty=False))
def test_averages_are_those_of_pytorch_over_the_pixels_that_count(case):
    """Sums by PyTorch; how many pixels count, it counts itself: in an image of ones, with ones as far as edges are counted."""
    case = without_dilation(case)
    x, axes = normal(case.seed, *case.shape), case.axes()
    image = tensor(x)
    sums = F.avg_pool2d(padded(image, axes, Edge.Zero), case.kernel, case.stride, divisor_override=1)
    counts = torch.full_like(sums, case.taps)
    if case.padding.edge_mode(Edge.Clamp) == Edge.Clamp:
        for dimension, axis in zip((2, 3), axes, strict=True):
            # Pixels that count reach `counted` beyond the image, as far as the policy itself pads in front.
            counted = max(0, axis.before) if case.padding.excludes_edges else 0
            place = torch.arange((axis.output - 1) * axis.stride + axis.kernel) - axis.before
            inside = ((place >= -counted) & (place < axis.input + counted)).to(sums.dtype)
            taps = F.avg_pool1d(inside.reshape(1, 1, -1), axis.kernel, axis.stride).reshape(-1) * axis.kernel
            counts = counts / axis.kernel * taps.reshape([-1 if d == dimension else 1 for d in range(4)])
    result = torch.where(counts > 0, sums / counts.clamp(min=1), 0)
    compare("average", case, x, result, image, incoming_of(case, result))


@settings(max_examples=150)
@given(case=window_cases(edges=True, empty=False))
def test_norms_are_those_of_pytorch(case):
    """Away from 0, where PyTorch's root has no finite slope."""
    case = without_dilation(case)
    x = normal(case.seed, *case.shape)
    x += np.where(x < 0, -0.25, 0.25)
    image = tensor(x)
    read = padded(image, case.axes(), case.padding.edge_mode(Edge.Clamp))
    squares = F.avg_pool2d(read * read, case.kernel, case.stride, divisor_override=1)
    # A window that sees nothing has norm 0 and, by decision, gradient 0.
    result = torch.where(squares > 0, torch.where(squares > 0, squares, 1).sqrt(), 0)
    if case.padding.edge_mode(Edge.Clamp) == Edge.Clamp:
        assert torch.allclose(F.lp_pool2d(read, 2, case.kernel, case.stride), result)
    compare("l2_norm", case, x, result, image, incoming_of(case, result))
