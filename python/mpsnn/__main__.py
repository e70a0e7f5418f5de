# SPDX-License-Identifier: Apache-2.0
"""The `mpsnn` command.

What a build asks, `--cmakedir`, `--include` and `--version`, is answered here without importing anything compiled, so that it
works exactly when something else is broken. Everything else is mpsnn.cli.
"""

import sys
from pathlib import Path

import mpsnn


def package_folder(*parts):
    """A folder of the installed package. An editable install has two roots: the sources, and what CMake installed."""
    candidates = [Path(root).joinpath(*parts) for root in mpsnn.__path__]
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    sys.exit("mpsnn: the package is not completely installed. Looked for\n" + "\n".join(f"    {c}" for c in candidates))


def main():
    """Entry point of the command."""
    match sys.argv[1:]:
        case ["--cmakedir"]:
            print(package_folder("lib", "cmake", "mpsnn"))
        case ["--include"]:
            print(package_folder("include"))
        case ["--version"]:
            print(mpsnn.__version__)
        case _:
            from mpsnn.cli import app

            app(prog_name="mpsnn")


if __name__ == "__main__":
    main()
