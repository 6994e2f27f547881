"""The CUDA operators against their definitions in float64, and bit for bit against themselves.

    python tests/gpu/operators_test.py DIR_OF_LIBRARIES [--small] [--only NAME...] [--dtypes NAME...]

DIR has libflashmorph_core_ops.so and libflashmorph_cuda.so. --small: shapes for compute-sanitizer. Exit code 1 when an
error is above its bound. An error is RMS(x - exact) / RMS(exact), over everything and over the worst row (a row may be
eight times as far off); the bounds are those of the chunked form in each dtype. Letters as in linear_attention.h.
"""

import argparse
import sys

import torch

BOUNDS = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 6e-3}
KNOWN_BOUNDS = dict(BOUNDS)  # whichever dtypes a run leaves out
ROW_FACTOR = 8.0
RECURRENCES = ["lightning_attention", "scalar_gated_attention", "gated_linear_attention", "gated_delta_rule"]
OPERATORS = ["pointwise", "softmax_attention", *RECURRENCES]
failures = []


def rms(x):
    return x.double().square().mean().sqrt()


def check(name, actual, exact, bound):
    error = actual.double() - exact
    whole = (rms(error) / rms(exact).clamp_min(1e-300)).item()
    rows = error.flatten(0, -2).square().mean(-1).sqrt() if error.dim() > 1 else error.abs()
    worst = (rows.max() / rms(exact).clamp_min(1e-300)).item()
    good = whole <= bound and worst <= ROW_FACTOR * bound
    if not good:
        failures.append(name)
    print(f"{'ok  ' if good else 'FAIL'} {name}: {whole:.2e}, worst row {worst:.2e}, bound {bound:.0e}", flush=True)


def decay_of(kind, H, T, B, K, mean):
    """Log-decays of an operator, float64, of that mean where they are data's."""
    if kind == "lightning_attention":
        return -torch.pow(2.0, -8.0 * torch.arange(1, H + 1, dtype=torch.float64) / H)
    shape = (B, T, H, K) if kind == "gated_linear_attention" else (B, T, H)
    return -torch.rand(shape, dtype=torch.float64) * 2 * mean


def definition(kind, q, k, v, decays, initial, documents, scale):
    """Token by token, float64, differentiable."""
    B, T, H, K = q.shape
    starts = set(documents[:-1].tolist()) if documents is not None else {0}
    outputs, finals, sequence = [], [], -1
    state = None
    for t in range(T):
        if t in starts:
            sequence += 1
            if state is not None:
                finals.append(state)
            state = torch.zeros(B, H, K, v.shape[-1], dtype=q.dtype, device=q.device)
            if initial is not None:
                state = initial[sequence][None] if documents is not None else initial
        kt, vt = k[:, t, :, :, None], v[:, t, :, None, :]
        if kind == "lightning_attention":
            state = state * decays[0].exp()[None, :, None, None] + kt * vt
        elif kind == "gated_linear_attention":
            state = state * decays[0][:, t].exp()[..., None] + kt * vt
        elif kind == "scalar_gated_attention":
            state = state * decays[0][:, t].exp()[..., None, None] + kt * vt
        else:
            state = state * decays[0][:, t].exp()[..., None, None]
            read = (kt * state).sum(2, keepdim=True)
            state = state + decays[1][:, t, :, None, None] * kt * (vt - read)
        outputs.append(scale * (q[:, t, :, :, None] * state).sum(2))
    finals.append(state)
    return torch.stack(outputs, 1), torch.cat(finals) if documents is not None else state


def recurrence_case(kind, dtype, B, T, H, K, V, chunk, documents=None, with_state=True, by_definition=True,
                    decay=0.1, fused=True, strided=False):
    """strided: q, k, v and what comes for the output lie in wider rows, as slices of one projection do."""
    torch.ops.flashmorph.use_fused_kernels(fused)
    torch.manual_seed(T)
    op = getattr(torch.ops.flashmorph, kind)
    sequences = len(documents) - 1 if documents else B
    offsets = torch.tensor(documents) if documents else None
    random = lambda *shape: torch.randn(shape, dtype=torch.float64).to(dtype).double()
    exact = [random(B, T, H, K), random(B, T, H, K), random(B, T, H, V)]
    if kind == "gated_delta_rule":
        exact[1] = torch.nn.functional.normalize(exact[1], dim=-1).to(dtype).double()
    decays = [decay_of(kind, H, T, B, K, decay).float().double()]
    if kind == "gated_delta_rule":
        decays.append(torch.rand(B, T, H, dtype=torch.float64).float().double())
    trained_decays = decays if kind != "lightning_attention" else []
    initial = torch.randn(sequences, H, K, V, dtype=torch.float64).float().double() if with_state else None
    upstream = random(B, T, H, V)
    upstream_state = torch.randn(sequences, H, K, V, dtype=torch.float64).float().double()
    scale = K**-0.5
    device = "cuda"

    def placed(x):
        return torch.cat((x, x), 3)[..., x.shape[3]:] if strided else x

    def run(compute, cast, gate_cast, where):
        leaves = [placed(x.to(where).to(cast)).requires_grad_() for x in exact]
        gates = [x.to(where).to(gate_cast).requires_grad_(bool(trained_decays)) for x in decays]
        start = initial.to(where).to(gate_cast).requires_grad_() if with_state else None
        output, state = compute(*leaves, gates, start)
        wanted = leaves + (gates if trained_decays else []) + ([start] if with_state else [])
        gradients = torch.autograd.grad((output, state), wanted,
                                        (placed(upstream.to(where).to(output.dtype)), upstream_state.to(where).to(state.dtype)))
        return [output, state, *gradients]

    wide = torch.float64 if dtype == torch.float64 else torch.float32
    ours = lambda q, k, v, gates, start: op(q, k, v, *gates, start, offsets, scale, chunk)
    mine, again = run(ours, dtype, wide, device), run(ours, dtype, wide, device)
    if by_definition:
        reference = run(lambda q, k, v, gates, start: definition(kind, q, k, v, gates, start, offsets, scale),
                        torch.float64, torch.float64, device)
    else:  # the host's form, tested against the definition by the unit tests
        reference = [x.to(device) for x in run(ours, torch.float64, torch.float64, "cpu")]
    names = ["output", "final state", "dq", "dk", "dv"] + (["dg", "dbeta"][: len(decays)] if trained_decays else []) + \
        (["d initial state"] if with_state else [])
    label = f"{kind} {str(dtype)[6:]} B{B} T{T} H{H} K{K} V{V} C{chunk} g{decay}" + (f" documents {documents}" if documents else "")
    label += (" strided" if strided else "") + ("" if fused else " of products")
    for name, a, b, exact_value in zip(names, mine, again, reference):
        bound = BOUNDS[dtype]
        if dtype == torch.bfloat16:
            bound = {"final state": 5e-3, "dg": 1e-2}.get(name, bound)
        if dtype == torch.float32 and kind == "gated_delta_rule":
            bound = 1e-4
        check(f"{label}: {name}", a, exact_value, bound)
        if not torch.equal(a, b):
            failures.append(label)
            print(f"FAIL {label}: {name} differs between two runs")


def pointwise_case(name, op, dtype, inputs, trained):
    """Against the host's form in float64, on the same rounded inputs."""
    torch.manual_seed(7)
    exact = [x.to(dtype).double() if torch.is_tensor(x) else x for x in inputs]

    def run(where, cast):
        leaves = [x.to(where).to(cast) if torch.is_tensor(x) else x for x in exact]
        for i in trained:
            leaves[i].requires_grad_()
        output = op(*leaves)
        torch.manual_seed(9)
        upstream = torch.randn(output.shape, dtype=torch.float64).to(dtype).to(where).to(cast)
        return [output, *torch.autograd.grad(output, [leaves[i] for i in trained], upstream)]

    mine, again, reference = run("cuda", dtype), run("cuda", dtype), run("cpu", torch.float64)
    for i, (a, b, c) in enumerate(zip(mine, again, reference)):
        check(f"{name} {str(dtype)[6:]} {list(inputs[0].shape)}: {'output' if i == 0 else f'gradient {i}'}", a, c.cuda(),
              BOUNDS[dtype])
        if not torch.equal(a, b):
            failures.append(name)
            print(f"FAIL {name} differs between two runs")


def gate_mix_case(dtype, shape):
    ops = torch.ops.flashmorph
    torch.manual_seed(3)
    full, linear, G = (torch.randn(shape, dtype=torch.float64).to(dtype).double() for _ in range(3))
    label = f"gate_mix {str(dtype)[6:]} {list(shape)}"
    for alpha in (0.0, 0.3, 1.0):
        def run():
            leaves = [full.cuda().to(dtype).requires_grad_(), linear.cuda().to(dtype).requires_grad_(),
                      torch.tensor(alpha, dtype=torch.float64, device="cuda", requires_grad=True)]
            output = ops.gate_mix(*leaves, alpha)[0]
            return [output, *torch.autograd.grad(output, leaves, G.cuda().to(dtype))]
        mixed, d_full, d_linear, d_alpha = run()
        again = run()[3]
        check(f"{label} at {alpha}: mixed", mixed, (alpha * full + (1 - alpha) * linear).cuda(), BOUNDS[dtype])
        check(f"{label} at {alpha}: d full", d_full, (alpha * G).cuda(), BOUNDS[dtype])
        check(f"{label} at {alpha}: d linear", d_linear, ((1 - alpha) * G).cuda(), BOUNDS[dtype])
        # The terms' rounding, against the length of what is added up.
        exact, length = (G * (full - linear)).sum(), (G * (full - linear)).square().sum().sqrt()
        error = ((d_alpha.cpu() - exact).abs() / length).item()
        good = error <= BOUNDS[dtype] and torch.equal(d_alpha, again) and d_alpha.dtype == torch.float64
        if not good:
            failures.append(label)
        print(f"{'ok  ' if good else 'FAIL'} {label} at {alpha}: d alpha {error:.2e}")


def pointwise(small):
    ops = torch.ops.flashmorph
    random = lambda *shape: torch.randn(shape, dtype=torch.float64)
    tokens = 5 if small else 777
    fixed_angle = random(tokens, 64)
    for dtype in BOUNDS:
        for width in (128, 96, 5) if small else (128, 2048, 96, 5, 8192):
            pointwise_case("rms_norm", lambda x, w: ops.rms_norm(x, w, 1e-6), dtype,
                           [random(2, tokens, width), random(width)], [0, 1])
        pointwise_case("rms_norm of a fixed weight", lambda x, w: ops.rms_norm(x, w, 1e-6), dtype,
                       [random(2, tokens, 576), random(576)], [0])
        for width in (576, 6) if small else (576, 6, 9216, 1100):
            pointwise_case("add_and_norm", lambda x, y, w: torch.cat(ops.add_and_norm(x, y, w, 1e-6)), dtype,
                           [random(2, tokens, width), random(2, tokens, width), random(width)], [0, 1, 2])
            pointwise_case("add_and_norm of a fixed weight, normed alone", lambda x, y, w: ops.add_and_norm(x, y, w, 1e-6)[0],
                           dtype, [random(2, tokens, width), random(2, tokens, width), random(width)], [0, 1])
        pointwise_case("norm_and_rotate of a fixed weight", lambda x, w: ops.norm_and_rotate(
            x, w, fixed_angle.cos().to(x.device), fixed_angle.sin().to(x.device), 1e-6), dtype,
            [random(2, tokens, 9, 64), random(64)], [0])
        pointwise_case("gated_rms_norm of a fixed weight", lambda x, w, gate: ops.gated_rms_norm(x, w, gate, 1e-6, False),
                       dtype, [random(2, tokens, 1, 576), random(576), random(2, tokens, 576)], [0, 2])
        for width in (128, 6):
            for swish in (False, True):
                pointwise_case("gated_rms_norm of a weight for all heads", lambda x, w, gate: ops.gated_rms_norm(
                    x, w, gate, 1e-6, swish), dtype, [random(2, tokens, 3, width), random(width), random(2, tokens, 3 * width)],
                    [0, 1, 2])
                pointwise_case("gated_rms_norm", lambda x, w, gate: ops.gated_rms_norm(x, w, gate, 1e-6, swish), dtype,
                               [random(2, tokens, 3, width), random(3 * width), random(2, tokens, 3 * width)], [0, 1, 2])
        for width in (64, 7):
            pointwise_case("swiglu", ops.swiglu, dtype, [random(tokens, width), random(tokens, width)], [0, 1])
        for size in (128, 64, 96, 6) if not small else (128, 6):
            angle = random(tokens, size)
            pointwise_case("rotate", lambda x: ops.rotate(x, angle.cos().to(x.device), angle.sin().to(x.device)), dtype,
                           [random(2, tokens, 3, size)], [0])
            pointwise_case("norm_and_rotate", lambda x, w: ops.norm_and_rotate(
                x, w, angle.cos().to(x.device), angle.sin().to(x.device), 1e-6), dtype,
                [random(2, tokens, 3, size), random(size)], [0, 1])
        short_convolutions(dtype, small)
        for shape in ((tokens, 64), (tokens, 3)):
            gate_mix_case(dtype, shape)
            squared_distance_case(dtype, shape)
        if dtype != torch.float64:
            for shape in ((tokens, (64, 32, 16)), (tokens, (576,)), (3, (4096,))) if small else \
                    ((tokens, (64, 32, 16)), (42, (2048, 1024, 1024)), (41, (2048,)), (7, (4112,)), (3, (6144,)),
                     (5, (12288,)), (5, (24576, 16)), (9, (16,) * 5)):
                float8_rows_case(dtype, *shape)
        if dtype == torch.bfloat16:
            for tokens_there, width, outputs in ((5, 64, (48, 16)),) if small else \
                    ((777, 576, (576, 192, 192)), (130, 2048, (6144, 6144)), (1, 6144, (2048,))):
                float8_products_case(tokens_there, width, outputs)
        for rows, width in ((5, 2600), (3, 7)) if small else ((40, 49152), (3, 151936), (64, 1001), (3, 7)):
            for spread in (0.5, 30.0):
                vocabulary_case(dtype, rows, width, spread)


def short_convolutions(dtype, small):
    """A thread goes through runs of 8 tokens: rows, documents and pasts end before, at and behind a run's edge."""
    random = lambda *shape: torch.randn(shape, dtype=torch.float64)

    def one_case(silu, rows, tokens, width, taps, past, place):
        def op(x, w):
            before = None if past is None else past.to(dtype).to(x.device, x.dtype)
            return torch.ops.flashmorph.short_convolution(x, w, before, None if place is None else place.to(x.device), silu)

        name = f"short_convolution of {taps} taps" + ("" if past is None else f" behind {past.shape[1]} tokens") + \
            ("" if place is None else " in documents") + (" with silu" if silu else "")
        for trained in ([0, 1], [0]):
            pointwise_case(name, op, dtype, [random(rows, tokens, width), random(width, taps)], trained)

    def case(rows, tokens, width, taps, past=None, place=None):
        for silu in (False, True):
            one_case(silu, rows, tokens, width, taps, past, place)

    def places(*lengths):
        return torch.cat([torch.arange(length) for length in lengths])

    for taps in (1, 2, 3, 4, 5):  # 5: made of torch's operators
        for width in (64, 5):
            case(2, 19, width, taps, place=places(1, 7, 2, 6, 1, 2))  # ends at 1, 8, 10, 16, 17, 19
            for past in (1, 5):
                case(2, 19, width, taps, random(2, past, width))
    for tokens in (1, 9) if small else (1, 2, 3, 7, 8, 9, 11, 16, 17):
        for width in (64, 6):
            case(2, tokens, width, 4)
            for past in (2, 3):
                case(2, tokens, width, 4, random(2, past, width))
    if small:
        return
    for width in (2048, 1030):  # a thread has several runs
        case(3, 1003, width, 4, place=torch.arange(1003) % 11)
        case(3, 1003, width, 4, random(3, 3, width))


def squared_distance_case(dtype, shape):
    ops = torch.ops.flashmorph
    torch.manual_seed(5)
    a, b = (torch.randn(shape, dtype=torch.float64).to(dtype).double() for _ in range(2))
    upstream = torch.tensor(0.37, dtype=torch.float64)
    label = f"squared_distance {str(dtype)[6:]} {list(shape)}"
    runs = [(ops.squared_distance(a.cuda().to(dtype), b.cuda().to(dtype)),
             ops.squared_distance_backward(upstream.cuda(), a.cuda().to(dtype), b.cuda().to(dtype))) for _ in range(2)]
    check(f"{label}: sum", runs[0][0], (a - b).square().sum().cuda(), 1e-6)
    check(f"{label}: gradient", runs[0][1], (2 * upstream * (a - b)).cuda(), BOUNDS[dtype])
    if not all(torch.equal(x, y) for x, y in zip(*runs)):
        failures.append(label)
        print(f"FAIL {label} differs between two runs")


def float8_rows_case(dtype, rows, widths):
    """The host's bits, rows of any size, and matrices that lie in wider ones."""
    torch.manual_seed(23)
    x = [(torch.randn(rows, width + 16) * torch.logspace(-30, 5, rows)[:, None]).to(dtype)[:, 8:width + 8] for width in widths]
    x[0][0] = 0
    mine, again, reference = ([y.cpu().view(torch.uint8) for y in torch.ops.flashmorph.quantise_rows(
        [one.to(where) for one in x])] for where in ("cuda", "cuda", "cpu"))
    good = all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(mine, again, reference))
    label = f"quantise_rows {str(dtype)[6:]} [{rows}, {widths}]"
    if not good:
        failures.append(label)
    print(f"{'ok  ' if good else 'FAIL'} {label}: bits of the host", flush=True)


def float8_products_case(tokens, width, outputs):
    """Against the products of the numbers that float8 and its scales stand for, in float64."""
    torch.manual_seed(29)
    x, weights = torch.randn(tokens, width), [torch.randn(rows, width) / width**0.5 for rows in outputs]
    upstream = [torch.randn(tokens, rows) for rows in outputs]

    def read(*matrices):
        value, scale = torch.ops.flashmorph.quantise_rows([m.bfloat16() for m in matrices])
        return value.double() * scale.double()

    def run():
        leaf = x.cuda().bfloat16().requires_grad_()
        y = torch.ops.flashmorph.project_in_float8(leaf, [w.cuda().bfloat16() for w in weights])
        return [*y, *torch.autograd.grad(y, leaf, [dy.cuda().bfloat16() for dy in upstream])]

    mine, again = run(), run()
    exact = [read(x) @ read(w).T for w in weights] + [read(*upstream) @ read(torch.cat(weights).T).T]
    label = f"project_in_float8 [{tokens}, {width}] by {outputs}"
    for i, (a, b, c) in enumerate(zip(mine, again, exact)):
        check(f"{label}: {i}", a, c.cuda(), BOUNDS[torch.bfloat16])
        if not torch.equal(a, b):
            failures.append(label)
            print(f"FAIL {label}: {i} differs between two runs")


def vocabulary_case(dtype, rows, width, spread):
    """What a loss over a vocabulary asks of rows of logits; the host's form in float64, tested by the unit tests."""
    ops = torch.ops.flashmorph
    torch.manual_seed(19)
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    z, y = (spread * torch.randn(rows, width, dtype=torch.float64).to(exact) for _ in range(2))
    y += 3
    z[0, -1] = y[0, 0] = 8 * spread
    column = torch.randint(width, (rows,))
    column[1::4], column[2::4] = -1, -100
    for name, teacher, places in (("of two", y, None), ("of one", None, column)):
        label = f"softmax {name} {str(dtype)[6:]} [{rows}, {width}] spread {spread}"

        def run(where, cast, out):
            on = lambda x: x if x is None else x.to(where, cast if x.is_floating_point() else x.dtype)
            sums = ops.softmax_sums(on(z), on(teacher))
            return [sums, ops.softmax_gradient(on(z), on(teacher), on(places), sums, out)]

        mine, again, reference = run("cuda", exact, dtype), run("cuda", exact, dtype), run("cpu", torch.float64, torch.float64)
        for i, (row, exact_row) in enumerate(zip(mine[0], reference[0])):
            check(f"{label}: sums {i}", row, exact_row.cuda(), KNOWN_BOUNDS[exact])
        check(f"{label}: gradient", mine[1], reference[1].cuda(), BOUNDS[dtype])
        if not all(torch.equal(a, b) for a, b in zip(mine, again)) or mine[1].dtype != dtype:
            failures.append(label)
            print(f"FAIL {label} differs between two runs")


def softmax_attention_case(dtype, heads, kv_heads, size, documents):
    """Packed documents, each by its map of probabilities."""
    torch.manual_seed(17)
    offsets = torch.tensor(documents)
    leaves = [torch.randn(1, documents[-1], n, size, dtype=torch.float64).to(dtype).cuda() for n in (heads, kv_heads, kv_heads)]
    upstream = torch.randn(1, documents[-1], heads, size, dtype=torch.float64).to(dtype).cuda()

    def definition(q, k, v):
        outputs = []
        k, v = (x.repeat_interleave(heads // kv_heads, 2) for x in (k, v))
        for first, last in zip(documents, documents[1:]):
            scores = torch.einsum("bihk,bjhk->bhij", q[:, first:last], k[:, first:last]) / size ** 0.5
            hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device="cuda").triu(1)
            seen = scores.masked_fill(hidden, -float("inf")).softmax(-1)
            outputs.append(torch.einsum("bhij,bjhk->bihk", seen, v[:, first:last]))
        return torch.cat(outputs, 1)

    def run(function, cast):
        inputs = [x.to(cast).requires_grad_() for x in leaves]
        output = function(*inputs)
        return [output, *torch.autograd.grad(output, inputs, upstream.to(cast))]

    ours = lambda q, k, v: torch.ops.flashmorph.softmax_attention(q, k, v, offsets, offsets.int().cuda())
    label = f"softmax_attention {str(dtype)[6:]} {heads}/{kv_heads} heads of {size}, documents {documents[:9]}"
    for name, a, exact in zip(("output", "dq", "dk", "dv"), run(ours, dtype), run(definition, torch.float64)):
        check(f"{label}: {name}", a, exact, BOUNDS[dtype])


def softmax_attention(small):
    for dtype in BOUNDS:
        softmax_attention_case(dtype, 4, 2, 64, [0, 5, 37])
        if small:
            continue
        for heads, kv_heads, size in ((9, 3, 64), (4, 4, 128), (2, 1, 256), (4, 2, 24), (2, 2, 5)):
            softmax_attention_case(dtype, heads, kv_heads, size, [0, 1, 2, 37, 128, 300, 301, 700, 1024])
            softmax_attention_case(dtype, heads, kv_heads, size, [0, 200, 400])
        softmax_attention_case(dtype, 2, 2, 64, list(range(0, 2100, 7)))


def rows_in_turns(heads):
    """So many that the delta rule's kernels run in turns: its walks have a block for each half of 128 values, with fewer than a
    third of the multiprocessors they run beside the others."""
    return torch.cuda.get_device_properties(0).multi_processor_count // (3 * 2 * heads) + 1


def recurrences(kinds, small):
    for kind in kinds:
        for dtype in BOUNDS:
            fused = dtype == torch.bfloat16  # with head dims of 64 and 128
            if small:
                recurrence_case(kind, dtype, 2, 133 if fused else 37, 1 if fused else 2, *((128, 128) if fused else (16, 16)), 16)
                recurrence_case(kind, dtype, 1, 70, 2, *((64, 128) if fused else (16, 8)), 32, documents=[0, 5, 70])
                if fused and kind == "gated_delta_rule":
                    recurrence_case(kind, dtype, rows_in_turns(1), 70, 1, 64, 128, 64)
                continue
            if fused:
                recurrence_case(kind, dtype, 2, 130, 3, 128, 64, 64, strided=True)
                recurrence_case(kind, dtype, 1, 200, 2, 64, 128, 64, with_state=False)
                recurrence_case(kind, dtype, 1, 2000, 2, 128, 128, 64, documents=[0, 1500, 1501, 1700, 2000], with_state=False)
                recurrence_case(kind, dtype, 2, 300, 4, 128, 128, 64, fused=False)
                if kind == "gated_delta_rule":
                    recurrence_case(kind, dtype, rows_in_turns(2), 140, 2, 128, 128, 64)
            recurrence_case(kind, dtype, 2, 1, 2, 16, 16, 64)
            recurrence_case(kind, dtype, 2, 63, 3, 16, 8, 64)
            recurrence_case(kind, dtype, 1, 131, 4, 12, 5, 64)
            recurrence_case(kind, dtype, 2, 257, 4, 128, 128, 128, with_state=False)
            recurrence_case(kind, dtype, 2, 300, 4, 128, 128, 64)
            recurrence_case(kind, dtype, 1, 401, 4, 64, 64, 128, documents=[0, 1, 130, 131, 300, 401])
            if dtype != torch.float64:
                recurrence_case(kind, dtype, 1, 4096, 4, 128, 128, 128, by_definition=False)
            for decay in (0.002, 0.024, 0.9, 2.4) if kind != "lightning_attention" else ():
                recurrence_case(kind, dtype, 1, 200, 2, 64, 64, 64, decay=decay)


def drift(kinds):
    """In bfloat16 a long sequence is at most twice as far off as a short one."""
    for kind in kinds:
        errors = {}
        for T in (4096, 131072):
            torch.manual_seed(13)
            inputs = [torch.randn(1, T, 1, 128, device="cuda", dtype=torch.bfloat16) for _ in range(3)]
            inputs[1] = torch.nn.functional.normalize(inputs[1], dim=-1)
            gates = [decay_of(kind, 1, T, 1, 128, 0.024).float().cuda()]
            if kind == "gated_delta_rule":
                gates.append(torch.rand(1, T, 1, device="cuda"))
            op = lambda cast: getattr(torch.ops.flashmorph, kind)(*(cast(x) for x in inputs), *gates, None, None, 1.0, 64)[0]
            output, exact = op(lambda x: x), op(torch.Tensor.double)
            errors[T] = (rms(output.double() - exact) / rms(exact)).item()
        good = errors[131072] <= 2 * errors[4096]
        if not good:
            failures.append(kind)
        print(f"{'ok  ' if good else 'FAIL'} {kind} over 4096 and 131072 tokens: {errors[4096]:.2e}, {errors[131072]:.2e}")


def sized_kinds(kinds):
    """Each with a dtype and head dim for the products, and for the fused kernels."""
    return [(kind, dtype, D) for kind in kinds for dtype, D in ((torch.float32, 32), (torch.bfloat16, 64)) if dtype in BOUNDS]


def strong_decays(kinds):
    """-inf forgets everything, and the upper triangle of a fast head's table would overflow."""
    for kind, dtype, D in sized_kinds(kinds):
        op = getattr(torch.ops.flashmorph, kind)
        q, k, v = (torch.randn(1, 200, 2, D, device="cuda", dtype=dtype, requires_grad=True) for _ in range(3))
        k = torch.nn.functional.normalize(k, dim=-1)
        shape = {"lightning_attention": (2,), "gated_linear_attention": (1, 200, 2, D)}.get(kind, (1, 200, 2))
        for g in (-50.0, -1e4, -float("inf")):
            gates = [torch.full(shape, g, device="cuda", requires_grad=kind != "lightning_attention")]
            gates += [torch.ones(shape, device="cuda")] if kind == "gated_delta_rule" else []
            output, state = op(q, k, v, *gates, None, None, 1.0, 64)
            alone = (q.double() * k.double()).sum(-1, keepdim=True) * v.double()  # S_t = k_t v_t^T
            gradients = torch.autograd.grad(output.sum() + state.sum(), [q, v, *(x for x in gates if x.requires_grad)])
            good = all(x.isfinite().all() for x in (output, state, *gradients))
            good = good and (output - alone).norm() <= BOUNDS[dtype] * alone.norm()
            if not good:
                failures.append(kind)
            print(f"{'ok  ' if good else 'FAIL'} {kind} {str(dtype)[6:]} with decays exp({g})")


def hard_reset(kinds):
    """What comes behind a decay of -inf in the middle of a chunk is as if it came first."""
    for kind, dtype, D in sized_kinds(kinds):
        if kind == "lightning_attention":
            continue
        op = getattr(torch.ops.flashmorph, kind)
        torch.manual_seed(11)
        q, k, v = (torch.randn(1, 100, 2, D, device="cuda", dtype=dtype) for _ in range(3))
        k = torch.nn.functional.normalize(k, dim=-1)
        gates = [decay_of(kind, 2, 100, 1, D, 0.1).float().cuda()]
        gates[0][:, 37] = -float("inf")
        if kind == "gated_delta_rule":
            gates.append(torch.rand(1, 100, 2, device="cuda"))
        both = op(q, k, v, *gates, None, None, 1.0, 64)[0][:, 37:]
        alone = op(*(x[:, 37:].double() for x in (q, k, v, *gates)), None, None, 1.0, 64)[0]
        check(f"{kind} {str(dtype)[6:]} behind a reset", both, alone, BOUNDS[dtype])


def short_memory(kinds):
    """Lightning's heads that have forgotten a segment's first tokens at its end, and yet remember some chunks."""
    if "lightning_attention" not in kinds or torch.bfloat16 not in BOUNDS:
        return
    torch.manual_seed(23)
    inputs = [torch.randn(1, 24576, 16, 128, device="cuda", dtype=torch.bfloat16) for _ in range(4)]
    slopes = torch.full((16,), -0.036, device="cuda")

    def run(cast):
        q, k, v, upstream = (x.to(cast).requires_grad_() for x in inputs)
        output = torch.ops.flashmorph.lightning_attention(q, k, v, slopes, None, None, 1.0, 64)[0]
        return [output, *torch.autograd.grad(output, (q, k, v), upstream)]

    for name, mine, exact in zip(("output", "dq", "dk", "dv"), run(torch.bfloat16), run(torch.float64)):
        check(f"lightning_attention bfloat16 with a short memory: {name}", mine, exact, BOUNDS[torch.bfloat16])


def from_a_graph(kinds):
    """The delta rule's gradients. One row's kernels begin before those ahead of them end, which a graph has to know; of many
    rows they take two streams: it captures both, and ends only where they have met."""
    if "gated_delta_rule" not in kinds or torch.bfloat16 not in BOUNDS:
        return
    for rows in (1, rows_in_turns(4)):
        torch.manual_seed(31)
        q, k, v, upstream = (torch.randn(rows, 4096, 4, 128, device="cuda", dtype=torch.bfloat16) for _ in range(4))
        k = torch.nn.functional.normalize(k, dim=-1)
        gates = [decay_of("gated_delta_rule", 4, 4096, rows, 128, 0.024).float().cuda(), torch.rand(rows, 4096, 4, device="cuda")]
        run = lambda: torch.ops.flashmorph.gated_delta_rule_backward(upstream, None, q, k, v, *gates, None, None, 1.0, 64)
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            eager = run()  # which also copies the table of chunks, once a stream: a graph may not
        with torch.cuda.graph(graph, stream=stream):
            captured = run()
        for x in captured:
            x.zero_()
        graph.replay()
        good = all(torch.equal(a, b) for a, b in zip(eager, captured))
        if not good:
            failures.append("gated_delta_rule from a graph")
        print(f"{'ok  ' if good else 'FAIL'} gated_delta_rule bfloat16 of {rows} rows from a graph: bits of a call")


def side_by_side(kinds):
    """The delta rule's kernels run side by side for a row alone, in turns for many: the bits are the same, on a busy card too."""
    if "gated_delta_rule" not in kinds or torch.bfloat16 not in BOUNDS:
        return
    torch.manual_seed(37)
    ops, rows, shape = torch.ops.flashmorph, rows_in_turns(2), (16384, 2, 128)
    q, k, v, upstream = (torch.randn(rows, *shape, device="cuda", dtype=torch.bfloat16) for _ in range(4))
    k = torch.nn.functional.normalize(k, dim=-1)
    gates = [decay_of("gated_delta_rule", 2, 16384, rows, 128, 0.024).float().cuda(), torch.rand(rows, *shape[:2], device="cuda")]
    initial, d_final = (torch.randn(rows, 2, 128, 128, device="cuda") for _ in range(2))

    def run(row):
        inputs = [x[row] for x in (q, k, v, *gates, initial)]
        return [*ops.gated_delta_rule(*inputs, None, 1.0, 64),
                *ops.gated_delta_rule_backward(upstream[row], d_final[row], *inputs, None, 1.0, 64)]

    together, other, stream = run(slice(None)), torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    different = 0
    for busy in (False, True):
        for row in range(rows):
            if busy:
                with torch.cuda.stream(stream):
                    for _ in range(8):
                        other @ other
            different += not all(torch.equal(a, b[row:row + 1]) for a, b in zip(run(slice(row, row + 1)), together))
    if different:
        failures.append("gated_delta_rule side by side")
    print(f"{'FAIL' if different else 'ok  '} gated_delta_rule bfloat16 side by side: {different} of {2 * rows} rows differ from those in turns")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("libraries")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--only", nargs="+", choices=OPERATORS, default=OPERATORS)
    parser.add_argument("--dtypes", nargs="+", choices=[str(t)[6:] for t in BOUNDS], default=[str(t)[6:] for t in BOUNDS])
    arguments = parser.parse_args()
    for unwanted in [t for t in BOUNDS if str(t)[6:] not in arguments.dtypes]:
        del BOUNDS[unwanted]
    torch.ops.load_library(f"{arguments.libraries}/libflashmorph_core_ops.so")
    torch.ops.load_library(f"{arguments.libraries}/libflashmorph_cuda.so")
    # Backward on this thread. Autograd's own may still give back a tensor while the interpreter closes, which ends that
    # thread in the middle of C++: "terminate called without an active exception" (pytorch/pytorch#38228).
    torch.autograd.set_multithreading_enabled(False)
    kinds = [name for name in arguments.only if name not in ("pointwise", "softmax_attention")]
    if "pointwise" in arguments.only:
        pointwise(arguments.small)
    if "softmax_attention" in arguments.only:
        softmax_attention(arguments.small)
    recurrences(kinds, arguments.small)
    if not arguments.small:
        drift(kinds if torch.bfloat16 in BOUNDS else [])
        strong_decays(kinds)
        hard_reset(kinds)
        short_memory(kinds)
        from_a_graph(kinds)
        side_by_side(kinds)
    print(f"{len(failures)} failures" if failures else "all good")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
