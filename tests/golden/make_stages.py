"""Writes stages.safetensors: align's and select's losses and gradients of a small model, by reference.py in float64.

Run from the repository's root: python tests/golden/make_stages.py

The file holds the input (`tokens` and `answers` [B, T], `alphas` [2, L], the branches as model.layers.{l}.linear_attn.*) and,
for each output norm NORM, NORM.align_losses [L], NORM.align_gradient_norms.NAME, and for each row of alphas
NORM.select_errors [2, L] and NORM.gate_gradients [2, L]; select's descent under a falling budget, of the error relative to what
the attention adds, gives NORM.falling_gates [6, L] and NORM.gate_prices [6].
"""

import json
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import save_file

from reference import Reference

HERE = Path(__file__).parent
MODEL = HERE / "families" / "qwen3"
SEQUENCES, TOKENS = 2, 75  # a chunk and a ragged one


def random_branches(config):
    heads, size, hidden = config["num_attention_heads"], config["head_dim"], config["hidden_size"]
    width = heads * size
    shapes = {"q_proj": (width, hidden), "k_proj": (width, hidden), "v_proj": (width, hidden), "z_proj": (width, hidden),
              "o_proj": (hidden, width), "q_norm": (size,), "k_norm": (size,), "o_norm": (width,)}
    return {f"model.layers.{layer}.linear_attn.{name}.weight": torch.randn(shape) * 0.2 + (len(shape) == 1)
            for layer in range(config["num_hidden_layers"]) for name, shape in shapes.items()}


def main():
    torch.manual_seed(5)
    config = json.loads((MODEL / "config.json").read_text())
    branches = random_branches(config)
    tokens = torch.randint(config["vocab_size"], (SEQUENCES, TOKENS))
    answers = torch.rand(SEQUENCES, TOKENS) < 0.3
    alphas = torch.tensor([[1.0, 0.35], [0.6, 0.0]], dtype=torch.float64)  # both ends, and between
    golden = {"tokens": tokens, "answers": answers, "alphas": alphas, **branches}
    for norm in ("head", "hidden"):
        settings = SimpleNamespace(decay="alibi", output_norm=norm, rope=True)
        reference = Reference(MODEL, branches, settings, torch.float64)
        golden[f"{norm}.align_losses"], gradients = reference.align(tokens)
        golden |= {f"{norm}.align_gradient_norms.{name}": gradient.norm() for name, gradient in gradients.items()}
        selected = [reference.select(tokens, answers, alpha) for alpha in alphas]
        golden[f"{norm}.select_errors"], golden[f"{norm}.gate_gradients"] = map(torch.stack, zip(*selected))
        golden[f"{norm}.falling_gates"], golden[f"{norm}.gate_prices"] = reference.falling_gates(
            tokens, answers, steps=6, rate=0.1, betas=(0.9, 0.95))
    save_file(golden, HERE / "stages.safetensors")


if __name__ == "__main__":
    main()
