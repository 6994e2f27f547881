#include "core/ops/cuda/launch.h"
#include "core/ops/cuda/lightning_walk.h"
#include "core/ops/cuda/warpgroup.cuh"

namespace flashmorph::cuda {
namespace {

using Half = __nv_bfloat16;

constexpr int kTokens = kWalkedChunk, kColumns = kWalkedColumns;
static_assert(kTokens == kTileSide && kColumns == kTileSide);
constexpr int kMostGroups = 2;         // of a block
constexpr double kUnderflow = -104.0;  // exp of it is zero in float32

// A block has kGroups warpgroups, each with kColumns of the value columns.
template <int K, int kGroups, bool kOutput>
struct Memory {
  static constexpr int kKeyTiles = K / kTileSide, kQueryTiles = kOutput ? kKeyTiles : 0;
  static constexpr int kStageTiles = kQueryTiles + kKeyTiles + kGroups;
  static constexpr int kStages = kOutput ? kGroups + 1 : 4;  // so many chunks are here or on their way
  static constexpr int kStateTiles = kGroups * kQueryTiles;

  Tile tiles[kStages * kStageTiles + 2 * kStateTiles];
  float decay[kTokens + 1];  // exp(g n)

  __device__ Tile* queries(int64_t chunk) { return tiles + chunk % kStages * kStageTiles; }
  __device__ Tile* keys(int64_t chunk) { return queries(chunk) + kQueryTiles; }
  __device__ Tile* values(int64_t chunk) { return keys(chunk) + kKeyTiles; }
  // Rows are the group's value columns. A chunk's are read while the next one's are written.
  __device__ Tile* state(int64_t chunk, int group) {
    return tiles + kStages * kStageTiles + chunk % 2 * kStateTiles + group * kKeyTiles;
  }
};

// One block's part of a walk.
struct Part {
  int column;  // first of its value columns
  int64_t head, segment, start, length;
  bool backwards;

  __device__ Part(const LightningWalk& walk, int columns) : backwards(walk.backwards) {
    const int parts = static_cast<int>(walk.value_dim) / columns;
    column = static_cast<int>(blockIdx.x % parts) * columns;
    head = blockIdx.x / parts % walk.heads;
    segment = blockIdx.x / parts / walk.heads;
    start = walk.segments.start_N[segment];
    length = walk.segments.length_N[segment];
  }
  __device__ int64_t token(int64_t step) const { return start + (backwards ? length - 1 - step : step); }

  // A chunk's rows into kTiles neighbouring tiles, zeros behind the segment's end.
  template <int kTiles, int kThreads>
  __device__ __forceinline__ void fetch(Tile* to, const Rows& rows, int64_t chunk, int from_column) const {
    fetch_tiles<kTiles, kThreads>(to, static_cast<const Half*>(rows.data) + head * rows.head_stride + from_column,
                                  [&](int row) {
                                    const int64_t step = chunk * kTokens + row;
                                    return step < length ? token(step) * rows.token_stride : -1;
                                  });
  }
};

// A chunk's values, transposed, times what a token still weighs when the walk leaves the chunk.
__device__ __forceinline__ void load_written(LeftRows& values, const Tile& tile, const float* decay, int tokens,
                                             int late, float write_scale) {
  values.load_transposed(tile);
#pragma unroll
  for (int k = 0; k < kTokens / 16; ++k)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int last = tokens - 1 - (k * 16 + half * 8 + threadIdx.x % 4 * 2) + late;
      const float weights[2] = {write_scale * decay[max(last, 0)], write_scale * decay[max(last - 1, 0)]};
#pragma unroll
      for (int b = half * 2; b < half * 2 + 2; ++b)
        values.blocks[k][b] = scaled(values.blocks[k][b], weights[0], weights[1]);
    }
}

// A warp's rows of a chunk's output, of which `tile` has room for: a lane stores 16 bytes at a time.
__device__ __forceinline__ void store_rows(const WarpgroupSums& output, Tile& tile, const Part& part, int64_t chunk,
                                           Half* to, int64_t token_stride) {
  output.round_to(tile);
  __syncwarp();
  const int lane = threadIdx.x % 32, first = threadIdx.x % 128 / 32 * 16;
#pragma unroll
  for (int n = 0; n < 16; n += 4) {
    const int row = first + n + lane / 8, unit = lane % 8;
    const int64_t step = chunk * kTokens + row;
    if (step < part.length)
      store<Half, 8>(to + part.token(step) * token_stride + unit * 8, load<Half, 8>(swizzled(tile, row, unit)));
  }
  __syncwarp();  // before other lanes write there
}

template <int K, int kGroups>
constexpr int kBlocks = kGroups == 2 ? 1 : (K == 64 ? 3 : 2);  // of a multiprocessor

// kOutput: false for segment_states.
template <int K, int kGroups, bool kOutput>
__global__ void __launch_bounds__(128 * kGroups, kBlocks<K, kGroups>)
    walk_segment(LightningWalk walk, const float* entered, bool entered_transposed, Half* to, float* left) {
  extern __shared__ __align__(1024) unsigned char shared[];
  using M = Memory<K, kGroups, kOutput>;
  constexpr int kThreads = 128 * kGroups;
  M& memory = *reinterpret_cast<M*>(shared);
  const Part part(walk, kGroups * kColumns);
  const int group = threadIdx.x / 128, column = part.column + group * kColumns;
  const int64_t chunks = (part.length + kTokens - 1) / kTokens;
  const auto fetch_chunk = [&](int64_t chunk) {
    if (chunk < chunks) {
      if constexpr (kOutput) part.fetch<M::kKeyTiles, kThreads>(memory.queries(chunk), walk.q, chunk, 0);
      part.fetch<M::kKeyTiles, kThreads>(memory.keys(chunk), walk.k, chunk, 0);
      part.fetch<kGroups, kThreads>(memory.values(chunk), walk.v, chunk, part.column);
    }
    commit_copies();
  };

  const double log_decay = fmax(walk.log_decay_H[part.head], kForgotten);
  int64_t chunk = 0;
  if (!kOutput && log_decay * static_cast<double>(part.length) < kUnderflow)  // what the segment's end has forgotten
    chunk = (part.length - static_cast<int64_t>(ceil(kUnderflow / log_decay))) / kTokens;
#pragma unroll
  for (int ahead = 0; ahead < M::kStages - 1; ++ahead) fetch_chunk(chunk + ahead);
  for (int n = threadIdx.x; n <= kTokens; n += kThreads) memory.decay[n] = expf(static_cast<float>(log_decay * n));

  WarpgroupSums state[M::kKeyTiles] = {};
  const auto state_at = [&](int64_t index) { return (index * walk.heads + part.head) * K * walk.value_dim; };
  const auto each_state = [&](const auto& use) {  // use(sum, value column, key)
#pragma unroll
    for (int n = 0; n < M::kKeyTiles; ++n)
      state[n].each([&](float& sum, int row, int key) { use(sum, column + row, n * kTileSide + key); });
  };
  if (kOutput && entered != nullptr) {
    const float* from = entered + state_at(part.segment);
    each_state([&](float& sum, int value, int key) {
      sum = from[entered_transposed ? value * K + key : key * walk.value_dim + value];
    });
  }

  WarpgroupSums output, decays;  // of each score
  float read_decays[2];          // of a lane's rows
  if constexpr (kOutput) {
    __syncthreads();
    decays.each([&](float& decay, int row, int key) {
      decay = static_cast<float>(walk.scale) * memory.decay[max(row - key, 0)];
    });
    const int row = threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4;
#pragma unroll
    for (int half = 0; half < 2; ++half)
      read_decays[half] = static_cast<float>(walk.read_scale) * memory.decay[row + half * 8 + 1 - walk.late];
  }

  for (; chunk < chunks; ++chunk) {
    Tile* const entering = memory.state(chunk, group);
    if constexpr (kOutput)
#pragma unroll
      for (int n = 0; n < M::kKeyTiles; ++n) state[n].round_to(entering[n]);
    await_copies_before<M::kStages - 2>();
    publish_to_products();
    __syncthreads();
    fetch_chunk(chunk + M::kStages - 1);

    const Tile* const keys = memory.keys(chunk);
    const Tile& values = memory.values(chunk)[group];
    LeftRows weights, written;
    if constexpr (kOutput) {
      WarpgroupSums scores;
      start_products();
      scores.template multiply<M::kKeyTiles>(memory.queries(chunk), keys);
      commit_products();
      output.template multiply<M::kKeyTiles>(memory.queries(chunk), entering);
      commit_products();

      await_products<1>();
      pin(scores.sums);
      WarpgroupSums::each_place(
          [&](int n, int row, int key) { scores.sums[n] = row >= key ? scores.sums[n] * decays.sums[n] : 0.0f; });
      scores.round_to(weights);
      await_products<0>();
      pin(output.sums);
#pragma unroll
      for (int e = 0; e < kTileSide / 2; ++e) output.sums[e] *= read_decays[e / 2 % 2];
    }

    const int tokens = static_cast<int>(min(part.length - chunk * kTokens, int64_t{kTokens}));
    load_written(written, values, memory.decay, tokens, walk.late, static_cast<float>(walk.write_scale));
    each_state([&](float& sum, int, int) { sum *= memory.decay[tokens]; });
    start_products();
    if constexpr (kOutput) {
      output.add(weights, values);
      commit_products();
    }
#pragma unroll
    for (int n = 0; n < M::kKeyTiles; ++n) state[n].add(written, keys[n]);
    commit_products();
    if constexpr (kOutput) {
      await_products<1>();
      pin(output.sums);
      store_rows(output, memory.state(chunk + 1, group)[0], part, chunk, to + part.head * walk.value_dim + column,
                 walk.heads * walk.value_dim);
    }
    await_products<0>();
#pragma unroll
    for (WarpgroupSums& tile : state) pin(tile.sums);
  }

  if (left == nullptr) return;
  int64_t index = part.segment;
  if constexpr (kOutput) {  // only where the sequence ends
    const int64_t* const first = walk.segments.first_chunk_S1;
    int64_t sequence = 0;
    while (first[sequence + 1] <= part.segment) ++sequence;
    if (part.segment != (part.backwards ? first[sequence] : first[sequence + 1] - 1)) return;
    index = sequence;
  }
  each_state([&](float& sum, int value, int key) { left[state_at(index) + key * walk.value_dim + value] = sum; });
}

// Calls work(K, groups) for the head dims.
template <class Work>
auto with_dims(int64_t key_dim, int64_t value_dim, const Work& work) {
  const auto with_key_dim = [&](auto groups) {
    return key_dim == 64 ? work(std::integral_constant<int, 64>(), groups)
                         : work(std::integral_constant<int, 128>(), groups);
  };
  return value_dim / kColumns < kMostGroups ? with_key_dim(std::integral_constant<int, 1>())
                                            : with_key_dim(std::integral_constant<int, kMostGroups>());
}

template <bool kOutput>
void launch(const LightningWalk& walk, const float* entered, bool entered_transposed, void* output, float* left,
            Stream stream) {
  with_dims(walk.key_dim, walk.value_dim,
            [&]<int K, int kGroups>(std::integral_constant<int, K>, std::integral_constant<int, kGroups>) {
              const auto kernel = walk_segment<K, kGroups, kOutput>;
              constexpr size_t kBytes = sizeof(Memory<K, kGroups, kOutput>);
              allow_shared_memory(kernel, kBytes);
              const int64_t blocks = walk.segments.chunks * walk.heads * walk.value_dim / (kGroups * kColumns);
              kernel<<<static_cast<unsigned>(blocks), 128 * kGroups, kBytes, stream>>>(
                  walk, entered, entered_transposed, static_cast<Half*>(output), left);
            });
  check_launch(kOutput ? "lightning_walk" : "segment_states");
}

}  // namespace

bool has_warpgroup_products() { return device_attribute(cudaDevAttrComputeCapabilityMajor) == 9; }

int64_t lightning_heads_at_once(int64_t key_dim, int64_t value_dim) {
  return with_dims(key_dim, value_dim,
                   [&]<int K, int kGroups>(std::integral_constant<int, K>, std::integral_constant<int, kGroups>) {
                     return blocks_at_once(walk_segment<K, kGroups, true>, 128 * kGroups,
                                           sizeof(Memory<K, kGroups, true>)) *
                            kGroups * kColumns / value_dim;
                   });
}

void segment_states(const LightningWalk& walk, float* added, Stream stream) {
  launch<false>(walk, nullptr, false, nullptr, added, stream);
}

void lightning_walk(const LightningWalk& walk, const float* entered, bool entered_transposed, void* output, float* left,
                    Stream stream) {
  launch<true>(walk, entered, entered_transposed, output, left, stream);
}

}  // namespace flashmorph::cuda
