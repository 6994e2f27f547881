"""Times select's steps on a row of meshes; prints a Markdown table (docs/parallel.md holds one).

    python3 tests/benchmarks/mesh_scaling.py [--json out.json] [MESH ...]     from the repository's root

A mesh is DATAxPIPELINExTENSOR. The programs are those on the PATH, else those of build/. Where there is no build, with a
bundle from elsewhere (deploy/bundle.sh BUNDLE mesh_scaling):

    BUNDLE/run python3 tests/benchmarks/mesh_scaling.py --json out.json

Each mesh is an mpirun of its own, ranks of one thread each. Where ranks are more than cores they take turns: such a step
says nothing of their speed, and no idle time is given.
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

MESHES = ["1x1x1", "1x1x2", "1x1x4", "1x2x1", "1x4x1", "2x1x1", "4x1x1", "2x2x2", "8x4x2"]
CORES = len(os.sched_getaffinity(0))
COLUMNS = {"data x pipeline x tensor": lambda r: f"{r['data']} x {r['pipeline']} x {r['tensor']}",
           "step (ms)": lambda r: f"{r['step_ms']:.1f}",
           "tokens/s": lambda r: f"{r['tokens_per_second']:.0f}",
           "MB moved a rank": lambda r: f"{r['moved_mb_a_rank']:.2f}",
           "idle in the pipeline": lambda r: f"{100 * r['idle']:.0f} %" if r["ranks"] <= CORES else "-",
           "(p-1)/(m+p-1)": lambda r: f"{100 * r['idle_by_formula']:.0f} %",
           "MB a rank, of them the model's": lambda r: f"{r['memory_mb']:.0f}, {r['memory_of_model_mb']:.0f}"}


def row(cells):
    print("| " + " | ".join(cells) + " |", flush=True)


def program(name, built):
    return shutil.which(name) or built


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("meshes", nargs="*", metavar="MESH", default=MESHES)
    parser.add_argument("--json", help="also write the results to this file")
    parser.add_argument("--model", default="tests/data/passkey-teacher")
    parser.add_argument("--length", type=int, default=1024, help="tokens a micro-batch")
    parser.add_argument("--micro-batches", type=int, default=8, help="a data rank")
    parser.add_argument("--steps", type=int, default=7, help="that count, after two that do not")
    arguments = parser.parse_args()
    mpirun = program("mpirun", "build/venv/bin/mpirun")
    benchmark = program("mesh_scaling", "build/tests/benchmarks/mesh_scaling")
    one_thread = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OMPI_ALLOW_RUN_AS_ROOT": "1",
                               "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMPI_MCA_mpi_yield_when_idle": "1"}

    results = {"cores": CORES, "meshes": []}
    row(COLUMNS)
    row(["---"] * len(COLUMNS))
    for mesh in arguments.meshes:
        data, pipeline, tensor = map(int, mesh.split("x"))
        done = subprocess.run(
            [mpirun, "-np", str(math.prod((data, pipeline, tensor))), "--oversubscribe", "--bind-to", "none", benchmark,
             arguments.model, str(pipeline), str(tensor), str(arguments.micro_batches), str(arguments.length), str(arguments.steps)],
            capture_output=True, text=True, env=one_thread, check=False)
        if done.returncode != 0:
            sys.exit(f"{mesh} ended with {done.returncode}:\n{done.stderr}")
        results["meshes"].append(json.loads(done.stdout.splitlines()[-1]))
        row([cell(results["meshes"][-1]) for cell in COLUMNS.values()])
        if arguments.json:
            Path(arguments.json).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
