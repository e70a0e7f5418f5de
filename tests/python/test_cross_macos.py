# SPDX-License-Identifier: Apache-2.0
"""The macOS module and mps-cpp's programs, built on Linux with zig: they compile and link, and use only what the lists in
tools/cross_macos name. Nothing runs here: see docs/mps_cpp.md."""

import importlib.util
import re
import subprocess
import sys

import pytest
from metal_tools import ROOT, need, need_metal_cpp

TOOLS = ROOT / "tools" / "cross_macos"
sys.path.append(str(TOOLS))
import check_macho


@pytest.fixture(scope="module", autouse=True)
def _tools():
    need_metal_cpp()
    need("cmake", "ninja")
    for package in ("ziglang", "pybind11"):
        if not importlib.util.find_spec(package):
            pytest.skip(f"the Python package {package} is not installed")
    if not check_macho.find("llvm-otool"):
        pytest.skip("llvm-otool is not installed")


def build(arch, folder, *options):
    command = [sys.executable, TOOLS / "build.py", arch, folder, *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("arch", ["arm64", "x86_64"])
@pytest.mark.parametrize("program", ["mps_cpp_example", "live_table"])
def test_programs_of_mps_cpp(arch, program, tmp_path):
    result = build(arch, tmp_path, "--program", program)
    assert result.returncode == 0, result.stderr


def test_what_is_missing_or_not_allowed_is_reported(tmp_path):
    """A symbol taken out of a stub on purpose, a library and a CPU type that are not expected."""
    result = build("x86_64", tmp_path, "--program", "mps_cpp_example", "--without", "MPSSupportsMTLDevice")
    assert result.returncode == 1
    assert result.stderr.strip() == "mps_cpp_example: _MPSSupportsMTLDevice is in no library"
    complaints = "\n".join(check_macho.check(tmp_path / "mps_cpp_example", "arm64", "99.0", []))
    assert "is not for macOS 99.0 and later" in complaints
    assert "links /System/Library/Frameworks/Metal.framework/Versions/A/Metal" in complaints
    assert "has no code signature" in complaints


def test_messages_for_structs_that_arm64_does_not_have(monkeypatch, tmp_path):
    monkeypatch.setattr(check_macho, "undefined_symbols", lambda path: [("_objc_msgSend_stret", "libobjc", False)])
    program = tmp_path / "program"
    assert list(check_macho.symbol_complaints(program, "arm64")) == ["_objc_msgSend_stret does not exist on arm64"]
    assert list(check_macho.symbol_complaints(program, "x86_64")) == []


def test_what_apples_library_lacks_does_not_compile(tmp_path):
    """zig's own C++ library has std::from_chars for double; a Mac's has it since macOS 26."""
    result = subprocess.run(
        [
            sys.executable,
            "-c",
            "import build, pathlib, sys; p = pathlib.Path(sys.argv[1]); build.write_scripts(p, p, 'arm64')",
            tmp_path,
        ],
        cwd=TOOLS,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    source = tmp_path / "number.cpp"
    source.write_text(
        "#include <charconv>\nauto read(const char* a, const char* b, double& v) { return std::from_chars(a, b, v).ec; }\n"
    )
    command = [tmp_path / "zig-cxx", "-std=c++20", "-fsyntax-only", source]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert re.search(r"'from_chars' is unavailable: introduced in macOS", result.stderr)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["arm64", "x86_64"])
def test_the_python_module(arch, tmp_path):
    result = build(arch, tmp_path)
    assert result.returncode == 0, result.stderr
