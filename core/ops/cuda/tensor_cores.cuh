#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "core/ops/cuda/ptx.cuh"

// A warp's products of bfloat16 tiles in shared memory with float32 sums. A tile is 16 x 16; `stride` lies between its
// rows, which start at multiples of 16 bytes.

namespace flashmorph::cuda {

// Two numbers in a word, as the tiles have them.
__device__ __forceinline__ uint32_t packed(float a, float b) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(a, b);
  return reinterpret_cast<const uint32_t&>(pair);
}

__device__ __forceinline__ float2 unpacked(uint32_t pair) {
  return __bfloat1622float2(reinterpret_cast<const __nv_bfloat162&>(pair));
}

__device__ __forceinline__ uint32_t scaled(uint32_t pair, float a, float b) {
  const float2 values = unpacked(pair);
  return packed(values.x * a, values.y * b);
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

// The right factor, stored as it is or, with kTransposed, as its transpose.
template <bool kTransposed = false>
struct RightTile {
  uint32_t blocks[4];  // rows 0-7 and 8-15 of columns 0-7, then of columns 8-15
  __device__ __forceinline__ RightTile(const __nv_bfloat16* tile, int stride) {
    const int lane = threadIdx.x % 32, row = lane / 8 % 2 * 8, column = lane / 16 * 8;
    load_blocks<!kTransposed>(
        blocks, kTransposed ? tile + (column + lane % 8) * stride + row : tile + (row + lane % 8) * stride + column);
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

  template <class Left, class Right>
  __device__ __forceinline__ void add(const Left& a, const Right& b) {
#pragma unroll
    for (int half = 0; half < 2; ++half) multiply_add(sums[half], a.blocks, b.blocks[2 * half], b.blocks[2 * half + 1]);
  }
};

}  // namespace flashmorph::cuda
