#include "core/ops/cuda/gated_levels.cuh"

// The scores of a chunk's pairs, and what its tokens read of the state and leave in it.

namespace flashmorph::cuda {
namespace {

template <int K>
struct ScoreMemory {
  Half q[kTokens * (K + kPad)], k[kTokens * (K + kPad)], x[kTokens * (K + kPad)];
  Half scores[kTokens * (kTokens + kPad)];
  Decays<K> decays;
};

template <int K>
constexpr int kGateThreads = 4 * K;

// q_down and k_tail; where the decays are mild, what is left of q and k are the factors of the pairs' products.
template <int K>
__device__ __forceinline__ void reach(ScoreMemory<K>& memory, const ChunkOfHead& matrix, bool mild,
                                      const GatedChunks& out) {
  constexpr int kRow = K + kPad, kPairs = K / 2;
  static_assert(kGateThreads<K> % kPairs == 0);
  const Decays<K>& decays = memory.decays;
  const int column = threadIdx.x % kPairs * 2;
  float of_queries[2], of_keys[2], enter[2], leave[2];
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    const float middle = decays.middle_of_chunk(column + e), last = decays.last(column + e);
    of_queries[e] = mild ? middle : 0.0f, of_keys[e] = mild ? middle : last;
    enter[e] = shrunk(of_queries[e]), leave[e] = shrunk(last - of_keys[e]);
  }
#pragma unroll 4
  for (int row = threadIdx.x / kPairs; row < kTokens; row += kGateThreads<K> / kPairs) {
    const int at = row * kRow + column;
    const int64_t to = (matrix.index * kTokens + row) * K + column;
    const float b[2] = {decays.at(row, column), decays.at(row, column + 1)};
    const float down[2] = {shrunk(b[0] - of_queries[0]), shrunk(b[1] - of_queries[1])};
    const float up[2] = {shrunk(of_keys[0] - b[0]), shrunk(of_keys[1] - b[1])};
    uint32_t& q = *reinterpret_cast<uint32_t*>(memory.q + at);
    uint32_t& k = *reinterpret_cast<uint32_t*>(memory.k + at);
    *reinterpret_cast<uint32_t*>(static_cast<Half*>(out.q_down_NHCK) + to) =
        scaled(q, down[0] * enter[0], down[1] * enter[1]);
    *reinterpret_cast<uint32_t*>(static_cast<Half*>(out.k_tail_NHCK) + to) =
        scaled(k, up[0] * leave[0], up[1] * leave[1]);
    if (mild) q = scaled(q, down[0], down[1]), k = scaled(k, up[0], up[1]);
  }
}

// blockIdx.x: a chunk and head. By levels four warps have the tiles on the scores' diagonal, four those below.
template <int K>
__global__ void __launch_bounds__(kGateThreads<K>, 2)
    gate_chunk(GatedShape shape, Rows q, Rows k, const float* g, GatedChunks out) {
  extern __shared__ __align__(16) unsigned char shared[];
  ScoreMemory<K>& memory = *reinterpret_cast<ScoreMemory<K>*>(shared);
  constexpr int kRow = K + kPad, kScoreRow = kTokens + kPad, kThreads = kGateThreads<K>;
  const ChunkOfHead matrix(shape);
  matrix.fetch<K>(memory.q, q, kThreads);
  matrix.fetch<K>(memory.k, k, kThreads);
  memory.decays.fetch(g, matrix, kThreads);
  for (int n = threadIdx.x; n < kTokens * kScoreRow; n += kThreads) memory.scores[n] = __float2bfloat16_rn(0.0f);
  await_copies();
  __syncthreads();
  const bool mild = memory.decays.sum();
  const Decays<K>& decays = memory.decays;
  reach<K>(memory, matrix, mild, out);
  if (threadIdx.x < K) out.whole_NHK[matrix.index * K + threadIdx.x] = shrunk(decays.last(threadIdx.x));

  const int warp = threadIdx.x / 32;
  const float scale = static_cast<float>(shape.scale);
  const auto tile_at = [&](const Half* x, int block) { return x + block * 16 * kRow; };
  const auto keep = [&](SumTile& tile, int i, int j) {
    tile.each([&](float& sum, int row, int column) {
      if (i > j || row >= column)
        memory.scores[(i * 16 + row) * kScoreRow + j * 16 + column] = __float2bfloat16_rn(scale * sum);
    });
  };
  if (mild) {
    __syncthreads();
    for (int n = warp; n < kBlocks * (kBlocks + 1) / 2; n += kThreads / 32) {
      const int i = n < 1 ? 0 : n < 3 ? 1 : n < 6 ? 2 : 3, j = n - i * (i + 1) / 2;
      SumTile tile = row_products<K>(tile_at(memory.q, i), tile_at(memory.k, j));
      keep(tile, i, j);
    }
  } else {
    const int below = warp - kBlocks;
    SumTile own = {};
    if (below < 0) {
      own = row_products<K>(tile_at(memory.q, warp), tile_at(memory.k, warp));
      own.each([&](float& sum, int row, int column) { sum = row == column ? sum : 0.0f; });
    }
    each_level([&]<int kHalf>() {
      __syncthreads();  // the level before has read x
      scale_level<K, kHalf>(memory.x, memory.q, memory.k, decays, kThreads);
      __syncthreads();
      if constexpr (kHalf >= 16) {
        const int i = kHalf == 32 ? 2 + below / 2 : 2 * below + 1, j = kHalf == 32 ? below % 2 : 2 * below;
        if (below >= 0 && i < kBlocks) {
          SumTile tile = row_products<K>(tile_at(memory.x, i), tile_at(memory.x, j));
          keep(tile, i, j);
        }
      } else if (below < 0) {
        SumTile tile = row_products<K>(tile_at(memory.x, warp), tile_at(memory.x, warp));
        tile.each([&](float& sum, int row, int column) { sum = meet<kHalf>(row, column) ? sum : 0.0f; });
#pragma unroll
        for (int e = 0; e < 8; ++e) own.sums[e / 4][e % 4] += tile.sums[e / 4][e % 4];
      }
    });
    if (below < 0) keep(own, warp, warp);
  }
  __syncthreads();
  for (int n = threadIdx.x; n < kTokens * kTokens / 8; n += kThreads)
    store<Half, 8>(static_cast<Half*>(out.scores_NHCC) + matrix.index * kTokens * kTokens + n * 8,
                   load<Half, 8>(memory.scores + n / 8 * kScoreRow + n % 8 * 8));
}

template <int K>
void launch_gate_chunk(const GatedShape& shape, const Rows& q, const Rows& k, const float* g, const GatedChunks& chunks,
                       Stream stream) {
  allow_shared_memory(gate_chunk<K>, sizeof(ScoreMemory<K>));
  gate_chunk<K><<<blocks_of(shape), kGateThreads<K>, sizeof(ScoreMemory<K>), stream>>>(shape, q, k, g, chunks);
}

}  // namespace

void gate_chunks_fused(const GatedShape& shape, const Rows& q, const Rows& k, const float* g, const GatedChunks& chunks,
                       Stream stream) {
  (shape.key_dim == 64 ? launch_gate_chunk<64> : launch_gate_chunk<128>)(shape, q, k, g, chunks, stream);
  check_launch("gate_chunks_fused");
}

}  // namespace flashmorph::cuda
