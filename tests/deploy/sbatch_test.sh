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

# Two hosts of four tasks, two of the eight spare. A rank dies on the first: the second start has it last. The second host
# stops answering: the third start has the four ranks that are left, or the most that the mesh can use.
export SLURM_NTASKS=8 SLURM_TASKS_PER_NODE='4(x2)' SLURM_JOB_NODELIST='node[1-2]' FLASHMORPH_PROGRAM=$work/program
command_file scontrol <<<'#!/bin/sh
if [ "$1" = show ]; then echo node1; echo node2; else echo "$@" >>"${0%/*}/requeued"; fi'
command_file srun <<<'#!/bin/sh
case "$*" in *=node2*) test "$(wc -l <"${0%/*}/starts")" -lt 2;; esac'
command_file program <<<'#!/bin/sh
echo "$@" >>"${0%/*}/planned"; [ "$4" -le 3 ]'
command_file mpirun <<<'#!/bin/bash
echo "$*" >>"${0%/*}/starts"
case $(wc -l <"${0%/*}/starts") in
  1) echo "prterun noticed that process rank 2 with PID 11 on node node1 exited on signal 9 (Killed)."; exit 137;;
  2) echo "  missing: rank 1 on node2 is in no collective"; exit 4;;
esac'
rm -f "$work/requeued"
bash deploy/slurm/flashmorph.sbatch --spares 2 run.yaml >"$work/log" 2>&1 || fail "with spares: exit code $?, expected 0"
diff - "$work/starts" <<END || fail "these are not the three starts that were expected"
--bind-to none -np 6 --host node1:4,node2:4 $work/program run.yaml
--bind-to none -np 6 --host node2:4,node1:4 $work/program run.yaml
--bind-to none -np 3 --host node1:4 $work/program run.yaml
END
diff - "$work/planned" <<<"plan run.yaml --np 4
plan run.yaml --np 3" || fail "the ranks that are possible were not asked for as expected"
grep -q "node2 does not answer" "$work/log" || fail "the host that is gone is not named"

rm "$work/starts"
command_file mpirun <<<'#!/bin/sh
echo "$*" >>"${0%/*}/starts"; exit 3'
command_file srun <<<'#!/bin/sh'
code=0
bash deploy/slurm/flashmorph.sbatch --spares 2 run.yaml >"$work/log" 2>&1 || code=$?
((code == 3 && $(wc -l <"$work/starts") == 3)) || fail "fails each time: exit code $code after $(wc -l <"$work/starts") starts, expected 3 after 3"
for wrong in "--spares 8 run.yaml" "--spares many run.yaml" "--spares 1"; do
  code=0
  # shellcheck disable=SC2086
  bash deploy/slurm/flashmorph.sbatch $wrong >"$work/log" 2>&1 || code=$?
  ((code == 2)) || fail "$wrong: exit code $code, expected 2"
done
[[ ! -e $work/requeued ]] || fail "a run that failed was put back into the queue"
echo "the batch script ends as mpirun does"
