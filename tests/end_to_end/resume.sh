#!/usr/bin/env bash
# A run that is stopped in the middle of select and again in distill goes on from its checkpoints and ends with the same gates and
# weights, bit for bit, as one that nobody stopped. Meanwhile nobody else gets its folder.
#   resume.sh FLASHMORPH_DIST MPIRUN PYTHON     from the repository's root
set -euo pipefail
program=$1 mpirun=$2 python=$3
source "$(dirname "$0")/../support/ranks.sh"

# run NAME ARGUMENT...: on two ranks that share the data, and AdamW's states among them.
run() {
  "${ranks[@]}" 2 "$program" tests/data/run64.yaml --set run.dir="$work" --set run.name="$1" \
    --set parallel.tensor=1 --set parallel.pipeline=1 --set stages.select.tokens=48K --set stages.distill.tokens=32K \
    --set stages.finetune.tokens=0 --set stages.evaluate.compare='[]' --set stages.export.enabled=false --set checkpoint.every=10 "${@:2}"
}

readonly kMostTries=10  # on a busy machine a stage may be over before this process gets to look
past_15='"step":(1[5-9]|2[0-9]),'

# held_in STAGE: starts the run and stops its first rank, $rank, between steps 15 and 29 of the stage; false when that was missed.
held_in() {
  run stopped >"$work/$1.log" 2>&1 &
  started=$!
  until grep -qE "\"stage\":\"$1\".*$past_15" "$work/stopped/metrics.jsonl" 2>/dev/null; do
    kill -0 "$started" 2>/dev/null || return 1
    sleep 0.02
  done
  rank=$(awk '{print $2}' "$work/stopped/lock" 2>/dev/null) && kill -STOP "$rank" 2>/dev/null || return 1
  tail -n 1 "$work/stopped/metrics.jsonl" | grep -qE "\"stage\":\"$1\".*$past_15" || { kill -CONT "$rank"; return 1; }
}

# stopped_in STAGE SIGNAL: asks the run's first rank to stop in the middle of the stage, expects 75 and a checkpoint.
stopped_in() {
  local stage=$1 code=0 rank started try
  [[ ! -e "$work/stopped" ]] || cp -a "$work/stopped" "$work/before"
  for ((try = 1; ; ++try)); do
    if held_in "$stage"; then break; fi
    ((try < kMostTries)) || fail "every one of $kMostTries runs was past the middle of $stage before that was seen"
    wait "$started" || { cat "$work/$stage.log"; fail "the run that was not stopped"; }
    rm -r "$work/stopped"
    [[ ! -e "$work/before" ]] || cp -a "$work/before" "$work/stopped"
  done
  in_use "$rank"  # it holds its folder while the next one asks
  kill -"$2" "$rank"
  kill -CONT "$rank"
  wait "$started" || code=$?
  ((code == 75)) || { cat "$work/$stage.log"; fail "exit code $code instead of 75 in $stage"; }
  grep -q "stopped in $stage after step .*a signal asked for it; it is in $work/stopped/checkpoints/$stage" "$work/$stage.log" ||
    { cat "$work/$stage.log"; fail "no checkpoint of $stage"; }
  grep -q "\"event\":\"saved\",\"stage\":\"$stage\"" "$work/stopped/events.jsonl" || fail "the journal has no saved checkpoint of $stage"
  "$program" status "$work/stopped" | grep -q "checkpoint after step [0-9]*, .* ago" || fail "status names no checkpoint of $stage"
  [[ ! -e "$work/stopped/lock" ]] || fail "the lock was left behind"
}

in_use() {
  local code=0
  run stopped >"$work/second.log" 2>&1 || code=$?
  ((code == 2)) && grep -q "$work/stopped: is in use by process $1 on host $(hostname)" "$work/second.log" ||
    { cat "$work/second.log"; fail "a second run on the folder: exit code $code"; }
}

run whole >"$work/whole.log" 2>&1 || { cat "$work/whole.log"; fail "the run that nobody stopped"; }
[[ ! -e "$work/whole/checkpoints" ]] || fail "a finished run keeps checkpoints"
stopped_in select TERM
stopped_in distill USR1
grep -q "select .* goes on after step" "$work/distill.log" || { cat "$work/distill.log"; fail "select started over"; }

code=0
run stopped --set stages.distill.lr.from=0.5 >"$work/other.log" 2>&1 || code=$?
((code == 2)) && grep -q "stages.distill.lr.from: 1e-04 -> 0.5" "$work/other.log" || { cat "$work/other.log"; fail "another config"; }
run stopped --set run.time_limit=0.001 >"$work/limit.log" 2>&1 || code=$?
((code == 75)) && grep -q "run.time_limit is over" "$work/limit.log" || { cat "$work/limit.log"; fail "time limit: exit code $code"; }

run stopped --set checkpoint.keep=1 >"$work/last.log" 2>&1 || { cat "$work/last.log"; fail "the last start"; }
grep -q "checkpoint.keep: 2 -> 1" "$work/last.log" || fail "the changed key is not shown"
grep -q "distill .* goes on after step" "$work/last.log" || { cat "$work/last.log"; fail "distill started over"; }
"$python" - "$work" <<'PYTHON'
import json, sys
whole, stopped = (json.load(open(f"{sys.argv[1]}/{name}/gates.json")) for name in ("whole", "stopped"))
assert len(whole["history"]) == 47 and whole["history"] == stopped["history"] and whole["alpha"] == stopped["alpha"]
PYTHON
cmp "$work/whole/hybrid/flashmorph/distill.safetensors" "$work/stopped/hybrid/flashmorph/distill.safetensors" || fail "distilled weights"
echo "resume: all checks passed"
