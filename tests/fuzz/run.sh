#!/usr/bin/env bash
# Feeds the readers of files that others write with mutated bytes, under libFuzzer, AddressSanitizer and
# UndefinedBehaviorSanitizer. An input that crashes a reader, or makes it ask for far more memory than the input has
# bytes, is left in build/fuzz and ends the script with exit code 1.
#   tests/fuzz/run.sh [SECONDS] [TARGET...]     60 seconds a target; all of safetensors, tokenizer, config and index
# Needs clang with its run-time libraries (deploy/install.sh --fuzz); neither LibTorch nor MPI.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

readonly kBuild=build/fuzz
readonly kSources=(
  core/base/bad_input.cpp core/base/sha256.cpp
  core/io/{json_input,lfs_pointer,megatron_index,safetensors_header}.cpp
  core/tokenizer/{added_tokens,byte_alphabet,byte_pairs,normalizer,oniguruma,pre_tokenizer,split_pattern}.cpp
  core/tokenizer/{subwords,text_encoder,token_decoder,tokenizer,tokenizer_file,unicode_classes,utf8}.cpp
  core/model/config_json.cpp core/model/model_spec.cpp core/model/rope.cpp
)
readonly kFlags=(-std=c++20 -O1 -g -fno-omit-frame-pointer -fsanitize=fuzzer-no-link,address,undefined
  -fno-sanitize-recover=undefined -I.)
readonly kLibraries=(-lcrypto -lpcre2-8 -lutf8proc)

seconds=${1:-60}
shift || true
targets=("$@")
((${#targets[@]})) || targets=(safetensors tokenizer config index)

# compiled SOURCE: its object file, made when it is older than any source or header of ours.
compiled() {
  local object="$kBuild/${1//\//_}.o"
  if [[ ! -f $object || -n $(find core tests/fuzz \( -name '*.cpp' -o -name '*.h' \) -newer "$object" -print -quit) ]]; then
    clang++ "${kFlags[@]}" -c "$1" -o "$object"
  fi
  echo "$object"
}

mkdir -p "$kBuild"
objects=()
for source in "${kSources[@]}"; do objects+=("$(compiled "$source")"); done
code=0
for target in "${targets[@]}"; do
  clang++ "${kFlags[@]}" -fsanitize=fuzzer "$(compiled "tests/fuzz/$target.cpp")" "${objects[@]}" "${kLibraries[@]}" -o "$kBuild/$target"
  mkdir -p "$kBuild/corpus-$target"
  echo "== $target, $seconds s"
  "$kBuild/$target" -max_total_time="$seconds" -max_len=16384 -timeout=20 -rss_limit_mb=2048 -malloc_limit_mb=8 \
    -dict=tests/fuzz/words.dict -print_final_stats=1 -artifact_prefix="$kBuild/$target-" \
    "$kBuild/corpus-$target" "tests/fuzz/seeds/$target" 2>"$kBuild/$target.log" || code=1
  grep -E 'stat::(number_of_executed_units|peak_rss_mb)|^SUMMARY|ERROR' "$kBuild/$target.log" || true
done
exit "$code"
