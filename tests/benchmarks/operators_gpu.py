"""Times the CUDA operators beside flash-linear-attention's Triton kernels, FlashQLA's and torch's own, in one process, in turns.

    PYTHONPATH=DIR_OF_FLA:DIR_OF_FLASHQLA python tests/benchmarks/operators_gpu.py DIR_OF_LIBRARIES [--rounds 40] [--shapes BxTxHxD...] [--only NAME...]

A table, and one line of JSON at the end. bf16; q, k, v (and gates) need gradients on both sides. A time is the median over rounds, by CUDA events, in
ms. Sides must agree before they are timed. Without FLA on the path only ours is timed: the fused kernels, and beside
them the form made of batched matrix products. The gated delta rule is timed beside FlashQLA, too, where flash-qla, tilelang, apache-tvm-ffi and
z3-solver are on the path (and nvcc, which compiles its kernels at their first call); a shape it refuses is in the JSON's "left_out".
"""

import argparse
import importlib
import json
import os
import statistics
import sys

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import triton_candidates

SHAPES = [(1, 16384, 16, 128), (4, 4096, 16, 128), (32, 512, 16, 128), (1, 16384, 16, 64)]
SIZE = 128  # of the heads that are not in SHAPES
CHUNKS = {"lightning_attention": 128, "gated_linear_attention": 64, "gated_delta_rule": 64}


class Refused(Exception):
    """A side does not take this shape."""


def timed(function, rounds):
    """Seconds on the device, one number a round."""
    pairs = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(rounds)]
    for start, end in pairs:
        start.record()
        function()
        end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) for start, end in pairs]


def measure(sides, inputs, rounds):
    """sides: name -> function of inputs; forward alone and with its backward, the sides in turns."""
    upstream, results = None, {}
    steps = {}
    for name, function in sides.items():
        output = function(*inputs)
        upstream = torch.randn_like(output) if upstream is None else upstream
        trained = [x for x in inputs if x.requires_grad]
        steps[name, "forward"] = lambda f=function: f(*inputs)
        steps[name, "both"] = lambda f=function, t=trained: torch.autograd.grad(f(*inputs), t, upstream)
    for step in steps.values():
        timed(step, 5)
    times = {key: [] for key in steps}
    for _ in range(4):
        for key, step in steps.items():
            times[key] += timed(step, max(3, rounds // 4))
    for (name, part), values in times.items():
        results.setdefault(name, {})[part + "_ms"] = round(statistics.median(values), 4)
    return results


def difference(mine, other):
    """Of other's size."""
    return float(f"{((mine.float() - other.float()).norm() / other.float().norm()).item():.2e}")


def agree(name, ours, theirs, inputs):
    """Stops where the outputs differ. The gradients' largest difference is only told: FLA's gated ones are wrong with some Tritons."""
    trained = [x for x in inputs if x.requires_grad]
    mine, other = ours(*inputs), theirs(*inputs)
    error = difference(mine, other)
    if not error < 2e-2:
        raise SystemExit(f"{name}: the two sides differ by {error:.1e}")
    upstream = torch.randn_like(mine)
    gradients = zip(*(torch.autograd.grad(output, trained, upstream) for output in (mine, other)))
    return {"output_difference": error, "gradient_difference": max(difference(a, b) for a, b in gradients)}


def fla_operators(slopes, scale):
    """FLA's forms of the operators, none when it is not on the path."""
    # Left alone, it hands its gated delta rule to FlashQLA and parts of its backwards to TileLang where it finds these packages.
    os.environ["FLA_DISABLE_BACKEND_DISPATCH"] = "1"
    try:
        from fla.ops.common import chunk_o
        from fla.ops.gated_delta_rule import chunk_gated_delta_rule
        from fla.ops.gla import chunk_gla
        from fla.ops.simple_gla import chunk_simple_gla
    except ImportError:
        return {}
    # With Triton 3.4 to 3.7.0 it refuses the gated backward on Hopper, whose gradients are wrong there: for its speed only.
    chunk_o.TRITON_ABOVE_3_7_1 = True
    return {"lightning_attention": lambda q, k, v: chunk_simple_gla(q, k, v, g_gamma=slopes, scale=scale)[0],
            "gated_linear_attention": lambda q, k, v, g: chunk_gla(q, k, v, g, scale=scale)[0],
            "gated_delta_rule": lambda q, k, v, g, beta: chunk_gated_delta_rule(q, k, v, g, beta, scale=scale)[0]}


def flashqla_operators(scale):
    """FlashQLA's form of the operator it has, none when it is not on the path. It cuts sequences where decay leaves 5e-5 of the state."""
    try:
        from flash_qla import chunk_gated_delta_rule
    except ImportError:
        return {}

    def run(q, k, v, g, beta):
        if q.shape[-1] != 128:
            raise Refused("heads of 128 only")
        return chunk_gated_delta_rule(q, k, v, g, beta, scale=scale)[0]
    return {"gated_delta_rule": run}


def linear_cases(B, T, H, D):
    ops = torch.ops.flashmorph
    random = lambda *shape: torch.randn(shape, device="cuda", dtype=torch.bfloat16).requires_grad_()
    q, k, v = (random(B, T, H, D) for _ in range(3))
    scale = D**-0.5
    slopes = -torch.pow(2.0, -8.0 * torch.arange(1, H + 1, device="cuda") / H)
    gates = lambda *shape: (-torch.rand(shape, device="cuda") * 0.1).requires_grad_()
    unit_k = F.normalize(k.detach(), dim=-1).requires_grad_()
    inputs = {"lightning_attention": [q, k, v], "gated_linear_attention": [q, k, v, gates(B, T, H, D)],
              "gated_delta_rule": [q, unit_k, v, gates(B, T, H), torch.rand(B, T, H, device="cuda").requires_grad_()]}
    decays = lambda name: [slopes] if name == "lightning_attention" else []
    theirs = {"fla": fla_operators(slopes, scale), "flashqla": flashqla_operators(scale)}

    def ours(name, fused):
        def run(*x):
            ops.use_fused_kernels(fused)
            return getattr(ops, name)(*x, *decays(name), None, None, scale, CHUNKS[name])[0]
        return run
    for name in CHUNKS:
        sides = {"ours": ours(name, True), "products": ours(name, False)}
        sides |= {side: operators[name] for side, operators in theirs.items() if name in operators}
        yield name, sides, inputs[name]


def attention_case(B, T, H, D, groups):
    random = lambda heads: torch.randn(B, heads, T, D, device="cuda", dtype=torch.bfloat16).requires_grad_()
    q, k, v = random(H), random(H // groups), random(H // groups)

    def backend(which):
        def run(q, k, v):
            with sdpa_kernel(which):
                return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return run
    return "full attention", {"cudnn": backend(SDPBackend.CUDNN_ATTENTION), "flash": backend(SDPBackend.FLASH_ATTENTION)}, [q, k, v]


def pointwise_cases(tokens):
    ops = torch.ops.flashmorph
    random = lambda *shape: torch.randn(shape, device="cuda", dtype=torch.bfloat16).requires_grad_()
    yield "rms_norm", {"ours": lambda x, w: ops.rms_norm(x, w, 1e-6),
                       "torch": lambda x, w: F.rms_norm(x, (2048,), w, 1e-6)}, [random(tokens, 2048), random(2048).detach()]
    yield "rms_norm per head", {"ours": lambda x, w: ops.rms_norm(x, w, 1e-6),
                                "torch": lambda x, w: F.rms_norm(x, (SIZE,), w, 1e-6)}, \
        [random(tokens, 16, SIZE), random(SIZE)]
    yield "swiglu", {"ours": ops.swiglu, "torch": lambda gate, up: F.silu(gate) * up}, [random(tokens, 6144), random(tokens, 6144)]
    angle = torch.rand(tokens, SIZE, device="cuda")
    cos, sin = angle.cos(), angle.sin()

    def eager(x):
        first, second = x.chunk(2, -1)
        return x * cos.bfloat16().unsqueeze(1) + torch.cat((-second, first), -1) * sin.bfloat16().unsqueeze(1)
    yield "rotate", {"ours": lambda x: ops.rotate(x, cos, sin), "torch": eager}, [random(1, tokens, 16, SIZE)]


def versions(*packages):
    """Of those on the path."""
    found = {}
    for package in packages:
        try:
            found[package] = importlib.import_module(package).__version__
        except (ImportError, AttributeError):
            pass
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("libraries")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--shapes", nargs="+", metavar="BxTxHxD", type=lambda text: tuple(map(int, text.split("x"))), default=SHAPES,
                        help="of the recurrences and of attention")
    parser.add_argument("--only", nargs="+", help="operators by name; all when none is named")
    triton_candidates.add_option(parser)
    arguments = parser.parse_args()
    triton_candidates.try_for(arguments.candidate_ms)
    torch.ops.load_library(f"{arguments.libraries}/libflashmorph_core_ops.so")
    torch.ops.load_library(f"{arguments.libraries}/libflashmorph_cuda.so")
    torch.manual_seed(1)

    rows, left_out = [], []

    def report(name, shape, sides, inputs):
        if arguments.only and name not in arguments.only:
            return
        agreement = {}
        for side in [side for side in ("fla", "flashqla") if side in sides]:
            try:
                agreement[side] = agree(f"{name}, {shape}, {side}", sides["ours"], sides[side], inputs)
            except Refused as why:
                left_out.append({"operator": name, "shape": shape, "side": side, "why": str(why)})
                del sides[side]
        for side, times in measure(sides, inputs, arguments.rounds).items():
            rows.append({"operator": name, "shape": shape, "side": side, **times, **agreement.get(side, {})})
            print(f"{name:<24} {shape:<21} {side:<10} forward {times['forward_ms']:>8}  both {times['both_ms']:>8}", file=sys.stderr, flush=True)

    for B, T, H, D in arguments.shapes:
        for name, sides, inputs in linear_cases(B, T, H, D):
            report(name, f"B{B} T{T} H{H} D{D}", sides, inputs)
        name, sides, inputs = attention_case(B, T, H, D, 2)
        report(name, f"B{B} T{T} H{H}/{H // 2} D{D}", sides, inputs)
    for name, sides, inputs in pointwise_cases(16384):
        report(name, "16384 tokens", sides, inputs)
    print(json.dumps({"device": torch.cuda.get_device_name(), **versions("torch", "triton", "fla", "flash_qla", "tilelang"),
                      "results": rows, "left_out": left_out}))


if __name__ == "__main__":
    main()
