#!/usr/bin/env bash
# Installs, builds and runs configs/quickstart.yaml on 4 ranks.
#   deploy/quickstart.sh [--fresh] [--set key=value ...]     arguments go to the program
set -euo pipefail
if [[ ${1:-} == -h || ${1:-} == --help ]]; then
  sed -n '2,3s/^# //p' "$0"
  exit
fi
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source deploy/steps.sh

readonly kRanks=4

run() {
  if ((EUID == 0)); then export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1; fi
  # Ranks that wait would take the cores of those that work.
  if ((kRanks > $(nproc))); then export OMPI_MCA_mpi_yield_when_idle=1; fi
  build/venv/bin/mpirun -np "$kRanks" --oversubscribe --bind-to none build/flashmorph-dist configs/quickstart.yaml "$@"
}

timed install deploy/install.sh
timed build build flashmorph-dist
timed run run "$@"
