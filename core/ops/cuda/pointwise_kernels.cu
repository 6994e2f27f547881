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

// y = [x1 cos1 - x2 sin1, x2 cos2 + x1 sin2], back: each half takes the other's sine, negative. A thread has W places
// of the first half and the same of the second.
template <class T, int W>
__global__ void rotate_heads(const T* x, const Acc<T>* cos, const Acc<T>* sin, T* y, int64_t count, int64_t period,
                             int64_t heads, int64_t half, bool back) {
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
    const A of_b = back ? -sin2.value[w] : sin1.value[w], of_a = back ? -sin1.value[w] : sin2.value[w];
    y1.value[w] = to<T>(a * cos1.value[w] - b * of_b);
    y2.value[w] = to<T>(b * cos2.value[w] + a * of_a);
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
                     int64_t count, Stream stream) {
  with_width(type, count, [&]<class T, int W>(T, std::integral_constant<int, W>) {
    swiglu_gradients<T, W><<<blocks_for(count, kThreads * W), kThreads, 0, stream>>>(
        static_cast<const T*>(dy), static_cast<const T*>(gate), static_cast<const T*>(up), static_cast<T*>(d_gate),
        static_cast<T*>(d_up), count);
  });
  check_launch("swiglu_backward");
}

void rotate(Element type, const void* x, const void* cos, const void* sin, void* y, int64_t tokens, int64_t period,
            int64_t heads, int64_t size, bool back, Stream stream) {
  const int64_t half = size / 2, count = tokens * heads * half;
  with_type(type, [&](auto t) {
    using T = decltype(t);
    constexpr int kAngles = 16 / sizeof(Acc<T>);  // both tables and heads in accesses of 16 bytes at most
    const auto launch = [&]<int W>(std::integral_constant<int, W>) {
      rotate_heads<T, W><<<blocks_for(count, kThreads * W), kThreads, 0, stream>>>(
          static_cast<const T*>(x), static_cast<const Acc<T>*>(cos), static_cast<const Acc<T>*>(sin),
          static_cast<T*>(y), count, period, heads, half, back);
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
