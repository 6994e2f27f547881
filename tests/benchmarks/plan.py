"""What `plan --card` says of every step that was measured on cards, beside the measured time.

    python tests/benchmarks/plan.py build/flashmorph-dist [--one-card] [--markdown]     from the repository's root

The measured steps are those of docs/benchmarks/*.json. Needs no card: the models are their config.json and the names of
their tensors. Fails when one is more than 25 % off, unless its host was busy or its build lacked most of today's kernels.
--one-card: only those of one card and one micro-batch, which takes a few seconds.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from shapes import write_model

BENCHMARKS = Path("docs/benchmarks")
LIMIT = 0.25
MESHES = {"1": {}, "data 2": {}, "tensor 2": {"tensor": 2}, "tensor 2, sequence": {"tensor": 2, "sequence": "true"},
          "data 4": {}, "tensor 4": {"tensor": 4}, "pipeline 2": {"pipeline": 2}, "pipeline 4": {"pipeline": 4}}

def otherwise(stage, row):
    """What the build of the four cards' rows did in another way than this one."""
    return "states went on behind the branches" if "mixer" not in row and "pipeline" in row["mesh"] and stage == "align" else ""


def data_ranks(mesh, ranks):
    return ranks if mesh.startswith("data") else 1


def measured_steps():
    """Each: card, shape, stage, mesh, ranks, micro-batches of a data rank, (sequences, length), seconds, what was done in another way, and
    whether it counts all the same."""
    steps = []
    for card in ("h200", "h100"):
        for run in json.loads((BENCHMARKS / f"{card}.json").read_text())["runs"]:
            if run.get("side") == "flashmorph":
                steps.append(dict(card=card, shape=run["shape"], stage=run["stage"], mesh="1", ranks=1, micro=1,
                                  rows=(run["sequences"], run["length"]), seconds=run["seconds_a_step"],
                                  apart="an earlier build" if card == "h100" or "build" in run else "documents" if run["documents"] else "",
                                  counts=True, sets={"mixer.kind": run["mixer"], "device.frozen_dtype": run.get("frozen_dtype", "same")}))
    for row in json.loads((BENCHMARKS / "scaling-h200.json").read_text())["rows"]:
        tokens = row.get("micro_batch_tokens", 16384)
        for stage, of in row["stages"].items():
            kept = {"parallel.recompute": "full"} if stage in row.get("recompute", []) else {}
            steps.append(dict(card="h200", shape=row.get("shape", "1.7B"), stage=stage, mesh=row["mesh"], ranks=row["cards"],
                              micro=row["micro_batches_a_step"] // data_ranks(row["mesh"], row["cards"]),
                              rows=(1, tokens) if stage == "select" else (tokens // 512, 512), seconds=statistics.median(of["step_ms"]) * 1e-3,
                              apart=otherwise(stage, row), counts=True, sets={"mixer.kind": row.get("mixer", "lightning")} | kept))
    for run in json.loads((BENCHMARKS / "smollm2-shape-h200.json").read_text())["runs"]:
        apart = {"before": "an early build", "after": "an earlier build", "warpgroups": "a busy host", "apart": "", "fused": ""}[run["build"]]
        steps.append(dict(card="h200", shape="135M", stage=run["stage"], mesh="1", ranks=1, micro=1,
                          rows=(run["sequences"], run["length"]), seconds=run["seconds_a_step"],
                          apart=", ".join(filter(None, [apart, "documents" if "documents" in run["row"] else ""])),
                          counts=run["build"] in ("apart", "fused")))
    return steps


# Without branches and gates there is no run.
WITHOUT = {"align": "{tokens: 64, batch_tokens: 64, data: {lengths: 64}}",
           "select": "{tokens: 64, batch_tokens: 64, data: {lengths: 64, passkeys: 1, words: 1}}", "distill": "{tokens: 0}"}


def config_of(steps, model):
    """One run with a stage for each step; they have one mesh."""
    lines = ["model: {path: %s}" % model, "mixer: {kind: lightning, chunk: 128}", "budget: {ratio: '3:1'}",
             "device: {kind: cuda, dtype: bfloat16}", "data: {text: unused}", "stages:"]
    for stage in ("align", "select", "distill"):
        if stage not in steps:
            lines.append(f"  {stage}: " + WITHOUT[stage])
            continue
        step = steps[stage]
        sequences, length = step["rows"]
        tokens = sequences * length
        batch = tokens * step["micro"] * data_ranks(step["mesh"], step["ranks"])
        passkeys = "passkeys: [2, 10], words: 8" if stage == "select" else "passkey_share: 0"
        lines.append(f"  {stage}: {{tokens: {batch}, batch_tokens: {batch}, micro_batch_tokens: {tokens}, "
                     f"data: {{lengths: {length}, {passkeys}}}}}")
    lines.append("  evaluate: {lengths: 512, samples: 2, passkeys: 2, words: 4, greedy_samples: 0, compare: []}")
    return "\n".join(lines) + "\n"


def planned(program, steps, folder):
    """Fills in each step's `planned` seconds: one run of plan for those that can share one."""
    runs = []
    for step in steps:
        sets = step.get("sets", {}) | {f"parallel.{key}": value for key, value in MESHES[step["mesh"]].items()}
        key = (step["card"], step["shape"], sets, step["ranks"], step["micro"])
        for known, by_stage in runs:
            if known == key and (step["stage"] not in by_stage or by_stage[step["stage"]][0]["rows"] == step["rows"]):
                by_stage.setdefault(step["stage"], []).append(step)
                break
        else:
            runs.append((key, {step["stage"]: [step]}))
    for (card, shape, sets, ranks, _), by_stage in runs:  # of one config each
        if not (folder / shape).exists():
            write_model(folder / shape, shape)
        config = folder / "run.yaml"
        config.write_text(config_of({stage: some[0] for stage, some in by_stage.items()}, folder / shape))
        command = [program, "plan", str(config), "--np", str(ranks), "--card", card, "--json"]
        for key, value in sets.items():
            command += ["--set", f"{key}={value}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        answer = json.loads(done.stdout) if done.stdout else {"stages": []}
        if not answer["stages"]:  # those without room on the card are there
            sys.exit(f"{' '.join(command)}: {done.stderr}{answer.get('refused', '')}")
        for told in answer["stages"]:
            for step in by_stage.get(told["stage"], []):
                step["planned"] = told["seconds_a_step"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--one-card", action="store_true")
    parser.add_argument("--markdown", action="store_true")
    arguments = parser.parse_args()
    steps = [step for step in measured_steps() if not arguments.one_card or step["ranks"] == step["micro"] == 1]
    with tempfile.TemporaryDirectory() as folder:
        planned(arguments.program, steps, Path(folder))
    line = "| {} |" if arguments.markdown else "{}"
    cells = " | " if arguments.markdown else "  "
    print(line.format(cells.join(["card", "shape, mesh, micro-batches, rows x tokens", "stage", "plan", "measured", "off", "measured with"])))
    if arguments.markdown:
        print("|---|---|---|---|---|---|---|")
    far = 0
    for step in sorted(steps, key=lambda step: (not step["counts"], step["apart"] != "")):
        off = step["planned"] / step["seconds"] - 1
        far += abs(off) > LIMIT and step["counts"]
        special = "".join(f", {value}" for value in step.get("sets", {}).values() if value not in ("lightning", "same"))
        row = [step["card"], f"{step['shape']}{special}, {step['mesh']}, {step['micro']}, {step['rows'][0]} x {step['rows'][1]}", step["stage"],
               f"{1e3 * step['planned']:.0f} ms", f"{1e3 * step['seconds']:.0f} ms", f"{100 * off:+.0f} %", step["apart"]]
        print(line.format(cells.join(row)))
    sys.exit(f"{far} steps are more than {LIMIT:.0%} off" if far else 0)


if __name__ == "__main__":
    main()
