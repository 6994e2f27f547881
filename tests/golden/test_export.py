"""Loads an exported folder with transformers and compares it with what the program computed.

    test_export.py EXPORT_DIR LOGITS.safetensors

The file holds `tokens` [T], `logits` [T, V], and `greedy`: the ids that greedy decoding appends to `tokens`.
Exit code 1 when the logits differ by more than 2e-4 anywhere or generate() writes other ids. Remote code is trusted only
where the folder holds any.
"""

import argparse
import contextlib
import importlib
import json
import re
import subprocess
import sys
import types
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, modeling_rope_utils

LOGIT_TOLERANCE = 2e-4  # float32


def load(folder, dtype):
    """The model, and how it loaded."""
    remote = any(Path(folder).glob("*.py"))
    if (Path(folder) / "tokenizer.json").exists():
        AutoTokenizer.from_pretrained(folder, trust_remote_code=remote)
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=remote, dtype=dtype, output_loading_info=True)


class Torch64(types.ModuleType):
    """torch, where what asks for float32 gets float64."""

    def __getattr__(self, name):
        return torch.float64 if name in ("float32", "float") else getattr(torch, name)


@contextlib.contextmanager
def in_float64(folder):
    """A class of transformers computes norms, rotary angles and recurrences in float32, whatever its weights are; not here."""
    kind = json.loads((Path(folder) / "config.json").read_text())["model_type"].removesuffix("_text")
    modules = [modeling_rope_utils, importlib.import_module(f"transformers.models.{kind}.modeling_{kind}")]
    to_float = torch.Tensor.float
    torch.Tensor.float = torch.Tensor.double
    for module in modules:
        module.torch = Torch64("torch")
    try:
        yield
    finally:
        torch.Tensor.float = to_float
        for module in modules:
            module.torch = torch


def exact_error(folder, logits):
    """The largest difference of a logit when the class computes everything in float64."""
    with in_float64(folder):
        return logits_error(load(folder, torch.float64)[0].eval(), load_file(logits))


def logits_error(model, expected):
    with torch.no_grad():
        return (model(expected["tokens"].long()[None]).logits[0] - expected["logits"]).abs().max().item()


def compare(folder, logits, dtype=torch.float32):
    """The largest difference of a logit, and what else is wrong with the folder."""
    expected = load_file(logits)
    tokens = expected["tokens"].long()[None]
    model, loading = load(folder, dtype)
    model.eval()
    model.generation_config.eos_token_id = None  # as many tokens as the program wrote

    faults = [f"{kind}: {sorted(names)}" for kind, names in loading.items() if names]
    error = logits_error(model, expected)
    with torch.no_grad():
        count = expected["greedy"].numel()
        written = model.generate(
            tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=count, do_sample=False
        )[0, tokens.shape[1] :]
    if written.tolist() != expected["greedy"].tolist():
        faults.append(f"greedy ids: generate() wrote {written.tolist()}, expected {expected['greedy'].tolist()}")
    return error, faults


def run_card(folder):
    """What the model card's lines print, run in the folder by somebody who cannot answer a question."""
    lines = re.search("```python\n(.*?)```", (Path(folder) / "README.md").read_text(), re.S)[1]
    return subprocess.run([sys.executable, "-c", lines], cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("export_dir")
    parser.add_argument("logits")
    arguments = parser.parse_args()
    error, faults = compare(arguments.export_dir, arguments.logits)
    print(f"largest difference of a logit: {error:.3g} (allowed {LOGIT_TOLERANCE:.0e})")
    if not error <= LOGIT_TOLERANCE:
        faults.append(f"logits differ by {error:.3g}")
    card = run_card(arguments.export_dir)
    if card.returncode != 0 or "custom code" in card.stdout + card.stderr:
        faults.append(f"the card's lines: {card.stdout}{card.stderr}")
    for fault in faults:
        print(f"FAILED: {fault}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
