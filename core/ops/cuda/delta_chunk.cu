#include "core/ops/cuda/delta_chunk.cuh"
#include "core/ops/cuda/substitution.cuh"
#include "core/ops/cuda/warpgroup.cuh"

// A chunk before the walks: its triangle's inverse, and the factors and scores made with it.

namespace flashmorph::cuda {
namespace {

constexpr int kThreads = 256;
constexpr float kForgottenGate = -750.0f;  // e to that is 0; a bound keeps -inf out of differences

// The rows of shared memory, times factor(row), to a matrix in tiles.
template <int kWidth, class Factor>
__device__ __forceinline__ void store_tiles(const Half* rows, void* matrices, int64_t number, const Factor& factor) {
  Half* const matrix = static_cast<Half*>(matrices) + number * kTokens * kWidth;
  for (int n = threadIdx.x; n < kTokens * kWidth / 8; n += kThreads) {
    const int tile = n / (kTokens * 8), row = n / 8 % kTokens, unit = n % 8 ^ row % 8;
    auto values = load<uint32_t, 4>(
        reinterpret_cast<const uint32_t*>(rows + row * (kWidth + kPad) + tile * kTileSide + unit * 8));
    const float f = factor(row);
#pragma unroll
    for (uint32_t& pair : values.value) pair = scaled(pair, f, f);
    store<uint32_t, 4>(reinterpret_cast<uint32_t*>(matrix + n * 8), values);
  }
}

// By a warp: b_i = g_1 + .. + g_i.
__device__ __forceinline__ void add_up(const float* g, double* b) {
  const int lane = threadIdx.x % 32;
  const double first = g[lane * 2], both = first + static_cast<double>(g[lane * 2 + 1]);
  double sum = both;
#pragma unroll
  for (int apart = 1; apart < 32; apart *= 2) {
    const double more = __shfl_up_sync(0xffffffffu, sum, apart);
    if (lane >= apart) sum += more;
  }
  b[lane * 2] = sum - both + first;
  b[lane * 2 + 1] = sum;
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

// blockIdx.x: a chunk and head.
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
  for (int n = threadIdx.x * 8; n < kTokens * kPairRow; n += kThreads * 8) store<Half, 8>(memory.scores + n, {});
  for (int n = threadIdx.x * 4; n < kTokens * kTokens; n += kThreads * 4) store<float, 4>(memory.above + n, {});
  await_copies();
  __syncthreads();
  if (own < 32) add_up(memory.g, memory.b);
  __syncthreads();
  if (own < kTokens) out.b_NHC[matrix.index * kTokens + own] = memory.b[own];
  if (own == kLast) out.whole_NH[matrix.index] = expf(static_cast<float>(memory.b[kLast]));

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
  store_tiles<K>(memory.k, out.k_tail_NHCK, matrix.index,
                 [&](int row) { return expf(static_cast<float>(memory.b[kLast] - memory.b[row])); });
  store_tiles<K>(memory.q, out.q_reach_NHCK, matrix.index, [&](int row) { return scale * gam(row); });
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

  constexpr int kWarps = kThreads / 32, kKeyWarps = K / 16, kValueWarps = V / 16;  // that share a block of 16 tokens
  const int keys = warp % kKeyWarps * 16, values = warp % kValueWarps;
#pragma unroll
  for (int i = warp / kKeyWarps; i < kBlocks; i += kWarps / kKeyWarps) {
    SumTile gone = {};
    for (int j = 0; j <= i; ++j)
      gone.add(LeftTile<false>(memory.inverse + i * 16 * kPairRow + j * 16, kPairRow),
               RightTile<>(memory.q + j * 16 * kRow + keys, kRow));
    store_tile(gone, memory.k + i * 16 * kRow + keys, kRow);  // over k, which nobody reads any more
  }
#pragma unroll
  for (int i = warp / kValueWarps; i < kBlocks; i += kWarps / kValueWarps) {
    SumTile added = {};  // rows are values
    for (int j = 0; j <= i; ++j)
      added.add(LeftTile<true>(memory.v + j * 16 * kValueRow + values * 16, kValueRow),
                RightTile<true>(memory.inverse + i * 16 * kPairRow + j * 16, kPairRow));
    float* const sums = out.added_NHVC + (matrix.index * V + values / 4 * kTileSide) * kTokens;
#pragma unroll
    for (int half = 0; half < 2; ++half)
      store<float, 4>(sums + ((i * 2 + half) * kTileSide * 2 + values % 4 * 32 + lane) * 4,
                      reinterpret_cast<const Vector<float, 4>&>(added.sums[half]));
  }
  __syncthreads();
  const auto one = [](int) { return 1.0f; };
  store_tiles<K>(memory.k, out.k_gone_NHCK, matrix.index, one);
  store_tiles<kTokens>(memory.scores, out.scores_NHCC, matrix.index, one);
  for (int n = threadIdx.x; n < kTokens * kTokens / 8; n += kThreads)
    store<Half, 8>(static_cast<Half*>(out.inverse_NHCC) + matrix.index * kTokens * kTokens + n * 8,
                   load<Half, 8>(memory.inverse + n / (kTokens / 8) * kPairRow + n % (kTokens / 8) * 8));
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
