#include "core/ops/cuda/delta_chunk.cuh"
#include "core/ops/cuda/substitution.cuh"

// A chunk before the walks: its triangle's inverse, and the factors and scores made with it.

namespace flashmorph::cuda {
namespace {

constexpr int kThreads = 256;
constexpr float kForgottenGate = -750.0f;  // e to that is 0; a bound keeps -inf out of differences

// The rows of a tile in shared memory, times factor(row), to rows of a dense matrix.
template <int kWidth, class Factor>
__device__ __forceinline__ void store_scaled(const Half* tile, void* matrix, int first_thread, const Factor& factor) {
  for (int n = threadIdx.x - first_thread; n < kTokens * kWidth / 8; n += kThreads - first_thread) {
    const int row = n / (kWidth / 8), unit = n % (kWidth / 8) * 8;
    auto values = load<uint32_t, 4>(reinterpret_cast<const uint32_t*>(tile + row * (kWidth + kPad) + unit));
    const float f = factor(row);
#pragma unroll
    for (uint32_t& pair : values.value) pair = scaled(pair, f, f);
    store<uint32_t, 4>(reinterpret_cast<uint32_t*>(static_cast<Half*>(matrix) + row * kWidth + unit), values);
  }
}

template <int K, int V>
struct ChunkMemory {
  static constexpr int kRow = K + kPad, kValueRow = V + kPad;
  Half q[kTokens * kRow], k[kTokens * kRow], v[kTokens * kValueRow];
  Half inverse[kTokens * kPairRow], scores[kTokens * kPairRow];
  alignas(16) float above[kTokens * kTokens], found[kTokens * kTokens];
  double b[kTokens];
  float g[kTokens], beta[kTokens];
};

// blockIdx.x: a chunk and head. A warp has 16 tokens and half of the columns of a product.
template <int K, int V>
__global__ void __launch_bounds__(kThreads, 2)
    prepare_chunk(DeltaChunkShape shape, Rows q, Rows k, Rows v, const float* g, const float* beta, DeltaChunks out) {
  extern __shared__ __align__(16) unsigned char shared[];
  using M = ChunkMemory<K, V>;
  M& memory = *reinterpret_cast<M*>(shared);
  constexpr int kRow = M::kRow, kValueRow = M::kValueRow, kLast = kTokens - 1;
  const ChunkOfHead matrix(shape);
  matrix.fetch<K>(memory.q, q, kThreads);
  matrix.fetch<K>(memory.k, k, kThreads);
  matrix.fetch<V>(memory.v, v, kThreads);
  const int own = threadIdx.x;
  if (own < kTokens) {
    const bool present = own < matrix.length;
    const float gate = present ? g[matrix.row(own)] : 0.0f;
    memory.g[own] = gate < kForgottenGate ? kForgottenGate : gate;
    memory.beta[own] = present ? beta[matrix.row(own)] : 0.0f;
    out.beta_NHC[matrix.index * kTokens + own] = memory.beta[own];
  }
  for (int n = threadIdx.x; n < kTokens * kPairRow; n += kThreads) memory.scores[n] = __float2bfloat16_rn(0.0f);
  for (int n = threadIdx.x; n < kTokens * kTokens; n += kThreads) memory.above[n] = 0.0f;
  await_copies();
  __syncthreads();
  if (own < kTokens) {
    double sum = 0.0;
    for (int i = 0; i <= own; ++i) sum += static_cast<double>(memory.g[i]);
    memory.b[own] = out.b_NHC[matrix.index * kTokens + own] = sum;
    if (own == kLast) out.whole_NH[matrix.index] = expf(static_cast<float>(sum));
  }
  __syncthreads();

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, block = warp % kBlocks, half = warp / kBlocks;
  const float scale = static_cast<float>(shape.scale);
#pragma unroll 1
  for (int other = 2 * half; other < 2 * half + 2; ++other) {
    if (other > block) continue;
    SumTile qk = {}, kk = {};
    add_row_products<K>(qk, memory.q + block * 16 * kRow, memory.k + other * 16 * kRow);
    add_row_products<K>(kk, memory.k + block * 16 * kRow, memory.k + other * 16 * kRow);
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      const int i = block * 16 + lane / 4 + e / 2 % 2 * 8, j = other * 16 + e / 4 * 8 + lane % 4 * 2 + e % 2;
      if (j > i) continue;
      const float gam = expf(static_cast<float>(memory.b[i] - memory.b[j]));
      memory.scores[i * kPairRow + j] = __float2bfloat16_rn(scale * gam * qk.sums[e / 4][e % 4]);
      if (j < i) memory.above[j * kTokens + i] = memory.beta[i] * gam * kk.sums[e / 4][e % 4];
    }
  }
  const auto gam = [&](int row) { return expf(static_cast<float>(memory.b[row])); };
  const auto matrix_of = [&](void* x, int width) { return static_cast<Half*>(x) + matrix.index * kTokens * width; };
  store_scaled<K>(memory.k, matrix_of(out.k_tail_NHCK, K), 0,
                  [&](int row) { return expf(static_cast<float>(memory.b[kLast] - memory.b[row])); });
  store_scaled<K>(memory.q, matrix_of(out.q_reach_NHCK, K), 0, [&](int row) { return scale * gam(row); });
  __syncthreads();

  if (own < kTokens) {
    substitute(memory.above, kTokens, memory.found, kTokens, own);
  } else {  // meanwhile: the products' right factors, over q and v
    for (int n = own - kTokens; n < kTokens * K / 2; n += kThreads - kTokens) {
      const int row = n / (K / 2), at = row * kRow + n % (K / 2) * 2;
      const float f = -memory.beta[row] * gam(row);
      *reinterpret_cast<uint32_t*>(memory.q + at) = scaled(*reinterpret_cast<const uint32_t*>(memory.k + at), f, f);
    }
    for (int n = own - kTokens; n < kTokens * V / 2; n += kThreads - kTokens) {
      const int row = n / (V / 2), at = row * kValueRow + n % (V / 2) * 2;
      uint32_t& pair = *reinterpret_cast<uint32_t*>(memory.v + at);
      pair = scaled(pair, memory.beta[row], memory.beta[row]);
    }
  }
  __syncthreads();
  for (int n = threadIdx.x; n < kTokens * kTokens / 2; n += kThreads) {
    const int row = n / (kTokens / 2), column = n % (kTokens / 2) * 2;
    const float* from = memory.found + row * kTokens + column;
    *reinterpret_cast<uint32_t*>(memory.inverse + row * kPairRow + column) = packed(from[0], from[1]);
  }
  __syncthreads();

  SumTile gone[K / 32] = {}, added[V / 32] = {};
#pragma unroll
  for (int other = 0; other < kBlocks; ++other)
    if (other <= block) {
      const LeftTile<false> inverse(memory.inverse + block * 16 * kPairRow + other * 16, kPairRow);
#pragma unroll
      for (int n = 0; n < K / 32; ++n)
        gone[n].add(inverse, RightTile<>(memory.q + other * 16 * kRow + half * (K / 2) + n * 16, kRow));
#pragma unroll
      for (int n = 0; n < V / 32; ++n)
        added[n].add(inverse, RightTile<>(memory.v + other * 16 * kValueRow + half * (V / 2) + n * 16, kValueRow));
    }
#pragma unroll
  for (int n = 0; n < K / 32; ++n)  // over k, which nobody reads any more
    store_tile(gone[n], memory.k + block * 16 * kRow + half * (K / 2) + n * 16, kRow);
#pragma unroll
  for (int n = 0; n < V / 32; ++n)
#pragma unroll
    for (int part = 0; part < 4; ++part) {
      const int row = block * 16 + lane / 4 + part % 2 * 8,
                column = half * (V / 2) + n * 16 + part / 2 * 8 + lane % 4 * 2;
      const float* const pair = &added[n].sums[part / 2][part % 2 * 2];
      store<float, 2>(out.added_NHCV + (matrix.index * kTokens + row) * V + column, {{pair[0], pair[1]}});
    }
  __syncthreads();
  const auto one = [](int) { return 1.0f; };
  store_scaled<K>(memory.k, matrix_of(out.k_gone_NHCK, K), 0, one);
  for (int n = threadIdx.x; n < kTokens * kTokens / 8; n += kThreads) {
    const int at = n / (kTokens / 8) * kPairRow + n % (kTokens / 8) * 8;
    store<Half, 8>(matrix_of(out.inverse_NHCC, kTokens) + n * 8, load<Half, 8>(memory.inverse + at));
    store<Half, 8>(matrix_of(out.scores_NHCC, kTokens) + n * 8, load<Half, 8>(memory.scores + at));
  }
}

template <int K, int V>
void prepare(const DeltaChunkShape& shape, const Rows& q, const Rows& k, const Rows& v, const float* g,
             const float* beta, const DeltaChunks& chunks, Stream stream) {
  allow_shared_memory(prepare_chunk<K, V>, sizeof(ChunkMemory<K, V>));
  prepare_chunk<K, V>
      <<<blocks_of(shape), kThreads, sizeof(ChunkMemory<K, V>), stream>>>(shape, q, k, v, g, beta, chunks);
}

}  // namespace

void delta_chunks(const DeltaChunkShape& shape, const Rows& q, const Rows& k, const Rows& v, const float* g_TH,
                  const float* beta_TH, const DeltaChunks& chunks, Stream stream) {
  const auto run = shape.key_dim == 64 ? (shape.value_dim == 64 ? prepare<64, 64> : prepare<64, 128>)
                                       : (shape.value_dim == 64 ? prepare<128, 64> : prepare<128, 128>);
  run(shape, q, k, v, g_TH, beta_TH, chunks, stream);
  check_launch("delta_chunks");
}

}  // namespace flashmorph::cuda
