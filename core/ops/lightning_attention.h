#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <utility>

namespace flashmorph {

// Letters: B batch, T tokens, H heads, K key dim, V value dim, C tokens a chunk.
//
// Lightning attention (Lightning Attention-2, arXiv 2401.04658) with a constant decay per head:
//     S_t = exp(g_h) S_{t-1} + k_t v_t^T          o_t = scale * S_t^T q_t
// computed in chunks: matrix products inside a chunk, a scan of states between chunks.
//
// q_BTHK, k_BTHK, v_BTHV: any strides, one floating dtype. log_decay_H <= 0 (same device; float64 or float32).
// initial_state_BHKV: zero when absent. chunk >= 1 changes rounding only.
// Returns output_BTHV and final_state_BHKV. Differentiable (through both outputs) in q, k, v and initial_state.
// Also callable from Python as torch.ops.flashmorph.lightning_attention.
std::pair<at::Tensor, at::Tensor> lightning_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                                      const at::Tensor& log_decay,
                                                      const std::optional<at::Tensor>& initial_state, double scale,
                                                      int64_t chunk);

}  // namespace flashmorph
