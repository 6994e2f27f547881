#!/usr/bin/env bash
# Breaks the code in each way of mutations.txt, on a copy, and requires that the tests see it.
#   tests/mutations.sh [WORD]    builds and tests every mutation (every one whose line has the WORD); a table to standard output
#   tests/mutations.sh --check   only that each of them still changes its file
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD work=$PWD/build/mutations
venv=${FLASHMORPH_VENV:-$root/build/venv}

fields() { sed 's/ *| */|/g' <<<"$1"; }

# mutated FILE SED: the broken file to standard output, or failure when nothing changed.
mutated() {
  ! cmp -s <(sed "$2" "$1") "$1" && sed "$2" "$1"
}

# run_tests "PROGRAM [RANKS]" FILTER: on the copy; what they print is in test.log.
run_tests() {
  local program ranks file launch=()
  read -r program ranks <<<"$1"
  file=$(find "$work/build/tests" -name "$program" -type f)
  [[ -z $ranks ]] || launch=("$venv/bin/mpirun" -np "$ranks" --oversubscribe --bind-to none)
  (cd "$work/source" && timeout 300 "${launch[@]}" "$file" --gtest_filter="$2" >"$work/test.log" 2>&1)
}

# outcome "PROGRAM [RANKS]" FILTER: what the tests of the broken copy say.
outcome() {
  if ! ninja -C "$work/build" "${1%% *}" >"$work/build.log" 2>&1; then echo "does not compile"; return; fi
  if run_tests "$1" "$2"; then
    echo "SURVIVED"
  else
    echo "red: $(grep -c '^\[  FAILED  \] .* ms)$' "$work/test.log" || true) of $(grep -cE '^\[ RUN ' "$work/test.log") tests"
  fi
}

prepare() {
  rm -rf "$work"  # what an earlier mutation left would look newer than its source
  mkdir -p "$work/source" "$work/build"
  git ls-files -z | xargs -0 cp --parents -p -t "$work/source"
  cmake -S "$work/source" -B "$work/build" -G Ninja -DFLASHMORPH_VENV="$venv" >"$work/configure.log"
  while IFS= read -r program; do
    ninja -C "$work/build" "${program%% *}" >"$work/build.log"
    run_tests "$program" '*' || { echo "$program is red before anything is broken"; exit 1; }
  done < <(mutations | while IFS= read -r line; do fields "$line" | cut -d'|' -f4; done | sort -u)
}

mutations() { grep -v -e '^#' -e '^$' tests/mutations.txt | grep -F -- "$word"; }

export OMP_NUM_THREADS=1 OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_mpi_yield_when_idle=1
check_only=false word=${1:-}
[[ $word == --check ]] && check_only=true word=
$check_only || { prepare; printf '| what is broken | file | seen by | outcome |\n|---|---|---|---|\n'; }

failures=0
while IFS= read -r line; do
  IFS='|' read -r what file expression target filter < <(fields "$line")
  if ! broken=$(mutated "$file" "$expression"); then
    echo "no longer applies: $what ($file)" >&2
    failures=$((failures + 1))
  elif ! $check_only; then
    printf '%s\n' "$broken" >"$work/source/$file"
    result=$(outcome "$target" "$filter")
    cp "$file" "$work/source/$file"
    [[ $result == red* ]] || failures=$((failures + 1))
    printf '| %s | %s | `%s` | %s |\n' "$what" "$file" "$filter" "$result"
  fi
done < <(mutations)
exit $((failures > 0))
