#!/usr/bin/env bash
# Says which C++ and CUDA files clang-format would change; --fix changes them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

mode=(--dry-run --Werror)
if [[ ${1:-} == --fix ]]; then mode=(-i); fi
find core distributed launcher tests -regex '.*\.\(h\|cpp\|cu\|cuh\)' -print0 | xargs -0 clang-format "${mode[@]}"
