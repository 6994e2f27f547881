#include "core/ops/cuda/pointwise_kernels.h"

#include "core/ops/cuda/launch.h"

namespace flashmorph::cuda {
namespace {

constexpr int kThreads = 256;

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

template <class T, int W>
__global__ void rms_norm_rows(const T* x, const T* weight, T* y, int64_t rows, int64_t width, Acc<T> epsilon,
                              RowGroup group) {
  using A = Acc<T>;
  const int64_t row = int64_t{blockIdx.x} * group.rows + threadIdx.x / group.threads;
  const int64_t first = threadIdx.x % group.threads * W, step = group.threads * W;
  const bool here = row < rows;
  x += row * width;
  y += row * width;
  A squares = 0;
  if (here)
    for (int64_t i = first; i < width; i += step) {
      const auto values = load<T, W>(x + i);
#pragma unroll
      for (int w = 0; w < W; ++w) squares += to<A>(values.value[w]) * to<A>(values.value[w]);
    }
  const A s = A(1) / sqrt(row_sum(squares, group.threads) / static_cast<A>(width) + epsilon);
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
__global__ void rms_norm_backward_rows(const T* dy, const T* x, const T* weight, T* dx, Acc<T>* inverse_rms, int64_t rows,
                                       int64_t width, Acc<T> epsilon, RowGroup group) {
  using A = Acc<T>;
  const int64_t row = int64_t{blockIdx.x} * group.rows + threadIdx.x / group.threads;
  const int64_t first = threadIdx.x % group.threads * W, step = group.threads * W;
  const bool here = row < rows;
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
  const int64_t row = int64_t{blockIdx.x} * group.rows + threadIdx.x / group.threads;
  const int64_t first = threadIdx.x % group.threads * W, step = group.threads * W;
  const bool here = row < rows;
  x += row * width;
  A squares = 0;
  if (here)
    for (int64_t i = first; i < width; i += step) {
      const auto values = load<T, W>(x + i);
#pragma unroll
      for (int w = 0; w < W; ++w) squares += to<A>(values.value[w]) * to<A>(values.value[w]);
    }
  const A s = A(1) / sqrt(row_sum(squares, group.threads) / static_cast<A>(width) + epsilon);
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
                                         Acc<T>* inverse_rms, int64_t rows, int64_t heads, int64_t width, Acc<T> epsilon,
                                         bool swish, RowGroup group) {
  using A = Acc<T>;
  const int64_t row = int64_t{blockIdx.x} * group.rows + threadIdx.x / group.threads, start = row * width;
  const int64_t first = threadIdx.x % group.threads * W, step = group.threads * W;
  const bool here = row < rows;
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

template <class T, int W>
__global__ void swiglu_forward(const T* gate, const T* up, T* y, int64_t count) {
  using A = Acc<T>;
  const int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * W;
  if (i >= count) return;
  const auto gates = load<T, W>(gate + i), ups = load<T, W>(up + i);
  Vector<T, W> out;
#pragma unroll
  for (int w = 0; w < W; ++w) {
    const A g = to<A>(gates.value[w]);
    out.value[w] = to<T>(g / (A(1) + exponential(-g)) * to<A>(ups.value[w]));
  }
  store<T, W>(y + i, out);
}

// With s = sigmoid(gate): d_up = dy gate s;  d_gate = dy up s (1 + gate (1 - s)).
template <class T, int W>
__global__ void swiglu_gradients(const T* dy, const T* gate, const T* up, T* d_gate, T* d_up, int64_t count) {
  using A = Acc<T>;
  const int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * W;
  if (i >= count) return;
  const auto upstream = load<T, W>(dy + i), gates = load<T, W>(gate + i), ups = load<T, W>(up + i);
  Vector<T, W> to_gate, to_up;
#pragma unroll
  for (int w = 0; w < W; ++w) {
    const A g = to<A>(gates.value[w]), d = to<A>(upstream.value[w]), s = A(1) / (A(1) + exponential(-g));
    to_up.value[w] = to<T>(d * g * s);
    to_gate.value[w] = to<T>(d * to<A>(ups.value[w]) * s * (A(1) + g * (A(1) - s)));
  }
  store<T, W>(d_gate + i, to_gate);
  store<T, W>(d_up + i, to_up);
}

// y = [x1 cos1 - x2 sin1, x2 cos2 + x1 sin2]; a thread has W places of the first half and the same of the second.
template <class T, int W>
__global__ void rotate_heads(const T* x, const Acc<T>* cos, const Acc<T>* sin, T* y, int64_t count, int64_t period,
                             int64_t heads, int64_t half) {
  using A = Acc<T>;
  const int64_t place = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * W;
  if (place >= count) return;
  const int64_t head = place / half, column = place % half;
  const int64_t angle = head / heads % period * 2 * half + column, at = head * 2 * half + column;
  const auto x1 = load<T, W>(x + at), x2 = load<T, W>(x + at + half);
  const auto cos1 = load<A, W>(cos + angle), cos2 = load<A, W>(cos + angle + half);
  const auto sin1 = load<A, W>(sin + angle), sin2 = load<A, W>(sin + angle + half);
  Vector<T, W> y1, y2;
#pragma unroll
  for (int w = 0; w < W; ++w) {
    const A a = to<A>(x1.value[w]), b = to<A>(x2.value[w]);
    y1.value[w] = to<T>(a * cos1.value[w] - b * sin1.value[w]);
    y2.value[w] = to<T>(b * cos2.value[w] + a * sin2.value[w]);
  }
  store<T, W>(y + at, y1);
  store<T, W>(y + at + half, y2);
}

template <class T, int W>
__global__ void gate_mix_forward(const T* full, const T* linear, Acc<T> alpha, T* mixed, T* difference, int64_t count) {
  using A = Acc<T>;
  const int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * W;
  if (i >= count) return;
  const auto f = load<T, W>(full + i), l = load<T, W>(linear + i);
  Vector<T, W> mix, minus;
#pragma unroll
  for (int w = 0; w < W; ++w) {
    const A a = to<A>(f.value[w]), b = to<A>(l.value[w]);
    mix.value[w] = to<T>(a * alpha + b * (A(1) - alpha));
    minus.value[w] = to<T>(a - b);
  }
  store<T, W>(mixed + i, mix);
  if (difference != nullptr) store<T, W>(difference + i, minus);
}

// A block has one part; its threads' sums are added in a fixed order.
template <class T, int W>
__global__ void gate_mix_gradients(const T* d_mixed, const T* difference, Acc<T> alpha, T* d_full, T* d_linear,
                                   double* partial, int64_t count) {
  using A = Acc<T>;
  double sum = 0.0;
  for (int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * W; i < count; i += int64_t{gridDim.x} * kThreads * W) {
    const auto G = load<T, W>(d_mixed + i);
    Vector<T, W> f, l, minus;
    if (partial != nullptr) minus = load<T, W>(difference + i);
#pragma unroll
    for (int w = 0; w < W; ++w) {
      const A g = to<A>(G.value[w]);
      f.value[w] = to<T>(g * alpha);
      l.value[w] = to<T>(g * (A(1) - alpha));
      if (partial != nullptr) sum += static_cast<double>(g) * to<double>(minus.value[w]);
    }
    if (d_full != nullptr) store<T, W>(d_full + i, f);
    if (d_linear != nullptr) store<T, W>(d_linear + i, l);
  }
  if (partial == nullptr) return;
  sum = row_sum(sum, kThreads);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

template <class T, int W>
__global__ void squared_distance_parts(const T* a, const T* b, double* partial, int64_t count) {
  using A = Acc<T>;
  double sum = 0.0;
  for (int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * W; i < count; i += int64_t{gridDim.x} * kThreads * W) {
    const auto first = load<T, W>(a + i), second = load<T, W>(b + i);
    A squares = 0;
#pragma unroll
    for (int w = 0; w < W; ++w) {
      const A off = to<A>(first.value[w]) - to<A>(second.value[w]);
      squares += off * off;
    }
    sum += static_cast<double>(squares);
  }
  sum = row_sum(sum, kThreads);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

template <class T, int W>
__global__ void squared_distance_gradient(const double* upstream, const T* a, const T* b, T* da, int64_t count) {
  using A = Acc<T>;
  const int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * W;
  if (i >= count) return;
  const A twice = static_cast<A>(2.0 * *upstream);
  const auto first = load<T, W>(a + i), second = load<T, W>(b + i);
  Vector<T, W> out;
#pragma unroll
  for (int w = 0; w < W; ++w) out.value[w] = to<T>(twice * (to<A>(first.value[w]) - to<A>(second.value[w])));
  store<T, W>(da + i, out);
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

void gated_norm(Element type, const void* x, const void* weight, const void* gate, void* y, int64_t tokens, int64_t heads,
                int64_t width, double epsilon, bool swish, Stream stream) {
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

void swiglu(Element type, const void* gate, const void* up, void* y, int64_t count, Stream stream) {
  with_width(type, count, [&]<class T, int W>(T, std::integral_constant<int, W>) {
    swiglu_forward<T, W><<<blocks_for(count, kThreads * W), kThreads, 0, stream>>>(
        static_cast<const T*>(gate), static_cast<const T*>(up), static_cast<T*>(y), count);
  });
  check_launch("swiglu");
}

void swiglu_backward(Element type, const void* dy, const void* gate, const void* up, void* d_gate, void* d_up,
                     int64_t count, Stream stream) {
  with_width(type, count, [&]<class T, int W>(T, std::integral_constant<int, W>) {
    swiglu_gradients<T, W><<<blocks_for(count, kThreads * W), kThreads, 0, stream>>>(
        static_cast<const T*>(dy), static_cast<const T*>(gate), static_cast<const T*>(up), static_cast<T*>(d_gate),
        static_cast<T*>(d_up), count);
  });
  check_launch("swiglu_backward");
}

void rotate(Element type, const void* x, const void* cos, const void* sin, void* y, int64_t tokens, int64_t period,
            int64_t heads, int64_t size, Stream stream) {
  const int64_t half = size / 2, count = tokens * heads * half;
  with_type(type, [&](auto t) {
    using T = decltype(t);
    constexpr int kAngles = 16 / sizeof(Acc<T>);  // both tables and heads in accesses of 16 bytes at most
    const auto launch = [&]<int W>(std::integral_constant<int, W>) {
      rotate_heads<T, W><<<blocks_for(count, kThreads * W), kThreads, 0, stream>>>(
          static_cast<const T*>(x), static_cast<const Acc<T>*>(cos), static_cast<const Acc<T>*>(sin), static_cast<T*>(y),
          count, period, heads, half);
    };
    if (half % kAngles == 0) return launch(std::integral_constant<int, kAngles>());
    launch(std::integral_constant<int, 1>());
  });
  check_launch("rotate");
}

void gate_mix(Element type, const void* full, const void* linear, double alpha, void* mixed, void* difference,
              int64_t count, Stream stream) {
  with_width(type, count, [&]<class T, int W>(T, std::integral_constant<int, W>) {
    gate_mix_forward<T, W><<<blocks_for(count, kThreads * W), kThreads, 0, stream>>>(
        static_cast<const T*>(full), static_cast<const T*>(linear), static_cast<Acc<T>>(alpha), static_cast<T*>(mixed),
        static_cast<T*>(difference), count);
  });
  check_launch("gate_mix");
}

void gate_mix_backward(Element type, const void* d_mixed, const void* difference, double alpha, void* d_full,
                       void* d_linear, double* partial, int64_t parts, int64_t count, Stream stream) {
  with_width(type, count, [&]<class T, int W>(T, std::integral_constant<int, W>) {
    gate_mix_gradients<T, W><<<static_cast<unsigned>(parts), kThreads, 0, stream>>>(
        static_cast<const T*>(d_mixed), static_cast<const T*>(difference), static_cast<Acc<T>>(alpha),
        static_cast<T*>(d_full), static_cast<T*>(d_linear), partial, count);
  });
  check_launch("gate_mix_backward");
}

void squared_distance(Element type, const void* a, const void* b, double* partial, int64_t parts, int64_t count,
                      Stream stream) {
  with_width(type, count, [&]<class T, int W>(T, std::integral_constant<int, W>) {
    squared_distance_parts<T, W><<<static_cast<unsigned>(parts), kThreads, 0, stream>>>(
        static_cast<const T*>(a), static_cast<const T*>(b), partial, count);
  });
  check_launch("squared_distance");
}

void squared_distance_backward(Element type, const double* upstream, const void* a, const void* b, void* da,
                               int64_t count, Stream stream) {
  with_width(type, count, [&]<class T, int W>(T, std::integral_constant<int, W>) {
    squared_distance_gradient<T, W><<<blocks_for(count, kThreads * W), kThreads, 0, stream>>>(
        upstream, static_cast<const T*>(a), static_cast<const T*>(b), static_cast<T*>(da), count);
  });
  check_launch("squared_distance_backward");
}

}  // namespace flashmorph::cuda
