#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <utility>

namespace flashmorph {

// The linear-attention recurrences, computed in chunks: matrix products inside a chunk, a scan of states between
// chunks. Letters: B batch, T tokens, H heads, K key dim, V value dim, S sequences.
//
// q_BTHK, k_BTHK, v_BTHV: any strides, one floating dtype and device. Decays are logarithms <= 0; -inf forgets
// everything. documents_S+1 (int64, on the CPU): offsets of several documents packed one after the other in one row (B
// = 1), from 0 to T, increasing; each runs apart from the others, exactly. The sequences are then the S documents, else
// the S = B rows. initial_state_SHKV: zero when absent. scale multiplies the queries. chunk >= 1 changes rounding only.
// Returns output_BTHV and final_state_SHKV (float32 at least), both differentiable.
// Also callable from Python as torch.ops.flashmorph.*. c10::Error for shapes that do not fit.
using LinearAttentionResult = std::pair<at::Tensor, at::Tensor>;

// Lightning attention (Lightning Attention-2, arXiv 2401.04658), a constant decay per head:
//     S_t = exp(g_h) S_{t-1} + k_t v_t^T          o_t = scale S_t^T q_t
// log_decay_H: float64 or float32, no gradient.
LinearAttentionResult lightning_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                          const at::Tensor& log_decay_H, const std::optional<at::Tensor>& initial_state,
                                          const std::optional<at::Tensor>& documents, double scale, int64_t chunk);

// Mamba-2's recurrence (state-space duality, arXiv 2405.21060), lightning's with a decay per token:
//     S_t = exp(g_t) S_{t-1} + k_t v_t^T          o_t = scale S_t^T q_t
LinearAttentionResult scalar_gated_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                             const at::Tensor& g_BTH, const std::optional<at::Tensor>& initial_state,
                                             const std::optional<at::Tensor>& documents, double scale, int64_t chunk);

// Gated linear attention (GLA, arXiv 2312.06635), a decay per token and key channel:
//     S_t = diag(exp(g_t)) S_{t-1} + k_t v_t^T    o_t = scale S_t^T q_t
LinearAttentionResult gated_linear_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                             const at::Tensor& g_BTHK, const std::optional<at::Tensor>& initial_state,
                                             const std::optional<at::Tensor>& documents, double scale, int64_t chunk);

// Gated delta rule (Gated DeltaNet, arXiv 2412.06464), a decay and a writing strength per token:
//     S~ = exp(g_t) S_{t-1}    S_t = S~ + beta_t k_t (v_t - S~^T k_t)^T    o_t = scale S_t^T q_t
// k_t must have length 1 at most (l2_norm) for the recurrence to be stable.
LinearAttentionResult gated_delta_rule(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                       const at::Tensor& g_BTH, const at::Tensor& beta_BTH,
                                       const std::optional<at::Tensor>& initial_state,
                                       const std::optional<at::Tensor>& documents, double scale, int64_t chunk);

}  // namespace flashmorph
