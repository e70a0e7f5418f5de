# SPDX-License-Identifier: Apache-2.0
"""Convolutions of sizes that the matrix unit is chosen for, where there is one: every way in which it reads a source, against the
engine that counts in float64."""

import mpsnn
import numpy as np
import pytest
from convolution_cases import (
    assert_same_bits_for_any_number_of_threads,
    compare_engines,
    convolution,
    descriptor_of,
    weights_of,
)
from engines import Network, normal, result_of
from geometry_cases import Edge, Method, Padding, WindowCase

ONE, TWO = (1, 1), (2, 2)
CASES = {
    "strided": WindowCase(2, 21, 19, 40, (3, 3), TWO, ONE, outputs=72),
    "strided unevenly": WindowCase(2, 20, 23, 33, (4, 3), (3, 2), ONE, Padding(Method.SizeFull), outputs=48),
    "small images joined": WindowCase(5, 7, 7, 64, (3, 3), ONE, ONE, outputs=40),
    "stride beyond the kernel": WindowCase(
        2, 18, 21, 64, (1, 2), (2, 3), ONE, Padding(Method.SizeValidOnly), outputs=48
    ),
    "dilated": WindowCase(2, 16, 17, 34, (3, 2), (2, 1), (2, 3), Padding(Method.SizeSame), outputs=64),
    "cropped and padded": WindowCase(
        2, 15, 18, 32, (3, 3), TWO, ONE, Padding(explicit_y=(-2, 3), explicit_x=(4, -1)), outputs=36
    ),
    "clamped": WindowCase(2, 14, 13, 48, (3, 5), TWO, ONE, Padding(Method.SizeSame, edge=Edge.Clamp), outputs=64),
    "woven": WindowCase(2, 24, 30, 3, (5, 5), ONE, ONE, outputs=64),
    "woven, clamped": WindowCase(
        2, 25, 30, 4, (7, 5), TWO, ONE, Padding(Method.SizeSame, edge=Edge.Clamp), outputs=128
    ),
    "groups": WindowCase(2, 15, 16, 128, (3, 3), TWO, ONE, groups=2, outputs=96),
    "merged groups": WindowCase(1, 13, 15, 192, (3, 3), ONE, ONE, groups=8, outputs=320),
    "channels in blocks": WindowCase(1, 20, 20, 608, (3, 3), TWO, ONE, outputs=32),
    "one channel": WindowCase(9, 29, 27, 1, (5, 5), ONE, ONE, outputs=20),
    "images abreast": WindowCase(7, 13, 12, 20, (5, 5), ONE, ONE, Padding(Method.SizeValidOnly), outputs=50),
    "images abreast, clamped": WindowCase(
        5, 15, 19, 7, (3, 4), TWO, ONE, Padding(Method.SizeSame, edge=Edge.Clamp), outputs=40
    ),
    "few channels": WindowCase(5, 41, 30, 3, (3, 3), TWO, ONE, outputs=12),
    "pointwise": WindowCase(2, 19, 17, 72, (1, 1), ONE, ONE, outputs=104),
    "pointwise, strided": WindowCase(2, 19, 17, 65, (1, 1), TWO, ONE, outputs=80),
}

# Winograd with weights that are transformed on the way: many channels, few tiles.
DEEP = {
    "odd sizes and channels": WindowCase(3, 13, 11, 147, (3, 3), ONE, ONE, Padding(Method.SizeSame), outputs=215),
    "blocks of tiles": WindowCase(9, 14, 9, 160, (3, 3), ONE, ONE, Padding(Method.SizeSame), outputs=160),
    "deep groups": WindowCase(5, 9, 10, 320, (3, 3), ONE, ONE, Padding(Method.SizeFull), groups=2, outputs=272),
    "deep, dilated": WindowCase(3, 14, 15, 192, (3, 3), ONE, TWO, Padding(Method.SizeSame), outputs=144),
    "deep, 5 x 5 taps": WindowCase(2, 9, 10, 160, (5, 5), ONE, ONE, Padding(Method.SizeSame), outputs=176),
    "deep and cropped": WindowCase(
        6, 12, 11, 144, (3, 3), ONE, ONE, Padding(explicit_y=(-1, 3), explicit_x=(2, -2)), outputs=160
    ),
}


def build_of(case, absolute=False):
    return convolution(weights_of(descriptor_of(case), case.seed, absolute), case.padding.policy())


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_engines_agree_in_every_way_of_reading(case, monkeypatch):
    monkeypatch.setenv("MPSNN_CONV", "gemm")
    result = (case.images, *case.result_size(), case.outputs)
    compare_engines(case, lambda absolute: build_of(case, absolute), result)


@pytest.mark.parametrize(
    "name",
    [
        "strided",
        "small images joined",
        "woven",
        "channels in blocks",
        "one channel",
        "images abreast",
        "few channels",
        "pointwise",
        *list(DEEP)[:3],
    ],
)
def test_the_number_of_threads_changes_no_bit(name, monkeypatch):
    monkeypatch.setenv("MPSNN_CONV", "winograd" if name in DEEP else "gemm")
    case = DEEP.get(name) or CASES[name]
    result = (case.images, *case.result_size(), case.outputs)
    assert_same_bits_for_any_number_of_threads(build_of(case), case.shape, result)


@pytest.mark.parametrize(("inputs", "outputs", "images"), [(70, 65, 33), (1100, 97, 47), (2100, 290, 20)])
def test_fully_connected_layers_of_many_images(inputs, outputs, images):
    case = WindowCase(images, 1, 1, inputs, (1, 1), ONE, ONE, outputs=outputs)

    def build(absolute):
        source = weights_of(descriptor_of(case), case.seed, absolute)

        def network(image):
            node = mpsnn.MPSCNNFullyConnectedNode(image, source)
            return node, [node]

        return network

    compare_engines(case, build, (images, 1, 1, outputs))


@pytest.mark.parametrize("case", DEEP.values(), ids=DEEP)
def test_the_engines_agree_where_weights_are_transformed_on_the_way(case, monkeypatch):
    monkeypatch.setenv("MPSNN_CONV", "winograd")
    result = (case.images, *case.result_size(), case.outputs)
    shapes = {"input 0": case.shape, "incoming": result}
    graph = Network("cpu", build_of(case)).graph
    algorithms = [o.algorithm for o in graph.plan([shapes[name] for name in graph.source_image_handles]).operations]
    if any("amx" in algorithm for algorithm in algorithms):
        assert any("weights on the way" in algorithm for algorithm in algorithms)
    compare_engines(case, lambda absolute: build_of(case, absolute), result)


def test_an_infinite_number_stays_visible(monkeypatch):
    monkeypatch.setenv("MPSNN_CONV", "gemm")
    case = CASES["strided"]
    x = normal(3, *case.shape)
    x[1, 4, 6, 7] = np.inf
    result, expected = (result_of(build_of(case), x, engine=engine) for engine in ("cpu", "reference"))
    assert not np.isfinite(result[~np.isfinite(expected)]).any()
    assert np.isfinite(result[0]).all()
