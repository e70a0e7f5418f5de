# SPDX-License-Identifier: Apache-2.0
"""Optimizers by name, for the Trainer and the command line."""

from __future__ import annotations

from typing import Any

import mpsnn
from mpsnn._errors import make_error

#: Names that `Trainer(optimizer=...)` and `mpsnn train --optimizer` take.
OPTIMIZERS = ("adam", "sgd", "momentum", "rmsprop")

# fmt: off
_RULE = ("momentum_scale", "use_nesterov_momentum", "beta1", "beta2", "epsilon", "decay", "uses_amsgrad", "gradient_rescale",
         "apply_gradient_clipping", "gradient_clip_max", "gradient_clip_min", "regularization_scale")
# fmt: on


def make_optimizer(name: str, learning_rate: float, device: Any = None) -> Any:
    """An optimizer by name: "adam", "sgd", "momentum" (SGD with 0.9) or "rmsprop".

    Raises OptionError with the list for another name.

    >>> type(make_optimizer("adam", 0.001)).__name__
    'MPSNNOptimizerAdam'
    """
    device = device or mpsnn.default_device()
    if name == "adam":
        return mpsnn.MPSNNOptimizerAdam(device, learning_rate)
    if name == "sgd":
        return mpsnn.MPSNNOptimizerStochasticGradientDescent(device, learning_rate)
    if name == "momentum":
        descriptor = mpsnn.MPSNNOptimizerDescriptor(learning_rate=learning_rate)
        return mpsnn.MPSNNOptimizerStochasticGradientDescent(device, 0.9, False, descriptor)
    if name == "rmsprop":
        return mpsnn.MPSNNOptimizerRMSProp(device, learning_rate)
    raise make_error("OptionError", f'there is no optimizer "{name}".', expected="one of " + ", ".join(OPTIMIZERS))


def describe_optimizer(optimizer: Any) -> dict[str, Any]:
    """What decides an optimizer's numbers, apart from its learning rate and its state."""
    known = {name: getattr(optimizer, name) for name in _RULE if hasattr(optimizer, name)}
    return {"class": type(optimizer).__name__, **known}
