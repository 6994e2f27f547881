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

// Of a thread's vectors the first ones stay in registers from one pass over the row to the next, all of them unless
// rows are very wide.
constexpr int kHeld = 4;

// work(n, i) for the n-th vector of those that are held, at i of the row; then more(i) for those that are not.
template <class Work, class More>
__device__ __forceinline__ void each_vector(int64_t first, int64_t step, int64_t width, const Work& work,
                                            const More& more) {
#pragma unroll
  for (int n = 0; n < kHeld; ++n)
    if (first + n * step < width) work(n, first + n * step);
  for (int64_t i = first + kHeld * step; i < width; i += step) more(i);
}

template <class T, int W>
__device__ __forceinline__ Acc<T> squares_of(const Vector<T, W>& x) {
  Acc<T> sum = 0;
#pragma unroll
  for (int w = 0; w < W; ++w) sum += to<Acc<T>>(x.value[w]) * to<Acc<T>>(x.value[w]);
  return sum;
}

template <class T, int W>
__device__ __forceinline__ Vector<T, W> plus(const Vector<T, W>& a, const Vector<T, W>& b) {
  Vector<T, W> sum;
#pragma unroll
  for (int w = 0; w < W; ++w) sum.value[w] = to<T>(to<Acc<T>>(a.value[w]) + to<Acc<T>>(b.value[w]));
  return sum;
}

// y of x, or with `added` of x + added, which goes to `sum`.
template <class T, int W>
__global__ void rms_norm_rows(const T* x, const T* added, const T* weight, T* sum, T* y, int64_t rows, int64_t width,
                              Acc<T> epsilon, RowGroup group) {
  using A = Acc<T>;
  const RowPart<W> part(group, rows);
  const auto [row, first, step, here] = part;
  const int64_t at = row * width;
  const auto read = [&](int64_t i) {
    const auto values = load<T, W>(x + at + i);
    if (added == nullptr) return values;
    const auto both = plus(values, load<T, W>(added + at + i));
    store<T, W>(sum + at + i, both);
    return both;
  };
  Vector<T, W> held[kHeld];
  A squares = 0;
  if (here)
    each_vector(
        first, step, width, [&](int n, int64_t i) { held[n] = read(i); },
        [&](int64_t i) { squares += squares_of(read(i)); });
  if (here)
    each_vector(
        first, step, width, [&](int n, int64_t) { squares += squares_of(held[n]); }, [](int64_t) {});
  const A s = A(1) / sqrt(row_sum(squares, group.threads) / static_cast<A>(width) + epsilon);
  if (!here) return;
  const auto write = [&](int64_t i, const Vector<T, W>& values) {
    const auto scale = load<T, W>(weight + i);
    Vector<T, W> out;
#pragma unroll
    for (int w = 0; w < W; ++w) out.value[w] = to<T>(to<A>(values.value[w]) * s * to<A>(scale.value[w]));
    store<T, W>(y + at + i, out);
  };
  const T* const again = added == nullptr ? x : sum;
  each_vector(
      first, step, width, [&](int n, int64_t i) { write(i, held[n]); },
      [&](int64_t i) { write(i, load<T, W>(again + at + i)); });
}

// sigmoid(gate); rounded to bfloat16 afterwards, the processor's own approximations are as good.
template <class T>
__device__ __forceinline__ Acc<T> sigmoid(Acc<T> gate) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>)
    return __fdividef(1.0f, 1.0f + __expf(-gate));
  else
    return Acc<T>(1) / (Acc<T>(1) + exponential(-gate));
}

// A row is one token's head; f(gate) = gate sigmoid(gate) or sigmoid(gate).
template <class T, int W>
__global__ void gated_norm_rows(const T* x, const T* weight, const T* gate, T* y, int64_t rows, int64_t heads,
                                int64_t width, Acc<T> epsilon, bool swish, RowGroup group) {
  using A = Acc<T>;
  const RowPart<W> part(group, rows);
  const auto [row, first, step, here] = part;
  const int64_t at = row * width;
  Vector<T, W> held[kHeld], gates[kHeld];
  A squares = 0;
  if (here)
    each_vector(
        first, step, width,
        [&](int n, int64_t i) {
          held[n] = load<T, W>(x + at + i);
          gates[n] = load<T, W>(gate + at + i);
        },
        [&](int64_t i) { squares += squares_of(load<T, W>(x + at + i)); });
  if (here)
    each_vector(
        first, step, width, [&](int n, int64_t) { squares += squares_of(held[n]); }, [](int64_t) {});
  const A s = A(1) / sqrt(row_sum(squares, group.threads) / static_cast<A>(width) + epsilon);
  if (!here) return;
  weight += row % heads * width;
  const auto write = [&](int64_t i, const Vector<T, W>& values, const Vector<T, W>& opens) {
    const auto scale = load<T, W>(weight + i);
    Vector<T, W> out;
#pragma unroll
    for (int w = 0; w < W; ++w) {
      const A g = to<A>(opens.value[w]), sigma = sigmoid<T>(g);
      out.value[w] = to<T>(to<A>(values.value[w]) * s * to<A>(scale.value[w]) * (swish ? g * sigma : sigma));
    }
    store<T, W>(y + at + i, out);
  };
  each_vector(
      first, step, width, [&](int n, int64_t i) { write(i, held[n], gates[n]); },
      [&](int64_t i) { write(i, load<T, W>(x + at + i), load<T, W>(gate + at + i)); });
}

// What a norm's gradient reads of a row's vector. d_sum: what else pulls on x, without a gate alone.
template <class T, int W, bool kGated>
struct Pulls {
  Vector<T, W> x, dy, gate, d_sum;

  __device__ Pulls() = default;
  __device__ Pulls(const T* from_x, const T* from_dy, const T* from_gate, const T* from_sum, int64_t at)
      : x(load<T, W>(from_x + at)), dy(load<T, W>(from_dy + at)) {
    if constexpr (kGated)
      gate = load<T, W>(from_gate + at);
    else if (from_sum != nullptr)
      d_sum = load<T, W>(from_sum + at);
  }
};

// With u = dy w f(gate): dx = s u - x s^3 / width <u, x> + d_sum;  d_gate = dy w x s f'(gate);  dw = sum of
// dy x s f(gate) over tokens; f = 1 without a gate. A block has one head and every gridDim.x-th group of tokens, and of
// the weight's gradient one part. A thread adds up its `columns` in shared memory, the block's threads are added in a
// fixed order.
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
    const auto add = [&](int64_t i, const Pulls<T, W, kGated>& in) {
      const auto scale = load<T, W>(weight + i);
      squares += squares_of(in.x);
#pragma unroll
      for (int w = 0; w < W; ++w) {
        A f = 1;
        if constexpr (kGated) {
          const A g = to<A>(in.gate.value[w]), sigma = sigmoid<T>(g);
          f = swish ? g * sigma : sigma;
        }
        along += to<A>(in.dy.value[w]) * to<A>(scale.value[w]) * f * to<A>(in.x.value[w]);
      }
    };
    const auto read = [&](int64_t i) { return Pulls<T, W, kGated>(x, dy, gate, d_sum, at + i); };
    Pulls<T, W, kGated> held[kHeld];
    if (here)
      each_vector(
          first, step, width, [&](int n, int64_t i) { held[n] = read(i); }, [&](int64_t i) { add(i, read(i)); });
    if (here)
      each_vector(
          first, step, width, [&](int n, int64_t i) { add(i, held[n]); }, [](int64_t) {});
    const A s = A(1) / sqrt(row_sum(squares, group.threads) / static_cast<A>(width) + epsilon);
    along = row_sum(along, group.threads) * s * s * s / static_cast<A>(width);
    if (!here) continue;
    A* own = sums + threadIdx.x;
    const auto write = [&](int64_t i, const Pulls<T, W, kGated>& in) {
      const auto scale = load<T, W>(weight + i);
      Vector<T, W> to_x, to_gate;
#pragma unroll
      for (int w = 0; w < W; ++w, own += kThreads) {
        const A value = to<A>(in.x.value[w]), d = to<A>(in.dy.value[w]), weighted = d * to<A>(scale.value[w]);
        A f = 1, more = 0;
        if constexpr (kGated) {
          const A g = to<A>(in.gate.value[w]), sigma = sigmoid<T>(g), closed = sigma * (A(1) - sigma);
          f = swish ? g * sigma : sigma;
          to_gate.value[w] = to<T>(weighted * value * s * (swish ? sigma + g * closed : closed));
        } else if (d_sum != nullptr) {
          more = to<A>(in.d_sum.value[w]);
        }
        to_x.value[w] = to<T>(s * weighted * f - value * along + more);
        if (partial != nullptr) *own += d * value * s * f;
      }
      store<T, W>(dx + at + i, to_x);
      if constexpr (kGated) store<T, W>(d_gate + at + i, to_gate);
    };
    each_vector(
        first, step, width, [&](int n, int64_t i) { write(i, held[n]); }, [&](int64_t i) { write(i, read(i)); });
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
