# SPDX-License-Identifier: Apache-2.0
"""Odd geometry for windowed nodes: what hypothesis draws, and the padding policies behind it."""

from dataclasses import dataclass, field

import mpsnn
from hypothesis import strategies as st
from mpsnn import MPSImageEdgeMode as Edge
from mpsnn import MPSNNPaddingMethod as Method

ALIGNMENTS = [Method.AlignCentered, Method.AlignTopLeft, Method.AlignBottomRight]
REMAINDERS = [
    Method.AddRemainderToTopLeft,
    Method.AddRemainderToTopRight,
    Method.AddRemainderToBottomLeft,
    Method.AddRemainderToBottomRight,
]
SIZES = [Method.SizeValidOnly, Method.SizeSame, Method.SizeFull]
METHODS = [size | align | remainder for size in SIZES for align in ALIGNMENTS for remainder in REMAINDERS]


class EdgePolicy(mpsnn.MPSNNPadding):
    """A policy written in Python: a method's sizes and offsets, with an edge mode of its own."""

    def __init__(self, method, edge):
        super().__init__()
        self.method = method
        self.edge = edge

    def padding_method(self):
        return self.method | Method.Custom

    def destination_image_descriptor(self, source_images, source_states, kernel, suggested_descriptor):
        kernel.edge_mode = self.edge
        return suggested_descriptor


@dataclass(frozen=True)
class Padding:
    """Bits of a method; or an explicit (before, after) per axis; or one of TensorFlow's policies."""

    method: Method = Method.SizeSame
    explicit_y: tuple = None
    explicit_x: tuple = None
    tensorflow: bool = False
    edge: Edge = None  # None: what the node has by itself
    excludes_edges: bool = False

    def policy(self):
        if self.explicit_y:
            (top, bottom), (left, right) = self.explicit_y, self.explicit_x
            return mpsnn.ExplicitPadding(left=left, right=right, top=top, bottom=bottom)
        if self.tensorflow and self.method & Method.SizeMask == Method.SizeSame:
            return mpsnn.MPSNNDefaultPadding.padding_for_tensorflow_average_pooling()
        if self.tensorflow:
            return mpsnn.MPSNNDefaultPadding.padding_for_tensorflow_average_pooling_valid_only()
        if self.edge is not None:
            return EdgePolicy(self.method, self.edge)
        return mpsnn.MPSNNDefaultPadding(self.method | Method.ExcludeEdges if self.excludes_edges else self.method)

    def edge_mode(self, default):
        if self.tensorflow:
            return Edge.Clamp
        return default if self.edge is None else self.edge


@dataclass(frozen=True)
class PlainAxis:
    """The fields of mpsnn.Axis, for explicit padding, which resolve_axis() has no bits for."""

    input: int
    output: int
    kernel: int
    stride: int
    dilation: int
    before: int


@dataclass(frozen=True)
class WindowCase:
    images: int
    height: int
    width: int
    channels: int
    kernel: tuple  # height, width, as all pairs here
    stride: tuple
    dilation: tuple
    padding: Padding = field(default_factory=Padding)
    seed: int = 0
    groups: int = 1
    outputs: int = 0  # output channels; 0 where the node keeps the channels

    @property
    def shape(self):
        return (self.images, self.height, self.width, self.channels)

    @property
    def taps(self):
        return self.kernel[0] * self.kernel[1]

    def axes(self):
        """(y, x) as the library resolves them."""
        return tuple(self._axis(i) for i in (0, 1))

    def _axis(self, i):
        input, kernel, stride, dilation = (self.height, self.width)[i], self.kernel[i], self.stride[i], self.dilation[i]
        explicit = (self.padding.explicit_y, self.padding.explicit_x)[i]
        if explicit:
            output = (input + sum(explicit) - ((kernel - 1) * dilation + 1)) // stride + 1
            return PlainAxis(input, output, kernel, stride, dilation, explicit[0])
        return mpsnn.resolve_axis(self.padding.method, input, kernel, stride, dilation, "yx"[i])

    def result_size(self):
        """(height, width) by the printed formulas (MPS_SEMANTICS 6.3), not by the library."""
        return tuple(self._result_size(i) for i in (0, 1))

    def _result_size(self, i):
        extent = (self.kernel[i] - 1) * self.dilation[i] + 1
        input = (self.height, self.width)[i]
        explicit = (self.padding.explicit_y, self.padding.explicit_x)[i]
        if explicit:
            return (input + sum(explicit) - extent) // self.stride[i] + 1
        style = {Method.SizeValidOnly: -1, Method.SizeSame: 0, Method.SizeFull: 1}[
            self.padding.method & Method.SizeMask
        ]
        return -(-(input + style * (extent - 1)) // self.stride[i])


def _axis_sizes(draw, largest, largest_kernel, dilates):
    size = draw(st.integers(1, largest))
    kernel = draw(st.integers(1, largest_kernel))
    stride = draw(st.integers(1, 4))
    dilation = draw(st.integers(1, 3)) if dilates else 1
    return size, kernel, stride, dilation


@st.composite
def paddings(draw, edges=False, tensorflow=True, explicit=True):
    kinds = (
        ["bits", "bits", "bits"] + ["tensorflow"] * tensorflow + ["explicit"] * explicit + ["edge", "exclude"] * edges
    )
    kind = draw(st.sampled_from(kinds))
    if kind == "tensorflow":
        size = draw(st.sampled_from([Method.SizeSame, Method.SizeValidOnly]))
        return Padding(size | Method.AddRemainderToBottomRight, tensorflow=True)
    if kind == "explicit":
        pair = st.tuples(st.integers(-2, 4), st.integers(-2, 4))
        return Padding(explicit_y=draw(pair), explicit_x=draw(pair))
    method = draw(st.sampled_from(SIZES)) | draw(st.sampled_from(ALIGNMENTS)) | draw(st.sampled_from(REMAINDERS))
    if kind == "edge":
        return Padding(method, edge=draw(st.sampled_from([Edge.Zero, Edge.Clamp])))
    return Padding(method, excludes_edges=kind == "exclude")


def _fitting(padding, sizes):
    """Where nothing would be left of the image, enlarges the padding (explicit) or the image (valid)."""
    fitted, explicit = [], []
    for i, (size, kernel, stride, dilation) in enumerate(sizes):
        extent = (kernel - 1) * dilation + 1
        pair = (padding.explicit_y, padding.explicit_x)[i]
        if pair:
            pair = (pair[0], max(pair[1], extent - size - pair[0]))
        elif padding.method & Method.SizeMask == Method.SizeValidOnly:
            size = max(size, extent)
        explicit.append(pair)
        fitted.append((size, kernel, stride, dilation))
    if padding.explicit_y:
        padding = Padding(explicit_y=explicit[0], explicit_x=explicit[1])
    return padding, fitted


@st.composite
def window_cases(
    draw,
    dilates=False,
    edges=False,
    largest=9,
    largest_kernel=4,
    convolves=False,
    tensorflow=True,
    explicit=True,
    empty=True,
):
    """Geometry shrinks first: hypothesis draws it before the seed of the numbers."""
    y = _axis_sizes(draw, largest, largest_kernel, dilates)
    x = _axis_sizes(draw, largest, largest_kernel, dilates)
    padding, (y, x) = _fitting(draw(paddings(edges, tensorflow, explicit)), [y, x])
    images = draw(st.sampled_from([1, 2, 0, 3] if empty else [1, 2]))
    groups, channels, outputs = 1, draw(st.sampled_from([1, 2, 3, 5, 8, 17])), 0
    if convolves:
        groups = draw(st.sampled_from([1, 1, 2, 3]))
        per_group = st.sampled_from([1, 2, 3, 7, 16, 17]) if largest > 5 else st.integers(1, 2)
        channels, outputs = groups * draw(per_group), groups * draw(per_group)
    elif largest <= 5:
        channels = min(channels, 3)
    sizes = zip(y, x, strict=True)
    (height, width), kernel, stride, dilation = sizes
    return WindowCase(
        images, height, width, channels, kernel, stride, dilation, padding, draw(st.integers(0, 2**16)), groups, outputs
    )
