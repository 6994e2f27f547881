#include "core/ops/cuda/gated_delta_kernels.h"
#include "core/ops/cuda/launch.h"
#include "core/ops/cuda/substitution.cuh"

namespace flashmorph::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

template <class A>
__device__ __forceinline__ A decay_between(const double* b, int i, int j) {
  return exponential(static_cast<A>(b[i] - b[j]));
}

template <class T, int W>
__global__ void scale_row_values(const T* x, const Acc<T>* factor, T* y, int64_t count, int64_t width) {
  const int64_t at = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * W;
  if (at >= count) return;
  const Acc<T> f = factor[at / width];
  auto values = load<T, W>(x + at);
#pragma unroll
  for (int w = 0; w < W; ++w) values.value[w] = to<T>(to<Acc<T>>(values.value[w]) * f);
  store<T, W>(y + at, values);
}

// In the kernels below a block has one chunk and head.
template <class T>
__global__ void decay_pair_values(const Acc<T>* scores, const double* b, Acc<T> factor, T* decayed, int size) {
  using A = Acc<T>;
  const int64_t start = int64_t{blockIdx.x} * size * size;
  b += int64_t{blockIdx.x} * size;
  for (int at = threadIdx.x; at < size * size; at += kThreads) {
    const int i = at / size, j = at % size;
    decayed[start + at] = to<T>(j <= i ? factor * decay_between<A>(b, i, j) * scores[start + at] : A(0));
  }
}

// kk is symmetric.
template <class T>
__global__ void __launch_bounds__(kThreads)
    invert_triangles(const Acc<T>* kk, const double* b, const Acc<T>* beta, T* inverse, int size, int padded) {
  using A = Acc<T>;
  extern __shared__ __align__(16) unsigned char memory[];
  A* above = reinterpret_cast<A*>(memory);  // M^T, [padded, padded]: above[m, i] = M_im
  A* found = above + padded * padded;       // the inverse, [padded, size]
  const int64_t start = int64_t{blockIdx.x} * size * size;
  b += int64_t{blockIdx.x} * size;
  beta += int64_t{blockIdx.x} * size;
  for (int at = threadIdx.x; at < padded * padded; at += kThreads) {
    const int m = at / padded, i = at % padded;
    above[at] = m < i && i < size ? beta[i] * decay_between<A>(b, i, m) * kk[start + m * size + i] : A(0);
  }
  __syncthreads();
  if (threadIdx.x < size) substitute(above, padded, found, size, threadIdx.x);
  __syncthreads();
  for (int at = threadIdx.x; at < size * size; at += kThreads) inverse[start + at] = to<T>(found[at]);
}

template <class T>
__global__ void __launch_bounds__(kThreads) pair_gradients(DeltaPairs p, int size) {
  using A = Acc<T>;
  extern __shared__ __align__(16) unsigned char memory[];
  const int stride = size + 1;
  A* passing = reinterpret_cast<A*>(memory);  // [size, stride]: what token i's decay from j carries of the loss
  A* own = passing + size * stride;           // [size, stride]: D_ij kk_ij
  const int64_t start = int64_t{blockIdx.x} * size * size;
  const auto of = [&](const void* x) { return static_cast<const A*>(x) + start; };
  const A *reads = of(p.reads), *solution = of(p.solution), *qk = of(p.qk), *kk = of(p.kk);
  const A* beta = static_cast<const A*>(p.beta_GC) + int64_t{blockIdx.x} * size;
  const double* b = p.b_GC + int64_t{blockIdx.x} * size;
  T *d_scores = static_cast<T*>(p.d_scores) + start, *d_products = static_cast<T*>(p.d_products) + start;

  for (int at = threadIdx.x; at < size * size; at += kThreads) {
    const int i = at / size, j = at % size;
    const A gam = j <= i ? decay_between<A>(b, i, j) : A(0);
    const A d_score = j <= i ? static_cast<A>(p.factor) * gam * reads[at] : A(0);
    const A D = j < i ? -gam * solution[at] : A(0), d_product = j < i ? beta[i] * D : A(0);
    d_scores[at] = to<T>(d_score);
    if (j <= i) d_products[at] = d_products[j * size + i] = to<T>(d_product);
    passing[i * stride + j] = j < i ? d_score * qk[at] + d_product * kk[at] : A(0);
    own[i * stride + j] = j < i ? D * kk[at] : A(0);
  }
  __syncthreads();
  const int m = threadIdx.x;
  if (m < size) {
    A sum = 0, before = 0;
    for (int j = 0; j < size; ++j) {
      sum += own[m * stride + j];
      before += passing[m * stride + j];
      passing[m * stride + j] = before;
    }
    static_cast<A*>(p.d_beta_GC)[int64_t{blockIdx.x} * size + m] = sum;
  }
  __syncthreads();
  if (m < size) {
    A sum = 0;
    for (int i = m; m > 0 && i < size; ++i) sum += passing[i * stride + m - 1];
    static_cast<A*>(p.across_GC)[int64_t{blockIdx.x} * size + m] = sum;
  }
}

// A warp has a token at a time.
template <class T, int W>
__global__ void __launch_bounds__(kThreads) token_gradients(DeltaTokens t, int size, int key_size, int value_size) {
  using A = Acc<T>;
  __shared__ A reading[kMostDeltaTokens], writing[kMostDeltaTokens], carried[kWarps];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const auto exact = [](const void* x, int64_t at) { return static_cast<const A*>(x) + at; };
  const auto operand = [](const void* x, int64_t at) { return static_cast<const T*>(x) + at; };

  for (int i = warp; i < size; i += kWarps) {
    const int64_t token = int64_t{blockIdx.x} * size + i;
    const A reach = *exact(t.reach_GC, token), tail = *exact(t.tail_GC, token), beta = *exact(t.beta_GC, token);
    const A gam = *exact(t.gam_GC, token);
    A to_reads = 0, to_writes = 0, k_read = 0, y_v = 0;
    for (int c = lane * W; c < key_size; c += 32 * W) {
      const int64_t at = token * key_size + c;
      const auto q = load<T, W>(operand(t.q_GCK, at)), k = load<T, W>(operand(t.k_GCK, at));
      const auto through_q = load<A, W>(exact(t.through_q_GCK, at)), through_k = load<A, W>(exact(t.through_k_GCK, at)),
                 from_state = load<A, W>(exact(t.from_state_GCK, at));
      Vector<T, W> dq, dk;
#pragma unroll
      for (int w = 0; w < W; ++w) {
        const A through = reach * through_q.value[w], gone = gam * through_k.value[w],
                kept = tail * from_state.value[w];
        dq.value[w] = to<T>(through);
        dk.value[w] = to<T>(kept - beta * gone);
        to_reads += to<A>(q.value[w]) * through;
        k_read += to<A>(k.value[w]) * gone;
        to_writes += to<A>(k.value[w]) * kept;
      }
      store<T, W>(static_cast<T*>(t.dq_GCK) + at, dq);
      store<T, W>(static_cast<T*>(t.dk_GCK) + at, dk);
    }
    for (int c = lane * W; c < value_size; c += 32 * W) {
      const int64_t at = token * value_size + c;
      const auto y = load<T, W>(operand(t.y_GCV, at)), v = load<T, W>(operand(t.v_GCV, at));
      Vector<T, W> dv;
#pragma unroll
      for (int w = 0; w < W; ++w) {
        dv.value[w] = to<T>(beta * to<A>(y.value[w]));
        y_v += to<A>(y.value[w]) * to<A>(v.value[w]);
      }
      store<T, W>(static_cast<T*>(t.dv_GCV) + at, dv);
    }
    to_reads = warp_sum(to_reads), to_writes = warp_sum(to_writes), k_read = warp_sum(k_read), y_v = warp_sum(y_v);
    if (lane == 0) {
      reading[i] = to_reads - beta * k_read;
      writing[i] = to_writes;
      static_cast<A*>(t.d_beta_GC)[token] += y_v - k_read;
    }
  }

  A product = 0;
  const int state = key_size * value_size;
  for (int at = threadIdx.x * W; at < state; at += kThreads * W) {
    const auto before = load<T, W>(operand(t.before_GKV, int64_t{blockIdx.x} * state + at)),
               d_after = load<T, W>(operand(t.d_after_GKV, int64_t{blockIdx.x} * state + at));
#pragma unroll
    for (int w = 0; w < W; ++w) product += to<A>(before.value[w]) * to<A>(d_after.value[w]);
  }
  product = warp_sum(product);
  if (lane == 0) carried[warp] = product;
  __syncthreads();

  if (const int m = threadIdx.x; m < size) {
    A sum = 0;
    for (int w = 0; w < kWarps; ++w) sum += carried[w];
    sum *= *exact(t.whole_G, blockIdx.x);
    for (int i = m; i < size; ++i) sum += reading[i];
    for (int j = 0; j < m; ++j) sum += writing[j];
    const int64_t token = int64_t{blockIdx.x} * size + m;
    static_cast<A*>(t.dg_GC)[token] = sum + *exact(t.across_GC, token);
  }
}

}  // namespace

void scale_rows(Element type, const void* x, const void* factor, void* y, int64_t rows, int64_t width, Stream stream) {
  with_width(type, width, [&]<class T, int W>(T, std::integral_constant<int, W>) {
    scale_row_values<T, W><<<blocks_for(rows * width, kThreads * W), kThreads, 0, stream>>>(
        static_cast<const T*>(x), static_cast<const Acc<T>*>(factor), static_cast<T*>(y), rows * width, width);
  });
  check_launch("scale_rows");
}

void decay_pairs(Element type, const void* scores, const double* b_GC, double factor, void* decayed, int64_t matrices,
                 int64_t size, Stream stream) {
  with_type(type, [&]<class T>(T) {
    decay_pair_values<T><<<static_cast<unsigned>(matrices), kThreads, 0, stream>>>(
        static_cast<const Acc<T>*>(scores), b_GC, static_cast<Acc<T>>(factor), static_cast<T*>(decayed),
        static_cast<int>(size));
  });
  check_launch("decay_pairs");
}

void delta_inverse(Element type, const void* kk, const double* b_GC, const void* beta, void* inverse, int64_t matrices,
                   int64_t size, Stream stream) {
  with_type(type, [&]<class T>(T) {
    const int64_t padded = (size + kTile - 1) / kTile * kTile;
    const size_t bytes = 2 * padded * padded * sizeof(Acc<T>);
    allow_shared_memory(invert_triangles<T>, bytes);
    invert_triangles<T><<<static_cast<unsigned>(matrices), kThreads, bytes, stream>>>(
        static_cast<const Acc<T>*>(kk), b_GC, static_cast<const Acc<T>*>(beta), static_cast<T*>(inverse),
        static_cast<int>(size), static_cast<int>(padded));
  });
  check_launch("delta_inverse");
}

void delta_pair_gradients(Element type, const DeltaPairs& pairs, int64_t matrices, int64_t size, Stream stream) {
  with_type(type, [&]<class T>(T) {
    const size_t bytes = 2 * size * (size + 1) * sizeof(Acc<T>);
    allow_shared_memory(pair_gradients<T>, bytes);
    pair_gradients<T><<<static_cast<unsigned>(matrices), kThreads, bytes, stream>>>(pairs, static_cast<int>(size));
  });
  check_launch("delta_pair_gradients");
}

void delta_token_gradients(Element type, const DeltaTokens& tokens, int64_t matrices, int64_t size, int64_t key_size,
                           int64_t value_size, Stream stream) {
  with_type(type, [&]<class T>(T) {
    const auto launch = [&]<int W>(std::integral_constant<int, W>) {
      token_gradients<T, W><<<static_cast<unsigned>(matrices), kThreads, 0, stream>>>(
          tokens, static_cast<int>(size), static_cast<int>(key_size), static_cast<int>(value_size));
    };
    constexpr int kBoth = kWide<Acc<T>>;  // as many of either type in one access
    key_size % kBoth == 0 && value_size % kBoth == 0 ? launch(std::integral_constant<int, kBoth>())
                                                     : launch(std::integral_constant<int, 1>());
  });
  check_launch("delta_token_gradients");
}

}  // namespace flashmorph::cuda
