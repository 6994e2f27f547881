#pragma once

#include "core/ops/cuda/ptx.cuh"

// Hopper's instructions for the products of a warpgroup, 128 threads that call them together (PTX ISA, "Asynchronous
// Warpgroup Level Matrix Instructions"). A product runs on while the threads go on: until await_products, nobody may
// touch its sums, its left factor in registers or the shared memory that it reads.

namespace flashmorph::cuda {

// Before the first product, and when registers of the next one have been touched since.
__device__ __forceinline__ void start_products() { FLASHMORPH_HOPPER("wgmma.fence.sync.aligned;" ::: "memory"); }

// The products since the last call are one group.
__device__ __forceinline__ void commit_products() {
  FLASHMORPH_HOPPER("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Keeps the compiler from moving uses of the sums across this place, which it cannot see that products need.
__device__ __forceinline__ void pin(float (&sums)[32]) {
#pragma unroll
  for (float& sum : sums) asm volatile("" : "+f"(sum)::"memory");
}

// Until at most kLater of the youngest groups still run.
template <int kLater>
__device__ __forceinline__ void await_products() {
  FLASHMORPH_HOPPER("wgmma.wait_group.sync.aligned %0;" ::"n"(kLater) : "memory");
}

// What this thread wrote to shared memory is there for the products of all threads behind the next barrier.
__device__ __forceinline__ void publish_to_products() {
  FLASHMORPH_HOPPER("fence.proxy.async.shared::cta;" ::: "memory");
}

// How a product reads rows of 64 numbers that lie as swizzled() of warpgroup.cuh says, from `first` on.
__device__ __forceinline__ uint64_t product_rows(const __nv_bfloat16* first) {
  constexpr uint64_t kEightRows = 1024 / 16, kSwizzleOf128Bytes = 1;
  const uint64_t address = shared_address(first) / 16;
  return address | uint64_t{1} << 16 | kEightRows << 32 | kSwizzleOf128Bytes << 62;
}

// Such rows that lie `numbers` behind, a multiple of 8.
__device__ __forceinline__ uint64_t rows_behind(uint64_t rows, int numbers) {
  return rows & 0xffffffff00000000u | static_cast<uint32_t>(static_cast<uint32_t>(rows) + numbers / 8);
}

#define FLASHMORPH_SUMS(s)                                                                                    \
  "+f"(s[0]), "+f"(s[1]), "+f"(s[2]), "+f"(s[3]), "+f"(s[4]), "+f"(s[5]), "+f"(s[6]), "+f"(s[7]), "+f"(s[8]), \
      "+f"(s[9]), "+f"(s[10]), "+f"(s[11]), "+f"(s[12]), "+f"(s[13]), "+f"(s[14]), "+f"(s[15]), "+f"(s[16]),  \
      "+f"(s[17]), "+f"(s[18]), "+f"(s[19]), "+f"(s[20]), "+f"(s[21]), "+f"(s[22]), "+f"(s[23]), "+f"(s[24]), \
      "+f"(s[25]), "+f"(s[26]), "+f"(s[27]), "+f"(s[28]), "+f"(s[29]), "+f"(s[30]), "+f"(s[31])
#define FLASHMORPH_PRODUCT                                                  \
  "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "                   \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "

// sums[64 x 64] = (kAdd: + sums) a b^T, a and b [64 x 16] in shared memory.
template <bool kAdd>
__device__ __forceinline__ void multiply_rows(float (&sums)[32], uint64_t a, uint64_t b) {
  FLASHMORPH_HOPPER("{\n.reg .pred add;\nsetp.ne.b32 add, %34, 0;\n" FLASHMORPH_PRODUCT "%32, %33, add, 1, 1, 0, 0;\n}"
                    : FLASHMORPH_SUMS(sums)
                    : "l"(a), "l"(b), "n"(kAdd));
}

// sums[64 x 64] += a b, a [64 x 16] in registers, a warp's 16 rows as LeftTile has them, b [16 x 64] in shared memory.
__device__ __forceinline__ void multiply_add_columns(float (&sums)[32], const uint32_t (&a)[4], uint64_t b) {
  FLASHMORPH_HOPPER(FLASHMORPH_PRODUCT "{%32, %33, %34, %35}, %36, 1, 1, 1, 1;"
                    : FLASHMORPH_SUMS(sums)
                    : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

// sums[64 x 64] += a b^T, b [64 x 16].
__device__ __forceinline__ void multiply_add_rows(float (&sums)[32], const uint32_t (&a)[4], uint64_t b) {
  FLASHMORPH_HOPPER(FLASHMORPH_PRODUCT "{%32, %33, %34, %35}, %36, 1, 1, 1, 0;"
                    : FLASHMORPH_SUMS(sums)
                    : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

#undef FLASHMORPH_PRODUCT
#undef FLASHMORPH_SUMS

}  // namespace flashmorph::cuda
