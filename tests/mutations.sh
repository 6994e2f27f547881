#!/usr/bin/env bash
# Breaks the linear-attention code in each way of mutations.txt, on a copy, and requires that the tests see it.
#   tests/mutations.sh           builds and tests every mutation; a table to standard output
#   tests/mutations.sh --check   only that each of them still changes its file
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD work=$PWD/build/mutations
venv=${FLASHMORPH_VENV:-$root/build/venv}

fields() { sed 's/ *| */|/g' <<<"$1"; }

# mutated FILE SED: the broken file to standard output, or failure when nothing changed.
mutated() {
  sed "$2" "$1" | if cmp -s - "$1"; then return 1; else sed "$2" "$1"; fi
}

# outcome TARGET FILTER: what the tests of the broken copy say.
outcome() {
  if ! ninja -C "$work/build" "test_$1" >"$work/build.log" 2>&1; then echo "does not compile"; return; fi
  local program; program=$(find "$work/build/tests" -name "test_$1" -type f)
  if (cd "$work/source" && OMP_NUM_THREADS=1 "$program" --gtest_filter="$2" >"$work/test.log" 2>&1); then
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
  for target in core_ops core_mixer; do
    ninja -C "$work/build" "test_$target" >"$work/build.log"
    (cd "$work/source" && OMP_NUM_THREADS=1 "$(find "$work/build/tests" -name "test_$target" -type f)" >"$work/test.log") ||
      { echo "test_$target is red before anything is broken"; exit 1; }
  done
}

check_only=false
[[ ${1:-} == --check ]] && check_only=true
$check_only || { prepare; printf '| what is broken | file | seen by | outcome |\n|---|---|---|---|\n'; }

failures=0
while IFS= read -r line; do
  [[ -z $line || $line == \#* ]] && continue
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
done <tests/mutations.txt
exit $((failures > 0))
