#include "core/ops/cuda/gated_linear_kernels.h"
#include "core/ops/cuda/launch.h"
#include "core/ops/cuda/scan.cuh"

namespace flashmorph::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kSlice = 16;  // channels that a block has in shared memory at once
constexpr int kSide = 16;   // threads along each side of a score tile
constexpr int kEach = kMostGatedTokens / kSide;

// A block has one chunk and head, a thread one channel at a time.
template <class A>
__global__ void gate_channels(const A* q, const A* k, const A* g, double* b, A* q_down, A* k_tail, A* whole,
                              int64_t size, int64_t width) {
  const int64_t start = int64_t{blockIdx.x} * size * width;
  for (int64_t c = threadIdx.x; c < width; c += blockDim.x) {
    double sum = 0.0;
    for (int64_t i = 0; i < size; ++i) {
      const int64_t at = start + i * width + c;
      sum += static_cast<double>(g[at]);
      b[at] = sum;
      q_down[at] = q[at] * exponential(static_cast<A>(sum));
    }
    for (int64_t i = 0; i < size; ++i) {
      const int64_t at = start + i * width + c;
      k_tail[at] = k[at] * exponential(static_cast<A>(sum - b[at]));
    }
    whole[blockIdx.x * width + c] = exponential(static_cast<A>(sum));
  }
}

// The chunk's rows of one slice of channels, zeros beyond both ends.
template <class Number>
__device__ void load_slice(const Number* x, Number (*slice)[kSlice + 1], int64_t size, int64_t width, int64_t first) {
  for (int at = threadIdx.x; at < kMostGatedTokens * kSlice; at += kThreads) {
    const int row = at / kSlice, column = at % kSlice;
    slice[row][column] = row < size && first + column < width ? x[row * width + first + column] : Number(0);
  }
}

template <class A>
__global__ void __launch_bounds__(kThreads)
    gated_score_tiles(const A* q, const A* k, const double* b, A* scores, int64_t size, int64_t width) {
  __shared__ A q_slice[kMostGatedTokens][kSlice + 1], k_slice[kMostGatedTokens][kSlice + 1];
  __shared__ double b_slice[kMostGatedTokens][kSlice + 1];
  const int64_t start = int64_t{blockIdx.x} * size * width;
  const int row = threadIdx.x / kSide, column = threadIdx.x % kSide;
  A sums[kEach][kEach] = {};
  for (int64_t first = 0; first < width; first += kSlice) {
    __syncthreads();
    load_slice(q + start, q_slice, size, width, first);
    load_slice(k + start, k_slice, size, width, first);
    load_slice(b + start, b_slice, size, width, first);
    __syncthreads();
    for (int c = 0; c < kSlice; ++c) {
      A q_here[kEach], k_here[kEach];
      double b_row[kEach], b_column[kEach];
#pragma unroll
      for (int e = 0; e < kEach; ++e) {
        q_here[e] = q_slice[row + kSide * e][c];
        b_row[e] = b_slice[row + kSide * e][c];
        k_here[e] = k_slice[column + kSide * e][c];
        b_column[e] = b_slice[column + kSide * e][c];
      }
#pragma unroll
      for (int i = 0; i < kEach; ++i)
#pragma unroll
        for (int j = 0; j <= i; ++j)
          sums[i][j] += q_here[i] * k_here[j] * exponential(static_cast<A>(fmin(b_row[i] - b_column[j], 0.0)));
    }
  }
  scores += int64_t{blockIdx.x} * size * size;
#pragma unroll
  for (int i = 0; i < kEach; ++i)
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      const int to_row = row + kSide * i, to_column = column + kSide * j;
      if (to_row < size && to_column < size)
        scores[to_row * size + to_column] = to_column <= to_row ? sums[i][j] : A(0);
    }
}

// A block has one chunk and head and, blockIdx.y, one slice of channels; a thread one channel and every sixteenth row.
template <class A>
__global__ void __launch_bounds__(kThreads)
    gated_score_gradients(const A* q, const A* k, const double* b, const A* d_scores, A* dq, A* dk, int64_t size,
                          int64_t width) {
  extern __shared__ unsigned char memory[];
  auto* b_slice = reinterpret_cast<double(*)[kSlice + 1]>(memory);
  auto* q_slice = reinterpret_cast<A(*)[kSlice + 1]>(b_slice + kMostGatedTokens);
  auto* k_slice = q_slice + kMostGatedTokens;
  A* d_tile = reinterpret_cast<A*>(k_slice + kMostGatedTokens);  // [size, size]
  const int64_t start = int64_t{blockIdx.x} * size * width, first = int64_t{blockIdx.y} * kSlice;
  load_slice(q + start, q_slice, size, width, first);
  load_slice(k + start, k_slice, size, width, first);
  load_slice(b + start, b_slice, size, width, first);
  for (int at = threadIdx.x; at < size * size; at += kThreads)
    d_tile[at] = d_scores[int64_t{blockIdx.x} * size * size + at];
  __syncthreads();
  const int c = threadIdx.x % kSlice;
  if (first + c >= width) return;
  for (int m = threadIdx.x / kSlice; m < size; m += kThreads / kSlice) {
    A to_q = 0, to_k = 0;
    const double b_here = b_slice[m][c];
    for (int j = 0; j <= m; ++j)
      to_q += d_tile[m * size + j] * k_slice[j][c] * exponential(static_cast<A>(b_here - b_slice[j][c]));
    for (int i = m; i < size; ++i)
      to_k += d_tile[i * size + m] * q_slice[i][c] * exponential(static_cast<A>(b_slice[i][c] - b_here));
    const int64_t at = start + m * width + first + c;
    dq[at] += to_q;
    dk[at] += to_k;
  }
}

template <class A>
__global__ void gate_gradient_channels(const A* q, const A* dq, const A* k, const A* dk, const A* d_whole, A* dg,
                                       int64_t size, int64_t width) {
  const int64_t start = int64_t{blockIdx.x} * size * width;
  for (int64_t c = threadIdx.x; c < width; c += blockDim.x) {
    A sum = d_whole[blockIdx.x * width + c];
    for (int64_t i = size - 1; i >= 0; --i) {
      const int64_t at = start + i * width + c;
      sum += q[at] * dq[at] - k[at] * dk[at];
      dg[at] = sum;
    }
  }
}

template <class A>
struct ChannelDecay {
  const A* whole_NHK;
  int64_t heads, key_size, value_size;
  __device__ A operator()(int64_t chunk, int64_t head, int64_t entry) const {
    return whole_NHK[(chunk * heads + head) * key_size + entry / value_size];
  }
};

// float or double; these kernels have no shorter form.
template <class Work>
void with_exact_type(Element type, const Work& work) {
  if (type == Element::float64) return work(double());
  if (type == Element::float32) return work(float());
  throw std::invalid_argument("gated linear attention is computed in float32 or float64");
}

unsigned channel_threads(int64_t width) {
  return static_cast<unsigned>(std::min<int64_t>(kThreads, (width + 31) / 32 * 32));
}

}  // namespace

void gate_chunks(Element type, const void* q, const void* k, const void* g, double* b, void* q_down, void* k_tail,
                 void* whole, int64_t chunks_and_heads, int64_t size, int64_t width, Stream stream) {
  with_exact_type(type, [&]<class A>(A) {
    gate_channels<A><<<static_cast<unsigned>(chunks_and_heads), channel_threads(width), 0, stream>>>(
        static_cast<const A*>(q), static_cast<const A*>(k), static_cast<const A*>(g), b, static_cast<A*>(q_down),
        static_cast<A*>(k_tail), static_cast<A*>(whole), size, width);
  });
  check_launch("gate_chunks");
}

void gated_scores(Element type, const void* q, const void* k, const double* b, void* scores, int64_t chunks_and_heads,
                  int64_t size, int64_t width, Stream stream) {
  with_exact_type(type, [&]<class A>(A) {
    gated_score_tiles<A><<<static_cast<unsigned>(chunks_and_heads), kThreads, 0, stream>>>(
        static_cast<const A*>(q), static_cast<const A*>(k), b, static_cast<A*>(scores), size, width);
  });
  check_launch("gated_scores");
}

void gated_scores_backward(Element type, const void* q, const void* k, const double* b, const void* d_scores, void* dq,
                           void* dk, int64_t chunks_and_heads, int64_t size, int64_t width, Stream stream) {
  with_exact_type(type, [&]<class A>(A) {
    const size_t slice = kMostGatedTokens * (kSlice + 1);
    const size_t bytes = slice * sizeof(double) + (2 * slice + size * size) * sizeof(A);
    allow_shared_memory(gated_score_gradients<A>, bytes);
    const dim3 grid(static_cast<unsigned>(chunks_and_heads), blocks_for(width, kSlice));
    gated_score_gradients<A><<<grid, kThreads, bytes, stream>>>(static_cast<const A*>(q), static_cast<const A*>(k), b,
                                                                static_cast<const A*>(d_scores), static_cast<A*>(dq),
                                                                static_cast<A*>(dk), size, width);
  });
  check_launch("gated_scores_backward");
}

void gate_gradients(Element type, const void* q, const void* dq, const void* k, const void* dk, const void* d_whole,
                    void* dg, int64_t chunks_and_heads, int64_t size, int64_t width, Stream stream) {
  with_exact_type(type, [&]<class A>(A) {
    gate_gradient_channels<A><<<static_cast<unsigned>(chunks_and_heads), channel_threads(width), 0, stream>>>(
        static_cast<const A*>(q), static_cast<const A*>(dq), static_cast<const A*>(k), static_cast<const A*>(dk),
        static_cast<const A*>(d_whole), static_cast<A*>(dg), size, width);
  });
  check_launch("gate_gradients");
}

void scan_gated_states(Element type, const void* added, void* state, void* entered, int64_t heads, int64_t key_size,
                       int64_t value_size, const ChunkTable& table, const void* whole_NHK, double factor,
                       bool backwards, Stream stream) {
  with_exact_type(type, [&]<class A>(A) {
    const ChannelDecay<A> shrink{static_cast<const A*>(whole_NHK), heads, key_size, value_size};
    launch_scan<A>(static_cast<const A*>(added), static_cast<A*>(state), static_cast<A*>(entered), heads,
                   key_size * value_size, value_size, table, shrink, static_cast<A>(factor), backwards, stream);
  });
  check_launch("scan_gated_states");
}

}  // namespace flashmorph::cuda
