#pragma once

#include <cstdint>

#include "core/ops/cuda/element.h"
#include "core/ops/cuda/lightning_kernels.h"

// Kernels of gated_delta_rule around its batched matrix products. Letters: N chunks, H heads, G = N*H, C tokens a
// chunk, at most kMostDeltaTokens, K key dim, V value dim, S sequences. `type` is that of the products' operands; what
// is named exact has its accumulator's. b_i = g_1 + .. + g_i within a chunk, in float64; Gam_ij = e^(b_i - b_j) for j
// <= i, else 0.

namespace flashmorph::cuda {

inline constexpr int64_t kMostDeltaTokens = 64;

// y = factor x, row by row. x, y [rows, width]; factor [rows] exact.
void scale_rows(Element type, const void* x, const void* factor, void* y, int64_t rows, int64_t width, Stream stream);

// decayed_GCC = factor Gam o scores. scores exact.
void decay_pairs(Element type, const void* scores, const double* b_GC, double factor, void* decayed, int64_t matrices,
                 int64_t size, Stream stream);

// inverse_GCC = (I + M)^-1, M_ij = beta_i Gam_ij kk_ij for j < i. kk_GCC and beta_GC exact.
void delta_inverse(Element type, const void* kk, const double* b_GC, const void* beta, void* inverse, int64_t matrices,
                   int64_t size, Stream stream);

// What a walk of the states over the chunks reads and writes.
struct DeltaWalk {
  const void* added_NHCV;  // exact
  const void* reading_NHCK;
  const void* writing_NHCK;
  const void* more_NHKV;  // exact; null: zero
  const void* whole_NH;   // exact
  void* state_SHKV;       // exact: from where the walk starts, then where it ends
  void* entered_NHKV;
  void* written_NHCV;
};

// For every sequence and head, over its chunks n, forwards or backwards:
//   entered[n] = S;   written[n] = added[n] + reading[n] S;   S = whole[n] S + more[n] + writing[n]^T written[n]
// In bfloat16 C and K must be multiples of kTile.
void walk_delta_states(Element type, const DeltaWalk& walk, int64_t heads, int64_t size, int64_t key_size,
                       int64_t value_size, const ChunkTable& table, bool backwards, Stream stream);

// What the pairs of tokens of a chunk give, [G, C, C], from the gradients of the reads dO u^T and of the solution y u^T
// and from q k^T and k k^T, all exact:
//   d_scores = factor Gam o reads;   D_ij = -Gam_ij solution_ij for j < i;   d_products = beta D + (beta D)^T
//   d_beta_i = sum over j of D_ij kk_ij
//   across_m = sum over j < m <= i of d_scores_ij qk_ij + beta_i D_ij kk_ij, what the decay of token m stands between
struct DeltaPairs {
  const void *reads, *solution, *qk, *kk, *beta_GC;
  const double* b_GC;
  double factor;
  void *d_scores, *d_products;
  void *d_beta_GC, *across_GC;  // exact
};
void delta_pair_gradients(Element type, const DeltaPairs& pairs, int64_t matrices, int64_t size, Stream stream);

// The rest of the gradients, token by token. through_q = S dO, through_k = S y and from_state = dS' u, exact, and
// reach = scale e^(b_i), tail = e^(b_C - b_i), whole = e^(b_C):
//   dq = reach through_q;   dk = tail from_state - beta gam through_k;   dv = beta y
//   d_beta += y v - gam k through_k
//   dg_m = across_m + sum over i >= m of (dq q - beta gam k through_k)_i + sum over j < m of (tail k from_state)_j +
//   whole <S, dS'>
struct DeltaTokens {
  const void *q_GCK, *k_GCK, *v_GCV, *y_GCV, *before_GKV, *d_after_GKV;
  const void *through_q_GCK, *through_k_GCK, *from_state_GCK;               // exact
  const void *reach_GC, *gam_GC, *tail_GC, *whole_G, *beta_GC, *across_GC;  // exact
  void *dq_GCK, *dk_GCK, *dv_GCV;
  void *d_beta_GC, *dg_GC;  // exact
};
void delta_token_gradients(Element type, const DeltaTokens& tokens, int64_t matrices, int64_t size, int64_t key_size,
                           int64_t value_size, Stream stream);

}  // namespace flashmorph::cuda
