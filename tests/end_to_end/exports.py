"""Every teacher x mixer x export format: loaded by transformers where it is possible, refused with the reason elsewhere.

    python tests/end_to_end/exports.py RANDOM_HYBRID HYBRID_LOGITS [--write]      from the repository's root

Random hybrids, every second layer linear; 300 tokens, then 64 greedy ones with a cache. --write puts the table into
docs/exports.md; without it the page must list the same pairs and reasons. Exit code 1 when anything is not so.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).parent.parent / "golden"))
from test_export import LOGIT_TOLERANCE, compare  # noqa: E402

TEACHERS = [Path("tests/data/passkey-teacher"), Path("tests/data/stories260k"), *sorted(Path("tests/golden/families").iterdir())]
MIXERS = ["lightning", "gla", "gated_delta_net", "mamba2", "window"]
GREEDY = 64
EXACT_TOLERANCE = 1e-9
PAGE = Path("docs/exports.md")
HEAD = f"""# Exports

What `stages.export.format` can write of which model and mixer, and how far transformers' logits of the folder lie from this
program's on 300 tokens: in float32 (allowed: {LOGIT_TOLERANCE:.0e}), of `flashmorph` in float64 (allowed: {EXACT_TOLERANCE:.0e}; others compute
recurrences in float32). `greedy` says that `generate()` wrote the same {GREEDY} tokens. The models are small and random, or those
of `tests/data`; every second layer is linear, its branch random, a window of 50 tokens. Made by `tests/end_to_end/exports.py
--write`, which the test suite runs as well.

`flashmorph` brings its own `modeling_flashmorph.py`; the others are classes of transformers and load without remote code. `auto`
takes the first that can hold the hybrid, in the order `qwen3_5_text`, `granitemoehybrid`, `qwen2`, `qwen3`, `ministral`,
`flashmorph`. Transformers is the engine that was run. Others that know a class may ask more of it: vLLM takes heads of
`granitemoehybrid` to have hidden / heads channels.

Every folder's README.md has the lines that load it and generate. transformers reads config.json before it loads a tokenizer: of
`flashmorph` its tokenizer, too, asks for `trust_remote_code=True`, of the others nothing asks.

| model | mixer | format | logits | greedy |
|---|---|---|---|---|
"""
REFUSED = """
## Refused

| format | reason | models |
|---|---|---|
"""


def attempts(arguments, teacher, mixer, work):
    """Of each format: its name, why it is refused, the largest difference of a logit, and what is wrong."""
    made = subprocess.run([arguments.random_hybrid, teacher, mixer, work], capture_output=True, text=True)
    if made.returncode != 0:
        yield "none", "", 0.0, [made.stderr]
    for line in made.stdout.splitlines():
        form, obstacle = line.split("\t")
        if obstacle:
            yield form, obstacle, 0.0, []
            continue
        dtype, allowed = ("float64", EXACT_TOLERANCE) if form == "flashmorph" else ("float32", LOGIT_TOLERANCE)
        folder, logits = work / form, work / "logits.safetensors"
        subprocess.run([arguments.hybrid_logits, teacher, folder, logits, str(GREEDY), dtype], check=True)
        error, faults = compare(str(folder), str(logits), getattr(torch, dtype))
        yield form, "", error, faults + ([] if error <= allowed else [f"logits differ by {error:.3g}"])


def without_figures(page):
    return re.sub(r"\| \d\.\de[-+]\d\d", "| figure", page)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("random_hybrid", type=Path)
    parser.add_argument("hybrid_logits", type=Path)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    page, wrong, refused = HEAD, 0, {}
    for teacher in TEACHERS:
        for mixer in MIXERS:
            with tempfile.TemporaryDirectory() as work:
                for form, obstacle, error, faults in attempts(arguments, teacher, mixer, Path(work)):
                    if obstacle:
                        refused.setdefault((form, obstacle), []).append(teacher.name)
                        continue
                    row = f"| {teacher.name} | {mixer} | {form} | {error:.1e} | {'NO' if faults else 'equal'} |"
                    page += row + "\n"
                    print(row, flush=True)
                    for fault in faults:
                        print(f"FAILED: {fault}")
                    wrong += len(faults)
    page += REFUSED
    for (form, obstacle), models in sorted(refused.items()):
        page += f"| {form} | {obstacle} | {'all' if len(models) == len(TEACHERS) else ', '.join(models)} |\n"
    if arguments.write:
        PAGE.write_text(page)
    elif without_figures(page) != without_figures(PAGE.read_text()):
        print(f"FAILED: {PAGE} lists other pairs or reasons; run with --write")
        wrong += 1
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
