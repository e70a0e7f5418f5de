#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds everything once with clang, the Metal engine, its simulator and address and undefined-behaviour sanitizers, on Linux x86_64, and runs
# the C++ tests, the fuzzers, the engine's tests in C++ and those in Python. Needs clang, libclang-rt-14-dev, gobjc, libgnustep-base-dev,
# libblocksruntime-dev, MPSNN_METAL_CPP_DIR (tools/fetch_metal_cpp.sh) and a Python with pybind11 and what tests need.
#   PYTHON=… tools/simulate_metal.sh [build folder]
set -euo pipefail
source_folder=$(cd "$(dirname "$0")/.." && pwd)
build=${1:-$(mktemp -d)}
python=$(command -v "${PYTHON:-python3}")
python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python")
jobs=$(getconf _NPROCESSORS_ONLN)

# -O0: what counts is that it compiles and behaves; kernels are not measured here.
cmake -S "$source_folder" -B "$build" -DCMAKE_BUILD_TYPE=Simulate -DCMAKE_UNITY_BUILD=ON -DCMAKE_CXX_FLAGS_SIMULATE="-O0 -g1" -DCMAKE_CXX_COMPILER=clang++ \
      "-DMPSNN_SANITIZE=address;undefined" -DMPSNN_METAL=ON -DMPSNN_METAL_CPP_DIR="${MPSNN_METAL_CPP_DIR:?names no folder with metal-cpp}" \
      -DMPSNN_TESTS=ON -DMPSNN_WERROR=ON -DMPSNN_PYTHON=ON -DPython_EXECUTABLE="$python" -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)" >/dev/null
cmake --build "$build" --parallel "$jobs"

export UBSAN_OPTIONS=print_stacktrace=1 LSAN_OPTIONS=suppressions=$source_folder/tests/metal/leaks.supp:print_suppressions=0
# More threads than cores: what goes wrong shows when threads are interrupted.
export MPSNN_NUM_THREADS=4
# The fuzzers take one core for half a minute; the tests in Python run meanwhile.
(cd "$build" && ASAN_OPTIONS=detect_leaks=1:strict_string_checks=1 ctest --output-on-failure --timeout 300 --parallel "$jobs") >"$build/ctest.log" 2>&1 &
ctest=$!

# The package as a folder, with the module and libraries of the build.
site=$build/site
rm -rf "$site"
mkdir "$site"
cp -r "$source_folder/python/mpsnn" "$site/mpsnn"
ln -s "$build"/_mpsnn.*.so "$site/mpsnn"
# Python is not compiled with sanitizers: their library comes first, and that of C++, whose exceptions it wants to see, second. Leaks are
# counted by the simulator, object by object: Python itself keeps what it has.
sanitizers=$(clang++ -print-file-name=libclang_rt.asan-x86_64.so) cxx=$(clang++ -print-file-name=libstdc++.so.6)
cd "$source_folder"
result=0
ASAN_OPTIONS=detect_leaks=0:strict_string_checks=1 PYTHONPATH=$site LD_PRELOAD="$sanitizers $cxx" \
  "$python" -m pytest -q -p no:cacheprovider tests/python/test_metal{,_queue,_simulator,_training}.py || result=$?
wait "$ctest" || result=$?
cat "$build/ctest.log"
exit "$result"
