#include "core/ops/cuda/gate.cuh"
#include "core/ops/cuda/norm_kernels.h"
#include "core/ops/cuda/row_sum.cuh"

namespace flashmorph::cuda {
namespace {

// The rows of a block: each has a power of two of neighbouring threads, within a warp where they have few vectors each.
struct RowGroup {
  int threads;  // of one row
  int rows;     // of one block

  static RowGroup of(int64_t vectors) {
    const int most = vectors <= 4 * 32 ? 32 : kThreads;
    int threads = 1;
    while (threads < vectors && threads < most) threads *= 2;
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

// 1 / sqrt(mean of x^2 + epsilon) of this thread's row, whose vectors are read(i), on each of its threads. Every thread
// of the block calls it.
template <class A, int W, class Read>
__device__ A inverse_rms_of(const Read& read, int64_t width, A epsilon, RowGroup group, const RowPart<W>& part) {
  A squares = 0;
  if (part.here)
    for (int64_t i = part.first; i < width; i += part.step) {
      const auto values = read(i);
#pragma unroll
      for (int w = 0; w < W; ++w) squares += to<A>(values.value[w]) * to<A>(values.value[w]);
    }
  return A(1) / sqrt(row_sum(squares, group.threads) / static_cast<A>(width) + epsilon);
}

// y of x, or with `added` of x + added, which goes to `sum`. What is read again is near by then.
template <class T, int W>
__global__ void rms_norm_rows(const T* x, const T* added, const T* weight, T* sum, T* y, int64_t rows, int64_t width,
                              Acc<T> epsilon, RowGroup group) {
  using A = Acc<T>;
  const RowPart<W> part(group, rows);
  const int64_t at = part.row * width;
  const auto read = [&](int64_t i) {
    auto values = load<T, W>(x + at + i);
    if (added == nullptr) return values;
    const auto more = load<T, W>(added + at + i);
#pragma unroll
    for (int w = 0; w < W; ++w) values.value[w] = to<T>(to<A>(values.value[w]) + to<A>(more.value[w]));
    return values;
  };
  const A s = inverse_rms_of<A>(read, width, epsilon, group, part);
  if (!part.here) return;
  for (int64_t i = part.first; i < width; i += part.step) {
    const auto values = read(i), scale = load<T, W>(weight + i);
    Vector<T, W> out;
#pragma unroll
    for (int w = 0; w < W; ++w) out.value[w] = to<T>(to<A>(values.value[w]) * s * to<A>(scale.value[w]));
    store<T, W>(y + at + i, out);
    if (added != nullptr) store<T, W>(sum + at + i, values);
  }
}

// A row is one token's head.
template <class T, int W>
__global__ void gated_norm_rows(const T* x, const T* weight, const T* gate, T* y, int64_t rows, int64_t heads,
                                int64_t width, Acc<T> epsilon, bool swish, RowGroup group) {
  using A = Acc<T>;
  const RowPart<W> part(group, rows);
  const auto [row, first, step, here] = part;
  x += row * width;
  const A s = inverse_rms_of<A>([&](int64_t i) { return load<T, W>(x + i); }, width, epsilon, group, part);
  if (!here) return;
  weight += row % heads * width;
  for (int64_t i = first; i < width; i += step) {
    const auto values = load<T, W>(x + i), scale = load<T, W>(weight + i), gates = load<T, W>(gate + row * width + i);
    Vector<T, W> out;
#pragma unroll
    for (int w = 0; w < W; ++w)
      out.value[w] =
          to<T>(to<A>(values.value[w]) * s * to<A>(scale.value[w]) * opened<T>(to<A>(gates.value[w]), swish));
    store<T, W>(y + row * width + i, out);
  }
}

// With u = dy w f(gate): dx = s u - x s^3 / width <u, x> + d_sum, unless null;  d_gate = dy w x s f'(gate);  dw = sum
// of dy x s f(gate) over tokens; f = 1 without a gate. A block has one head and every gridDim.x-th group of tokens, and
// of the weight's gradient one part. A thread adds up its `columns` in shared memory, the block's threads are added in
// a fixed order.
template <class T, int W, bool kGated>
__global__ void norm_gradients(const T* dy, const T* x, const T* weight, const T* gate, const T* d_sum, T* dx,
                               T* d_gate, Acc<T>* partial, int64_t tokens, int64_t heads, int64_t width,
                               int64_t columns, Acc<T> epsilon, bool swish, RowGroup group) {
  using A = Acc<T>;
  extern __shared__ double shared[];
  A* const sums = reinterpret_cast<A*>(shared);  // [columns, threads]
  const int64_t head = blockIdx.y, first = threadIdx.x % group.threads * W, step = group.threads * W;
  weight += head * width;
  if (partial != nullptr)
    for (int64_t i = 0; i < columns; ++i) sums[i * kThreads + threadIdx.x] = 0;
  for (int64_t start = int64_t{blockIdx.x} * group.rows; start < tokens; start += int64_t{gridDim.x} * group.rows) {
    const int64_t token = start + threadIdx.x / group.threads, at = (token * heads + head) * width;
    const bool here = token < tokens;
    A squares = 0, along = 0;
    if (here)
      for (int64_t i = first; i < width; i += step) {
        const auto values = load<T, W>(x + at + i), upstream = load<T, W>(dy + at + i), scale = load<T, W>(weight + i);
        Vector<T, W> gates = {};
        if constexpr (kGated) gates = load<T, W>(gate + at + i);
#pragma unroll
        for (int w = 0; w < W; ++w) {
          const A value = to<A>(values.value[w]), f = kGated ? opened<T>(to<A>(gates.value[w]), swish) : A(1);
          squares += value * value;
          along += to<A>(upstream.value[w]) * to<A>(scale.value[w]) * f * value;
        }
      }
    const A s = A(1) / sqrt(row_sum(squares, group.threads) / static_cast<A>(width) + epsilon);
    along = row_sum(along, group.threads) * s * s * s / static_cast<A>(width);
    if (!here) continue;
    A* own = sums + threadIdx.x;
    for (int64_t i = first; i < width; i += step) {
      const auto values = load<T, W>(x + at + i), upstream = load<T, W>(dy + at + i), scale = load<T, W>(weight + i);
      Vector<T, W> gates = {}, more = {}, to_x, to_gate;
      if constexpr (kGated)
        gates = load<T, W>(gate + at + i);
      else if (d_sum != nullptr)
        more = load<T, W>(d_sum + at + i);
#pragma unroll
      for (int w = 0; w < W; ++w, own += kThreads) {
        const A value = to<A>(values.value[w]), g = to<A>(gates.value[w]), f = kGated ? opened<T>(g, swish) : A(1);
        const A d = to<A>(upstream.value[w]), weighted = d * to<A>(scale.value[w]);
        to_x.value[w] = to<T>(s * weighted * f - value * along + to<A>(more.value[w]));
        if constexpr (kGated) to_gate.value[w] = to<T>(weighted * value * s * opened_slope<T>(g, swish));
        if (partial != nullptr) *own += d * value * s * f;
      }
      store<T, W>(dx + at + i, to_x);
      if constexpr (kGated) store<T, W>(d_gate + at + i, to_gate);
    }
  }
  if (partial == nullptr) return;
  __syncthreads();
  for (int64_t column = threadIdx.x; column < width; column += kThreads) {
    const int64_t vector = column / W, of_thread = vector / group.threads * W + column % W;
    A sum = 0;
    for (int row = 0; row < group.rows; ++row)
      sum += sums[of_thread * kThreads + row * group.threads + vector % group.threads];
    partial[(blockIdx.x * heads + head) * width + column] = sum;
  }
}

template <bool kGated>
void start_gradients(Element type, const void* dy, const void* x, const void* weight, const void* gate,
                     const void* d_sum, void* dx, void* d_gate, void* partial, int64_t parts, int64_t tokens,
                     int64_t heads, int64_t width, double epsilon, bool swish, Stream stream) {
  with_width(type, width, [&]<class T, int W>(T, std::integral_constant<int, W>) {
    const RowGroup group = RowGroup::of(width / W);
    const int64_t columns = (width + group.threads * W - 1) / (group.threads * W) * W;
    const size_t bytes = partial == nullptr ? 0 : columns * kThreads * sizeof(Acc<T>);
    const auto kernel = norm_gradients<T, W, kGated>;
    allow_shared_memory(kernel, bytes);
    const unsigned blocks = partial == nullptr ? blocks_for(tokens, group.rows) : static_cast<unsigned>(parts);
    kernel<<<dim3(blocks, static_cast<unsigned>(heads)), kThreads, bytes, stream>>>(
        static_cast<const T*>(dy), static_cast<const T*>(x), static_cast<const T*>(weight), static_cast<const T*>(gate),
        static_cast<const T*>(d_sum), static_cast<T*>(dx), static_cast<T*>(d_gate), static_cast<Acc<T>*>(partial),
        tokens, heads, width, columns, static_cast<Acc<T>>(epsilon), swish, group);
  });
}

}  // namespace

void rms_norm(Element type, const void* x, const void* added, const void* weight, void* sum, void* y, int64_t rows,
              int64_t width, double epsilon, Stream stream) {
  with_width(type, width, [&]<class T, int W>(T, std::integral_constant<int, W>) {
    const RowGroup group = RowGroup::of(width / W);
    rms_norm_rows<T, W><<<blocks_for(rows, group.rows), kThreads, 0, stream>>>(
        static_cast<const T*>(x), static_cast<const T*>(added), static_cast<const T*>(weight), static_cast<T*>(sum),
        static_cast<T*>(y), rows, width, static_cast<Acc<T>>(epsilon), group);
  });
  check_launch("rms_norm");
}

void rms_norm_backward(Element type, const void* dy, const void* x, const void* weight, const void* d_sum, void* dx,
                       void* partial, int64_t parts, int64_t rows, int64_t width, double epsilon, Stream stream) {
  start_gradients<false>(type, dy, x, weight, /*gate=*/nullptr, d_sum, dx, /*d_gate=*/nullptr, partial, parts, rows,
                         /*heads=*/1, width, epsilon, /*swish=*/false, stream);
  check_launch("rms_norm_backward");
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
                         void* d_gate, void* partial, int64_t parts, int64_t tokens, int64_t heads, int64_t width,
                         double epsilon, bool swish, Stream stream) {
  start_gradients<true>(type, dy, x, weight, gate, /*d_sum=*/nullptr, dx, d_gate, partial, parts, tokens, heads, width,
                        epsilon, swish, stream);
  check_launch("gated_norm_backward");
}

}  // namespace flashmorph::cuda
