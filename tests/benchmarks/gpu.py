"""Runs the benchmarks that need a card, ours beside PyTorch + flash-linear-attention, and writes one JSON file.

    python tests/benchmarks/gpu.py BUNDLE --fla DIR --json out.json [--only NAME...] [--mixers NAME...]     from the repository's root
        [--tokens FILES --tokenizer FILE] [--candidate-ms MS] [--seconds S]

BUNDLE is made by `deploy/bundle.sh BUNDLE flashmorph-dist stages_gpu`; DIR has FLA's unpacked wheels. Each run is a process
of its own, one after the other on the same card. Prints a table; the other side has the 1.7B shape only. --tokens: the 135M
shape trains on these packed documents (docs/corpora.md), else on rows of one text.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
MIXERS = ["lightning", "gated_delta_net", "gla"]
# name: shape, stage, sequences, length, and whether the other side and float8 are timed beside it
ROWS = {"operators": None,
        "select_1x16384": ("1.7B", "select", 1, 16384, True, True),
        "align_32x512": ("1.7B", "align", 32, 512, True, False),
        "distill_32x512": ("1.7B", "distill", 32, 512, True, False),
        "select_4x4096": ("1.7B", "select", 4, 4096, True, False),
        "align_135M_128x512": ("135M", "align", 128, 512, False, False),
        "select_135M_32x2048": ("135M", "select", 32, 2048, False, False),
        "distill_135M_128x512": ("135M", "distill", 128, 512, False, False),
        "align_135M_32x512": ("135M", "align", 32, 512, False, False),
        "select_135M_8x2048": ("135M", "select", 8, 2048, False, False),
        "distill_135M_32x512": ("135M", "distill", 32, 512, False, False),
        "select_8B": ("8B", "select", 1, 8192, False, False),
        "limits": None}
EVERY_MIXER = ("select_1x16384", "align_32x512")  # lightning alone in the others


def finished(command, environment, limit):
    """Its last line of output as JSON, or why there is none."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return {"failed": f"not done within {limit:.0f} s", "command": " ".join(command)}
    if done.returncode != 0 or not done.stdout.strip():
        return {"failed": done.stderr[-2000:], "command": " ".join(command)}
    return json.loads(done.stdout.splitlines()[-1])


def shown(result):
    if "failed" in result:
        return f"failed: {result['failed'][-300:]}"
    if "tokens_per_second" not in result:
        return json.dumps(result)[:600]
    kernels = sum(kernel["ms"] for kernel in result.get("kernels", []))
    profiled = f"  kernels {kernels:.1f} ms, {result['launches']} launches" if kernels else ""
    return (f"{result['side']:<14} {result['tokens_per_second']:>9.0f} tokens/s  {1e3 * result['seconds_a_step']:>8.1f} ms"
            f"  {result['peak_gib']:>6.1f} GiB{profiled}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--fla", required=True)
    parser.add_argument("--json", required=True)
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--mixers", nargs="+", choices=MIXERS, default=MIXERS)
    parser.add_argument("--tokens", help="a token file's first part, without .bin")
    parser.add_argument("--tokenizer")
    parser.add_argument("--candidate-ms", help="FLA's kernels: as of eager_stages_gpu.py")
    parser.add_argument("--limit", type=float, default=240, help="seconds a run may take")
    parser.add_argument("--seconds", type=float, default=3600, help="no run begins after so many")
    arguments = parser.parse_args()
    run, fla = str(Path(arguments.bundle) / "run"), {"PYTHONPATH": arguments.fla}
    tried = ["--candidate-ms", arguments.candidate_ms] if arguments.candidate_ms else []
    documents = ["--tokens", arguments.tokens, "--tokenizer", arguments.tokenizer] if arguments.tokens else []
    results, began = {"runs": []}, time.monotonic()

    def add(name, command, environment=None):
        left = arguments.seconds - (time.monotonic() - began)
        if left <= 0:
            print(f"{name:<32} left out: {arguments.seconds:.0f} s are over", flush=True)
            return
        start = time.monotonic()
        result = finished(command, environment or {}, min(arguments.limit, left)) | {"name": name}
        if "results" in result:
            results["operators"] = result
        else:
            results["runs"].append(result)
        with open(arguments.json, "w") as file:
            json.dump(results, file, indent=1)
            file.write("\n")
        print(f"{name:<32} {shown(result)}   ({time.monotonic() - start:.0f} s)", flush=True)

    for name in arguments.only:
        if name == "limits":
            add(name, [sys.executable, str(HERE / "limits_gpu.py")])
        elif name == "operators":
            add(name, [sys.executable, str(HERE / "operators_gpu.py"), f"{arguments.bundle}/lib", *tried], fla)
        else:
            shape, stage, sequences, length, beside, float8 = ROWS[name]
            for mixer in arguments.mixers if name in EVERY_MIXER else ["lightning"]:
                of = ["--shape", shape, "--mixer", mixer, "--stage", stage, "--sequences", str(sequences), "--length", str(length)]
                add(f"{name} {mixer}", [run, "stages_gpu", *of, "--profile", *(documents if shape == "135M" else [])])
                if float8:
                    add(f"{name} {mixer} fp8", [run, "stages_gpu", *of, "--profile", "--frozen-dtype", "fp8"])
                if beside:
                    add(f"{name} {mixer}", [sys.executable, str(HERE / "eager_stages_gpu.py"), *of, *tried], fla)


if __name__ == "__main__":
    main()
