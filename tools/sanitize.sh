#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds the C++ tests with address and undefined-behaviour sanitizers, then with the thread sanitizer, and runs them.
#   tools/sanitize.sh [build folder [sanitizers...]]
set -euo pipefail
source_folder=$(cd "$(dirname "$0")/.." && pwd)
build_folder=${1:-$(mktemp -d)}
shift || true
[ $# -gt 0 ] || set -- "address;undefined" thread
jobs=$(getconf _NPROCESSORS_ONLN)
export ASAN_OPTIONS=detect_leaks=1:strict_string_checks=1:detect_stack_use_after_return=1
export UBSAN_OPTIONS=print_stacktrace=1
export TSAN_OPTIONS=second_deadlock_stack=1
# More threads than cores: races show when threads are interrupted.
export MPSNN_NUM_THREADS=4

for sanitizers in "$@"; do
  folder=$build_folder/${sanitizers%%;*}
  # Many files as one: half the time goes into the headers of the standard library.
  cmake -S "$source_folder" -B "$folder" -DCMAKE_BUILD_TYPE=Sanitize -DCMAKE_UNITY_BUILD=ON -DCMAKE_CXX_FLAGS_SANITIZE="-O1 -g1 -Wno-maybe-uninitialized" -DMPSNN_TESTS=ON -DMPSNN_WERROR=ON \
        -DMPSNN_SANITIZE="$sanitizers" >/dev/null
  cmake --build "$folder" --parallel "$jobs" --target mpsnn_tests
  echo "C++ tests under: $sanitizers"
  (cd "$folder" && ctest --output-on-failure --timeout 300)
done
