#pragma once

#include <cstdint>

#include "core/ops/cuda/element.h"
#include "core/ops/cuda/lightning_kernels.h"
#include "core/ops/cuda/walk.h"

// What gated_delta_rule does with chunks of 64 tokens, in bfloat16 with float32 sums: kernels for a chunk before and
// after the walks of the states, and for the walks. The formulas are those of the products in gated_delta.cpp. Letters
// as in gated_delta_kernels.h; T tokens of all rows of the batch.
//
// A walk's steps come one after the other, and one block takes them: few sequences and heads leave it alone on a card
// that is idle around it. Then (delta_overlaps) the call's kernels run side by side, given to the stream with nothing
// between them: a walk takes a chunk as soon as that is prepared, the gradients one that both walks have been at. What
// is told of in prepared_NH and walked_NH, zeros at first, says so; both are null where kernels run in turns.

namespace flashmorph::cuda {

struct DeltaChunkShape {
  int64_t heads, key_dim, value_dim;
  ChunkTable chunks;  // of 64 tokens
  double scale;

  int64_t walking_blocks() const { return chunks.sequences * heads * blocks_per_head(value_dim); }
};

// Whether that pays on the current device.
bool delta_overlaps(const DeltaChunkShape& shape);

// For the walks and what follows them. In bfloat16 where nothing else is said. Matrices lie as their block copies want
// them, in the tiles of warpgroup.cuh one after the other: of 64 columns each, states of 64 values and 64 keys, all
// keys of a value's before the next values'. `added` is the sums of tiles of 64 values by 64 tokens, the 4 neighbours
// that a lane has of 8 tokens side by side, lane by lane.
struct DeltaChunks {
  void *q_reach_NHCK, *k_tail_NHCK;  // scale e^b q, e^(b_C - b) k
  void* k_gone_NHCK;                 // -(I + M)^-1 beta e^b k
  float* added_NHVC;                 // (I + M)^-1 beta v
  void *inverse_NHCC, *scores_NHCC;  // (I + M)^-1, scale Gam o q k^T
  double* b_NHC;
  float *beta_NHC, *whole_NH;  // whole = e^(b_C)
  unsigned* prepared_NH;       // told once
};
// g_TH and beta_TH: float32, dense.
void delta_chunks(const DeltaChunkShape& shape, const Rows& q, const Rows& k, const Rows& v, const float* g_TH,
                  const float* beta_TH, const DeltaChunks& chunks, Stream stream);

// A walk over each sequence's chunks. S is state_SHKV, float32: from where the walk starts, then where it ends.
// Forwards
//   written = added + k_gone S;   output = q_reach S + scores written;   S = whole S + k_tail^T written
// and with a d_output backwards, where S and `written` are the gradients of those:
//   written = scores^T d_output + k_tail S;   S = whole S + q_reach^T d_output + k_gone^T written
// It leaves the output, dense, or when that is null what it entered each chunk with, transposed, and `written`.
struct DeltaChunkWalk {
  const void *q_reach_NHCK = nullptr, *k_tail_NHCK = nullptr, *k_gone_NHCK = nullptr, *scores_NHCC = nullptr;
  const float *added_NHVC = nullptr, *whole_NH = nullptr;
  Rows d_output = {};
  float* state_SHKV = nullptr;
  void *output_THV = nullptr, *states_NHVK = nullptr, *written_NHCV = nullptr;
  const unsigned* prepared_NH = nullptr;
  unsigned* walked_NH = nullptr;  // told by each block that takes a chunk's step; not when it leaves the output
};
void delta_chunk_walk(const DeltaChunkShape& shape, const DeltaChunkWalk& walk, Stream stream);

// The gradients from what the walks of both directions left: the states before each chunk and their gradients after it,
// what the tokens wrote and its gradients.
struct DeltaChunkGradients {
  Rows q, k, v, d_output;
  const void *inverse_NHCC, *written_NHCV, *d_written_NHCV, *before_NHVK, *d_after_NHVK;
  const double* b_NHC;
  const float* beta_NHC;
  void *dq_THK, *dk_THK, *dv_THV;  // dense
  float *dg_TH, *d_beta_TH;
  const unsigned* walked_NH;  // by both walks
};
void delta_chunk_gradients(const DeltaChunkShape& shape, const DeltaChunkGradients& gradients, Stream stream);

}  // namespace flashmorph::cuda
