#pragma once

#include "core/ops/cuda/launch.h"
#include "core/ops/cuda/tensor_cores.cuh"
#include "core/ops/cuda/walk.h"

// What kernels share whose blocks have a chunk of 64 tokens each.

namespace flashmorph::cuda {

using Half = __nv_bfloat16;

inline constexpr int kTokens = kWalkedChunk, kBlocks = kTokens / 16;  // of 16 tokens
inline constexpr int kPad = 8;                                        // so that 8 rows of a tile lie in different banks

// kTokens rows of kWidth numbers by `threads` threads, a multiple of kWidth / 8: row r from x + place(r), zeros where
// that is negative.
template <int kWidth, class Place>
__device__ __forceinline__ void fetch_rows(Half* to, const Half* x, int threads, const Place& place) {
  constexpr int kPerRow = kWidth / 8;
  const int unit = threadIdx.x % kPerRow * 8;
#pragma unroll 4
  for (int row = threadIdx.x / kPerRow; row < kTokens; row += threads / kPerRow) {
    const int64_t from = place(row);
    copy_async(to + row * (kWidth + kPad) + unit, x + (from < 0 ? 0 : from) + unit, from >= 0);
  }
}

// Where a chunk and head lie, by default the block's: index = chunk * heads + head.
struct ChunkOfHead {
  int64_t index, chunk, head, start, length, heads;

  template <class Shape>
  __device__ explicit ChunkOfHead(const Shape& shape, int64_t index = blockIdx.x)
      : index(index),
        chunk(index / shape.heads),
        head(index % shape.heads),
        start(shape.chunks.start_N[chunk]),
        length(shape.chunks.length_N[chunk]),
        heads(shape.heads) {}

  __device__ __forceinline__ int64_t row(int token) const { return (start + token) * heads + head; }  // of a dense THX

  template <int kWidth>
  __device__ __forceinline__ void fetch(Half* to, const Rows& rows, int threads) const {
    fetch_rows<kWidth>(to, static_cast<const Half*>(rows.data) + head * rows.head_stride, threads,
                       [&](int token) { return token < length ? (start + token) * rows.token_stride : -1; });
  }
};

// Of a kernel whose blocks have a chunk and head each.
template <class Shape>
unsigned blocks_of(const Shape& shape) {
  return static_cast<unsigned>(shape.chunks.chunks * shape.heads);
}

}  // namespace flashmorph::cuda
