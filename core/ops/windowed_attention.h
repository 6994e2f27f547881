#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

namespace flashmorph {

// Causal softmax attention over the last W tokens, differentiable in q, k and v:
//     o_t = sum_s p_ts v_s,   p_ts = softmax over t - W < s <= t of q_t . k_s / sqrt(K)
// Letters: B batch, T tokens, H query heads, G key and value heads (H / G query heads in a row read one), K head dim.
// q_BTHK, k_BPGK, v_BPGK with P >= T: the last T of the P tokens are those of the queries. place_T (any integers, on
// q's device): where each token stands in its own document, when several are packed in a row (B = 1, P = T); no token
// sees another document. Time and memory grow with T W.
at::Tensor windowed_attention(const at::Tensor& q_BTHK, const at::Tensor& k_BPGK, const at::Tensor& v_BPGK,
                              int64_t window, const std::optional<at::Tensor>& place_T);

}  // namespace flashmorph
