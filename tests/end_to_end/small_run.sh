#!/usr/bin/env bash
# A whole run on few tokens through the program itself: artifacts, a second start, refusals, the export in transformers.
#   small_run.sh FLASHMORPH_DIST HYBRID_LOGITS MPIRUN PYTHON     from the repository's root
set -euo pipefail
program=$1 hybrid_logits=$2 mpirun=$3 python=$4
source "$(dirname "$0")/../support/ranks.sh"

run() {
  "${ranks[@]}" 2 "$program" configs/quickstart.yaml --set run.dir="$work" --set run.name=small \
    --set stages.align.tokens=16K --set stages.select.tokens=8K --set stages.select.polish=0 --set stages.distill.tokens=4096 \
    --set stages.finetune.tokens=2048 --set stages.finetune.batch_tokens=1024 --set stages.evaluate.compare='[uniform]' \
    --set stages.evaluate.lengths='[512]' --set stages.evaluate.samples=2 --set stages.evaluate.greedy_samples=1 \
    --set stages.evaluate.perplexity_tokens=1024 --set stages.evaluate.tasks='[passkey, frequent-words]' \
    --set stages.evaluate.task_lengths='[512]' --set stages.evaluate.task_samples=2 \
    --set report.price_per_gpu_hour=3600 --set health.sniff=true "$@"
}

# refused EXPECTED ARGUMENT...: exit code 2, the expected words, nothing on disk.
refused() {
  local expected=$1 code=0
  shift
  "$program" "$@" >"$work/refused.log" 2>&1 || code=$?
  ((code == 2)) || fail "exit code $code instead of 2 for $*: $(<"$work/refused.log")"
  grep -qF -- "$expected" "$work/refused.log" || fail "no '$expected' for $*: $(<"$work/refused.log")"
}

history_of() { "$python" -c 'import json, sys; print(json.load(open(sys.argv[1]))["history"])' "$work/$1/gates.json"; }

run >"$work/first.log" || { cat "$work/first.log"; fail "the run"; }
for artifact in run.yaml state.pb events.jsonl metrics.jsonl branches/branches.safetensors gates.json plan.json \
  evaluation.json hybrid/flashmorph/finetune.safetensors hybrid/uniform/distill.safetensors export/config.json \
  export/modeling_flashmorph.py export/README.md \
  report.html; do
  [[ -s "$work/small/$artifact" ]] || fail "no $artifact"
done
[[ ! -e "$work/small.prometheus.json" ]] || fail "a finished run still names its endpoint"
grep -q "KV bytes/token" "$work/first.log" || fail "no closing table"
grep -qE "sniff +2 ranks: matrix product .* links .*B/s" "$work/first.log" || fail "no rate of the ranks"
"$program" status "$work/small" | grep -q "finished" || fail "status of a finished run"
"$program" status "$work/small" --json | "$python" -c 'import json, sys; assert json.load(sys.stdin)["phase"] == "finished"' ||
  fail "status for programs"
"$program" status "$work/small" | grep -Eq "^  align .* rank-hours .* FLOP  costs [0-9]" || fail "status says no cost"
"$program" evaluate tests/data/passkey-teacher "$work/small/export" --tasks passkey,frequent-words --lengths 512 \
  --samples 2 --seed 1 --out "$work/tasks.json" >"$work/tasks.log" || fail "evaluate: $(<"$work/tasks.log")"
"$python" - "$work/small/evaluation.json" "$work/tasks.json" <<'PYTHON' || fail "the run's tasks are not the command's"
import json, sys
run, command = (json.load(open(file))["measurements"] for file in sys.argv[1:])
run = {(m["name"], m.get("after", "")): m["tasks"] for m in run}
assert run["teacher", ""] == command[0]["tasks"], (run["teacher", ""], command[0]["tasks"])
assert run["flashmorph", "finetune"] == command[1]["tasks"], (run["flashmorph", "finetune"], command[1]["tasks"])
PYTHON
"$program" report "$work/small" | grep -qx "$work/small/report.html" || fail "report"
run >"$work/second.log" || fail "the second start"
grep -q "already done" "$work/second.log" || fail "the second start did the work again"
code=0
run --set stages.align.tokens=32K >"$work/other.log" 2>&1 || code=$?
((code == 2)) && grep -q "another configuration" "$work/other.log" || fail "another config was not refused"

"$hybrid_logits" tests/data/passkey-teacher "$work/small/export" "$work/logits.safetensors"
"$python" tests/golden/test_export.py "$work/small/export" "$work/logits.safetensors"
grep -q '"event":"exported".*"largest_logit_difference"' "$work/small/events.jsonl" || fail "the export's difference is not in the journal"
"$program" inspect "$work/small/export" --length 1000 >"$work/inspect.log" || fail "inspect"
grep -q "^tokenizer  *1024 tokens; 1021 ends a text" "$work/inspect.log" || fail "inspect says nothing of the tokenizer"
grep -q "12, 3 with full attention.*9 linear (lightning)" "$work/inspect.log" || fail "inspect: $(<"$work/inspect.log")"

# The first run's branches, as they are, in a run of another budget; and none of another mixer.
taken=(--set run.name=taken --set stages.align.tokens=0 --set stages.align.branches="$work/small/branches/branches.safetensors")
run "${taken[@]}" --set budget.full_layers=4 --set stages.select.polish=1 --set stages.select.judge_samples=2 --set stages.select.finalist_samples=4 --set stages.distill.tokens=0 --set stages.finetune.tokens=0 --set stages.export.enabled=false \
  >"$work/taken.log" || { cat "$work/taken.log"; fail "branches of another run"; }
cmp "$work/small/branches/branches.safetensors" "$work/taken/branches/branches.safetensors" || fail "the branches were changed"
grep -q "discretize  flashmorph: flashmorph [0-9 ]*, recall .* uniform 1 4 7 10, recall .* sets judged" "$work/taken.log" || fail "no word of what was judged"
cmp <(history_of small) <(history_of taken) || fail "the same branches have other gates"

good=(configs/quickstart.yaml --set run.dir="$work" --set run.name=none --set parallel.tensor=1)
refused "cannot be read" "$work/nothing.yaml"
refused "did you mean full_layers?" "${good[@]}" --set budget.full_layer=3
refused "expected 1 to 11" "${good[@]}" --set budget.full_layers=12
refused "does not divide" "${good[@]}" --set parallel.tensor=3
refused "expected the config.json of a Hugging Face model folder" "${good[@]}" --set model.path="$work"
refused "cannot hold this hybrid" "${good[@]}" --set stages.export.format=qwen3_5_text
refused "expected the config.json" inspect tests/data/text
refused "data.text: $work/none.txt: cannot be opened" "${good[@]}" --set data.text="$work/none.txt"
refused "the model's longest position is 4096" "${good[@]}" --set stages.evaluate.lengths='[8192]'
refused 'holds branches whose mixer.kind is "lightning", expected "gla"' "${good[@]}" --set mixer.kind=gla "${taken[@]:2}"
refused 'holds branches whose mixer.decay is "alibi", expected "retnet"' "${good[@]}" --set mixer.decay=retnet "${taken[@]:2}"
refused "stages.align.branches takes branches.safetensors of a run" "${good[@]}" \
  --set stages.align.branches=tests/data/passkey-teacher/model.safetensors
refused "stages.align.tokens (--set): is missing or 0: the branches need tokens to train" "${good[@]}" --set stages.align.tokens=0
refused "10 passkeys of 32 words need" "${good[@]}" --set stages.select.data.lengths='[512]'
refused "stages.evaluate.tasks: 'needles' is no task" "${good[@]}" --set stages.evaluate.tasks='[needles]'
refused "values: a length of 140 tokens is too short" "${good[@]}" --set stages.evaluate.tasks='[values]' --set stages.evaluate.task_lengths='[140]'
refused "the model's longest position is 4096" "${good[@]}" --set stages.evaluate.tasks='[values]' \
  --set stages.evaluate.task_lengths='[8192]'
refused "is not a folder" "${good[@]}" --set run.dir=README.md/x
cp -r tests/data/passkey-teacher "$work/broken"
head -c 1000 tests/data/passkey-teacher/model.safetensors >"$work/broken/model.safetensors"
refused "declares a header" "${good[@]}" --set model.path="$work/broken"
printf 'short' >"$work/short.txt"
refused "the longest sequence needs" "${good[@]}" --set data.text="$work/short.txt"
[[ ! -e "$work/none" ]] || fail "a refused run left a folder"
"$program" --help | grep -q "Examples" || fail "--help"
"$program" --keys | diff - docs/yaml.md || fail "--keys differs from docs/yaml.md"
echo "small run: all checks passed"
