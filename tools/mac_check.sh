#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What only a Mac can answer, in one text file to send back: mac_check.txt. Everything runs, also after a failure; the last line counts.
#   tools/mac_check.sh [PYTHON]      the interpreter that mpsnn is installed for
# Needs Apple's command line tools and CMake. MPSNN_METAL_CPP_DIR names metal-cpp; unset, it is fetched from Apple.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${1:-python3}
report=$PWD/mac_check.txt
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
passed=0
failed=0

step() {
  local what=$1
  shift
  printf '\n=== %s\n' "$what"
  if "$@"; then
    passed=$((passed + 1))
    printf -- '--- passed: %s\n' "$what"
  else
    failed=$((failed + 1))
    printf -- '--- FAILED: %s\n' "$what"
  fi
}

machine() {
  sw_vers
  uname -m
  sysctl -n machdep.cpu.brand_string
  system_profiler SPDisplaysDataType | grep -E 'Chipset|Metal'
  git log -1 --format='%h %s'
}

build_programs() {
  cmake -S tests/metal/live -B "$work/live" -DMPSNN_METAL_CPP_DIR="${MPSNN_METAL_CPP_DIR:-}" >/dev/null && cmake --build "$work/live" &&
    cmake -S examples/mps_cpp -B "$work/example" -DMPSNN_METAL_CPP_DIR="${MPSNN_METAL_CPP_DIR:-}" >/dev/null && cmake --build "$work/example"
}

main() {
  step "the machine" machine
  # From another folder: the repository's python/ must not stand in for what is installed.
  step "import and engines" bash -c 'cd "$0" && "$1" -m mpsnn info' "$work" "$python"
  step "build the programs" build_programs
  step "every message of mps-cpp exists in the runtime, with its types" "$work/live/live_table"
  step "the mps-cpp example: pooling and convolution gradients" "$work/example/mps_cpp_example"
  step "tests on the device" "$python" -m pytest -m metal -p no:cacheprovider
  printf '\n%d steps passed, %d failed\n' "$passed" "$failed"
  [ "$failed" = 0 ]
}

[ "$(uname)" = Darwin ] || { echo "tools/mac_check.sh is for a Mac" >&2; exit 2; }
main 2>&1 | tee "$report"
