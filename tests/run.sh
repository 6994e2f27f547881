#!/usr/bin/env bash
# Installs, looks whether the sources are formatted, builds everything and runs all tests.
#   tests/run.sh [ctest arguments]     e.g. -R unit
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source deploy/steps.sh

timed install deploy/install.sh --tests
timed format tests/format.sh
timed build build
timed test ctest --test-dir build --output-on-failure -j "$(nproc)" "$@"
