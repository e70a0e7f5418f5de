# SPDX-License-Identifier: Apache-2.0
"""Normalizations, resampling, padding and reductions against PyTorch's autograd in float64."""

import mpsnn
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is the oracle of this file and is not installed")

from engines import DTYPES, assert_close, evaluate, normal, result_of
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from mpsnn import MPSImageEdgeMode as Edge
from test_group_normalization import cases as group_cases
from test_group_normalization import normalization as affine
from test_group_normalization import parameters_of
from test_reduction import KINDS, NAMES, cases, clipped, parts, reduction, scale_of
from test_resampling import upsampling
from test_shape import gram, padding
from test_window_normalization import formulas, normalization
from torch.nn import functional as F
from torch_cases import array, backward, plain, tensor

pytestmark = pytest.mark.oracle

seeds = st.integers(0, 2**16)
shapes = st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6), st.sampled_from([1, 2, 3, 8, 17]))


def compare(build, x, result, image, incoming, result_size, gradient_size, terms):
    """`image`: PyTorch's leaf. Returns the evaluations for what else a test compares."""
    backward(result, incoming)
    found = {}
    for engine, dtype in DTYPES.items():
        got = found[engine] = evaluate(engine, build, [x], incoming)
        assert_close(got.result, array(result), result_size, terms, dtype)
        assert_close(got.gradients[0], array(image.grad), gradient_size, terms, dtype, "gradient")
    return found


@settings(max_examples=120)
@given(group_cases(), st.sampled_from([1e-3, 1e-5]))
def test_instance_and_group_normalization_are_those_of_pytorch(case, epsilon):
    """Result and the gradients of the image, gamma and beta. A difference from the mean is off by epsilon times the
    largest number, which the division by the deviation magnifies, in each of the gradient's factors."""
    kind, shape, groups, seed = case
    pixels = shape[1] * shape[2]
    m = pixels * shape[3] // groups
    assume(shape[0] > 0 and m > 1)  # PyTorch refuses statistics of one number
    x, incoming, source = (
        normal(seed, *shape),
        normal(seed + 1, *shape),
        parameters_of(kind, shape[3], groups, seed + 2, epsilon),
    )
    image, gamma, beta = tensor(x), plain(source.values["gamma"]), plain(source.values["beta"])
    precise = float(np.float32(epsilon))
    if kind == "instance":
        result = F.instance_norm(image, weight=gamma, bias=beta, eps=precise)
    else:
        result = F.group_norm(image, groups, gamma, beta, precise)
    members = x.reshape(*shape[:3], groups, shape[3] // groups)
    deviation = np.sqrt(members.var(axis=(1, 2, 4)).min() + precise)
    reach = (2 * np.abs(x).max() + np.sqrt(m)) / deviation + 1  # a normalized number is at most sqrt(m)
    slope = np.abs(incoming).max() * np.abs(source.values["gamma"]).max()
    size = np.abs(source.values["gamma"]) * reach + np.abs(source.values["beta"])
    found = compare(
        affine(kind, source), x, result, image, incoming, size, slope * reach * (1 + np.sqrt(m)) * 3 / deviation, m + 8
    )
    total = np.abs(incoming).sum(axis=(0, 1, 2))
    for engine, got in found.items():
        for name, leaf, one in (("gamma", gamma, reach), ("beta", beta, 1)):
            value = getattr(got.states[0], f"gradient_for_{name}")
            assert_close(value, leaf.grad.numpy(), total * one, m + shape[0] * pixels, DTYPES[engine], name)


@settings(max_examples=100)
@given(shapes, st.integers(1, 6), st.sampled_from([(1.0, 0.75, 1.0), (0.5, 2.0, 1.5), (3.0, 0.5, 0.5)]), seeds)
def test_cross_channel_normalization_is_pytorch_s_local_response(shape, size, constants, seed):
    """Even sizes lean to lower channels there too."""
    alpha, beta, delta = constants
    x, incoming = normal(seed, *shape), normal(seed + 1, *shape)
    image = tensor(x)
    result = F.local_response_norm(image, size, alpha, beta, delta)
    *_, result_size, gradient_size = formulas("channels", (1, size), x, incoming, alpha, beta, delta)
    build = normalization("channels", (1, size), alpha=alpha, beta=beta, delta=delta)
    compare(build, x, result, image, incoming, result_size, gradient_size, 2 * size + 16)


@pytest.mark.parametrize(("kind", "mode"), [("nearest", "nearest"), ("bilinear", "bilinear"), ("corners", "bilinear")])
@settings(max_examples=80)
@given(shapes, st.integers(1, 4), st.integers(1, 4), seeds)
def test_upsampling_is_pytorch_s_interpolation(kind, mode, shape, scale_y, scale_x, seed):
    """Half-pixel centres without aligned corners (OQ-34). A position is off by epsilon times itself."""
    x, incoming = normal(seed, *shape), normal(seed + 1, shape[0], shape[1] * scale_y, shape[2] * scale_x, shape[3])
    image = tensor(x)
    corners = None if kind == "nearest" else kind == "corners"
    result = F.interpolate(image, scale_factor=(scale_y, scale_x), mode=mode, align_corners=corners)
    moved = 1 + 2 * max(shape[1:3])
    taps = 9 * scale_y * scale_x
    compare(
        upsampling(kind, scale_y, scale_x),
        x,
        result,
        image,
        incoming,
        np.abs(x).max() * moved,
        np.abs(incoming).max() * taps * moved,
        taps + 8,
    )


MODES = {Edge.Zero: "constant", Edge.Constant: "constant", Edge.Clamp: "replicate", Edge.Mirror: "reflect"}


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
@settings(max_examples=60)
@given(shapes, st.tuples(*[st.integers(0, 5)] * 3), st.tuples(*[st.integers(0, 5)] * 3), seeds)
def test_pads_are_those_of_pytorch(mode, shape, before, after, seed):
    """PyTorch mirrors at most once and pads channels with constants only."""
    if mode == Edge.Mirror:
        (before, after) = (
            (*(min(b, s - 1) for b, s in zip(side[:2], shape[1:3], strict=True)), 0) for side in (before, after)
        )
    elif mode == Edge.Clamp:
        before, after = (*before[:2], 0), (*after[:2], 0)
    x = normal(seed, *shape)
    image, amounts = tensor(x), [before[1], after[1], before[0], after[0]]
    if MODES[mode] == "constant":
        result = F.pad(image, [*amounts, before[2], after[2]], value=0.625 if mode == Edge.Constant else 0.0)
    else:
        result = F.pad(image, amounts, mode=MODES[mode])
    incoming = normal(seed + 1, *array(result).shape)
    total = np.abs(incoming).sum(axis=(1, 2, 3), keepdims=True)
    compare(padding(mode, before, after, 0.625), x, result, image, incoming, 0, total, incoming[0].size)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=30)
@given(cases(images=(1, 2)))
def test_reductions_are_those_of_pytorch(name, case):
    shape, clip, seed = case
    x = normal(seed, *shape)
    read = clipped(x, clip)
    axes, kind = parts(name)
    image = tensor(x)
    order = {1: 2, 2: 3, 3: 1}
    given_pixels = tensor(read)
    dims = [order[axis] for axis in axes]
    if kind.startswith("Argument"):
        function = torch.argmax if kind == "ArgumentMax" else torch.argmin
        result = function(given_pixels, dim=1, keepdim=True).to(torch.float64)
    else:
        function = {"Min": torch.amin, "Max": torch.amax, "Mean": torch.mean, "Sum": torch.sum}[kind]
        result = function(given_pixels, dim=dims, keepdim=True)
    assert kind in KINDS
    for engine, dtype in DTYPES.items():
        got = result_of(reduction(name, clip), x, engine=engine)
        assert_close(got, array(result), scale_of(name, read), int(np.prod(read.shape[1:])) + 2, dtype)
    if name == "SpatialMean" and clip is None:
        incoming = normal(seed + 1, shape[0], 1, 1, shape[3])
        backward(image.mean(dim=dims, keepdim=True), incoming)
        for engine, dtype in DTYPES.items():
            got = evaluate(engine, reduction(name), [x], incoming)
            assert_close(got.gradients[0], array(image.grad), np.abs(array(image.grad)), 2, dtype, "gradient")


@settings(max_examples=60)
@given(shapes, st.sampled_from([1.0, 0.125]), seeds)
def test_a_gram_matrix_is_pytorch_s_product(shape, alpha, seed):
    x, incoming = normal(seed, *shape), normal(seed + 1, shape[0], 1, shape[3], shape[3])
    image = tensor(x)
    flat = image.flatten(2)  # N, C, pixels
    product = alpha * flat @ flat.transpose(1, 2)
    result = product.transpose(1, 2)[:, :, None, :]  # channel, 1, column
    size = alpha * (x * x).sum(axis=(1, 2)).max()
    gradient_size = alpha * 2 * np.abs(incoming).max() * np.abs(x).max() * shape[3]
    compare(gram(alpha), x, result, image, incoming, size, gradient_size, shape[1] * shape[2] + 2 * shape[3] + 2)


def test_the_lowest_channel_of_equals_is_pytorch_s_too():
    x = np.random.default_rng(0).integers(0, 3, (2, 5, 5, 6)).astype(np.float64)
    for kind, function in (("Max", torch.argmax), ("Min", torch.argmin)):
        expected = array(function(tensor(x), dim=1, keepdim=True).to(torch.float64))
        for engine in DTYPES:
            node = getattr(mpsnn, f"MPSNNReductionFeatureChannelsArgument{kind}Node")
            assert (result_of(node, x, engine=engine) == expected).all()
