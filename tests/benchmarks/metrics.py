"""What metrics cost a run: its pace with the endpoint off, on, and under 1000 scrapes, as ratios of one sitting.

    python tests/benchmarks/metrics.py build/flashmorph-dist [--rounds 3]     from the repository's root

One rank, one thread, the passkey teacher; the three take turns, so that what else the machine does strikes all alike.
`pace` is tokens a second of select's steps by the clock, `CPU` the seconds of the whole process, which other processes do
not change; a ratio is the median over the rounds of a round's own ratio to `off`.
"""

import argparse
import json
import statistics
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

from paired_runs import BATCH, cpu_seconds, in_turns, median, ratios, started, step_seconds

SCRAPES = 1000
STEPS = 96
FORMS = {"off": ("off", False), "on": ("127.0.0.1:0", False), f"on, {SCRAPES} scrapes": ("127.0.0.1:0", True)}


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
        run = started(program, folder, {"metrics.listen": listen, "stages.select.tokens": BATCH * STEPS})
        ended, counted = threading.Event(), {"scrapes": 0}
        client = threading.Thread(target=scrape_until, args=(ended, Path(folder) / "quickstart.prometheus.json", counted))
        if scraped:
            client.start()
        cpu = cpu_seconds(run)
        ended.set()
        if scraped:
            client.join()
        if scraped and counted["scrapes"] < SCRAPES:
            sys.exit(f"only {counted['scrapes']} scrapes fitted into the run")
        return {"pace": BATCH / step_seconds(folder, "select"), "cpu": cpu}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    rounds = in_turns(FORMS, arguments.rounds, lambda form: one_run(arguments.program, *FORMS[form]))
    print("| metrics | select tokens/s | pace / off | spread | CPU seconds | CPU / off |")
    print("|---|---|---|---|---|---|")
    for form in FORMS:
        pace = ratios(rounds, form, "off", "pace")
        cpu = ratios(rounds, form, "off", "cpu")
        print(f"| {form} | {median(rounds, form, 'pace'):.0f} | {statistics.median(pace):.3f} | {min(pace):.3f} to "
              f"{max(pace):.3f} | {median(rounds, form, 'cpu'):.1f} | {statistics.median(cpu):.3f} |")


if __name__ == "__main__":
    main()
