#pragma once

#include "core/ops/cuda/ptx.cuh"

// Hopper's copies of whole blocks of memory, which one thread starts and the card's copy engine makes (PTX ISA,
// "cp.async.bulk", "mbarrier"). Addresses and sizes are multiples of 16 bytes.

namespace flashmorph::cuda {

// In shared memory: who waits for the arrivals of a round, of threads and of bytes. Rounds are counted from 0.
struct Arrivals {
  uint64_t word;

  // By one thread, before a barrier of all that use it.
  __device__ __forceinline__ void start(unsigned threads) {
    FLASHMORPH_HOPPER(
        "mbarrier.init.shared::cta.b64 [%0], %1;\nfence.mbarrier_init.release.cluster;" ::"r"(shared_address(this)),
        "r"(threads)
        : "memory");
  }
  __device__ __forceinline__ void arrive() {
    FLASHMORPH_HOPPER("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(this)) : "memory");
  }
  // This thread, and so many bytes are on their way.
  __device__ __forceinline__ void arrive_before(unsigned bytes) {
    FLASHMORPH_HOPPER("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(this)), "r"(bytes)
                      : "memory");
  }
  // This thread, once its copies by copy_async have arrived.
  __device__ __forceinline__ void arrive_with_copies() {
    FLASHMORPH_HOPPER("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(shared_address(this)) : "memory");
  }
  // Until that round is over. The one before the first always is; at most one round is waited for at a time.
  __device__ __forceinline__ void await(unsigned round) {
    uint32_t over = 1;
    do {
      FLASHMORPH_HOPPER(
          "{\n.reg .pred over;\nmbarrier.try_wait.parity.shared::cta.b64 over, [%1], %2;\nselp.u32 %0, 1, 0, over;\n}"
          : "=r"(over)
          : "r"(shared_address(this)), "r"(round % 2)
          : "memory");
    } while (over == 0);
  }
};

// To shared memory, arriving there.
__device__ __forceinline__ void copy_block(void* to, const void* from, unsigned bytes, Arrivals& arrivals) {
  FLASHMORPH_HOPPER("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                        shared_address(to)),
                    "l"(__cvta_generic_to_global(from)), "r"(bytes), "r"(shared_address(&arrivals))
                    : "memory");
}

}  // namespace flashmorph::cuda
