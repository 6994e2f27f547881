#!/usr/bin/env bash
# Meshes through the program itself: a mesh of its own for each stage, going on with another one, and every mesh, start and
# plan that must be refused with exit code 2 and one message.
#   meshes.sh FLASHMORPH_DIST MPIRUN PYTHON     from the repository's root
set -euo pipefail
program=$1 mpirun=$2 python=$3
source "$(dirname "$0")/../support/ranks.sh"

few=(tests/data/run64.yaml --set run.dir="$work" --set run.name=few --set stages.finetune.tokens=0
  --set stages.evaluate.compare='[]' --set stages.evaluate.perplexity_tokens=64)

# refused EXPECTED COMMAND...: exit code 2, one line with the expected words from all ranks together.
refused() {
  local expected=$1 code=0
  shift
  timeout 300 "$@" >"$work/refused.log" 2>"$work/refused.err" || code=$?
  ((code == 2)) || fail "exit code $code instead of 2 for $*: $(<"$work/refused.log") $(<"$work/refused.err")"
  [[ $(grep -cF -- "$expected" "$work/refused.err") == 1 ]] || fail "not once '$expected' for $*: $(<"$work/refused.err")"
}

# A mesh of its own for select and distill; the export turned off, so that something is left to do.
"${ranks[@]}" 2 "$program" "${few[@]}" --set parallel.tensor=1 --set parallel.pipeline=2 --set parallel.pipeline_cuts='[5]' \
  --set stages.select.parallel.tensor=2 --set stages.select.parallel.pipeline=1 --set stages.select.parallel.pipeline_cuts='[]' \
  --set stages.distill.parallel.pipeline=1 --set stages.distill.parallel.pipeline_cuts='[]' >"$work/first.log" ||
  { cat "$work/first.log"; fail "a mesh for each stage"; }
grep -q "select: 2 ranks = data 1 x pipeline 1 x tensor 2" "$work/first.log" || fail "the header names no mesh of select"
grep -q "layers 5-11: ranks 1" "$work/first.log" || fail "pipeline_cuts were not followed"

# Tokens shared among tensor ranks, in the stages that can.
"${ranks[@]}" 2 "$program" "${few[@]}" --set run.name=shared --set parallel.pipeline=1 --set parallel.sequence=true \
  >"$work/shared.log" || { cat "$work/shared.log"; fail "tokens shared among tensor ranks"; }
grep -q "mesh    2 ranks = data 1 x pipeline 1 x tensor 2 (tokens shared too)" "$work/shared.log" || fail "the header does not say that tokens are shared"
grep -q "evaluate: 2 ranks = data 1 x pipeline 1 x tensor 2$" "$work/shared.log" || fail "evaluate shares tokens"

# Nothing is done again on another mesh, and nothing refused.
"${ranks[@]}" 1 "$program" "${few[@]}" --set parallel.tensor=1 --set parallel.pipeline=1 >"$work/again.log" || fail "another mesh"
grep -q "already done" "$work/again.log" || fail "another mesh did the work again"

# A budget that is measured: one for every layer is refused and leaves nothing behind; from what it says, half of what
# full attention takes is given. The pick must be the best of all sets that cost no more. Both starts measure, and on a
# busy machine not the same: until that half keeps some layers, but not all.
timed=("${few[@]}" --set run.name=timed --set parallel.tensor=1 --set parallel.pipeline=2 --set budget.full_layers=0 --set budget.length=4096)
for _ in {1..20}; do
  rm -rf "$work/timed"
  refused "budget.milliseconds: leaves" "${ranks[@]}" 2 "$program" "${timed[@]}" --set budget.milliseconds=100000
  [[ ! -e "$work/timed" ]] || fail "a budget that was refused left a folder"
  milliseconds=$(sed -nE 's/.*leaves ([0-9]+) microseconds.*all of them ([0-9]+):.*/\1 \2/p' "$work/refused.err" |
    awk '{printf "%.3f", 100000 - $1 / 1000 + $2 / 2000}')
  code=0
  "${ranks[@]}" 2 "$program" "${timed[@]}" --set budget.milliseconds="$milliseconds" --set stages.distill.tokens=0 \
    --set stages.export.enabled=false >"$work/timed.log" 2>&1 || code=$?
  if ((code == 2)) && grep -q "budget.milliseconds: leaves" "$work/timed.log"; then continue; fi
  ((code == 0)) || { tail -30 "$work/timed.log"; fail "a budget of $milliseconds ms"; }
  "$python" - "$work/timed" "$milliseconds" <<'PYTHON' || code=$?
import json, math, sys
folder, milliseconds = sys.argv[1], float(sys.argv[2])
latency, gates, plans = (json.load(open(f"{folder}/{name}.json")) for name in ("latency", "gates", "plan"))
extra = [max(0.0, 1000 * (full - linear)) for full, linear in zip(latency["full"], latency["linear"], strict=True)]
step = 1 + int(sum(extra) / 20000)
costs = [step * round(one / step) for one in extra]
limit = math.floor(1000 * (milliseconds - sum(latency["linear"])))
layers = range(len(costs))
sets = [[l for l in layers if chosen >> l & 1] for chosen in range(1 << len(costs))]
allowed = [kept for kept in sets if sum(costs[l] for l in kept) <= limit]
worth = lambda kept: (sum(round(gates["alpha"][l] * 2**40) for l in kept), len(kept))
most = max(map(worth, allowed))
best = min(kept for kept in allowed if worth(kept) == most)
kept = list(map(int, plans["plans"][0]["full_layers"]))
assert kept == best, (kept, best, costs, limit, gates["alpha"])
assert latency["length"] == "4096", latency["length"]
print(f"{milliseconds} ms: {limit} of {sum(costs)} microseconds for full attention, kept {kept}")
sys.exit(0 if 0 < len(kept) < len(costs) else 3)
PYTHON
  ((code == 3)) || break
done
((code == 0)) || fail "a budget of half of what full attention takes: exit code $code"

other=("${few[@]}" --set run.name=other)
refused "parallel.tensor: 4 does not divide the 2 ranks" "${ranks[@]}" 2 "$program" "${other[@]}" --set parallel.pipeline=1 --set parallel.tensor=4
refused "is 8, which does not divide the 4 ranks" "${ranks[@]}" 4 "$program" "${other[@]}"
refused "parallel.pipeline_cuts: has 1 cuts, expected 3" "${ranks[@]}" 8 "$program" "${other[@]}" --set parallel.pipeline_cuts='[2]'
refused "stages.select.parallel.tensor: 3 does not divide the model's" "${ranks[@]}" 3 "$program" "${other[@]}" --set parallel.tensor=1 \
  --set parallel.pipeline=1 --set stages.select.parallel.tensor=3
refused "stages.align.data.lengths: asks for 63 tokens, which 2 tensor ranks cannot share evenly" "${ranks[@]}" 2 "$program" "${other[@]}" \
  --set parallel.pipeline=1 --set parallel.sequence=true --set stages.align.data.lengths='[63]' --set stages.align.batch_tokens=1008
refused "3 data ranks cannot share evenly" "${ranks[@]}" 3 "$program" "${other[@]}" --set parallel.tensor=1 --set parallel.pipeline=1 \
  --set stages.distill.tokens=0 --set stages.select.batch_tokens=1536 --set stages.align.batch_tokens=1024
refused "SLURM_NTASKS: is 8, but this process is alone in MPI" env SLURM_NTASKS=8 SLURM_PROCID=0 "$program" "${other[@]}"
cp tests/data/run64.yaml "$work/same.yaml"
sed 's/seed: 1/seed: 2/' tests/data/run64.yaml >"$work/differs.yaml"
refused "rank 1 has" "${ranks[@]}" 1 "$program" "$work/same.yaml" --set run.dir="$work" : \
  -np 1 "$program" "$work/differs.yaml" --set run.dir="$work"
cp "$program" "$work/changed"
printf 'x' >>"$work/changed"
refused "rank 1 has the program" "${ranks[@]}" 1 "$program" "${other[@]}" : -np 1 "$work/changed" "${other[@]}"
sed -i '0,/"margin": [0-9.e-]*/s//"margin": 0.75/' "$work/few/plan.json"
refused "is not what this run's discretize wrote" "${ranks[@]}" 2 "$program" "${few[@]}" --set parallel.tensor=2 --set parallel.pipeline=1
[[ ! -e "$work/other" ]] || fail "a refused run left a folder"
echo "meshes: all checks passed"
