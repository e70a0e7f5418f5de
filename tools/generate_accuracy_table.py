# SPDX-License-Identifier: Apache-2.0
"""Writes docs/accuracy.md: how far the algorithms of the cpu engine's convolutions are from float64, measured here and now.

python tools/generate_accuracy_table.py
"""

import os
import platform
import sys
from pathlib import Path

import mpsnn
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "python"))

from geometry_cases import Padding
from test_convolution_algorithms import inputs_of, run_layer
from winograd_error import FAST_POINTS, STRICT_POINTS, amplification

HEAD = """# Accuracy of convolutions

Written by `tools/generate_accuracy_table.py`: edit that, not this file.

With `graph.precision = "fast"`, the default, a convolution of 3 x 3 or 5 x 5 taps and stride 1 may be computed by Winograd's algorithm, which
multiplies less and rounds more; `graph.plan(...)` says where and why, and the environment variable `MPSNN_CONV` (`direct`, `gemm`, `patches`, `columns` or
`winograd`) forces an algorithm on every layer that it can do. With `"strict"` only algorithms run whose error is that of adding the products up
directly: F(2 x 2, 3 x 3) for the forward pass and the data gradient of 3 x 3 taps, matrix products for everything else. The choice is saved with
the graph.

**Bound.** Tests over generated geometry hold every pass of every algorithm to a relative error (of the whole result, root of the sum of squares) of
`amplification * sqrt(terms) * epsilon`, where `terms` is the number of channels or, in a weight gradient, of pixels that are added up, and
`epsilon` is 1.2e-7. The amplification follows from the interpolation points alone (`tests/python/winograd_error.py`):

| algorithm | points | amplification |
| --- | --- | ---: |
| direct sum (matrix product) | | 1 |
| F(2 x 2, 3 x 3) | 0, 1, -1, infinity | {strict:.1f} |
| F(4 x 4, 3 x 3) | 0, 3/4, -3/4, 3/2, -3/2, infinity | {fast:.1f} |
| F(2 x 2, 5 x 5) | the same | {five:.1f} |
| F(4 x 4, 3 x 3), not used | 0, 1, -1, 2, -2, infinity | {textbook:.1f} |

F(2 x 2, 3 x 3) is held to the bound of the direct sum over all taps all the same.

With the instruction set `amx`, matrix products are done by a unit for bfloat16 numbers. Each float32 number is split into three of them, which
together hold all of its 24 bits, and the six largest of the nine products are summed up in float32, the small ones first. What is left out is 2^-25 of a
product at most; sums are rounded less often than in a chain of float32 multiply-adds, so that the result is the more accurate one of the two
(`tests/cpp/matrix_unit.cpp` holds it to that). Two things differ from float32 arithmetic: an infinite operand gives NaN instead of infinity, and what is smaller
than 1.2e-38 counts as 0. `MPSNN_ISA=avx512` turns the unit off.

**Measured** against the `reference` engine (float64), normally distributed numbers, {machine}, instruction set {isa}. Relative error; in brackets
the largest error over the largest number.

| layer | algorithm | forward | data gradient | weight gradient |
| --- | --- | ---: | ---: | ---: |
"""

PADDING = {3: Padding(explicit_y=(1, 1), explicit_x=(1, 1)), 5: Padding(explicit_y=(2, 2), explicit_x=(2, 2))}
LAYERS = [((4, 28, 28, 64), 64, 3), ((4, 14, 14, 256), 256, 3), ((4, 7, 7, 512), 512, 3), ((8, 14, 14, 32), 64, 5)]
ALGORITHMS = [("gemm", "fast", "direct sum"), ("winograd", "strict", "strict"), ("winograd", "fast", "Winograd")]


def rows():
    for shape, outputs, kernel in LAYERS:
        layer = (shape, outputs, kernel, 1, 1, PADDING[kernel])
        inputs = inputs_of(layer)
        exact, _ = run_layer("reference", layer, "fast", inputs)
        for name, precision, title in ALGORITHMS:
            if kernel == 5 and precision == "strict":
                continue  # the direct sum
            os.environ["MPSNN_CONV"] = name
            got, _ = run_layer("cpu", layer, precision, inputs)
            cells = []
            for what, values in exact.items():
                difference = got[what] - values
                relative = np.linalg.norm(difference) / np.linalg.norm(values)
                cells.append(f"{relative:.1e} ({np.abs(difference).max() / np.abs(values).max():.1e})")
            images, height, width, channels = shape
            size = f"{kernel} x {kernel}, {channels} to {outputs} channels, {images} x {height} x {width}"
            yield f"| {size} | {title} | {' | '.join(cells)} |\n"


def main():
    head = HEAD.format(
        strict=amplification(STRICT_POINTS, 2, 3),
        fast=amplification(FAST_POINTS, 4, 3),
        five=amplification(FAST_POINTS, 2, 5),
        textbook=amplification((0, 1, -1, 2, -2), 4, 3),
        machine=platform.machine(),
        isa=mpsnn.instruction_set(),
    )
    (ROOT / "docs" / "accuracy.md").write_text(head + "".join(rows()))


if __name__ == "__main__":
    main()
