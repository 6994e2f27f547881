#!/usr/bin/env python3
"""A rank that is killed, stopped, or out of its card's memory, in each training stage over NCCL.

    faults.py BUNDLE [--stages align select distill finetune] [--faults kill survive stop memory]     from the repository's root

Each is a run of two ranks, on two cards of their own; all of them at once. The job must end by itself within the deadline
with the exit code and the message that docs/faults.md promises, leave no process, and the same command must then end
well. The cards must then have as much memory free as before. kill: mpirun ends the others; survive: they notice themselves
(mpirun --with-ft ulfm). The fault strikes when the journal has the stage's second step, never at a time."""

import argparse
import concurrent.futures
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "faults"))
from kills import left_behind, lines, ranks_of  # noqa: E402

STAGES = ("align", "select", "distill", "finetune")
FAULTS = ("kill", "survive", "stop", "memory")
MESHES = {"align": "pipeline", "select": "tensor", "distill": "pipeline", "finetune": "tensor"}
DEADLINE = 8.0  # health.step, seconds
LEAST_BYTES = 320 << 20  # what a rank may have in the runs that are to run out of memory; other stages need less
ENOUGH = 150.0  # seconds for a start to end
CODES = {"kill": (137,), "survive": (3, 4), "stop": (4,), "memory": (3,)}


def command(bundle, folder, name, stage, fault, limited):
    steps = {one: (20 if one == stage else 2, 4096, 1024) for one in STAGES}
    if fault == "memory":
        steps[stage] = (2, 65536, 65536)
    keys = {"run.dir": folder, "run.name": name, "device.kind": "cuda", "device.dtype": "float32", "parallel.tensor": 1,
            "checkpoint.every": 5, "health.step": DEADLINE,
            "stages.evaluate.compare": "[]", "stages.evaluate.lengths": 512, "stages.evaluate.samples": 2,
            "stages.evaluate.greedy_samples": 0, "stages.evaluate.perplexity_tokens": 1024, "stages.export.enabled": "false"}
    keys[f"parallel.{MESHES[stage]}"] = 2
    for one, (count, batch, micro_batch) in steps.items():
        keys |= {f"stages.{one}.tokens": count * batch, f"stages.{one}.batch_tokens": batch,
                 f"stages.{one}.micro_batch_tokens": micro_batch, f"stages.{one}.data.lengths": 1024}
    program = ["flashmorph-dist", "configs/quickstart.yaml"]
    program += [word for key, value in keys.items() for word in ("--set", f"{key}={value}")]
    limit = ["env", f"PYTORCH_CUDA_ALLOC_CONF=per_process_memory_fraction:{limited}"] if limited else []
    return [f"{bundle}/run", "mpirun", *(["--with-ft", "ulfm"] if fault == "survive" else []), "--oversubscribe", "--bind-to",
            "none", "-np", "1", *program, ":", "-np", "1", *limit, *program]


def start(words, cards, log):
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": cards, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT, env=environment)


def wait_for_step(mpirun, run, stage):
    while mpirun.poll() is None:
        steps = [json.loads(line) for line in lines(run / "metrics.jsonl")]
        if sum(step["stage"] == stage for step in steps) >= 2:
            return
        time.sleep(0.005)  # between two looks
    raise AssertionError(f"the run ended before two steps of {stage}")


def promised(fault, stage):
    step = rf"{stage}[^:\n]*, step \d+"
    waits = r"waiting: rank 0 on \S+ in .*, number \d+ of group \w+|waiting: rank 0 on \S+, its card, in .*, number \d+ of group \w+"
    return {"kill": [r"process rank 1 .*exited on\s+signal 9"],
            "survive": [rf"rank 0 on \S+: {step}: ", "missing: rank 1 on .* gives no answer"],
            "stop": [rf"rank 0 on \S+: {step}: not done after", "missing: rank 1 on .* gives no answer", waits],
            "memory": [rf"rank 1 on \S+: {step}: CUDA out of memory", waits]}[fault]


def strike(bundle, folder, stage, fault, cards, fraction):
    name = f"{stage}-{fault}"
    run, log_file = folder / name, folder / f"{name}.log"
    words = command(bundle, folder, name, stage, fault, None)
    with open(log_file, "w") as log:
        mpirun = start(command(bundle, folder, name, stage, fault, fraction) if fault == "memory" else words, cards, log)
        try:
            if fault != "memory":
                wait_for_step(mpirun, run, stage)
                os.kill(ranks_of(mpirun)[1], signal.SIGSTOP if fault == "stop" else signal.SIGKILL)
            begun = time.monotonic()
            code = mpirun.wait(timeout=ENOUGH)
            seconds = time.monotonic() - begun
        finally:
            if mpirun.poll() is None:
                mpirun.kill()
    said = log_file.read_text(errors="replace")
    assert code in CODES[fault], f"exit code {code} instead of {CODES[fault]}: {said[-3000:]}"
    for pattern in promised(fault, stage):
        assert re.search(pattern, said, re.S if fault == "kill" else 0), f"no '{pattern}' in: {said[-3000:]}"
    while left := left_behind(folder, name):  # mpirun may return before the last rank that it ends is gone
        assert time.monotonic() - begun < ENOUGH, f"left behind: {left}"
        time.sleep(0.05)  # between two looks
    shown = [line.strip() for line in said.splitlines() if re.search(r"not done|out of memory|failed on|missing|waiting|exited on", line)]

    with open(log_file, "a") as log:
        again = start(words, cards, log)
        try:
            code = again.wait(timeout=ENOUGH)
        finally:
            again.terminate()
    assert code == 0, f"the second start: exit code {code}: {log_file.read_text(errors='replace')[-3000:]}"
    return seconds, shown


def used_bytes():
    rows = subprocess.run(["nvidia-smi", "--query-gpu=memory.used,memory.total", "--format=csv,noheader,nounits"], check=True,
                          capture_output=True, text=True).stdout.splitlines()
    return [[int(field) << 20 for field in row.split(",")] for row in rows]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=pathlib.Path)
    parser.add_argument("--stages", nargs="*", default=STAGES)
    parser.add_argument("--faults", nargs="*", default=FAULTS)
    arguments = parser.parse_args()
    bundle = arguments.bundle.resolve()
    before = used_bytes()
    pairs = [f"{2 * pair},{2 * pair + 1}" for pair in range(len(before) // 2)]
    fraction = f"{LEAST_BYTES / before[0][1]:.6f}"
    failed = 0
    with tempfile.TemporaryDirectory() as temporary:
        struck = [(stage, fault) for stage in arguments.stages for fault in arguments.faults]
        with concurrent.futures.ThreadPoolExecutor(len(struck)) as pool:
            futures = {pool.submit(strike, bundle, pathlib.Path(temporary), stage, fault, pairs[number % len(pairs)], fraction):
                       f"{stage}, {fault}" for number, (stage, fault) in enumerate(struck)}
            for future in concurrent.futures.as_completed(futures):
                try:
                    seconds, shown = future.result()
                    print(f"fault {futures[future]}: ended after {seconds:.1f} s, went on; " + " | ".join(shown), flush=True)
                except (AssertionError, KeyError, subprocess.TimeoutExpired) as failure:
                    failed += 1
                    print(f"fault {futures[future]}: FAILED: {failure}", flush=True)
    begun = time.monotonic()
    while (left := max(now[0] - then[0] for now, then in zip(used_bytes(), before))) > 64 << 20:
        if time.monotonic() - begun > 30.0:
            sys.exit(f"{left >> 20} MiB of a card are still taken")
        time.sleep(0.5)  # between two looks
    print("fault memory of the cards: as before")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
