#pragma once

#include "core/ops/cuda/launch.h"

namespace flashmorph::cuda {

constexpr int kThreads = 256;  // of a block

// The sum over a row's threads, the same bits on each of them. Every thread of the block calls it.
template <class Number>
__device__ Number row_sum(Number value, int threads) {
  if (threads <= 32) return warp_sum(value, threads);
  __shared__ Number of_warp[kThreads / 32];
  value = warp_sum(value);
  __syncthreads();  // the last call's readers are through
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = value;
  __syncthreads();
  const int first = threadIdx.x / threads * (threads / 32);
  Number sum = 0;
  for (int warp = 0; warp < threads / 32; ++warp) sum += of_warp[first + warp];
  return sum;
}

}  // namespace flashmorph::cuda
