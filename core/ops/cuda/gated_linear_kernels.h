#pragma once

#include <cstdint>

#include "core/ops/cuda/element.h"
#include "core/ops/cuda/lightning_kernels.h"

// Kernels of gated_linear_attention, all in float32 or float64. Letters: N chunks, H heads, C tokens a chunk, at most
// kMostGatedTokens, K key dim, V value dim. Per channel b_i = g_1 + .. + g_i within a chunk, in float64: after a decay
// that forgets everything, small differences of large sums matter.

namespace flashmorph::cuda {

inline constexpr int64_t kMostGatedTokens = 64;

// From g_NHCK (0 beyond a chunk's tokens): b_NHCK, q e^b, k e^(b_C - b) and e^(b_C) [N, H, K].
void gate_chunks(Element type, const void* q, const void* k, const void* g, double* b, void* q_down, void* k_tail,
                 void* whole, int64_t chunks_and_heads, int64_t size, int64_t width, Stream stream);

// scores_NHCC[i, j] = sum over c of q_ic k_jc e^(b_ic - b_jc) for j <= i, else 0. No exponent is above 0.
void gated_scores(Element type, const void* q, const void* k, const double* b, void* scores, int64_t chunks_and_heads,
                  int64_t size, int64_t width, Stream stream);

// Adds to dq_NHCK and dk_NHCK what reaches them through the scores:
//   dq_i += sum over j <= i of d_scores_ij k_j e^(b_i - b_j);   dk_j += sum over i >= j of d_scores_ij q_i e^(b_i -
//   b_j)
void gated_scores_backward(Element type, const void* q, const void* k, const double* b, const void* d_scores, void* dq,
                           void* dk, int64_t chunks_and_heads, int64_t size, int64_t width, Stream stream);

// dg_NHCK[i] = sum over m >= i of (q_m dq_m - k_m dk_m) + d_whole_NHK.
void gate_gradients(Element type, const void* q, const void* dq, const void* k, const void* dk, const void* d_whole,
                    void* dg, int64_t chunks_and_heads, int64_t size, int64_t width, Stream stream);

// As scan_states, with a decay a key channel: state = whole_NHK[n] state + factor added_NHKV[n].
void scan_gated_states(Element type, const void* added, void* state, void* entered, int64_t heads, int64_t key_size,
                       int64_t value_size, const ChunkTable& table, const void* whole_NHK, double factor,
                       bool backwards, Stream stream);

}  // namespace flashmorph::cuda
