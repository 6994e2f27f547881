#include "core/ops/cuda/norm_kernels.h"
#include "core/ops/cuda/row_sum.cuh"

namespace flashmorph::cuda {
namespace {

// The rows of a block: each has a power of two of neighbouring threads.
struct RowGroup {
  int threads;  // of one row
  int rows;     // of one block

  static RowGroup of(int64_t vectors) {
    int threads = 1;
    while (threads < vectors && threads < kThreads) threads *= 2;
    return {threads, kThreads / threads};
  }
};

// What this thread has of its row: vectors of W numbers from `first` on, `step` apart.
template <int W>
struct RowPart {
  int64_t row, first, step;
  bool here;  // there is such a row

  __device__ RowPart(RowGroup group, int64_t rows)
      : row(int64_t{blockIdx.x} * group.rows + threadIdx.x / group.threads),
        first(threadIdx.x % group.threads * W),
        step(group.threads * W),
        here(row < rows) {}
};

// 1 / sqrt(mean of x^2 + epsilon) of this thread's row, on each of its threads. Every thread of the block calls it.
template <class T, int W>
__device__ Acc<T> inverse_rms_of(const T* x, int64_t width, Acc<T> epsilon, RowGroup group, const RowPart<W>& part) {
  using A = Acc<T>;
  A squares = 0;
  if (part.here)
    for (int64_t i = part.first; i < width; i += part.step) {
      const auto values = load<T, W>(x + i);
#pragma unroll
      for (int w = 0; w < W; ++w) squares += to<A>(values.value[w]) * to<A>(values.value[w]);
    }
  return A(1) / sqrt(row_sum(squares, group.threads) / static_cast<A>(width) + epsilon);
}

template <class T, int W>
__global__ void rms_norm_rows(const T* x, const T* weight, T* y, int64_t rows, int64_t width, Acc<T> epsilon,
                              RowGroup group) {
  using A = Acc<T>;
  const RowPart<W> part(group, rows);
  const auto [row, first, step, here] = part;
  x += row * width;
  y += row * width;
  const A s = inverse_rms_of<T, W>(x, width, epsilon, group, part);
  if (!here) return;
  for (int64_t i = first; i < width; i += step) {
    const auto values = load<T, W>(x + i), scale = load<T, W>(weight + i);
    Vector<T, W> out;
#pragma unroll
    for (int w = 0; w < W; ++w) out.value[w] = to<T>(to<A>(values.value[w]) * s * to<A>(scale.value[w]));
    store<T, W>(y + i, out);
  }
}

// dx = s (dy w) - x s^3 / width <dy w, x>
template <class T, int W>
__global__ void rms_norm_backward_rows(const T* dy, const T* x, const T* weight, T* dx, Acc<T>* inverse_rms,
                                       int64_t rows, int64_t width, Acc<T> epsilon, RowGroup group) {
  using A = Acc<T>;
  const auto [row, first, step, here] = RowPart<W>(group, rows);
  x += row * width;
  dy += row * width;
  dx += row * width;
  A squares = 0, along = 0;
  if (here)
    for (int64_t i = first; i < width; i += step) {
      const auto values = load<T, W>(x + i), upstream = load<T, W>(dy + i), scale = load<T, W>(weight + i);
#pragma unroll
      for (int w = 0; w < W; ++w) {
        const A value = to<A>(values.value[w]);
        squares += value * value;
        along += to<A>(upstream.value[w]) * to<A>(scale.value[w]) * value;
      }
    }
  const A s = A(1) / sqrt(row_sum(squares, group.threads) / static_cast<A>(width) + epsilon);
  along = row_sum(along, group.threads) * s * s * s / static_cast<A>(width);
  if (!here) return;
  for (int64_t i = first; i < width; i += step) {
    const auto values = load<T, W>(x + i), upstream = load<T, W>(dy + i), scale = load<T, W>(weight + i);
    Vector<T, W> out;
#pragma unroll
    for (int w = 0; w < W; ++w)
      out.value[w] = to<T>(s * to<A>(upstream.value[w]) * to<A>(scale.value[w]) - to<A>(values.value[w]) * along);
    store<T, W>(dx + i, out);
  }
  if (first == 0) inverse_rms[row] = s;
}

// A block has one part of the rows; `lanes` rows at a time, then the lanes are added in order.
template <class T, int W>
__global__ void rms_norm_weight_rows(const T* dy, const T* x, const Acc<T>* inverse_rms, Acc<T>* partial, int64_t rows,
                                     int64_t width, RowGroup group) {
  using A = Acc<T>;
  __shared__ A of_lane[kThreads * W];
  const int64_t per_part = (rows + gridDim.x - 1) / gridDim.x, begin = blockIdx.x * per_part;
  const int64_t end = begin + per_part < rows ? begin + per_part : rows;
  const int lane = threadIdx.x / group.threads, column = threadIdx.x % group.threads * W;
  for (int64_t start = 0; start < width; start += group.threads * W) {
    A sums[W] = {};
    if (start + column < width)
#pragma unroll 4
      for (int64_t row = begin + lane; row < end; row += group.rows) {
        const auto values = load<T, W>(x + row * width + start + column);
        const auto upstream = load<T, W>(dy + row * width + start + column);
        const A s = inverse_rms[row];
#pragma unroll
        for (int w = 0; w < W; ++w) sums[w] += to<A>(upstream.value[w]) * to<A>(values.value[w]) * s;
      }
    __syncthreads();
#pragma unroll
    for (int w = 0; w < W; ++w) of_lane[lane * group.threads * W + column + w] = sums[w];
    __syncthreads();
    if (lane == 0 && start + column < width)
      for (int w = 0; w < W; ++w) {
        A sum = 0;
        for (int other = 0; other < group.rows; ++other) sum += of_lane[other * group.threads * W + column + w];
        partial[blockIdx.x * width + start + column + w] = sum;
      }
  }
}

// f(gate) of a gated norm.
template <class A>
__device__ __forceinline__ A opened(A gate, bool swish) {
  const A sigma = A(1) / (A(1) + exponential(-gate));
  return swish ? gate * sigma : sigma;
}

template <class A>
__device__ __forceinline__ A opened_slope(A gate, bool swish) {
  const A sigma = A(1) / (A(1) + exponential(-gate));
  return swish ? sigma * (A(1) + gate * (A(1) - sigma)) : sigma * (A(1) - sigma);
}

// A row is one token's head.
template <class T, int W>
__global__ void gated_norm_rows(const T* x, const T* weight, const T* gate, T* y, int64_t rows, int64_t heads,
                                int64_t width, Acc<T> epsilon, bool swish, RowGroup group) {
  using A = Acc<T>;
  const RowPart<W> part(group, rows);
  const auto [row, first, step, here] = part;
  x += row * width;
  const A s = inverse_rms_of<T, W>(x, width, epsilon, group, part);
  if (!here) return;
  weight += row % heads * width;
  for (int64_t i = first; i < width; i += step) {
    const auto values = load<T, W>(x + i), scale = load<T, W>(weight + i), gates = load<T, W>(gate + row * width + i);
    Vector<T, W> out;
#pragma unroll
    for (int w = 0; w < W; ++w)
      out.value[w] = to<T>(to<A>(values.value[w]) * s * to<A>(scale.value[w]) * opened(to<A>(gates.value[w]), swish));
    store<T, W>(y + row * width + i, out);
  }
}

// With u = dy w f(gate): dx = s u - x s^3 / width <u, x>;  d_gate = dy w x s f'(gate).
template <class T, int W>
__global__ void gated_norm_backward_rows(const T* dy, const T* x, const T* weight, const T* gate, T* dx, T* d_gate,
                                         Acc<T>* inverse_rms, int64_t rows, int64_t heads, int64_t width,
                                         Acc<T> epsilon, bool swish, RowGroup group) {
  using A = Acc<T>;
  const auto [row, first, step, here] = RowPart<W>(group, rows);
  const int64_t start = row * width;
  weight += row % heads * width;
  A squares = 0, along = 0;
  if (here)
    for (int64_t i = first; i < width; i += step) {
      const auto values = load<T, W>(x + start + i), upstream = load<T, W>(dy + start + i);
      const auto scale = load<T, W>(weight + i), gates = load<T, W>(gate + start + i);
#pragma unroll
      for (int w = 0; w < W; ++w) {
        const A value = to<A>(values.value[w]);
        squares += value * value;
        along += to<A>(upstream.value[w]) * to<A>(scale.value[w]) * opened(to<A>(gates.value[w]), swish) * value;
      }
    }
  const A s = A(1) / sqrt(row_sum(squares, group.threads) / static_cast<A>(width) + epsilon);
  along = row_sum(along, group.threads) * s * s * s / static_cast<A>(width);
  if (!here) return;
  for (int64_t i = first; i < width; i += step) {
    const auto values = load<T, W>(x + start + i), upstream = load<T, W>(dy + start + i);
    const auto scale = load<T, W>(weight + i), gates = load<T, W>(gate + start + i);
    Vector<T, W> to_x, to_gate;
#pragma unroll
    for (int w = 0; w < W; ++w) {
      const A value = to<A>(values.value[w]), g = to<A>(gates.value[w]);
      const A weighted = to<A>(upstream.value[w]) * to<A>(scale.value[w]);
      to_x.value[w] = to<T>(s * weighted * opened(g, swish) - value * along);
      to_gate.value[w] = to<T>(weighted * value * s * opened_slope(g, swish));
    }
    store<T, W>(dx + start + i, to_x);
    store<T, W>(d_gate + start + i, to_gate);
  }
  if (first == 0) inverse_rms[row] = s;
}

// A block has one part of the tokens and kThreads * W of the channels.
template <class T, int W>
__global__ void gated_norm_weight_columns(const T* dy, const T* x, const T* gate, const Acc<T>* inverse_rms,
                                          Acc<T>* partial, int64_t tokens, int64_t heads, int64_t width, bool swish) {
  using A = Acc<T>;
  const int64_t channels = heads * width, column = (int64_t{blockIdx.y} * kThreads + threadIdx.x) * W;
  if (column >= channels) return;
  const int64_t per_part = (tokens + gridDim.x - 1) / gridDim.x, begin = blockIdx.x * per_part;
  const int64_t end = begin + per_part < tokens ? begin + per_part : tokens;
  A sums[W] = {};
#pragma unroll 4
  for (int64_t token = begin; token < end; ++token) {
    const int64_t at = token * channels + column;
    const auto values = load<T, W>(x + at), upstream = load<T, W>(dy + at), gates = load<T, W>(gate + at);
    const A s = inverse_rms[token * heads + column / width];
#pragma unroll
    for (int w = 0; w < W; ++w)
      sums[w] += to<A>(upstream.value[w]) * to<A>(values.value[w]) * s * opened(to<A>(gates.value[w]), swish);
  }
#pragma unroll
  for (int w = 0; w < W; ++w) partial[blockIdx.x * channels + column + w] = sums[w];
}

}  // namespace

void rms_norm(Element type, const void* x, const void* weight, void* y, int64_t rows, int64_t width, double epsilon,
              Stream stream) {
  with_width(type, width, [&]<class T, int W>(T, std::integral_constant<int, W>) {
    const RowGroup group = RowGroup::of(width / W);
    rms_norm_rows<T, W><<<blocks_for(rows, group.rows), kThreads, 0, stream>>>(
        static_cast<const T*>(x), static_cast<const T*>(weight), static_cast<T*>(y), rows, width,
        static_cast<Acc<T>>(epsilon), group);
  });
  check_launch("rms_norm");
}

void rms_norm_backward(Element type, const void* dy, const void* x, const void* weight, void* dx, void* inverse_rms,
                       int64_t rows, int64_t width, double epsilon, Stream stream) {
  with_width(type, width, [&]<class T, int W>(T, std::integral_constant<int, W>) {
    const RowGroup group = RowGroup::of(width / W);
    rms_norm_backward_rows<T, W><<<blocks_for(rows, group.rows), kThreads, 0, stream>>>(
        static_cast<const T*>(dy), static_cast<const T*>(x), static_cast<const T*>(weight), static_cast<T*>(dx),
        static_cast<Acc<T>*>(inverse_rms), rows, width, static_cast<Acc<T>>(epsilon), group);
  });
  check_launch("rms_norm_backward");
}

void rms_norm_weight_gradient(Element type, const void* dy, const void* x, const void* inverse_rms, void* partial,
                              int64_t parts, int64_t rows, int64_t width, Stream stream) {
  with_width(type, width, [&]<class T, int W>(T, std::integral_constant<int, W>) {
    rms_norm_weight_rows<T, W><<<static_cast<unsigned>(parts), kThreads, 0, stream>>>(
        static_cast<const T*>(dy), static_cast<const T*>(x), static_cast<const Acc<T>*>(inverse_rms),
        static_cast<Acc<T>*>(partial), rows, width, RowGroup::of(width / W));
  });
  check_launch("rms_norm_weight_gradient");
}

void gated_norm(Element type, const void* x, const void* weight, const void* gate, void* y, int64_t tokens,
                int64_t heads, int64_t width, double epsilon, bool swish, Stream stream) {
  with_width(type, width, [&]<class T, int W>(T, std::integral_constant<int, W>) {
    const RowGroup group = RowGroup::of(width / W);
    gated_norm_rows<T, W><<<blocks_for(tokens * heads, group.rows), kThreads, 0, stream>>>(
        static_cast<const T*>(x), static_cast<const T*>(weight), static_cast<const T*>(gate), static_cast<T*>(y),
        tokens * heads, heads, width, static_cast<Acc<T>>(epsilon), swish, group);
  });
  check_launch("gated_norm");
}

void gated_norm_backward(Element type, const void* dy, const void* x, const void* weight, const void* gate, void* dx,
                         void* d_gate, void* inverse_rms, int64_t tokens, int64_t heads, int64_t width, double epsilon,
                         bool swish, Stream stream) {
  with_width(type, width, [&]<class T, int W>(T, std::integral_constant<int, W>) {
    const RowGroup group = RowGroup::of(width / W);
    gated_norm_backward_rows<T, W><<<blocks_for(tokens * heads, group.rows), kThreads, 0, stream>>>(
        static_cast<const T*>(dy), static_cast<const T*>(x), static_cast<const T*>(weight), static_cast<const T*>(gate),
        static_cast<T*>(dx), static_cast<T*>(d_gate), static_cast<Acc<T>*>(inverse_rms), tokens * heads, heads, width,
        static_cast<Acc<T>>(epsilon), swish, group);
  });
  check_launch("gated_norm_backward");
}

void gated_norm_weight_gradient(Element type, const void* dy, const void* x, const void* gate, const void* inverse_rms,
                                void* partial, int64_t parts, int64_t tokens, int64_t heads, int64_t width, bool swish,
                                Stream stream) {
  with_width(type, width, [&]<class T, int W>(T, std::integral_constant<int, W>) {
    const dim3 grid(static_cast<unsigned>(parts), blocks_for(heads * width / W, kThreads));
    gated_norm_weight_columns<T, W><<<grid, kThreads, 0, stream>>>(
        static_cast<const T*>(dy), static_cast<const T*>(x), static_cast<const T*>(gate),
        static_cast<const Acc<T>*>(inverse_rms), static_cast<Acc<T>*>(partial), tokens, heads, width, swish);
  });
  check_launch("gated_norm_weight_gradient");
}

}  // namespace flashmorph::cuda
