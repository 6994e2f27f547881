"""Stages of a random Qwen3-shaped model in PyTorch + flash-linear-attention on one card: what stages_gpu is measured against.

    PYTHONPATH=DIR_OF_FLA python tests/benchmarks/eager_stages_gpu.py --stage select --sequences 1 --length 16384 [--steps 6]
        [--mixer lightning|gla|gated_delta_net]

As a good PyTorch user would write it: bf16, frozen weights need no gradient, cuDNN's attention, FLA's chunked kernels, torch's
fused norms and optimizer; no step waits for the host. One line of JSON. Tokens are random: no step's time depends on them.
"""

import argparse
import json
import statistics
import time

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import triton_candidates

SHAPES = {"1.7B": dict(hidden=2048, intermediate=6144, layers=28, heads=16, tied=True),
          "8B": dict(hidden=4096, intermediate=12288, layers=36, heads=32, tied=False)}
SIZE, KV_HEADS, VOCABULARY, EPSILON = 128, 8, 151936, 1e-6
ANSWER_SHARE, GATE_PENALTY, WARM_UP, KL_CHUNK = 0.02, 0.1, 2, 2048


def matrix(rows, columns, trained=False):
    return torch.nn.Parameter(torch.randn(rows, columns, device="cuda", dtype=torch.bfloat16) * columns**-0.5, trained)


def ones(size, trained=False):
    return torch.nn.Parameter(torch.ones(size, device="cuda", dtype=torch.bfloat16), trained)


def rotate(x, rotary):
    first, second = x.chunk(2, dim=-1)
    return x * rotary[0] + torch.cat([-second, first], dim=-1) * rotary[1]


class Attention(torch.nn.Module):
    def __init__(self, shape, kv_heads, trained):
        super().__init__()
        queries, hidden = shape["heads"] * SIZE, shape["hidden"]
        self.q, self.o = matrix(queries, hidden, trained), matrix(hidden, queries, trained)
        self.k, self.v = matrix(kv_heads * SIZE, hidden, trained), matrix(kv_heads * SIZE, hidden, trained)
        self.q_norm, self.k_norm = ones(SIZE, trained), ones(SIZE, trained)

    def queries_keys_values(self, x, rotary):
        heads = lambda weight: F.linear(x, weight).unflatten(-1, (-1, SIZE))  # [B, T, H, K]
        q = rotate(F.rms_norm(heads(self.q), (SIZE,), self.q_norm, EPSILON), rotary)
        k = rotate(F.rms_norm(heads(self.k), (SIZE,), self.k_norm, EPSILON), rotary)
        return q, k, heads(self.v)


class FullAttention(Attention):
    def __init__(self, shape, trained=False):
        super().__init__(shape, KV_HEADS, trained)

    def forward(self, x, rotary):
        q, k, v = (part.transpose(1, 2) for part in self.queries_keys_values(x, rotary))
        o = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return F.linear(o.transpose(1, 2).flatten(2), self.o)


class LightningBranch(Attention):
    def __init__(self, shape, trained):
        super().__init__(shape, shape["heads"], trained)
        self.z = matrix(shape["heads"] * SIZE, shape["hidden"], trained)
        self.o_norm = ones(shape["heads"] * SIZE, trained)
        self.slopes = -(2.0 ** (-8 * torch.arange(1, shape["heads"] + 1, device="cuda") / shape["heads"]))

    def forward(self, x, rotary):
        from fla.ops.simple_gla import chunk_simple_gla
        q, k, v = self.queries_keys_values(x, rotary)
        o = chunk_simple_gla(q, k, v, g_gamma=self.slopes, scale=SIZE**-0.5)[0]
        o = F.rms_norm(o, (SIZE,), None, EPSILON).flatten(2) * self.o_norm
        return F.linear(o * torch.sigmoid(F.linear(x, self.z)), self.o)


class GatedLinearBranch(Attention):
    def __init__(self, shape, trained):
        super().__init__(shape, shape["heads"], trained)
        width, hidden = shape["heads"] * SIZE, shape["hidden"]
        self.z, self.decay_in, self.decay_out = matrix(width, hidden, trained), matrix(16, hidden, trained), matrix(width, 16, trained)
        self.decay_bias, self.o_norm = ones(width, trained), ones(SIZE, trained)

    def forward(self, x, rotary):
        from fla.ops.gla import chunk_gla
        q, k, v = self.queries_keys_values(x, rotary)
        decay = F.linear(F.linear(x, self.decay_in), self.decay_out, self.decay_bias).unflatten(-1, (-1, SIZE))
        o = chunk_gla(q, k, v, F.logsigmoid(decay.float()) / 16, scale=SIZE**-0.5)[0]
        o = F.rms_norm(o, (SIZE,), self.o_norm, EPSILON).flatten(2)
        return F.linear(F.silu(F.linear(x, self.z)) * o, self.o)


class GatedDeltaNetBranch(torch.nn.Module):
    def __init__(self, shape, trained):
        super().__init__()
        width, hidden = shape["heads"] * SIZE, shape["hidden"]
        self.q, self.k, self.v, self.z = (matrix(width, hidden, trained) for _ in range(4))
        self.beta, self.step, self.o = matrix(shape["heads"], hidden, trained), matrix(shape["heads"], hidden, trained), matrix(hidden, width, trained)
        self.taps = torch.nn.ParameterList(matrix(width, 4, trained) for _ in range(3))
        self.A_log, self.dt_bias, self.norm = ones(shape["heads"], trained), ones(shape["heads"], trained), ones(SIZE, trained)

    def forward(self, x, rotary):
        from fla.modules.causal_conv1d import causal_conv1d
        from fla.ops.common import chunk_o
        from fla.ops.gated_delta_rule import chunk_gated_delta_rule
        chunk_o.TRITON_ABOVE_3_7_1 = True  # it refuses this Triton's backward on Hopper, whose gradients are wrong: for its speed only
        heads = lambda weight, taps: causal_conv1d(F.linear(x, weight), taps, activation="silu")[0].unflatten(-1, (-1, SIZE))
        q, k, v = (heads(*pair) for pair in zip((self.q, self.k, self.v), self.taps))
        decay = -self.A_log.float().exp() * F.softplus(F.linear(x, self.step).float() + self.dt_bias)
        o = chunk_gated_delta_rule(q, k, v, decay, F.linear(x, self.beta).float().sigmoid(), scale=SIZE**-0.5,
                                   use_qk_l2norm_in_kernel=True)[0]
        o = F.rms_norm(o, (SIZE,), self.norm, EPSILON).flatten(2)
        return F.linear(F.silu(F.linear(x, self.z)) * o, self.o)


BRANCHES = {"lightning": LightningBranch, "gla": GatedLinearBranch, "gated_delta_net": GatedDeltaNetBranch}


class Layer(torch.nn.Module):
    def __init__(self, shape, mixer, trained_branch=False, trained=False, full=True, linear=True):
        super().__init__()
        self.input_norm, self.post_norm = ones(shape["hidden"], trained), ones(shape["hidden"], trained)
        self.gate, self.up = (matrix(shape["intermediate"], shape["hidden"], trained) for _ in range(2))
        self.down = matrix(shape["hidden"], shape["intermediate"], trained)
        self.full = FullAttention(shape, trained) if full else None
        self.linear = BRANCHES[mixer](shape, trained or trained_branch) if linear else None

    def normed(self, x):
        return F.rms_norm(x, x.shape[-1:], self.input_norm, EPSILON)

    def feed_forward(self, h):
        x = F.rms_norm(h, h.shape[-1:], self.post_norm, EPSILON)
        return h + F.linear(F.silu(F.linear(x, self.gate)) * F.linear(x, self.up), self.down)


class Model(torch.nn.Module):
    def __init__(self, shape, mixer, trained=False, **options):
        super().__init__()
        every_fourth, branches = options.pop("every_fourth", False), options.pop("branches", True)
        self.embedding = matrix(VOCABULARY, shape["hidden"], trained)
        self.layers = torch.nn.ModuleList(
            Layer(shape, mixer, trained=trained, full=not every_fourth or l % 4 == 3, linear=branches and (not every_fourth or l % 4 != 3),
                  **options)
            for l in range(shape["layers"]))
        self.norm = ones(shape["hidden"], trained)
        self.head = self.embedding if shape["tied"] else matrix(VOCABULARY, shape["hidden"], trained)

    def hidden(self, tokens, rotary):
        x = F.embedding(tokens, self.embedding)
        for layer in self.layers:
            attention = layer.full if layer.full is not None else layer.linear
            x = layer.feed_forward(x + attention(layer.normed(x), rotary))
        return F.rms_norm(x, x.shape[-1:], self.norm, EPSILON).flatten(0, 1)


def align_step(model, tokens, rotary, optimizer):
    x, total = F.embedding(tokens, model.embedding), torch.zeros((), device="cuda")
    for layer in model.layers:
        with torch.no_grad():
            normed = layer.normed(x)
            target = layer.full(normed, rotary)
        loss = F.mse_loss(layer.linear(normed, rotary), target) / len(model.layers)
        loss.backward()
        total += loss.detach()
        with torch.no_grad():
            x = layer.feed_forward(x + target)
    torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return total


def select_step(model, tokens, rotary, optimizer, alpha, answers):
    with torch.no_grad():
        teacher, x = [], F.embedding(tokens, model.embedding)
        for layer in model.layers:
            h = x + layer.full(layer.normed(x), rotary)
            teacher.append(h.flatten(0, 1)[answers])
            if layer is not model.layers[-1]:
                x = layer.feed_forward(h)
    loss, x = GATE_PENALTY * alpha.sum(), F.embedding(tokens, model.embedding)
    for a, layer, target in zip(alpha.to(torch.bfloat16), model.layers, teacher):
        normed = layer.normed(x)
        h = x + a * layer.full(normed, rotary) + (1 - a) * layer.linear(normed, rotary)
        loss = loss + (h.flatten(0, 1)[answers] - target).float().square().sum(-1).mean() / len(model.layers)
        if layer is not model.layers[-1]:
            x = layer.feed_forward(h)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    with torch.no_grad():
        alpha.clamp_(0, 1)
    return loss.detach()


def distill_step(teacher, hybrid, tokens, rotary, optimizer):
    with torch.no_grad():
        target = teacher.hidden(tokens, rotary)
    student = hybrid.hidden(tokens, rotary)
    leaf, total = student.detach().requires_grad_(), torch.zeros((), device="cuda")
    for start in range(0, len(target), KL_CHUNK):  # one chunk's logits live at a time
        with torch.no_grad():
            wanted = F.linear(target[start:start + KL_CHUNK], teacher.head).float().log_softmax(-1)
        given = F.linear(leaf[start:start + KL_CHUNK], hybrid.head).float().log_softmax(-1)
        loss = F.kl_div(given, wanted, reduction="sum", log_target=True) / len(target)
        loss.backward()
        total += loss.detach()
    student.backward(leaf.grad)
    torch.nn.utils.clip_grad_norm_(hybrid.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return total


def stepper(arguments):
    shape = SHAPES[arguments.shape]
    frequency = 1e4 ** (-torch.arange(0, SIZE, 2, device="cuda", dtype=torch.float64) / SIZE)
    angles = (torch.arange(arguments.length, device="cuda")[:, None] * frequency).repeat(1, 2)
    rotary = tuple(part.to(torch.bfloat16).unsqueeze(1) for part in (angles.cos(), angles.sin()))
    tokens = lambda: torch.randint(VOCABULARY, (arguments.sequences, arguments.length), device="cuda")
    adamw = lambda parameters, **rest: torch.optim.AdamW(parameters, betas=(0.9, 0.95), weight_decay=0.0, fused=True, **rest)
    if arguments.stage == "align":
        model = Model(shape, arguments.mixer, trained_branch=True)
        optimizer = adamw([p for p in model.parameters() if p.requires_grad], lr=1e-3)
        return lambda: align_step(model, tokens(), rotary, optimizer)
    if arguments.stage == "select":
        model = Model(shape, arguments.mixer)
        alpha = torch.full((shape["layers"],), 0.9, device="cuda", requires_grad=True)
        count = arguments.sequences * arguments.length
        answers = torch.randperm(count, device="cuda")[: int(ANSWER_SHARE * count)].sort().values
        optimizer = adamw([alpha], lr=2e-2)
        return lambda: select_step(model, tokens(), rotary, optimizer, alpha, answers)
    teacher = Model(shape, arguments.mixer, branches=False)
    hybrid = Model(shape, arguments.mixer, trained=True, every_fourth=True)
    optimizer = adamw(list(hybrid.parameters()), lr=1e-5)
    return lambda: distill_step(teacher, hybrid, tokens(), rotary, optimizer)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="1.7B")
    parser.add_argument("--stage", choices=["align", "select", "distill"], default="select")
    parser.add_argument("--mixer", choices=BRANCHES, default="lightning")
    parser.add_argument("--sequences", type=int, default=1)
    parser.add_argument("--length", type=int, default=16384)
    parser.add_argument("--steps", type=int, default=6)
    triton_candidates.add_option(parser)
    arguments = parser.parse_args()
    triton_candidates.try_for(arguments.candidate_ms)
    torch.manual_seed(1)
    step, times = stepper(arguments), []
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        for _ in range(arguments.steps):
            start = time.perf_counter()
            loss = step().item()
            times.append(time.perf_counter() - start)
    seconds = statistics.median(times[WARM_UP:])
    print(json.dumps({
        "side": "PyTorch + FLA", "shape": arguments.shape, "stage": arguments.stage, "mixer": arguments.mixer, "sequences": arguments.sequences,
        "length": arguments.length, "device": torch.cuda.get_device_name(), "seconds_a_step": seconds,
        "tokens_per_second": arguments.sequences * arguments.length / seconds,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30, "loss": loss, "steps": times}))


if __name__ == "__main__":
    main()
