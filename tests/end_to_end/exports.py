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
from test_export import LOGIT_TOLERANCE, compare, exact_error  # noqa: E402

TEACHERS = [Path("tests/data/passkey-teacher"), Path("tests/data/stories260k"), *sorted(Path("tests/golden/families").iterdir())]
MIXERS = ["lightning", "gla", "gated_delta_net", "mamba2", "window"]
WITH_SINKS = {"stories260k", "smollm3", "qwen2"}
GREEDY = 64
EXACT_TOLERANCE = 1e-9
ALLOWED = {"float32": LOGIT_TOLERANCE, "float64": EXACT_TOLERANCE}
PAGE = Path("docs/exports.md")
HEAD = f"""# Exports

What `stages.export.format` can write of which model and mixer, and how far transformers' logits of the folder lie from this
program's on 300 tokens: in float32 (allowed: {LOGIT_TOLERANCE:.0e}) and in float64 (allowed: {EXACT_TOLERANCE:.0e}; what transformers' classes compute in float32
whatever they are given, norms, angles and recurrences, is float64 for this). `greedy` says that `generate()` wrote the same {GREEDY}
tokens. The models are small and random, or those of `tests/data`; every second layer is linear, its branch random, a window of
50 tokens. Made by `tests/end_to_end/exports.py --write`, which the test suite runs as well.

`flashmorph` brings its own `modeling_flashmorph.py`; the others are classes of transformers and load without remote code. `auto`
takes the first that can hold the hybrid, in the order `qwen3_5_text`, `granitemoehybrid`, `qwen2`, `qwen3`, `ministral`,
`granite_swa`, `flashmorph`. In `granite_swa` every layer has sinks: those of full attention, and of windows without `mixer.sinks`,
are -8192, which weighs nothing.

The card says which transformers is needed: 5 for `qwen2`, `qwen3`, `ministral` and `flashmorph` (tried with 5.0.0 and, but for `qwen2`, 5.17.0, the table
below with 5.23.0), 5.2 for `qwen3_5_text` (5.2.0, 5.17.0), 5.15 for `granite_swa` (5.17.0), and 5.23 for `granitemoehybrid`: up to 5.22
its class takes one norm over all groups, **loads the folder without a word and writes nonsense** (with 5.17.0 a logit of a small model is
0.7 off, and SmolLM2's recall falls from 86.8 to 2.6 %).

Every folder's README.md is a model card: the teacher's licence by name, the lines that load it and generate, recall and perplexity, the
time and rank-hours of every stage, the run's configuration. The teacher's licence files, notices, `tokenizer.model` and chat template go
along. transformers reads config.json before it loads a tokenizer: of `flashmorph` its tokenizer, too, asks for
`trust_remote_code=True`, of the others nothing asks.

Real weights need more room in float32. Of SmolLM2-135M-Instruct with random branches in every second layer, `mamba2` as
`granitemoehybrid` and `window` as `ministral` differ by 2.9e-11 and 2.6e-12 in float64 (`tests/end_to_end/real_model.py`), but by 0.061
and 1.3e-3, of logits up to 35, in float32, where 64 greedy tokens are equal all the same. That is rounding: either side's
float32 logits lie 0.035 (2.0e-3 and 3.3e-3) from the float64 ones. It comes from single tokens, behind layer 11 of which this model makes
states of 27000 where the median is 6.5: of them float32 keeps three digits behind the point, and norms hand the error on. Of the
median token the largest difference is 2.4e-4 (6.4e-5).

Recall beside ours, by `tests/golden/test_tasks.py`, samples of 1024 tokens, float32; every token that was written is the same:

| SmolLM2 | transformers | `passkey-forced` | `needle-prose` | `values` |
|---|---|---|---|---|
| `window` in 22 of 30 layers, trained as in [mixers.md](mixers.md), as `ministral`, H200 | 5.17.0 | 62.2 and 62.2 (32 samples) | 66.7 and 66.7 (3) | 16.7 and 16.7 (3) |
| `window` in 8 of 30 layers, trained for 8192 tokens, as `ministral`, CPU | 5.23.0 | 74.7 and 74.7 (4) | 100 and 100 (4) | |
| `mamba2` in 8 of 30 layers, trained for 80K tokens, as `granitemoehybrid`, CPU | 5.23.0 | 31.1 and 31.1 (4) | 25 and 25 (4) | 12.5 and 12.5 (4) |

## llama.cpp

    build/venv/bin/python deploy/hf_to_gguf.py EXPORT MODEL.gguf --dtype float32

writes what llama.cpp loads of `qwen3_5_text` (its architecture `qwen35`) and `granitemoehybrid` (`granitehybrid`), with byte-level BPE
tokenizers, special tokens and chat template; without a `tokenizer.json` the file has none. What llama.cpp (of llama-cpp-python 0.3.36,
float32, CPU) computed of such files, beside transformers in float64:

- `tests/golden/gguf_exports.py`: seven small exports, every rotation, biases, multipliers, both widths. Logits differ by 8e-8 to 6e-6
  (`granitehybrid`) and 4.4e-5 (`qwen35`). The suite makes the same files again, byte by byte, and compares with the logits that were kept.
- The passkey teacher with gated delta net in 9 of 12 layers: 2.6e-5 of 18.7.
- SmolLM2 with `mamba2` as above: 1.8e-2 of 34.6 at one token, 2.1e-4 at the median one; 64 greedy tokens are equal, and so are the
  48 829 tokens of 60 documents.
- Perplexity beside ours in float32, over windows of 512 tokens: the passkey teacher with random gated delta net in every second layer,
  8176 tokens of `tests/data/text`: 30.3640 in both; SmolLM2 with `mamba2` in 4 of its 30 layers, trained for 16K tokens, 4088 tokens:
  519.7356 and 519.7355.

What llama.cpp's own converter makes of our `granitemoehybrid` must not be used: it switches the rotation of queries and keys off in every
hybrid of that name. llama.cpp's recurrence there always has 2 x hidden channels; where the hybrid has fewer, the file holds heads of zeros that
change nothing and double the states' memory. Refused by name: heads that do not fit so, rotations that its architecture has not
(`qwen35`: all but the plain one), YaRN with settings of its own, other tokenizers.

## vLLM and SGLang: read, not run

Where each tensor goes, by the code of vLLM (`granitemoehybrid.py`, `qwen3_5.py`) and SGLang 0.5.23 (the same names); nothing of this section
was run.

| `granitemoehybrid` | there |
|---|---|
| `self_attn.q_proj`, `k_proj`, `v_proj` | rows of `qkv_proj`; a head has hidden / heads channels, so `head_dim` must be that; scores times `attention_multiplier` |
| rotation | vLLM: `rope_parameters`. SGLang: `rope_theta` and `rope_scaling`, and 10000 where they are missing, so the export has both |
| `self_attn.o_proj` | `o_proj`, with a bias where `attention_bias` is true |
| `mamba.in_proj` | `in_proj` of a Mamba-2 mixer: gate, values, keys, queries, steps; `mamba_expand` x hidden channels, `mamba_n_groups` groups |
| `mamba.conv1d`, `dt_bias`, `D`, `out_proj` | the same |
| `mamba.A_log` | `A`, as -exp in float32 |
| `mamba.norm` | a norm a group of values times `silu(gate)`; on tensor ranks a group whole or gathered |
| `shared_mlp.input_linear`, `output_linear` | the shared expert, gate above up; without `num_local_experts` there is no other |
| `layer_types` | vLLM looks its layers up as `attention` and `mamba`, as the file says; transformers 5.23 renames them while reading, SGLang back |

| `qwen3_5_text` | there |
|---|---|
| `self_attn.q_proj` | the query's part of `qkv_proj`, each head's queries and then its gate, which is 0, so `sigmoid` gives 1/2 and `o_proj` is doubled |
| norms but `linear_attn.norm` | Gemma's: 1 + weight |
| `linear_attn.in_proj_qkv`, `in_proj_z` | parts 0 to 2 and 3 of `in_proj_qkvz` |
| `linear_attn.in_proj_b`, `in_proj_a` | parts 0 and 1 of `in_proj_ba` |
| `linear_attn.conv1d`, `A_log`, `dt_bias`, `norm`, `out_proj` | the same |

SGLang's `minicpm_sala` has lightning attention of this kind (decay `alibi`, output norm over all heads of a rank), but the kernel that
decodes divides heads into parts of 128 channels and so gives nothing for smaller ones, and no class of transformers reads the format to
compare with: there is no export of that name.

## transformers

| model | mixer | format | in float32 | in float64 | greedy |
|---|---|---|---|---|---|
"""
REFUSED = """
## Refused

| format | reason | models |
|---|---|---|
"""


def attempts(arguments, teacher, mixer, work):
    """Of each format: its name, why it is refused, the largest differences of a logit, and what is wrong."""
    made = subprocess.run([arguments.random_hybrid, teacher, mixer, work], capture_output=True, text=True)
    if made.returncode != 0:
        yield "none", "", {}, [made.stderr]
    for line in made.stdout.splitlines():
        form, obstacle = line.split("\t")
        yield form, obstacle, *(({}, []) if obstacle else differences(arguments, teacher, work / form))


def differences(arguments, teacher, folder):
    """Of a logit, by dtype, and what is wrong. The code that a folder brings computes in the dtype of its weights."""
    logits = folder / "logits.safetensors"

    def compute(dtype, greedy=GREEDY):
        subprocess.run([arguments.hybrid_logits, teacher, folder, logits, str(greedy), dtype], check=True)

    if folder.name == "flashmorph":
        compute("float64")
        error, faults = compare(str(folder), str(logits), torch.float64)
        errors = {"float64": error}
    else:
        compute("float32")
        error, faults = compare(str(folder), str(logits))
        compute("float64", greedy=1)
        errors = {"float32": error, "float64": exact_error(folder, logits)}
    return errors, faults + [f"logits differ by {error:.3g} in {dtype}" for dtype, error in errors.items() if not error <= ALLOWED[dtype]]


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
        for mixer in MIXERS + ["window+sinks"] * (teacher.name in WITH_SINKS):
            with tempfile.TemporaryDirectory() as work:
                for form, obstacle, errors, faults in attempts(arguments, teacher, mixer, Path(work)):
                    if obstacle:
                        refused.setdefault((form, obstacle), []).append(teacher.name)
                        continue
                    figures = [f"{errors[dtype]:.1e}" if dtype in errors else "" for dtype in ALLOWED]
                    row = f"| {teacher.name} | {mixer} | {form} | {' | '.join(figures)} | {'NO' if faults else 'equal'} |"
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
