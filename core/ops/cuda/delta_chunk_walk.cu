#include "core/ops/cuda/bulk_copies.cuh"
#include "core/ops/cuda/delta_chunk.h"
#include "core/ops/cuda/overlap.cuh"
#include "core/ops/cuda/warpgroup.cuh"

// The walks of gated_delta_rule's states over a sequence's chunks. A block has 64 value columns of one head's state
// from end to end, transposed, in the registers of a warpgroup: rounded, they are the left factor of the product that
// reads them, and what that gives, rounded, is the left factor of the one that writes. Between two steps nothing but
// the operands goes through shared memory, where a warp of their own brings them some steps ahead. A step's chain is
// those two products, their roundings and the state's decay; all else is done while products run.

namespace flashmorph::cuda {
namespace {

using Half = __nv_bfloat16;

constexpr int kTokens = kWalkedChunk, kColumns = kWalkedColumns;
constexpr int kWarps = 4, kThreads = 32 * (kWarps + 1);  // that compute, and the one that copies
static_assert(kTokens == kTileSide && kColumns == kTileSide);
constexpr int kTogether = 4;  // steps that are told of: before that all that has been written must have arrived
constexpr size_t kSharedMemory = 227 << 10;  // that a block may have

// What a walk leaves: the sequence's output, or each chunk's state and what its tokens write, or their gradients.
enum class Pass { output, states, gradients };

template <int K, Pass kPass>
struct Memory {
  static constexpr int kKeyTiles = K / kTileSide;
  static constexpr bool kQueries = kPass != Pass::states, kGradients = kPass == Pass::gradients;
  static constexpr int kAddedTiles = sizeof(float[kTokens][kColumns]) / sizeof(Tile);
  static constexpr int kStageTiles = (kQueries ? 3 : 2) * kKeyTiles + kQueries + (kGradients ? 1 : kAddedTiles);
  static constexpr size_t kFixed = sizeof(Staged) + 128;
  static constexpr int kFitting = static_cast<int>((kSharedMemory - kFixed) / (kStageTiles * sizeof(Tile)));
  static constexpr int kStages = kFitting < 4 ? kFitting : 4;  // so many chunks are here or on their way

  Tile tiles[kStages * kStageTiles];
  Staged staged;
  Arrivals arrived[kStages], freed[kStages];
  float whole[kStages];

  __device__ Tile* reading(int stage) { return tiles + stage * kStageTiles; }
  __device__ Tile* writing(int stage) { return reading(stage) + kKeyTiles; }
  __device__ Tile* queries(int stage) { return writing(stage) + kKeyTiles; }
  __device__ Tile& scores(int stage) { return queries(stage)[kKeyTiles]; }
  __device__ Tile& upstream(int stage) { return queries(stage)[kKeyTiles + 1]; }
  __device__ float* added(int stage) {
    return reinterpret_cast<float*>(tiles[(stage + 1) * kStageTiles - kAddedTiles]);
  }
};

// Where a step's operands are, and for the how manieth time others are there.
template <int kStages>
struct Turn {
  int stage = 0;
  unsigned round = 0;
  __device__ __forceinline__ Turn next() const {
    return stage + 1 < kStages ? Turn{stage + 1, round} : Turn{0, round + 1};
  }
};

// One block's part of a walk.
struct Part {
  int part, column;  // of its value columns, and their first
  int64_t owner, heads, head, parts, first, steps;
  bool backwards;

  __device__ Part(const DeltaChunkShape& shape, bool backwards)
      : heads(shape.heads), parts(shape.value_dim / kColumns), backwards(backwards) {
    part = static_cast<int>(blockIdx.x % parts);
    column = part * kColumns;
    owner = blockIdx.x / parts;
    head = owner % heads;
    const int64_t sequence = owner / heads;
    first = shape.chunks.first_chunk_S1[sequence];
    steps = shape.chunks.first_chunk_S1[sequence + 1] - first;
  }
  __device__ __forceinline__ int64_t chunk(int64_t step) const { return first + (backwards ? steps - 1 - step : step); }
  __device__ __forceinline__ int64_t matrix(int64_t step) const { return chunk(step) * heads + head; }
};

// Where a chunk's tokens lie.
struct Tokens {
  int64_t start = 0, length = 0;
  Tokens() = default;
  __device__ __forceinline__ Tokens(const DeltaChunkShape& shape, int64_t chunk)
      : start(shape.chunks.start_N[chunk]), length(shape.chunks.length_N[chunk]) {}
};

// Of the steps from `first` on, up to 32, those before `end` are known to be prepared, and lane l has the decay of the
// l-th of them.
struct Ahead {
  int64_t first = 0, end = 0;
  float whole = 0.0f;

  // By a warp, once no more are known: until one is prepared at least.
  __device__ __forceinline__ void look(const DeltaChunkWalk& walk, const Part& part) {
    const int64_t own = end + threadIdx.x % 32;
    bool prepared = false;
    unsigned all = 0;
    do {
      prepared =
          own < part.steps && (walk.prepared_NH == nullptr || times_told(walk.prepared_NH + part.matrix(own)) > 0);
      all = __ballot_sync(0xffffffffu, prepared);
    } while (all % 2 == 0);
    if (prepared) whole = walk.whole_NH[part.matrix(own)];
    __syncwarp();
    publish_to_block_copies();
    first = end;
    end += __clz(__brev(~all));
  }
  __device__ __forceinline__ float whole_of(int64_t step) const {
    return __shfl_sync(0xffffffffu, whole, static_cast<int>(step - first));
  }
};

// By a warp: all steps' operands, each as soon as it is prepared and there is room; and what the others have done is
// told of, when that frees the room.
template <int K, Pass kPass>
__device__ __forceinline__ void copy_operands(Memory<K, kPass>& memory, const DeltaChunkShape& shape,
                                              const DeltaChunkWalk& walk, const Part& part) {
  using M = Memory<K, kPass>;
  constexpr unsigned kBytes = (M::kStageTiles - M::kGradients) * sizeof(Tile);
  const int lane = threadIdx.x % 32;
  Turn<M::kStages> turn;
  Ahead ahead;
  const auto copy_step = [&](int64_t step) {
    const int64_t matrix = part.matrix(step);
    const int stage = turn.stage;
    Arrivals& arrived = memory.arrived[stage];
    Tokens tokens;
    if constexpr (M::kGradients) tokens = Tokens(shape, part.chunk(step));
    if (step == ahead.end) ahead.look(walk, part);
    const float whole = ahead.whole_of(step);
    memory.freed[stage].await(turn.round + 1);
    if (lane == 0) {
      memory.whole[stage] = whole;
      const auto copy = [&](void* to, const void* tiles, int64_t number, int count) {
        const unsigned bytes = count * sizeof(Tile);
        copy_block(to, static_cast<const Half*>(tiles) + number * count * (kTileSide * kTileSide), bytes, arrived);
      };
      arrived.arrive_before(kBytes);
      copy(memory.reading(stage), M::kGradients ? walk.k_tail_NHCK : walk.k_gone_NHCK, matrix, M::kKeyTiles);
      if constexpr (!M::kGradients)
        copy(memory.added(stage), walk.added_NHVC, matrix * part.parts + part.part, M::kAddedTiles);
      if constexpr (M::kQueries) {
        copy(memory.scores(stage), walk.scores_NHCC, matrix, 1);
        copy(memory.queries(stage), walk.q_reach_NHCK, matrix, M::kKeyTiles);
      }
      copy(memory.writing(stage), M::kGradients ? walk.k_gone_NHCK : walk.k_tail_NHCK, matrix, M::kKeyTiles);
    }
    if constexpr (M::kGradients) {
      const Half* const from =
          static_cast<const Half*>(walk.d_output.data) + part.head * walk.d_output.head_stride + part.column;
#pragma unroll 4
      for (int row = lane / 8; row < kTokens; row += 4) {
        const bool present = row < tokens.length;
        copy_async(swizzled(memory.upstream(stage), row, lane % 8),
                   from + (present ? (tokens.start + row) * walk.d_output.token_stride : 0) + lane % 8 * 8, present);
      }
      arrived.arrive_with_copies();
    }
  };
  const auto tell_up_to = [&](int64_t done) {
    const int64_t own = done / kTogether * kTogether + lane;
    const bool due = done % kTogether == kTogether - 1 || done == part.steps - 1;
    if (done >= 0 && due && own <= done) tell(walk.walked_NH + part.matrix(own));
  };
  for (int64_t step = 0; step < part.steps; ++step, turn = turn.next()) {
    copy_step(step);
    if (walk.walked_NH != nullptr) tell_up_to(step - M::kStages);
  }
  if (walk.walked_NH == nullptr) return;
  for (int64_t step = part.steps; step < part.steps + M::kStages; ++step, turn = turn.next()) {
    memory.freed[turn.stage].await(turn.round + 1);
    tell_up_to(step - M::kStages);
  }
}

// By a warpgroup.
template <int K, Pass kPass>
__device__ __forceinline__ void compute(Memory<K, kPass>& memory, const DeltaChunkShape& shape,
                                        const DeltaChunkWalk& walk, const Part& part) {
  using M = Memory<K, kPass>;
  const int lane = threadIdx.x % 32;
  const int64_t V = shape.value_dim;
  WarpgroupSums state[M::kKeyTiles], written, output;  // rows are value columns
  LeftRows entering[M::kKeyTiles], writing, upstream;
  const auto each_state = [&](const auto& use) {
#pragma unroll
    for (int n = 0; n < M::kKeyTiles; ++n)
      state[n].each([&](float& sum, int value, int key) { use(sum, value, n * kTileSide + key); });
  };
  float* const kept = walk.state_SHKV + part.owner * K * V + part.column;
  each_state([&](float& sum, int value, int key) { sum = kept[key * V + value]; });

  // What a chunk's tokens write beside what the state gives, which is the next product of `written`.
  float next_whole = 0.0f;
  const auto start_written = [&](const Turn<M::kStages>& turn) {
    memory.arrived[turn.stage].await(turn.round);
    next_whole = memory.whole[turn.stage];
    if constexpr (M::kGradients) {
      upstream.load_transposed(memory.upstream(turn.stage));
      written = {};
      start_products();
      written.add(upstream, product_rows(memory.scores(turn.stage)));
      commit_products();
    } else {
      const float* const added = memory.added(turn.stage) + threadIdx.x * 4;
#pragma unroll
      for (int n = 0; n < kTileSide / 8; ++n) {
        const auto sums = load<float, 4>(added + n * kTileSide * 8);
#pragma unroll
        for (int e = 0; e < 4; ++e) written.sums[n * 4 + e] = sums.value[e];
      }
    }
  };
  const auto store_output = [&](const Tokens& tokens) {
    pin(output.sums);
    LeftRows rounded;
    output.round_to(rounded);
    const int64_t token_apart = part.heads * V;
    Half* const to = static_cast<Half*>(walk.output_THV) + tokens.start * token_apart + part.head * V + part.column;
    store_columns(
        rounded, memory.staged, [&](int token, int unit) { return to + token * token_apart + unit * 8; },
        16 * token_apart, tokens.length);
  };

  Turn<M::kStages> turn;
  if (part.steps > 0) start_written(turn);
  for (int64_t step = 0; step < part.steps; ++step) {
    const int64_t tile = part.matrix(step) * part.parts + part.part;  // of what the tokens write
    const int stage = turn.stage;
    const uint64_t reading = product_rows(memory.reading(stage)[0]);
    const auto operand = [&](int number) { return rows_behind(reading, number * kTileSide * kTileSide); };
    const bool more = step + 1 < part.steps;
    const float whole = next_whole;
    Tokens tokens;
    if constexpr (kPass == Pass::output) tokens = Tokens(shape, part.chunk(step));

#pragma unroll
    for (int n = 0; n < M::kKeyTiles; ++n) {
      state[n].round_to(entering[n]);
      for (float& sum : state[n].sums) sum *= whole;
      pin(state[n].sums);  // touched while products are under way, the compiler would wait for all of them
    }
    start_products();
#pragma unroll
    for (int n = 0; n < M::kKeyTiles; ++n) written.add_rows(entering[n], operand(n));
    commit_products();
    if constexpr (kPass == Pass::output) {
      output = {};
      start_products();
#pragma unroll
      for (int n = 0; n < M::kKeyTiles; ++n) output.add_rows(entering[n], operand(2 * M::kKeyTiles + n));
      commit_products();
    }
    if constexpr (M::kGradients) {
#pragma unroll
      for (int n = 0; n < M::kKeyTiles; ++n) state[n].add(upstream, operand(2 * M::kKeyTiles + n));
      commit_products();
    }
    if constexpr (kPass != Pass::output)
#pragma unroll
      for (int n = 0; n < M::kKeyTiles; ++n)
        store_tile_rows(entering[n], memory.staged,
                        static_cast<Half*>(walk.states_NHVK) + (tile * M::kKeyTiles + n) * (kTileSide * kTileSide));

    await_products<M::kQueries ? 1 : 0>();
    pin(written.sums);
    written.round_to(writing);
    start_products();
    if constexpr (kPass == Pass::output) {
      output.add_rows(writing, operand(3 * M::kKeyTiles));
      commit_products();
    }
#pragma unroll
    for (int n = 0; n < M::kKeyTiles; ++n) state[n].add(writing, operand(M::kKeyTiles + n));
    commit_products();
    if constexpr (M::kQueries) await_products<1>();  // the output is there, or nobody reads `upstream` any more
    if constexpr (kPass == Pass::output) {
      store_output(tokens);
    } else {
      Half* const to = static_cast<Half*>(walk.written_NHCV) + tile * (kTileSide * kTileSide);
      store_columns(
          writing, memory.staged, [&](int token, int unit) { return swizzled(to, token, unit); }, 16 * kTileSide,
          kTokens);
    }
    turn = turn.next();
    if (more) start_written(turn);
    await_products<0>();
#pragma unroll
    for (WarpgroupSums& sums : state) pin(sums.sums);
    if constexpr (M::kGradients) pin(written.sums);
    __syncwarp();
    if (lane == 0) memory.freed[stage].arrive();
  }
  each_state([&](float& sum, int value, int key) { kept[key * V + value] = sum; });
}

// blockIdx.x: a sequence, a head and its part of the value columns.
template <int K, Pass kPass>
__global__ void __launch_bounds__(kThreads, 1) walk_delta(DeltaChunkShape shape, DeltaChunkWalk walk) {
  extern __shared__ __align__(1024) unsigned char shared[];
  using M = Memory<K, kPass>;
  static_assert(sizeof(M) <= kSharedMemory);
  M& memory = *reinterpret_cast<M*>(shared);
  let_next_begin();
  const Part part(shape, M::kGradients);
  if (threadIdx.x < M::kStages) {
    memory.arrived[threadIdx.x].start(M::kGradients ? 1 + 32 : 1);
    memory.freed[threadIdx.x].start(kWarps);
  }
  __syncthreads();
  if (__shfl_sync(0xffffffffu, threadIdx.x / 32, 0) < kWarps)  // which the compiler sees to be a warp's
    compute<K, kPass>(memory, shape, walk, part);
  else
    copy_operands<K, kPass>(memory, shape, walk, part);
  await_kernel_before();
}

template <int K, Pass kPass>
void walk_with(const DeltaChunkShape& shape, const DeltaChunkWalk& walk, Stream stream) {
  using M = Memory<K, kPass>;
  allow_shared_memory(walk_delta<K, kPass>, sizeof(M));
  launch(walk_delta<K, kPass>, /*early=*/walk.prepared_NH != nullptr, static_cast<unsigned>(shape.walking_blocks()),
         kThreads, sizeof(M), stream, shape, walk);
  check_launch("delta_chunk_walk");
}

}  // namespace

// A walk's blocks take multiprocessors away from what goes on beside it: with more than a third of them that costs more
// than the walk's time.
bool delta_overlaps(const DeltaChunkShape& shape) { return 3 * shape.walking_blocks() <= multiprocessors(); }

void delta_chunk_walk(const DeltaChunkShape& shape, const DeltaChunkWalk& walk, Stream stream) {
  const auto with_pass = [&]<Pass kPass>(std::integral_constant<Pass, kPass>) {
    (shape.key_dim == 64 ? walk_with<64, kPass> : walk_with<128, kPass>)(shape, walk, stream);
  };
  if (walk.output_THV != nullptr) return with_pass(std::integral_constant<Pass, Pass::output>());
  walk.d_output.data == nullptr ? with_pass(std::integral_constant<Pass, Pass::states>())
                                : with_pass(std::integral_constant<Pass, Pass::gradients>());
}

}  // namespace flashmorph::cuda
