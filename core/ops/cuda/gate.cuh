#pragma once

#include "core/ops/cuda/launch.h"

// How far a gate is open.

namespace flashmorph::cuda {

// Rounded to bfloat16 afterwards, the processor's own approximations are as good.
template <class T>
__device__ __forceinline__ Acc<T> sigmoid(Acc<T> x) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>)
    return __fdividef(1.0f, 1.0f + __expf(-x));
  else
    return Acc<T>(1) / (Acc<T>(1) + exponential(-x));
}

// f(gate), sigmoid or silu when `swish`, and its slope.
template <class T>
__device__ __forceinline__ Acc<T> opened(Acc<T> gate, bool swish) {
  const Acc<T> sigma = sigmoid<T>(gate);
  return swish ? gate * sigma : sigma;
}

template <class T>
__device__ __forceinline__ Acc<T> opened_slope(Acc<T> gate, bool swish) {
  const Acc<T> sigma = sigmoid<T>(gate), closed = sigma * (Acc<T>(1) - sigma);
  return swish ? sigma + gate * closed : closed;
}

}  // namespace flashmorph::cuda
