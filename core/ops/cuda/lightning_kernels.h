#pragma once

#include <cstdint>

#include "core/ops/cuda/element.h"

// Kernels around the batched matrix products of the linear-attention operators. Letters: T tokens (of all rows of the
// batch), H heads, D any width, N chunks, C tokens a chunk, S sequences, K key dim, V value dim.

namespace flashmorph::cuda {

inline constexpr int64_t kTile = 16;  // a side of the tensor cores' tiles; short sequences too get chunks that fit them

inline constexpr double kForgotten = -750.0;  // exp of it is 0 in any dtype; a bound keeps -inf out of products

// Where the chunks lie, in device memory. A sequence's chunks follow each other.
struct ChunkTable {
  const int64_t* start_N;         // first token
  const int64_t* length_N;        // tokens; the rest of the chunk is filled with zeros
  const int64_t* first_chunk_S1;  // of each sequence, and N at the end
  int64_t chunks;                 // N
  int64_t size;                   // C
  int64_t sequences;              // S
};

// Within a chunk, i = 1..C: by which factor a token's row is scaled.
enum class Decay {
  none,
  since_start,  // gam_i = exp(g i)
  to_end,       // tail_i = exp(g (length - i))
};

// x_THD (strides in elements, the last dim dense) -> plain_NHCD and its rows scaled by the decay, scaled_NHCD; either
// may be null. log_decay_H in float64.
void pack(Element type, const void* x, int64_t token_stride, int64_t head_stride, int64_t heads, int64_t width,
          const ChunkTable& table, const double* log_decay_H, Decay decay, void* plain, void* scaled, Stream stream);

// x_NHCD -> y_THD, dense.
void unpack(Element type, const void* x, int64_t heads, int64_t width, const ChunkTable& table, void* y, Stream stream);

// In place: scores_NHCC[i, j] *= exp(g (i - j)) for j <= i, else 0.
void decay_scores(Element type, void* scores, int64_t heads, int64_t chunks, int64_t size, const double* log_decay_H,
                  Stream stream);

// Walks the states of every sequence and head over its chunks, forwards or backwards:
//   entered_NHKV[n] = state;   state = exp(g length_n) state + factor added_NHKV[n]
// state_SHKV, in the accumulator's type: from where the walk starts, then where it ends; added likewise.
void scan_states(Element type, const void* added, void* state, void* entered, int64_t heads, int64_t state_size,
                 const ChunkTable& table, const double* log_decay_H, double factor, bool backwards, Stream stream);

}  // namespace flashmorph::cuda
