#include "core/ops/cuda/gated_levels.cuh"

// The gradients of a chunk's queries, keys and gates. That of g_p sums over the pairs j < p <= i, which all have one
// sign of the decay: within a level's block over the later queries or the earlier keys. No two large sums are
// subtracted. Where the decays are mild, it is the sum of what the queries from p on give less what the keys from p on
// give: a pair that both have is the same product of the same rounded numbers twice, so that what is left of it is
// float32's rounding.

namespace flashmorph::cuda {
namespace {

constexpr int kThreads = 512;

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
  const ChunkOfHead matrix(shape);
  matrix.fetch<K>(memory.q, in.q, kThreads);
  matrix.fetch<K>(memory.k, in.k, kThreads);
  matrix.fetch<V>(read.v, in.v, kThreads);
  matrix.fetch<V>(read.d_output, in.d_output, kThreads);
  memory.decays.fetch(in.g_THK, matrix, kThreads);
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
    if (token < matrix.length) in.dg_THK[matrix.row(token) * K + channel] = gradient;
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
    const int64_t to = matrix.row(row) * K + unit;
    store<Half, 8>(static_cast<Half*>(in.dq_THK) + to, load<Half, 8>(memory.q + row * kRow + unit));
    store<Half, 8>(static_cast<Half*>(in.dk_THK) + to, load<Half, 8>(memory.k + row * kRow + unit));
  }
}

template <int K, int V>
void launch_gradients(const GatedShape& shape, const GatedGradients& gradients, Stream stream) {
  using M = GradientMemory<K, V>;
  allow_shared_memory(chunk_gradients<K, V>, sizeof(M));
  chunk_gradients<K, V><<<blocks_of(shape), kThreads, sizeof(M), stream>>>(shape, gradients);
}

}  // namespace

void gated_gradients(const GatedShape& shape, const GatedGradients& gradients, Stream stream) {
  const auto launch = shape.key_dim == 64
                          ? (shape.value_dim == 64 ? launch_gradients<64, 64> : launch_gradients<64, 128>)
                          : (shape.value_dim == 64 ? launch_gradients<128, 64> : launch_gradients<128, 128>);
  launch(shape, gradients, stream);
  check_launch("gated_gradients");
}

}  // namespace flashmorph::cuda
