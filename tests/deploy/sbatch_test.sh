#!/usr/bin/env bash
# deploy/slurm/flashmorph.sbatch without Slurm: it ends with mpirun's own exit code however soon that comes, and a run
# that was asked to stop goes back into the queue.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

work=$(mktemp -d)
trap 'rm -r "$work"' EXIT
fail() { echo "$*" >&2; exit 1; }

export SLURM_JOB_ID=7 SLURM_SUBMIT_DIR=$PWD PATH=$work:$PATH FLASHMORPH_MPIRUN=$work/mpirun
command_file() { cat >"$work/$1"; chmod +x "$work/$1"; }

command_file scontrol <<<'#!/bin/sh
echo "$@" >>"${0%/*}/requeued"'

command_file mpirun <<<'#!/bin/sh
exit 3'
for start in {1..40}; do
  code=0
  bash deploy/slurm/flashmorph.sbatch run.yaml >"$work/log" 2>&1 || code=$?
  ((code == 3)) || fail "start $start: exit code $code, expected that of mpirun, 3"
done
[[ ! -e $work/requeued ]] || fail "a run that failed was put back into the queue"

command_file mpirun <<<'#!/bin/bash
trap "exit 75" USR1
touch "${0%/*}/listening"
while :; do read -rt 0.05 <> <(:) || :; done'
bash deploy/slurm/flashmorph.sbatch run.yaml >"$work/log" 2>&1 &
script=$!
until [[ -e $work/listening ]]; do sleep 0.02; done
kill -USR1 "$script"
code=0
wait "$script" || code=$?
((code == 75)) || fail "stopped: exit code $code, expected 75"
[[ $(cat "$work/requeued") == "requeue 7" ]] || fail "a run that was stopped was not put back into the queue"
echo "the batch script ends as mpirun does"
