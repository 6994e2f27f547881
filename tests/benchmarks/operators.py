"""Times the registered CPU operators, forward and backward, on one thread, beside what a PyTorch user would write.

    python tests/benchmarks/operators.py path/to/libflashmorph_core_ops.so [--json out.json] [--tokens 512 4096 16384]

Linear attention has three forms: ours; `eager`, the chunked form in eager PyTorch; `recurrence`, one token at a time. The
other operators have the first two. All forms get the same inputs and must agree before they are timed; each runs in a
process of its own, which gives its peak memory. The rounds of ours and eager take turns. A time is a median.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

import torch
import torch.nn.functional as F

HEADS, HEAD_DIM, HIDDEN, INTERMEDIATE, CHUNK = 4, 32, 128, 384, 64
SCALE = HEAD_DIM**-0.5


def chunks(x):
    """[B, T, H, D] -> [N, B, H, C, D]; T must be a multiple of the chunk."""
    batch, tokens, heads, dim = x.shape
    return x.view(batch, tokens // CHUNK, CHUNK, heads, dim).permute(1, 0, 3, 2, 4)


def unchunked(x):
    count, batch, heads, chunk, dim = x.shape
    return x.permute(1, 0, 3, 2, 4).reshape(batch, count * chunk, heads, dim)


def lightning_decays():
    return -torch.pow(2.0, -8.0 * torch.arange(1, HEADS + 1) / HEADS)


def eager_lightning(q, k, v):
    q, k, v = map(chunks, (q, k, v))
    i = torch.arange(1, CHUNK + 1, dtype=q.dtype)
    g = lightning_decays().view(-1, 1, 1)
    gam, tail = (g * i.view(-1, 1)).exp(), (g * (CHUNK - i).view(-1, 1)).exp()
    table = (g * (i.view(-1, 1) - i).clamp_min(0)).exp().tril()
    inside = ((q @ k.transpose(-1, -2)) * table) @ v
    return unchunked(SCALE * (inside + (q * gam) @ scanned((k * tail).transpose(-1, -2) @ v, lambda n: gam[:, -1:])))


def scanned(added, decay):
    """The states before each chunk."""
    state, before = torch.zeros_like(added[0]), []
    for n, part in enumerate(added):
        before.append(state)
        state = state * decay(n) + part
    return torch.stack(before)


def eager_gated_linear(q, k, v, g):
    """The factored form: as fast as it gets in matrix products, but exp(-b) overflows for strong decays."""
    q, k, v, g = map(chunks, (q, k, v, g))
    b = g.cumsum(-2)
    inside = (((q * b.exp()) @ (k * (-b).exp()).transpose(-1, -2)).tril()) @ v
    added = (k * (b[..., -1:, :] - b).exp()).transpose(-1, -2) @ v
    whole = b[..., -1, :].exp().unsqueeze(-1)
    return unchunked(SCALE * (inside + (q * b.exp()) @ scanned(added, lambda n: whole[n])))


def eager_gated_delta(q, k, v, g, beta):
    q, k, v = map(chunks, (q, k, v))
    g, beta = (chunks(x.unsqueeze(-1)) for x in (g, beta))
    b = g.cumsum(-2)
    table = (b - b.transpose(-1, -2)).tril().exp().tril()
    system = (beta * table * (k @ k.transpose(-1, -2))).tril(-1)
    solved = torch.linalg.solve_triangular(
        system, torch.cat((k * beta * b.exp(), v * beta), -1), upper=False, unitriangular=True)
    gone, written = solved.split((HEAD_DIM, HEAD_DIM), -1)
    scores, k_tail = (q @ k.transpose(-1, -2)) * table, k * (b[..., -1:, :] - b).exp()
    state, outputs = torch.zeros_like(k_tail[0].transpose(-1, -2) @ v[0]), []
    parts = (q * b.exp(), gone, written, scores, k_tail.transpose(-1, -2), b[..., -1:, :].exp())
    for q_n, gone_n, written_n, scores_n, k_n, whole_n in zip(*map(torch.unbind, parts)):
        fresh = written_n - gone_n @ state
        outputs.append(SCALE * (q_n @ state + scores_n @ fresh))
        state = state * whole_n + k_n @ fresh
    return unchunked(torch.stack(outputs))


def recurrence(step, q, *others):
    """unbind, since the gradient of x[:, t] would be a tensor of all tokens for every t."""
    state, outputs = torch.zeros(q.shape[0], HEADS, HEAD_DIM, HEAD_DIM), []
    for q_t, *others_t in zip(*(x.unbind(1) for x in (q, *others))):
        state = step(state, *others_t)
        outputs.append(SCALE * (q_t.unsqueeze(-2) @ state).squeeze(-2))
    return torch.stack(outputs, 1)


def outer(k, v):
    return k.unsqueeze(-1) * v.unsqueeze(-2)


def recurrent_lightning(q, k, v):
    decay = lightning_decays().exp().view(-1, 1, 1)
    return recurrence(lambda state, k, v: state * decay + outer(k, v), q, k, v)


def recurrent_gated_linear(q, k, v, g):
    return recurrence(lambda state, k, v, a: state * a + outer(k, v), q, k, v, g.exp().unsqueeze(-1))


def recurrent_gated_delta(q, k, v, g, beta):
    def step(state, k, v, a, beta):
        state = state * a
        missing = v - (k.unsqueeze(-2) @ state).squeeze(-2)
        return state + outer(k * beta, missing)

    return recurrence(step, q, k, v, g.exp()[..., None, None], beta.unsqueeze(-1))


def eager_rotate(x, cos, sin):
    first, second = x.chunk(2, -1)
    return x * cos.unsqueeze(1) + torch.cat((-second, first), -1) * sin.unsqueeze(1)


def cases(tokens):
    """By operator: its forms by name, and inputs that need a gradient."""
    ops = torch.ops.flashmorph
    torch.manual_seed(tokens)
    leaf = lambda x: x.clone().requires_grad_()
    random = lambda *shape: leaf(torch.randn(*shape))
    heads = (1, tokens, HEADS, HEAD_DIM)
    angle = torch.arange(tokens).view(-1, 1) * 1e4 ** (-torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    cos, sin = torch.cat((angle, angle), 1).cos(), torch.cat((angle, angle), 1).sin()
    decay = lightning_decays()
    rest = (None, None, SCALE, CHUNK)
    return {
        "lightning_attention": (
            {"ours": lambda q, k, v: ops.lightning_attention(q, k, v, decay, *rest)[0],
             "eager": eager_lightning, "recurrence": recurrent_lightning},
            [random(*heads) for _ in range(3)]),
        "gated_linear_attention": (
            {"ours": lambda q, k, v, g: ops.gated_linear_attention(q, k, v, g, *rest)[0],
             "eager": eager_gated_linear, "recurrence": recurrent_gated_linear},
            [random(*heads) for _ in range(3)] + [leaf(F.logsigmoid(torch.randn(*heads)) / 16)]),
        "gated_delta_rule": (
            {"ours": lambda q, k, v, g, beta: ops.gated_delta_rule(q, k, v, g, beta, *rest)[0],
             "eager": eager_gated_delta, "recurrence": recurrent_gated_delta},
            [random(*heads), leaf(F.normalize(torch.randn(*heads), dim=-1)), random(*heads),
             leaf(-torch.rand(*heads[:3]) / 5), leaf(torch.rand(*heads[:3]))]),
        "rms_norm": (
            {"ours": lambda x, w: ops.rms_norm(x, w, 1e-6),
             "eager": lambda x, w: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * w},
            [random(1, tokens, HIDDEN), random(HIDDEN)]),
        "swiglu": (
            {"ours": ops.swiglu, "eager": lambda gate, up: F.silu(gate) * up},
            [random(1, tokens, INTERMEDIATE) for _ in range(2)]),
        "rotate": (
            {"ours": lambda x: ops.rotate(x, cos, sin), "eager": lambda x: eager_rotate(x, cos, sin)},
            [random(*heads)]),
    }


def require_equal(name, forms, inputs):
    results = {}
    for form, function in forms.items():
        output = function(*inputs)
        upstream = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
        results[form] = [output, *torch.autograd.grad(output, inputs, upstream)]
    for form, tensors in results.items():
        for mine, other in zip(results["ours"], tensors):
            error = ((mine - other).norm() / other.norm()).item()
            if not error < 1e-4:
                raise SystemExit(f"{name}: ours and {form} differ by {error:.1e}")


def memory(field):
    """A line of /proc/self/status, in MB."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith(field))


def serve(name, form, tokens):
    """One form in a process of its own: a round for each line that comes, its times and peak memory back."""
    forms, inputs = cases(tokens)[name]
    function = forms[form]
    upstream = torch.randn(inputs[0].shape)  # every output has the shape of its first input
    small_forms, small = cases(CHUNK)[name]
    small_forms[form](*small).sum().backward()  # what torch loads at first is not the operator's
    before = memory("VmRSS")
    for _ in sys.stdin:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # the peak starts from here
        start = time.perf_counter()
        output = function(*inputs)
        middle = time.perf_counter()
        torch.autograd.grad(output, inputs, upstream)
        both = time.perf_counter() - start
        print(json.dumps([middle - start, both, memory("VmHWM") - before]), flush=True)
        del output


def in_turns(arguments, name, tokens, forms, rounds):
    """Every round's times and peak memory, by form; each form in a process of its own."""
    command = [sys.executable, __file__, arguments.library, "--serve", name]
    servers = {form: subprocess.Popen([*command, form, str(tokens)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
               for form in forms}
    samples = {form: [] for form in forms}
    for _ in range(rounds):
        for form, server in servers.items():
            server.stdin.write("\n")
            server.stdin.flush()
            samples[form].append(json.loads(server.stdout.readline()))
    for server in servers.values():
        server.stdin.close()
        server.wait()
    return samples


def measure(arguments, name, tokens, forms):
    samples = in_turns(arguments, name, tokens, ("ours", "eager"), arguments.rounds)
    if "recurrence" in forms and arguments.recurrence_rounds > 0:  # by itself: its minutes would let the others' memory go cold
        samples |= in_turns(arguments, name, tokens, ("recurrence",), arguments.recurrence_rounds)
    row = {"operator": name, "tokens": tokens}
    for form, rounds in samples.items():
        forward, both, peak = zip(*rounds)
        row[form] = {"forward_ms": round(statistics.median(forward) * 1e3, 3),
                     "both_ms": round(statistics.median(both) * 1e3, 3),
                     "tokens_per_s": round(tokens / statistics.median(both)),
                     "peak_mb": round(max(peak), 1)}
    return row


def table(results):
    lines = ["| operator | T | form | forward ms | forward and backward ms | tokens/s | peak MB |",
             "|---|---:|---|---:|---:|---:|---:|"]
    for row in results:
        for form in ("ours", "eager", "recurrence"):
            if form in row:
                f = row[form]
                lines.append(f"| {row['operator']} | {row['tokens']} | {form} | {f['forward_ms']} | {f['both_ms']} | "
                             f"{f['tokens_per_s']} | {f['peak_mb']} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library")
    parser.add_argument("--json", help="also write the results to this file")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--recurrence-rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 4096, 16384], help=f"multiples of {CHUNK}")
    parser.add_argument("--only", nargs="+", help="operators to time")
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.ops.load_library(arguments.library)
    if arguments.serve:
        return serve(arguments.serve[0], arguments.serve[1], int(arguments.serve[2]))

    for name, (forms, inputs) in cases(8 * CHUNK).items():
        require_equal(name, forms, inputs)
    results = [measure(arguments, name, tokens, forms)
               for name, (forms, _) in cases(CHUNK).items() if not arguments.only or name in arguments.only
               for tokens in arguments.tokens]
    print(table(results))
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump({"torch": torch.__version__, "threads": 1, "heads": HEADS, "head_dim": HEAD_DIM, "chunk": CHUNK,
                       "load": os.getloadavg()[0], "results": results}, file, indent=1)
            file.write("\n")


if __name__ == "__main__":
    main()
