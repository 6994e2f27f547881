"""Times align and select of the program beside the same stages in eager PyTorch (eager_stages.py).

    python tests/benchmarks/stages.py build/flashmorph-dist [--json out.json]     from the repository's root

One process and one thread on each side, the passkey teacher, the same tokens a step and a sequence; the two sides take
turns, a figure is the median over the rounds. Warm-up steps are not counted. Peak memory is the process's resident set.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

TEACHER = "tests/data/passkey-teacher"
EAGER = Path(__file__).with_name("eager_stages.py")
STAGES = {"align": {"length": 512, "batch": 8}, "select": {"length": 1024, "batch": 4}}  # 4096 tokens a step
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def finished(command):
    """Runs it; its output and its peak resident set in MiB."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ONE_THREAD) as process:
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))} ended with {process.returncode}:\n{output}")
    return output, round(usage.ru_maxrss / 1024)


def ours(program, stage, steps):
    shape = STAGES[stage]
    step_tokens = shape["length"] * shape["batch"]
    keys = {f"stages.{stage}.tokens": step_tokens * steps, f"stages.{stage}.batch_tokens": step_tokens,
            f"stages.{stage}.micro_batch_tokens": step_tokens, f"stages.{stage}.data.lengths": shape["length"],
            "parallel.tensor": 1, "stages.distill.tokens": 0, "stages.evaluate.compare": "[]",
            "stages.evaluate.lengths": 512, "stages.evaluate.samples": 1, "stages.evaluate.greedy_samples": 0,
            "stages.evaluate.perplexity_tokens": 512, "stages.export.enabled": "false"}
    if stage == "align":
        keys |= {"stages.select.method": "uniform", "stages.align.data.passkeys": 4, "stages.align.data.words": 8}
    else:
        keys["stages.align.tokens"] = 4096
    with tempfile.TemporaryDirectory() as folder:
        sets = [argument for key, value in (keys | {"run.dir": folder}).items() for argument in ("--set", f"{key}={value}")]
        _, memory = finished([program, "configs/quickstart.yaml", *sets])
        lines = map(json.loads, (Path(folder) / "quickstart" / "metrics.jsonl").read_text().splitlines())
        times = [line["time"] for line in lines if line["stage"] == stage]
    return step_tokens * (len(times) - 1) / (times[-1] - times[0]), memory


def eager(stage, steps):
    shape = STAGES[stage]
    output, memory = finished([sys.executable, EAGER, TEACHER, "--stage", stage, "--batch", str(shape["batch"]), "--length",
                               str(shape["length"]), "--tokens", str(shape["length"] * shape["batch"] * (steps - 1))])
    return json.loads(output.splitlines()[-1])["tokens_per_second"], memory


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--json", help="also write the results to this file")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6, help="of which the first is warm-up")
    arguments = parser.parse_args()
    program = Path(arguments.program).resolve()

    results = []
    print(f"{'stage':<8} {'ours tok/s':>10} {'eager tok/s':>11} {'ratio':>6} {'ours MiB':>9} {'eager MiB':>9}")
    for stage, shape in STAGES.items():
        rounds = [(ours(program, stage, arguments.steps), eager(stage, arguments.steps)) for _ in range(arguments.rounds)]
        mine, theirs = ({"tokens_per_second": round(statistics.median(side[0] for side in sides)),
                         "peak_rss_mib": max(side[1] for side in sides)} for sides in zip(*rounds))
        ratio = round(mine["tokens_per_second"] / theirs["tokens_per_second"], 2)
        results.append({"stage": stage, **shape, "ours": mine, "eager": theirs, "ours_over_eager": ratio})
        print(f"{stage:<8} {mine['tokens_per_second']:>10} {theirs['tokens_per_second']:>11} {ratio:>6} "
              f"{mine['peak_rss_mib']:>9} {theirs['peak_rss_mib']:>9}", flush=True)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps({"threads": 1, "rounds": arguments.rounds, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
