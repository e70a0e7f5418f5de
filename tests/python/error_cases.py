# SPDX-License-Identifier: Apache-2.0
"""What tests of errors share: a graph that fails, and what every error must say."""

import numpy as np
import pytest
from mpsnn import MPSNNGraph


def run(node, *shapes, labels=()):
    """Names the node "culprit", and runs a graph that ends in it."""
    node.label = node.label or "culprit"
    return MPSNNGraph("cpu", node.result_image).run([np.zeros(shape, np.float32) for shape in shapes], list(labels))


def caught(kind, call, *texts, label=None, node=None):
    """The error that `call` raises; every text, the label and both facts must be in what a user reads."""
    with pytest.raises(kind) as info:
        call()
    error = info.value
    said = f"what was raised: {error!r}, label {error.label!r}, node {error.node!r}"
    assert type(error) is kind, said
    if label is not None:
        assert error.label == label, said
        assert label in str(error), said
    if node is not None:
        assert error.node == node, said
    for text in (*texts, error.expected, error.actual):
        assert text in str(error), f"{text!r} is missing; {said}"
    return error


def filled(shape=(1, 4, 4, 2)):
    return np.zeros(shape, np.float32)
