#pragma once

#include "core/ops/cuda/chunk.cuh"
#include "core/ops/cuda/gated_walk.h"

// What the tokens of a chunk do to each other when every channel decays by itself. Two tokens j < i meet at the level
// h = 32, 16, .., 1 that is the highest bit in which their places differ: in the block of 2 h tokens that has both, j
// is in the first half and i in the second. With m the first half's last token, no exponent is above 0 in
//   q_i k_j e^(b_i - b_j) = (q_i e^(b_i - b_m)) (k_j e^(b_m - b_j)) = x_i x_j,
// so a level's pairs are a matrix product whatever the decays, and a token is a query or a key there, never both.
// Where a chunk's decays are mild, e^(b_i - b_m) and e^(b_m - b_j) are far from the ends of what bfloat16 can hold for
// all of its tokens with the m of the first level, and one product has all pairs.

namespace flashmorph::cuda {

inline constexpr int kParts = 4, kPartRows = kTokens / kParts;  // of a channel's sums over tokens
inline constexpr float kForgottenGate = -150.0f;                // e to that is 0; a bound keeps -inf out of differences
inline constexpr float kMild = -40.0f;  // half a chunk's sum of gates: e to that is 20 digits above what is smallest

__device__ __forceinline__ float shrunk(float exponent) { return __expf(exponent); }

// The last token of the first half of the block of 2 kHalf tokens that has `token`.
template <int kHalf>
__device__ __forceinline__ int middle(int token) {
  return (token & ~(2 * kHalf - 1)) + kHalf - 1;
}

// Whether two tokens meet at level kHalf.
template <int kHalf>
__device__ __forceinline__ bool meet(int a, int b) {
  return (a ^ b) >= kHalf && (a ^ b) < 2 * kHalf;
}

template <class Level>  // level.template operator()<kHalf>()
__device__ __forceinline__ void each_level(const Level& level) {
  level.template operator()<32>();
  level.template operator()<16>();
  level.template operator()<8>();
  level.template operator()<4>();
  level.template operator()<2>();
  level.template operator()<1>();
}

// A chunk's decays in shared memory: b, from which 16 lanes read 4 rows of an 8 x 8 block without meeting in a bank.
template <int K>
struct Decays {
  static constexpr int kRow = K + 8, kMiddle = kTokens / 2 - 1;
  alignas(16) float b[kTokens * kRow];
  float totals[kParts][K];

  __device__ __forceinline__ void fetch(const float* g, const ChunkOfHead& matrix, int threads) {
    for (int n = threadIdx.x; n < kTokens * K / 4; n += threads) {
      const int row = n / (K / 4), column = n % (K / 4) * 4;
      const bool present = row < matrix.length;
      copy_async(b + row * kRow + column, g + (present ? matrix.row(row) * K + column : 0), present);
    }
  }
  // By 4 K threads or more. Whether all decays are mild, for all threads.
  __device__ __forceinline__ bool sum() {
    const int channel = threadIdx.x % K, part = threadIdx.x / K;
    float* const rows = b + part * kPartRows * kRow + channel;
    float sums[kPartRows], total = 0.0f;
    if (part < kParts) {
#pragma unroll
      for (int row = 0; row < kPartRows; ++row) {
        const float gate = rows[row * kRow];
        sums[row] = total += gate < kForgottenGate ? kForgottenGate : gate;
      }
      totals[part][channel] = total;
    }
    __syncthreads();
    bool mild = true;
    if (part < kParts) {
      float before = 0.0f;
      for (int earlier = 0; earlier < part; ++earlier) before += totals[earlier][channel];
#pragma unroll
      for (int row = 0; row < kPartRows; ++row) rows[row * kRow] = before + sums[row];
      mild = totals[0][channel] + totals[1][channel] >= kMild && totals[2][channel] + totals[3][channel] >= kMild;
    }
    return __syncthreads_and(mild);
  }
  __device__ __forceinline__ float at(int row, int column) const { return b[row * kRow + column]; }
  __device__ __forceinline__ float last(int column) const { return at(kTokens - 1, column); }
  __device__ __forceinline__ float middle_of_chunk(int column) const { return at(kMiddle, column); }
  // How a token's row is scaled at a level.
  template <int kHalf>
  __device__ __forceinline__ float to_middle(int row, int column) const {
    return shrunk(-fabsf(at(row, column) - at(middle<kHalf>(row), column)));
  }
};

// x of a level.
template <int K, int kHalf>
__device__ __forceinline__ void scale_level(Half* x, const Half* q, const Half* k, const Decays<K>& decays,
                                            int threads) {
  constexpr int kRow = K + kPad;
#pragma unroll 4
  for (int n = threadIdx.x; n < kTokens * K / 2; n += threads) {
    const int row = n / (K / 2), column = n % (K / 2) * 2, at = row * kRow + column;
    const uint32_t pair = *reinterpret_cast<const uint32_t*>(((row & kHalf) ? q : k) + at);
    *reinterpret_cast<uint32_t*>(x + at) =
        scaled(pair, decays.template to_middle<kHalf>(row, column), decays.template to_middle<kHalf>(row, column + 1));
  }
}

// The products of 16 rows each of a and b.
template <int K>
__device__ __forceinline__ SumTile row_products(const Half* a, const Half* b) {
  SumTile even = {}, odd = {};  // two chains of dependent sums
#pragma unroll
  for (int c = 0; c < K; c += 32) {
    even.add(LeftTile<false>(a + c, K + kPad), RightTile<true>(b + c, K + kPad));
    odd.add(LeftTile<false>(a + c + 16, K + kPad), RightTile<true>(b + c + 16, K + kPad));
  }
#pragma unroll
  for (int e = 0; e < 8; ++e) even.sums[e / 4][e % 4] += odd.sums[e / 4][e % 4];
  return even;
}

}  // namespace flashmorph::cuda
