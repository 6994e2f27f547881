# Sourced by the tests that start ranks, with $mpirun set: a folder for their files, a way to fail, and
#   "${ranks[@]}" N PROGRAM ARGUMENT...
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_mpi_yield_when_idle=1 OMP_NUM_THREADS=1
ranks=("$mpirun" --oversubscribe --bind-to none -np)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

fail() { echo "FAILED: $*" >&2; exit 1; }
