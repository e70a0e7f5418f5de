#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds the library with the Metal engine and its simulator with clang and address and undefined-behaviour sanitizers, on Linux
# x86_64, and runs the engine's tests in C++ and in Python: $PYTHON has the packages of the extra "test". Needs clang,
# libclang-rt-14-dev, gobjc, libgnustep-base-dev, libblocksruntime-dev and MPSNN_METAL_CPP_DIR (tools/fetch_metal_cpp.sh).
#   tools/simulate_metal.sh [build folder]
set -euo pipefail
source_folder=$(cd "$(dirname "$0")/.." && pwd)
build=${1:-$(mktemp -d)}
python=$(command -v "${PYTHON:-python3}")
jobs=$(getconf _NPROCESSORS_ONLN)

# -O0: what counts is that it compiles and behaves; kernels are not measured here.
cmake -S "$source_folder" -B "$build" -DCMAKE_BUILD_TYPE=Simulate -DCMAKE_CXX_FLAGS_SIMULATE="-O0 -g1" -DCMAKE_CXX_COMPILER=clang++ \
      "-DMPSNN_SANITIZE=address;undefined" -DMPSNN_METAL=ON -DMPSNN_METAL_CPP_DIR="${MPSNN_METAL_CPP_DIR:?names no folder with metal-cpp}" \
      -DMPSNN_PYTHON=ON -DMPSNN_TESTS=ON -DPython_EXECUTABLE="$python" -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)" \
      -DCMAKE_CXX_FLAGS=-shared-libasan >/dev/null
cmake --build "$build" --parallel "$jobs" --target MetalSim test_metal_engine _mpsnn

package=$build/site/mpsnn
mkdir -p "$package/lib"
cp -r "$source_folder/python/mpsnn/." "$package"
cp "$build"/_mpsnn*.so "$package"
cp "$build/libmpsnn.so" "$build/tests/metal/libMetalSim.so" "$package/lib"

# Leaks are counted by the simulator, object by object; the interpreter and the Objective-C runtime never free all they have.
export ASAN_OPTIONS=detect_leaks=0:detect_stack_use_after_return=0 UBSAN_OPTIONS=print_stacktrace=1
runtime=$(clang++ -print-file-name=libclang_rt.asan-x86_64.so)
export LD_LIBRARY_PATH=$(dirname "$runtime"):$build/tests/metal
(cd "$build" && ctest --output-on-failure --timeout 300 -R metal_engine)
cd "$source_folder"
LD_PRELOAD=$runtime PYTHONPATH=$build/site PYTHONDONTWRITEBYTECODE=1 "$python" -m pytest -q -p no:cacheprovider \
  tests/python/test_metal.py tests/python/test_metal_simulator.py tests/python/test_metal_source.py tests/python/test_metal_training.py
