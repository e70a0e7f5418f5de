# SPDX-License-Identifier: Apache-2.0
"""What the checks of the Metal code need on Linux: a compiler with blocks and the headers of metal-cpp. Tests skip without them."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
METAL_CPP = os.environ.get("MPSNN_METAL_CPP_DIR", "")


def need(*programs):
    for program in programs:
        if not shutil.which(program):
            pytest.skip(f"{program} is not installed")


def need_metal_cpp():
    """The folder of metal-cpp, or the test is skipped."""
    if not METAL_CPP or not (Path(METAL_CPP) / "Metal" / "Metal.hpp").exists():
        pytest.skip("MPSNN_METAL_CPP_DIR does not name a folder with metal-cpp: tools/fetch_metal_cpp.sh fetches it")
    return METAL_CPP


def need_linux_compiler():
    need("clang++")
    need_metal_cpp()
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        pytest.skip("the stub headers are for x86_64 Linux")


def run(*command, **options):
    """Runs a command; its output, both streams, is the message of a failure."""
    result = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert result.returncode == 0, f"{command}\n{result.stdout}{result.stderr}"
    return result.stdout


def clang(*arguments):
    """clang++ on sources that include mps-cpp, against the stub headers."""
    return [
        "clang++",
        "-std=c++17",
        "-fblocks",
        "-Wall",
        "-Wextra",
        "-Werror",
        f"-isystem{ROOT / 'tests' / 'metal' / 'linux_stubs'}",
        f"-isystem{METAL_CPP}",
        f"-I{ROOT / 'cpp' / 'mps-cpp'}",
        *map(str, arguments),
    ]


def python_tool(name, *arguments, **options):
    return run(sys.executable, ROOT / "tools" / name, *arguments, **options)
