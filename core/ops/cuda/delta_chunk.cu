#include "core/ops/cuda/chunk.cuh"
#include "core/ops/cuda/delta_chunk.h"
#include "core/ops/cuda/substitution.cuh"

namespace flashmorph::cuda {
namespace {

constexpr int kThreads = 256, kGradientThreads = 512;
constexpr int kBlocks = kTokens / 16;  // of 16 tokens
constexpr int kPairRow = kTokens + kPad;
constexpr int kExactRow = kTokens + 1;
constexpr float kForgottenGate = -750.0f;  // e to that is 0; a bound keeps -inf out of differences

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
  float y_v[kTokens], carried[kGradientThreads / 32];
};

// Where a block's chunk and head lie.
struct Matrix {
  int64_t index, heads, head, start, length;

  __device__ explicit Matrix(const DeltaChunkShape& shape) : index(blockIdx.x), heads(shape.heads) {
    const int64_t chunk = index / heads;
    head = index % heads;
    start = shape.chunks.start_N[chunk];
    length = shape.chunks.length_N[chunk];
  }
  __device__ __forceinline__ int64_t row(int token) const { return (start + token) * heads + head; }  // of a dense THX

  template <int kWidth>
  __device__ __forceinline__ void fetch(Half* to, const Rows& rows, int threads = kThreads) const {
    fetch_rows<kWidth>(to, static_cast<const Half*>(rows.data) + head * rows.head_stride, threads,
                       [&](int token) { return token < length ? (start + token) * rows.token_stride : -1; });
  }
};

template <int kWidth>
__device__ __forceinline__ void fetch_matrix(Half* to, const void* x, int64_t matrix, int rows,
                                             int threads = kThreads) {
  constexpr int kPerRow = kWidth / 8;
  const Half* const from = static_cast<const Half*>(x) + matrix * rows * kWidth;
  for (int n = threadIdx.x; n < rows * kPerRow; n += threads)
    copy_async(to + n / kPerRow * (kWidth + kPad) + n % kPerRow * 8, from + n * 8, true);
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
  const Matrix matrix(shape);
  matrix.fetch<K>(memory.q, q);
  matrix.fetch<K>(memory.k, k);
  matrix.fetch<V>(memory.v, v);
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
__global__ void __launch_bounds__(kGradientThreads, 1) chunk_gradients(DeltaChunkGradients in, DeltaChunkShape shape) {
  extern __shared__ __align__(16) unsigned char shared[];
  using M = GradientMemory<K, V>;
  M& memory = *reinterpret_cast<M*>(shared);
  constexpr int kRow = M::kRow, kValueRow = M::kValueRow, kAcross = K / 64, kThreads = kGradientThreads;
  constexpr int kWarps = kThreads / 32;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const Matrix matrix(shape);
  matrix.fetch<K>(memory.q, in.q, kThreads);
  matrix.fetch<K>(memory.k, in.k, kThreads);
  matrix.fetch<V>(memory.d_output, in.d_output, kThreads);
  fetch_matrix<V>(memory.y, in.y_NHCV, matrix.index, kTokens, kThreads);
  fetch_matrix<V>(memory.written, in.written_NHCV, matrix.index, kTokens, kThreads);
  commit_copies();
  fetch_matrix<K>(memory.before, in.before_NHVK, matrix.index, V, kThreads);  // these arrive while pairs are computed
  fetch_matrix<K>(memory.d_after, in.d_after_NHVK, matrix.index, V, kThreads);
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

unsigned blocks_of(const DeltaChunkShape& shape) { return static_cast<unsigned>(shape.chunks.chunks * shape.heads); }

template <int K, int V>
void prepare(const DeltaChunkShape& shape, const Rows& q, const Rows& k, const Rows& v, const float* g,
             const float* beta, const DeltaChunks& chunks, Stream stream) {
  allow_shared_memory(prepare_chunk<K, V>, sizeof(ChunkMemory<K, V>));
  prepare_chunk<K, V>
      <<<blocks_of(shape), kThreads, sizeof(ChunkMemory<K, V>), stream>>>(shape, q, k, v, g, beta, chunks);
}

template <int K, int V>
void differentiate(const DeltaChunkShape& shape, const DeltaChunkGradients& gradients, Stream stream) {
  allow_shared_memory(chunk_gradients<K, V>, sizeof(GradientMemory<K, V>));
  chunk_gradients<K, V><<<blocks_of(shape), kGradientThreads, sizeof(GradientMemory<K, V>), stream>>>(gradients, shape);
}

}  // namespace

void delta_chunks(const DeltaChunkShape& shape, const Rows& q, const Rows& k, const Rows& v, const float* g_TH,
                  const float* beta_TH, const DeltaChunks& chunks, Stream stream) {
  const auto run = shape.key_dim == 64 ? (shape.value_dim == 64 ? prepare<64, 64> : prepare<64, 128>)
                                       : (shape.value_dim == 64 ? prepare<128, 64> : prepare<128, 128>);
  run(shape, q, k, v, g_TH, beta_TH, chunks, stream);
  check_launch("delta_chunks");
}

void delta_chunk_gradients(const DeltaChunkShape& shape, const DeltaChunkGradients& gradients, Stream stream) {
  const auto run = shape.key_dim == 64 ? (shape.value_dim == 64 ? differentiate<64, 64> : differentiate<64, 128>)
                                       : (shape.value_dim == 64 ? differentiate<128, 64> : differentiate<128, 128>);
  run(shape, gradients, stream);
  check_launch("delta_chunk_gradients");
}

}  // namespace flashmorph::cuda
