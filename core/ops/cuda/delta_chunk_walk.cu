#include "core/ops/cuda/delta_chunk.h"
#include "core/ops/cuda/launch.h"
#include "core/ops/cuda/warpgroup.cuh"

// The walks of gated_delta_rule's states over a sequence's chunks. A block is a warpgroup that has 64 value columns of
// one head's state from end to end, transposed, in registers: rounded, they are the left factor of the product that
// reads them, and what that gives, rounded, is the left factor of the one that writes. Between two steps nothing but
// the operands goes through shared memory.

namespace flashmorph::cuda {
namespace {

using Half = __nv_bfloat16;

constexpr int kTokens = kWalkedChunk, kColumns = kWalkedColumns, kThreads = 128;
static_assert(kTokens == kTileSide && kColumns == kTileSide);
constexpr size_t kSharedMemory = 227 << 10;  // that a block may have

// What a walk leaves: the sequence's output, or each chunk's state and what its tokens write, or their gradients.
enum class Pass { output, states, gradients };

template <int K, Pass kPass>
struct Memory {
  static constexpr int kKeyTiles = K / kTileSide;
  static constexpr bool kQueries = kPass != Pass::states, kGradients = kPass == Pass::gradients;
  static constexpr int kStageTiles = (kQueries ? 3 : 2) * kKeyTiles + kQueries + kGradients;
  static constexpr int kAddedRow = kColumns + 4;  // so that 4 rows of 8 numbers lie in different banks
  static constexpr int kAdded = kGradients ? 4 : kTokens * kAddedRow;
  static constexpr size_t kStage = kStageTiles * sizeof(Tile) + kAdded * sizeof(float);
  static constexpr int kStages = 3 * kStage + sizeof(Staged) <= kSharedMemory ? 3 : 2;

  Tile tiles[kStages * kStageTiles];
  float added[kStages][kAdded];
  Staged staged;

  __device__ Tile* reading(int64_t step) { return tiles + step % kStages * kStageTiles; }
  __device__ Tile* writing(int64_t step) { return reading(step) + kKeyTiles; }
  __device__ Tile* queries(int64_t step) { return writing(step) + kKeyTiles; }
  __device__ Tile& scores(int64_t step) { return queries(step)[kKeyTiles]; }
  __device__ Tile& upstream(int64_t step) { return queries(step)[kKeyTiles + 1]; }
};

// One block's part of a walk.
struct Part {
  int column;  // first of its value columns
  int64_t owner, heads, head, value_dim, first, steps;
  bool backwards;

  __device__ Part(const DeltaChunkShape& shape, bool backwards)
      : heads(shape.heads), value_dim(shape.value_dim), backwards(backwards) {
    const int parts = static_cast<int>(value_dim) / kColumns;
    column = static_cast<int>(blockIdx.x % parts) * kColumns;
    owner = blockIdx.x / parts;
    head = owner % heads;
    const int64_t sequence = owner / heads;
    first = shape.chunks.first_chunk_S1[sequence];
    steps = shape.chunks.first_chunk_S1[sequence + 1] - first;
  }
  __device__ __forceinline__ int64_t chunk(int64_t step) const { return first + (backwards ? steps - 1 - step : step); }
  __device__ __forceinline__ int64_t matrix(int64_t step) const { return chunk(step) * heads + head; }
};

template <int K, Pass kPass>
__device__ __forceinline__ void fetch(Memory<K, kPass>& memory, const DeltaChunkShape& shape,
                                      const DeltaChunkWalk& walk, const Part& part, int64_t step) {
  using M = Memory<K, kPass>;
  if (step < part.steps) {
    const int64_t matrix = part.matrix(step);
    fetch_matrix<K, kThreads>(memory.reading(step), M::kGradients ? walk.k_tail_NHCK : walk.k_gone_NHCK, matrix);
    fetch_matrix<K, kThreads>(memory.writing(step), M::kGradients ? walk.k_gone_NHCK : walk.k_tail_NHCK, matrix);
    if constexpr (M::kQueries) {
      fetch_matrix<K, kThreads>(memory.queries(step), walk.q_reach_NHCK, matrix);
      fetch_matrix<kTokens, kThreads>(&memory.scores(step), walk.scores_NHCC, matrix);
    }
    if constexpr (M::kGradients) {
      const Rows& rows = walk.d_output;
      const int64_t start = shape.chunks.start_N[part.chunk(step)], length = shape.chunks.length_N[part.chunk(step)];
      fetch_tiles<1, kThreads>(&memory.upstream(step),
                               static_cast<const Half*>(rows.data) + part.head * rows.head_stride + part.column,
                               [&](int row) { return row < length ? (start + row) * rows.token_stride : -1; });
    } else {
      float* const added = memory.added[step % M::kStages];
      for (int n = threadIdx.x; n < kTokens * kColumns / 4; n += kThreads) {
        const int row = n / (kColumns / 4), unit = n % (kColumns / 4) * 4;
        copy_async(added + row * M::kAddedRow + unit,
                   walk.added_NHCV + (matrix * kTokens + row) * part.value_dim + part.column + unit, true);
      }
    }
  }
  commit_copies();
}

// blockIdx.x: a sequence, a head and its part of the value columns.
template <int K, Pass kPass>
__global__ void __launch_bounds__(kThreads, 1) walk_delta(DeltaChunkShape shape, DeltaChunkWalk walk) {
  extern __shared__ __align__(1024) unsigned char shared[];
  using M = Memory<K, kPass>;
  M& memory = *reinterpret_cast<M*>(shared);
  const Part part(shape, M::kGradients);
  const int64_t V = part.value_dim;
#pragma unroll
  for (int ahead = 0; ahead < M::kStages - 1; ++ahead) fetch<K, kPass>(memory, shape, walk, part, ahead);

  WarpgroupSums state[M::kKeyTiles];  // rows are value columns
  const auto each_state = [&](const auto& use) {
#pragma unroll
    for (int n = 0; n < M::kKeyTiles; ++n)
      state[n].each([&](float& sum, int value, int key) { use(sum, value, n * kTileSide + key); });
  };
  float* const kept = walk.state_SHKV + part.owner * K * V + part.column;
  each_state([&](float& sum, int value, int key) { sum = kept[key * V + value]; });
  float next_whole = part.steps > 0 ? walk.whole_NH[part.matrix(0)] : 0.0f;  // read a step before its use

  for (int64_t step = 0; step < part.steps; ++step) {
    const int64_t matrix = part.matrix(step);
    const float whole = next_whole;
    if (step + 1 < part.steps) next_whole = walk.whole_NH[part.matrix(step + 1)];
    await_copies_before<M::kStages - 2>();
    publish_to_products();
    __syncthreads();
    fetch<K, kPass>(memory, shape, walk, part, step + M::kStages - 1);

    LeftRows entering[M::kKeyTiles], upstream;
#pragma unroll
    for (int n = 0; n < M::kKeyTiles; ++n) state[n].round_to(entering[n]);
    WarpgroupSums written = {}, output = {};  // rows are value columns
    if constexpr (M::kGradients) {
      upstream.load_transposed(memory.upstream(step));
    } else {
      const float* const added = memory.added[step % M::kStages];
      written.each([&](float& sum, int value, int token) { sum = added[token * M::kAddedRow + value]; });
    }
    start_products();
    if constexpr (M::kGradients) written.add(upstream, memory.scores(step));
#pragma unroll
    for (int n = 0; n < M::kKeyTiles; ++n) written.add_rows(entering[n], memory.reading(step)[n]);
    commit_products();
    if constexpr (kPass == Pass::output) {
#pragma unroll
      for (int n = 0; n < M::kKeyTiles; ++n) output.add_rows(entering[n], memory.queries(step)[n]);
      commit_products();
    } else {
      store_rows(entering, memory.staged, static_cast<Half*>(walk.states_NHVK) + (matrix * V + part.column) * K);
    }
    each_state([&](float& sum, int, int) { sum *= whole; });
    if constexpr (M::kGradients) {
      start_products();
#pragma unroll
      for (int n = 0; n < M::kKeyTiles; ++n) state[n].add(upstream, memory.queries(step)[n]);
      commit_products();
    }

    await_products<M::kQueries ? 1 : 0>();
    pin(written.sums);
    LeftRows writing;
    written.round_to(writing);
    start_products();
#pragma unroll
    for (int n = 0; n < M::kKeyTiles; ++n) state[n].add(writing, memory.writing(step)[n]);
    if constexpr (kPass == Pass::output) output.add_rows(writing, memory.scores(step));
    commit_products();
    if constexpr (kPass != Pass::output)
      store_columns(written, memory.staged, [&](int token) {
        return static_cast<Half*>(walk.written_NHCV) + (matrix * kTokens + token) * V + part.column;
      });
    await_products<0>();
#pragma unroll
    for (WarpgroupSums& tile : state) pin(tile.sums);
    if constexpr (kPass == Pass::output) {
      pin(output.sums);
      const int64_t start = shape.chunks.start_N[part.chunk(step)], length = shape.chunks.length_N[part.chunk(step)];
      store_columns(output, memory.staged, [&](int token) {
        if (token >= length) return static_cast<Half*>(nullptr);
        return static_cast<Half*>(walk.output_THV) + ((start + token) * part.heads + part.head) * V + part.column;
      });
    }
  }
  each_state([&](float& sum, int value, int key) { kept[key * V + value] = sum; });
}

template <int K, Pass kPass>
void launch(const DeltaChunkShape& shape, const DeltaChunkWalk& walk, Stream stream) {
  using M = Memory<K, kPass>;
  allow_shared_memory(walk_delta<K, kPass>, sizeof(M));
  const int64_t blocks = shape.chunks.sequences * shape.heads * blocks_per_head(shape.value_dim);
  walk_delta<K, kPass><<<static_cast<unsigned>(blocks), kThreads, sizeof(M), stream>>>(shape, walk);
  check_launch("delta_chunk_walk");
}

}  // namespace

void delta_chunk_walk(const DeltaChunkShape& shape, const DeltaChunkWalk& walk, Stream stream) {
  const auto with_pass = [&]<Pass kPass>(std::integral_constant<Pass, kPass>) {
    (shape.key_dim == 64 ? launch<64, kPass> : launch<128, kPass>)(shape, walk, stream);
  };
  if (walk.output_THV != nullptr) return with_pass(std::integral_constant<Pass, Pass::output>());
  walk.d_output.data == nullptr ? with_pass(std::integral_constant<Pass, Pass::states>())
                                : with_pass(std::integral_constant<Pass, Pass::gradients>());
}

}  // namespace flashmorph::cuda
