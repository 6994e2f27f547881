#include "core/ops/cuda/chunk.cuh"
#include "core/ops/cuda/gated_walk.h"

// What the tokens of a chunk do to each other when every channel decays by itself. Two tokens j < i meet at the level
// h = 32, 16, .., 1 that is the highest bit in which their places differ: in the block of 2 h tokens that has both, j
// is in the first half and i in the second. With m the first half's last token, no exponent is above 0 in
//   q_i k_j e^(b_i - b_j) = (q_i e^(b_i - b_m)) (k_j e^(b_m - b_j)) = x_i x_j,
// so a level's pairs are a matrix product whatever the decays, and a token is a query or a key there, never both.
// The gradient of g_p sums over the pairs j < p <= i, which all have one sign of the decay: within a level's block over
// the later queries or the earlier keys. No two large sums are subtracted.
// Where a chunk's decays are mild, e^(b_i - b_m) and e^(b_m - b_j) are far from the ends of what bfloat16 can hold for
// all of its tokens with the m of the first level, and one product has all pairs. The gradient of g_p is then the sum
// of what the queries from p on give less what the keys from p on give: a pair that both have is the same product of
// the same rounded numbers twice, so that what is left of it is float32's rounding.

namespace flashmorph::cuda {
namespace {

constexpr int kThreads = 512;                            // of a chunk's gradients
constexpr int kBlocks = kTokens / 16;                    // of 16 tokens
constexpr int kParts = 4, kPartRows = kTokens / kParts;  // of a channel's sums over tokens
constexpr float kForgottenGate = -150.0f;                // e to that is 0; a bound keeps -inf out of differences
constexpr float kMild = -40.0f;  // half a chunk's sum of gates: e to that is 20 digits above what is smallest

__device__ __forceinline__ float shrunk(float exponent) { return __expf(exponent); }

// The last token of the first half of the block of 2 kHalf tokens that has `token`.
template <int kHalf>
__device__ __forceinline__ int middle(int token) {
  return (token & ~(2 * kHalf - 1)) + kHalf - 1;
}

// Whether two tokens meet at level kHalf.
template <int kHalf>
__device__ __forceinline__ bool meet(int a, int b) {
  return (a ^ b) >= kHalf && (a ^ b) < 2 * kHalf;
}

template <class Level>  // level.template operator()<kHalf>()
__device__ __forceinline__ void each_level(const Level& level) {
  level.template operator()<32>();
  level.template operator()<16>();
  level.template operator()<8>();
  level.template operator()<4>();
  level.template operator()<2>();
  level.template operator()<1>();
}

// Where a block's chunk and head lie.
struct Matrix {
  int64_t index, chunk, head, start, length;

  __device__ explicit Matrix(const GatedShape& shape)
      : index(blockIdx.x),
        chunk(blockIdx.x / shape.heads),
        head(blockIdx.x % shape.heads),
        start(shape.chunks.start_N[chunk]),
        length(shape.chunks.length_N[chunk]) {}

  template <int kWidth>
  __device__ __forceinline__ void fetch(Half* to, const Rows& rows, int threads) const {
    fetch_rows<kWidth>(to, static_cast<const Half*>(rows.data) + head * rows.head_stride, threads,
                       [&](int row) { return row < length ? (start + row) * rows.token_stride : -1; });
  }
  __device__ __forceinline__ int64_t place(int row, int64_t heads, int width) const {
    return ((start + row) * heads + head) * width;  // in a dense [T, H, width]
  }
};

// A chunk's decays in shared memory: b, from which 16 lanes read 4 rows of an 8 x 8 block without meeting in a bank.
template <int K>
struct Decays {
  static constexpr int kRow = K + 8, kMiddle = kTokens / 2 - 1;
  alignas(16) float b[kTokens * kRow];
  float totals[kParts][K];

  __device__ __forceinline__ void fetch(const float* g, const Matrix& matrix, int64_t heads, int threads) {
    for (int n = threadIdx.x; n < kTokens * K / 4; n += threads) {
      const int row = n / (K / 4), column = n % (K / 4) * 4;
      const bool present = row < matrix.length;
      copy_async(b + row * kRow + column, g + (present ? matrix.place(row, heads, K) + column : 0), present);
    }
  }
  // By 4 K threads or more. Whether all decays are mild, for all threads.
  __device__ __forceinline__ bool sum() {
    const int channel = threadIdx.x % K, part = threadIdx.x / K;
    float* const rows = b + part * kPartRows * kRow + channel;
    float sums[kPartRows], total = 0.0f;
    if (part < kParts) {
#pragma unroll
      for (int row = 0; row < kPartRows; ++row) {
        const float gate = rows[row * kRow];
        sums[row] = total += gate < kForgottenGate ? kForgottenGate : gate;
      }
      totals[part][channel] = total;
    }
    __syncthreads();
    bool mild = true;
    if (part < kParts) {
      float before = 0.0f;
      for (int earlier = 0; earlier < part; ++earlier) before += totals[earlier][channel];
#pragma unroll
      for (int row = 0; row < kPartRows; ++row) rows[row * kRow] = before + sums[row];
      mild = totals[0][channel] + totals[1][channel] >= kMild && totals[2][channel] + totals[3][channel] >= kMild;
    }
    return __syncthreads_and(mild);
  }
  __device__ __forceinline__ float at(int row, int column) const { return b[row * kRow + column]; }
  __device__ __forceinline__ float last(int column) const { return at(kTokens - 1, column); }
  __device__ __forceinline__ float middle_of_chunk(int column) const { return at(kMiddle, column); }
  // How a token's row is scaled at a level.
  template <int kHalf>
  __device__ __forceinline__ float to_middle(int row, int column) const {
    return shrunk(-fabsf(at(row, column) - at(middle<kHalf>(row), column)));
  }
};

// x of a level.
template <int K, int kHalf>
__device__ __forceinline__ void scale_level(Half* x, const Half* q, const Half* k, const Decays<K>& decays,
                                            int threads) {
  constexpr int kRow = K + kPad;
#pragma unroll 4
  for (int n = threadIdx.x; n < kTokens * K / 2; n += threads) {
    const int row = n / (K / 2), column = n % (K / 2) * 2, at = row * kRow + column;
    const uint32_t pair = *reinterpret_cast<const uint32_t*>(((row & kHalf) ? q : k) + at);
    *reinterpret_cast<uint32_t*>(x + at) =
        scaled(pair, decays.template to_middle<kHalf>(row, column), decays.template to_middle<kHalf>(row, column + 1));
  }
}

template <int K>
struct ScoreMemory {
  Half q[kTokens * (K + kPad)], k[kTokens * (K + kPad)], x[kTokens * (K + kPad)];
  Half scores[kTokens * (kTokens + kPad)];
  Decays<K> decays;
};

// The products of 16 rows each of a and b.
template <int K>
__device__ __forceinline__ SumTile row_products(const Half* a, const Half* b) {
  SumTile even = {}, odd = {};  // two chains of dependent sums
#pragma unroll
  for (int c = 0; c < K; c += 32) {
    even.add(LeftTile<false>(a + c, K + kPad), RightTile<true>(b + c, K + kPad));
    odd.add(LeftTile<false>(a + c + 16, K + kPad), RightTile<true>(b + c + 16, K + kPad));
  }
#pragma unroll
  for (int e = 0; e < 8; ++e) even.sums[e / 4][e % 4] += odd.sums[e / 4][e % 4];
  return even;
}

template <int K>
constexpr int kGateThreads = 4 * K;

// q_down and k_tail; where the decays are mild, what is left of q and k are the factors of the pairs' products.
template <int K>
__device__ __forceinline__ void reach(ScoreMemory<K>& memory, const Matrix& matrix, bool mild, const GatedChunks& out) {
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
  const Matrix matrix(shape);
  matrix.fetch<K>(memory.q, q, kThreads);
  matrix.fetch<K>(memory.k, k, kThreads);
  memory.decays.fetch(g, matrix, shape.heads, kThreads);
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

template <int K, int V>
struct GradientMemory {
  struct Read {
    Half v[kTokens * (V + kPad)], d_output[kTokens * (V + kPad)], before[V * (K + kPad)], d_after[V * (K + kPad)];
  };
  struct Levels {
    Half x[kTokens * (K + kPad)];
    float z[kTokens * Decays<K>::kRow];
  };
  struct Mild {  // the factors of the pairs' products; what gates sum over the tokens from theirs on, and before
    Half queries[kTokens * (K + kPad)], keys[kTokens * (K + kPad)];
    float later[kTokens * Decays<K>::kRow], earlier[kTokens * Decays<K>::kRow];
  };
  static constexpr size_t kUnion = std::max({sizeof(Read), sizeof(Levels), sizeof(Mild)});
  Half q[kTokens * (K + kPad)], k[kTokens * (K + kPad)];
  Half d_scores[kTokens * (kTokens + kPad)];  // and their transpose, without the diagonal
  float diagonal[kTokens], through[kParts][K], totals[2][kParts][K];
  Decays<K> decays;
  alignas(16) unsigned char by_turns[kUnion];  // Read, then Mild or Levels

  __device__ Read& read() { return *reinterpret_cast<Read*>(by_turns); }
  __device__ Levels& levels() { return *reinterpret_cast<Levels*>(by_turns); }
  __device__ Mild& mild() { return *reinterpret_cast<Mild*>(by_turns); }
};

// The gradient of a channel's gates in 32 tokens, a thread's: part 0 or 1 of the chunk.
struct GateSums {
  static constexpr int kRows = kTokens / 2;
  float sums[kRows] = {};
  int part;

  // From what a level's queries and keys give, z of this channel, rows `stride` apart.
  template <int kHalf>
  __device__ __forceinline__ void add_level(const float* z, int stride) {
    if constexpr (kHalf == kRows) {
      part == 0 ? earlier(z, stride, 0, kRows) : later(z, stride, 0, kRows);
    } else {
#pragma unroll
      for (int first = 0; first < kRows; first += 2 * kHalf) {
        earlier(z, stride, first, first + kHalf);
        later(z, stride, first + kHalf, first + 2 * kHalf);
      }
    }
  }
  // From what the chunk's queries take from the state, and what its keys give to it.
  __device__ __forceinline__ void add_queries(const float* z, int stride) {
    const float rest = part == 0 ? total(z, stride, 1) : 0.0f;
    later(z, stride, 0, kRows, rest);
  }
  __device__ __forceinline__ void add_keys(const float* z, int stride) {
    const float rest = part == 1 ? total(z, stride, 0) : 0.0f;
    earlier(z, stride, 0, kRows, rest);
  }

 private:
  __device__ __forceinline__ float total(const float* z, int stride, int of_part) const {
    float sum = 0.0f;
#pragma unroll 8
    for (int row = 0; row < kRows; ++row) sum += z[(of_part * kRows + row) * stride];
    return sum;
  }
  __device__ __forceinline__ void earlier(const float* z, int stride, int from, int to, float sum = 0.0f) {
#pragma unroll
    for (int row = 0; row < kRows; ++row)
      if (row >= from && row < to) {
        sums[row] += sum;
        sum += z[(part * kRows + row) * stride];
      }
  }
  __device__ __forceinline__ void later(const float* z, int stride, int from, int to, float sum = 0.0f) {
#pragma unroll
    for (int row = kRows - 1; row >= 0; --row)
      if (row >= from && row < to) {
        sum += z[(part * kRows + row) * stride];
        sums[row] += sum;
      }
  }
};

// The pairs of a block of 16 tokens that meet at a level.
template <int kHalf>
__device__ __forceinline__ void keep_level(LeftTile<false>& pairs) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int b = 0; b < 4; ++b) {
    const int row = lane / 4 + b % 2 * 8, column = lane % 4 * 2 + b / 2 * 8;
    pairs.blocks[b] &=
        (meet<kHalf>(row, column) ? 0x0000ffffu : 0u) | (meet<kHalf>(row, column + 1) ? 0xffff0000u : 0u);
  }
}

// Of 16 x 16 pairs those where the row's token is later than the column's, or earlier.
template <bool kLater>
__device__ __forceinline__ LeftTile<false> of_order(LeftTile<false> pairs) {
  const int lane = threadIdx.x % 32;
  const auto kept = [](int row, int column) { return kLater ? row > column : row < column; };
#pragma unroll
  for (int b = 0; b < 4; ++b) {
    const int row = lane / 4 + b % 2 * 8, column = lane % 4 * 2 + b / 2 * 8;
    pairs.blocks[b] &= (kept(row, column) ? 0x0000ffffu : 0u) | (kept(row, column + 1) ? 0xffff0000u : 0u);
  }
  return pairs;
}

// blockIdx.x: a chunk and head. A warp has 16 tokens and a quarter of the channels.
template <int K, int V>
__global__ void __launch_bounds__(kThreads, 1) chunk_gradients(GatedShape shape, GatedGradients in) {
  extern __shared__ __align__(16) unsigned char shared[];
  using M = GradientMemory<K, V>;
  M& memory = *reinterpret_cast<M*>(shared);
  auto& read = memory.read();
  constexpr int kRow = K + kPad, kValueRow = V + kPad, kPairRow = kTokens + kPad, kAcross = K / 64;
  const Matrix matrix(shape);
  matrix.fetch<K>(memory.q, in.q, kThreads);
  matrix.fetch<K>(memory.k, in.k, kThreads);
  matrix.fetch<V>(read.v, in.v, kThreads);
  matrix.fetch<V>(read.d_output, in.d_output, kThreads);
  memory.decays.fetch(in.g_THK, matrix, shape.heads, kThreads);
  commit_copies();
  for (int n = threadIdx.x; n < V * K / 8; n += kThreads) {  // these arrive while the pairs are computed
    const int to = n / (K / 8) * kRow + n % (K / 8) * 8;
    const int64_t from = matrix.index * V * K + n * 8;
    copy_async(read.before + to, static_cast<const Half*>(in.before_NHVK) + from, true);
    copy_async(read.d_after + to, static_cast<const Half*>(in.d_after_NHVK) + from, true);
  }
  commit_copies();
  await_copies_before<1>();
  __syncthreads();
  const bool mild = memory.decays.sum();

  const int warp = threadIdx.x / 32, block = warp % kBlocks, quarter = warp / kBlocks;
  const int first_column = quarter * (K / 4);
  const float scale = static_cast<float>(shape.scale);
  if (quarter <= block) {
    SumTile tile = row_products<V>(read.d_output + block * 16 * kValueRow, read.v + quarter * 16 * kValueRow);
    tile.each([&](float& sum, int row, int column) {
      const int to_row = block * 16 + row, to_column = quarter * 16 + column;
      if (to_row == to_column) memory.diagonal[to_row] = scale * sum;
      const Half rounded = __float2bfloat16_rn(to_row == to_column ? 0.0f : scale * sum);
      if (to_row < to_column) return;
      memory.d_scores[to_row * kPairRow + to_column] = memory.d_scores[to_column * kPairRow + to_row] = rounded;
    });
  }
  await_copies();
  __syncthreads();
  const int channel = threadIdx.x % K, part = threadIdx.x / K;  // of sums over tokens
  if (part < kParts) {
    float sum = 0.0f;
#pragma unroll 8
    for (int v = part * (V / kParts); v < (part + 1) * (V / kParts); ++v)
      sum += __bfloat162float(read.before[v * kRow + channel]) * __bfloat162float(read.d_after[v * kRow + channel]);
    memory.through[part][channel] = sum;
  }
  SumTile dq[kAcross] = {}, dk[kAcross] = {};
#pragma unroll
  for (int c = 0; c < V; c += 16) {
    const LeftTile<false> reads(read.d_output + block * 16 * kValueRow + c, kValueRow);
    const LeftTile<false> writes(read.v + block * 16 * kValueRow + c, kValueRow);
#pragma unroll
    for (int n = 0; n < kAcross; ++n) {
      dq[n].add(reads, RightTile<>(read.before + c * kRow + first_column + n * 16, kRow));
      dk[n].add(writes, RightTile<>(read.d_after + c * kRow + first_column + n * 16, kRow));
    }
  }
  __syncthreads();  // `read` is not needed any more

  const Decays<K>& decays = memory.decays;
  // use(n, sum index, token, channel)
  const auto each_own = [&](const auto& use) {
#pragma unroll
    for (int n = 0; n < kAcross; ++n)
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        const int lane = threadIdx.x % 32;
        use(n, e, block * 16 + lane / 4 + e / 2 % 2 * 8, first_column + n * 16 + e / 4 * 8 + lane % 4 * 2 + e % 2);
      }
  };
  const auto sum_of = [](SumTile(&tiles)[kAcross], int n, int e) -> float& { return tiles[n].sums[e / 4][e % 4]; };
  const auto number = [&](const Half* x, int token, int channel) {
    return __bfloat162float(x[token * kRow + channel]);
  };
  const auto through = [&] {
    float sum = 0.0f;
#pragma unroll
    for (const auto& rows : memory.through) sum += rows[channel];
    return shrunk(decays.last(channel)) * sum;
  };
  const auto keep_gate = [&](int token, float gradient) {
    if (token < matrix.length) in.dg_THK[matrix.place(token, shape.heads, K) + channel] = gradient;
  };

  if (mild) {
    auto& x = memory.mild();
    float down[kAcross][8];
    each_own([&](int n, int e, int token, int column) {
      const float b = decays.at(token, column), middle = decays.middle_of_chunk(column);
      const float up = shrunk(middle - b);
      down[n][e] = shrunk(b - middle);
      const float q = number(memory.q, token, column), k = number(memory.k, token, column);
      x.queries[token * kRow + column] = __float2bfloat16_rn(q * down[n][e]);
      x.keys[token * kRow + column] = __float2bfloat16_rn(k * up);
      float &to_q = sum_of(dq, n, e), &to_k = sum_of(dk, n, e);
      to_q *= down[n][e] * (scale * shrunk(middle));
      to_k *= up * shrunk(decays.last(column) - middle);
      x.later[token * Decays<K>::kRow + column] = to_q * q;
      x.earlier[token * Decays<K>::kRow + column] = to_k * k;
      to_q += memory.diagonal[token] * k;
      to_k += memory.diagonal[token] * q;
    });
    __syncthreads();
    SumTile to_queries[kAcross] = {}, to_keys[kAcross] = {};
#pragma unroll
    for (int other = 0; other < kBlocks; ++other) {
      const LeftTile<false> pairs(memory.d_scores + block * 16 * kPairRow + other * 16, kPairRow);
      const auto add = [&](SumTile(&sums)[kAcross], const LeftTile<false>& with, const Half* rows) {
#pragma unroll
        for (int n = 0; n < kAcross; ++n)
          sums[n].add(with, RightTile<>(rows + other * 16 * kRow + first_column + n * 16, kRow));
      };
      if (other <= block) add(to_queries, other < block ? pairs : of_order<true>(pairs), x.keys);
      if (other >= block) add(to_keys, other > block ? pairs : of_order<false>(pairs), x.queries);
    }
    each_own([&](int n, int e, int token, int column) {
      const float from_keys = sum_of(to_queries, n, e), from_queries = sum_of(to_keys, n, e);
      sum_of(dq, n, e) += down[n][e] * from_keys;
      sum_of(dk, n, e) += shrunk(decays.middle_of_chunk(column) - decays.at(token, column)) * from_queries;
      x.later[token * Decays<K>::kRow + column] +=
          number(x.queries, token, column) * from_keys - number(x.keys, token, column) * from_queries;
    });
    __syncthreads();
    float later[kPartRows], earlier[kPartRows], total[2] = {};
    if (part < kParts) {
#pragma unroll
      for (int row = 0; row < kPartRows; ++row) {
        const int at = (part * kPartRows + row) * Decays<K>::kRow + channel;
        total[0] += later[row] = x.later[at];
        total[1] += earlier[row] = x.earlier[at];
      }
#pragma unroll
      for (int of = 0; of < 2; ++of) memory.totals[of][part][channel] = total[of];
    }
    __syncthreads();
    if (part < kParts) {
      float sum = through();
      for (int other = 0; other < kParts; ++other)
        if (other != part) sum += memory.totals[other < part][other][channel];
#pragma unroll
      for (int row = kPartRows - 2; row >= 0; --row) later[row] += later[row + 1];
#pragma unroll
      for (int row = 0; row < kPartRows; ++row) {
        keep_gate(part * kPartRows + row, later[row] + sum);
        sum += earlier[row];
      }
    }
  } else {
    auto& levels = memory.levels();
    GateSums gates;
    gates.part = part;
    const bool has_gates = threadIdx.x < 2 * K;
    const float* const own_z = levels.z + channel;

    each_own([&](int n, int e, int token, int channel) {
      float& sum = sum_of(dq, n, e);
      sum *= scale * shrunk(decays.at(token, channel));
      levels.z[token * Decays<K>::kRow + channel] = sum * number(memory.q, token, channel);
    });
    __syncthreads();
    if (has_gates) gates.add_queries(own_z, Decays<K>::kRow);
    __syncthreads();
    each_own([&](int n, int e, int token, int channel) {
      float& sum = sum_of(dk, n, e);
      sum *= shrunk(decays.last(channel) - decays.at(token, channel));
      levels.z[token * Decays<K>::kRow + channel] = sum * number(memory.k, token, channel);
      const float own = memory.diagonal[token];
      sum += own * number(memory.q, token, channel);
      sum_of(dq, n, e) += own * number(memory.k, token, channel);
    });
    __syncthreads();
    if (has_gates) gates.add_keys(own_z, Decays<K>::kRow);

    each_level([&]<int kHalf>() {
      scale_level<K, kHalf>(levels.x, memory.q, memory.k, decays, kThreads);
      __syncthreads();
      SumTile met[kAcross] = {};
      const auto meet_block = [&](int other) {
        LeftTile<false> pairs(memory.d_scores + block * 16 * kPairRow + other * 16, kPairRow);
        if constexpr (kHalf < 16) keep_level<kHalf>(pairs);
#pragma unroll
        for (int n = 0; n < kAcross; ++n)
          met[n].add(pairs, RightTile<>(levels.x + other * 16 * kRow + first_column + n * 16, kRow));
      };
      if constexpr (kHalf == 32) {
        meet_block((block ^ 2) & 2);
        meet_block(((block ^ 2) & 2) + 1);
      } else {
        meet_block(kHalf == 16 ? block ^ 1 : block);
      }
      each_own([&](int n, int e, int token, int channel) {
        const float sum = sum_of(met, n, e);
        const float gradient = decays.template to_middle<kHalf>(token, channel) * sum;
        ((token & kHalf) ? sum_of(dq, n, e) : sum_of(dk, n, e)) += gradient;
        levels.z[token * Decays<K>::kRow + channel] = sum * number(levels.x, token, channel);
      });
      __syncthreads();
      if (has_gates) gates.template add_level<kHalf>(own_z, Decays<K>::kRow);
    });

    if (has_gates)
#pragma unroll
      for (int row = 0; row < GateSums::kRows; ++row)
        keep_gate(gates.part * GateSums::kRows + row, gates.sums[row] + through());
  }
  each_own([&](int n, int e, int token, int channel) {  // over what no other thread reads any more
    memory.q[token * kRow + channel] = __float2bfloat16_rn(sum_of(dq, n, e));
    memory.k[token * kRow + channel] = __float2bfloat16_rn(sum_of(dk, n, e));
  });
  __syncthreads();
  for (int n = threadIdx.x; n < kTokens * K / 8; n += kThreads) {
    const int row = n / (K / 8), unit = n % (K / 8) * 8;
    if (row >= matrix.length) continue;
    const int64_t to = matrix.place(row, shape.heads, K) + unit;
    store<Half, 8>(static_cast<Half*>(in.dq_THK) + to, load<Half, 8>(memory.q + row * kRow + unit));
    store<Half, 8>(static_cast<Half*>(in.dk_THK) + to, load<Half, 8>(memory.k + row * kRow + unit));
  }
}

template <int K>
void launch_gate_chunk(const GatedShape& shape, const Rows& q, const Rows& k, const float* g, const GatedChunks& chunks,
                       Stream stream) {
  allow_shared_memory(gate_chunk<K>, sizeof(ScoreMemory<K>));
  const unsigned blocks = static_cast<unsigned>(shape.chunks.chunks * shape.heads);
  gate_chunk<K><<<blocks, kGateThreads<K>, sizeof(ScoreMemory<K>), stream>>>(shape, q, k, g, chunks);
}

template <int K, int V>
void launch_gradients(const GatedShape& shape, const GatedGradients& gradients, Stream stream) {
  using M = GradientMemory<K, V>;
  allow_shared_memory(chunk_gradients<K, V>, sizeof(M));
  const unsigned blocks = static_cast<unsigned>(shape.chunks.chunks * shape.heads);
  chunk_gradients<K, V><<<blocks, kThreads, sizeof(M), stream>>>(shape, gradients);
}

}  // namespace

void gate_chunks_fused(const GatedShape& shape, const Rows& q, const Rows& k, const float* g, const GatedChunks& chunks,
                       Stream stream) {
  (shape.key_dim == 64 ? launch_gate_chunk<64> : launch_gate_chunk<128>)(shape, q, k, g, chunks, stream);
  check_launch("gate_chunks_fused");
}

void gated_gradients(const GatedShape& shape, const GatedGradients& gradients, Stream stream) {
  const auto launch = shape.key_dim == 64
                          ? (shape.value_dim == 64 ? launch_gradients<64, 64> : launch_gradients<64, 128>)
                          : (shape.value_dim == 64 ? launch_gradients<128, 64> : launch_gradients<128, 128>);
  launch(shape, gradients, stream);
  check_launch("gated_gradients");
}

}  // namespace flashmorph::cuda
