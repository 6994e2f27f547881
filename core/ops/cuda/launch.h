#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

#include "core/ops/cuda/element.h"

// What the kernels' files share: numbers, wide memory accesses, dispatch over types.

namespace flashmorph::cuda {

// What a type is computed in.
template <class T>
struct Accumulator {
  using Type = float;
};
template <>
struct Accumulator<double> {
  using Type = double;
};
template <class T>
using Acc = typename Accumulator<T>::Type;

template <class To, class From>
__device__ __forceinline__ To to(From value) {
  if constexpr (std::is_same_v<To, __nv_bfloat16>) {
    return __float2bfloat16_rn(static_cast<float>(value));
  } else if constexpr (std::is_same_v<From, __nv_bfloat16>) {
    return static_cast<To>(__bfloat162float(value));
  } else {
    return static_cast<To>(value);
  }
}

__device__ __forceinline__ float exponential(float x) { return expf(x); }
__device__ __forceinline__ double exponential(double x) { return exp(x); }

// W neighbours that travel in one access.
template <class T, int W>
struct alignas(sizeof(T) * W) Vector {
  T value[W];
};

// The widest access that fits 16 bytes.
template <class T>
inline constexpr int kWide = 16 / sizeof(T);

template <class T, int W>
__device__ __forceinline__ Vector<T, W> load(const T* from) {
  return *reinterpret_cast<const Vector<T, W>*>(from);
}

template <class T, int W>
__device__ __forceinline__ void store(T* to, const Vector<T, W>& values) {
  *reinterpret_cast<Vector<T, W>*>(to) = values;
}

// One thread and one lane each: the sum over the 2^n neighbouring lanes of a warp.
template <class Number>
__device__ __forceinline__ Number warp_sum(Number value, int lanes = 32) {
  for (int step = lanes / 2; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
  return value;
}

inline void check_call(cudaError_t error, const char* call) {
  if (error != cudaSuccess) throw std::runtime_error(std::string(call) + ": " + cudaGetErrorString(error));
}

inline void check_launch(const char* kernel) { check_call(cudaGetLastError(), kernel); }

inline int current_device() {
  int device = 0;
  check_call(cudaGetDevice(&device), "cudaGetDevice");
  return device;
}

inline int device_attribute(cudaDeviceAttr attribute) {
  int value = 0;
  check_call(cudaDeviceGetAttribute(&value, attribute, current_device()), "cudaDeviceGetAttribute");
  return value;
}

inline int multiprocessors() { return device_attribute(cudaDevAttrMultiProcessorCount); }

// A launch of `kernel` may have so much dynamic shared memory; more than 48 KiB must be asked for, once.
template <class Kernel>
void allow_shared_memory(Kernel* kernel, size_t bytes) {
  static std::mutex mutex;
  static std::map<std::pair<Kernel*, int>, size_t> allowed;
  const std::lock_guard lock(mutex);
  size_t& most = allowed[{kernel, current_device()}];
  if (bytes <= most) return;
  check_call(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
             "cudaFuncSetAttribute");
  most = bytes;
}

// How many blocks of a kernel the current device holds at once.
template <class Kernel>
int64_t blocks_at_once(Kernel* kernel, int threads, size_t bytes) {
  allow_shared_memory(kernel, bytes);
  int blocks = 0;
  check_call(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, bytes),
             "cudaOccupancyMaxActiveBlocksPerMultiprocessor");
  return int64_t{multiprocessors()} * std::max(blocks, 1);
}

inline unsigned blocks_for(int64_t items, int64_t per_block) {
  return static_cast<unsigned>(std::max<int64_t>(1, (items + per_block - 1) / per_block));
}

// Calls work(T()) for the element type.
template <class Work>
void with_type(Element element, const Work& work) {
  switch (element) {
    case Element::float32:
      return work(float());
    case Element::float64:
      return work(double());
    case Element::bfloat16:
      return work(__nv_bfloat16());
  }
}

// Calls work(T(), integral_constant<W>): the wide form where `size` is a multiple of it.
template <class Work>
void with_width(Element type, int64_t size, const Work& work) {
  with_type(type, [&](auto t) {
    using T = decltype(t);
    if (size % kWide<T> == 0) return work(t, std::integral_constant<int, kWide<T>>());
    work(t, std::integral_constant<int, 1>());
  });
}

}  // namespace flashmorph::cuda
