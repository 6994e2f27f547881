#!/usr/bin/env bash
# The tests that need a card, from the repository's root, with a bundle (deploy/bundle.sh) built elsewhere:
#   tests/gpu.sh BUNDLE [PART...]     parts: operators sanitizer ranks quickstart; all of them when none is named
# Needs python3 with torch, and compute-sanitizer for that part. A log a part lies in $OUT (default: a new folder).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if (($# < 1)); then
  echo "usage: $0 BUNDLE [operators|sanitizer|ranks|quickstart ...]" >&2
  exit 2
fi
bundle=$(realpath "$1")
shift
parts=("$@")
if ((${#parts[@]} == 0)); then parts=(operators sanitizer ranks quickstart); fi
out=${OUT:-$(mktemp -d)}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cards=$(nvidia-smi --list-gpus | wc -l)

operators() { python3 tests/gpu/operators_test.py "$bundle/lib"; }

# Only our kernels are watched. Racecheck itself fails on cuBLAS's bf16 kernels: there the recurrences run in float32.
sanitizer() {
  watched memcheck
  watched racecheck --only pointwise
  watched racecheck --dtypes float32 float64
}

watched() {
  local tool=$1
  shift
  compute-sanitizer --tool "$tool" --kernel-regex kns=flashmorph --error-exitcode 9 \
    python3 tests/gpu/operators_test.py "$bundle/lib" --small "$@"
}

# small_run NAME RANKS KEY=VALUE...: align and select on few tokens.
small_run() {
  local name=$1 ranks=$2 key sets=()
  shift 2
  for key in run.name="$name" run.dir="$work" device.dtype=float32 parallel.tensor=1 \
    stages.align.tokens=16384 stages.align.batch_tokens=4096 stages.align.micro_batch_tokens=1024 \
    stages.align.data.lengths=512 stages.align.data.passkeys=2 stages.align.data.words=8 \
    stages.select.tokens=49152 stages.select.batch_tokens=4096 stages.select.micro_batch_tokens=1024 \
    stages.select.data.lengths=1024 stages.select.data.passkeys=4 stages.select.data.words=8 \
    stages.distill.tokens=0 stages.finetune.tokens=0 stages.evaluate.compare='[]' stages.evaluate.lengths=512 \
    stages.evaluate.samples=2 stages.evaluate.greedy_samples=1 stages.evaluate.perplexity_tokens=1024 \
    stages.export.enabled=false "$@"; do
    sets+=(--set "$key")
  done
  "$bundle/run" mpirun --oversubscribe --bind-to none -np "$ranks" flashmorph-dist configs/quickstart.yaml "${sets[@]}"
}

# The gates of two runs agree to float32's tolerance.
same_gates() {
  python3 - "$work/$1/gates.json" "$work/$2/gates.json" <<'PYTHON'
import json, sys
a, b = (json.load(open(path))["alpha"] for path in sys.argv[1:])
off = max(abs(x - y) for x, y in zip(a, b))
print(f"gates differ by {off:.1e}; {[round(x, 4) for x in a]}")
sys.exit(len(a) != len(b) or not off <= 1e-4)
PYTHON
}

ranks() {
  small_run cpu 1 device.kind=cpu
  small_run nccl 1 device.kind=cuda | tee "$work/nccl.log"
  grep -q ': NCCL' "$work/nccl.log"
  same_gates cpu nccl
  local mesh
  for mesh in "tensor=2" "pipeline=2" "tensor=1"; do
    small_run "shared-$mesh" $((2 * cards)) device.kind=cuda "parallel.$mesh" | tee "$work/shared.log"
    grep -q ': MPI through host memory' "$work/shared.log"
    same_gates cpu "shared-$mesh"
    if ((cards < 2)); then continue; fi
    small_run "own-$mesh" "$cards" device.kind=cuda "parallel.$mesh" | tee "$work/own.log"
    grep -q ': NCCL' "$work/own.log"
    same_gates cpu "own-$mesh"
  done
}

quickstart() {
  "$bundle/run" mpirun -np 1 flashmorph-dist configs/quickstart.yaml --set device.kind=cuda --set device.dtype=bfloat16 \
    --set parallel.tensor=1 --set run.dir="$work"
  cp "$work"/quickstart/{gates.json,plan.json,evaluation.json} "$out/"
  python3 - "$work/quickstart/evaluation.json" <<'PYTHON'
import json, sys
for measured in json.load(open(sys.argv[1]))["measurements"]:
    recall = [(r["length"], r["teacher_forced"]) for r in measured["recall"]]
    print(measured["name"], measured.get("after", ""), recall, measured["perplexity"])
PYTHON
}

failed=()
for part in "${parts[@]}"; do
  started=$SECONDS
  if (set -e; "$part") >"$out/$part.log" 2>&1; then
    echo "passed $part, $((SECONDS - started)) s"
  else
    echo "FAILED $part, $((SECONDS - started)) s:"
    grep -vE '^ok ' "$out/$part.log" | tail -25
    failed+=("$part")
  fi
done
((${#failed[@]} == 0))
