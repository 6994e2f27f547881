#pragma once

#include "core/ops/cuda/launch.h"

namespace flashmorph::cuda {

constexpr int kThreads = 256;  // of a block

// What `combine` makes of a row's threads' values, two at a time and in a fixed order: the same bits on each of them.
// `none` changes nothing. Every thread of the block calls it.
template <class Number, class Combine>
__device__ Number of_row(Number value, int threads, Number none, const Combine& combine) {
  const int lanes = threads < 32 ? threads : 32;
  for (int step = lanes / 2; step > 0; step /= 2) value = combine(value, __shfl_xor_sync(0xffffffffu, value, step));
  if (threads <= 32) return value;
  __shared__ Number of_warp[kThreads / 32];
  __syncthreads();  // the last call's readers are through
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = value;
  __syncthreads();
  const int first = threadIdx.x / threads * (threads / 32);
  Number all = none;
  for (int warp = 0; warp < threads / 32; ++warp) all = combine(all, of_warp[first + warp]);
  return all;
}

template <class Number>
__device__ Number row_sum(Number value, int threads) {
  return of_row(value, threads, Number(0), [](Number a, Number b) { return a + b; });
}

}  // namespace flashmorph::cuda
