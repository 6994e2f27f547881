#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace flashmorph {

// What gated linear attention does between the tokens of one sub-chunk, where the decays differ per channel and no
// matrix product can carry them. Every factor is a product of decays a = exp(g) in [0, 1]: nothing overflows or
// cancels, whatever g is, -inf included. Letters: G chunks of all heads, C tokens a chunk, K key dim, I sub-chunks of
// kSubChunk tokens (the last may be shorter). All tensors are contiguous, of one dtype, float32 or float64. Sums over
// tokens i and j run within a sub-chunk.
inline constexpr int64_t kSubChunk = 16;

// up_i = a_first .. a_i: from before the sub-chunk to token i;  rest_j = a_{j+1} .. a_last: from token j to its end.
struct SubChunkDecays {
  at::Tensor up_GCK;
  at::Tensor rest_GCK;
};
SubChunkDecays sub_chunk_decays(const at::Tensor& a_GCK);

// Fills the blocks of sub-chunks on the diagonal, j <= i:  A_ij = sum_c q_ic k_jc (a_{j+1} .. a_i)_c.
void add_diagonal_scores(const at::Tensor& q_GCK, const at::Tensor& k_GCK, const at::Tensor& a_GCK, at::Tensor& A_GCC);

// Their gradients, given dA. On entry dq and dk hold what comes from outside the sub-chunk and outer_GIK the gradient
// of the logarithm of the sub-chunk's whole decay; on return dq, dk and dg (of g = log a) are complete.
void diagonal_backward(const at::Tensor& q_GCK, const at::Tensor& k_GCK, const at::Tensor& a_GCK,
                       const at::Tensor& dA_GCC, const at::Tensor& outer_GIK, at::Tensor& dq_GCK, at::Tensor& dk_GCK,
                       at::Tensor& dg_GCK);

}  // namespace flashmorph
