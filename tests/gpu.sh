#!/usr/bin/env bash
# The tests that need a card, from the repository's root, with a bundle (deploy/bundle.sh) built elsewhere:
#   tests/gpu.sh BUNDLE [PART...]
# parts: operators   the CUDA operators against their definitions in float64
#        sanitizer   the same on small shapes under compute-sanitizer
#        ranks       gates on cards, several ranks sharing one, against the CPU's
#        cards       gates over NCCL, each rank with a card of its own, against the CPU's: two cards at least
#        quickstart  the whole quickstart in bfloat16
# All that the machine has cards for when none is named. Needs python3 with torch, and compute-sanitizer for that part.
# A log a part lies in $OUT (default: a new folder).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if (($# < 1)); then
  echo "usage: $0 BUNDLE [operators|sanitizer|ranks|cards|quickstart ...]" >&2
  exit 2
fi
bundle=$(realpath "$1")
shift
parts=("$@")
cards=$(nvidia-smi --list-gpus | wc -l)
if ((${#parts[@]} == 0)); then
  parts=(operators sanitizer ranks quickstart)
  if ((cards > 1)); then parts+=(cards); fi
fi
out=${OUT:-$(mktemp -d)}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

operators() { python3 tests/gpu/operators_test.py "$bundle/lib"; }

# Only our kernels are watched. Racecheck itself fails on cuBLAS's bf16 kernels, even with no kernel watched: the recurrences
# that use them run in float32 there.
sanitizer() {
  watched memcheck
  watched racecheck --only pointwise
  watched racecheck --only lightning_attention gated_linear_attention --dtypes bfloat16
  watched racecheck --dtypes float32 float64
}

watched() {
  local tool=$1
  shift
  compute-sanitizer --tool "$tool" --kernel-name kns=flashmorph --error-exitcode 9 \
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
print(f"gates of {sys.argv[2]} differ by {off:.1e}; {[round(x, 4) for x in a]}")
sys.exit(len(a) != len(b) or not off <= 1e-4)
PYTHON
}

# on_cpu NAME KEY=VALUE...: what the cards' gates are compared with, once.
on_cpu() {
  local name=$1
  shift
  if [[ ! -f $work/$name/gates.json ]]; then small_run "$name" 1 device.kind=cpu device.threads=8 "$@"; fi
}

# on_cards NAME RANKS TRANSPORT CPU_RUN KEY=VALUE...: a run that says how its tensors travel and ends with the CPU's gates.
on_cards() {
  local name=$1 ranks=$2 transport=$3 cpu_run=$4
  shift 4
  small_run "$name" "$ranks" device.kind=cuda "$@" | tee "$work/$name.log"
  grep -aq ": $transport" "$work/$name.log"
  same_gates "$cpu_run" "$name"
}

# The weights' training, too: a step of each stage.
readonly kTraining=(stages.{distill,finetune}.{tokens,batch_tokens}=4096
  stages.{distill,finetune}.micro_batch_tokens=1024 stages.{distill,finetune}.data.lengths=1024)

ranks() {
  on_cpu cpu
  on_cards alone 1 NCCL cpu "${kTraining[@]}"
  local mesh mixer
  for mesh in tensor=2 pipeline=2 tensor=1; do
    on_cards "shared-$mesh" $((2 * cards)) 'MPI through host memory' cpu "parallel.$mesh"
  done
  for mixer in gla gated_delta_net; do
    on_cpu "cpu-$mixer" "mixer.kind=$mixer" stages.select.tokens=16384
    on_cards "alone-$mixer" 1 NCCL "cpu-$mixer" "mixer.kind=$mixer" stages.select.tokens=16384
  done
}

cards() {
  if ((cards < 2)); then
    echo "needs two cards, found $cards"
    return 1
  fi
  on_cpu cpu
  local mesh
  for mesh in tensor=2 pipeline=2; do
    on_cards "own-$mesh" "$cards" NCCL cpu "parallel.$mesh"
  done
  on_cards own-sequence "$cards" NCCL cpu parallel.tensor=2 parallel.sequence=true "${kTraining[@]}"
  on_cards own-data "$cards" NCCL cpu parallel.tensor=1 "${kTraining[@]}" stages.{distill,finetune}.parallel.zero=true
}

quickstart() {
  "$bundle/run" mpirun -np 1 flashmorph-dist configs/quickstart.yaml --set device.kind=cuda --set device.dtype=bfloat16 \
    --set parallel.tensor=1 --set run.dir="$work"
  cp "$work"/quickstart/{gates.json,plan.json,evaluation.json} "$out/"
  python3 - "$work/quickstart/evaluation.json" <<'PYTHON'
import json, sys
distilled = []
for measured in json.load(open(sys.argv[1]))["measurements"]:
    counts = {r["length"]: r["teacher_forced"] for r in measured["recall"]}
    recall = {length: int(c["right_words"]) / int(c["words"]) for length, c in counts.items()}
    shown = ", ".join(f"{share:.1%} at {length}" for length, share in recall.items())
    print(f"recall of {measured['name']} {measured.get('after', '')}: {shown}; perplexity {measured['perplexity']:.1f}")
    if (measured["name"], measured.get("after")) == ("flashmorph", "distill"):
        distilled = list(recall.values())
sys.exit(not distilled or min(distilled) < 0.95)
PYTHON
}

failed=()
for part in "${parts[@]}"; do
  started=$SECONDS
  set +e  # not in an `if`: there the part's own `set -e` would not act
  (set -e; "$part") >"$out/$part.log" 2>&1
  status=$?
  set -e
  if ((status == 0)); then
    echo "passed $part, $((SECONDS - started)) s"
    grep -aE '^(gates|recall) ' "$out/$part.log" || true
  else
    echo "FAILED $part, $((SECONDS - started)) s:"
    grep -avE '^(ok|frame) ' "$out/$part.log" | tail -25
    failed+=("$part")
  fi
done
((${#failed[@]} == 0))
