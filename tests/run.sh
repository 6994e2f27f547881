#!/usr/bin/env bash
# Installs, builds everything and runs all tests.
#   tests/run.sh [ctest arguments]     e.g. -R unit
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

times=()
trap 'if ((${#times[@]})); then printf "wall time: %s\n" "${times[@]}"; fi' EXIT

# timed NAME COMMAND...: its exit code is passed on; its wall time is printed at the end.
timed() {
  local name=$1 started=$SECONDS code=0
  shift
  "$@" || code=$?
  times+=("$name $((SECONDS - started)) s")
  return "$code"
}

build() {
  cmake -S . -B build -G Ninja >build/configure.log || { cat build/configure.log; return 1; }
  ninja -C build
}

timed install deploy/install.sh --tests
timed build build
timed test ctest --test-dir build --output-on-failure -j "$(nproc)" "$@"
