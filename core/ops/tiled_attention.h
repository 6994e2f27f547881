#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace flashmorph {

// softmax_attention (softmax_attention.h) on a CPU in float32, P = T, for processors that has_small_products() is true
// on: queries and keys in tiles, of which nothing larger is held (FlashAttention, arXiv 2205.14135). Documents attend
// apart at no cost. Letters there.
bool tiled_attention_takes(const at::Tensor& q_BTHK);
at::Tensor tiled_attention(const at::Tensor& q_BTHK, const at::Tensor& k_BTGK, const at::Tensor& v_BTGK,
                           const std::optional<at::Tensor>& documents_S1);

}  // namespace flashmorph
