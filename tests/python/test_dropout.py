# SPDX-License-Identifier: Apache-2.0
"""Dropout: what the mask keeps, how often, and that both directions and both engines share it."""

import mpsnn
import numpy as np
import pytest
from engines import DTYPES, Network, assert_close, assert_survives_saving, evaluate, normal, result_of
from hypothesis import given, settings
from hypothesis import strategies as st

ENGINES = pytest.mark.parametrize("engine", ["reference", "cpu"])


def dropout(keep=0.5, seed=0, stride=(1, 1, 1)):
    return lambda image: mpsnn.MPSCNNDropoutNode(image, keep, seed, stride)


def mask_of(keep, seed, stride, shape, engine="reference"):
    return result_of(dropout(keep, seed, stride), np.ones(shape), engine=engine) != 0


@settings(max_examples=60)
@given(
    st.sampled_from([0, 1, 3]),
    st.integers(1, 5),
    st.integers(1, 5),
    st.sampled_from([1, 3, 8, 17]),
    st.sampled_from([0.1, 0.5, 0.75]),
    st.tuples(*[st.integers(0, 1)] * 3),
    st.integers(0, 2**63),
)
def test_both_engines_and_both_directions_apply_one_mask(images, height, width, channels, keep, stride, seed):
    x, incoming = (
        normal(seed % 1000, images, height, width, channels),
        normal(seed % 1000 + 1, images, height, width, channels),
    )
    mask = mask_of(keep, seed, stride, x.shape)
    factor = mask / float(np.float32(keep))
    for engine, dtype in DTYPES.items():
        got = evaluate(engine, dropout(keep, seed, stride), [x], incoming)
        assert_close(got.result, x * factor, np.abs(x * factor), 2, dtype)
        assert_close(got.gradients[0], incoming * factor, np.abs(incoming * factor), 2, dtype)
        assert ((got.result != 0) == (mask & (x != 0))).all()


@pytest.mark.parametrize("stride", [(x, y, c) for x in (0, 1) for y in (0, 1) for c in (0, 1)])
def test_a_stride_of_zero_repeats_the_mask_along_that_dimension(stride):
    """mask_stride_in_pixels is (width, height, channels); images always differ."""
    mask = mask_of(0.5, 1, stride, (4, 16, 16, 16))
    for axis, step in ((2, stride[0]), (1, stride[1]), (3, stride[2]), (0, 1)):
        repeats = (mask == np.take(mask, [0], axis=axis)).all()
        assert repeats == (step == 0)


@ENGINES
@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9])
def test_elements_are_kept_as_often_as_the_probability_says(engine, keep):
    """The number kept is binomial: five deviations are exceeded once in two million seeds, and this seed is fixed."""
    mask = mask_of(keep, 42, (1, 1, 1), (4, 32, 32, 16), engine)
    deviation = np.sqrt(keep * (1 - keep) / mask.size)
    assert abs(mask.mean() - keep) <= 5 * deviation
    for axis in (0, 1, 2, 3):
        means = mask.mean(axis=tuple(a for a in range(4) if a != axis))
        assert np.abs(means - keep).max() <= 5 * deviation * np.sqrt(mask.shape[axis])


@ENGINES
def test_every_step_image_and_seed_has_another_mask_and_a_fresh_graph_repeats_them(engine):
    ones = np.ones((2, 8, 8, 4))
    network = Network(engine, dropout(0.5, 7), differentiate=False)
    steps = [network.run([ones]).result for _ in range(3)]
    masks = [image.tobytes() for step in steps for image in step]
    assert len(set(masks)) == 6
    again = Network(engine, dropout(0.5, 7), differentiate=False)
    assert [again.run([ones]).result.tobytes() for _ in range(3)] == [step.tobytes() for step in steps]
    again.graph.encode_count = 1
    assert again.run([ones]).result.tobytes() == steps[1].tobytes()
    assert result_of(dropout(0.5, 8), ones, engine=engine).tobytes() != steps[0].tobytes()


@ENGINES
def test_an_image_has_the_same_mask_in_a_batch_of_any_size(engine):
    large, small = (result_of(dropout(0.5, 3), np.ones((n, 4, 5, 6)), engine=engine) for n in (5, 2))
    assert large[:2].tobytes() == small.tobytes()


@ENGINES
def test_what_is_dropped_is_zero_even_where_the_number_was_not_finite(engine):
    x = np.full((1, 8, 8, 4), np.inf)
    mask = mask_of(0.5, 5, (1, 1, 1), x.shape)
    got = result_of(dropout(0.5, 5), x, engine=engine)
    assert (got[mask] == np.inf).all()
    assert (got[~mask] == 0).all()


def test_a_saved_node_gives_the_same_bits():
    assert_survives_saving(dropout(0.25, 2**63 + 5, (1, 0, 1)), [normal(0, 2, 3, 4, 5)], normal(1, 2, 3, 4, 5))
