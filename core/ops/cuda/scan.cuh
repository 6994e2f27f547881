#pragma once

#include "core/ops/cuda/launch.h"
#include "core/ops/cuda/lightning_kernels.h"

// The walk of states over chunks that scan_states and scan_gated_states share.

namespace flashmorph::cuda {

inline constexpr int kScanThreads = 256;

// A thread has W entries of one state; blockIdx.x: a sequence and head. Loads run kAhead chunks before their use.
// shrink(chunk, head, entry): the decay over a chunk.
template <class T, int W, class Shrink>
__global__ void scan_entries(const Acc<T>* added, Acc<T>* state, T* entered, int64_t heads, int64_t state_size,
                             ChunkTable table, Shrink shrink, Acc<T> factor, bool backwards) {
  using A = Acc<T>;
  constexpr int kAhead = 4;
  const int64_t entry = (int64_t{blockIdx.y} * kScanThreads + threadIdx.x) * W;
  if (entry >= state_size) return;
  const int64_t sequence = blockIdx.x / heads, head = blockIdx.x % heads;
  const int64_t first = table.first_chunk_S1[sequence], last = table.first_chunk_S1[sequence + 1];
  const auto chunk_at = [&](int64_t step) { return backwards ? last - 1 - step : first + step; };
  const auto place_of = [&](int64_t chunk) { return (chunk * heads + head) * state_size + entry; };

  A* const kept = state + int64_t{blockIdx.x} * state_size + entry;
  auto now = load<A, W>(kept);
  for (int64_t step = 0; step < last - first; step += kAhead) {
    Vector<A, W> more[kAhead];
    A decay[kAhead];
#pragma unroll
    for (int ahead = 0; ahead < kAhead; ++ahead)
      if (step + ahead < last - first) {
        const int64_t chunk = chunk_at(step + ahead);
        more[ahead] = load<A, W>(added + place_of(chunk));
        decay[ahead] = shrink(chunk, head, entry);
      }
#pragma unroll
    for (int ahead = 0; ahead < kAhead; ++ahead)
      if (step + ahead < last - first) {
        Vector<T, W> out;
#pragma unroll
        for (int w = 0; w < W; ++w) {
          out.value[w] = to<T>(now.value[w]);
          now.value[w] = now.value[w] * decay[ahead] + factor * more[ahead].value[w];
        }
        store<T, W>(entered + place_of(chunk_at(step + ahead)), out);
      }
  }
  store<A, W>(kept, now);
}

// `row`: so many neighbouring entries have one decay.
template <class T, class Shrink>
void launch_scan(const Acc<T>* added, Acc<T>* state, T* entered, int64_t heads, int64_t state_size, int64_t row,
                 const ChunkTable& table, const Shrink& shrink, Acc<T> factor, bool backwards, Stream stream) {
  const auto launch = [&]<int W>(std::integral_constant<int, W>) {
    const dim3 grid(static_cast<unsigned>(table.sequences * heads), blocks_for(state_size / W, kScanThreads));
    scan_entries<T, W>
        <<<grid, kScanThreads, 0, stream>>>(added, state, entered, heads, state_size, table, shrink, factor, backwards);
  };
  constexpr int kWidest = kWide<Acc<T>>;
  row % kWidest == 0 ? launch(std::integral_constant<int, kWidest>()) : launch(std::integral_constant<int, 1>());
}

}  // namespace flashmorph::cuda
