"""Short runs of configs/quickstart.yaml, one rank and one thread, for benchmarks that let forms of a run take turns."""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

BATCH = 1024  # tokens a step: a quarter of the quickstart's, so that what a step costs besides its work weighs four times as much


def short_run(batch):
    """Every stage as short as it can be, with `batch` tokens a step."""
    steps = {f"stages.{stage}.{key}": batch for stage in ("align", "select", "distill") for key in ("tokens", "batch_tokens")}
    return steps | {
        "parallel.tensor": 1, "metrics.listen": "off", "stages.align.micro_batch_tokens": 1024, "stages.distill.tokens": 0, "stages.select.polish": 0,
        "stages.evaluate.compare": "[]", "stages.evaluate.lengths": 512, "stages.evaluate.samples": 1,
        "stages.evaluate.greedy_samples": 0, "stages.evaluate.perplexity_tokens": 512, "stages.export.enabled": "false"}


def started(program, folder, keys, batch=BATCH):
    """A run in `folder`, every stage short but for what `keys` say."""
    keys = short_run(batch) | keys | {"run.dir": folder}
    sets = [argument for key, value in keys.items() for argument in ("--set", f"{key}={value}")]
    return subprocess.Popen([Path(program).resolve(), "configs/quickstart.yaml", *sets], stdout=subprocess.DEVNULL,
                            env=os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"})


def cpu_seconds(run):
    """Waits for its end, which must be a good one."""
    _, status, usage = os.wait4(run.pid, 0)
    run.returncode = os.waitstatus_to_exitcode(status)
    if run.returncode != 0:
        sys.exit(f"the run ended with {run.returncode}")
    return usage.ru_utime + usage.ru_stime


def step_seconds(folder, stage, warm_up=1):
    """The mean of the wall times of the stage's steps behind the first ones."""
    lines = map(json.loads, (Path(folder) / "quickstart" / "metrics.jsonl").read_text().splitlines())
    times = [line["time"] for line in lines if line["stage"] == stage]
    return (times[-1] - times[warm_up - 1]) / (len(times) - warm_up)


def in_turns(forms, rounds, measure):
    """Every round measures each form once: a list of {form: what `measure(form)` returned, {name: number}}."""
    results = []
    for _ in range(rounds):
        results.append({form: measure(form) for form in forms})
        print(results[-1], file=sys.stderr, flush=True)
    return results


def median(rounds, form, name):
    return statistics.median(one[form][name] for one in rounds)


def ratios(rounds, form, base, name):
    """Each round's own ratio of two forms that were measured one behind the other."""
    return [one[form][name] / one[base][name] for one in rounds]
