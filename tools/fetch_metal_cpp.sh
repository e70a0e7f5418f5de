#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Puts the headers of metal-cpp into a folder, for the checks on Linux, and prints the folder for MPSNN_METAL_CPP_DIR. They come out
# of a Python wheel that carries them unchanged.
#   tools/fetch_metal_cpp.sh FOLDER
set -euo pipefail
folder=${1:?usage: tools/fetch_metal_cpp.sh FOLDER}
python=${PYTHON:-python3}
mkdir -p "$folder"
if [ ! -e "$folder/mlx/include/metal_cpp/Metal/Metal.hpp" ]; then
  "$python" -m pip download -q mlx-metal==0.32.4 --no-deps --only-binary=:all: --platform macosx_14_0_arm64 -d "$folder"
  "$python" - "$folder" <<'PYTHON'
import sys
import zipfile
from pathlib import Path

folder = Path(sys.argv[1])
for wheel in folder.glob("mlx_metal-*.whl"):
    archive = zipfile.ZipFile(wheel)
    archive.extractall(folder, [n for n in archive.namelist() if n.startswith("mlx/include/metal_cpp/")])
    wheel.unlink()
PYTHON
fi
echo "$(cd "$folder" && pwd)/mlx/include/metal_cpp"
