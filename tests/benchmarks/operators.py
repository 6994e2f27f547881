"""Times the registered CPU operators beside eager PyTorch, forward and backward, on one thread.

    python tests/benchmarks/operators.py path/to/libflashmorph_core_ops.so [--json out.json]

The eager forms are what a PyTorch user would write; both sides get the same inputs and must agree before they are timed.
A time is the median of interleaved rounds.
"""

import argparse
import json
import statistics
import time

import torch
import torch.nn.functional as F

HEADS, HEAD_DIM, HIDDEN, INTERMEDIATE, CHUNK = 4, 32, 128, 384, 64


def eager_lightning(q, k, v, log_decay, scale, chunk):
    """Chunked lightning attention, [B, T, H, D]; T must be a multiple of the chunk."""
    batch, tokens, heads, dim = q.shape
    q, k, v = (x.view(batch, tokens // chunk, chunk, heads, dim).permute(1, 0, 3, 2, 4) for x in (q, k, v))
    i = torch.arange(1, chunk + 1, dtype=q.dtype)
    g = log_decay.view(-1, 1, 1)
    gam, tail = (g * i.view(-1, 1)).exp(), (g * (chunk - i).view(-1, 1)).exp()
    table = (g * (i.view(-1, 1) - i).clamp_min(0)).exp().tril()
    inside = ((q @ k.transpose(-1, -2)) * table) @ v
    added = (k * tail).transpose(-1, -2) @ v
    state, before = torch.zeros_like(added[0]), []
    for part in added:
        before.append(state)
        state = state * gam[:, -1:] + part
    output = scale * (inside + (q * gam) @ torch.stack(before))
    return output.permute(1, 0, 3, 2, 4).reshape(batch, tokens, heads, dim)


def eager_rotate(x, cos, sin):
    first, second = x.chunk(2, -1)
    return x * cos.unsqueeze(1) + torch.cat((-second, first), -1) * sin.unsqueeze(1)


def cases(tokens):
    """Name, our operator, the eager form, inputs that need a gradient."""
    ops = torch.ops.flashmorph
    torch.manual_seed(tokens)
    random = lambda *shape: torch.randn(shape, requires_grad=True)
    log_decay = -torch.pow(2.0, -8.0 * torch.arange(1, HEADS + 1) / HEADS)
    scale = HEAD_DIM**-0.5
    angle = torch.arange(tokens).view(-1, 1) * 1e4 ** (-torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    cos, sin = torch.cat((angle, angle), 1).cos(), torch.cat((angle, angle), 1).sin()
    heads = (1, tokens, HEADS, HEAD_DIM)

    yield ("lightning_attention",
           lambda q, k, v: ops.lightning_attention(q, k, v, log_decay, None, None, scale, CHUNK)[0],
           lambda q, k, v: eager_lightning(q, k, v, log_decay, scale, CHUNK),
           [random(*heads) for _ in range(3)])
    yield ("rms_norm",
           lambda x, w: ops.rms_norm(x, w, 1e-6),
           lambda x, w: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * w,
           [random(1, tokens, HIDDEN), random(HIDDEN)])
    yield ("swiglu", ops.swiglu, lambda gate, up: F.silu(gate) * up,
           [random(1, tokens, INTERMEDIATE) for _ in range(2)])
    yield ("rotate", lambda x: ops.rotate(x, cos, sin), lambda x: eager_rotate(x, cos, sin), [random(*heads)])


def once(function, inputs, upstream):
    """Seconds of one forward and of its backward."""
    start = time.perf_counter()
    output = function(*inputs)
    middle = time.perf_counter()
    torch.autograd.grad(output, inputs, upstream)
    return middle - start, time.perf_counter() - middle


def require_equal(name, ours, eager, inputs, upstream):
    mine, theirs = ours(*inputs), eager(*inputs)
    gradients = zip(torch.autograd.grad(mine, inputs, upstream), torch.autograd.grad(theirs, inputs, upstream))
    for a, b in [(mine, theirs), *gradients]:
        error = ((a - b).norm() / b.norm()).item()
        if not error < 1e-5:
            raise SystemExit(f"{name}: ours and eager differ by {error:.1e}")


def measure(name, ours, eager, inputs, rounds):
    upstream = torch.randn_like(ours(*inputs))
    require_equal(name, ours, eager, inputs, upstream)
    times = {"ours": [], "eager": []}
    for _ in range(rounds):
        times["ours"].append(once(ours, inputs, upstream))
        times["eager"].append(once(eager, inputs, upstream))
    row = {}
    for part, pick in (("forward", lambda t: t[0]), ("both", sum)):
        mine, theirs = (statistics.median(map(pick, times[side])) * 1e3 for side in ("ours", "eager"))
        row[part] = {"ours_ms": round(mine, 4), "eager_ms": round(theirs, 4), "eager_over_ours": round(theirs / mine, 2)}
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library")
    parser.add_argument("--json", help="also write the results to this file")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 4096], help=f"multiples of {CHUNK}")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.ops.load_library(arguments.library)

    results = []
    print(f"{'operator':<20} {'T':>6} {'forward ms':>11} {'eager':>9} {'ratio':>6} {'both ms':>9} {'eager':>9} {'ratio':>6}")
    for tokens in arguments.tokens:
        for name, ours, eager, inputs in cases(tokens):
            row = measure(name, ours, eager, inputs, arguments.rounds)
            results.append({"operator": name, "tokens": tokens, **row})
            f, b = row["forward"], row["both"]
            print(f"{name:<20} {tokens:>6} {f['ours_ms']:>11} {f['eager_ms']:>9} {f['eager_over_ours']:>6} "
                  f"{b['ours_ms']:>9} {b['eager_ms']:>9} {b['eager_over_ours']:>6}")
    text = json.dumps({"torch": torch.__version__, "threads": 1, "results": results})
    print(text)
    if arguments.json:
        with open(arguments.json, "w") as file:
            file.write(text + "\n")


if __name__ == "__main__":
    main()
