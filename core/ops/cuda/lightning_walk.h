#pragma once

#include <cstdint>

#include "core/ops/cuda/element.h"
#include "core/ops/cuda/lightning_kernels.h"
#include "core/ops/cuda/walk.h"

// Lightning attention in bfloat16 in one kernel: a block walks the tokens of a segment in chunks of 64 and keeps the
// state on chip, in float32. Letters: T tokens (of all rows of the batch), H heads, K key dim, V value dim, N segments,
// S sequences.

namespace flashmorph::cuda {

// For the tokens i = 1.. of a segment, in the order of the walk:
//   o_i = scale sum_{j <= i} exp(g (i - j)) (q_i.k_j) v_j + read_scale exp(g (i - late)) S_entered^T q_i
//   S_left = exp(g length) S_entered + write_scale sum_j exp(g (length - j + late)) k_j v_j^T
// The gradients have the same form:
//   dq: walks on with q, k, v = dO, v, k from the transposed states that the forward walk had entered with;
//   dk, dv: walk back, late = 1, with q, k, v = v, dO, q and k, q, dO from the state's gradients.
struct LightningWalk {
  Rows q, k, v;
  int64_t heads, key_dim, value_dim;
  ChunkTable segments;
  const double* log_decay_H;
  bool backwards;  // from a segment's last token to its first
  int late;
  double scale, read_scale, write_scale;
};

// How many heads of segments the current device walks at once.
int64_t lightning_heads_at_once(int64_t key_dim, int64_t value_dim);

// What each segment adds to the state: added_NHKV = S_left, float32, with S_entered = 0. Reads no q.
void segment_states(const LightningWalk& walk, float* added, Stream stream);

// output_THV in bfloat16, dense. entered: float32 [N, H, K, V], or [N, H, V, K] when entered_transposed; zero when
// null. left_SHKV, float32: the state that the walk leaves each sequence with, unless null.
void lightning_walk(const LightningWalk& walk, const float* entered, bool entered_transposed, void* output, float* left,
                    Stream stream);

}  // namespace flashmorph::cuda
