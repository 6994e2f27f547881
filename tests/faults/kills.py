#!/usr/bin/env python3
"""Kills a random rank at random moments of a run (SIGKILL), resumes, and compares with the run that nobody disturbed.

    kills.py FLASHMORPH_DIST MPIRUN [--moments 50] [--ranks 2] [--seed 1] [--deadline 120]     from the repository's root

A moment is a line that the run writes into its journals, or the appearance of the ranks: never a time. Each run that was
killed must end by itself within the deadline with exit code 137 and a message that names the rank, leave no process, and
the same command must then end well with the same gates, bit for bit. Prints a Markdown table."""

import argparse
import collections
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

CONFIG = ["tests/data/run64.yaml", "--set", "parallel={tensor: 2}", "--set", "metrics.listen=off",
          "--set", "stages.align.tokens=4096", "--set", "stages.select.tokens=4096", "--set", "stages.distill.tokens=2048",
          "--set", "stages.distill.parallel={}", "--set", "stages.evaluate.compare=[]", "--set", "stages.evaluate.samples=2", "--set", "checkpoint.every=2"]
ENVIRONMENT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMPI_MCA_mpi_yield_when_idle": "1",
               "OMP_NUM_THREADS": "1"}
JOURNALS = ("events.jsonl", "metrics.jsonl")
MOST_TRIES = 10  # on a busy machine a short run may be over before this process gets to look
KINDS = ("load", "step", "save", "evaluate")

Moment = collections.namedtuple("Moment", "kind journal line text")  # journal None: the ranks have appeared


def command(arguments, folder, name):
    return [arguments.mpirun, "-np", str(arguments.ranks), "--oversubscribe", "--bind-to", "none", arguments.program, *CONFIG,
            "--set", f"run.dir={folder}", "--set", f"run.name={name}"]


def start(arguments, folder, name, log):
    return subprocess.Popen(command(arguments, folder, name), stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **ENVIRONMENT})


def lines(file):
    """The whole lines that are there; the last one may still be written."""
    return file.read_text().split("\n")[:-1] if file.exists() else []


def moments_of(run):
    """Every moment of an undisturbed run but its end, by kind."""
    moments = {kind: [] for kind in KINDS}
    moments["load"].append(Moment("load", None, 0, "ranks started"))
    for number, text in enumerate(lines(run / "events.jsonl")):
        event = json.loads(text)
        what = " ".join(str(event[key]) for key in ("event", "stage", "what") if key in event)
        if event["event"] in ("started", "device"):
            moments["load"].append(Moment("load", "events.jsonl", number, what))
        elif event["event"] == "stage_started":
            kind = "evaluate" if event["stage"] == "evaluate" else "step"
            moments[kind].append(Moment(kind, "events.jsonl", number, what))
        elif event["event"] in ("stage_finished", "exported"):
            moments["save"].append(Moment("save", "events.jsonl", number, what))
    steps = [json.loads(text) for text in lines(run / "metrics.jsonl")]
    for number, step in enumerate(steps):
        what = f"{step['stage']} {step['what']} {step['step']}"
        is_last = number + 1 == len(steps) or (steps[number + 1]["stage"], steps[number + 1]["what"]) != (step["stage"], step["what"])
        kind = "evaluate" if step["stage"] == "evaluate" else "save" if is_last else "step"  # behind its last step a stage is saved
        moments[kind].append(Moment(kind, "metrics.jsonl", number, what))
    return moments


def ranks_of(mpirun):
    """Process ids of this mpirun's ranks."""
    found = {}
    for pid in pathlib.Path(f"/proc/{mpirun.pid}/task/{mpirun.pid}/children").read_text().split():
        try:
            values = pathlib.Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            name = os.readlink(f"/proc/{pid}/exe")
        except OSError:
            continue
        ranks = [int(value.split(b"=")[1]) for value in values if value.startswith(b"OMPI_COMM_WORLD_RANK=")]
        if ranks and name.endswith("flashmorph-dist"):
            found[ranks[0]] = int(pid)
    return found


def wait_for(moment, run, mpirun, ranks):
    """True when the moment has come, False when the run has ended before."""
    while mpirun.poll() is None:
        if moment.journal is None:
            if len(ranks_of(mpirun)) == ranks:
                return True
        elif len(lines(run / moment.journal)) > moment.line:
            return True
        time.sleep(0.005)  # between two looks
    return False


def left_behind(folder, name):
    """Processes of the run that are still there."""
    mine = f"run.dir={folder}\0--set\0run.name={name}\0".encode()
    found = []
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes()
            state = (process / "stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            continue
        if mine in words and state != "Z":
            found.append(process.name)
    return found


def gates(run):
    kept = json.loads((run / "gates.json").read_text())
    plan = json.loads((run / "plan.json").read_text())
    return [kept["alpha"], [step["alpha"] for step in kept["history"]], plan["plans"]]


def kill_once(arguments, folder, number, moment, rank, expected):
    """Seconds to the end, and finished stages; None when the run was over before the moment was seen."""
    run, log_file = folder / f"run{number}", folder / f"run{number}.log"
    shutil.rmtree(run, ignore_errors=True)
    with open(log_file, "w") as log:
        mpirun = start(arguments, folder, run.name, log)
        came = wait_for(moment, run, mpirun, arguments.ranks)
        pid = ranks_of(mpirun).get(rank) if came else None
        if pid is None:
            mpirun.wait()
            return None
        os.kill(pid, signal.SIGKILL)
        begun = time.monotonic()
        code = mpirun.wait(timeout=arguments.deadline)
        seconds = time.monotonic() - begun
    said = log_file.read_text()
    assert code == 137, f"exit code {code}: {said}"
    assert re.search(rf"process rank {rank} .*exited on\s+signal 9", said, re.S), f"the message names no rank {rank}: {said}"
    while left := left_behind(folder, run.name):  # mpirun may return before the last rank that it ends is gone
        assert time.monotonic() - begun < arguments.deadline, f"left behind: {left}"
        time.sleep(0.05)  # between two looks

    with open(log_file, "w") as log:
        code = start(arguments, folder, run.name, log).wait()
    said = log_file.read_text()
    assert code == 0, f"the second start: exit code {code}: {said}"
    assert gates(run) == expected, f"other gates after '{moment.text}'"
    return seconds, len(re.findall("already done", said))


def missed(moment):
    raise AssertionError(f"every one of {MOST_TRIES} runs ended before '{moment.text}' was seen")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("mpirun")
    parser.add_argument("--moments", type=int, default=50)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--deadline", type=float, default=120.0, help="seconds a killed run may take to end")
    arguments = parser.parse_args()
    arguments.program = os.path.abspath(arguments.program)
    random.seed(arguments.seed)

    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        with open(folder / "whole.log", "w") as log:
            if start(arguments, folder, "whole", log).wait() != 0:
                sys.exit((folder / "whole.log").read_text())
        expected, moments = gates(folder / "whole"), moments_of(folder / "whole")
        print("| # | killed | at | ended after | finished stages kept | same gates |\n|--:|---|---|--:|--:|---|", flush=True)
        failures = 0
        for number in range(arguments.moments):
            kind = KINDS[number % len(KINDS)]
            moment, rank = random.choice(moments[kind]), random.randrange(arguments.ranks)
            try:
                tries = (kill_once(arguments, folder, number, moment, rank, expected) for _ in range(MOST_TRIES))
                seconds, done = next(filter(None, tries), None) or missed(moment)
                outcome = f"{seconds:.1f} s | {done} | yes"
            except (AssertionError, subprocess.TimeoutExpired) as failure:
                failures += 1
                outcome = f"- | - | NO: {failure}"
            print(f"| {number + 1} | rank {rank} | {kind}: {moment.text} | {outcome} |", flush=True)
    if failures:
        sys.exit(f"{failures} of {arguments.moments} kills went wrong")


if __name__ == "__main__":
    main()
