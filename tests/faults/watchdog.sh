#!/usr/bin/env bash
# Some ranks, three by default, of which the last one hangs, stops, dies, throws or calls something else: the job must end by itself, with
# one message that names the rank, the step and the operation, and with the exit code that says what happened.
#   watchdog.sh MISBEHAVE MPIRUN [cards [RANKS]]     with `cards` over NCCL, each rank on a card of its own
set -euo pipefail
program=$1 mpirun=$2 cards=${3:-} count=${4:-3}
last=$((count - 1)) others=$(seq -s ', ' 0 $((count - 2)))
source "$(dirname "$0")/../support/ranks.sh"

fail() { echo "FAILED: $*" >&2; cat "$work/log" >&2; exit 1; }

# ends CODE HOW MPIRUN_OPTION... : the exit code, and nothing left behind.
ends() {
  local expected=$1 how=$2 code=0 left
  shift 2
  "${ranks[@]}" "$count" "$@" "$program" "$work/health" "$how" $cards >"$work/log" 2>&1 || code=$?
  ((code == expected)) || fail "$how: exit code $code instead of $expected"
  # mpirun may return before the last rank that it ends is gone.
  for left in $(pgrep -f -- "misbehave $work/health"); do
    timeout 30 tail --pid="$left" -f /dev/null || fail "$how: left behind: process $left"
  done
}
says() { grep -qE -- "$1" "$work/log" || fail "no '$1'"; }
once() { (($(grep -cE -- "$1" "$work/log") == 1)) || fail "'$1' is not there exactly once"; }

its_card=${cards:+, its card,}
second=2 third=3  # by number: a group on cards has had one for its id
if [[ $cards ]]; then second=3 third=4; fi
ends 0 nothing
[[ ! -e "$work/health/roll-call" ]] || fail "a good run called the roll"

ends 4 late
once "^flashmorph-dist: rank [0-$last] on .*: align, step 3: not done after [0-9.]+ s, of 2 s that health.step allows"
once "missing: rank $last on $(hostname) is in no collective; it has been in align, step 3 for .* its last was all_reduce of Float \[3, 5\] \(60 bytes\), number $second of group data \(ranks $others, $last\)"
once "waiting: rank 0 on .*$its_card in all_reduce of Float \[3, 5\] \(60 bytes\), number $third of group data"
once "the job ends with exit code 4"
for ((rank = 0; rank < count; ++rank)); do [[ -s "$work/health/rank-$rank.json" ]] || fail "no calls of rank $rank"; done

touch "$work/health/rank-9.json"
ends 4 stopped
once "missing: rank $last on $(hostname) gives no answer: it is dead or stopped"
[[ ! -e "$work/health/rank-9.json" ]] || fail "an answer of an earlier start was left"

ends 4 diverges
once "first divergence: .*as number $third of group data \(ranks $others, $last\); "
once "first divergence: .*rank $last called barrier"
once "first divergence: .*ranks? $others called all_reduce of Float \[3, 5\] \(60 bytes\)"

ends 3 throws
once "^flashmorph-dist: rank $last on .*: align, step 3: a card fell off"
once "waiting: rank 0 on .* in all_reduce"
once "the job ends with exit code 3"

ends 137 dies
says "process rank $last with PID [0-9]+ on node .* exited on"

if [[ $cards ]]; then
  ends 3 no_memory
  once "^flashmorph-dist: rank $last on .*: align, step 3: CUDA out of memory"
  once "waiting: rank 0 on .*, its card, in all_reduce"
  ends 4 dies --with-ft ulfm
  once "^flashmorph-dist: rank [$others] on .*: align, step 3: not done after"
else
  ends 3 dies --with-ft ulfm
  once "^flashmorph-dist: rank [$others] on .*: align, step 3: MPI_Allreduce failed on rank [$others] of $count in group 'data'"
fi
once "missing: rank $last on .* gives no answer"

code=0
"${ranks[@]}" "$count" "$program" - late $cards >"$work/log" 2>&1 || code=$?
((code == 4)) || fail "without a folder: exit code $code instead of 4"
says "^flashmorph-dist: rank [0-$last] on .*: align, step 3: not done after"
echo "watchdog: all checks passed"
