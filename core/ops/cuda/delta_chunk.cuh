#pragma once

#include "core/ops/cuda/chunk.cuh"
#include "core/ops/cuda/delta_chunk.h"

// What the kernels of the delta rule's chunks share.

namespace flashmorph::cuda {

inline constexpr int kPairRow = kTokens + kPad;

// += the products of 16 rows each of a and b.
template <int kWidth>
__device__ __forceinline__ void add_row_products(SumTile& tile, const Half* a, const Half* b) {
#pragma unroll
  for (int c = 0; c < kWidth; c += 16)
    tile.add(LeftTile<false>(a + c, kWidth + kPad), RightTile<true>(b + c, kWidth + kPad));
}

// A warp's sums, rounded, to 16 rows of a tile.
__device__ __forceinline__ void store_tile(const SumTile& tile, Half* to, int stride) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int part = 0; part < 4; ++part)
    *reinterpret_cast<uint32_t*>(to + (lane / 4 + part % 2 * 8) * stride + part / 2 * 8 + lane % 4 * 2) =
        packed(tile.sums[part / 2][part % 2 * 2], tile.sums[part / 2][part % 2 * 2 + 1]);
}

inline unsigned blocks_of(const DeltaChunkShape& shape) {
  return static_cast<unsigned>(shape.chunks.chunks * shape.heads);
}

}  // namespace flashmorph::cuda
