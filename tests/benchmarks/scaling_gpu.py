"""Times the program's stages on meshes of cards, a run a row, and writes one JSON file (docs/benchmarks/scaling-h200.json is such a one).

    deploy/bundle.sh BUNDLE flashmorph-dist libnccl_times.so
    python3 tests/benchmarks/scaling_gpu.py BUNDLE --models DIR --runs DIR --json out.json [--only ROW...] [--seconds S]

from the repository's root, where python3 has torch. Makes the folders of the models in --models (random weights; those that are there
are taken), then starts `flashmorph-dist` for each row and reads the steps' times from its journal, the card's time in NCCL
from libnccl_times.so. A run is ended when the row's last stage has made its steps, or at the row's limit; no row begins after --seconds.
Nothing else may use the cards.

    ... --shape tiny --device cpu --tokens 1024     tries the rows on CPUs
"""

import argparse
import itertools
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

from plan import MESHES, data_ranks
from shapes import SHAPES, write_model

STAGES = ("align", "select", "distill")
TOKENIZER = Path("tests/data/passkey-teacher")
TEXT = "tests/data/text/tinyshakespeare.txt"
FEW, MANY = {"align": 9, "select": 7, "distill": 8}, {stage: 3 for stage in STAGES}  # steps
ALIGN_AND_SELECT = {"align": 9, "select": 7}
EVERY_8B = {"align": 4, "select": 4, "distill": 8}
SAVE_AT = 5  # the step of distill that begins with a save, in rows with one

WORDS = {"what": "flashmorph-dist, random weights, bf16; align and distill micro-batches of sequences of 512 tokens, select one sequence",
         "share_of_ideal": "of so many times the mean pace of one card with as many micro-batches a step as a data rank",
         "communication": "shares of the steps' time, means over the ranks, by timing events around NCCL's calls and the waits for them; "
                          "a pipeline's receive waits for its sender"}


def row(shape, mesh, micro=1, steps=None, mixer="lightning", tokens=16384, **more):
    """micro: micro-batches a step of all data ranks; tokens: of one."""
    return dict(shape=shape, mesh=mesh, micro=micro, steps=steps or FEW, mixer=mixer, tokens=tokens) | more


# In the order of what they tell.
ROWS = {"1": row("1.7B", "1"),
        "tensor": row("1.7B", "tensor 2"),
        "sequence": row("1.7B", "tensor 2, sequence"),
        "pipeline": row("1.7B", "pipeline 2", 8, MANY),
        "data": row("1.7B", "data 2", 2),
        "1x8": row("1.7B", "1", 8, MANY),
        "gdn": row("1.7B", "1", mixer="gated_delta_net"),
        "gdn-tensor": row("1.7B", "tensor 2", mixer="gated_delta_net"),
        "8B-pipeline": row("8B", "pipeline 2", 8, MANY, tokens=8192, limit=130, recompute=["distill"]),
        "8B-tensor": row("8B", "tensor 2", steps=EVERY_8B, tokens=8192),
        "8B-save": row("8B", "tensor 2", steps=EVERY_8B, tokens=8192, save=True, limit=400),
        "save": row("1.7B", "1", save=True, limit=200),
        "8B": row("8B", "1", steps=ALIGN_AND_SELECT, tokens=8192),
        "tensor-untimed": row("1.7B", "tensor 2", timed=False),
        "gla": row("1.7B", "1", mixer="gla"),
        "gla-tensor": row("1.7B", "tensor 2", mixer="gla"),
        "tensor-4": row("1.7B", "tensor 4"),
        "pipeline-4": row("1.7B", "pipeline 4", 8, MANY),
        "data-4": row("1.7B", "data 4", 4)}


def cards_of(mesh):
    return int(mesh.replace(",", " ").split()[1]) if mesh != "1" else 1


def random_model(shape, folder, device):
    import torch  # in a process of its own, which leaves nothing on the card

    def values(name, sizes):
        if "norm" in name:
            tensor = torch.ones(sizes, dtype=torch.bfloat16)
        else:
            tensor = torch.empty(sizes, dtype=torch.bfloat16, device=device).normal_(0.0, 0.02).cpu()
        return memoryview(tensor.view(torch.uint8).numpy())

    write_model(folder, shape, values)
    for file in TOKENIZER.glob("tokenizer*.json"):
        shutil.copy(file, folder)


def environment_of(bundle):
    """What its `run` sets, so that a run's seconds begin with mpirun."""
    shown = subprocess.run([f"{bundle}/run", "env", "-0"], capture_output=True, text=True, check=True).stdout
    return dict(line.split("=", 1) for line in shown.split("\0") if line) | {"NCCL_NVLS_ENABLE": "0"}


def make_models(shapes, models, device):
    started = {}
    for number, shape in enumerate(shapes):
        if not (models / shape).exists():
            visible = {"CUDA_VISIBLE_DEVICES": str(number % 2)} if device == "cuda" else {}
            started[shape] = subprocess.Popen([sys.executable, __file__, "--make", shape, str(models / shape), "--device", device],
                                              env=os.environ | visible)
    for shape, process in started.items():
        if process.wait() != 0:
            sys.exit(f"no model of shape {shape}: exit code {process.returncode}")


def config_of(what, name, folder, arguments):
    tokens, steps = what["tokens"], what["steps"]
    batch = tokens * what["micro"]
    length = min(512, tokens)
    last = list(steps)[-1]

    def stage(key, data):
        # The last one has steps enough to go on while the memory is looked at.
        kept = {"parallel": MESHES[what["mesh"]] | {"recompute": "full"}} if key in what.get("recompute", []) else {}
        return {"tokens": (steps.get(key, 1) + (1000 if key == last else 0)) * batch, "batch_tokens": batch, "micro_batch_tokens": tokens,
                "data": data} | kept

    plain = {"lengths": length, "passkey_share": 0}
    return {"run": {"name": name, "dir": str(folder)}, "model": {"path": str(arguments.models / what["shape"])},
            "mixer": {"kind": what["mixer"], "chunk": 128}, "budget": {"ratio": "3:1"},
            "device": {"kind": arguments.device, "dtype": "bfloat16" if arguments.device == "cuda" else "float32"},
            "parallel": MESHES[what["mesh"]], "data": {"text": TEXT}, "metrics": {"listen": "off"}, "health": {"sniff": True},
            "checkpoint": {"every": SAVE_AT if what.get("save") else 0},
            "stages": {"align": stage("align", plain),
                       "select": stage("select", {"lengths": tokens, "passkeys": [2, 10], "words": 8}) | {"polish": 0},
                       "distill": stage("distill", plain), "finetune": {"tokens": 0},
                       "evaluate": {"lengths": length, "samples": 2, "passkeys": 2, "words": 4, "greedy_samples": 0, "compare": [],
                                    "perplexity_tokens": 1024, "perplexity_length": length},
                       "export": {"enabled": False}}}


def lines_of(file):
    """The whole lines of a journal that is being written."""
    return [json.loads(line) for line in file.read_text().split("\n")[:-1]] if file.exists() else []


def ranks_below(mpirun):
    """Process ids of the program's ranks."""
    found, parents = [], [mpirun]
    while parents:
        parent = parents.pop()
        try:
            children = [int(child) for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]
            found += [child for child in children if Path(f"/proc/{child}/comm").read_text().strip() == "flashmorph-dist"]
        except OSError:  # it is gone
            continue
        parents += children
    return found


def host_bytes(process):
    """Memory of its own, without files."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0
    return sum(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("RssAnon"))


def card_state(query, cards):
    if shutil.which("nvidia-smi") is None:
        return None
    shown = subprocess.run(["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits"], capture_output=True, text=True, check=False)
    return [[int(field) for field in line.split(",")] for line in shown.stdout.splitlines()][:cards]


def wait_for_quiet_cards(cards):
    """What was there before takes a moment to give its memory back."""
    until = time.monotonic() + 8.0
    while (state := card_state("memory.used,utilization.gpu", cards)) is not None and time.monotonic() < until:
        if all(used < 2048 and busy < 5 for used, busy in state):
            break
        time.sleep(0.1)  # between two looks
    return state


class Run:
    """One run of the program under mpirun, and what is seen of it while it goes on."""

    def __init__(self, name, what, arguments):
        runs = (what.get("save") and arguments.saves) or arguments.runs
        self.what, self.folder = what, runs / name
        shutil.rmtree(self.folder, ignore_errors=True)
        self.times = arguments.runs / f"{name}.nccl"
        shutil.rmtree(self.times, ignore_errors=True)
        self.times.mkdir(parents=True)
        config = arguments.runs / f"{name}.yaml"
        config.write_text(json.dumps(config_of(what, name, runs, arguments)))
        timed = cards_of(what["mesh"]) > 1 and what.get("timed", True) and arguments.device == "cuda"
        preload = [f"FLASHMORPH_NCCL_TIMES={self.times}", f"LD_PRELOAD={arguments.bundle}/bin/libnccl_times.so"] if timed else []
        command = ["mpirun", "--oversubscribe", "--bind-to", "none", "-np", str(cards_of(what["mesh"])),
                   *(["env", *preload] if preload else []), "flashmorph-dist", str(config)]
        self.log = open(arguments.runs / f"{name}.log", "w+")
        self.memory, self.host = {}, []  # MiB of the cards behind a stage; (seconds, bytes of a rank ...)
        self.started = time.time()
        self.process = subprocess.Popen(command, stdout=self.log, stderr=subprocess.STDOUT, env=arguments.environment)

    def steps(self, stage):
        return [line["time"] for line in lines_of(self.folder / "metrics.jsonl") if line["stage"] == stage and "loss" in line]

    def saved(self):
        return [event for event in lines_of(self.folder / "events.jsonl") if event["event"] == "saved" and event["stage"] == "distill"]

    def save_failed(self):
        started = [event["time"] for event in lines_of(self.folder / "events.jsonl") if event.get("stage") == "distill"][:1]
        return [event["detail"] for event in lines_of(self.folder / "events.jsonl")
                if event["event"] == "warning" and started and event["time"] > started[0] and "checkpoint" in event["detail"]]

    def look(self):
        """Whether everything is there."""
        if self.what.get("save"):
            self.host.append((time.time(), *map(host_bytes, ranks_below(self.process.pid))))
        for stage, count in self.what["steps"].items():
            if len(self.steps(stage)) < count:
                return False
            if stage not in self.memory:
                self.memory[stage] = [used for used, in card_state("memory.used", cards_of(self.what["mesh"])) or []]
        return not self.what.get("save") or bool(self.saved() or self.save_failed())

    def go(self, limit):
        """Until everything is there. Returns what went wrong."""
        while not self.look():
            if self.process.poll() is not None:
                return f"ended with {self.process.returncode}"
            if time.time() - self.started > limit:
                return f"not done within {limit:.0f} s"
            time.sleep(0.05)  # between two looks
        return ""

    def end(self, limit=60.0):
        """At once: a rank that is asked to end would save first. Returns what went wrong: a disk that is written to may hold a rank."""
        until = time.monotonic() + limit
        while self.process.poll() is None and time.monotonic() < until:
            for rank in ranks_below(self.process.pid):
                os.kill(rank, signal.SIGKILL)
            try:
                self.process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                self.process.terminate()
        self.log.flush()
        return "" if self.process.poll() is not None else f"its processes were there {limit:.0f} s after their end"

    def said(self):
        self.log.seek(0)
        return self.log.read()


def covered(spans, first, last):
    """Seconds of [first, last] that lie in a span."""
    total, until = 0.0, first
    for begin, end in sorted(spans):
        total += max(0.0, min(end, last) - max(begin, until))
        until = max(until, min(end, last))
    return total


def nccl_shares(folder, first, last):
    """Of a stretch of time, means over the ranks: the card in NCCL, and its work waiting for that."""
    shares = {"call": [], "wait": []}
    for file in folder.iterdir():
        lines = [line.split() for line in file.read_text().split("\n")[:-1]]
        for what, found in shares.items():
            spans = [(float(at), float(at) + 1e-3 * float(ms)) for kind, at, ms in lines if kind == what]
            found.append(covered(spans, first, last) / (last - first))
    return {name: round(statistics.mean(shares[what]), 4) for name, what in
            (("card_in_communication", "call"), ("work_waits_for_it", "wait"))} if shares["call"] else {}


def stage_result(run, stage):
    what, times = run.what, run.steps(stage)[:run.what["steps"][stage]]
    if what.get("save") and stage == "distill":
        times = times[:SAVE_AT]
    counted = times[1:] if len(times) > 3 else times  # the second step still warms up where there are more
    took = [later - earlier for earlier, later in itertools.pairwise(counted)]
    if not took:
        return None
    return {"step_ms": [round(1e3 * one, 1) for one in took],
            "tokens_per_second": round(what["tokens"] * what["micro"] / statistics.median(took)),
            "memory_mib": run.memory.get(stage)} | nccl_shares(run.times, counted[0], counted[-1])


def save_result(run):
    """What the save of distill took from the steps and from the host's memory."""
    times = run.steps("distill")
    usual = statistics.median([later - earlier for earlier, later in itertools.pairwise(times[1:SAVE_AT])])
    after = [later - earlier for earlier, later in itertools.pairwise(times[SAVE_AT - 1:])]
    ranks = [list(one) for one in zip(*[seen[1:] for seen in run.host if seen[0] > times[1] and len(seen) == len(run.host[-1])])]
    before = [list(one) for one in zip(*[seen[1:] for seen in run.host if times[1] < seen[0] < times[SAVE_AT - 1]])]
    files = [file.stat().st_size for file in run.folder.glob("checkpoints/*distill*/*") if file.is_file()]
    grown = [max(all_of_it) - max(first) for all_of_it, first in zip(ranks, before)]
    return {"seconds_a_step": round(usual, 3), "seconds_of_the_step_with_the_save": round(after[0], 3) if after else None,
            "seconds_of_the_steps_behind_it": [round(one, 2) for one in after[1:9]],
            "written_after_seconds": round(run.saved()[0]["seconds"], 1) if run.saved() else None,
            "bytes_on_disk": sum(files), "warnings": run.save_failed(), "host_bytes_before": [max(first) for first in before], "host_bytes_more_at_most": grown,
            "host_bytes_more_over_saved": round(sum(grown) / sum(files), 3) if run.saved() and sum(files) else None}


def measured(name, what, arguments, limit):
    cards = cards_of(what["mesh"])
    before = wait_for_quiet_cards(cards)
    run = Run(name, what, arguments)
    failed = "; ".join(filter(None, [run.go(limit), run.end()]))
    events = lines_of(run.folder / "events.jsonl")
    ready = next((event for event in events if event["event"] == "ready"), None)
    first = run.steps("align")
    sniffed = [line.strip() for line in run.said().splitlines() if "matrix product" in line]
    result = {"row": name, "shape": what["shape"], "mixer": what["mixer"], "mesh": what["mesh"], "cards": cards,
              "micro_batches_a_step": what["micro"], "micro_batch_tokens": what["tokens"], "recompute": what.get("recompute", []), "cards_before": before, "sniff": sniffed,
              "ready": ready and ready["detail"], "seconds_from_mpirun_to_ready": ready and round(ready["time"] - run.started, 2),
              "seconds_from_mpirun_to_the_end_of_the_first_step": round(first[0] - run.started, 2) if first else None,
              "stages": {stage: found for stage in what["steps"] if (found := stage_result(run, stage))}}
    if what.get("save") and len(run.steps("distill")) >= SAVE_AT:
        result["save"] = save_result(run)
    if failed:
        result |= {"failed": failed, "said": run.said()[-3000:]}
    shutil.rmtree(run.folder, ignore_errors=True)
    return result


def add_shares(rows):
    """Of the ideal: so many times the mean pace of one card with as many micro-batches a step as a data rank has."""
    for one in rows:
        if one["cards"] == 1:
            continue
        alike = lambda other: all(other[key] == one[key] for key in ("shape", "mixer", "micro_batch_tokens"))
        alone = [other for other in rows if other["cards"] == 1 and alike(other)]
        micro = one["micro_batches_a_step"] // data_ranks(one["mesh"], one["cards"])
        alone = [other for other in alone if other["micro_batches_a_step"] == micro] or alone
        for stage, found in one["stages"].items():
            paces = [other["stages"][stage]["tokens_per_second"] for other in alone if stage in other["stages"]]
            if paces:
                found["share_of_ideal"] = round(found["tokens_per_second"] / one["cards"] / statistics.mean(paces), 3)


def shown(one):
    parts = [f"first step {one['seconds_from_mpirun_to_the_end_of_the_first_step']} s"]
    for stage, found in one["stages"].items():
        share = f" {100 * found['share_of_ideal']:.0f}%" if "share_of_ideal" in found else ""
        busy = f" comm {100 * found['card_in_communication']:.0f}% waits {100 * found['work_waits_for_it']:.0f}%" if "card_in_communication" in found else ""
        parts.append(f"{stage} {statistics.median(found['step_ms']):.1f} ms {found['tokens_per_second']}/s{share}{busy} {found['memory_mib']} MiB")
    if "save" in one:
        parts.append(f"save {json.dumps(one['save'])}")
    return "; ".join(parts + ([f"FAILED: {one['failed']}: {one['said'][-400:]}"] if "failed" in one else []))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", nargs="?", type=Path)
    parser.add_argument("--models", type=Path)
    parser.add_argument("--runs", type=Path, help="folder for the runs")
    parser.add_argument("--saves", type=Path, help="the same for those with checkpoints, which need room, on a disk (112 GB)")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--seconds", type=float, default=3600, help="no row begins after so many")
    parser.add_argument("--limit", type=float, default=75, help="seconds that a row may take, unless it says so itself")
    parser.add_argument("--shape", choices=SHAPES, help="of all rows")
    parser.add_argument("--tokens", type=int, help="a micro-batch, of all rows")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--make", nargs=2, metavar=("SHAPE", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.make:
        return random_model(arguments.make[0], Path(arguments.make[1]), arguments.device)
    arguments.bundle = arguments.bundle.resolve()
    arguments.environment = environment_of(arguments.bundle)
    for folder in filter(None, (arguments.runs, arguments.saves)):
        folder.mkdir(parents=True, exist_ok=True)
    began, results = time.monotonic(), []
    cards = len(card_state("index", 99) or range(2))
    changed = {key: value for key in ("shape", "tokens") if (value := getattr(arguments, key))}
    rows = {name: ROWS[name] | changed for name in arguments.only if cards_of(ROWS[name]["mesh"]) <= cards}
    make_models({what["shape"] for what in rows.values()}, arguments.models, arguments.device)
    print(f"models: {time.monotonic() - began:.0f} s", flush=True)
    for name, what in rows.items():
        left = arguments.seconds - (time.monotonic() - began)
        if left <= 0:
            print(f"{name}: left out, {arguments.seconds:.0f} s are over", flush=True)
            continue
        start = time.monotonic()
        results.append(measured(name, what, arguments, min(left + 20, what.get("limit", arguments.limit))))
        add_shares(results)
        arguments.json.write_text(json.dumps(WORDS | {"rows": results}, indent=1) + "\n")
        print(f"{name} ({time.monotonic() - start:.0f} s): {shown(results[-1])}", flush=True)
    return sum("failed" in one for one in results)


if __name__ == "__main__":
    sys.exit(main())
