#!/usr/bin/env bash
# Rows of the scaling benchmark on CPUs, of a tiny model, from a bundle that is made here: each comes to its end, the one
# with a checkpoint when that is on disk.
#   scaling.sh PYTHON     one with torch; from the repository's root
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
PATH=$(dirname "$1"):$PATH  # the bundle looks for python3 with torch
export PATH

deploy/bundle.sh "$work/bundle"
python3 tests/benchmarks/scaling_gpu.py "$work/bundle" --models "$work/models" --runs "$work/runs" --json "$work/rows.json" \
  --shape tiny --device cpu --tokens 1024 --limit 600 --only tensor save
python3 - "$work/rows.json" <<'PYTHON'
import json, sys
tensor, save = json.load(open(sys.argv[1]))["rows"]
paces = [one["stages"][stage]["tokens_per_second"] for one in (tensor, save) for stage in ("align", "select", "distill")]
print(paces, save["save"])
sys.exit(not (min(paces) > 0 and save["save"]["bytes_on_disk"] > 0 and save["save"]["warnings"] == []))
PYTHON
