#!/usr/bin/env bash
# All stages on 64 ranks, then align and select on one rank: the same gates.
#   run64.sh FLASHMORPH_DIST MPIRUN PYTHON     from the repository's root
set -euo pipefail
program=$1 mpirun=$2 python=$3
source "$(dirname "$0")/../support/ranks.sh"

started=$SECONDS
"${ranks[@]}" 64 "$program" tests/data/run64.yaml --set run.dir="$work" \
  >"$work/64.log" 2>&1 || { tail -30 "$work/64.log"; fail "the run on 64 ranks"; }
echo "64 ranks: all stages in $((SECONDS - started)) s"
grep -q "64 ranks = data 8 x pipeline 4 x tensor 2" "$work/64.log" || fail "no mesh in the header"
[[ $(grep -o "rank [0-9]*: data" "$work/run64/events.jsonl" | wc -l) == 64 ]] || fail "no rank map of 64 lines"
for artifact in branches/branches.safetensors gates.json plan.json evaluation.json hybrid/flashmorph/finetune.safetensors \
  hybrid/uniform/finetune.safetensors export/model.safetensors; do
  [[ -s "$work/run64/$artifact" ]] || fail "no $artifact"
done

"$program" tests/data/run64.yaml --set run.dir="$work" --set run.name=alone --set parallel.tensor=1 \
  --set parallel.pipeline=1 >"$work/1.log" 2>&1 || { tail -30 "$work/1.log"; fail "the run on one rank"; }
"$python" - "$work/run64" "$work/alone" <<'PYTHON'
import json, sys
many, one = (json.load(open(f"{folder}/gates.json")) for folder in sys.argv[1:])
for a, b in zip(many["history"], one["history"], strict=True):
    for layer, (x, y) in enumerate(zip(a["alpha"], b["alpha"], strict=True)):
        assert abs(x - y) <= 1e-5, f"step {a['step']}, layer {layer}: {x} on 64 ranks, {y} on one"
    assert abs(a["loss"] - b["loss"]) <= 1e-5 * abs(b["loss"]), f"step {a['step']}: loss {a['loss']} and {b['loss']}"
plans = [json.load(open(f"{folder}/plan.json"))["plans"][0]["full_layers"] for folder in sys.argv[1:]]
assert plans[0] == plans[1], plans
perplexities = [[m["perplexity"] for m in json.load(open(f"{folder}/evaluation.json"))["measurements"]] for folder in sys.argv[1:]]
for x, y in zip(*perplexities, strict=True):
    assert abs(x - y) <= 1e-3 * y, perplexities
print("gates, losses and picks of 64 ranks are those of one rank:", plans[0])
PYTHON
