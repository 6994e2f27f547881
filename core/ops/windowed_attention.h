#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

namespace flashmorph {

// Causal softmax attention over the last W tokens, differentiable in q, k, v and the sinks:
//     o_t = sum_s p_ts v_s,   p_ts = softmax over t - W < s <= t of q_t . k_s / sqrt(K)
// sinks_H: a logit a query head (of gpt-oss, arXiv 2508.10925), whose exponential is added to that softmax's
// denominator, as that of a key whose value is zero.
// Letters: B batch, T tokens, H query heads, G key and value heads (H / G query heads in a row read one), K head dim.
// q_BTHK, k_BPGK, v_BPGK with P >= T: the last T of the P tokens are those of the queries. place_T (any integers, on
// q's device): where each token stands in its own document, when several are packed in a row (B = 1, P = T); no token
// sees another document. Time and memory grow with T W.
at::Tensor windowed_attention(const at::Tensor& q_BTHK, const at::Tensor& k_BPGK, const at::Tensor& v_BPGK,
                              int64_t window, const std::optional<at::Tensor>& place_T,
                              const std::optional<at::Tensor>& sinks_H = std::nullopt);

// The same for one query a row, q_B1HK, which sees its row's first visible_B keys (int32 on q's device, at most
// `longest`) of k_BPGK and v_BPGK, in any order.
at::Tensor next_windowed_attention(const at::Tensor& q_B1HK, const at::Tensor& k_BPGK, const at::Tensor& v_BPGK,
                                   const at::Tensor& visible_B, int64_t longest,
                                   const std::optional<at::Tensor>& sinks_H = std::nullopt);

}  // namespace flashmorph
