#!/usr/bin/env bash
# A real model: installs, builds, brings SmolLM2-135M-Instruct and documentation of Debian packages, runs configs/smollm2.yaml
# on one card.
#   deploy/smollm2.sh [--cpu] [--prepare] [--no-build] [--bundle FOLDER] [--model FOLDER] [--text PREFIX]
#                     [--fresh] [--set key=value ...]     the last two go to the program
#     --cpu: without a card and in a short form: two steps of align and select on a text of the repository
#     --prepare: all but the run      --no-build: the program is there
#     --bundle FOLDER: so are the program and mpirun, in what deploy/bundle.sh made
#     --model FOLDER, --text PREFIX: nothing is brought: that folder of the model, those token files
# What is there already is not made again. Everything lies in build/smollm2, the run in runs/smollm2.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source deploy/steps.sh

readonly kData=build/smollm2
readonly kPackages=(postgresql-doc-15 python3.11-doc perl-doc git-doc debian-handbook vim-doc apache2-doc octave-doc r-doc-html)
readonly kShort=(
  run.name=smollm2-cpu device.kind=cpu device.dtype=float32 "data.tokens=$kData/play"
  stages.align.tokens=1024 stages.align.batch_tokens=512 stages.align.micro_batch_tokens=256 stages.align.warmup_steps=0
  stages.align.data.lengths=256 stages.align.data.passkeys=2 stages.align.data.words=4
  stages.select.tokens=1024 stages.select.batch_tokens=512 stages.select.micro_batch_tokens=256
  stages.select.data.lengths=256 stages.select.data.passkeys=2 stages.select.data.words=4 stages.select.polish=0
  stages.distill.tokens=0 stages.evaluate.compare=[]
  stages.evaluate.lengths=256 stages.evaluate.passkeys=2 stages.evaluate.words=4 stages.evaluate.samples=2
  stages.evaluate.perplexity_tokens=1024
)

cpu=false prepare_only=false build=true
model=$kData/model text=$kData/text
program=(build/flashmorph-dist) mpirun=(build/venv/bin/mpirun)
arguments=()
while (($#)); do
  case $1 in
    --cpu) cpu=true ;;
    --prepare) prepare_only=true ;;
    --no-build) build=false ;;
    --bundle | --model | --text)
      (($# > 1)) || { echo "$1 needs a value: see the head of $0" >&2; exit 2; }
      case $1 in
        --bundle) build=false program=("$2/run" flashmorph-dist) mpirun=("$2/run" mpirun) ;;
        --model) model=$2 ;;
        --text) text=$2 ;;
      esac
      shift
      ;;
    *) arguments+=("$1") ;;
  esac
  shift
done

download() { (cd "$kData/packages" && apt-get download -q "${kPackages[@]}"); }

# Downloads and unpacks without installing; the pages become JSON lines, those the token file.
text() {
  if [[ -f $text.idx ]]; then
    echo "text: $text is there"
    return
  fi
  [[ $text == "$kData/text" ]] || { echo "text: there is no $text.idx" >&2; return 2; }
  command -v apt-get >/dev/null || { echo 'the text is documentation of Debian packages, and there is no apt-get here' >&2; return 2; }
  mkdir -p "$kData/packages" "$kData/documents"
  download || { ((EUID == 0)) && apt-get update -q && download; } ||
    { echo "apt-get cannot bring ${kPackages[*]}: run apt-get update as root" >&2; return 2; }
  local package
  for package in "$kData"/packages/*.deb; do dpkg -x "$package" "$kData/documents"; done
  build/venv/bin/python deploy/docs_to_jsonl.py "$kData/documents/usr/share/doc" >"$kData/documents.jsonl"
  "${program[@]}" tokenize "$kData/documents.jsonl" --jsonl text --model "$model" --output "$text"
}

play() {
  if [[ -f $kData/play.idx ]]; then return; fi
  "${program[@]}" tokenize tests/data/text/tinyshakespeare.txt --model "$model" --output "$kData/play"
}

run() {
  if ((EUID == 0)); then export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1; fi
  "${mpirun[@]}" -np 1 --bind-to none "${program[@]}" configs/smollm2.yaml --set "model.path=$model" "$@"
}

if $build; then
  timed install deploy/install.sh
  timed build build flashmorph-dist
fi
timed model deploy/smollm2_model.sh "$model"
mkdir -p "$kData"
if $cpu; then
  timed text play
  for setting in "${kShort[@]}"; do arguments=(--set "$setting" "${arguments[@]}"); done
else
  timed text text
  arguments=(--set "data.tokens=$text" "${arguments[@]}")
fi
if ! $prepare_only; then timed run run "${arguments[@]}"; fi
