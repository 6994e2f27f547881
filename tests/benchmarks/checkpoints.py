"""What a checkpoint every 20 steps costs: a step's time beside that of a run without any, as a ratio of one sitting.

    python tests/benchmarks/checkpoints.py build/flashmorph-dist [--json out.json]     from the repository's root

One rank, one thread, the passkey teacher, one run through align (its checkpoints hold the branches and AdamW's
moments), select (the gates) and distill (all weights and moments); the two forms take turns, so that what else the
machine does strikes both alike. The first 20 steps of a stage are warm-up; each 20 steps that count begin with a save
and see it written. A ratio is the median over the rounds of a round's own ratio to `off`.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from paired_runs import BATCH, cpu_seconds, in_turns, median, ratios, started, step_seconds

STAGES = ("align", "select", "distill")
EVERY = 20
FORMS = {"off": 0, "on": EVERY}  # checkpoint.every


def one_run(arguments, every):
    with tempfile.TemporaryDirectory() as folder:
        tokens = {f"stages.{stage}.tokens": arguments.batch_tokens * arguments.steps for stage in arguments.stages}
        cpu = cpu_seconds(started(arguments.program, folder, tokens | {"checkpoint.every": every}, arguments.batch_tokens))
        warm_up = EVERY if arguments.steps > EVERY else 1
        return {stage: step_seconds(folder, stage, warm_up) for stage in arguments.stages} | {"CPU": cpu}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3 * EVERY, help=f"of each stage, a multiple of {EVERY}")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--batch-tokens", type=int, default=BATCH, help="of a step; the quickstart has 4096")
    parser.add_argument("--json", help="also write the results to this file")
    arguments = parser.parse_args()
    rounds = in_turns(FORMS, arguments.rounds, lambda form: one_run(arguments, FORMS[form]))
    results = []
    print(f"| seconds | off | every {EVERY} steps | ratio | spread |")
    print("|---|---|---|---|---|")
    for what in (*arguments.stages, "CPU"):
        off, on, ratio = median(rounds, "off", what), median(rounds, "on", what), ratios(rounds, "on", "off", what)
        name = "CPU of the whole run" if what == "CPU" else f"a step of {what}"
        spread = f"{min(ratio):.3f} to {max(ratio):.3f}"
        print(f"| {name} | {off:.3f} | {on:.3f} | {statistics.median(ratio):.3f} | {spread} |")
        results.append({"seconds": name, "off": off, "on": on, "ratios": ratio})
    if arguments.json:
        setting = {"every": EVERY, "steps": arguments.steps, "tokens_a_step": arguments.batch_tokens, "threads": 1}
        Path(arguments.json).write_text(json.dumps(setting | {"results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
