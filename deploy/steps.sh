# Sourced from the repository's root: steps whose wall times are printed at the end.
times=()
trap 'if ((${#times[@]})); then printf "wall time: %s\n" "${times[@]}"; fi' EXIT

# timed NAME COMMAND...: its exit code is passed on; its wall time is printed at the end.
timed() {
  local name=$1 started=$SECONDS code=0
  shift
  "$@" || code=$?
  times+=("$name $((SECONDS - started)) s")
  return "$code"
}

# build [TARGET...]: all of them by default.
build() {
  cmake -S . -B build -G Ninja >build/configure.log || { cat build/configure.log; return 1; }
  ninja -C build "$@"
}
