#pragma once

#include "core/ops/cuda/launch.h"
#include "core/ops/cuda/tensor_cores.cuh"
#include "core/ops/cuda/walk.h"

// What kernels share whose blocks have a chunk of 64 tokens each.

namespace flashmorph::cuda {

using Half = __nv_bfloat16;

inline constexpr int kTokens = kWalkedChunk;
inline constexpr int kPad = 8;  // so that 8 rows of a tile lie in different banks

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

}  // namespace flashmorph::cuda
