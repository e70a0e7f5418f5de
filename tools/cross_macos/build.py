# SPDX-License-Identifier: Apache-2.0
"""Builds for macOS on Linux and looks at the result: the Apple branches of C++ and CMake compile and link, and only libraries and
symbols of the lists below are used. A check of the build, not a release: Python's headers are Linux's, Apple's libraries are stubs.

python tools/cross_macos/build.py arm64 BUILD_FOLDER [--program NAME] [--without SYMBOL] [cmake options]

Needs the Python packages ziglang and pybind11, cmake, ninja, llvm, and MPSNN_METAL_CPP_DIR in the environment.
"""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

from check_macho import check, find

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
MINIMUM_MACOS = "13.0"
MODULE_SUFFIX = f".cpython-{sys.version_info.major}{sys.version_info.minor}-darwin.so"
FRAMEWORKS = "/System/Library/Frameworks"

PROGRAMS = {"mps_cpp_example": "examples/mps_cpp", "live_table": "tests/metal/live"}

#: {stub: (what it stands for, its symbols)}: exactly the C symbols that this project uses.
LIBRARIES = {
    "objc": (
        "/usr/lib/libobjc.A.dylib",
        (
            "objc_msgSend objc_lookUpClass objc_getProtocol objc_allocateClassPair objc_registerClassPair sel_registerName "
            "class_addMethod class_addIvar class_addProtocol class_getSuperclass class_getMethodImplementation "
            "class_getInstanceMethod class_getClassMethod class_getInstanceVariable class_getName ivar_getOffset method_getTypeEncoding object_getClass"
        ),
    ),
    "Foundation": (f"{FRAMEWORKS}/Foundation.framework/Versions/C/Foundation", ""),
    "Metal": (
        f"{FRAMEWORKS}/Metal.framework/Versions/A/Metal",
        "MTLCreateSystemDefaultDevice MTLCopyAllDevices MTLCopyAllDevicesWithObserver MTLRemoveDeviceObserver",
    ),
    "MetalPerformanceShaders": (
        f"{FRAMEWORKS}/MetalPerformanceShaders.framework/Versions/A/MetalPerformanceShaders",
        "MPSSupportsMTLDevice",
    ),
}
#: Messages that return structs or floats go through these on x86_64; an arm64 Mac does not have them.
OBJC_X86_64 = "objc_msgSend_stret objc_msgSend_fpret"


def write_stubs(folder, arch, without=""):
    """One .tbd for each library, as the linker of a Mac reads them from an SDK."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (install_name, symbols) in LIBRARIES.items():
        names = (symbols + " " + (OBJC_X86_64 if name == "objc" and arch == "x86_64" else "")).split()
        exported = ", ".join("_" + s for s in names if s != without)
        target = f"[ {arch}-macos ]"
        exports = f"exports:\n  - targets: {target}\n    symbols: [ {exported} ]\n" if exported else ""
        (folder / f"lib{name}.tbd").write_text(
            f"--- !tapi-tbd\ntbd-version: 4\ntargets: {target}\ninstall-name: '{install_name}'\n{exports}...\n"
        )


def write_scripts(folder, stubs, arch):
    """Compilers that take what CMake says to Apple's and say it to zig."""
    import ziglang

    # The program itself, not `python -m ziglang`: isolated builds do not see the package.
    zig = Path(ziglang.__file__).parent / "zig"
    target = {"arm64": "aarch64", "x86_64": "x86_64"}[arch] + f"-macos.{MINIMUM_MACOS}"
    folder.mkdir(parents=True, exist_ok=True)
    compiler = f"""#!/bin/bash
arguments=()
while [ $# -gt 0 ]; do
  case "$1" in
    -arch|-isysroot) shift ;;
    -bundle) arguments+=(-shared) ;;  # zig's linker crashes on bundles, and Python loads a dylib as well
    -framework) arguments+=("-l$2"); shift ;;  # zig looks for frameworks in an SDK only
    *) arguments+=("$1") ;;
  esac
  shift
done
# Availability: what Apple's C++ library of that macOS lacks is an error, although zig's own library has it.
exec "{zig}" COMMAND -target {target} -fno-sanitize=undefined -Wno-macro-redefined -D_LIBCPP_HAS_VENDOR_AVAILABILITY_ANNOTATIONS=1 \\
  -isystem "{HERE / "mac_stubs"}" -L"{stubs}" "${{arguments[@]}}"
"""
    texts = {"zig-c": compiler.replace("COMMAND", "cc"), "zig-cxx": compiler.replace("COMMAND", "c++")}
    texts |= {f"zig-{tool}": f'#!/bin/bash\nexec "{zig}" {tool} "$@"\n' for tool in ("ar", "ranlib")}
    for name, text in texts.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)


def cmake(arch, source, build, options):
    # cmake and ninja may be Python packages.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {
        "PATH": path,
        "ZIG_MACOS_ARCH": arch,
        "ZIG_SCRIPTS": str(build / "scripts"),
        "ZIG_OTOOL": find("llvm-otool") or "",
        "ZIG_INSTALL_NAME_TOOL": find("llvm-install-name-tool") or "",
    }
    configure = [
        "cmake",
        "-S",
        source,
        "-B",
        build,
        "-G",
        "Ninja",
        f"-DCMAKE_TOOLCHAIN_FILE={HERE / 'toolchain.cmake'}",
    ]
    # What is wanted is an answer in a minute: -O0 compiles the same code.
    configure += ["-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_CXX_FLAGS_RELEASE=-O0 -DNDEBUG", *options]
    # Python's symbols, and constants that metal-cpp asks for weakly, are in no stub; check_macho.py sees what else this hides.
    configure += [f"-DCMAKE_{kind}_LINKER_FLAGS=-undefined dynamic_lookup" for kind in ("EXE", "SHARED", "MODULE")]
    if directory := os.environ.get("MPSNN_METAL_CPP_DIR"):
        configure.append(f"-DMPSNN_METAL_CPP_DIR={directory}")
    for command in (configure, ["cmake", "--build", build]):
        command[0] = shutil.which("cmake", path=path) or sys.exit("cmake is missing")
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if result.returncode:
            sys.exit(f"{' '.join(map(str, command))}\n{result.stdout[-8000:]}\n{result.stderr[-8000:]}")


def module_options():
    import pybind11

    return [
        "-DMPSNN_PYTHON=ON",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        f"-DPYTHON_MODULE_EXTENSION={MODULE_SUFFIX}",
        "-DCMAKE_BUILD_WITH_INSTALL_RPATH=ON",
        "-DCMAKE_UNITY_BUILD=ON",  # half the time goes into the headers of the standard library
    ]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("arch", choices=["arm64", "x86_64"])
    parser.add_argument("build", type=Path)
    parser.add_argument("--program", choices=PROGRAMS, help="one of mps-cpp's programs, not the Python module")
    parser.add_argument("--without", default="", help="leave this symbol out of the stubs, to see that it is missed")
    arguments, options = parser.parse_known_args()
    build = arguments.build.resolve()
    write_stubs(build / "stubs", arguments.arch, arguments.without)
    write_scripts(build / "scripts", build / "stubs", arguments.arch)
    if arguments.program:
        source, files = ROOT / PROGRAMS[arguments.program], [build / arguments.program]
    else:
        source, files = ROOT, [build / f"_mpsnn{MODULE_SUFFIX}", build / "libmpsnn.dylib"]
        options = [*module_options(), *options]
    for file in files:
        file.unlink(missing_ok=True)  # other stubs mean another link
    cmake(arguments.arch, source, build, options)
    allowed = {install_name for install_name, _ in LIBRARIES.values()}
    complaints = [f"{f.name}: {text}" for f in files for text in check(f, arguments.arch, MINIMUM_MACOS, allowed)]
    sys.exit("\n".join(complaints) or 0)


if __name__ == "__main__":
    main()
