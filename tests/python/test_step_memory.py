# SPDX-License-Identifier: Apache-2.0
"""A step of training takes nothing from the system: no memory from the allocator, no page from the kernel."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from mpsnn import _mpsnn
from mpsnn.bench import side_mpsnn
from mpsnn.bench.networks import NETWORKS, layer_shapes

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = Path(_mpsnn.__file__).parent / "lib" / "libmpsnn.so"
SIZES = {"lenet": 28, "vgg": 16, "resnet18": 32, "tinyyolo": 32, "mobilenet": 32, "unet": 32}
# Those with most weights take half a second a step, whatever the image: they stop earlier.
STEPS = {"resnet18": 15, "tinyyolo": 15}

pytestmark = [
    pytest.mark.compiler,
    pytest.mark.skipif(sys.platform != "linux" or not LIBRARY.exists(), reason="counts with glibc and getrusage"),
]


@pytest.fixture(scope="module")
def counter(tmp_path_factory):
    """The program that counts, built against the library that Python runs."""
    program = tmp_path_factory.mktemp("counter") / "step_memory"
    source = ROOT / "tests" / "cpp" / "step_memory.cpp"
    command = [os.environ.get("CXX", "c++"), "-std=c++20", "-O1", "-I", ROOT / "cpp" / "include", source, LIBRARY]
    subprocess.run([*command, f"-Wl,-rpath,{LIBRARY.parent}", "-o", program], check=True, capture_output=True)
    return program


def last_step(counter, folder, name, steps, images, size, threads="2"):
    """Allocations and page faults of one step."""
    network = NETWORKS[name](images, size)
    graph, _ = side_mpsnn.training_graph(network)
    path = folder / f"{name}.safetensors"
    graph.save(str(path))
    labels = layer_shapes(network)[-1] if network.classes is None else (images, 1, 1, network.classes)
    command = [counter, path, str(steps), *map(str, (*network.input_shape, *labels))]
    environment = {**os.environ, "MPSNN_NUM_THREADS": threads}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    allocations, faults = re.search(r"(\d+) allocations, (\d+) page faults", done.stdout).groups()
    return int(allocations), int(faults)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_late_step_allocates_nothing_and_meets_no_page_fault(counter, tmp_path, name):
    assert last_step(counter, tmp_path, name, STEPS.get(name, 100), 2, SIZES[name]) == (0, 0)


def test_the_counter_counts(counter, tmp_path):
    """The first step makes plan, arena and threads: a counter that sees none of it would pass the test above."""
    allocations, faults = last_step(counter, tmp_path, "lenet", 1, 2, 28)
    assert allocations > 100
    assert faults > 0
