# SPDX-License-Identifier: Apache-2.0
"""A long training holds no more memory than a short one, and nothing that was dropped stays."""

import gc
import os
import subprocess
import sys
import weakref
from pathlib import Path

import mpsnn
import numpy as np
import pytest
from graph_cases import STYLES, CpuSource, GpuSource, ThreeLayers, numbers, one_hot

# A step of the small net is given 4.6 KB of images and makes 2 KB of gradients: either of them leaked once per step is 1.6 MB and
# more over 800 steps. The allocator's own caches move by less than one megabyte.
MOST_GROWTH = 1 << 20

FLAT = """
import gc, sys
import mpsnn
from graph_cases import STYLES, CpuSource, GpuSource, ThreeLayers, numbers, one_hot

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * {page}

style = STYLES[sys.argv[1]]
kind = {{"own": None, "cpu": CpuSource, "gpu": GpuSource}}[sys.argv[2]]
norm = mpsnn.BatchNormalizationWeights(4, label="norm", optimizer=mpsnn.MPSNNOptimizerAdam(None, 0.01))
net = ThreeLayers({{"middle": kind(4, 3, label="middle")}} if kind else {{}}, style, normalization=norm)
queue = mpsnn.CommandQueue("cpu")
for step in range(1000):
    labels = mpsnn.MPSCNNLossLabels(one_hot(3, 16, seed=step))
    images = numbers(16, 6, 6, 2, seed=step)
    if step % 2:
        net.graph.run([images], [labels])
    else:
        buffer = queue.command_buffer()
        net.graph.encode(buffer, [images], [labels])
        buffer.add_completed_handler(lambda done: None)
        buffer.commit()
        buffer.wait_until_completed()
    if kind:
        net.sources[1].calls.clear()
    if step in (199, 999):
        gc.collect()
        print(resident())
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads resident memory from /proc")
@pytest.mark.parametrize(
    ("style", "kind"),
    [("UpdateDeviceGPU", "own"), ("UpdateDeviceCPU", "own"), ("UpdateDeviceGPU", "gpu"), ("UpdateDeviceCPU", "cpu")],
)
def test_resident_memory_is_flat_from_step_200_to_step_1000(style, kind):
    code = FLAT.format(page=os.sysconf("SC_PAGE_SIZE"))
    paths = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(
        [sys.executable, "-c", code, style, kind],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    early, late = map(int, done.stdout.split())
    assert late - early < MOST_GROWTH


@pytest.mark.parametrize(("style", "kind"), [(STYLES.UpdateDeviceGPU, GpuSource), (STYLES.UpdateDeviceCPU, CpuSource)])
def test_data_sources_graphs_arrays_and_handlers_die_with_their_last_user(style, kind):
    source = kind(4, 3, label="middle")
    net = ThreeLayers({"middle": source}, style)
    images, labels = numbers(8, 6, 6, 2), one_hot(3, 8)
    handler = lambda done: None
    alive = [weakref.ref(thing) for thing in (source, images, labels, handler)]
    buffer = mpsnn.CommandQueue("cpu").command_buffer()
    net.graph.encode(buffer, [images], [mpsnn.MPSCNNLossLabels(labels)])
    buffer.add_completed_handler(handler)
    buffer.commit()
    buffer.wait_until_completed()
    del images, labels, handler
    gc.collect()
    assert [reference() is None for reference in alive] == [False, True, True, True]
    del net, source, buffer
    gc.collect()
    assert alive[0]() is None


def test_what_a_buffer_that_never_ran_holds_dies_with_it():
    net, images = ThreeLayers(), numbers(8, 6, 6, 2)
    alive = weakref.ref(images)
    buffer = mpsnn.CommandQueue("cpu").command_buffer()
    net.graph.encode(buffer, [images], [mpsnn.MPSCNNLossLabels(one_hot(3, 8))])
    del images
    gc.collect()
    assert alive() is not None
    del buffer
    gc.collect()
    assert alive() is None


def test_handles_and_callbacks_die_with_their_nodes():
    class Tag:
        label = "tag"

    tag = Tag()
    alive = weakref.ref(tag)
    node = mpsnn.MPSCNNNeuronReLUNode(mpsnn.MPSNNImageNode(tag), 0.0)
    graph = mpsnn.MPSNNGraph("cpu", node.result_image)
    del tag, node
    gc.collect()
    assert alive() is not None
    graph.run([np.ones((1, 1, 1, 1), np.float32)])
    del graph
    gc.collect()
    assert alive() is None


def test_a_step_that_failed_holds_nothing():
    net, images = ThreeLayers(), np.full((8, 6, 6, 2), np.nan, np.float32)
    net.graph.trap_nonfinite = True
    alive = weakref.ref(images)
    with pytest.raises(mpsnn.DeviceError):
        net.graph.run([images], [mpsnn.MPSCNNLossLabels(one_hot(3, 8))])
    del images
    gc.collect()
    assert alive() is None
