#include "core/ops/cuda/bulk_copies.cuh"
#include "core/ops/cuda/chunk.cuh"
#include "core/ops/cuda/delta_chunk.h"
#include "core/ops/cuda/overlap.cuh"
#include "core/ops/cuda/warpgroup.cuh"

// The gradients of a chunk from what the walks of both directions left. A multiprocessor has two blocks, so that one's
// copies arrive while the other computes: the states, which are half of what a block reads, come in slices.

namespace flashmorph::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kSliceRows = 32, kSlices = 2;  // values of a state's slice of 64 keys, and slices here or on their way

using Slice = Half[kSliceRows * kTileSide];

template <int K, int V>
struct GradientMemory {
  Tile q[K / kTileSide], k[K / kTileSide];
  Tile d_output[V / kTileSide], y[V / kTileSide], written[V / kTileSide];
  Tile pairs;  // first the inverse, then d_scores on and below the diagonal's blocks, d_products transposed above them
  Slice before[kSlices], d_after[kSlices];
  Half d_products[kBlocks][16 * 16];  // the diagonal's blocks
  double b[kTokens];
  float beta[kTokens], y_v[kTokens];
  float across[2][kBlocks][kTokens], along[2][kBlocks][kTokens];       // a block's sums over rows and columns of pairs
  float reading[2][kTokens], writing[2][kTokens], k_read[2][kTokens];  // of each half of a tile's keys
  float carried[kWarps];
  Arrivals arrived, slices[kSlices];
};

// 16 x 16 numbers of a tile or slice from a row and column on, as the left and the right factor of a warp's product,
// and their transpose.
template <bool kTransposed, bool kLoadTransposed>
struct TileBlock {
  uint32_t blocks[4];
  __device__ __forceinline__ TileBlock(const Half* tile, int row, int column) {
    const int lane = threadIdx.x % 32, lower = kTransposed ? lane / 16 : lane / 8 % 2,
              right = kTransposed ? lane / 8 % 2 : lane / 16;
    load_blocks<kLoadTransposed>(blocks, swizzled(tile, row + lower * 8 + lane % 8, column / 8 + right));
  }
};
template <bool kTransposed = false>
using Left = TileBlock<kTransposed, kTransposed>;
template <bool kTransposed = false>
using Right = TileBlock<kTransposed, !kTransposed>;

struct Rounded {
  uint32_t blocks[4];
  __device__ __forceinline__ explicit Rounded(const SumTile& tile) {
#pragma unroll
    for (int b = 0; b < 4; ++b) blocks[b] = packed(tile.sums[b / 2][b % 2 * 2], tile.sums[b / 2][b % 2 * 2 + 1]);
  }
  __device__ __forceinline__ void store(Half* tile, int row, int column) const {
    const int lane = threadIdx.x % 32;
    store_blocks<false>(blocks, swizzled(tile, row + lane % 16, column / 8 + lane / 16));
  }
  __device__ __forceinline__ void store_transposed(Half* tile, int row, int column) const {
    const int lane = threadIdx.x % 32;
    store_blocks<true>(blocks, swizzled(tile, row + lane / 16 * 8 + lane % 8, column / 8 + lane / 8 % 2));
  }
};

// The products of 16 rows each, from rows i and j on, of matrices in neighbouring tiles.
template <int kWidth>
__device__ __forceinline__ SumTile row_products(const Tile* a, int i, const Tile* b, int j) {
  SumTile sums = {};
#pragma unroll
  for (int c = 0; c < kWidth; c += 16)
    sums.add(Left<>(a[c / kTileSide], i, c % kTileSide), Right<true>(b[c / kTileSide], j, c % kTileSide));
  return sums;
}

// What tokens i of `block` and j of block `other` give each other: through the output, or through what i writes.
template <bool kWrites, int K, int V>
__device__ __forceinline__ void pair_gradients(GradientMemory<K, V>& memory, int block, int other, float scale) {
  const int lane = threadIdx.x % 32, i = block * 16, j = other * 16;
  SumTile found = row_products<V>(kWrites ? memory.y : memory.d_output, i, memory.written, j);
  const SumTile product = row_products<K>(kWrites ? memory.k : memory.q, i, memory.k, j);
  float across[2] = {}, along[2][2] = {};  // what decays carry, of rows and columns; with kWrites but for a row's beta
#pragma unroll
  for (int part = 0; part < 4; ++part)
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int row = i + lane / 4 + part % 2 * 8, column = j + part / 2 * 8 + lane % 4 * 2 + e;
      float& sum = found.sums[part / 2][part % 2 * 2 + e];
      const bool earlier = column < row;
      const float gam =
          earlier || (!kWrites && column == row) ? __expf(static_cast<float>(memory.b[row] - memory.b[column])) : 0.0f;
      sum *= kWrites ? -gam : scale * gam;
      const float carried = earlier ? sum * product.sums[part / 2][part % 2 * 2 + e] : 0.0f;
      across[part % 2] += carried;
      along[part / 2][e] += kWrites ? memory.beta[row] * carried : carried;
      if constexpr (kWrites) sum *= memory.beta[row];
    }
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    across[n] = warp_sum(across[n], 4);
    if (lane % 4 == 0) memory.across[kWrites][other][i + lane / 4 + n * 8] = across[n];
#pragma unroll
    for (int e = 0; e < 2; ++e) {
#pragma unroll
      for (int step = 4; step < 32; step *= 2) along[n][e] += __shfl_xor_sync(0xffffffffu, along[n][e], step);
      if (lane < 4) memory.along[kWrites][block][j + n * 8 + lane * 2 + e] = along[n][e];
    }
  }
  const Rounded rounded(found);
  if constexpr (!kWrites)
    rounded.store(memory.pairs, i, j);
  else if (block != other)
    rounded.store_transposed(memory.pairs, j, i);
  else
    store_blocks<false>(rounded.blocks, memory.d_products[block] + lane % 16 * 16 + lane / 16 * 8);
}

// A block of the diagonal of d_products, of which what lies below it is there.
template <bool kTransposed>
struct DiagonalBlock {
  uint32_t blocks[4];
  __device__ __forceinline__ explicit DiagonalBlock(const Half* block) {
    const int lane = threadIdx.x % 32, lower = kTransposed ? lane / 16 : lane / 8 % 2,
              right = kTransposed ? lane / 8 % 2 : lane / 16;
    load_blocks<kTransposed>(blocks, block + (lower * 8 + lane % 8) * 16 + right * 8);
  }
};

// A block has a chunk and head; beside the walks the first blocks have the last, which are walked first. Of products
// with the states a warp has 16 tokens and half of a tile's keys.
template <int K, int V>
__global__ void __launch_bounds__(kThreads, 2) chunk_gradients(DeltaChunkGradients in, DeltaChunkShape shape) {
  extern __shared__ __align__(1024) unsigned char shared[];
  using M = GradientMemory<K, V>;
  M& memory = *reinterpret_cast<M*>(shared);
  constexpr int kKeyTiles = K / kTileSide, kValueTiles = V / kTileSide, kSlicesOfTile = V / kSliceRows;
  constexpr int kOfValues = V / 16, kTogether = kWarps / kOfValues;  // warps for all values, and for the same ones
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const ChunkOfHead chunk(shape, in.walked_NH != nullptr ? gridDim.x - 1 - blockIdx.x : blockIdx.x);

  const auto fetch_slice = [&](int n) {  // by one thread; of a key tile all values, then of the next
    const int keys = n / kSlicesOfTile, value = n % kSlicesOfTile * kSliceRows;
    const int64_t tile = (chunk.index * kValueTiles + value / kTileSide) * kKeyTiles + keys;
    const int64_t from = (tile * kTileSide + value % kTileSide) * kTileSide;
    Arrivals& arrived = memory.slices[n % kSlices];
    arrived.arrive_before(2 * sizeof(Slice));
    copy_block(memory.before[n % kSlices], static_cast<const Half*>(in.before_NHVK) + from, sizeof(Slice), arrived);
    copy_block(memory.d_after[n % kSlices], static_cast<const Half*>(in.d_after_NHVK) + from, sizeof(Slice), arrived);
  };
  if (threadIdx.x == 0) {
    memory.arrived.start(1);
    for (Arrivals& slice : memory.slices) slice.start(1);
    if (in.walked_NH != nullptr) {
      while (times_told(in.walked_NH + chunk.index) < 2 * kValueTiles) {
      }
      publish_to_block_copies();
    }
    memory.arrived.arrive_before(sizeof(memory.y) + sizeof(memory.written) + sizeof(Tile));
    const auto fetch = [&](auto& to, const void* x) {
      copy_block(to, static_cast<const unsigned char*>(x) + chunk.index * sizeof(to), sizeof(to), memory.arrived);
    };
    fetch(memory.y, in.d_written_NHCV);
    fetch(memory.pairs, in.inverse_NHCC);
    fetch(memory.written, in.written_NHCV);
    for (int n = 0; n < kSlices; ++n) fetch_slice(n);
  }
  const auto place = [&](const Rows& rows) {
    return [&rows, &chunk](int row) { return row < chunk.length ? (chunk.start + row) * rows.token_stride : -1; };
  };
  const auto of_head = [&](const Rows& rows) {
    return static_cast<const Half*>(rows.data) + chunk.head * rows.head_stride;
  };
  fetch_tiles<kKeyTiles, kThreads>(memory.q, of_head(in.q), place(in.q));
  fetch_tiles<kKeyTiles, kThreads>(memory.k, of_head(in.k), place(in.k));
  fetch_tiles<kValueTiles, kThreads>(memory.d_output, of_head(in.d_output), place(in.d_output));
  constexpr int kUnits = V / 8, kRowsApart = kThreads / kUnits;  // a lane has 8 values of rows so far apart
  const int unit = threadIdx.x % kUnits, first_row = threadIdx.x / kUnits;
  Vector<uint32_t, 4> v[kTokens / kRowsApart];
#pragma unroll
  for (int n = 0; n < kTokens / kRowsApart; ++n) {
    const int64_t from = place(in.v)(first_row + n * kRowsApart);
    v[n] = from < 0 ? Vector<uint32_t, 4>{}
                    : load<uint32_t, 4>(reinterpret_cast<const uint32_t*>(of_head(in.v) + from) + unit * 4);
  }
  await_copies();
  __syncthreads();
  if (threadIdx.x < kTokens) {
    memory.b[threadIdx.x] = in.b_NHC[chunk.index * kTokens + threadIdx.x];
    memory.beta[threadIdx.x] = in.beta_NHC[chunk.index * kTokens + threadIdx.x];
  }
  memory.arrived.await(0);

  {  // y = (I + M)^-T d_written, over d_written
    const int values = warp % kOfValues * 16, first = warp / kOfValues;
    Half* const tile = memory.y[values / kTileSide];
    SumTile y[kBlocks / kTogether] = {};
#pragma unroll
    for (int n = 0; n < kBlocks / kTogether; ++n)
#pragma unroll
      for (int other = 0; other < kBlocks; ++other)
        if (const int i = first + n * kTogether; other >= i)
          y[n].add(Left<true>(memory.pairs, other * 16, i * 16), Right<>(tile, other * 16, values % kTileSide));
    __syncthreads();
#pragma unroll
    for (int n = 0; n < kBlocks / kTogether; ++n)
      Rounded(y[n]).store(tile, (first + n * kTogether) * 16, values % kTileSide);
  }
  __syncthreads();
#pragma unroll
  for (int n = 0; n < kTokens / kRowsApart; ++n) {  // dv = beta y, and y v
    const int token = first_row + n * kRowsApart;
    const float beta = memory.beta[token];
    auto y = load<uint32_t, 4>(reinterpret_cast<const uint32_t*>(swizzled(memory.y[unit / 8], token, unit % 8)));
    float sum = 0.0f;
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float2 a = unpacked(y.value[e]), b = unpacked(v[n].value[e]);
      sum += a.x * b.x + a.y * b.y;
      y.value[e] = packed(beta * a.x, beta * a.y);
    }
    if (token < chunk.length)
      store<uint32_t, 4>(reinterpret_cast<uint32_t*>(static_cast<Half*>(in.dv_THV) + chunk.row(token) * V) + unit * 4,
                         y);
    sum = warp_sum(sum, kUnits);
    if (unit == 0) memory.y_v[token] = sum;
  }

  const float scale = static_cast<float>(shape.scale);
#pragma unroll 1
  for (int pair = warp / 2; pair < kBlocks * (kBlocks + 1) / 2; pair += kWarps / 2) {
    const int i = (pair >= 1) + (pair >= 3) + (pair >= 6), j = pair - i * (i + 1) / 2;
    warp % 2 == 0 ? pair_gradients<false, K, V>(memory, i, j, scale) : pair_gradients<true, K, V>(memory, i, j, scale);
  }
  __syncthreads();

  const int block = warp % kBlocks, half = warp / kBlocks, here = block * 16;
  float product = 0.0f, to_reads[2] = {}, to_writes[2] = {}, k_read[2] = {};
#pragma unroll 1
  for (int keys = 0; keys < kKeyTiles; ++keys) {
    SumTile dq[2] = {}, dk[2] = {}, gone[2] = {};
#pragma unroll 1
    for (int s = 0; s < kSlicesOfTile; ++s) {
      const int slice = keys * kSlicesOfTile + s, value = s * kSliceRows, stage = slice % kSlices;
      const Half *const before = memory.before[stage], *const d_after = memory.d_after[stage];
      memory.slices[stage].await(slice / kSlices);
#pragma unroll
      for (int c = 0; c < kSliceRows; c += 16) {
        const auto rows = [&](const Tile* x) { return Left<>(x[value / kTileSide], here, value % kTileSide + c); };
        const Left<> reads = rows(memory.d_output), writes = rows(memory.written), found = rows(memory.y);
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          const Right<> state(before, c, half * 32 + n * 16);
          dq[n].add(reads, state);
          gone[n].add(found, state);
          dk[n].add(writes, Right<>(d_after, c, half * 32 + n * 16));
        }
      }
      static_assert(sizeof(Slice) == kThreads * 16);
      const auto a = load<uint32_t, 4>(reinterpret_cast<const uint32_t*>(before) + threadIdx.x * 4),
                 b = load<uint32_t, 4>(reinterpret_cast<const uint32_t*>(d_after) + threadIdx.x * 4);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float2 x = unpacked(a.value[e]), y = unpacked(b.value[e]);
        product += x.x * y.x + x.y * y.y;
      }
      __syncthreads();
      if (threadIdx.x == 0 && slice + kSlices < kKeyTiles * kSlicesOfTile) fetch_slice(slice + kSlices);
    }

#pragma unroll
    for (int lower = 0; lower < 2; ++lower) {
      const int token = here + lane / 4 + lower * 8;
      const double b = memory.b[token];
      const float gam = __expf(static_cast<float>(b)), tail = __expf(static_cast<float>(memory.b[kTokens - 1] - b));
      const float beta = memory.beta[token];
#pragma unroll
      for (int n = 0; n < 2; ++n)
#pragma unroll
        for (int right = 0; right < 2; ++right) {
          const int column = half * 32 + n * 16 + right * 8;
          const auto pair = [&](const Tile* x) {
            return unpacked(*reinterpret_cast<const uint32_t*>(swizzled(x[keys], token, column / 8) + lane % 4 * 2));
          };
          const float2 q = pair(memory.q), k = pair(memory.k);
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            float &to_q = dq[n].sums[right][lower * 2 + e], &to_k = dk[n].sums[right][lower * 2 + e];
            const float lost = gam * gone[n].sums[right][lower * 2 + e], own_k = e == 0 ? k.x : k.y;
            to_q *= scale * gam;
            to_k *= tail;
            to_reads[lower] += (e == 0 ? q.x : q.y) * to_q;
            to_writes[lower] += own_k * to_k;
            k_read[lower] += own_k * lost;
            to_k -= beta * lost;
          }
        }
    }

#pragma unroll
    for (int other = 0; other < kBlocks; ++other) {
      const int there = other * 16;
      const auto add = [&](SumTile* sums, const auto& left, const Tile* rows) {
#pragma unroll
        for (int n = 0; n < 2; ++n) sums[n].add(left, Right<>(rows[keys], there, half * 32 + n * 16));
      };
      if (other <= block) add(dq, Left<>(memory.pairs, here, there), memory.k);
      if (other >= block) add(dk, Left<true>(memory.pairs, there, here), memory.q);
      if (other < block) add(dk, Left<true>(memory.pairs, there, here), memory.k);
      if (other > block) add(dk, Left<>(memory.pairs, here, there), memory.k);
      if (other == block) {
        add(dk, DiagonalBlock<false>(memory.d_products[block]), memory.k);
        add(dk, DiagonalBlock<true>(memory.d_products[block]), memory.k);
      }
    }
    __syncthreads();  // nobody reads these tiles of q and k any more
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      Rounded(dq[n]).store(memory.q[keys], here, half * 32 + n * 16);
      Rounded(dk[n]).store(memory.k[keys], here, half * 32 + n * 16);
    }
    __syncwarp();
#pragma unroll
    for (int n = lane; n < 16 * 4; n += 32) {
      const int token = here + n / 4, unit = half * 4 + n % 4;
      if (token >= chunk.length) continue;
      const int64_t to = chunk.row(token) * K + keys * kTileSide + unit * 8;
      store<Half, 8>(static_cast<Half*>(in.dq_THK) + to, load<Half, 8>(swizzled(memory.q[keys], token, unit)));
      store<Half, 8>(static_cast<Half*>(in.dk_THK) + to, load<Half, 8>(swizzled(memory.k[keys], token, unit)));
    }
  }

#pragma unroll
  for (int lower = 0; lower < 2; ++lower) {
    const int token = here + lane / 4 + lower * 8;
    const float reads = warp_sum(to_reads[lower], 4), writes = warp_sum(to_writes[lower], 4),
                read = warp_sum(k_read[lower], 4);
    if (lane % 4 == 0) {
      memory.reading[half][token] = reads - memory.beta[token] * read;
      memory.writing[half][token] = writes;
      memory.k_read[half][token] = read;
    }
  }
  product = warp_sum(product);
  if (lane == 0) memory.carried[warp] = product;
  __syncthreads();
  if (warp != 0) return;

  // dg_m = whole <S, dS'> + sum over i >= m of reading_i + sum over j < m of writing_j + sum over j < m <= i of what
  // pairs (i, j) carry. The last is the sum over t < m of what t carries as j less what it carries as i.
  double whole = 0.0, reading[2], before[2];
  for (int w = 0; w < kWarps; ++w) whole += static_cast<double>(memory.carried[w]);
  whole *= static_cast<double>(__expf(static_cast<float>(memory.b[kTokens - 1])));
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    const int token = lane * 2 + n;
    float read = 0.0f, own = 0.0f, along = 0.0f;
    for (int other = 0; other <= token / 16; ++other) {
      read += memory.across[false][other][token];
      own += memory.across[true][other][token];
    }
    for (int i = token / 16; i < kBlocks; ++i) along += memory.along[false][i][token] + memory.along[true][i][token];
    reading[n] = static_cast<double>(memory.reading[0][token] + memory.reading[1][token]);
    before[n] = static_cast<double>(memory.writing[0][token] + memory.writing[1][token]) - reading[n] +
                static_cast<double>(along) - static_cast<double>(read + memory.beta[token] * own);
    if (token < chunk.length)
      in.d_beta_TH[chunk.row(token)] = own + memory.y_v[token] - memory.k_read[0][token] - memory.k_read[1][token];
  }
  whole += warp_sum(reading[0] + reading[1]);
  double sum = before[0] + before[1];
#pragma unroll
  for (int apart = 1; apart < 32; apart *= 2) {
    const double more = __shfl_up_sync(0xffffffffu, sum, apart);
    if (lane >= apart) sum += more;
  }
#pragma unroll
  for (int n = 0; n < 2; ++n)
    if (const int token = lane * 2 + n; token < chunk.length)
      in.dg_TH[chunk.row(token)] = static_cast<float>(whole + sum - before[1] - (n == 0 ? before[0] : 0.0));
  if (blockIdx.x + 1 == gridDim.x) await_kernel_before();
}

template <int K, int V>
void differentiate(const DeltaChunkShape& shape, const DeltaChunkGradients& gradients, Stream stream) {
  allow_shared_memory(chunk_gradients<K, V>, sizeof(GradientMemory<K, V>));
  launch(chunk_gradients<K, V>, /*early=*/gradients.walked_NH != nullptr, blocks_of(shape), kThreads,
         sizeof(GradientMemory<K, V>), stream, gradients, shape);
}

}  // namespace

void delta_chunk_gradients(const DeltaChunkShape& shape, const DeltaChunkGradients& gradients, Stream stream) {
  const auto run = shape.key_dim == 64 ? (shape.value_dim == 64 ? differentiate<64, 64> : differentiate<64, 128>)
                                       : (shape.value_dim == 64 ? differentiate<128, 64> : differentiate<128, 128>);
  run(shape, gradients, stream);
  check_launch("delta_chunk_gradients");
}

}  // namespace flashmorph::cuda
