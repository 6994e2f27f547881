"""What one card can do at Qwen3-1.7B's shapes: bf16 matrix products and cuDNN attention, and the step times they allow.

    python tests/benchmarks/limits_gpu.py

One line of JSON. A stage's limit is the time of its matrix products and its attention alone, each at its measured rate.
"""

import json
import statistics

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

TOKENS, HIDDEN, QUERIES, KEYS, INTERMEDIATE, LAYERS, HEADS, KV_HEADS, SIZE = 16384, 2048, 2048, 1024, 6144, 28, 16, 8, 128


def milliseconds(function, rounds=15):
    for _ in range(3):
        function()
    pairs = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(rounds)]
    for start, end in pairs:
        start.record()
        function()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in pairs)


def product(rows, inner, columns):
    a = torch.randn(rows, inner, device="cuda", dtype=torch.bfloat16)
    b = torch.randn(columns, inner, device="cuda", dtype=torch.bfloat16)
    return milliseconds(lambda: F.linear(a, b))


def attention(batch, length):
    q, k, v = (torch.randn(batch, heads, length, SIZE, device="cuda", dtype=torch.bfloat16, requires_grad=True)
               for heads in (HEADS, KV_HEADS, KV_HEADS))
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        forward = milliseconds(lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True))
        output = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        upstream = torch.randn_like(output)
        backward = milliseconds(lambda: torch.autograd.grad(output, (q, k, v), upstream, retain_graph=True))
    return forward, backward


def main():
    torch.manual_seed(1)
    square, key = product(TOKENS, HIDDEN, QUERIES), product(TOKENS, HIDDEN, KEYS)
    up, down = product(TOKENS, HIDDEN, INTERMEDIATE), product(TOKENS, INTERMEDIATE, HIDDEN)
    weight = product(HIDDEN, TOKENS, QUERIES)  # a weight gradient
    full, feed_forward, branch = 2 * square + 2 * key, 2 * up + down, 5 * square
    results = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "attention_ms": {}}
    for name, batch, length in (("select_1x16384", 1, 16384), ("select_4x4096", 4, 4096), ("align_32x512", 32, 512)):
        forward, backward = attention(batch, length)
        results["attention_ms"][name] = [forward, backward]
        if name == "align_32x512":
            step = LAYERS * (full + forward + feed_forward + branch + square + 5 * weight)
        else:  # the teacher, the mixture forward, and its activations' gradients, which take as long
            step = LAYERS * (full + forward + feed_forward + 2 * (full + feed_forward + branch) + forward + backward)
        results[name] = {"limit_ms": step, "limit_tokens_per_second": 1e3 * TOKENS / step}
    copied = torch.empty(1 << 30, device="cuda", dtype=torch.uint8)
    target = torch.empty_like(copied)
    results["copy_tb_per_second"] = 2 * copied.numel() / milliseconds(lambda: target.copy_(copied)) * 1e-9
    results["product_tflops"] = {"2048x2048": 2e-9 * TOKENS * HIDDEN * QUERIES / square,
                                 "2048x6144": 2e-9 * TOKENS * HIDDEN * INTERMEDIATE / up}
    print(json.dumps(results))


if __name__ == "__main__":
    main()
