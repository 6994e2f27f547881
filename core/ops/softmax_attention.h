#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace flashmorph {

// Causal softmax attention with grouped heads, differentiable in all three:
//     o_t = sum_s p_ts v_s,   p_ts = softmax over s <= t of q_t . k_s / sqrt(K)
// Letters: B batch, T tokens, H query heads, G key and value heads (H / G query heads in a row read one), K head dim, S
// documents. q_BTHK, k_BPGK, v_BPGK with P >= T: the last T of the P tokens are those of the queries.
// documents_S1 (offsets on the host, as linear_attention.h says): the documents packed in one row (B = 1, P = T) attend
// apart, in calls whose number does not grow with S. on_device_S1: the same in int32 on q's device.
// On a CPU in float32 by tiled_attention.h. Also torch.ops.flashmorph.softmax_attention.
at::Tensor softmax_attention(const at::Tensor& q_BTHK, const at::Tensor& k_BPGK, const at::Tensor& v_BPGK,
                             const std::optional<at::Tensor>& documents_S1 = std::nullopt,
                             const std::optional<at::Tensor>& on_device_S1 = std::nullopt);

// The same for one query a row, q_B1HK, whose row's first visible_B keys (int32 on q's device, at most `longest`)
// count, of k_BPGK and v_BPGK with room for more. Not differentiable.
at::Tensor next_token_attention(const at::Tensor& q_B1HK, const at::Tensor& k_BPGK, const at::Tensor& v_BPGK,
                                const at::Tensor& visible_B, int64_t longest);

}  // namespace flashmorph
