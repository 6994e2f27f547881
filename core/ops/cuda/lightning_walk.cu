#include "core/ops/cuda/lightning_walk.h"
#include "core/ops/cuda/walk.cuh"

namespace flashmorph::cuda {
namespace {

constexpr int kStages = 2;  // the next chunk arrives while this one is computed

template <int K>
struct Memory {
  static constexpr int kRow = K + kPad, kValueRow = kColumns + kPad;
  struct Stage {
    Half q[kTokens * kRow], k[kTokens * kRow], v[kTokens * kValueRow];
  };
  Stage stages[kStages];
  Half state[kColumns * kRow];
  float decay[kTokens + 1];  // exp(g n)
};

// One block's part of a walk.
struct Part {
  int column;  // first of its value columns
  int64_t head, segment, start, length;
  bool backwards;

  __device__ Part(const LightningWalk& walk) : backwards(walk.backwards) {
    const int parts = static_cast<int>(walk.value_dim / kColumns);
    column = static_cast<int>(blockIdx.x % parts) * kColumns;
    head = blockIdx.x / parts % walk.heads;
    segment = blockIdx.x / parts / walk.heads;
    start = walk.segments.start_N[segment];
    length = walk.segments.length_N[segment];
  }
  __device__ int64_t token(int64_t step) const { return start + (backwards ? length - 1 - step : step); }

  template <int kWidth>
  __device__ __forceinline__ void fetch(Half* to, const Rows& rows, int64_t first, int from_column) const {
    const Half* const x = static_cast<const Half*>(rows.data) + head * rows.head_stride + from_column;
    fetch_rows<kWidth>(to, x, kWalkThreads,
                       [&](int row) { return first + row < length ? token(first + row) * rows.token_stride : -1; });
  }
};

// A chunk's values, transposed, the columns scaled by what a token still weighs at the chunk's end.
struct WrittenValues : LeftTile<true> {
  __device__ __forceinline__ WrittenValues(const Half* tile, int stride, const float (&weights)[4])
      : LeftTile<true>(tile, stride) {
#pragma unroll
    for (int b = 0; b < 4; ++b) blocks[b] = scaled(blocks[b], weights[b / 2 * 2], weights[b / 2 * 2 + 1]);
  }
};

// S = decay S + K^T (weights V) over a chunk of `tokens` tokens.
template <int K>
__device__ __forceinline__ void advance(WalkedState<K>& state, const typename Memory<K>::Stage& stage,
                                        const float* decay, int tokens, int late, float write_scale) {
  using M = Memory<K>;
  state.each([&](float& sum, int, int) { sum *= decay[tokens]; });
#pragma unroll
  for (int t = 0; t < kTokens; t += 16) {
    float weights[4];
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      const int token = t + threadIdx.x % 4 * 2 + w / 2 * 8 + w % 2;
      weights[w] = write_scale * decay[max(tokens - 1 - token + late, 0)];
    }
    const Half* const v = stage.v + t * M::kValueRow + state.value;
    const WrittenValues values[2] = {{v, M::kValueRow, weights}, {v + 16, M::kValueRow, weights}};
    state.add(values, stage.k + t * M::kRow);
  }
}

// The output of a chunk's tokens 16 block + (0 .. 15).
template <int K>
__device__ __forceinline__ WalkedOutput chunk_output(const typename Memory<K>::Stage& stage, const Half* state,
                                                     const float* decay, int block, const LightningWalk& walk) {
  using M = Memory<K>;
  const Half* const q = stage.q + block * 16 * M::kRow;
  SumTile scores[kTokens / 16] = {};
  WalkedOutput output;
#pragma unroll
  for (int c = 0; c < K; c += 16) {
    const LeftTile<false> queries(q + c, M::kRow);
#pragma unroll
    for (int j = 0; j < kTokens / 16; ++j)
      if (j <= block) scores[j].add(queries, RightTile<true>(stage.k + j * 16 * M::kRow + c, M::kRow));
    output.add_state(queries, state + c, M::kRow);
  }
  const float scale = static_cast<float>(walk.scale), read_scale = static_cast<float>(walk.read_scale);
  output.each([&](float& sum, int row, int) { sum *= read_scale * decay[block * 16 + row + 1 - walk.late]; });
#pragma unroll
  for (int j = 0; j < kTokens / 16; ++j)
    if (j <= block) {
      scores[j].each([&](float& sum, int row, int column) {
        const int apart = (block - j) * 16 + row - column;
        sum = apart >= 0 ? sum * scale * decay[apart] : 0.0f;
      });
      output.add_values(RoundedSums(scores[j]), stage.v + j * 16 * M::kValueRow);
    }
  return output;
}

// kOutput: false for segment_states.
template <int K, bool kOutput>
__global__ void __launch_bounds__(kWalkThreads, 2)
    walk_segment(LightningWalk walk, const float* entered, bool entered_transposed, Half* output, float* left) {
  extern __shared__ __align__(16) unsigned char shared[];
  Memory<K>& memory = *reinterpret_cast<Memory<K>*>(shared);
  const Part part(walk);
  const auto fetch_chunk = [&](int64_t chunk) {
    auto& stage = memory.stages[chunk % kStages];
    if constexpr (kOutput) part.fetch<K>(stage.q, walk.q, chunk * kTokens, 0);
    part.fetch<K>(stage.k, walk.k, chunk * kTokens, 0);
    part.fetch<kColumns>(stage.v, walk.v, chunk * kTokens, part.column);
  };
  fetch_chunk(0);
  const double log_decay = fmax(walk.log_decay_H[part.head], kForgotten);
  for (int n = threadIdx.x; n <= kTokens; n += kWalkThreads) memory.decay[n] = expf(static_cast<float>(log_decay * n));

  WalkedState<K> state;
  const auto state_at = [&](int64_t index) { return (index * walk.heads + part.head) * K * walk.value_dim; };
  if (kOutput && entered != nullptr) {
    const float* from = entered + state_at(part.segment);
    state.each([&](float& sum, int value, int key) {
      const int64_t column = part.column + value;
      sum = from[entered_transposed ? column * K + key : key * walk.value_dim + column];
    });
  }

  const int block =
      (threadIdx.x / 32 + blockIdx.x) % kWarps;  // later tokens take longer: each scheduler gets all kinds
  const int64_t chunks = (part.length + kTokens - 1) / kTokens;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    auto& stage = memory.stages[chunk % kStages];
    if constexpr (kOutput) state.round_to(memory.state);
    await_copies();
    __syncthreads();
    if (chunk + 1 < chunks) fetch_chunk(chunk + 1);
    if constexpr (kOutput) {
      const int64_t first = chunk * kTokens + block * 16;
      chunk_output<K>(stage, memory.state, memory.decay, block, walk)
          .store(stage.q + block * 16 * Memory<K>::kRow, Memory<K>::kRow, [&](int row) {
            if (first + row >= part.length) return static_cast<Half*>(nullptr);
            return output + (part.token(first + row) * walk.heads + part.head) * walk.value_dim + part.column;
          });
      __syncthreads();  // all have read the state in shared memory
    }
    const int tokens = static_cast<int>(min(part.length - chunk * kTokens, int64_t{kTokens}));
    advance<K>(state, stage, memory.decay, tokens, walk.late, static_cast<float>(walk.write_scale));
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
  state.each([&](float& sum, int value, int key) {
    left[state_at(index) + key * walk.value_dim + part.column + value] = sum;
  });
}

template <int K, bool kOutput>
void launch(const LightningWalk& walk, const float* entered, bool entered_transposed, void* output, float* left,
            Stream stream) {
  const auto kernel = walk_segment<K, kOutput>;
  allow_shared_memory(kernel, sizeof(Memory<K>));
  const unsigned blocks = static_cast<unsigned>(walk.segments.chunks * walk.heads * blocks_per_head(walk.value_dim));
  kernel<<<blocks, kWalkThreads, sizeof(Memory<K>), stream>>>(walk, entered, entered_transposed,
                                                              static_cast<Half*>(output), left);
  check_launch(kOutput ? "lightning_walk" : "segment_states");
}

}  // namespace

int64_t lightning_blocks_at_once(int64_t key_dim) {
  return key_dim == 64 ? blocks_at_once(walk_segment<64, true>, kWalkThreads, sizeof(Memory<64>))
                       : blocks_at_once(walk_segment<128, true>, kWalkThreads, sizeof(Memory<128>));
}

void segment_states(const LightningWalk& walk, float* added, Stream stream) {
  (walk.key_dim == 64 ? launch<64, false> : launch<128, false>)(walk, nullptr, false, nullptr, added, stream);
}

void lightning_walk(const LightningWalk& walk, const float* entered, bool entered_transposed, void* output, float* left,
                    Stream stream) {
  (walk.key_dim == 64 ? launch<64, true> : launch<128, true>)(walk, entered, entered_transposed, output, left, stream);
}

}  // namespace flashmorph::cuda
