#include <cuda_bf16.h>

#include "core/ops/cuda/launch.h"
#include "core/ops/cuda/lightning_walk.h"
#include "core/ops/cuda/tensor_cores.cuh"

namespace flashmorph::cuda {
namespace {

using Half = __nv_bfloat16;

constexpr int kWarps = 4, kThreads = 32 * kWarps;
constexpr int kTokens = kWalkedChunk;  // 16 a warp
constexpr int kColumns = 64;           // of the values, a block's part
constexpr int kPad = 8;                // so that 8 rows of a tile lie in different banks
constexpr int kStages = 2;             // the next chunk arrives while this one is computed

// A block's shared memory. The state lies transposed, as rows for value columns: then Q S^T reads it as Q K^T reads K.
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
struct Place {
  int column;  // first of its value columns
  int64_t head, segment, start, length;
  bool backwards;

  __device__ Place(const LightningWalk& walk) : backwards(walk.backwards) {
    const int parts = static_cast<int>(walk.value_dim / kColumns);
    column = static_cast<int>(blockIdx.x % parts) * kColumns;
    head = blockIdx.x / parts % walk.heads;
    segment = blockIdx.x / parts / walk.heads;
    start = walk.segments.start_N[segment];
    length = walk.segments.length_N[segment];
  }
  __device__ int64_t token(int64_t step) const { return start + (backwards ? length - 1 - step : step); }
};

// Rows of a chunk from `first` on, zeros behind the segment's end. `column` is a multiple of 8.
template <int kWidth>
__device__ __forceinline__ void fetch(Half* to, const Rows& rows, const Place& place, int64_t first, int column) {
  constexpr int kPerRow = kWidth / 8;
  const Half* from = static_cast<const Half*>(rows.data) + place.head * rows.head_stride + column;
#pragma unroll
  for (int n = threadIdx.x; n < kTokens * kPerRow; n += kThreads) {
    const int row = n / kPerRow, unit = n % kPerRow * 8;
    const bool present = first + row < place.length;
    copy_async(to + row * (kWidth + kPad) + unit,
               from + (present ? place.token(first + row) * rows.token_stride : 0) + unit, present);
  }
}

__device__ __forceinline__ uint32_t packed(float a, float b) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(a, b);
  return reinterpret_cast<const uint32_t&>(pair);
}

__device__ __forceinline__ uint32_t scaled(uint32_t pair, float a, float b) {
  const float2 values = __bfloat1622float2(reinterpret_cast<const __nv_bfloat162&>(pair));
  return packed(values.x * a, values.y * b);
}

// A chunk's values, transposed, the columns scaled by what a token still weighs at the chunk's end.
struct WrittenValues : LeftTile<true> {
  __device__ __forceinline__ WrittenValues(const Half* tile, int stride, const float (&weights)[4])
      : LeftTile<true>(tile, stride) {
#pragma unroll
    for (int b = 0; b < 4; ++b) blocks[b] = scaled(blocks[b], weights[b / 2 * 2], weights[b / 2 * 2 + 1]);
  }
};

// A product's sums, rounded, as the left factor of the next product.
struct RoundedSums {
  uint32_t blocks[4];
  __device__ __forceinline__ explicit RoundedSums(const SumTile& tile) {
#pragma unroll
    for (int b = 0; b < 4; ++b) blocks[b] = packed(tile.sums[b / 2][b % 2 * 2], tile.sums[b / 2][b % 2 * 2 + 1]);
  }
};

// The state in registers: a warp has 32 value columns and half of the keys.
template <int K>
struct State {
  static constexpr int kAcross = K / 32;
  SumTile tiles[2][kAcross];
  int value, key;  // of the first tile

  __device__ State() : tiles(), value(threadIdx.x / 64 * 32), key(threadIdx.x / 32 % 2 * (K / 2)) {}

  template <class Use>  // use(sum, value column, key)
  __device__ __forceinline__ void each(const Use& use) {
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
      for (int n = 0; n < kAcross; ++n)
        tiles[m][n].each(
            [&](float& sum, int row, int column) { use(sum, value + m * 16 + row, key + n * 16 + column); });
  }

  // S = decay S + K^T (weights V) over `tokens` tokens.
  __device__ __forceinline__ void advance(const typename Memory<K>::Stage& stage, const float* decay, int tokens,
                                          int late, float write_scale) {
    using M = Memory<K>;
    each([&](float& sum, int, int) { sum *= decay[tokens]; });
#pragma unroll
    for (int t = 0; t < kTokens; t += 16) {
      float weights[4];
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        const int token = t + threadIdx.x % 4 * 2 + w / 2 * 8 + w % 2;
        weights[w] = write_scale * decay[max(tokens - 1 - token + late, 0)];
      }
      const WrittenValues values[2] = {{stage.v + t * M::kValueRow + value, M::kValueRow, weights},
                                       {stage.v + t * M::kValueRow + value + 16, M::kValueRow, weights}};
#pragma unroll
      for (int n = 0; n < kAcross; ++n) {
        const RightTile<> keys(stage.k + t * M::kRow + key + n * 16, M::kRow);
#pragma unroll
        for (int m = 0; m < 2; ++m) tiles[m][n].add(values[m], keys);
      }
    }
  }
};

// A chunk's output, 16 tokens a warp, left in the rows of q that only this warp reads.
template <int K>
__device__ __forceinline__ void chunk_output(typename Memory<K>::Stage& stage, const Half* state, const float* decay,
                                             int block, const LightningWalk& walk) {
  using M = Memory<K>;
  Half* const q = stage.q + block * 16 * M::kRow;
  SumTile scores[kTokens / 16] = {}, output[kColumns / 16] = {};
#pragma unroll
  for (int c = 0; c < K; c += 16) {
    const LeftTile<false> queries(q + c, M::kRow);
#pragma unroll
    for (int j = 0; j < kTokens / 16; ++j)
      if (j <= block) scores[j].add(queries, RightTile<true>(stage.k + j * 16 * M::kRow + c, M::kRow));
#pragma unroll
    for (int n = 0; n < kColumns / 16; ++n)
      output[n].add(queries, RightTile<true>(state + n * 16 * M::kRow + c, M::kRow));
  }
  const float scale = static_cast<float>(walk.scale), read_scale = static_cast<float>(walk.read_scale);
#pragma unroll
  for (int n = 0; n < kColumns / 16; ++n)
    output[n].each([&](float& sum, int row, int) { sum *= read_scale * decay[block * 16 + row + 1 - walk.late]; });
#pragma unroll
  for (int j = 0; j < kTokens / 16; ++j)
    if (j <= block) {
      scores[j].each([&](float& sum, int row, int column) {
        const int apart = (block - j) * 16 + row - column;
        sum = apart >= 0 ? sum * scale * decay[apart] : 0.0f;
      });
      const RoundedSums weights(scores[j]);
#pragma unroll
      for (int n = 0; n < kColumns / 16; ++n)
        output[n].add(weights, RightTile<>(stage.v + j * 16 * M::kValueRow + n * 16, M::kValueRow));
    }
  __syncwarp();  // all lanes have read q
#pragma unroll
  for (int n = 0; n < kColumns / 16; ++n)
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int lower = 0; lower < 2; ++lower) {
        const int row = threadIdx.x % 32 / 4 + lower * 8, column = n * 16 + half * 8 + threadIdx.x % 4 * 2;
        *reinterpret_cast<uint32_t*>(q + row * M::kRow + column) =
            packed(output[n].sums[half][2 * lower], output[n].sums[half][2 * lower + 1]);
      }
  __syncwarp();
}

// The 16 rows of a warp's output to their tokens.
template <int K>
__device__ __forceinline__ void store_output(const typename Memory<K>::Stage& stage, int block, int64_t first,
                                             const Place& place, const LightningWalk& walk, Half* output) {
#pragma unroll
  for (int n = threadIdx.x % 32; n < 16 * kColumns / 8; n += 32) {
    const int row = block * 16 + n / (kColumns / 8), unit = n % (kColumns / 8) * 8;
    if (first + row >= place.length) continue;
    Half* const to =
        output + (place.token(first + row) * walk.heads + place.head) * walk.value_dim + place.column + unit;
    store<Half, 8>(to, load<Half, 8>(stage.q + row * Memory<K>::kRow + unit));
  }
}

// kOutput: false for segment_states.
template <int K, bool kOutput>
__global__ void __launch_bounds__(kThreads, 2)
    walk_segment(LightningWalk walk, const float* entered, bool entered_transposed, Half* output, float* left) {
  extern __shared__ __align__(16) unsigned char shared[];
  Memory<K>& memory = *reinterpret_cast<Memory<K>*>(shared);
  const Place place(walk);
  const auto fetch_chunk = [&](int64_t chunk) {
    auto& stage = memory.stages[chunk % kStages];
    if constexpr (kOutput) fetch<K>(stage.q, walk.q, place, chunk * kTokens, 0);
    fetch<K>(stage.k, walk.k, place, chunk * kTokens, 0);
    fetch<kColumns>(stage.v, walk.v, place, chunk * kTokens, place.column);
  };
  fetch_chunk(0);
  for (int n = threadIdx.x; n <= kTokens; n += kThreads)
    memory.decay[n] = expf(static_cast<float>(walk.log_decay_H[place.head] * n));

  State<K> state;
  const auto state_at = [&](int64_t index) { return (index * walk.heads + place.head) * K * walk.value_dim; };
  if (kOutput && entered != nullptr) {
    const float* from = entered + state_at(place.segment);
    state.each([&](float& sum, int value, int key) {
      const int64_t column = place.column + value;
      sum = from[entered_transposed ? column * K + key : key * walk.value_dim + column];
    });
  }

  const int block =
      (threadIdx.x / 32 + blockIdx.x) % kWarps;  // later tokens take longer: each scheduler gets all kinds
  const int64_t chunks = (place.length + kTokens - 1) / kTokens;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    auto& stage = memory.stages[chunk % kStages];
    if constexpr (kOutput)
      state.each([&](float& sum, int value, int key) {
        memory.state[value * Memory<K>::kRow + key] = __float2bfloat16_rn(sum);
      });
    await_copies();
    __syncthreads();
    if (chunk + 1 < chunks) fetch_chunk(chunk + 1);
    if constexpr (kOutput) {
      chunk_output<K>(stage, memory.state, memory.decay, block, walk);
      store_output<K>(stage, block, chunk * kTokens, place, walk, output);
    }
    const int tokens = static_cast<int>(min(place.length - chunk * kTokens, int64_t{kTokens}));
    state.advance(stage, memory.decay, tokens, walk.late, static_cast<float>(walk.write_scale));
    if constexpr (kOutput) __syncthreads();  // all have read the state in shared memory
  }

  if (left == nullptr) return;
  int64_t index = place.segment;
  if constexpr (kOutput) {  // only where the sequence ends
    const int64_t* const first = walk.segments.first_chunk_S1;
    int64_t sequence = 0;
    while (first[sequence + 1] <= place.segment) ++sequence;
    if (place.segment != (place.backwards ? first[sequence] : first[sequence + 1] - 1)) return;
    index = sequence;
  }
  state.each([&](float& sum, int value, int key) {
    left[state_at(index) + key * walk.value_dim + place.column + value] = sum;
  });
}

template <int K, bool kOutput>
void launch(const LightningWalk& walk, const float* entered, bool entered_transposed, void* output, float* left,
            Stream stream) {
  const auto kernel = walk_segment<K, kOutput>;
  allow_shared_memory(kernel, sizeof(Memory<K>));
  const unsigned blocks = static_cast<unsigned>(walk.segments.chunks * walk.heads * blocks_per_head(walk.value_dim));
  kernel<<<blocks, kThreads, sizeof(Memory<K>), stream>>>(walk, entered, entered_transposed, static_cast<Half*>(output),
                                                          left);
  check_launch(kOutput ? "lightning_walk" : "segment_states");
}

}  // namespace

int64_t blocks_per_head(int64_t value_dim) { return value_dim / kColumns; }

int64_t resident_blocks(int64_t key_dim) {
  int device = 0, multiprocessors = 0, blocks = 0;
  check_call(cudaGetDevice(&device), "cudaGetDevice");
  check_call(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device),
             "cudaDeviceGetAttribute");
  const auto count = [&](auto kernel, size_t bytes) {
    allow_shared_memory(kernel, bytes);
    check_call(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, kThreads, bytes), "occupancy");
  };
  key_dim == 64 ? count(walk_segment<64, true>, sizeof(Memory<64>))
                : count(walk_segment<128, true>, sizeof(Memory<128>));
  return int64_t{multiprocessors} * std::max(blocks, 1);
}

void segment_states(const LightningWalk& walk, float* added, Stream stream) {
  (walk.key_dim == 64 ? launch<64, false> : launch<128, false>)(walk, nullptr, false, nullptr, added, stream);
}

void lightning_walk(const LightningWalk& walk, const float* entered, bool entered_transposed, void* output, float* left,
                    Stream stream) {
  (walk.key_dim == 64 ? launch<64, true> : launch<128, true>)(walk, entered, entered_transposed, output, left, stream);
}

}  // namespace flashmorph::cuda
