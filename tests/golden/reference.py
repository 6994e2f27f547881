"""The align and select losses and their gradients by their definitions, in eager PyTorch; make_stages.py runs it.

Letters: B batch, T tokens, H heads, K head size, D hidden.
"""


import json
import math
from pathlib import Path

import torch
from safetensors.torch import load_file


def rms_norm(x, weight, epsilon):
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + epsilon) * weight


def rotated(x_BHTK, theta):
    tokens, size = x_BHTK.shape[-2:]
    frequency = theta ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    turn = torch.polar(torch.ones(tokens, size // 2, dtype=torch.float64),
                       torch.arange(tokens, dtype=torch.float64)[:, None] * frequency)
    pairs = torch.complex(*x_BHTK.double().chunk(2, dim=-1)) * turn  # channel c turns with channel c + K/2
    return torch.cat([pairs.real, pairs.imag], dim=-1).to(x_BHTK.dtype)


def log_decays(rule, heads, layer, layers):
    if rule == "retnet":
        return [math.log(1 - 2.0 ** (-5 - h)) for h in range(heads)]
    if rule == "layered":
        return [-(8 / heads) * (1 - layer / layers) * h for h in range(heads)]

    def slopes(count):
        return [-(2.0 ** (-8 * (h + 1) / count)) for h in range(count)]

    lower = 2 ** int(math.log2(heads))
    return slopes(lower) + slopes(2 * lower)[::2][: heads - lower]



def nearest(gates, allowed):
    """The point of [0, 1]^L nearest to `gates` that sums to `allowed`, clamp(gates - price), and the price: between two
    neighbours of the prices at which a gate comes to 0 or 1 the sum is a straight line."""
    corners = torch.cat([gates, gates - 1]).sort().values
    sums = torch.stack([(gates - price).clamp(0, 1).sum() for price in corners])
    last = int((sums >= allowed).nonzero().max())
    low, high = corners[last], corners[last + 1]
    price = low + (high - low) * (sums[last] - allowed) / (sums[last] - sums[last + 1])
    return (gates - price).clamp(0, 1), price


class Reference:
    """A Qwen3 teacher and lightning branches; settings: decay rule, output norm (head, hidden), rope in the branches."""

    def __init__(self, model_dir, branches, settings, dtype):
        self.config = json.loads((Path(model_dir) / "config.json").read_text())
        weights = load_file(Path(model_dir) / "model.safetensors") | branches
        self.weights = {name: weight.to(dtype) for name, weight in weights.items()}
        self.branch_names = sorted(branches)
        self.settings = settings
        self.layers = self.config["num_hidden_layers"]
        self.epsilon = self.config["rms_norm_eps"]
        self.rope_theta = self.config.get("rope_theta") or self.config["rope_parameters"]["rope_theta"]

    def weight(self, layer, name):
        return self.weights[f"model.layers.{layer}.{name}.weight"]

    def norm(self, x, layer, name):
        return rms_norm(x, self.weight(layer, name), self.epsilon)

    def embed(self, tokens):
        return self.weights["model.embed_tokens.weight"][tokens]

    def heads(self, x, layer, name):
        projected = x @ self.weight(layer, name).T
        return projected.unflatten(-1, (-1, self.config["head_dim"])).transpose(1, 2)

    def normed_heads(self, x, layer, branch, letter, rope):
        normed = self.norm(self.heads(x, layer, f"{branch}.{letter}_proj"), layer, f"{branch}.{letter}_norm")
        return rotated(normed, self.rope_theta) if rope else normed

    def full(self, layer, x):
        """Causal softmax attention of the teacher; x is the layer's input after its norm."""
        q = self.normed_heads(x, layer, "self_attn", "q", True)
        groups = self.config["num_attention_heads"] // self.config["num_key_value_heads"]
        k = self.normed_heads(x, layer, "self_attn", "k", True).repeat_interleave(groups, 1)
        v = self.heads(x, layer, "self_attn.v_proj").repeat_interleave(groups, 1)
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        o = scores.masked_fill(future, -math.inf).softmax(-1) @ v
        return o.transpose(1, 2).flatten(2) @ self.weight(layer, "self_attn.o_proj").T

    def linear(self, layer, x):
        """The lightning branch as one masked product: o_t = sum over s <= t of exp(g (t - s)) (q_t . k_s) v_s."""
        q = self.normed_heads(x, layer, "linear_attn", "q", self.settings.rope)
        k = self.normed_heads(x, layer, "linear_attn", "k", self.settings.rope)
        v = self.heads(x, layer, "linear_attn.v_proj")
        log_decay = torch.tensor(log_decays(self.settings.decay, q.shape[1], layer, self.layers), dtype=torch.float64)
        place = torch.arange(x.shape[1], dtype=torch.float64)
        age = place[:, None] - place[None, :]
        decay = torch.where(age >= 0, torch.exp(log_decay[:, None, None] * age.clamp(min=0)), 0.0).to(x.dtype)
        o = (q @ k.transpose(-1, -2) * decay) @ v / math.sqrt(q.shape[-1])
        o, weight = o.transpose(1, 2), self.weight(layer, "linear_attn.o_norm")
        if self.settings.output_norm == "head":
            o = rms_norm(o, weight.view(o.shape[2:]), self.epsilon).flatten(2)
        else:
            o = rms_norm(o.flatten(2), weight, self.epsilon)
        o = o * torch.sigmoid(x @ self.weight(layer, "linear_attn.z_proj").T)
        return o @ self.weight(layer, "linear_attn.o_proj").T

    def feed_forward(self, layer, h):
        x = self.norm(h, layer, "post_attention_layernorm")
        gate = x @ self.weight(layer, "mlp.gate_proj").T
        up = x @ self.weight(layer, "mlp.up_proj").T
        return h + (gate * torch.sigmoid(gate) * up) @ self.weight(layer, "mlp.down_proj").T

    def teacher_states(self, tokens):
        """(X, H) of every layer of the all-full model."""
        states, x = [], self.embed(tokens)
        for layer in range(self.layers):
            h = x + self.full(layer, self.norm(x, layer, "input_layernorm"))
            states.append((x, h))
            x = self.feed_forward(layer, h)
        return states

    def align(self, tokens):
        """The mean squared error of A_lin against A_full by layer, and the gradients of their mean by branch weight."""
        with torch.no_grad():
            states = self.teacher_states(tokens)
        trained = [self.weights[name].requires_grad_() for name in self.branch_names]
        losses = self.align_losses(states)
        gradients = torch.autograd.grad(losses.mean(), trained)
        for weight in trained:
            weight.requires_grad_(False)
        return losses.detach(), dict(zip(self.branch_names, gradients))

    def select(self, tokens, answers, alpha, weights=1.0):
        """The error of H_mix against the teacher's H by layer, times `weights`, and the gradient of their mean by gate."""
        with torch.no_grad():
            states = self.teacher_states(tokens)
        alpha = alpha.clone().requires_grad_()
        errors = weights * self.select_errors(tokens, answers, alpha, states)
        (gradient,) = torch.autograd.grad(errors.mean(), [alpha])
        return errors.detach(), gradient

    def attention_weights(self, tokens, answers):
        """1 / the power of what the teacher's attention adds at the answers, with a millionth of the state's, by layer."""
        power = [((h - x)[answers].square().sum(-1) + 1e-6 * h[answers].square().sum(-1)).mean()
                 for x, h in self.teacher_states(tokens)]
        return 1 / torch.stack(power)

    def falling_gates(self, tokens, answers, steps, rate, betas):
        """select's gates and prices after each step under a budget that falls from all layers to one, on the same tokens."""
        weights = self.attention_weights(tokens, answers)
        alpha, mean, square = torch.ones(self.layers, dtype=torch.float64), 0.0, 0.0
        gates, prices = [], []
        for step in range(1, steps + 1):
            gradient = self.select(tokens, answers, alpha, weights)[1]
            mean = betas[0] * mean + (1 - betas[0]) * gradient
            square = betas[1] * square + (1 - betas[1]) * gradient**2
            scale = (square.mean() / (1 - betas[1] ** step)).sqrt()
            pace = rate / scale if scale > 0 else torch.tensor(0.0)
            moved = alpha - pace * mean / (1 - betas[0] ** step)
            alpha, price = nearest(moved, self.layers ** (1 - step / steps))
            gates.append(alpha)
            prices.append(price / pace if pace > 0 else torch.tensor(0.0, dtype=torch.float64))
        return torch.stack(gates), torch.stack(prices)

    def align_losses(self, states):
        losses = []
        for layer, (x, _) in enumerate(states):
            normed = self.norm(x, layer, "input_layernorm")
            losses.append((self.linear(layer, normed) - self.full(layer, normed)).square().mean())
        return torch.stack(losses)

    def select_errors(self, tokens, answers, alpha, states):
        errors, x = [], self.embed(tokens)
        for layer, (_, teacher_h) in enumerate(states):
            normed = self.norm(x, layer, "input_layernorm")
            h = x + alpha[layer] * self.full(layer, normed) + (1 - alpha[layer]) * self.linear(layer, normed)
            errors.append((h - teacher_h)[answers].square().sum(-1).mean())
            x = self.feed_forward(layer, h)
        return torch.stack(errors)
