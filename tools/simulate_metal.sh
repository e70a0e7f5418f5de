#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds the library with the Metal engine and its simulator with clang and address and undefined-behaviour sanitizers, on Linux
# x86_64, and runs the engine's tests in C++. Needs clang,
# libclang-rt-14-dev, gobjc, libgnustep-base-dev, libblocksruntime-dev and MPSNN_METAL_CPP_DIR (tools/fetch_metal_cpp.sh).
#   tools/simulate_metal.sh [build folder]
set -euo pipefail
source_folder=$(cd "$(dirname "$0")/.." && pwd)
build=${1:-$(mktemp -d)}
jobs=$(getconf _NPROCESSORS_ONLN)

# -O0: what counts is that it compiles and behaves; kernels are not measured here.
cmake -S "$source_folder" -B "$build" -DCMAKE_BUILD_TYPE=Simulate -DCMAKE_CXX_FLAGS_SIMULATE="-O0 -g1" -DCMAKE_CXX_COMPILER=clang++ \
      "-DMPSNN_SANITIZE=address;undefined" -DMPSNN_METAL=ON -DMPSNN_METAL_CPP_DIR="${MPSNN_METAL_CPP_DIR:?names no folder with metal-cpp}" \
      -DMPSNN_TESTS=ON >/dev/null
cmake --build "$build" --parallel "$jobs" --target MetalSim test_metal_engine

# Leaks are counted by the simulator, object by object; the Objective-C runtime never frees all it has.
export ASAN_OPTIONS=detect_leaks=0:detect_stack_use_after_return=0 UBSAN_OPTIONS=print_stacktrace=1
(cd "$build" && ctest --output-on-failure --timeout 300 -R metal_engine)
