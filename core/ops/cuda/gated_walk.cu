#include "core/ops/cuda/gated_walk.h"
#include "core/ops/cuda/walk.cuh"

namespace flashmorph::cuda {
namespace {

constexpr int kStages = 2;  // the next chunk arrives while this one is computed

template <int K>
struct Memory {
  static constexpr int kRow = K + kPad, kValueRow = kColumns + kPad, kWeightRow = kTokens + kPad;
  struct Written {
    Half key[kTokens * kRow], value[kTokens * kValueRow];
    alignas(16) float whole[K];
  };
  Written stages[kStages];
  Half read[kTokens * kRow], weight[kTokens * kWeightRow];
  Half state[kColumns * kRow];
};

// One block's part of a walk.
struct Part {
  int column;  // first of its value columns
  int64_t head, heads, segment, first, count;

  __device__ Part(const GatedWalk& walk) : heads(walk.shape.heads) {
    const int parts = static_cast<int>(walk.shape.value_dim / kColumns);
    column = static_cast<int>(blockIdx.x % parts) * kColumns;
    head = blockIdx.x / parts % heads;
    segment = blockIdx.x / parts / heads;
    first = walk.segments.start_N[segment];
    count = walk.segments.length_N[segment];
  }
  __device__ int64_t chunk(const GatedWalk& walk, int64_t step) const {
    return first + (walk.backwards ? count - 1 - step : step);
  }
};

template <int K>
__device__ __forceinline__ void fetch_matrix(Half* to, const void* x, int64_t matrix) {
  fetch_rows<K>(to, static_cast<const Half*>(x) + matrix * kTokens * K, kWalkThreads,
                [](int row) { return int64_t{row} * K; });
}

template <int K>
__device__ __forceinline__ void fetch_written(typename Memory<K>::Written& stage, const GatedWalk& walk,
                                              const Part& part, int64_t chunk) {
  const int64_t matrix = chunk * part.heads + part.head;
  fetch_matrix<K>(stage.key, walk.key_NHCK, matrix);
  const int64_t start = walk.shape.chunks.start_N[chunk], length = walk.shape.chunks.length_N[chunk];
  fetch_rows<kColumns>(
      stage.value, static_cast<const Half*>(walk.values.data) + part.head * walk.values.head_stride + part.column,
      kWalkThreads, [&](int row) { return row < length ? (start + row) * walk.values.token_stride : -1; });
  for (int n = threadIdx.x; n < K / 4; n += kWalkThreads)
    copy_async(stage.whole + n * 4, walk.whole_NHK + matrix * K + n * 4, true);
}

template <int K>
__device__ __forceinline__ void fetch_read(Memory<K>& memory, const GatedWalk& walk, const Part& part, int64_t chunk) {
  const int64_t matrix = chunk * part.heads + part.head;
  fetch_matrix<K>(memory.read, walk.read_NHCK, matrix);
  fetch_matrix<kTokens>(memory.weight, walk.weights_NHCC, matrix);
}

// S = whole S + K^T (scale V)
template <int K>
__device__ __forceinline__ void advance(WalkedState<K>& state, const typename Memory<K>::Written& stage, float scale) {
  using M = Memory<K>;
  state.each([&](float& sum, int, int key) { sum *= stage.whole[key]; });
#pragma unroll
  for (int t = 0; t < kTokens; t += 16) {
    const Half* const v = stage.value + t * M::kValueRow + state.value;
    LeftTile<true> values[2] = {{v, M::kValueRow}, {v + 16, M::kValueRow}};
    if (scale != 1.0f)
#pragma unroll
      for (int b = 0; b < 8; ++b) values[b / 4].blocks[b % 4] = scaled(values[b / 4].blocks[b % 4], scale, scale);
    state.add(values, stage.key + t * M::kRow);
  }
}

// kBackwards: the weights are read transposed, from the later tokens.
template <int K, bool kBackwards>
__device__ __forceinline__ WalkedOutput chunk_output(const Memory<K>& memory, const Half* values, int block,
                                                     float read_scale) {
  using M = Memory<K>;
  WalkedOutput output;
#pragma unroll
  for (int c = 0; c < K; c += 16)
    output.add_state(LeftTile<false>(memory.read + block * 16 * M::kRow + c, M::kRow), memory.state + c, M::kRow);
  output.each([&](float& sum, int, int) { sum *= read_scale; });
#pragma unroll
  for (int j = 0; j < kTokens / 16; ++j)
    if (kBackwards ? j >= block : j <= block)
      output.add_values(LeftTile<kBackwards>(memory.weight + (kBackwards ? j * 16 * M::kWeightRow + block * 16
                                                                         : block * 16 * M::kWeightRow + j * 16),
                                             M::kWeightRow),
                        values + j * 16 * M::kValueRow);
  return output;
}

// kSums: only what a segment adds and by how much it shrinks.
template <int K, bool kSums, bool kBackwards>
__global__ void __launch_bounds__(kWalkThreads, 2)
    walk_chunks(GatedWalk walk, const float* entered, Half* output, Half* states, float* left, float* shrink) {
  extern __shared__ __align__(16) unsigned char shared[];
  Memory<K>& memory = *reinterpret_cast<Memory<K>*>(shared);
  const Part part(walk);
  const int64_t value_dim = walk.shape.value_dim;
  const auto state_at = [&](int64_t index) { return (index * part.heads + part.head) * K * value_dim; };
  fetch_written<K>(memory.stages[0], walk, part, part.chunk(walk, 0));
  if (output != nullptr) fetch_read<K>(memory, walk, part, part.chunk(walk, 0));

  WalkedState<K> state;
  if (!kSums && entered != nullptr) {
    const float* from = entered + state_at(part.segment);
    state.each([&](float& sum, int value, int key) { sum = from[key * value_dim + part.column + value]; });
  }
  float shrunk = 1.0f;  // of channel threadIdx.x

  const int block = (threadIdx.x / 32 + blockIdx.x) % kWarps;
  for (int64_t step = 0; step < part.count; ++step) {
    const int64_t chunk = part.chunk(walk, step);
    auto& stage = memory.stages[step % kStages];
    if constexpr (!kSums) state.round_to(memory.state);
    await_copies();
    __syncthreads();
    const int64_t next = step + 1 < part.count ? part.chunk(walk, step + 1) : -1;
    if (next >= 0) fetch_written<K>(memory.stages[(step + 1) % kStages], walk, part, next);
    if constexpr (kSums) {
      if (threadIdx.x < K) shrunk *= stage.whole[threadIdx.x];
    } else {
      if (states != nullptr) {
        Half* const to = states + state_at(chunk) + int64_t{part.column} * K;
        for (int n = threadIdx.x; n < kColumns * K / 8; n += kWalkThreads)
          store<Half, 8>(to + n * 8, load<Half, 8>(memory.state + n / (K / 8) * Memory<K>::kRow + n % (K / 8) * 8));
      }
      if (output != nullptr) {
        const int64_t start = walk.shape.chunks.start_N[chunk] + block * 16,
                      end = walk.shape.chunks.start_N[chunk] + walk.shape.chunks.length_N[chunk];
        chunk_output<K, kBackwards>(memory, stage.value, block, static_cast<float>(walk.read_scale))
            .store(memory.read + block * 16 * Memory<K>::kRow, Memory<K>::kRow, [&](int row) {
              if (start + row >= end) return static_cast<Half*>(nullptr);
              return output + ((start + row) * part.heads + part.head) * value_dim + part.column;
            });
      }
      __syncthreads();  // all have read the state, the queries and the weights
      if (output != nullptr && next >= 0) fetch_read<K>(memory, walk, part, next);
    }
    advance<K>(state, stage, static_cast<float>(walk.write_scale));
  }

  if constexpr (kSums)
    if (part.column == 0 && threadIdx.x < K) shrink[(part.segment * part.heads + part.head) * K + threadIdx.x] = shrunk;
  if (left == nullptr) return;
  int64_t index = part.segment;
  if constexpr (!kSums) {  // only where the sequence ends
    const int64_t* const first = walk.segments.first_chunk_S1;
    int64_t sequence = 0;
    while (first[sequence + 1] <= part.segment) ++sequence;
    if (part.segment != (kBackwards ? first[sequence] : first[sequence + 1] - 1)) return;
    index = sequence;
  }
  state.each(
      [&](float& sum, int value, int key) { left[state_at(index) + key * value_dim + part.column + value] = sum; });
}

template <int K, bool kSums>
void launch(const GatedWalk& walk, const float* entered, void* output, void* states, float* left, float* shrink,
            Stream stream) {
  const auto kernel = walk.backwards ? walk_chunks<K, kSums, true> : walk_chunks<K, kSums, false>;
  allow_shared_memory(kernel, sizeof(Memory<K>));
  const unsigned blocks =
      static_cast<unsigned>(walk.segments.chunks * walk.shape.heads * (walk.shape.value_dim / kColumns));
  kernel<<<blocks, kWalkThreads, sizeof(Memory<K>), stream>>>(walk, entered, static_cast<Half*>(output),
                                                              static_cast<Half*>(states), left, shrink);
  check_launch(kSums ? "gated_segment_states" : "gated_walk");
}

}  // namespace

int64_t gated_blocks_at_once(int64_t key_dim) {
  return key_dim == 64 ? blocks_at_once(walk_chunks<64, false, false>, kWalkThreads, sizeof(Memory<64>))
                       : blocks_at_once(walk_chunks<128, false, false>, kWalkThreads, sizeof(Memory<128>));
}

void gated_segment_states(const GatedWalk& walk, float* added, float* shrink, Stream stream) {
  (walk.shape.key_dim == 64 ? launch<64, true> : launch<128, true>)(walk, nullptr, nullptr, nullptr, added, shrink,
                                                                    stream);
}

void gated_walk(const GatedWalk& walk, const float* entered, void* output, void* states, float* left, Stream stream) {
  (walk.shape.key_dim == 64 ? launch<64, false> : launch<128, false>)(walk, entered, output, states, left, nullptr,
                                                                      stream);
}

}  // namespace flashmorph::cuda
