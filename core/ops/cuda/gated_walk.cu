#include "core/ops/cuda/gated_walk.h"
#include "core/ops/cuda/launch.h"
#include "core/ops/cuda/warpgroup.cuh"

namespace flashmorph::cuda {
namespace {

using Half = __nv_bfloat16;

constexpr int kTokens = kWalkedChunk, kColumns = kWalkedColumns, kThreads = 128, kBlocks = 2;  // of a multiprocessor
static_assert(kTokens == kTileSide && kColumns == kTileSide);

// What a walk leaves: how a segment changes the state, the states of its chunks, or their output too.
enum class Pass { sums, states, output };

// A block is a warpgroup with 64 of the value columns of the state, transposed, in registers.
template <int K, Pass kPass>
struct Memory {
  static constexpr int kStages = 2;  // the next chunk arrives while this one is computed
  static constexpr int kKeyTiles = K / kTileSide;
  static constexpr bool kOutput = kPass == Pass::output;
  static constexpr int kStageTiles = (kOutput ? 2 : 1) * kKeyTiles + 1 + kOutput;

  Tile tiles[kStages * kStageTiles];
  alignas(16) float whole[kStages][K];
  Staged staged;

  __device__ Tile* keys(int64_t step) { return tiles + step % kStages * kStageTiles; }
  __device__ Tile& values(int64_t step) { return keys(step)[kKeyTiles]; }
  __device__ Tile& weights(int64_t step) { return keys(step)[kKeyTiles + 1]; }
  __device__ Tile* read(int64_t step) { return keys(step) + kKeyTiles + 2; }
};

// One block's part of a walk.
struct Part {
  int column;  // first of its value columns
  int64_t head, heads, segment, first, count;
  bool backwards;

  __device__ explicit Part(const GatedWalk& walk) : heads(walk.shape.heads), backwards(walk.backwards) {
    const int parts = static_cast<int>(walk.shape.value_dim / kColumns);
    column = static_cast<int>(blockIdx.x % parts) * kColumns;
    head = blockIdx.x / parts % heads;
    segment = blockIdx.x / parts / heads;
    first = walk.segments.start_N[segment];
    count = walk.segments.length_N[segment];
  }
  __device__ __forceinline__ int64_t chunk(int64_t step) const { return first + (backwards ? count - 1 - step : step); }
};

template <int K, Pass kPass>
__device__ __forceinline__ void fetch(Memory<K, kPass>& memory, const GatedWalk& walk, const Part& part, int64_t step) {
  using M = Memory<K, kPass>;
  if (step < part.count) {
    const int64_t chunk = part.chunk(step), matrix = chunk * part.heads + part.head;
    const int64_t start = walk.shape.chunks.start_N[chunk], length = walk.shape.chunks.length_N[chunk];
    fetch_matrix<K, kThreads>(memory.keys(step), walk.key_NHCK, matrix);
    fetch_tiles<1, kThreads>(
        &memory.values(step),
        static_cast<const Half*>(walk.values.data) + part.head * walk.values.head_stride + part.column,
        [&](int row) { return row < length ? (start + row) * walk.values.token_stride : -1; });
    if (threadIdx.x < K / 4)
      copy_async(memory.whole[step % M::kStages] + threadIdx.x * 4, walk.whole_NHK + matrix * K + threadIdx.x * 4,
                 true);
    if constexpr (M::kOutput) {
      fetch_matrix<K, kThreads>(memory.read(step), walk.read_NHCK, matrix);
      fetch_matrix<kTokens, kThreads>(&memory.weights(step), walk.weights_NHCC, matrix);
    }
  }
  commit_copies();
}

// kBackwards: the weights are read transposed, from the later tokens.
template <int K, Pass kPass, bool kBackwards>
__global__ void __launch_bounds__(kThreads, kBlocks)
    walk_gated(GatedWalk walk, const float* entered, Half* output, Half* states, float* left, float* shrink) {
  extern __shared__ __align__(1024) unsigned char shared[];
  using M = Memory<K, kPass>;
  M& memory = *reinterpret_cast<M*>(shared);
  const Part part(walk);
  const int64_t V = walk.shape.value_dim;
#pragma unroll
  for (int ahead = 0; ahead < M::kStages - 1; ++ahead) fetch<K, kPass>(memory, walk, part, ahead);

  WarpgroupSums state[M::kKeyTiles] = {};  // rows are value columns
  const auto each_state = [&](const auto& use) {
#pragma unroll
    for (int n = 0; n < M::kKeyTiles; ++n)
      state[n].each([&](float& sum, int value, int key) { use(sum, value, n * kTileSide + key); });
  };
  const auto state_at = [&](int64_t index) { return (index * part.heads + part.head) * K * V + part.column; };
  if (entered != nullptr) {
    const float* const from = entered + state_at(part.segment);
    each_state([&](float& sum, int value, int key) { sum = from[key * V + value]; });
  }
  float shrunk = 1.0f;  // of channel threadIdx.x

  for (int64_t step = 0; step < part.count; ++step) {
    const int64_t chunk = part.chunk(step);
    await_copies_before<M::kStages - 2>();
    publish_to_products();
    __syncthreads();
    fetch<K, kPass>(memory, walk, part, step + M::kStages - 1);

    WarpgroupSums read = {};  // rows are value columns
    LeftRows entering[M::kKeyTiles], values, written;
    if constexpr (kPass != Pass::sums)
#pragma unroll
      for (int n = 0; n < M::kKeyTiles; ++n) state[n].round_to(entering[n]);
    if constexpr (M::kOutput) {
      start_products();
#pragma unroll
      for (int n = 0; n < M::kKeyTiles; ++n) read.add_rows(entering[n], memory.read(step)[n]);
      commit_products();
    }
    if (kPass != Pass::sums && states != nullptr)
      store_rows(entering, memory.staged, states + ((chunk * part.heads + part.head) * V + part.column) * K);
    const float* const whole = memory.whole[step % M::kStages];
    if (kPass == Pass::sums && threadIdx.x < K) shrunk *= whole[threadIdx.x];
    each_state([&](float& sum, int, int key) { sum *= whole[key]; });
    values.load_transposed(memory.values(step));
    const float scale = static_cast<float>(walk.write_scale);
#pragma unroll
    for (int k = 0; k < kTokens / 16; ++k)
#pragma unroll
      for (int b = 0; b < 4; ++b) written.blocks[k][b] = scaled(values.blocks[k][b], scale, scale);
    start_products();
#pragma unroll
    for (int n = 0; n < M::kKeyTiles; ++n) state[n].add(written, memory.keys(step)[n]);
    commit_products();
    if constexpr (M::kOutput) {
      await_products<1>();
      pin(read.sums);
#pragma unroll
      for (float& sum : read.sums) sum *= static_cast<float>(walk.read_scale);
      start_products();
      if constexpr (kBackwards)
        read.add(values, memory.weights(step));
      else
        read.add_rows(values, memory.weights(step));
      commit_products();
    }
    await_products<0>();
#pragma unroll
    for (WarpgroupSums& tile : state) pin(tile.sums);
    if constexpr (M::kOutput) {
      pin(read.sums);
      const int64_t start = walk.shape.chunks.start_N[chunk], length = walk.shape.chunks.length_N[chunk];
      LeftRows rounded;
      read.round_to(rounded);
      const int64_t token_apart = part.heads * V;
      Half* const to = output + start * token_apart + part.head * V + part.column;
      store_columns(
          rounded, memory.staged, [&](int token, int unit) { return to + token * token_apart + unit * 8; },
          16 * token_apart, length);
    }
  }

  if constexpr (kPass == Pass::sums)
    if (part.column == 0 && threadIdx.x < K) shrink[(part.segment * part.heads + part.head) * K + threadIdx.x] = shrunk;
  if (left == nullptr) return;
  int64_t index = part.segment;
  if constexpr (kPass != Pass::sums) {  // only where the sequence ends
    const int64_t* const first = walk.segments.first_chunk_S1;
    int64_t sequence = 0;
    while (first[sequence + 1] <= part.segment) ++sequence;
    if (part.segment != (kBackwards ? first[sequence] : first[sequence + 1] - 1)) return;
    index = sequence;
  }
  each_state([&](float& sum, int value, int key) { left[state_at(index) + key * V + value] = sum; });
}

template <int K, Pass kPass>
void launch(const GatedWalk& walk, const float* entered, void* output, void* states, float* left, float* shrink,
            Stream stream) {
  const auto kernel = walk.backwards ? walk_gated<K, kPass, true> : walk_gated<K, kPass, false>;
  constexpr size_t kBytes = sizeof(Memory<K, kPass>);
  allow_shared_memory(kernel, kBytes);
  const unsigned blocks =
      static_cast<unsigned>(walk.segments.chunks * walk.shape.heads * blocks_per_head(walk.shape.value_dim));
  kernel<<<blocks, kThreads, kBytes, stream>>>(walk, entered, static_cast<Half*>(output), static_cast<Half*>(states),
                                               left, shrink);
  check_launch(kPass == Pass::sums ? "gated_segment_states" : "gated_walk");
}

template <Pass kPass>
void launch(const GatedWalk& walk, const float* entered, void* output, void* states, float* left, float* shrink,
            Stream stream) {
  (walk.shape.key_dim == 64 ? launch<64, kPass> : launch<128, kPass>)(walk, entered, output, states, left, shrink,
                                                                      stream);
}

}  // namespace

int64_t gated_blocks_at_once(int64_t key_dim) {
  const auto blocks = [&]<int K>(std::integral_constant<int, K>) {
    return blocks_at_once(walk_gated<K, Pass::output, false>, kThreads, sizeof(Memory<K, Pass::output>));
  };
  return key_dim == 64 ? blocks(std::integral_constant<int, 64>()) : blocks(std::integral_constant<int, 128>());
}

void gated_segment_states(const GatedWalk& walk, float* added, float* shrink, Stream stream) {
  launch<Pass::sums>(walk, nullptr, nullptr, nullptr, added, shrink, stream);
}

void gated_walk(const GatedWalk& walk, const float* entered, void* output, void* states, float* left, Stream stream) {
  (output != nullptr ? launch<Pass::output> : launch<Pass::states>)(walk, entered, output, states, left, nullptr,
                                                                    stream);
}

}  // namespace flashmorph::cuda
