#include "core/ops/cuda/chunk.cuh"
#include "core/ops/cuda/delta_chunk.h"
#include "core/ops/cuda/overlap.cuh"
#include "core/ops/cuda/substitution.cuh"
#include "core/ops/cuda/warpgroup.cuh"

// A chunk before the walks: its triangle's inverse, and the factors and scores made with it.

namespace flashmorph::cuda {
namespace {

constexpr int kThreads = 256;  // a team, which has a chunk: those of one threadIdx.y
constexpr int kTeams = 2;      // on a multiprocessor
constexpr int kPairRow = kTokens + kPad;
constexpr float kForgottenGate = -750.0f;  // e to that is 0; a bound keeps -inf out of differences

// The barrier of a team, of which a block has one or kTeams.
template <int kOfBlock>
__device__ __forceinline__ void meet() {
  static_assert(kTeams == 2);
  if constexpr (kOfBlock == 1)
    __syncthreads();
  else if (threadIdx.y == 0)
    asm volatile("bar.sync 1, %0;" ::"n"(kThreads) : "memory");
  else
    asm volatile("bar.sync 2, %0;" ::"n"(kThreads) : "memory");
}

// += the products of 16 rows each of a and b.
template <int kWidth>
__device__ __forceinline__ void add_row_products(SumTile& tile, const Half* a, const Half* b) {
#pragma unroll
  for (int c = 0; c < kWidth; c += 16)
    tile.add(LeftTile<false>(a + c, kWidth + kPad), RightTile<true>(b + c, kWidth + kPad));
}

// A warp's sums, rounded, to 16 rows of a tile.
__device__ __forceinline__ void store_tile(const SumTile& tile, Half* to, int stride) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int part = 0; part < 4; ++part)
    *reinterpret_cast<uint32_t*>(to + (lane / 4 + part % 2 * 8) * stride + part / 2 * 8 + lane % 4 * 2) =
        packed(tile.sums[part / 2][part % 2 * 2], tile.sums[part / 2][part % 2 * 2 + 1]);
}

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

// A matrix of kTokens rows as the sum of two in bfloat16, which is nearly float32.
struct Split {
  Half high[kTokens * kPairRow], low[kTokens * kPairRow];

  __device__ __forceinline__ void put(int row, int column, float x, float y) {  // y behind x
    const uint32_t rounded = packed(x, y);
    const float2 known = unpacked(rounded);
    *reinterpret_cast<uint32_t*>(high + row * kPairRow + column) = rounded;
    *reinterpret_cast<uint32_t*>(low + row * kPairRow + column) = packed(x - known.x, y - known.y);
  }
  __device__ __forceinline__ float2 get(int row, int column) const {
    const auto pair = [&](const Half* part) {
      return unpacked(*reinterpret_cast<const uint32_t*>(part + row * kPairRow + column));
    };
    const float2 a = pair(high), b = pair(low);
    return {a.x + b.x, a.y + b.y};
  }
};

// A tile of such a matrix as a factor of a product.
struct Factor {
  struct {
    uint32_t blocks[4];
  } high, low;
};

template <class Blocks>
__device__ __forceinline__ Factor factor(const Split& matrix, int row, int column) {
  Factor found;
  const int at = row * 16 * kPairRow + column * 16;
  const Blocks high(matrix.high + at, kPairRow), low(matrix.low + at, kPairRow);
#pragma unroll
  for (int b = 0; b < 4; ++b) found.high.blocks[b] = high.blocks[b], found.low.blocks[b] = low.blocks[b];
  return found;
}

// The transpose of sums, which a lane has as the right factor's blocks want it.
__device__ __forceinline__ Factor right_factor(const SumTile& transposed) {
  Factor found;
#pragma unroll
  for (int b = 0; b < 4; ++b) {
    const float x = transposed.sums[b % 2][b / 2 * 2], y = transposed.sums[b % 2][b / 2 * 2 + 1];
    const uint32_t rounded = found.high.blocks[b] = packed(x, y);
    const float2 known = unpacked(rounded);
    found.low.blocks[b] = packed(x - known.x, y - known.y);
  }
  return found;
}

__device__ __forceinline__ void add_product(SumTile& sums, const Factor& left, const Factor& right) {
  sums.add(left.low, right.high);
  sums.add(left.high, right.low);
  sums.add(left.high, right.high);
}

// Of the inverse [A 0; -B M A, B] of [A^-1 0; M B^-1] the tile at (row, column) of the lower left, by a warp. B begins
// at tile `middle`.
__device__ __forceinline__ void invert_below(Split& inverse, const Split& m, int row, int column, int middle) {
  SumTile below = {};
  for (int s = middle; s <= row; ++s) {
    SumTile m_a = {};  // transposed
    for (int t = column; t < middle; ++t)
      add_product(m_a, factor<LeftTile<true>>(inverse, t, column), factor<RightTile<true>>(m, s, t));
    add_product(below, factor<LeftTile<false>>(inverse, row, s), right_factor(m_a));
  }
#pragma unroll
  for (int part = 0; part < 4; ++part) {
    const float* const pair = &below.sums[part / 2][part % 2 * 2];
    inverse.put(row * 16 + threadIdx.x % 32 / 4 + part % 2 * 8, column * 16 + part / 2 * 8 + threadIdx.x % 4 * 2,
                -pair[0], -pair[1]);
  }
}

template <int K, int V>
struct ChunkMemory {
  static constexpr int kRow = K + kPad, kValueRow = V + kPad;
  Half q[kTokens * kRow], k[kTokens * kRow], v[kTokens * kValueRow];
  Half scores[kTokens * kPairRow];
  Split inverse;
  union {
    Split m;  // its tiles below the diagonal's
    struct {
      Half gone[kTokens * kPairRow], added[kTokens * kPairRow];  // the inverse times -beta e^b and beta of its columns
    };
  };
  alignas(16) float above[kBlocks][16 * 16],
      found[kBlocks][16 * 16];  // the diagonal's tiles, as substitute() wants them
  double b[kTokens];
  float g[kTokens], beta[kTokens], gam[kTokens], tail[kTokens];

  // By a warp: b_i = g_1 + .. + g_i, and what follows from it.
  __device__ __forceinline__ void add_up() {
    const int i = threadIdx.x % 32 * 2;
    const double first = g[i], both = first + static_cast<double>(g[i + 1]);
    double sum = both;
#pragma unroll
    for (int apart = 1; apart < 32; apart *= 2) {
      const double more = __shfl_up_sync(0xffffffffu, sum, apart);
      if (threadIdx.x % 32 >= apart) sum += more;
    }
    const double whole = __shfl_sync(0xffffffffu, sum, 31), sums[2] = {sum - both + first, sum};
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      b[i + n] = sums[n];
      gam[i + n] = expf(static_cast<float>(sums[n]));
      tail[i + n] = expf(static_cast<float>(whole - sums[n]));
    }
  }
};

// What chunks are made from.
struct DeltaInputs {
  Rows q, k, v;
  const float *g_TH, *beta_TH;
};

// By a team.
template <int kOfBlock, int K, int V>
__device__ __forceinline__ void prepare_chunk(ChunkMemory<K, V>& memory, const ChunkOfHead& matrix,
                                              const DeltaChunkShape& shape, const DeltaInputs& in,
                                              const DeltaChunks& out) {
  using M = ChunkMemory<K, V>;
  constexpr int kRow = M::kRow, kValueRow = M::kValueRow, kLast = kTokens - 1;
  matrix.fetch<K>(memory.q, in.q, kThreads);
  matrix.fetch<K>(memory.k, in.k, kThreads);
  matrix.fetch<V>(memory.v, in.v, kThreads);
  const int own = threadIdx.x;
  if (own < kTokens) {
    const bool present = own < matrix.length;
    const float gate = present ? in.g_TH[matrix.row(own)] : 0.0f;
    memory.g[own] = gate < kForgottenGate ? kForgottenGate : gate;
    memory.beta[own] = present ? in.beta_TH[matrix.row(own)] : 0.0f;
    out.beta_NHC[matrix.index * kTokens + own] = memory.beta[own];
  }
  for (int n = threadIdx.x * 8; n < kTokens * kPairRow; n += kThreads * 8) {
    store<Half, 8>(memory.scores + n, {});
    store<Half, 8>(memory.inverse.high + n, {});
  }
  await_copies();
  meet<kOfBlock>();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, block = warp % kBlocks;
  if (warp == 0) memory.add_up();
  meet<kOfBlock>();
  if (own < kTokens) out.b_NHC[matrix.index * kTokens + own] = memory.b[own];
  if (own == kLast) out.whole_NH[matrix.index] = memory.gam[kLast];

  const float scale = static_cast<float>(shape.scale);
#pragma unroll 1
  for (int other = warp / kBlocks * 2; other < warp / kBlocks * 2 + 2; ++other) {
    if (other > block) continue;
    SumTile qk = {}, kk = {};
    add_row_products<K>(qk, memory.q + block * 16 * kRow, memory.k + other * 16 * kRow);
    add_row_products<K>(kk, memory.k + block * 16 * kRow, memory.k + other * 16 * kRow);
#pragma unroll
    for (int part = 0; part < 4; ++part) {
      const int i = block * 16 + lane / 4 + part % 2 * 8, j = other * 16 + part / 2 * 8 + lane % 4 * 2;
      float score[2], m[2];
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const auto of = [&](const SumTile& tile) { return tile.sums[part / 2][part % 2 * 2 + e]; };
        const float gam = j + e <= i ? expf(static_cast<float>(memory.b[i] - memory.b[j + e])) : 0.0f;
        score[e] = scale * gam * of(qk);
        m[e] = memory.beta[i] * gam * of(kk);
        if (other == block) memory.above[block][(j + e) % 16 * 16 + i % 16] = m[e];  // read where j < i
      }
      *reinterpret_cast<uint32_t*>(memory.scores + i * kPairRow + j) = packed(score[0], score[1]);
      if (other < block) memory.m.put(i, j, m[0], m[1]);
    }
  }
  store_tiles<K>(memory.k, out.k_tail_NHCK, matrix.index, [&](int row) { return memory.tail[row]; });
  store_tiles<K>(memory.q, out.q_reach_NHCK, matrix.index, [&](int row) { return scale * memory.gam[row]; });
  meet<kOfBlock>();

  if (warp < kBlocks) {
    float* const found = memory.found[warp];
    if (lane < 16) substitute(memory.above[warp], 16, found, 16, lane);
    __syncwarp();
#pragma unroll
    for (int n = lane * 2; n < 16 * 16; n += 64)
      memory.inverse.put(warp * 16 + n / 16, warp * 16 + n % 16, found[n], found[n + 1]);
  }
  meet<kOfBlock>();
  if (warp < 2) invert_below(memory.inverse, memory.m, warp * 2 + 1, warp * 2, warp * 2 + 1);
  meet<kOfBlock>();
  if (warp < 4) invert_below(memory.inverse, memory.m, 2 + warp % 2, warp / 2, 2);
  meet<kOfBlock>();
  for (int n = threadIdx.x; n < kTokens * kTokens / 2; n += kThreads) {
    const int row = n / (kTokens / 2), column = n % (kTokens / 2) * 2, at = row * kPairRow + column;
    if (column / 16 > row / 16) continue;
    const float2 x = memory.inverse.get(row, column);
    const float first = memory.beta[column] * x.x, second = memory.beta[column + 1] * x.y;
    *reinterpret_cast<uint32_t*>(memory.added + at) = packed(first, second);
    *reinterpret_cast<uint32_t*>(memory.gone + at) =
        packed(-memory.gam[column] * first, -memory.gam[column + 1] * second);
  }
  meet<kOfBlock>();

  constexpr int kWarps = kThreads / 32, kKeyWarps = K / 16, kValueWarps = V / 16;  // that share a block of 16 tokens
  const int keys = warp % kKeyWarps * 16, values = warp % kValueWarps;
#pragma unroll
  for (int i = warp / kKeyWarps; i < kBlocks; i += kWarps / kKeyWarps) {
    SumTile gone = {};
    for (int j = 0; j <= i; ++j)
      gone.add(LeftTile<false>(memory.gone + i * 16 * kPairRow + j * 16, kPairRow),
               RightTile<>(memory.k + j * 16 * kRow + keys, kRow));
    store_tile(gone, memory.q + i * 16 * kRow + keys, kRow);  // over q, which nobody reads any more
  }
#pragma unroll
  for (int i = warp / kValueWarps; i < kBlocks; i += kWarps / kValueWarps) {
    SumTile added = {};  // rows are values
    for (int j = 0; j <= i; ++j)
      added.add(LeftTile<true>(memory.v + j * 16 * kValueRow + values * 16, kValueRow),
                RightTile<true>(memory.added + i * 16 * kPairRow + j * 16, kPairRow));
    float* const sums = out.added_NHVC + (matrix.index * V + values / 4 * kTileSide) * kTokens;
#pragma unroll
    for (int half = 0; half < 2; ++half)
      store<float, 4>(sums + ((i * 2 + half) * kTileSide * 2 + values % 4 * 32 + lane) * 4,
                      reinterpret_cast<const Vector<float, 4>&>(added.sums[half]));
  }
  meet<kOfBlock>();
  const auto one = [](int) { return 1.0f; };
  store_tiles<K>(memory.q, out.k_gone_NHCK, matrix.index, one);
  store_tiles<kTokens>(memory.scores, out.scores_NHCC, matrix.index, one);
  store_tiles<kTokens>(memory.inverse.high, out.inverse_NHCC, matrix.index, one);
}

// A block of one team has a chunk and head.
template <int K, int V>
__global__ void __launch_bounds__(kThreads, kTeams)
    prepare_each(DeltaChunkShape shape, DeltaInputs in, DeltaChunks out) {
  extern __shared__ __align__(16) unsigned char shared[];
  prepare_chunk<1>(*reinterpret_cast<ChunkMemory<K, V>*>(shared), ChunkOfHead(shape), shape, in, out);
}

// Blocks of kTeams that stay to the end take them in their order.
template <int K, int V>
__global__ void __launch_bounds__(kTeams* kThreads, 1)
    prepare_in_order(DeltaChunkShape shape, DeltaInputs in, DeltaChunks out) {
  extern __shared__ __align__(16) unsigned char shared[];
  let_next_begin();
  ChunkMemory<K, V>& memory = reinterpret_cast<ChunkMemory<K, V>*>(shared)[threadIdx.y];
  const int64_t count = shape.chunks.chunks * shape.heads, teams = int64_t{gridDim.x} * kTeams;
  for (int64_t index = int64_t{blockIdx.x} * kTeams + threadIdx.y; index < count; index += teams) {
    prepare_chunk<kTeams>(memory, ChunkOfHead(shape, index), shape, in, out);
    meet<kTeams>();
    if (threadIdx.x == 0) tell(out.prepared_NH + index);
  }
}

template <int K, int V>
void prepare(const DeltaChunkShape& shape, const DeltaInputs& in, const DeltaChunks& out, Stream stream) {
  constexpr size_t kBytes = sizeof(ChunkMemory<K, V>);
  if (out.prepared_NH == nullptr) {
    allow_shared_memory(prepare_each<K, V>, kBytes);
    prepare_each<K, V><<<blocks_of(shape), kThreads, kBytes, stream>>>(shape, in, out);
    return;
  }
  const int64_t left = multiprocessors() - shape.walking_blocks();  // a walk's block fills one
  const unsigned blocks = std::min(blocks_for(blocks_of(shape), kTeams), static_cast<unsigned>(left));
  allow_shared_memory(prepare_in_order<K, V>, kTeams * kBytes);
  prepare_in_order<K, V><<<blocks, dim3(kThreads, kTeams), kTeams * kBytes, stream>>>(shape, in, out);
}

}  // namespace

void delta_chunks(const DeltaChunkShape& shape, const Rows& q, const Rows& k, const Rows& v, const float* g_TH,
                  const float* beta_TH, const DeltaChunks& chunks, Stream stream) {
  const auto run = shape.key_dim == 64 ? (shape.value_dim == 64 ? prepare<64, 64> : prepare<64, 128>)
                                       : (shape.value_dim == 64 ? prepare<128, 64> : prepare<128, 128>);
  run(shape, {q, k, v, g_TH, beta_TH}, chunks, stream);
  check_launch("delta_chunks");
}

}  // namespace flashmorph::cuda
