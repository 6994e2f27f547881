#include "core/ops/cuda/launch.h"
#include "core/ops/cuda/lightning_kernels.h"
#include "core/ops/cuda/scan.cuh"

namespace flashmorph::cuda {
namespace {

constexpr int kThreads = 256;

template <class Number>
__device__ __forceinline__ Number decay_over(const double* log_decay_H, int64_t head, int64_t tokens) {
  return exponential(static_cast<Number>(fmax(log_decay_H[head], kForgotten) * static_cast<double>(tokens)));
}

// blockIdx.x: a chunk and head.
template <class T, int W>
__global__ void pack_rows(const T* x, int64_t token_stride, int64_t head_stride, int64_t heads, int64_t width,
                          ChunkTable table, const double* log_decay_H, Decay decay, T* plain, T* scaled) {
  using A = Acc<T>;
  const int64_t per_row = width / W, place = int64_t{blockIdx.y} * kThreads + threadIdx.x;
  const int64_t row = place / per_row, column = place % per_row * W;
  if (row >= table.size) return;
  const int64_t chunk = blockIdx.x / heads, head = blockIdx.x % heads, length = table.length_N[chunk];
  Vector<T, W> values = {};
  if (row < length) values = load<T, W>(x + (table.start_N[chunk] + row) * token_stride + head * head_stride + column);
  const int64_t to = (int64_t{blockIdx.x} * table.size + row) * width + column;
  if (plain != nullptr) store<T, W>(plain + to, values);
  if (scaled == nullptr) return;
  const A factor = decay_over<A>(log_decay_H, head, decay == Decay::since_start ? row + 1 : length - 1 - row);
#pragma unroll
  for (int w = 0; w < W; ++w)
    values.value[w] = row < length ? cuda::to<T>(cuda::to<A>(values.value[w]) * factor) : T(0.0f);
  store<T, W>(scaled + to, values);
}

template <class T, int W>
__global__ void unpack_rows(const T* x, int64_t heads, int64_t width, ChunkTable table, T* y) {
  const int64_t per_row = width / W, place = int64_t{blockIdx.y} * kThreads + threadIdx.x;
  const int64_t row = place / per_row, column = place % per_row * W;
  const int64_t chunk = blockIdx.x / heads, head = blockIdx.x % heads;
  if (row >= table.length_N[chunk]) return;
  const auto values = load<T, W>(x + (int64_t{blockIdx.x} * table.size + row) * width + column);
  store<T, W>(y + ((table.start_N[chunk] + row) * heads + head) * width + column, values);
}

// A block has one chunk and head. The upper triangle is selected away, not multiplied: it may hold anything.
template <class T, int W>
__global__ void decay_score_rows(T* scores, int64_t heads, int64_t size, const double* log_decay_H) {
  using A = Acc<T>;
  extern __shared__ unsigned char memory[];
  A* factor = reinterpret_cast<A*>(memory);
  for (int64_t i = threadIdx.x; i < size; i += kThreads) factor[i] = decay_over<A>(log_decay_H, blockIdx.x % heads, i);
  __syncthreads();
  scores += int64_t{blockIdx.x} * size * size;
  for (int64_t at = int64_t{threadIdx.x} * W; at < size * size; at += kThreads * W) {
    const int64_t i = at / size, j = at % size;
    Vector<T, W> values = {};
    if (j <= i) values = load<T, W>(scores + at);
#pragma unroll
    for (int w = 0; w < W; ++w)
      values.value[w] = j + w <= i ? cuda::to<T>(cuda::to<A>(values.value[w]) * factor[i - j - w]) : T(0.0f);
    store<T, W>(scores + at, values);
  }
}

template <class A>
struct ConstantDecay {
  const double* log_decay_H;
  const int64_t* length_N;
  __device__ A operator()(int64_t chunk, int64_t head, int64_t) const {
    return decay_over<A>(log_decay_H, head, length_N[chunk]);
  }
};

bool aligned(const void* pointer, int64_t stride, int64_t element_size) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0 && stride * element_size % 16 == 0;
}

}  // namespace

void pack(Element type, const void* x, int64_t token_stride, int64_t head_stride, int64_t heads, int64_t width,
          const ChunkTable& table, const double* log_decay_H, Decay decay, void* plain, void* scaled, Stream stream) {
  with_type(type, [&](auto t) {
    using T = decltype(t);
    const auto launch = [&]<int W>(std::integral_constant<int, W>) {
      const dim3 grid(static_cast<unsigned>(table.chunks * heads), blocks_for(table.size * width / W, kThreads));
      pack_rows<T, W><<<grid, kThreads, 0, stream>>>(static_cast<const T*>(x), token_stride, head_stride, heads, width,
                                                     table, log_decay_H, decay, static_cast<T*>(plain),
                                                     static_cast<T*>(scaled));
    };
    const bool wide =
        width % kWide<T> == 0 && aligned(x, token_stride, sizeof(T)) && aligned(x, head_stride, sizeof(T));
    wide ? launch(std::integral_constant<int, kWide<T>>()) : launch(std::integral_constant<int, 1>());
  });
  check_launch("pack");
}

void unpack(Element type, const void* x, int64_t heads, int64_t width, const ChunkTable& table, void* y,
            Stream stream) {
  with_width(type, width, [&]<class T, int W>(T, std::integral_constant<int, W>) {
    const dim3 grid(static_cast<unsigned>(table.chunks * heads), blocks_for(table.size * width / W, kThreads));
    unpack_rows<T, W><<<grid, kThreads, 0, stream>>>(static_cast<const T*>(x), heads, width, table, static_cast<T*>(y));
  });
  check_launch("unpack");
}

void decay_scores(Element type, void* scores, int64_t heads, int64_t chunks, int64_t size, const double* log_decay_H,
                  Stream stream) {
  with_width(type, size, [&]<class T, int W>(T, std::integral_constant<int, W>) {
    decay_score_rows<T, W><<<static_cast<unsigned>(chunks * heads), kThreads, size * sizeof(Acc<T>), stream>>>(
        static_cast<T*>(scores), heads, size, log_decay_H);
  });
  check_launch("decay_scores");
}

void scan_states(Element type, const void* added, void* state, void* entered, int64_t heads, int64_t state_size,
                 const ChunkTable& table, const double* log_decay_H, double factor, bool backwards, Stream stream) {
  with_type(type, [&](auto t) {
    using T = decltype(t);
    launch_scan<T>(static_cast<const Acc<T>*>(added), static_cast<Acc<T>*>(state), static_cast<T*>(entered), heads,
                   state_size, state_size, table, ConstantDecay<Acc<T>>{log_decay_H, table.length_N},
                   static_cast<Acc<T>>(factor), backwards, stream);
  });
  check_launch("scan_states");
}

}  // namespace flashmorph::cuda
