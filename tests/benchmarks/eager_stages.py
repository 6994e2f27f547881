"""Speed of the align and select stages in eager PyTorch, as one would write them there: what ours is measured against.

    eager_stages.py MODEL_DIR --stage align --tokens 16384 --batch 8 --length 512 --threads 1

Prints one line of JSON: tokens/s over the steps after a warm-up step, and the process's peak memory. Tokens are random:
no step's time depends on them. Letters: B batch, N chunks, T tokens, C tokens a chunk, H heads, K head size.
"""

import argparse
import json
import resource
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

CHUNK = 64
ANSWER_SHARE = 0.05  # of positions: about four answers of eight words in 1024 tokens
GATE_PENALTY = 0.1


class Attention(torch.nn.Module):
    """What full attention and the branch have in common: projections, norms, rotation."""

    def __init__(self, config, tensors, expand):
        super().__init__()
        self.size, self.epsilon = config["head_dim"], config["rms_norm_eps"]
        groups = config["num_attention_heads"] // config["num_key_value_heads"] if expand else 1
        weights = {name: tensors[f"{name}.weight"].clone() for name in ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm")}
        for name in ("k_proj", "v_proj"):
            heads = weights[name].unflatten(0, (-1, self.size))
            weights[name] = heads.repeat_interleave(groups, 0).flatten(0, 1)
        for name, weight in weights.items():
            self.register_parameter(name, torch.nn.Parameter(weight))

    def heads(self, x, name):
        return F.linear(x, getattr(self, name)).unflatten(-1, (-1, self.size)).transpose(1, 2)

    def queries_keys_values(self, x, rotary):
        q = rotate(F.rms_norm(self.heads(x, "q_proj"), (self.size,), self.q_norm, self.epsilon), rotary)
        k = rotate(F.rms_norm(self.heads(x, "k_proj"), (self.size,), self.k_norm, self.epsilon), rotary)
        return q, k, self.heads(x, "v_proj")


class FullAttention(Attention):
    def __init__(self, config, tensors):
        super().__init__(config, tensors, expand=False)

    def forward(self, x, rotary):
        q, k, v = self.queries_keys_values(x, rotary)
        o = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return F.linear(o.transpose(1, 2).flatten(2), self.o_proj)


class LightningBranch(Attention):
    def __init__(self, config, tensors):
        super().__init__(config, tensors, expand=True)
        heads, hidden = config["num_attention_heads"], config["hidden_size"]
        self.z_proj = torch.nn.Parameter(torch.randn(heads * self.size, hidden) * hidden**-0.5)
        self.o_norm = torch.nn.Parameter(torch.ones(heads, 1, self.size))
        slopes = -(2.0 ** (-8 * torch.arange(1, heads + 1) / heads))[:, None, None]
        place = torch.arange(1, CHUNK + 1)
        distance = place[:, None] - place
        self.register_buffer("within", torch.exp(slopes * distance.clamp(min=0)).tril()[:, None])
        self.register_buffer("since_start", torch.exp(slopes * place[:, None])[:, None])
        self.register_buffer("to_end", torch.exp(slopes * (CHUNK - place)[:, None])[:, None])

    def forward(self, x, rotary):
        q, k, v = (part.unflatten(2, (-1, CHUNK)) for part in self.queries_keys_values(x, rotary))  # BHNCK
        updates = k.transpose(-1, -2) @ (self.to_end * v)
        states, state = [], torch.zeros_like(updates[:, :, 0])
        for update in updates.unbind(2):
            states.append(state)
            state = self.since_start[:, 0, -1:] * state + update
        o = (q @ k.transpose(-1, -2) * self.within) @ v + self.since_start * (q @ torch.stack(states, 2))
        o = F.rms_norm(o.flatten(2, 3) * self.size**-0.5, (self.size,), None, self.epsilon) * self.o_norm
        return F.linear(o.transpose(1, 2).flatten(2) * torch.sigmoid(F.linear(x, self.z_proj)), self.o_proj)


def rotate(x, rotary):
    first, second = x.chunk(2, dim=-1)
    return x * rotary[0] + torch.cat([-second, first], dim=-1) * rotary[1]


class Morphable(torch.nn.Module):
    def __init__(self, model_dir):
        super().__init__()
        self.config = json.loads((Path(model_dir) / "config.json").read_text())
        self.tensors = load_file(Path(model_dir) / "model.safetensors")
        self.hidden, self.epsilon = (self.config["hidden_size"],), self.config["rms_norm_eps"]
        self.full, self.linear = torch.nn.ModuleList(), torch.nn.ModuleList()
        for layer in range(self.config["num_hidden_layers"]):
            prefix = f"model.layers.{layer}.self_attn."
            attention = {name.removeprefix(prefix): t for name, t in self.tensors.items() if name.startswith(prefix)}
            self.full.append(FullAttention(self.config, attention).requires_grad_(False))
            self.linear.append(LightningBranch(self.config, attention))

    def rotary(self, length):
        size = self.config["head_dim"]
        frequency = self.config["rope_theta"] ** (-torch.arange(0, size, 2) / size)
        angles = (torch.arange(length)[:, None] * frequency).repeat(1, 2)
        return angles.cos(), angles.sin()

    def embed(self, tokens):
        return F.embedding(tokens, self.tensors["model.embed_tokens.weight"])

    def layer_norm(self, layer, name, x):
        return F.rms_norm(x, self.hidden, self.tensors[f"model.layers.{layer}.{name}.weight"], self.epsilon)

    def feed_forward(self, layer, h):
        weight = {name: self.tensors[f"model.layers.{layer}.mlp.{name}_proj.weight"] for name in ("gate", "up", "down")}
        x = self.layer_norm(layer, "post_attention_layernorm", h)
        return h + F.linear(F.silu(F.linear(x, weight["gate"])) * F.linear(x, weight["up"]), weight["down"])


def align_step(model, tokens, rotary):
    """Each branch learns from its own layer's error; no gradient crosses layers."""
    x = model.embed(tokens)
    for layer, (full, linear) in enumerate(zip(model.full, model.linear)):
        with torch.no_grad():
            normed = model.layer_norm(layer, "input_layernorm", x)
            target = full(normed, rotary)
        (F.mse_loss(linear(normed, rotary), target) / len(model.full)).backward()
        with torch.no_grad():
            x = model.feed_forward(layer, x + target)


def select_step(model, tokens, rotary, alpha):
    answers = torch.rand(tokens.shape) < ANSWER_SHARE
    with torch.no_grad():
        teacher, x = [], model.embed(tokens)
        for layer, full in enumerate(model.full):
            h = x + full(model.layer_norm(layer, "input_layernorm", x), rotary)
            teacher.append(h[answers])
            x = model.feed_forward(layer, h)
    loss, x = GATE_PENALTY * alpha.sum(), model.embed(tokens)
    for layer, (full, linear) in enumerate(zip(model.full, model.linear)):
        normed = model.layer_norm(layer, "input_layernorm", x)
        h = x + alpha[layer] * full(normed, rotary) + (1 - alpha[layer]) * linear(normed, rotary)
        loss = loss + (h[answers] - teacher[layer]).square().sum(-1).mean() / len(model.full)
        x = model.feed_forward(layer, h)
    loss.backward()


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model_dir")
    parser.add_argument("--stage", choices=["align", "select"], required=True)
    parser.add_argument("--tokens", type=int, default=16384, help="measured, after one warm-up step")
    parser.add_argument("--batch", type=int, default=8, help="sequences a step")
    parser.add_argument("--length", type=int, default=512, help=f"tokens a sequence, a multiple of {CHUNK}")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def main():
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(1)
    model = Morphable(arguments.model_dir)
    rotary = model.rotary(arguments.length)
    alpha = torch.ones(len(model.full), requires_grad=True)
    if arguments.stage == "align":
        trained = list(model.linear.parameters())
    else:
        model.linear.requires_grad_(False)
        trained = [alpha]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0, fused=True)

    def step():
        tokens = torch.randint(model.config["vocab_size"], (arguments.batch, arguments.length))
        if arguments.stage == "align":
            align_step(model, tokens, rotary)
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
        else:
            select_step(model, tokens, rotary, alpha)
        optimizer.step()
        optimizer.zero_grad()
        if arguments.stage == "select":
            with torch.no_grad():
                alpha.clamp_(0, 1)

    step()
    steps = max(1, round(arguments.tokens / (arguments.batch * arguments.length)))
    started = time.perf_counter()
    for _ in range(steps):
        step()
    seconds = time.perf_counter() - started
    tokens = steps * arguments.batch * arguments.length
    print(json.dumps({
        "stage": arguments.stage, "tokens": tokens, "seconds": round(seconds, 3),
        "tokens_per_second": round(tokens / seconds), "batch": arguments.batch, "length": arguments.length,
        "threads": arguments.threads,
        "peak_rss_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }))


if __name__ == "__main__":
    main()
