#pragma once

#include <cuda_bf16.h>

#include <cstdint>

// The instructions that C++ has no words for. A warp's lanes call them together.

// Hopper's. Compiled for another architecture the kernels are there and nobody calls them.
#if defined(__CUDA_ARCH__) && !defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define FLASHMORPH_HOPPER(...) __trap()
#else
#define FLASHMORPH_HOPPER(...) asm volatile(__VA_ARGS__)
#endif

namespace flashmorph::cuda {

__device__ __forceinline__ uint32_t shared_address(const void* at) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(at));
}

// Four 8 x 8 blocks, of which lane l gets row l / 4, columns 2 (l % 4) and the next; of the transposed blocks with
// kTransposed. Lane l says where row l % 8 of block l / 8 lies.
template <bool kTransposed>
__device__ __forceinline__ void load_blocks(uint32_t (&blocks)[4], const __nv_bfloat16* row) {
  const auto from = shared_address(row);
  if constexpr (kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(blocks[0]), "=r"(blocks[1]), "=r"(blocks[2]), "=r"(blocks[3])
                 : "r"(from)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(blocks[0]), "=r"(blocks[1]), "=r"(blocks[2]), "=r"(blocks[3])
                 : "r"(from)
                 : "memory");
  }
}

// The other way: what load_blocks would get from there.
template <bool kTransposed>
__device__ __forceinline__ void store_blocks(const uint32_t (&blocks)[4], __nv_bfloat16* row) {
  const uint32_t to = shared_address(row);
  if constexpr (kTransposed) {
    FLASHMORPH_HOPPER("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%4], {%0, %1, %2, %3};" ::"r"(blocks[0]),
                      "r"(blocks[1]), "r"(blocks[2]), "r"(blocks[3]), "r"(to)
                      : "memory");
  } else {
    FLASHMORPH_HOPPER("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%4], {%0, %1, %2, %3};" ::"r"(blocks[0]),
                      "r"(blocks[1]), "r"(blocks[2]), "r"(blocks[3]), "r"(to)
                      : "memory");
  }
}

// c[16 x 8] += a[16 x 16] b[16 x 8]
__device__ __forceinline__ void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// 16 bytes to shared memory while the thread goes on; zeros unless `present`.
__device__ __forceinline__ void copy_async(void* to, const void* from, bool present) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(present ? 16 : 0)
               : "memory");
}

// Until all of this thread's copies have arrived.
__device__ __forceinline__ void await_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// The copies since the last call are one group.
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Until at most kLater of this thread's youngest groups of copies are still on their way.
template <int kLater>
__device__ __forceinline__ void await_copies_before() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLater) : "memory");
}

}  // namespace flashmorph::cuda
