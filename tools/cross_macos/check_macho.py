# SPDX-License-Identifier: Apache-2.0
"""What can be known of a Mach-O file without a Mac. python tools/cross_macos/check_macho.py FILE arm64|x86_64 [MINIMUM_MACOS]"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

#: Apple's libraries that every program may use; libmpsnn is ours, beside the module.
SYSTEM = {"/usr/lib/libSystem.B.dylib", "/usr/lib/libc++.1.dylib"}
OURS = "@rpath/libmpsnn.dylib"


def tool(name, *arguments):
    program = next((p for p in (name, f"{name}-14") if shutil.which(p)), None)
    if not program:
        sys.exit(f"{name} is missing: it is part of LLVM")
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=True).stdout


def undefined_symbols(path):
    """(name, library or "", is weak) for each symbol that the file takes from elsewhere."""
    text = tool("llvm-nm", "-m", "-u", path)
    for weak, name, origin in re.findall(r"\(undefined\)(?: (weak))? external (\S+)(?: \((.*?)\))?", text):
        yield name, origin.removeprefix("from ") if origin.startswith("from ") else "", bool(weak)


def symbol_complaints(path, arch):
    symbols = list(undefined_symbols(path))
    if not symbols:
        yield "no undefined symbol could be read"
    is_module = ".so" in path.suffixes
    for name, library, weak in symbols:
        # -undefined dynamic_lookup, which Python's symbols need, hides every other missing one.
        is_python = is_module and re.match(r"__?Py", name)
        is_constant = weak and re.match(r"_(NS|MTL|MPS)", name)
        if not library and not is_python and not is_constant:
            yield f"{name} is in no library"
        if arch == "arm64" and re.fullmatch(r"_objc_msgSend_(stret|fpret)", name):
            yield f"{name} does not exist on arm64"
    if is_module and not re.search(r" T _PyInit_", tool("llvm-nm", "-g", "--defined-only", path)):
        yield "PyInit_ is not exported"


def check(path, arch, minimum_macos, frameworks):
    """One complaint for each thing that would keep the file from loading on a Mac."""
    header = tool("llvm-otool", "-l", path)
    if f"minos {minimum_macos}" not in header:
        yield f"is not for macOS {minimum_macos} and later"
    if arch == "arm64" and "LC_CODE_SIGNATURE" not in header:
        yield "has no code signature, without which an arm64 Mac does not run it"
    own_name = re.findall(r"cmd LC_ID_DYLIB.*?name (\S+)", header, re.DOTALL)
    linked = set(re.findall(r"cmd LC_LOAD(?:_WEAK)?_DYLIB.*?name (\S+)", header, re.DOTALL))
    for library in sorted(linked - SYSTEM - set(frameworks) - {OURS}):
        yield f"links {library}"
    if own_name and path.suffix == ".dylib" and own_name != [OURS]:
        yield f"calls itself {own_name[0]}, not {OURS}"
    if OURS in linked and not re.search(r"path @loader_path/lib ", header):
        yield "does not look for libmpsnn in @loader_path/lib"
    yield from symbol_complaints(path, arch)


if __name__ == "__main__":
    from build import LIBRARIES, MINIMUM_MACOS

    allowed = {install_name for install_name, _ in LIBRARIES.values()}
    minimum = sys.argv[3] if len(sys.argv) > 3 else MINIMUM_MACOS
    sys.exit("\n".join(check(Path(sys.argv[1]), sys.argv[2], minimum, allowed)) or 0)
