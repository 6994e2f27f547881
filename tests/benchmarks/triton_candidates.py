"""How long FLA's kernels are tried for: Triton times each candidate for 125 ms, some minutes for a process with several kernels."""

import os


def try_for(milliseconds):
    """Each candidate of every kernel that is tuned from now on; None: as Triton does."""
    if milliseconds is None:
        return
    import triton.testing
    from triton.runtime.autotuner import Autotuner
    os.environ.setdefault("TRITON_CACHE_AUTOTUNING", "1")
    bench = lambda call, quantiles: triton.testing.do_bench(call, warmup=2, rep=milliseconds, quantiles=quantiles)
    Autotuner.do_bench = property(lambda self: bench)


def add_option(parser):
    parser.add_argument("--candidate-ms", type=int, help="each candidate of a Triton kernel is tried for so long, instead of 125 ms")
