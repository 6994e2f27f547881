"""What mixer.init does to align: its loss over the first steps, with decays from the teacher beside the usual ones.

    python tests/benchmarks/mixer_init.py PROGRAM [--mpirun build/venv/bin/mpirun] [--np 4] [--steps 100]

Runs configs/quickstart.yaml up to align for each mixer with learned decays; prints a Markdown table (docs/mixers.md).
"""

import argparse
import json
import os
import pathlib
import subprocess
import tempfile

BATCH_TOKENS = 4096
BRIEF = {  # what follows align, as short as it can be
    "stages.select.tokens": 1,
    "stages.distill.tokens": 0,
    "stages.evaluate.compare": "[]",
    "stages.evaluate.samples": 1,
    "stages.evaluate.greedy_samples": 0,
    "stages.evaluate.perplexity_tokens": 1024,
    "stages.export.enabled": "false",
    "metrics.listen": "off",
}


def losses(arguments, kind, init, folder):
    settings = BRIEF | {
        "run.dir": folder,
        "run.name": f"{kind}-{init}",
        "mixer.kind": kind,
        "mixer.init": init,
        "stages.align.batch_tokens": BATCH_TOKENS,
        "stages.align.tokens": BATCH_TOKENS * arguments.steps,
    }
    command = [arguments.mpirun, "-np", str(arguments.np), "--oversubscribe", "--bind-to", "none", arguments.program]
    command += ["configs/quickstart.yaml"] + [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    environment = os.environ | {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMPI_MCA_mpi_yield_when_idle": "1"}
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    lines = map(json.loads, (pathlib.Path(folder) / f"{kind}-{init}" / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if line["stage"] == "align"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--mpirun", default="build/venv/bin/mpirun")
    parser.add_argument("--np", type=int, default=4)
    parser.add_argument("--steps", type=int, default=100)
    arguments = parser.parse_args()
    steps = [step for step in (1, 10, 25, 50, 100) if step <= arguments.steps]
    print("| mixer | mixer.init | " + " | ".join(f"step {step}" for step in steps) + " |")
    print("|---|---|" + "---|" * len(steps))
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("gla", "gated_delta_net"):
            for init in ("default", "data"):
                loss = losses(arguments, kind, init, folder)
                print(f"| {kind} | {init} | " + " | ".join(f"{loss[step - 1]:.4f}" for step in steps) + " |", flush=True)


if __name__ == "__main__":
    main()
