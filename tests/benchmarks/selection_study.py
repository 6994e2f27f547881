"""What the selectors pick: recall and perplexity of their hybrids, on the same branches, as docs/selection.md has it.

    python tests/benchmarks/selection_study.py PROGRAM RUN.yaml OUT.json --mixers lightning,gla --budgets 4,8,15 \\
        --compare uniform,ablate --lambdas 0.1,1000 --seeds 1,2,3 [--same-branches] [--set KEY=VALUE ...]

For each mixer and seed a run aligns branches and picks for the first budget; the other budgets, and the paper's objective with each
lambda, are runs that take its branches. --same-branches: seeds but the first take the first's. Runs are kept in --folder: the same
command goes on where it was stopped. OUT.json is written as results come; a table of it is printed last.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import queue
import subprocess
import sys
import threading

PAPER = {"stages.select.objective": "paper", "stages.select.polish": 0, "stages.select.lr": "{from: 2e-2, to: 2e-3}"}


class Study:
    def __init__(self, arguments):
        self.arguments, self.rows, self.lock = arguments, [], threading.Lock()
        self.pool = concurrent.futures.ThreadPoolExecutor(arguments.jobs)
        self.cards = queue.Queue()
        for job in range(arguments.jobs):
            self.cards.put(arguments.cards[job % len(arguments.cards)])
        self.waiting = []

    def run(self, name, settings):
        """One run; its folder."""
        a, card = self.arguments, self.cards.get()
        settings = {"run.dir": a.folder, "run.name": name, "metrics.listen": "off", "stages.export.enabled": "false"} | settings
        command = [a.program, a.yaml] + [w for k, v in settings.items() for w in ("--set", f"{k}={v}")]
        command += [w for one in a.set for w in ("--set", one)]
        done = subprocess.run(command, env=os.environ | ({"CUDA_VISIBLE_DEVICES": card} if card else {}), capture_output=True, text=True)
        self.cards.put(card)
        if done.returncode:
            sys.exit(f"{name}: {done.stderr.strip().splitlines()[-1:]}")
        return pathlib.Path(a.folder) / name

    def collect(self, folder, about):
        plans = {plan["name"]: plan for plan in json.loads((folder / "plan.json").read_text())["plans"]}
        for one in json.loads((folder / "evaluation.json").read_text())["measurements"]:
            forced = [(r["length"], r["teacher_forced"]) for r in one["recall"]]
            recall = {length: round(100 * int(f["right_words"]) / int(f["words"]), 1) for length, f in forced}
            row = about | {"method": one["name"], "after": one.get("after", ""), "recall": recall, "perplexity": round(one["perplexity"], 2)}
            if plan := plans.get(one["name"]):
                row["layers"] = [int(layer) for layer in plan.get("full_layers", [])]
                if judging := plan.get("judging"):
                    row |= {"sets": int(judging["sets"]), "seconds": round(judging["seconds"], 1)}
                if contenders := plan.get("contenders"):
                    row["contenders"] = [[c["method"], [int(i) for i in c["full_layers"]], c.get("recall", 0.0)] for c in contenders]
            with self.lock:
                self.rows.append(row)
                pathlib.Path(self.arguments.out).write_text("[\n" + ",\n".join(map(json.dumps, self.rows)) + "\n]\n")

    def work(self, mixer, seed, budget, penalty=None, branches=None):
        name = f"{mixer}-{seed}-{budget}" + (f"-{penalty}" if penalty else "")
        settings = {"mixer.kind": mixer, "run.seed": seed, "budget.full_layers": budget}
        settings["stages.evaluate.compare"] = "[]" if penalty else f"[{self.arguments.compare}]"
        if branches:
            settings |= {"stages.align.tokens": 0, "stages.align.branches": branches}
        if penalty:
            settings |= PAPER | {"stages.select.gate_penalty": penalty}
        folder = self.run(name, settings)
        about = {"mixer": mixer, "seed": seed, "budget": budget} | ({"lambda": penalty} if penalty else {})
        self.collect(folder, about)
        return str(folder / "branches" / "branches.safetensors")

    def chain(self, mixer, seeds):
        """The first seed's branches, then whatever takes them."""
        a, (first, *others) = self.arguments, seeds
        branches = self.work(mixer, first, a.budgets[0])
        rest = [(first, budget, None) for budget in a.budgets[1:]] + [(first, budget, one) for one in a.lambdas for budget in a.budgets]
        rest += [(seed, budget, None) for seed in others for budget in a.budgets]
        self.waiting += [self.pool.submit(self.work, mixer, *one, branches) for one in rest]

    def all(self):
        a = self.arguments
        seeds = [a.seeds] if a.same_branches else [[seed] for seed in a.seeds]
        for one in [self.pool.submit(self.chain, mixer, some) for mixer in a.mixers for some in seeds]:
            one.result()
        while self.waiting:
            self.waiting.pop(0).result()


def table(rows):
    print("| mixer | seed | K | method | layers | recall | perplexity | sets, seconds |\n|---|---|---|---|---|---|---|---|")
    for r in sorted(rows, key=lambda r: (r["mixer"], r["seed"], r["budget"], str(r.get("lambda", "")), r["after"])):
        method = r["method"] + (f", lambda {r['lambda']}" if "lambda" in r else "") + (f" after {r['after']}" if r["after"] else "")
        judged = f"{r['sets']}, {r['seconds']}" if "sets" in r else ""
        layers = " ".join(map(str, r.get("layers", ["all"])))
        print(f"| {r['mixer']} | {r['seed']} | {r['budget']} | {method} | {layers} | {' / '.join(map(str, r['recall'].values()))} | {r['perplexity']} | {judged} |")


def main():
    some = lambda kind: lambda text: [kind(one) for one in text.split(",") if one]  # noqa: E731
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("program", "yaml", "out"):
        parser.add_argument(name)
    parser.add_argument("--mixers", type=some(str), default=["lightning"])
    parser.add_argument("--budgets", type=some(int), required=True, help="layers with full attention")
    parser.add_argument("--seeds", type=some(int), default=[1])
    parser.add_argument("--compare", default="uniform", help="methods beside the YAML's own")
    parser.add_argument("--lambdas", type=some(str), default=[], help="the paper's objective with each of them")
    parser.add_argument("--same-branches", action="store_true")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of every run")
    parser.add_argument("--folder", default="runs/selection")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    parser.add_argument("--cards", type=some(str), default=[""], help="cards that they are dealt out to")
    arguments = parser.parse_args()
    study = Study(arguments)
    study.all()
    table(study.rows)


main()
