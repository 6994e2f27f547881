#include <cuda_fp8.h>

#include <climits>

#include "core/ops/cuda/quantise_kernels.h"
#include "core/ops/cuda/row_sum.cuh"

namespace flashmorph::cuda {
namespace {

constexpr int kHeld = 8;  // vectors of a row that a thread keeps in registers

struct Matrices {
  Columns of[kMostColumns];
  int first[kMostColumns];  // column in the whole row; of those that are not there none
  int width;
};

// A row, whichever of the matrices a column lies in.
template <class T>
struct Row {
  const T* x[kMostColumns];  // so that column i is x[i]

  __device__ Row(const Matrices& matrices, int64_t row) {
#pragma unroll
    for (int m = 0; m < kMostColumns; ++m)
      x[m] = static_cast<const T*>(matrices.of[m].x) + row * matrices.of[m].stride - matrices.first[m];
  }

  template <int W>
  __device__ __forceinline__ Vector<T, W> at(const Matrices& matrices, int column) const {
    const T* from = x[0];
#pragma unroll
    for (int m = 1; m < kMostColumns; ++m)
      if (column >= matrices.first[m]) from = x[m];
    return load<T, W>(from + column);
  }
};

template <class T, int W>
__device__ __forceinline__ float largest_of(float most, const Vector<T, W>& x) {
#pragma unroll
  for (int w = 0; w < W; ++w) most = fmaxf(most, fabsf(to<float>(x.value[w])));
  return most;
}

template <class T, int W>
__device__ __forceinline__ void store_scaled(uint8_t* value, const Vector<T, W>& x, float factor) {
  Vector<__nv_fp8x2_storage_t, W / 2> out;
#pragma unroll
  for (int w = 0; w < W; w += 2)
    out.value[w / 2] = __nv_cvt_float2_to_fp8x2(
        make_float2(to<float>(x.value[w]) * factor, to<float>(x.value[w + 1]) * factor), __NV_SATFINITE, __NV_E4M3);
  *reinterpret_cast<Vector<__nv_fp8x2_storage_t, W / 2>*>(value) = out;
}

// A row by so many neighbouring threads. What they cannot hold of it they read twice.
template <class T>
__global__ void __launch_bounds__(kThreads)
    quantise(const __grid_constant__ Matrices matrices, uint8_t* value, float* scale, int64_t rows, float largest,
             float least, int threads) {
  constexpr int W = kWide<T>;
  const int64_t row = int64_t{blockIdx.x} * (kThreads / threads) + threadIdx.x / threads;
  const int width = row < rows ? matrices.width : 0, first = threadIdx.x % threads * W, step = threads * W;
  const Row<T> x(matrices, row);
  Vector<T, W> held[kHeld];
#pragma unroll
  for (int v = 0; v < kHeld; ++v)
    if (first + v * step < width) held[v] = x.template at<W>(matrices, first + v * step);
  float most = least;
#pragma unroll
  for (int v = 0; v < kHeld; ++v)
    if (first + v * step < width) most = largest_of(most, held[v]);
  for (int i = first + kHeld * step; i < width; i += step) most = largest_of(most, x.template at<W>(matrices, i));
  most = of_row(most, threads, least, [](float a, float b) { return fmaxf(a, b); });
  if (width == 0) return;
  if (first == 0) scale[row] = __fdiv_rn(most, largest);
  const float factor = __fdiv_rn(largest, most);
  value += row * width;
#pragma unroll
  for (int v = 0; v < kHeld; ++v)
    if (first + v * step < width) store_scaled(value + first + v * step, held[v], factor);
  for (int i = first + kHeld * step; i < width; i += step)
    store_scaled(value + i, x.template at<W>(matrices, i), factor);
}

// Warps enough to hold a row, a power of two of them, if a block has so many: with few vectors each the threads would
// do little but wait for one another.
template <class T>
int threads_of(int width) {
  int threads = 32;
  while (threads < kThreads && threads * kHeld * kWide<T> < width) threads *= 2;
  return threads;
}

}  // namespace

bool has_float8_products() {
  constexpr int kAda = 89;
  return 10 * device_attribute(cudaDevAttrComputeCapabilityMajor) +
             device_attribute(cudaDevAttrComputeCapabilityMinor) >=
         kAda;
}

void quantise_rows(Element type, const std::array<Columns, kMostColumns>& columns, int count, void* value, float* scale,
                   int64_t rows, double largest, double least, Stream stream) {
  if (rows == 0) return;
  Matrices matrices{};
  for (int m = 0; m < kMostColumns; ++m) {
    matrices.of[m] = columns[m];
    matrices.first[m] = m < count ? matrices.width : INT_MAX;
    if (m < count) matrices.width += static_cast<int>(columns[m].width);
  }
  with_type(type, [&](auto t) {
    using T = decltype(t);
    const int threads = threads_of<T>(matrices.width);
    quantise<T><<<blocks_for(rows, kThreads / threads), kThreads, 0, stream>>>(matrices, static_cast<uint8_t*>(value),
                                                                               scale, rows, static_cast<float>(largest),
                                                                               static_cast<float>(least), threads);
    check_launch("quantise_rows");
  });
}

}  // namespace flashmorph::cuda
