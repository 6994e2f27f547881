#pragma once

#include <cstdint>

#include "core/ops/cuda/element.h"
#include "core/ops/cuda/lightning_kernels.h"
#include "core/ops/cuda/walk.h"

// What gated_delta_rule does with a chunk of 64 tokens before and after its walks of the states, in bfloat16 with
// float32 sums: a kernel each. The formulas are those of the products in gated_delta.cpp. Letters as in
// gated_delta_kernels.h; T tokens of all rows of the batch.

namespace flashmorph::cuda {

struct DeltaChunkShape {
  int64_t heads, key_dim, value_dim;
  ChunkTable chunks;  // of 64 tokens
  double scale;
};

// For the walks and what follows them. In bfloat16 where nothing else is said.
struct DeltaChunks {
  void *q_reach_NHCK, *k_tail_NHCK;  // scale e^b q, e^(b_C - b) k
  void* k_gone_NHCK;                 // -(I + M)^-1 beta e^b k
  float* added_NHCV;                 // (I + M)^-1 beta v
  void *inverse_NHCC, *scores_NHCC;  // (I + M)^-1, scale Gam o q k^T
  double* b_NHC;
  float *beta_NHC, *whole_NH;  // whole = e^(b_C)
};
// g_TH and beta_TH: float32, dense.
void delta_chunks(const DeltaChunkShape& shape, const Rows& q, const Rows& k, const Rows& v, const float* g_TH,
                  const float* beta_TH, const DeltaChunks& chunks, Stream stream);

// output = q_reach S + scores written, from the states before each chunk and what the tokens wrote.
struct DeltaChunkOutput {
  const void *q_reach_NHCK, *scores_NHCC, *written_NHCV, *before_NHKV;
  void* output_THV;  // dense
};
void delta_chunk_output(const DeltaChunkShape& shape, const DeltaChunkOutput& output, Stream stream);

// The gradients from what the walks of both directions left: the states before each chunk and their gradients after it,
// what the tokens wrote, and y.
struct DeltaChunkGradients {
  Rows q, k, v, d_output;
  const void *y_NHCV, *written_NHCV, *before_NHKV, *d_after_NHKV;
  const double* b_NHC;
  const float* beta_NHC;
  void *dq_THK, *dk_THK, *dv_THV;  // dense
  float *dg_TH, *d_beta_TH;
};
void delta_chunk_gradients(const DeltaChunkShape& shape, const DeltaChunkGradients& gradients, Stream stream);

}  // namespace flashmorph::cuda
