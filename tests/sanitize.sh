#!/usr/bin/env bash
# Builds test programs of core and distributed with a sanitizer and runs them: every unit test, and two of the ranks'. What has
# threads: watchdog and log of calls (distributed_health, mpi_health), checkpoints written beside the steps (distributed_checkpoint,
# mpi_resume), samples made ahead (core_data), a tokenizer shared by threads (core_tokenizer), the metrics' endpoint (launcher).
#   tests/sanitize.sh asan|tsan [PROGRAM...]     asan: addresses, undefined behaviour; tsan: data races
# LibTorch, Open MPI and protobuf are not instrumented: what goes on inside them is not seen, and not counted against us.
# SANITIZE_BUILD: the build folder (build-asan, build-tsan). Takes long: it is not among the tests that run with every change.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
kind=${1:?asan or tsan}
shift
folder=$(realpath -m "${SANITIZE_BUILD:-build-$kind}")
cmake --preset "$kind" -B "$folder" >/dev/null

export ASAN_OPTIONS=detect_leaks=0:detect_container_overflow=0 UBSAN_OPTIONS=print_stacktrace=1
# What a thread has written to a file is not handed over to another that reads some other file: with io_sync 1 that would count, and
# hide where a lock is missing. So would ignore_noninstrumented_modules: libstdc++ is one, and calls all work of std::async. Reports
# go to a file: a test may have captured what is printed.
export TSAN_OPTIONS=io_sync=0:log_path=$folder/report OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
# The thread sanitizer has its own ranges of addresses and its own end of a thread: PMIx's shared store asks for an address
# outside of them, and UCX's hook on madvise is called when a thread's state is gone. Both end in MPI_Init.
export PMIX_MCA_gds=hash UCX_MEM_EVENTS=no
if [ "$kind" = tsan ]; then export GTEST_FILTER=-SaveCrash.TheNewest*; fi  # forks, and starts threads in the child
mpirun=$(sed -n 's/^MPIEXEC_EXECUTABLE:.*=//p' "$folder/CMakeCache.txt")
source tests/support/ranks.sh

programs=("$@")
if ((${#programs[@]} == 0)); then
  programs=(core_{base,config,io,tokenizer,train,ops,model,mixer,morph,select,data,eval,export}
    distributed_{parallel,checkpoint,run,health,stages,coordinator} launcher mpi_health mpi_resume)
fi
failed=0
for program in "${programs[@]}"; do
  case $program in mpi_*) target=mpi_test_${program#mpi_} start=("${ranks[@]}" 2) ;; *) target=test_$program start=() ;; esac
  cmake --build "$folder" --target "$target" >"$work/log" 2>&1 || { tail -30 "$work/log"; fail "$target does not build"; }
  file=$(find "$folder/tests" -type f -name "$target")
  rm -f "$folder"/report.*
  if setarch -R "${start[@]}" "$file" >"$work/log" 2>&1; then
    echo "$kind $program: $(grep -aoE '[0-9]+ tests? ran|\[  PASSED  \] [0-9]+ tests?' "$work/log" | tail -1)"
  else
    cat "$folder"/report.* >>"$work/log" 2>/dev/null || true
    grep -aE -A25 'ERROR: AddressSanitizer|runtime error|WARNING: ThreadSanitizer|FAILED|Failure' "$work/log" | head -80
    echo "$kind $program: FAILED"
    failed=1
  fi
done
exit "$failed"
