"""Times align and distill on packed documents beside one document, the same text, in turns.

    python tests/benchmarks/documents.py build/flashmorph-dist [--json out.json]     from the repository's root

One process. Without --many and --one the text is tests/data/text/tinyshakespeare.txt, whole and cut into documents whose
lengths are lognormal as those of Debian's documentation are (4906 documents: a median of 5 kB, a mean of 15 kB). With
them, they are the prefixes of two tokenized corpora, and --set, --model and --steps fit the run to a card:

    python tests/benchmarks/documents.py "BUNDLE/run flashmorph-dist" --model DIR --many PREFIX --one PREFIX \\
        --set device.kind=cuda device.dtype=bfloat16 --sequences 32 --length 512 --steps 60 --warm-up 20

A figure is the tokens of the steps after the warm-up by their time; the median over the rounds.
"""

import argparse
import json
import os
import random
import shlex
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

TEXT = Path("tests/data/text/tinyshakespeare.txt")
MEDIAN, SIGMA = 5000, 1.48  # characters; of their logarithms


def finished(command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False,
                          env={"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"} | os.environ)
    if done.returncode != 0:
        sys.exit(f"{shlex.join(map(str, command))} ended with {done.returncode}:\n{done.stdout}{done.stderr}")


def tokenized(program, model, folder):
    """Prefixes of the text in many documents and in one."""
    text, draw, documents = TEXT.read_text(), random.Random(1), []
    while text:
        length = max(1, int(draw.lognormvariate(0, SIGMA) * MEDIAN))
        documents.append(text[:length])
        text = text[length:]
    lines = folder / "documents.jsonl"
    lines.write_text("".join(json.dumps({"text": document}) + "\n" for document in documents))
    finished([*program, "tokenize", lines, "--jsonl", "text", "--model", model, "--output", folder / "many"])
    finished([*program, "tokenize", TEXT, "--model", model, "--output", folder / "one"])
    print(f"{len(documents)} documents of {TEXT.stat().st_size / len(documents):.0f} bytes in the mean")
    return folder / "many", folder / "one"


def tokens_per_second(arguments, stage, prefix):
    step_tokens = arguments.sequences * arguments.length
    trained = {"tokens": step_tokens * arguments.steps, "batch_tokens": step_tokens, "micro_batch_tokens": step_tokens,
               "data": {"lengths": [arguments.length], "passkey_share": 0}}
    few = {"passkeys": 1, "words": 4}  # fit any tokenizer's 512 tokens
    run = {"model": {"path": arguments.model}, "mixer": {"kind": arguments.mixer},
           "budget": {"full_layers": arguments.full_layers}, "data": {"tokens": str(prefix)},
           "stages": {"align": trained if stage == "align" else trained | {"tokens": step_tokens},
                      "select": {"method": "uniform", "tokens": step_tokens, "data": few}, "distill": trained if stage == "distill" else {"tokens": 0},
                      "finetune": {"tokens": 0}, "export": {"enabled": False},
                      "evaluate": few | {"compare": [], "lengths": [512], "samples": 1, "greedy_samples": 0,
                                          "perplexity_tokens": 512}}}
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "run.yaml"
        config.write_text(json.dumps(run | {"run": {"name": "documents", "dir": folder}}))
        sets = [part for key in arguments.set for part in ("--set", key)]
        finished([*arguments.program, config, *sets])
        lines = map(json.loads, (Path(folder) / "documents" / "metrics.jsonl").read_text().splitlines())
        times = [line["time"] for line in lines if line["stage"] == stage][arguments.warm_up - 1:]
    return step_tokens * (len(times) - 1) / (times[-1] - times[0])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", type=shlex.split, help="flashmorph-dist, or a command that starts it")
    parser.add_argument("--json", help="also write the results to this file")
    parser.add_argument("--model", default="tests/data/passkey-teacher")
    parser.add_argument("--mixer", default="lightning")
    parser.add_argument("--full-layers", type=int, default=3)
    parser.add_argument("--many", help="prefix of the corpus of many documents")
    parser.add_argument("--one", help="prefix of the same tokens as one document")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--stages", nargs="+", default=["align", "distill"], choices=["align", "distill"])
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--warm-up", type=int, default=1, help="steps that are not counted")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()

    results = []
    with tempfile.TemporaryDirectory() as folder:
        many, one = (arguments.many, arguments.one) if arguments.many else tokenized(arguments.program, arguments.model,
                                                                                      Path(folder))
        print(f"{'stage':<8} {'documents':>10} {'one document':>13} tokens/s {'ratio':>6}")
        for stage in arguments.stages:
            rounds = [[tokens_per_second(arguments, stage, prefix) for prefix in (many, one)] for _ in range(arguments.rounds)]
            packed, plain = (round(statistics.median(side)) for side in zip(*rounds))
            results.append({"stage": stage, "sequences": arguments.sequences, "length": arguments.length,
                            "documents": packed, "one_document": plain, "documents_over_one": round(packed / plain, 3)})
            print(f"{stage:<8} {packed:>10} {plain:>13} {'':>8} {packed / plain:>6.3f}", flush=True)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps({"rounds": arguments.rounds, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
