#!/usr/bin/env bash
# The tests that need a card, from the repository's root, with a bundle (deploy/bundle.sh) built elsewhere:
#   tests/gpu.sh BUNDLE [PART...]
# parts: operators   the CUDA operators against their definitions in float64
#        sanitizer   the same on small shapes under compute-sanitizer
#        ranks       gates on cards, several ranks sharing one, against the CPU's
#        cards       every stage on every kind of mesh over NCCL, each rank with a card of its own, against the CPU's: gates in
#                    float32 and float64, weights after three steps of distill; on two cards, and on four where there are
#        faults      a rank killed, stopped, out of memory, in another collective: over NCCL, on two cards at least
#        quickstart  the whole quickstart in bfloat16
# All that the machine has cards for when none is named. Needs python3 with torch, and compute-sanitizer for that part.
# A log a part lies in $OUT (default: a new folder). MESHES="tensor-2 gla-2" has `cards` run those alone.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if (($# < 1)); then
  echo "usage: $0 BUNDLE [operators|sanitizer|ranks|cards|faults|quickstart ...]" >&2
  exit 2
fi
bundle=$(realpath "$1")
shift
parts=("$@")
cards=$(nvidia-smi --list-gpus | wc -l)
if ((${#parts[@]} == 0)); then
  parts=(operators sanitizer ranks quickstart)
  if ((cards > 1)); then parts+=(cards faults); fi
fi
out=${OUT:-$(mktemp -d)}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

operators() { python3 tests/gpu/operators_test.py "$bundle/lib"; }

# Only our kernels are watched. Racecheck itself fails on cuBLAS's bf16 kernels, even with no kernel watched: what uses them
# runs in float32 there.
sanitizer() {
  watched memcheck
  watched racecheck --only pointwise
  watched racecheck --only lightning_attention gated_linear_attention gated_delta_rule --dtypes bfloat16
  watched racecheck --dtypes float32 float64
}

watched() {
  local tool=$1
  shift
  compute-sanitizer --tool "$tool" --kernel-name kns=flashmorph --error-exitcode 9 \
    python3 tests/gpu/operators_test.py "$bundle/lib" --small "$@"
}

# small_run NAME RANKS KEY=VALUE...: align and select on few tokens. One that hangs is ended, and fails.
readonly kLimit=240  # seconds
small_run() {
  local name=$1 ranks=$2 key sets=()
  shift 2
  for key in run.name="$name" run.dir="$work" device.dtype=float32 parallel.tensor=1 \
    stages.align.tokens=16384 stages.align.batch_tokens=4096 stages.align.micro_batch_tokens=1024 \
    stages.align.data.lengths=512 stages.align.data.passkeys=2 stages.align.data.words=8 \
    stages.select.tokens=49152 stages.select.polish=0 stages.select.batch_tokens=4096 stages.select.micro_batch_tokens=1024 \
    stages.select.data.lengths=1024 stages.select.data.passkeys=4 stages.select.data.words=8 \
    stages.distill.tokens=0 stages.finetune.tokens=0 stages.evaluate.compare='[]' stages.evaluate.lengths=512 \
    stages.evaluate.samples=2 stages.evaluate.greedy_samples=1 stages.evaluate.perplexity_tokens=1024 \
    stages.export.enabled=false "$@"; do
    sets+=(--set "$key")
  done
  timeout --foreground --kill-after=10 "$kLimit" "$bundle/run" mpirun --oversubscribe --bind-to none -np "$ranks" \
    flashmorph-dist configs/quickstart.yaml "${sets[@]}"
}

# same_gates RUN RUN: after every step, within 1e-4 in float32 and 1e-8 in float64.
same_gates() {
  python3 - "$work/$1" "$work/$2" <<'PYTHON'
import json, sys
runs = [(folder, open(f"{folder}/run.yaml").read(), json.load(open(f"{folder}/gates.json"))) for folder in sys.argv[1:]]
bound = 1e-8 if all('dtype: "float64"' in settings for _, settings, _ in runs) else 1e-4
a, b = ([alpha for step in gates["history"] for alpha in step["alpha"]] for *_, gates in runs)
off = max(abs(x - y) for x, y in zip(a, b))
print(f"gates of {runs[1][0].rsplit('/', 1)[1]} differ by {off:.1e} of {bound:.0e}; {[round(x, 4) for x in a[-12:]]}")
sys.exit(len(a) != len(b) or not off <= bound)
PYTHON
}

# on_cpu NAME KEY=VALUE...: what the cards' gates are compared with. Its threads sleep while they wait: runs on cards are beside it.
on_cpu() {
  local name=$1
  shift
  OMP_WAIT_POLICY=passive small_run "$name" 1 device.kind=cpu device.threads=4 "$@"
}

# on_cards NAME RANKS TRANSPORT KEY=VALUE...: a run that says how its tensors travel.
on_cards() {
  local name=$1 ranks=$2 transport=$3
  shift 3
  small_run "$name" "$ranks" device.kind=cuda "$@" | tee "$work/$name.log"
  grep -aq ": $transport" "$work/$name.log"
}

# The weights' training, too: a step of each stage.
readonly kTraining=(stages.{distill,finetune}.{tokens,batch_tokens}=4096
  stages.{distill,finetune}.micro_batch_tokens=1024 stages.{distill,finetune}.data.lengths=1024)

ranks() {
  on_cpu cpu
  on_cards alone 1 NCCL "${kTraining[@]}"
  same_gates cpu alone
  local mesh mixer
  for mesh in tensor=2 pipeline=2 tensor=1; do
    on_cards "shared-$mesh" $((2 * cards)) 'MPI through host memory' "parallel.$mesh"
    same_gates cpu "shared-$mesh"
  done
  for mixer in gla gated_delta_net; do
    on_cpu "cpu-$mixer" "mixer.kind=$mixer" stages.select.tokens=16384
    on_cards "alone-$mixer" 1 NCCL "mixer.kind=$mixer" stages.select.tokens=16384
    same_gates "cpu-$mixer" "alone-$mixer"
  done
}

# spawn NAME COMMAND...: beside the others, with a log of its own; at most $1 of them are left under way by `leave`.
declare -A spawned=()
unwell=()
spawn() {
  local name=$1
  shift
  (set -e; "$@") >"$work/$name.out" 2>&1 &
  spawned[$!]=$name
}
leave() {
  local pid status
  while ((${#spawned[@]} > $1)); do
    status=0
    wait -n -p pid "${!spawned[@]}" || status=$?
    cat "$work/${spawned[$pid]}.out"
    if ((status > 0)); then unwell+=("${spawned[$pid]}"); fi
    unset "spawned[$pid]"
  done
}
all_well() {
  leave 0
  if ((${#unwell[@]} > 0)); then echo "unwell: ${unwell[*]}"; fi
  ((${#unwell[@]} == 0))
}

two_cards_at_least() {
  if ((cards < 2)); then
    echo "needs two cards, found $cards"
    return 1
  fi
}

# Three steps of each stage but finetune, one of the comparison's hybrid, whose layers no gate decides: its weights are compared.
# In float64: in float32 rounding alone moves a tensor by 1.9e-4 of itself in these steps (float32 beside float64, both on a CPU).
readonly kEveryStage=(device.dtype=float64 stages.{align,select,distill}.tokens=12288 stages.finetune.tokens=4096
  stages.{align,select,distill,finetune}.batch_tokens=4096 stages.{align,select,distill,finetune}.micro_batch_tokens=1024
  stages.{distill,finetune}.data.lengths=1024 'stages.evaluate.compare=[uniform]' stages.evaluate.greedy_samples=0
  stages.export.enabled=true)

# The teacher with a head of its own, which has the embedding's values.
untied_teacher() {
  python3 - tests/data/passkey-teacher "$work/untied-teacher" <<'PYTHON'
import json, pathlib, shutil, struct, sys
source, target = map(pathlib.Path, sys.argv[1:])
shutil.copytree(source, target)
config = json.loads((source / "config.json").read_text()) | {"tie_word_embeddings": False}
(target / "config.json").write_text(json.dumps(config))
raw = (source / "model.safetensors").read_bytes()
size, = struct.unpack("<Q", raw[:8])
header, data = json.loads(raw[8:8 + size]), raw[8 + size:]
embedding = header["model.embed_tokens.weight"]
first, last = embedding["data_offsets"]
header["lm_head.weight"] = embedding | {"data_offsets": [len(data), len(data) + last - first]}
text = json.dumps(header).encode()
(target / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data + data[first:last])
PYTHON
}

# The trained weights of two runs in float64 agree by tensor; and they were trained.
same_weights() {
  python3 - "$work/$1" "$work/$2" tests/data/passkey-teacher/model.safetensors <<'PYTHON'
import json, math, struct, sys
import numpy

def tensors(file):
    raw = open(file, "rb").read()
    size, = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8:8 + size])
    header.pop("__metadata__", None)
    types = {"F32": numpy.float32, "F64": numpy.float64}
    return {name: numpy.frombuffer(raw[8 + size:][slice(*one["data_offsets"])], types[one["dtype"]]).astype(float)
            for name, one in header.items()}

a, b = (tensors(folder + "/hybrid/uniform/distill.safetensors") for folder in sys.argv[1:3])
teacher = tensors(sys.argv[3])
error = lambda x, y: math.sqrt(((x - y) ** 2).sum() / (y ** 2).sum())
off = {name: error(b[name], a[name]) for name in a}
worst = max(off, key=off.get)
moved = error(a["model.embed_tokens.weight"], teacher["model.embed_tokens.weight"])
print(f"weights of {sys.argv[2].rsplit('/', 1)[1]} differ by {off[worst]:.1e} at most, {worst}; the embedding moved by {moved:.1e}")
sys.exit(a.keys() != b.keys() or not off[worst] <= 1e-8 or moved < 1e-3)
PYTHON
}

# on_mesh NAME RANKS FIRST_CARD KEY=VALUE...: gates in float32, every stage in float64.
on_mesh() {
  local name=$1 ranks=$2 first=$3
  shift 3
  CUDA_VISIBLE_DEVICES=$(seq -s, "$first" $((first + ranks - 1)))
  export CUDA_VISIBLE_DEVICES
  on_cards "$name" "$ranks" NCCL "$@"
  on_cards "$name-float64" "$ranks" NCCL "${kEveryStage[@]}" "$@"
  test -s "$work/$name-float64/export/config.json"
  echo "$name: done $SECONDS s behind the start"
}

# like_cpu NAME CPU_RUN: what on_mesh's runs ended with.
like_cpu() {
  same_gates "$2" "$1"
  same_gates "$2-float64" "$1-float64"
  same_weights "$2-float64" "$1-float64"
}

# What the meshes are compared with, all side by side.
references() {
  local mixer
  twice() {
    local name=$1
    shift
    spawn "$name" on_cpu "$name" "$@"
    spawn "$name-float64" on_cpu "$name-float64" "${kEveryStage[@]}" "$@"
  }
  twice cpu
  twice cpu-untied model.path="$work/untied-teacher"
  for mixer in gla gated_delta_net; do twice "cpu-$mixer" mixer.kind="$mixer" stages.select.tokens=16384; done
  all_well
  echo "references: done $SECONDS s behind the start"
}

cards() {
  two_cards_at_least
  untied_teacher
  spawn references references

  # on RANKS NAME CPU_RUN KEY=VALUE...: where the machine has so many cards; three at a time beside the references, then four.
  local first=0
  local -A like=()
  on() {
    local ranks=$1 name=$2-$1 cpu_run=$3
    shift 3
    if ((ranks > cards)) || [[ -n ${MESHES:-} && " $MESHES " != *" $name "* ]]; then return; fi
    leave 3
    spawn "$name" on_mesh "$name" "$ranks" $((ranks > 2 ? 0 : first)) "$@"
    like[$name]=$cpu_run
    first=$((cards < 4 ? 0 : 2 - first))
  }
  on 2 tensor cpu parallel.tensor=2
  on 2 pipeline cpu parallel.pipeline=2 stages.evaluate.greedy_samples=1
  on 2 untied cpu-untied model.path="$work/untied-teacher" parallel.pipeline=2
  on 2 sequence cpu parallel.tensor=2 parallel.sequence=true
  on 2 zero cpu stages.{distill,finetune}.parallel.zero=true
  on 2 gla cpu-gla mixer.kind=gla stages.select.tokens=16384 parallel.pipeline=2
  on 2 gated_delta_net cpu-gated_delta_net mixer.kind=gated_delta_net stages.select.tokens=16384 parallel.tensor=2
  on 4 tensor cpu parallel.tensor=4
  on 4 pipeline cpu parallel.pipeline=4
  on 4 untied cpu-untied model.path="$work/untied-teacher" parallel.pipeline=4
  on 4 zero cpu stages.{distill,finetune}.parallel.zero=true
  on 4 data-pipeline cpu parallel.pipeline=2 stages.{select,distill,finetune}.parallel.recompute=full
  on 4 pipeline-tensor cpu parallel.pipeline=2 parallel.tensor=2 parallel.sequence=true
  on 4 gla cpu-gla mixer.kind=gla stages.select.tokens=16384 parallel.tensor=2
  on 4 gated_delta_net cpu-gated_delta_net mixer.kind=gated_delta_net stages.select.tokens=16384 parallel.pipeline=4
  leave 0

  local name
  for name in "${!like[@]}"; do
    if ((${#unwell[@]} == 0)) || [[ " ${unwell[*]} " != *" $name "* ]]; then
      spawn "$name beside the CPU" like_cpu "$name" "${like[$name]}"
    fi
  done
  all_well
}

faults() {
  two_cards_at_least
  spawn watchdog "$bundle/run" bash tests/faults/watchdog.sh misbehave mpirun cards $((cards > 2 ? 3 : 2))
  spawn stages python3 tests/gpu/faults.py "$bundle"
  all_well
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
    grep -aE '^(gates|weights|recall|fault) ' "$out/$part.log" || true
  else
    echo "FAILED $part, $((SECONDS - started)) s:"
    grep -avE '^(ok|frame) ' "$out/$part.log" | tail -25
    failed+=("$part")
  fi
done
((${#failed[@]} == 0))
