#include "core/ops/cuda/pointwise_kernels.h"
#include "core/ops/cuda/row_sum.cuh"

namespace flashmorph::cuda {
namespace {

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

// With s = sigmoid(gate): d_up = dy gate s;  d_gate = dy up s (1 + gate (1 - s)). A thread has one of a row's
// `vectors`; from one row of a gradient to the next: `step`.
template <class T, int W>
__global__ void swiglu_gradients(const T* dy, const T* gate, const T* up, T* d_gate, T* d_up, int64_t count,
                                 unsigned vectors, int64_t step) {
  using A = Acc<T>;
  const unsigned vector = blockIdx.x * kThreads + threadIdx.x;
  const int64_t i = int64_t{vector} * W, at = vector / vectors * step + int64_t{vector % vectors} * W;
  if (i >= count) return;
  const auto upstream = load<T, W>(dy + i), gates = load<T, W>(gate + i), ups = load<T, W>(up + i);
  Vector<T, W> to_gate, to_up;
#pragma unroll
  for (int w = 0; w < W; ++w) {
    const A g = to<A>(gates.value[w]), d = to<A>(upstream.value[w]), s = A(1) / (A(1) + exponential(-g));
    to_up.value[w] = to<T>(d * g * s);
    to_gate.value[w] = to<T>(d * to<A>(ups.value[w]) * s * (A(1) + g * (A(1) - s)));
  }
  store<T, W>(d_gate + at, to_gate);
  store<T, W>(d_up + at, to_up);
}

constexpr int kSummed = 32;  // columns of a block

template <class T>
__global__ void add_parts(const Acc<T>* partial, T* sums, int64_t parts, int64_t width) {
  using A = Acc<T>;
  constexpr int kLanes = kThreads / kSummed;
  __shared__ A of_lane[kLanes][kSummed];
  const int lane = threadIdx.x / kSummed, place = threadIdx.x % kSummed;
  const int64_t column = int64_t{blockIdx.x} * kSummed + place;
  A sum = 0;
  if (column < width)
    for (int64_t part = lane; part < parts; part += kLanes) sum += partial[part * width + column];
  of_lane[lane][place] = sum;
  __syncthreads();
  if (lane > 0 || column >= width) return;
  for (int other = 1; other < kLanes; ++other) sum += of_lane[other][place];
  sums[column] = to<T>(sum);
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
  for (int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * W; i < count;
       i += int64_t{gridDim.x} * kThreads * W) {
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
  for (int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * W; i < count;
       i += int64_t{gridDim.x} * kThreads * W) {
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

void swiglu(Element type, const void* gate, const void* up, void* y, int64_t count, Stream stream) {
  with_width(type, count, [&]<class T, int W>(T, std::integral_constant<int, W>) {
    swiglu_forward<T, W><<<blocks_for(count, kThreads * W), kThreads, 0, stream>>>(
        static_cast<const T*>(gate), static_cast<const T*>(up), static_cast<T*>(y), count);
  });
  check_launch("swiglu");
}

void swiglu_backward(Element type, const void* dy, const void* gate, const void* up, void* d_gate, void* d_up,
                     int64_t rows, int64_t width, int64_t step, Stream stream) {
  with_width(type, width, [&]<class T, int W>(T, std::integral_constant<int, W>) {
    swiglu_gradients<T, W><<<blocks_for(rows * width, kThreads * W), kThreads, 0, stream>>>(
        static_cast<const T*>(dy), static_cast<const T*>(gate), static_cast<const T*>(up), static_cast<T*>(d_gate),
        static_cast<T*>(d_up), rows * width, static_cast<unsigned>(width / W), step);
  });
  check_launch("swiglu_backward");
}

void part_sums(Element type, const void* partial, void* sums, int64_t parts, int64_t width, Stream stream) {
  with_type(type, [&]<class T>(T) {
    add_parts<T><<<blocks_for(width, kSummed), kThreads, 0, stream>>>(static_cast<const Acc<T>*>(partial),
                                                                      static_cast<T*>(sums), parts, width);
  });
  check_launch("part_sums");
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
