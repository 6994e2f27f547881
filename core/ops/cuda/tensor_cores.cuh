#pragma once

#include <cuda_bf16.h>

#include <cstdint>

// A warp's products of bfloat16 tiles in shared memory with float32 sums. A tile is 16 x 16; `stride` lies between its
// rows, which start at multiples of 16 bytes.

namespace flashmorph::cuda {

// Four 8 x 8 blocks, of which lane l gets row l / 4, columns 2 (l % 4) and the next; of the transposed blocks with
// kTransposed. Lane l says where row l % 8 of block l / 8 lies.
template <bool kTransposed>
__device__ __forceinline__ void load_blocks(uint32_t (&blocks)[4], const __nv_bfloat16* row) {
  const auto from = static_cast<uint32_t>(__cvta_generic_to_shared(row));
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

// The left factor of a product, stored as it is or, with kTransposed, as its transpose.
template <bool kTransposed>
struct LeftTile {
  uint32_t blocks[4];  // rows 0-7 and 8-15 of columns 0-7, then of columns 8-15
  __device__ __forceinline__ LeftTile(const __nv_bfloat16* tile, int stride) {
    const int lane = threadIdx.x % 32, row = lane / 8 % 2 * 8, column = lane / 16 * 8;
    load_blocks<kTransposed>(
        blocks, kTransposed ? tile + (column + lane % 8) * stride + row : tile + (row + lane % 8) * stride + column);
  }
};

struct RightTile {
  uint32_t blocks[4];  // rows 0-7 and 8-15 of columns 0-7, then of columns 8-15
  __device__ __forceinline__ RightTile(const __nv_bfloat16* tile, int stride) {
    const int lane = threadIdx.x % 32;
    load_blocks<true>(blocks, tile + (lane / 8 % 2 * 8 + lane % 8) * stride + lane / 16 * 8);
  }
};

// A lane has, of the columns 0-7 and then of 8-15, columns 2 (l % 4) and the next of row l / 4 and of row 8 + l / 4.
struct SumTile {
  float sums[2][4];

  template <class Use>  // use(sum, row, column)
  __device__ __forceinline__ void each(const Use& use) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int e = 0; e < 4; ++e) use(sums[half][e], lane / 4 + e / 2 * 8, half * 8 + lane % 4 * 2 + e % 2);
  }

  template <bool kTransposed>
  __device__ __forceinline__ void add(const LeftTile<kTransposed>& a, const RightTile& b) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float(&c)[4] = sums[half];
      asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
          "{%0, %1, %2, %3};"
          : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
          : "r"(a.blocks[0]), "r"(a.blocks[1]), "r"(a.blocks[2]), "r"(a.blocks[3]), "r"(b.blocks[2 * half]),
            "r"(b.blocks[2 * half + 1]));
    }
  }
};

}  // namespace flashmorph::cuda
