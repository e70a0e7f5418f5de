# SPDX-License-Identifier: Apache-2.0
"""Concatenation appends feature channels, densely; its gradients are slices."""

import mpsnn
import numpy as np
import pytest
from engines import assert_differences_agree, assert_survives_saving, evaluate, normal
from hypothesis import given, settings
from hypothesis import strategies as st

ENGINES = pytest.mark.parametrize("engine", ["reference", "cpu"])


def concatenation(*images):
    return mpsnn.MPSNNConcatenationNode(list(images))


@ENGINES
@settings(max_examples=60)
@given(
    images=st.sampled_from([1, 2, 0]),
    height=st.integers(1, 4),
    width=st.integers(1, 5),
    channels=st.lists(st.sampled_from([1, 2, 3, 4, 5, 8, 17]), min_size=1, max_size=4),
    seed=st.integers(0, 2**16),
)
def test_channels_are_appended_and_gradients_cut_exactly(engine, images, height, width, channels, seed):
    """Nothing is computed, so every bit arrives; no channel is padded to a multiple of four."""
    dtype = np.float32 if engine == "cpu" else np.float64
    sources = [normal(seed + i, images, height, width, c) for i, c in enumerate(channels)]
    incoming = normal(seed + 9, images, height, width, sum(channels))
    got = evaluate(engine, concatenation, sources, incoming)
    assert got.result.shape == (images, height, width, sum(channels))
    assert got.result.tobytes() == np.concatenate(sources, axis=3).astype(dtype).tobytes()
    starts = np.cumsum([0, *channels])
    for gradient, start, count in zip(got.gradients, starts, channels, strict=False):
        assert gradient.tobytes() == np.ascontiguousarray(incoming[..., start : start + count].astype(dtype)).tobytes()


def test_gradients_are_central_differences():
    sources = [normal(i, 2, 2, 3, c) for i, c in enumerate((3, 1, 2))]
    assert_differences_agree(concatenation, sources, normal(5, 2, 2, 3, 6), curvature=0)


def test_a_saved_node_gives_the_same_bits():
    assert_survives_saving(concatenation, [normal(0, 2, 3, 4, 3), normal(1, 2, 3, 4, 2)], normal(2, 2, 3, 4, 5))


@ENGINES
def test_a_source_that_appears_twice_gets_both_slices(engine):
    x, incoming = normal(0, 1, 2, 2, 3), normal(1, 1, 2, 2, 6)
    got = evaluate(engine, lambda image: concatenation(image, image), [x], incoming)
    dtype = got.result.dtype
    first, second = incoming[..., :3].astype(dtype), incoming[..., 3:].astype(dtype)
    assert (got.gradients[0] == first + second).all()


@ENGINES
def test_there_is_one_state_per_source(engine):
    sources = [mpsnn.MPSNNImageNode(str(i)) for i in range(3)]
    node = mpsnn.MPSNNConcatenationNode(sources)
    assert len(node.result_states) == 3
    gradients = node.gradient_filters(mpsnn.MPSNNImageNode("incoming"))
    assert [type(gradient) for gradient in gradients] == [mpsnn.MPSNNConcatenationGradientNode] * 3
