#pragma once

namespace flashmorph {

// Tells whoever counts a thread's work (core/rehearsal/work_counter.h) of floating-point operations that no operator of
// LibTorch does: 2 for a multiply-add, half of the pairs where attention is causal. On a CPU.
void tell_work(double flop);

}  // namespace flashmorph
