# SPDX-License-Identifier: Apache-2.0
"""Optimizers against PyTorch's, where the formulas are the same."""

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is the oracle of this file and is not installed")

from engines import DTYPES, Network
from test_optimizers import (
    RATE,
    STEPS,
    Regularization,
    adam,
    assert_values_close,
    descriptor_of,
    gradients_of,
    pointwise,
    rmsprop,
    sgd,
)
from torch_cases import plain

pytestmark = pytest.mark.oracle
DECAY = 0.0625

# Plain momentum folds the learning rate into its history: the same steps as PyTorch's as long as the rate stays. Adam's
# epsilon is added after PyTorch corrects for the start and before ours does: so little of it that neither notices, but a
# gradient of 0 is not divided by 0.
EPSILON = 1e-30
CASES = {
    "descent": (sgd(), lambda p, decay: torch.optim.SGD(p, RATE, weight_decay=decay)),
    "momentum": (sgd(0.875), lambda p, decay: torch.optim.SGD(p, RATE, momentum=0.875, weight_decay=decay)),
    "nesterov": (
        sgd(0.875, nesterov=True),
        lambda p, decay: torch.optim.SGD(p, RATE, momentum=0.875, nesterov=True, weight_decay=decay),
    ),
    "rmsprop": (
        rmsprop(0.875, 0.125),
        lambda p, decay: torch.optim.RMSprop(p, RATE, alpha=0.875, eps=0.125, weight_decay=decay),
    ),
    "adam": (
        adam(0.875, 0.75, EPSILON),
        lambda p, decay: torch.optim.Adam(p, RATE, betas=(0.875, 0.75), eps=EPSILON, weight_decay=decay),
    ),
}


@pytest.mark.parametrize("engine", DTYPES)
@pytest.mark.parametrize("decay", [0, DECAY])
@pytest.mark.parametrize("rule", CASES)
def test_trained_weights_are_those_of_pytorch(engine, decay, rule):
    """Weight decay is what Apple calls L2 regularization."""
    (make, _), their_optimizer = CASES[rule]
    options = {"regularization_type": Regularization.L2, "regularization_scale": decay} if decay else {}
    source, build = pointwise(make(descriptor_of(options)))
    theirs = {name: plain(value) for name, value in source.values.items()}
    optimizer = their_optimizer(list(theirs.values()), decay)
    network = Network(engine, build)
    for t in range(1, STEPS + 1):
        x, incoming, gradients = gradients_of(t)
        for name, parameter in theirs.items():
            parameter.grad = plain(gradients[name], grad=False)
        optimizer.step()
        network.run([x], incoming)
    assert_values_close(source, {name: value.detach().numpy() for name, value in theirs.items()}, DTYPES[engine])
