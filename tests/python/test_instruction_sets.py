# SPDX-License-Identifier: Apache-2.0
"""Every instruction set computes the same: those of this machine are chosen with MPSNN_ISA, NEON is emulated."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
X86 = ("generic", "avx2", "avx512", "amx")
# Tests of everything that has code of its own for each instruction set.
SUBJECTS = (
    "convolution_algorithms",
    "pooling",
    "neuron",
    "batch_normalization",
    "binary_convolution",
    "fusion",
    "softmax",
)


def supported():
    """Of X86, what this machine has; the name that the engine says it uses tells."""
    names = []
    for name in X86:
        code = "import mpsnn; print(mpsnn.instruction_set())"
        environment = {**os.environ, "MPSNN_ISA": name}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
        if done.stdout.strip() == name:
            names.append(name)
    return names


@pytest.mark.slow
@pytest.mark.parametrize("name", X86)
def test_the_tests_of_kernels_hold_for_each_instruction_set(name):
    available = supported()
    if name not in available:
        pytest.skip(f"this machine has {', '.join(available)}")
    if name == available[-1]:
        pytest.skip("the default: all other tests run with it")
    files = [str(ROOT / "tests" / "python" / f"test_{subject}.py") for subject in SUBJECTS]
    environment = {**os.environ, "MPSNN_ISA": name}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False, env=environment)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


@pytest.mark.slow
@pytest.mark.compiler
@pytest.mark.skipif(
    not (shutil.which("aarch64-linux-gnu-g++") and shutil.which("qemu-aarch64") and shutil.which("cmake")),
    reason="needs g++-aarch64-linux-gnu and qemu-user",
)
def test_the_cpp_tests_pass_with_neon_emulated(tmp_path):
    """Training steps on both engines, among others: the numbers agree, and do not depend on the number of threads."""
    options = [
        "-DCMAKE_SYSTEM_NAME=Linux",
        "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
        "-DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++",
        "-DCMAKE_CROSSCOMPILING_EMULATOR=qemu-aarch64;-L;/usr/aarch64-linux-gnu",
        "-DCMAKE_UNITY_BUILD=ON",
        "-DMPSNN_TESTS=ON",
        "-DMPSNN_PYTHON=OFF",
    ]
    jobs = str(os.cpu_count())
    tests = ("test_graph", "test_optimizer", "test_kernels")
    for command in (
        ["cmake", "-S", ROOT, "-B", tmp_path, *options],
        ["cmake", "--build", tmp_path, "--parallel", jobs, "--target", *tests],
        [
            "ctest",
            "--test-dir",
            tmp_path,
            "--output-on-failure",
            "--no-tests=error",
            "-R",
            "^(graph|optimizer|kernels)$",
        ],
    ):
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=1500, check=False)
        assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-3000:]
    assert "100% tests passed" in done.stdout
