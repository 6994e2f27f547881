#pragma once

#include "core/ops/cuda/launch.h"
#include "core/ops/cuda/tensor_cores.cuh"
#include "core/ops/cuda/walk.h"

// What kernels share whose blocks walk chunks of 64 tokens with the state on chip. A block has 64 of the value columns.
// In shared memory the state lies transposed, as rows for value columns: then q S reads it as q K^T reads K.

namespace flashmorph::cuda {

using Half = __nv_bfloat16;

inline constexpr int kWarps = 4, kWalkThreads = 32 * kWarps;
inline constexpr int kTokens = kWalkedChunk;  // 16 a warp
inline constexpr int kColumns = kWalkedColumns;
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

// The state in registers, float32: a warp has 32 value columns and half of the keys.
template <int K>
struct WalkedState {
  static constexpr int kRow = K + kPad, kValueRow = kColumns + kPad, kAcross = K / 32;
  SumTile tiles[2][kAcross];
  int value, key;  // of the first tile

  __device__ WalkedState() : tiles(), value(threadIdx.x / 64 * 32), key(threadIdx.x / 32 % 2 * (K / 2)) {}

  template <class Use>  // use(sum, value column, key)
  __device__ __forceinline__ void each(const Use& use) {
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
      for (int n = 0; n < kAcross; ++n)
        tiles[m][n].each(
            [&](float& sum, int row, int column) { use(sum, value + m * 16 + row, key + n * 16 + column); });
  }

  // [kColumns, kRow] in shared memory
  __device__ __forceinline__ void round_to(Half* rows) {
    each([&](float& sum, int row, int column) { rows[row * kRow + column] = __float2bfloat16_rn(sum); });
  }

  // S += keys^T values over 16 tokens; `values` may have been scaled.
  template <class Values>
  __device__ __forceinline__ void add(const Values (&values)[2], const Half* keys) {
#pragma unroll
    for (int n = 0; n < kAcross; ++n) {
      const RightTile<> tile(keys + key + n * 16, kRow);
#pragma unroll
      for (int m = 0; m < 2; ++m) tiles[m][n].add(values[m], tile);
    }
  }
};

// A chunk's output: a warp has 16 tokens, `block` says which.
struct WalkedOutput {
  SumTile tiles[kColumns / 16] = {};

  template <class Use>
  __device__ __forceinline__ void each(const Use& use) {
#pragma unroll
    for (SumTile& tile : tiles) tile.each(use);
  }

  // += queries S over 16 channels, of which `state` has the columns.
  __device__ __forceinline__ void add_state(const LeftTile<false>& queries, const Half* state, int stride) {
#pragma unroll
    for (int n = 0; n < kColumns / 16; ++n) tiles[n].add(queries, RightTile<true>(state + n * 16 * stride, stride));
  }

  // += weights values over 16 tokens.
  template <class Weights>
  __device__ __forceinline__ void add_values(const Weights& weights, const Half* values) {
    constexpr int kRow = kColumns + kPad;
#pragma unroll
    for (int n = 0; n < kColumns / 16; ++n) tiles[n].add(weights, RightTile<>(values + n * 16, kRow));
  }

  // Through 16 rows of shared memory that only this warp uses, so that a lane stores 16 bytes. to(row): where the 64
  // columns of a row go, null for nowhere.
  template <class To>
  __device__ __forceinline__ void store(Half* rows, int stride, const To& to) {
    __syncwarp();  // all lanes have read what lay there
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int n = 0; n < kColumns / 16; ++n)
#pragma unroll
      for (int part = 0; part < 4; ++part) {
        const float* pair = &tiles[n].sums[part / 2][part % 2 * 2];
        *reinterpret_cast<uint32_t*>(rows + (lane / 4 + part % 2 * 8) * stride + n * 16 + part / 2 * 8 + lane % 4 * 2) =
            packed(pair[0], pair[1]);
      }
    __syncwarp();
#pragma unroll
    for (int n = lane; n < 16 * kColumns / 8; n += 32) {
      const int row = n / (kColumns / 8), unit = n % (kColumns / 8) * 8;
      if (Half* const out = to(row)) cuda::store<Half, 8>(out + unit, load<Half, 8>(rows + row * stride + unit));
    }
  }
};

}  // namespace flashmorph::cuda
