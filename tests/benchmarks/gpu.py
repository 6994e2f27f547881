"""Runs the benchmarks that need a card, ours beside PyTorch + flash-linear-attention, and writes one JSON file.

    python tests/benchmarks/gpu.py BUNDLE --fla DIR --json out.json [--only NAME...] [--mixers NAME...]     from the repository's root

BUNDLE is made by `deploy/bundle.sh BUNDLE flashmorph-dist stages_gpu`; DIR has FLA's unpacked wheels. Each run is a process
of its own, one after the other on the same card. Prints a table; the 8B shape runs on our side only.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
STAGES = {"select_1x16384": ("select", 1, 16384), "select_4x4096": ("select", 4, 4096), "align_32x512": ("align", 32, 512),
          "distill_32x512": ("distill", 32, 512)}

MIXERS = ["lightning", "gla", "gated_delta_net"]


def finished(command, environment, limit):
    """Its last line of output as JSON, or why there is none."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return {"failed": f"not done within {limit} s", "command": " ".join(command)}
    if done.returncode != 0:
        return {"failed": done.stderr[-2000:], "command": " ".join(command)}
    return json.loads(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--fla", required=True)
    parser.add_argument("--json", required=True)
    parser.add_argument("--only", nargs="+", choices=[*STAGES, "select_8B", "operators", "limits"])
    parser.add_argument("--mixers", nargs="+", choices=MIXERS, default=MIXERS)
    parser.add_argument("--limit", type=int, default=240, help="seconds a run may take")
    arguments = parser.parse_args()
    wanted = lambda name: arguments.only is None or name in arguments.only
    run, fla = str(Path(arguments.bundle) / "run"), {"PYTHONPATH": arguments.fla}

    results = {"runs": []}

    def add(name, command, environment=None):
        start = time.monotonic()
        result = finished(command, environment or {}, arguments.limit) | {"name": name}
        results["runs"].append(result)
        with open(arguments.json, "w") as file:
            json.dump(results, file, indent=1)
            file.write("\n")
        if "failed" in result:
            print(f"{name:<32} failed: {result['failed'][-300:]}", flush=True)
        elif "tokens_per_second" in result:
            print(f"{name:<32} {result['side']:<16} {result['tokens_per_second']:>9.0f} tokens/s  {1e3 * result['seconds_a_step']:>8.1f} ms"
                  f"  {result['peak_gib']:>6.1f} GiB   ({time.monotonic() - start:.0f} s)", flush=True)
        else:
            print(f"{name:<32} {json.dumps(result)[:600]}", flush=True)

    for mixer in arguments.mixers:
        for name, (stage, sequences, length) in STAGES.items():
            if not wanted(name):
                continue
            shape = ["--mixer", mixer, "--stage", stage, "--sequences", str(sequences), "--length", str(length)]
            profile = ["--profile"] if name in ("select_1x16384", "align_32x512") else []
            add(f"{name} {mixer}", [run, "stages_gpu", *shape, *profile])
            add(f"{name} {mixer}", [sys.executable, str(HERE / "eager_stages_gpu.py"), *shape], fla)
    if wanted("select_8B"):
        add("select_8B", [run, "stages_gpu", "--shape", "8B", "--stage", "select", "--sequences", "1", "--length", "8192", "--steps", "4"])
    if wanted("limits"):
        add("limits", [sys.executable, str(HERE / "limits_gpu.py")])
    if wanted("operators"):
        table = Path(arguments.json).with_suffix(".operators.json")
        subprocess.run([sys.executable, str(HERE / "operators_gpu.py"), f"{arguments.bundle}/lib", "--json", str(table)],
                       env=os.environ | fla, timeout=arguments.limit, check=False)


if __name__ == "__main__":
    main()
