#!/usr/bin/env bash
# A run through a real one-node Slurm: submitted with 8 ranks, signalled before its time limit, requeued, resumed, preempted
# by a job of a higher partition, requeued, resumed, finished; its result is that of a run nobody interrupted. Then one with
# spares, whose rank is killed: it goes on inside the same job.
#   tests/slurm/run.sh [BUILD]     from the repository's root, as root; packages: deploy/install.sh --slurm
# A command of its own, not a part of ctest: it starts munged, slurmctld and slurmd of its own (own ports, own folder), ends
# them at its end, and takes several minutes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
build=$(realpath "${1:-build}")
venv=$(sed -n 's/^FLASHMORPH_VENV:PATH=//p' "$build/CMakeCache.txt")
readonly kDeadline=900  # seconds, of anything that is waited for
export OMPI_MCA_mpi_yield_when_idle=1 OMP_NUM_THREADS=1

fail() { echo "FAILED: $*" >&2; exit 1; }
note() { printf '%s  %s\n' "$(date +%T)" "$*"; }

((EUID == 0)) || fail "needs root, for slurmd"
export PATH=$PATH:/usr/sbin
for tool in munged slurmctld slurmd sbatch; do
  command -v "$tool" >/dev/null || fail "no $tool: deploy/install.sh --slurm"
done

work=$(mktemp -d)
daemons=() job=
stop() {
  # slurmd ends a job's processes: it goes after them.
  if scancel --quiet --user=root 2>/dev/null; then
    for ((tries = 0; tries < 300; ++tries)); do
      [[ -n $(squeue --noheader 2>/dev/null) ]] || break
      sleep 0.2
    done
  fi
  for ((i = ${#daemons[@]} - 1; i >= 0; --i)); do kill "${daemons[i]}" 2>/dev/null || true; done
  wait 2>/dev/null || true
  rm -rf "$work"
}
trap stop EXIT

start_slurm() {
  local node
  node=$(hostname -s)
  mkdir "$work/state" "$work/spool" "$work/munge"
  chmod 755 "$work"
  head -c 1024 /dev/urandom >"$work/munge.key"
  chmod 400 "$work/munge.key"
  cat >"$work/slurm.conf" <<CONF
ClusterName=flashmorph
SlurmctldHost=$node(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$work/munge/socket,cred_expire=10
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd.pid
SlurmctldLogFile=$work/slurmctld.log
SlurmdLogFile=$work/slurmd.log
SlurmctldPort=26817
SlurmdPort=26818
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
NodeName=$node NodeAddr=127.0.0.1 CPUs=8 State=UNKNOWN
PartitionName=low Nodes=$node Default=YES State=UP PriorityTier=1 GraceTime=120
PartitionName=high Nodes=$node State=UP PriorityTier=10 PreemptMode=OFF
CONF
  export SLURM_CONF=$work/slurm.conf
  munged --foreground --force --key-file="$work/munge.key" --socket="$work/munge/socket" --pid-file="$work/munge/pid" \
    --seed-file="$work/munge/seed" --log-file="$work/munge/log" >"$work/munged.out" 2>&1 &
  daemons+=($!)
  wait_for "munged" test -S "$work/munge/socket"
  slurmctld -D >"$work/slurmctld.out" 2>&1 &
  daemons+=($!)
  slurmd -D >"$work/slurmd.out" 2>&1 &
  daemons+=($!)
  wait_for "the node to be idle" node_is_idle
}

# wait_for WHAT COMMAND...: polls until the command succeeds.
wait_for() {
  local what=$1 until=$((SECONDS + kDeadline))
  shift
  until "$@" 2>/dev/null; do
    if ((SECONDS >= until)) || (($(jobs -pr | wc -l) < ${#daemons[@]})); then
      tail -n 20 "$work"/*.out "$work"/*.log >&2
      fail "waited in vain for $what"
    fi
    case $(field JobState) in COMPLETED | FAILED | TIMEOUT | CANCELLED | NODE_FAIL)
      if "$@"; then return; fi  # it may have come just now
      cat "$work/job.log" >&2
      fail "the job is $(field JobState) while waiting for $what"
      ;;
    esac
    sleep 0.2
  done
}

node_is_idle() { [[ $(sinfo --noheader --format=%T --partition=low) == idle ]]; }
field() { [[ -z $job ]] || scontrol show job "$job" 2>/dev/null | sed -n "s/.*\b$1=\([^ ]*\).*/\1/p"; }
restarted() { (($(field Restarts) >= $1)) && [[ $(field JobState) == RUNNING ]]; }
ended() { [[ $(field JobState) == COMPLETED ]]; }
run=slurm
steps_of() { grep -c "\"stage\":\"$1\"" "$work/runs/$run/metrics.jsonl" 2>/dev/null; }
has_stopped_early() { (($(grep -c "stopped early; the job" "$work/job.log") >= $1)); }
has_steps_of() { local steps; steps=$(steps_of "$1") && ((steps >= $2)); }

# What a run is asked: name, then more of its arguments.
arguments() {
  local name=$1
  shift
  echo configs/quickstart.yaml --set run.dir="$work/runs" --set run.name="$name" --set parallel.pipeline=2 --set stages.align.tokens=512K \
    --set stages.select.tokens=128K --set stages.select.polish=0 --set stages.distill.tokens=8K --set stages.evaluate.compare='[]' \
    --set stages.evaluate.lengths='[512]' --set stages.evaluate.samples=8 --set stages.evaluate.greedy_samples=0 \
    --set stages.evaluate.perplexity_tokens=2048 "$@"
}

start_slurm
note "Slurm $(slurmd -V | cut -d' ' -f2): one node, 8 CPUs"
export FLASHMORPH_PROGRAM=$build/flashmorph-dist FLASHMORPH_MPIRUN=$venv/bin/mpirun
# shellcheck disable=SC2046
job=$(sbatch --parsable --ntasks=8 --partition=low --time=3 --output="$work/job.log" \
  deploy/slurm/flashmorph.sbatch $(arguments slurm))
note "job $job submitted: 8 ranks, time limit 3 minutes, signal 2 minutes before"

wait_for "the signal before the limit" has_stopped_early 1
note "signalled before its limit, back in the queue after $(steps_of align) steps of align"
wait_for "the job to start again" restarted 1
scontrol update JobId="$job" TimeLimit=60
note "started again ($(field Restarts) restart), time limit now an hour"
wait_for "select to have begun" has_steps_of select 3
note "in select"

high=$(sbatch --parsable --ntasks=8 --partition=high --time=5 --output="$work/high.log" --wrap 'echo "the job of the higher partition"')
note "job $high of the higher partition asks for all 8 CPUs"
wait_for "the run to be preempted" has_stopped_early 2
wait_for "the other job to have run" grep -q "higher partition" "$work/high.log"
note "preempted; the job of the higher partition has run"
wait_for "the job to start again" restarted 2
note "started again ($(field Restarts) restarts)"
wait_for "the job to end" ended
note "job $job: $(field JobState), exit code $(field ExitCode)"

grep -q "already done" "$work/job.log" || fail "nothing was taken over from before"
tail -n 1 "$work/runs/slurm/events.jsonl" | grep -q '"event":"finished"' || fail "the run's journal does not end with its end"
note "the same run without Slurm, uninterrupted"
# shellcheck disable=SC2046
OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 "$FLASHMORPH_MPIRUN" -np 8 --oversubscribe --bind-to none \
  "$FLASHMORPH_PROGRAM" $(arguments whole) >"$work/whole.log" || { cat "$work/whole.log"; fail "the uninterrupted run"; }
for file in branches/branches.safetensors hybrid/flashmorph/distill.safetensors; do
  cmp "$work/runs/slurm/$file" "$work/runs/whole/$file" || fail "$file differs from the uninterrupted run's"
done
"$venv/bin/python" - "$work/runs" <<'PYTHON' || fail "gates or measurements differ from the uninterrupted run's"
import json, pathlib, sys
slurm, whole = ({part: json.loads((pathlib.Path(sys.argv[1]) / run / file).read_text())[part]
                 for file, part in (("gates.json", "alpha"), ("plan.json", "plans"), ("evaluation.json", "measurements"))}
                for run in ("slurm", "whole"))
sys.exit(slurm != whole)
PYTHON
note "branches, gates, plan, hybrid and measurements are those of the uninterrupted run, bit for bit"

run=spares
# shellcheck disable=SC2046
job=$(sbatch --parsable --ntasks=8 --partition=low --time=60 --output="$work/spares.log" deploy/slurm/flashmorph.sbatch --spares 4 \
  $(arguments spares --set stages.align.tokens=128K --set stages.select.tokens=32K --set stages.distill.tokens=0 --set checkpoint.every=5))
note "job $job submitted: 8 tasks, 4 of them spare"
wait_for "align to have a checkpoint" has_steps_of align 8
kill -KILL "$(pgrep -f "^$FLASHMORPH_PROGRAM .*run.name=spares" | tail -n 1)"
note "killed a rank of the 4"
wait_for "the job to end" ended
grep -q "goes on from its last checkpoint on 4 ranks" "$work/spares.log" || fail "the run did not start again"
grep -q "goes on after step" "$work/spares.log" || fail "the run began anew"
tail -n 1 "$work/runs/spares/events.jsonl" | grep -q '"event":"finished"' || fail "the run's journal does not end with its end"
note "job $job: $(field JobState), exit code $(field ExitCode), $(field Restarts) restarts: $(grep "goes on from its last" "$work/spares.log")"
echo "--- the job's log ---"
sed -E '/^ *$/d; s/[[:space:]]+$//' "$work/job.log"
echo "--- the log of the job with spares ---"
sed -E '/^ *$/d; s/[[:space:]]+$//' "$work/spares.log"
