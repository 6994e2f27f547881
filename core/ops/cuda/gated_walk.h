#pragma once

#include <cstdint>

#include "core/ops/cuda/element.h"
#include "core/ops/cuda/lightning_kernels.h"
#include "core/ops/cuda/walk.h"

// Gated linear attention in bfloat16, in three kernels: what the tokens of a chunk of 64 do to each other; a walk of
// the states over segments of chunks; a chunk's gradients. Letters: T tokens (of all rows of the batch), H heads, K key
// dim, V value dim, N chunks, C = 64 tokens a chunk, S sequences. Per channel b_i = g_1 + .. + g_i within a chunk, in
// float32.

namespace flashmorph::cuda {

struct GatedShape {
  int64_t heads, key_dim, value_dim;
  ChunkTable chunks;
  double scale;
};

// What a chunk's decays make of its queries and keys. In bfloat16 but whole_NHK, which is float32.
struct GatedChunks {
  void* q_down_NHCK;  // q e^b
  void* k_tail_NHCK;  // k e^(b_C - b)
  void* scores_NHCC;  // scale sum over c of q_ic k_jc e^(b_ic - b_jc) for j <= i, else 0
  float* whole_NHK;   // e^(b_C)
};

// g_THK: float32, dense.
void gate_chunks_fused(const GatedShape& shape, const Rows& q, const Rows& k, const float* g, const GatedChunks& chunks,
                       Stream stream);

// A walk over a sequence's chunks, forwards or backwards:
//   output_i = read_scale S^T read_i + sum over j of weights_ij write_j;   S = whole S + write_scale key^T write
// Forwards read = q_down, key = k_tail, weights = scores; backwards these change places and the weights are transposed:
// then the states are the gradients of those forwards, and the output that of the values.
struct GatedWalk {
  GatedShape shape;
  ChunkTable segments;  // in chunks: start_N is a segment's first chunk, length_N how many it has
  const void *read_NHCK, *key_NHCK, *weights_NHCC;
  const float* whole_NHK;
  Rows values;
  bool backwards;
  double read_scale, write_scale;
};

// What each segment adds to a state, and by how much it shrinks one: added_NHKV and shrink_NHK of segments, float32.
void gated_segment_states(const GatedWalk& walk, float* added, float* shrink, Stream stream);

// entered: float32 [segments, H, K, V], zero when null. Null or written: output_THV, bfloat16; states_NHVK, those that
// the walk enters each chunk with, in bfloat16 and transposed; left_SHKV, float32.
void gated_walk(const GatedWalk& walk, const float* entered, void* output, void* states, float* left, Stream stream);

// The gradients of q, k and g from those of the output, dO, and the states of both walks, states_NHVK.
struct GatedGradients {
  Rows q, k, v, d_output;
  const float* g_THK;
  const void *before_NHVK, *d_after_NHVK;
  void *dq_THK, *dk_THK;  // bfloat16
  float* dg_THK;
};
void gated_gradients(const GatedShape& shape, const GatedGradients& gradients, Stream stream);

int64_t gated_blocks_at_once(int64_t key_dim);

}  // namespace flashmorph::cuda
