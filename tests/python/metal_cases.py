# SPDX-License-Identifier: Apache-2.0
"""What the tests of the Metal engine share: the device, and the check that nothing of it is left."""

import ctypes
import gc

import mpsnn
import numpy as np
import pytest
from graph_cases import tolerance

METAL = next((device for device in mpsnn.devices() if device.name == "metal"), None)
IS_SIMULATED = METAL is not None and "simulat" in METAL.description.lower()
marks = [
    pytest.mark.metal,
    pytest.mark.skipif(METAL is None, reason=f"no Metal device: {mpsnn.metal_availability()}"),
]
simulated = pytest.mark.skipif(
    not IS_SIMULATED, reason="needs the simulator: configure with clang and -DMPSNN_METAL=ON on Linux"
)


def simulator():
    return ctypes.CDLL("libMetalSim.so")  # loaded already: the same library


def live_objects():
    """Toy objects that exist; the engine's device and queues of the process do not count."""
    gc.collect()
    count = simulator().mpsnn_sim_live_objects
    count.restype = ctypes.c_long
    return count()


def complaints(text):
    """What a test has left behind, with what it has written to stderr."""
    if "without pool" in text:
        yield "an object was autoreleased without a pool"
    if IS_SIMULATED and live_objects():
        simulator().mpsnn_sim_print_live_objects()
        yield f"{live_objects()} objects are left, listed on stderr"


@pytest.fixture(autouse=True)
def nothing_is_left(capfd):
    """Every object of the toy classes is gone after a test, and each was autoreleased into a pool."""
    yield
    assert list(complaints(capfd.readouterr().err)) == []


def both(build, *arrays, labels=None, device="metal"):
    """Results of the same graph on this device and on the reference engine."""
    results = []
    for name in (device, "reference"):
        graph = mpsnn.MPSNNGraph(name, build())
        states = None if labels is None else [mpsnn.MPSCNNLossLabels(labels)]
        result = graph.run(list(arrays), states)
        results.append([np.array(image.numpy()) for image in (result if isinstance(result, list) else [result])])
    return results


def assert_same(first, second, terms):
    for got, expected in zip(first, second, strict=True):
        assert got.shape == expected.shape
        assert np.abs(got - expected).max(initial=0) <= tolerance(expected, terms)
