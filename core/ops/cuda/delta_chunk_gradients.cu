#include "core/ops/cuda/delta_chunk.cuh"
#include "core/ops/cuda/warpgroup.cuh"

// The gradients of a chunk from what the walks of both directions left.

namespace flashmorph::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kExactRow = kTokens + 1;

template <int K, int V>
struct GradientMemory {
  static constexpr int kRow = K + kPad, kValueRow = V + kPad;
  Half q[kTokens * kRow], k[kTokens * kRow];
  Half d_output[kTokens * kValueRow], y[kTokens * kValueRow], written[kTokens * kValueRow];
  Half before[V * kRow], d_after[V * kRow];
  Half d_scores[kTokens * kPairRow], d_products[kTokens * kPairRow];
  float passing[kTokens * kExactRow];  // what the decay of token i since j carries of the loss
  float own[kTokens * kExactRow];      // D_ij kk_ij
  double b[kTokens];
  float beta[kTokens];
  float reading[4][kTokens], writing[4][kTokens], k_read[4][kTokens];  // of each quarter of the channels
  float y_v[kTokens], carried[kThreads / 32];
};

// Of dense matrices of kTokens rows the one of that number.
template <int kWidth>
__device__ __forceinline__ void fetch_rows_of(Half* to, const void* x, int64_t number) {
  fetch_rows<kWidth>(to, static_cast<const Half*>(x) + number * kTokens * kWidth, kThreads,
                     [](int row) { return int64_t{row} * kWidth; });
}

// The state of a chunk, [V, K] in tiles.
template <int K, int V>
__device__ __forceinline__ void fetch_state(Half* to, const void* states, int64_t matrix) {
  const Half* const from = static_cast<const Half*>(states) + matrix * V * K;
  for (int n = threadIdx.x; n < V * K / 8; n += kThreads) {
    const int tile = n / (kTileSide * 8), row = n / 8 % kTileSide, unit = n % 8 ^ row % 8;
    const int value = tile / (K / kTileSide) * kTileSide + row, key = tile % (K / kTileSide) * kTileSide + unit * 8;
    copy_async(to + value * (K + kPad) + key, from + n * 8, true);
  }
}

__device__ __forceinline__ float of_quarters(const float (&sums)[4][kTokens], int token) {
  return sums[0][token] + sums[1][token] + sums[2][token] + sums[3][token];
}

__device__ __forceinline__ float sum_of_earlier_lanes(float value) {
  const int lane = threadIdx.x % 32;
  float sum = __shfl_up_sync(0xffffffffu, value, 1);
  if (lane == 0) sum = 0.0f;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const float more = __shfl_up_sync(0xffffffffu, sum, step);
    if (lane >= step) sum += more;
  }
  return sum;
}

// What tokens i of `block` and j of block `other` give each other.
template <int K, int V>
__device__ __forceinline__ void pair_gradients(GradientMemory<K, V>& memory, int block, int other, float scale) {
  using M = GradientMemory<K, V>;
  SumTile reads = {}, solution = {}, qk = {}, kk = {};
  const int i = block * 16, j = other * 16;
  add_row_products<V>(reads, memory.d_output + i * M::kValueRow, memory.written + j * M::kValueRow);
  add_row_products<V>(solution, memory.y + i * M::kValueRow, memory.written + j * M::kValueRow);
  add_row_products<K>(qk, memory.q + i * M::kRow, memory.k + j * M::kRow);
  add_row_products<K>(kk, memory.k + i * M::kRow, memory.k + j * M::kRow);
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int e = 0; e < 8; ++e) {
    const auto of = [&](const SumTile& tile) { return tile.sums[e / 4][e % 4]; };
    const int row = i + lane / 4 + e / 2 % 2 * 8, column = j + e / 4 * 8 + lane % 4 * 2 + e % 2;
    const float gam = column <= row ? __expf(static_cast<float>(memory.b[row] - memory.b[column])) : 0.0f;
    const bool earlier = column < row;
    const float d_score = scale * gam * of(reads), D = earlier ? -gam * of(solution) : 0.0f;
    const float d_product = memory.beta[row] * D;
    memory.d_scores[row * kPairRow + column] = __float2bfloat16_rn(column <= row ? d_score : 0.0f);
    if (column <= row)
      memory.d_products[row * kPairRow + column] = memory.d_products[column * kPairRow + row] =
          __float2bfloat16_rn(d_product);
    memory.passing[row * kExactRow + column] = earlier ? d_score * of(qk) + d_product * of(kk) : 0.0f;
    memory.own[row * kExactRow + column] = D * of(kk);
  }
}

// blockIdx.x: a chunk and head. A warp has 16 tokens and a quarter of the channels.
template <int K, int V>
__global__ void __launch_bounds__(kThreads, 1) chunk_gradients(DeltaChunkGradients in, DeltaChunkShape shape) {
  extern __shared__ __align__(16) unsigned char shared[];
  using M = GradientMemory<K, V>;
  M& memory = *reinterpret_cast<M*>(shared);
  constexpr int kRow = M::kRow, kValueRow = M::kValueRow, kAcross = K / 64;
  constexpr int kWarps = kThreads / 32;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const ChunkOfHead matrix(shape);
  matrix.fetch<K>(memory.q, in.q, kThreads);
  matrix.fetch<K>(memory.k, in.k, kThreads);
  matrix.fetch<V>(memory.d_output, in.d_output, kThreads);
  fetch_rows_of<V>(memory.y, in.y_NHCV, matrix.index);
  fetch_rows_of<V>(memory.written, in.written_NHCV, matrix.index);
  commit_copies();
  fetch_state<K, V>(memory.before, in.before_NHVK, matrix.index);  // these arrive while pairs are computed
  fetch_state<K, V>(memory.d_after, in.d_after_NHVK, matrix.index);
  commit_copies();
  if (threadIdx.x < kTokens) {
    memory.b[threadIdx.x] = in.b_NHC[matrix.index * kTokens + threadIdx.x];
    memory.beta[threadIdx.x] = in.beta_NHC[matrix.index * kTokens + threadIdx.x];
  }
  for (int n = threadIdx.x; n < kTokens * kExactRow; n += kThreads) memory.passing[n] = memory.own[n] = 0.0f;
  uint32_t v_pairs[kTokens / kWarps][V / 64];  // this lane's of the tokens that its warp has
#pragma unroll
  for (int t = 0; t < kTokens / kWarps; ++t)
#pragma unroll
    for (int n = 0; n < V / 64; ++n) {
      const int token = warp + t * kWarps;
      const Half* const from = static_cast<const Half*>(in.v.data) + (matrix.start + token) * in.v.token_stride +
                               matrix.head * in.v.head_stride + n * 64 + lane * 2;
      v_pairs[t][n] = token < matrix.length ? *reinterpret_cast<const uint32_t*>(from) : 0u;
    }
  await_copies_before<1>();
  __syncthreads();

  const int block = warp % kBlocks, quarter = warp / kBlocks, first_column = quarter * (K / 4);
  const float scale = static_cast<float>(shape.scale);
  if (quarter <= block) pair_gradients<K, V>(memory, block, quarter, scale);
  await_copies();
  __syncthreads();

  SumTile dq[kAcross] = {}, dk[kAcross] = {}, gone[kAcross] = {};
#pragma unroll
  for (int c = 0; c < V; c += 16) {
    const auto rows = [&](const Half* x) { return LeftTile<false>(x + block * 16 * kValueRow + c, kValueRow); };
    const LeftTile<false> reads = rows(memory.d_output), writes = rows(memory.written), found = rows(memory.y);
#pragma unroll
    for (int n = 0; n < kAcross; ++n) {
      const int at = c * kRow + first_column + n * 16;
      const RightTile<> before(memory.before + at, kRow);
      dq[n].add(reads, before);
      gone[n].add(found, before);
      dk[n].add(writes, RightTile<>(memory.d_after + at, kRow));
    }
  }
#pragma unroll
  for (int lower = 0; lower < 2; ++lower) {
    const int token = block * 16 + lane / 4 + lower * 8;
    const double b = memory.b[token];
    const float gam = __expf(static_cast<float>(b)), tail = __expf(static_cast<float>(memory.b[kTokens - 1] - b));
    float to_reads = 0.0f, to_writes = 0.0f, k_read = 0.0f;
#pragma unroll
    for (int n = 0; n < kAcross; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int column = first_column + n * 16 + e / 2 * 8 + lane % 4 * 2 + e % 2, sum = lower * 2 + e % 2;
        float &to_q = dq[n].sums[e / 2][sum], &to_k = dk[n].sums[e / 2][sum];
        const float k = __bfloat162float(memory.k[token * kRow + column]);
        const float lost = gam * gone[n].sums[e / 2][sum];
        to_q *= scale * gam;
        to_k *= tail;
        to_reads += __bfloat162float(memory.q[token * kRow + column]) * to_q;
        to_writes += k * to_k;
        k_read += k * lost;
        to_k -= memory.beta[token] * lost;
      }
    to_reads = warp_sum(to_reads, 4), to_writes = warp_sum(to_writes, 4), k_read = warp_sum(k_read, 4);
    if (lane % 4 == 0) {
      memory.reading[quarter][token] = to_reads - memory.beta[token] * k_read;
      memory.writing[quarter][token] = to_writes;
      memory.k_read[quarter][token] = k_read;
    }
  }

  float product = 0.0f;
  for (int n = threadIdx.x; n < K * V / 2; n += kThreads) {
    const int at = n / (K / 2) * kRow + n % (K / 2) * 2;
    const float2 a = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(memory.before + at));
    const float2 b = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(memory.d_after + at));
    product += a.x * b.x + a.y * b.y;
  }
  product = warp_sum(product);
  if (lane == 0) memory.carried[warp] = product;
#pragma unroll
  for (int t = 0; t < kTokens / kWarps; ++t) {  // dv = beta y, and y v
    const int token = warp + t * kWarps;
    float sum = 0.0f;
#pragma unroll
    for (int n = 0; n < V / 64; ++n) {
      const auto numbers = [](const uint32_t& pair) {
        return __bfloat1622float2(reinterpret_cast<const __nv_bfloat162&>(pair));
      };
      const int c = n * 64 + lane * 2;
      const float2 y = numbers(*reinterpret_cast<const uint32_t*>(memory.y + token * kValueRow + c));
      const float2 v = numbers(v_pairs[t][n]);
      sum += y.x * v.x + y.y * v.y;
      if (token < matrix.length)
        *reinterpret_cast<uint32_t*>(static_cast<Half*>(in.dv_THV) + matrix.row(token) * V + c) =
            packed(memory.beta[token] * y.x, memory.beta[token] * y.y);
    }
    sum = warp_sum(sum);
    if (lane == 0) memory.y_v[token] = sum;
  }
  __syncthreads();

#pragma unroll
  for (int other = 0; other < kBlocks; ++other) {
    const int here = block * 16, there = other * 16;
    const auto add = [&](SumTile* sums, const auto& left, const Half* rows) {
#pragma unroll
      for (int n = 0; n < kAcross; ++n)
        sums[n].add(left, RightTile<>(rows + there * kRow + first_column + n * 16, kRow));
    };
    add(dk, LeftTile<false>(memory.d_products + here * kPairRow + there, kPairRow), memory.k);
    if (other <= block) add(dq, LeftTile<false>(memory.d_scores + here * kPairRow + there, kPairRow), memory.k);
    if (other >= block) add(dk, LeftTile<true>(memory.d_scores + there * kPairRow + here, kPairRow), memory.q);
  }

  // Sums over pairs: across_m = sum over j < m <= i. First the sums over j, a warp for each i.
  for (int i = warp; i < kTokens; i += kThreads / 32) {
    float* const passing = memory.passing + i * kExactRow + lane * 2;
    const float* const own = memory.own + i * kExactRow + lane * 2;
    const float sum = warp_sum(own[0] + own[1]), before = sum_of_earlier_lanes(passing[0] + passing[1]);
    passing[0] += before;
    passing[1] += passing[0];
    if (lane == 0 && i < matrix.length)
      in.d_beta_TH[matrix.row(i)] = sum + memory.y_v[i] - of_quarters(memory.k_read, i);
  }
  __syncthreads();
  constexpr int kParts = kThreads / kTokens;  // neighbouring lanes
  const int m = threadIdx.x / kParts, part = threadIdx.x % kParts;
  float sum = 0.0f;
  for (int w = part; w < kThreads / 32; w += kParts) sum += memory.carried[w];
  sum *= __expf(static_cast<float>(memory.b[kTokens - 1]));
  for (int token = part; token < kTokens; token += kParts) {
    sum += of_quarters(token < m ? memory.writing : memory.reading, token);
    if (0 < m && m <= token) sum += memory.passing[token * kExactRow + m - 1];
  }
  sum = warp_sum(sum, kParts);
  if (part == 0 && m < matrix.length) in.dg_TH[matrix.row(m)] = sum;

#pragma unroll
  for (int n = 0; n < kAcross; ++n) {  // over q and k, which nobody reads any more
    const int at = block * 16 * kRow + first_column + n * 16;
    store_tile(dq[n], memory.q + at, kRow);
    store_tile(dk[n], memory.k + at, kRow);
  }
  __syncthreads();
  for (int n = threadIdx.x; n < kTokens * K / 8; n += kThreads) {
    const int row = n / (K / 8), unit = n % (K / 8) * 8;
    if (row >= matrix.length) continue;
    const int64_t to = matrix.row(row) * K + unit;
    store<Half, 8>(static_cast<Half*>(in.dq_THK) + to, load<Half, 8>(memory.q + row * kRow + unit));
    store<Half, 8>(static_cast<Half*>(in.dk_THK) + to, load<Half, 8>(memory.k + row * kRow + unit));
  }
}

template <int K, int V>
void differentiate(const DeltaChunkShape& shape, const DeltaChunkGradients& gradients, Stream stream) {
  allow_shared_memory(chunk_gradients<K, V>, sizeof(GradientMemory<K, V>));
  chunk_gradients<K, V><<<blocks_of(shape), kThreads, sizeof(GradientMemory<K, V>), stream>>>(gradients, shape);
}

}  // namespace

void delta_chunk_gradients(const DeltaChunkShape& shape, const DeltaChunkGradients& gradients, Stream stream) {
  const auto run = shape.key_dim == 64 ? (shape.value_dim == 64 ? differentiate<64, 64> : differentiate<64, 128>)
                                       : (shape.value_dim == 64 ? differentiate<128, 64> : differentiate<128, 128>);
  run(shape, gradients, stream);
  check_launch("delta_chunk_gradients");
}

}  // namespace flashmorph::cuda
