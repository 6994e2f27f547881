"""What metrics cost a run: its pace with the endpoint off, on, and under 1000 scrapes, as ratios of one sitting.

    python tests/benchmarks/metrics.py build/flashmorph-dist [--rounds 5]     from the repository's root

One rank, one thread, the passkey teacher; the three take turns, so that what else the machine does strikes all alike.
`pace` is tokens a second of select's steps by the clock, `CPU` the seconds of the whole process, which other processes do
not change; a ratio is the median over the rounds of a round's own ratio to `off`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

SCRAPES = 1000
STEPS = 24
KEYS = {"parallel.tensor": 1, "stages.align.tokens": 4096, "stages.select.tokens": 4096 * STEPS, "stages.distill.tokens": 0,
        "stages.evaluate.compare": "[]", "stages.evaluate.lengths": 512, "stages.evaluate.samples": 1,
        "stages.evaluate.greedy_samples": 0, "stages.evaluate.perplexity_tokens": 512, "stages.export.enabled": "false"}


def scrape_until(ended, target_file, counted):
    while not target_file.exists():
        if ended.is_set():
            return
        time.sleep(0.01)
    target = json.loads(target_file.read_text())[0]["targets"][0]
    while counted["scrapes"] < SCRAPES and not ended.is_set():
        try:
            urllib.request.urlopen(f"http://{target}/metrics").read()
        except OSError:
            return  # the run has ended
        counted["scrapes"] += 1


def one_run(program, listen, scraped):
    with tempfile.TemporaryDirectory() as folder:
        keys = KEYS | {"run.dir": folder, "metrics.listen": listen}
        sets = [argument for key, value in keys.items() for argument in ("--set", f"{key}={value}")]
        run = subprocess.Popen([program, "configs/quickstart.yaml", *sets], stdout=subprocess.DEVNULL,
                               env=os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"})
        ended, counted = threading.Event(), {"scrapes": 0}
        client = threading.Thread(target=scrape_until, args=(ended, Path(folder) / "quickstart.prometheus.json", counted))
        if scraped:
            client.start()
        _, status, usage = os.wait4(run.pid, 0)
        run.returncode = os.waitstatus_to_exitcode(status)
        ended.set()
        if scraped:
            client.join()
        if run.returncode != 0:
            sys.exit(f"the run ended with {run.returncode}")
        if scraped and counted["scrapes"] < SCRAPES:
            sys.exit(f"only {counted['scrapes']} scrapes fitted into the run")
        lines = map(json.loads, (Path(folder) / "quickstart/metrics.jsonl").read_text().splitlines())
        times = [line["time"] for line in lines if line["stage"] == "select"]
    return 4096 * (len(times) - 1) / (times[-1] - times[0]), usage.ru_utime + usage.ru_stime


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    program = Path(arguments.program).resolve()
    forms = {"off": ("off", False), "on": ("127.0.0.1:0", False), f"on, {SCRAPES} scrapes": ("127.0.0.1:0", True)}
    rounds = []
    for _ in range(arguments.rounds):
        rounds.append({form: one_run(program, *how) for form, how in forms.items()})
        print(rounds[-1], file=sys.stderr, flush=True)
    print("| metrics | select tokens/s | pace / off | spread | CPU seconds | CPU / off |")
    print("|---|---|---|---|---|---|")
    for form in forms:
        pace = [one[form][0] / one["off"][0] for one in rounds]
        cpu = [one[form][1] / one["off"][1] for one in rounds]
        print(f"| {form} | {statistics.median(one[form][0] for one in rounds):.0f} | {statistics.median(pace):.3f} | "
              f"{min(pace):.3f} to {max(pace):.3f} | {statistics.median(one[form][1] for one in rounds):.1f} | {statistics.median(cpu):.3f} |")


if __name__ == "__main__":
    main()
