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
from safetensors.torch import load_file  # noqa: E402
from test_export import LOGIT_TOLERANCE, compare, load, logits_error  # noqa: E402

TEACHERS = [Path("tests/data/passkey-teacher"), Path("tests/data/stories260k"), *sorted(Path("tests/golden/families").iterdir())]
MIXERS = ["lightning", "gla", "gated_delta_net"]
FORMATS = ["qwen3_5_text", "flashmorph"]
GREEDY = 64
EXACT_TOLERANCE = 1e-9
NOISE = LOGIT_TOLERANCE / 4
PAGE = Path("docs/exports.md")
HEAD = f"""# Exports

What `stages.export.format` can write of which model and mixer, and how far transformers' logits of the folder lie from this
program's on 300 tokens: in float32 (allowed: {LOGIT_TOLERANCE:.0e}) and in float64 (allowed: {EXACT_TOLERANCE:.0e}; `qwen3_5_text` computes its
recurrence in float32). `greedy` says that `generate()` wrote the same {GREEDY} tokens. The models are small and random, or those
of `tests/data`; every second layer is linear, its branch random. Made by `tests/end_to_end/exports.py --write`, which the test
suite runs as well.

`noise`: more than allowed, but transformers' own float32 logits lie more than {NOISE:.0e} from its float64 ones, so that float32
cannot tell; float64 does. The per-head norm of lightning's output is that sensitive where a head of 8 channels says next to
nothing.

`qwen3_5_text` loads without remote code; `flashmorph` brings its own `modeling_flashmorph.py`. `auto` takes the first of them
that can hold the hybrid.

| model | mixer | format | float32 | float64 | greedy |
|---|---|---|---|---|---|
"""


def attempt(arguments, teacher, mixer, form, work):
    """A row of the table, and what is wrong."""
    folder, logits = work / "export", work / "logits.safetensors"
    made = subprocess.run([arguments.random_hybrid, teacher, mixer, form, folder], capture_output=True, text=True)
    row = f"| {teacher.name} | {mixer} | {form} |"
    if made.returncode == 2:
        reason = made.stderr.strip().split("cannot hold this hybrid: ")
        return f"{row} refused: {reason[-1]} | | |", [] if len(reason) == 2 else [made.stderr]
    if made.returncode != 0:
        return f"{row} failed | | |", [made.stderr]
    subprocess.run([arguments.hybrid_logits, teacher, folder, logits, str(GREEDY)], check=True)
    error, faults = compare(str(folder), str(logits))
    row32, row64, greedy = f"{error:.1e}", "", "NO" if faults else "equal"
    noisy = False
    if form == "flashmorph":
        exact, noisy = float64(arguments, teacher, folder, work)
        row64 = f"{exact:.1e}"
        if not exact <= EXACT_TOLERANCE:
            faults.append(f"float64 logits differ by {exact:.3g}")
    if not error <= LOGIT_TOLERANCE:
        row32 += " (noise)" if noisy else ""
        faults += [] if noisy else [f"logits differ by {error:.3g}"]
    return f"{row} {row32} | {row64} | {greedy} |", faults


def float64(arguments, teacher, folder, work):
    """The largest difference of a logit in float64, and whether transformers' own float32 is too far from that to judge."""
    logits = work / "exact.safetensors"
    subprocess.run([arguments.hybrid_logits, teacher, folder, logits, "1", "float64"], check=True)
    expected = load_file(logits)
    model = load(str(folder), torch.float64)[0].eval()
    rounded = load(str(folder), torch.float32)[0].eval()
    return logits_error(model, expected), logits_error(rounded, expected) > NOISE


def without_figures(page):
    return re.sub(r"\| \d\.\de[-+]\d\d( \(noise\))?", "| figure", page)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("random_hybrid", type=Path)
    parser.add_argument("hybrid_logits", type=Path)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    page, wrong = HEAD, 0
    for teacher in TEACHERS:
        for mixer in MIXERS:
            for form in FORMATS:
                with tempfile.TemporaryDirectory() as work:
                    row, faults = attempt(arguments, teacher, mixer, form, Path(work))
                page += row + "\n"
                print(row, flush=True)
                for fault in faults:
                    print(f"FAILED: {fault}")
                wrong += len(faults)
    if arguments.write:
        PAGE.write_text(page)
    elif without_figures(page) != without_figures(PAGE.read_text()):
        print(f"FAILED: {PAGE} lists other pairs or reasons; run with --write")
        wrong += 1
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
