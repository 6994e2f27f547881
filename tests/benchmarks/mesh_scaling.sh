#!/usr/bin/env bash
# Select's steps on a row of meshes, as a Markdown table (docs/parallel.md holds one).
#   tests/benchmarks/mesh_scaling.sh BUILD [MODEL] [LENGTH] [RANKS:PIPELINE:TENSOR ...]     from the repository's root
set -euo pipefail
build=$1 model=${2:-tests/data/passkey-teacher} length=${3:-512}
shift $(($# < 3 ? $# : 3))
meshes=("$@")
((${#meshes[@]})) || meshes=(1:1:1 2:1:1 2:1:2 2:2:1 4:1:1 4:1:4 4:4:1 8:2:2 64:4:2)
mpirun=${MPIRUN:-build/venv/bin/mpirun}
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_mpi_yield_when_idle=1 OMP_NUM_THREADS=1
echo "| ranks | data x pipeline x tensor | step (ms) | tokens/s | MB moved a rank | idle in the pipeline | by the formula | MB a rank |"
echo "|---|---|---|---|---|---|---|---|"
for mesh in "${meshes[@]}"; do
  IFS=: read -r ranks pipeline tensor <<<"$mesh"
  "$mpirun" -np "$ranks" --oversubscribe --bind-to none "$build/tests/benchmarks/mesh_scaling" "$model" "$pipeline" "$tensor" 8 "$length"
done
