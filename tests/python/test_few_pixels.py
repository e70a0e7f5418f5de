# SPDX-License-Identifier: Apache-2.0
"""Convolutions of few pixels read their weights where they lie (cpp/src/backends/cpu/patches.cpp): numbers of pixels on both sides of
each change of the way they are multiplied, windows that copy, repeat and skip pixels."""

import numpy as np
import pytest
from convolution_cases import (
    assert_same_bits_for_any_number_of_threads,
    compare_engines,
    convolution,
    descriptor_of,
    weights_of,
)
from engines import Network
from geometry_cases import Edge, Method, Padding, WindowCase

ONE, TWO = (1, 1), (2, 2)
CASES = {
    "one pixel": WindowCase(1, 3, 3, 37, (3, 3), ONE, ONE, Padding(Method.SizeValidOnly), outputs=70),
    "images of one pixel": WindowCase(6, 3, 3, 64, (3, 3), ONE, ONE, Padding(Method.SizeValidOnly), outputs=65),
    "half a vector": WindowCase(2, 2, 2, 130, (3, 3), ONE, ONE, Padding(Method.SizeSame), outputs=97),
    "a vector": WindowCase(1, 3, 5, 70, (3, 3), ONE, ONE, Padding(Method.SizeSame), outputs=66),
    "two vectors": WindowCase(3, 3, 3, 140, (3, 3), ONE, ONE, Padding(Method.SizeSame), outputs=80),
    "few outputs": WindowCase(3, 3, 3, 140, (3, 3), ONE, ONE, Padding(Method.SizeSame), outputs=9),
    "strided": WindowCase(5, 8, 7, 33, (3, 3), TWO, ONE, Padding(Method.SizeSame), outputs=68),
    "strided, one tap": WindowCase(4, 7, 6, 64, (1, 1), TWO, ONE, outputs=72),
    "dilated": WindowCase(2, 9, 10, 19, (3, 2), ONE, TWO, Padding(Method.SizeSame), outputs=64),
    "cropped": WindowCase(4, 9, 9, 40, (3, 3), ONE, ONE, Padding(explicit_y=(-2, 1), explicit_x=(3, -4)), outputs=75),
    "clamped": WindowCase(3, 5, 4, 48, (3, 5), TWO, ONE, Padding(Method.SizeSame, edge=Edge.Clamp), outputs=64),
    "many": WindowCase(5, 7, 7, 70, (3, 3), ONE, ONE, Padding(Method.SizeSame), outputs=83),
    "streamed": WindowCase(2, 2, 2, 512, (3, 3), ONE, ONE, Padding(Method.SizeSame), outputs=460),
}


def build_of(case, absolute=False):
    return convolution(weights_of(descriptor_of(case), case.seed, absolute), case.padding.policy())


@pytest.mark.parametrize("name", CASES)
def test_the_engines_agree_for_few_pixels(name, monkeypatch):
    monkeypatch.setenv("MPSNN_CONV", "patches")
    case = CASES[name]
    result = (case.images, *case.result_size(), case.outputs)
    graph, shapes = Network("cpu", build_of(case)).graph, {"input 0": case.shape, "incoming": result}
    operations = graph.plan([shapes[handle] for handle in graph.source_image_handles]).operations
    pixels = case.images * int(np.prod(case.result_size()))
    for operation in (o for o in operations if o.operation.startswith("Convolution")):
        if pixels <= 8 and case.outputs >= 64:
            assert operation.reason == "MPSNN_CONV"
        elif operation.reason != "MPSNN_CONV":  # what an instruction set multiplies in place depends on its registers
            obstacles = ["more than", "few outputs"] if case.outputs < 64 else ["more than"]
            assert any(f"not patches: {obstacle}" in operation.reason for obstacle in obstacles)
    compare_engines(case, lambda absolute: build_of(case, absolute), result)


@pytest.mark.parametrize("name", ["one pixel", "a vector", "strided", "clamped", "many", "streamed"])
def test_the_number_of_threads_changes_no_bit_for_few_pixels(name, monkeypatch):
    monkeypatch.setenv("MPSNN_CONV", "patches")
    case = CASES[name]
    result = (case.images, *case.result_size(), case.outputs)
    assert_same_bits_for_any_number_of_threads(build_of(case), case.shape, result)
