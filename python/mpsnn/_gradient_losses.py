# SPDX-License-Identifier: Apache-2.0
"""What a gradient check must know of loss nodes and they do not tell: how they reduce. A saved graph does."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

import mpsnn


class Losses:
    """The loss nodes of a graph."""

    def __init__(self, nodes: list[Any]):
        self.nodes = nodes

    @cached_property
    def _saved(self) -> list[dict[str, Any]]:
        """The nodes as a file has them. Empty where the graph cannot be saved."""
        if not self.nodes:
            return []
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "graph.safetensors"
            try:
                mpsnn.MPSNNGraph("reference", [node.result_image for node in self.nodes]).save(path)
                nodes = json.loads(mpsnn.read_safetensors(path)[1]["mpsnn"])["graph"]["nodes"]
            except mpsnn.Error:
                return []
        return [node for node in nodes if "labels" in node]

    def no_difference(self) -> str:
        """Why differences of these losses cannot be taken; empty where they can."""
        if len(self._saved) != len(self.nodes):
            return "the graph cannot be saved, so the losses' reduction is not known"
        if any(_field(loss, "rescore") for loss in self._saved):
            return "a YOLO loss with rescore takes the overlap, which depends on the predictions, as a constant (MPS_SEMANTICS 14.6)"
        return ""

    def sums(self, labels: list[np.ndarray]) -> list[tuple[bool, float]]:
        """Per loss node: whether its loss image holds every element, and the factor that makes the loss the sum whose gradient
        MPS computes (MPS_SEMANTICS 14.3: the gradient takes no notice of the reduction)."""
        if len(self._saved) != len(self.nodes):
            return [(False, 1.0)] * len(labels)
        kinds, types = mpsnn.MPSCNNReductionType, mpsnn.MPSCNNLossType
        factors = []
        for loss, t in zip(self._saved, labels, strict=True):
            kind = kinds(_field(loss, "reduction_type"))
            count = math.prod(t.shape[1:])
            if kind == kinds.Mean and _field(loss, "loss_type") == types.SoftMaxCrossEntropy:
                count //= t.shape[3]
            count *= t.shape[0] if _field(loss, "reduce_across_batch") else 1
            factors.append(
                (kind == kinds.None_, float(count if kind in (kinds.Mean, kinds.SumByNonZeroWeights) else 1))
            )
        return factors


def _field(saved: Mapping[str, Any], name: str) -> Any:
    """A number of a saved node, wherever in it."""
    if name in saved:
        return saved[name]
    return next(
        (
            found
            for value in saved.values()
            if isinstance(value, Mapping) and (found := _field(value, name)) is not None
        ),
        None,
    )
